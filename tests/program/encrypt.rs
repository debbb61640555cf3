//! Encryption at rest as a person meets it: a recipe that names recipients, a store and a run folder that show nothing, commands
//! that go on as before for who has the key, and what is said to who has not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// What lies open in a folder, but for what tells nothing of texts and weights.
fn open(dir: &Path) -> Vec<PathBuf> {
    let tells = ["journal.jsonl", "recipe.lock.toml", ".sealing.lock"];
    let is_open = |path: &PathBuf| {
        path.extension().is_none_or(|e| e != "age") && !tells.iter().any(|name| path.file_name().unwrap() == *name)
    };
    files(dir).into_iter().filter(is_open).collect()
}

/// The command's exit code, and what it printed.
fn tried(mini: &Mini, args: &[&str]) -> (i32, String, String) {
    let out = mini.command(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

/// Without the folder, and the keys.
fn redacted(mini: &Mini, text: &str) -> String {
    let words = text.split_inclusive(char::is_whitespace);
    let shown = words.map(|word| match word.find("age1") {
        Some(at) if word.len() > at + 60 => format!("{}[recipient]{}", &word[..at], &word[at + 62..]),
        _ => word.to_owned(),
    });
    mini::redacted(&shown.collect::<String>().replace(mini.path().to_str().unwrap(), "[folder]"))
}

#[test]
fn a_recipe_names_recipients_and_nothing_lies_open() {
    let mini = Mini::new(0.0001, true);
    let made = mini.expect(0, &["keys", "identity", "--json"]);
    let recipient = serde_json::from_str::<Value>(&made).unwrap()["recipient"].as_str().unwrap().to_owned();
    assert_eq!(mini.expect(0, &["keys", "recipient"]).trim(), recipient);
    let recipe = mini.path().join("mini/recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    fs::write(&recipe, format!("{text}\n[encrypt]\nrecipients = [\"{recipient}\"]\n")).unwrap();
    let told = mini.expect(0, &["run", "mini", "--offline"]);
    assert!(told.ends_with(&format!("is encrypted for {recipient}; `limbeck unseal runs/mini` opens it\n")), "{told}");
    let store = mini.path().join(".limbeck/store");
    assert_eq!(open(&mini.run_dir()), Vec::<PathBuf>::new());
    assert_eq!(open(&store.join("blobs")), Vec::<PathBuf>::new());
    assert_eq!(files(&store.join("artifacts")), Vec::<PathBuf>::new());

    // Everything goes on for who has the key, and leaves nothing open.
    let again = mini.expect(0, &["run", "mini", "--offline", "--json"]);
    let stages = serde_json::from_str::<Value>(&again).unwrap()["stages"].clone();
    let cached = |stage: &&Value| stage["stage"] != "promote" && stage["cached"] != true;
    assert!(!stages.as_array().unwrap().iter().any(|stage| cached(&stage)), "{stages}");
    mini.expect(0, &["score", "mini/staging", "where is my refund?"]);
    mini.expect(0, &["fsck"]);
    mini.expect(0, &["log"]);
    mini.expect(0, &["review", "mini", "--status"]);
    mini.expect(0, &["data", "show", "mini"]);
    mini.expect(0, &["explain", "mini", "--masks"]);
    mini.expect(0, &["export", "mini/staging", "--form", "oci", "--out", "image"]);
    mini.expect(0, &["run", "mini", "--offline", "--set", "version=0.2.0"]);
    mini.expect(0, &["rollback", "mini/staging"]);
    mini.expect(0, &["gc", "--min-age", "0s"]);
    mini.expect(0, &["fsck"]);
    assert_eq!(open(&mini.run_dir()), Vec::<PathBuf>::new());
    assert_eq!(files(&store.join("artifacts")), Vec::<PathBuf>::new());
    serves(&mini, &store);

    // Its folder is told as what it is, opened by hand, verified, and closed by the next command.
    let (code, _, said) = tried(&mini, &["score", "runs/mini/package", "hello"]);
    assert_eq!(code, 2);
    insta::assert_snapshot!("sealed-package", redacted(&mini, &said));
    mini.expect(0, &["unseal", "runs/mini"]);
    mini.expect(0, &["verify", "runs/mini/package", "--key", ".limbeck/keys/signing.pub.pem"]);
    mini.expect(0, &["review", "mini", "--status"]);
    assert_eq!(open(&mini.run_dir()), Vec::<PathBuf>::new());

    // Runs in the run, and a folder that is no run's.
    mini.expect(0, &["sweep", "mini", "--offline", "--param", "train.learning_rate=1e-3,1e-2"]);
    assert!(mini.run_dir().join("sweep").is_dir());
    assert_eq!(open(&mini.run_dir()), Vec::<PathBuf>::new());
    mini.expect(0, &["import", "mini/traces.jsonl", "--out", "imported"]);
    let before = files(&mini.path().join("imported"));
    let content: Vec<Vec<u8>> = before.iter().map(|path| fs::read(path).unwrap()).collect();
    mini.expect(0, &["seal", "imported", "--to", &recipient]);
    assert_eq!(open(&mini.path().join("imported")), Vec::<PathBuf>::new());
    mini.expect(0, &["unseal", "imported"]);
    assert_eq!(files(&mini.path().join("imported")), before);
    assert_eq!(before.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>(), content);

    lost_and_wrong(&mini, &store, &recipient);
}

/// What is served was read, and lies nowhere.
fn serves(mini: &Mini, store: &Path) {
    let mut command = mini.command(&["serve", "mini/staging", "--listen", "127.0.0.1:0", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = serde_json::from_str::<Value>(&line).unwrap()["address"].as_str().unwrap().to_owned();
    assert_eq!(files(&store.join("artifacts")), Vec::<PathBuf>::new());
    let body = json!({"messages": [{"role": "user", "content": "where is my refund?"}]}).to_string();
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let status = agent.post(format!("http://{address}/v1/chat/completions")).send(body).unwrap().status();
    // What it is not sure of it escalates, and it has no fallback.
    assert!([200, 422].contains(&status.as_u16()), "{status}");
    child.kill().unwrap();
    child.wait().unwrap();
}

fn lost_and_wrong(mini: &Mini, store: &Path, recipient: &str) {
    let key = mini.path().join(".limbeck/keys/age.txt");
    let aside = mini.path().join("kept.txt");
    fs::rename(&key, &aside).unwrap();
    let of_run = || files(&mini.run_dir()).into_iter().filter(|f| !f.ends_with(".sealing.lock")).collect::<Vec<_>>();
    let before = of_run();
    for (name, args) in [
        ("lost-score", ["score", "mini/staging", "hello"].as_slice()),
        ("lost-run", &["run", "mini", "--offline"]),
        ("lost-unseal", &["unseal", "runs/mini"]),
    ] {
        let (code, out, said) = tried(mini, args);
        assert_eq!((code, out.as_str()), (1, ""), "{said}");
        // What a terminal's width broke.
        let flat = said.replace("\n  | ", " ").replace("\n        ", " ");
        insta::assert_snapshot!(name, redacted(mini, &flat));
    }
    let (code, out, _) = tried(mini, &["fsck"]);
    assert!(code == 6 && out.contains("not checked") && out.contains(recipient), "{out}");
    // Who cannot read can still see the log, go back and forget.
    mini.expect(0, &["log"]);

    mini.expect(0, &["keys", "identity"]);
    let (code, _, said) = tried(mini, &["score", "mini/staging", "hello"]);
    let flat = said.replace("\n  | ", " ").replace("\n        ", " ");
    assert_eq!(code, 1);
    insta::assert_snapshot!("wrong-score", redacted(mini, &flat));
    assert_eq!(of_run(), before, "nothing was touched");
    assert_eq!(files(&store.join("artifacts")), Vec::<PathBuf>::new());
    let other = mini.expect(0, &["keys", "recipient"]);
    let to = format!("encrypt.recipients=[\"{}\"]", other.trim());
    fs::remove_file(&key).unwrap();
    fs::rename(&aside, &key).unwrap();
    let (code, _, said) = tried(mini, &["promote", "mini", "--set", &to]);
    assert!(code == 1 && said.contains("and not for"), "{said}");

    // The environment's identity comes before the one at its usual place.
    let secret = fs::read_to_string(&key).unwrap();
    let secret = secret.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap();
    fs::remove_file(&key).unwrap();
    let out = mini.command(&["fsck"]).env("LIMBECK_AGE_IDENTITY", secret).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    let out = mini.command(&["fsck"]).env("LIMBECK_AGE_IDENTITY_FILE", "gone.txt").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("gone.txt"), "{said}");
}
