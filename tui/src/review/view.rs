//! Which items one goes through: all, or those that a filter or a search leaves. A view is made once, from what is known
//! when it is asked for, so that an item does not vanish under the hand that decides it.

use super::desk::{Item, Judgement, Marks, Verdict};
use super::order::Order;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// As the screen names it.
    pub name: String,
    /// In the queue's order. Never empty.
    pub items: Vec<usize>,
}

/// What the filters look at.
pub struct Known<'a> {
    pub items: &'a [Item],
    pub order: &'a Order,
    pub judgements: &'a [Option<Judgement>],
    pub closed: &'a [bool],
    pub marks: &'a BTreeMap<usize, Marks>,
}

const STATES: [&str; 8] = ["all", "open", "decided", "corrected", "rejected", "skipped", "flagged", "with notes"];

/// The filters there are for these items; by their answers too where those are labels.
pub fn filters(items: &[Item], by_answer: bool) -> Vec<String> {
    let tags: BTreeSet<&str> = items.iter().flat_map(|item| item.tags.iter().copied()).collect();
    let answers: BTreeSet<&str> = items.iter().map(|item| item.answer.as_str()).collect();
    let mut filters: Vec<String> = STATES.iter().map(|s| (*s).to_string()).collect();
    filters.extend(tags.into_iter().map(str::to_string));
    // Free text is no filter.
    if by_answer && answers.len() <= 1_000 {
        filters.extend(answers.into_iter().map(|answer| format!("answer {answer}")));
    }
    filters
}

impl Known<'_> {
    fn in_order(&self) -> impl Iterator<Item = usize> {
        self.order.items.iter().map(|item| *item as usize)
    }

    /// The view of a filter, by its name; none when it is `all`.
    pub fn filtered(&self, filter: &str) -> Result<Option<View>, String> {
        let verdict = |i: usize| self.judgements[i].as_ref().map(|j| j.verdict);
        let marks = |i: usize| self.marks.get(&i);
        let keep: Box<dyn Fn(usize) -> bool> = match filter {
            "all" => return Ok(None),
            "open" => Box::new(|i| !self.closed[i]),
            "decided" => Box::new(|i| verdict(i).is_some_and(|v| v != Verdict::Skip)),
            "corrected" => Box::new(|i| verdict(i) == Some(Verdict::Correct)),
            "rejected" => Box::new(|i| verdict(i) == Some(Verdict::Reject)),
            "skipped" => Box::new(|i| verdict(i) == Some(Verdict::Skip)),
            "flagged" => Box::new(|i| marks(i).is_some_and(|m| !m.flags.is_empty())),
            "with notes" => Box::new(|i| marks(i).is_some_and(|m| !m.notes.is_empty())),
            other => match other.strip_prefix("answer ") {
                Some(answer) => Box::new(move |i| self.items[i].answer == answer),
                None => Box::new(move |i| self.items[i].tags.contains(&other)),
            },
        };
        let items: Vec<usize> = self.in_order().filter(|i| keep(*i)).collect();
        match items.is_empty() {
            true => Err(format!("no item is {filter}")),
            false => Ok(Some(View { name: filter.to_string(), items })),
        }
    }

    /// The items that hold what was typed, whatever its case, in message, answer or id.
    pub fn found(&self, typed: &str) -> Result<View, String> {
        let needle = typed.to_lowercase();
        let holds = |text: &str| {
            // Lower-casing allocates: only where the first letters say that it may pay.
            text.is_ascii() && needle.is_ascii() && ascii_contains(text.as_bytes(), needle.as_bytes())
                || !(text.is_ascii() && needle.is_ascii()) && text.to_lowercase().contains(&needle)
        };
        let found = |i: &usize| {
            let item = &self.items[*i];
            holds(&item.message) || holds(&item.answer) || holds(&item.id)
        };
        let items: Vec<usize> = self.in_order().filter(found).collect();
        match items.is_empty() {
            true => Err("nothing holds that".to_string()),
            false => Ok(View { name: format!("search: {typed}"), items }),
        }
    }
}

fn ascii_contains(text: &[u8], lower: &[u8]) -> bool {
    text.windows(lower.len().max(1)).any(|w| w.eq_ignore_ascii_case(lower))
}

/// An item by its place, from 1, or by (the beginning of) its id.
pub fn place_of(typed: &str, items: &[Item], order: &Order) -> Result<usize, String> {
    let typed = typed.trim().trim_start_matches('#');
    if let Some(place) = items.iter().position(|item| item.id == typed) {
        return Ok(place);
    }
    if let Ok(number) = typed.replace(',', "").parse::<usize>() {
        return match (1..=items.len()).contains(&number) {
            true => Ok(order.item(number - 1)),
            false => Err(format!("there are items 1 to {}", items.len())),
        };
    }
    let mut beginning = (0..items.len()).filter(|i| !typed.is_empty() && items[*i].id.starts_with(typed));
    match (beginning.next(), beginning.next()) {
        (Some(place), None) => Ok(place),
        (Some(_), Some(_)) => Err("more than one id begins like that".to_string()),
        _ => Err("no item has that number or id".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_found_by_number_or_id() {
        let items: Vec<Item> = ["call-a1", "call-b2", "7"].map(|id| Item { id: id.into(), ..Item::default() }).into();
        let order = Order::new(vec![1, 0, 2]);
        let of = |typed: &str| place_of(typed, &items, &order);
        assert_eq!(of("2"), Ok(0));
        assert_eq!(of("#1"), Ok(1));
        assert_eq!(of("call-b"), Ok(1));
        assert_eq!(of("7"), Ok(2), "an id before a number");
        for bad in ["", "0", "4", "call", "zzz", "-1"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_search_knows_no_case() {
        let texts = ["Where is my CARD", "straße", "STRASSE", "carD?"];
        let items: Vec<Item> = texts.map(|text| Item { message: text.into(), ..Item::default() }).into();
        let marks = BTreeMap::new();
        let (judgements, order) = ([None, None, None, None], Order::new(vec![3, 2, 1, 0]));
        let known = Known { items: &items, order: &order, judgements: &judgements, closed: &[false; 4], marks: &marks };
        assert_eq!(known.found("card").unwrap().items, [3, 0]);
        assert_eq!(known.found("STRASS").unwrap().items, [2]);
        assert_eq!(known.found("stra").unwrap().items, [2, 1]);
        assert!(known.found("nothing").is_err());
        assert_eq!(known.filtered("all"), Ok(None));
        assert!(known.filtered("flagged").is_err());
    }
}
