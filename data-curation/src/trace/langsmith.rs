//! LangSmith's runs: what its client lists and its bulk export writes (Parquet, with JSON in text columns). Only runs of
//! the type `llm` are calls of a model; chains, tools and retrievers around them are counted as what they are.
//!
//! Sources: the `langsmith` package 0.15.0, `schemas.py` (`RunBase`, `Run`), `wrappers/_openai.py` (`ls_model_name`,
//! `usage_metadata`); docs.langchain.com `langsmith/run-data-format` and `langsmith/data-export`; LangChain's `dumpd` for
//! serialised messages.

use super::draft::{Draft, between, count_at, dig, rfc3339, score, structured, text_at, thread_in, time_at};
use super::{Reject, RejectReason, Trace, chat, reject};
use serde_json::Value;

pub fn recognises(record: &Value) -> bool {
    record.get("run_type").is_some() && (record.get("inputs").is_some() || record.get("dotted_order").is_some())
}

const KINDS: [&str; 6] = ["chain", "tool", "retriever", "embedding", "prompt", "parser"];

pub fn read(record: &Value, raw: &[u8]) -> Result<Trace, Reject> {
    if let Some(kind) = text_at(record, &["run_type"]).filter(|kind| kind != "llm" && kind != "chat_model") {
        let known = KINDS.iter().find(|k| **k == kind).copied().unwrap_or("other");
        return reject(RejectReason::NotACall, format!("run_type is {known}"));
    }
    let part = |key: &str| record.get(key).map(structured).unwrap_or_default();
    let (inputs, outputs, extra) = (part("inputs"), part("outputs"), part("extra"));
    if outputs.is_null() || outputs.as_object().is_some_and(|o| o.is_empty()) {
        return match text_at(record, &["error"]) {
            Some(_) => reject(RejectReason::CallFailed, "the run ended in an error"),
            None => reject(RejectReason::MissingResponse, "no outputs"),
        };
    }
    let Some(asked) = ["messages", "prompts", "prompt", "input"].iter().find_map(|key| inputs.get(*key)) else {
        return reject(RejectReason::MissingMessages, "no inputs.messages");
    };
    // A batch of plain prompts holds one.
    let asked = asked.as_array().filter(|l| l.len() == 1 && l[0].is_string()).map_or(asked, |l| &l[0]);
    let (answer, finish_reason) = answered(&outputs)?;
    let (begin, end) = (time_at(record, &["start_time"]), time_at(record, &["end_time"]));
    let draft = Draft {
        id: text_at(record, &["id"]),
        customer: text_at(
            &extra,
            &["metadata.user_id", "metadata.customer_id", "metadata.thread_id", "metadata.session_id"],
        ),
        // Its own `session_id` is the project; a thread is named in the metadata.
        thread: text_at(record, &["thread_id"]).or_else(|| thread_in(extra.get("metadata")?)),
        at: begin.and_then(rfc3339),
        messages: chat::prompt(asked, "inputs.messages")?,
        answer,
        finish_reason,
        model: text_at(&outputs, &["model", "llm_output.model_name"])
            .or_else(|| {
                text_at(&extra, &["metadata.ls_model_name", "invocation_params.model", "invocation_params.model_name"])
            })
            .or_else(|| text_at(&inputs, &["model"])),
        latency_ms: between(begin, end),
        prompt_tokens: count_at(record, &["prompt_tokens"]).or_else(|| {
            count_at(
                &outputs,
                &["usage_metadata.input_tokens", "usage.prompt_tokens", "llm_output.token_usage.prompt_tokens"],
            )
        }),
        completion_tokens: count_at(record, &["completion_tokens"]).or_else(|| {
            count_at(
                &outputs,
                &[
                    "usage_metadata.output_tokens",
                    "usage.completion_tokens",
                    "llm_output.token_usage.completion_tokens",
                ],
            )
        }),
        feedback: feedback(record),
        agreement: None,
    };
    draft.finish(raw)
}

/// LangChain keeps `generations: [[{text, message, generation_info}]]`; an OpenAI client's wrapper the response itself.
fn answered(outputs: &Value) -> Result<(Option<String>, Option<String>), Reject> {
    let Some(generations) = outputs.get("generations").and_then(Value::as_array) else {
        return chat::completion(outputs, "outputs");
    };
    let first = generations.first().map(|g| g.as_array().and_then(|inner| inner.first()).unwrap_or(g));
    let Some(first) = first else {
        return reject(RejectReason::MissingResponse, "outputs.generations holds none");
    };
    let why = text_at(
        first,
        &[
            "generation_info.finish_reason",
            "message.kwargs.response_metadata.finish_reason",
            "message.data.response_metadata.finish_reason",
        ],
    );
    let message = first.get("message").filter(|m| m.is_object());
    let said = match message {
        Some(message) => chat::answer(&chat::message(message, &|| "outputs.generations".to_string())?),
        None => text_at(first, &["text"]).unwrap_or_default(),
    };
    Ok((Some(said), why))
}

/// The first of `feedback_stats`: `{name: {n, avg}}`.
fn feedback(record: &Value) -> Option<String> {
    let stats = structured(record.get("feedback_stats")?);
    stats.as_object()?.iter().find_map(|(name, value)| score(name, dig(value, "avg").unwrap_or(value)))
}
