//! `limbeck eval`: the stages up to the evaluation of a recipe, or the statistics' own examination.

use crate::args::EvalArgs;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::sealing;
use crate::settings::{Recording, Settings};
use crate::stages::cannot;
use crate::verbs::{referee, run};
use limbeck_artifact::event::Stage;
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::untrusted::visible_line;
use limbeck_eval::statistics::Interval;
use limbeck_eval::{Answered, Claim, Compared, Effort, Figure, Latency, Report, compare, junit, self_check};
use serde_json::json;
use std::path::Path;

/// Of the intervals of a comparison, two-sided.
pub const CONFIDENCE: f64 = 0.95;

pub fn eval(settings: &Settings, args: &EvalArgs) -> Result<Exit> {
    if let Some([first, second]) = args.compare.as_deref() {
        return side_by_side(settings, first, second);
    }
    match &args.recipe {
        _ if args.self_check => examine(settings, args.seed),
        Some(recipe) => {
            let recording = Recording { record: args.record.clone(), replay: args.replay.clone() };
            let settings = &Settings { recording, ..settings.clone() };
            if let Some(url) = &args.referee {
                return referee::referee(settings, recipe, url, args.rows);
            }
            // The report is read once more behind the run.
            let named = settings.recipe(recipe)?.recipe;
            let _open = sealing::hold(&settings.run_dir(&named.name), &named.encrypt)?;
            let exit = run::run(settings, recipe, Stage::Eval, &crate::args::ScalarArgs::default())?;
            if let Some(path) = &args.junit {
                let run = settings.run_dir(&named.name);
                let report = Report::load(&run.join("eval/report.json"))?;
                write_atomic(path, junit(&report).as_bytes()).map_err(|e| cannot("write", path, &e))?;
            }
            Ok(exit)
        }
        None => Err(Failure::new(Exit::Usage, "there is no recipe to evaluate").help("limbeck eval RECIPE")),
    }
}

/// Two runs' candidates on the test rows that both have.
fn side_by_side(settings: &Settings, first: &Path, second: &Path) -> Result<Exit> {
    let load = |of: &Path| {
        let folder = if of.join("eval").is_dir() { of.to_owned() } else { settings.runs_dir.join(of) };
        sealing::refuse(&folder, "eval/report.json")?;
        if !folder.join("eval/report.json").is_file() {
            let message = format!("there is no evaluation in {}", folder.display());
            return Err(Failure::new(Exit::Usage, message)
                .help("name a run's folder or its name; `limbeck eval RECIPE` evaluates"));
        }
        Ok(Answered::load(&folder)?)
    };
    let (first, second) = (load(first)?, load(second)?);
    let Some(compared) = compare(&first, &second, CONFIDENCE, 17) else {
        let message = format!("{} and {} have no test row in common", first.name, second.name);
        return Err(
            Failure::new(Exit::Usage, message).help("runs over the same traces and review share their test rows")
        );
    };
    match settings.json {
        true => output::json(&serde_json::to_value(&compared)?)?,
        false => output::stdout(&told(&compared))?,
    }
    Ok(Exit::Ok)
}

pub fn told(compared: &Compared) -> String {
    let percent = |x: f64| format!("{:.1} %", x * 100.0);
    let points = |x: f64| format!("{:+.1}", x * 100.0).replace('-', "−");
    let range = |x: Interval| format!("{} to {} points", points(x.low), points(x.high));
    let times = |latency: &Option<Latency>| {
        latency.as_ref().map_or(String::new(), |l| format!(", p50 {:.0} ms, p95 {:.0} ms", l.p50_ms, l.p95_ms))
    };
    let mut out = format!(
        "A  {}: {} right{}\nB  {}: {} right{}\n\non the {} test rows that both have ({} only A, {} only B):\n",
        visible_line(&compared.first),
        percent(compared.first_accuracy),
        times(&compared.first_latency),
        visible_line(&compared.second),
        percent(compared.second_accuracy),
        times(&compared.second_latency),
        compared.rows,
        compared.only_first,
        compared.only_second
    );
    out.push_str(&format!(
        "  B minus A       {} points, {} (Tango)\n",
        points(compared.difference),
        range(compared.interval)
    ));
    if let Some(by_group) = compared.cluster_interval {
        out.push_str(&format!("  by group        {} (cluster bootstrap)\n", range(by_group)));
    }
    out.push_str(&format!(
        "  told apart      p = {:.3} (exact McNemar): only B right on {} rows, only A on {}\n  same answer     {} of rows\n",
        compared.p_mcnemar,
        compared.pair.b,
        compared.pair.c,
        percent(compared.agreement)
    ));
    if let Some(candidates) = compared.candidates {
        let all = compared.p_of_all_pairs.map_or(String::new(), |p| {
            format!("; where these two were picked among them, p = {p:.3} (times the pairs, Bonferroni)")
        });
        out.push_str(&format!("  looks           this test split has judged {candidates} candidates{all}\n"));
    }
    let answer = |answer: &Option<String>| {
        answer.as_deref().map_or("no valid answer".to_owned(), |a| visible_line(a).into_owned())
    };
    for (what, rows) in [("B loses", &compared.lost), ("B wins", &compared.won)] {
        if !rows.is_empty() {
            out.push_str(&format!("\n{what}, for example\n"));
        }
        for row in rows {
            out.push_str(&format!(
                "  {}\n    should be {}: A {}, B {}\n",
                visible_line(&row.text),
                visible_line(&row.gold),
                answer(&row.first),
                answer(&row.second)
            ));
        }
    }
    out
}

/// Simulates what the statistics claim and prints each figure beside its claim.
fn examine(settings: &Settings, seed: u64) -> Result<Exit> {
    let live = Terminal::of_stderr().live;
    let figures = self_check(seed, Effort::Full, &mut |what, done, all| {
        if live && done < all {
            output::stderr(&format!("\r\x1b[K{} of {all}: {what}", done + 1));
        } else if live {
            output::stderr("\r\x1b[K");
        }
    });
    let off = figures.iter().filter(|figure| !figure.holds).count();
    if settings.json {
        output::json(&json!({"seed": seed, "figures": figures, "off": off}))?;
    } else {
        output::stdout(&table(&figures, seed))?;
    }
    if off > 0 {
        let message = format!("{off} of {} figures are not what the statistics claim", figures.len());
        return Err(Failure::new(Exit::Unexpected, message).help(
            "try another --seed: what is off under several is a defect, and no gate of this build should decide",
        ));
    }
    Ok(Exit::Ok)
}

fn table(figures: &[Figure], seed: u64) -> String {
    let percent = |x: f64| format!("{:.1} %", x * 100.0);
    let width = figures.iter().map(|figure| figure.what.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    let mut group = "";
    for figure in figures {
        if figure.group != group {
            group = &figure.group;
            let explained = match group {
                "type I error" => "a candidate exactly on the demand passes",
                "needless fail" => "a candidate exactly on the demand fails",
                "power" => "as many rows as asked for decide",
                "certificate" => "what is served errs more than promised",
                _ => "the interval holds the truth",
            };
            out.push_str(&format!("{}{group}: {explained}\n", if out.is_empty() { "" } else { "\n" }));
        }
        let (word, claimed) = match figure.claim {
            Claim::AtMost(p) => ("at most", p),
            Claim::AtLeast(p) => ("at least", p),
        };
        let pad = " ".repeat(width - figure.what.chars().count());
        out.push_str(&format!(
            "  {} {}{pad}  {:>7}, claimed {word} {}\n",
            if figure.holds { "ok " } else { "OFF" },
            figure.what,
            percent(figure.observed),
            percent(claimed)
        ));
    }
    let least = figures.iter().map(|figure| figure.trials).min().unwrap_or(0);
    let most = figures.iter().map(|figure| figure.trials).max().unwrap_or(0);
    out.push_str(&format!(
        "\nseed {seed}; {least} to {most} trials a figure, which is off where it misses its claim by more than three standard errors\n"
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_is_off_stands_out() {
        let figure = |group: &str, claim, observed, holds| Figure {
            group: group.into(),
            what: "floor".into(),
            claim,
            observed,
            trials: 100,
            limit: 0.1,
            holds,
        };
        let text = table(
            &[
                figure("type I error", Claim::AtMost(0.05), 0.043, true),
                figure("power", Claim::AtLeast(0.8), 0.5, false),
            ],
            3,
        );
        assert!(text.contains("  ok  floor    4.3 %, claimed at most 5.0 %"), "{text}");
        assert!(text.contains("  OFF floor   50.0 %, claimed at least 80.0 %"), "{text}");
    }
}
