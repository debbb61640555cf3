//! The frames of a capture: each has a digest that stands for all before it, so that a torn end is told from damage. What is in
//! them is nobody's business here.

use sha2::{Digest, Sha256};

/// Kind, rows, length.
const HEAD: usize = 9;
pub(super) const DIGEST: usize = 32;
/// No frame is longer.
const MOST: usize = 1 << 26;

/// Read, or what is wrong with the file.
pub(super) type Read<T> = Result<T, &'static str>;

pub(super) struct Frame<'b> {
    pub kind: u8,
    pub rows: u32,
    pub payload: &'b [u8],
}

pub(super) struct Frames<'b> {
    pub bytes: &'b [u8],
    pub at: usize,
}

impl<'b> Frames<'b> {
    /// The next whole frame; none at the end, or where the last one is torn. `digest` goes from the frame before to this one.
    pub(super) fn next(&mut self, digest: &mut [u8; DIGEST]) -> Read<Option<Frame<'b>>> {
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
pub(super) fn frame(digest: &mut [u8; DIGEST], kind: u8, rows: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(rows.to_le_bytes());
    out.extend((payload.len() as u32).to_le_bytes());
    *digest = frame_digest(digest, &out, payload);
    out.extend_from_slice(payload);
    out.extend_from_slice(digest);
    out
}
