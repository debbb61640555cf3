//! `limbeck explain`: every value of a recipe with its origin; with `--masks`, which tokens of sample rows carry loss.

use crate::args::Explain;
use crate::exit::{Exit, Result};
use crate::output::{self, Terminal, bold};
use crate::settings::Settings;
use crate::stages::train::train_on;
use crate::stages::{self, Run};
use limbeck_artifact::dataset::{Dataset, Split};
use limbeck_artifact::event::Stage;
use limbeck_artifact::untrusted::visible_line;
use limbeck_model::prompt::{EncodedExample, encode_example, encode_prompt};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_recipes::{Entry, Head, Origin, Resolved};
use limbeck_tui::progress::count;
use serde_json::{Value, json};

pub fn explain(settings: &Settings, args: &Explain) -> Result<Exit> {
    let resolved = settings.recipe(&args.recipe.recipe)?;
    if args.masks {
        return masks(settings, resolved, args.rows);
    }
    match settings.json {
        true => output::json(&Value::Array(resolved.entries().iter().map(entry_json).collect()))?,
        false => output::stdout(&table(resolved.entries(), &Terminal::of_stdout()))?,
    }
    Ok(Exit::Ok)
}

fn entry_json(entry: &Entry) -> Value {
    let origin = match &entry.origin {
        Origin::Default => json!({"from": "default"}),
        Origin::DefaultUnder { setting } => json!({"from": "default", "under": setting}),
        Origin::File { file, line, column } => json!({"from": "file", "file": file, "line": line, "column": column}),
        Origin::Set { argument } => json!({"from": "--set", "argument": argument}),
    };
    json!({"key": entry.key, "value": entry.value, "origin": origin, "doc": entry.doc})
}

/// Longer values are cut; `--json` has them whole.
const VALUE_WIDTH: usize = 44;

fn table(entries: &[Entry], terminal: &Terminal) -> String {
    let mut text = String::new();
    let mut section = None;
    for entry in entries {
        let (header, name) = entry.key.rsplit_once('.').unwrap_or(("", &entry.key));
        if section != Some(header) {
            if section.is_some() {
                text.push('\n');
            }
            if !header.is_empty() {
                text.push_str(&format!("{}\n", bold(terminal, &format!("[{header}]"))));
            }
            section = Some(header);
        }
        let value = limbeck_tui::text::fit(&entry.value.to_string(), VALUE_WIDTH);
        let pad = " ".repeat(VALUE_WIDTH.saturating_sub(value.chars().count()));
        text.push_str(&format!("{name:<28} {value}{pad} {}\n", entry.origin));
    }
    text
}

/// Freezes the dataset if that was not done yet, then shows rows of the train split as the trainer sees them.
fn masks(settings: &Settings, resolved: Resolved, rows: usize) -> Result<Exit> {
    let run = Run::open(settings, resolved)?;
    stages::upto(&run, Stage::Review)?;
    let base = run.base(&run.sink)?;
    run.sink.clear();
    let tokenizer = ChatTokenizer::open(&base.path)?;
    let dataset = Dataset::load(&run.dataset_dir())?;
    let train = dataset.rows(Split::Train);
    let (train_on, head) = (train_on(run.recipe().train.train_on), run.recipe().train.head);
    let (mut tokens, mut with_loss) = (0usize, 0usize);
    let mut shown = Vec::new();
    for row in train {
        let max_seq_length = run.recipe().model.max_seq_length;
        let encoded = match head {
            // The class is no token: its place is behind the prompt's last one.
            Head::Classification => EncodedExample::of(encode_prompt(&tokenizer, &row.messages)?, &[]),
            Head::Verbalizer => encode_example(&tokenizer, &row.messages, &row.answer(), train_on, max_seq_length)?,
        };
        tokens += encoded.len();
        with_loss += encoded.loss_tokens();
        if shown.len() < rows {
            shown.push((row, encoded));
        }
    }
    if settings.json {
        let row = |(row, encoded): &(&limbeck_artifact::dataset::Example, EncodedExample)| {
            let text: Vec<String> = encoded.ids.iter().map(|id| piece(&tokenizer, *id)).collect();
            json!({
                "row": row.id, "weight": row.weight, "ids": encoded.ids, "tokens": text, "loss_mask": encoded.mask
            })
        };
        output::json(&json!({
            "rows": shown.iter().map(row).collect::<Vec<_>>(),
            "train": {"rows": train.len(), "tokens": tokens, "loss_tokens": with_loss},
        }))?;
        return Ok(Exit::Ok);
    }
    let terminal = Terminal::of_stdout();
    let mut text = match head {
        Head::Verbalizer => {
            format!("Tokens between {} carry loss; all others are context.\n", marked(&terminal, "⟦", "⟧"))
        }
        Head::Classification => "The head reads the last token's state; the loss is that of its class.\n".to_owned(),
    };
    for (row, encoded) in &shown {
        text.push_str(&format!(
            "\n{} {} · weight {} · {} tokens, {} carry loss\n",
            bold(&terminal, &row.id[..row.id.len().min(12)]),
            visible_line(&row.target),
            row.weight,
            encoded.len(),
            encoded.loss_tokens()
        ));
        text.push_str(&row_text(&tokenizer, encoded, &terminal));
    }
    text.push_str(&format!(
        "\nThe train split: {} rows, {} tokens, {} of them carry loss ({:.1} %)\n",
        count(train.len() as u64),
        count(tokens as u64),
        count(with_loss as u64),
        with_loss as f64 * 100.0 / tokens.max(1) as f64
    ));
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

fn row_text(tokenizer: &ChatTokenizer, encoded: &EncodedExample, terminal: &Terminal) -> String {
    let mut text = String::new();
    for (&id, &loss) in encoded.ids.iter().zip(&encoded.mask) {
        let token = piece(tokenizer, id);
        let ends_line = token.ends_with('\n');
        let token = visible_line(token.trim_end_matches('\n')).into_owned() + if ends_line { "⏎" } else { "" };
        text.push_str(&if loss { marked(terminal, &format!("⟦{token}"), "⟧") } else { token });
        if ends_line {
            text.push('\n');
        }
    }
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// A token's text; a token that is part of a character is shown as the vocabulary spells it.
fn piece(tokenizer: &ChatTokenizer, id: u32) -> String {
    let decoded = tokenizer.decode(&[id]);
    match tokenizer.token(id) {
        Some(token) if decoded.is_empty() || decoded.contains('\u{fffd}') => token.to_owned(),
        _ => decoded,
    }
}

fn marked(terminal: &Terminal, open: &str, close: &str) -> String {
    if terminal.colour { format!("\x1b[1;32m{open}{close}\x1b[0m") } else { format!("{open}{close}") }
}
