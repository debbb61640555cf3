//! Comma-separated values as RFC 4180 writes them, read one record at a time in bounded memory. The one reader of this
//! program: trace tables and labelled data sets go through it.
//!
//! Quotes count where a field begins with one; within them commas, line breaks (as they stand, CRLF too) and doubled quotes
//! are content. Outside of them CRLF or LF ends a record, and an empty line is none. These are the rules of Python's
//! `csv` module, too.

use std::io::{self, BufRead};

/// A record, and the line where it begins, from 1.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    Fields {
        line: u64,
        fields: Vec<String>,
    },
    /// Longer than the limit; how many bytes it had.
    TooLong {
        line: u64,
        bytes: u64,
    },
    /// A field, counted from 0, is no UTF-8.
    NotUtf8 {
        line: u64,
        field: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    FieldStart,
    Bare,
    Quoted,
    /// After a quote within quotes: the field's end, or half of a doubled quote.
    Quote,
}

pub struct Records<R> {
    from: R,
    state: State,
}

struct State {
    delimiter: u8,
    limit: usize,
    line: u64,
    at: At,
    begun: u64,
    data: Vec<u8>,
    ends: Vec<usize>,
    bytes: u64,
    /// A field of this record was quoted: `""` alone on a line is a record.
    quoted: bool,
    /// The last byte is a carriage return outside of quotes.
    bare_cr: bool,
}

impl<R: BufRead> Records<R> {
    /// `limit` bounds the bytes of a record that are held.
    pub fn new(from: R, delimiter: u8, limit: usize) -> Records<R> {
        let state = State {
            delimiter,
            limit,
            line: 1,
            at: At::FieldStart,
            begun: 1,
            data: Vec::new(),
            ends: Vec::new(),
            bytes: 0,
            quoted: false,
            bare_cr: false,
        };
        Records { from, state }
    }

    /// The next record; none at the end.
    ///
    /// # Errors
    /// The reader's.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            let piece = match self.from.fill_buf() {
                Ok(piece) => piece,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if piece.is_empty() {
                return Ok(self.state.finish());
            }
            let ended = piece.iter().position(|byte| self.state.take(*byte));
            let used = ended.map_or(piece.len(), |at| at + 1);
            self.from.consume(used);
            if ended.is_some()
                && let Some(record) = self.state.finish()
            {
                return Ok(Some(record));
            }
        }
    }
}

impl State {
    /// True when the byte ended a record.
    fn take(&mut self, byte: u8) -> bool {
        if byte == b'\n' {
            self.line += 1;
        }
        self.bytes += 1;
        // A quote that nobody closed would swallow the file: beyond the limit any line break ends the record.
        let lost = self.bytes > self.limit as u64;
        let cr = std::mem::replace(&mut self.bare_cr, false);
        match (self.at, byte) {
            (_, b'\n') if lost => return true,
            (At::Quoted, b'"') => self.at = At::Quote,
            (At::Quoted, _) => self.push(byte, lost),
            (At::Quote, b'"') => {
                self.push(byte, lost);
                self.at = At::Quoted;
            }
            (At::FieldStart, b'"') => (self.at, self.quoted) = (At::Quoted, true),
            (_, b'\n') => {
                if cr {
                    self.data.pop();
                }
                return true;
            }
            (_, b) if b == self.delimiter => {
                self.ends.push(self.data.len());
                self.at = At::FieldStart;
            }
            (_, _) => {
                self.push(byte, lost);
                self.bare_cr = byte == b'\r' && !lost;
                self.at = At::Bare;
            }
        }
        false
    }

    fn push(&mut self, byte: u8, lost: bool) {
        if !lost {
            self.data.push(byte);
        }
    }

    /// The record that was gathered; none for an empty line.
    fn finish(&mut self) -> Option<Record> {
        let line = std::mem::replace(&mut self.begun, self.line);
        let bytes = std::mem::take(&mut self.bytes);
        let quoted = std::mem::take(&mut self.quoted);
        let mut data = std::mem::take(&mut self.data);
        let mut ends = std::mem::take(&mut self.ends);
        (self.at, self.bare_cr) = (At::FieldStart, false);
        if bytes > self.limit as u64 {
            return Some(Record::TooLong { line, bytes });
        }
        if bytes == 0 || (data.is_empty() && ends.is_empty() && !quoted) {
            return None;
        }
        ends.push(data.len());
        if line == 1 && data.starts_with("\u{feff}".as_bytes()) && ends[0] >= 3 {
            data.drain(..3);
            ends.iter_mut().for_each(|end| *end -= 3);
        }
        let mut fields = Vec::with_capacity(ends.len());
        let mut start = 0;
        for (field, end) in ends.into_iter().enumerate() {
            match std::str::from_utf8(&data[start..end]) {
                Ok(text) => fields.push(text.to_string()),
                Err(_) => return Some(Record::NotUtf8 { line, field }),
            }
            start = end;
        }
        Some(Record::Fields { line, fields })
    }
}

/// The records of a text.
pub fn parse(text: &str) -> Vec<Vec<String>> {
    let mut records = Records::new(text.as_bytes(), b',', usize::MAX);
    let mut out = Vec::new();
    // A slice is read without errors.
    while let Ok(Some(Record::Fields { fields, .. })) = records.next_record() {
        out.push(fields);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_pythons_csv_reads_them() {
        // Each answer is what `list(csv.reader(io.StringIO(text, newline="")))` gives, less the empty records.
        let cases: [(&str, &[&[&str]]); 12] = [
            (
                "text,category\r\n\"a, \"\"b\"\"\nc\",x\ny,z",
                &[&["text", "category"], &["a, \"b\"\nc", "x"], &["y", "z"]],
            ),
            ("a,b\r\n\r\n\nc,d\r\n", &[&["a", "b"], &["c", "d"]]),
            ("\"a\r\nb\",c\r\n", &[&["a\r\nb", "c"]]),
            ("a,\n,b\n", &[&["a", ""], &["", "b"]]),
            ("\"\"\nx\n", &[&[""], &["x"]]),
            ("a\"b\"c,d\n", &[&["a\"b\"c", "d"]]),
            ("\"a\"b,c\n", &[&["ab", "c"]]),
            ("\"a\r\"\r\n", &[&["a\r"]]),
            ("\"\"\"\",x", &[&["\"", "x"]]),
            ("a,b\n\"never closed,\nc", &[&["a", "b"], &["never closed,\nc"]]),
            ("\u{feff}a,b\n", &[&["a", "b"]]),
            ("", &[]),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_cut_between_two_reads_changes_nothing() {
        let text = "h1,h2\r\n\"a, \"\"b\"\"\r\nc\",x\r\n\r\nlast,\"\"";
        let want = parse(text);
        for size in 1..12 {
            let from = io::BufReader::with_capacity(size, text.as_bytes());
            let mut records = Records::new(from, b',', 1000);
            let mut got = Vec::new();
            while let Some(record) = records.next_record().unwrap() {
                let Record::Fields { fields, .. } = record else { panic!("{record:?}") };
                got.push(fields);
            }
            assert_eq!(got, want, "{size}");
        }
    }

    #[test]
    fn long_records_unclosed_quotes_and_bad_bytes_cost_one_record() {
        let mut text = b"a,b\n".to_vec();
        text.extend_from_slice(&[b'x'; 100]);
        text.extend_from_slice(b",y\n\"open ");
        text.extend_from_slice(&[b'z'; 100]);
        text.extend_from_slice(b"\nc,\xff\n\"d\ne\",f\n");
        let mut records = Records::new(text.as_slice(), b',', 50);
        let mut next = || records.next_record().unwrap();
        assert!(matches!(next(), Some(Record::Fields { line: 1, .. })));
        assert_eq!(next(), Some(Record::TooLong { line: 2, bytes: 103 }));
        assert!(matches!(next(), Some(Record::TooLong { line: 3, .. })));
        assert_eq!(next(), Some(Record::NotUtf8 { line: 4, field: 1 }));
        assert_eq!(next(), Some(Record::Fields { line: 5, fields: vec!["d\ne".into(), "f".into()] }));
        assert_eq!(next(), None);
    }
}
