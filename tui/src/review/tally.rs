//! How the review stands, in words: the certificate over the random share, agreement, and what each reviewer did.

use super::desk::Gauge;
use crate::progress::count;
use limbeck_data_curation::review::{Agreement, Certificate, Inspection, Reviewer};

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if (percent - percent.round()).abs() < 0.05 { format!("{percent:.0}%") } else { format!("{percent:.1}%") }
}

fn errors(n: u64) -> String {
    if n == 1 { "1 wrong".to_string() } else { format!("{n} wrong") }
}

/// A few words for the corner of the screen.
pub fn gauge(certificate: &Certificate) -> Gauge {
    let bound = percent(certificate.rate);
    let short = match (certificate.reached, certificate.next) {
        (Some(inspection), _) => format!("at most {bound} wrong: certified at {} reviews", inspection.reviews),
        (None, Some(next)) => format!(
            "random share {} of {}, {} (up to {} certify {bound})",
            count(certificate.reviews),
            count(next.reviews),
            errors(certificate.errors),
            next.accept
        ),
        (None, None) => format!("random share {}, {}", count(certificate.reviews), errors(certificate.errors)),
    };
    Gauge { short, reached: certificate.reached.is_some() }
}

/// The same for a blind pass.
pub fn agreeing(agreement: &Agreement) -> Gauge {
    let short = format!("alpha {}, {} shared", figure(agreement.krippendorff_alpha), count(agreement.items));
    Gauge { short, reached: agreement.krippendorff_alpha.is_some_and(|a| a >= 0.8) }
}

fn figure(x: Option<f64>) -> String {
    x.map_or("-".to_string(), |x| format!("{x:.3}"))
}

/// The whole tally.
pub fn lines(
    certificate: &Certificate,
    inspections: &[Inspection],
    agreement: &Agreement,
    reviewers: &[Reviewer],
) -> Vec<String> {
    let mut lines = vec!["The recorded labels, by the random share of train and valid".to_string()];
    match certificate.estimate() {
        None => lines.push("  none of it is reviewed yet".to_string()),
        Some((rate, upper)) => lines.push(format!(
            "  {} of {} are wrong, skipped or disputed: {}, at most {} (95 %, if looked at only now)",
            certificate.errors,
            count(certificate.reviews),
            percent(rate),
            percent(upper)
        )),
    }
    lines.push(match (certificate.reached, certificate.next) {
        (Some(inspection), _) => format!(
            "  certified: at most {} are wrong (95 %), reached at {} reviews",
            percent(certificate.rate),
            count(inspection.reviews)
        ),
        (None, Some(next)) => format!(
            "  at most {} is certified at {} reviews if no more than {} are wrong",
            percent(certificate.rate),
            count(next.reviews),
            next.accept
        ),
        (None, None) if inspections.is_empty() => {
            format!("  too few rows to certify {} at all", percent(certificate.rate))
        }
        (None, None) => format!("  {} can't be certified any more with these rows", percent(certificate.rate)),
    });
    lines.push(String::new());
    lines.push("Agreement, items judged by two or more without sight of each other".to_string());
    if agreement.items == 0 {
        lines.push("  none yet: a second reviewer with --blind makes them".to_string());
    } else {
        lines.push(format!(
            "  {} items, {} of {} pairs equal; Cohen's kappa {}, Krippendorff's alpha {} ({})",
            count(agreement.items),
            count(agreement.equal),
            count(agreement.pairs),
            figure(agreement.cohen_kappa),
            figure(agreement.krippendorff_alpha),
            agreement.word()
        ));
    }
    lines.push(String::new());
    lines.push(format!(
        "{:<14} {:>6} {:>7} {:>6} {:>5} {:>5} {:>7} {:>6} {:>7} {:>6}",
        "reviewer", "accept", "correct", "reject", "skip", "flag", "settled", "undone", "median", "agrees"
    ));
    for r in reviewers {
        let dwell = r.median_dwell_ms.map_or("-".to_string(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
        let agrees = if r.shared == 0 { "-".to_string() } else { percent(r.as_settled as f64 / r.shared as f64) };
        lines.push(format!(
            "{:<14} {:>6} {:>7} {:>6} {:>5} {:>5} {:>7} {:>6} {:>7} {:>6}",
            crate::text::fit(&r.name, 14),
            count(r.accepted),
            count(r.corrected),
            count(r.rejected),
            count(r.skipped),
            count(r.flagged),
            count(r.adjudicated),
            count(r.taken_back),
            dwell,
            agrees
        ));
    }
    if reviewers.is_empty() {
        lines.push("nobody yet".to_string());
    }
    lines
}
