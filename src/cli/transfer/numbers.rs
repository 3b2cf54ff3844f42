//! Numbers as text, as spreadsheets and programs write them.

use std::fmt::Write as _;

/// How the numbers of a file are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NumberStyle {
    /// Whether `,` separates the decimals and `.` the thousands.
    pub decimal_comma: bool,
}

impl NumberStyle {
    /// Parses a whole number, with or without separated thousands, such as `12 345`, `1,234` or
    /// `5.0`.
    pub fn integer(self, text: &str) -> Option<i64> {
        if let Ok(number) = text.parse() {
            return Some(number);
        }
        let (decimal, thousands) = if self.decimal_comma {
            (',', '.')
        } else {
            ('.', ',')
        };
        let (whole, decimals) = text.split_once(decimal).unwrap_or((text, ""));
        if !decimals.bytes().all(|digit| digit == b'0') {
            return None;
        }
        let (sign, digits) = match whole.strip_prefix(['-', '+', '\u{2212}']) {
            Some(digits) if whole.starts_with('+') => ("", digits),
            Some(digits) => ("-", digits),
            None => ("", whole),
        };
        let separator = digits.chars().find(|char| !char.is_ascii_digit());
        let mut joined = sign.to_owned();
        match separator {
            None if digits.is_empty() => return None,
            None => joined.push_str(digits),
            Some(separator) => {
                let is_known = separator == thousands
                    || matches!(
                        separator,
                        ' ' | '\u{a0}' | '\u{2009}' | '\u{202f}' | '\'' | '\u{2019}'
                    );
                if !is_known {
                    return None;
                }
                for (index, group) in digits.split(separator).enumerate() {
                    let is_group = match index {
                        0 => (1..=3).contains(&group.len()) && !group.starts_with('0'),
                        _ => group.len() == 3,
                    };
                    if !is_group || !group.bytes().all(|byte| byte.is_ascii_digit()) {
                        return None;
                    }
                    joined.push_str(group);
                }
            }
        }
        joined.parse().ok()
    }

    /// Parses a finite number, to the nearest double. Thousands aren't separated: no coordinate
    /// needs it, and `48,853` may be meant as 48.853.
    pub fn real(self, text: &str) -> Option<f64> {
        let is_plain = |text: &str| {
            text.bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
        };
        let number = if self.decimal_comma && text.matches(',').count() == 1 {
            text.replace(',', ".")
        } else {
            text.to_owned()
        };
        let number = number.replace('\u{2212}', "-");
        Some(number)
            .filter(|number| is_plain(number))
            .and_then(|number| number.parse().ok())
            .filter(|number: &f64| number.is_finite())
    }
}

/// Appends a number as the shortest text that reads as the same double.
pub fn write_real(number: f64, out: &mut String) {
    let size = number.abs();
    let written = if size == 0.0 || (1e-5..1e16).contains(&size) {
        write!(out, "{number}")
    } else {
        write!(out, "{number:e}")
    };
    written.expect("a string accepts all text");
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINT: NumberStyle = NumberStyle {
        decimal_comma: false,
    };
    const COMMA: NumberStyle = NumberStyle {
        decimal_comma: true,
    };

    #[test]
    fn whole_numbers_are_read_as_spreadsheets_write_them() {
        for (style, text, number) in [
            (POINT, "5", Some(5)),
            (POINT, "5.0", Some(5)),
            (POINT, "5.", Some(5)),
            (POINT, "+1,234", Some(1234)),
            (POINT, "-1,234,567.00", Some(-1_234_567)),
            (POINT, "12 345", Some(12345)),
            (POINT, "12\u{202f}345", Some(12345)),
            (POINT, "12'345", Some(12345)),
            (POINT, "9223372036854775807", Some(i64::MAX)),
            (COMMA, "1.234", Some(1234)),
            (COMMA, "1.234,0", Some(1234)),
            (POINT, "1.5", None),
            (POINT, "1.234", None),
            (POINT, "12,34", None),
            (POINT, "0,123", None),
            (POINT, "1,234 567", None),
            (POINT, "9223372036854775808", None),
            (POINT, "1e3", None),
            (POINT, "", None),
            (POINT, "-", None),
            (POINT, "x", None),
            (COMMA, "1,5", None),
        ] {
            assert_eq!(style.integer(text), number, "{text}");
        }
    }

    #[test]
    fn doubles_are_exact_both_ways() {
        for bits in [
            5e-324,
            2.225_073_858_507_201e-308,
            -0.0,
            0.0,
            40.631_900_787_353_516,
            -2.5e-7,
            179.999_999_999_999_97,
            1e300,
            7.0,
        ] {
            let mut text = String::new();
            write_real(bits, &mut text);
            let back = POINT.real(&text).unwrap();
            assert_eq!(back.to_bits(), bits.to_bits(), "{text}");
            assert!(text.len() < 30, "{text}");
        }
        for (style, text, number) in [
            (POINT, "48.85341", Some(48.85341)),
            (COMMA, "48,85341", Some(48.85341)),
            (COMMA, "48.85341", Some(48.85341)),
            (POINT, "\u{2212}0.5", Some(-0.5)),
            (POINT, "48,85341", None),
            (POINT, "1e999", None),
            (POINT, "nan", None),
            (POINT, "infinity", None),
            (COMMA, "1,2,3", None),
        ] {
            assert_eq!(style.real(text), number, "{text}");
        }
    }
}
