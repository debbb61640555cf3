//! `limbeck audit`: which calls deserve a small model, as a heat map, a page, JSON, and a starter recipe.

use crate::args::Audit;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal, bold};
use crate::prices;
use crate::progress::Sink;
use crate::settings::{Settings, shell};
use crate::stages::cannot;
use crate::verbs::import::{named_files, reading_of};
use limbeck_artifact::files::{AtomicFile, create_dirs, write_atomic};
use limbeck_data_curation::audit::{self, AuditPlan, Audited, Prices, SiteReport};
use limbeck_data_curation::import::MAX_LINE_BYTES;
use limbeck_recipes::Asked;
use limbeck_tui::audit::heat_map;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

pub fn audit(settings: &Settings, args: &Audit) -> Result<Exit> {
    if let Some(dir) = &args.write_recipe {
        let path = dir.join("recipe.toml");
        if path.exists() {
            let message = format!("{} is there already", path.display());
            return Err(Failure::new(Exit::Usage, message).help("choose another folder; nothing was written"));
        }
    }
    let plan = AuditPlan {
        traces: named_files(&args.files)?,
        reading: reading_of(&args.reading)?,
        max_line_bytes: MAX_LINE_BYTES,
        prices: args.prices.as_deref().map(read_prices).transpose()?,
        days: args.days,
    };
    let sink = Sink::new(None, &Terminal::of_stderr());
    let audited = audit::audit(&plan, &sink);
    sink.clear();
    let audited = audited?;
    if let Some(path) = &args.html {
        write_atomic(path, audit::page(&audited.report).as_bytes()).map_err(|e| cannot("write", path, &e))?;
    }
    let terminal = Terminal::of_stdout();
    if !settings.json {
        output::stdout(&heat_map(&audited.report, usize::from(terminal.width), terminal.colour))?;
    }
    let recipe = match &args.write_recipe {
        Some(dir) => Some(starter(dir, args, &plan, &audited, &sink)?),
        None => None,
    };
    sink.clear();
    if settings.json {
        let mut value = serde_json::to_value(&audited.report)?;
        value["best"] = json!(audited.best());
        value["recipe"] = json!(recipe.as_ref().map(|(path, ..)| path));
        output::json(&value)?;
    } else {
        output::stdout(&closing(args, &audited, recipe.as_ref(), &terminal))?;
    }
    Ok(Exit::Ok)
}

fn read_prices(path: &Path) -> Result<Prices> {
    let read = prices::read(path)?;
    let models = read.models.into_iter().map(|(name, p)| (name, (p.input_per_1m, p.output_per_1m))).collect();
    Ok(Prices { currency: read.currency, models, host: read.self_hosted, assumptions: read.assumptions })
}

/// Writes the recipe of the best site, or of the one that was named. Gives its path, the site's number and its calls.
fn starter(
    dir: &Path,
    args: &Audit,
    plan: &AuditPlan,
    audited: &Audited,
    sink: &Sink,
) -> Result<(PathBuf, usize, u64)> {
    let no_labels = |message: String| {
        Failure::new(Exit::Unexpected, message)
            .help("a recipe can be written where answers are few and short, or JSON with the same fields")
    };
    let number = match args.site {
        Some(number) => number,
        None => audited.best().ok_or_else(|| no_labels("no call site answers with labels or fields".to_owned()))?,
    };
    let sites = &audited.report.sites;
    let Some(site) = number.checked_sub(1).and_then(|i| sites.get(i)) else {
        let message = format!("there is no call site {number}");
        return Err(Failure::new(Exit::Usage, message).help(format!("they are numbered 1 to {}", sites.len())));
    };
    create_dirs(dir).map_err(|e| cannot("make", dir, &e))?;
    let path = dir.join("recipe.toml");
    let text = recipe_text(dir, site, args.prices.is_some());
    limbeck_recipes::load_text(&path, &text, &[]).map_err(Failure::recipe)?;
    let written = audit::write_traces(plan, audited, number, &dir.join("traces.jsonl"), sink)?;
    if site.has_fields() {
        let Some((schema, _)) = &written.schema else {
            let message = format!("the fields of call site {number} hold objects, for which no form has a place");
            return Err(no_labels(message));
        };
        let to = dir.join("schema.json");
        write_atomic(&to, schema.as_bytes()).map_err(|e| cannot("write", &to, &e))?;
    }
    if let Some(from) = &args.prices {
        let bytes = std::fs::read(from).map_err(|e| cannot("read the price table", from, &e))?;
        let to = dir.join("prices.toml");
        write_atomic(&to, &bytes).map_err(|e| cannot("write", &to, &e))?;
    }
    // Last, so that a recipe that is there has everything it names.
    let mut file = AtomicFile::create(&path)?;
    file.write_all(text.as_bytes())?;
    if !file.commit_new()? {
        let message = format!("{} is there already", path.display());
        return Err(Failure::new(Exit::Usage, message).help("choose another folder"));
    }
    Ok((path, number, written.traces))
}

/// `limbeck init`'s template with the site's labels, and a head that says where it comes from.
fn recipe_text(dir: &Path, site: &SiteReport, prices: bool) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name = dir.file_name().map(|n| n.to_string_lossy().chars().map(plain).collect::<String>()).unwrap_or_default();
    let name = name.trim_matches('-').chars().take(64).collect::<String>();
    let name = if name.is_empty() { "router".to_owned() } else { name };
    let asked = match (site.has_fields(), site.labels.is_empty()) {
        (true, _) => Asked::Fields,
        (false, false) => Asked::Labels(&site.labels),
        (false, true) => Asked::Text,
    };
    let template = limbeck_recipes::template(&name, asked);
    let template =
        template.replacen("what this recipe makes, in one sentence.", "a starter, written by `limbeck audit`.", 1);
    let template = match prices {
        true => template
            .lines()
            .map(|line| if line.starts_with("# prices = ") { "prices = \"prices.toml\"" } else { line })
            .map(|line| format!("{line}\n"))
            .collect(),
        false => template,
    };
    let said = limbeck_tui::text::fit(&site.template, 100);
    let why = limbeck_tui::text::fit(&site.why, 100);
    let what = match asked {
        Asked::Fields => "schema.json is drawn from its answers: say in each description what the field is.",
        Asked::Labels(_) => "The labels are its recurring answers: strike out those that are mistakes.",
        Asked::Text => "Its answers are texts, which only people can judge: plan for their time.",
    };
    format!(
        "# The call site: {said}\n# {} calls; score {:.0} of 100; verdict: {} ({why})\n# traces.jsonl holds its calls, redacted. \
         {what}\n#\n{template}",
        site.calls,
        site.score,
        site.verdict.words(),
    )
}

fn closing(args: &Audit, audited: &Audited, recipe: Option<&(PathBuf, usize, u64)>, terminal: &Terminal) -> String {
    let mut text = String::new();
    if let Some(path) = &args.html {
        text.push_str(&format!("\nThe page is {}\n", path.display()));
    }
    match (recipe, audited.best()) {
        (Some((path, number, traces)), _) => {
            let folder = shell(path.parent().unwrap_or(Path::new(".")));
            if let Some(site) = audited.report.sites.get(number - 1).filter(|s| !s.verdict.is_for_it()) {
                text.push_str(&format!(
                    "\nThe verdict is \"{}\"; the recipe is written all the same.\n",
                    site.verdict.words()
                ));
            }
            text.push_str(&format!(
                "\nWrote {} for call site {number}, with {traces} calls beside it\n\n{}\n  limbeck explain {folder}\n  \
                 put a base model there (or --set model.base=hf:…), then limbeck run {folder}\n",
                path.display(),
                bold(terminal, "Next")
            ));
        }
        (None, Some(_)) => {
            let files: Vec<String> = args.files.iter().map(|f| shell(f)).collect();
            let prices = args.prices.as_ref().map(|p| format!(" --prices {}", shell(p))).unwrap_or_default();
            text.push_str(&format!(
                "\n{}\n  limbeck audit {}{prices} --write-recipe recipes/router\n",
                bold(terminal, "Next"),
                files.join(" ")
            ));
        }
        (None, None) => {
            text.push_str("\nNo call site answers with labels or fields: there is no recipe to start from.\n")
        }
    }
    text
}
