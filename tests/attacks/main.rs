//! Hostile GGUF files, as the whole program meets them: each is refused in words that a person can act on, with an exit code that CI
//! can, in little memory, and nothing of it reaches the terminal as anything but text.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod gguf;
mod models;
#[path = "../fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Address space of the whole program, in KiB: it takes less than a third of it to look at an honest file.
const MEMORY_KIB: u64 = 512 << 10;
/// Whatever a file says, a message is short.
const LONGEST: usize = 16 << 10;
const FILE: &str = "hostile.gguf";

fn limbeck(dir: &Path, args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_limbeck");
    let mut command = match cfg!(target_os = "linux") {
        // No library call of std sets a limit.
        true => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\""), program]);
            shell
        }
        false => Command::new(program),
    };
    command.args(args).current_dir(dir).env("NO_COLOR", "1").env("RAYON_NUM_THREADS", "2").output().unwrap()
}

/// What was printed, after what must hold of it whatever the file was.
fn told(dir: &Path, args: &[&str], codes: &[i32], of: &str) -> (i32, String) {
    let out = limbeck(dir, args);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(out.stdout), text(out.stderr));
    let code = out.status.code();
    assert!(code.is_some_and(|code| codes.contains(&code)), "{of}, {args:?}: {code:?}\n{stdout}{stderr}");
    assert!(!stderr.contains("panicked"), "{of}, {args:?}: {stderr}");
    assert!(stdout.len() + stderr.len() < LONGEST, "{of}, {args:?}: {} bytes", stdout.len() + stderr.len());
    let hidden = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!stdout.contains(hidden) && !stderr.contains(hidden), "{of}, {args:?}: {stdout:?}{stderr:?}");
    (code.unwrap(), stdout)
}

/// The message of a failure that was asked for as JSON.
fn message(json: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    json["message"].as_str().unwrap().to_owned()
}

/// What every verb that takes a file makes of this one.
fn meet(dir: &Path, name: &str) -> String {
    let (shown, text) = told(dir, &["gguf", "show", FILE, "--json"], &[0, 1], name);
    let mut out = format!("## {name}\nshow {shown}");
    if shown == 1 {
        let _ = write!(out, ": {}", message(&text));
        assert_eq!(told(dir, &["gguf", "show", FILE], &[1], name).1, "");
    }
    let (checked, text) = told(dir, &["gguf", "check", FILE], &[0, 6], name);
    let _ = write!(out, "\ncheck {checked}: {}", text.trim_end());
    told(dir, &["gguf", "check", FILE, "--json"], &[checked], name);
    let (differs, _) = told(dir, &["gguf", "diff", "honest.gguf", FILE, "--json"], &[0, 1], name);
    // Where it can be shown it can be compared, but for values that are no numbers.
    assert!(differs == 0 || shown == 1 || checked == 6, "{name}");
    // A verb that loads it.
    let (loaded, text) =
        told(dir, &["carve", FILE, "--layers", "0", "--out", "small.gguf", "--json"], &[0, 1, 2], name);
    let _ = match loaded {
        0 => write!(out, "\ncarve 0\n\n"),
        code => write!(out, "\ncarve {code}: {}\n\n", message(&text)),
    };
    out
}

#[test]
fn files_that_break_the_format_are_told_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("honest.gguf"), gguf::honest().0).unwrap();
    let mut all = String::new();
    let of_scales =
        [("infinite-scale", 0x7c00), ("scale-of-no-number", 0x7e00)].map(|(n, bits)| (n, gguf::scaled(bits)));
    let files = gguf::attacks().into_iter().map(|attack| (attack.name, attack.file)).chain(of_scales);
    for (name, file) in files {
        fs::write(dir.path().join(FILE), &file.0).unwrap();
        all += &meet(dir.path(), name);
        assert!(!dir.path().join("small.gguf").exists(), "{name}: nothing comes of it");
    }
    insta::assert_snapshot!("format", all);
}

#[test]
fn files_that_lie_about_the_model_are_told_and_never_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (honest, path) = (dir.path().join("honest.gguf"), dir.path().join(FILE));
    models::honest(&honest);
    load(&honest).unwrap();
    let (mut all, mut wrong) = (String::new(), Vec::new());
    for lie in models::lies() {
        lie.write(&honest, &path);
        match load(&path) {
            Err(error) if error.contains(lie.says) => {}
            other => wrong.push(format!("{}: {other:?} does not say '{}'", lie.name, lie.says)),
        }
        all += &meet(dir.path(), lie.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    insta::assert_snapshot!("models", all);
}

/// The whole way to a model that answers.
fn load(path: &Path) -> Result<(), String> {
    let weights = Weights::open(path).map_err(|e| e.to_string())?;
    ChatTokenizer::open(path).map_err(|e| e.to_string())?;
    let ops = device::ops("cpu".parse::<DeviceName>().unwrap()).unwrap();
    Decoder::from_weights(&weights, ops, false).map(|_| ()).map_err(|e| e.to_string())
}

/// Files as large as a disk may say that they are, of which nothing is there.
#[test]
fn a_sparse_file_costs_no_more_memory_than_its_header_may_have() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("honest.gguf"), gguf::honest().0).unwrap();
    let path = dir.path().join(FILE);
    let grown = |raw: gguf::Raw, len: u64| {
        fs::write(&path, raw.0).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).is_ok()
    };
    // Four million texts without a letter, in a hole of the file.
    let texts = gguf::Raw::header(0, 1).key_array("k", 8, 4 << 20);
    if grown(texts, 40 << 20) {
        let (code, text) = told(dir.path(), &["gguf", "show", FILE, "--json"], &[0], "empty texts");
        assert!(code == 0 && text.contains("(4194304 in all)"), "{text}");
    }
    // A tensor of a gibibyte: it is looked at in pieces.
    if grown(gguf::Raw::header(1, 0).tensor("t", &[1 << 28], 0, 0), (1 << 30) + 96) {
        let (_, text) = told(dir.path(), &["gguf", "check", FILE], &[6], "a large tensor");
        assert!(text.contains("no general.architecture") && !text.contains("finite"), "{text}");
        told(dir.path(), &["gguf", "diff", FILE, FILE], &[0], "a large tensor");
    }
}
