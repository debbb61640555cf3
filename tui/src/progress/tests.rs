use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn progress(done: u64, total: u64) -> EventKind {
    EventKind::Progress { done, total, unit: "traces".into() }
}

fn step(step: u64, loss: f64) -> EventKind {
    EventKind::TrainStep {
        step,
        total: 120,
        epoch: step as f64 / 40.0,
        loss,
        learning_rate: 1e-3,
        grad_norm: 1.0,
        tokens_per_s: 1834.4,
        eta_s: (120 - step) as f64,
    }
}

/// A whole small run, as the stages tell it.
fn story() -> Vec<(u64, Option<Stage>, EventKind)> {
    use EventKind::*;
    let (import, train, eval) = (Some(Stage::Import), Some(Stage::Train), Some(Stage::Eval));
    let mut story = vec![
        (
            0,
            None,
            RunStarted {
                recipe: "quickstart".into(),
                version: "0.1.0".into(),
                device: "cpu".into(),
                arguments: Vec::new(),
            },
        ),
        (1, import, StageStarted {}),
    ];
    story.extend((1..=100).map(|i| (i * 10, import, progress(i * 10, 1000))));
    story.extend([
        (1000, import, Counted { what: "traces".into(), n: 996, reason: String::new() }),
        (1000, import, Counted { what: "lines rejected".into(), n: 4, reason: "not JSON".into() }),
        (1000, import, Counted { what: "lines rejected".into(), n: 0, reason: "no answer".into() }),
        (1010, import, StageFinished { wall_ms: 1009, summary: "996 traces".into() }),
        (1010, Some(Stage::Curate), StageCached { key: "abc".into() }),
        (1020, train, StageStarted {}),
        (1020, train, StageResumed { from: "step 20".into() }),
    ]);
    story.extend((21..=120).map(|i| (1020 + (i - 20) * 1000, train, step(i, 3.0 / i as f64))));
    story.extend([
        (121_020, train, Validated { step: 120, loss: 0.41, accuracy: 0.8123 }),
        (121_020, train, StageFinished { wall_ms: 120_000, summary: String::new() }),
        (122_000, eval, ArmScored { arm: "tuned".into(), n: 300, accuracy: 0.913, p50_ms: 8.31, p95_ms: 1240.0 }),
        (
            122_000,
            eval,
            GateDecided { gate: "floor".into(), verdict: "pass".into(), reason: "0.913 is at least 0.85".into() },
        ),
        (122_000, eval, Warning { text: "a label \u{1b}[31mhas 2 rows".into() }),
        (122_500, eval, Wrote { path: "runs/quickstart/eval/report.html".into(), bytes: 81_400 }),
        (123_000, None, RunFinished { exit_code: 0, wall_ms: 123_000 }),
    ]);
    story
}

fn tell(style: Style) -> String {
    let mut lines = Lines::new(style);
    story().iter().map(|(at, stage, kind)| lines.show(ms(*at), *stage, kind)).collect()
}

#[test]
fn without_a_terminal_every_line_stays_and_none_holds_a_control_sequence() {
    let told = tell(Style { live: false, colour: false, width: 80 });
    assert!(told.chars().all(|c| c == '\n' || !c.is_control()));
    insta::assert_snapshot!(told);
}

/// Plays the returned text into a screen of lines, as a terminal would.
fn on_screen(written: &str) -> Vec<String> {
    let mut screen = vec![String::new()];
    for c in written.replace("\x1b[K", "").chars() {
        let end = screen.len() - 1;
        match c {
            '\r' => screen[end].clear(),
            '\n' => screen.push(String::new()),
            c => screen[end].push(c),
        }
    }
    screen
}

#[test]
fn on_a_terminal_the_live_line_leaves_no_trace() {
    let told = tell(Style { live: true, colour: false, width: 80 });
    insta::assert_snapshot!(on_screen(&told).join("\n"));
}

#[test]
fn the_live_line_shows_bar_rate_and_time_left_and_never_wraps() {
    for width in [20, 40, 60, 80, 200] {
        let mut lines = Lines::new(Style { live: true, colour: false, width });
        for i in 0..=50 {
            lines.show(ms(i * 100), Some(Stage::Train), &step(i, 1.0));
            let live = lines.live.clone().unwrap_or_default();
            assert!(live.width() < usize::from(width), "{live}");
        }
        lines.show(ms(6000), Some(Stage::Import), &progress(100, 1000));
        lines.show(ms(8000), Some(Stage::Import), &progress(300, 1000));
        let live = lines.live.clone().unwrap_or_default();
        if width == 80 {
            assert_eq!(live, "import    ████░░░░░░░░░░░  30 % 300/1,000 traces · 100/s · 0:07 left");
        }
    }
}

#[test]
fn the_line_of_training_gives_up_bar_epoch_and_curve_before_its_figures() {
    let at_width = |width| {
        let mut lines = Lines::new(Style { live: true, colour: false, width });
        for i in 1..=50 {
            lines.show(ms(i * 100), Some(Stage::Train), &step(i, 3.0 / i as f64));
        }
        lines.live.unwrap_or_default()
    };
    let told: Vec<String> = [60, 80, 100, 160].into_iter().map(at_width).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn sparks_are_the_means_of_equal_shares() {
    assert_eq!(spark(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8), "▁▂▃▄▅▆▇█");
    assert_eq!(spark(&[8.0, 8.0, f64::NAN, 0.0, 0.0], 2), "█▁");
    assert_eq!(spark(&[5.0], 10), "▄");
    assert_eq!(spark(&[f64::NAN], 10), "");
    assert_eq!(spark(&[1.0, 2.0], 0), "");
}

#[test]
fn a_long_course_is_kept_in_bounded_room_and_keeps_its_shape() {
    let mut course = Course::default();
    let mut all = Vec::new();
    for i in 0..5000 {
        let loss = 1.0 / f64::from(i + 500);
        course.push(loss);
        all.push(loss);
    }
    let plain = spark(&all[..4992], 8);
    let kept = course.spark(8);
    let level = |line: &str| line.chars().map(|c| c as i64).collect::<Vec<_>>();
    assert!(level(&plain).iter().zip(level(&kept)).all(|(a, b)| (a - b).abs() <= 1), "{plain} {kept}");
}

#[test]
fn a_line_that_stays_is_written_above_the_live_one() {
    let mut lines = Lines::new(Style { live: true, colour: false, width: 80 });
    let mut out = lines.show(ms(0), Some(Stage::Import), &progress(1, 10));
    out += &lines.show(ms(1), Some(Stage::Import), &EventKind::Note { text: "hello".into() });
    let screen = on_screen(&out);
    assert_eq!(screen[0], "import    hello");
    assert!(screen[1].starts_with("import    █░"), "{screen:?}");
    assert_eq!(on_screen(&(out + &lines.clear()))[1], "");
}

#[test]
fn colour_adds_to_the_words_and_changes_none() {
    let strip = |text: &str| {
        let mut out = text.to_string();
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            out = out.replace(code, "");
        }
        out
    };
    let plain = tell(Style { live: true, colour: false, width: 80 });
    let coloured = tell(Style { live: true, colour: true, width: 80 });
    assert!(coloured.len() > plain.len());
    assert_eq!(strip(&coloured), plain);
}

#[test]
fn the_rate_follows_the_last_seconds() {
    let mut pace = Pace::default();
    let mut rate = None;
    for i in 0..2000u64 {
        rate = pace.rate(ms(i * 10), None, "rows", i); // 100/s for 20 s
    }
    assert!((rate.unwrap_or(0.0) - 100.0).abs() < 1.0, "{rate:?}");
    for i in 0..2000u64 {
        rate = pace.rate(ms(20_000 + i * 10), None, "rows", 2000 + i * 5); // then 500/s
    }
    assert!((rate.unwrap_or(0.0) - 500.0).abs() < 5.0, "{rate:?}");
}

#[test]
fn figures_read_well() {
    assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
    assert_eq!([bytes(999), bytes(24_100_000), bytes(1_500_000_000)], ["999 B", "24.1 MB", "1.50 GB"]);
    assert_eq!(
        [duration(850), duration(1200), duration(32_000), duration(192_000)],
        ["850 ms", "1.2 s", "32 s", "3 min 12 s"]
    );
    assert_eq!(
        [time_left(31.2), time_left(723.0), time_left(7500.0), time_left(f64::NAN)],
        ["0:32", "12:03", "2:05:00", "long"]
    );
    assert_eq!([percent(999, 1000), percent(0, 0), bar(999, 1000, 4)], [" 99 %", "100 %", "███░"]);
}
