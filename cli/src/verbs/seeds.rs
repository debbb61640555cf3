//! `limbeck seeds`: the same recipe trained with several seeds, what that changes on the test rows, and which gates hang on it.

use crate::args::Seeds;
use crate::exit::{Exit, Failure, Result};
use crate::inner::{Inner, evaluated, lacks};
use crate::output::{self, aligned};
use crate::settings::Settings;
use crate::stages::{self, Run, cannot};
use crate::verbs::run::{check_device, started};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_eval::statistics::Interval;
use limbeck_eval::{Answered, SeedSpread, Verdict, seed_spread};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One training's result on the test rows.
#[derive(Clone, Debug, Serialize)]
struct Training {
    seed: u64,
    rows: u64,
    accuracy: f64,
    accuracy_interval: Interval,
    verdict: Verdict,
    gates: BTreeMap<String, Verdict>,
    run: PathBuf,
}

pub fn seeds(settings: &Settings, args: &Seeds) -> Result<Exit> {
    let resolved = settings.recipe(&args.recipe.recipe)?;
    check_device(&resolved.recipe.model.device, Stage::Train)?;
    let run = Run::open(settings, resolved)?;
    let begun = Instant::now();
    run.sink.emit(started(&run));
    let trained = train_all(&run, args.seeds);
    let exit = trained.as_ref().map_or_else(|failure| failure.exit, |(trainings, _)| verdict(trainings));
    run.sink.emit(EventKind::RunFinished { exit_code: exit.code(), wall_ms: begun.elapsed().as_millis() as u64 });
    run.sink.clear();
    let (trainings, spread) = trained?;
    let json = json!({"run": run.dir, "trainings": trainings, "spread": spread});
    let path = run.dir.join("seeds/seeds.json");
    let text = serde_json::to_string_pretty(&json)? + "\n";
    write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
    match settings.json {
        true => output::json(&json)?,
        false => output::stdout(&told(&trainings, &spread, &path))?,
    }
    Ok(exit)
}

fn train_all(run: &Run<'_>, seeds: u64) -> Result<(Vec<Training>, SeedSpread)> {
    let own = run.recipe().train.seed.unwrap_or(run.recipe().seed);
    let (mut trainings, mut answered): (Vec<Training>, Vec<Answered>) = (Vec::new(), Vec::new());
    for nth in 0..seeds {
        let seed = own.wrapping_add(nth);
        run.sink.emit(EventKind::Note { text: format!("training {} of {seeds}: seed {seed}", nth + 1) });
        run.sink.clear();
        if nth == 0 {
            // The recipe's own seed is the run's own, and what the others take over is then what the recipe says now.
            stages::upto(run, Stage::Train)?;
        }
        let set: Vec<(String, String)> = match nth {
            0 => Vec::new(),
            _ => vec![("train.seed".to_owned(), seed.to_string())],
        };
        let data = [Stage::Import, Stage::Curate, Stage::Review, Stage::Capture, Stage::Train];
        let taken = if nth == 0 { &data[..] } else { &data[..4] };
        let name = format!("{}-seed-{seed}", run.recipe().name);
        let inner = Inner { folder: "seeds", name, set: &set, stages: taken };
        let training = evaluated(run, inner, |inner, report| {
            let arm = report.candidate_arm().ok_or_else(|| lacks(&inner.dir, "a candidate"))?;
            Ok(Training {
                seed,
                rows: arm.scores.rows,
                accuracy: arm.scores.accuracy,
                accuracy_interval: arm.scores.accuracy_interval,
                verdict: report.verdict,
                gates: report.gates.iter().map(|gate| (gate.gate.clone(), gate.verdict)).collect(),
                run: inner.dir.clone(),
            })
        })?;
        let right = format!("seed {seed}: {:.1} % of {} test rows right", training.accuracy * 100.0, training.rows);
        run.sink.emit(EventKind::Note { text: format!("{right}, gates {}", training.verdict.name()) });
        answered.push(Answered::load(&training.run).map_err(Failure::from)?);
        trainings.push(training);
    }
    let spread = seed_spread(&answered, 0.95).ok_or_else(|| lacks(&run.dir, "answers to the same test rows"))?;
    Ok((trainings, spread))
}

/// Decided where all trainings are decided alike.
fn verdict(trainings: &[Training]) -> Exit {
    let all = |verdict| trainings.iter().all(|training| training.verdict == verdict);
    match (all(Verdict::Pass), all(Verdict::Fail)) {
        (true, _) => Exit::Ok,
        (false, true) => Exit::GateFailed,
        (false, false) => Exit::Inconclusive,
    }
}

fn told(trainings: &[Training], spread: &SeedSpread, path: &Path) -> String {
    let mut table = vec![["seed", "right", "95 % interval", "gates"].map(str::to_owned).to_vec()];
    for training in trainings {
        let Interval { low, high } = training.accuracy_interval;
        table.push(vec![
            training.seed.to_string(),
            format!("{:.1} %", training.accuracy * 100.0),
            format!("{:.1} .. {:.1}", low * 100.0, high * 100.0),
            training.verdict.name().to_owned(),
        ]);
    }
    let points = |share: f64| format!("{:.1}", share * 100.0);
    let mut text =
        format!("One recipe, {} trainings that differ by their seed, {} test rows.\n\n", spread.trainings, spread.rows);
    aligned(&table).lines().for_each(|line| text.push_str(&format!("  {line}\n")));
    text.push_str(&format!(
        "\n  mean {} %, standard deviation {} points; one more is expected between {} and {} % (95 %)\n\
         \x20 two of them answer {} % of the rows differently\n\
         \x20 between two recipes trained once each, less than {} points may be the seed\n",
        points(spread.mean),
        points(spread.sd),
        points(spread.next.low),
        points(spread.next.high),
        points(spread.unlike),
        points(spread.least_difference),
    ));
    for (gate, tally) in &tally(trainings) {
        text.push_str(&format!("  {gate}: {}\n", tally));
    }
    text.push_str(&format!("  all of it in {}\n", path.display()));
    text
}

/// Of gates that are not decided alike by all trainings: how often each way.
fn tally(trainings: &[Training]) -> BTreeMap<String, String> {
    let mut gates: BTreeMap<String, BTreeMap<&str, usize>> = BTreeMap::new();
    for (gate, verdict) in trainings.iter().flat_map(|training| &training.gates) {
        *gates.entry(gate.clone()).or_default().entry(verdict.name()).or_default() += 1;
    }
    gates.retain(|_, verdicts| verdicts.len() > 1);
    let words = |verdicts: &BTreeMap<&str, usize>| {
        let each: Vec<String> = verdicts.iter().map(|(verdict, n)| format!("{verdict} {n} times")).collect();
        format!("hangs on the seed: {}", each.join(", "))
    };
    gates.iter().map(|(gate, verdicts)| (gate.clone(), words(verdicts))).collect()
}
