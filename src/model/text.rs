//! Text that has been validated, and identifiers.

use std::fmt;

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
/// store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const MIN: usize, const MAX: usize>(String);

impl<const MIN: usize, const MAX: usize> Text<MIN, MAX> {
    /// The maximum number of characters.
    pub const MAX: usize = MAX;

    /// Validates text. The error states the problem and the limit.
    pub fn parse(text: String) -> Result<Self, String> {
        // Text has at most as many characters as bytes: mostly, the bytes are few enough.
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
        if text.contains('\0') {
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

impl<const MAX: usize> Default for Text<0, MAX> {
    fn default() -> Self {
        Self(String::new())
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Display for Text<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A location's name.
pub type DisplayName = Text<1, 256>;
/// A production run. Empty means "no run", which is a value that lists can select.
pub type ProductionRunId = Text<0, 128>;
/// The subject (a JWT's `sub`) that owns a location.
pub type OwnerId = Text<1, 255>;
/// Free text about a location.
pub type Description = Text<0, 2000>;
/// A line, locality or administrative area of an address.
pub type AddressText = Text<0, 256>;
/// A postal code.
pub type PostalCode = Text<0, 32>;
/// A label's key.
pub type LabelKey = Text<1, 63>;
/// A label's value.
pub type LabelValue = Text<0, 255>;

/// Folds the case of text, for comparison.
///
/// Maps to upper case first: lower case only would keep "ß" apart from "SS", and the Greek final
/// sigma from the other sigmas.
pub fn fold_case(text: &str) -> String {
    text.chars()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect()
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
