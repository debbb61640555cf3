//! A span a decision, sent to an OpenTelemetry collector as OTLP over HTTP with JSON. Spans may be lost, requests never
//! wait for them.
//!
//! Source: OpenTelemetry protocol specification 1.x (`opentelemetry.proto.collector.trace.v1`, JSON encoding), semantic
//! conventions for generative AI, W3C trace context.

use super::Serving;
use super::decisions::random;
use super::metrics::Outcome;
use super::workers::Answered;
use hyper::header::HeaderMap;
use serde_json::{Value, json};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const QUEUE: usize = 4096;
const BATCH: usize = 256;
const EVERY: Duration = Duration::from_secs(2);

pub struct Otlp {
    spans: SyncSender<Value>,
}

impl Otlp {
    /// `endpoint` is a collector's base address, such as `http://127.0.0.1:4318`.
    pub fn start(endpoint: &str, service: &str) -> Otlp {
        let (spans, received) = sync_channel(QUEUE);
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let service = service.to_owned();
        std::thread::spawn(move || export(&url, &service, &received));
        Otlp { spans }
    }

    pub fn send(&self, serving: &Serving, answered: &Answered, outcome: Outcome, headers: &HeaderMap, took: Duration) {
        let _ = self.spans.try_send(span(serving, answered, outcome, headers, took));
    }
}

fn span(serving: &Serving, answered: &Answered, outcome: Outcome, headers: &HeaderMap, took: Duration) -> Value {
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (trace, parent) = headers
        .get("traceparent")
        .and_then(|v| v.to_str().ok())
        .and_then(parent)
        .unwrap_or_else(|| (format!("{:016x}{:016x}", random(), random()), String::new()));
    let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let number = |key: &str, value: f64| json!({"key": key, "value": {"doubleValue": value}});
    let count = |key: &str, value: usize| json!({"key": key, "value": {"intValue": value.to_string()}});
    let mut span = json!({
        "traceId": trace,
        "spanId": format!("{:016x}", random()),
        "name": format!("chat {}", serving.name),
        "kind": 2,
        "startTimeUnixNano": end.saturating_sub(took).as_nanos().to_string(),
        "endTimeUnixNano": end.as_nanos().to_string(),
        "attributes": [
            text("gen_ai.operation.name", "chat"),
            text("gen_ai.response.model", &format!("{}@{}", serving.name, serving.version)),
            count("gen_ai.usage.input_tokens", answered.prompt_tokens),
            count("gen_ai.usage.output_tokens", answered.completion_tokens),
            text("limbeck.route", answered.route),
            text("limbeck.outcome", outcome.name()),
            text("limbeck.label", &answered.text),
            number("limbeck.confidence", answered.confidence),
            // A threshold that nothing reaches, where nothing could be certified.
            number("limbeck.threshold", serving.threshold.unwrap_or(2.0)),
            text("limbeck.threshold_on", serving.threshold_on),
        ],
        "status": {"code": if outcome == Outcome::Refused { 2 } else { 1 }},
    });
    if !parent.is_empty() {
        span["parentSpanId"] = json!(parent);
    }
    span
}

/// Trace and span of a W3C `traceparent`.
fn parent(header: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = header.trim().split('-').collect();
    let is_hex = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_hexdigit());
    let is_id = |text: &str, n| is_hex(text, n) && text.bytes().any(|b| b != b'0');
    match parts.as_slice() {
        [version, trace, span, ..] if is_hex(version, 2) && is_id(trace, 32) && is_id(span, 16) => {
            Some((trace.to_lowercase(), span.to_lowercase()))
        }
        _ => None,
    }
}

fn export(url: &str, service: &str, received: &Receiver<Value>) {
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).max_redirects(0);
    let agent = config.build().new_agent();
    loop {
        let Ok(first) = received.recv() else { return };
        let mut spans = vec![first];
        let until = Instant::now() + EVERY;
        let mut ended = false;
        while spans.len() < BATCH {
            match received.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(span) => spans.push(span),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    ended = true;
                    break;
                }
            }
        }
        let name = json!({"key": "service.name", "value": {"stringValue": service}});
        let scope = json!({"scope": {"name": "limbeck", "version": env!("CARGO_PKG_VERSION")}, "spans": spans});
        let body = json!({"resourceSpans": [{"resource": {"attributes": [name]}, "scopeSpans": [scope]}]});
        // A collector that is down costs spans, nothing else.
        let _ = agent.post(url).header("content-type", "application/json").send(body.to_string());
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_s_trace_goes_on_and_nonsense_starts_a_new_one() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let (trace, span) = parent(header).unwrap();
        assert_eq!((trace.as_str(), span.as_str()), ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"));
        let zeros = format!("00-{}-{}-01", "0".repeat(32), "1".repeat(16));
        for bad in ["", "00-xyz-1-01", &zeros] {
            assert!(parent(bad).is_none(), "{bad}");
        }
    }
}
