//! The records of JSON documents, one after another, without the documents in memory: elements of a list, of a list under
//! a known key, or of OTLP's lists within lists. A record is a stretch of bytes; nothing is parsed here.

use std::io::{self, BufRead};

/// Lists that hold records: OpenAI's and others' `data`, Langfuse's, LangSmith's, and what OTLP ends in.
const LISTS: [&str; 8] = ["data", "observations", "runs", "spans", "logRecords", "log_records", "items", "traces"];
/// Lists whose elements hold further lists: OTLP's levels.
const OUTER: [&str; 10] = [
    "resourceSpans",
    "resource_spans",
    "scopeSpans",
    "scope_spans",
    "instrumentationLibrarySpans",
    "batches",
    "resourceLogs",
    "scopeLogs",
    "resource_logs",
    "scope_logs",
];

/// Levels of lists and objects that are walked into; records themselves are not counted.
const MAX_LEVELS: usize = 32;
/// Longest key that is looked at.
const MAX_KEY: usize = 256;

/// Whether a key's list is walked into, and whether its elements are.
fn list(key: &[u8]) -> Option<bool> {
    let is = |names: &[&str]| names.iter().any(|n| n.as_bytes() == key);
    if is(&OUTER) { Some(true) } else { is(&LISTS).then_some(false) }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'b> {
    /// `line` is where it begins, from 1.
    Record {
        line: u64,
        bytes: &'b [u8],
    },
    TooLong {
        line: u64,
        bytes: u64,
    },
    /// No JSON from here on, to the next line that begins a document.
    Broken {
        line: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// Elements are records, or are walked into.
    List {
        outer: bool,
    },
    Object,
}

/// What the documents are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each document is a record, or a list of records.
    Records,
    /// Each document, or each element of a list, is an object that holds lists of records.
    Containers,
}

pub struct Walk<R> {
    from: R,
    shape: Shape,
    limit: usize,
    line: u64,
    levels: Vec<Level>,
    record: Vec<u8>,
}

impl<R: BufRead> Walk<R> {
    pub fn new(from: R, shape: Shape, limit: usize) -> Walk<R> {
        Walk { from, shape, limit, line: 1, levels: Vec::new(), record: Vec::new() }
    }

    /// The next record; none at the end.
    ///
    /// # Errors
    /// The reader's.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece<'_>>> {
        loop {
            let Some(byte) = self.peek()? else {
                let open = !self.levels.is_empty();
                self.levels.clear();
                return Ok(open.then_some(Piece::Broken { line: self.line }));
            };
            if byte.is_ascii_whitespace() || (byte == b',' && !self.levels.is_empty()) {
                self.skip()?;
                continue;
            }
            let line = self.line;
            let going_on = match self.levels.last().copied() {
                None => match byte {
                    b'[' => self.enter(Level::List { outer: self.shape == Shape::Containers })?,
                    b'{' if self.shape == Shape::Containers => self.enter(Level::Object)?,
                    b'{' => return self.value().map(Some),
                    // A byte order mark, or the separator of JSON text sequences (RFC 7464).
                    0xef | 0xbb | 0xbf | 0x1e => {
                        self.skip()?;
                        true
                    }
                    _ => false,
                },
                Some(Level::List { outer }) => match byte {
                    b']' => self.leave()?,
                    b'{' if outer => self.enter(Level::Object)?,
                    b'}' => false,
                    _ => return self.value().map(Some),
                },
                Some(Level::Object) => match byte {
                    b'}' => self.leave()?,
                    b'"' => self.field()?,
                    _ => false,
                },
            };
            if !going_on {
                self.levels.clear();
                self.resynchronise()?;
                return Ok(Some(Piece::Broken { line }));
            }
        }
    }

    fn enter(&mut self, level: Level) -> io::Result<bool> {
        self.skip()?;
        self.levels.push(level);
        Ok(self.levels.len() <= MAX_LEVELS)
    }

    fn leave(&mut self) -> io::Result<bool> {
        self.skip()?;
        self.levels.pop();
        Ok(true)
    }

    /// A key and what comes after it: a list to walk into, or a value that holds no records.
    fn field(&mut self) -> io::Result<bool> {
        self.skip()?;
        let mut key = Vec::new();
        let mut escaped = false;
        loop {
            let Some(byte) = self.peek()? else { return Ok(false) };
            self.skip()?;
            match byte {
                b'"' if !escaped => break,
                b'\n' => return Ok(false),
                _ if key.len() < MAX_KEY => key.push(byte),
                _ => {}
            }
            escaped = byte == b'\\' && !escaped;
        }
        if self.after_space()? != Some(b':') {
            return Ok(false);
        }
        self.skip()?;
        match (self.after_space()?, list(&key)) {
            (None, _) => Ok(false),
            (Some(b'['), Some(outer)) => self.enter(Level::List { outer }),
            _ => self.copy(false).map(|(_, whole)| whole),
        }
    }

    fn after_space(&mut self) -> io::Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.skip()?;
        }
        Ok(None)
    }

    /// A value as a record. One that ends with the file is given as it is, for the parser to say so.
    fn value(&mut self) -> io::Result<Piece<'_>> {
        let line = self.line;
        let (bytes, whole) = self.copy(true)?;
        if !whole {
            self.levels.clear();
        }
        Ok(match bytes > self.limit as u64 {
            true => Piece::TooLong { line, bytes },
            false => Piece::Record { line, bytes: &self.record },
        })
    }

    /// Goes to the end of a value; its bytes are kept when asked and not too many. False when the file ends first.
    fn copy(&mut self, keep: bool) -> io::Result<(u64, bool)> {
        self.record.clear();
        let (mut depth, mut bytes) = (0usize, 0u64);
        let (mut in_text, mut escaped) = (false, false);
        loop {
            let piece = self.from.fill_buf()?;
            if piece.is_empty() {
                return Ok((bytes, depth == 0 && !in_text));
            }
            let mut end = None;
            for (i, byte) in piece.iter().enumerate() {
                if in_text {
                    match byte {
                        b'"' if !escaped => in_text = false,
                        _ => escaped = *byte == b'\\' && !escaped,
                    }
                    if !in_text {
                        escaped = false;
                        if depth == 0 {
                            end = Some(i + 1);
                            break;
                        }
                    }
                    continue;
                }
                match byte {
                    b'"' => in_text = true,
                    b'{' | b'[' => depth += 1,
                    // The end of what holds a bare number or word.
                    b'}' | b']' | b',' if depth == 0 => {
                        end = Some(i);
                        break;
                    }
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            end = Some(i + 1);
                            break;
                        }
                    }
                    _ => {}
                }
            }
            let used = end.unwrap_or(piece.len());
            bytes += used as u64;
            if keep && bytes <= self.limit as u64 {
                self.record.extend_from_slice(&piece[..used]);
            }
            self.line += piece[..used].iter().filter(|b| **b == b'\n').count() as u64;
            self.from.consume(used);
            if end.is_some() {
                return Ok((bytes, true));
            }
        }
    }

    /// To the next line whose first byte can begin a document.
    fn resynchronise(&mut self) -> io::Result<()> {
        let mut first = false;
        while let Some(byte) = self.peek()? {
            if first && matches!(byte, b'{' | b'[') {
                return Ok(());
            }
            first = byte == b'\n';
            self.skip()?;
        }
        Ok(())
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            match self.from.fill_buf() {
                Ok(piece) => return Ok(piece.first().copied()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn skip(&mut self) -> io::Result<()> {
        if self.peek()? == Some(b'\n') {
            self.line += 1;
        }
        self.from.consume(1);
        Ok(())
    }
}

/// How a file that begins with `head` is to be read: none for JSON lines, one record a line.
pub fn shape(head: &[u8]) -> Option<Shape> {
    let head = head.strip_prefix("\u{feff}".as_bytes()).unwrap_or(head);
    let start = head.iter().position(|b| !b.is_ascii_whitespace())?;
    let head = &head[start..];
    let object = match head[0] {
        b'{' => head,
        b'[' => {
            let inner = head[1..].iter().position(|b| !b.is_ascii_whitespace())? + 1;
            if head[inner] != b'{' {
                return Some(Shape::Records);
            }
            &head[inner..]
        }
        _ => return None,
    };
    let (holds_lists, several_lines) = scan(object);
    match (holds_lists, head[0] == b'[' || several_lines) {
        (true, _) => Some(Shape::Containers),
        (false, true) => Some(Shape::Records),
        (false, false) => None,
    }
}

/// Of the object that `bytes` begin with: whether a key of it holds a list of records, and whether it takes several lines.
fn scan(bytes: &[u8]) -> (bool, bool) {
    let (mut depth, mut in_text, mut escaped, mut several) = (0usize, false, false, false);
    let (mut text_start, mut last_text) = (0, 0..0);
    let mut holds = false;
    for (i, byte) in bytes.iter().enumerate() {
        if in_text {
            match byte {
                b'"' if !escaped => (in_text, last_text) = (false, text_start..i),
                _ => {}
            }
            escaped = *byte == b'\\' && !escaped && in_text;
            continue;
        }
        match byte {
            b'"' => (in_text, text_start, escaped) = (true, i + 1, false),
            b'\n' => several = true,
            b'{' => depth += 1,
            b'[' => {
                // A list of objects right under the object, after the key before it.
                let colon = bytes[last_text.end.min(i)..i].iter().filter(|b| **b == b':').count() == 1;
                let inner = bytes[i + 1..].iter().find(|b| !b.is_ascii_whitespace());
                let outer = list(&bytes[last_text.clone()]);
                holds |= depth == 1 && colon && (outer == Some(true) || (outer.is_some() && inner == Some(&b'{')));
                depth += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            _ => {}
        }
    }
    (holds, several)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str, shape: Shape, limit: usize) -> Vec<String> {
        let mut all: Vec<Vec<String>> = Vec::new();
        for size in [1, 2, 3, 7, 4096] {
            let mut walk = Walk::new(io::BufReader::with_capacity(size, text.as_bytes()), shape, limit);
            let mut out = Vec::new();
            while let Some(piece) = walk.next_piece().unwrap() {
                out.push(match piece {
                    Piece::Record { line, bytes } => format!("{line}:{}", String::from_utf8_lossy(bytes)),
                    Piece::TooLong { line, bytes } => format!("{line}: too long, {bytes}"),
                    Piece::Broken { line } => format!("{line}: broken"),
                });
                assert!(out.len() < 100, "{out:?}");
            }
            all.push(out);
        }
        assert!(all.windows(2).all(|w| w[0] == w[1]), "the cut between two reads shows: {all:?}");
        all.remove(0)
    }

    #[test]
    fn lists_are_taken_apart_wherever_they_stand() {
        use Shape::*;
        let cases: [(&str, Shape, &[&str]); 9] = [
            ("[{\"a\":\"]}\\\"\"},\n {\"b\":[1,2]} , 3]", Records, &["1:{\"a\":\"]}\\\"\"}", "2:{\"b\":[1,2]}", "2:3"]),
            ("{\n \"a\": 1\n}\n{\n \"a\": 2\n}\n", Records, &["1:{\n \"a\": 1\n}", "4:{\n \"a\": 2\n}"]),
            (
                "{\"object\":\"list\",\"x\":[{}],\"data\":[{\"a\":1},{}],\"more\":false}",
                Containers,
                &["1:{\"a\":1}", "1:{}"],
            ),
            (
                "{\"resourceSpans\":[{\"resource\":{\"spans\":[]},\"scopeSpans\":[{\"spans\":[{\"a\":1}]},{\"spans\":[{\"b\":1}]}]}]}\n\
                 {\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{\"c\":1}]}]}]}",
                Containers,
                &["1:{\"a\":1}", "1:{\"b\":1}", "2:{\"c\":1}"],
            ),
            ("[]", Records, &[]),
            ("", Containers, &[]),
            ("[{\"a\":1},{\"b\"", Records, &["1:{\"a\":1}", "1:{\"b\""]),
            (
                "{\"data\":[{\"a\":1}}\nnonsense\n{\"data\":[{\"b\":1}]}",
                Containers,
                &["1:{\"a\":1}", "1: broken", "3:{\"b\":1}"],
            ),
            ("{\"data\":[{\"a\":1}", Containers, &["1:{\"a\":1}", "1: broken"]),
        ];
        for (text, shape, want) in cases {
            assert_eq!(pieces(text, shape, 1000), want, "{text}");
        }
        assert_eq!(pieces("[\"0123456789\",{}]", Records, 5), ["1: too long, 12", "1:{}"]);
    }

    #[test]
    fn a_file_is_told_from_its_head() {
        use Shape::*;
        let cases = [
            ("{\"messages\":[{\"role\":\"user\"}]}\n{\"a\":1}\n", None),
            ("{\"id\":\"t\",\"observations\":[\"a\",\"b\"]}\n", None),
            ("not json\n{\"a\":1}", None),
            ("", None),
            ("\u{feff} [\n {\"a\": 1}\n]", Some(Records)),
            ("{\n  \"a\": 1\n}", Some(Records)),
            ("{\"object\": \"list\", \"data\": [{", Some(Containers)),
            ("{\"resourceSpans\":[]}", Some(Containers)),
            ("[{\"trace\":{\"observations\":[{}]},\"observations\":[{}]}]", Some(Containers)),
            ("{\"metadata\":{\"data\":[{}]}}\n", None),
            ("{\"text\":\"data\",\"x\":[{}]}\n", None),
        ];
        for (head, want) in cases {
            assert_eq!(shape(head.as_bytes()), want, "{head}");
        }
    }

    #[test]
    fn what_is_no_json_never_loops() {
        let mut rng = crate::text::Rng::new(5);
        let alphabet = b"{}[]\",:\\ \nadt1";
        for _ in 0..4000 {
            let text: Vec<u8> = (0..rng.below(60)).map(|_| *rng.pick(alphabet)).collect();
            for shape in [Shape::Records, Shape::Containers] {
                let mut walk = Walk::new(text.as_slice(), shape, 20);
                let mut n = 0;
                while walk.next_piece().unwrap().is_some() {
                    n += 1;
                    assert!(n <= text.len() + 1, "{:?}", String::from_utf8_lossy(&text));
                }
            }
        }
    }
}
