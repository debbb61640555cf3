//! Which of a team's calls deserve a small model: call sites found in traces by their template, each with its volume, cost,
//! latency and kind, a score with its parts, and a verdict that may be "don't". One pass, bounded memory.

mod fields;
mod html;
pub mod score;
pub mod site;
mod sketch;
mod starter;
mod template;

pub use html::{assumed, facts, figure, lead, money, page};
pub use score::{Needs, Parts, Verdict};
pub use starter::{Starter, write_traces};

use crate::Error;
use crate::import::{Batch, Done, NamedFile, Reading, open};
use crate::redact::Redactor;
use crate::trace::Trace;
use limbeck_artifact::economics::{Assumptions, DAYS_A_MONTH, Economics, Host, economics};
use limbeck_artifact::event::{Emit, EventKind};
use score::Figures;
use serde::Serialize;
use site::Site;
use std::collections::BTreeMap;
use template::{Seen, Templates};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What calls cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prices {
    pub currency: String,
    /// Of a million tokens in and out, by the model's name.
    pub models: BTreeMap<String, (f64, f64)>,
    /// None when no machine's price is known: then nothing is said of savings.
    pub host: Option<Host>,
    pub assumptions: Assumptions,
}

#[derive(Clone, Debug)]
pub struct AuditPlan {
    pub traces: Vec<NamedFile>,
    pub reading: Reading,
    pub max_line_bytes: usize,
    pub prices: Option<Prices>,
    /// What the traces cover, when they tell no time or not all of it.
    pub days: Option<f64>,
}

/// What was found; the report in `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub calls: u64,
    pub rejected: BTreeMap<String, u64>,
    /// The format that each file was read as.
    pub formats: BTreeMap<String, String>,
    pub first_at: Option<String>,
    pub last_at: Option<String>,
    /// Days that the traces cover; figures a month are made with it. None when no trace tells its time.
    pub days: Option<f64>,
    pub currency: Option<String>,
    pub assumptions: Assumptions,
    pub host: Option<Host>,
    /// The best first.
    pub sites: Vec<SiteReport>,
    /// Calls of no site: rare prompts, each with a template of its own.
    pub other_calls: u64,
    /// Models whose price is not known.
    pub unpriced: Vec<String>,
}

/// A call site.
#[derive(Clone, Debug, Serialize)]
pub struct SiteReport {
    /// Names it within this report.
    pub number: usize,
    /// The words that all of its prompts have.
    pub template: String,
    pub shape: &'static str,
    pub models: Vec<String>,
    pub calls: u64,
    pub calls_per_month: f64,
    pub prompt_tokens: f64,
    pub completion_tokens: f64,
    /// Share of the calls whose tokens were not recorded, so that they were estimated.
    pub tokens_estimated: f64,
    pub latency_p50_ms: Option<f64>,
    pub latency_p95_ms: Option<f64>,
    /// In the time that the traces cover. None when a price is missing.
    pub spend: Option<f64>,
    pub spend_per_month: Option<f64>,
    pub distinct_inputs: u64,
    /// Share of the calls whose input was there before.
    pub repetition: f64,
    pub answer_entropy_bits: f64,
    /// 2^entropy: how many equally frequent answers would be as uncertain.
    pub effective_answers: f64,
    pub top_answers: Vec<(String, u64)>,
    /// Share of answers that are JSON objects with one set of keys.
    pub same_keys: f64,
    /// Share of answers that are JSON objects and no tool's call.
    pub objects: f64,
    pub labels: Vec<String>,
    pub positive: u64,
    pub negative: u64,
    /// Share of the calls that hold personal data of the kinds that redaction knows.
    pub personal: f64,
    pub cut_off: u64,
    pub customers: u64,
    pub parts: Parts,
    pub needs: Needs,
    pub score: f64,
    pub economics: Option<Economics>,
    pub verdict: Verdict,
    pub why: String,
}

/// Share of answers that are JSON objects from which a site is taken to answer with fields.
const FIELDS_SHARE: f64 = 0.9;

impl SiteReport {
    /// Whether its answers are fields rather than labels.
    pub fn has_fields(&self) -> bool {
        self.labels.is_empty() && self.objects >= FIELDS_SHARE
    }
}

/// An audit that is done: the report, and what the starter recipe needs to find the site's calls again.
pub struct Audited {
    pub report: Report,
    templates: Templates,
    /// Index in the templates of each site, in the report's order.
    slots: Vec<usize>,
}

/// Calls that a site needs to be shown as one.
const MIN_SITE_CALLS: u64 = 5;
/// Answers that are shown.
const TOP_ANSWERS: usize = 8;
/// Characters of a template that are shown.
const TEMPLATE_CHARS: usize = 240;

const REASONING: [&str; 5] =
    ["step by step", "think through", "reason about", "explain your reasoning", "chain of thought"];

/// Reads the traces once and says what they are.
///
/// # Errors
/// When a file can't be read, or none of them holds a call.
pub fn audit(plan: &AuditPlan, emit: &dyn Emit) -> Result<Audited, Error> {
    let redactor = Redactor::new()?;
    let mut templates = Templates::default();
    let mut sites: Vec<Site> = Vec::new();
    let mut gone = 0;
    let mut rejected: BTreeMap<String, u64> = BTreeMap::new();
    let formats = each_trace(plan, emit, |done| match done.result {
        Ok((trace, _)) => {
            let placed = templates.place(&Seen::of(&trace.messages));
            if placed.site == sites.len() {
                sites.push(Site::default());
            } else if placed.new {
                gone += std::mem::take(&mut sites[placed.site]).calls;
            }
            sites[placed.site].add(&trace, &redactor);
            Ok(())
        }
        Err(reject) => {
            *rejected.entry(reject.reason.name().to_string()).or_default() += 1;
            Ok(())
        }
    })?;
    let calls = gone + sites.iter().map(|s| s.calls).sum::<u64>();
    if calls == 0 {
        let names = plan.traces.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ");
        let n: u64 = rejected.values().sum();
        let reasons: Vec<String> = rejected.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        let why = format!(
            "{names} holds no call that can be read; {n} records were rejected ({})\n\
             hint: `limbeck import` lists each with its reason; name the format with --format if it was guessed wrong",
            reasons.join(", ")
        );
        return Err(Error::Source { why });
    }
    Ok(report(plan, templates, &sites, calls, rejected, formats))
}

/// Every record of the plan's files, in order. Gives the format of each file.
fn each_trace(
    plan: &AuditPlan,
    emit: &dyn Emit,
    mut take: impl FnMut(Done) -> Result<(), Error>,
) -> Result<BTreeMap<String, String>, Error> {
    let total = plan.traces.iter().filter_map(|f| std::fs::metadata(&f.path).ok()).map(|m| m.len()).sum();
    let mut formats = BTreeMap::new();
    let mut done = 0;
    for named in &plan.traces {
        let (mut source, format) = open(named, &plan.reading, plan.max_line_bytes)?;
        formats.insert(named.name.clone(), format.name().to_string());
        let mut batch = Batch::of(format);
        loop {
            let ended = match source.next_record()? {
                Some(record) => {
                    batch.push(record);
                    false
                }
                None => {
                    batch.end();
                    true
                }
            };
            if ended || batch.full() {
                batch.read(format, &plan.reading.columns, None).into_iter().try_for_each(&mut take)?;
                emit.emit(EventKind::Progress { done: done + source.bytes(), total, unit: "bytes".to_string() });
            }
            if ended {
                break;
            }
        }
        done += source.bytes();
    }
    Ok(formats)
}

fn report(
    plan: &AuditPlan,
    templates: Templates,
    sites: &[Site],
    calls: u64,
    rejected: BTreeMap<String, u64>,
    formats: BTreeMap<String, String>,
) -> Audited {
    let first_at = sites.iter().filter_map(|s| s.first_at.clone()).min();
    let last_at = sites.iter().filter_map(|s| s.last_at.clone()).max();
    let days = plan.days.or_else(|| days(first_at.as_deref()?, last_at.as_deref()?));
    let shown = |site: &Site| site.calls >= MIN_SITE_CALLS || site.calls == calls;
    let mut found: Vec<(usize, SiteReport)> = Vec::new();
    for (slot, site) in sites.iter().enumerate().filter(|(_, s)| shown(s)) {
        if let Some(template) = templates.get(slot) {
            found.push((slot, site_report(plan, template, site, days)));
        }
    }
    let rank = |s: &SiteReport| (!s.verdict.is_for_it(), s.verdict == Verdict::TooOpen);
    found.sort_by(|(a_slot, a), (b_slot, b)| {
        rank(a).cmp(&rank(b)).then(b.score.total_cmp(&a.score)).then(b.calls.cmp(&a.calls)).then(a_slot.cmp(b_slot))
    });
    let mut unpriced: Vec<String> = Vec::new();
    if let Some(prices) = &plan.prices {
        for (slot, _) in &found {
            unpriced.extend(sites[*slot].models.keys().filter(|m| !prices.models.contains_key(*m)).cloned());
        }
        unpriced.sort();
        unpriced.dedup();
    }
    let slots = found.iter().map(|(slot, _)| *slot).collect();
    let mut reports: Vec<SiteReport> = found.into_iter().map(|(_, report)| report).collect();
    reports.iter_mut().enumerate().for_each(|(i, report)| report.number = i + 1);
    let of_sites: u64 = reports.iter().map(|s| s.calls).sum();
    let report = Report {
        calls,
        rejected,
        formats,
        first_at,
        last_at,
        days,
        currency: plan.prices.as_ref().map(|p| p.currency.clone()),
        assumptions: plan.prices.as_ref().map(|p| p.assumptions).unwrap_or_default(),
        host: plan.prices.as_ref().and_then(|p| p.host),
        sites: reports,
        other_calls: calls - of_sites,
        unpriced,
    };
    Audited { report, templates, slots }
}

/// From the first call to the last, a day at least.
fn days(first: &str, last: &str) -> Option<f64> {
    let parse = |at: &str| OffsetDateTime::parse(at, &Rfc3339).ok();
    Some(((parse(last)? - parse(first)?).as_seconds_f64() / 86_400.0).max(1.0))
}

fn site_report(plan: &AuditPlan, template: &template::Template, site: &Site, days: Option<f64>) -> SiteReport {
    let calls = site.calls as f64;
    // Without any time the traces are taken for a month's.
    let months = days.map_or(1.0, |days| days / DAYS_A_MONTH);
    let spend = plan.prices.as_ref().and_then(|prices| spend(site, prices));
    let share = |n: u64| n as f64 / site.sampled.max(1) as f64;
    let figures = Figures {
        calls: site.calls,
        distinct_inputs: site.distinct_inputs(),
        calls_per_month: calls / months,
        answer_entropy_bits: site.answers.entropy_bits(),
        same_keys: site.same_keys(),
        vocabulary: site.vocabulary(),
        latency_p95_ms: site.latency_ms.at(0.95),
        personal: share(site.personal),
        grounded: share(site.grounded),
        prompt_tokens_p95: site.prompt_tokens.at(0.95).unwrap_or(0.0),
        completion_tokens_mean: site.completion_tokens.mean().unwrap_or(0.0),
        multi_turn: template.shape.multi_turn,
        tools: template.shape.tools,
        asks_to_reason: template.says(&REASONING),
    };
    let parts = Parts::of(&figures);
    let needs = Needs::of(&figures, &parts);
    let score = score::score(&parts, &needs);
    let economics = plan
        .prices
        .as_ref()
        .and_then(|prices| Some(economics(figures.calls_per_month, spend? / calls, prices.host?, &prices.assumptions)));
    let (verdict, why) = score::verdict(&figures, score, &needs, economics.as_ref());
    SiteReport {
        number: 0,
        template: template.text(TEMPLATE_CHARS),
        shape: template.shape.words(),
        models: site.models.keys().cloned().collect(),
        calls: site.calls,
        calls_per_month: figures.calls_per_month,
        prompt_tokens: site.prompt_tokens.mean().unwrap_or(0.0),
        completion_tokens: figures.completion_tokens_mean,
        tokens_estimated: site.estimated_tokens as f64 / calls,
        latency_p50_ms: site.latency_ms.at(0.5),
        latency_p95_ms: figures.latency_p95_ms,
        spend,
        spend_per_month: spend.map(|s| s / months),
        distinct_inputs: figures.distinct_inputs,
        repetition: site.repetition(),
        answer_entropy_bits: figures.answer_entropy_bits,
        effective_answers: figures.answer_entropy_bits.exp2(),
        top_answers: site.answers.most().into_iter().take(TOP_ANSWERS).map(|(n, text)| (text.clone(), n)).collect(),
        same_keys: figures.same_keys,
        objects: site.objects as f64 / calls,
        labels: site.labels(),
        positive: site.positive,
        negative: site.negative,
        personal: figures.personal,
        cut_off: site.cut_off,
        customers: site.customers.count(),
        parts,
        needs,
        score,
        economics,
        verdict,
        why,
    }
}

/// What a site's calls cost; none when a model of it has no price.
fn spend(site: &Site, prices: &Prices) -> Option<f64> {
    site.models.iter().try_fold(0.0, |sum, (model, n)| {
        let (input, output) = prices.models.get(model)?;
        Some(sum + (n.prompt_tokens as f64 * input + n.completion_tokens as f64 * output) / 1e6)
    })
}

impl Audited {
    /// The number of the best site that a recipe can be written for: one that answers with labels or fields, and whose verdict is for
    /// it; the best of the others with labels when there is none, for a person who decides otherwise.
    pub fn best(&self) -> Option<usize> {
        let able = || self.report.sites.iter().filter(|s| !s.labels.is_empty() || s.has_fields());
        able().find(|s| s.verdict.is_for_it()).or_else(|| able().next()).map(|s| s.number)
    }

    fn is_of(&self, number: usize, trace: &Trace) -> bool {
        let slot = number.checked_sub(1).and_then(|i| self.slots.get(i));
        slot.is_some() && self.templates.find(&Seen::of(&trace.messages)) == slot.copied()
    }
}
