//! The report in short for a terminal: plain text, no colour, at most some 100 columns, the verdict first and last.

use super::html::SHAKY;
use super::{AnswerKind, Report, Routing, judged_facts, load_facts};
use crate::detection::FIRST;
use crate::escalation::Action;
use crate::savings::Savings;
use crate::words::{milliseconds, money, months, percent, signed_money, signed_points, significant};
use limbeck_artifact::untrusted::visible_line;

/// A table of arms, the gates with their reasons, and the verdict. Ends with a newline.
pub fn terminal_summary(report: &Report) -> String {
    let mut table = vec![vec![
        "arm".to_owned(),
        report.what().to_owned(),
        format!("{} interval", percent(report.test.confidence)),
        report.partial().to_owned(),
        if report.answers() == AnswerKind::Labels { "" } else { "valid" }.to_owned(),
        "p50".to_owned(),
        "p95".to_owned(),
        "1,000 calls".to_owned(),
        report.frontier.as_ref().map_or(String::new(), |name| format!("vs {}", visible_line(name))),
    ]];
    for arm in &report.arms {
        let interval = arm.scores.accuracy_interval;
        let time = |ms: Option<f64>| ms.map_or("–".to_owned(), milliseconds);
        let mark = if arm.name == report.candidate { " *" } else { "" };
        table.push(vec![
            format!("{}{mark}", visible_line(&arm.name)),
            format!("{:.1} %", arm.scores.accuracy * 100.0),
            format!("{:.1} – {:.1}", interval.low * 100.0, interval.high * 100.0),
            format!("{:.1}", arm.partial() * 100.0),
            arm.validity().map_or(String::new(), percent),
            time(arm.latency.as_ref().map(|latency| latency.p50_ms)),
            time(arm.latency.as_ref().map(|latency| latency.p95_ms)),
            arm.cost.as_ref().map_or("–".to_owned(), |cost| money(cost.per_1k_calls, &cost.currency)),
            report.versus_frontier(&arm.name).map_or(String::new(), |versus| signed_points(versus.difference)),
        ]);
    }

    let mut out = format!(
        "{} {}: {} reviewed test rows, {}\n\n",
        visible_line(&report.name),
        visible_line(&report.version),
        report.test.rows,
        match report.answers() {
            AnswerKind::Labels => format!("{} labels", report.labels.len()),
            AnswerKind::Fields => format!("{} fields", report.fields.len()),
            AnswerKind::Texts => "texts".to_owned(),
        }
    );
    out.push_str(&aligned(&table));
    out.push_str("  * the candidate: what would be shipped\n\n");
    for arm in report.arms.iter().filter(|arm| !arm.facts.is_empty()) {
        let facts: Vec<String> = arm.facts.iter().map(|fact| format!("{} {}", fact.what, fact.value)).collect();
        out.push_str(&wrapped(&visible_line(&format!("{}: {}", arm.name, facts.join("; "))), 2, 100));
        out.push('\n');
    }
    for (arm, load) in report.arms.iter().filter_map(|arm| Some((arm, arm.load.as_ref()?))) {
        out.push_str(&format!("  {} under load\n", visible_line(&arm.name)));
        for fact in load_facts(load) {
            out.push_str(&format!("    {:<11}  {}\n", fact.what, visible_line(&fact.value)));
        }
        out.push('\n');
    }
    for judged in &report.judged {
        let title = format!("{} beside {}, by the judge {}", judged.arm, judged.against, judged.judge);
        out.push_str(&format!("  {}\n", visible_line(&title)));
        for fact in judged_facts(judged) {
            out.push_str(&wrapped(&visible_line(&format!("{}: {}", fact.what, fact.value)), 4, 100));
        }
        out.push('\n');
    }
    out.push_str(&fields(report));
    out.push_str(&one_label(report));
    for gate in &report.gates {
        let name = visible_line(&gate.gate);
        out.push_str(&format!("  {:<13} {name}: {}\n", gate.verdict.name(), visible_line(&gate.demand)));
        let shaky = gate
            .stability
            .filter(|s| s.flip > SHAKY)
            .map(|s| format!(" Shaky: two draws of these rows disagree {} of the time.", percent(s.flip)));
        out.push_str(&wrapped(&format!("{}{}", visible_line(&gate.reason), shaky.unwrap_or_default()), 16, 100));
    }
    if let Some(looks) = report.looks() {
        out.push('\n');
        out.push_str(&wrapped(&looks, 2, 100));
    }
    if let Some(routing) = &report.routing {
        out.push('\n');
        out.push_str(&routed(routing));
    }
    out.push_str(&report.savings.as_ref().map_or_else(String::new, saved));
    out.push_str(&failing(report));
    out.push_str(&format!("\n{}: {}\n", report.verdict.name().to_uppercase(), visible_line(&report.headline)));
    out
}

/// The slices that err more than by chance, a line each; the page has examples and remedies.
fn failing(report: &Report) -> String {
    const SHOWN: usize = 5;
    let worse: Vec<_> = report.slices.iter().flat_map(|s| &s.slices).filter(|slice| slice.worse).collect();
    let mut out = String::new();
    for slice in worse.iter().take(SHOWN) {
        let name = visible_line(&slice.name);
        out.push_str(&format!(
            "  worse by {}: {name}, {} wrong ({} of {})\n",
            slice.by.name(),
            percent(slice.error),
            slice.wrong,
            slice.rows
        ));
    }
    if worse.len() > SHOWN {
        out.push_str(&format!("  and {} more slices: see the page\n", worse.len() - SHOWN));
    }
    if out.is_empty() { out } else { format!("\n{out}") }
}

/// What routing does to the test rows: by the recipe's own threshold in one line, by a certificate with its bands.
fn routed(routing: &Routing) -> String {
    let served = &routing.served;
    let system = routing
        .system_accuracy
        .map_or(String::new(), |accuracy| format!("with escalation {} right", percent(accuracy)));
    let Some(certificate) = &routing.certificate else {
        let risk = served.risk.map_or(String::new(), |risk| format!(", {} of them wrong", percent(risk)));
        let system = if system.is_empty() { system } else { format!("; {system}") };
        return format!(
            "  at confidence {} (the recipe's own, not certified) it serves {} of calls{risk}{system}\n",
            served.threshold,
            percent(served.coverage)
        );
    };
    let mut out = wrapped(&certificate.words(), 2, 100);
    for band in &routing.bands {
        let what = match band.action {
            Action::Serve => "serves",
            Action::ServeAndReview => "serves, and queues for review",
            Action::Escalate => "escalates",
        };
        let wrong = match band.action {
            Action::Escalate => String::new(),
            _ => format!(", {} of {} wrong", band.wrong, band.rows),
        };
        out.push_str(&format!("    {what} {} of calls{wrong}\n", percent(band.share)));
    }
    let cost = routing.cost.as_ref().map(|cost| format!("1,000 calls {}", money(cost.per_1k_calls, &cost.currency)));
    let time = routing.latency.as_ref().map(|latency| format!("p95 {}", milliseconds(latency.p95_ms)));
    let parts: Vec<String> = Some(system).filter(|s| !s.is_empty()).into_iter().chain(cost).chain(time).collect();
    if !parts.is_empty() {
        out.push_str(&format!("    {}\n", parts.join(" · ")));
    }
    out
}

/// Payback at the user's own number of calls, or the number from which it pays.
fn saved(savings: &Savings) -> String {
    let Some(break_even) = savings.break_even_calls else {
        return savings.why_never().map_or(String::new(), |why| format!("  savings: {why}\n"));
    };
    let mut out = format!("  pays from {} calls a month on", significant(break_even));
    if let Some(own) = savings.at.iter().find(|at| at.own) {
        let payback =
            own.economics.payback_months.map_or(String::new(), |m| format!(", paid back after {}", months(m)));
        let saved = signed_money(own.economics.saving_per_month, &savings.currency);
        out.push_str(&format!("; at {} it saves {saved} a month{payback}", significant(own.calls_per_month)));
    }
    out + "\n"
}

/// What the candidate makes of what is out of scope, and what its order is worth.
fn one_label(report: &Report) -> String {
    let Some(arm) = report.candidate_arm() else { return String::new() };
    let mut out = String::new();
    if let Some(found) = &arm.detection {
        let auroc = found.auroc.map_or(String::new(), |auroc| format!(", AUROC {auroc:.3}"));
        let (label, n) = (visible_line(&found.label), found.false_alarms);
        let told = format!("out of scope ({label}): {} of {} found, {n} false alarms{auroc}", found.found, found.rows);
        out.push_str(&format!("  {told}\n"));
    }
    if let Some(ranked) = &arm.ranked {
        let each = FIRST.iter().zip(&ranked.ndcg).zip(&ranked.recall);
        let told: Vec<String> =
            each.map(|((k, ndcg), recall)| format!("@{k} {ndcg:.3} and {}", percent(*recall))).collect();
        out.push_str(&format!(
            "  order of {} queries, nDCG and recall: {}; drops {} of the text and {} of what is wanted\n",
            ranked.queries,
            told.join(", "),
            percent(ranked.dropped),
            percent(ranked.lost)
        ));
    }
    if out.is_empty() { out } else { out + "\n" }
}

/// The candidate's fields, with the frontier's F1 beside them; nothing where answers are labels.
fn fields(report: &Report) -> String {
    let Some(own) = report.candidate_arm().and_then(|arm| arm.extraction.as_ref()) else { return String::new() };
    let frontier = report.frontier_arm().and_then(|arm| arm.extraction.as_ref());
    let theirs = frontier.map(|f| f.fields.iter().chain([&f.all]).map(|f| f.f1).collect::<Vec<_>>());
    let rate = |rate: Option<f64>| rate.map_or("–".to_owned(), |x| format!("{:.1}", x * 100.0));
    let heads = ["field", "F1", "precision", "recall", "right", "wrong", "missing", "hallucinated"];
    let mut table = vec![heads.map(str::to_owned).to_vec()];
    table[0].push(report.frontier.as_ref().map_or(String::new(), |name| format!("F1 of {}", visible_line(name))));
    for (i, f) in own.fields.iter().chain([&own.all]).enumerate() {
        let mut row = vec![visible_line(&f.field).into_owned(), rate(f.f1), rate(f.precision), rate(f.recall)];
        row.extend([f.correct, f.wrong, f.missing, f.hallucinated].map(|n| n.to_string()));
        row.push(theirs.as_ref().map_or(String::new(), |theirs| rate(theirs[i])));
        table.push(row);
    }
    let constraint = report.constraint_words().map_or(String::new(), |words| wrapped(&words, 2, 100) + "\n");
    aligned(&table) + "\n" + &constraint
}

/// The first column to the left, the others to the right, two spaces between; columns without any text are left out.
fn aligned(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|i| table.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in table {
        let mut line = String::from(" ");
        for (i, cell) in row.iter().enumerate().filter(|(i, _)| widths[*i] > 0) {
            let pad = " ".repeat(widths[i] - cell.chars().count());
            line.push_str(&if i == 0 { format!(" {cell}{pad}") } else { format!("  {pad}{cell}") });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let (mut out, mut line) = (String::new(), String::new());
    let mut flush = |line: &mut String| {
        if !line.is_empty() {
            out.push_str(&format!("{}{line}\n", " ".repeat(indent)));
            line.clear();
        }
    };
    for word in text.split(' ') {
        if indent + line.chars().count() + 1 + word.chars().count() > width {
            flush(&mut line);
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    flush(&mut line);
    out
}
