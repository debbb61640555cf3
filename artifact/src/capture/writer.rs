//! Writing a capture: frame by frame, each on the disk before the next is asked for. What was written before under the same
//! header is gone on from; what is there under another is refused, never overwritten.

use super::frames::{DIGEST, frame};
use super::{AGAIN, Answer, CHUNK, Capture, Header, Row, encode, header_is_torn, read};
use crate::digest::{hex, unhex32};
use crate::files::{create_dirs, sync_parent};
use crate::{Error, Result};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// A capture in the making.
#[derive(Debug)]
pub struct CaptureWriter<R = Row> {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    header: Header,
    digest: [u8; DIGEST],
    rows: u64,
    bytes: u64,
    of: PhantomData<R>,
}

/// What was there when a capture was begun.
#[derive(Debug)]
pub enum Started<R = Row> {
    /// All of it.
    Done(Box<Capture<R>>),
    /// Nothing, or a part: so many rows are written.
    Open(Box<CaptureWriter<R>>, Vec<R>),
}

fn partial_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".partial");
    path.with_file_name(name)
}

/// Removes what an unfinished capture left beside `path`, where there is something.
///
/// # Errors
/// The disk's.
pub fn discard(path: &Path) -> Result<()> {
    match std::fs::remove_file(partial_of(path)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove the unfinished capture", path)(e)),
        _ => Ok(()),
    }
}

impl<R: Answer> CaptureWriter<R> {
    /// Begins, or goes on with what is there.
    ///
    /// # Errors
    /// Where something else is there: another teacher's, other rows', other labels'.
    pub fn open(path: &Path, header: Header) -> Result<Started<R>> {
        if path.exists() {
            let known = Capture::<R>::load(path)?;
            return match header.differs(&known.header) {
                None => Ok(Started::Done(Box::new(known))),
                Some(what) => Err(Error::invalid(path, format!("it holds {what}"), AGAIN)),
            };
        }
        let partial = partial_of(path);
        if partial.exists() {
            return go_on(path, &partial, header);
        }
        let failed = "begin the capture";
        create_dirs(path.parent().unwrap_or(Path::new(""))).map_err(Error::io(failed, path))?;
        let file =
            OpenOptions::new().write(true).create_new(true).open(&partial).map_err(Error::io(failed, &partial))?;
        let path = path.to_path_buf();
        let mut writer =
            CaptureWriter { path, partial, file, header, digest: [0; DIGEST], rows: 0, bytes: 0, of: PhantomData };
        let json = serde_json::to_vec(&writer.header)
            .map_err(|e| Error::refused(format!("the header can't be written: {e}"), "this is a defect"))?;
        let mut bytes = super::MAGIC.to_vec();
        bytes.extend(frame(&mut writer.digest, b'H', 0, &json));
        writer.append(&bytes)?;
        sync_parent(&writer.partial).map_err(Error::io(failed, &writer.path))?;
        Ok(Started::Open(Box::new(writer), Vec::new()))
    }

    /// Adds up to [`CHUNK`] rows; they are on the disk when this returns.
    ///
    /// # Errors
    /// The disk's, and rows that are not the header's.
    pub fn push(&mut self, rows: &[R]) -> Result<()> {
        debug_assert!(rows.len() <= CHUNK && self.rows.is_multiple_of(CHUNK as u64), "a short chunk is the last");
        let payload = encode(&self.header, rows)?;
        let bytes = frame(&mut self.digest, b'R', rows.len() as u32, &payload);
        self.append(&bytes)?;
        self.rows += rows.len() as u64;
        Ok(())
    }

    /// So far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// So far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ends the file and puts it under its name; its digest.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(mut self: Box<Self>) -> Result<String> {
        let bytes = frame(&mut self.digest, b'E', self.rows as u32, &[]);
        self.append(&bytes)?;
        let failed = "finish the capture";
        std::fs::rename(&self.partial, &self.path).map_err(Error::io(failed, &self.path))?;
        sync_parent(&self.path).map_err(Error::io(failed, &self.path))?;
        Ok(hex(&self.digest))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        written.map_err(Error::io("write the capture", &self.partial))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Goes on with an unfinished file: a torn end is cut off.
fn go_on<R: Answer>(path: &Path, partial: &Path, header: Header) -> Result<Started<R>> {
    let bytes = std::fs::read(partial).map_err(Error::io("read the capture", partial))?;
    if header_is_torn(&bytes) {
        discard(path)?;
        return CaptureWriter::open(path, header);
    }
    let (known, whole) = read::<R>(partial, &bytes)?;
    if let Some(what) = header.differs(&known.header) {
        return Err(Error::invalid(partial, format!("it holds {what}"), AGAIN));
    }
    if known.complete {
        // Killed before it got its name.
        std::fs::rename(partial, path).map_err(Error::io("finish the capture", path))?;
        return CaptureWriter::open(path, header);
    }
    let mut file =
        OpenOptions::new().write(true).open(partial).map_err(Error::io("go on with the capture", partial))?;
    let cut = file.set_len(whole as u64).and_then(|()| file.seek(SeekFrom::End(0)));
    cut.map_err(Error::io("go on with the capture", partial))?;
    let writer = CaptureWriter {
        path: path.to_path_buf(),
        partial: partial.to_path_buf(),
        file,
        header,
        digest: unhex32(&known.digest).unwrap_or_default(),
        rows: known.rows.len() as u64,
        bytes: whole as u64,
        of: PhantomData,
    };
    Ok(Started::Open(Box::new(writer), known.rows))
}

#[cfg(test)]
mod tests {
    use super::super::{
        LABEL_POSTERIORS, MAGIC, Named, Position, Sparse, TOKEN_LOGITS, TokenRow, Told, header_of, prompt_key,
        tokens_key,
    };
    use super::*;
    use crate::dataset::Message;
    use std::fs;

    fn header(rows: u64) -> Header {
        let named = |name: &str| Named { name: name.to_owned(), digest: crate::digest::sha256_hex(name.as_bytes()) };
        Header {
            kind: LABEL_POSTERIORS.to_owned(),
            teacher: named("teacher"),
            tokenizer: "t".to_owned(),
            template: "c".to_owned(),
            data: named("rows"),
            rows,
            labels: ["a", "b", "c"].map(String::from).to_vec(),
            sparse: None,
            program_version: "0".to_owned(),
        }
    }

    fn row(i: usize) -> Row {
        let p = [0.5, 0.3, 0.2].map(|p: f32| p.powi(1 + (i % 5) as i32));
        let sum: f32 = p.iter().sum();
        Row { key: prompt_key(&[Message::new("user", &i.to_string())]), log_probs: p.map(|p| (p / sum).ln()).to_vec() }
    }

    fn open(path: &Path, header: Header) -> (Box<CaptureWriter>, Vec<Row>) {
        match CaptureWriter::open(path, header).unwrap() {
            Started::Open(writer, known) => (writer, known),
            Started::Done(_) => panic!("it was done"),
        }
    }

    fn write(path: &Path, rows: usize) -> String {
        let (mut writer, known) = open(path, header(rows as u64));
        let all: Vec<Row> = (0..rows).map(row).collect();
        all[known.len()..].chunks(CHUNK).for_each(|chunk| writer.push(chunk).unwrap());
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_comes_back_rounded_to_halves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/down/t.capture");
        let digest = write(&path, 150);
        let capture = Capture::<Row>::load(&path).unwrap();
        assert_eq!((capture.rows.len(), capture.complete, &capture.digest), (150, true, &digest));
        assert_eq!(capture.bytes, fs::metadata(&path).unwrap().len());
        for (i, read) in capture.rows.iter().enumerate() {
            let want = row(i);
            assert_eq!(read.key, want.key);
            for (a, b) in read.log_probs.iter().zip(&want.log_probs) {
                assert!((a - b).abs() <= b.abs() / 2048.0, "{a} {b}");
            }
            assert!((read.posterior().iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
        // 22 bytes a row beside frames of 64.
        assert!(capture.bytes < 150 * 22 + 1200);
        assert!(matches!(CaptureWriter::<Row>::open(&path, header(150)).unwrap(), Started::Done(_)));
    }

    #[test]
    fn torn_at_any_byte_it_goes_on_to_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        write(&whole, 140);
        let bytes = fs::read(&whole).unwrap();
        let header_ends = MAGIC.len() + 41 + serde_json::to_vec(&header(140)).unwrap().len();
        let torn = dir.path().join("torn");
        for cut in (0..bytes.len()).step_by(7).chain([1, header_ends, bytes.len() - 1]) {
            fs::write(partial_of(&torn), &bytes[..cut]).unwrap();
            write(&torn, 140);
            assert!(fs::read(&torn).unwrap() == bytes, "cut at {cut}");
            assert!(!partial_of(&torn).exists());
            fs::remove_file(&torn).unwrap();
        }
        // Complete, but killed before it got its name.
        fs::write(partial_of(&torn), &bytes).unwrap();
        assert!(matches!(CaptureWriter::<Row>::open(&torn, header(140)).unwrap(), Started::Done(_)));
    }

    #[test]
    fn a_changed_byte_is_found_and_an_unfinished_file_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        write(&path, 70);
        let bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(11) {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            fs::write(&path, &changed).unwrap();
            assert!(Capture::<Row>::load(&path).is_err(), "byte {at}");
        }
        fs::write(&path, &bytes[..bytes.len() - 41]).unwrap();
        let e = Capture::<Row>::load(&path).unwrap_err().to_string();
        assert!(e.contains("not finished") && e.contains("it goes on"), "{e}");
        assert_eq!(Capture::<Row>::look(&path).unwrap().rows.len(), 70);
        fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
        assert!(Capture::<Row>::load(&path).is_err());
    }

    #[test]
    fn another_teacher_is_refused_with_both_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        write(&path, 3);
        let refused = |change: &dyn Fn(&mut Header), says: &str| {
            let mut other = header(3);
            change(&mut other);
            let e = CaptureWriter::<Row>::open(&path, other).unwrap_err().to_string();
            assert!(e.contains(says) && e.contains("capture again"), "{e}");
        };
        refused(&|h| h.teacher = Named { name: "other".into(), digest: "ff".into() }, "another teacher: teacher (");
        refused(&|h| h.tokenizer = "u".into(), "another tokenizer");
        refused(&|h| h.template = "u".into(), "another chat template");
        refused(&|h| h.labels[1] = "x".into(), "another label list");
        refused(&|h| h.rows = 4, "another data");
        let mut newer = header(3);
        newer.program_version = "9".to_owned();
        assert!(CaptureWriter::<Row>::open(&path, newer).is_ok());
        let (mut writer, _) = open(&dir.path().join("u"), header(1));
        assert!(writer.push(&[Row { log_probs: vec![f32::NAN; 3], ..row(0) }]).is_err());
        assert!(writer.push(&[Row { log_probs: vec![0.0], ..row(0) }]).is_err());
    }

    fn of_tokens(rows: u64, sparse: Sparse) -> Header {
        Header { kind: TOKEN_LOGITS.to_owned(), labels: Vec::new(), sparse: Some(sparse), ..header(rows) }
    }

    fn positions(i: usize, sparse: Sparse) -> Vec<Position> {
        let of = |p: usize| {
            let n = 1 + (i * 7 + p * 3) % 21;
            let tokens: Vec<u32> = (0..n as u32).map(|t| t * (1 + 2300 * (p as u32 % 2)) + i as u32).collect();
            let told = match sparse {
                Sparse::TopK { .. } => Told::TopK {
                    log_probs: (0..n).map(|t| (0.9 / (n as f32)).ln() - 0.001 * t as f32).collect(),
                    log_tail: if p == 2 { f32::NEG_INFINITY } else { 0.1f32.ln() },
                },
                Sparse::Sampling { .. } => Told::Drawn((0..n).map(|t| 1 + t as u8).collect()),
            };
            Position { agrees: (i + p).is_multiple_of(2), tokens, told }
        };
        (0..i % 4).map(of).collect()
    }

    #[test]
    fn distributions_over_tokens_come_back_and_sum_to_one() {
        let dir = tempfile::tempdir().unwrap();
        for sparse in [Sparse::TopK { k: 20 }, Sparse::Sampling { draws: 50, seed: 3 }] {
            let path = dir.path().join(format!("{sparse}"));
            let row = |i: usize| TokenRow { key: tokens_key(&[i as u32], &[true]), positions: positions(i, sparse) };
            let all: Vec<TokenRow> = (0..100).map(row).collect();
            let write = || -> String {
                let (mut writer, known) = match CaptureWriter::open(&path, of_tokens(100, sparse)).unwrap() {
                    Started::Open(writer, known) => (writer, known),
                    Started::Done(_) => panic!("it was done"),
                };
                all[known.len()..].chunks(CHUNK).for_each(|chunk| writer.push(chunk).unwrap());
                writer.finish().unwrap()
            };
            let digest = write();
            let capture = Capture::<TokenRow>::load(&path).unwrap();
            assert_eq!((capture.rows.len(), &capture.digest), (100, &digest));
            for (read, want) in capture.rows.iter().zip(&all) {
                assert_eq!((&read.key, read.positions.len()), (&want.key, want.positions.len()));
                for (read, want) in read.positions.iter().zip(&want.positions) {
                    assert_eq!((&read.tokens, read.agrees), (&want.tokens, want.agrees));
                    for (a, b) in read.log_probs().iter().zip(want.log_probs()) {
                        assert!((a - b).abs() < 2e-3, "{a} {b}");
                    }
                    let sum: f32 = read.log_probs().iter().map(|l| l.exp()).sum();
                    let tail = matches!(&read.told, Told::TopK { log_tail, .. } if log_tail.is_finite());
                    assert!((sum - if tail { 0.9 } else { 1.0 }).abs() < 2e-2, "{sum}");
                }
            }
            // Torn anywhere, it goes on to the same bytes; changed anywhere, it is not read.
            let bytes = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            for cut in (0..bytes.len()).step_by(97) {
                fs::write(partial_of(&path), &bytes[..cut]).unwrap();
                write();
                assert!(fs::read(&path).unwrap() == bytes, "cut at {cut}");
                fs::remove_file(&path).unwrap();
            }
            for at in (0..bytes.len()).step_by(31) {
                let mut changed = bytes.clone();
                changed[at] ^= 4;
                fs::write(&path, &changed).unwrap();
                assert!(Capture::<TokenRow>::load(&path).is_err(), "byte {at}");
            }
            fs::write(&path, &bytes).unwrap();
            assert_eq!(header_of(&path).unwrap().sparse, Some(sparse));
            let e = Capture::<Row>::load(&path).unwrap_err().to_string();
            assert!(e.contains("holds token_logits, and label_posteriors are wanted"), "{e}");
        }
    }

    #[test]
    fn what_is_no_distribution_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let sparse = Sparse::TopK { k: 2 };
        let Started::Open(mut writer, _) = CaptureWriter::open(&dir.path().join("t"), of_tokens(1, sparse)).unwrap()
        else {
            panic!("it was done")
        };
        let told = |log_probs: Vec<f32>| Told::TopK { log_probs, log_tail: -1.0 };
        for (tokens, told) in [
            (vec![], told(vec![])),
            (vec![2, 2], told(vec![-1.0, -2.0])),
            (vec![3, 2], told(vec![-1.0, -2.0])),
            (vec![3], told(vec![f32::NAN])),
            (vec![3], told(vec![])),
            (vec![3], Told::Drawn(vec![1])),
        ] {
            let positions = vec![Position { agrees: true, tokens, told }];
            assert!(writer.push(&[TokenRow { key: tokens_key(&[1], &[true]), positions }]).is_err());
        }
    }
}
