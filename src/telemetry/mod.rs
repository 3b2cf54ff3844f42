//! The log, the traces, and the counts behind the metrics. Every layer may use this module.
//!
//! | module | |
//! | --- | --- |
//! | `log` | the log on stderr |
//! | [`call`] | the call in progress, which lines of the log and errors name |
//! | `traces` | spans of calls, sent to a collector |
//! | `counters` | counts and durations, which the metrics read when they are scraped |

pub mod call;
mod counters;
mod log;
mod traces;

pub use self::{
    counters::{BUCKETS, Counter, Histogram, Timer},
    log::{AccessLog, LogConfig, LogFormat, init},
    traces::{Span, Traces},
};
