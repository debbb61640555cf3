//! Whether the escalation certificate keeps its promise on real rows: a linear floor's or a tuned model's scores of an intent
//! data set, its test rows drawn again and again into a calibration part and a rest on which the certified threshold's error is
//! counted.

use crate::bench::args::BenchEscalation;
use crate::bench::banking::{Row, Rows};
use crate::bench::tuned;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::settings::Settings;
use limbeck_eval::statistics::upper_bound;
use limbeck_eval::{FloorRow, LinearFloor, Scored, SplitMix64, Target, argmax, aurc, certified_threshold};
use serde_json::json;

/// What the draws came to.
struct Drawn {
    /// Draws in which something was certified.
    certified: usize,
    /// Draws in which what was served erred on more than the target.
    broken: usize,
    coverage: f64,
    error: f64,
    worst: f64,
}

/// # Errors
/// When the rows can't be read or are too few.
pub fn bench(settings: &Settings, args: &BenchEscalation) -> Result<Exit> {
    let rows = Rows::read(&args.data)?;
    let labels = rows.labels();
    let chosen = rows.choose(labels.len(), args.per_class, usize::MAX);
    if chosen.test.len() < 2 * args.calibration {
        let message =
            format!("{} test rows can't give {} calibration rows and a rest", chosen.test.len(), args.calibration);
        return Err(Failure::new(Exit::Usage, message).help("take fewer with --calibration"));
    }
    let (whose, posteriors) = match (&args.model, &args.out) {
        (Some(model), Some(out)) => {
            (format!("{} tuned", model.display()), tuned::posteriors(settings, args, model, out, &chosen, &labels)?)
        }
        _ => ("linear floor".to_owned(), of_floor(&chosen, &labels)),
    };
    let scored: Vec<Scored> = chosen.test.iter().zip(&posteriors).map(|(row, of)| one(row, of, &labels)).collect();

    let target = Target { max_error: args.max_error, confidence: args.confidence };
    let drawn = draw(&scored, args, target);
    let draws = args.draws as f64;
    let kept = 1.0 - drawn.broken as f64 / draws;
    let accuracy = scored.iter().filter(|row| row.right).count() as f64 / scored.len() as f64;
    let of_all: Vec<(f64, bool)> = scored.iter().map(|row| (row.score.unwrap_or(-1.0), row.right)).collect();
    let broken_upper = upper_bound(drawn.broken as u64, args.draws as u64, 0.95);
    if settings.json {
        output::json(&json!({
            "scores": whose, "rows": scored.len(), "accuracy": accuracy, "aurc": aurc(&of_all), "draws": args.draws,
            "calibration_rows": args.calibration, "max_error": args.max_error, "confidence": args.confidence,
            "kept": kept, "certified": drawn.certified as f64 / draws, "coverage": drawn.coverage,
            "error": drawn.error, "worst_error": drawn.worst,
        }))?;
    } else {
        let percent = |x: f64| format!("{:.1} %", x * 100.0);
        output::stdout(&format!(
            "{whose}, {} a class: {} right on {} test rows, AURC {:.4}\n\
             {} draws of {} calibration rows, at most {} wrong with {} confidence:\n\
             \x20 promise kept       {} of draws (broken in {}, at most {} of draws by its own bound)\n\
             \x20 something certified {} of draws\n\
             \x20 calls served       {} on average, 0 where nothing is certified\n\
             \x20 wrong among served {} on average, {} at worst\n",
            args.per_class,
            percent(accuracy),
            scored.len(),
            aurc(&of_all),
            args.draws,
            args.calibration,
            percent(args.max_error),
            percent(args.confidence),
            percent(kept),
            drawn.broken,
            percent(broken_upper),
            percent(drawn.certified as f64 / draws),
            percent(drawn.coverage),
            percent(drawn.error),
            percent(drawn.worst),
        ))?;
    }
    Ok(Exit::Ok)
}

fn of_floor(rows: &Rows, labels: &[String]) -> Vec<Vec<f32>> {
    output::stderr(&format!("training the linear floor on {} rows of {} labels\n", rows.train.len(), labels.len()));
    let label = |name: &String| labels.binary_search(name).unwrap_or(usize::MAX);
    let train: Vec<FloorRow<'_>> =
        rows.train.iter().map(|(text, name)| FloorRow { text, label: label(name), weight: 1.0 }).collect();
    let floor = LinearFloor::train(&train, labels.len());
    rows.test.iter().map(|(text, _)| floor.posterior(text)).collect()
}

fn one((_, name): &Row, posterior: &[f32], labels: &[String]) -> Scored {
    let answer = argmax(posterior);
    let score = answer.map(|answer| f64::from(posterior[answer]));
    Scored { score, right: answer.is_some_and(|answer| labels[answer] == *name) }
}

fn draw(rows: &[Scored], args: &BenchEscalation, target: Target) -> Drawn {
    let mut rng = SplitMix64::new(args.seed);
    let live = Terminal::of_stderr().live;
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let (mut certified, mut broken, mut covered, mut erred, mut worst) = (0, 0, 0.0, 0.0, 0.0_f64);
    for i in 0..args.draws {
        for last in (1..order.len()).rev() {
            order.swap(last, rng.below(last + 1));
        }
        let part = |of: &[usize]| of.iter().map(|at| rows[*at]).collect::<Vec<Scored>>();
        let (calibration, rest) = (part(&order[..args.calibration]), part(&order[args.calibration..]));
        let unlabelled: Vec<Option<f64>> = rest.iter().map(|row| row.score).collect();
        if let Some(threshold) = certified_threshold(&calibration, &unlabelled, target) {
            let served = rest.iter().filter(|row| row.passes(threshold)).count() as f64;
            let wrong = rest.iter().filter(|row| row.passes(threshold) && !row.right).count() as f64;
            let error = if served > 0.0 { wrong / served } else { 0.0 };
            certified += 1;
            covered += served / rest.len() as f64;
            erred += error;
            worst = worst.max(error);
            broken += usize::from(error > target.max_error);
        }
        if live && (i + 1) % 20 == 0 {
            output::stderr(&format!("\rdraw {} of {}", i + 1, args.draws));
        }
    }
    if live {
        output::stderr("\r\x1b[K");
    }
    let draws = args.draws as f64;
    Drawn { certified, broken, coverage: covered / draws, error: erred / (certified.max(1) as f64), worst }
}
