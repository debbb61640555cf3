//! `limbeck carve`: a small base model out of a larger one, and what each layer does on a task's prompts.

use crate::args::Carve;
use crate::carving::{Choice, Chosen, Wanted, choose, measured_on};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::Settings;
use limbeck_artifact::untrusted::visible_line;
use limbeck_distill::{CarvePlan, CarveReport, carve as carve_out};
use limbeck_tui::progress::{bytes, count};
use serde_json::json;

pub fn carve(settings: &Settings, args: Carve) -> Result<Exit> {
    let sink = Sink::new(None, &Terminal::of_stderr());
    let named = args.layers.map(|layers| layers.0);
    let chosen = match &args.prompts {
        Some(path) => {
            let device = settings.device.as_deref().unwrap_or("cpu").parse()?;
            let rows = measured_on(&args.source, path, args.rows as usize, &sink)?;
            let wanted = match (&named, args.keep) {
                (Some(layers), _) => Wanted::Named(layers.clone()),
                (None, Some(keep)) => Wanted::Some(keep, args.by.into()),
                (None, None) => Wanted::All,
            };
            Some(choose(&args.source, &rows, &[wanted], device, &sink)?)
        }
        None => None,
    };
    sink.clear();
    let Some(out) = args.out else {
        let Some(chosen) = &chosen else {
            return Err(Failure::new(Exit::Usage, "there is nothing to write or measure"));
        };
        match settings.json {
            true => output::json(&json!({"measured": chosen}))?,
            false => output::stdout(&told(chosen))?,
        }
        return Ok(Exit::Ok);
    };
    let layers = named
        .or_else(|| chosen.as_ref().and_then(|chosen| Some(chosen.choices.first()?.kept.clone())))
        .unwrap_or_default();
    let neurons = match (&chosen, args.neurons) {
        (Some(chosen), Some(n)) => Some(chosen.influence.widest(&layers, n)?),
        _ => None,
    };
    let name = args
        .name
        .unwrap_or_else(|| out.file_stem().map_or_else(|| "carved".to_owned(), |s| s.to_string_lossy().into_owned()));
    let plan =
        CarvePlan { source: args.source, layers, neurons, merges: args.merges, out, name, license: args.license };
    let report = carve_out(&plan, &sink)?;
    sink.clear();
    if settings.json {
        let mut json = serde_json::to_value(&report)?;
        if let Some(chosen) = &chosen {
            json["measured"] = serde_json::to_value(chosen)?;
        }
        output::json(&json)?;
    } else {
        let told = chosen.as_ref().map_or(String::new(), |chosen| told(chosen) + "\n");
        output::stdout(&format!("{told}{}", written(&report)))?;
    }
    Ok(Exit::Ok)
}

fn written(report: &CarveReport) -> String {
    let neurons =
        |n: usize| if report.neurons == report.source_neurons { String::new() } else { format!(" of {n} neurons") };
    format!(
        "{}: {}, {} parameters, {} layers{}, {} tokens\n  SHA-256 {}\nout of {}: {}, {} parameters, {} layers{}, {} tokens\n  SHA-256 {}\n",
        report.path.display(),
        bytes(report.bytes),
        count(report.parameters),
        report.layers,
        neurons(report.neurons),
        count(report.tokens as u64),
        report.sha256,
        visible_line(&report.source_name),
        bytes(report.source_bytes),
        count(report.source_parameters),
        report.source_layers,
        neurons(report.source_neurons),
        count(report.source_tokens as u64),
        report.source_sha256,
    )
}

/// Width of the longest bar, and how much shorter it is of a layer that does half as much: some do many times what others do.
const BAR: f64 = 30.0;
const LESS_BY_HALF: f64 = 4.0;

/// Each layer's influence, and what the choice costs before anything is healed.
fn told(chosen: &Chosen) -> String {
    let measured = &chosen.influence;
    let Some(Choice { kept, loss }) = chosen.choices.first() else { return String::new() };
    let most = measured.layers.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut text = format!(
        "Influence: 1 - cos between what goes into a layer and what comes out, over {} tokens of {} prompts.\n\
         Bars are by logarithm.\n\n",
        count(measured.tokens),
        count(measured.rows)
    );
    for (layer, influence) in measured.layers.iter().enumerate() {
        let bar = "#".repeat((BAR + LESS_BY_HALF * (influence / most).log2()).round().max(0.0) as usize);
        let kept = match (kept.len() == measured.layers.len(), kept.contains(&layer)) {
            (true, _) => "",
            (false, true) => "kept",
            (false, false) => "goes",
        };
        text.push_str(format!("  layer {layer:>3}  {influence:.4}  {kept:<4}  {bar}").trim_end());
        text.push('\n');
    }
    match loss {
        Some(loss) if kept.len() == measured.layers.len() => {
            text.push_str(&format!("\nloss on the answers: {:.3} nats a token\n", loss.whole));
        }
        Some(loss) => text.push_str(&format!(
            "\nloss on the answers: {:.3} nats a token by the whole model, {:.3} by these layers before any training\n",
            loss.whole, loss.carved
        )),
        None => {}
    }
    text
}
