//! `limbeck watch`: a run as its journal tells it, as a dashboard, as lines, as JSON, or handed on to other tools. It
//! writes nothing into the run's folder.

use crate::args::Watch as Args;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::settings::{Settings, shell};
use crate::sinks;
use limbeck_artifact::journal::{self, unix_ms};
use limbeck_recipes::locate;
use limbeck_tui::watch::{self, Life, Plain, Watch};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The journal is looked at this often.
const TICK: Duration = Duration::from_millis(250);
const JOURNAL: &str = "journal.jsonl";

pub fn watch(settings: &Settings, args: &Args) -> Result<Exit> {
    let path = journal_of(settings, args.of.as_deref())?;
    let mut run = Watch::new(&path);
    if args.export_tensorboard.is_some() || args.export_metrics.is_some() {
        return export(settings, args, &path, &mut run);
    }
    let both_ends = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let terminal = Terminal::of_stdout();
    if settings.json {
        run.catch_up(|_| {})?;
        while args.follow && run.life == Life::Live {
            std::thread::sleep(TICK);
            run.catch_up(|_| {})?;
        }
        output::json(&watch::summary(&run.run, run.life, now_ms()))?;
    } else if both_ends && terminal.live && !args.follow {
        watch::run(&mut run, terminal.colour, journal::now)?;
    } else {
        lines(&mut run, args.follow)?;
    }
    Ok(Exit::Ok)
}

/// What `run` prints where there is no terminal; with `follow` until the run ends.
fn lines(run: &mut Watch, follow: bool) -> Result<()> {
    let mut plain = Plain::default();
    loop {
        let mut text = String::new();
        let more = run.look(|event| text.push_str(&plain.show(event)))?;
        if !output::stdout_while_read(&text)? {
            return Ok(());
        }
        if more {
            continue;
        }
        if !follow || run.life != Life::Live {
            break;
        }
        std::thread::sleep(TICK);
    }
    match watch::closing(&run.run, run.life, now_ms()) {
        Some(end) => output::stdout(&format!("{end}\n")),
        None => Ok(()),
    }
}

/// The numbers of the journal in another tool's format.
fn export(settings: &Settings, args: &Args, path: &Path, run: &mut Watch) -> Result<Exit> {
    let mut events = Vec::new();
    run.catch_up(|event| events.push(event.clone()))?;
    let mut made = Vec::new();
    if let Some(dir) = &args.export_tensorboard {
        // The folder's name, not the journal's word: that could lead anywhere.
        let folder = std::path::absolute(path)?;
        let name = folder.parent().and_then(Path::file_name).map_or("run".into(), |n| n.to_string_lossy().into_owned());
        made.push(sinks::export_tensorboard(&events, dir, &name)?);
    }
    if let Some(file) = &args.export_metrics {
        sinks::export_metrics(&events, file)?;
        made.push(file.clone());
    }
    match settings.json {
        true => output::json(&serde_json::json!({ "wrote": made }))?,
        false => output::stdout(&made.iter().map(|path| format!("wrote {}\n", path.display())).collect::<String>())?,
    }
    Ok(Exit::Ok)
}

fn now_ms() -> i64 {
    unix_ms(&journal::now()).unwrap_or(0)
}

/// The journal that is meant: a file, a run's folder, a run's name, a recipe; without any, the newest run's.
fn journal_of(settings: &Settings, of: Option<&Path>) -> Result<PathBuf> {
    let Some(of) = of else {
        return newest(&settings.runs_dir).ok_or_else(|| {
            let message = format!("nothing has run yet: there is no journal under {}", settings.runs_dir.display());
            Failure::new(Exit::Unexpected, message).help("name a run's folder, or start one: limbeck run RECIPE")
        });
    };
    if of.is_file() && of.extension().is_some_and(|ext| ext == "jsonl") {
        return Ok(of.to_path_buf());
    }
    for folder in [of.to_path_buf(), settings.runs_dir.join(of)] {
        if folder.join(JOURNAL).is_file() {
            return Ok(folder.join(JOURNAL));
        }
    }
    if !locate(of).is_file() {
        let message = format!("{} is neither a run nor a recipe", of.display());
        let help = format!("name a run's folder, a run under {}, or a recipe's folder", shell(&settings.runs_dir));
        return Err(Failure::new(Exit::Unexpected, message).help(help));
    }
    let recipe = settings.recipe(of)?.recipe;
    let path = settings.run_dir(&recipe.name).join(JOURNAL);
    if path.is_file() {
        return Ok(path);
    }
    let message = format!("{} has not run yet: there is no {}", recipe.name, path.display());
    Err(Failure::new(Exit::Unexpected, message).help(format!("start it: limbeck run {}", shell(of))))
}

/// The journal that was written to last.
fn newest(runs_dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(runs_dir).ok()?;
    let journals = entries.flatten().map(|entry| entry.path().join(JOURNAL));
    let dated = journals.filter_map(|path| Some((std::fs::metadata(&path).ok()?.modified().ok()?, path)));
    dated.max().map(|(_, path)| path)
}
