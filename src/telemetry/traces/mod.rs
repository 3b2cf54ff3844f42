//! Traces by OpenTelemetry: spans of calls, of the cache's steps and of the database's operations, sent by
//! OTLP.
//!
//! The standard variables configure them: <https://opentelemetry.io/docs/specs/otel/protocol/exporter>. They
//! are off unless one names an endpoint. The queue of spans is bounded, and spans beyond it are dropped.

mod context;
mod export;
mod variables;

use std::{sync::OnceLock, time::Duration};

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags,
        Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan},
};

pub use self::context::TraceContext;

/// The time for the last spans to be sent at the end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes the spans of the process; none if traces are off.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The traces of the process.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts to trace, if the environment says so. Without a valid configuration nothing is traced, and the
    /// log has the reason. Must be called within a tokio runtime.
    pub fn start() -> Option<Self> {
        let endpoint = variables::endpoint()?;
        variables::warn_of_invalid();
        let exporter = match export::exporter() {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::warn!("traces are off: {error}");
                return None;
            }
        };
        let mut resource = Resource::builder()
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if !variables::name_the_service() {
            resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        // A process starts once.
        let _ = TRACER.set(provider.tracer(env!("CARGO_PKG_NAME")));
        tracing::info!(otlp.endpoint = endpoint, "sending traces");
        Some(Self(provider))
    }

    /// Sends the last spans.
    pub async fn stop(self) {
        let stop = move || self.0.shutdown_with_timeout(STOP_TIMEOUT);
        let _ = tokio::task::spawn_blocking(stop).await;
    }
}

/// A span, which ends when it is dropped. Empty unless its call is sampled.
#[derive(Debug, Default)]
pub struct Span(Option<Box<SdkSpan>>);

impl Span {
    /// Begins the span of a call, if the headers of its request or the sampler choose it. Returns the
    /// call's place in the trace as well.
    pub(super) fn of_call(headers: &HeaderMap) -> (Option<TraceContext>, Self) {
        let mut parent = TraceContext::of(headers);
        let Some(tracer) = TRACER.get() else {
            return (parent, Self(None));
        };
        if let Some(parent) = &mut parent {
            parent.state = context::state(headers);
        }
        let within = parent.as_ref().map_or_else(Context::new, remote);
        let builder = SpanBuilder::from_name("call").with_kind(SpanKind::Server);
        let span = tracer.build_with_context(builder, &within);
        if !span.span_context().is_sampled() {
            return (parent, Self(None));
        }
        let context = TraceContext {
            trace_id: span.span_context().trace_id(),
            span_id: span.span_context().span_id(),
            sampled: true,
            state: span.span_context().trace_state().clone(),
        };
        (Some(context), Self(Some(Box::new(span))))
    }

    /// Begins a span for a request to another server, within a sampled one.
    pub(super) fn within(parent: &TraceContext, name: String) -> Self {
        let span = TRACER.get().map(|tracer| {
            let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Client);
            Box::new(tracer.build_with_context(builder, &remote(parent)))
        });
        Self(span)
    }

    /// Whether the span will be sent.
    pub fn is_recording(&self) -> bool {
        self.0.is_some()
    }

    /// Gives the span a name.
    pub fn set_name(&mut self, name: &str) {
        if let Some(span) = &mut self.0 {
            span.update_name(name.to_owned());
        }
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Marks the span as failed.
    pub fn fail(&mut self, description: &'static str) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(description));
        }
    }
}

fn remote(parent: &TraceContext) -> Context {
    let flags = TraceFlags::default().with_sampled(parent.sampled);
    Context::new().with_remote_span_context(SpanContext::new(
        parent.trace_id,
        parent.span_id,
        flags,
        true,
        parent.state.clone(),
    ))
}
