//! The comparison on a GPU as a person reads it.

use super::{Found, Profile};
use crate::bench::text::figure_rows;
use crate::output::aligned;

/// Kernels of a profile that are shown; the rest is one line.
const SHOWN: usize = 14;
/// Characters of a kernel's name.
const NAME: usize = 72;

pub fn text(on: &str, rehearses: bool, found: &Found, failed: &[(String, String)]) -> String {
    let mut text = format!("limbeck {} on {on}", env!("CARGO_PKG_VERSION"));
    if let Some(device) = &found.device {
        text += &format!(" ({device})");
    }
    text += "\n";
    if rehearses {
        text += "A REHEARSAL at tiny shapes: it shows that all parts run. Its speeds say nothing.\n";
    }
    if let Some(torch) = &found.torch {
        text += &format!("peer   PyTorch {torch} + PEFT, bf16, sdpa\n");
    }
    if let Some(ours) = &found.ours {
        text += &format!("ours   products in {ours}\n");
    }
    if let (Some(peak), Some(copy)) = (found.bf16_tflops, found.copy_gb_s) {
        text +=
            &format!("peak   {peak:.1} TFLOP/s of a bf16 product, {copy:.0} GB/s of a copy, as PyTorch reaches them\n");
    }
    if !found.figures.is_empty() {
        text += "\nThe ratio is ours over the peer's. Errors are distances from float64, as a share of its norm.\n";
        text += &figure_rows(&found.figures);
    }
    found.profiles.iter().for_each(|profile| text += &kernels(profile));
    if !failed.is_empty() {
        text += "\nFailed:\n";
        failed.iter().for_each(|(name, why)| text += &format!("  {name}: {}\n", why.replace('\n', "\n    ")));
    }
    text
}

fn kernels(profile: &Profile) -> String {
    let Profile { work, step_s, kernels } = profile;
    let all: f64 = kernels.values().map(|k| k.seconds).sum();
    let mut sorted: Vec<(&String, &limbeck_model::kernel_time::KernelTime)> = kernels.iter().collect();
    sorted.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    let mut text = format!(
        "\nA step of {work}: {:.1} ms, {:.1} ms of it in {} launches of {} kernels\n",
        step_s * 1e3,
        all * 1e3,
        kernels.values().map(|k| k.launches).sum::<u64>(),
        kernels.len()
    );
    let row = |name: &str, launches: u64, seconds: f64| {
        vec![
            format!("{:.1} %", seconds / all * 100.0),
            format!("{:.3} ms", seconds * 1e3),
            launches.to_string(),
            name.to_owned(),
        ]
    };
    let (shown, rest) = sorted.split_at(sorted.len().min(SHOWN));
    let mut rows: Vec<Vec<String>> = shown.iter().map(|(name, k)| row(name, k.launches, k.seconds)).collect();
    if !rest.is_empty() {
        let (launches, seconds) = rest.iter().fold((0, 0.0), |(n, s), (_, k)| (n + k.launches, s + k.seconds));
        rows.push(row("others", launches, seconds));
    }
    // Names end the line: they are as wide as they are.
    let numbers: Vec<Vec<String>> = rows.iter().map(|row| row[..3].to_vec()).collect();
    for (line, row) in aligned(&numbers).lines().zip(&rows) {
        text += &format!("  {line}  {}\n", shortened(&row[3]));
    }
    let by_host: u64 = kernels.values().map(|k| k.by_host).sum();
    if by_host > 0 {
        text += &format!(
            "  {by_host} launches were timed by the host's clock, waiting included: the device has no timestamps for them\n"
        );
    }
    text
}

/// Without the parts of its name that all kernels have, and no longer than a line.
fn shortened(name: &str) -> String {
    let parts: Vec<&str> = name.split(" | ").collect();
    let told =
        |part: &&&str| !part.starts_with("__") && !part.starts_with("Dynamic") && !["()", "TensorArgs"].contains(*part);
    let kept: Vec<&str> = parts.iter().filter(told).copied().collect();
    let text = kept.join(" ");
    match text.char_indices().nth(NAME) {
        None => text,
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}
