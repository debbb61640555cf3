//! `limbeck carve`: a small base model out of a larger one.

use crate::args::Carve;
use crate::exit::{Exit, Result};
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::Settings;
use limbeck_distill::{CarvePlan, carve as carve_out};
use limbeck_tui::progress::{bytes, count};

pub fn carve(settings: &Settings, args: Carve) -> Result<Exit> {
    let name = args.name.unwrap_or_else(|| {
        args.out.file_stem().map_or_else(|| "carved".to_owned(), |s| s.to_string_lossy().into_owned())
    });
    let plan = CarvePlan {
        source: args.source,
        layers: args.layers.0,
        merges: args.merges,
        out: args.out,
        name,
        license: args.license,
    };
    let sink = Sink::new(None, &Terminal::of_stderr());
    let report = carve_out(&plan, &sink)?;
    sink.clear();
    if settings.json {
        output::json(&serde_json::to_value(&report)?)?;
    } else {
        output::stdout(&format!(
            "{}: {}, {} parameters, {} layers, {} tokens\n  SHA-256 {}\nout of {}: {}, {} parameters, {} layers, {} tokens\n  SHA-256 {}\n",
            report.path.display(),
            bytes(report.bytes),
            count(report.parameters),
            report.layers,
            count(report.tokens as u64),
            report.sha256,
            limbeck_artifact::untrusted::visible_line(&report.source_name),
            bytes(report.source_bytes),
            count(report.source_parameters),
            report.source_layers,
            count(report.source_tokens as u64),
            report.source_sha256,
        ))?;
    }
    Ok(Exit::Ok)
}
