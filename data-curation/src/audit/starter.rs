//! What a starter recipe is made from: the calls of one site, redacted, as chat completions beside it, and its labels.

use super::fields::Suggested;
use super::{AuditPlan, Audited, each_trace};
use crate::Error;
use crate::redact::Redactor;
use crate::trace::Trace;
use limbeck_artifact::event::Emit;
use limbeck_artifact::files::AtomicFile;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// The calls that were written.
#[derive(Clone, Debug, PartialEq)]
pub struct Starter {
    pub traces: u64,
    pub labels: Vec<String>,
    /// Of a site whose answers are fields: a draft of their JSON Schema, and the fields that it leaves out.
    pub schema: Option<(String, Vec<String>)>,
}

/// Reads the files once more and writes the site's calls, one a line, to `path`. What is personal is taken out first.
///
/// # Errors
/// When a file can't be read or written.
pub fn write_traces(
    plan: &AuditPlan,
    audited: &Audited,
    number: usize,
    path: &Path,
    emit: &dyn Emit,
) -> Result<Starter, Error> {
    let cannot = |e| Error::io("write", path, e);
    let redactor = Redactor::new()?;
    let mut file = AtomicFile::create(path).map_err(cannot)?;
    let mut traces = 0;
    let mut suggested = Suggested::default();
    each_trace(plan, emit, |done| {
        if let Ok((mut trace, _)) = done.result
            && audited.is_of(number, &trace)
        {
            trace.redact(&redactor);
            suggested.add(&trace.answer);
            traces += 1;
            writeln!(file, "{}", line(&trace)).map_err(cannot)?;
        }
        Ok(())
    })?;
    file.commit().map_err(cannot)?;
    let site = audited.report.sites.get(number.wrapping_sub(1));
    let labels = site.map(|s| s.labels.clone()).unwrap_or_default();
    let schema = site.filter(|s| s.has_fields()).and_then(|_| suggested.schema());
    Ok(Starter { traces, labels, schema })
}

/// A trace as the chat completion that it was.
fn line(trace: &Trace) -> Value {
    json!({
        "id": trace.id,
        "time": trace.at,
        "customer": trace.customer,
        "thread_id": trace.thread,
        "request": {"model": trace.model, "messages": trace.messages},
        "response": {
            "model": trace.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": trace.answer},
                "finish_reason": trace.finish_reason,
            }],
            "usage": {"prompt_tokens": trace.prompt_tokens, "completion_tokens": trace.completion_tokens},
        },
        "latency_ms": trace.latency_ms,
        "feedback": trace.feedback,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::dataset::Message;

    #[test]
    fn a_written_call_reads_back_as_itself() {
        let trace = Trace {
            id: "t1".to_string(),
            customer: Some("c".to_string()),
            thread: Some("th".to_string()),
            at: Some("2026-01-02T03:04:05.678Z".to_string()),
            messages: vec![Message::new("system", "s"), Message::new("user", "u")],
            answer: "a".to_string(),
            model: "m".to_string(),
            finish_reason: Some("stop".to_string()),
            latency_ms: Some(12.5),
            prompt_tokens: Some(3),
            completion_tokens: None,
            feedback: None,
            agreement: None,
        };
        assert_eq!(crate::trace::parse(line(&trace).to_string().as_bytes()).unwrap(), trace);
    }
}
