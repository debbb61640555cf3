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
//! to each but the last ([`CHUNK`]); one `E`, empty, which makes the file complete and counts all rows. A row is 16 bytes of its
//! prompt's SHA-256 ([`prompt_key`]), then the log-probability of each of the header's labels, in their order, as an IEEE half:
//! `16 + 2 · labels` bytes. Texts are not kept.
//!
//! Until it is complete a file has the name `FILE.partial`. Of a frame that a kill tore, what is there is cut off; the rows
//! before it stand, and going on gives the same bytes as never having stopped.

mod half;
mod writer;

pub use writer::{CaptureWriter, Started};

use crate::dataset::Message;
use crate::digest::{canonical_json, hex};
use crate::{Error, Result};
use half::{from_half, to_half};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;

const MAGIC: &[u8] = b"limbeck capture 1\n";
/// Kind, rows, length.
const HEAD: usize = 9;
const DIGEST: usize = 32;
const KEY: usize = 16;
/// No frame is longer.
const MOST: usize = 1 << 26;

/// Rows a frame: what a kill can cost.
pub const CHUNK: usize = 64;

/// Whose answers a file holds, and to what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// What a row holds; so far `label_posteriors`.
    pub kind: String,
    pub teacher: Named,
    /// SHA-256 over what turns a conversation into tokens: the vocabulary, and the chat template.
    pub tokenizer: String,
    pub template: String,
    /// What was answered: a dataset, or a file of messages.
    pub data: Named,
    pub rows: u64,
    pub labels: Vec<String>,
    pub program_version: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Named {
    /// What a person calls it.
    pub name: String,
    /// SHA-256, or what else names it for good (the pinned id of a model behind an endpoint).
    pub digest: String,
}

/// The only kind so far.
pub const LABEL_POSTERIORS: &str = "label_posteriors";

impl Header {
    /// The first thing in which two differ, in a person's words, with both values. The program's version is none.
    fn differs(&self, other: &Header) -> Option<String> {
        let labels = |of: &Header| format!("{} labels", of.labels.len());
        let named = |of: &Named| format!("{} ({})", of.name, of.digest.get(..12).unwrap_or(&of.digest));
        let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
        let pairs = [
            ("kind", self.kind.clone(), other.kind.clone(), self.kind == other.kind),
            ("teacher", named(&self.teacher), named(&other.teacher), self.teacher.digest == other.teacher.digest),
            ("tokenizer", short(&self.tokenizer), short(&other.tokenizer), self.tokenizer == other.tokenizer),
            ("chat template", short(&self.template), short(&other.template), self.template == other.template),
            ("label list", labels(self), labels(other), self.labels == other.labels),
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

    fn row_bytes(&self) -> usize {
        KEY + 2 * self.labels.len()
    }
}

/// A teacher's answer to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub key: String,
    /// Of the header's labels, at temperature 1; their exponentials sum to 1 but for rounding.
    pub log_probs: Vec<f32>,
}

impl Row {
    /// Probabilities that sum to 1.
    pub fn posterior(&self) -> Vec<f32> {
        let max = self.log_probs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f64> = self.log_probs.iter().map(|l| f64::from(l - max).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|e| (e / sum) as f32).collect()
    }
}

/// What a row goes by: 32 hex digits of the SHA-256 of the prompt's canonical JSON. Rows of equal prompts have one answer.
pub fn prompt_key(messages: &[Message]) -> String {
    hex(&Sha256::digest(canonical_json(&json!(messages)).as_bytes())[..KEY])
}

/// A capture in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    pub header: Header,
    pub rows: Vec<Row>,
    /// Its last frame is there.
    pub complete: bool,
    pub bytes: u64,
    /// The last whole frame's: it stands for all before it.
    pub digest: String,
}

const AGAIN: &str = "capture again, to another file or after removing this one";

impl Capture {
    /// Reads a finished file.
    ///
    /// # Errors
    /// Where it is none, is damaged anywhere, or is not finished.
    pub fn load(path: &Path) -> Result<Capture> {
        let capture = Capture::look(path)?;
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
    pub fn look(path: &Path) -> Result<Capture> {
        let bytes = std::fs::read(path).map_err(Error::io("read the capture", path))?;
        read(path, &bytes).map(|(capture, _)| capture)
    }
}

/// Whether a kill came before anything was captured.
fn header_is_torn(bytes: &[u8]) -> bool {
    let whole = || Frames { bytes, at: MAGIC.len() }.next(&mut [0; DIGEST]);
    MAGIC.starts_with(bytes) || bytes.starts_with(MAGIC) && matches!(whole(), Ok(None))
}

/// What the bytes say, and how many of them are whole.
fn read(path: &Path, bytes: &[u8]) -> Result<(Capture, usize)> {
    let no = |reason: &str| Error::invalid(path, reason, AGAIN);
    if !bytes.starts_with(MAGIC) {
        return Err(no("it is no capture of teacher's answers"));
    }
    let mut digest = [0u8; DIGEST];
    let mut frames = Frames { bytes, at: MAGIC.len() };
    let Some(first) = frames.next(&mut digest).map_err(no)?.filter(|frame| frame.kind == b'H') else {
        return Err(no("its header is damaged"));
    };
    let header: Header =
        serde_json::from_slice(first.payload).map_err(|e| no(&format!("its header can't be read: {e}")))?;
    if header.kind != LABEL_POSTERIORS {
        return Err(no(&format!("it holds {}, which this version does not know", header.kind)));
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

fn rows(capture: &mut Capture, frame: &Frame<'_>) -> Read<()> {
    let size = capture.header.row_bytes();
    if frame.payload.len() != frame.rows as usize * size {
        return Err("a frame has not the rows that it counts");
    }
    for row in frame.payload.chunks_exact(size) {
        let (key, values) = row.split_at(KEY);
        let log_probs = values.as_chunks::<2>().0.iter().map(|half| from_half(u16::from_le_bytes(*half))).collect();
        capture.rows.push(Row { key: hex(key), log_probs });
    }
    Ok(())
}

/// Read, or what is wrong with the file.
type Read<T> = std::result::Result<T, &'static str>;

struct Frame<'b> {
    kind: u8,
    rows: u32,
    payload: &'b [u8],
}

struct Frames<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Frames<'b> {
    /// The next whole frame; none at the end, or where the last one is torn. `digest` goes from the frame before to this one.
    fn next(&mut self, digest: &mut [u8; DIGEST]) -> Read<Option<Frame<'b>>> {
        let rest = &self.bytes[self.at..];
        let Some((head, body)) = rest.split_at_checked(HEAD) else { return Ok(None) };
        let number = |at: usize| head[at..at + 4].iter().rev().fold(0u32, |n, b| n << 8 | u32::from(*b));
        let (rows, length) = (number(1), number(5) as usize);
        if length > MOST {
            return Err("a frame is longer than any can be");
        }
        if body.len() < length + DIGEST {
            return Ok(None);
        }
        let (payload, found) = (&body[..length], &body[length..length + DIGEST]);
        let want = frame_digest(digest, head, payload);
        let size = HEAD + length + DIGEST;
        if found != want {
            // A kill tears the last frame only.
            return if rest.len() == size { Ok(None) } else { Err("a frame has not the digest that it says") };
        }
        *digest = want;
        self.at += size;
        Ok(Some(Frame { kind: head[0], rows, payload }))
    }
}

fn frame_digest(before: &[u8; DIGEST], head: &[u8], payload: &[u8]) -> [u8; DIGEST] {
    Sha256::new().chain_update(before).chain_update(head).chain_update(payload).finalize().into()
}

/// A frame as it lies in the file; `digest` becomes its own.
fn frame(digest: &mut [u8; DIGEST], kind: u8, rows: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(rows.to_le_bytes());
    out.extend((payload.len() as u32).to_le_bytes());
    *digest = frame_digest(digest, &out, payload);
    out.extend_from_slice(payload);
    out.extend_from_slice(digest);
    out
}

fn encode(header: &Header, rows: &[Row]) -> Result<Vec<u8>> {
    let mut payload = Vec::with_capacity(rows.len() * header.row_bytes());
    for row in rows {
        let key = row.key.as_bytes().as_chunks::<2>().0;
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let key: Option<Vec<u8>> = key.iter().map(byte).collect();
        let Some(key) = key.filter(|key| key.len() == KEY && row.log_probs.len() == header.labels.len()) else {
            return Err(Error::refused(
                "a row without its key, or not of all labels",
                "this is a defect of what captures",
            ));
        };
        if row.log_probs.iter().any(|l| l.is_nan()) {
            let reason = format!("the teacher's answer to {} is not a number", row.key);
            return Err(Error::refused(reason, "look at the teacher: its weights or its adapter are damaged"));
        }
        payload.extend(key);
        payload.extend(row.log_probs.iter().flat_map(|l| to_half(*l).to_le_bytes()));
    }
    Ok(payload)
}
