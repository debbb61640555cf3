//! How well a call site suits a small model: four parts from 0 to 1, three needs that speak against it, and one score of
//! them. Every part is a formula over counted figures, shown beside the score; the weights are judgement, not measurement.

use limbeck_artifact::economics::Economics;
use limbeck_artifact::figures::thousands;
use serde::Serialize;

/// Distinct inputs below which nothing can be proved: with the usual split they give a test split of 300, by which a margin
/// of some 3 points can just be shown (5 % discordance, 80 % power).
pub const MIN_EXAMPLES: u64 = 1000;
/// Months after which a payback is no argument any more.
pub const MAX_PAYBACK_MONTHS: f64 = 24.0;
/// Scores from which a site is worth a try, and worth the move.
pub const TRY: f64 = 40.0;
pub const MOVE: f64 = 60.0;

/// What a score is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    pub calls: u64,
    pub distinct_inputs: u64,
    pub calls_per_month: f64,
    pub answer_entropy_bits: f64,
    pub same_keys: f64,
    pub vocabulary: Option<f64>,
    pub latency_p95_ms: Option<f64>,
    pub personal: f64,
    pub grounded: f64,
    pub prompt_tokens_p95: f64,
    pub completion_tokens_mean: f64,
    pub multi_turn: bool,
    pub tools: bool,
    /// The template asks for reasoning in words.
    pub asks_to_reason: bool,
}

/// Each from 0 to 1; more speaks for a small model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Parts {
    /// Narrow and high-volume: log₁₀(calls a month / 1,000) / 2; 1,000 a month are 0, 100,000 are 1.
    pub volume: f64,
    /// How constrained the answer is: 1 − H/log₂ n of the answers, or 0.9 · share of answers with one set of JSON keys.
    pub constrained: f64,
    /// Specialised vocabulary: (share of the words among the site's 512 commonest − 0.6) / 0.35; 0.5 when unknown.
    pub vocabulary: f64,
    /// Latency or sovereignty: the larger of (p95 − 300 ms) / 2,700 ms and the share of calls with personal data.
    pub need: f64,
}

/// Each from 0 to 1; more speaks against it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Needs {
    /// (mean tokens of an answer − 50) / 450, less what constrained answers need, + 0.3 for tools, + 0.2 when the prompt
    /// asks to reason.
    pub reasoning: f64,
    /// log₂(p95 of the prompt's tokens / 2,048) / 4; 2,048 are 0, 32,768 are 1.
    pub context: f64,
    /// Share of the answers that neither recur nor say what the prompt says.
    pub knowledge: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Move,
    Try,
    TooFewCalls,
    NotWorthIt,
    TooOpen,
}

impl Verdict {
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Move => "move",
            Verdict::Try => "try",
            Verdict::TooFewCalls => "don't: too few calls",
            Verdict::NotWorthIt => "don't: saves too little",
            Verdict::TooOpen => "don't: too open",
        }
    }

    pub fn is_for_it(self) -> bool {
        matches!(self, Verdict::Move | Verdict::Try)
    }
}

fn unit(x: f64) -> f64 {
    if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) }
}

impl Parts {
    pub fn of(f: &Figures) -> Parts {
        let bits = (f.calls.max(2) as f64).log2();
        Parts {
            volume: unit((f.calls_per_month / 1000.0).log10() / 2.0),
            constrained: unit((1.0 - f.answer_entropy_bits / bits).max(0.9 * f.same_keys)),
            vocabulary: f.vocabulary.map_or(0.5, |share| unit((share - 0.6) / 0.35)),
            need: unit(f.latency_p95_ms.map_or(0.0, |ms| (ms - 300.0) / 2700.0).max(f.personal)),
        }
    }
}

impl Needs {
    pub fn of(f: &Figures, parts: &Parts) -> Needs {
        let long = unit((f.completion_tokens_mean - 50.0) / 450.0) * (1.0 - parts.constrained);
        let tools = if f.tools { 0.3 } else { 0.0 };
        let asks = if f.asks_to_reason { 0.2 } else { 0.0 };
        Needs {
            reasoning: unit(long + tools + asks),
            context: unit((f.prompt_tokens_p95 / 2048.0).log2() / 4.0),
            knowledge: unit(1.0 - f.grounded),
        }
    }
}

/// 100 · (0.25 volume + 0.45 constrained + 0.15 vocabulary + 0.15 need) · (1 − 0.6 · largest need against it).
pub fn score(parts: &Parts, needs: &Needs) -> f64 {
    let for_it = 0.25 * parts.volume + 0.45 * parts.constrained + 0.15 * parts.vocabulary + 0.15 * parts.need;
    let against = needs.reasoning.max(needs.context).max(needs.knowledge);
    100.0 * for_it * (1.0 - 0.6 * against)
}

/// The verdict and why, in that order of what rules a site out: evidence, money, kind.
pub fn verdict(f: &Figures, score: f64, needs: &Needs, money: Option<&Economics>) -> (Verdict, String) {
    if f.distinct_inputs < MIN_EXAMPLES {
        let why = format!(
            "{} different inputs; {} give a test split of 300, the least that can show a margin of 3 points",
            thousands(f.distinct_inputs),
            thousands(MIN_EXAMPLES)
        );
        return (Verdict::TooFewCalls, why);
    }
    let worst = [("reasoning", needs.reasoning), ("context", needs.context), ("knowledge", needs.knowledge)];
    let worst = worst.into_iter().fold(("", 0.0), |a, b| if b.1 > a.1 { b } else { a });
    if score < TRY {
        let why = match worst {
            (name, x) if x >= 0.4 => format!("it needs {name} ({:.0} of 100)", x * 100.0),
            _ => "its answers are too free and its volume too low".to_string(),
        };
        return (Verdict::TooOpen, why);
    }
    match money.map(|m| (m, m.payback_months)) {
        Some((m, None)) => {
            let from = m.break_even_calls.map_or("at no volume".to_string(), |n| {
                format!("from {} calls a month on", thousands(n.ceil() as u64))
            });
            return (Verdict::NotWorthIt, format!("fixed costs eat the saving; it pays {from}"));
        }
        Some((_, Some(months))) if months > MAX_PAYBACK_MONTHS => {
            return (
                Verdict::NotWorthIt,
                format!("paid back after {months:.0} months; the limit is {MAX_PAYBACK_MONTHS:.0}"),
            );
        }
        _ => {}
    }
    let money = match money {
        Some(Economics { payback_months: Some(months), .. }) => format!("paid back after {months:.1} months"),
        _ => "no price is known for its model, so no saving either".to_string(),
    };
    if score >= MOVE { (Verdict::Move, money) } else { (Verdict::Try, money) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> Figures {
        Figures {
            calls: 1 << 17,
            distinct_inputs: 100_000,
            calls_per_month: 100_000.0,
            answer_entropy_bits: 3.4,
            same_keys: 0.0,
            vocabulary: Some(0.95),
            latency_p95_ms: Some(1650.0),
            personal: 0.1,
            grounded: 1.0,
            prompt_tokens_p95: 300.0,
            completion_tokens_mean: 4.0,
            multi_turn: false,
            tools: false,
            asks_to_reason: false,
        }
    }

    #[test]
    fn each_part_is_its_formula() {
        let f = router();
        let parts = Parts::of(&f);
        assert_eq!((parts.volume, parts.vocabulary, parts.need), (1.0, 1.0, 0.5));
        assert!((parts.constrained - (1.0 - 3.4 / 17.0)).abs() < 1e-12);
        let of = |change: fn(&mut Figures)| {
            let mut f = router();
            change(&mut f);
            let parts = Parts::of(&f);
            (parts, Needs::of(&f, &parts))
        };
        assert!((of(|f| f.calls_per_month = 10_000.0).0.volume - 0.5).abs() < 1e-12);
        assert_eq!(of(|f| f.calls_per_month = 0.0).0.volume, 0.0);
        assert_eq!(of(|f| f.same_keys = 1.0).0.constrained, 0.9);
        assert!((of(|f| f.vocabulary = Some(0.775)).0.vocabulary - 0.5).abs() < 1e-12);
        assert_eq!(of(|f| f.vocabulary = None).0.vocabulary, 0.5);
        assert_eq!(of(|f| f.personal = 0.8).0.need, 0.8);
        assert_eq!(of(|f| f.latency_p95_ms = None).0.need, 0.1);
        assert!((of(|f| f.prompt_tokens_p95 = 8192.0).1.context - 0.5).abs() < 1e-12);
        assert!((of(|f| f.grounded = 0.25).1.knowledge - 0.75).abs() < 1e-12);
        let long = of(|f| (f.completion_tokens_mean, f.answer_entropy_bits, f.tools) = (275.0, 17.0, true));
        assert!((long.1.reasoning - 0.8).abs() < 1e-12, "{:?}", long.1);
    }

    #[test]
    fn the_score_weighs_the_parts_and_takes_off_the_largest_need() {
        let parts = Parts { volume: 1.0, constrained: 0.8, vocabulary: 0.5, need: 0.2 };
        let none = Needs { reasoning: 0.0, context: 0.0, knowledge: 0.0 };
        let much = Needs { reasoning: 0.1, context: 0.5, knowledge: 0.2 };
        assert!((score(&parts, &none) - 71.5).abs() < 1e-9);
        assert!((score(&parts, &much) - 71.5 * 0.7).abs() < 1e-9);
    }

    #[test]
    fn too_few_calls_is_said_before_anything_else() {
        use limbeck_artifact::economics::{Assumptions, Host, economics};
        let f = router();
        let parts = Parts::of(&f);
        let needs = Needs::of(&f, &parts);
        let s = score(&parts, &needs);
        let host = Host { per_hour: 0.1, utilisation: 0.5 };
        let pays = economics(f.calls_per_month, 0.01, host, &Assumptions::default());
        assert_eq!(verdict(&f, s, &needs, Some(&pays)).0, Verdict::Move);
        for (per_call, says) in
            [(0.00002, "it pays from 12,250,000 calls a month on"), (0.00001, "it pays at no volume")]
        {
            let cheap = economics(f.calls_per_month, per_call, host, &Assumptions::default());
            let (no, why) = verdict(&f, s, &needs, Some(&cheap));
            assert!(no == Verdict::NotWorthIt && why.contains(says), "{why}");
        }
        let few = Figures { distinct_inputs: 999, ..f };
        assert_eq!(verdict(&few, s, &needs, Some(&pays)).0, Verdict::TooFewCalls);
        let open = Needs { knowledge: 0.9, ..needs };
        let (no, why) = verdict(&f, 20.0, &open, Some(&pays));
        assert!(no == Verdict::TooOpen && why.contains("knowledge"), "{why}");
    }
}
