//! Numbers as people read them: counts, bytes, durations, rates. Programs get plain numbers in JSON.

/// A count with its thousands apart: `12,345`.
pub(crate) fn count(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in units of 1024: `512 B`, `3.25 MiB`.
pub(crate) fn bytes(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// Floating-point operations, or as many a second: `12.5 GFLOP`, `3.21 TFLOP`.
pub(crate) fn operations(gflop: f64) -> String {
    match gflop {
        gflop if gflop < 0.1 => format!("{} MFLOP", three_digits(gflop * 1e3)),
        gflop if gflop < 1000.0 => format!("{} GFLOP", three_digits(gflop)),
        _ => format!("{} TFLOP", three_digits(gflop / 1e3)),
    }
}

/// A duration given in seconds: `350 µs`, `12.5 ms`, `3.21 s`, `2 min 05 s`.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 1e-3 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{} ms", three_digits(seconds * 1e3))
    } else if seconds < 100.0 {
        format!("{} s", three_digits(seconds))
    } else {
        let whole = seconds.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

/// A rate in tokens per second: `6,172 tokens/s`, `8.31 tokens/s`.
pub(crate) fn rate(tokens_per_s: f64) -> String {
    if tokens_per_s >= 1000.0 {
        format!("{} tokens/s", count(tokens_per_s.round() as usize))
    } else {
        format!("{} tokens/s", three_digits(tokens_per_s))
    }
}

/// Three digits that count, as far as they stand behind the point.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_their_thousands_apart() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
    }

    #[test]
    fn sizes_durations_and_rates_show_three_digits() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3_407_872), "3.25 MiB");
        assert_eq!(bytes(160 << 30), "160 GiB");
        assert_eq!(operations(0.012_34), "12.3 MFLOP");
        assert_eq!(operations(543.21), "543 GFLOP");
        assert_eq!(operations(43_210.0), "43.2 TFLOP");
        assert_eq!(seconds(0.000_35), "350 µs");
        assert_eq!(seconds(0.0125), "12.5 ms");
        assert_eq!(seconds(3.214), "3.21 s");
        assert_eq!(seconds(125.0), "2 min 05 s");
        assert_eq!(rate(6172.4), "6,172 tokens/s");
        assert_eq!(rate(8.309), "8.31 tokens/s");
    }
}
