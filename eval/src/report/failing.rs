//! The page's section on where the candidate fails.

use super::html::{fixed, range, text, track};
use crate::slices::{By, Slice, SliceExample, Slices};
use crate::statistics::Interval;
use crate::words::{percent, significant, thousands};
use minijinja::{Value, context};

pub(super) fn p_value(p: f64) -> String {
    if p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {}", significant(p)) }
}

pub(super) fn slices(slices: &Slices) -> Value {
    let example = |example: &SliceExample| {
        context! {
            text => text(&example.text),
            gold => text(&example.gold),
            answer => example.answer.as_deref().map(text),
        }
    };
    let row = |slice: &Slice| {
        let one_minus = Interval { low: 1.0 - slice.interval.high, high: 1.0 - slice.interval.low };
        context! {
            name => text(&slice.name),
            by => slice.by.name(),
            error => fixed(slice.error),
            range => range(slice.interval),
            track => track(1.0 - slice.error, one_minus),
            right => fixed(1.0 - slice.error),
            right_range => range(one_minus),
            wrong => thousands(slice.wrong),
            rows => thousands(slice.rows),
            p => p_value(slice.p),
            remedy => text(&slice.remedy),
            examples => slice.examples.iter().map(example).collect::<Vec<_>>(),
        }
    };
    let (worse, others): (Vec<&Slice>, Vec<&Slice>) = slices.slices.iter().partition(|slice| slice.worse);
    context! {
        error => percent(slices.error),
        tested => thousands(slices.tested),
        too_small => (slices.too_small > 0).then(|| thousands(slices.too_small)),
        worse => worse.into_iter().map(row).collect::<Vec<_>>(),
        others => others.into_iter().filter(|slice| slice.by != By::Class).map(row).collect::<Vec<_>>(),
        confused => slices.confused.iter().map(|c| context! {
            gold => text(&c.gold),
            answer => text(&c.answer),
            rows => thousands(c.rows),
            of => thousands(c.of),
            remedy => text(&c.remedy),
            examples => c.examples.iter().map(example).collect::<Vec<_>>(),
        }).collect::<Vec<_>>(),
    }
}
