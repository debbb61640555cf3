//! `limbeck capture`: a local teacher's answers to a dataset's rows or a file's messages, and what such a file holds.

use crate::args::capture::{Ask, Capture as Args, CaptureVerb};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::Settings;
use crate::stages::capture::{Teacher, digest_of};
use crate::stages::{PROGRAM_VERSION, cannot, named};
use limbeck_artifact::capture::{Capture, Named};
use limbeck_artifact::dataset::{Dataset, Message, Split};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::untrusted::visible_line;
use limbeck_data_curation::curate::unlabeled::read;
use limbeck_distill::{Asked, CapturePlan, capture as run};
use limbeck_eval::argmax;
use limbeck_tui::progress::{bytes, count, duration};
use serde_json::json;
use std::path::Path;

pub fn capture(settings: &Settings, args: &Args) -> Result<Exit> {
    match (&args.verb, &args.ask) {
        (Some(CaptureVerb::Show { file }), _) => show(settings, file),
        (None, Some(args)) => ask(settings, args),
        (None, None) => Err(Failure::new(Exit::Usage, "there is nothing to capture")
            .help("limbeck capture --teacher MODEL --data DATASET --out FILE")),
    }
}

fn ask(settings: &Settings, args: &Ask) -> Result<Exit> {
    let sink = Sink::new(None, &Terminal::of_stderr());
    let teacher = Teacher::find(&args.teacher, args.adapter.as_deref())?;
    let (asked, own) = prompts(args, &sink)?;
    let labels = match (&args.labels, own) {
        (Some(path), _) => labels_of(path)?,
        (None, Some(own)) => own,
        (None, None) => teacher.labels.clone(),
    };
    if labels.len() < 2 {
        return Err(Failure::new(Exit::Usage, "nobody says which labels the teacher chooses from")
            .help("--labels FILE names them, one a line; a frozen dataset as --data brings its own"));
    }
    let scorer = teacher.open(&labels, settings.device.as_deref().unwrap_or("cpu").parse()?)?;
    let data = Named { name: args.data.display().to_string(), digest: digest_of(&asked) };
    let plan = CapturePlan {
        teacher: teacher.named,
        data,
        out: args.out.clone(),
        program_version: PROGRAM_VERSION.to_owned(),
    };
    let report = run(&plan, &scorer, &asked, &sink)?;
    sink.clear();
    if settings.json {
        output::json(&serde_json::to_value(&report)?)?;
        return Ok(Exit::Ok);
    }
    let how = match (report.resumed, report.rows_per_s > 0.0) {
        (_, false) => "all of it was there already".to_owned(),
        (resumed, true) => {
            let before = if resumed > 0 { format!(", {} were there already", count(resumed)) } else { String::new() };
            let took = duration((report.wall_s * 1e3) as u64);
            format!(
                "{:.1} rows a second ({:.0} tokens), {took}, {:.1} % of it the teacher's forward passes{before}",
                report.rows_per_s,
                report.tokens_per_s,
                report.forward_share * 100.0
            )
        }
    };
    output::stdout(&format!(
        "{}: {} prompts answered over {} labels\n  {}, {:.0} bytes a row · {how}\n  SHA-256 {}\n",
        report.file.display(),
        count(report.rows),
        report.labels,
        bytes(report.bytes),
        report.bytes_per_row,
        report.digest,
    ))?;
    Ok(Exit::Ok)
}

/// What is asked, and the labels of a dataset.
fn prompts(args: &Ask, emit: &dyn Emit) -> Result<(Vec<Asked>, Option<Vec<String>>)> {
    if args.data.join("dataset.json").is_file() {
        if args.system.is_some() {
            return Err(Failure::new(
                Exit::Usage,
                "--system is for a file of messages: a dataset's rows have their system prompt",
            )
            .help("leave it out, or freeze the dataset with another task.system"));
        }
        let dataset = Dataset::load(&args.data)?;
        let rows = [Split::Train, Split::Valid].into_iter().flat_map(|split| dataset.rows(split));
        let asked = rows.map(|e| Asked { id: e.id.clone(), messages: e.messages.clone() }).collect();
        return Ok((asked, Some(dataset.card.labels.clone())));
    }
    if args.data.is_dir() {
        let message = format!("{} is no frozen dataset: it holds no dataset.json", args.data.display());
        return Err(Failure::new(Exit::Usage, message).help("name runs/NAME/dataset, or a file of messages"));
    }
    let mut asked = Vec::new();
    let mut illegible = 0u64;
    for file in named(std::slice::from_ref(&args.data)) {
        for (id, messages) in read(&file)? {
            match messages {
                Some(messages) => asked.push(Asked { id, messages: with_system(messages, args.system.as_deref()) }),
                None => illegible += 1,
            }
        }
    }
    if illegible > 0 {
        let text = format!("{illegible} lines hold no message and are left out");
        emit.emit(EventKind::Warning { text });
    }
    Ok((asked, None))
}

fn with_system(mut messages: Vec<Message>, system: Option<&str>) -> Vec<Message> {
    if let Some(system) = system {
        messages.retain(|m| !matches!(m.role.as_str(), "system" | "developer"));
        messages.insert(0, Message::new("system", system));
    }
    messages
}

fn labels_of(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|e| cannot("read the labels", path, &e))?;
    let mut labels: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    labels.sort();
    let all = labels.len();
    labels.dedup();
    match labels.len() == all {
        true => Ok(labels),
        false => {
            Err(Failure::new(Exit::Usage, format!("{} names a label twice", path.display())).help("once is enough"))
        }
    }
}

/// Answers below this probability are counted as unsure.
const UNSURE: f32 = 0.5;

fn show(settings: &Settings, file: &Path) -> Result<Exit> {
    let capture = Capture::look(file)?;
    let header = &capture.header;
    let (mut said, mut unsure, mut entropy) = (vec![0u64; header.labels.len()], 0u64, 0f64);
    for row in &capture.rows {
        let posterior = row.posterior();
        if let Some(best) = argmax(&posterior) {
            said[best] += 1;
            unsure += u64::from(posterior[best] < UNSURE);
        }
        entropy -= posterior.iter().map(|p| f64::from(*p)).filter(|p| *p > 0.0).map(|p| p * p.ln()).sum::<f64>();
    }
    let rows = capture.rows.len() as u64;
    let mean = |sum: f64| if rows == 0 { 0.0 } else { sum / rows as f64 };
    if settings.json {
        let by_label: serde_json::Map<String, serde_json::Value> =
            header.labels.iter().zip(&said).map(|(label, n)| (label.clone(), json!(n))).collect();
        output::json(&json!({
            "file": file, "complete": capture.complete, "rows": rows, "bytes": capture.bytes,
            "bytes_per_row": mean(capture.bytes as f64), "digest": capture.digest, "header": header,
            "mean_entropy_nats": mean(entropy), "unsure": unsure, "answers": by_label,
        }))?;
        return Ok(Exit::Ok);
    }
    let state = match capture.complete {
        true => "complete".to_owned(),
        false => {
            format!("not finished: {} of {} rows; the same `limbeck capture` goes on", count(rows), count(header.rows))
        }
    };
    let mut text = format!(
        "{}: {state}\n  {} rows over {} labels, {}, {:.0} bytes a row\n  teacher  {} ({})\n  data     {} ({})\n",
        file.display(),
        count(rows),
        header.labels.len(),
        bytes(capture.bytes),
        mean(capture.bytes as f64),
        visible_line(&header.teacher.name),
        short(&header.teacher.digest),
        visible_line(&header.data.name),
        short(&header.data.digest),
    );
    text.push_str(&format!(
        "  tokenizer {}, chat template {}, written by limbeck {}\n  entropy  {:.3} nats on average; {} rows where no label has half\n",
        short(&header.tokenizer),
        short(&header.template),
        visible_line(&header.program_version),
        mean(entropy),
        count(unsure),
    ));
    let mut order: Vec<usize> = (0..said.len()).collect();
    order.sort_by(|a, b| said[*b].cmp(&said[*a]).then(a.cmp(b)));
    for at in order.iter().take(10) {
        text.push_str(&format!("  {:>8}  {}\n", count(said[*at]), visible_line(&header.labels[*at])));
    }
    if order.len() > 10 {
        text.push_str(&format!("            and {} more labels (--json lists all)\n", order.len() - 10));
    }
    text.push_str(&format!("  SHA-256  {}\n", capture.digest));
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

fn short(digest: &str) -> String {
    visible_line(digest.get(..12).unwrap_or(digest)).to_string()
}
