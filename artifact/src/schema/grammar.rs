//! The texts that an answer may be while it is written: an automaton over bytes that goes only where a valid answer, in
//! canonical form, can still come of it. Fields are flat and their order is fixed, so that the answers of a schema are a
//! regular language; an engine of derivatives intersects patterns, formats and lengths, and knows a dead end when it sees one.

use super::numerals::numerals;
use super::{Field, Format, Kind, Length, Rules, Schema, SchemaError};
use derivre::{ExprRef, JsonQuoteOptions, Regex, RegexAst, RegexBuilder, StateID};
use serde_json::Value;

/// A character of a JSON string as the canonical text spells it: escaped where it must be, and no otherwise.
const CHARACTER: &str = r#"(?:[^"\\\x00-\x1f]|\\(?:["\\bfnrt]|u00(?:0[0-7bef]|1[0-9a-f])))"#;
const DATE: &str = "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|\
                    02-(?:0[1-9]|1[0-9]|2[0-8]))|\
                    (?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29";
const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9](?::(?:[0-5][0-9]|60)(?:\\.[0-9]{1,9})?)?\
                    (?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?";
/// Work that finding out whether a field has any value may take; patterns come from a file that may be a stranger's.
const FUEL: u64 = 2_000_000;

/// Where an answer may go on. States are found as they are reached, so that a grammar is changed by being asked.
#[derive(Clone)]
pub struct Grammar {
    regex: Regex,
}

/// How far an answer has come, in one grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct At(StateID);

impl Schema {
    /// The grammar of answers: canonical texts, with `lead` before them or not. Fields that the schema does not name are never
    /// written, even where it would let them be, and a field that may be left out and has no value that can be written is
    /// left out.
    ///
    /// # Errors
    /// With the place, where an obligatory field has no value, or a pattern is beyond what can be kept to; where answers are texts.
    pub fn grammar(&self, lead: &str) -> Result<Grammar, SchemaError> {
        if self.is_text() {
            return Err(SchemaError {
                at: String::new(),
                what: "only fields have a grammar, and answers are texts".to_owned(),
            });
        }
        let mut making = Making { builder: RegexBuilder::new() };
        let answer = making.object(&self.fields)?;
        let lead = if lead.is_empty() { RegexAst::EmptyString } else { optional(literal(lead)) };
        let whole = making.mk("", &RegexAst::Concat(vec![lead, answer]))?;
        match making.builder.into_regex_limited(whole, FUEL) {
            Ok(regex) => Ok(Grammar { regex }),
            Err(_) => Err(too_intricate("")),
        }
    }
}

impl Grammar {
    /// Before anything is written.
    pub fn start(&mut self) -> At {
        At(self.regex.initial_state())
    }

    /// In memory; it grows with the places that were asked for.
    pub fn bytes(&self) -> usize {
        self.regex.num_bytes()
    }

    /// None where no answer can begin so.
    pub fn after(&mut self, at: At, byte: u8) -> Option<At> {
        let next = self.regex.transition(at.0, byte);
        (!next.is_dead()).then_some(At(next))
    }

    /// Whether what is written is a whole answer, to which nothing can be added.
    pub fn is_whole(&mut self, at: At) -> bool {
        self.regex.is_accepting(at.0)
    }

    /// Whether a text is an answer.
    pub fn accepts(&mut self, text: &str) -> bool {
        let mut at = Some(self.start());
        for byte in text.bytes() {
            at = at.and_then(|at| self.after(at, byte));
        }
        at.is_some_and(|at| self.is_whole(at))
    }
}

struct Making {
    builder: RegexBuilder,
}

impl Making {
    fn mk(&mut self, at: &str, ast: &RegexAst) -> Result<ExprRef, SchemaError> {
        self.builder.mk(ast).map_err(|e| SchemaError { at: at.to_owned(), what: e.to_string() })
    }

    /// From the last field to the first: what may follow where a field was written before, and where none was.
    fn object(&mut self, fields: &[Field]) -> Result<RegexAst, SchemaError> {
        let end = RegexAst::ExprRef(self.mk("", &literal("}"))?);
        let (mut behind, mut first) = (end.clone(), end);
        for field in fields.iter().rev() {
            let must = field.required && !field.nullable;
            let Some(value) = self.value(field)? else {
                let what = "no value of this field can be written, and it must be filled in";
                match must {
                    true => return Err(SchemaError { at: place(field), what: what.to_owned() }),
                    false => continue,
                }
            };
            let named = literal(&format!("{}:", Value::from(field.name.as_str())));
            let item = RegexAst::Concat(vec![named, value, behind.clone()]);
            let after_comma = RegexAst::Concat(vec![literal(","), item.clone()]);
            let or_not = |item: RegexAst, rest: RegexAst| if must { item } else { RegexAst::Or(vec![item, rest]) };
            let next = or_not(after_comma, behind);
            first = RegexAst::ExprRef(self.mk(&place(field), &or_not(item, first))?);
            behind = RegexAst::ExprRef(self.mk(&place(field), &next)?);
        }
        Ok(RegexAst::Concat(vec![literal("{"), first]))
    }

    /// What stands behind the field's name; None where there is no such text.
    fn value(&mut self, field: &Field) -> Result<Option<RegexAst>, SchemaError> {
        let ast = match field.list {
            None => self.single(&field.rules, false, &place(field))?,
            Some(length) => {
                let item = self.single(&field.rules, true, &format!("{}.items", place(field)))?;
                list(item, length)
            }
        };
        let made = self.mk(&place(field), &ast)?;
        let mut alone = self.builder.to_regex_limited(made, FUEL).map_err(|_| too_intricate(&place(field)))?;
        Ok((!alone.always_empty()).then_some(RegexAst::ExprRef(made)))
    }

    /// A single value; an empty text says nothing but in a list.
    fn single(&mut self, rules: &Rules, blank: bool, at: &str) -> Result<RegexAst, SchemaError> {
        if !rules.choices.is_empty() {
            let may_be = rules.choices.iter().filter(|choice| blank || !super::answer::is_blank(choice));
            return Ok(RegexAst::Or(may_be.map(|choice| literal(&super::answer::plain(choice))).collect()));
        }
        Ok(match rules.kind {
            Kind::Boolean => RegexAst::Or(vec![literal("true"), literal("false")]),
            Kind::Integer | Kind::Number => {
                numerals(rules.kind == Kind::Number, rules.minimum.as_ref(), rules.maximum.as_ref())
            }
            Kind::String => self.text(rules, blank, at)?,
        })
    }

    fn text(&mut self, rules: &Rules, blank: bool, at: &str) -> Result<RegexAst, SchemaError> {
        let least = count(rules.length.least.unwrap_or(0)).max(u32::from(!blank));
        let most = rules.length.most.map_or(u32::MAX, count);
        if least > most {
            return Ok(RegexAst::NoMatch);
        }
        if rules.pattern.is_none() && rules.format.is_none() {
            return Ok(quoted(RegexAst::Regex(CHARACTER.to_owned()), least, most));
        }
        // Rules are about what the text says; how JSON spells that is put around them. The engine knows no bare U+007F in JSON, which
        // the canonical text has, and so no such character is written under a pattern.
        let any = RegexAst::Regex("(?s:.)".to_owned());
        let mut says = vec![RegexAst::Repeat(Box::new(any), least, most)];
        if let Some(pattern) = &rules.pattern {
            // To the engine a group of this name is no group, but where the text ends.
            if ["(?P<stop>", "(?<stop>"].iter().any(|group| pattern.text().contains(group)) {
                return Err(SchemaError {
                    at: format!("{at}.pattern"),
                    what: format!(
                        "{:?} has a group called `stop`, which can't be kept to: rename the group",
                        pattern.text()
                    ),
                });
            }
            let ast = RegexAst::SearchRegex(pattern.text().to_owned());
            self.builder.mk(&ast).map_err(|_| SchemaError {
                at: format!("{at}.pattern"),
                what: format!(
                    "{:?} can't be kept to while an answer is written: it looks around (\\b, \\B, or ^ and $ within)",
                    pattern.text()
                ),
            })?;
            says.push(ast);
        }
        says.extend(rules.format.map(|format| {
            RegexAst::Regex(match format {
                Format::Date => DATE.to_owned(),
                Format::Time => TIME.to_owned(),
            })
        }));
        let spelled = RegexAst::JsonQuote(Box::new(RegexAst::And(says)), JsonQuoteOptions::regular());
        Ok(RegexAst::And(vec![spelled, quoted(RegexAst::Regex(CHARACTER.to_owned()), 0, u32::MAX)]))
    }
}

/// At least one item: an empty list says nothing.
fn list(item: RegexAst, length: Length) -> RegexAst {
    let (least, most) = (count(length.least.unwrap_or(0)).max(1), length.most.map_or(u32::MAX, count));
    if least > most {
        return RegexAst::NoMatch;
    }
    let more = if most == u32::MAX { most } else { most - 1 };
    let behind = RegexAst::Concat(vec![literal(","), item.clone()]);
    let others = RegexAst::Repeat(Box::new(behind), least - 1, more);
    RegexAst::Concat(vec![literal("["), item, others, literal("]")])
}

fn quoted(character: RegexAst, least: u32, most: u32) -> RegexAst {
    let inside = RegexAst::Repeat(Box::new(character), least, most);
    RegexAst::Concat(vec![literal("\""), inside, literal("\"")])
}

fn literal(text: &str) -> RegexAst {
    RegexAst::Literal(text.to_owned())
}

fn optional(ast: RegexAst) -> RegexAst {
    RegexAst::Or(vec![ast, RegexAst::EmptyString])
}

/// The engine's largest number means "any".
fn count(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX).min(u32::MAX - 1)
}

fn place(field: &Field) -> String {
    format!("properties.{}", field.name)
}

fn too_intricate(at: &str) -> SchemaError {
    let what = "its rules together are too intricate to be kept to while an answer is written";
    SchemaError { at: at.to_owned(), what: what.to_owned() }
}
