//! From `tracing`'s spans to OTLP's.
//!
//! A span is recorded if its trace is: if its parent is, or, at the root, if the calling process wants it, or, without
//! one, by chance. Spans of level debug are parts of something: alone (a plugin that is run again in the background) they
//! begin no trace. The fields `otel.name`, `otel.kind` ("client") and `error` are the span's name, its kind and its failure;
//! the others are attributes.

use std::fmt::Debug;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::call::Call;
use super::context::{Remote, SpanId, TraceId, random};
use super::otlp::{self, KeyValue, Kind, Value};
use crate::config::Ratio;
use crate::metrics;

/// Most attributes of a span, and the longest text of one.
const MOST_ATTRIBUTES: usize = 32;
const LONGEST_TEXT: usize = 1024;

/// Records spans and queues those that have ended.
pub struct TraceLayer {
    ratio: Ratio,
    queue: mpsc::Sender<otlp::Span>,
}

/// A span that is open and recorded.
struct Open {
    span: otlp::Span,
    /// Of the span that is the call's own.
    call: Option<Arc<Call>>,
}

/// What a new span is the child of.
struct Parent {
    trace: TraceId,
    span: Option<SpanId>,
    state: String,
    is_remote: bool,
}

impl TraceLayer {
    pub fn new(ratio: Ratio, queue: mpsc::Sender<otlp::Span>) -> Self {
        Self { ratio, queue }
    }

    /// Whether the spans of this callsite are carpel's own; events are for the log.
    pub fn wants(metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("carpel")
    }

    /// The parent of a trace's first span here; `None` if the trace is not recorded.
    fn root(&self, remote: Option<Remote>) -> Option<Parent> {
        let Some(remote) = remote else {
            let trace = random();
            return self.ratio.takes(trace).then_some(Parent {
                trace,
                span: None,
                state: String::new(),
                is_remote: false,
            });
        };
        remote.sampled.then_some(Parent {
            trace: remote.trace,
            span: Some(remote.span),
            state: remote.state,
            is_remote: true,
        })
    }
}

impl<S> Layer<S> for TraceLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else {
            return;
        };
        let (parent, call) = match span.parent() {
            Some(parent) => (parent.extensions().get::<Open>().map(Parent::of), None),
            None if *attributes.metadata().level() > Level::INFO => return,
            None => {
                let call = Call::claim();
                let remote = call.as_ref().and_then(|call| call.remote.clone());
                (self.root(remote), call)
            }
        };
        let Some(parent) = parent else {
            return;
        };
        let mut open = Open::new(parent, call, attributes.metadata().name());
        attributes.record(&mut open);
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            values.record(open);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let Some(open) = span.extensions_mut().remove::<Open>() else {
            return;
        };
        // Never waits: what does not fit is lost, and counted.
        if self.queue.try_send(open.close()).is_err() {
            metrics::spans_dropped(1);
        }
    }
}

impl Parent {
    fn of(open: &Open) -> Self {
        Self {
            trace: open.span.trace_id.as_slice().try_into().unwrap_or_default(),
            span: open.span.span_id.as_slice().try_into().ok(),
            state: open.span.trace_state.clone(),
            is_remote: false,
        }
    }
}

impl Open {
    fn new(parent: Parent, call: Option<Arc<Call>>, name: &str) -> Self {
        let origin = if parent.is_remote {
            otlp::PARENT_IS_REMOTE
        } else {
            0
        };
        let span = otlp::Span {
            trace_id: parent.trace.to_vec(),
            span_id: random::<8>().to_vec(),
            trace_state: parent.state,
            parent_span_id: parent.span.map(|id| id.to_vec()).unwrap_or_default(),
            name: call.as_ref().map_or(name, |call| &call.name).to_owned(),
            kind: match call {
                Some(_) => Kind::Server,
                None => Kind::Internal,
            }
            .into(),
            start_time_unix_nano: otlp::now(),
            end_time_unix_nano: 0,
            attributes: call.as_ref().map_or(Vec::new(), |call| call.attributes()),
            status: None,
            flags: otlp::SAMPLED | otlp::PARENT_KNOWN | origin,
        };
        Self { span, call }
    }

    fn close(mut self) -> otlp::Span {
        if let Some((code, status)) = self.call.and_then(|call| call.outcome()) {
            self.span.attributes.push(code);
            self.span.status = status.or(self.span.status);
        }
        self.span.end_time_unix_nano = otlp::now().max(self.span.start_time_unix_nano);
        self.span
    }

    fn set(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("otel.name", Value::String(name)) => self.span.name = name,
            ("otel.kind", _) => self.span.kind = Kind::Client.into(),
            ("error", Value::String(message)) => {
                let code = otlp::ERROR;
                self.span.status = Some(otlp::Status { message, code });
            }
            (key, value) => {
                let known = self.span.attributes.iter().position(|old| old.key == key);
                let attribute = KeyValue::new(key, value);
                match known {
                    Some(at) => self.span.attributes[at] = attribute,
                    None if self.span.attributes.len() < MOST_ATTRIBUTES => {
                        self.span.attributes.push(attribute);
                    }
                    None => {}
                }
            }
        }
    }

    fn set_text(&mut self, field: &Field, mut text: String) {
        if text.len() > LONGEST_TEXT {
            text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        }
        self.set(field, Value::String(text));
    }
}

impl Visit for Open {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set_text(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set_text(field, format!("{value:?}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Value::Int(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::Bool(value));
    }
}
