//! `limbeck shadow`: two artifacts answer the same recorded calls, one after the other. Where they differ, which is right where
//! that is known, what each costs, and how long a rollout would have to last before a difference showed.

use crate::args::Shadow as Args;
use crate::exit::Result;
use crate::output::{self, Terminal};
use crate::replay::{self, Call, Calls};
use crate::sealing;
use crate::settings::Settings;
use crate::stages::cannot;
use crate::verbs::eval::CONFIDENCE;
use crate::verbs::score::{Scorer, find};
use crate::{exit::Exit, prices};
use limbeck_artifact::dataset::{Dataset, LabelSource, Split};
use limbeck_artifact::schema::Schema;
use limbeck_artifact::untrusted::visible_line;
use limbeck_eval::statistics::{Interval, Risk, wilson};
use limbeck_eval::{
    Answered, AnsweredRow, Compared, Cost, Latency, PriceTable, RolloutStep, SHARES, compare, latency, rollout,
    self_hosted_cost, text_of, thousands,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Kinds of differences that are shown, and examples.
const CHANGES: usize = 8;
const EXAMPLES: usize = 5;
const SHOWN_CHARS: usize = 160;
/// Share of wrong answers that the rollout plan takes where nobody knows one.
const ASSUMED_ERROR: f64 = 0.10;

/// One of the two artifacts.
#[derive(Debug, Serialize)]
struct Side {
    artifact: String,
    name: String,
    version: String,
    /// Answers that are valid, and that its own policy serves.
    valid: f64,
    served: f64,
    /// Answers that are the recorded ones.
    as_recorded: f64,
    latency: Option<Latency>,
    cost: Option<Cost>,
}

#[derive(Debug, Serialize)]
struct Change {
    first: Option<String>,
    second: Option<String>,
    rows: u64,
}

#[derive(Debug, Serialize)]
struct Example {
    text: String,
    first: Option<String>,
    second: Option<String>,
    recorded: String,
}

#[derive(Debug, Serialize)]
struct Report {
    first: Side,
    second: Side,
    calls: u64,
    rejected: u64,
    asked: u64,
    unanswered: u64,
    same: u64,
    agreement: f64,
    /// Wilson's, two-sided at 95 %.
    agreement_interval: Interval,
    changes: Vec<Change>,
    examples: Vec<Example>,
    /// The second's time over the first's, call by call: the middle one.
    time_ratio: Option<f64>,
    /// On the calls whose answer a person reviewed.
    reviewed: Option<Compared>,
    /// Share of wrong answers and difference that the rollout is planned for, and whether that share was measured.
    error: f64,
    error_is_measured: bool,
    difference: f64,
    rollout: Vec<RolloutStep>,
}

/// What both say to one call.
struct Row {
    group: String,
    text: String,
    recorded: String,
    gold: Option<String>,
    said: [Said; 2],
}

#[derive(Clone, Debug)]
struct Said {
    /// As it is compared; None where it is not valid.
    answer: Option<String>,
    served: bool,
    ms: f64,
}

struct Opened {
    scorer: Scorer,
    schema: Option<Schema>,
    name: String,
    version: String,
}

impl Opened {
    fn open(settings: &Settings, args: &Args, artifact: &str) -> Result<(Opened, replay::Redaction)> {
        let (dir, manifest) = find(&args.artifact(artifact))?;
        let redaction = replay::redactor(&dir, &manifest, args.no_redact)?;
        let schema = manifest.task.schema.as_deref().and_then(|text| Schema::parse(text).ok());
        let (name, version) = (manifest.name.clone(), manifest.version.clone());
        let scorer = Scorer::open(&dir, manifest, settings, None, None)?;
        Ok((Opened { scorer, schema, name, version }, redaction))
    }

    fn compared(&self, text: &str) -> Option<String> {
        match &self.schema {
            None => Some(text.trim().to_owned()),
            Some(schema) => Answered::canonical(schema, text),
        }
    }

    /// None where the artifact can't answer, such as a message that is too long.
    fn ask(&self, call: &Call) -> Option<Said> {
        let begun = Instant::now();
        let answer = self.scorer.answer(&call.messages).ok()?;
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        let valid = answer.fault.is_none();
        let said = if valid { self.compared(answer.text()) } else { None };
        Some(Said { answer: said, served: answer.route != "escalate", ms })
    }
}

pub fn run(settings: &Settings, args: &Args) -> Result<Exit> {
    let (first, redaction) = Opened::open(settings, args, &args.first)?;
    let (second, _) = Opened::open(settings, args, &args.second)?;
    let calls =
        replay::draw(&args.traces, &args.reading, redaction.redactor.as_ref(), args.limit, args.seed)?.some()?;
    let gold = args.data.as_deref().map(|of| reviewed(of, &settings.runs_dir)).transpose()?.unwrap_or_default();
    let prices = args.prices.as_deref().map(prices::read).transpose()?;
    let rows = ask(&first, &second, &calls, &gold);
    let report = made(args, [&first, &second], &calls, &rows, prices.as_ref());
    match settings.json {
        true => output::json(&serde_json::to_value(&report)?)?,
        false => output::stdout(&text(&report, redaction.told.as_deref()))?,
    }
    Ok(Exit::Ok)
}

/// Targets of reviewed test rows by what was asked.
fn reviewed(of: &Path, runs: &Path) -> Result<BTreeMap<String, String>> {
    let places = [of.join("dataset"), of.to_owned(), runs.join(of).join("dataset")];
    let found = places.iter().find(|place| place.join("dataset.json").is_file());
    if found.is_none() {
        places.iter().try_for_each(|place| sealing::refuse(place, "dataset.json"))?;
    }
    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    let folder = found.ok_or_else(|| cannot("find a dataset in", of, &missing))?;
    let dataset = Dataset::load(folder)?;
    let rows = dataset.rows(Split::Test).iter().filter(|row| row.label_source == LabelSource::Human);
    Ok(rows.map(|row| (text_of(&row.messages), row.target.clone())).collect())
}

/// Both are asked in turn, the one that comes first by turns, so that neither has the warmer machine.
fn ask(first: &Opened, second: &Opened, calls: &Calls, gold: &BTreeMap<String, String>) -> Vec<Row> {
    let live = Terminal::of_stderr().live;
    if let Some(call) = calls.asked.first() {
        // The first call pays for what is made once.
        let _ = (first.ask(call), second.ask(call));
    }
    let mut rows = Vec::with_capacity(calls.asked.len());
    for (i, call) in calls.asked.iter().enumerate() {
        let both = match i % 2 {
            0 => {
                let one = first.ask(call);
                one.zip(second.ask(call))
            }
            _ => {
                let other = second.ask(call);
                first.ask(call).zip(other)
            }
        };
        if live && i % 16 == 0 {
            output::stderr(&format!("\r\x1b[Kasked both {i} of {}", calls.asked.len()));
        }
        let Some((a, b)) = both else { continue };
        let text = text_of(&call.messages);
        let target = gold.get(&text).map(|target| first.compared(target).unwrap_or_else(|| target.clone()));
        let recorded = first.compared(&call.answer).unwrap_or_else(|| call.answer.clone());
        rows.push(Row { group: i.to_string(), text, recorded, gold: target, said: [a, b] });
    }
    if live {
        output::stderr("\r\x1b[K");
    }
    rows
}

fn made(args: &Args, of: [&Opened; 2], calls: &Calls, rows: &[Row], prices: Option<&PriceTable>) -> Report {
    let n = rows.len() as u64;
    let share = |yes: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| yes(row)).count() as f64 / n.max(1) as f64;
    let side = |i: usize, artifact: &str| {
        let times: Vec<f64> = rows.iter().map(|row| row.said[i].ms).collect();
        let latency = latency(&times);
        Side {
            artifact: artifact.to_owned(),
            name: of[i].name.clone(),
            version: of[i].version.clone(),
            valid: share(&|row: &Row| row.said[i].answer.is_some()),
            served: share(&|row: &Row| row.said[i].served),
            as_recorded: share(&|row: &Row| row.said[i].answer.as_ref() == Some(&row.recorded)),
            cost: latency.as_ref().zip(prices).and_then(|(l, prices)| self_hosted_cost(l.mean_ms, prices).ok()),
            latency,
        }
    };
    let differ: Vec<&Row> = rows.iter().filter(|row| row.said[0].answer != row.said[1].answer).collect();
    let same = n - differ.len() as u64;
    let reviewed = of_reviewed(args, of, rows);
    let measured = reviewed.as_ref().map(|compared| 1.0 - compared.first_accuracy);
    // No error among few rows is no error rate of zero.
    let least = |compared: &Compared| 1.0 / (compared.rows as f64 + 2.0);
    let error = measured.zip(reviewed.as_ref()).map_or(ASSUMED_ERROR, |(error, c)| error.max(least(c)));
    let difference = (args.difference / 100.0).min(0.99 - error).max(1e-4);
    Report {
        first: side(0, &args.first),
        second: side(1, &args.second),
        calls: calls.seen,
        rejected: calls.rejected,
        asked: calls.asked.len() as u64,
        unanswered: calls.asked.len() as u64 - n,
        same,
        agreement: same as f64 / n.max(1) as f64,
        agreement_interval: wilson(same, n.max(1), CONFIDENCE),
        changes: changes(&differ),
        examples: differ.iter().take(EXAMPLES).map(|row| example(row)).collect(),
        time_ratio: middle(rows.iter().map(|row| row.said[1].ms / row.said[0].ms.max(1e-6)).collect()),
        reviewed,
        error,
        error_is_measured: measured.is_some(),
        difference,
        rollout: SHARES.iter().map(|share| rollout(error, difference, *share, Risk::default())).collect(),
    }
}

fn of_reviewed(args: &Args, of: [&Opened; 2], rows: &[Row]) -> Option<Compared> {
    let answered = |i: usize| {
        let known = rows.iter().enumerate().filter_map(|(number, row)| {
            let gold = row.gold.clone()?;
            let (group, answer) = (row.group.clone(), row.said[i].answer.clone());
            Some((format!("{number:09}"), AnsweredRow { group, text: cut(&row.text), gold, answer }))
        });
        Answered::new(&format!("{} {}", of[i].name, of[i].version), known.collect(), Vec::new())
    };
    compare(&answered(0), &answered(1), CONFIDENCE, args.seed)
}

/// The commonest differences first.
fn changes(differ: &[&Row]) -> Vec<Change> {
    let mut counts = BTreeMap::<[&Option<String>; 2], u64>::new();
    for row in differ {
        *counts.entry([&row.said[0].answer, &row.said[1].answer]).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|x, y| y.1.cmp(&x.1).then_with(|| x.0.cmp(&y.0)));
    let one = |([first, second], rows): ([&Option<String>; 2], u64)| Change {
        first: first.clone(),
        second: second.clone(),
        rows,
    };
    counts.into_iter().take(CHANGES).map(one).collect()
}

fn example(row: &Row) -> Example {
    Example {
        text: cut(&row.text),
        first: row.said[0].answer.clone(),
        second: row.said[1].answer.clone(),
        recorded: row.recorded.clone(),
    }
}

fn cut(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() { shown + "…" } else { shown }
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn text(report: &Report, redaction: Option<&str>) -> String {
    let percent = |x: f64| format!("{:.1} %", x * 100.0);
    let [a, b] = [&report.first, &report.second];
    let named = |side: &Side| {
        format!("{} {} ({})", visible_line(&side.name), visible_line(&side.version), visible_line(&side.artifact))
    };
    let mut out = format!("A  {}\nB  {}\n\n", named(a), named(b));
    let mut line = |what: &str, said: String| out.push_str(&format!("  {what:<14} {said}\n"));
    let n = report.asked - report.unanswered;
    line(
        "same answer",
        format!(
            "{} of {n} calls ({} to {})",
            percent(report.agreement),
            percent(report.agreement_interval.low),
            percent(report.agreement_interval.high)
        ),
    );
    line("as recorded", format!("A {}, B {}", percent(a.as_recorded), percent(b.as_recorded)));
    line("valid", format!("A {}, B {}", percent(a.valid), percent(b.valid)));
    line("served", format!("A {}, B {}, each by its own policy", percent(a.served), percent(b.served)));
    if let (Some(first), Some(second), Some(ratio)) = (&a.latency, &b.latency, report.time_ratio) {
        let times = |l: &Latency| format!("p50 {:.1} ms, p95 {:.1} ms", l.p50_ms, l.p95_ms);
        line("latency", format!("A {}; B {}; B takes {ratio:.2} of A's time", times(first), times(second)));
    }
    if let (Some(first), Some(second)) = (&a.cost, &b.cost) {
        let cost = |c: &Cost| format!("{:.4} {}", c.per_1k_calls, visible_line(&c.currency));
        line("1,000 calls", format!("A {}, B {}", cost(first), cost(second)));
    }
    out.push_str(&differences(report));
    if let Some(compared) = &report.reviewed {
        let points = |x: f64| format!("{:+.1}", x * 100.0).replace('-', "−");
        out.push_str(&format!(
            "\non the {} calls that a person reviewed\n  A {} right, B {}: {} points, {} to {} (Tango)\n  only B right on {}, only A on {}: p = {:.3} (exact McNemar)\n",
            compared.rows,
            percent(compared.first_accuracy),
            percent(compared.second_accuracy),
            points(compared.difference),
            points(compared.interval.low),
            points(compared.interval.high),
            compared.pair.b,
            compared.pair.c,
            compared.p_mcnemar
        ));
    }
    out.push_str(&plan(report));
    for (n, what) in [(report.rejected, "records were no calls"), (report.unanswered, "calls could not be answered")] {
        if n > 0 {
            out.push_str(&format!("  {n} {what}.\n"));
        }
    }
    if report.calls > report.asked {
        out.push_str(&format!("  {} of {} calls were drawn; --limit asks more.\n", report.asked, report.calls));
    }
    if let Some(told) = redaction {
        out.push_str(&format!("  {told}\n"));
    }
    out
}

fn differences(report: &Report) -> String {
    let answer = |answer: &Option<String>| {
        answer.as_deref().map_or("no valid answer".to_owned(), |a| visible_line(a).into_owned())
    };
    if report.changes.is_empty() {
        return String::new();
    }
    let mut out = "\nwhere they differ\n".to_owned();
    for change in &report.changes {
        out.push_str(&format!("  {:>5}  A {}, B {}\n", change.rows, answer(&change.first), answer(&change.second)));
    }
    out.push_str("\nfor example\n");
    for example in &report.examples {
        out.push_str(&format!(
            "  {}\n    A {}, B {}, recorded {}\n",
            visible_line(&example.text),
            answer(&example.first),
            answer(&example.second),
            visible_line(&example.recorded)
        ));
    }
    out
}

/// Until when a rollout would have seen a difference, and what it had cost by then.
fn plan(report: &Report) -> String {
    let basis = match report.error_is_measured {
        true => "A's share of wrong answers on the reviewed calls",
        false => "a guess: --data names reviewed rows to measure it on",
    };
    let mut out = format!(
        "\nrollout: until B, {:.1} points worse than {:.1} % wrong, would be seen (80 % power, 5 % level; {basis})\n",
        report.difference * 100.0,
        report.error * 100.0
    );
    for step in &report.rollout {
        out.push_str(&format!(
            "  {:>4} to B  {:>11} requests, {:>9} by B; error budget {:>6} more wrong answers\n",
            format!("{:.0} %", step.share * 100.0),
            thousands(step.requests),
            thousands(step.by_new),
            thousands(step.extra_errors)
        ));
    }
    out.push_str("  Requests count whose outcome is known: audited ones, or those with feedback.\n");
    out
}
