//! Text that has been validated, and identifiers.

use std::fmt;

use unicode_normalization::UnicodeNormalization as _;
use uuid::Uuid;

/// The ISO 3166-1 alpha-2 codes, and XK, which the Unicode CLDR adds for Kosovo (AIP-143).
const REGION_CODES: &str = "\
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS \
    BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE \
    EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM \
    HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC \
    LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA \
    NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW \
    SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO \
    TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW";

/// Text of `MIN` to `MAX` characters (Unicode scalar values) without NUL, which PostgreSQL can't
/// store. A `NAME` identifies something to people, so texts that look the same must be the same: it
/// has no outer white space, and no control or invisible characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const MIN: usize, const MAX: usize, const NAME: bool = false>(String);

impl<const MIN: usize, const MAX: usize, const NAME: bool> Text<MIN, MAX, NAME> {
    /// The maximum number of characters.
    pub const MAX: usize = MAX;

    /// Validates text. The error states the problem and the limit.
    pub fn parse(text: String) -> Result<Self, String> {
        // Text has at most as many characters as bytes: usually these needn't be counted.
        let length = if text.len() <= MAX && MIN <= 1 {
            text.len()
        } else {
            text.chars().count()
        };
        if length < MIN && MIN == 1 {
            return Err("is required".to_owned());
        }
        if length < MIN || length > MAX {
            return Err(format!("must have {MIN} to {MAX} characters, has {length}"));
        }
        if NAME {
            check_name(&text)?;
        } else if text.contains('\0') {
            return Err("must not contain the NUL character".to_owned());
        }
        Ok(Self(text))
    }

    /// Wraps text that is known to be valid, such as text from the database.
    pub(crate) fn from_trusted(text: String) -> Self {
        Self(text)
    }

    /// The text as a string slice.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text as a string.
    pub fn into_string(self) -> String {
        self.0
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<const MAX: usize, const NAME: bool> Default for Text<0, MAX, NAME> {
    fn default() -> Self {
        Self(String::new())
    }
}

impl<const MIN: usize, const MAX: usize, const NAME: bool> fmt::Display for Text<MIN, MAX, NAME> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Checks the characters of a name or an identifier.
fn check_name(text: &str) -> Result<(), String> {
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return Err("must not begin or end with white space".to_owned());
    }
    match text
        .chars()
        .find(|char| char.is_control() || is_invisible(*char))
    {
        Some(char) => Err(format!(
            "must not contain control or invisible characters, has U+{:04X}",
            u32::from(char)
        )),
        None => Ok(()),
    }
}

/// Whether a character other than white space is shown as nothing: Unicode's `Cf` (format) and
/// `Default_Ignorable_Code_Point`, the line and paragraph separators, and the blank Braille pattern.
/// <https://www.unicode.org/Public/16.0.0/ucd/DerivedCoreProperties.txt>
fn is_invisible(char: char) -> bool {
    !char.is_ascii()
        && matches!(
            u32::from(char),
            0xAD | 0x34F
                | 0x600..=0x605
                | 0x61C
                | 0x6DD
                | 0x70F
                | 0x890..=0x891
                | 0x8E2
                | 0x115F..=0x1160
                | 0x17B4..=0x17B5
                | 0x180B..=0x180F
                | 0x200B..=0x200F
                | 0x2028..=0x202E
                | 0x2060..=0x206F
                | 0x2800
                | 0x3164
                | 0xFE00..=0xFE0F
                | 0xFEFF
                | 0xFFA0
                | 0xFFF0..=0xFFFB
                | 0x110BD
                | 0x110CD
                | 0x13430..=0x1343F
                | 0x1BCA0..=0x1BCA3
                | 0x1D173..=0x1D17A
                | 0xE0000..=0xE0FFF
        )
}

/// A location's name.
pub type DisplayName = Text<1, 256, true>;
/// A production run. Empty means "no run", which is a value that lists can select.
pub type ProductionRunId = Text<0, 128, true>;
/// The subject (a JWT's `sub`) that owns a location.
pub type OwnerId = Text<1, 255, true>;
/// Free text about a location.
pub type Description = Text<0, 2000>;
/// A line, locality or administrative area of an address.
pub type AddressText = Text<0, 256>;
/// A postal code.
pub type PostalCode = Text<0, 32>;
/// A label's value.
pub type LabelValue = Text<0, 255>;

/// A label's key: 1 to 63 characters of `a-z`, `0-9`, `-`, `_`, `.` and `/`, beginning with a letter.
///
/// The JSON form of a field mask changes the case of letters, so a key has none in upper case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelKey(String);

impl LabelKey {
    /// The maximum number of characters.
    pub const MAX: usize = 63;

    /// Validates a key.
    pub fn parse(text: String) -> Result<Self, String> {
        let valid = text.len() <= Self::MAX
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_./".contains(&byte)
            });
        if valid {
            Ok(Self(text))
        } else {
            Err(format!(
                "must have 1 to {} characters of a-z, 0-9, -, _, . and /, and begin with a letter",
                Self::MAX
            ))
        }
    }

    /// Wraps a key that is known to be valid, such as one from the database.
    pub(crate) fn from_trusted(text: String) -> Self {
        Self(text)
    }

    /// The key as a string slice.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as a string.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// The version of the rules of [`fold_case`]. Stored names are folded anew when it changes.
pub const FOLDING_VERSION: i64 = 1;

/// The dot above, which the lower case of "İ" has after its "i".
const DOT_ABOVE: char = '\u{307}';

/// Folds text for comparison: texts that differ only in their case or in their Unicode form become
/// the same.
///
/// The result is composed (NFC), and its case is folded as in Unicode's full case folding, which maps
/// "ß" to "ss". Text is mapped to upper case and then to lower case: lower case only would keep "ß"
/// apart from "SS", and the Greek final sigma from the other sigmas. Both mappings are repeated until
/// nothing changes, because "ẞ" first becomes "ß". The dot above is dropped unless it is a part of a
/// composed letter, so that "İ", "I", "i" and "ı" are the same.
pub fn fold_case(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let mut folded: String = text.nfc().collect();
    loop {
        let again: String = folded
            .chars()
            .flat_map(char::to_uppercase)
            .flat_map(char::to_lowercase)
            .filter(|char| *char != DOT_ABOVE)
            .nfc()
            .collect();
        if again == folded {
            return folded;
        }
        folded = again;
    }
}

/// An ISO 3166-1 alpha-2 code, or XK. Empty means "none".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionCode(String);

impl RegionCode {
    /// Validates a code.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || REGION_CODES.split(' ').any(|code| code == text) {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be an ISO 3166-1 alpha-2 code in upper case, such as FR".to_owned())
        }
    }

    /// Wraps a code that is known to be valid, such as one from the database.
    pub(crate) fn from_trusted(text: String) -> Self {
        Self(text)
    }

    /// The code as a string slice.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A location's id: any UUID. The service generates version 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocationId(pub Uuid);

impl LocationId {
    /// Generates a version 7 id.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Parses an id.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse_uuid(text).map(Self)
    }
}

impl fmt::Display for LocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Parses a UUID in its hyphenated form.
pub fn parse_uuid(text: &str) -> Result<Uuid, String> {
    if text.is_empty() {
        return Err("is required".to_owned());
    }
    Some(text)
        .filter(|text| text.len() == uuid::fmt::Hyphenated::LENGTH)
        .and_then(|text| Uuid::try_parse(text).ok())
        .ok_or_else(|| "must be a UUID such as 0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70".to_owned())
}

/// A strong entity tag, without its quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etag(String);

impl Etag {
    /// Generates a random tag.
    pub fn generate() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// Reads a tag from a request, with or without its quotes.
    pub fn parse(text: &str) -> Self {
        let opaque = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        Self(opaque.unwrap_or(text).to_owned())
    }

    /// Wraps a tag from the database.
    pub(crate) fn from_trusted(text: String) -> Self {
        Self(text)
    }

    /// The tag without its quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_the_same_are_the_same() {
        let name = |text: &str| DisplayName::parse(text.to_owned());
        for good in ["x", "Dock 7", "Łódź", "a\u{a0}b", "e\u{301}", "🚚", "<b>"] {
            assert!(name(good).is_ok(), "{good:?}");
        }
        for bad in [
            " x",
            "x ",
            "\u{3000}x",
            "x\u{a0}",
            "a\tb",
            "a\nb",
            "\u{1b}[0m",
            "\u{7f}x",
            "x\u{85}y",
            "x\u{200b}",
            "\u{feff}x",
            "a\u{200d}b",
            "a\u{ad}b",
            "a\u{2060}b",
            "a\u{202e}b",
            "a\u{2028}b",
            "\u{3164}",
            "\u{2800}",
            "x\u{fe0f}",
            "x\u{e0020}",
            " ",
            "\u{200b}",
        ] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
        assert!(ProductionRunId::parse(String::new()).is_ok());
        assert!(ProductionRunId::parse(" ".to_owned()).is_err());
        assert!(Description::parse(" a\n\tb\u{200d}".to_owned()).is_ok());
    }

    #[test]
    fn label_keys_survive_the_json_form_of_a_mask() {
        let key = |text: &str| LabelKey::parse(text.to_owned());
        let longest = "k".repeat(LabelKey::MAX);
        for good in ["a", "colour", "k8s.io/app-name_1", "a.", &longest] {
            assert!(key(good).is_ok(), "{good}");
        }
        let long = "k".repeat(LabelKey::MAX + 1);
        for bad in [
            "", "1", "_a", ".a", "camelKey", "A", "é", "a b", "a`", "a*", "*", &long,
        ] {
            assert!(key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn texts_that_differ_in_case_or_form_are_the_same() {
        for same in [
            &["STRAẞE", "straße", "Strasse", "STRASSE"][..],
            &[
                "istiklal",
                "İstiklal",
                "ISTIKLAL",
                "I\u{307}stiklal",
                "ıstıklal",
            ],
            &["é", "E\u{301}", "e\u{301}", "É"],
            &["ΣΊΣΥΦΟΣ", "σίσυφος", "σίσυφοσ"],
            &["ﬃ", "FFI", "ffi"],
            &["ŻÓŁĆ", "Z\u{307}o\u{301}łc\u{301}"],
            &["\u{212b}", "å", "A\u{30a}"],
        ] {
            for text in same {
                assert_eq!(fold_case(text), fold_case(same[0]), "{text}");
            }
        }
        assert_ne!(fold_case("ż"), fold_case("z"));
        assert_ne!(fold_case("é"), fold_case("e"));
    }

    #[test]
    fn every_character_is_folded_with_its_cases_and_forms() {
        // The other characters have neither cases nor forms.
        for char in ('\0'..='\u{1ffff}').chain('\u{2f800}'..='\u{2fa1f}') {
            let text = char.to_string();
            let folded = fold_case(&text);
            assert_eq!(fold_case(&folded), folded, "{char:?}");
            for other in [
                text.to_uppercase(),
                text.to_lowercase(),
                text.nfd().collect(),
                text.nfc().collect(),
            ] {
                assert_eq!(fold_case(&other), folded, "{char:?}");
            }
        }
    }
}
