//! The domain's types. A value is validated once, when it is parsed, and can't be invalid afterwards.

mod epoch;
mod location;
mod query;
mod text;

pub use self::{
    epoch::{CacheEpoch, CacheServer, Epoch},
    location::{
        Address, Capacity, Coordinates, Details, Image, Location, LocationState, LocationType,
        MAX_ADDRESS_LINES, MAX_LABELS, Micros, NewLocation,
    },
    query::{
        Cursor, ListQuery, Order, OrderField, Page, Predicate, Principal, Report, ReportCursor,
        ReportQuery, SortValue,
    },
    text::{
        AddressText, Description, DisplayName, Etag, FOLDING_VERSION, LabelKey, LabelValue,
        LocationId, OwnerId, PostalCode, ProductionRunId, RegionCode, Text, fold_case, parse_uuid,
    },
};
