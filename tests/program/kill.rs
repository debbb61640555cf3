//! kill -9 in each stage, then the same command again: it finishes, repeats nothing that was done, and what it made is
//! the same bytes as of a run that nobody disturbed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn start(mini: &Mini) -> Child {
    mini.command(&["run", "mini", "--offline"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills the run once the journal shows `n` events of the kind in the stage; true if it was still running.
fn kill_after(mini: &Mini, stage: &str, event: &str, n: usize) -> bool {
    let journal = mini.run_dir().join("journal.jsonl");
    let mut child = start(mini);
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
        killed += usize::from(kill_after(&broken, stage, event, n));
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
