//! A made-up evaluation: a dataset of short messages and models of known accuracy, all seeded.

use limbeck_artifact::dataset::{DatasetCard, Example, LabelSource, Message, Recorded, Split, SplitCard, TraceRef};
use limbeck_artifact::economics::Host;
use limbeck_eval::{
    AnswerError, Answerer, EvalPlan, Fact, Gate, Metric, PriceTable, Rule, SplitMix64, TokenPrice, statistics::Risk,
};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

pub const LABELS: [&str; 12] = [
    "activate_my_card",
    "age_limit",
    "apple_pay_or_google_pay",
    "atm_support",
    "automatic_top_up",
    "card_arrival",
    "card_linking",
    "cash_withdrawal_charge",
    "exchange_rate",
    "getting_spare_card",
    "lost_or_stolen_card",
    "pin_blocked",
];

pub fn labels() -> Vec<String> {
    LABELS.iter().map(|label| (*label).to_owned()).collect()
}

pub struct Data {
    pub card: DatasetCard,
    pub train: Vec<Example>,
    pub calibration: Vec<Example>,
    pub test: Vec<Example>,
}

impl Data {
    /// `n` test rows, as many training rows, half as many calibration rows.
    pub fn new(n: usize) -> Data {
        let mut rng = SplitMix64::new(11);
        let mut rows = |split: &str, n: usize| (0..n).map(|i| example(split, i, &mut rng)).collect::<Vec<_>>();
        let (train, calibration, test) = (rows("train", n), rows("calibration", n / 2), rows("test", n));
        let split = |rows: &[Example]| SplitCard {
            rows: rows.len() as u64,
            reviewed: rows.iter().filter(|row| row.label_source == LabelSource::Human).count() as u64,
            sha256: "0".repeat(64),
            labels: BTreeMap::new(),
        };
        let card = DatasetCard {
            digest: "9f2c4a7be1d05386c7a9e4f0b1d2c3a495867768594a3b2c1d0e0f9a8b7c6d5e".into(),
            labels: labels(),
            schema: None,
            splits: BTreeMap::from([
                (Split::Train, split(&train)),
                (Split::Calibration, split(&calibration)),
                (Split::Test, split(&test)),
            ]),
            traces_in: 1_043,
            left_out: BTreeMap::from([
                ("exact duplicate".into(), 31),
                ("malformed line".into(), 4),
                ("near duplicate".into(), 58),
            ]),
            sources: BTreeMap::from([
                ("traces.jsonl".into(), "3b".repeat(32)),
                ("decisions.jsonl".into(), "c4".repeat(32)),
            ]),
            redactions: BTreeMap::from([("card".into(), 3), ("email".into(), 12), ("phone".into(), 7)]),
            curation: Default::default(),
        };
        Data { card, train, calibration, test }
    }

    pub fn rows(&self) -> limbeck_eval::Rows<'_> {
        limbeck_eval::Rows { card: &self.card, train: &self.train, calibration: &self.calibration, test: &self.test }
    }
}

fn example(split: &str, i: usize, rng: &mut SplitMix64) -> Example {
    let gold = rng.below(LABELS.len());
    let hint = if rng.unit() < 0.85 { gold } else { rng.below(LABELS.len()) };
    let text = format!("Hello, number {i} here: a question about my {}, please help", LABELS[hint].replace('_', " "));
    let answer = if rng.unit() < 0.92 { gold } else { rng.below(LABELS.len()) };
    Example {
        id: limbeck_artifact::digest::sha256_hex(format!("{split} {i}").as_bytes()),
        messages: vec![Message::new("system", "Answer with one label."), Message::new("user", &text)],
        target: LABELS[gold].into(),
        target_tool_calls: Vec::new(),
        label_source: LabelSource::Human,
        weight: 1.0,
        group: format!("{split}-{}", i / 2),
        recorded: Recorded {
            answer: LABELS[answer].into(),
            model: "frontier-large".into(),
            latency_ms: Some(650.0 + (rng.unit() * 900.0).round()),
            prompt_tokens: Some(180 + rng.below(40) as u64),
            completion_tokens: Some(5),
            at: None,
            feedback: None,
        },
        trace: TraceRef { id: format!("t{i}"), file: "traces.jsonl".into(), line: i as u64 + 1 },
        decision: None,
    }
}

/// Right with probability `accuracy`, decided by the row alone; too sure of itself.
pub struct Model<'a> {
    pub accuracy: f64,
    pub seed: u64,
    pub asked: &'a Cell<u32>,
}

impl Answerer for Model<'_> {
    fn answer(&mut self, messages: &[Message]) -> Result<Vec<f32>, AnswerError> {
        self.asked.set(self.asked.get() + 1);
        let text = &messages[1].content;
        let number = text.bytes().fold(self.seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut rng = SplitMix64::new(number);
        let hint = LABELS.iter().position(|label| text.contains(&label.replace('_', " "))).unwrap_or(0);
        let sure = rng.unit();
        let answer = if sure < self.accuracy { hint } else { rng.below(LABELS.len()) };
        let confidence = if sure < self.accuracy { 0.9 + 0.099 * rng.unit() } else { 0.45 + 0.5 * rng.unit() };
        let rest = ((1.0 - confidence) / (LABELS.len() - 1) as f64) as f32;
        Ok((0..LABELS.len()).map(|label| if label == answer { confidence as f32 } else { rest }).collect())
    }
}

pub fn plan(dir: &Path) -> EvalPlan {
    let gate = |name: &str, rule| Gate { name: name.into(), rule };
    EvalPlan {
        name: "quickstart".into(),
        version: "0.1.0".into(),
        program_version: "0.1.0".into(),
        labels: labels(),
        fields: None,
        out_of_scope: None,
        ranking: None,
        candidate: "q8_0".into(),
        constraint: None,
        frontier: Some("frontier".into()),
        gates: vec![
            gate("accuracy", Rule::Floor { metric: Metric::Accuracy, min: 0.70 }),
            gate("macro-f1", Rule::Floor { metric: Metric::MacroF1, min: 0.70 }),
            gate("beats-base", Rule::Improvement { over: "base".into(), min: 0.40 }),
            gate("as-good-as-frontier", Rule::NonInferiority { against: "frontier".into(), margin: 0.12 }),
            gate("every-class", Rule::PerClassRecall { min: 0.5 }),
            gate("quantization", Rule::Quantization { against: "tuned".into(), max_agreement_loss: 0.03, max_accuracy_loss: Some(0.02), max_kl: None }),
            gate("latency", Rule::Latency { p95_ms: 250.0 }),
        ],
        threshold: 0.7,
        escalation: None,
        calibration: Default::default(),
        fallback: Vec::new(),
        risk: Risk::default(),
        bootstrap_resamples: 500,
        seed: 17,
        look: None,
        loads: BTreeMap::new(),
        bytes: None,
        prices: Some(PriceTable {
            as_of: "2026-11-01".into(),
            currency: "USD".into(),
            models: BTreeMap::from([("frontier-large".into(), TokenPrice { input_per_1m: 2.5, output_per_1m: 10.0, batch_share: None })]),
            assumptions: Default::default(),
            self_hosted: Some(Host { per_hour: 0.05, utilisation: 0.5 }),
        }),
        dir: dir.to_owned(),
        made: vec![
            Fact::new("File", "quickstart-0.1.0-Q8_0.gguf, 22.4 MB"),
            Fact::new("Digest", "sha256:".to_owned() + &"7e".repeat(32)),
            Fact::new("Base model", "limbeck-tiny (6 layers of SmolLM2-135M-Instruct), Apache-2.0"),
            Fact::new("Method", "LoRA r=16, merged, quantized to Q8_0"),
        ],
        notes: vec!["The traces are simulated from Banking77 (PolyAI, CC BY 4.0): the frontier's answers, customers and times are made up.".into()],
        reproduce: vec!["limbeck run recipes/quickstart".into(), "limbeck verify runs/quickstart/package".into()],
        mistakes: 6,
    }
}
