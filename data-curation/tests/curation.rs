//! What a recipe can ask of curation beside the defaults, each against the rows themselves: time split, balance,
//! filters, protected files; that the number of threads changes nothing; that a long log goes through in pieces.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use limbeck_artifact::dataset::{Dataset, LabelSource, Split};
use limbeck_artifact::event::Silent;
use limbeck_data_curation::curate::{Curated, LeftOut, Sample, load};
use limbeck_data_curation::redact::RedactOptions;
use limbeck_data_curation::review::{FreezePlan, Frozen, freeze};
use limbeck_data_curation::simulate::bulk::{BulkPlan, Pair, bulk, labels};
use limbeck_data_curation::{
    Answers, Balance, CurateOptions, CuratePlan, CurateSummary, Error, Fractions, ImportPlan, NamedFile, Quality,
    curate, import,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    /// A made-up log of so many traces, with these lines after it, imported.
    fn new(count: u64, more: &str) -> Run {
        let dir = tempfile::tempdir().unwrap();
        let (mut traces, mut pairs, mut decisions) = (Vec::new(), Vec::new(), Vec::new());
        bulk(&BulkPlan { count, seed: 4 }, &mut traces, &mut pairs, &mut decisions).unwrap();
        traces.extend_from_slice(more.as_bytes());
        let run = Run { dir };
        fs::write(run.path("traces.jsonl"), traces).unwrap();
        fs::write(run.path("pairs.jsonl"), pairs).unwrap();
        fs::write(run.path("decisions.jsonl"), decisions).unwrap();
        let plan = ImportPlan {
            traces: run.named("traces.jsonl"),
            redact: true,
            redaction: RedactOptions::default(),
            max_line_bytes: 1 << 20,
            out: run.path("import"),
        };
        import(&plan, &Silent).unwrap();
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn named(&self, name: &str) -> Vec<NamedFile> {
        vec![NamedFile { name: name.to_string(), path: self.path(name) }]
    }

    fn plan(&self, options: CurateOptions) -> CuratePlan {
        CuratePlan {
            imported: self.path("import"),
            answers: Answers::Labels(labels()),
            min_chars: 1,
            max_chars: 8000,
            near_dup_threshold: 0.8,
            split: Fractions { valid: 0.1, calibration: 0.1, test: 0.2 },
            seed: 3,
            options,
            out: self.path("curate"),
        }
    }

    fn curate(&self, options: CurateOptions) -> (CurateSummary, Vec<Curated>) {
        let summary = curate(&self.plan(options), &Silent).unwrap();
        let rows = load(&self.path("curate")).unwrap();
        let accounted = summary.kept.values().sum::<u64>() + summary.left_out.values().sum::<u64>();
        assert_eq!(accounted, summary.rows_in);
        assert_eq!(rows.len() as u64, summary.kept.values().sum::<u64>());
        assert_eq!(self.left_out().len() as u64, summary.left_out.values().sum::<u64>());
        (summary, rows)
    }

    fn left_out(&self) -> Vec<LeftOut> {
        let log = fs::read_to_string(self.path("curate/left_out.jsonl")).unwrap();
        log.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn freeze(&self) -> Dataset {
        let plan = FreezePlan {
            imported: self.path("import"),
            curated: self.path("curate"),
            decisions: self.named("decisions.jsonl"),
            system: None,
            reviewers_per_item: 1,
            min_reviewed: BTreeMap::new(),
            unreviewed_weight: 0.25,
            seed: 17,
            max_label_error: 0.05,
            redacted: true,
            out: self.path("dataset"),
            left_out: self.path("review/left_out.jsonl"),
        };
        let Frozen::Done(_) = freeze(&plan, &Silent).unwrap() else { panic!("nothing was frozen") };
        Dataset::load(&self.path("dataset")).unwrap()
    }
}

fn in_split(rows: &[Curated], split: Split) -> impl Iterator<Item = &Curated> {
    rows.iter().filter(move |r| r.split == split)
}

#[test]
fn planted_pairs_are_found_and_conflicts_go_to_review() {
    let run = Run::new(4000, "");
    let (summary, rows) = run.curate(CurateOptions::default());
    let like: BTreeMap<String, String> =
        run.left_out().into_iter().filter_map(|l| Some((l.trace.id, l.like?))).collect();
    let root = |id: &str| {
        let mut at = id;
        while let Some(next) = like.get(at) {
            at = next;
        }
        at.to_string()
    };
    let pairs = fs::read_to_string(run.path("pairs.jsonl")).unwrap();
    let pairs: Vec<Pair> = pairs.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let (near, far): (Vec<&Pair>, Vec<&Pair>) = pairs.iter().partition(|p| p.jaccard >= 0.8);
    let found = near.iter().filter(|p| root(&p.a) == root(&p.b)).count();
    assert!(found as f64 >= 0.99 * near.len() as f64, "{found} of {}", near.len());
    // Verified: a pair below the threshold is one cluster only where a third text joins it.
    let joined = far.iter().filter(|p| root(&p.a) == root(&p.b)).count();
    assert!(joined * 10 < far.len(), "{joined} of {} joined below the threshold", far.len());
    let disputed = rows.iter().filter(|r| !r.rivals.is_empty()).count() as u64;
    assert_eq!((disputed, disputed > 50), (summary.disagreements, true));
    for row in rows.iter().filter(|r| !r.rivals.is_empty()) {
        assert!(!row.rivals.contains(row.label.as_ref().unwrap()));
    }
}

#[test]
fn the_newest_rows_are_test_and_their_customers_nowhere_else() {
    let run = Run::new(3000, "");
    let (summary, rows) = run.curate(CurateOptions { by_time: true, ..CurateOptions::default() });
    let at = |r: &Curated| r.row.trace.at.clone().unwrap();
    let oldest_of_test = in_split(&rows, Split::Test).map(at).min().unwrap();
    let newest_of_rest = rows.iter().filter(|r| r.split != Split::Test).map(at).max().unwrap();
    assert!(newest_of_rest <= oldest_of_test);
    let customers =
        |split| in_split(&rows, split).filter_map(|r| r.row.trace.customer.clone()).collect::<BTreeSet<_>>();
    let test = customers(Split::Test);
    for split in [Split::Train, Split::Valid, Split::Calibration] {
        assert!(!customers(split).is_empty() && customers(split).is_disjoint(&test));
    }
    assert!(summary.left_out["customer_in_test"] > 0);
    let distinct = summary.rows_in - summary.left_out["exact_duplicate"] - summary.left_out["near_duplicate"];
    assert_eq!(summary.kept[&Split::Test], (0.2 * distinct as f64).round() as u64);
}

#[test]
fn without_times_there_is_no_split_by_time_and_the_error_says_so() {
    let line = |i: usize| {
        let text = format!("message {i} of a log without times, and some words {}", i * i);
        format!(
            r#"{{"messages":[{{"role":"user","content":"{text}"}},{{"role":"assistant","content":"card_wrong"}}]}}"#
        )
    };
    let run = Run::new(0, &(0..50).map(|i| line(i) + "\n").collect::<String>());
    let e = curate(&run.plan(CurateOptions { by_time: true, ..CurateOptions::default() }), &Silent).unwrap_err();
    assert!(matches!(&e, Error::Plan(why) if why.contains("by_time") && why.contains("0 say when")), "{e}");
}

#[test]
fn balance_evens_out_train_and_leaves_test_alone() {
    let counts = |rows: &[Curated], split| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        in_split(rows, split).filter_map(|r| r.label.clone()).for_each(|l| *counts.entry(l).or_default() += 1);
        counts
    };
    let run = Run::new(3000, "");
    let (_, plain) = run.curate(CurateOptions::default());
    let smallest = *counts(&plain, Split::Train).values().min().unwrap();
    for (balance, keeps) in [
        (Balance::Equal, Box::new(|_: usize| smallest) as Box<dyn Fn(usize) -> usize>),
        (Balance::Sqrt, Box::new(|n: usize| ((n * smallest) as f64).sqrt().round() as usize)),
    ] {
        let (summary, rows) = run.curate(CurateOptions { balance, ..CurateOptions::default() });
        let want: BTreeMap<String, usize> =
            counts(&plain, Split::Train).into_iter().map(|(l, n)| (l, keeps(n))).collect();
        assert_eq!(counts(&rows, Split::Train), want);
        assert_eq!(counts(&rows, Split::Test), counts(&plain, Split::Test));
        let before = in_split(&plain, Split::Train).count();
        assert_eq!(summary.left_out["balanced_away"] as usize, before - in_split(&rows, Split::Train).count());
    }
}

fn odd_line(n: usize, message: &str, answer: &str, finish: &str) -> String {
    serde_json::json!({
        "id": format!("odd-{n}"), "customer": format!("odd-customer-{n}"), "time": "2025-02-04T00:00:00Z",
        "messages": [{"role": "user", "content": message}],
        "response": {"choices": [{"message": {"content": answer}, "finish_reason": finish}]},
    })
    .to_string()
        + "\n"
}

#[test]
fn doubtful_rows_are_counted_and_shown_and_go_only_where_asked() {
    let spam = "buy now and save ".repeat(12);
    let lines = [
        odd_line(1, "tell me something about the weather", "I'm sorry, I can't help with that.", "stop"),
        odd_line(2, "a question that was cut off somewhere", "card_wro", "length"),
        odd_line(3, &spam, "card_wrong", "stop"),
        odd_line(4, "dear {{customer_name}}, what is this", "card_wrong", "stop"),
        odd_line(5, "a very long complaint that ends [truncated]", "card_wrong", "stop"),
    ];
    let run = Run::new(1000, &lines.concat());
    let (summary, rows) = run.curate(CurateOptions::default());
    let kept: BTreeSet<&str> = rows.iter().map(|r| r.row.trace.id.as_str()).collect();
    assert!((1..=5).all(|n| kept.contains(format!("odd-{n}").as_str())), "counted, not removed");
    for sign in Quality::ALL {
        let n = summary.signs[sign.name()];
        assert_eq!(n, if sign == Quality::OutsideTaxonomy { 2 } else { 1 }, "{}", sign.name());
    }
    let samples = fs::read_to_string(run.path("curate/quality.jsonl")).unwrap();
    let samples: Vec<Sample> = samples.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(samples.len(), 7);
    assert!(samples.iter().any(|s| s.sign == "refusal" && s.trace.id == "odd-1" && s.answer.starts_with("I'm sorry")));

    let drop = vec![Quality::Refusal, Quality::RepeatedNgrams];
    let (summary, rows) = run.curate(CurateOptions { drop, ..CurateOptions::default() });
    assert_eq!((summary.left_out["refusal"], summary.left_out["repeated_ngrams"]), (1, 1));
    assert!(rows.iter().all(|r| !["odd-1", "odd-3"].contains(&r.row.trace.id.as_str())));
}

#[test]
fn no_row_repeats_a_protected_file() {
    let run = Run::new(2000, &odd_line(1, "Where did my parcel with the blue shoes go?", "delivery_missing", "stop"));
    let (_, rows) = run.curate(CurateOptions::default());
    let message = |r: &Curated| r.row.trace.messages.last().unwrap().content.clone();
    let some: Vec<String> = in_split(&rows, Split::Train).take(3).map(message).collect();
    let text = format!("where did my parcel with the BLUE shoes go\n{{\"text\":{}}}\n", serde_json::json!(some[0]));
    fs::write(run.path("gold.jsonl"), text).unwrap();
    let against = CurateOptions { decontaminate_against: run.named("gold.jsonl"), ..CurateOptions::default() };
    let (summary, rows) = run.curate(against);
    assert_eq!(summary.left_out["in_protected_file"], 2);
    assert!(rows.iter().all(|r| r.row.trace.id != "odd-1" && message(r) != some[0]));
    let log = run.left_out();
    let one = log.iter().find(|l| l.trace.id == "odd-1").unwrap();
    assert_eq!((one.reason.as_str(), one.note.as_deref()), ("in_protected_file", Some("gold.jsonl:1")));
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let made = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let run = Run::new(2500, "");
            run.curate(CurateOptions::default());
            run.freeze();
            let files =
                ["import/accepted.parquet", "curate/curated.parquet", "curate/left_out.jsonl", "curate/curate.json"];
            let frozen = ["dataset/dataset.json", "dataset/train.jsonl", "dataset/rows.parquet"];
            files.into_iter().chain(frozen).map(|f| (f, fs::read(run.path(f)).unwrap())).collect::<Vec<_>>()
        })
    };
    let one = made(1);
    for (a, b) in one.iter().zip(made(3)) {
        assert!(*a == b, "{} differs", a.0);
    }
}

/// More rows than are in memory at a time.
#[test]
fn a_log_of_many_pieces_is_curated_and_frozen_like_a_short_one() {
    let run = Run::new(40_000, "");
    let (summary, rows) = run.curate(CurateOptions::default());
    assert_eq!(summary.rows_in, 40_000);
    let mut home: BTreeMap<&str, Split> = BTreeMap::new();
    for row in &rows {
        let customer = row.row.trace.customer.as_deref().unwrap();
        assert_eq!(*home.entry(customer).or_insert(row.split), row.split);
    }
    let order: Vec<u64> = rows.iter().map(|r| r.row.line).collect();
    assert!(order.is_sorted());
    let dataset = run.freeze();
    let card = &dataset.card;
    assert_eq!(card.traces_in, 40_000);
    let by = &card.curation.labels_by;
    let human = by[&LabelSource::Human];
    assert_eq!((human.weight, human.rows > 1000), (human.rows as f64, true));
    assert_eq!(by[&LabelSource::Teacher].weight, 0.25 * by[&LabelSource::Teacher].rows as f64);
    let rows: u64 = card.splits.values().map(|s| s.rows).sum();
    assert_eq!(card.curation.slices["model"].values().sum::<u64>(), rows);
    assert!(
        card.curation.redaction_recall.values().all(|r| *r > 0.97) && card.curation.redaction_note.contains("Names")
    );
    assert_eq!(table_rows(&run.path("dataset/rows.parquet")), rows);
    card.check_files(&run.path("dataset")).unwrap();
    let bytes = fs::read(run.path("dataset/rows.parquet")).unwrap();
    fs::write(run.path("dataset/rows.parquet"), [&bytes[..], b"x"].concat()).unwrap();
    assert!(card.check_files(&run.path("dataset")).unwrap_err().to_string().contains("rows.parquet"));
}

fn table_rows(path: &Path) -> u64 {
    use polars_io::SerReader;
    polars_io::parquet::read::ParquetReader::new(fs::File::open(path).unwrap()).finish().unwrap().height() as u64
}

/// A call of a conversation: an id of it in the metadata where one is given, and the turns so far.
fn turn(n: usize, customer: &str, thread: Option<&str>, turns: &[String], answer: &str) -> String {
    let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    let messages: Vec<_> =
        turns.iter().enumerate().map(|(i, text)| serde_json::json!({"role": role(i), "content": text})).collect();
    serde_json::json!({
        "id": format!("turn-{n}"), "customer": (!customer.is_empty()).then_some(customer),
        "time": format!("2025-{:02}-04T00:00:{:02}Z", 1 + n % 12, n % 60),
        "request": {"messages": messages, "metadata": {"thread_id": thread}},
        "response": {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]},
    })
    .to_string()
        + "\n"
}

/// Words that no other message has, so that nothing but the conversation ties rows together.
fn said(n: usize) -> String {
    (0..9).map(|k| format!("w{:x}", (n * 9 + k).wrapping_mul(2_654_435_761) % 1_000_003)).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_conversation_is_in_one_split_whether_the_log_names_it_or_not() {
    let mut lines = String::new();
    let mut planted: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut n = 0;
    let mut add = |of: String, customer: &str, thread: Option<&str>, turns: &[String]| {
        planted.entry(of).or_default().push(n);
        lines.push_str(&turn(n, customer, thread, turns, &labels()[n % 3]));
        n += 1;
    };
    for c in 0..60 {
        let (named, fresh) = (format!("thread-{c}"), |k: usize| said(c * 20 + k));
        // Two calls of a named conversation, by different customers: both are tied, and so are their other calls.
        add(named.clone(), &format!("a{c}"), Some(&named), &[fresh(0)]);
        add(named.clone(), &format!("b{c}"), Some(&named), &[fresh(1)]);
        add(named.clone(), &format!("b{c}"), None, &[fresh(2)]);
        // Three of one that is known by how it begins; the message before is repeated in each.
        let mut turns = vec![fresh(3), "what is it about?".to_string(), fresh(4)];
        add(format!("prefix-{c}"), "", None, &turns);
        turns.extend(["and then?".to_string(), fresh(5)]);
        add(format!("prefix-{c}"), "", None, &turns);
        turns.extend(["and before?".to_string(), fresh(6)]);
        add(format!("prefix-{c}"), "", None, &turns);
        // Strangers who begin alike are not tied.
        add(format!("stranger-{c}"), "", None, &["hi".to_string(), "hello!".to_string(), fresh(7)]);
    }
    let run = Run::new(0, &lines);
    for by_time in [false, true] {
        let (summary, rows) = run.curate(CurateOptions { by_time, ..CurateOptions::default() });
        let of: BTreeMap<&str, &Curated> = rows.iter().map(|r| (r.row.trace.id.as_str(), r)).collect();
        let (mut used, mut several, mut strangers) = (BTreeSet::new(), 0, BTreeSet::new());
        for (name, calls) in &planted {
            let kept: Vec<&&Curated> = calls.iter().filter_map(|n| of.get(format!("turn-{n}").as_str())).collect();
            let splits: BTreeSet<Split> = kept.iter().map(|r| r.split).collect();
            assert!(splits.len() <= 1, "{name} straddles {splits:?}");
            several += usize::from(kept.len() > 1 && !name.starts_with("stranger"));
            if let (true, Some(row)) = (name.starts_with("stranger"), kept.first()) {
                strangers.insert(row.group.clone());
            }
            used.extend(splits);
        }
        assert_eq!(used.len(), 4, "there are splits to straddle");
        assert!(several > if by_time { 30 } else { 100 }, "{several} conversations have several rows");
        assert!(strangers.len() > 40, "{}", strangers.len());
        assert!(summary.threads as usize >= several / 2, "{}", summary.threads);
        assert_eq!(summary.left_out.contains_key("thread_in_test"), by_time);
    }
}
