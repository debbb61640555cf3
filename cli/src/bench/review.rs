//! The review's own bars: how fast the desk is at a full queue, and how much planted noise comes first in it.

use crate::bench::args::{AnswerKind, BenchReview, BenchSuspects};
use crate::bench::banking::Rows;
use crate::exit::{Exit, Result};
use crate::memory::peak_rss_bytes;
use crate::output;
use crate::queue;
use crate::scratch::Scratch;
use crate::settings::Settings;
use crate::stages::cannot;
use limbeck_artifact::dataset::Split;
use limbeck_artifact::journal;
use limbeck_data_curation::Answers;
use limbeck_data_curation::review::rank::{self, RankPlan};
use limbeck_data_curation::review::{Item, Queue, QueueReason, Source};
use limbeck_data_curation::text::Rng;
use limbeck_tui::review::{Desk, QueueDesk, Rehearsal, Role, Setup, rehearse};
use limbeck_tui::text;
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

const CLASSES: usize = 77;
/// Bars: a start, and the way from a key that decides to the next item's picture.
const START: Duration = Duration::from_secs(1);
const NEXT: Duration = Duration::from_millis(16);
/// How many times the noise of a random draw the top of the queue must hold.
const ENRICHMENT: f64 = 3.0;

/// How fast a reviewer types while the queue is being ranked.
const KEYS: Duration = Duration::from_millis(20);
/// What a message of the wrapping's measure is made of, and how long it is.
const LONG: usize = 1_000_000;

/// Makes a run with a full queue and goes through some of it: as it is opened first, while the queue is being ranked, and as
/// it is opened again.
pub fn desk(settings: &Settings, args: &BenchReview) -> Result<Exit> {
    let place = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::within(&place, "bench-review")?;
    let folder = scratch.path().join("full");
    write_recipe(&folder, args.items, args.answers)?;
    let settings =
        Settings { runs_dir: scratch.path().join("runs"), sets: Vec::new(), device: None, ..settings.clone() };
    let begun = Instant::now();
    drop(queue::curated(&settings, &settings.recipe(&folder)?)?);
    let curated = begun.elapsed();
    let curate_rss = peak_rss_bytes().unwrap_or(0);

    let session = Session { settings: &settings, args, folder: &folder, store: scratch.path().join("store") };
    let (first, ranked) = session.go(KEYS)?;
    let (again, _) = session.go(Duration::ZERO)?;
    let long = |word: &str| {
        let message = word.repeat(LONG.div_ceil(word.len()));
        let begun = Instant::now();
        std::hint::black_box(text::lay(&message, usize::from(args.width), &[]));
        begun.elapsed()
    };
    let wrapped = [("English", long("a word or two of it ")), ("Chinese", long("卡片还没有到，"))];
    let figures = Figures { items: args.items, curated, ranked, first, again, wrapped, curate_rss };
    match settings.json {
        true => output::json(&figures.json())?,
        false => output::stdout(&figures.text())?,
    }
    Ok(Exit::Ok)
}

/// One sitting at the desk.
struct Session<'a> {
    settings: &'a Settings,
    args: &'a BenchReview,
    folder: &'a Path,
    store: std::path::PathBuf,
}

struct Sitting {
    start: Duration,
    steps: [(&'static str, Duration); 4],
    rehearsal: Rehearsal,
    rss: u64,
}

impl Session<'_> {
    /// What a reviewer waits for, from the command to the first picture, and from each key on. Then until the ranking is
    /// there, if it was not: the time from the start.
    fn go(&self, pause: Duration) -> Result<(Sitting, Duration)> {
        let begun = Instant::now();
        let resolved = self.settings.recipe(self.folder)?;
        let run = queue::curated(self.settings, &resolved)?;
        let looked = begun.elapsed();
        let (queue, later) = queue::opened(&run)?;
        let queued = begun.elapsed();
        let mut desk = QueueDesk::open(Setup {
            name: "full 0.1.0".to_owned(),
            queue,
            later,
            store: self.store.clone(),
            files: Vec::new(),
            reviewer: "bench".to_owned(),
            role: Role::First,
            max_label_error: 0.05,
            guidelines: String::new(),
            now: Box::new(journal::now),
        })?;
        let opened = begun.elapsed();
        let rehearsal = rehearse(&mut desk, self.args.decisions, pause, self.args.width, self.args.height);
        while desk.is_ranking() {
            std::thread::sleep(Duration::from_millis(20));
            desk.poll();
        }
        let steps = [
            ("run looked up", looked),
            ("queue read", queued - looked),
            ("desk opened", opened - queued),
            ("first picture", rehearsal.first),
        ];
        let rss = peak_rss_bytes().unwrap_or(0);
        Ok((Sitting { start: opened + rehearsal.first, steps, rehearsal, rss }, begun.elapsed()))
    }
}

struct Figures {
    items: usize,
    curated: Duration,
    /// From the first start until the ranking was there.
    ranked: Duration,
    first: Sitting,
    again: Sitting,
    /// A message of a megabyte laid out.
    wrapped: [(&'static str, Duration); 2],
    curate_rss: u64,
}

/// The share-th of sorted times.
fn at(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn spread(times: &[Duration]) -> [f64; 4] {
    [0.5, 0.95, 0.99, 1.0].map(|share| ms(at(times, share)))
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

impl Sitting {
    /// Whether the bars of the start and of the next item are met.
    fn met(&self) -> (bool, bool) {
        (self.start < START, at(&self.rehearsal.decisions, 0.99) < NEXT)
    }

    fn json(&self) -> serde_json::Value {
        let (start, next) = self.met();
        json!({
            "start_ms": ms(self.start), "start_met": start,
            "start_parts_ms": self.steps.iter().map(|(what, time)| json!({"what": what, "ms": ms(*time)}))
                .collect::<Vec<_>>(),
            "decision_ms_p50_p95_p99_max": spread(&self.rehearsal.decisions), "next_met": next,
            "look_ms_p50_p95_p99_max": spread(&self.rehearsal.looks), "peak_rss_bytes": self.rss,
        })
    }

    fn text(&self, caption: &str) -> String {
        let (start, next) = self.met();
        let mut text = format!(
            "{caption}\n  {:<34} {:>8.0}   bar {} ms: {}\n",
            "start, ms",
            ms(self.start),
            START.as_millis(),
            word(start)
        );
        for (what, time) in &self.steps {
            text.push_str(&format!("    {what:<32} {:>8.0}\n", ms(*time)));
        }
        let row = |name: &str, times: &[Duration]| {
            let [p50, p95, p99, most] = spread(times);
            format!("  {name:<34} {p50:>8.2} {p95:>8.2} {p99:>8.2} {most:>8.2}")
        };
        text.push_str(&format!("  {:<34} {:>8} {:>8} {:>8} {:>8}\n", "ms", "p50", "p95", "p99", "max"));
        text.push_str(&row("key to next item, decision on disk", &self.rehearsal.decisions));
        text.push_str(&format!("   bar {} ms at p99: {}\n", NEXT.as_millis(), word(next)));
        text.push_str(&format!("{}\n", row("key to picture, looking and typing", &self.rehearsal.looks)));
        text.push_str(&format!("  peak memory of the process so far   {:>6} MB\n", self.rss >> 20));
        text
    }
}

impl Figures {
    fn json(&self) -> serde_json::Value {
        let wrapped = self.wrapped.map(|(what, time)| json!({"what": what, "ms": ms(time)}));
        json!({
            "items": self.items, "curate_s": self.curated.as_secs_f64(), "curate_peak_rss_bytes": self.curate_rss,
            "ranked_after_s": self.ranked.as_secs_f64(), "first": self.first.json(), "again": self.again.json(),
            "wrap_megabyte_ms": wrapped,
        })
    }

    fn text(&self) -> String {
        let [english, chinese] = self.wrapped;
        format!(
            "{} items; made and curated in {:.1} s ({} MB)\n\n{}  the ranking came after {:>22.1} s\n\n{}\n\
             a message of a megabyte laid out: {} ms ({}), {} ms ({})\n\n{}\n",
            self.items,
            self.curated.as_secs_f64(),
            self.curate_rss >> 20,
            self.first.text("Opened first, ranked meanwhile"),
            self.ranked.as_secs_f64(),
            self.again.text("Opened again, in the kept order"),
            ms(english.1),
            english.0,
            ms(chinese.1),
            chinese.0,
            self.again.rehearsal.screen
        )
    }
}

/// A recipe whose traces are made up: words drawn anew for each message, some of them its label's.
fn write_recipe(folder: &Path, items: usize, answers: AnswerKind) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| cannot("create", folder, &e))?;
    let labels: Vec<String> = (0..CLASSES).map(|i| format!("intent_{i:02}")).collect();
    let task = match answers {
        AnswerKind::Labels => format!("labels = {labels:?}"),
        AnswerKind::Fields => "kind = \"extract\"\nschema = \"schema.json\"".to_owned(),
    };
    if answers == AnswerKind::Fields {
        let path = folder.join("schema.json");
        let field = json!({"type": "string"});
        let schema = json!({
            "type": "object", "properties": {"topic": field, "what": field, "when": field},
            "required": ["topic"], "additionalProperties": false,
        });
        std::fs::write(&path, schema.to_string()).map_err(|e| cannot("write", &path, &e))?;
    }
    let toml = format!(
        "name = \"full\"\n\n[task]\n{task}\n\n[model]\nbase = \"none.gguf\"\n\n[data]\ntraces = [\"traces.jsonl\"]\n\n\
         [data.split]\nvalid = 0.05\ncalibration = 0.05\ntest = 0.1\n\n[promote]\nchannel = \"none\"\n"
    );
    let path = folder.join("recipe.toml");
    std::fs::write(&path, toml).map_err(|e| cannot("write", &path, &e))?;
    let mut rng = Rng::new(11);
    let word = |n: usize| -> String {
        let syllables =
            ["ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "ru", "sa", "te", "vi", "wo", "zu", "pe"];
        [n, n / 16, n / 256].map(|k| syllables[k % 16]).concat()
    };
    let mut lines = String::new();
    for i in 0..items {
        let label = rng.below(CLASSES);
        let words: Vec<String> =
            (0..12).map(|k| word(if k % 3 == 0 { label * 40 + rng.below(40) } else { rng.below(4_096) })).collect();
        let answer = if rng.chance(0.08) { rng.below(CLASSES) } else { label };
        let content = match answers {
            AnswerKind::Labels => labels[answer].clone(),
            // Some say what the message does not, some leave out what must be there.
            AnswerKind::Fields if answer != label => json!({"what": labels[answer]}).to_string(),
            AnswerKind::Fields => json!({"topic": words[0], "when": words[4]}).to_string(),
        };
        let line = json!({
            "id": format!("call-{i:06}"), "customer": format!("c{}", i / 7),
            "request": {"messages": [{"role": "user", "content": words.join(" ")}]},
            "response": {"model": "m", "choices": [{"message": {"role": "assistant", "content": content}}]},
        });
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    let path = folder.join("traces.jsonl");
    std::fs::write(&path, lines).map_err(|e| cannot("write", &path, &e))
}

/// The noise among the first rows of the queue, beside that of a random draw.
#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Top {
    rows: usize,
    planted: usize,
    share: f64,
    /// Over the share of planted noise in all rows.
    times_random: f64,
}

/// Plants noise in the train rows of a data set and ranks them.
pub fn suspects(settings: &Settings, args: &BenchSuspects) -> Result<Exit> {
    let rows = Rows::read(&args.data)?;
    let labels = rows.labels();
    let mut rng = Rng::new(args.seed);
    let mut planted = BTreeSet::new();
    let mut items = Vec::new();
    let mut seen = BTreeSet::new();
    for (text, category) in rows.train.iter().filter(|(text, _)| seen.insert(text.clone())) {
        let mut label = labels.iter().position(|l| l == category).unwrap_or(0);
        if rng.chance(args.noise) {
            label = (label + 1 + rng.below(labels.len() - 1)) % labels.len();
            planted.insert(items.len().to_string());
        }
        items.push(item(items.len(), text, &labels[label]));
    }
    let begun = Instant::now();
    let mut queue = Queue { items, answers: Answers::Labels(labels), reviewers: 1 };
    let posteriors = queue::posteriors(&queue, &|_| {});
    let plan = RankPlan { random_share: 0.2, seed: args.seed };
    let ranking = rank::rank(&queue, &posteriors, &HashMap::new(), &plan, "");
    ranking.apply(&mut queue);
    let took = begun.elapsed();

    let all = planted.len() as f64 / queue.items.len() as f64;
    let top = |rows: usize, items: &mut dyn Iterator<Item = &Item>| {
        let planted = items.take(rows).filter(|item| planted.contains(&item.id)).count();
        let share = planted as f64 / rows as f64;
        Top { rows, planted, share, times_random: share / all }
    };
    let sizes: Vec<usize> =
        [100, 500, 1_000, planted.len()].into_iter().filter(|n| (1..=planted.len()).contains(n)).collect();
    let tops: Vec<Top> = sizes.iter().map(|n| top(*n, &mut queue.items.iter())).collect();
    let by_value = |n: usize| top(n, &mut queue.items.iter().filter(|item| item.source != Source::Random));
    let values: Vec<Top> = sizes.iter().map(|n| by_value(*n)).collect();
    let met = tops.iter().all(|top| top.times_random >= ENRICHMENT);
    if settings.json {
        output::json(&json!({
            "rows": queue.items.len(), "planted": planted.len(), "noise": all, "suspects": ranking.head.suspects,
            "estimated_noise": ranking.head.noise, "seconds": took.as_secs_f64(), "queue": tops, "by_value": values,
            "bar": ENRICHMENT, "met": met,
        }))?;
    } else {
        let mut text = format!(
            "{} rows, {} wrong labels planted ({:.1}%); {} suspects, estimated noise {:.1}%; {:.1} s\n\n\
             {:>8}  {:>26}  {:>26}\n",
            queue.items.len(),
            planted.len(),
            all * 100.0,
            ranking.head.suspects,
            ranking.head.noise * 100.0,
            took.as_secs_f64(),
            "first",
            "in the queue (20% random)",
            "of those by value"
        );
        for (queue, value) in tops.iter().zip(&values) {
            let cell = |t: &Top| format!("{} = {:.0}%, {:.1} x random", t.planted, t.share * 100.0, t.times_random);
            text.push_str(&format!("{:>8}  {:>26}  {:>26}\n", queue.rows, cell(queue), cell(value)));
        }
        let word = if met { "met" } else { "MISSED" };
        text.push_str(&format!("\nbar: {ENRICHMENT} x random down to as many rows as were planted: {word}\n"));
        output::stdout(&text)?;
    }
    Ok(Exit::Ok)
}

/// A row of the train split, as a queue holds it.
pub(super) fn item(n: usize, text: &str, label: &str) -> Item {
    Item {
        id: n.to_string(),
        split: Split::Train,
        message: text.to_owned(),
        answer: label.to_owned(),
        label: Some(label.to_owned()),
        rivals: Vec::new(),
        reason: QueueReason::Random,
        detail: None,
        feedback: None,
        at: None,
        shown_sha256: String::new(),
        source: Source::Random,
        hint: None,
        draw: None,
        copies: 0,
    }
}
