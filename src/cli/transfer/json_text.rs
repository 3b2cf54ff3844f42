//! JSON as text: the parts of a value, with its numbers as they are written.
//!
//! `serde_json` checks the syntax, and would round long numbers and keep only the last of two equal
//! keys. The functions here split text that it has accepted.

use serde::de::IgnoredAny;

/// Checks the syntax. The error has the column, counted from 1.
pub fn check(text: &str) -> Result<(), String> {
    serde_json::from_str::<IgnoredAny>(text)
        .map(|_| ())
        .map_err(|error| {
            error
                .to_string()
                .replace(" at line 1 column ", " at column ")
        })
}

/// The members of a valid object, with their values as text. `None` for another value.
pub fn members(text: &str) -> Option<Vec<(String, &str)>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut members = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r', ',']);
        if rest.is_empty() {
            return Some(members);
        }
        let (key, after) = rest.split_at(value_len(rest));
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        let (value, after) = value.split_at(value_len(value));
        members.push((string(key.trim())?, value.trim()));
        rest = after;
    }
}

/// The elements of a valid array, as text. `None` for another value.
pub fn elements(text: &str) -> Option<Vec<&str>> {
    let mut rest = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let mut elements = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r', ',']);
        if rest.is_empty() {
            return Some(elements);
        }
        let (element, after) = rest.split_at(value_len(rest));
        elements.push(element.trim());
        rest = after;
    }
}

/// The text of a valid string. `None` for another value.
pub fn string(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(inner.to_owned());
    }
    serde_json::from_str(text).ok()
}

/// The elements of an array of strings, which may be invalid.
pub fn strings(text: &str) -> Option<Vec<String>> {
    check(text).ok()?;
    elements(text)?.into_iter().map(string).collect()
}

/// The members of an object of strings, which may be invalid.
pub fn string_members(text: &str) -> Option<Vec<(String, String)>> {
    check(text).ok()?;
    let members = members(text)?.into_iter();
    members
        .map(|(key, value)| Some((key, string(value)?)))
        .collect()
}

/// The length of the value or key at the start of the text.
fn value_len(text: &str) -> usize {
    let mut end = ValueEnd::default();
    let bytes = text.bytes();
    bytes
        .enumerate()
        .find(|(_, byte)| end.is_at(*byte))
        .map_or(text.len(), |(index, _)| index)
}

/// Finds the end of a value in an array or an object, byte by byte.
#[derive(Debug, Default)]
pub struct ValueEnd {
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
}

impl ValueEnd {
    /// Whether all brackets and strings so far are closed.
    pub fn is_closed(&self) -> bool {
        self.depth == 0 && !self.is_in_string
    }

    /// Whether the next byte is the first after the value: a comma, a colon, or the closing bracket
    /// of what contains it.
    pub fn is_at(&mut self, byte: u8) -> bool {
        if self.is_in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.is_in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.is_in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' | b',' | b':' if self.depth == 0 => return true,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_split_and_numbers_stay_as_they_are() {
        let text = r#" {"a":1.10 , "b,\"":"x:\"}y" ,"a" : [{},"]"],"c":{"d":[1,2]}, "e":-0} "#;
        check(text).unwrap();
        let members = members(text).unwrap();
        let members: Vec<_> = members
            .iter()
            .map(|(key, value)| (key.as_str(), *value))
            .collect();
        assert_eq!(
            members,
            [
                ("a", "1.10"),
                ("b,\"", r#""x:\"}y""#),
                ("a", r#"[{},"]"]"#),
                ("c", r#"{"d":[1,2]}"#),
                ("e", "-0"),
            ]
        );
        assert_eq!(
            elements(r#"[1, "a,b", [2,3], {}]"#).unwrap(),
            ["1", "\"a,b\"", "[2,3]", "{}"]
        );
        assert_eq!(string(r#""\u00e9\n""#).unwrap(), "é\n");
        assert_eq!(strings("[]").unwrap(), Vec::<String>::new());
        for bad in ["[1]", "[\"a\"", "{}", "x"] {
            assert_eq!(strings(bad), None, "{bad}");
        }
        assert!(check("{\"a\"").unwrap_err().contains("at column 4"));
    }
}
