//! `limbeck review`: opens the review screen on the run's queue. Decisions go to a file of the reviewer's own in the
//! run folder, append-only.

use crate::args::Review;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::settings::{Settings, person, recipe_arg};
use crate::stages::{self, Run, review as stage};
use limbeck_artifact::event::Stage;
use limbeck_artifact::journal;
use limbeck_data_curation::review::{self, ReviewStatus};
use limbeck_tui::review::{Options, QueueDesk};
use serde_json::json;
use std::path::{Path, PathBuf};

pub fn review(settings: &Settings, args: &Review) -> Result<Exit> {
    let resolved = settings.recipe(&args.recipe.recipe)?;
    let run = Run::open(settings, resolved)?;
    stages::upto(&run, Stage::Curate)?;
    run.sink.clear();
    let queue = review::queue(&run.folder(Stage::Curate), run.recipe().seed)?;
    let reviewer = args.reviewer.clone().unwrap_or_else(person);
    let own = stage::decisions_dir(&run).join(format!("decisions-{}.jsonl", file_part(&reviewer)));
    let files: Vec<PathBuf> = stage::decision_files(&run)?.into_iter().map(|f| f.path).collect();
    let name = format!("{} {}", run.recipe().name, run.recipe().version);
    let mut desk = QueueDesk::open(&name, queue, &files, &own, &reviewer, journal::now)?;
    if !args.status {
        let colour = Terminal::of_stdout().colour;
        let outcome = limbeck_tui::review::run(&mut desk, &Options { colour }).map_err(|e| {
            Failure::from(e)
                .help(format!("see how far it got with `limbeck review {} --status`", recipe_arg(&run.resolved)))
        })?;
        output::stderr(&format!("{} decided now; all are in {}\n", outcome.this_session, own.display()));
    }
    tell(settings, &run, &desk, &own)
}

fn tell(settings: &Settings, run: &Run<'_>, desk: &QueueDesk, own: &Path) -> Result<Exit> {
    let status = desk.queue().status(desk.decisions());
    let missing = status.missing(&stage::min_reviewed(&run.recipe().review.min_reviewed));
    if settings.json {
        output::json(&json!({"status": status, "missing": missing, "decisions": own}))?;
    } else {
        output::stdout(&status_text(&status, &missing, &recipe_arg(&run.resolved)))?;
    }
    Ok(if missing.is_empty() { Exit::Ok } else { Exit::ReviewIncomplete })
}

fn status_text(status: &ReviewStatus, missing: &[review::Missing], recipe: &str) -> String {
    let mut text = format!("{} of {} items decided\n", status.reviewed, status.queued);
    for (split, s) in &status.per_split {
        let needed =
            missing.iter().find(|m| m.split == *split).map_or(String::new(), |m| format!(", {} needed", m.needed));
        text.push_str(&format!(
            "  {:<12} {:>6} of {:>6}{needed} ({} rejected, {} skipped)\n",
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
    text.push_str(&match missing {
        [] => format!("\nNext\n  limbeck run {recipe}\n"),
        _ => format!("\nNext\n  limbeck review {recipe}\n"),
    });
    text
}

/// A reviewer's name as part of a file's.
fn file_part(reviewer: &str) -> String {
    let part: String = reviewer
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(48)
        .collect();
    match part.trim_matches('-') {
        "" => "reviewer".to_owned(),
        part => part.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::dataset::Split;
    use limbeck_data_curation::review::{Missing, SplitStatus};

    #[test]
    fn the_status_says_what_is_missing_and_what_to_do() {
        let mut status = ReviewStatus { queued: 12, reviewed: 9, ..ReviewStatus::default() };
        let split = SplitStatus { rows: 12, reviewed: 9, rejected: 1, skipped: 2 };
        status.per_split.insert(Split::Test, split);
        status.void.insert("it was made about another text".to_owned(), 1);
        let missing = [Missing { split: Split::Test, reviewed: 9, needed: 12 }];
        insta::assert_snapshot!("review-status", status_text(&status, &missing, "recipes/x"));
        assert!(status_text(&status, &[], "recipes/x").contains("limbeck run recipes/x"));
    }

    #[test]
    fn a_reviewers_name_makes_a_safe_file_name() {
        assert_eq!(file_part("Ann Bee <a@b.c>"), "ann-bee--a-b-c");
        assert_eq!(file_part("../.."), "reviewer");
    }
}
