//! A base that can't be exported is told before it is trained on, with what to do; one with a SentencePiece vocabulary goes
//! the whole way.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use limbeck_model::gguf::{GgmlType, GgufFile, Value};
use limbeck_model::tokenizer::ChatTokenizer;
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

#[test]
fn a_base_with_a_sentencepiece_vocabulary_goes_the_whole_way() {
    const ZEPHYR: &str = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}\
                          {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";
    let mini = Mini::new(0.0001, true);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/sentence_piece/llama.gguf");
    let golden = GgufFile::open(&golden).unwrap();
    let mut keys: Vec<(String, Value)> = golden.metadata().to_vec();
    keys.retain(|(key, _)| key.starts_with("tokenizer."));
    keys.push(("tokenizer.chat_template".into(), ZEPHYR.into()));
    let base = mini.path().join("mini/base.gguf");
    mini::tiny_base::write_with(&base, 2, GgmlType::F32, 1, "Llama 2 shape", keys);
    mini.expect(0, &["run", "mini", "--offline"]);

    let shipped = ChatTokenizer::open(&mini.run_dir().join("quantize/mini-Q8_0.gguf")).unwrap();
    assert_eq!(shipped.vocab(), ChatTokenizer::open(&base).unwrap().vocab());
    assert_eq!(shipped.chat_template(), ZEPHYR);
    let shown = mini.expect(0, &["explain", "mini", "--masks", "--rows", "1", "--offline", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let ids: Vec<u32> = serde_json::from_value(shown["rows"][0]["ids"].clone()).unwrap();
    // As a server: the token that begins a text, once; then the prompt, and the answer as text that goes on.
    assert_eq!((Some(ids[0]), shipped.token_id("<s>")), (shipped.bos_id(), shipped.bos_id()));
    assert_eq!(ids.iter().filter(|id| **id == ids[0]).count(), 1);
    let mask: Vec<bool> = serde_json::from_value(shown["rows"][0]["loss_mask"].clone()).unwrap();
    let said: Vec<u32> = ids.iter().zip(mask).filter(|(_, loss)| *loss).map(|(id, _)| *id).collect();
    let said = shipped.decode(&said);
    assert!(said.ends_with("</s>") && !said.starts_with(' ') && said.len() > 8, "{said:?}");
}
