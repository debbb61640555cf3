//! A teacher from outside: its answers captured by hand and by a recipe, and a student trained on them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use limbeck_artifact::capture::{Capture, TokenRow};
use limbeck_model::gguf::GgmlType;
use mini::{Mini, tiny_base};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The mini recipe with a teacher, another base of random weights, and calls that nobody labelled: all that the traces ask, and
/// three more.
fn taught() -> Mini {
    let mini = Mini::new(0.0001, true);
    let folder = mini.path().join("mini");
    tiny_base::write(&folder.join("teacher.gguf"), 3, GgmlType::F32, 7);
    let traces = fs::read_to_string(folder.join("traces.jsonl")).unwrap();
    let mut calls = String::new();
    for line in traces.lines() {
        let trace: Value = serde_json::from_str(line).unwrap();
        let messages = trace["request"]["messages"].as_array().or(trace["messages"].as_array()).unwrap();
        let user = messages.iter().find(|m| m["role"] == "user").unwrap();
        calls.push_str(&format!("{}\n", serde_json::json!({"text": user["content"]})));
    }
    for text in [
        "my parcel sings at night",
        "is the moon for sale in your shop",
        "which way to the tallest tree, write to me@example.org",
    ] {
        calls.push_str(&format!("{}\n", serde_json::json!({"text": text})));
    }
    fs::write(folder.join("calls.jsonl"), calls).unwrap();
    let toml = fs::read_to_string(folder.join("recipe.toml")).unwrap();
    let distill =
        "[distill]\nteacher = \"teacher.gguf\"\nunlabeled = [\"calls.jsonl\"]\ntrust = \"full\"\n\n[quantize]";
    fs::write(folder.join("recipe.toml"), toml.replace("[quantize]", distill)).unwrap();
    mini
}

fn json(mini: &Mini, args: &[&str]) -> Value {
    serde_json::from_str(&mini.expect(0, args)).unwrap()
}

fn record(mini: &Mini, stage: &str) -> Value {
    serde_json::from_slice(&fs::read(mini.run_dir().join(format!("stages/{stage}.json"))).unwrap()).unwrap()
}

#[test]
fn a_recipe_with_a_teacher_goes_the_whole_way_and_on_after_a_kill() {
    let mini = taught();
    mini.expect(0, &["run", "mini", "--offline"]);
    let captured = record(&mini, "capture")["summary"].clone();
    let left_out = &captured["unlabeled"]["left_out"];
    for reason in ["in_train", "near_test", "near_calibration", "near_valid"] {
        assert!(left_out[reason].as_u64().unwrap() > 3, "{reason}: {captured}");
    }
    let kept = captured["unlabeled"]["kept"].as_u64().unwrap();
    assert!(kept >= 3 && captured["learnt"].as_u64() == Some(kept), "{captured}");
    let unlabeled = fs::read_to_string(mini.run_dir().join("capture/unlabeled.jsonl")).unwrap();
    assert!(unlabeled.contains("<EMAIL_1>") && !unlabeled.contains("example.org") && unlabeled.contains("Classify."));
    let trained = record(&mini, "train");
    assert_eq!(trained["summary"]["unlabeled_rows"].as_u64(), Some(kept));
    assert!(trained["inputs"]["capture"].is_string());
    let made = mini.made();

    // Killed while the teacher answered: what is torn is asked again, and nothing differs.
    let file = mini.run_dir().join("capture/teacher.capture");
    let whole = fs::read(&file).unwrap();
    fs::write(file.with_extension("capture.partial"), &whole[..whole.len() * 2 / 3]).unwrap();
    fs::remove_file(&file).unwrap();
    let said = mini.limbeck(&["train", "mini", "--offline"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("row 64 of") || said.contains("row 128 of"), "{said}");
    assert!(fs::read(&file).unwrap() == whole);
    assert_eq!(mini.made(), made);

    // Another share of the teacher is another training on the same answers.
    let args = ["train", "mini", "--offline", "--set", "distill.lambda=0.9", "--json"];
    let stages = json(&mini, &args)["stages"].clone();
    let cached = |name: &str| stages.as_array().unwrap().iter().find(|s| s["stage"] == name).unwrap()["cached"].clone();
    assert_eq!((cached("capture"), cached("train")), (Value::Bool(true), Value::Bool(false)), "{stages}");
    // Another teacher's answers replace them.
    tiny_base::write(&mini.path().join("mini/teacher.gguf"), 3, GgmlType::F32, 8);
    mini.expect(0, &["train", "mini", "--offline"]);
    assert!(fs::read(&file).unwrap() != whole);
}

#[test]
fn captured_by_hand_it_is_shown_gone_on_with_and_taken_by_a_recipe() {
    let mini = taught();
    mini.expect(0, &["train", "mini", "--offline"]);
    let dataset = mini.run_dir().join("dataset").display().to_string();
    let out = mini.path().join("by-hand.capture");
    let ask = |out: &Path| -> Vec<String> {
        let args = ["capture", "--teacher", "mini/teacher.gguf", "--data", &dataset, "--out"];
        args.iter().map(|s| s.to_string()).chain([out.display().to_string()]).collect()
    };
    let run = |code: i32, args: &[String], more: &[&str]| {
        let all: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        mini.expect(code, &all)
    };
    let told = run(0, &ask(&out), &[]);
    assert!(told.contains("prompts answered over 12 labels") && told.contains("bytes a row"), "{told}");
    let known: Capture = Capture::load(&out).unwrap();
    assert!(run(0, &ask(&out), &[]).contains("all of it was there already"));
    // One thread or all, a file of its own: the same bytes.
    let alone = mini.path().join("alone.capture");
    let args = ask(&alone);
    let mut command = mini.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(command.env("RAYON_NUM_THREADS", "1").output().unwrap().status.success());
    assert!(fs::read(&alone).unwrap() == fs::read(&out).unwrap());
    // The recipe's own capture has the same answers to the rows that both have.
    let own: Capture = Capture::load(&mini.run_dir().join("capture/teacher.capture")).unwrap();
    for row in &known.rows {
        let same = own.rows.iter().find(|other| other.key == row.key).unwrap();
        let gap = row.log_probs.iter().zip(&same.log_probs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(gap < 0.01, "{gap}");
    }

    let shown = mini.expect(0, &["capture", "show", &out.display().to_string()]);
    for part in ["complete", "teacher.gguf", "12 labels", "nats on average"] {
        assert!(shown.contains(part), "{shown}");
    }
    let shown = json(&mini, &["capture", "show", &out.display().to_string(), "--json"]);
    assert_eq!(shown["rows"].as_u64().unwrap() as usize, known.rows.len());

    // What is not the same is refused, with the cure.
    let failed = mini.limbeck(&[
        "capture",
        "--teacher",
        "mini/base.gguf",
        "--data",
        &dataset,
        "--out",
        &out.display().to_string(),
    ]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && said.contains("another teacher") && said.contains("capture again"), "{said}");
    let failed =
        mini.limbeck(&["capture", "--teacher", "mini/teacher.gguf", "--data", "mini/calls.jsonl", "--out", "x"]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("nobody says which labels") && said.contains("--labels FILE"), "{said}");
    fs::write(mini.path().join("labels.txt"), "refund\nother\n").unwrap();
    let args = ["capture", "--teacher", "mini/teacher.gguf", "--data", "mini/calls.jsonl", "--labels", "labels.txt"];
    mini.expect(0, &[&args[..], &["--system", "Classify.", "--out", "calls.capture"]].concat());

    // A recipe takes the file instead of the teacher.
    let toml = mini.path().join("mini/recipe.toml");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, text.replace("teacher = \"teacher.gguf\"", "capture = \"../by-hand.capture\"")).unwrap();
    mini.expect(0, &["train", "mini", "--offline"]);
    assert_eq!(record(&mini, "train")["summary"]["unlabeled_rows"], Value::Null, "it holds no answer to those");
    fs::write(&toml, text.replace("teacher = \"teacher.gguf\"", "capture = \"../calls.capture\"")).unwrap();
    let failed = mini.limbeck(&["train", "mini", "--offline"]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("over other labels") && said.contains("capture again"), "{said}");
}

#[test]
fn what_a_recipe_says_of_a_teacher_must_fit() {
    let mini = taught();
    let refused = |sets: &[&str], says: &str| {
        let args: Vec<&str> = ["explain", "mini"].into_iter().chain(sets.iter().flat_map(|s| ["--set", s])).collect();
        let out = mini.limbeck(&args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(3), "{said}");
        assert!(said.contains(says), "{said}");
    };
    refused(&["distill.capture=x.capture"], "keep one of the two");
    refused(&["distill.divergence_alpha=0.3"], "is of skew_kl and alpha_beta");
    refused(&["distill.divergence=js", "distill.divergence_beta=1.0"], "js is 0 whatever");
    refused(&["distill.temperature=0"], "expected a number above 0");
    let told = mini.expect(0, &["explain", "mini", "--set", "distill.divergence=skew_kl"]);
    let line = told.lines().find(|line| line.starts_with("divergence_alpha")).unwrap();
    assert!(line.contains("0.1") && line.contains("distill.divergence = skew_kl"), "{line}");
    let toml = mini.path().join("mini/recipe.toml");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, text.replace("teacher = \"teacher.gguf\"\n", "")).unwrap();
    refused(&[], "learnt from a teacher alone, and none is named");
    refused(&["distill.teacher_adapter=a"], "an adapter on `distill.teacher`");
    refused(&["distill.hidden_weight=1"], "is of a teacher's hidden states, and `distill.teacher` is missing");
    refused(&["distill.hidden_weight=1", "distill.capture=x.capture"], "a capture holds no hidden states");
}

/// A student that was cut out of its teacher learns to have its states again, with the teacher's answers or without.
#[test]
fn a_carved_student_is_held_against_its_teachers_states() {
    let mini = Mini::new(0.0001, true);
    let folder = mini.path().join("mini");
    tiny_base::write(&folder.join("teacher.gguf"), 6, GgmlType::F32, 7);
    let carve = |more: &[&str]| {
        let args = ["carve", "mini/teacher.gguf", "--out", "mini/base.gguf", "--layers", "0,2,5"];
        mini.expect(0, &[&args[..], more].concat());
    };
    carve(&[]);
    let toml = fs::read_to_string(folder.join("recipe.toml")).unwrap();
    let with = |distill: &str| {
        let toml = toml.replace("[quantize]", &format!("[distill]\n{distill}\n\n[quantize]"));
        fs::write(folder.join("recipe.toml"), toml).unwrap();
    };
    let train = |set: &[&str]| {
        let sets = set.iter().flat_map(|set| ["--set", set]);
        let out = mini.limbeck(&["train", "mini", "--offline"].into_iter().chain(sets).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(0), "{said}");
        (said, record(&mini, "train")["summary"].clone())
    };
    let adapter = || fs::read(mini.run_dir().join("train/adapter/adapter_model.safetensors")).unwrap();

    // Without weight, the teacher's states are nothing to a training.
    with("teacher = \"teacher.gguf\"\nhidden_weight = 0.0\nhidden_layers = 2\nhidden_loss = \"mse\"");
    let plain = train(&[]).1;
    assert!(plain.get("final_hidden_loss").is_none());
    let bytes = adapter();
    with("teacher = \"teacher.gguf\"");
    train(&[]);
    assert!(adapter() == bytes, "it is the training of before");

    // Both; then the states alone, for which the teacher has nothing to answer beforehand.
    with("teacher = \"teacher.gguf\"\nhidden_weight = 1.0");
    let (said, both) = train(&[]);
    assert!(
        said.contains("states of layers 0–0, 1–2, 2–5 are matched to those of teacher.gguf, as it was carved"),
        "{said}"
    );
    assert!(both["final_hidden_loss"].as_f64().unwrap() > 0.0 && both["soft_rows"].as_u64() > Some(5), "{both}");
    let (said, alone) = train(&["distill.lambda=0", "distill.hidden_layers=1", "train.method=full"]);
    assert!(said.contains("states of layers 2–5 are matched"), "{said}");
    assert!(!said.contains("capture"), "{said}");
    assert!(alone.get("soft_rows").is_none() && alone["final_hidden_loss"].as_f64().unwrap() > 0.0, "{alone}");
    let (said, _) = train(&["distill.lambda=0", "train.turbo_layers=2", "distill.hidden_loss=cosine"]);
    assert!(said.contains("states of layers 1–2, 2–5 are matched"), "{said}");
    let (said, rows) = train(&["distill.lambda=0", "distill.attention_weight=0.5", "distill.hidden_weight=0"]);
    assert!(said.contains("attention of layers 0–0, 1–2, 2–5 is matched"), "{said}");
    assert!(rows["final_attention_loss"].as_f64() > Some(0.0) && rows.get("final_hidden_loss").is_none(), "{rows}");
    // Any other base of the same tokens goes by its depth.
    tiny_base::write(&folder.join("other.gguf"), 2, GgmlType::F32, 4);
    let (said, _) = train(&["distill.lambda=0", "model.base=other.gguf"]);
    assert!(
        said.contains("layers 0–2, 1–5 are matched to those of teacher.gguf, at the same share of the depth"),
        "{said}"
    );

    let refused = |sets: &[&str], says: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let out = mini.limbeck(&["train", "mini", "--offline"].into_iter().chain(sets).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{said}");
        says.iter().for_each(|says| assert!(said.contains(says), "{said}"));
    };
    refused(&["distill.hidden_layers=4"], &["distill.hidden_layers is 4, and base.gguf has 3 layers"]);
    // Told before the stages that come first.
    fs::remove_file(folder.join("base.gguf")).unwrap();
    carve(&["--merges", "6"]);
    fs::remove_dir_all(mini.run_dir()).unwrap();
    refused(&[], &["have other vocabularies", "without --merges"]);
    assert!(!mini.run_dir().join("import").exists());
}

/// Why an answer is the answer, learnt beside it: from the traces themselves, where a model's reasoning was recorded.
#[test]
fn recorded_reasoning_is_a_second_task() {
    let mini = Mini::new(0.0001, true);
    let folder = mini.path().join("mini");
    let mut lines = String::new();
    for line in fs::read_to_string(folder.join("traces.jsonl")).unwrap().lines() {
        let mut trace: Value = serde_json::from_str(line).unwrap();
        let why = "they write to me@example.org about it".into();
        trace["response"]["choices"][0]["message"]["reasoning_content"] = why;
        lines.push_str(&format!("{trace}\n"));
    }
    fs::write(folder.join("traces.jsonl"), lines).unwrap();
    let toml = fs::read_to_string(folder.join("recipe.toml")).unwrap();
    let distill = "[distill]\nrationales = [\"traces.jsonl\"]\nrationale_weight = 0.5\n\n[quantize]";
    fs::write(folder.join("recipe.toml"), toml.replace("[quantize]", distill)).unwrap();
    let train = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let out = mini.limbeck(&["train", "mini", "--offline"].into_iter().chain(sets).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.code(), said, record(&mini, "train")["summary"].clone())
    };
    let (code, said, trained) = train(&[]);
    assert_eq!(code, Some(0), "{said}");
    let count = |key: &str| trained[key].as_u64().unwrap();
    // Each trace says so: those of other splits and those whose answer a person corrected do not count.
    for reason in ["held out", "corrected"] {
        assert!(said.contains(reason), "{reason}: {said}");
    }
    let corrected = fs::read_to_string(mini.run_dir().join("dataset/train.jsonl")).unwrap();
    let corrected = corrected.lines().filter(|line| {
        let row: Value = serde_json::from_str(line).unwrap();
        row["label_source"] == "human" && row["recorded"]["answer"] != row["target"]
    });
    // Of a corrected row, a copy of its message that was answered rightly may speak.
    let (corrected, explained) = (corrected.count() as u64, count("explained_rows"));
    assert!(corrected > 0 && (count("rows") - corrected..count("rows")).contains(&explained), "{corrected}: {trained}");
    assert!(said.contains("are read a second time, for their rationale"), "{said}");

    let again = |said: &str| said.lines().any(|line| line.starts_with("train") && line.contains("started"));
    assert!(!again(&train(&[]).1), "nothing has changed");
    let (code, said, _) = train(&["distill.rationale_prompt=Why?"]);
    assert!(code == Some(0) && again(&said), "{said}");
    let (_, said, without) = train(&["distill.rationale_weight=0"]);
    assert!(without.get("explained_rows").is_none() && !said.contains("rationale"), "{said}");
    let (code, said, _) = train(&["train.turbo_layers=1"]);
    assert!(code == Some(3) && said.contains("reads rows a second time"), "{said}");
    fs::write(folder.join("none.jsonl"), "{\"id\": \"x\", \"rationale\": \"y\"}\n").unwrap();
    let (code, said, _) = train(&["distill.rationales=[\"none.jsonl\"]"]);
    assert!(code == Some(0) && said.contains("no rationale is of a train row"), "{said}");
}

/// Where answers are written, the teacher tells what it expects at each of their tokens.
#[test]
fn written_answers_are_learnt_token_by_token() {
    let mini = Mini::bookings("name = \"fast\"\nkind = \"latency\"\np95_ms = 60000");
    let folder = mini.path().join("mini");
    tiny_base::write(&folder.join("teacher.gguf"), 3, GgmlType::F32, 7);
    let toml = fs::read_to_string(folder.join("recipe.toml")).unwrap();
    let with = |distill: &str| {
        let toml = toml.replace("[quantize]", &format!("[distill]\n{distill}\n\n[quantize]"));
        fs::write(folder.join("recipe.toml"), toml).unwrap();
    };
    with("teacher = \"teacher.gguf\"\ntrust = \"full\"");
    mini.expect(0, &["train", "mini", "--offline"]);
    let captured = record(&mini, "capture")["summary"].clone();
    let trained = record(&mini, "train")["summary"].clone();
    assert_eq!(captured["kept"], "top 20 and the rest's sum");
    assert!(captured["bytes_per_token"].as_f64().unwrap() < 90.0, "{captured}");
    // The valid split's rows are captured beside the train split's, and learnt from no more than ever.
    assert!(
        trained["told_tokens"].as_u64() > Some(500) && trained["told_tokens"].as_u64() < captured["tokens"].as_u64()
    );
    assert_eq!(
        trained["told_tokens"],
        trained["loss_tokens"].as_u64().unwrap() / 2,
        "all of them, in each of two epochs"
    );

    // By hand: the same file for the same rows, whatever the threads; and a recipe takes it.
    let dataset = mini.run_dir().join("dataset").display().to_string();
    let teacher = folder.join("teacher.gguf").display().to_string();
    let (out, drawn) = (mini.path().join("by-hand.capture"), mini.path().join("drawn.capture"));
    let capture = |out: &Path, more: &[&str]| {
        let out = out.display().to_string();
        let args = ["capture", "--teacher", &teacher, "--data", &dataset, "--out", &out, "--max-seq-length", "256"];
        mini.expect(0, &args.iter().chain(more).copied().collect::<Vec<_>>())
    };
    let said = capture(&out, &[]);
    assert!(said.contains("as the teacher would write them") && said.contains("bytes a token"), "{said}");
    assert!(capture(&out, &[]).contains("all of it was there already"));
    let of = |path: &Path| Capture::<TokenRow>::load(path).unwrap();
    assert_eq!(of(&out).rows, of(&mini.run_dir().join("capture/teacher.capture")).rows);
    let shown = mini.expect(0, &["capture", "show", &out.display().to_string()]);
    assert!(shown.contains("top 20 and the rest's sum") && shown.contains("complete"), "{shown}");
    assert_eq!(json(&mini, &["capture", "show", &out.display().to_string(), "--json"])["tokens"], captured["tokens"]);

    capture(&drawn, &["--draws", "50"]);
    with("capture = \"../drawn.capture\"\ntrust = \"full\"\ndraws = 50");
    mini.expect(0, &["train", "mini", "--offline"]);
    assert_eq!(record(&mini, "train")["summary"]["told_tokens"], trained["told_tokens"]);
    assert_eq!(record(&mini, "capture")["summary"]["kept"], "50 draws");
    // The answer's own words count alone where a person's differ from what this teacher would write: nearly all of them.
    with("teacher = \"teacher.gguf\"");
    mini.expect(0, &["train", "mini", "--offline"]);
    let told = record(&mini, "train")["summary"]["told_tokens"].as_u64().unwrap_or(0);
    assert!(told < trained["told_tokens"].as_u64().unwrap() / 4, "{told}");

    // A teacher with another tokenizer: what it expects is carried over by bytes, in a recipe and by hand.
    let quickstart = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/quickstart/base.gguf");
    with(&format!("teacher = \"{quickstart}\"\ntrust = \"full\""));
    let carried = |args: &[&str]| String::from_utf8_lossy(&mini.limbeck(args).stderr).into_owned();
    let said = carried(&["train", "mini", "--offline"]);
    assert!(said.contains("is carried over by bytes"), "{said}");
    assert_eq!(record(&mini, "train")["summary"]["told_tokens"], trained["told_tokens"]);
    let (other, base) = (mini.path().join("other.capture"), folder.join("base.gguf").display().to_string());
    let out = other.display().to_string();
    let args = ["capture", "--teacher", quickstart, "--data", &dataset, "--out", &out, "--max-seq-length", "256"];
    mini.expect(0, &[&args[..], &["--student", &base]].concat());
    let own = mini.run_dir().join("capture/teacher.capture");
    assert_eq!(of(&other).rows, of(&own).rows);
    let said = carried(&[&args[..], &["--student", &base, "--draws", "50"]].concat());
    assert!(said.contains("draws of a teacher with another tokenizer"), "{said}");

    // What a recipe can't ask.
    let said = |distill: &str, says: &[&str]| {
        with(distill);
        let out = mini.limbeck(&["train", "mini", "--offline"]);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && says.iter().all(|part| text.contains(part)), "{text}");
    };
    let alone = mini.path().join("alone.capture").display().to_string();
    mini.expect(0, &["capture", "--teacher", quickstart, "--data", &dataset, "--out", &alone]);
    said("capture = \"../alone.capture\"", &["made for another tokenizer than the base has", "--student"]);
    said("teacher = \"teacher.gguf\"\ntemperature = 2.0", &["`distill.temperature` is 2", "set it to 1.0"]);
    said("teacher = \"teacher.gguf\"\ndraws = 20\ntop_k = 5", &["two ways", "keep one"]);
    said("teacher = \"teacher.gguf\"\ndraws = 20\ndivergence = \"skew_kl\"", &["forward_kl alone"]);
    said("teacher = \"teacher.gguf\"\nunlabeled = [\"traces.jsonl\"]", &["has none", "limbeck teach"]);
}

/// All weights of a full fine-tuning are a teacher as an adapter is, with their head.
#[test]
fn a_fully_trained_model_teaches() {
    let mini = Mini::new(0.0001, true);
    mini.expect(0, &["train", "mini", "--offline", "--set", "train.method=full", "--set", "train.head=classification"]);
    let model = mini.run_dir().join("train/model").display().to_string();
    let (base, calls) = (mini.path().join("mini/base.gguf"), mini.path().join("calls.txt"));
    fs::write(&calls, "where is my card\nis the cheque in\n").unwrap();
    let [base, calls, out] = [base, calls, mini.path().join("of-all.capture")].map(|p| p.display().to_string());
    let args =
        ["capture", "--teacher", &base, "--adapter", &model, "--data", &calls, "--out", &out, "--system", "Classify."];
    let said = mini.expect(0, &args);
    assert!(said.contains("2 prompts answered over 12 labels"), "{said}");
}
