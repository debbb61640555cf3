//! kill -9 in each stage, then the same command again: it finishes, repeats nothing that was done, and what it made is
//! the same bytes as of a run that nobody disturbed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const RUN: &[&str] = &["run", "mini", "--offline"];

fn start(mini: &Mini, args: &[&str]) -> Child {
    mini.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills the run once the journal shows `n` events of the kind in the stage; true if it was still running.
fn kill_after(mini: &Mini, args: &[&str], stage: &str, event: &str, n: usize) -> bool {
    let journal = mini.run_dir().join("journal.jsonl");
    let mut child = start(mini, args);
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        assert!(Instant::now() < deadline, "the run never came to {event} of {stage}");
        let seen = std::fs::read_to_string(&journal).unwrap_or_default();
        let of = |line: &&str| {
            line.contains(&format!("\"stage\":\"{stage}\"")) && line.contains(&format!("\"event\":\"{event}\""))
        };
        if seen.lines().filter(of).count() >= n {
            let running = child.try_wait().unwrap().is_none();
            child.kill().unwrap();
            child.wait().unwrap();
            return running;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn killed_in_each_stage_it_goes_on_to_the_same_bytes() {
    let unbroken = Mini::new(0.0001, true);
    unbroken.expect(0, &["run", "mini", "--offline"]);
    let want = unbroken.made();
    assert!(want.iter().any(|(name, _)| name.ends_with("adapter_model.safetensors")));

    let broken = Mini::new(0.0001, true);
    let mut killed = 0;
    for (stage, event, n) in [
        ("import", "stage_started", 1),
        ("curate", "stage_started", 1),
        ("review", "stage_started", 1),
        ("train", "train_step", 2),
        ("train", "train_step", 12),
        ("train", "train_step", 25),
        ("quantize", "stage_started", 1),
        ("eval", "stage_started", 1),
        ("eval", "arm_scored", 2),
        ("package", "stage_started", 1),
        ("promote", "stage_started", 1),
    ] {
        killed += usize::from(kill_after(&broken, RUN, stage, event, n));
    }
    assert!(killed >= 7, "only {killed} of 11 kills hit a running process");
    // What a kill in the middle of a write leaves, whether or not one of the above hit that moment.
    std::fs::write(broken.run_dir().join("quantize/.mini-Q8_0.gguf.20030-42.tmp"), "half").unwrap();
    broken.expect(0, &["run", "mini", "--offline"]);
    assert_eq!(broken.made(), want);

    // Nothing that was finished is done twice: each stage finished at most once in the whole journal.
    let journal = std::fs::read_to_string(broken.run_dir().join("journal.jsonl")).unwrap();
    for stage in ["import", "curate", "review", "train", "quantize"] {
        let finished = journal
            .lines()
            .filter(|l| l.contains(&format!("\"stage\":\"{stage}\"")) && l.contains("\"event\":\"stage_finished\""))
            .count();
        assert_eq!(finished, 1, "{stage}");
    }
    assert!(journal.contains("\"event\":\"stage_resumed\""), "training went on from a checkpoint");
}

/// Dropout, LoRA+, looks, a best model, patience, kept hidden states and a base in codes, killed between any of them; and on one thread the
/// bytes are those of all threads.
#[test]
fn a_training_with_all_switched_on_goes_on_to_the_same_bytes() {
    let mut args = vec!["train", "mini", "--offline"];
    for set in [
        "train.lora_dropout=0.1",
        "train.loraplus_lr_ratio=4",
        "train.lr_scheduler=warmup_stable_decay",
        "train.gradient_accumulation_steps=2",
        "train.eval_steps=4",
        "train.metric_for_best_model=accuracy",
        "train.early_stopping_patience=6",
        "train.load_best_model_at_end=true",
        "train.save_total_limit=1",
        "train.turbo_layers=1",
        "train.quantize_base=nf4",
    ] {
        args.extend(["--set", set]);
    }
    let made = |mini: &Mini| -> Vec<(String, String)> {
        let mut files: Vec<_> = ["train/adapter", "train/checkpoints"]
            .iter()
            .flat_map(|dir| std::fs::read_dir(mini.run_dir().join(dir)).unwrap().map(|e| e.unwrap().path()))
            .chain(["train/loss.jsonl", "train/valid.jsonl"].map(|file| mini.run_dir().join(file)))
            .collect();
        files.sort();
        let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        files.iter().map(|path| (name(path), limbeck_artifact::digest::sha256_file(path).unwrap())).collect()
    };
    let unbroken = Mini::new(0.0001, true);
    let out = unbroken.command(&args).env("RAYON_NUM_THREADS", "1").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let want = made(&unbroken);
    assert!(want.iter().any(|(name, _)| name == "valid.jsonl") && want.len() >= 6, "{want:?}");

    let broken = Mini::new(0.0001, true);
    let mut killed = 0;
    for (event, n) in [("train_step", 1), ("validated", 1), ("checkpoint", 2), ("train_step", 9), ("validated", 3)] {
        killed += usize::from(kill_after(&broken, &args, "train", event, n));
    }
    assert!(killed >= 2, "only {killed} of 5 kills hit a running process");
    broken.expect(0, &args);
    assert_eq!(made(&broken), want);
}
