#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hbone::fuzzing::nested_path(data));
