//! What a person relies on behind a promotion: its history, the way back, what is kept, what is checked; and that an
//! artifact leaves for other servers as the bytes that were signed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use limbeck_artifact::digest::sha256_file;
use mini::Mini;
use serde_json::Value;
use std::fs;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Who ran it, too, differs.
fn redacted(text: &str) -> String {
    mini::redacted(text).replace("tester", "[person]")
}

#[test]
fn a_store_tells_its_history_goes_back_keeps_and_forgets() {
    let mini = Mini::new(0.0001, true);
    let run = |args: &[&str], code: i32| {
        let out = mini.command(args).env("USER", "tester").output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args:?}\n{text}\n{}", String::from_utf8_lossy(&out.stderr));
        text
    };
    run(&["log"], 2);
    run(&["run", "mini", "--offline"], 0);
    fs::rename(mini.run_dir().join("package"), mini.path().join("kept")).unwrap();
    run(&["run", "mini", "--offline", "--set", "version=0.2.0"], 0);
    insta::assert_snapshot!("log", redacted(&run(&["log"], 0)));
    let before = json(&run(&["log", "--json"], 0));
    let head = format!("{}:{}", before["head"]["seq"], before["head"]["sha256"].as_str().unwrap());
    let (first, second) = (before["entries"][0]["to"].clone(), before["entries"][1]["to"].clone());

    insta::assert_snapshot!("rollback", redacted(&run(&["rollback", "mini/staging"], 0)));
    let now = json(&run(&["log", "--json", "--expect-head", &head], 0));
    assert_eq!(now["channels"]["mini"]["staging"]["version"], first);
    run(&["rollback", "mini/staging"], 1);
    run(&["rollback", "mini/staging", "--to", "0123456789ab"], 2);

    // Nothing keeps the second version now but a hold.
    run(&["hold", "mini", "--version", second.as_str().unwrap(), "--name", "audit"], 0);
    let gone = json(&run(&["gc", "--min-age", "0s", "--dry-run", "--json"], 0));
    assert_eq!(gone["removable"].as_array().unwrap().len(), 0);
    run(&["hold", "mini", "--release", "--name", "audit"], 0);
    insta::assert_snapshot!("gc", redacted(&run(&["gc", "--min-age", "0s", "--dry-run"], 0)));
    let removed = json(&run(&["gc", "--min-age", "0s", "--json"], 0));
    assert_eq!(removed["removed"][0]["version"], second);
    insta::assert_snapshot!("fsck", redacted(&run(&["fsck", "--expect-head", &head], 0)));

    // A damaged file is told, and mended from the artifact's folder.
    let store = mini.path().join(".limbeck/store");
    let version = json(&fs::read_to_string(store.join(format!("versions/{}.json", first.as_str().unwrap()))).unwrap());
    let blob = store.join("blobs/sha256").join(version["files"]["README.md"]["sha256"].as_str().unwrap());
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, "something else").unwrap();
    assert!(run(&["fsck"], 6).contains("damaged"));
    run(&["fsck", "--repair", "--from", "kept"], 0);

    // A log that was cut short shows by a head that was noted down.
    let last = json(&run(&["log", "--json"], 0));
    let head = format!("{}:{}", last["head"]["seq"], last["head"]["sha256"].as_str().unwrap());
    fs::remove_file(store.join(format!("log/{:016}.json", last["head"]["seq"].as_u64().unwrap()))).unwrap();
    run(&["log"], 0);
    run(&["log", "--expect-head", &head], 6);
    assert!(run(&["fsck", "--expect-head", &head], 6).contains("no longer contains"));
}

#[test]
fn one_artifact_serves_on_two_channels() {
    let mini = Mini::new(0.0001, true);
    mini.expect(0, &["run", "mini", "--offline"]);
    let lock = mini.run_dir().join("recipe.lock.toml");
    let before = fs::read(&lock).unwrap();
    let told = mini.expect(0, &["run", "mini", "--offline", "--set", "promote.channel=production", "--json"]);
    assert_eq!(json(&told)["promoted"]["channel"], "production", "{told}");
    assert_eq!(fs::read(&lock).unwrap(), before);
    let log = json(&mini.expect(0, &["log", "--json"]));
    let entries = log["entries"].as_array().unwrap();
    let of = |entry: &Value| (entry["channel"].clone(), entry["to"].clone());
    let [(first, version), (second, same)] = [of(&entries[0]), of(&entries[1])];
    assert_eq!((entries.len(), first, second), (2, "staging".into(), "production".into()));
    assert_eq!(version, same, "one version, not two that differ in the lock");
}

#[test]
fn a_test_split_remembers_how_many_candidates_it_judged() {
    let mini = Mini::new(0.0001, true);
    let report = mini.run_dir().join("eval/report.json");
    let run = |version: &str| {
        let text = mini.expect(0, &["eval", "mini", "--offline", "--set", &format!("version={version}")]);
        (text, fs::read_to_string(&report).unwrap())
    };
    let (text, first) = run("0.1.0");
    assert!(text.contains("This test split has judged one candidate, this one."), "{text}");
    fs::remove_file(&report).unwrap();
    assert_eq!(run("0.1.0").1, first, "the same file is no other candidate, and its report the same bytes");
    fs::rename(mini.run_dir(), mini.path().join("runs/first")).unwrap();
    // Another version is another file.
    let (text, second) = run("0.2.0");
    assert!(text.contains("This test split has judged 2 candidates, this one as number 2."), "{text}");
    let looks = json(&second)["test"]["looks"].clone();
    assert_eq!((&looks["candidates"], &looks["corrected"]), (&2.into(), &"pass".into()), "{looks}");
    let text = mini.expect(0, &["eval", "--compare", "first", "mini"]);
    assert!(text.contains("this test split has judged 2 candidates"), "{text}");
    run("0.3.0");
    let compared = json(&mini.expect(0, &["eval", "--compare", "first", "mini", "--json"]));
    assert_eq!((&compared["candidates"], &compared["p_of_all_pairs"]), (&3.into(), &1.0.into()), "{compared}");
}

#[test]
fn an_artifact_comes_out_of_its_recipe_again_bit_for_bit_or_the_step_that_differs_is_told() {
    let mini = Mini::new(0.0001, true);
    mini.expect(0, &["run", "mini", "--offline", "--set", "train.num_epochs=2"]);
    let again = ["reproduce", "mini/staging", "--recipe", "mini", "--offline"];
    // The artifact's settings, not those that the recipe has by now.
    insta::assert_snapshot!("reproduce", redacted(&mini.expect(0, &again)));
    let traces = mini.path().join("mini/traces.jsonl");
    let text = fs::read_to_string(&traces).unwrap();
    fs::write(&traces, text.lines().skip(1).map(|line| line.to_owned() + "\n").collect::<String>()).unwrap();
    let said = mini.expect(6, &again);
    assert!(said.contains("first difference is in dataset"), "{said}");
    let told = json(&mini.expect(6, &[&again[..], &["--json"]].concat()));
    assert_eq!(told["steps"][1]["same"], true, "{told}");
    assert!(!mini.path().join("runs/mini/reproduce").exists());
}

#[test]
fn an_artifact_leaves_for_other_servers_as_the_bytes_that_were_signed() {
    let mini = Mini::new(0.0001, true);
    mini.expect(0, &["run", "mini", "--offline"]);
    let package = mini.run_dir().join("package");
    let served = sha256_file(&package.join("mini-Q8_0.gguf")).unwrap();
    let out = |name: &str| mini.path().join(name);

    let said = json(&mini.expect(0, &["export", "mini/staging", "--form", "oci", "--out", "image", "--json"]));
    assert!(said["digest"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(sha256_file(&out("image/blobs/sha256").join(&served)).unwrap(), served);
    let again = json(&mini.expect(0, &["export", "runs/mini/package", "--form", "oci", "--out", "again", "--json"]));
    assert_eq!(again["digest"], said["digest"]);
    mini.expect(2, &["export", "mini/staging", "--form", "oci", "--out", "image"]);

    insta::assert_snapshot!(
        "export-llama",
        redacted(&mini.expect(0, &["export", "mini/staging", "--form", "llama-server", "--out", "llama"]))
    );
    assert_eq!(sha256_file(&out("llama/mini-Q8_0.gguf")).unwrap(), served);
    let request = json(&fs::read_to_string(out("llama/request.json")).unwrap());
    assert!(request["grammar"].as_str().unwrap().contains("\"age_limit\""));
    assert_eq!(request["messages"][0]["content"], "Classify.");

    mini.expect(0, &["export", "mini/staging", "--form", "ollama", "--out", "ollama"]);
    insta::assert_snapshot!("modelfile", fs::read_to_string(out("ollama/Modelfile")).unwrap());
    mini.expect(0, &["export", "mini/staging", "--form", "peft", "--out", "peft"]);
    assert!(out("peft/adapter/adapter_config.json").is_file() && out("peft/adapter/tokenizer.json").is_file());

    let lora = json(&mini.expect(0, &["export", "mini/staging", "--form", "llama-adapter", "--out", "lora", "--json"]));
    assert_eq!(lora["files"][0], "lora/mini-lora.gguf");
    mini.expect(0, &["gguf", "show", "lora/mini-lora.gguf"]);

    // What others' tools read of it is about these bytes, and the same when it is packaged again.
    let provenance = |name: &str| json(&fs::read_to_string(package.join("provenance").join(name)).unwrap());
    for name in ["slsa-provenance.json", "test-result.json"] {
        assert_eq!(provenance(name)["subject"][0]["digest"]["sha256"], served.as_str(), "{name}");
    }
    assert_eq!(provenance("test-result.json")["predicate"]["result"], "PASSED");
    let model = &provenance("bom.cdx.json")["metadata"]["component"];
    assert_eq!(model["hashes"][0]["content"], served.as_str());
    let accuracy = &model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0];
    assert!(accuracy["type"] == "accuracy" && accuracy["value"].is_string(), "{accuracy}");

    // What was touched does not leave.
    fs::write(package.join("README.md"), "other").unwrap();
    mini.expect(6, &["export", "runs/mini/package", "--form", "oci", "--out", "touched"]);
    assert!(!out("touched").exists());
}
