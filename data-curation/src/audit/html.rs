//! The audit as one self-contained page: no script, no network, light and dark, printable. All text that comes from traces
//! is made visible and escaped.

use super::{Report, SiteReport, Verdict};
use limbeck_artifact::figures::thousands;
use limbeck_artifact::untrusted::visible;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

/// Renders the page. The same report gives the same bytes.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Call sites</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Which calls to move</h1>\n\
         <p class=\"lead\">{}</p>\n",
        escaped(&lead(report))
    );
    heat(&mut out, report);
    out.push_str("<h2>The call sites</h2>\n");
    report.sites.iter().for_each(|site| card(&mut out, site, report));
    assumptions(&mut out, report);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// Of what the report is made, in a sentence.
pub fn lead(report: &Report) -> String {
    let days = match (report.days, report.first_at.as_deref(), report.last_at.as_deref()) {
        (Some(days), Some(first), Some(last)) => {
            format!(
                " over {} days ({} to {})",
                figure(days),
                &first[..first.len().min(10)],
                &last[..last.len().min(10)]
            )
        }
        (Some(days), ..) => format!(" over {} days, as told", figure(days)),
        _ => "; no call tells its time, so all of them are taken for a month's".to_string(),
    };
    let rejected: u64 = report.rejected.values().sum();
    let left_out = if rejected > 0 {
        format!("; {} records could not be read as calls", thousands(rejected))
    } else {
        String::new()
    };
    let n = report.sites.len();
    let sites = if n == 1 { "1 call site".to_string() } else { format!("{n} call sites") };
    let others = match report.other_calls {
        0 => String::new(),
        n => format!("; {} calls with prompts of their own belong to none", thousands(n)),
    };
    format!("{} calls{days} in {sites}{others}{left_out}.", thousands(report.calls))
}

fn heat(out: &mut String, report: &Report) {
    out.push_str(
        "<h2>At a glance</h2>\n<div class=\"scroll\">\n<table class=\"heat\">\n<thead><tr><th>Call site</th>\
         <th class=\"num\">Calls a month</th><th class=\"num\">Spend a month</th><th>Score</th><th>Volume</th>\
         <th>Con&shy;strained</th><th>Voca&shy;bulary</th><th>Need</th><th>Reason&shy;ing</th><th>Context</th>\
         <th>Know&shy;ledge</th><th>Verdict</th></tr></thead>\n<tbody>\n",
    );
    for site in &report.sites {
        let cell = |x: f64, against: bool| {
            let strong = if x >= 0.6 { " strong" } else { "" };
            let against = if against { " against" } else { "" };
            let strength = 8.0 + 72.0 * x;
            format!("<td class=\"cell{against}{strong}\" style=\"--s:{strength:.0}%\">{:.0}</td>", x * 100.0)
        };
        let (p, n) = (&site.parts, &site.needs);
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}. {}</th><td class=\"num\">{}</td><td class=\"num\">{}</td>{}{}{}{}{}{}{}{}\
             <td class=\"verdict {}\">{}</td></tr>",
            site.number,
            escaped(&short(&site.template, 90)),
            thousands(site.calls_per_month.round() as u64),
            site.spend_per_month.map_or("–".to_string(), |x| money(x, report)),
            cell(site.score / 100.0, false),
            cell(p.volume, false),
            cell(p.constrained, false),
            cell(p.vocabulary, false),
            cell(p.need, false),
            cell(n.reasoning, true),
            cell(n.context, true),
            cell(n.knowledge, true),
            class(site.verdict),
            escaped(site.verdict.words()),
        );
    }
    out.push_str(
        "</tbody>\n</table>\n</div>\n<p class=\"fine\">All from 0 to 100. Score to need speak for a small model, reasoning \
         to knowledge against it. Score = (0.25 volume + 0.45 constrained + 0.15 vocabulary + 0.15 need) · (1 − 0.6 · the \
         largest of reasoning, context, knowledge). Volume: 1,000 calls a month are 0, 100,000 are 100. Constrained: how few \
         answers there are (1 − entropy / log₂ of the calls), or how often they have one set of JSON keys. Vocabulary: how \
         many of the inputs' words are among the site's 512 commonest. Need: latency above 300 ms, or calls with personal \
         data. The weights are judgement: what counts is what the gates of a run measure.</p>\n",
    );
}

fn card(out: &mut String, site: &SiteReport, report: &Report) {
    let _ = write!(
        out,
        "<div class=\"site\">\n<h3>{}. {}</h3>\n<p class=\"why\"><span class=\"verdict {}\">{}</span> {}</p>\n<dl>\n",
        site.number,
        escaped(&site.template),
        class(site.verdict),
        escaped(site.verdict.words()),
        escaped(&site.why)
    );
    for (what, value) in facts(site, report) {
        let _ = writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escaped(what), escaped(&value));
    }
    out.push_str("</dl>\n");
    if !site.top_answers.is_empty() {
        let answers: Vec<String> = site
            .top_answers
            .iter()
            .map(|(text, n)| format!("<code>{}</code> {}", escaped(&short(text, 60)), thousands(*n)))
            .collect();
        let _ = writeln!(out, "<p class=\"fine\">Commonest answers: {}</p>", answers.join(" · "));
    }
    out.push_str("</div>\n");
}

/// A site's figures in words, for the page and the terminal.
pub fn facts(site: &SiteReport, report: &Report) -> Vec<(&'static str, String)> {
    let ms = |x: Option<f64>| x.map_or("not recorded".to_string(), |x| format!("{} ms", figure(x)));
    let percent = |x: f64| format!("{:.1} %", x * 100.0);
    let estimated = if site.tokens_estimated > 0.5 { " (estimated)" } else { "" };
    let mut facts = vec![
        ("calls", format!("{} ({} a month)", thousands(site.calls), thousands(site.calls_per_month.round() as u64))),
        ("kind", site.shape.to_string()),
        ("model", site.models.join(", ")),
        ("tokens in / out", format!("{} / {}{estimated}", figure(site.prompt_tokens), figure(site.completion_tokens))),
        ("latency p50 / p95", format!("{} / {}", ms(site.latency_p50_ms), ms(site.latency_p95_ms))),
        (
            "answers",
            format!("entropy {:.2} bits, as {} equal ones", site.answer_entropy_bits, figure(site.effective_answers)),
        ),
        ("JSON of one shape", percent(site.same_keys)),
        ("different inputs", thousands(site.distinct_inputs)),
        ("repeated inputs", percent(site.repetition)),
        ("feedback", format!("{} good, {} bad", thousands(site.positive), thousands(site.negative))),
        ("personal data in", percent(site.personal)),
        ("cut off", thousands(site.cut_off)),
    ];
    if let Some(spend) = site.spend {
        facts.push(("spend recorded", money(spend, report)));
    }
    if let Some(e) = &site.economics {
        facts.push(("a month now", money(e.per_month_now, report)));
        facts.push(("a month after", money(e.per_month_after, report)));
        facts.push(("once", money(e.one_off, report)));
        facts.push(("payback", e.payback_months.map_or("never".to_string(), |m| format!("{} months", figure(m)))));
        if let Some(n) = e.break_even_calls {
            facts.push(("breaks even at", format!("{} calls a month", thousands(n.ceil() as u64))));
        }
    }
    facts
}

fn assumptions(out: &mut String, report: &Report) {
    let _ = writeln!(out, "<p class=\"fine\">{}</p>", escaped(&assumed(report)));
    if !report.unpriced.is_empty() {
        let names = report.unpriced.join(", ");
        let _ = writeln!(out, "<p class=\"fine\">No price is known for {}.</p>", escaped(&names));
    }
}

/// What the costs rest on that no trace tells.
pub fn assumed(report: &Report) -> String {
    let a = &report.assumptions;
    let host = match report.host {
        Some(host) => format!(
            "A machine costs {} an hour and answers {:.0} % of the time.",
            money(host.per_hour, report),
            host.utilisation * 100.0
        ),
        None => "No price of a machine is known ([self_hosted] in the price table), so no saving is told.".to_string(),
    };
    format!(
        "Assumed, not measured: the small model answers {:.0} % of the calls and passes the rest on; a call takes it {} ms; \
         {} examples are reviewed, {} an hour at {}; training costs {}, putting it to use {}, watching it {} a month. {host} \
         [assumptions] in the price table changes any of it.",
        a.coverage * 100.0,
        figure(a.latency_ms),
        figure(a.reviews),
        figure(a.reviews_per_hour),
        money(a.reviewer_per_hour, report),
        money(a.training, report),
        money(a.engineering, report),
        money(a.monitoring_per_month, report),
    )
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Move => "move",
        Verdict::Try => "try",
        _ => "no",
    }
}

/// Text from outside: hidden characters are spelled out, markup is text.
fn escaped(text: &str) -> String {
    visible(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

fn short(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_string(),
    }
}

pub fn money(x: f64, report: &Report) -> String {
    format!("{} {}", figure(x), report.currency.as_deref().unwrap_or("USD"))
}

/// Three digits that mean something.
pub fn figure(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return "0".to_string();
    }
    let magnitude = x.abs().log10().floor() as i32;
    if magnitude >= 2 {
        return thousands(x.round() as u64);
    }
    let decimals = (2 - magnitude).clamp(0, 6) as usize;
    let text = format!("{x:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_markup_is_text() {
        assert_eq!(
            [0.0, 0.012_345, 1.5, 12.345, 999.6, 1_234_567.0].map(figure),
            ["0", "0.0123", "1.5", "12.3", "1,000", "1,234,567"]
        );
        assert_eq!(escaped("<b onclick='x'>\u{202e}&"), "&lt;b onclick=&#39;x&#39;&gt;\\u{202e}&amp;");
        assert_eq!(short("abcdef", 3), "abc…");
    }
}
