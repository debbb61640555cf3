//! A judge's verdicts in words, with what they are worth: the same lines on the page and in the terminal.

use crate::preference::{Agreement, Judged, Position};
use crate::report::Fact;
use crate::statistics::Interval;
use crate::words::percent;

/// What the judge prefers, how much the order decides, and what reviewers would say.
pub fn judged_facts(judged: &Judged) -> Vec<Fact> {
    let mut preferred = format!(
        "{} {}: better on {}, worse on {}, level on {} of {} rows",
        percent(judged.share),
        range(judged.interval),
        judged.wins,
        judged.losses,
        judged.ties,
        judged.rows
    );
    if judged.same > 0 {
        preferred += &format!("; {} were the same text", judged.same);
    }
    if judged.by_validity > 0 {
        preferred += &format!("; {} were decided because an answer was not valid", judged.by_validity);
    }
    if judged.illegible > 0 {
        preferred += &format!("; {} more had no legible verdict", judged.illegible);
    }
    let mut facts = vec![Fact::new("preferred", preferred), Fact::new("position bias", position(&judged.position))];
    let reviewers = match &judged.reviewers {
        Some(agreement) => reviewed(agreement),
        None => "no judged row's answer was written anew, so nothing says whether it judges as they do".to_owned(),
    };
    facts.push(Fact::new("reviewers", reviewers));
    facts.extend(judged.facts.iter().cloned());
    facts
}

fn range(interval: Interval) -> String {
    format!("({} – {})", percent(interval.low), percent(interval.high))
}

fn position(position: &Position) -> String {
    let Some((first, interval)) = position.first_share.zip(position.first_interval) else {
        return format!("nothing to tell it by, of {} pairs in both orders", position.pairs);
    };
    format!(
        "what comes first is preferred {} {} of the time; the order alone decides {} of {} pairs ({} for the first, {} for the \
         second, p = {:.3}), which count as level",
        percent(first),
        range(interval),
        position.always_first + position.always_second,
        position.pairs,
        position.always_first,
        position.always_second,
        position.p
    )
}

fn reviewed(agreement: &Agreement) -> String {
    if agreement.rows == 0 {
        return format!("no legible verdict on any of {} answers that they wrote anew", agreement.illegible);
    }
    let illegible = match agreement.illegible {
        0 => String::new(),
        n => format!("; {n} more had no legible verdict"),
    };
    format!(
        "sides with the answer that a reviewer wrote anew on {} of {} rows, {} {}; with the one that was not taken on {}, level on {}{illegible}",
        agreement.with,
        agreement.rows,
        percent(agreement.with as f64 / agreement.rows.max(1) as f64),
        range(agreement.interval),
        agreement.against,
        agreement.ties
    )
}
