//! The audit of call sites as a heat map in plain text: every cell is a number and a shade, so that it reads the same
//! without colours, on a printer and to a colour-blind person.

use crate::text::{fit, one_line};
use limbeck_artifact::figures::thousands;
use limbeck_data_curation::audit::{Report, SiteReport, assumed, facts, lead, money};
use unicode_width::UnicodeWidthStr;

/// Narrower terminals get this many columns and wrap.
const MIN_WIDTH: usize = 60;
const MAX_WIDTH: usize = 110;
/// Columns of a cell with the space before it.
const CELL: usize = 5;
/// Sites beyond so many are counted, not shown; `--json` and the page have all.
const MAX_SITES: usize = 20;

/// The heat map, the verdicts, and the figures of the best site. Ends with a line break.
pub fn heat_map(report: &Report, width: usize, colour: bool) -> String {
    let width = width.clamp(MIN_WIDTH, MAX_WIDTH);
    let mut out = wrapped(&lead(report), 0, width);
    out.push('\n');
    let name_width = width - 4 - 8 * CELL;
    let heads = ["score", "vol", "con", "voc", "need", "reas", "ctx", "know"];
    let heads: String = heads.iter().map(|h| format!("{h:>CELL$}")).collect();
    out.push_str(&format!("    {:name_width$}{heads}\n", "call site"));
    for site in report.sites.iter().take(MAX_SITES) {
        out.push_str(&row(site, report, name_width, width, colour));
    }
    if report.sites.len() > MAX_SITES {
        out.push_str(&format!("    and {} more: --json and --html have all\n", report.sites.len() - MAX_SITES));
    }
    let legend = "vol: calls a month, con: how constrained the answers are, voc: how narrow the vocabulary, need: latency or \
                  personal data; these speak for a small model. reas, ctx, know: need of reasoning, of long prompts, of \
                  knowledge; these speak against it. 0 to 100.";
    out.push('\n');
    out.push_str(&wrapped(legend, 0, width));
    if let Some(best) = report.sites.first() {
        out.push_str(&format!("\nCall site {}\n", best.number));
        for (what, value) in facts(best, report) {
            out.push_str(&wrapped(&format!("{what:<18} {}", one_line(&value)), 2, width));
        }
        let answers: Vec<String> =
            best.top_answers.iter().map(|(text, n)| format!("{} {}", fit(text, 32), thousands(*n))).collect();
        if !answers.is_empty() {
            out.push_str(&wrapped(&format!("{:<18} {}", "commonest answers", answers.join(" · ")), 2, width));
        }
    }
    if report.currency.is_some() {
        out.push('\n');
        out.push_str(&wrapped(&assumed(report), 0, width));
    }
    if !report.unpriced.is_empty() {
        let names: Vec<String> = report.unpriced.iter().map(|m| fit(m, 60)).collect();
        out.push_str(&wrapped(
            &format!("\nNo price is known for {}: add [models.\"NAME\"] to the price table.", names.join(", ")),
            0,
            width,
        ));
    } else if report.currency.is_none() {
        out.push_str(&wrapped("\nNo costs are told: --prices names a price table.", 0, width));
    }
    out
}

fn row(site: &SiteReport, report: &Report, name_width: usize, width: usize, colour: bool) -> String {
    let (p, n) = (&site.parts, &site.needs);
    let for_it = [site.score / 100.0, p.volume, p.constrained, p.vocabulary, p.need];
    let against = [n.reasoning, n.context, n.knowledge];
    let mut out = format!("{:>3} ", site.number);
    let name = fit(&site.template, name_width.saturating_sub(1));
    let pad = name_width.saturating_sub(name.width());
    out.push_str(&name);
    out.push_str(&" ".repeat(pad));
    for_it.iter().for_each(|x| out.push_str(&cell(*x, "32", colour)));
    against.iter().for_each(|x| out.push_str(&cell(*x, "35", colour)));
    out.push('\n');
    let spend = site.spend_per_month.map(|x| format!(", {} a month", money(x, report))).unwrap_or_default();
    let verdict = site.verdict.words();
    let calls = thousands(site.calls_per_month.round() as u64);
    out.push_str(&wrapped(&format!("{verdict}: {calls} calls a month{spend}; {}", one_line(&site.why)), 4, width));
    out
}

/// `  87▓`: the number, and a shade in five steps. Strong ones are bold too.
fn cell(x: f64, sgr: &str, colour: bool) -> String {
    let shade = match x {
        x if x < 0.2 => ' ',
        x if x < 0.4 => '░',
        x if x < 0.6 => '▒',
        x if x < 0.8 => '▓',
        _ => '█',
    };
    let text = format!("{:>width$.0}{shade}", x * 100.0, width = CELL - 1);
    let bold = if x >= 0.6 { ";1" } else { "" };
    if colour { format!("\x1b[{sgr}{bold}m{text}\x1b[0m") } else { text }
}

/// Wrapped at spaces; lines after the first are indented two columns more.
fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let (mut out, mut line) = (String::new(), " ".repeat(indent));
    let mut begun = false;
    for word in text.split(' ') {
        if begun && line.width() + 1 + word.width() > width {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(indent + 2);
            begun = false;
        }
        if begun {
            line.push(' ');
        }
        line.push_str(word);
        begun = true;
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_reads_without_colours() {
        assert_eq!(cell(0.87, "32", false), "  87█");
        assert_eq!(cell(1.0, "32", false), " 100█");
        assert_eq!(cell(0.0, "32", false), "   0 ");
        assert_eq!(cell(0.45, "32", true), "\u{1b}[32m  45▒\u{1b}[0m");
    }

    #[test]
    fn lines_stay_within_the_width() {
        let text = wrapped("one two three four five six seven eight nine ten", 4, 20);
        assert!(text.lines().all(|l| l.chars().count() <= 20), "{text}");
        assert!(text.starts_with("    one two"));
    }
}
