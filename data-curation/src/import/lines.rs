//! The lines of a stream, none held beyond a limit.

use std::io::{self, BufRead};

pub struct Lines<R> {
    from: R,
    limit: usize,
    line: Vec<u8>,
    bytes: u64,
}

/// `ended` says whether it had its line feed: a last line without one may still be under way.
pub enum Line<'l> {
    Whole { bytes: &'l [u8], ended: bool },
    TooLong { bytes: u64, ended: bool },
}

impl<R: BufRead> Lines<R> {
    pub fn new(from: R, limit: usize) -> Lines<R> {
        Lines { from, limit, line: Vec::new(), bytes: 0 }
    }

    /// Bytes of all lines so far, with their line feeds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line without its line feed; none at the end.
    ///
    /// # Errors
    /// The reader's.
    pub fn next_line(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let (mut length, mut any, mut ended) = (0u64, false, false);
        while !ended {
            let piece = match self.from.fill_buf() {
                Ok(piece) => piece,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if piece.is_empty() {
                break;
            }
            any = true;
            let end = piece.iter().position(|b| *b == b'\n');
            ended = end.is_some();
            let content = &piece[..end.unwrap_or(piece.len())];
            length += content.len() as u64;
            if length <= self.limit as u64 {
                self.line.extend_from_slice(content);
            }
            let used = end.map_or(piece.len(), |e| e + 1);
            self.from.consume(used);
            self.bytes += used as u64;
        }
        // A line of many megabytes should not be held on to by all the short ones after it.
        if self.line.capacity() > KEEP && self.line.len() < KEEP {
            self.line.shrink_to(KEEP);
        }
        Ok(match any {
            false => None,
            true if length > self.limit as u64 => Some(Line::TooLong { bytes: length, ended }),
            true => Some(Line::Whole { bytes: &self.line, ended }),
        })
    }
}

/// Bytes of buffer that are kept between lines.
const KEEP: usize = 1 << 20;
