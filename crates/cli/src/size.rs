//! Sizes and durations as they are typed: `32M`, `1ms`.

use std::time::Duration;

/// Bytes in a page; sizes are multiples of it.
pub(crate) const PAGE: usize = userswap::PAGE_SIZE;

/// Reads a size: as [`parse_limit`], but whole pages.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    let limit = whole_pages(bytes);
    if bytes != limit {
        return Err(format!(
            "{text} is not a multiple of the page size ({PAGE} bytes); use {limit} or {}",
            bytes.next_multiple_of(PAGE as u64)
        ));
    }
    Ok(bytes)
}

/// Reads what a size must not exceed: a whole number of bytes with an optional K, M, G or T (powers of 1024), rounded down to
/// whole pages.
pub(crate) fn parse_limit(text: &str) -> Result<u64, String> {
    parse_bytes(text).map(whole_pages)
}

fn whole_pages(bytes: u64) -> u64 {
    bytes / PAGE as u64 * PAGE as u64
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let not_a_size =
        || format!("'{text}' is not a size; write a whole number and K, M, G or T, such as 32M");
    let (digits, shift) = match text.trim().char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let shift = match unit.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return Err(not_a_size()),
            };
            (&text.trim()[..at], shift)
        }
        _ => (text.trim(), 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(not_a_size());
    }
    let too_large = || format!("{text} is larger than any address space; write a smaller size");
    let number: u64 = digits.parse().map_err(|_| too_large())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(too_large)?;
    if bytes > isize::MAX as u64 {
        return Err(too_large());
    }
    if bytes == 0 {
        return Err(format!(
            "a size of 0 holds nothing; give at least one page ({PAGE} bytes)"
        ));
    }
    Ok(bytes)
}

/// Reads a duration: a number and `ns`, `us`, `ms` or `s`; 0 needs no unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let not_a_duration =
        || format!("'{text}' is not a duration; write a number and ns, us, ms or s, such as 1ms");
    let trimmed = text.trim();
    let unit_at = trimmed
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(unit_at);
    let plain = number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = if plain {
        number.parse().map_err(|_| not_a_duration())?
    } else {
        -1.0
    };
    if number < 0.0 {
        return Err(not_a_duration());
    }
    let seconds = match unit {
        "ns" => number / 1e9,
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "" if number == 0.0 => 0.0,
        _ => return Err(not_a_duration()),
    };
    if seconds > 3600.0 {
        return Err(format!(
            "{text} is longer than an hour; write a shorter duration"
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A size for people: the largest unit that leaves a whole number.
pub(crate) fn human(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}")
}

/// A size for people, rounded to three figures or so.
pub(crate) fn rounded(bytes: u64) -> String {
    let value = bytes as f64;
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes >= 1 << shift {
            return format!("{:.1}{unit}", value / (1_u64 << shift) as f64);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_powers_of_1024() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("4K"), Ok(4096));
        assert_eq!(parse_size("32M"), Ok(32 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert_eq!(parse_size("2T"), Ok(2 << 40));
    }

    #[test]
    fn limits_are_rounded_down_to_pages() {
        assert_eq!(parse_limit("57155K"), Ok(57_155 / 4 * 4096));
        assert_eq!(parse_limit("20000001"), Ok(20_000_001 / 4096 * 4096));
        assert_eq!(parse_limit("5"), Ok(0));
        assert!(parse_limit("0").is_err());
    }

    #[test]
    fn bad_sizes_are_named() {
        for (text, needle) in [
            ("", "is not a size"),
            ("M", "is not a size"),
            ("-1M", "is not a size"),
            ("1.5M", "is not a size"),
            ("12Q", "is not a size"),
            ("3Mé", "is not a size"),
            ("0", "a size of 0"),
            ("0M", "a size of 0"),
            ("5000", "not a multiple of the page size"),
            ("99999999999999999999", "larger than any address space"),
            ("9999999T", "larger than any address space"),
            ("17179869184G", "larger than any address space"),
        ] {
            let said = parse_size(text).expect_err(text);
            assert!(said.contains(needle), "{text}: {said}");
            assert!(!said.contains('\n'));
        }
    }

    #[test]
    fn a_misfit_names_its_neighbours() {
        let said = parse_size("5000").expect_err("not whole pages");
        assert!(said.contains("4096") && said.contains("8192"), "{said}");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1ms"), Ok(Duration::from_millis(1)));
        assert_eq!(parse_duration("50us"), Ok(Duration::from_micros(50)));
        assert_eq!(parse_duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("0ms"), Ok(Duration::ZERO));
    }

    #[test]
    fn bad_durations_are_named() {
        for text in ["", "5", "ms", "-1ms", "1m", "1e3s", "1.2.3s", "2h"] {
            let said = parse_duration(text).expect_err(text);
            assert!(said.contains("is not a duration"), "{text}: {said}");
        }
        assert!(parse_duration("3601s").is_err());
    }

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for text in ["4K", "32M", "1G", "12K", "3T"] {
            assert_eq!(human(parse_size(text).expect("a size")), text);
        }
        assert_eq!(rounded(1536 << 10), "1.5M");
        assert_eq!(rounded(12), "12B");
    }
}
