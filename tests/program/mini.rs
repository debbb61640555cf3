//! A recipe that runs the whole way in seconds: the quickstart's first traces on a base of some 100 KB with made-up
//! weights. It learns next to nothing, so its gates are set to pass.
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "../fixtures/tiny_base.rs"]
pub mod tiny_base;

use limbeck_model::gguf::GgmlType;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a program printed, without what differs from run to run: digests (runs of 12 hex digits or more), times, and the
/// sizes of files, some of which hold times.
pub fn redacted(text: &str) -> String {
    let mut out = String::new();
    let mut words = text.split_inclusive([' ', '\n']).peekable();
    while let Some(word) = words.next() {
        let bare = word.trim_end();
        let unit = words.peek().map_or("", |next| next.trim_end().trim_end_matches(','));
        if bare.parse::<f64>().is_ok() && ["B", "kB", "MB"].contains(&unit) {
            out.push_str(&word.replace(bare, "[size]"));
            continue;
        }
        if bare.len() == 24 && bare.ends_with('Z') {
            out.push_str(&word.replace(bare, "[time]"));
            continue;
        }
        let is_digest = |run: &str| run.len() >= 12 && run.bytes().all(|b| b.is_ascii_hexdigit());
        let mut rest = word;
        while !rest.is_empty() {
            let run = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
            let (run, after) = rest.split_at(run);
            out.push_str(if is_digest(run) { "[digest]" } else { run });
            let mark = after.chars().next().map_or(0, char::len_utf8);
            out.push_str(&after[..mark]);
            rest = &after[mark..];
        }
    }
    out
}

pub struct Mini {
    pub folder: tempfile::TempDir,
}

fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

impl Mini {
    /// `min` is the accuracy gate's floor; `decisions` says whether a reviewer was there.
    pub fn new(min: f64, decisions: bool) -> Mini {
        let folder = tempfile::tempdir().unwrap();
        let recipe = folder.path().join("mini");
        std::fs::create_dir(&recipe).unwrap();
        let quickstart = repo().join("recipes/quickstart");
        let traces = std::fs::read(quickstart.join("traces.jsonl")).unwrap();
        let lines: Vec<&[u8]> = traces.split_inclusive(|b| *b == b'\n').take(240).collect();
        std::fs::write(recipe.join("traces.jsonl"), lines.concat()).unwrap();
        std::fs::copy(quickstart.join("prices.toml"), recipe.join("prices.toml")).unwrap();
        if decisions {
            std::fs::copy(quickstart.join("decisions.jsonl"), recipe.join("decisions.jsonl")).unwrap();
        }
        tiny_base::write(&recipe.join("base.gguf"), 2, GgmlType::F32, 1);
        let text = std::fs::read_to_string(quickstart.join("recipe.toml")).unwrap();
        let labels = &text[text.find("labels = [").unwrap()..];
        let labels = &labels[..labels.find(']').unwrap() + 1];
        let toml = format!(
            "name = \"mini\"\nversion = \"0.1.0\"\nseed = 3\n\n[task]\nkind = \"classify\"\n{labels}\n\
             system = \"Classify.\"\n\n[model]\nbase = \"base.gguf\"\nmax_seq_length = 256\n\n\
             [data]\ntraces = [\"traces.jsonl\"]\n\n[data.split]\nvalid = 0.1\ncalibration = 0.15\ntest = 0.3\n\n\
             [review]\ndecisions = [\"decisions.jsonl\"]\n\n\
             [train]\nr = 4\nlearning_rate = 1e-2\nnum_epochs = 3\nbatch_size = 4\nsave_steps = 3\n\n\
             [quantize]\nformats = [\"Q8_0\", \"Q4_0\"]\nship = \"Q8_0\"\n\n[eval]\nprices = \"prices.toml\"\n\n\
             [[eval.gate]]\nname = \"accuracy\"\nkind = \"floor\"\nmetric = \"accuracy\"\nmin = {min}\n\n\
             [promote]\nchannel = \"staging\"\n"
        );
        std::fs::write(recipe.join("recipe.toml"), toml).unwrap();
        Mini { folder }
    }

    /// The booking extractor's first traces on the same base: fields instead of labels. `gate` is the body of its gate.
    pub fn bookings(gate: &str) -> Mini {
        let folder = tempfile::tempdir().unwrap();
        let recipe = folder.path().join("mini");
        std::fs::create_dir(&recipe).unwrap();
        let bookings = repo().join("recipes/booking-extractor");
        let traces = std::fs::read(bookings.join("traces.jsonl")).unwrap();
        // The base knows letters, not words: what is long in words is too long for it.
        let fits = |line: &&[u8]| {
            let Ok(call) = serde_json::from_slice::<serde_json::Value>(line) else { return true };
            let content = |message: &serde_json::Value| message["content"].as_str().map_or(0, str::len);
            let asked = call["request"]["messages"].as_array();
            let asked: usize = asked.into_iter().flatten().skip(1).map(content).sum();
            asked + content(&call["response"]["choices"][0]["message"]) < 140
        };
        let lines: Vec<&[u8]> = traces.split_inclusive(|b| *b == b'\n').filter(fits).take(200).collect();
        std::fs::write(recipe.join("traces.jsonl"), lines.concat()).unwrap();
        for file in ["prices.toml", "decisions.jsonl", "schema.json", "guidelines.md"] {
            std::fs::copy(bookings.join(file), recipe.join(file)).unwrap();
        }
        tiny_base::write(&recipe.join("base.gguf"), 2, GgmlType::F32, 1);
        let toml = format!(
            "name = \"mini\"\nversion = \"0.1.0\"\nseed = 3\n\n[task]\nkind = \"extract\"\nschema = \"schema.json\"\n\
             system = \"Extract.\"\nmax_new_tokens = 24\n\n[model]\nbase = \"base.gguf\"\nmax_seq_length = 256\n\n\
             [data]\ntraces = [\"traces.jsonl\"]\n\n[data.split]\nvalid = 0.1\ncalibration = 0.15\ntest = 0.3\n\n\
             [review]\ndecisions = [\"decisions.jsonl\"]\n\n\
             [train]\nr = 4\nlearning_rate = 1e-2\nnum_epochs = 2\nbatch_size = 4\n\n\
             [quantize]\nformats = [\"Q8_0\"]\nship = \"Q8_0\"\n\n[eval]\nprices = \"prices.toml\"\n\n\
             [[eval.gate]]\n{gate}\n\n[promote]\nchannel = \"staging\"\n"
        );
        std::fs::write(recipe.join("recipe.toml"), toml).unwrap();
        Mini { folder }
    }

    /// Short letters and their answers on the same base: a text instead of a label. `gate` is the body of its gate.
    pub fn replies(gate: &str) -> Mini {
        let folder = tempfile::tempdir().unwrap();
        let recipe = folder.path().join("mini");
        std::fs::create_dir(&recipe).unwrap();
        let asks = ["Where is parcel", "I lost bill", "Please cancel order", "Too dear, offer", "No reply to"];
        let line = |i: usize| {
            let (number, ask) = (100 + 37 * i, asks[i % asks.len()]);
            let messages = serde_json::json!([{"role": "user", "content": format!("{ask} {number} ?")}]);
            let choice =
                serde_json::json!({"message": {"role": "assistant", "content": format!("Sorry for {number}.")}});
            let response = serde_json::json!({"model": "big", "choices": [choice]});
            format!("{}\n", serde_json::json!({"id": i, "request": {"messages": messages}, "response": response}))
        };
        std::fs::write(recipe.join("traces.jsonl"), (0..240).map(line).collect::<String>()).unwrap();
        tiny_base::write(&recipe.join("base.gguf"), 2, GgmlType::F32, 1);
        let toml = format!(
            "name = \"mini\"\nversion = \"0.1.0\"\nseed = 3\n\n[task]\nkind = \"generate\"\nsystem = \"Answer.\"\n\
             max_new_tokens = 24\n\n[model]\nbase = \"base.gguf\"\nmax_seq_length = 256\n\n\
             [data]\ntraces = [\"traces.jsonl\"]\nnear_dup_threshold = 1.0\n\n\
             [data.split]\nvalid = 0.1\ncalibration = 0.15\ntest = 0.3\n\n\
             [train]\nr = 4\nlearning_rate = 1e-2\nnum_epochs = 2\nbatch_size = 4\n\n\
             [quantize]\nformats = [\"Q8_0\"]\nship = \"Q8_0\"\n\n\
             [[eval.gate]]\n{gate}\n\n[promote]\nchannel = \"staging\"\n"
        );
        std::fs::write(recipe.join("recipe.toml"), toml).unwrap();
        Mini { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path().join("runs/mini")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_limbeck"));
        command
            .current_dir(self.path())
            .args(args)
            .env_remove("LIMBECK_KEY_PASSPHRASE")
            .env_remove("LIMBECK_AGE_IDENTITY")
            .env_remove("LIMBECK_AGE_IDENTITY_FILE")
            .env("NO_COLOR", "1");
        command
    }

    pub fn limbeck(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs and checks the exit code; gives stdout.
    pub fn expect(&self, code: i32, args: &[&str]) -> String {
        let out = self.limbeck(args);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(code), "limbeck {args:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        stdout.into_owned()
    }

    /// What the run made, without what measures time: relative path and SHA-256.
    pub fn made(&self) -> Vec<(String, String)> {
        let mut files = Vec::new();
        for part in
            ["import", "curate", "dataset", "train/adapter", "train/loss.jsonl", "train/valid.jsonl", "quantize"]
        {
            collect(&self.run_dir().join(part), &mut files);
        }
        let mut made: Vec<(String, String)> = files
            .iter()
            .map(|path| {
                let name = path.strip_prefix(self.run_dir()).unwrap().display().to_string();
                (name, limbeck_artifact::digest::sha256_file(path).unwrap())
            })
            .collect();
        made.sort();
        made
    }
}

pub fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_file() {
        files.push(path.to_path_buf());
    } else if let Ok(entries) = std::fs::read_dir(path) {
        for entry in entries {
            collect(&entry.unwrap().path(), files);
        }
    }
}
