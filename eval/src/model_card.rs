//! A Hugging Face model card (README.md) from a report: front matter that the hub understands, results with intervals,
//! data lineage, intended use and limits.

use crate::calibrator::Method;
use crate::gates::Verdict;
use crate::report::{AnswerKind, Report};
use crate::words::{milliseconds, money, percent, signed_points, thousands};
use limbeck_artifact::untrusted::visible_line;
use std::fmt::Write as _;

/// What the report does not know.
#[derive(Clone, Debug, Default)]
pub struct CardPlan {
    /// SPDX identifier in the hub's spelling, such as `apache-2.0`; of the base model's licence.
    pub license: String,
    /// Hub name of the base model, such as `HuggingFaceTB/SmolLM2-135M-Instruct`, or its file.
    pub base_model: String,
    /// `finetune`, `adapter`, `quantized` or `merge`.
    pub base_model_relation: String,
    /// ISO 639-1 codes.
    pub language: Vec<String>,
    /// The hub's word for what it does: `text-classification` where this is empty.
    pub pipeline_tag: String,
    pub tags: Vec<String>,
    /// Files and what they are, for the reader.
    pub files: Vec<(String, String)>,
    /// What the model is for, in a sentence or two.
    pub intended_use: String,
    /// Told under limits: simulated data, for example.
    pub notes: Vec<String>,
    /// A command that tries the model.
    pub try_it: String,
}

/// Renders the card. Deterministic; text from outside is made visible and its Markdown defused.
pub fn model_card(plan: &CardPlan, report: &Report) -> String {
    let mut card = front_matter(plan, report);
    let _ = writeln!(card, "\n# {} {}\n", md(&report.name), md(&report.version));
    let what = match report.answers() {
        AnswerKind::Labels => format!("A small classifier for {} labels", report.labels.len()),
        AnswerKind::Fields => {
            format!("A small model that pulls {} fields out of a message, as JSON", report.fields.len())
        }
        AnswerKind::Texts => "A small model that answers a message with a text".to_owned(),
    };
    let _ = writeln!(
        card,
        "{what}, made from {} by fine-tuning on reviewed production traffic.\n\n**Gates: {}.** {}\n",
        md(&plan.base_model),
        report.verdict.name(),
        md(&report.headline)
    );
    for note in &plan.notes {
        let _ = writeln!(card, "> **Note.** {}\n", md(note));
    }
    if !plan.try_it.is_empty() {
        let _ = writeln!(card, "## Try it\n\n```sh\n{}\n```\n", visible_line(&plan.try_it).replace("```", ""));
    }
    if !plan.files.is_empty() {
        card.push_str("## Files\n\n| file | what it is |\n|---|---|\n");
        for (file, what) in &plan.files {
            let _ = writeln!(card, "| {} | {} |", md(file), md(what));
        }
        card.push('\n');
    }
    results(&mut card, report);
    data(&mut card, report);
    let list = |what: &str, names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| md(name)).collect();
        format!("{what}: {}.\n", names.join(", "))
    };
    let names = match report.answers() {
        AnswerKind::Labels => list("Labels", &report.labels),
        AnswerKind::Fields => list("Fields", &report.fields),
        AnswerKind::Texts => String::new(),
    };
    let _ = writeln!(card, "## Intended use\n\n{}\n\n{names}", md(&plan.intended_use));
    limits(&mut card, report);
    card
}

fn front_matter(plan: &CardPlan, report: &Report) -> String {
    let mut yaml = String::from("---\n");
    let mut scalar = |key: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(yaml, "{key}: {}", quoted(value));
        }
    };
    scalar("license", &plan.license);
    scalar("base_model", &plan.base_model);
    scalar("base_model_relation", &plan.base_model_relation);
    let task = if plan.pipeline_tag.is_empty() { "text-classification" } else { &plan.pipeline_tag };
    scalar("pipeline_tag", task);
    for (key, values) in [("language", &plan.language), ("tags", &plan.tags)] {
        if !values.is_empty() {
            let _ = writeln!(yaml, "{key}:");
            for value in values {
                let _ = writeln!(yaml, "- {}", quoted(value));
            }
        }
    }
    if let Some(candidate) = report.candidate_arm() {
        let _ = writeln!(
            yaml,
            "model-index:\n- name: {}\n  results:\n  - task:\n      type: {task}\n    dataset:\n      name: {}\n      type: {}\n      split: test\n      revision: {}\n    metrics:",
            quoted(&report.name),
            quoted(&format!("{}, reviewed test split", report.name)),
            quoted(&report.name),
            quoted(&report.lineage.dataset)
        );
        let partial = match report.answers() {
            AnswerKind::Labels | AnswerKind::Fields => ("f1", "macro-F1", candidate.partial()),
            AnswerKind::Texts => ("rouge", "ROUGE-L", candidate.partial()),
        };
        for (kind, name, value) in [("accuracy", report.what(), candidate.scores.accuracy), partial] {
            let _ = writeln!(yaml, "    - type: {kind}\n      name: {name}\n      value: {value:.4}");
        }
    }
    yaml + "---\n"
}

/// A JSON string is a YAML double-quoted scalar; angle brackets are spelled, for viewers that show front matter as it is.
fn quoted(text: &str) -> String {
    let json = serde_json::Value::from(visible_line(text).as_ref()).to_string();
    json.replace('<', "\\u003c").replace('>', "\\u003e")
}

fn results(card: &mut String, report: &Report) {
    let _ = writeln!(
        card,
        "## Results\n\nAll arms answered the same {} reviewed test rows. Intervals are Wilson's at {}.\n\n| arm | {} | interval | {} | p50 | p95 | 1,000 calls | vs frontier |\n|---|---:|---:|---:|---:|---:|---:|---:|",
        thousands(report.test.rows),
        percent(report.test.confidence),
        report.what(),
        if report.answers() == AnswerKind::Texts { "ROUGE-L" } else { "macro-F1" },
    );
    for arm in &report.arms {
        let interval = arm.scores.accuracy_interval;
        let bold = if arm.name == report.candidate { "**" } else { "" };
        let time = |ms: Option<f64>| ms.map_or("–".to_owned(), milliseconds);
        let _ = writeln!(
            card,
            "| {bold}{}{bold}: {} | {:.1} % | {:.1} – {:.1} | {:.1} % | {} | {} | {} | {} |",
            md(&arm.name),
            md(&arm.title),
            arm.scores.accuracy * 100.0,
            interval.low * 100.0,
            interval.high * 100.0,
            arm.partial() * 100.0,
            time(arm.latency.as_ref().map(|l| l.p50_ms)),
            time(arm.latency.as_ref().map(|l| l.p95_ms)),
            arm.cost.as_ref().map_or("–".to_owned(), |cost| money(cost.per_1k_calls, &cost.currency)),
            report.versus_frontier(&arm.name).map_or("–".to_owned(), |versus| signed_points(versus.difference)),
        );
    }
    card.push('\n');
    fields(card, report);
    if !report.gates.is_empty() {
        card.push_str("| gate | demand | verdict | why |\n|---|---|---|---|\n");
        for gate in &report.gates {
            let _ = writeln!(
                card,
                "| {} | {} | {} | {} |",
                md(&gate.gate),
                md(&gate.demand),
                gate.verdict.name(),
                md(&gate.reason)
            );
        }
        card.push('\n');
    }
}

/// Field by field, where answers are fields.
fn fields(card: &mut String, report: &Report) {
    let Some(extraction) = report.candidate_arm().and_then(|arm| arm.extraction.as_ref()) else { return };
    card.push_str(
        "| field | F1 | precision | recall | right | wrong | missing | hallucinated |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let rate = |rate: Option<f64>| rate.map_or("–".to_owned(), |x| format!("{:.1} %", x * 100.0));
    for f in extraction.fields.iter().chain([&extraction.all]) {
        let _ = writeln!(
            card,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            md(&f.field),
            rate(f.f1),
            rate(f.precision),
            rate(f.recall),
            f.correct,
            f.wrong,
            f.missing,
            f.hallucinated
        );
    }
    let _ = writeln!(card, "\n{} of the answers are valid under the schema.\n", percent(extraction.validity));
    if let Some(words) = report.constraint_words() {
        let _ = writeln!(card, "{words}\n");
    }
}

fn data(card: &mut String, report: &Report) {
    let lineage = &report.lineage;
    let _ = writeln!(
        card,
        "## Data\n\nFrom {} traces; dataset digest `{}`.\n",
        thousands(lineage.traces_in),
        md(&lineage.dataset)
    );
    card.push_str("| split | rows | reviewed |\n|---|---:|---:|\n");
    for split in &lineage.splits {
        let _ = writeln!(card, "| {} | {} | {} |", md(&split.split), thousands(split.rows), thousands(split.reviewed));
    }
    card.push('\n');
    for line in &lineage.labels {
        let _ = writeln!(card, "- {}", md(line));
    }
    if !lineage.labels.is_empty() {
        card.push('\n');
    }
    for (what, counts) in [("Left out", &lineage.left_out), ("Redacted", &lineage.redactions)] {
        if !counts.is_empty() {
            let list: Vec<String> =
                counts.iter().map(|(reason, n)| format!("{} {}", md(reason), thousands(*n))).collect();
            let _ = writeln!(card, "{what}: {}.\n", list.join(", "));
        }
    }
}

fn limits(card: &mut String, report: &Report) {
    card.push_str("## Limits\n\n");
    if report.verdict != Verdict::Pass {
        let _ = writeln!(
            card,
            "- Not every gate passed ({}): see the reasons above before using it.",
            report.verdict.name()
        );
    }
    if let Some(candidate) = report.candidate_arm() {
        if !candidate.scores.zero_support.is_empty() {
            let unseen: Vec<String> = candidate.scores.zero_support.iter().map(|label| md(label)).collect();
            let _ = writeln!(card, "- Without a test row, so untested: {}.", unseen.join(", "));
        }
        if let Some(calibration) = &candidate.calibration {
            let _ = writeln!(
                card,
                "- Confidences are calibrated ({}), fitted on {} rows; their calibration error on {} test rows is {:.3}. They are measured, not guaranteed.",
                match calibration.calibrator.method() {
                    Method::Temperature => format!("one temperature, {:.2}", calibration.temperature),
                    method => method.name().to_owned(),
                },
                calibration.fitted_rows,
                calibration.tempered.rows,
                calibration.tempered.ece
            );
        }
    }
    routing(card, report);
    card.push_str(match report.fields.as_slice() {
        [] => "- It always answers one of its labels, also to a message that is about none of them.\n",
        _ => "- It may find a value where there is none, and what it writes need not be in the message.\n",
    });
    card.push_str(
        "- It was tested on traffic like its training traffic; other wording, languages and times need a new test.\n\
         - Redaction by rules does not find names.\n",
    );
}

fn routing(card: &mut String, report: &Report) {
    let Some(routing) = &report.routing else { return };
    if let Some(certificate) = &routing.certificate {
        let _ = writeln!(card, "- {} `policy.json` says it for a gateway.", md(&certificate.words()));
    } else if let (Some(risk), Some(upper)) = (routing.served.risk, routing.served.risk_upper) {
        let _ = writeln!(
            card,
            "- At the recipe's threshold of {} it answers {} of calls, {} of those wrongly (at most {} with {} confidence); the rest should go to a larger model.",
            routing.served.threshold,
            percent(routing.served.coverage),
            percent(risk),
            percent(upper),
            percent(report.test.confidence)
        );
    }
}

/// Text from outside in Markdown: hidden characters visible, one line, and nothing that Markdown or HTML would act on.
fn md(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible_line(text).chars() {
        match c {
            '\\' | '`' | '*' | '[' | ']' | '|' | '#' | '!' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_markdown_are_defused() {
        assert_eq!(quoted("a: \"b\"\n- c"), r#""a: \"b\"\\n- c""#);
        assert_eq!(md("[x](javascript:1) <b>|`*"), "\\[x\\](javascript:1) &lt;b&gt;\\|\\`\\*");
    }
}
