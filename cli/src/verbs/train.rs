//! `limbeck train`: the stages up to the training; with `--dry-run` one step of it, and what the whole would take.

use super::run;
use crate::args::Train;
use crate::exit::{Exit, Result};
use crate::memory::peak_rss_bytes;
use crate::output::{self, Terminal, bold};
use crate::scratch::Scratch;
use crate::settings::Settings;
use crate::stages::train::open;
use crate::stages::{self, Run, cannot};
use limbeck_artifact::event::Stage;
use limbeck_model::ops::codes::QuantizeBase;
use limbeck_trainer::{DryRun, dry_run};
use limbeck_tui::progress::{bytes, count, duration};
use serde_json::json;
use std::path::Path;

pub fn train(settings: &Settings, args: &Train) -> Result<Exit> {
    match args.dry_run {
        false => run::run(settings, &args.recipe.recipe, Stage::Train, &args.scalars),
        true => rehearse(settings, args),
    }
}

/// The stages before the training run in a folder of their own, on what the run has done already; it goes away at the end,
/// so the run's folder stays as it is.
fn rehearse(settings: &Settings, args: &Train) -> Result<Exit> {
    let resolved = settings.recipe(&args.recipe.recipe)?;
    run::check_device(&resolved.recipe.model.device, Stage::Train)?;
    let scratch = Scratch::new("dry-run")?;
    let name = &resolved.recipe.name;
    copy(&settings.run_dir(name), &scratch.path().join(name))?;
    let aside = Settings { runs_dir: scratch.path().to_owned(), ..settings.clone() };
    let run = Run::open(&aside, resolved)?;
    stages::upto(&run, Stage::Capture)?;
    let emit = run.sink.stage(Stage::Train);
    let opened = open(&run, "dry run", None, &emit)?;
    let found = dry_run(&opened.plan, opened.base(), &opened.tokenizer, &opened.dataset, &emit)?;
    run.sink.clear();
    let memory = peak_rss_bytes();
    let cost = args.price_per_hour.map(|price| price * found.total_s / 3600.0);
    if settings.json {
        let mut value = serde_json::to_value(&found)?;
        value["peak_memory_bytes"] = json!(memory);
        value["price_per_hour"] = json!(args.price_per_hour);
        value["cost"] = json!(cost);
        output::json(&value)?;
    } else {
        output::stdout(&text(&found, memory, cost, &Terminal::of_stdout()))?;
    }
    Ok(Exit::Ok)
}

fn text(found: &DryRun, memory: Option<u64>, cost: Option<f64>, terminal: &Terminal) -> String {
    let mut text = format!("\n{}\n", bold(terminal, "The training would take"));
    let mut line = |what: &str, value: String| text.push_str(&format!("  {what:<11} {value}\n"));
    let time = |s: f64| duration((s * 1e3).round() as u64);
    let millions = |n: u64| format!("{:.2} M", n as f64 / 1e6);
    line(
        "parameters",
        format!("{} trained, {} frozen", millions(found.trained_parameters), millions(found.frozen_parameters)),
    );
    let codes = match found.quantize_base {
        QuantizeBase::None => String::new(),
        kept => format!(" of {kept} codes"),
    };
    line(
        "base",
        format!("layers {}{codes}, embedding and head {}", bytes(found.layers_bytes), bytes(found.embedding_bytes)),
    );
    line(
        "work",
        format!(
            "{} rows, {} steps of {} tokens on average; the longest row has {}",
            count(found.rows),
            count(found.steps),
            count(found.tokens_per_step.round() as u64),
            count(found.longest_row)
        ),
    );
    line("prefix", format!("computing shared beginnings once saves {:.1} % of the tokens", found.prefix_saves * 100.0));
    line(
        "step",
        format!(
            "{} on average; {} for the longest micro-batch, {} rows with {} tokens",
            time(found.step_s),
            time(found.longest_micro_batch_s),
            count(found.micro_batch_rows),
            count(found.micro_batch_tokens)
        ),
    );
    let mut parts =
        vec![format!("{} of steps", time(found.total_s - found.cache_s - found.valid_s * found.looks as f64))];
    if found.cache_s > 0.0 {
        parts.push(format!("{} for the layers below the adapter, once", time(found.cache_s)));
    }
    if found.valid_rows > 0 {
        let looks = if found.looks == 1 { "look" } else { "looks" };
        parts.push(format!("{} {looks} at {} valid rows, {} each", found.looks, found.valid_rows, time(found.valid_s)));
    }
    line("whole run", format!("{}: {}", time(found.total_s), parts.join(", ")));
    let state = bytes(found.state_bytes);
    line("state", format!("{state} for what is trained: masters, moments, gradients, a step's copy"));
    line("memory", memory.map_or("not known on this system".to_owned(), |n| format!("{} at the peak", bytes(n))));
    let disk = (found.checkpoint_bytes, found.checkpoint_bytes * found.checkpoints_kept);
    line("disk", format!("{} a checkpoint, at most {} at a time", bytes(disk.0), bytes(disk.1)));
    if let Some(cost) = cost {
        // Of a short run on a cheap machine two digits would say nothing.
        let digits = if cost < 1.0 { 4 } else { 2 };
        line("cost", format!("{cost:.digits$} at the price given"));
    }
    line("first loss", format!("{:.3}, gradient norm {:.3}", found.loss, found.grad_norm));
    text
}

/// What the stages before the training look at; what comes after is large and not needed.
const NOT_COPIED: [&str; 5] = ["train", "quantize", "eval", "package", "promote"];

fn copy(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(from) else { return Ok(()) };
    std::fs::create_dir_all(to).map_err(|e| cannot("create", to, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| cannot("list", from, &e))?;
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().map_err(|e| cannot("examine", &path, &e))?;
        if kind.is_dir() && !NOT_COPIED.iter().any(|other| name == *other) {
            copy(&path, &to.join(&name))?;
        } else if kind.is_file() {
            std::fs::copy(&path, to.join(&name)).map_err(|e| cannot("copy", &path, &e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dry_run_reads_well() {
        let found = DryRun {
            trained_parameters: 1_034_000,
            frozen_parameters: 26_100_000,
            quantize_base: QuantizeBase::None,
            layers_bytes: 60_000_000,
            embedding_bytes: 44_400_000,
            state_bytes: 20_680_000,
            checkpoint_bytes: 12_408_000,
            checkpoints_kept: 2,
            rows: 507,
            valid_rows: 83,
            steps: 192,
            longest_row: 118,
            micro_batch_rows: 8,
            micro_batch_tokens: 402,
            tokens_per_step: 312.4,
            prefix_saves: 0.384,
            loss: 17.25,
            grad_norm: 3.5,
            step_s: 0.31,
            longest_micro_batch_s: 0.4,
            valid_s: 5.0,
            looks: 3,
            cache_s: 0.0,
            total_s: 74.5,
        };
        let plain = Terminal { live: false, colour: false, width: 110 };
        let kept = QuantizeBase::Nf4;
        let turbo = DryRun { quantize_base: kept, layers_bytes: 8_440_000, ..found.clone() };
        let turbo = DryRun { cache_s: 2.0, looks: 1, total_s: 66.5, ..turbo };
        insta::assert_snapshot!(
            "dry-run",
            format!("{}{}", text(&found, Some(1 << 30), Some(0.0434), &plain), text(&turbo, None, None, &plain))
        );
    }
}
