//! Training over a base in codes, from outside: what the program says of it, and what the artifact remembers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use serde_json::Value as Json;

const SET: [&str; 2] = ["--set", "train.quantize_base=nf4"];

fn json(mini: &Mini, file: &str) -> Json {
    serde_json::from_slice(&std::fs::read(mini.run_dir().join(file)).unwrap()).unwrap()
}

#[test]
fn an_artifact_says_what_its_adapter_was_trained_over() {
    let [plain, codes] = [Mini::new(0.0001, true), Mini::new(0.0001, true)];
    plain.expect(0, &["run", "mini", "--offline"]);
    codes.expect(0, &[&["run", "mini", "--offline"][..], &SET].concat());
    assert_eq!(json(&plain, "package/manifest.json")["base"].get("quantize_base"), None);
    assert_eq!(json(&codes, "package/manifest.json")["base"]["quantize_base"], "nf4");
    let card = std::fs::read_to_string(codes.run_dir().join("package/README.md")).unwrap();
    assert!(card.contains("nf4 codes (QLoRA) and merged into the base's own weights"), "{card}");

    // Another training over the same base: the adapters differ, what they are merged into does not.
    let adapter = |mini: &Mini| std::fs::read(mini.run_dir().join("train/adapter/adapter_model.safetensors")).unwrap();
    assert_ne!(adapter(&plain), adapter(&codes));
    let digest = |mini: &Mini| json(mini, "package/manifest.json")["base"]["digest"].clone();
    assert_eq!(digest(&plain), digest(&codes));
    codes.expect(0, &["verify", "runs/mini/package", "--key", ".limbeck/keys/signing.pub.pem"]);
}

#[test]
fn a_dry_run_shows_what_the_codes_take() {
    let mini = Mini::new(0.0001, true);
    let dry = ["train", "mini", "--offline", "--dry-run"];
    let found = |more: &[&str]| -> Json {
        serde_json::from_str(&mini.expect(0, &[&dry[..], &["--json"], more].concat())).unwrap()
    };
    let (plain, codes) = (found(&[]), found(&SET));
    let bytes = |found: &Json| found["layers_bytes"].as_u64().unwrap();
    // Two layers of 64 x (64 + 32 + 32 + 64) + 3 x 64 x 96 weights, half a byte and a 16th of a scale each.
    assert_eq!(bytes(&codes), 2 * (64 * 192 + 3 * 64 * 96) * 9 / 16);
    assert!(bytes(&plain) > 7 * bytes(&codes), "{plain:#}");
    assert_eq!((plain["quantize_base"].as_str(), codes["quantize_base"].as_str()), (Some("none"), Some("nf4")));
    let text = mini.expect(0, &[&dry[..], &SET].concat());
    assert!(text.contains("of nf4 codes"), "{text}");
}

#[test]
fn a_device_without_such_kernels_is_refused_with_the_recipe() {
    let mini = Mini::new(0.0001, true);
    let args = [&["run", "mini", "--set", "model.device=cuda"][..], &SET].concat();
    let out = mini.limbeck(&args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("which has no such kernels") && stderr.contains("train on the cpu"), "{stderr}");
}
