//! Best of several draws: what a teacher's answers to one message agree on, once those that fail the task's verifiers are out.
//! Draws of one model agree in their mistakes too, so agreement orders answers and proves nothing.

use limbeck_artifact::schema::Schema;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A draw that was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// A label, a text, or fields in canonical form; none where the verifiers refused it.
    pub answer: Option<String>,
    /// Of the answer as a whole, where the teacher tells it.
    pub probability: Option<f64>,
}

/// What the draws say together.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    pub answer: String,
    /// Share of all draws that say so; of fields, of the field that is agreed on least.
    pub agreement: f64,
}

/// The answer that most draws give, of all draws; of two, the one that the teacher finds likelier, then the earlier one. None
/// where no draw is left.
pub fn best_label(draws: &[Draw]) -> Option<Best> {
    let answers: Vec<Option<&str>> = draws.iter().map(|draw| draw.answer.as_deref()).collect();
    let (answer, agreement) = vote(&answers, draws)?;
    Some(Best { answer: answer.to_owned(), agreement })
}

/// Each field as most of the valid draws have it, absence among them. Where the fields so chosen are no answer under the schema
/// together, the answer that most draws give as a whole.
pub fn best_fields(schema: &Schema, draws: &[Draw]) -> Option<Best> {
    let objects: Vec<Option<Map<String, Value>>> =
        draws.iter().map(|draw| serde_json::from_str(draw.answer.as_deref()?).ok()).collect();
    let (mut chosen, mut least) = (Map::new(), 1.0_f64);
    for field in schema.fields() {
        let said: Vec<Option<String>> = objects
            .iter()
            .map(|object| object.as_ref().map(|o| o.get(&field.name).map_or(String::new(), Value::to_string)))
            .collect();
        let said: Vec<Option<&str>> = said.iter().map(Option::as_deref).collect();
        let (value, agreement) = vote(&said, draws)?;
        least = least.min(agreement);
        if !value.is_empty() {
            chosen.insert(field.name.clone(), serde_json::from_str(value).ok()?);
        }
    }
    match schema.canonical_text(&Value::Object(chosen).to_string()) {
        Ok(answer) => Some(Best { answer, agreement: least }),
        Err(_) => best_label(draws),
    }
}

/// The text that is most like the others, as `like` has it between 0 and 1 (minimum Bayes risk, Kumar and Byrne 2004); agreement
/// is how like them it is, draws that fail counting as not at all. Of two, the likelier, then the earlier. None where no draw is
/// left; one draw alone agrees with itself.
pub fn best_text(draws: &[Draw], like: impl Fn(&str, &str) -> f64) -> Option<Best> {
    let texts: Vec<Option<&str>> = draws.iter().map(|draw| draw.answer.as_deref()).collect();
    let others = draws.len().saturating_sub(1).max(1) as f64;
    let agreement = |at: usize, text: &str| match draws.len() {
        1 => 1.0,
        _ => {
            let beside = texts.iter().enumerate().filter(|(other, _)| *other != at);
            beside.filter_map(|(_, other)| Some(like(text, (*other)?))).sum::<f64>() / others
        }
    };
    let mut best: Option<(f64, f64, &str)> = None;
    for (at, text) in texts.iter().enumerate() {
        let Some(text) = text else { continue };
        let found = (agreement(at, text), draws[at].probability.unwrap_or(0.0), *text);
        if best.is_none_or(|best| (found.0, found.1) > (best.0, best.1)) {
            best = Some(found);
        }
    }
    best.map(|(agreement, _, text)| Best { answer: text.to_owned(), agreement })
}

/// The commonest of what is said, and its share of all draws.
fn vote<'d>(said: &[Option<&'d str>], draws: &[Draw]) -> Option<(&'d str, f64)> {
    struct Votes {
        n: usize,
        probability: f64,
        first: usize,
    }
    let mut votes: BTreeMap<&str, Votes> = BTreeMap::new();
    for (at, (said, draw)) in said.iter().zip(draws).enumerate() {
        let Some(said) = said else { continue };
        let of = votes.entry(said).or_insert(Votes { n: 0, probability: 0.0, first: at });
        of.n += 1;
        of.probability += draw.probability.unwrap_or(0.0);
    }
    let mean = |v: &Votes| v.probability / v.n as f64;
    let before = |a: &Votes, b: &Votes| b.n.cmp(&a.n).then(mean(b).total_cmp(&mean(a))).then(a.first.cmp(&b.first));
    let (said, of) = votes.into_iter().min_by(|(_, a), (_, b)| before(a, b))?;
    Some((said, of.n as f64 / draws.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(answers: &[(&str, f64)]) -> Vec<Draw> {
        let draw = |(answer, p): &(&str, f64)| Draw {
            answer: Some((*answer).to_owned()).filter(|a| !a.is_empty()),
            probability: Some(*p),
        };
        answers.iter().map(draw).collect()
    }

    fn label(answers: &[(&str, f64)]) -> Option<(String, f64)> {
        best_label(&draws(answers)).map(|best| (best.answer, best.agreement))
    }

    #[test]
    fn a_text_is_the_one_in_the_middle() {
        let like = |a: &str, b: &str| 1.0 - (a.len() as f64 - b.len() as f64).abs() / 10.0;
        let best = |answers: &[(&str, f64)]| best_text(&draws(answers), like).map(|best| (best.answer, best.agreement));
        assert_eq!(best(&[("aaaaaaa", 0.9), ("aa", 0.1), ("aaa", 0.1)]), Some(("aaa".to_owned(), 0.75)));
        assert_eq!(
            best(&[("a", 0.1), ("b", 0.2), ("", 0.9)]),
            Some(("b".to_owned(), 0.5)),
            "a failed draw is like none"
        );
        assert_eq!(best(&[("a", 0.1)]), Some(("a".to_owned(), 1.0)));
        assert_eq!(best(&[("", 0.1)]), None);
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn a_label_is_the_majoritys_and_draws_that_fail_count_against_it() {
        assert_eq!(label(&[("a", 0.1), ("b", 0.9), ("a", 0.1), ("", 0.9)]), Some(("a".to_owned(), 0.5)));
        assert_eq!(label(&[("a", 0.3), ("b", 0.9)]), Some(("b".to_owned(), 0.5)), "the likelier one");
        assert_eq!(label(&[("b", 0.5), ("a", 0.5)]), Some(("b".to_owned(), 0.5)), "the earlier one");
        assert_eq!(label(&[("", 0.9)]), None);
        assert_eq!(label(&[]), None);
    }

    #[test]
    fn fields_are_chosen_one_by_one() {
        let schema = Schema::parse(
            r#"{"type": "object", "additionalProperties": false, "properties":
                {"time": {"type": "string"}, "people": {"type": "integer"}, "name": {"type": "string"}}}"#,
        )
        .unwrap();
        let of = |answers: &[(&str, f64)]| best_fields(&schema, &draws(answers)).map(|b| (b.answer, b.agreement));
        // No draw says all of it: time by 3 of 4, people by 3, no name by 2 of 4.
        let best = of(&[
            (r#"{"time":"7","people":2,"name":"Ann"}"#, 0.2),
            (r#"{"time":"7","people":3}"#, 0.9),
            (r#"{"time":"8","people":2}"#, 0.9),
            (r#"{"time":"7","people":2,"name":"An"}"#, 0.2),
        ]);
        assert_eq!(best, Some((r#"{"time":"7","people":2}"#.to_owned(), 0.5)));
        assert_eq!(of(&[("", 0.5), ("", 0.5)]), None);
        assert_eq!(of(&[("{}", 0.5), ("", 0.5)]), Some(("{}".to_owned(), 0.5)));
    }
}
