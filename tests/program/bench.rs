//! Our side of `limbeck bench` on a tiny model, and the comparison beside stand-ins for the peer's scripts: shell scripts
//! that print fixed figures, so that no Python is needed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(unix)]

mod mini;

use mini::Mini;
use serde_json::Value;
use std::path::Path;

const STEP: &str = r#"{"torch": "0", "dtype": "bf16", "bs": 2, "seq": 16, "tokens_per_s_median": 1e-3,
    "tokens_per_s_best": 1e-3, "tokens_per_s_cpu_normalised": 1e-3, "peak_rss_mib": 1000000}"#;
const TUNE: &str = r#"{"dtype": "bf16", "classes": 2, "train": 6, "steps": 3, "wall_s": 1e6, "tokens_per_s": 1e-3,
    "tokens_per_s_cpu_normalised": 1e-3, "loss_last20": 9, "peak_rss_mib": 1000000,
    "tuned": {"accuracy": 0, "n": 4, "seconds": 1e6}}"#;

/// The tiny base as a Hugging Face folder, a peer's folder, and rows of three categories.
fn folders(mini: &Mini) {
    let at = |name: &str| mini.path().join(name);
    let hf = at("hf");
    std::fs::create_dir_all(&hf).unwrap();
    to_hf(&at("mini/base.gguf"), &hf);
    std::fs::create_dir_all(at("peer")).unwrap();
    for (name, line) in [("peer_step.py", STEP), ("peer_finetune.py", TUNE)] {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        std::fs::write(at("peer").join(name), format!("echo noise\necho '{line}'\n")).unwrap();
    }
    std::fs::create_dir_all(at("data")).unwrap();
    let rows = |offset: usize| -> String {
        let row = |i: usize| format!("\"message {}, number {i}\",{}\n", i + offset, ["a_b", "cd", "ef"][i % 3]);
        "text,category\n".to_owned() + &(0..12).map(row).collect::<String>()
    };
    std::fs::write(at("data/train.csv"), rows(0)).unwrap();
    std::fs::write(at("data/test.csv"), rows(100)).unwrap();
}

fn to_hf(gguf: &Path, hf: &Path) {
    use limbeck_model::{tokenizer::ChatTokenizer, weights::Weights};
    let weights = Weights::open(gguf).unwrap();
    let c = weights.config().clone();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim, "max_position_embeddings": 256, "rms_norm_eps": c.rms_norm_eps, "rope_theta": 10000.0,
        "tie_word_embeddings": c.tie_word_embeddings, "vocab_size": c.vocab_size, "attention_bias": false,
        "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(hf.join("config.json"), config.to_string()).unwrap();
    let mut header = serde_json::Map::new();
    let mut bytes = Vec::new();
    for name in weights.names() {
        let tensor = weights.load(&name).unwrap();
        let begin = bytes.len();
        tensor.data.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": weights.shape(&name).unwrap(),
            "data_offsets": [begin, bytes.len()]});
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(bytes);
    std::fs::write(hf.join("model.safetensors"), file).unwrap();
    ChatTokenizer::open(gguf).unwrap().save(hf).unwrap();
}

#[test]
fn our_side_answers_with_a_line_of_json() {
    let mini = Mini::new(0.0, false);
    let step = |more: &[&str]| -> Value {
        let line = ["bench-ours", "step", "--model", "mini/base.gguf", "--bs", "2", "--seq", "16", "--warmup", "1"];
        let out = mini.expect(0, &[&line[..], &["--steps", "2"], more].concat());
        assert_eq!(out.lines().count(), 1);
        serde_json::from_str(&out).unwrap()
    };
    let f32 = step(&["--dtype", "fp32"]);
    for figure in ["tokens_per_s_median", "tokens_per_s_best", "linear_flops", "attention_flops", "loss"] {
        assert!(f32[figure].as_f64().is_some_and(|x| x.is_finite() && x > 0.0), "{figure}: {f32}");
    }
    assert!(f32["tokens_per_s_best"].as_f64() >= f32["tokens_per_s_median"].as_f64());
    let again = step(&["--dtype", "fp32", "--gradient-checkpointing"]);
    let loss = |figures: &Value| figures["loss"].as_f64().unwrap();
    assert!((loss(&again) - loss(&f32)).abs() < 1e-5, "the same work, computed twice in the backward pass");
    assert_ne!(step(&["--dtype", "bf16"])["dtype"], f32["dtype"]);
}

#[test]
fn both_sides_run_in_turn_and_the_bars_are_judged() {
    let mini = Mini::new(0.0, false);
    folders(&mini);
    let line = "bench train --peer peer --python /bin/sh --model hf --batch-size 2 --length 16 --warmup 1 --steps 2 \
                --work step,finetune,score --data data --classes 2 --per-class 3 --test-per-class 2 --epochs 1";
    let line: Vec<&str> = line.split_whitespace().collect();
    let json: Value = serde_json::from_str(&mini.expect(0, &[&line[..], &["--json"]].concat())).unwrap();
    let figures = json["figures"].as_array().unwrap();
    let of = |side: &str| json[side]["finetune"][0].clone();
    assert_eq!(json["ours"]["step"].as_array().unwrap().len(), 2, "two rounds");
    assert_eq!((&of("ours")["train"], &of("ours")["classes"]), (&6.into(), &2.into()), "{}", of("ours"));
    assert_eq!((&of("ours")["steps"], &of("ours")["tuned"]["n"]), (&3.into(), &4.into()));
    let judged: Vec<&Value> = figures.iter().filter(|f| !f["bar"].is_null()).collect();
    assert_eq!(judged.len(), 6, "speed, memory, time, memory, accuracy, scoring");
    assert!(judged.iter().all(|f| f["met"] == true), "nobody is slower than the stand-in: {figures:?}");
    let text = mini.expect(0, &[&line[..], &["--rounds", "1"]].concat());
    assert!(text.contains("Medians of 1 round") && text.contains("≤ 0.20 met"), "{text}");
}

#[test]
fn what_is_missing_is_named_with_its_cure() {
    let mini = Mini::new(0.0, false);
    folders(&mini);
    let says = |line: &str, words: &[&str]| {
        let args: Vec<&str> = line.split_whitespace().collect();
        let out = mini.limbeck(&args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    says("bench train --peer peer --model hf", &["python is not there", "pip install torch"]);
    says("bench train --peer nowhere --model hf", &["peer_step.py is not there"]);
    says("bench train --peer peer --model nowhere", &["config.json is not there"]);
    says("bench train --peer peer --python /bin/sh --model hf --work score", &["--data"]);
    std::fs::write(mini.path().join("peer/peer_step.py"), "echo \"No module named 'peft'\" >&2\nexit 1\n").unwrap();
    says("bench train --peer peer --python /bin/sh --model hf", &["needs the Python module peft"]);
}

#[test]
fn a_teacher_is_measured_and_what_is_done_is_not_done_again() {
    let mini = Mini::new(0.0001, true);
    folders(&mini);
    let args = [
        "bench",
        "distill",
        "--teacher",
        "mini/base.gguf",
        "--student",
        "mini/base.gguf",
        "--data",
        "data",
        "--out",
        "kd",
        "--per-class",
        "2",
        "--unlabeled",
        "4",
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--turbo-layers",
        "1",
        "--batch-size",
        "4",
        "--step-rounds",
        "2",
    ];
    let told = mini.expect(0, &args);
    for part in ["labels alone", "soft labels over labels alone", "2 seeds", "classification head  ", "hard labels"] {
        assert!(told.contains(part), "{told}");
    }
    let report = || std::fs::read(mini.path().join("kd/report.json")).unwrap();
    let value: Value = serde_json::from_slice(&report()).unwrap();
    assert_eq!(value["test_rows"], 12);
    let points = |i: usize| value["paired"][i]["points"].as_array().unwrap().len();
    assert_eq!((points(0), points(1), points(2)), (2, 2, 2));
    assert!(value["steps"][0]["ratio"].as_f64().unwrap() > 0.0);
    // Twenty of the test's trainings would not be so quick; the steps' ratio alone is measured again.
    let again = mini.command(&args).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success() && !said.contains("training") && !said.contains("the teacher answers"), "{said}");
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["arms"], value["arms"]);
}
