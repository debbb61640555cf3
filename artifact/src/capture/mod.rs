//! Captured answers of a teacher on disk, where distillation and training meet without knowing each other. A file grows chunk by
//! chunk and survives a kill at any moment; finished, it has one digest, and says whose answers it holds.
//!
//! Layout, all numbers little-endian:
//!
//! ```text
//! "limbeck capture 1\n"
//! frame*      kind u8, rows u32, length u32, payload[length], SHA-256[32]
//! ```
//!
//! A frame's SHA-256 is over the digest of the frame before it (zeros before the first), its own first nine bytes and its payload:
//! the last one stands for the whole file. Frames are, in this order: one `H`, the header as JSON ([`Header`]); `R`, rows, so many
//! to each but the last ([`CHUNK`]); one `E`, empty, which makes the file complete and counts all rows. A row begins with the 16
//! bytes that it goes by; what follows is the header's `kind`: posteriors over labels ([`Row`]), or distributions over tokens
//! ([`TokenRow`]). Texts are not kept.
//!
//! Until it is complete a file has the name `FILE.partial`. Of a frame that a kill tore, what is there is cut off; the rows
//! before it stand, and going on gives the same bytes as never having stopped.

mod frames;
mod half;
mod labels;
mod tokens;
mod writer;

pub use labels::{LABEL_POSTERIORS, Row, prompt_key};
pub use tokens::{Position, Sparse, TOKEN_LOGITS, TokenRow, Told, tokens_key};
pub use writer::{CaptureWriter, Started, discard};

use crate::digest::{hex, unhex};
use crate::{Error, Result};
use frames::{DIGEST, Frame, Frames, Read};
use serde::{Deserialize, Serialize};
use std::path::Path;

const MAGIC: &[u8] = b"limbeck capture 1\n";
const KEY: usize = 16;

/// Rows a frame: what a kill can cost.
pub const CHUNK: usize = 64;

/// Whose answers a file holds, and to what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// What a row holds: [`LABEL_POSTERIORS`] or [`TOKEN_LOGITS`].
    pub kind: String,
    pub teacher: Named,
    /// SHA-256 over what turns a conversation into tokens: the vocabulary, and the chat template.
    pub tokenizer: String,
    pub template: String,
    /// What was answered: a dataset, or a file of messages.
    pub data: Named,
    pub rows: u64,
    /// That posteriors are over; empty where rows are of tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// What was kept of a distribution over tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<Sparse>,
    pub program_version: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Named {
    /// What a person calls it.
    pub name: String,
    /// SHA-256, or what else names it for good (the pinned id of a model behind an endpoint).
    pub digest: String,
}

impl Header {
    /// The first thing in which two differ, in a person's words, with both values. The program's version is none.
    fn differs(&self, other: &Header) -> Option<String> {
        let labels = |of: &Header| format!("{} labels", of.labels.len());
        let named = |of: &Named| format!("{} ({})", of.name, of.digest.get(..12).unwrap_or(&of.digest));
        let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
        let sparse = |of: &Header| of.sparse.map_or_else(String::new, |sparse| sparse.to_string());
        let pairs = [
            ("kind", self.kind.clone(), other.kind.clone(), self.kind == other.kind),
            ("teacher", named(&self.teacher), named(&other.teacher), self.teacher.digest == other.teacher.digest),
            ("tokenizer", short(&self.tokenizer), short(&other.tokenizer), self.tokenizer == other.tokenizer),
            ("chat template", short(&self.template), short(&other.template), self.template == other.template),
            ("label list", labels(self), labels(other), self.labels == other.labels),
            ("share of the distributions", sparse(self), sparse(other), self.sparse == other.sparse),
            (
                "data",
                named(&self.data),
                named(&other.data),
                self.data.digest == other.data.digest && self.rows == other.rows,
            ),
        ];
        let (what, mine, theirs, _) = pairs.into_iter().find(|(.., same)| !same)?;
        Some(match mine == theirs {
            true => format!("another {what}"),
            false => format!("another {what}: {theirs} instead of {mine}"),
        })
    }
}

/// What a row holds behind its key.
pub trait Answer: Sized {
    const KIND: &'static str;

    /// 32 hex digits.
    fn key(&self) -> &str;

    /// Adds its bytes.
    ///
    /// # Errors
    /// When it is not what the header says, or is no answer.
    fn put(&self, header: &Header, out: &mut Vec<u8>) -> Result<()>;

    /// Takes it from the bytes' beginning; none where they are no such answer.
    fn take(key: String, header: &Header, bytes: &mut &[u8]) -> Option<Self>;
}

/// A capture in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture<R = Row> {
    pub header: Header,
    pub rows: Vec<R>,
    /// Its last frame is there.
    pub complete: bool,
    pub bytes: u64,
    /// The last whole frame's: it stands for all before it.
    pub digest: String,
}

const AGAIN: &str = "capture again, to another file or after removing this one";

impl<R: Answer> Capture<R> {
    /// Reads a finished file.
    ///
    /// # Errors
    /// Where it is none, is damaged anywhere, or is not finished.
    pub fn load(path: &Path) -> Result<Self> {
        let capture = Self::look(path)?;
        match capture.complete {
            true => Ok(capture),
            false => Err(Error::invalid(
                path,
                "the capture is not finished",
                "run the same `limbeck capture` again: it goes on",
            )),
        }
    }

    /// Reads a file that may still grow: what is whole of it.
    ///
    /// # Errors
    /// Where it is none, or is damaged before its last frame.
    pub fn look(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read the capture", path))?;
        read(path, &bytes).map(|(capture, _)| capture)
    }
}

/// The header of a file, and so what kind its rows are of.
///
/// # Errors
/// Where it is no capture.
pub fn header_of(path: &Path) -> Result<Header> {
    let bytes = std::fs::read(path).map_err(Error::io("read the capture", path))?;
    Ok(begin(path, &bytes, &mut [0; DIGEST])?.0)
}

/// Whether a kill came before anything was captured.
fn header_is_torn(bytes: &[u8]) -> bool {
    let whole = || Frames { bytes, at: MAGIC.len() }.next(&mut [0; DIGEST]);
    MAGIC.starts_with(bytes) || bytes.starts_with(MAGIC) && matches!(whole(), Ok(None))
}

/// The header, and the frames behind it.
fn begin<'b>(path: &Path, bytes: &'b [u8], digest: &mut [u8; DIGEST]) -> Result<(Header, Frames<'b>)> {
    let no = |reason: &str| Error::invalid(path, reason, AGAIN);
    if !bytes.starts_with(MAGIC) {
        return Err(no("it is no capture of teacher's answers"));
    }
    let mut frames = Frames { bytes, at: MAGIC.len() };
    let Some(first) = frames.next(digest).map_err(no)?.filter(|frame| frame.kind == b'H') else {
        return Err(no("its header is damaged"));
    };
    let header: Header =
        serde_json::from_slice(first.payload).map_err(|e| no(&format!("its header can't be read: {e}")))?;
    match [LABEL_POSTERIORS, TOKEN_LOGITS].contains(&header.kind.as_str()) {
        true => Ok((header, frames)),
        false => Err(no(&format!("it holds {}, which this version does not know", header.kind))),
    }
}

/// What the bytes say, and how many of them are whole.
fn read<R: Answer>(path: &Path, bytes: &[u8]) -> Result<(Capture<R>, usize)> {
    let no = |reason: &str| Error::invalid(path, reason, AGAIN);
    let mut digest = [0u8; DIGEST];
    let (header, mut frames) = begin(path, bytes, &mut digest)?;
    if header.kind != R::KIND {
        let reason = format!("it holds {}, and {} are wanted here", header.kind, R::KIND);
        return Err(Error::invalid(
            path,
            reason,
            "labels are learnt from posteriors over them, written answers from distributions over tokens: capture again with \
             this run's dataset as --data",
        ));
    }
    let mut capture = Capture { header, rows: Vec::new(), complete: false, bytes: 0, digest: String::new() };
    while let Some(frame) = frames.next(&mut digest).map_err(no)? {
        match frame.kind {
            b'R' if !capture.complete => rows(&mut capture, &frame).map_err(no)?,
            b'E' if !capture.complete => capture.complete = true,
            _ => return Err(no("its frames are out of order")),
        }
        if frame.kind == b'E' && frame.rows as usize != capture.rows.len() {
            return Err(no("it counts other rows than it holds"));
        }
    }
    if capture.complete && frames.at < bytes.len() {
        return Err(no("something follows its end"));
    }
    (capture.bytes, capture.digest) = (frames.at as u64, hex(&digest));
    Ok((capture, frames.at))
}

fn rows<R: Answer>(capture: &mut Capture<R>, frame: &Frame<'_>) -> Read<()> {
    let mut rest = frame.payload;
    for _ in 0..frame.rows {
        let (key, answer) = rest.split_at_checked(KEY).ok_or("a frame has not the rows that it counts")?;
        rest = answer;
        let row =
            R::take(hex(key), &capture.header, &mut rest).ok_or("a row is none of the kind that the header says")?;
        capture.rows.push(row);
    }
    match rest.is_empty() {
        true => Ok(()),
        false => Err("a frame has not the rows that it counts"),
    }
}

fn encode<R: Answer>(header: &Header, rows: &[R]) -> Result<Vec<u8>> {
    let mut payload = Vec::new();
    for row in rows {
        let key = unhex::<KEY>(row.key())
            .ok_or_else(|| Error::refused("a row without its key", "this is a defect of what captures"))?;
        payload.extend(key);
        row.put(header, &mut payload)?;
    }
    Ok(payload)
}
