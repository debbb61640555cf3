//! What may be done about a slice, from what is known of it: its labels, its share of the training rows, what the frontier makes
//! of it and how much of it routing already escalates.

use super::{By, Material};
use std::collections::BTreeMap;

/// Where the frontier is wrong on this share of the candidate's mistakes, the labels or the task are in doubt.
const SHARED: f64 = 0.5;
/// Where routing escalates this share of the mistakes, they cost a call and no wrong answer.
const ESCALATED: f64 = 0.6;

pub(super) fn of_slice(by: By, name: &str, rows: &[usize], material: &Material<'_>) -> String {
    let mistakes: Vec<usize> = rows.iter().copied().filter(|row| material.wrong(*row)).collect();
    let mut parts = vec![common(&mistakes, material)];
    match by {
        By::Class if material.labels => parts.push(training(&[name.to_owned()], material)),
        By::Class | By::Word => parts.push("Label more training rows like these examples.".to_owned()),
        By::Cluster => parts.push(
            "Label more training rows like these examples; until then a rule on these words can escalate them."
                .to_owned(),
        ),
        By::Length => parts.push("Label more training rows of this length.".to_owned()),
        By::Time => {
            parts.push("See whether the traffic changed then: `limbeck drift`, and train on newer rows.".to_owned())
        }
        By::Customer => parts
            .push("Read this customer's rows: another product, wording or language wants rows of its own.".to_owned()),
        By::Source => parts.push("Look at how this source was recorded and prompted.".to_owned()),
        By::Script | By::Language => {
            parts.push("The base may hardly know this language: label rows of it, or escalate it.".to_owned())
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}

pub(super) fn of_confusion(gold: usize, answer: usize, rows: &[usize], material: &Material<'_>) -> String {
    let names = [(material.name)(gold), (material.name)(answer)];
    let back = material
        .candidate
        .iter()
        .zip(material.gold)
        .filter(|(p, truth)| **truth == answer && p.label == Some(gold))
        .count();
    let both_ways = match back {
        0 => String::new(),
        _ => format!(
            "It happens the other way too ({back} rows): say in the guidelines what tells the two apart, or make them one label."
        ),
    };
    let parts = [common(rows, material), both_ways, training(&names, material)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether the mistakes are the frontier's too, and whether they are served at all.
fn common(mistakes: &[usize], material: &Material<'_>) -> String {
    let n = mistakes.len().max(1) as f64;
    let mut parts = Vec::new();
    if let Some(frontier) = material.frontier {
        let shared = mistakes.iter().filter(|row| frontier[**row].label != Some(material.gold[**row])).count();
        if shared as f64 / n >= SHARED {
            parts.push(format!(
                "The frontier is wrong on {shared} of the {} too: look at these labels and at the task before the model.",
                mistakes.len()
            ));
        }
    }
    if let Some(served) = material.served {
        let escalated = mistakes.iter().filter(|row| !served[**row]).count();
        if escalated as f64 / n >= ESCALATED {
            parts.push(format!("Routing escalates {escalated} of these {} mistakes already.", mistakes.len()));
        }
    }
    parts.join(" ")
}

/// How many training rows labels have beside the others.
fn training(labels: &[String], material: &Material<'_>) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for row in material.train {
        *counts.entry(&row.target).or_default() += 1;
    }
    let mut sorted: Vec<usize> = counts.values().copied().collect();
    sorted.sort_unstable();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
    let of = |label: &String| counts.get(label.as_str()).copied().unwrap_or(0);
    let few: Vec<String> = labels
        .iter()
        .filter(|label| of(label) * 2 < median)
        .map(|label| format!("{label} has {}", of(label)))
        .collect();
    match few.as_slice() {
        [] => "Label more rows like these examples for training.".to_owned(),
        few => format!("Label more of it for training: {}, the median label {median}.", few.join(", ")),
    }
}
