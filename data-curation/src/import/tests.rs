//! What comes of a file of each format, of files that are meant to do harm, and of a folder that is written to while it is
//! read.

use super::source::Compression;
use super::watch::{Look, Watch, WatchPlan};
use super::*;
use crate::table::Slices;
use limbeck_artifact::event::Silent;
use polars::prelude::*;
use std::fs;
use std::io::Read;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats")
}

fn named(path: &Path) -> NamedFile {
    NamedFile { name: path.file_name().unwrap().to_string_lossy().into_owned(), path: path.to_path_buf() }
}

fn records(file: &NamedFile, reading: &Reading, limit: usize) -> (Format, Vec<Done>) {
    let (mut source, format) = open(file, reading, limit).unwrap();
    let mut batch = Batch::of(format);
    while let Some(record) = source.next_record().unwrap() {
        batch.push(record);
    }
    batch.end();
    (format, batch.read(format, &reading.columns, None))
}

/// One line a fact, so that a difference shows where it is.
fn told(format: Format, done: &[Done]) -> String {
    let mut out = format!("format {}\n", format.name());
    for Done { line, result } in done {
        match result {
            Err(reject) => {
                out.push_str(&format!("\nline {line} rejected: {}: {}\n", reject.reason.name(), reject.detail))
            }
            Ok((t, _)) => {
                out.push_str(&format!("\nline {line} {}\n", t.id));
                for m in &t.messages {
                    out.push_str(&format!("  {}\n", serde_json::to_string(m).unwrap()));
                }
                out.push_str(&format!("  -> {:?}\n", t.answer));
                out.push_str(&format!("  model {:?} finish {:?} at {:?}\n", t.model, t.finish_reason, t.at));
                out.push_str(&format!(
                    "  customer {:?} latency {:?} tokens {:?} {:?} feedback {:?}\n",
                    t.customer, t.latency_ms, t.prompt_tokens, t.completion_tokens, t.feedback
                ));
                t.thread.iter().for_each(|thread| out.push_str(&format!("  thread {thread:?}\n")));
            }
        }
    }
    out
}

/// `LIMBECK_BLESS=1 cargo test` writes what is read as what is wanted.
fn check(name: &str, reading: &Reading) {
    let (format, done) = records(&named(&fixtures().join(name)), reading, MAX_LINE_BYTES);
    let got = told(format, &done);
    let path = fixtures().join(format!("{name}.read"));
    if std::env::var_os("LIMBECK_BLESS").is_some() {
        fs::write(&path, &got).unwrap();
    }
    let want = fs::read_to_string(&path).unwrap_or_default();
    assert!(got == want, "{name} is read as\n{got}\nand was read as\n{want}");
}

#[test]
fn every_format_is_told_and_read_as_it_was() {
    let mut seen = std::collections::BTreeSet::new();
    for (name, format) in [
        ("openai.jsonl", Format::OpenAi),
        ("openai-stored.json", Format::OpenAi),
        ("otel-spans.json", Format::Otel),
        ("otel-collector.jsonl", Format::Otel),
        ("otel-sdk.jsonl", Format::Otel),
        ("otel-logs.jsonl", Format::Otel),
        ("openinference-otlp.json", Format::OpenInference),
        ("phoenix-spans.json", Format::OpenInference),
        ("phoenix-table.jsonl", Format::OpenInference),
        ("langfuse-blob.jsonl", Format::Langfuse),
        ("langfuse-trace.json", Format::Langfuse),
        ("langfuse.csv", Format::Langfuse),
        ("langsmith.jsonl", Format::LangSmith),
        ("tensorzero.jsonl", Format::TensorZero),
        ("openpipe.jsonl", Format::OpenPipe),
        ("sharegpt.json", Format::ShareGpt),
        ("alpaca.json", Format::Alpaca),
    ] {
        let (found, done) = records(&named(&fixtures().join(name)), &Reading::default(), MAX_LINE_BYTES);
        assert_eq!(found, format, "{name}");
        assert!(done.iter().any(|d| d.result.is_ok()), "{name} holds no call");
        check(name, &Reading::default());
        seen.insert(format);
    }
    assert_eq!(seen.len() + 1, Format::ALL.len(), "a format without a fixture; columns has its own test");
}

fn columns(map: &[(&str, &str)]) -> Reading {
    let mut reading = Reading::default();
    map.iter().for_each(|(field, column)| reading.columns.set(field, column).unwrap());
    reading
}

#[test]
fn columns_are_read_as_they_are_mapped() {
    let map =
        [("id", "Ticket"), ("input", "Text, as written"), ("output", "Queue"), ("time", "When"), ("latency_ms", "ms")];
    check("tickets.csv", &columns(&map));
    let map = [("input", "payload.question"), ("output", "result.label"), ("customer", "who")];
    check("own.jsonl", &columns(&map));
    let mut none = Columns::default();
    assert!(none.set("inptu", "x").unwrap_err().contains("input"));
}

#[test]
fn parquet_is_read_in_pieces_and_as_the_format_that_its_columns_have() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runs.parquet");
    let n = 3000;
    let text = |f: &dyn Fn(usize) -> String| (0..n).map(f).collect::<Vec<_>>();
    let mut frame = DataFrame::new(
        n,
        vec![
            Column::new("id".into(), text(&|i| format!("run-{i}"))),
            Column::new("run_type".into(), text(&|i| if i % 10 == 9 { "chain" } else { "llm" }.to_string())),
            Column::new(
                "inputs".into(),
                text(&|i| format!(r#"{{"messages":[{{"role":"user","content":"message {i}"}}]}}"#)),
            ),
            Column::new("outputs".into(), text(&|i| format!(r#"{{"output":"label {}"}}"#, i % 7))),
            Column::new("prompt_tokens".into(), (0..n as i64).collect::<Vec<_>>()),
        ],
    )
    .unwrap();
    let file = fs::File::create(&path).unwrap();
    polars_io::parquet::write::ParquetWriter::new(file).with_row_group_size(Some(700)).finish(&mut frame).unwrap();
    let (format, done) = records(&named(&path), &Reading::default(), MAX_LINE_BYTES);
    assert_eq!((format, done.len()), (Format::LangSmith, n));
    for (i, done) in done.iter().enumerate() {
        assert_eq!(done.line, i as u64 + 1);
        match &done.result {
            Ok((trace, _)) => {
                assert_eq!((trace.id.clone(), trace.prompt_tokens), (format!("run-{i}"), Some(i as u64)));
                assert_eq!(trace.messages[0].content, format!("message {i}"));
            }
            Err(reject) => assert!(i % 10 == 9 && reject.reason == RejectReason::NotACall),
        }
    }
}

#[test]
fn what_was_imported_can_be_imported_again() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |traces, out: &str| ImportPlan {
        traces,
        redact: false,
        redaction: RedactOptions::default(),
        max_line_bytes: MAX_LINE_BYTES,
        out: dir.path().join(out),
    };
    let first = plan(vec![named(&fixtures().join("openai.jsonl"))], "a");
    let summary = import(&first, &Silent).unwrap();
    let again = plan(vec![named(&dir.path().join("a/accepted.parquet"))], "b");
    let second = import(&again, &Silent).unwrap();
    assert_eq!((second.accepted, second.rejects()), (summary.accepted, 0));
    assert_eq!(second.formats["accepted.parquet"], "columns");
    let traces = |out: &str| {
        rows_of(&dir.path().join(out).join("accepted.parquet")).into_iter().map(|row| row.trace).collect::<Vec<_>>()
    };
    assert_eq!(traces("a"), traces("b"));
}

fn rows_of(path: &Path) -> Vec<Row> {
    Slices::open(path, None).unwrap().flat_map(|slice| table::rows(&slice.unwrap()).unwrap()).collect()
}

fn call(n: usize) -> String {
    format!(
        r#"{{"id":"t{n}","messages":[{{"role":"user","content":"message {n}"}},{{"role":"assistant","content":"yes"}}]}}"#
    )
}

/// Compressed as command-line tools do it.
fn compressed(bytes: &[u8], how: Compression) -> Vec<u8> {
    let mut out = Vec::new();
    match how {
        Compression::Gzip => {
            flate2::bufread::GzEncoder::new(bytes, flate2::Compression::default()).read_to_end(&mut out).unwrap();
        }
        Compression::Zstd => out = zstd::encode_all(bytes, 3).unwrap(),
        Compression::None => out.extend_from_slice(bytes),
    }
    out
}

fn reasons(path: &Path, limit: usize) -> (usize, Vec<(u64, &'static str)>) {
    let (_, done) = records(&named(path), &Reading::default(), limit);
    let bad = done.iter().filter_map(|d| Some((d.line, d.result.as_ref().err()?.reason.name())));
    (done.iter().filter(|d| d.result.is_ok()).count(), bad.collect())
}

#[test]
fn compressed_files_are_read_and_damaged_ones_to_where_they_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let log: String = (0..5000).map(|n| call(n) + "\n").collect();
    for (how, name) in [(Compression::Gzip, "a.jsonl.gz"), (Compression::Zstd, "a.jsonl.zst")] {
        let path = dir.path().join(name);
        let mut bytes = compressed(log.as_bytes(), how);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(reasons(&path, MAX_LINE_BYTES), (5000, vec![]), "{name}");
        // Two that were put one after the other are one log.
        fs::write(&path, [bytes.clone(), bytes.clone()].concat()).unwrap();
        assert_eq!(reasons(&path, MAX_LINE_BYTES).0, 10_000, "{name}");
        bytes.truncate(bytes.len() / 2);
        fs::write(&path, &bytes).unwrap();
        let (good, bad) = reasons(&path, MAX_LINE_BYTES);
        assert_eq!(bad, [(0, "damaged_file")], "{name}");
        assert!(good > 500 && good < 5000, "{name}: {good}");
        let middle = bytes.len() / 2;
        bytes[middle..middle + 40].fill(0x55);
        fs::write(&path, &bytes).unwrap();
        assert!(reasons(&path, MAX_LINE_BYTES).1.iter().any(|(_, why)| *why == "damaged_file"), "{name}");
    }
}

#[test]
fn a_digest_is_the_files_whatever_was_read_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let log: String = (0..100).map(|n| call(n) + "\n").collect();
    let mut cut = compressed(log.as_bytes(), Compression::Gzip);
    cut.truncate(cut.len() / 2);
    cut.extend_from_slice(&[7; 200_000]);
    for (name, bytes) in [("a.jsonl", log.clone().into_bytes()), ("b.jsonl.gz", cut)] {
        let path = dir.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let (mut source, _) = open(&named(&path), &Reading::default(), 1000).unwrap();
        while source.next_record().unwrap().is_some() {}
        assert_eq!(source.finish().unwrap(), limbeck_artifact::digest::sha256_hex(&bytes), "{name}");
    }
}

#[test]
fn hostile_files_of_every_container_cost_their_own_records_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    // Lines: 100 MB of one, deep nesting, NUL, a lone surrogate, no UTF-8, nothing but blanks.
    let mut lines = (call(1) + "\n").into_bytes();
    lines.extend(std::iter::repeat_n(b'x', 100 << 20));
    lines.push(b'\n');
    lines.extend("[".repeat(1 << 20).bytes());
    lines.extend(b"\n\0\0\0\n{\"messages\":\"\\ud800\"}\n\xff\xfe\n   \n");
    lines.extend(call(2).bytes());
    let (good, bad) = reasons(&path("lines.jsonl", &lines), MAX_LINE_BYTES);
    assert_eq!(good, 2);
    let want = ["line_too_long", "too_deep", "invalid_json", "invalid_json", "invalid_utf8"];
    assert_eq!(bad.iter().map(|(_, why)| *why).collect::<Vec<_>>(), want);
    assert_eq!(bad.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    // A document: an element of 20 MB, a deep one, one that is no object, an end that never comes.
    let mut list = format!("[\n{},\n", call(1)).into_bytes();
    list.extend(format!("{{\"x\":\"{}\"}},\n", "y".repeat(20 << 20)).bytes());
    list.extend(format!("{}1{},\n", "[".repeat(5000), "]".repeat(5000)).bytes());
    list.extend(format!("7,\n{},\n{{\"messages\":[", call(2)).bytes());
    let (good, bad) = reasons(&path("list.json", &list), MAX_LINE_BYTES);
    assert_eq!(good, 2);
    let want = ["line_too_long", "too_deep", "wrong_type", "invalid_json"];
    assert_eq!(bad.iter().map(|(_, why)| *why).collect::<Vec<_>>(), want);
    assert_eq!(bad.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4, 5, 7]);
    // A table: a quote that nobody closes, too few fields, a field of 20 MB.
    let mut csv = b"input,output\nhello,yes\nonly one\n".to_vec();
    csv.extend(format!("{},no\nbye,\"{}", "z".repeat(20 << 20), "q,\n".repeat(400_000)).bytes());
    csv.extend(b"\nlast,yes\n");
    let (good, bad) = reasons(&path("table.csv", &csv), 1 << 20);
    assert_eq!(bad[..2], [(3, "wrong_type"), (4, "line_too_long")]);
    assert!(bad[2] == (5, "line_too_long") && good >= 2, "{good} {bad:?}");
    // Files that are not what they say, and empty ones.
    for (name, bytes) in
        [("a.jsonl", &b""[..]), ("b.json", b"\0\0\0\0"), ("c.csv", b"\xff\xfe"), ("d.jsonl.gz", b"no gzip")]
    {
        let (good, _) = reasons(&path(name, bytes), MAX_LINE_BYTES);
        assert_eq!(good, 0, "{name}");
    }
    let e = open(&named(&path("e.parquet", b"PAR1 and nothing else")), &Reading::default(), 1000).err().unwrap();
    assert!(e.to_string().contains("e.parquet"), "{e}");
}

struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        Folder { dir }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join("logs").join(name)
    }

    fn append(&self, name: &str, text: &str) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.log(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn lines(&self, name: &str, numbers: std::ops::Range<usize>) {
        self.append(name, &numbers.map(|n| call(n) + "\n").collect::<String>());
    }

    fn watch(&self) -> Watch {
        self.watch_for(watch::PATIENCE)
    }

    fn watch_for(&self, patience: std::time::Duration) -> Watch {
        Watch::open(WatchPlan {
            folder: self.dir.path().join("logs"),
            out: self.dir.path().join("out"),
            redact: false,
            max_line_bytes: 100_000,
            reading: Reading::default(),
            patience,
        })
        .unwrap()
    }

    /// Every look by a watcher of its own, as after a kill.
    fn look(&self) -> Look {
        self.watch().look().unwrap()
    }

    /// The numbers of the calls that were accepted so far, in order.
    fn accepted(&self) -> Vec<usize> {
        let mut numbers = Vec::new();
        for path in watch::segments(&self.dir.path().join("out")).unwrap() {
            for row in rows_of(&path) {
                numbers.push(row.trace.id[1..].parse().unwrap());
            }
        }
        numbers
    }
}

#[test]
fn a_watched_folder_is_read_once_through_growth_rotation_and_restarts() {
    let f = Folder::new();
    assert_eq!(f.look(), Look::default());
    f.lines("app.log", 0..100);
    f.append("app.log", &call(100)[..30]);
    assert_eq!(f.look().accepted, 100);
    assert_eq!(f.look(), Look::default(), "half a line is no line");
    f.append("app.log", &format!("{}\nno json\n", &call(100)[30..]));
    f.lines("other.jsonl", 1000..1005);
    let look = f.look();
    assert_eq!((look.accepted, look.rejected), (6, 1));
    // Renamed, and begun anew under the old name.
    fs::rename(f.log("app.log"), f.log("app.log.1")).unwrap();
    f.lines("app.log.1", 101..103);
    f.lines("app.log", 103..110);
    assert_eq!(f.look().accepted, 9);
    // Compressed after its turn; the plain file goes.
    let old = fs::read(f.log("app.log.1")).unwrap();
    fs::write(f.log("app.log.1.gz"), compressed(&old, Compression::Gzip)).unwrap();
    fs::remove_file(f.log("app.log.1")).unwrap();
    assert_eq!(f.look(), Look::default());
    // Copied and cut to nothing.
    fs::copy(f.log("app.log"), f.log("app.log.2")).unwrap();
    fs::write(f.log("app.log"), "").unwrap();
    f.lines("app.log", 110..115);
    assert_eq!(f.look().accepted, 5);
    // A compressed file that nobody saw plain.
    let new: String = (115..120).map(|n| call(n) + "\n").collect();
    fs::write(f.log("late.jsonl.zst"), compressed(new.as_bytes(), Compression::Zstd)).unwrap();
    assert_eq!(f.look().accepted, 5);
    let mut got = f.accepted();
    got.sort_unstable();
    assert_eq!(got, (0..120).chain(1000..1005).collect::<Vec<_>>());
    assert_eq!(f.look(), Look::default());
}

#[test]
fn a_watcher_killed_before_its_commit_reads_again_and_after_it_does_not() {
    let f = Folder::new();
    f.lines("app.log", 0..10);
    f.look();
    let state = fs::read(f.dir.path().join("out/watch.json")).unwrap();
    f.lines("app.log", 10..20);
    f.look();
    // As if killed after the files and before the commit.
    fs::write(f.dir.path().join("out/watch.json"), state).unwrap();
    f.lines("app.log", 20..30);
    f.look();
    assert_eq!(f.accepted(), (0..30).collect::<Vec<_>>());
    assert_eq!(watch::segments(&f.dir.path().join("out")).unwrap().len(), 2);
    let first = f.watch();
    let plan = WatchPlan {
        folder: f.dir.path().join("logs"),
        out: f.dir.path().join("out"),
        redact: false,
        max_line_bytes: 1000,
        reading: Reading::default(),
        patience: watch::PATIENCE,
    };
    let e = Watch::open(plan).err().unwrap();
    assert!(e.to_string().contains("another process"), "{e}");
    drop(first);
}

#[test]
fn a_watched_log_may_be_of_any_format_and_hold_anything() {
    let f = Folder::new();
    f.append("spans.jsonl", &fs::read_to_string(fixtures().join("otel-collector.jsonl")).unwrap());
    f.append("table.csv", "input,output\na,b\n");
    f.append("long.log", &format!("{}\n", "x".repeat(200_000)));
    f.append("long.log", &"y".repeat(300_000));
    let look = f.look();
    assert_eq!((look.accepted, look.strange), (3, vec!["table.csv".to_string()]));
    assert_eq!(look.rejected, 3, "a broken record, the rest of its envelope, and the line that is too long");
    f.append("long.log", "\n");
    assert_eq!(f.look().rejected, 1);
}

/// A log record of one event, as collectors write it.
fn event(span: usize, name: &str, content: &str) -> String {
    let text = |key: &str, value: &str| serde_json::json!({"key": key, "value": {"stringValue": value}});
    let body = match name {
        "gen_ai.choice" => vec![
            serde_json::json!({"key": "index", "value": {"intValue": "0"}}),
            serde_json::json!({"key": "message", "value": {"kvlistValue": {"values": [text("content", content)]}}}),
        ],
        _ => vec![text("content", content)],
    };
    serde_json::json!({
        "timeUnixNano": "1770109200000000000", "spanId": format!("{span:016x}"),
        "body": {"kvlistValue": {"values": body}},
        "attributes": [text("event.name", name), text("gen_ai.system", "openai")],
    })
    .to_string()
        + "\n"
}

/// What was accepted so far: message and answer, file and line.
fn told_so_far(f: &Folder) -> Vec<(String, String, String, u64)> {
    let rows = watch::segments(&f.dir.path().join("out")).unwrap().into_iter().flat_map(|path| rows_of(&path));
    rows.map(|row| (row.trace.messages[0].content.clone(), row.trace.answer.clone(), row.file, row.line)).collect()
}

#[test]
fn a_calls_events_meet_across_looks_files_and_restarts() {
    let f = Folder::new();
    f.append("a.log", &(event(1, "gen_ai.user.message", "my card") + &event(2, "gen_ai.user.message", "my pin")));
    assert_eq!(f.look(), Look { bytes: f.log("a.log").metadata().unwrap().len(), ..Look::default() });
    let kept = fs::read_to_string(f.dir.path().join("out/watch.json")).unwrap();
    assert!(kept.contains("waiting") && !kept.contains("my card"), "where it stands, not what it says: {kept}");
    // The answer comes in the next file, to a watcher that was started anew; then one within a watcher's life.
    f.append("b.log", &event(1, "gen_ai.choice", "lost_card"));
    let mut watch = f.watch();
    assert_eq!(watch.look().unwrap().accepted, 1);
    assert_eq!(watch.look().unwrap(), Look::default());
    f.append("c.log", &event(3, "gen_ai.user.message", "a fee"));
    assert_eq!((watch.look().unwrap().accepted, watch.state.waiting.len()), (0, 2));
    f.append("c.log", &(event(3, "gen_ai.choice", "fee") + &event(2, "gen_ai.choice", "pin")));
    assert_eq!((watch.look().unwrap().accepted, watch.state.waiting.len()), (2, 0));
    drop(watch);
    let told = |message: &str, answer: &str, file: &str, line| (message.into(), answer.into(), file.into(), line);
    let expect =
        [told("my card", "lost_card", "b.log", 1), told("a fee", "fee", "c.log", 1), told("my pin", "pin", "c.log", 3)];
    assert_eq!(told_so_far(&f), expect);
    assert_eq!(f.look(), Look::default());
    assert_eq!(f.watch().state.traces_in, 3);
}

#[test]
fn what_never_ends_is_given_up_with_its_place() {
    let f = Folder::new();
    f.append("a.log", &(event(8, "gen_ai.user.message", "my card") + &event(9, "gen_ai.user.message", "my pin")));
    f.append("b.log", &event(7, "gen_ai.user.message", "gone"));
    f.look();
    // One log is gone before its answer comes: what it held can't be read again.
    fs::remove_file(f.log("b.log")).unwrap();
    f.append("c.log", &event(7, "gen_ai.choice", "late"));
    let look = f.look();
    assert_eq!((look.accepted, look.rejected), (0, 2), "the lost half, and an answer to nothing");
    // The others wait no longer than they may.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let mut watch = f.watch_for(std::time::Duration::ZERO);
    assert_eq!(watch.look().unwrap().rejected, 2);
    assert_eq!((watch.state.waiting.len(), watch.state.traces_in), (0, 4));
    let log = fs::read_to_string(f.dir.path().join("out/rejected-000002.jsonl")).unwrap();
    let lines: Vec<Rejected> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |i: usize| (lines[i].file.as_str(), lines[i].line, lines[i].reason);
    assert_eq!(of(0), ("a.log", 1, RejectReason::MissingResponse));
    assert_eq!(of(1), ("a.log", 2, RejectReason::MissingResponse));
}
