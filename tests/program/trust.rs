//! What a person relies on when a store has a trust policy: channels ask for the keys that it names, approvals are given and
//! waited for, keys are replaced, and what was not admitted is not served.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::{Mini, redacted};
use std::fs;

#[test]
fn a_policy_decides_what_channels_serve() {
    let mini = Mini::new(0.0001, true);
    let run = |args: &[&str], code: i32| {
        let out = mini.command(args).env("USER", "tester").output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args:?}\n{text}\n{told}");
        redacted(&(text + &told))
    };
    run(&["run", "mini", "--offline"], 0);
    run(&["trust", "show"], 2);
    run(&["keys", "new", "ann.pem"], 0);
    let (ci, ann) = ("ci=.limbeck/keys/signing.pub.pem", "ann=ann.pub.pem");
    let new = run(&["trust", "new", "trust.toml", "--key", ci, "--key", ann], 0);
    run(&["trust", "new", "trust.toml", "--key", ci], 2);
    let policy = fs::read_to_string(mini.path().join("trust.toml")).unwrap();
    let both = "\n[role.\"promote:production\"]\nkeys = [\"ann\", \"ci\"]\nthreshold = 2\n";
    let policy =
        policy.replace("[role.\"build\"]\nkeys = [\"ann\", \"ci\"]", "[role.\"build\"]\nkeys = [\"ci\"]") + both;
    fs::write(
        mini.path().join("trust.toml"),
        policy.replace("[root]\nkeys = [\"ann\", \"ci\"]", "[root]\nkeys = [\"ann\"]"),
    )
    .unwrap();
    let early = run(&["trust", "install", "trust.toml", "--dry-run"], 6);
    let signed = run(&["trust", "sign", "trust.toml", "--key", "ann.pem"], 0);
    let installed = run(&["trust", "install", "trust.toml"], 0);
    insta::assert_snapshot!("trust_begin", [new, early, signed, installed].concat());

    // What was promoted before is not served any more, until the policy admits it: the recipe's own key may.
    let message = "where is my card?";
    insta::assert_snapshot!("trust_older", run(&["score", "mini/staging", message], 6));
    run(&["promote", "mini", "--offline"], 0);
    run(&["score", "mini/staging", message], 0);
    run(&["score", "mini/staging", message, "--key", "ann.pub.pem"], 6);
    insta::assert_snapshot!("trust_show", run(&["trust", "show"], 0));

    // Production takes both keys.
    let production = ["promote", "mini", "--offline", "--set", "promote.channel=production"];
    let waiting = run(&production, 5);
    run(&["approve", "runs/mini/package", "--channel", "production"], 2);
    let approved = run(&["approve", "runs/mini/package", "--channel", "production", "--key", "ann.pem"], 0);
    // The stages before it take their time, which differs.
    let told = waiting.find("review-incomplete").unwrap();
    insta::assert_snapshot!("trust_production", waiting[told..].to_owned() + &approved);
    run(&["promote", "runs/mini/package"], 2);
    run(&["promote", "runs/mini/package", "--channel", "elsewhere", "--key", "ann.pub.pem"], 6);
    insta::assert_snapshot!("trust_promoted", run(&["promote", "runs/mini/package", "--channel", "production"], 0));
    run(&["score", "mini/production", message], 0);

    // The key that signs is replaced; what it signed is served on, and what the new one signs is too.
    let rotated = run(&["keys", "rotate", ".limbeck/keys/signing.pem", "ci-2.pem", "--policy", "next.toml"], 0);
    insta::assert_snapshot!("trust_rotated", rotated);
    run(&["trust", "sign", "next.toml", "--key", "ann.pem"], 0);
    run(&["trust", "install", "next.toml"], 0);
    run(&["score", "mini/production", message], 0);
    run(&["promote", "runs/mini/package", "--channel", "staging"], 6);
    run(&["run", "mini", "--offline", "--set", "version=0.2.0", "--set", "sign.key=ci-2.pem"], 0);
    run(&["score", "mini/staging", message], 0);
    run(&["fsck"], 0);

    // The old key turns out to have been lost all along.
    let lost = fs::read_to_string(mini.path().join("next.toml")).unwrap().replacen("version = 2", "version = 3", 1);
    let at = lost.find("[key.\"ci\"]").unwrap() + "[key.\"ci\"]\n".len();
    fs::write(mini.path().join("lost.toml"), format!("{}revoked_at_seq = 2\n{}", &lost[..at], &lost[at..])).unwrap();
    run(&["trust", "sign", "lost.toml", "--key", "ann.pem"], 0);
    run(&["trust", "install", "lost.toml"], 0);
    insta::assert_snapshot!("trust_lost", run(&["score", "mini/production", message], 6));
    run(&["score", "mini/staging", message], 0);
    run(&["trust", "show"], 6);
}

/// The script behind the CI examples, with nothing but what a runner has.
#[cfg(unix)]
#[test]
fn the_ci_example_trains_gates_signs_and_promotes() {
    use std::os::unix::fs::PermissionsExt;
    let mini = Mini::new(0.0001, true);
    assert!(mini.command(&["keys", "new", "ci.pem"]).output().unwrap().status.success());
    let ours = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("recipes/ci");
    for example in ["github.yml", "gitlab-ci.yml"] {
        let text = fs::read_to_string(ours.join(example)).unwrap();
        assert!(text.contains("recipes/ci/pipeline.sh recipes/router"), "{example}");
    }
    // The script calls `limbeck`, whatever that is on the runner.
    let bin = mini.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let program = format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_limbeck"));
    fs::write(bin.join("limbeck"), program).unwrap();
    fs::set_permissions(bin.join("limbeck"), fs::Permissions::from_mode(0o755)).unwrap();
    let run = |head: &str, code: i32| {
        let out = std::process::Command::new("bash")
            .arg(ours.join("pipeline.sh"))
            .arg("mini")
            .current_dir(mini.path())
            .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()))
            .env("LIMBECK_STORE", "store")
            .env("LIMBECK_SIGNING_KEY", fs::read_to_string(mini.path().join("ci.pem")).unwrap())
            .env("LIMBECK_HEAD", head)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{}\n{told}", String::from_utf8_lossy(&out.stdout));
        told
    };
    run("", 0);
    let head = fs::read_to_string(mini.path().join("out/head.txt")).unwrap();
    assert!(fs::read_to_string(mini.path().join("out/gates.xml")).unwrap().contains("<testsuite"));
    let out =
        mini.command(&["score", "staging", "where is my card?", "--store", "store", "--key", "ci.pub.pem"]).output();
    assert!(out.unwrap().status.success());
    run(head.trim(), 0);
    // Another log than the one that was noted down: nothing is trained on it, nothing promoted to it.
    fs::remove_dir_all(mini.path().join("store")).unwrap();
    fs::create_dir_all(mini.path().join("store/log")).unwrap();
    assert!(run(head.trim(), 6).contains("cut short or rewritten"));
    assert_eq!(fs::read_dir(mini.path().join("store/log")).unwrap().count(), 0);
}
