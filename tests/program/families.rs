//! A base that can't be exported is told before it is trained on, with what to do.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use std::path::Path;

#[test]
fn a_base_that_can_not_be_exported_ends_the_run_before_training() {
    let mini = Mini::new(0.01, true);
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("model/tests/golden/families");
    let base = format!("model.base=\"{}\"", families.join("gemma3").display());
    for verb in ["run", "quantize"] {
        let out = mini.limbeck(&[verb, "mini", "--offline", "--set", &base]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains("a gemma3_text model can't be written as a GGUF file"), "{said}");
        assert!(said.contains("choose a base of another family"), "{said}");
        assert!(!mini.run_dir().join("train").exists(), "nothing was trained");
    }
    // Training alone is possible, and told what it will not lead to. The golden has no tokenizer, so it ends there.
    let out = mini.limbeck(&["train", "mini", "--offline", "--set", &base]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("can't be written as a GGUF file") && said.contains("tokenizer"), "{said}");

    // A window shorter than the rows: the file would serve fewer tokens than were trained on.
    let base = format!("model.base=\"{}\"", families.join("mistral").display());
    let out = mini.limbeck(&["run", "mini", "--offline", "--set", &base]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("serves 5 tokens at most") && said.contains("model.max_seq_length, now 256"), "{said}");
}
