//! kill -9 at random moments of a training, on another number of threads each time, then to the end: adapter, every
//! checkpoint (factors, AdamW's moments, step), loss log and looks are the bytes of a training that nobody disturbed. Order
//! of the rows and dropout follow from seed and step, so a wrong one would show in all of these.
//!
//! A handful of moments in the fast suite; `cargo test --release -p limbeck --test kill_points -- --ignored` tries many.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and tells its figures")]

mod mini;

use mini::Mini;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// All that keeps state from one step to the next, and every checkpoint kept.
const SETTINGS: [&str; 11] = [
    "train.lora_dropout=0.1",
    "train.loraplus_lr_ratio=4",
    "train.lr_scheduler=warmup_stable_decay",
    "train.gradient_accumulation_steps=2",
    "train.num_epochs=3",
    "train.eval_steps=4",
    "train.save_steps=2",
    "train.save_total_limit=1000",
    "train.metric_for_best_model=loss",
    "train.load_best_model_at_end=true",
    "train.turbo_layers=1",
];

fn args() -> Vec<&'static str> {
    let sets = SETTINGS.iter().flat_map(|set| ["--set", set]);
    ["train", "mini", "--offline"].into_iter().chain(sets).collect()
}

fn start(mini: &Mini, threads: usize) -> Child {
    let mut command = mini.command(&args());
    command.env("RAYON_NUM_THREADS", threads.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Lines that training has written into the journal.
fn written(mini: &Mini) -> usize {
    let journal = std::fs::read_to_string(mini.run_dir().join("journal.jsonl")).unwrap_or_default();
    journal.lines().filter(|l| l.contains("\"stage\":\"train\"")).count()
}

/// Waits until training has written so many lines; false if the process ended before. By what is done, not by the clock: on a
/// machine with other work a training's time says little about the next one's.
fn until_written(mini: &Mini, child: &mut Child, lines: usize) -> bool {
    let deadline = Instant::now() + Duration::from_secs(600);
    while written(mini) < lines {
        assert!(Instant::now() < deadline, "it never came to line {lines}");
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    true
}

/// What the training made, by name and SHA-256.
fn made(mini: &Mini) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for part in ["train/adapter", "train/checkpoints", "train/loss.jsonl", "train/valid.jsonl"] {
        mini::collect(&mini.run_dir().join(part), &mut files);
    }
    let name = |path: &std::path::PathBuf| path.strip_prefix(mini.run_dir()).unwrap().display().to_string();
    // A half-written file has a name of its own, which begins with a dot and is never read.
    files.retain(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'));
    let mut made: Vec<_> =
        files.iter().map(|path| (name(path), limbeck_artifact::digest::sha256_file(path).unwrap())).collect();
    made.sort();
    made
}

/// Trains to the end without a stop; tells how many lines the training wrote, and its time a line.
fn unbroken(threads: usize) -> (Vec<(String, String)>, usize, Duration) {
    let mini = Mini::new(0.0001, true);
    let mut child = start(&mini, threads);
    assert!(until_written(&mini, &mut child, 1));
    let since = Instant::now();
    assert!(child.wait().unwrap().success());
    let lines = written(&mini);
    (made(&mini), lines, since.elapsed() / lines as u32)
}

/// `n` trainings, each killed up to four times.
fn kill_at_random(n: usize, seed: u64) {
    let (want, lines, a_line) = unbroken(1);
    assert_eq!(unbroken(4).0, want, "the number of threads changes nothing");
    let checkpoints = want.iter().filter(|(name, _)| name.ends_with(".safetensors") && name.contains("step-")).count();
    assert!(checkpoints >= 12 && want.iter().any(|(name, _)| name.ends_with("valid.jsonl")), "{want:?}");
    let mut next = mini::tiny_base::splitmix64(seed);
    let mut below = |n: u64| next() % n;
    let (mut tried, mut hit, mut resumed) = (0, 0, 0);
    for training in 0..n {
        let mini = Mini::new(0.0001, true);
        let mut moments = Vec::new();
        for _ in 0..1 + below(4) {
            let threads = [1, 2, 3, 8][below(4) as usize];
            // So much further, and some part of a line's time on: inside a step, a checkpoint or a look.
            let (more, wait) = (1 + below(lines as u64 * 7 / 10) as usize, a_line.mul_f64(below(1000) as f64 / 1e3));
            moments.push((more, wait, threads));
            let before = written(&mini);
            let mut child = start(&mini, threads);
            tried += 1;
            if until_written(&mini, &mut child, before + more) {
                std::thread::sleep(wait);
            }
            hit += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let threads = [1, 2, 3, 8][below(4) as usize];
        assert!(start(&mini, threads).wait().unwrap().success());
        assert_eq!(
            made(&mini),
            want,
            "training {training} of seed {seed}, killed after {moments:?}, ended on {threads}"
        );
        let journal = std::fs::read_to_string(mini.run_dir().join("journal.jsonl")).unwrap();
        resumed += journal.lines().filter(|l| l.contains("\"event\":\"stage_resumed\"")).count();
    }
    eprintln!(
        "{n} trainings of {lines} events, {checkpoints} checkpoints each: {hit} of {tried} kills hit, {resumed} went on"
    );
    assert!(hit * 2 >= n, "only {hit} of {tried} kills hit a training at work");
    assert!(resumed > 0, "a training went on from a checkpoint");
}

#[test]
fn killed_at_random_moments_it_goes_on_to_the_same_bytes() {
    kill_at_random(3, 1);
}

#[test]
#[ignore = "minutes"]
fn killed_at_many_random_moments_it_goes_on_to_the_same_bytes() {
    kill_at_random(40, 2);
}
