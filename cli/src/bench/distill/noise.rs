//! A teacher that errs on purpose, and what review makes good of it: wrong answers planted among its own, and the order in which
//! the review queue would show them. The reviewer is the data set, so every decision is right.

use super::{Told, message};
use crate::bench::banking::Row;
use crate::bench::review::item;
use crate::queue;
use limbeck_artifact::capture::prompt_key;
use limbeck_data_curation::Answers;
use limbeck_data_curation::review::Queue;
use limbeck_data_curation::review::rank::{self, RankPlan};
use limbeck_eval::argmax;
use limbeck_trainer::random::Random;
use std::collections::{BTreeMap, HashMap};

/// As recipes have it when they say nothing.
const RANDOM_SHARE: f64 = 0.2;

/// What a teacher says of messages that nobody labelled, some of it planted.
#[derive(Clone, Debug, PartialEq)]
pub struct Taught {
    /// Its likeliest label by message, as a number.
    pub said: Vec<usize>,
    /// Whether that was planted.
    pub planted: Vec<bool>,
    /// By prompt, over the labels.
    pub posteriors: BTreeMap<String, Vec<f32>>,
}

/// Turns a share of the answers into another label, drawn evenly: the two labels' probabilities are exchanged, so that the
/// teacher is as sure of the wrong one as it was of its own.
pub fn plant(told: &Told, others: &[Row], share: f64, seed: u64) -> Taught {
    let mut random = Random::new(seed, "bench distill noise");
    let mut taught = Taught { said: Vec::new(), planted: Vec::new(), posteriors: told.posteriors.clone() };
    for (text, _) in others {
        let posterior = taught.posteriors.get_mut(&prompt_key(&message(text)));
        let best = posterior.as_ref().and_then(|p| argmax(p)).unwrap_or(0);
        let labels = posterior.as_ref().map_or(0, |p| p.len());
        // Drawn for each row, whatever the share: a larger share plants the smaller one's errors too.
        let (hit, step) = (f64::from(random.unit()) < share, random.below(labels.saturating_sub(1).max(1)));
        let planted = hit && labels > 1;
        let wrong = (best + 1 + step) % labels.max(1);
        if planted && let Some(posterior) = posterior {
            posterior.swap(best, wrong);
        }
        taught.said.push(if planted { wrong } else { best });
        taught.planted.push(planted);
    }
    taught
}

/// Numbers of `others` as the review queue shows them, beside labelled rows that are decided.
pub fn in_queue(labelled: &[Row], others: &[Row], said: &[usize], labels: &[String], seed: u64) -> Vec<usize> {
    let taught = others.iter().zip(said).enumerate().map(|(i, ((text, _), said))| item(i, text, &labels[*said]));
    let known = labelled.iter().enumerate().map(|(i, (text, label))| item(others.len() + i, text, label));
    let items = taught.chain(known).collect();
    let mut queue = Queue { items, answers: Answers::Labels(labels.to_vec()), reviewers: 1 };
    let posteriors = queue::posteriors(&queue, &|_| {});
    let plan = RankPlan { random_share: RANDOM_SHARE, seed };
    rank::rank(&queue, &posteriors, &HashMap::new(), &plan, "").apply(&mut queue);
    queue.items.iter().filter_map(|item| item.id.parse().ok()).filter(|i| *i < others.len()).collect()
}

/// The rows as a student takes them: what the teacher said, and the truth where a reviewer decided.
pub fn rows(others: &[Row], said: &[usize], labels: &[String], decided: &[usize]) -> Vec<Row> {
    let mut rows: Vec<Row> =
        others.iter().zip(said).map(|((text, _), said)| (text.clone(), labels[*said].clone())).collect();
    decided.iter().for_each(|i| rows[*i].1.clone_from(&others[*i].1));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (Told, Vec<Row>, Vec<String>) {
        let labels = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        // Four kinds of message that share no word.
        let row =
            |i: usize| (format!("{} {} n{i}", ["card", "cash", "rate", "pin"][i % 4], i / 4), labels[i % 4].clone());
        let others: Vec<Row> = (0..400).map(row).collect();
        let posterior = |label: &str| labels.iter().map(|l| if l == label { 0.7 } else { 0.1 }).collect();
        let posteriors = others.iter().map(|(text, label)| (prompt_key(&message(text)), posterior(label))).collect();
        (Told { posteriors, digest: String::new() }, others, labels)
    }

    #[test]
    fn the_share_is_planted_and_a_smaller_one_is_part_of_it() {
        let (told, others, labels) = made();
        let clean = plant(&told, &others, 0.0, 3);
        assert_eq!(rows(&others, &clean.said, &labels, &[]), others, "nothing planted, nothing wrong");
        let (few, many) = (plant(&told, &others, 0.1, 3), plant(&told, &others, 0.3, 3));
        let count = |taught: &Taught| taught.planted.iter().filter(|p| **p).count();
        // 40 and 120 expected, standard deviations of 6 and 9.2.
        assert!((20..=60).contains(&count(&few)) && (90..=150).contains(&count(&many)));
        assert!(few.planted.iter().zip(&many.planted).all(|(few, many)| *many || !few));
        let taken = rows(&others, &many.said, &labels, &[]);
        for (i, (own, row)) in others.iter().zip(&taken).enumerate() {
            let posterior = &many.posteriors[&prompt_key(&message(&row.0))];
            assert_eq!(own.1 != row.1, many.planted[i]);
            assert_eq!(labels[argmax(posterior).unwrap()], row.1, "as sure of the wrong label");
        }
    }

    #[test]
    fn the_queue_shows_planted_rows_first_and_review_mends_them() {
        let (told, others, labels) = made();
        let taught = plant(&told, &others, 0.15, 3);
        let order = in_queue(&[], &others, &taught.said, &labels, 3);
        let mut all = order.clone();
        all.sort_unstable();
        assert_eq!(all, (0..400).collect::<Vec<_>>());
        let n = taught.planted.iter().filter(|p| **p).count();
        let found = order[..n].iter().filter(|i| taught.planted[**i]).count();
        assert!(found * 2 > n, "{found} of {n}; a random order finds one in seven");
        let mended = rows(&others, &taught.said, &labels, &order[..n]);
        let wrong = mended.iter().zip(&others).filter(|(a, b)| a.1 != b.1).count();
        assert_eq!(wrong, n - found);
    }

    /// The whole ablation in seconds, its student a linear model: the command's own draw, errors, queue and decisions.
    #[test]
    #[ignore = "needs Banking77's folder in LIMBECK_BANKING77; minutes"]
    #[expect(clippy::print_stdout, reason = "it tells its figures")]
    fn on_banking77_a_linear_student_inherits_errors_and_review_mends_them() {
        use super::super::{draw, without_leaks};
        use crate::bench::banking::Rows;
        use limbeck_eval::statistics::{Paired, mcnemar_exact};
        use limbeck_eval::{FloorRow, LinearFloor};

        let dir = std::env::var_os("LIMBECK_BANKING77").unwrap();
        let data = without_leaks(Rows::read(std::path::Path::new(&dir)).unwrap());
        let labels = data.labels();
        let learn = |rows: &[Row]| {
            let row = |(text, label): &'_ Row| (text.clone(), labels.binary_search(label).unwrap());
            let rows: Vec<(String, usize)> = rows.iter().map(row).collect();
            let rows: Vec<FloorRow<'_>> =
                rows.iter().map(|(text, label)| FloorRow { text, label: *label, weight: 1.0 }).collect();
            LinearFloor::train(&rows, labels.len())
        };
        let says = |model: &LinearFloor, rows: &[Row]| -> Vec<bool> {
            let right = |(text, label): &Row| argmax(&model.posterior(text)).is_some_and(|best| labels[best] == *label);
            rows.iter().map(right).collect()
        };
        let share = |right: &[bool]| right.iter().filter(|r| **r).count() as f64 / right.len().max(1) as f64 * 100.0;
        let teacher = learn(&data.train);
        println!("teacher {:.2} %", share(&says(&teacher, &data.test)));
        for seed in 0..3 {
            let (labelled, others) = draw(&data.train, 10, 1540, seed);
            let posteriors =
                others.iter().map(|(text, _)| (prompt_key(&message(text)), teacher.posterior(text))).collect();
            let told = Told { posteriors, digest: String::new() };
            let taught = plant(&told, &others, 0.15, seed);
            let clean = plant(&told, &others, 0.0, seed);
            let student = |said: &[usize], decided: &[usize]| {
                let model = learn(&[labelled.clone(), rows(&others, said, &labels, decided)].concat());
                let wrong: Vec<Row> = rows(&others, &taught.said, &labels, &[])
                    .into_iter()
                    .zip(&taught.planted)
                    .filter_map(|(row, planted)| planted.then_some(row))
                    .collect();
                (says(&model, &data.test), share(&says(&model, &wrong)))
            };
            let (best, _) = student(&clean.said, &[]);
            let (noisy, repeated) = student(&taught.said, &[]);
            let p = |a: &[bool], b: &[bool]| mcnemar_exact(Paired::count(a, b));
            println!(
                "seed {seed}: teacher as it is {:.2} %, 15 % wrong {:.2} % (p {:.1e}), {repeated:.0} % of wrong answers repeated",
                share(&best),
                share(&noisy),
                p(&best, &noisy)
            );
            let order = in_queue(&labelled, &others, &taught.said, &labels, seed);
            let mut chance: Vec<usize> = (0..others.len()).collect();
            Random::new(seed, "bench distill review").shuffle(&mut chance);
            let planted = taught.planted.iter().filter(|p| **p).count();
            let mut last = share(&noisy);
            for n in [100, 250, 500] {
                let found = |order: &[usize]| order[..n].iter().filter(|i| taught.planted[**i]).count();
                let (ranked, _) = student(&taught.said, &order[..n]);
                let (drawn, _) = student(&taught.said, &chance[..n]);
                println!(
                    "  {n} decisions: by the queue {:.2} % (p {:.1e} over none; {} of {planted} found), at random {:.2} % ({} found)",
                    share(&ranked),
                    p(&ranked, &noisy),
                    found(&order),
                    share(&drawn),
                    found(&chance)
                );
                assert!(found(&order) > 2 * found(&chance) && share(&ranked) > share(&drawn));
                last = share(&ranked);
            }
            assert!(share(&noisy) < share(&best) && last > share(&noisy));
        }
    }
}
