//! From log lines to a frozen dataset, on real messages: what a person relies on when the numbers are shown.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use limbeck_artifact::dataset::{Dataset, DatasetCard, Example, LabelSource, Split};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::{EventKind, Silent};
use limbeck_data_curation::redact::RedactOptions;
use limbeck_data_curation::review::{Decision, Decisions, FreezePlan, Frozen, Verdict, freeze, queue};
use limbeck_data_curation::simulate::{SimulatePlan, Simulated, read_banking77, simulate};
use limbeck_data_curation::text::{jaccard, normal_form, shingles};
use limbeck_data_curation::trace::visible_message;
use limbeck_data_curation::{
    Answers, CurateOptions, CuratePlan, CurateSummary, Fractions, ImportPlan, ImportSummary, NamedFile, curate, import,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/banking-sample")
}

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart")
}

fn sample() -> Simulated {
    let plan = SimulatePlan { classes: 0, per_class: 0, customers: 50, ..SimulatePlan::default() };
    simulate(&plan, &read_banking77(&fixture()).unwrap()).unwrap()
}

/// A run's folder with its inputs.
struct Run {
    dir: tempfile::TempDir,
    labels: Vec<String>,
}

impl Run {
    fn new(made: &Simulated) -> Run {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("traces.jsonl"), &made.traces).unwrap();
        fs::write(dir.path().join("decisions.jsonl"), &made.decisions).unwrap();
        Run { dir, labels: made.labels.clone() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn named(&self, name: &str) -> Vec<NamedFile> {
        vec![NamedFile { name: name.to_string(), path: self.path(name) }]
    }

    fn import(&self) -> ImportSummary {
        let traces = self.named("traces.jsonl");
        import(
            &ImportPlan {
                traces,
                redact: true,
                redaction: RedactOptions::default(),
                max_line_bytes: 100_000,
                out: self.path("import"),
            },
            &Silent,
        )
        .unwrap()
    }

    fn curate(&self) -> CurateSummary {
        curate(&self.curate_plan(), &Silent).unwrap()
    }

    fn curate_plan(&self) -> CuratePlan {
        CuratePlan {
            imported: self.path("import"),
            answers: Answers::Labels(self.labels.clone()),
            min_chars: 3,
            max_chars: 8000,
            near_dup_threshold: 0.8,
            split: Fractions { valid: 0.1, calibration: 0.15, test: 0.3 },
            seed: 17,
            options: CurateOptions::default(),
            out: self.path("curate"),
        }
    }

    fn freeze_plan(&self) -> FreezePlan {
        FreezePlan {
            imported: self.path("import"),
            curated: self.path("curate"),
            decisions: self.named("decisions.jsonl"),
            system: None,
            reviewers_per_item: 1,
            min_reviewed: Split::ALL.into_iter().map(|s| (s, 1.0)).collect(),
            unreviewed_weight: 0.0,
            seed: 17,
            max_label_error: 0.05,
            redacted: true,
            out: self.path("dataset"),
            left_out: self.path("review/left_out.jsonl"),
        }
    }

    fn freeze(&self, plan: &FreezePlan) -> DatasetCard {
        match freeze(plan, &Silent).unwrap() {
            Frozen::Done(card) => card,
            Frozen::Incomplete { missing, .. } => panic!("{missing:?}"),
        }
    }

    fn all(&self) -> Dataset {
        self.import();
        self.curate();
        self.freeze(&self.freeze_plan());
        Dataset::load(&self.path("dataset")).unwrap()
    }
}

fn text(example: &Example) -> String {
    normal_form(&visible_message(&example.messages))
}

/// Customer of each trace, from the raw log.
fn customers(log: &str) -> BTreeMap<String, String> {
    log.lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter_map(|v| Some((v.get("id")?.as_str()?.to_string(), v.get("customer")?.as_str()?.to_string())))
        .collect()
}

fn check_promises(dataset: &Dataset, log: &str, labels: &[String]) {
    let card = &dataset.card;
    let lines = log.lines().count() as u64;
    assert_eq!(card.traces_in, lines);
    assert_eq!(card.splits.values().map(|s| s.rows).sum::<u64>() + card.left_out.values().sum::<u64>(), lines);

    let customers = customers(log);
    let mut home: BTreeMap<&str, Split> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for split in Split::ALL {
        for row in dataset.rows(split) {
            let customer = &customers[&row.trace.id];
            assert_eq!(*home.entry(customer).or_insert(split), split, "{customer} is in two splits");
            assert!(seen.insert(text(row)), "twice: {}", text(row));
            assert!(labels.contains(&row.target));
            assert_eq!(row.label_source, LabelSource::Human);
            assert!(row.decision.is_some());
        }
    }
    // Against all pairs, not by the method under test.
    let sets = |split| dataset.rows(split).iter().map(|r| shingles(&text(r))).collect::<Vec<_>>();
    let test = sets(Split::Test);
    for split in [Split::Train, Split::Valid, Split::Calibration] {
        for a in sets(split) {
            assert!(test.iter().all(|b| jaccard(&a, b) < 0.8));
        }
    }
}

#[test]
fn numbers_add_up_and_splits_share_neither_customer_nor_message() {
    let made = sample();
    let run = Run::new(&made);
    let dataset = run.all();
    check_promises(&dataset, &made.traces, &made.labels);
    for reason in ["exact_duplicate", "near_duplicate", "too_deep", "invalid_json", "empty_message", "missing_response"]
    {
        assert!(dataset.card.left_out.contains_key(reason), "no {reason} in {:?}", dataset.card.left_out);
    }
    // Every left-out row is listed with its reason.
    let log = fs::read_to_string(run.path("curate/left_out.jsonl")).unwrap();
    let left_out = CurateSummary::load(&run.path("curate")).unwrap().left_out;
    for (reason, n) in &left_out {
        assert_eq!(
            log.lines().filter(|l| l.contains(&format!("\"reason\":\"{reason}\""))).count() as u64,
            *n,
            "{reason}"
        );
    }
    assert_eq!(fs::read_to_string(run.path("import/rejected.jsonl")).unwrap().lines().count(), 9);
}

#[test]
fn two_runs_write_the_same_bytes() {
    let made = sample();
    let (a, b) = (Run::new(&made), Run::new(&made));
    a.all();
    b.all();
    for file in [
        "import/accepted.parquet",
        "import/rejected.jsonl",
        "import/import.json",
        "curate/curated.parquet",
        "curate/left_out.jsonl",
        "curate/curate.json",
        "dataset/dataset.json",
        "dataset/train.jsonl",
        "dataset/test.jsonl",
    ] {
        assert_eq!(fs::read(a.path(file)).unwrap(), fs::read(b.path(file)).unwrap(), "{file}");
    }
}

#[test]
fn nothing_personal_is_stored() {
    let made = sample();
    let run = Run::new(&made);
    let personal = regex::Regex::new(r"[\w.]+@example\.com|4111 ?11|IBAN is GB|7700 ?900|203\.0\.113").unwrap();
    assert!(personal.find_iter(&made.traces).count() >= 8, "the sample holds too little to prove anything");
    run.all();
    let redacted: u64 = ImportSummary::load(&run.path("import")).unwrap().redactions.values().sum();
    assert!(redacted >= 8);
    for folder in ["import", "curate", "dataset", "review"] {
        for entry in fs::read_dir(run.path(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            assert!(!personal.is_match(&text), "{} holds {:?}", path.display(), personal.find(&text));
        }
    }
    // Parquet is compressed, so it is read as what it says.
    for item in queue(&run.path("curate"), 1).unwrap().items {
        assert!(!personal.is_match(&item.message) && !personal.is_match(&item.answer), "{}", item.message);
    }
}

#[test]
fn hostile_lines_are_rejected_with_line_and_reason_and_the_rest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let good = r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}"#;
    let mut log: Vec<u8> = Vec::new();
    log.extend_from_slice("\u{feff}".as_bytes());
    log.extend_from_slice(good.as_bytes());
    log.extend_from_slice(b"\r\n\n   \n{\"id\": \"\xff\xfe\"}\n");
    log.extend_from_slice("{\"a\":".repeat(100_000).as_bytes());
    log.push(b'\n');
    log.extend_from_slice(&vec![b'x'; 2_000_000]);
    log.push(b'\n');
    log.extend_from_slice(b"\0\n");
    log.extend_from_slice(good.replace("hi", "last line, without a line feed").as_bytes());
    let path = dir.path().join("log.jsonl");
    fs::write(&path, log).unwrap();
    let out = dir.path().join("import");
    let traces = vec![NamedFile { name: "log.jsonl".to_string(), path }];
    let plan = ImportPlan {
        traces,
        redact: true,
        redaction: RedactOptions::default(),
        max_line_bytes: 1_000_000,
        out: out.clone(),
    };
    let counted = Mutex::new(BTreeMap::new());
    let emit = |kind: EventKind| {
        if let EventKind::Counted { what, n, reason } = kind {
            counted.lock().unwrap().insert((what, reason), n);
        }
    };
    let summary = import(&plan, &emit).unwrap();
    assert_eq!((summary.traces_in, summary.accepted), (6, 2));
    let rejected = fs::read_to_string(out.join("rejected.jsonl")).unwrap();
    let found: Vec<(u64, String)> = rejected
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .map(|v| (v["line"].as_u64().unwrap(), v["reason"].as_str().unwrap().to_string()))
        .collect();
    let want = [(4, "invalid_utf8"), (5, "too_deep"), (6, "line_too_long"), (7, "invalid_json")];
    assert_eq!(found, want.map(|(line, reason)| (line, reason.to_string())));
    let counted = counted.into_inner().unwrap();
    assert_eq!(counted[&("traces".to_string(), String::new())], 2);
    assert_eq!(counted[&("traces rejected".to_string(), "too_deep".to_string())], 1);
}

#[test]
fn a_log_without_a_usable_line_is_an_error_that_says_where_to_look() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.jsonl");
    fs::write(&path, "nothing\nhere\n").unwrap();
    let traces = vec![NamedFile { name: "log.jsonl".to_string(), path }];
    let out = dir.path().join("import");
    let e = import(
        &ImportPlan {
            traces,
            redact: true,
            redaction: RedactOptions::default(),
            max_line_bytes: 1000,
            out: out.clone(),
        },
        &Silent,
    )
    .unwrap_err();
    assert!(e.to_string().contains("rejected.jsonl"), "{e}");
    assert_eq!(fs::read_to_string(out.join("rejected.jsonl")).unwrap().lines().count(), 2);
    assert!(!out.join("import.json").exists());
}

#[test]
fn without_enough_decisions_nothing_is_frozen_and_the_answer_says_what_is_missing() {
    let run = Run::new(&sample());
    run.import();
    run.curate();
    let mut plan = run.freeze_plan();
    plan.decisions = vec![NamedFile { name: "none.jsonl".to_string(), path: run.path("none.jsonl") }];
    let Frozen::Incomplete { status, missing } = freeze(&plan, &Silent).unwrap() else { panic!("it froze") };
    assert_eq!((status.reviewed, missing.len()), (0, 4));
    assert_eq!(missing.iter().map(|m| m.needed).sum::<u64>(), status.queued);
    assert!(!run.path("dataset").exists());
}

#[test]
fn unreviewed_rows_train_with_their_weight_and_never_test() {
    let made = sample();
    let run = Run::new(&made);
    run.import();
    run.curate();
    let q = queue(&run.path("curate"), 1).unwrap();
    let train: BTreeSet<&str> = q.items.iter().filter(|i| i.split != Split::Test).map(|i| i.id.as_str()).collect();
    // Decisions on the test split only, and on half of it.
    let kept: Vec<&str> = made
        .decisions
        .lines()
        .filter(|l| !train.contains(serde_json::from_str::<Decision>(l).unwrap().item.as_str()))
        .enumerate()
        .filter(|(i, _)| i % 2 == 0)
        .map(|(_, l)| l)
        .collect();
    fs::write(run.path("decisions.jsonl"), kept.join("\n") + "\n").unwrap();
    let mut plan = run.freeze_plan();
    plan.min_reviewed = BTreeMap::from([(Split::Test, 0.3)]);
    plan.unreviewed_weight = 0.25;
    let card = run.freeze(&plan);
    let dataset = Dataset::load(&run.path("dataset")).unwrap();
    assert!(dataset.rows(Split::Train).iter().all(|r| r.label_source == LabelSource::Teacher && r.weight == 0.25));
    assert!(!dataset.rows(Split::Train).is_empty());
    assert!(dataset.rows(Split::Calibration).is_empty());
    assert!(dataset.rows(Split::Test).iter().all(|r| r.label_source == LabelSource::Human && r.weight == 1.0));
    assert!(card.left_out["unreviewed"] > 0);
    let log = fs::read_to_string(run.path("review/left_out.jsonl")).unwrap();
    assert_eq!(log.lines().count() as u64, card.left_out["unreviewed"]);
}

#[test]
fn a_reviewer_can_undo_skip_reject_and_correct() {
    let run = Run::new(&sample());
    run.import();
    run.curate();
    let q = queue(&run.path("curate"), 1).unwrap();
    let path = run.path("mine.jsonl");
    let mut decisions = Decisions::load(&[&path]).unwrap();
    let first = q.open(&decisions)[0];
    let other = q.answers.labels().iter().find(|l| Some(*l) != first.label.as_ref()).unwrap();
    let mut n = 0;
    let mut decide = |decisions: &mut Decisions, verdict, label: Option<&str>, shown: &str| {
        n += 1;
        let at = format!("2026-03-20T10:00:{n:02}Z");
        decisions.append(&path, Decision::new(&at, "me", &first.id, verdict, label, shown, Some("why"))).unwrap();
    };
    let status = |d: &Decisions| (q.status(d).reviewed, q.open(d)[0].id == first.id);
    let shown = first.shown_sha256.as_str();
    decide(&mut decisions, Verdict::Correct, Some(other), shown);
    assert_eq!(status(&decisions), (1, false));
    decide(&mut decisions, Verdict::Undo, None, shown);
    assert_eq!(status(&decisions), (0, true));
    decide(&mut decisions, Verdict::Skip, None, shown);
    assert_eq!(q.open(&decisions).last().unwrap().id, first.id);
    decide(&mut decisions, Verdict::Reject, None, shown);
    assert_eq!(q.status(&decisions).per_split[&first.split].rejected, 1);
    decide(&mut decisions, Verdict::Correct, Some("no such label"), shown);
    assert_eq!(status(&decisions), (0, true));
    decide(&mut decisions, Verdict::Correct, Some(other), "0000");
    assert_eq!(q.status(&decisions).void["it was made about another text"], 1);
    // All of it is on disk, and a torn line takes nothing else away, whether it is the last or was appended to.
    let whole = fs::read(&path).unwrap();
    let cut_in_a_character = &"{\"id\":\"tornÄ".as_bytes()[..12];
    for torn in [&b"{\"id\":\"torn"[..], cut_in_a_character] {
        fs::write(&path, [&whole, torn].concat()).unwrap();
        let loaded = Decisions::load(&[&path]).unwrap();
        assert_eq!((loaded.list(), loaded.torn().len()), (decisions.list(), 1));
        let mut after = loaded;
        let next = Decision::new("2026-03-20T11:00:00Z", "me", &first.id, Verdict::Skip, None, shown, None);
        after.append(&path, next.clone()).unwrap();
        let loaded = Decisions::load(&[&path]).unwrap();
        assert_eq!(loaded.list().last(), Some(&next));
        assert_eq!(loaded.list().len(), decisions.list().len() + 1);
        assert_eq!(loaded.torn(), [(path.clone(), decisions.list().len() + 1)]);
    }
    fs::write(&path, "{}\n").unwrap();
    let e = Decisions::load(&[&path]).unwrap_err();
    assert!(e.to_string().contains("line 1"), "{e}");
}

#[test]
fn a_rejected_row_is_left_out_with_the_reviewers_reason() {
    let run = Run::new(&sample());
    run.import();
    run.curate();
    let mut decisions = Decisions::load(&[run.path("decisions.jsonl")]).unwrap();
    let q = queue(&run.path("curate"), 1).unwrap();
    let item = &q.items[0];
    let reject = Decision::new(
        "2026-09-01T00:00:00Z",
        "me",
        &item.id,
        Verdict::Reject,
        None,
        &item.shown_sha256,
        Some("no sense"),
    );
    decisions.append(&run.path("decisions.jsonl"), reject).unwrap();
    let card = run.freeze(&run.freeze_plan());
    assert_eq!(card.left_out["rejected_in_review"], 1);
    assert!(fs::read_to_string(run.path("review/left_out.jsonl")).unwrap().contains("no sense"));
}

#[test]
fn doubtful_rows_of_train_come_first_and_test_stays_random() {
    let run = Run::new(&sample());
    run.import();
    let summary = run.curate();
    assert!(summary.outside_taxonomy + summary.disagreements > 0);
    let q = queue(&run.path("curate"), 1).unwrap();
    let train: Vec<_> = q.items.iter().filter(|i| i.split == Split::Train).map(|i| i.reason).collect();
    assert!(train.is_sorted() && train.first() < train.last());
    let test: Vec<_> = q.items.iter().filter(|i| i.split == Split::Test).map(|i| i.reason).collect();
    assert!(!test.is_sorted());
    assert_eq!(q.items[0].split, Split::Test);
}

#[test]
fn too_few_customers_is_said_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let made = sample();
    let customer = regex::Regex::new(r#""customer":"cust-\d+""#).unwrap();
    let run = Run { dir, labels: made.labels.clone() };
    fs::write(run.path("traces.jsonl"), customer.replace_all(&made.traces, r#""customer":"one""#).as_bytes()).unwrap();
    run.import();
    let e = curate(&run.curate_plan(), &Silent).unwrap_err();
    assert!(e.to_string().contains("more customers"), "{e}");
}

#[test]
fn a_recipes_system_prompt_replaces_the_recorded_one() {
    let run = Run::new(&sample());
    run.import();
    run.curate();
    run.freeze(&FreezePlan { system: Some("Name the intent.".to_string()), ..run.freeze_plan() });
    let dataset = Dataset::load(&run.path("dataset")).unwrap();
    for row in dataset.rows(Split::Train) {
        let roles: Vec<&str> = row.messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!((roles, row.messages[0].content.as_str()), (vec!["system", "user"], "Name the intent."));
    }
}

#[test]
fn the_generator_makes_the_same_bytes_everywhere() {
    let made = sample();
    let digests = (sha256_hex(made.traces.as_bytes()), sha256_hex(made.decisions.as_bytes()));
    assert_eq!(
        (digests.0.as_str(), digests.1.as_str()),
        (
            "7bc57b31b332dda7dc4cd75ec4159af795dff8522ffa13c4c52e49233169ab41",
            "d182e9187fba07f5d07c5e29f2b654df270287ecfb0ac6970c6a3fbc0cada400"
        )
    );
    let right = made.decisions.matches("\"accept\"").count() as f64 / made.decisions.lines().count() as f64;
    assert!((0.87..0.96).contains(&right), "{right} of the answers are right");
}

#[test]
fn the_quickstart_runs_unattended_and_is_large_enough_to_decide() {
    let labels = quickstart_labels();
    let read = |name: &str| fs::read_to_string(quickstart().join(name)).unwrap();
    let made = Simulated { traces: read("traces.jsonl"), decisions: read("decisions.jsonl"), labels: labels.clone() };
    let run = Run::new(&made);
    let dataset = run.all();
    check_promises(&dataset, &made.traces, &labels);
    let rows = |split| dataset.rows(split).len();
    assert!(rows(Split::Test) >= 280 && rows(Split::Train) >= 420, "{:?}", dataset.card.splits);
    let status =
        queue(&run.path("curate"), 17).unwrap().status(&Decisions::load(&[run.path("decisions.jsonl")]).unwrap());
    assert_eq!((status.reviewed, status.void.len()), (status.queued, 0));
    for label in &labels {
        assert!(dataset.card.splits[&Split::Test].labels[label] >= 15, "{label}");
    }
}

fn quickstart_labels() -> Vec<String> {
    let log = fs::read_to_string(quickstart().join("traces.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    let system = first["request"]["messages"][0]["content"].as_str().unwrap();
    let list = system.split("one of: ").nth(1).unwrap().trim_end_matches('.');
    list.split(", ").map(str::to_string).collect()
}

/// Needs the source data: `LIMBECK_BANKING77=DIR cargo test -p limbeck-data-curation`.
#[test]
fn the_shipped_files_are_what_the_generator_makes() {
    let Some(dir) = std::env::var_os("LIMBECK_BANKING77") else { return };
    let made = simulate(&SimulatePlan::default(), &read_banking77(Path::new(&dir)).unwrap()).unwrap();
    assert!(made.traces == fs::read_to_string(quickstart().join("traces.jsonl")).unwrap(), "traces.jsonl differs");
    assert!(
        made.decisions == fs::read_to_string(quickstart().join("decisions.jsonl")).unwrap(),
        "decisions.jsonl differs"
    );
}

/// Answers that a teacher was asked for several times, imported and curated, and what they should weigh.
fn asked_several_times() -> (Run, serde_json::Value) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/agreement");
    let golden: serde_json::Value = serde_json::from_slice(&fs::read(fixture.join("golden.json")).unwrap()).unwrap();
    let labels: Vec<String> = serde_json::from_value(golden["labels"].clone()).unwrap();
    let run = Run { dir: tempfile::tempdir().unwrap(), labels };
    fs::copy(fixture.join("traces.jsonl"), run.path("traces.jsonl")).unwrap();
    fs::write(run.path("decisions.jsonl"), "").unwrap();
    run.import();
    run.curate();
    (run, golden)
}

/// The golden row of each trace.
fn by_trace(golden: &serde_json::Value) -> BTreeMap<&str, &serde_json::Value> {
    golden["rows"].as_array().unwrap().iter().map(|row| (row["id"].as_str().unwrap(), row)).collect()
}

#[test]
fn answers_that_a_teachers_draws_agree_on_less_weigh_less() {
    let (run, golden) = asked_several_times();
    let nothing = Split::ALL.into_iter().map(|s| (s, 0.0)).collect();
    let weight = golden["weight"].as_f64().unwrap() as f32;
    run.freeze(&FreezePlan { unreviewed_weight: weight, min_reviewed: nothing, ..run.freeze_plan() });
    let dataset = Dataset::load(&run.path("dataset")).unwrap();
    let want = by_trace(&golden);
    let rows: Vec<&Example> = [Split::Train, Split::Valid].into_iter().flat_map(|s| dataset.rows(s)).collect();
    assert!(rows.len() > 40, "{}", rows.len());
    for row in &rows {
        assert_eq!(row.label_source, LabelSource::Teacher);
        let want = want[row.trace.id.as_str()]["weight"].as_f64().unwrap();
        assert!((f64::from(row.weight) - want).abs() < 1e-6, "{}: {} instead of {want}", row.trace.id, row.weight);
    }
    assert!(rows.iter().any(|r| r.weight < weight) && rows.iter().all(|r| r.weight <= weight));
}

#[test]
fn freezing_tells_how_often_answers_were_right_with_all_draws_agreeing_and_with_some() {
    let (run, golden) = asked_several_times();
    let q = queue(&run.path("curate"), 1).unwrap();
    let path = run.path("decisions.jsonl");
    let mut decisions = Decisions::load(&[&path]).unwrap();
    let open: Vec<_> = q.open(&decisions).into_iter().cloned().collect();
    for (n, item) in open.iter().enumerate() {
        let other = q.answers.labels().iter().find(|l| Some(*l) != item.label.as_ref()).unwrap();
        // Every third is wrong, and every seventh is left undecided.
        let (verdict, label) = match n {
            n if n % 7 == 0 => continue,
            n if n % 3 == 0 => (Verdict::Correct, Some(other.as_str())),
            _ => (Verdict::Accept, None),
        };
        let at = format!("2026-03-20T10:{:02}:{:02}Z", n / 60, n % 60);
        let shown = item.shown_sha256.as_str();
        decisions.append(&path, Decision::new(&at, "me", &item.id, verdict, label, shown, None)).unwrap();
    }
    let notes = Mutex::new(Vec::new());
    let emit = |kind: EventKind| {
        if let EventKind::Note { text } = kind {
            notes.lock().unwrap().push(text);
        }
    };
    let nothing = Split::ALL.into_iter().map(|s| (s, 0.0)).collect();
    let plan = FreezePlan { unreviewed_weight: 0.3, min_reviewed: nothing, ..run.freeze_plan() };
    assert!(matches!(freeze(&plan, &emit).unwrap(), Frozen::Done(_)));

    // Counted again from the rows that were frozen and the draws that the script made.
    let dataset = Dataset::load(&run.path("dataset")).unwrap();
    let (want, mut counts) = (by_trace(&golden), [[0; 2]; 2]);
    for row in Split::ALL.into_iter().flat_map(|s| dataset.rows(s)).filter(|r| r.label_source == LabelSource::Human) {
        let asked = want[row.trace.id.as_str()];
        let draws = asked["draws"].as_array().unwrap();
        if draws.len() > 1 {
            let all = draws.iter().all(|draw| draw == &asked["answer"]);
            counts[usize::from(!all)][0] += u32::from(asked["answer"] == row.target.as_str());
            counts[usize::from(!all)][1] += 1;
        }
    }
    let [[all, of_all], [some, of_some]] = counts;
    assert!(all > 0 && some > 0 && all < of_all && some < of_some, "{counts:?}");
    let told =
        format!("{all} of {of_all} were right where all draws agreed, and {some} of {of_some} where only some did");
    let notes = notes.into_inner().unwrap();
    assert!(notes.iter().any(|note| note.ends_with(&told)), "{notes:?}\n{told}");
}
