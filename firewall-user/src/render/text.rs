//! Numbers, addresses and times as text, without a thought to spare for each: a list can be
//! of a million flows.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use jiff::{Timestamp, civil::DateTime, tz::Offset};

/// What can be put behind a text.
pub(super) trait Put {
    /// A number, decimal.
    fn put_number(&mut self, number: u64);

    /// A number in as many digits at least, with zeros in front.
    fn put_padded(&mut self, number: u64, digits: usize);

    /// An address.
    fn put_address(&mut self, address: IpAddr);

    /// As [`endpoint`].
    fn put_endpoint(&mut self, address: IpAddr, port: Option<u16>);

    /// As [`short_time`].
    fn put_time(&mut self, seconds: f64);

    /// As [`short_bytes`].
    fn put_bytes(&mut self, bytes: u64);

    /// `12:00:00`.
    fn put_clock(&mut self, at: DateTime);

    /// `2026-11-22`.
    fn put_date(&mut self, at: DateTime);
}

impl Put for String {
    fn put_number(&mut self, number: u64) {
        self.put_padded(number, 1);
    }

    fn put_padded(&mut self, mut number: u64, digits: usize) {
        // A u64 has 20 digits at most.
        let mut text = [b'0'; 20];
        let mut from = text.len();
        for digit in text.iter_mut().rev() {
            if number == 0 && 20 - from >= digits {
                break;
            }
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
            from -= 1;
        }
        let digits = text.get(from..).and_then(|text| str::from_utf8(text).ok());
        self.push_str(digits.unwrap_or_default());
    }

    fn put_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => put_v4(self, v4),
            IpAddr::V6(v6) => {
                // Writing to a String does not fail.
                let _ = write!(self, "{v6}");
            }
        }
    }

    fn put_endpoint(&mut self, address: IpAddr, port: Option<u16>) {
        match (address, port) {
            (address, None) => self.put_address(address),
            (IpAddr::V4(v4), Some(port)) => {
                put_v4(self, v4);
                self.push(':');
                self.put_number(port.into());
            }
            (IpAddr::V6(_), Some(port)) => {
                let _ = write!(self, "{}", SocketAddr::new(address, port));
            }
        }
    }

    fn put_time(&mut self, seconds: f64) {
        let s = seconds.max(0.0).round() as u64;
        let (upper, unit, lower, other) = match s {
            0..10 => {
                let _ = write!(self, "{seconds:.1}s");
                return;
            }
            10..60 => {
                self.put_number(s);
                self.push('s');
                return;
            }
            60..3600 => (s / 60, 'm', s % 60, 's'),
            3600..86_400 => (s / 3600, 'h', s / 60 % 60, 'm'),
            _ => (s / 86_400, 'd', s / 3600 % 24, 'h'),
        };
        self.put_number(upper);
        self.push(unit);
        self.put_padded(lower, 2);
        self.push(other);
    }

    fn put_bytes(&mut self, bytes: u64) {
        if bytes < 1024 {
            self.put_number(bytes);
            return;
        }
        let mut value = bytes as f64;
        let mut unit = 'K';
        for larger in ['K', 'M', 'G', 'T', 'P'] {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = larger;
        }
        let tenths = (value * 10.0).round() as u64;
        self.put_number(tenths / 10);
        self.push('.');
        self.put_number(tenths % 10);
        self.push(unit);
    }

    fn put_clock(&mut self, at: DateTime) {
        for (index, part) in [at.hour(), at.minute(), at.second()]
            .into_iter()
            .enumerate()
        {
            if index > 0 {
                self.push(':');
            }
            self.put_padded(part.unsigned_abs().into(), 2);
        }
    }

    fn put_date(&mut self, at: DateTime) {
        self.put_padded(at.year().unsigned_abs().into(), 4);
        for part in [at.month(), at.day()] {
            self.push('-');
            self.put_padded(part.unsigned_abs().into(), 2);
        }
    }
}

fn put_v4(out: &mut String, address: Ipv4Addr) {
    for (index, byte) in address.octets().into_iter().enumerate() {
        if index > 0 {
            out.push('.');
        }
        out.put_number(byte.into());
    }
}

/// What `put` puts, as a text of its own.
fn text(put: impl FnOnce(&mut String)) -> String {
    let mut out = String::new();
    put(&mut out);
    out
}

/// RFC 3339, UTC, to the millisecond: `2026-11-22T12:00:00.250Z`.
pub(super) fn rfc3339(at: Timestamp) -> String {
    let utc = Offset::UTC.to_datetime(at);
    let mut out = String::with_capacity(24);
    out.put_date(utc);
    out.push('T');
    out.put_clock(utc);
    out.push('.');
    out.put_padded(utc.millisecond().unsigned_abs().into(), 3);
    out.push('Z');
    out
}

/// `192.0.2.1:21`, `[2001:db8::1]:21`, or the address alone.
pub(super) fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    text(|out| out.put_endpoint(address, port))
}

/// A duration in two units at most: `0.4s`, `12s`, `3m05s`, `2h10m`, `4d23h`.
pub(super) fn short_time(seconds: f64) -> String {
    text(|out| out.put_time(seconds))
}

/// A number of bytes with a binary unit: `999`, `1.5K`, `20.0M`.
pub(super) fn short_bytes(bytes: u64) -> String {
    text(|out| out.put_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_the_standard_library_has_them() {
        for number in [0, 7, 10, 99, 100, 65_535, 1_000_000, u64::MAX] {
            assert_eq!(text(|out| out.put_number(number)), number.to_string());
            assert_eq!(
                text(|out| out.put_padded(number, 3)),
                format!("{number:03}")
            );
        }
    }

    #[test]
    fn times_and_sizes_are_short() {
        let times = [0.25, 9.99, 10.0, 185.0, 7_800.0, 428_400.0].map(short_time);
        assert_eq!(times, ["0.2s", "10s", "10s", "3m05s", "2h10m", "4d23h"]);
        let sizes = [0, 1023, 1536, 20 << 20, u64::MAX].map(short_bytes);
        assert_eq!(sizes, ["0", "1023", "1.5K", "20.0M", "16384.0P"]);
    }

    #[test]
    fn ports_stand_behind_addresses_of_either_family() {
        for of in ["2001:db8::1", "192.0.2.1", "255.255.255.255", "0.0.0.0"] {
            let address: IpAddr = of.parse().unwrap();
            assert_eq!(endpoint(address, None), of);
            let both = SocketAddr::new(address, 21).to_string();
            assert_eq!(endpoint(address, Some(21)), both);
        }
    }

    #[test]
    fn a_moment_is_told_to_the_millisecond() {
        let at = Timestamp::new(1_000_000_000, 50_999_999).unwrap();
        assert_eq!(rfc3339(at), "2001-09-09T01:46:40.050Z");
    }
}
