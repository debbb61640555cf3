//! Which calls are made by the same piece of code: calls whose prompts are one template with other values in it. Numbers,
//! addresses and ids are masked; what is left is compared by its beginning and by its runs of three words.

use crate::text::{hash, mix, shared};
use limbeck_artifact::dataset::Message;
use std::collections::{BTreeSet, HashMap};

/// Longer words are values: keys, digests, base64. Labels of a taxonomy are shorter.
const MAX_WORD: usize = 64;
/// Words of a prompt that are looked at.
const MAX_WORDS: usize = 512;
/// Prompts are one template from this overlap of their runs of words on (Jaccard).
const SAME: f64 = 0.6;
/// Or when they begin with so many equal words: what is put into a template comes after its instructions.
const PREFIX_SYSTEM: usize = 24;
const PREFIX_USER: usize = 8;
/// Templates that are kept apart; the rarest goes when one more comes.
pub const MAX_SITES: usize = 256;
/// Masked prompts whose site is remembered.
const MAX_CACHED: usize = 65_536;

/// What kind of exchange it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    pub system: bool,
    /// More than one turn of the user.
    pub multi_turn: bool,
    /// Tools were called before the answer.
    pub tools: bool,
}

impl Shape {
    pub fn words(self) -> &'static str {
        match (self.multi_turn, self.tools) {
            (false, false) => "single turn",
            (true, false) => "several turns",
            (false, true) => "single turn with tools",
            (true, true) => "several turns with tools",
        }
    }
}

/// The part of a prompt that a template is seen in, masked.
pub struct Seen {
    pub shape: Shape,
    words: Vec<String>,
    /// Hashes of the runs of three words, sorted.
    runs: Vec<u64>,
    key: u64,
}

impl Seen {
    pub fn of(messages: &[Message]) -> Seen {
        let is_system = |m: &&Message| m.role == "system" || m.role == "developer";
        let system = messages.iter().find(is_system);
        let shape = Shape {
            system: system.is_some(),
            multi_turn: messages.iter().filter(|m| m.role == "user").count() > 1,
            tools: messages.iter().any(|m| m.role == "tool" || !m.tool_calls.is_empty()),
        };
        let text = system.or_else(|| messages.iter().find(|m| m.role == "user")).map_or("", |m| m.content.as_str());
        let words: Vec<String> = text.split_whitespace().take(MAX_WORDS).map(masked).collect();
        let hashes: Vec<u64> = words.iter().map(|w| hash(w.as_bytes())).collect();
        let mut runs: Vec<u64> = match hashes.len() {
            0..3 => vec![hashes.iter().fold(1, |h, w| mix(h ^ w))],
            _ => hashes.windows(3).map(|w| mix(mix(mix(w[0]) ^ w[1]) ^ w[2])).collect(),
        };
        let key = hashes.iter().fold(shape_hash(shape), |h, w| mix(h ^ w));
        runs.sort_unstable();
        runs.dedup();
        Seen { shape, words, runs, key }
    }
}

fn shape_hash(shape: Shape) -> u64 {
    u64::from(shape.system) | u64::from(shape.multi_turn) << 1 | u64::from(shape.tools) << 2
}

/// A word as templates have it: what holds a digit, an address or a long run of letters and signs is a value. Case and
/// the punctuation around it do not matter.
fn masked(word: &str) -> String {
    let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
    let value = bare.chars().any(|c| c.is_ascii_digit())
        || bare.contains('@')
        || bare.contains("://")
        || bare.chars().count() > MAX_WORD;
    if value { "<*>".to_string() } else { bare.to_lowercase() }
}

/// A template: the words of its first prompt, and which of them all prompts had.
#[derive(Clone, Debug)]
pub struct Template {
    pub shape: Shape,
    words: Vec<(String, bool)>,
    /// Runs of three words that all prompts so far had.
    core: Vec<u64>,
}

impl Template {
    fn new(seen: &Seen) -> Template {
        let words = seen.words.iter().map(|w| (w.clone(), w != "<*>")).collect();
        Template { shape: seen.shape, words, core: seen.runs.clone() }
    }

    fn likeness(&self, seen: &Seen) -> f64 {
        if self.shape != seen.shape {
            return 0.0;
        }
        let both = shared(&self.core, &seen.runs);
        let jaccard = both as f64 / (self.core.len() + seen.runs.len() - both).max(1) as f64;
        let prefix = if seen.shape.system { PREFIX_SYSTEM } else { PREFIX_USER };
        let begins = self.words.len() >= prefix
            && seen.words.len() >= prefix
            && self.words.iter().zip(&seen.words).take(prefix).all(|((a, _), b)| a == b);
        if begins { jaccard.max(SAME) } else { jaccard }
    }

    fn take(&mut self, seen: &Seen) {
        let theirs: BTreeSet<&str> = seen.words.iter().map(String::as_str).collect();
        for (word, fixed) in &mut self.words {
            *fixed &= theirs.contains(word.as_str());
        }
        let mut both = Vec::new();
        let mut theirs = seen.runs.iter().peekable();
        for run in &self.core {
            while theirs.next_if(|r| *r < run).is_some() {}
            if theirs.peek() == Some(&run) {
                both.push(*run);
            }
        }
        // A template without a core would be like nothing: the last one that had one stays.
        if !both.is_empty() {
            self.core = both;
        }
    }

    /// Its words for a person, `…` where prompts differ.
    pub fn text(&self, most: usize) -> String {
        let mut out = String::new();
        let mut gap = false;
        for (word, fixed) in &self.words {
            if !fixed {
                gap = true;
                continue;
            }
            if !out.is_empty() {
                out.push(' ');
            }
            if std::mem::take(&mut gap) {
                out.push_str("… ");
            }
            out.push_str(word);
            if out.chars().count() >= most {
                break;
            }
        }
        if out.is_empty() { "(no words in common)".to_string() } else { out }
    }

    /// Whether one of these phrases is part of it.
    pub fn says(&self, phrases: &[&str]) -> bool {
        let text = self.text(usize::MAX);
        phrases.iter().any(|p| text.contains(p))
    }
}

/// The templates that were seen, each with an index that stays.
#[derive(Default)]
pub struct Templates {
    all: Vec<Option<(Template, u64)>>,
    cache: HashMap<u64, usize>,
}

/// Where a call belongs.
pub struct Placed {
    pub site: usize,
    /// The site is new; where all places were taken, it takes that of the rarest.
    pub new: bool,
}

impl Templates {
    /// Finds or makes the site of a call.
    pub fn place(&mut self, seen: &Seen) -> Placed {
        if let Some(site) = self.find(seen) {
            if let Some((template, calls)) = &mut self.all[site] {
                *calls += 1;
                if !self.cache.contains_key(&seen.key) {
                    template.take(seen);
                }
            }
            self.remember(seen.key, site);
            return Placed { site, new: false };
        }
        let site = if self.all.len() < MAX_SITES {
            self.all.push(None);
            self.all.len() - 1
        } else {
            let calls = |i: &usize| self.all[*i].as_ref().map_or(0, |(_, n)| *n);
            let rarest = (0..self.all.len()).min_by_key(calls).unwrap_or(0);
            self.cache.retain(|_, site| *site != rarest);
            rarest
        };
        self.all[site] = Some((Template::new(seen), 1));
        self.remember(seen.key, site);
        Placed { site, new: true }
    }

    /// The site of a call, if it has one: the likest, the earlier of equals.
    pub fn find(&self, seen: &Seen) -> Option<usize> {
        if let Some(site) = self.cache.get(&seen.key) {
            return Some(*site);
        }
        let mut best = (0.0, None);
        for (i, slot) in self.all.iter().enumerate() {
            let likeness = slot.as_ref().map_or(0.0, |(template, _)| template.likeness(seen));
            if likeness >= SAME && likeness > best.0 {
                best = (likeness, Some(i));
            }
        }
        best.1
    }

    fn remember(&mut self, key: u64, site: usize) {
        if self.cache.len() >= MAX_CACHED {
            self.cache.clear();
        }
        self.cache.insert(key, site);
    }

    pub fn get(&self, site: usize) -> Option<&Template> {
        self.all.get(site)?.as_ref().map(|(template, _)| template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(system: &str, user: &str) -> Seen {
        let mut messages = vec![Message::new("user", user)];
        if !system.is_empty() {
            messages.insert(0, Message::new("system", system));
        }
        Seen::of(&messages)
    }

    #[test]
    fn values_in_a_template_do_not_make_a_site() {
        let mut templates = Templates::default();
        let intent = |name: &str, n: u32| {
            format!("You route messages of Acme Bank for {name}, ticket {n}. Answer with one of: refund, card, other.")
        };
        let first = templates.place(&seen(&intent("Anna", 17), "where is my refund"));
        assert!(first.new);
        for (name, n) in [("Bob", 9), ("Mrs. Miller", 1_000_000), ("anna@example.com", 3)] {
            let placed = templates.place(&seen(&intent(name, n), "hello"));
            assert_eq!((placed.site, placed.new), (first.site, false), "{name}");
        }
        let other = "You are a helpful assistant of Acme Bank. Summarise the call for the file in two sentences, without names.";
        assert!(templates.place(&seen(other, "x")).new);
        let text = templates.get(first.site).unwrap().text(200);
        assert_eq!(text, "you route messages of acme bank for … ticket … answer with one of refund card other");
    }

    #[test]
    fn without_a_system_prompt_the_users_message_is_the_template() {
        let mut templates = Templates::default();
        let ask = |m: &str| seen("", &format!("Is this message spam or not? Answer yes or no: {m}"));
        let first = templates.place(&ask("win a prize now, click on this link and get rich"));
        assert_eq!(templates.place(&ask("see you at lunch")).site, first.site);
        assert!(templates.place(&seen("", "what is the weather like in Paris today, and will it rain")).new);
        let with_tools = Message { tool_call_id: Some("1".into()), ..Message::new("tool", "4 degrees") };
        let messages = [Message::new("user", "Is this message spam or not? Answer yes or no: hi"), with_tools];
        assert!(templates.place(&Seen::of(&messages)).new, "another shape is another site");
    }

    #[test]
    fn templates_are_bounded_and_the_frequent_stay() {
        let mut templates = Templates::default();
        let frequent = seen("Classify the sentiment of this review as good or bad.", "x");
        let site = templates.place(&frequent).site;
        for i in 0..3000u32 {
            let words: Vec<String> = (0..12)
                .map(|k| format!("{}", char::from(b'a' + (mix(u64::from(i * 12 + k)) % 26) as u8)).repeat(5))
                .collect();
            templates.place(&seen(&words.join(" "), "x"));
            if i % 10 == 0 {
                assert_eq!(templates.place(&frequent).site, site);
            }
        }
        assert!(templates.all.len() <= MAX_SITES);
    }
}
