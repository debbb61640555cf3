use super::*;
use limbeck_artifact::event::{EventKind, Stage};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

/// The journal of a quickstart run of version 0.1.0 (without `resources` and `arguments`), its reports of countable work
/// thinned to the last of each.
const QUICKSTART: &str = include_str!("../../tests/fixtures/quickstart.jsonl");
/// The journal of a small run whose gate failed (`tests/program/mini.rs` with a floor it can't reach).
const FAILED: &str = include_str!("../../tests/fixtures/failed-gate.jsonl");

fn events(journal: &str) -> Vec<Event> {
    journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn watched(events: &[Event]) -> Watched {
    let mut run = Watched::default();
    events.iter().for_each(|event| run.take(event));
    run
}

/// The run as it was after training step `step`.
fn until_step(step: u64) -> Watched {
    let all = events(QUICKSTART);
    let last = all.iter().position(|e| matches!(e.kind, EventKind::TrainStep { step: s, .. } if s == step)).unwrap();
    watched(&all[..=last])
}

/// As painted; the clock stands two seconds after the last event.
fn screen(run: &Watched, life: Life, width: u16, height: u16, colour: bool) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let now_ms = run.last_ms.unwrap_or(0) + 2000;
    terminal.draw(|frame| draw(run, life, now_ms, colour, frame)).unwrap();
    if width == 0 { String::new() } else { terminal.backend().to_string() }
}

fn snapshots(name: &str, run: &Watched, life: Life) {
    for (width, height) in [(80, 24), (140, 45)] {
        insta::assert_snapshot!(format!("{name}_{width}x{height}"), screen(run, life, width, height, false));
    }
}

#[test]
fn a_live_run() {
    snapshots("live", &until_step(147), Life::Live);
}

#[test]
fn a_finished_run() {
    snapshots("finished", &watched(&events(QUICKSTART)), Life::Finished);
}

#[test]
fn an_interrupted_run_says_how_to_go_on() {
    snapshots("interrupted", &until_step(147), Life::Interrupted);
}

#[test]
fn a_run_whose_gate_failed() {
    snapshots("failed-gate", &watched(&events(FAILED)), Life::Finished);
}

#[test]
fn a_small_terminal_has_what_matters_most() {
    let run = until_step(147);
    insta::assert_snapshot!("small_50x14", screen(&run, Life::Live, 50, 14, false));
    insta::assert_snapshot!("tiny_24x6", screen(&run, Life::Live, 24, 6, false));
    insta::assert_snapshot!("tiny_interrupted_30x8", screen(&run, Life::Interrupted, 30, 8, false));
}

#[test]
fn a_journal_without_a_run() {
    insta::assert_snapshot!("empty_80x24", screen(&Watched::default(), Life::Interrupted, 80, 24, false));
}

#[test]
fn every_size_and_state_is_painted() {
    for run in [Watched::default(), until_step(1), until_step(200), watched(&events(FAILED))] {
        for life in [Life::Live, Life::Finished, Life::Interrupted] {
            for (width, height) in
                [(0, 0), (1, 1), (5, 30), (300, 3), (39, 10), (40, 10), (60, 18), (110, 20), (220, 90)]
            {
                screen(&run, life, width, height, true);
            }
        }
    }
}

#[test]
fn what_strangers_wrote_is_inert_on_every_screen() {
    let hostile = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}\u{9b}31m\r\nrm -rf ~; '$(id)'";
    let at = "2026-01-02T03:04:05.678Z";
    let event = |stage, kind| Event { run: hostile.into(), seq: 0, at: at.into(), stage, kind };
    let h = || hostile.to_owned();
    let kinds = [
        EventKind::RunStarted { recipe: h(), version: h(), device: h(), arguments: vec!["run".into(), h()] },
        EventKind::StageStarted {},
        EventKind::Progress { done: u64::MAX, total: 3, unit: h() },
        EventKind::StageResumed { from: h() },
        EventKind::TrainStep {
            step: u64::MAX,
            total: u64::MAX,
            epoch: f64::NAN,
            loss: f64::NAN,
            learning_rate: f64::INFINITY,
            grad_norm: -1e300,
            tokens_per_s: f64::NAN,
            eta_s: f64::NEG_INFINITY,
        },
        EventKind::Validated { step: u64::MAX, loss: 1e308, accuracy: -1e308 },
        EventKind::Checkpoint { step: 0, path: h() },
        EventKind::ArmScored { arm: h(), n: 1, accuracy: f64::NAN, p50_ms: f64::NAN, p95_ms: 1e300 },
        EventKind::Resources { peak_rss_bytes: u64::MAX },
        EventKind::GateDecided { gate: h(), verdict: h(), reason: h() },
        EventKind::Wrote { path: h(), bytes: u64::MAX },
        EventKind::Note { text: h() },
        EventKind::Warning { text: h() },
        EventKind::StageFinished { wall_ms: u64::MAX, summary: h() },
    ];
    let events: Vec<Event> = kinds.map(|kind| event(Some(Stage::Train), kind)).into();
    let run = watched(&events);
    for life in [Life::Live, Life::Finished, Life::Interrupted] {
        for (width, height) in [(20, 5), (50, 14), (80, 24), (140, 45)] {
            let screen = screen(&run, life, width, height, true);
            assert!(screen.chars().all(|c| c == '\n' || !crate::text::hides(c)), "{screen}");
        }
    }
    let mut plain = Plain::default();
    let told: String = events.iter().map(|e| plain.show(e)).collect();
    let end = closing(&run, Life::Interrupted, 0).unwrap();
    assert!((told + &end).chars().all(|c| c == '\n' || !crate::text::hides(c)));
    assert!(
        end.ends_with(r"limbeck run '\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}\u{9b}31m\nrm -rf ~; '\''$(id)'\'''"),
        "{end}"
    );
}

#[test]
fn a_resumed_training_draws_each_step_once() {
    let all = events(QUICKSTART);
    let step =
        |n: u64| all.iter().position(|e| matches!(e.kind, EventKind::TrainStep { step, .. } if step == n)).unwrap();
    // Killed after step 147, gone on from the checkpoint of step 140.
    let killed = [&all[..=step(147)], &all[..1], &all[step(141)..]].concat();
    let (resumed, unbroken) = (watched(&killed), watched(&all));
    assert!(resumed.curve.points().eq(unbroken.curve.points()));
    assert!(resumed.curve.smoothed().eq(unbroken.curve.smoothed()));
    assert_eq!((resumed.valid, resumed.checkpoints.len()), (unbroken.valid, unbroken.checkpoints.len()));
}

#[test]
fn the_summary_is_the_journals() {
    let run = watched(&events(QUICKSTART));
    let mut json = summary(&run, Life::Finished, 0);
    let losses = json["train"]["losses"].take();
    assert_eq!(losses.as_array().map(Vec::len), Some(256));
    assert_eq!(losses[255], serde_json::json!([256, run.step.unwrap().loss]));
    let checkpoints = json["train"]["checkpoints"].take();
    assert_eq!(checkpoints.as_array().map(Vec::len), Some(13));
    insta::assert_snapshot!("summary", serde_json::to_string_pretty(&json).unwrap());
    let interrupted = summary(&until_step(147), Life::Interrupted, 0);
    assert_eq!(interrupted["state"], "interrupted");
    assert_eq!(interrupted["resume"], "limbeck run recipes/quickstart");
    assert_eq!(interrupted["stages"][3]["state"], "stopped");
    assert_eq!(summary(&watched(&events(FAILED)), Life::Finished, 0)["gates"][0]["verdict"], "fail");
}

#[test]
fn a_journal_is_followed_and_its_writers_end_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    assert!(Watch::new(&path).look(|_| {}).is_err(), "there is no journal");
    let journal = journal::Journal::open(&path, "r").unwrap();
    let started = EventKind::RunStarted {
        recipe: "a".into(),
        version: "v".into(),
        device: "cpu".into(),
        arguments: vec!["run".into(), "a b".into()],
    };
    journal.record(None, started);
    let mut watch = Watch::new(&path);
    watch.catch_up(|_| {}).unwrap();
    assert_eq!(watch.life, Life::Live);
    journal.record(Some(Stage::Train), EventKind::StageStarted {});
    watch.catch_up(|_| {}).unwrap();
    assert_eq!(watch.run.current(), Some(Stage::Train));
    let before = std::fs::read(&path).unwrap();
    drop(journal);
    watch.catch_up(|_| {}).unwrap();
    assert_eq!((watch.life, watch.run.resume().as_str()), (Life::Interrupted, "limbeck run 'a b'"));
    assert_eq!(std::fs::read(&path).unwrap(), before, "a reader writes nothing");
    let journal = journal::Journal::open(&path, "r").unwrap();
    journal.record(None, EventKind::RunFinished { exit_code: 0, wall_ms: 5 });
    watch.catch_up(|_| {}).unwrap();
    assert_eq!(watch.life, Life::Finished);
}

#[test]
fn plain_lines_are_those_that_run_prints() {
    let mut plain = Plain::default();
    let told: String = events(QUICKSTART).iter().map(|event| plain.show(event)).collect();
    insta::assert_snapshot!("plain", told);
}

#[test]
fn keys_that_leave() {
    let key = |code, modifiers| asked(KeyEvent::new(code, modifiers));
    assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Asked::Quit);
    assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Asked::Quit);
    assert_eq!(key(KeyCode::Char('z'), KeyModifiers::CONTROL), Asked::Suspend);
    assert_eq!(key(KeyCode::Char('x'), KeyModifiers::NONE), Asked::Nothing);
}
