//! `limbeck review`: opens the review screen on the run's queue. Decisions go to a stream of the session's own in the
//! store, append-only.

use crate::args::{Part, Review};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::queue;
use crate::settings::{Settings, keys_file, person, recipe_arg};
use crate::stages::{Run, cannot, review as stage};
use limbeck_artifact::journal;
use limbeck_data_curation::review::certify::{self, Inspection};
use limbeck_data_curation::review::handover::{self, HandOver};
use limbeck_data_curation::review::rank::Head;
use limbeck_data_curation::review::{self, Queue, ReviewStatus, agree, store};
use limbeck_tui::review::{KeyMap, Later, Options, QueueDesk, Role, Setup, tally};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

mod elsewhere;

pub fn review(settings: &Settings, args: &Review) -> Result<Exit> {
    let keys = keys(args)?;
    let resolved = settings.recipe(&args.recipe.recipe)?;
    let run = queue::curated(settings, &resolved)?;
    if args.plan {
        let (queue, head) = queue::ranked(&run)?;
        return plan(settings, &run, &queue, &head);
    }
    if let Some((path, tool)) = args.export.as_ref().zip(args.format) {
        return elsewhere::export(settings, &run, &queue::ranked(&run)?.0, path, tool);
    }
    // The rest asks for no order.
    if let Some(part) = &args.hand_over {
        return hand_over(settings, &run, args, part, &queue::plain(&run)?);
    }
    if let Some(path) = &args.import {
        return elsewhere::import(settings, &run, &queue::plain(&run)?, path);
    }
    if args.tally {
        return tell_tally(settings, &desk(&run, args, queue::plain(&run)?, None)?);
    }
    let (queue, later) = if args.status { (queue::plain(&run)?, None) } else { queue::opened(&run)? };
    let mut desk = desk(&run, args, queue, later)?;
    if !args.status {
        let colour = Terminal::of_stdout().colour;
        let outcome =
            limbeck_tui::review::run(&mut desk, &Options { colour, mouse: args.mouse, keys }).map_err(|e| {
                Failure::from(e)
                    .help(format!("see how far it got with `limbeck review {} --status`", recipe_arg(&run.resolved)))
            })?;
        let place = desk.stream().map_or(String::new(), |path| format!("; all are in {}", path.display()));
        output::stderr(&format!("{} decided now{place}\n", outcome.this_session));
    }
    tell(settings, &run, &desk)
}

fn desk(run: &Run<'_>, args: &Review, queue: Queue, later: Option<Later>) -> Result<QueueDesk> {
    let recipe = run.recipe();
    let guidelines = match &recipe.task.guidelines {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path).map_err(|e| {
            cannot("read the guidelines", path, &e).help("name another file as task.guidelines, or leave it out")
        })?,
    };
    let role = match (args.adjudicate, args.blind || recipe.review.reviewers_per_item > 1) {
        (true, _) => Role::Adjudicate,
        (false, true) => Role::Blind,
        (false, false) => Role::First,
    };
    let setup = Setup {
        name: format!("{} {}", recipe.name, recipe.version),
        queue,
        later,
        store: stage::decisions_dir(run),
        files: recipe.review.decisions.clone(),
        reviewer: reviewer(args),
        role,
        max_label_error: recipe.review.max_label_error,
        guidelines,
        now: Box::new(journal::now),
    };
    Ok(QueueDesk::open(setup)?)
}

/// Who sits here.
fn reviewer(args: &Review) -> String {
    args.reviewer.clone().unwrap_or_else(person)
}

fn hand_over(settings: &Settings, run: &Run<'_>, args: &Review, part: &Part, queue: &Queue) -> Result<Exit> {
    let (store, from) = (stage::decisions_dir(run), reviewer(args));
    if part.to == from {
        return Err(Failure::new(Exit::Usage, format!("{from} can't hand anything over to {from}"))
            .help("say who you are with --reviewer NAME"));
    }
    let entry = HandOver { at: journal::now(), from, to: part.to.clone(), share: part.share };
    handover::hand_over(&store, &entry)?;
    let (handed, decisions) = (handover::load(&store)?, store::open(&store, &run.recipe().review.decisions)?.0);
    let open = queue.open(&decisions);
    let of = |name: &str| open.iter().filter(|item| handover::owner(&handed, &item.id) == Some(name)).count();
    let (to, from) = (of(&entry.to), of(&entry.from));
    match settings.json {
        true => output::json(&json!({"entry": entry, "open": {"from": from, "to": to}}))?,
        false => output::stdout(&format!(
            "of what is open, {to} are {}'s now and {from} {}'s; screens that are open hear of it\n",
            entry.to, entry.from
        ))?,
    }
    Ok(Exit::Ok)
}

/// The screen's keys: those of `--keys`, or of the person's own file, or the defaults.
fn keys(args: &Review) -> Result<KeyMap> {
    let path = match (&args.keys, keys_file()) {
        (Some(path), _) => path.clone(),
        (None, Some(path)) if path.is_file() => path,
        _ => return Ok(KeyMap::default()),
    };
    let text = std::fs::read_to_string(&path).map_err(|e| cannot("read the keys in", &path, &e))?;
    keys_of(&text).map_err(|why| Failure::new(Exit::Usage, format!("{}: {why}", path.display())))
}

/// `accept = "y"` or `accept = ["y", "enter"]`, a line an action.
fn keys_of(text: &str) -> std::result::Result<KeyMap, String> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Keys {
        One(String),
        Some(Vec<String>),
    }
    let read: BTreeMap<String, Keys> = toml::from_str(text).map_err(|e| {
        format!("{}; a line is an action and its keys, such as accept = [\"y\", \"enter\"]", e.message())
    })?;
    let changes = read.into_iter().map(|(action, keys)| match keys {
        Keys::One(key) => (action, vec![key]),
        Keys::Some(keys) => (action, keys),
    });
    KeyMap::with(&changes.collect())
}

fn tell(settings: &Settings, run: &Run<'_>, desk: &QueueDesk) -> Result<Exit> {
    let status = desk.queue().status(desk.decisions());
    let missing = status.missing(&stage::min_reviewed(&run.recipe().review.min_reviewed));
    if settings.json {
        let certificate = desk.certificate();
        let streams: Vec<PathBuf> = stage::decision_files(run)?.into_iter().map(|f| f.path).collect();
        output::json(&json!({
            "status": status, "missing": missing, "decisions": streams, "certificate": certificate,
            "agreement": desk.agreement(),
        }))?;
    } else {
        output::stdout(&status_text(&status, &missing, &recipe_arg(&run.resolved)))?;
    }
    Ok(if missing.is_empty() { Exit::Ok } else { Exit::ReviewIncomplete })
}

fn tell_tally(settings: &Settings, desk: &QueueDesk) -> Result<Exit> {
    let (certificate, agreement) = (desk.certificate(), desk.agreement());
    let reviewers = agree::reviewers(desk.queue(), desk.decisions());
    match settings.json {
        true => output::json(&json!({
            "certificate": certificate, "agreement": agreement, "reviewers": reviewers, "inspections": desk.inspections(),
        }))?,
        false => {
            let lines = tally::lines(&certificate, desk.inspections(), &agreement, &reviewers);
            output::stdout(&format!("{}\n", lines.join("\n")))?;
        }
    }
    Ok(Exit::Ok)
}

/// Error rates for which the plan tells the chance of its inspections, as shares of the rate to be certified.
const SUPPOSED: [f64; 3] = [0.2, 0.4, 0.6];

fn plan(settings: &Settings, run: &Run<'_>, queue: &Queue, head: &Head) -> Result<Exit> {
    let rate = run.recipe().review.max_label_error;
    let population = queue.items.iter().filter(|item| item.draw.is_some()).count() as u64;
    let mut inspections = certify::inspections(rate, certify::ALPHA, population);
    // Beyond some thousand reviews nobody plans.
    inspections.truncate(10);
    let once: Vec<(u64, u64)> = (0..=16)
        .map(|errors| (certify::reviews_for(errors, rate, certify::ALPHA), errors))
        .filter(|(n, _)| *n <= population)
        .collect();
    let powers: Vec<(f64, Vec<f64>)> =
        SUPPOSED.iter().map(|part| (rate * part, certify::power(&inspections, rate * part))).collect();
    match settings.json {
        true => output::json(&json!({
            "max_label_error": rate, "alpha": certify::ALPHA, "population": population,
            "random_share": run.recipe().review.random_share, "suspects": head.suspects, "noise": head.noise,
            "once": once.iter().map(|(n, errors)| json!({"reviews": n, "accept": errors})).collect::<Vec<_>>(),
            "inspections": inspections, "powers": powers,
        }))?,
        false => output::stdout(&plan_text(&Plan {
            rate,
            population,
            share: run.recipe().review.random_share,
            head,
            once: &once,
            inspections: &inspections,
            powers: &powers,
            recipe: &recipe_arg(&run.resolved),
        }))?,
    }
    Ok(Exit::Ok)
}

struct Plan<'a> {
    rate: f64,
    population: u64,
    share: f64,
    head: &'a Head,
    once: &'a [(u64, u64)],
    inspections: &'a [Inspection],
    powers: &'a [(f64, Vec<f64>)],
    recipe: &'a str,
}

fn plan_text(plan: &Plan<'_>) -> String {
    let percent = |x: f64| {
        let text = format!("{:.1}", x * 100.0);
        format!("{}%", text.strip_suffix(".0").unwrap_or(&text))
    };
    let mut text = format!(
        "To certify that at most {} of the recorded labels of train and valid are wrong (95 %), by the random share alone\n\
         {} rows, {} of the queue drawn at random; {} of them look wrong to a linear model (about {}), come first and\n\
         count for no estimate unless drawn\n",
        percent(plan.rate),
        plan.population,
        percent(plan.share),
        plan.head.suspects,
        percent(plan.head.noise),
    );
    if plan.inspections.is_empty() {
        text.push_str(&format!(
            "\nThese rows are too few for that: even without an error {} reviews are needed.\n",
            certify::reviews_for(0, plan.rate, certify::ALPHA)
        ));
        return text;
    }
    text.push_str(
        "\nLooking as one goes, as the screen does: the chance to be certified by then, if so many are wrong\n",
    );
    text.push_str(&format!("  {:>8}  {:>13}", "reviews", "wrong at most"));
    plan.powers.iter().for_each(|(rate, _)| text.push_str(&format!("  {:>9}", format!("if {}", percent(*rate)))));
    text.push('\n');
    for (i, inspection) in plan.inspections.iter().enumerate() {
        text.push_str(&format!("  {:>8}  {:>13}", inspection.reviews, inspection.accept));
        plan.powers.iter().for_each(|(_, passed)| text.push_str(&format!("  {:>9}", percent(passed[i]))));
        text.push('\n');
    }
    text.push_str("\nOr looking once, at a number fixed beforehand\n");
    for (n, errors) in plan.once.iter().filter(|(_, errors)| [0, 1, 2, 4, 8, 16].contains(errors)) {
        text.push_str(&format!("  {n:>8}  {errors:>13}\n"));
    }
    text.push_str(&format!(
        "\nNext\n  limbeck review {}\n  limbeck review {} --plan --set review.max_label_error=0.02\n",
        plan.recipe, plan.recipe
    ));
    text
}

fn status_text(status: &ReviewStatus, missing: &[review::Missing], recipe: &str) -> String {
    let mut text = format!("{} of {} items decided\n", status.reviewed, status.queued);
    for (split, s) in &status.per_split {
        let needed =
            missing.iter().find(|m| m.split == *split).map_or(String::new(), |m| format!(", {} needed", m.needed));
        let mut more = String::new();
        if s.awaiting > 0 {
            more.push_str(&format!(", {} await another reviewer", s.awaiting));
        }
        if s.disputed > 0 {
            more.push_str(&format!(", {} disputed", s.disputed));
        }
        text.push_str(&format!(
            "  {:<12} {:>6} of {:>6}{needed} ({} rejected, {} skipped{more})\n",
            split.name(),
            s.reviewed,
            s.rows,
            s.rejected,
            s.skipped
        ));
    }
    for (why, n) in &status.void {
        text.push_str(&format!("  {n} decisions do not count: {why}\n"));
    }
    let disputed: u64 = status.per_split.values().map(|s| s.disputed).sum();
    text.push_str(&match missing {
        [] => format!("\nNext\n  limbeck run {recipe}\n"),
        _ => format!("\nNext\n  limbeck review {recipe}\n"),
    });
    if disputed > 0 {
        text.push_str(&format!("  limbeck review {recipe} --adjudicate --reviewer NAME\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::dataset::Split;
    use limbeck_data_curation::review::{Missing, SplitStatus};

    #[test]
    fn the_status_says_what_is_missing_and_what_to_do() {
        let mut status = ReviewStatus { queued: 12, reviewed: 9, ..ReviewStatus::default() };
        let split = SplitStatus { rows: 12, reviewed: 9, rejected: 1, skipped: 2, awaiting: 0, disputed: 1 };
        status.per_split.insert(Split::Test, split);
        status.void.insert("it was made about another text".to_owned(), 1);
        let missing = [Missing { split: Split::Test, reviewed: 9, needed: 12 }];
        insta::assert_snapshot!("review-status", status_text(&status, &missing, "recipes/x"));
        assert!(status_text(&status, &[], "recipes/x").contains("limbeck run recipes/x"));
    }

    #[test]
    fn the_plan_reads_well() {
        let head = Head { key: String::new(), suspects: 96, noise: 0.118 };
        let inspections = certify::inspections(0.05, certify::ALPHA, 700);
        let powers: Vec<_> = SUPPOSED.map(|s| (0.05 * s, certify::power(&inspections, 0.05 * s))).to_vec();
        let mut plan = Plan {
            rate: 0.05,
            population: 700,
            share: 0.2,
            head: &head,
            once: &[(59, 0), (93, 1), (124, 2)],
            inspections: &inspections,
            powers: &powers,
            recipe: "recipes/x",
        };
        insta::assert_snapshot!("review-plan", plan_text(&plan));
        plan.inspections = &[];
        assert!(plan_text(&plan).contains("even without an error 59 reviews are needed"));
    }

    /// The accept numbers come from data-curation's binomial tail, the bounds of the report from eval's beta quantile.
    #[test]
    fn the_plan_agrees_with_the_reports_bounds() {
        for (n, rate) in [(59, 0.05), (150, 0.05), (500, 0.05), (300, 0.02), (5_000, 0.01)] {
            let accept = certify::accept_number(n, rate, 0.05).unwrap();
            let bound = |errors| limbeck_eval::statistics::upper_bound(errors, n, 0.95);
            assert!(bound(accept) <= rate && bound(accept + 1) > rate, "{n} {rate} {accept}");
            assert!((certify::upper_bound(accept, n, 0.05) - bound(accept)).abs() < 1e-9);
        }
    }

    #[test]
    fn a_keys_file_is_lines_of_actions() {
        assert!(keys_of("accept = \"y\"\nskip = [\"f2\", \"a\"]\n").is_ok());
        let error = |text: &str| keys_of(text).unwrap_err();
        assert!(error("accept = 3").contains("accept = [\"y\", \"enter\"]"), "{}", error("accept = 3"));
        assert!(error("acept = \"y\"").contains("there is no action `acept`"));
    }
}
