//! Which traces are of one conversation: those that the log says so of, and, where it says nothing, those that begin alike
//! and so continue one another. A later call repeats all that was said before, so a conversation in two splits is a leak.

use super::gather::NONE;
use crate::text::{hash, mix};
use crate::trace::Trace;
use std::collections::HashMap;

/// What a trace shows of its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Its id.
    Named(u64),
    /// It goes on after a first exchange: that exchange, and the message after it too.
    Longer {
        exchange: u64,
        opening: u64,
    },
    /// It is a first exchange.
    First {
        exchange: u64,
    },
    Nothing,
}

impl Seen {
    pub fn of(trace: &Trace) -> Seen {
        if let Some(thread) = &trace.thread {
            return Seen::Named(hash(thread.as_bytes()));
        }
        let mut turns = trace.messages.iter().filter(|m| m.role != "system" && m.role != "developer");
        let after =
            |before: u64, role: &str, text: &str| mix(mix(before ^ hash(role.as_bytes())) ^ hash(text.as_bytes()));
        let Some(first) = turns.next() else { return Seen::Nothing };
        let asked = after(1, &first.role, &first.content);
        match (turns.next(), turns.next()) {
            (None, _) => Seen::First { exchange: after(asked, "assistant", &trace.answer) },
            (Some(second), Some(third)) => {
                let exchange = after(asked, &second.role, &second.content);
                Seen::Longer { exchange, opening: after(exchange, &third.role, &third.content) }
            }
            (Some(_), None) => Seen::Nothing,
        }
    }
}

/// What many traces show, in order.
#[derive(Default)]
pub struct Threads(Vec<Seen>);

impl Threads {
    pub fn add(&mut self, seen: Seen) {
        self.0.push(seen);
    }

    /// A small number a conversation, or [`NONE`]. A first exchange is of the conversation that goes on from it, unless
    /// several do: then it is a greeting, and says nothing of who it is.
    pub fn finish(self) -> Vec<u32> {
        let mut goes_on: HashMap<u64, Option<u64>> = HashMap::new();
        for seen in &self.0 {
            if let Seen::Longer { exchange, opening } = *seen {
                let only = goes_on.entry(exchange).or_insert(Some(opening));
                *only = only.filter(|known| *known == opening);
            }
        }
        let mut numbers: HashMap<(bool, u64), u32> = HashMap::new();
        let mut number = |key: (bool, u64)| {
            let next = numbers.len() as u32;
            *numbers.entry(key).or_insert(next)
        };
        let of = |seen: Seen| match seen {
            Seen::Named(id) => number((true, id)),
            Seen::Longer { opening, .. } => number((false, opening)),
            Seen::First { exchange } => {
                goes_on.get(&exchange).copied().flatten().map_or(NONE, |opening| number((false, opening)))
            }
            Seen::Nothing => NONE,
        };
        self.0.into_iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::dataset::Message;

    fn call(thread: Option<&str>, turns: &[&str], answer: &str) -> Seen {
        let line = serde_json::json!({"messages": [{"role": "user", "content": "x"}], "response": {"choices": [
            {"message": {"content": answer}}]}});
        let mut trace = crate::trace::parse(line.to_string().as_bytes()).unwrap();
        let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
        trace.messages = turns.iter().enumerate().map(|(i, text)| Message::new(role(i), text)).collect();
        trace.messages.insert(0, Message::new("system", answer));
        trace.thread = thread.map(str::to_string);
        Seen::of(&trace)
    }

    fn numbers(seen: &[Seen]) -> Vec<u32> {
        let mut threads = Threads::default();
        seen.iter().for_each(|seen| threads.add(*seen));
        threads.finish()
    }

    #[test]
    fn a_conversation_is_known_by_its_id_or_by_how_it_begins() {
        let found = numbers(&[
            call(Some("t"), &["a"], "b"),
            call(Some("t"), &["c", "d", "e"], "f"),
            call(None, &["my card", "what of it?", "lost"], "lost_card"),
            call(None, &["my card", "what of it?", "lost", "when?", "today"], "lost_card"),
            call(None, &["my card"], "what of it?"),
            call(None, &["my card"], "something else"),
            call(None, &["my card", "what of it?"], "?"),
        ]);
        assert_eq!(found, [0, 0, 1, 1, 1, NONE, NONE]);
    }

    #[test]
    fn a_greeting_that_many_begin_with_joins_nobody() {
        let found = numbers(&[
            call(None, &["hi"], "hello, how can I help?"),
            call(None, &["hi", "hello, how can I help?", "a refund"], "refund"),
            call(None, &["hi", "hello, how can I help?", "my pin"], "pin"),
            call(None, &["hi", "hello, how can I help?", "my pin", "which?", "the new one"], "pin"),
        ]);
        assert_eq!(found, [NONE, 0, 1, 1]);
    }
}
