#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hbone::fuzzing::mesh_store(data));
