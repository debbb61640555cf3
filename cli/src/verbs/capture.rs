//! `limbeck capture`: a local teacher's answers to a dataset's rows or a file's messages, over labels or over the tokens of written
//! answers, and what such a file holds.

use crate::args::capture::{Ask, Capture as Args, CaptureVerb, Turns};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::Settings;
use crate::stages::capture::tokens::{self, Reading};
use crate::stages::capture::{Teacher, digest_of};
use crate::stages::{PROGRAM_VERSION, cannot, named};
use limbeck_artifact::capture::{Capture, Named, Position, Row, TOKEN_LOGITS, TokenRow, header_of};
use limbeck_artifact::dataset::{Dataset, Message, Split};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::untrusted::visible_line;
use limbeck_data_curation::curate::unlabeled::read;
use limbeck_distill::committee::{Member, Merged, merge_labels, merge_tokens};
use limbeck_distill::{Asked, CapturePlan, TokenCapturePlan, capture as run, capture_tokens, tokenizer_digest};
use limbeck_eval::argmax;
use limbeck_model::prompt::TrainOn;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_tui::progress::{bytes, count, duration};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub fn capture(settings: &Settings, args: &Args) -> Result<Exit> {
    match (&args.verb, &args.ask) {
        (Some(CaptureVerb::Show { file }), _) => show(settings, file),
        (Some(CaptureVerb::Merge { files, weight, out }), _) => merge(settings, files, weight, out),
        (None, Some(args)) => ask(settings, args),
        (None, None) => Err(Failure::new(Exit::Usage, "there is nothing to capture")
            .help("limbeck capture --teacher MODEL --data DATASET --out FILE")),
    }
}

fn ask(settings: &Settings, args: &Ask) -> Result<Exit> {
    let sink = Sink::new(None, &Terminal::of_stderr());
    let teacher = Teacher::find(&args.teacher, args.adapter.as_deref())?;
    if let Some(dataset) = of_written_answers(&args.data)? {
        return over_tokens(settings, args, &teacher, &dataset, &sink);
    }
    if args.top_k.is_some() || args.draws.is_some() {
        return Err(Failure::new(Exit::Usage, "--top-k and --draws are for a dataset of written answers")
            .help("leave them out: over labels the whole posterior is kept"));
    }
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
    let unit = format!("rows and {:.0} tokens", report.tokens_per_s);
    let how = how(report.resumed, report.rows_per_s, &unit, report.forward_share, report.wall_s);
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

/// A frozen dataset whose answers are no labels.
fn of_written_answers(data: &Path) -> Result<Option<Dataset>> {
    if !data.join("dataset.json").is_file() {
        return Ok(None);
    }
    Ok(Some(Dataset::load(data)?).filter(|dataset| dataset.card.labels.is_empty()))
}

fn over_tokens(settings: &Settings, args: &Ask, teacher: &Teacher, dataset: &Dataset, sink: &Sink) -> Result<Exit> {
    for (flag, given) in [("--labels", args.labels.is_some()), ("--system", args.system.is_some())] {
        if given {
            let message = format!("{flag} is of no use: the rows of {} have their answers", args.data.display());
            return Err(Failure::new(Exit::Usage, message).help("leave it out"));
        }
    }
    let (mut reader, own) = teacher.reader(settings.device.as_deref().unwrap_or("cpu").parse()?)?;
    let train_on = match args.train_on {
        Turns::Last => TrainOn::Last,
        Turns::AllAssistant => TrainOn::AllAssistant,
    };
    let tokenizer = match &args.student {
        Some(student) => Arc::new(ChatTokenizer::open(student)?),
        None => own.clone(),
    };
    let sparse = tokens::sparse(args.top_k.map(usize::from), args.draws.map(usize::from), SEED);
    let reading = Reading { train_on, max_seq_length: args.max_seq_length };
    let asked = tokens::meet(&mut reader, &own, &tokenizer, dataset, (reading, sparse))?;
    let plan = TokenCapturePlan {
        teacher: teacher.named.clone(),
        data: Named { name: args.data.display().to_string(), digest: tokens::digest_of(&asked) },
        sparse,
        tokenizer: tokenizer_digest(&tokenizer),
        template: tokens::template_digest(&tokenizer),
        out: args.out.clone(),
        program_version: PROGRAM_VERSION.to_owned(),
    };
    let report = capture_tokens(&plan, &reader, &asked, sink)?;
    if report.unlike > 0 {
        sink.emit(EventKind::Warning { text: tokens::unlike(report.unlike) });
    }
    sink.clear();
    if settings.json {
        output::json(&serde_json::to_value(&report)?)?;
        return Ok(Exit::Ok);
    }
    let how = how(report.resumed, report.tokens_per_s, "tokens", report.forward_share, report.wall_s);
    output::stdout(&format!(
        "{}: {} tokens of {} answers told ({}), {:.1} % of them as the teacher would write them\n  {}, {:.1} bytes a token · {how}\n  \
         SHA-256 {}\n",
        report.file.display(),
        count(report.tokens),
        count(report.rows),
        plan.sparse,
        report.agrees * 100.0,
        bytes(report.bytes),
        report.bytes_per_token,
        report.digest,
    ))?;
    Ok(Exit::Ok)
}

/// Of draws that no recipe asks for.
const SEED: u64 = 0;

/// How an amount of work went that may have been there already.
fn how(resumed: u64, rate: f64, unit: &str, forward_share: f64, wall_s: f64) -> String {
    if rate <= 0.0 {
        return "all of it was there already".to_owned();
    }
    let before = if resumed > 0 { format!(", {} rows were there already", count(resumed)) } else { String::new() };
    let took = duration((wall_s * 1e3) as u64);
    format!(
        "{rate:.0} {unit} a second, {took}, {:.1} % of it the teacher's forward passes{before}",
        forward_share * 100.0
    )
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

fn merge(settings: &Settings, files: &[PathBuf], weights: &[f64], out: &Path) -> Result<Exit> {
    if !weights.is_empty() && weights.len() != files.len() {
        let message = format!("{} weights of {} captures", weights.len(), files.len());
        return Err(
            Failure::new(Exit::Usage, message).help("give one --weight for each capture, in their order, or none")
        );
    }
    let weight = |i: usize| weights.get(i).copied().unwrap_or(1.0);
    let of_tokens = header_of(&files[0])?.kind == TOKEN_LOGITS;
    let (merged, what) = match of_tokens {
        true => {
            let captures = files.iter().map(|file| Ok(Capture::<TokenRow>::load(file)?)).collect::<Result<Vec<_>>>()?;
            let members = captures.iter().enumerate().map(|(i, capture)| Member { capture, weight: weight(i) });
            (merge_tokens(&members.collect::<Vec<_>>(), out, PROGRAM_VERSION)?, "tokens")
        }
        false => {
            let captures = files.iter().map(|file| Ok(Capture::<Row>::load(file)?)).collect::<Result<Vec<_>>>()?;
            let members = captures.iter().enumerate().map(|(i, capture)| Member { capture, weight: weight(i) });
            (merge_labels(&members.collect::<Vec<_>>(), out, PROGRAM_VERSION)?, "prompts")
        }
    };
    let Merged { digest, rows, disagree, of, .. } = merged;
    if settings.json {
        output::json(
            &json!({"file": out, "rows": rows, "digest": digest, "disagree": disagree, "of": of, "unit": what}),
        )?;
        return Ok(Exit::Ok);
    }
    output::stdout(&format!(
        "{}: {} rows, the mean of {} teachers, who differ on {} of {} {what}\n  SHA-256 {digest}\n",
        out.display(),
        count(rows),
        files.len(),
        count(disagree),
        count(of),
    ))?;
    Ok(Exit::Ok)
}

/// Answers below this probability are counted as unsure.
const UNSURE: f32 = 0.5;

fn show(settings: &Settings, file: &Path) -> Result<Exit> {
    if header_of(file)?.kind == TOKEN_LOGITS {
        return show_tokens(settings, file);
    }
    let capture: Capture = Capture::look(file)?;
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
    let state = state(capture.complete, rows, header.rows);
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

fn state(complete: bool, rows: u64, of: u64) -> String {
    match complete {
        true => "complete".to_owned(),
        false => format!("not finished: {} of {} rows; the same `limbeck capture` goes on", count(rows), count(of)),
    }
}

fn show_tokens(settings: &Settings, file: &Path) -> Result<Exit> {
    let capture = Capture::<TokenRow>::look(file)?;
    let header = &capture.header;
    let positions = || capture.rows.iter().flat_map(|row| &row.positions);
    let tokens = positions().count() as u64;
    let mean = |sum: f64| if tokens == 0 { 0.0 } else { sum / tokens as f64 };
    let listed = mean(positions().map(|p| p.tokens.len() as f64).sum());
    let agrees = mean(positions().filter(|p| p.agrees).count() as f64);
    let left = |p: &Position| 1.0 - p.log_probs().iter().map(|l| f64::from(*l).exp()).sum::<f64>();
    let tail = mean(positions().map(|p| left(p).max(0.0)).sum());
    let a_token = mean(capture.bytes as f64);
    let rows = capture.rows.len() as u64;
    let kept = header.sparse.map_or_else(String::new, |sparse| sparse.to_string());
    if settings.json {
        output::json(&json!({
            "file": file, "complete": capture.complete, "rows": rows, "tokens": tokens, "bytes": capture.bytes,
            "bytes_per_token": a_token, "digest": capture.digest, "header": header, "mean_listed": listed,
            "mean_tail": tail, "agrees": agrees,
        }))?;
        return Ok(Exit::Ok);
    }
    output::stdout(&format!(
        "{}: {}\n  {} tokens of {} answers, {}, {a_token:.1} bytes a token\n  kept     {kept}: {listed:.1} tokens on average, {:.2} % \
         of the probability left to others\n  teacher  {} ({}), which would have written {:.1} % of the tokens itself\n  data     {} ({})\n  \
         tokenizer {}, chat template {}, written by limbeck {}\n  SHA-256  {}\n",
        file.display(),
        state(capture.complete, rows, header.rows),
        count(tokens),
        count(rows),
        bytes(capture.bytes),
        tail * 100.0,
        visible_line(&header.teacher.name),
        short(&header.teacher.digest),
        agrees * 100.0,
        visible_line(&header.data.name),
        short(&header.data.digest),
        short(&header.tokenizer),
        short(&header.template),
        visible_line(&header.program_version),
        capture.digest,
    ))?;
    Ok(Exit::Ok)
}

fn short(digest: &str) -> String {
    visible_line(digest.get(..12).unwrap_or(digest)).to_string()
}
