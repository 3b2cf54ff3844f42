//! The arguments of lists and reports.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Content, Kind, Name};

/// The arguments of a list or a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// The type, or any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// The production run, or any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The owner that the request names, in addition to the caller's scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Whether it is active, or any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// The client that writes it, as a `query` for its part of the display name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<u16>,
    /// `order_by`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub order: String,
    /// `page_size`.
    #[serde(default)]
    pub page_size: i32,
}

impl Query {
    /// Whether the result contains a location in this state.
    pub fn matches(&self, name: Name, content: &Content) -> bool {
        self.kind.is_none_or(|kind| kind == content.kind)
            && self.run.as_ref().is_none_or(|run| *run == content.run)
            && self
                .owner
                .as_ref()
                .is_none_or(|owner| *owner == content.owner)
            && self.active.is_none_or(|active| active == content.active)
            && self.client.is_none_or(|client| client == name.client)
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.kind.map(|kind| format!("type {kind}")));
        parts.extend(self.run.as_ref().map(|run| match run.as_str() {
            "" => "no run".to_owned(),
            run => format!("run {run}"),
        }));
        parts.extend(self.owner.as_ref().map(|owner| format!("owner {owner}")));
        parts.extend(
            self.active
                .map(|active| (if active { "active" } else { "inactive" }).to_owned()),
        );
        parts.extend(
            self.client
                .map(|client| format!("query {:?}", search_text(client))),
        );
        if !self.order.is_empty() {
            parts.push(format!("by {}", self.order));
        }
        if self.page_size != 0 {
            parts.push(format!("pages of {}", self.page_size));
        }
        if parts.is_empty() {
            parts.push("everything".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

/// The search text that finds only the locations of a client.
pub fn search_text(client: u16) -> String {
    format!("c{client}.")
}
