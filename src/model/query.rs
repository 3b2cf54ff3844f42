//! Queries and their results, and the callers that make them.

use std::collections::BTreeMap;

use super::{
    LabelKey, LabelValue, LocationId, LocationState, LocationType, Micros, OwnerId, ProductionRunId,
};

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The token's subject.
    pub subject: OwnerId,
    /// Whether it may read and write every location.
    pub admin: bool,
}

impl Principal {
    /// The owner whose locations the caller is limited to, or `None` for all owners.
    pub fn scope(&self) -> Option<&OwnerId> {
        (!self.admin).then_some(&self.subject)
    }
}

/// A conjunction of conditions on type, production run and owner. `None` matches any value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Predicate {
    /// The type.
    pub kind: Option<LocationType>,
    /// The run. The empty run matches locations without a run.
    pub run: Option<ProductionRunId>,
    /// The owner.
    pub owner: Option<OwnerId>,
}

/// A field that lists can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderField {
    /// The time of creation.
    CreateTime,
    /// The time of the last change.
    UpdateTime,
    /// The name, by code point.
    DisplayName,
    /// The capacity.
    Capacity,
}

impl OrderField {
    /// All fields.
    pub const ALL: [Self; 4] = [
        Self::CreateTime,
        Self::UpdateTime,
        Self::DisplayName,
        Self::Capacity,
    ];

    /// The name of the field in a location, which is also that of its column.
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateTime => "create_time",
            Self::UpdateTime => "update_time",
            Self::DisplayName => "display_name",
            Self::Capacity => "capacity",
        }
    }
}

/// The order of a list. Equal values are ordered by id, in the same direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The field.
    pub field: OrderField,
    /// Whether the largest value comes first.
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

/// A query for a page of locations.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ListQuery {
    /// The type, run and owner.
    pub predicate: Predicate,
    /// The state, or `None` for any.
    pub state: Option<LocationState>,
    /// Text that the name contains, with its case folded; empty for any name.
    pub text: String,
    /// Labels that the location has, among others.
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// The order.
    pub order: Order,
    /// The maximum number of locations, 1 to 1,000.
    pub limit: u32,
    /// The number of locations to skip.
    pub skip: u32,
    /// Whether to count the locations of all pages.
    pub count: bool,
}

/// A query for a page of reports.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReportQuery {
    /// The type, run and owner.
    pub predicate: Predicate,
    /// The maximum number of reports, 1 to 1,000.
    pub limit: u32,
}

/// The end of a page of locations: the sort value and the id of the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The value of the field that the list is sorted by.
    pub value: SortValue,
    /// The id.
    pub id: LocationId,
}

/// The value of an [`OrderField`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SortValue {
    /// A time or a capacity.
    Number(i64),
    /// A name.
    Text(String),
}

/// The end of a page of reports: the type and the run of the last one.
pub type ReportCursor = (LocationType, ProductionRunId);

/// A page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T, C> {
    /// The items.
    pub items: Vec<T>,
    /// The end of this page, if more items follow.
    pub next: Option<C>,
    /// The number of items on all pages, if the query asks for it.
    pub total: Option<i64>,
}

/// A summary of the locations of one type in one production run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The type.
    pub kind: LocationType,
    /// The run.
    pub run: ProductionRunId,
    /// The number of locations.
    pub locations: i64,
    /// The number of active locations.
    pub active: i64,
    /// The sum of the capacities, at most `i64::MAX`.
    pub capacity: i64,
    /// The number of distinct regions.
    pub regions: i64,
    /// The time of the last change to a location.
    pub latest_update: Micros,
}
