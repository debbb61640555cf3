//! The comparison as a person reads it: what ran where, a row a figure, and in words what missed its bar and whether the
//! machine can be believed.

use super::report::{Bar, Figure, Growth};
use serde::Serialize;

/// What stands above the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Heading {
    pub version: &'static str,
    pub processor: String,
    pub model: String,
    pub threads: usize,
    pub rounds: usize,
    /// What each side computes in, and the peer's version.
    pub peer: Option<String>,
    pub ours: Option<String>,
}

pub fn table(heading: &Heading, figures: &[Figure], growth: &[Vec<Growth>], noise: &[String]) -> String {
    let mut text = format!("limbeck {} on {}, {} threads\n", heading.version, heading.processor, heading.threads);
    text.push_str(&format!("model  {}\n", heading.model));
    for (side, what) in [("peer", &heading.peer), ("ours", &heading.ours)] {
        if let Some(what) = what {
            text.push_str(&format!("{side}   {what}\n"));
        }
    }
    if !figures.is_empty() {
        let rounds = if heading.rounds == 1 { "1 round".to_owned() } else { format!("{} rounds", heading.rounds) };
        text.push_str(&format!("\nMedians of {rounds}, in turn: peer, ours. The ratio is ours over the peer's.\n"));
        text.push_str(&figure_rows(figures));
    }
    for series in growth {
        text.push_str(&growth_table(series));
    }
    if !noise.is_empty() {
        text.push_str("\nThe machine is noisy; CPU-normalised figures and ratios say more than times:\n");
        noise.iter().for_each(|note| text.push_str(&format!("  {note}\n")));
    }
    text
}

/// A row a figure under a head; the work's name stands in its first row.
pub fn figure_rows(figures: &[Figure]) -> String {
    let mut text = format!("{:<32} {:<26} {:>8} {:>8} {:>7}  bar\n", "work", "figure", "peer", "ours", "ratio");
    let mut work = "";
    for f in figures {
        let shown = if f.work == work { "" } else { &f.work };
        work = &f.work;
        let (digits, bar) = (f.digits, f.bar.map(|bar| bar_text(bar, f.met)).unwrap_or_default());
        let line = format!(
            "{shown:<32} {:<26} {:>8.digits$} {:>8.digits$} {:>7.2}  {bar}",
            f.figure, f.peer_median, f.ours_median, f.ratio
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn bar_text(bar: Bar, met: Option<bool>) -> String {
    let verdict = if met == Some(true) { "met" } else { "missed" };
    match bar {
        Bar::RatioAtLeast(least) => format!("≥ {least:.2} {verdict}"),
        Bar::RatioAtMost(most) => format!("≤ {most:.2} {verdict}"),
        Bar::OursAtLeast(least) => format!("ours ≥ {least:.1}, the peer's 95 % interval, {verdict}"),
    }
}

fn growth_table(series: &[Growth]) -> String {
    let Some(first) = series.first() else { return String::new() };
    let longer = series.iter().any(|g| g.length != first.length);
    let against = if longer { "of the first" } else { "of the fastest" };
    let mut text = format!(
        "\nGrowth with {}, ours alone\n{:>12} {:>10} {:>12} {:>16} {:>9}\n",
        if longer { "length" } else { "batch" },
        "rows x tokens",
        "tokens/s",
        "memory, MiB",
        against,
        "allowed"
    );
    for g in series {
        let memory = g.peak_rss_mib.map_or("?".to_owned(), |mib| mib.to_string());
        let shape = format!("{}x{}", g.rows, g.length);
        let missed = if g.met { "" } else { "  falls" };
        text.push_str(&format!(
            "{shape:>13} {:>10.0} {memory:>12} {:>16.2} {:>9.2}{missed}\n",
            g.tokens_per_s, g.share, g.allowed
        ));
    }
    let fallen: Vec<String> = series.iter().filter(|g| !g.met).map(|g| format!("{}x{}", g.rows, g.length)).collect();
    text.push_str(&match (fallen.is_empty(), longer) {
        (true, true) => "Speed falls no faster than the arithmetic of attention grows.\n".to_owned(),
        (true, false) => "Speed is flat within 15 %.\n".to_owned(),
        (false, true) => format!("Speed falls faster than attention's arithmetic grows at {}.\n", fallen.join(", ")),
        (false, false) => format!("Speed is not flat: more than 15 % below the fastest at {}.\n", fallen.join(", ")),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::super::{FinetuneFigures, StepFigures, report};
    use super::*;

    fn steps(json: &str) -> Vec<StepFigures> {
        serde_json::from_str(json).unwrap()
    }

    /// Two lines as peer_step.py prints them, and ours.
    const PEER: &str = r#"[
        {"peer": "pytorch+peft", "torch": "2.9.0", "dtype": "bf16", "bs": 8, "seq": 128, "r": 16, "label_tokens": "all",
         "tokens_per_s_median": 380.0, "tokens_per_s_best": 400.0, "tokens_per_s_cpu_normalised": 410.0, "peak_rss_mib": 2400},
        {"peer": "pytorch+peft", "torch": "2.9.0", "dtype": "bf16", "bs": 8, "seq": 128, "r": 16, "label_tokens": "all",
         "tokens_per_s_median": 300.0, "tokens_per_s_best": 396.0, "tokens_per_s_cpu_normalised": 406.0, "peak_rss_mib": 2402}]"#;
    const OURS: &str = r#"[
        {"dtype": "bf16 (AMX)", "bs": 8, "seq": 128, "tokens_per_s_median": 900.0, "tokens_per_s_best": 940.0,
         "tokens_per_s_cpu_normalised": 990.0, "peak_rss_mib": 1500},
        {"dtype": "bf16 (AMX)", "bs": 8, "seq": 128, "tokens_per_s_median": 880.0, "tokens_per_s_best": 930.0,
         "tokens_per_s_cpu_normalised": 980.0, "peak_rss_mib": 1502}]"#;

    fn tuned(wall_s: f64, accuracy: f64, seconds: f64, rss: u64) -> FinetuneFigures {
        serde_json::from_value(serde_json::json!({
            "peer": "pytorch+peft", "dtype": "bf16", "classes": 12, "train": 480, "steps": 180, "wall_s": wall_s,
            "tokens_per_s": 200_000.0 / wall_s, "tokens_per_s_cpu_normalised": null, "loss_last20": 0.0421,
            "peak_rss_mib": rss, "tuned": {"accuracy": accuracy, "n": 480, "seconds": seconds}
        }))
        .unwrap()
    }

    fn shape(bs: usize, seq: usize, rate: f64) -> StepFigures {
        let attention_flops = 2.0 * (seq * 576 * 30) as f64;
        StepFigures {
            dtype: "bf16 (AMX)".to_owned(),
            bs,
            seq,
            tokens_per_s_median: rate,
            tokens_per_s_best: rate,
            tokens_per_s_cpu_normalised: None,
            peak_rss_mib: Some(900),
            torch: None,
            linear_flops: 269e6,
            attention_flops,
            loss: None,
            quantize_base: None,
            layers_mib: None,
            embedding_mib: None,
        }
    }

    #[test]
    fn the_table_reads_well() {
        let mut figures = report::step(&steps(PEER), &steps(OURS));
        let (peer, ours) = (vec![tuned(500.0, 0.95, 300.0, 2800)], vec![tuned(90.0, 0.925, 20.0, 1500)]);
        figures.extend(report::finetune(&peer, &ours));
        figures.extend(report::score(&peer, &ours));
        let batch = report::growth(&[shape(4, 128, 900.0), shape(8, 128, 1000.0), shape(32, 128, 840.0)]);
        let length = report::growth(&[shape(8, 128, 1000.0), shape(2, 512, 970.0), shape(1, 2048, 700.0)]);
        let heading = Heading {
            version: "0.1.0",
            processor: "Some Processor: avx2 fma".to_owned(),
            model: "models/smollm2-135m".to_owned(),
            threads: 2,
            rounds: 2,
            peer: Some("PyTorch 2.9.0 + PEFT, bf16".to_owned()),
            ours: Some("bf16 (AMX)".to_owned()),
        };
        insta::assert_snapshot!("table", table(&heading, &figures, &[batch, length], &report::noise(&figures)));
    }

    #[test]
    fn a_bar_is_met_at_its_value_and_missed_below() {
        let at = |rate: f64, dtype: &str| {
            let peer = StepFigures { dtype: dtype.to_owned(), ..shape(8, 128, 100.0) };
            report::step(&[peer], &[shape(8, 128, rate)])[0].met
        };
        assert_eq!((at(200.0, "bf16"), at(199.0, "bf16")), (Some(true), Some(false)));
        assert_eq!((at(130.0, "f32"), at(129.0, "f32")), (Some(true), Some(false)));
        // Wilson's interval of 456 in 480 begins at 92.67 %.
        let accuracy = |ours: f64| {
            let rows = report::finetune(&[tuned(1.0, 0.95, 1.0, 1)], &[tuned(1.0, ours, 1.0, 1)]);
            rows.into_iter().find(|f| f.figure.starts_with("accuracy")).unwrap().met
        };
        assert_eq!((accuracy(0.927), accuracy(0.926)), (Some(true), Some(false)));
    }
}
