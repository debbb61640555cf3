//! A file as a stream of records, whatever it is: JSON lines, JSON documents, comma-separated values, Parquet, plain or
//! compressed. One record is in memory at a time, and the file's digest is taken on the way.

use super::lines::{Line, Lines};
use super::parquet::Rows;
use super::walk::{self, Piece, Walk};
use crate::Error;
use crate::csv;
use crate::trace::{Reject, RejectReason};
use flate2::bufread::MultiGzDecoder;
use limbeck_artifact::digest::{hex, sha256_file};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Of a file's beginning, what is looked at to tell what it is.
const HEAD: usize = 64 << 10;

/// What a file is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    JsonLines,
    Json(walk::Shape),
    Csv { delimiter: u8 },
    Parquet,
}

/// A record, or why there is none where one should be.
pub enum Record<'r> {
    Json {
        line: u64,
        bytes: &'r [u8],
    },
    /// A row of a table, its cells under the columns' names.
    Row {
        line: u64,
        value: Value,
    },
    Bad {
        line: u64,
        reject: Reject,
    },
}

pub struct Source {
    inner: Inner,
    /// None for a file that is read by place, not from front to back.
    meter: Option<Rc<RefCell<Meter>>>,
    path: PathBuf,
    limit: usize,
    ended: bool,
}

enum Inner {
    Lines { lines: Lines<Box<dyn BufRead>>, number: u64 },
    Walk(Walk<Box<dyn BufRead>>),
    Csv { records: csv::Records<Box<dyn BufRead>>, header: Option<Vec<String>> },
    Parquet(Box<Rows>),
}

/// Counts and digests what is read of a file.
struct Meter {
    file: File,
    sha256: Sha256,
    bytes: u64,
}

struct Metered(Rc<RefCell<Meter>>);

impl Read for Metered {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut meter = self.0.borrow_mut();
        let n = meter.file.read(into)?;
        meter.sha256.update(&into[..n]);
        meter.bytes += n as u64;
        Ok(n)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn of(magic: &[u8]) -> Compression {
        match magic {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// # Errors
    /// Those of making a decoder.
    pub fn reader(self, from: impl Read + 'static) -> io::Result<Box<dyn BufRead>> {
        let buffered = BufReader::with_capacity(1 << 16, from);
        Ok(match self {
            Compression::None => Box::new(buffered),
            Compression::Gzip => Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(buffered))),
            Compression::Zstd => {
                Box::new(BufReader::with_capacity(1 << 16, zstd::stream::read::Decoder::with_buffer(buffered)?))
            }
        })
    }
}

/// The name without what compression adds, lower-case.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    name.trim_end_matches(".gz").trim_end_matches(".zst").to_string()
}

/// What a file is, from its first bytes and its name.
///
/// # Errors
/// When it can't be read.
pub fn container(path: &Path) -> io::Result<Container> {
    let mut magic = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut magic)?;
    if magic == b"PAR1" {
        return Ok(Container::Parquet);
    }
    let name = plain_name(path);
    if name.ends_with(".csv") {
        return Ok(Container::Csv { delimiter: b',' });
    }
    if name.ends_with(".tsv") {
        return Ok(Container::Csv { delimiter: b'\t' });
    }
    let mut head = Vec::with_capacity(HEAD);
    // Damage is told when the file is read, not here.
    let _ = Compression::of(&magic).reader(File::open(path)?)?.take(HEAD as u64).read_to_end(&mut head);
    Ok(walk::shape(&head).map_or(Container::JsonLines, Container::Json))
}

impl Source {
    /// Opens a file; records and lines beyond `limit` bytes are told, not held.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn open(path: &Path, container: Container, limit: usize) -> Result<Source, Error> {
        let cannot = |e| Error::io("open the traces", path, e);
        let source = |inner, meter| Source { inner, meter, path: path.to_path_buf(), limit, ended: false };
        if container == Container::Parquet {
            return Ok(source(Inner::Parquet(Box::new(Rows::open(path)?)), None));
        }
        let mut magic = Vec::new();
        File::open(path).and_then(|f| f.take(4).read_to_end(&mut magic)).map_err(cannot)?;
        let file = File::open(path).map_err(cannot)?;
        let meter = Rc::new(RefCell::new(Meter { file, sha256: Sha256::new(), bytes: 0 }));
        let from = Compression::of(&magic).reader(Metered(Rc::clone(&meter))).map_err(cannot)?;
        let inner = match container {
            Container::JsonLines => Inner::Lines { lines: Lines::new(from, limit), number: 0 },
            Container::Json(shape) => Inner::Walk(Walk::new(from, shape, limit)),
            Container::Csv { delimiter } => {
                Inner::Csv { records: csv::Records::new(from, delimiter, limit), header: None }
            }
            Container::Parquet => unreachable!("a table is read by place"),
        };
        Ok(source(inner, Some(meter)))
    }

    /// Bytes of the file that were read so far.
    pub fn bytes(&self) -> u64 {
        match (&self.meter, &self.inner) {
            (Some(meter), _) => meter.borrow().bytes,
            (None, Inner::Parquet(rows)) => rows.bytes(),
            (None, _) => 0,
        }
    }

    /// The next record; none at the end. A file whose compressed data are damaged ends there, with one bad record.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, Error> {
        if self.ended {
            return Ok(None);
        }
        let (path, limit) = (&self.path, self.limit);
        let found = match &mut self.inner {
            Inner::Lines { lines, number } => {
                *number += 1;
                let number = *number;
                lines.next_line().map(|line| {
                    line.map(|line| match line {
                        Line::Whole { bytes, .. } => Record::Json { line: number, bytes },
                        Line::TooLong { bytes, .. } => too_long(number, bytes, limit),
                    })
                })
            }
            Inner::Walk(walk) => walk.next_piece().map(|piece| {
                piece.map(|piece| match piece {
                    Piece::Record { line, bytes } => Record::Json { line, bytes },
                    Piece::TooLong { line, bytes } => too_long(line, bytes, limit),
                    Piece::Broken { line } => damaged(line, "the document is no JSON from here on"),
                })
            }),
            Inner::Csv { records, header } => next_row(records, header, limit),
            Inner::Parquet(rows) => return rows.next_row(),
        };
        match found {
            Ok(found) => Ok(found),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::InvalidData
                        | io::ErrorKind::InvalidInput
                        | io::ErrorKind::Other
                ) && self.meter.is_some() =>
            {
                self.ended = true;
                Ok(Some(damaged(0, "the compressed data are damaged or end early; what came before was read")))
            }
            Err(e) => Err(Error::io("read the traces", path, e)),
        }
    }

    /// The SHA-256 of the whole file.
    ///
    /// # Errors
    /// When its rest can't be read.
    pub fn finish(self) -> Result<String, Error> {
        let cannot = |e| Error::io("read the traces", &self.path, e);
        let Some(meter) = self.meter else { return sha256_file(&self.path).map_err(cannot) };
        drop(self.inner);
        io::copy(&mut Metered(Rc::clone(&meter)), &mut io::sink()).map_err(cannot)?;
        let digest = std::mem::take(&mut meter.borrow_mut().sha256).finalize();
        Ok(hex(&digest))
    }
}

pub fn too_long(line: u64, bytes: u64, limit: usize) -> Record<'static> {
    let detail = format!("{bytes} bytes, at most {limit} are read");
    Record::Bad { line, reject: Reject { reason: RejectReason::LineTooLong, detail } }
}

fn damaged(line: u64, what: &str) -> Record<'static> {
    Record::Bad { line, reject: Reject { reason: RejectReason::DamagedFile, detail: what.to_string() } }
}

fn next_row(
    records: &mut csv::Records<Box<dyn BufRead>>,
    header: &mut Option<Vec<String>>,
    limit: usize,
) -> io::Result<Option<Record<'static>>> {
    loop {
        let bad = |line, reason, detail: String| Ok(Some(Record::Bad { line, reject: Reject { reason, detail } }));
        let (line, fields) = match records.next_record()? {
            None => return Ok(None),
            Some(csv::Record::TooLong { line, bytes }) => return Ok(Some(too_long(line, bytes, limit))),
            Some(csv::Record::NotUtf8 { line, field }) => {
                return bad(line, RejectReason::InvalidUtf8, format!("field {} is no UTF-8", field + 1));
            }
            Some(csv::Record::Fields { line, fields }) => (line, fields),
        };
        let Some(names) = header else {
            *header = Some(fields.into_iter().map(|name| name.trim().to_string()).collect());
            continue;
        };
        if fields.len() != names.len() {
            let detail = format!("{} fields, the header has {}", fields.len(), names.len());
            return bad(line, RejectReason::WrongType, detail);
        }
        let cells = names.iter().zip(fields).filter(|(_, cell)| !cell.is_empty());
        let row: Map<String, Value> = cells.map(|(name, cell)| (name.clone(), Value::String(cell))).collect();
        return Ok(Some(Record::Row { line, value: Value::Object(row) }));
    }
}
