//! The lock: every value of a run, defaults included, as a recipe that can be run again. It is the same text on every
//! machine, so its digest names what was asked.

use crate::resolve::{Entry, Origin, Resolved};
use crate::schema;
use std::fmt::Write;

const HEAD: &str = "\
# The resolved recipe of a run: every value, and whether it is a default, from the recipe or from --set.
# Paths are as written: relative to the recipe's folder (sign.key and promote.store: to the current directory).
# promote.channel and [encrypt] are not in it: the same artifact may serve on several channels (the store's log says on which)
# and be kept for several people.
# Run it again: put this file in the recipe's folder and `limbeck run` it.
";

/// What makes no other artifact, but says where one goes and who may read it: it is honoured, and has no part in the lock.
const OUTSIDE: &[&str] = &["promote.channel", "encrypt.recipients", "encrypt.identity"];

/// Whether a setting has a part in what a run makes, and so in the lock.
pub fn is_locked(key: &str) -> bool {
    !OUTSIDE.contains(&key)
}

impl Resolved {
    /// TOML that resolves to the same recipe, but for where its artifact goes ([`is_locked`]).
    pub fn lock_toml(&self) -> String {
        let mut text = HEAD.to_owned();
        let mut section = String::new();
        for entry in self.entries.iter().filter(|entry| is_locked(&entry.key)) {
            let (header, name) = place(&entry.key);
            if header != section {
                section = header;
                let of = |array: &&&schema::Array| section.strip_prefix(array.key).is_some_and(|r| r.starts_with('.'));
                let shown = match schema::ARRAYS.iter().find(of) {
                    Some(array) => format!("[[{}]]", array.key),
                    None => format!("[{section}]"),
                };
                let _ = write!(text, "\n{shown}\n");
            } else if section.is_empty() && entry.key == "name" {
                text.push('\n');
            }
            let _ = writeln!(text, "{name} = {} # {}", entry.value, origin(entry));
        }
        text
    }
}

/// The table a key stands in and its name there.
fn place(key: &str) -> (String, &str) {
    let section = schema::parent(key);
    (section.to_owned(), key[section.len()..].trim_start_matches('.'))
}

/// Without line numbers: a comment added to a recipe must not change the lock.
fn origin(entry: &Entry) -> &'static str {
    match entry.origin {
        Origin::Default | Origin::DefaultUnder { .. } => "default",
        Origin::File { .. } => "recipe",
        Origin::Set { .. } => "--set",
    }
}
