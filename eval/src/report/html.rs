//! The report as one self-contained page: no script, no network, light and dark, printable, legible on a phone. All text
//! that comes from outside is made visible and escaped; only the plots, made of numbers, go in as they are.

use super::failing::{p_value, slices};
use super::plots::{confusion_plot, reliability_plot, risk_coverage_plot};
use super::{AnswerKind, ArmResult, Report, judged_facts, load_facts};
use crate::arms::ArmKind;
use crate::calibrator::Calibrator;
use crate::detection::{Detection, FIRST, Ranked};
use crate::error::EvalError;
use crate::escalation::{Action, score};
use crate::extraction::FieldScore;
use crate::gates::{GateResult, Verdict};
use crate::metrics::Scores;
use crate::savings::Savings;
use crate::statistics::Interval;
use crate::texts::Texts;
use crate::words::{milliseconds, money, months, percent, signed_money, signed_points, significant, thousands};
use limbeck_artifact::untrusted::visible;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, HtmlEscape, UndefinedBehavior, Value, context};
use std::collections::BTreeMap;

const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");
/// Matrices up to this size are shown as a table of figures, larger ones as a picture.
const TABLE_CLASSES: usize = 20;
const TOP_CONFUSIONS: usize = 8;
/// Gates that flip more often than this on their own rows are pointed out.
pub(super) const SHAKY: f64 = 0.2;

/// Renders the page. The same report gives the same bytes.
pub fn render_html(report: &Report) -> Result<String, EvalError> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_template("report.html", TEMPLATE)?;
    Ok(environment.get_template("report.html")?.render(page(report))?)
}

fn page(report: &Report) -> Value {
    let candidate = report.candidate_arm();
    let of_labels = candidate.filter(|_| report.answers() == AnswerKind::Labels);
    context! {
        style => Value::from_safe_string(STYLE.to_owned()),
        name => text(&report.name),
        version => text(&report.version),
        program_version => text(&report.program_version),
        verdict => verdict(report.verdict),
        headline => text(&report.headline),
        tiles => tiles(report),
        notes => report.notes.iter().map(|note| text(note)).collect::<Vec<_>>(),
        made => report.made.iter().map(|fact| context! { what => text(&fact.what), value => text(&fact.value) }).collect::<Vec<_>>(),
        what => if report.answers() == AnswerKind::Labels { "Accuracy" } else { "Exact match" },
        f1 => match report.answers() {
            AnswerKind::Labels => "Macro-F1",
            AnswerKind::Fields => "Field F1",
            AnswerKind::Texts => "ROUGE-L",
        },
        in_words => report.answers() == AnswerKind::Fields,
        texts => candidate.and_then(|arm| arm.texts.as_ref()).map(texts),
        confidence => percent(report.test.confidence),
        rows => thousands(report.test.rows),
        groups => thousands(report.test.groups),
        looks => report.looks(),
        grouped => report.test.groups < report.test.rows,
        unreviewed => (report.test.unreviewed > 0).then(|| thousands(report.test.unreviewed)),
        frontier => report.frontier.as_deref().map(text),
        candidate => text(&report.candidate),
        arms => report.arms.iter().map(|arm| arm_row(report, arm)).collect::<Vec<_>>(),
        bases => bases(report),
        live => report.arms.iter().filter(|arm| !arm.facts.is_empty()).map(|arm| context! {
            name => text(&arm.name),
            what => if arm.kind == ArmKind::Composed { "made of other arms" } else { "a live model" },
            facts => arm.facts.iter().map(|fact| context! { what => text(&fact.what), value => text(&fact.value) }).collect::<Vec<_>>(),
        }).collect::<Vec<_>>(),
        loads => report.arms.iter().filter_map(|arm| Some((arm, arm.load.as_ref()?))).map(|(arm, load)| context! {
            name => text(&arm.name),
            facts => load_facts(load).iter().map(|fact| context! { what => text(&fact.what), value => text(&fact.value) }).collect::<Vec<_>>(),
        }).collect::<Vec<_>>(),
        judged => report.judged.iter().map(|judged| context! {
            name => text(&judged.judge),
            arm => text(&judged.arm),
            against => text(&judged.against),
            facts => judged_facts(judged).iter().map(|fact| context! { what => text(&fact.what), value => text(&fact.value) }).collect::<Vec<_>>(),
        }).collect::<Vec<_>>(),
        gates => report.gates.iter().map(gate_card).collect::<Vec<_>>(),
        routing => routing(report),
        savings => report.savings.as_ref().map(savings),
        slices => report.slices.as_ref().map(slices),
        calibration => candidate.and_then(calibration),
        fields => candidate.and_then(|arm| fields(report, arm)),
        detections => with(report, |arm| arm.detection.as_ref(), detection),
        orders => with(report, |arm| arm.ranked.as_ref(), order),
        first => FIRST,
        classes => of_labels.map(|arm| classes(&arm.scores)),
        zero_support => candidate.map(|arm| arm.scores.zero_support.iter().map(|label| text(label)).collect::<Vec<_>>()),
        confusion => of_labels.map(|arm| confusion(&arm.scores)),
        mistakes => report.mistakes.iter().map(|mistake| context! {
            row => text(mistake.row.get(..12).unwrap_or(&mistake.row)),
            text => text(&mistake.text),
            gold => text(&mistake.gold),
            answer => mistake.answer.as_deref().map(text),
            confidence => mistake.confidence.map(percent),
            frontier => mistake.frontier.as_deref().map(text),
            frontier_right => mistake.frontier.as_deref() == Some(mistake.gold.as_str()),
        }).collect::<Vec<_>>(),
        lineage => context! {
            dataset => text(&report.lineage.dataset),
            traces_in => thousands(report.lineage.traces_in),
            left_out => counts(&report.lineage.left_out),
            redactions => counts(&report.lineage.redactions),
            labels => report.lineage.labels.iter().map(|line| text(line)).collect::<Vec<_>>(),
            splits => report.lineage.splits.iter().map(|split| context! {
                split => text(&split.split),
                rows => thousands(split.rows),
                reviewed => thousands(split.reviewed),
            }).collect::<Vec<_>>(),
            sources => report.lineage.sources.iter().map(|(file, digest)| context! { what => text(file), value => text(digest) }).collect::<Vec<_>>(),
        },
        reproduce => report.reproduce.iter().map(|command| text(command)).collect::<Vec<_>>(),
    }
}

/// Text from outside: hidden characters are spelled out; the template engine escapes the rest. A number keeps its unit.
pub(super) fn text(from_outside: &str) -> String {
    visible(from_outside).replace(" %", "\u{a0}%").replace(" ms", "\u{a0}ms")
}

fn counts(map: &BTreeMap<String, u64>) -> Vec<Value> {
    map.iter().map(|(what, n)| context! { what => text(what), n => thousands(*n) }).collect()
}

fn verdict(verdict: Verdict) -> Value {
    let (word, sign) = match verdict {
        Verdict::Pass => ("Pass", "✓"),
        Verdict::Fail => ("Fail", "✕"),
        Verdict::Inconclusive => ("Inconclusive", "?"),
    };
    context! { class => verdict.name(), word => word, sign => sign }
}

/// 0.9134 -> "91.3": one decimal always, so that columns align.
pub(super) fn fixed(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

pub(super) fn range(interval: Interval) -> String {
    format!("{}\u{a0}–\u{a0}{}", fixed(interval.low), fixed(interval.high))
}

fn signed_range(interval: Interval) -> String {
    let signed = |x: f64| format!("{:+.1}", x * 100.0).replace('-', "−");
    format!("{} to {}", signed(interval.low), signed(interval.high))
}

/// Where a share lies on a track, as CSS percentages.
pub(super) fn track(value: f64, interval: Interval) -> Value {
    context! {
        at => format!("{:.2}", value * 100.0),
        low => format!("{:.2}", interval.low * 100.0),
        width => format!("{:.2}", (interval.high - interval.low) * 100.0),
    }
}

fn tile(what: &str, value: String, detail: String) -> Value {
    context! { what => what, value => text(&value), detail => text(&detail) }
}

fn tiles(report: &Report) -> Vec<Value> {
    let Some(candidate) = report.candidate_arm() else { return Vec::new() };
    let frontier = report.frontier_arm();
    let mut tiles = vec![tile(
        match report.answers() {
            AnswerKind::Labels => "Accuracy",
            AnswerKind::Fields => "All fields right",
            AnswerKind::Texts => "Word for word",
        },
        percent(candidate.scores.accuracy),
        format!(
            "{} of {} test rows; {} % at {} confidence",
            candidate.scores.correct,
            report.test.rows,
            range(candidate.scores.accuracy_interval),
            percent(report.test.confidence)
        ),
    )];
    if let Some(versus) = report.versus_frontier(&candidate.name) {
        tiles.push(tile(
            &format!("Against {}", text(&versus.against)),
            signed_points(versus.difference),
            format!("{} points, on the same rows", signed_range(versus.interval)),
        ));
    }
    if let Some(cost) = &candidate.cost {
        let detail = match frontier.and_then(|frontier| frontier.cost.as_ref().zip(Some(&frontier.name))) {
            Some((theirs, name)) => format!(
                "{}: {}{}",
                text(name),
                money(theirs.per_1k_calls, &theirs.currency),
                ratio(theirs.per_1k_calls, cost.per_1k_calls)
            ),
            None => cost.basis.clone(),
        };
        tiles.push(tile("Cost of 1,000 calls", money(cost.per_1k_calls, &cost.currency), detail));
    }
    if let Some(latency) = &candidate.latency {
        let detail = match frontier.and_then(|frontier| frontier.latency.as_ref().zip(Some(&frontier.name))) {
            Some((theirs, name)) => {
                format!("{}: {}{}", text(name), milliseconds(theirs.p95_ms), ratio(theirs.p95_ms, latency.p95_ms))
            }
            None => format!("median {}", milliseconds(latency.p50_ms)),
        };
        tiles.push(tile("95 % of calls within", milliseconds(latency.p95_ms), detail));
    }
    tiles
}

/// ", 12 times as much" when it is worth saying.
fn ratio(theirs: f64, ours: f64) -> String {
    if ours > 0.0 && theirs / ours >= 1.5 {
        format!(", {} times as much", significant(theirs / ours))
    } else {
        String::new()
    }
}

fn arm_row(report: &Report, arm: &ArmResult) -> Value {
    let is_frontier = report.frontier.as_deref() == Some(arm.name.as_str());
    let versus = report.versus_frontier(&arm.name);
    context! {
        name => text(&arm.name),
        title => text(&arm.title),
        is_candidate => arm.name == report.candidate,
        is_frontier => is_frontier,
        timed => match arm.kind {
            ArmKind::Recorded => "recorded",
            ArmKind::Composed => "of those asked",
            ArmKind::LinearFloor | ArmKind::Model | ArmKind::Endpoint => "measured here",
        },
        accuracy => fixed(arm.scores.accuracy),
        accuracy_range => range(arm.scores.accuracy_interval),
        track => track(arm.scores.accuracy, arm.scores.accuracy_interval),
        macro_f1 => fixed(arm.partial()),
        invalid => (arm.scores.invalid > 0).then(|| percent(arm.scores.invalid_rate)),
        p50 => arm.latency.as_ref().map(|latency| milliseconds(latency.p50_ms)),
        p95 => arm.latency.as_ref().map(|latency| milliseconds(latency.p95_ms)),
        cost => arm.cost.as_ref().map(|cost| money(cost.per_1k_calls, &cost.currency)),
        versus => versus.map(|versus| signed_points(versus.difference)),
        versus_range => versus.map(|versus| signed_range(versus.interval)),
        versus_groups => versus.and_then(|versus| versus.cluster_interval).map(signed_range),
        p => versus.and_then(|versus| versus.p_holm).map(p_value),
    }
}

/// How costs were reckoned, or why they were not, each said once.
fn bases(report: &Report) -> Vec<Value> {
    let mut said = BTreeMap::<String, Vec<String>>::new();
    for arm in &report.arms {
        let why = match (&arm.cost, &arm.cost_missing) {
            (Some(cost), _) => cost.basis.clone(),
            (None, Some(missing)) => format!("no cost: {missing}"),
            (None, None) => continue,
        };
        said.entry(why).or_default().push(text(&arm.name));
    }
    said.into_iter().map(|(why, arms)| context! { arms => arms.join(", "), why => text(&why) }).collect()
}

fn gate_card(gate: &GateResult) -> Value {
    context! {
        name => text(&gate.gate),
        demand => text(&gate.demand),
        verdict => verdict(gate.verdict),
        reason => text(&gate.reason),
        needed => gate.examples_needed.map(thousands),
        steady => gate.stability.map(|s| context! {
            same => percent(s.same),
            repeats => thousands(u64::from(s.repeats)),
            flip => percent(s.flip),
            shaky => s.flip > SHAKY,
        }),
    }
}

fn savings(savings: &Savings) -> Value {
    let Savings { currency, host, assumptions: a, .. } = savings;
    let money = |amount: f64| signed_money(amount, currency);
    context! {
        break_even => savings.break_even_calls.map(significant),
        why_never => savings.why_never(),
        rows => savings.at.iter().map(|at| context! {
            calls => significant(at.calls_per_month),
            own => at.own,
            now => money(at.economics.per_month_now),
            after => money(at.economics.per_month_after),
            saved => money(at.economics.saving_per_month),
            saves => at.economics.saving_per_month > 0.0,
            payback => at.economics.payback_months.map(months),
        }).collect::<Vec<_>>(),
        one_off => money(savings.one_off),
        of_review => money(a.reviews / a.reviews_per_hour * a.reviewer_per_hour),
        reviews => thousands(a.reviews as u64),
        an_hour => significant(a.reviews_per_hour),
        reviewer => money(a.reviewer_per_hour),
        training => money(a.training),
        engineering => money(a.engineering),
        monitoring => money(a.monitoring_per_month),
        coverage => percent(a.coverage),
        latency => milliseconds(a.latency_ms),
        host => money(host.per_hour),
        busy => percent(host.utilisation),
    }
}

fn routing(report: &Report) -> Option<Value> {
    let routing = report.routing.as_ref()?;
    let served = &routing.served;
    let certificate = routing.certificate.as_ref();
    Some(context! {
        threshold => format!("{}", served.threshold),
        certified => certificate.map(|certificate| context! {
            words => text(&certificate.words()),
            holds => certificate.threshold.is_some(),
            tested => certificate.steps.len(),
            candidates => certificate.candidates,
            rows => thousands(certificate.calibration_rows),
        }),
        bands => routing.bands.iter().map(|band| context! {
            what => match band.action {
                Action::Serve => "Serve",
                Action::ServeAndReview => "Serve and queue for review",
                Action::Escalate => "Escalate",
            },
            from => match (band.from, band.action) {
                (Some(from), _) => format!("from a score of {}", score(from)),
                (None, Action::Escalate) if routing.bands.len() == 1 => "every call".to_owned(),
                (None, _) => "the rest, and what is not valid".to_owned(),
            },
            share => percent(band.share),
            range => range(band.share_interval),
            rows => thousands(band.rows),
            wrong => (band.action != Action::Escalate).then(|| thousands(band.wrong)),
        }).collect::<Vec<_>>(),
        fallback => report.policy.as_ref().filter(|p| !p.fallback.is_empty()).map(|p| text(&p.fallback.join(", then "))),
        valid => report.policy.as_ref().map(|policy| text(&policy.validity.in_words)),
        coverage => percent(served.coverage),
        coverage_range => range(served.coverage_interval),
        served => thousands(served.served),
        wrong => thousands(served.wrong),
        risk => served.risk.map(percent),
        risk_upper => served.risk_upper.map(percent),
        system => routing.system_accuracy.map(percent),
        system_range => routing.system_interval.map(range),
        cost => routing.cost.as_ref().map(|cost| money(cost.per_1k_calls, &cost.currency)),
        latency => routing.latency.as_ref().map(|l| format!("{} / {}", milliseconds(l.mean_ms), milliseconds(l.p95_ms))),
        excess_aurc => routing.excess_aurc.map(|x| format!("{x:.4}")),
        aurc => format!("{:.4}", routing.aurc),
        plot => Value::from_safe_string(risk_coverage_plot(routing)),
    })
}

fn calibration(arm: &ArmResult) -> Option<Value> {
    let calibration = arm.calibration.as_ref()?;
    let three = |x: f64| format!("{x:.3}");
    let row =
        |what: &str, raw: f64, tempered: f64| context! { what => what, raw => three(raw), tempered => three(tempered) };
    Some(context! {
        how => how(&calibration.calibrator),
        methods => calibration.methods.iter().map(|m| context! {
            name => m.method.name(),
            chosen => m.chosen,
            left_out => m.left_out.as_deref().map(text),
            ece => m.ece.map(three),
            brier => m.brier.map(three),
            aurc => m.aurc.map(|x| format!("{x:.4}")),
        }).collect::<Vec<_>>(),
        fitted_rows => thousands(calibration.fitted_rows),
        fitted => calibration.fitted_rows > 0,
        rows => thousands(calibration.tempered.rows),
        table => vec![
            row("ECE, 15 bins of equal mass", calibration.raw.ece, calibration.tempered.ece),
            row("Brier score", calibration.raw.brier, calibration.tempered.brier),
            row("Negative log-likelihood", calibration.raw.nll, calibration.tempered.nll),
        ],
        plot => Value::from_safe_string(reliability_plot(&calibration.bins)),
    })
}

/// The calibrator in words.
fn how(calibrator: &Calibrator) -> String {
    match calibrator {
        Calibrator::None => "No calibration".to_owned(),
        Calibrator::Temperature { temperature } => format!("One temperature, {temperature:.2}"),
        Calibrator::Platt { slope, intercept } => {
            format!("Platt’s curve, slope {slope:.2} and intercept {intercept:.2}").replace('-', "−")
        }
        Calibrator::Isotonic { scores, .. } => format!("Isotonic regression, {} points", scores.len()),
    }
}

fn texts(texts: &Texts) -> Value {
    context! {
        rouge_l => percent(texts.rouge_l),
        rouge_l_range => range(texts.rouge_l_interval),
        validity => percent(texts.validity),
        validity_range => range(texts.validity_interval),
    }
}

/// The candidate's fields in the schema's order, then all of them together.
fn fields(report: &Report, arm: &ArmResult) -> Option<Value> {
    let own = arm.extraction.as_ref()?;
    let frontier = report.frontier_arm().and_then(|arm| arm.extraction.as_ref());
    let theirs = frontier.map(|f| f.fields.iter().chain([&f.all]).collect::<Vec<_>>());
    let row = |(i, f): (usize, &FieldScore)| {
        context! {
            field => text(&f.field),
            f1 => f.f1.map(fixed),
            precision => f.precision.map(fixed),
            recall => f.recall.map(fixed),
            range => f.recall_interval.map(range),
            track => f.recall.zip(f.recall_interval).map(|(recall, interval)| track(recall, interval)),
            gold => thousands(f.gold),
            correct => thousands(f.correct),
            wrong => thousands(f.wrong),
            missing => thousands(f.missing),
            hallucinated => thousands(f.hallucinated),
            frontier => theirs.as_ref().and_then(|theirs| theirs[i].f1.map(fixed)),
        }
    };
    Some(context! {
        rows => own.fields.iter().chain([&own.all]).enumerate().map(row).collect::<Vec<_>>(),
        validity => percent(own.validity),
        validity_range => range(own.validity_interval),
        constraint => report.constraint_words(),
    })
}

/// A line for each arm of which it is known.
fn with<T>(report: &Report, of: impl Fn(&ArmResult) -> Option<&T>, line: impl Fn(&str, &T) -> Value) -> Vec<Value> {
    report.arms.iter().filter_map(|arm| Some(line(&arm.name, of(arm)?))).collect()
}

fn detection(arm: &str, found: &Detection) -> Value {
    context! {
        arm => text(arm),
        label => text(&found.label),
        found => found.found,
        rows => found.rows,
        recall => found.recall.map(percent),
        range => found.recall_interval.map(range),
        precision => found.precision.map(percent),
        false_alarms => found.false_alarms,
        others => found.others,
        others_right => (found.others > 0).then(|| percent(found.others_right as f64 / found.others as f64)),
        auroc => found.auroc.map(|auroc| format!("{auroc:.3}")),
    }
}

fn order(arm: &str, ranked: &Ranked) -> Value {
    context! {
        arm => text(arm),
        queries => thousands(ranked.queries),
        items => thousands(ranked.items),
        ndcg => ranked.ndcg.iter().map(|x| format!("{x:.3}")).collect::<Vec<_>>(),
        recall => ranked.recall.iter().map(|x| percent(*x)).collect::<Vec<_>>(),
        dropped => percent(ranked.dropped),
        lost => percent(ranked.lost),
    }
}

fn classes(scores: &Scores) -> Vec<Value> {
    let mut order: Vec<usize> = (0..scores.per_class.len()).filter(|&i| scores.per_class[i].support > 0).collect();
    let recall = |i: usize| scores.per_class[i].recall.unwrap_or(0.0);
    order.sort_by(|&x, &y| recall(x).total_cmp(&recall(y)).then(x.cmp(&y)));
    order
        .into_iter()
        .map(|i| {
            let class = &scores.per_class[i];
            context! {
                label => text(&class.label),
                support => class.support,
                correct => class.correct,
                recall => class.recall.map(fixed),
                range => class.recall_interval.map(range),
                track => class.recall.zip(class.recall_interval).map(|(recall, interval)| track(recall, interval)),
                precision => class.precision.map(fixed),
                precision_range => class.precision_interval.map(range),
                f1 => class.f1.map(fixed),
            }
        })
        .collect()
}

fn confusion(scores: &Scores) -> Value {
    let names: Vec<String> = scores.per_class.iter().map(|class| text(&class.label)).collect();
    let confusion = &scores.confusion;
    let k = names.len();
    let top = confusion.confusions().into_iter().take(TOP_CONFUSIONS).map(|(gold, answer, n)| {
        context! { gold => names[gold].clone(), answer => names[answer].clone(), n => n, support => confusion.support(gold) }
    });
    let has_invalid = scores.invalid > 0;
    let rows: Vec<Value> = (0..if k <= TABLE_CLASSES { k } else { 0 })
        .map(|gold| {
            let support = confusion.support(gold).max(1) as f64;
            let cell = |n: u64, class: &str| {
                context! {
                    n => if n > 0 { n.to_string() } else { String::new() },
                    class => if n > 0 { class } else { "none" },
                    strength => format!("{:.0}", if n > 0 { 12.0 + 68.0 * n as f64 / support } else { 0.0 }),
                }
            };
            let mut cells: Vec<Value> = (0..k)
                .map(|answer| cell(confusion.counts[gold][answer], if gold == answer { "right" } else { "wrong" }))
                .collect();
            if has_invalid {
                cells.push(cell(confusion.invalid[gold], "wrong"));
            }
            context! { number => gold + 1, name => names[gold].clone(), cells => cells }
        })
        .collect();
    let escaped: Vec<String> = names.iter().map(|name| HtmlEscape(name).to_string()).collect();
    context! {
        top => top.collect::<Vec<_>>(),
        rows => rows,
        has_invalid => has_invalid,
        invalid => scores.invalid,
        plot => (k > TABLE_CLASSES).then(|| Value::from_safe_string(confusion_plot(confusion, &escaped))),
    }
}
