//! Which tool wrote a file, told by name or seen from its first records. Every format is one reader: a record in, a trace
//! or a reason out.

use super::{Columns, Reject, Trace};
use super::{alpaca, columns, langfuse, langsmith, openai, openinference, openpipe, otel, sharegpt, tensorzero};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    OpenAi,
    Otel,
    OpenInference,
    Langfuse,
    LangSmith,
    TensorZero,
    OpenPipe,
    ShareGpt,
    Alpaca,
    /// Fields or columns under names of one's own.
    Columns,
}

impl Format {
    /// The stricter before the looser: where two recognise a record, the earlier is it.
    pub const ALL: [Format; 10] = [
        Format::LangSmith,
        Format::TensorZero,
        Format::OpenInference,
        Format::Otel,
        Format::Langfuse,
        Format::OpenPipe,
        Format::OpenAi,
        Format::ShareGpt,
        Format::Alpaca,
        Format::Columns,
    ];

    /// As `--format` and `data.format` have it.
    pub fn name(self) -> &'static str {
        match self {
            Format::OpenAi => "openai",
            Format::Otel => "otel",
            Format::OpenInference => "openinference",
            Format::Langfuse => "langfuse",
            Format::LangSmith => "langsmith",
            Format::TensorZero => "tensorzero",
            Format::OpenPipe => "openpipe",
            Format::ShareGpt => "sharegpt",
            Format::Alpaca => "alpaca",
            Format::Columns => "columns",
        }
    }

    pub fn named(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.name() == name)
    }

    fn recognises(self, record: &Value) -> bool {
        match self {
            Format::OpenAi => openai::recognises(record),
            Format::Otel => otel::recognises(record),
            Format::OpenInference => openinference::recognises(record),
            Format::Langfuse => langfuse::recognises(record),
            Format::LangSmith => langsmith::recognises(record),
            Format::TensorZero => tensorzero::recognises(record),
            Format::OpenPipe => openpipe::recognises(record),
            Format::ShareGpt => sharegpt::recognises(record),
            Format::Alpaca => alpaca::recognises(record),
            Format::Columns => columns::recognises(record),
        }
    }

    /// The format that most of these records have; none when nobody knows any of them.
    pub fn detect<'v>(records: impl IntoIterator<Item = &'v Value>) -> Option<Format> {
        let mut votes = [0u32; Format::ALL.len()];
        for record in records {
            if let Some(seen) = Format::ALL.iter().position(|f| f.recognises(record)) {
                votes[seen] += 1;
            }
        }
        let most = votes.iter().copied().max().filter(|n| *n > 0)?;
        votes.iter().position(|n| *n == most).map(|i| Format::ALL[i])
    }

    /// Reads a record; `raw` are its bytes, `columns` the names of [`Format::Columns`].
    ///
    /// # Errors
    /// Why it is no trace.
    pub fn read(self, record: &Value, raw: &[u8], columns: &Columns) -> Result<Trace, Reject> {
        if !record.is_object() {
            return super::reject(super::RejectReason::WrongType, "the record is no JSON object");
        }
        match self {
            Format::OpenAi => openai::read(record, raw),
            Format::Otel | Format::OpenInference => otel::read(record, raw),
            Format::Langfuse => langfuse::read(record, raw),
            Format::LangSmith => langsmith::read(record, raw),
            Format::TensorZero => tensorzero::read(record, raw),
            Format::OpenPipe => openpipe::read(record, raw),
            Format::ShareGpt => sharegpt::read(record, raw),
            Format::Alpaca => alpaca::read(record, raw),
            Format::Columns => columns::read(record, raw, columns),
        }
    }
}
