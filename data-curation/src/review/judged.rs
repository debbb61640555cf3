//! What the decisions say of the labels when a dataset is frozen: agreement of reviewers, and the most wrong labels that
//! they leave room for. Both by the random share alone: what was reviewed for its looks is no sample.

use super::certify::{self, ALPHA};
use super::{Decisions, Item, Standing, agree, rank};
use crate::taxonomy::Answers;
use limbeck_artifact::dataset::Curation;

/// Gathers while the rows pass by in pieces.
pub struct Judged {
    seed: u64,
    /// The pool: each row's place in the draw, and whether its label was found wrong; none where nobody judged it.
    drawn: Vec<(u64, Option<bool>)>,
    /// Items with two votes or more, of the pool with their place in the draw.
    shared: Vec<(Option<u64>, Item)>,
}

impl Judged {
    /// The seed is the queue's.
    pub fn new(seed: u64) -> Judged {
        Judged { seed, drawn: Vec::new(), shared: Vec::new() }
    }

    pub fn add(&mut self, item: &Item, standing: &Standing, decisions: &Decisions) {
        let place = rank::pooled(item).then(|| rank::draw_key(self.seed, &item.id));
        if let Some(place) = place {
            self.drawn.push((place, rank::outcome(item, standing)));
        }
        if decisions.of(&item.id).votes.len() > 1 {
            self.shared.push((place, item.clone()));
        }
    }

    /// Puts it into the card.
    pub fn finish(mut self, answers: &Answers, decisions: &Decisions, rate: f64, card: &mut Curation) {
        self.drawn.sort_unstable_by_key(|(place, _)| *place);
        let reviewed: Vec<bool> = self.drawn.iter().map_while(|(_, wrong)| *wrong).collect();
        bound(&reviewed, self.drawn.len() as u64, rate, card);
        // Test and calibration are reviewed in random order; of the pool, the draw's reviewed beginning is random.
        let end = self.drawn.get(reviewed.len()).map_or(u64::MAX, |(place, _)| *place);
        let random = self.shared.iter().filter(|(place, _)| place.is_none_or(|place| place < end));
        let found = agree::agreement(random.map(|(_, item)| item), answers, decisions);
        (card.kappa, card.krippendorff_alpha) = (found.cohen_kappa, found.krippendorff_alpha);
        card.agreement_note = match (found.items, found.cohen_kappa.or(found.krippendorff_alpha)) {
            (0, _) => "no item of the random share was judged by two people without sight of each other".to_string(),
            (n, None) => format!("{n} items judged twice, all of them given the same one answer"),
            (n, Some(_)) => format!("{n} items judged twice, {} of {} pairs equal", found.equal, found.pairs),
        };
    }
}

/// The lowest of the bounds that the inspections give, each at its own level: valid whenever the reviewers stopped.
fn bound(reviewed: &[bool], population: u64, rate: f64, card: &mut Curation) {
    let errors = |n: u64| reviewed.iter().take(n as usize).filter(|wrong| **wrong).count() as u64;
    let n = reviewed.len() as u64;
    let inspections = certify::inspections(rate, ALPHA, population);
    let passed = inspections.iter().filter(|i| i.reviews <= n);
    let bounds = passed.map(|i| (certify::upper_bound(errors(i.reviews), i.reviews, i.alpha), i.reviews));
    let best = bounds.min_by(|a, b| a.0.total_cmp(&b.0));
    card.label_error_at_most = best.map(|(most, _)| most);
    card.label_error_note = match (best, inspections.first()) {
        (Some((_, of)), _) => format!("{} wrong among {of} reviews of the random share", errors(of)),
        (None, Some(first)) => format!(
            "{n} rows of the random share are reviewed without a gap, and the first look is at {}",
            first.reviews
        ),
        (None, None) => format!("{population} rows in train and valid are too few for any"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::{Decision, Pass, Queue, QueueReason, Source, Verdict};
    use limbeck_artifact::dataset::Split;

    fn item(n: usize) -> Item {
        Item {
            id: format!("t{n}"),
            split: if n.is_multiple_of(4) { Split::Test } else { Split::Train },
            message: String::new(),
            answer: "a".into(),
            label: Some("a".into()),
            rivals: Vec::new(),
            reason: QueueReason::Random,
            detail: None,
            feedback: None,
            at: None,
            shown_sha256: String::new(),
            source: Source::Random,
            hint: None,
            draw: None,
            copies: 0,
        }
    }

    fn decide(decisions: &mut Decisions, at: u32, who: &str, id: &str, label: &str, pass: Option<Pass>) {
        let (verdict, given) =
            if label == "a" { (Verdict::Accept, None) } else { (Verdict::Correct, Some(label.to_string())) };
        let at = format!("2026-01-01T00:{:02}:{:02}Z", at / 60, at % 60);
        let entry = Decision { label: given, pass, ..Decision::new(&at, who, id, verdict, None, "", None) };
        decisions.add(entry.sealed());
    }

    /// The whole queue's figures, by the way that the desk takes: [`rank::drawn_outcomes`] and the certificate.
    #[test]
    fn the_card_says_what_the_desk_says_and_nothing_that_was_not_drawn() {
        let answers = Answers::Labels(vec!["a".to_string(), "b".to_string()]);
        let mut queue = Queue { items: (0..400).map(item).collect(), answers: answers.clone(), reviewers: 1 };
        rank::plain(&mut queue, 5);
        let drawn = rank::drawn(&queue);
        let mut decisions = Decisions::default();
        // 160 of the draw, every 40th wrong; a gap; then many wrong ones that must not count.
        for (n, i) in drawn.iter().enumerate().filter(|(n, _)| *n != 160).take(250) {
            let label = if n > 160 || n % 40 == 7 { "b" } else { "a" };
            decide(&mut decisions, n as u32, "ann", &queue.items[*i].id, label, None);
        }
        // Judged twice: 20 of the beginning, of which 2 differ; 30 behind the gap, all differ.
        for (n, i) in drawn.iter().enumerate().filter(|(n, _)| *n < 20 || (170..200).contains(n)) {
            let label = if n % 10 == 3 || n > 160 { "a" } else { "b" };
            let label = if n < 20 && n % 10 != 3 {
                "a"
            } else if n < 20 {
                "b"
            } else {
                label
            };
            decide(&mut decisions, 1_000 + n as u32, "ben", &queue.items[*i].id, label, Some(Pass::Blind));
        }
        let mut judged = Judged::new(5);
        let standings: Vec<Standing> = queue.items.iter().map(|i| queue.settled(i, &decisions)).collect();
        queue.items.iter().zip(&standings).for_each(|(i, s)| judged.add(i, s, &decisions));
        let mut card = Curation::default();
        judged.finish(&answers, &decisions, 0.05, &mut card);

        let outcomes = rank::drawn_outcomes(&queue, &drawn, |i| &standings[i]);
        assert_eq!(outcomes.len(), 160);
        let inspections = certify::inspections(0.05, ALPHA, 300);
        let first = inspections.iter().filter(|i| i.reviews <= 160);
        let by_hand = first.map(|i| {
            let errors = outcomes[..i.reviews as usize].iter().filter(|e| **e).count() as u64;
            certify::upper_bound(errors, i.reviews, i.alpha)
        });
        assert_eq!(card.label_error_at_most, Some(by_hand.fold(1.0, f64::min)));
        assert!(card.label_error_at_most.unwrap() < 0.2, "{card:?}");
        assert!(card.agreement_note.starts_with("20 items judged twice"), "{}", card.agreement_note);
        assert!(card.kappa.is_some() && card.krippendorff_alpha.is_some());
    }

    #[test]
    fn without_reviews_there_is_a_reason() {
        let answers = Answers::Labels(vec!["a".to_string(), "b".to_string()]);
        for (n, says) in [(400, "0 rows of the random share"), (8, "6 rows in train and valid are too few")] {
            let mut judged = Judged::new(5);
            (0..n).for_each(|i| judged.add(&item(i), &Standing::Open, &Decisions::default()));
            let mut card = Curation::default();
            judged.finish(&answers, &Decisions::default(), 0.05, &mut card);
            assert_eq!((card.kappa, card.label_error_at_most), (None, None));
            assert!(card.label_error_note.contains(says), "{}", card.label_error_note);
            assert!(card.agreement_note.starts_with("no item"), "{}", card.agreement_note);
        }
    }
}
