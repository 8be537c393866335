//! The dates of a certificate, which webpki checks and does not reveal.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

const DAY: i64 = 24 * 60 * 60;

/// `notBefore` and `notAfter` (RFC 5280, section 4.1.2.5) of a DER certificate.
pub(super) fn validity(certificate: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let (certificate, _) = expect(SEQUENCE, certificate)?;
    let (mut tbs, _) = expect(SEQUENCE, certificate)?;
    if let Some((_, rest)) = expect(VERSION, tbs) {
        tbs = rest;
    }
    // Serial number, algorithm and issuer come first.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, tbs) = expect(tag, tbs)?;
    }
    let (validity, _) = expect(SEQUENCE, tbs)?;
    let (not_before, rest) = time(validity)?;
    let (not_after, _) = time(rest)?;
    Some((not_before, not_after))
}

/// The content of the element with this tag, and what follows it.
fn expect(tag: u8, input: &[u8]) -> Option<(&[u8], &[u8])> {
    element(input).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, first, rest @ ..] = input else { return None };
    let (length, rest) = match usize::from(*first) {
        short @ ..=0x7f => (short, rest),
        // Certificates end at 64 KiB; more bytes would be no length to believe.
        long if (0x81..=0x83).contains(&long) => {
            let (length, rest) = rest.split_at_checked(long & 0x7f)?;
            (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

fn time(input: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (tag, text, rest) = element(input)?;
    let text = text.strip_suffix(b"Z")?;
    let (year, text) = match tag {
        // Two digits: 1950 to 2049.
        UTC_TIME => {
            let (year, text) = digits(2, text)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text)
        }
        GENERALIZED_TIME => digits(4, text)?,
        _ => return None,
    };
    let (month, text) = digits(2, text)?;
    let (day, text) = digits(2, text)?;
    let (hour, text) = digits(2, text)?;
    let (minute, text) = digits(2, text)?;
    let (second, text) = digits(2, text)?;
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if !valid || !text.is_empty() {
        return None;
    }
    let seconds = days_from_civil(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    let since = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
    Some((time?, rest))
}

fn digits(count: usize, text: &[u8]) -> Option<(i64, &[u8])> {
    let (digits, rest) = text.split_at_checked(count)?;
    let number = str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    Some((number.parse().ok()?, rest))
}

/// Days since 1970-01-01 in the Gregorian calendar. Years begin in March here, so that a leap day is a year's last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`]: year, month and day.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year_of_era, (month + 2) % 12 + 1);
    (if month <= 2 { year + 1 } else { year }, month, day)
}

/// A time as RFC 3339 writes it, to the second.
pub(super) struct Utc(pub(super) SystemTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = match self.0.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
        };
        let (year, month, day) = civil_from_days(seconds.div_euclid(DAY));
        let second = seconds.rem_euclid(DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn read(tag: u8, text: &str) -> Option<String> {
        let der = [&[tag, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        time(&der).map(|(time, _)| Utc(time).to_string())
    }

    #[rstest]
    #[case(UTC_TIME, "700101000000Z", "1970-01-01T00:00:00Z")]
    #[case(UTC_TIME, "500101000000Z", "1950-01-01T00:00:00Z")]
    #[case(UTC_TIME, "491231235959Z", "2049-12-31T23:59:59Z")]
    #[case(UTC_TIME, "240229120000Z", "2024-02-29T12:00:00Z")]
    #[case(GENERALIZED_TIME, "20500101000000Z", "2050-01-01T00:00:00Z")]
    #[case(GENERALIZED_TIME, "99991231235959Z", "9999-12-31T23:59:59Z")]
    #[case(GENERALIZED_TIME, "21000301000000Z", "2100-03-01T00:00:00Z")]
    fn times_of_rfc_5280_are_read(#[case] tag: u8, #[case] text: &str, #[case] expected: &str) {
        assert_eq!(read(tag, text).as_deref(), Some(expected));
    }

    #[rstest]
    #[case(UTC_TIME, "7001010000Z")]
    #[case(UTC_TIME, "700101000000")]
    #[case(UTC_TIME, "700101000000+0100")]
    #[case(UTC_TIME, "701301000000Z")]
    #[case(UTC_TIME, "70010100000 Z")]
    #[case(UTC_TIME, "+0010100000Z")]
    #[case(GENERALIZED_TIME, "700101000000Z")]
    #[case(GENERALIZED_TIME, "20500101000000.5Z")]
    #[case(0x04, "700101000000Z")]
    fn other_times_are_not(#[case] tag: u8, #[case] text: &str) {
        assert_eq!(read(tag, text), None);
    }

    proptest! {
        #[test]
        fn a_date_comes_back_from_its_day(days in -1_000_000_i64..3_000_000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&day));
            prop_assert_eq!(days_from_civil(year, month, day), days);
        }

        #[test]
        fn any_bytes_are_read_without_panic(mut der: Vec<u8>, nested in 0..4_usize) {
            for _ in 0..nested {
                der = [&[SEQUENCE, 0x82], &u16::try_from(der.len()).unwrap().to_be_bytes()[..], &der].concat();
            }
            let _ = validity(&der);
        }
    }
}
