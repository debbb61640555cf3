//! The quantize stage as its user runs it: mixes by name, an importance matrix from the task's own rows or from a file, and
//! `limbeck gguf` on what came of it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use limbeck_artifact::digest::sha256_file;
use limbeck_model::gguf::GgufFile;
use limbeck_quantize::ImportanceMatrix;
use mini::Mini;
use serde_json::Value;

const FORMATS: &str = "quantize.formats=[\"Q8_0\", \"Q4_K_M\", \"Q4_0\"]";

fn digest(mini: &Mini, file: &str) -> String {
    sha256_file(&mini.run_dir().join("quantize").join(file)).unwrap()
}

#[test]
fn mixes_by_the_task_s_own_importance() {
    let mini = Mini::new(0.01, true);
    let quantize = |more: &[&str]| {
        let mut args = vec!["quantize", "mini", "--set", FORMATS];
        more.iter().for_each(|set| args.extend(["--set", set]));
        mini.expect(0, &args)
    };
    quantize(&[]);
    let plain = ["Q8_0", "Q4_K_M", "Q4_0"].map(|f| digest(&mini, &format!("mini-{f}.gguf")));
    assert!(!mini.run_dir().join("quantize/imatrix.gguf").exists());

    // Importance changes what is searched for, and Q8_0 is not.
    quantize(&["quantize.imatrix=task", "quantize.imatrix_tokens=2000"]);
    let task = ["Q8_0", "Q4_K_M", "Q4_0"].map(|f| digest(&mini, &format!("mini-{f}.gguf")));
    assert!(plain[1] != task[1] && plain[2] != task[2]);
    let matrix = ImportanceMatrix::open(&mini.run_dir().join("quantize/imatrix.gguf")).unwrap();
    assert_eq!(matrix.entries.len(), 14);
    assert_eq!(matrix.datasets, ["mini train split"]);
    let tokens = matrix.entries["blk.0.attn_q.weight"].count;
    assert!(tokens > 1500.0 && tokens <= 2000.0, "{tokens}");
    // The same again from nothing, on one thread.
    let own = digest(&mini, "imatrix.gguf");
    std::fs::remove_dir_all(mini.run_dir().join("quantize")).unwrap();
    let args = [
        "quantize",
        "mini",
        "--set",
        FORMATS,
        "--set",
        "quantize.imatrix=task",
        "--set",
        "quantize.imatrix_tokens=2000",
    ];
    assert!(mini.command(&args).env("RAYON_NUM_THREADS", "1").output().unwrap().status.success());
    assert_eq!((digest(&mini, "imatrix.gguf"), digest(&mini, "mini-Q4_K_M.gguf")), (own, task[1].clone()));

    // As a file it says the same.
    let kept = mini.path().join("mini/kept.gguf");
    std::fs::copy(mini.run_dir().join("quantize/imatrix.gguf"), &kept).unwrap();
    quantize(&["quantize.imatrix=kept.gguf"]);
    let bytes = |file: &str| std::fs::read(mini.run_dir().join("quantize").join(file)).unwrap();
    let from_file = bytes("mini-Q4_0.gguf");
    assert!(from_file.windows(10).any(|w| w == b"kept.gguf\x1d" || &w[..9] == b"kept.gguf"));

    // A general text has its share.
    std::fs::write(mini.path().join("mini/general.txt"), "The bank of the river was green. ".repeat(400)).unwrap();
    let text = "quantize.imatrix_text=general.txt";
    quantize(&["quantize.imatrix=task", "quantize.imatrix_tokens=2000", text, "quantize.imatrix_text_share=0.5"]);
    let mixed = ImportanceMatrix::open(&mini.run_dir().join("quantize/imatrix.gguf")).unwrap();
    assert_eq!(mixed.datasets, ["mini train split", "general.txt"]);
    let tokens = mixed.entries["blk.0.attn_q.weight"].count;
    assert!(tokens > 1500.0 && tokens <= 2000.0, "{tokens}");
    assert_ne!(mixed.entries, matrix.entries);

    let out = mini.limbeck(&["quantize", "mini", "--set", text]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(3) && said.contains("set `quantize.imatrix` to \"task\""), "{said}");
    let out = mini.limbeck(&["quantize", "mini", "--set", "quantize.imatrix=nowhere.dat"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && said.contains("nowhere.dat"), "{said}");
}

#[test]
fn compensated_rounding_goes_by_the_task_s_rows() {
    let mini = Mini::new(0.01, true);
    let formats = "quantize.formats=[\"Q8_0\", \"Q4_0\", \"Q4_K_M\"]";
    let compensated = ["--set", "quantize.rounding=compensated", "--set", "quantize.rounding_tokens=2000"];
    let quantize = |more: &[&str]| {
        let args: Vec<&str> = ["quantize", "mini", "--set", formats].into_iter().chain(more.iter().copied()).collect();
        mini.expect(0, &args);
        ["Q8_0", "Q4_K_M", "Q4_0"].map(|f| digest(&mini, &format!("mini-{f}.gguf")))
    };
    let plain = quantize(&[]);
    let own = quantize(&compensated);
    assert!(own[1] != plain[1] && own[2] != plain[2]);
    let journal = std::fs::read_to_string(mini.run_dir().join("journal.jsonl")).unwrap();
    assert!(journal.contains("rounding by ") && journal.contains("compensated rounding: 14 matrices by "), "{journal}");
    let file = GgufFile::open(&mini.run_dir().join("quantize/mini-Q4_0.gguf")).unwrap();
    assert_eq!(file.get("limbeck.quantize.rounding"), Some(&"compensated".into()));

    // The same again from nothing, on one thread.
    std::fs::remove_dir_all(mini.run_dir().join("quantize")).unwrap();
    let args: Vec<&str> = ["quantize", "mini", "--set", formats].into_iter().chain(compensated).collect();
    assert!(mini.command(&args).env("RAYON_NUM_THREADS", "1").output().unwrap().status.success());
    assert_eq!(["Q8_0", "Q4_K_M", "Q4_0"].map(|f| digest(&mini, &format!("mini-{f}.gguf"))), own);

    // Fewer rows round otherwise; a general text has its share without an importance matrix too.
    std::fs::write(mini.path().join("mini/general.txt"), "The bank of the river was green. ".repeat(400)).unwrap();
    let mixed = quantize(&[&compensated[..], &["--set", "quantize.imatrix_text=general.txt"]].concat());
    assert!(mixed[2] != own[2] && !mini.run_dir().join("quantize/imatrix.gguf").exists());

    // Measured beside the exact model, on the test rows.
    let (base, adapter) = (mini.path().join("mini/base.gguf"), mini.run_dir().join("train/adapter"));
    let (data, q4) = (mini.run_dir().join("dataset"), mini.run_dir().join("quantize/mini-Q4_0.gguf"));
    let path = |path: &std::path::Path| path.display().to_string();
    let (base, adapter, data, q4) = (path(&base), path(&adapter), path(&data), path(&q4));
    let args = ["bench", "kl", "--reference", &base, "--adapter", &adapter, "--dataset", &data, "--tokens", "600"];
    let made = [&args[..], &["--file", &q4, "--make", "Q4_0", "--rounding", "plain,compensated", "--json"]].concat();
    let told: Value = serde_json::from_str(&mini.expect(0, &made)).unwrap();
    let rows = told["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6, "{told}");
    for row in rows {
        let kl = row["mean_kl"].as_f64().unwrap();
        assert!(kl > 0.0 && kl < 1.0 && row["bits_per_weight"] == rows[0]["bits_per_weight"], "{row}");
    }
    assert!(rows[0]["ratio"].as_f64() == Some(1.0) && rows[0]["set"] == "test rows", "{}", rows[0]);
    let table = mini.expect(0, &[&args[..], &["--file", &q4]].concat());
    assert!(table.contains("test rows: ") && table.contains("mini-Q4_0.gguf"), "{table}");
    let nothing = mini.limbeck(&["bench", "kl", "--reference", &base, "--file", &q4]);
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(nothing.status.code() == Some(2) && said.contains("there is nothing to measure on"), "{said}");
}

#[test]
fn gguf_files_are_shown_compared_and_checked() {
    let mini = Mini::new(0.01, true);
    mini.expect(0, &["quantize", "mini", "--set", FORMATS]);
    let file = |format: &str| format!("runs/mini/quantize/mini-{format}.gguf");
    let (fine, mix) = (file("Q8_0"), file("Q4_K_M"));
    let shown = mini.expect(0, &["gguf", "show", &mix]);
    for line in ["general.architecture", "Q4_K_M", "token_embd.weight", "64 x 271", "bits each", "(271 in all)"] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
    let json: Value = serde_json::from_str(&mini.expect(0, &["gguf", "show", &mix, "--json"])).unwrap();
    assert_eq!(json["format"], "Q4_K_M");
    assert_eq!(json["tensors"].as_array().unwrap().len(), 20);
    assert!(json["bits_per_weight"].as_f64().unwrap() > 4.5);

    assert!(
        mini.expect(0, &["gguf", "diff", &fine, &fine])
            .contains("the same metadata, and 20 tensors with the same bytes")
    );
    let apart = mini.expect(0, &["gguf", "diff", &fine, &mix]);
    assert!(apart.contains("general.file_type\n    A 7\n    B 15"), "{apart}");
    assert!(apart.contains("blk.0.attn_q.weight\n    A Q8_0 64 x 64\n    B Q5_0 64 x 64\n    apart by "), "{apart}");

    assert!(mini.expect(0, &["gguf", "check", &mix]).starts_with("ok: "));
    let broken = mini.path().join("broken.gguf");
    let mut bytes = std::fs::read(mini.path().join(&mix)).unwrap();
    bytes.truncate(bytes.len() - 9000);
    std::fs::write(&broken, &bytes).unwrap();
    let said = mini.expect(6, &["gguf", "check", "broken.gguf"]);
    assert!(said.contains("reaches past the end of the file") && said.contains("would refuse broken.gguf"), "{said}");
    let json: Value = serde_json::from_str(&mini.expect(6, &["gguf", "check", "broken.gguf", "--json"])).unwrap();
    assert_eq!((&json["loads"], &json["findings"][0]["level"]), (&Value::Bool(false), &"refused".into()));
    assert!(mini.limbeck(&["gguf", "check", "nowhere.gguf"]).status.code() == Some(2));
}

#[test]
fn encoders_are_measured_with_a_referee_and_without() {
    let mini = Mini::new(0.01, false);
    let line = ["bench", "quantize", "--megabytes", "1", "--rounds", "1"];
    let json: Value = serde_json::from_str(&mini.expect(0, &[&line[..], &["--json"]].concat())).unwrap();
    let rows = json["rows"].as_array().unwrap();
    // Nine types, all but Q8_0 with importance too.
    assert_eq!(rows.len(), 17);
    assert!(rows.iter().all(|row| row["ours_mb_per_s"].as_f64().unwrap() > 0.0 && row["ratio"].is_null()));
    let out = mini.limbeck(&[&line[..], &["--referee", "nowhere/python"]].concat());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && said.contains("pip install xllamacpp numpy"), "{said}");
    #[cfg(unix)]
    {
        // A stand-in that is slow and wrong.
        let referee = mini.path().join("referee");
        let script = "#!/bin/sh\necho '{\"version\": \"none\"}'\nwhile read -r line; do echo '{\"wall_s\": 1e6, \"cpu_s\": 1e6, \"sha256\": \"00\"}'; done\n";
        std::fs::write(&referee, script).unwrap();
        std::fs::set_permissions(&referee, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let text = mini.expect(0, &[&line[..], &["--referee", referee.to_str().unwrap()]].concat());
        assert!(
            text.contains("DIFFERENT") && text.contains("ggml of none in turn") && !text.contains("below"),
            "{text}"
        );
    }
}

#[test]
fn a_mix_has_the_size_that_is_asked_for() {
    let mini = Mini::new(0.01, true);
    let formats = "quantize.formats=[\"Q8_0\", \"Q4_0\", \"mix\"]";
    let size = |file: &str| std::fs::metadata(mini.run_dir().join("quantize").join(file)).unwrap().len();
    mini.expect(0, &["quantize", "mini", "--set", "quantize.formats=[\"Q8_0\", \"Q4_0\"]"]);
    let between = (size("mini-Q8_0.gguf") + size("mini-Q4_0.gguf")) / 2;
    let target = format!("quantize.target={}kB", between / 1000);
    let out = mini.limbeck(&["quantize", "mini", "--set", formats, "--set", &target]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("mix: ") && said.contains("IQ4_NL"), "{said}");
    let (made, most) = (size("mini-mix.gguf"), between / 1000 * 1000);
    assert!(made <= most && made > most * 9 / 10, "{made} bytes of {most}");
    let file = GgufFile::open(&mini.run_dir().join("quantize/mini-mix.gguf")).unwrap();
    let types: std::collections::BTreeSet<&str> = file.tensors().iter().map(|t| t.ty.name()).collect();
    assert!(types.len() > 2, "{types:?}");
    let kept = std::fs::read_to_string(mini.run_dir().join("quantize/sensitivity.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap()["tensors"].as_array().unwrap().len(), 15);

    let refused = |sets: &[&str], part: &str| {
        let args: Vec<&str> = ["quantize", "mini"].into_iter().chain(sets.iter().flat_map(|s| ["--set", s])).collect();
        let out = mini.limbeck(&args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(3) && said.contains(part), "{args:?}\n{said}");
    };
    refused(&[formats], "the format mix needs a size");
    refused(&["quantize.target=4.5bpw"], "is the size of the format mix");
    refused(&[formats, "quantize.target=small"], "is no size: write it as 90MB, 1.2GB or 4.5bpw");
    refused(&[formats, "quantize.target=1kB"], "the smallest is ");
}

/// What a four-bit file lost is trained back into its codes: the file is another of the same size, the report says what it was worth, and
/// what was not better is not kept.
#[test]
fn what_a_file_lost_is_recovered_where_that_helps() {
    let mini = Mini::new(0.01, true);
    let quantize = |rate: &str| -> (String, Value) {
        let rate = format!("quantize.recover_learning_rate={rate}");
        let args = [
            "quantize",
            "mini",
            "--set",
            "quantize.formats=[\"Q8_0\", \"Q4_0\"]",
            "--set",
            "quantize.recover_epochs=2",
        ];
        let out = mini.limbeck(&[&args[..], &["--set", &rate]].concat());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        let record = std::fs::read(mini.run_dir().join("stages/quantize.json")).unwrap();
        (said, serde_json::from_slice::<Value>(&record).unwrap()["summary"].clone())
    };
    mini.expect(0, &["quantize", "mini", "--set", "quantize.formats=[\"Q8_0\", \"Q4_0\"]"]);
    let [wide, plain] = ["mini-Q8_0.gguf", "mini-Q4_0.gguf"].map(|file| digest(&mini, file));
    let (said, files) = quantize("1e-4");
    let recovered = &files["Q4_0"]["recovered"];
    let [before, after] = ["kl_before", "kl_after"].map(|kl| recovered[kl].as_f64().unwrap());
    assert!(recovered["kept"] == true && after < 0.9 * before, "{said}");
    assert!(files["Q8_0"].get("recovered").is_none() && digest(&mini, "mini-Q8_0.gguf") == wide, "{files}");
    let own = digest(&mini, "mini-Q4_0.gguf");
    assert!(own != plain && files["Q4_0"]["sha256"] == own.as_str());
    assert!(!mini.run_dir().join("quantize/recover-Q4_0").exists(), "masters are not left behind");
    // Far too fast: what comes out is worse, and the file stays as it was.
    let (said, files) = quantize("0.01");
    assert!(files["Q4_0"]["recovered"]["kept"] == false && said.contains("stays as it was written"), "{said}");
    assert_eq!(digest(&mini, "mini-Q4_0.gguf"), plain);
}
