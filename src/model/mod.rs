//! The domain's types: parsed once at the edge, never re-checked. An invalid value can't be built.

use std::{collections::BTreeMap, fmt};

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

/// The most labels that a location has.
pub const MAX_LABELS: usize = 64;
/// The most lines that an address has.
pub const MAX_ADDRESS_LINES: usize = 10;

/// Text of `MIN` to `MAX` characters (Unicode scalar values) without NUL, which PostgreSQL can't
/// store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const MIN: usize, const MAX: usize>(String);

impl<const MIN: usize, const MAX: usize> Text<MIN, MAX> {
    /// The most characters.
    pub const MAX: usize = MAX;

    /// Parses the text; the error says what is wrong and what the limit is.
    pub fn parse(text: String) -> Result<Self, String> {
        // Counting is only needed where bytes alone don't settle it.
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

    /// Text that was parsed before it was stored.
    pub fn from_trusted(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, to keep.
    pub fn into_string(self) -> String {
        self.0
    }

    /// Whether there is none.
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

/// The name that people see.
pub type DisplayName = Text<1, 256>;
/// A production run; empty means none, which is a value of its own.
pub type ProductionRunId = Text<0, 128>;
/// The subject that a location belongs to: a JWT's `sub`.
pub type OwnerId = Text<1, 255>;
/// Free text about a location.
pub type Description = Text<0, 2000>;
/// A line, locality or administrative area of an address.
pub type AddressText = Text<0, 256>;
/// A postal code.
pub type PostalCode = Text<0, 32>;
/// A key of a label.
pub type LabelKey = Text<1, 63>;
/// A value of a label.
pub type LabelValue = Text<0, 255>;

/// The text with differences of case taken away, for comparing. Upper case first: lower case alone
/// keeps ß from SS, and the Greek final sigma from the others.
pub fn fold_case(text: &str) -> String {
    text.chars()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect()
}

/// A location's id: any UUID, a version 7 one if the service chose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocationId(pub Uuid);

impl LocationId {
    /// A new version 7 id.
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

/// What a location is for. The number is the one in the proto and in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocationType {
    /// Takes deliveries.
    Delivery = 1,
    /// Stores goods.
    Storage = 2,
}

impl LocationType {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Delivery, Self::Storage];

    /// The type with this number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as i64 == number)
    }
}

/// Whether a location is in use. The number is the one in the proto and in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocationState {
    /// In use.
    Active = 1,
    /// Not in use.
    Inactive = 2,
}

impl LocationState {
    /// The state with this number.
    pub fn from_number(number: i64) -> Option<Self> {
        [Self::Active, Self::Inactive]
            .into_iter()
            .find(|state| *state as i64 == number)
    }
}

/// An ISO 3166-1 alpha-2 code, or XK; empty means none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionCode(String);

impl RegionCode {
    /// Parses a code.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || REGION_CODES.split(' ').any(|code| code == text) {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be an ISO 3166-1 alpha-2 code in upper case, such as FR".to_owned())
        }
    }

    /// A code that was parsed before it was stored.
    pub fn from_trusted(text: String) -> Self {
        Self(text)
    }

    /// The code.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A postal address; the default is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Address {
    /// The lines above the locality.
    pub lines: Vec<AddressText>,
    /// City or town.
    pub locality: AddressText,
    /// State, province or region.
    pub administrative_area: AddressText,
    /// Postal code.
    pub postal_code: PostalCode,
    /// Country.
    pub region_code: RegionCode,
}

/// A position in WGS 84 degrees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coordinates {
    latitude: f64,
    longitude: f64,
}

impl Coordinates {
    /// A position, if both are in range; the error names every field that isn't.
    pub fn new(latitude: f64, longitude: f64) -> Result<Self, Vec<(&'static str, String)>> {
        let bad: Vec<_> = [
            ("coordinates.latitude", latitude, 90.0),
            ("coordinates.longitude", longitude, 180.0),
        ]
        .into_iter()
        // What isn't a number isn't in range either.
        .filter(|(_, value, limit)| !(-limit..=*limit).contains(value))
        .map(|(field, value, limit)| {
            let why = format!("must be -{limit} to {limit} degrees, is {value}");
            (field, why)
        })
        .collect();
        if bad.is_empty() {
            Ok(Self {
                latitude,
                longitude,
            })
        } else {
            Err(bad)
        }
    }

    /// Degrees north.
    pub fn latitude(self) -> f64 {
        self.latitude
    }

    /// Degrees east.
    pub fn longitude(self) -> f64 {
        self.longitude
    }
}

/// How much a location takes, in the caller's unit: 0 or more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity(i64);

impl Capacity {
    /// A capacity, if it isn't negative.
    pub fn new(value: i64) -> Result<Self, String> {
        if value < 0 {
            return Err(format!("must be 0 or more, is {value}"));
        }
        Ok(Self(value))
    }

    /// The number.
    pub fn get(self) -> i64 {
        self.0
    }
}

/// Microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub i64);

impl Micros {
    /// The system's clock.
    pub fn now() -> Self {
        let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }
}

/// A period in which replicas use the cache that they share in one way. They have numbers in the
/// order of time; 0 is before any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(pub i64);

/// A cache server, in one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheServer {
    /// The name that its processes were given.
    pub name: Uuid,
    /// What tells their data from any other that they may come to hold.
    pub histories: String,
}

/// What the database says of the cache that replicas share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEpoch {
    /// The current epoch.
    pub epoch: Epoch,
    /// The server for this epoch, in which the cache is used. None: it is suspended.
    pub server: Option<CacheServer>,
    /// Whether it has been suspended for long enough, and no replica has missed the server lately.
    pub may_activate: bool,
}

/// The part of a location that its writers choose.
#[derive(Debug, Clone, PartialEq)]
pub struct Details {
    /// The name that people see.
    pub display_name: DisplayName,
    /// The run that it belongs to.
    pub production_run_id: ProductionRunId,
    /// The postal address.
    pub address: Address,
    /// The position.
    pub coordinates: Option<Coordinates>,
    /// How much it takes, 0 or more.
    pub capacity: Capacity,
    /// Whether it is in use.
    pub state: LocationState,
    /// Free text.
    pub description: Description,
    /// Free key-value pairs.
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

/// A location.
#[derive(Debug, Clone, PartialEq)]
pub struct Location {
    /// Its id.
    pub id: LocationId,
    /// What it is for. Never changes.
    pub kind: LocationType,
    /// Whom it belongs to. Never changes.
    pub owner: OwnerId,
    /// What its writers choose.
    pub details: Details,
    /// When it was created.
    pub create_time: Micros,
    /// When it last changed; grows with every change.
    pub update_time: Micros,
    /// Another one with every change.
    pub etag: Etag,
}

impl Location {
    /// What its lists depend on.
    pub fn image(&self) -> Image {
        Image {
            id: self.id,
            kind: self.kind,
            run: self.details.production_run_id.clone(),
            owner: self.owner.clone(),
        }
    }
}

/// What decides in which lists a location stands, before or after a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: LocationId,
    /// Its type.
    pub kind: LocationType,
    /// Its run.
    pub run: ProductionRunId,
    /// Its owner.
    pub owner: OwnerId,
}

/// A location to be.
#[derive(Debug, Clone, PartialEq)]
pub struct NewLocation {
    /// Its id, if the client chose one.
    pub id: Option<LocationId>,
    /// What it is for.
    pub kind: LocationType,
    /// Whom it belongs to.
    pub owner: OwnerId,
    /// What its writers choose.
    pub details: Details,
}

/// A strong entity tag, without its quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etag(String);

impl Etag {
    /// A new one.
    pub fn generate() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// One that a client sends back, with or without its quotes.
    pub fn parse(text: &str) -> Self {
        let opaque = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        Self(opaque.unwrap_or(text).to_owned())
    }

    /// One that was generated before it was stored.
    pub fn from_trusted(text: String) -> Self {
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

/// The predicate that a list states about type, production run and owner: each a value, or any.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Predicate {
    /// Only this type.
    pub kind: Option<LocationType>,
    /// Only this run; the empty one for locations without a run.
    pub run: Option<ProductionRunId>,
    /// Only this owner.
    pub owner: Option<OwnerId>,
}

/// What lists are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderField {
    /// When locations were created.
    CreateTime,
    /// When locations last changed.
    UpdateTime,
    /// Their names, by code point.
    DisplayName,
    /// How much they take.
    Capacity,
}

/// The order of a list. Ties go by id, in the same direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// What it sorts by.
    pub field: OrderField,
    /// Whether the largest comes first.
    pub descending: bool,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            field: OrderField::CreateTime,
            descending: true,
        }
    }
}

/// Which locations to list.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ListQuery {
    /// By type, run and owner.
    pub predicate: Predicate,
    /// Only those in this state.
    pub state: Option<LocationState>,
    /// Only those with this text in their name, in lower case; empty for all.
    pub text: String,
    /// The order.
    pub order: Order,
    /// How many at most, 1 to 1,000.
    pub limit: u32,
    /// How many to leave out first.
    pub skip: u32,
    /// Whether to count all.
    pub count: bool,
}

/// Which locations to summarise.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReportQuery {
    /// By type, run and owner.
    pub predicate: Predicate,
    /// How many reports at most, 1 to 1,000.
    pub limit: u32,
}

/// Where in an order a page of locations ended: the last one's sort value and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The sort value.
    pub value: SortValue,
    /// The id.
    pub id: LocationId,
}

/// A value that lists are sorted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SortValue {
    /// Of a time or a capacity.
    Number(i64),
    /// Of a name.
    Text(String),
}

/// Where a page of reports ended: the last one's type and run.
pub type ReportCursor = (LocationType, ProductionRunId);

/// A page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T, C> {
    /// The items.
    pub items: Vec<T>,
    /// Where it ended, if more follow.
    pub next: Option<C>,
    /// How many there are over all pages, if that was asked.
    pub total: Option<i64>,
}

/// A summary of the locations of one type in one production run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The type.
    pub kind: LocationType,
    /// The run.
    pub run: ProductionRunId,
    /// How many locations.
    pub locations: i64,
    /// How many of them are active.
    pub active: i64,
    /// The sum of their capacities, at most `i64::MAX`.
    pub capacity: i64,
    /// How many different regions.
    pub regions: i64,
    /// When one of them last changed.
    pub latest_update: Micros,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The token's subject.
    pub subject: OwnerId,
    /// Whether they see and change everything.
    pub admin: bool,
}

impl Principal {
    /// Whose locations they see: all (`None`), or only their own.
    pub fn scope(&self) -> Option<&OwnerId> {
        (!self.admin).then_some(&self.subject)
    }
}
