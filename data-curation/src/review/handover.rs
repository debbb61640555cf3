//! Handing part of one's queue to somebody else: an entry in the store, like a decision, from which everybody works out who
//! an item belongs to. Nobody is asked and nothing is locked; an item that was decided meanwhile is simply done.

use super::store::file_part;
use crate::Error;
use crate::text::{hash, mix};
use limbeck_artifact::files::append_line;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOver {
    /// RFC 3339, UTC.
    pub at: String,
    pub from: String,
    pub to: String,
    /// Of what belongs to `from`, 0 to 1; drawn by the item's id, so that hard and easy items go alike.
    pub share: f64,
}

/// Writes it to the store, in a file of its own.
///
/// # Errors
/// The disk's.
pub fn hand_over(dir: &Path, entry: &HandOver) -> Result<(), Error> {
    let digits: String = entry.at.chars().filter(char::is_ascii_alphanumeric).collect();
    let path = dir.join(format!("handover-{}-{}.json", file_part(&entry.from), digits.to_ascii_lowercase()));
    append_line(&path, &serde_json::json!(entry).to_string()).map_err(|e| Error::io("write", &path, e))
}

/// All that were written, in the order of their times. A file that is not whole yet is left for later.
///
/// # Errors
/// When the folder can't be listed.
pub fn load(dir: &Path) -> Result<Vec<HandOver>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir, e)),
    };
    let mut found: Vec<HandOver> = entries
        .filter_map(|e| e.ok())
        .filter(|e| e.file_name().to_string_lossy().starts_with("handover-"))
        .filter_map(|e| std::fs::read_to_string(e.path()).ok())
        .flat_map(|text| text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect::<Vec<HandOver>>())
        .collect();
    found.sort_by(|a, b| (&a.at, &a.from, &a.to).cmp(&(&b.at, &b.from, &b.to)));
    Ok(found)
}

/// Whose item it is; none where nobody handed anything over. The first hand-over takes from the whole queue, and what it
/// leaves is its author's.
pub fn owner<'h>(list: &'h [HandOver], item: &str) -> Option<&'h str> {
    let mut owner: Option<&str> = None;
    for entry in list {
        if owner.is_none_or(|o| o == entry.from) {
            let drawn =
                mix(hash(item.as_bytes()) ^ hash(entry.at.as_bytes()) ^ hash(entry.to.as_bytes()).rotate_left(1));
            let unit = (drawn >> 11) as f64 / (1_u64 << 53) as f64;
            owner = Some(if unit < entry.share { &entry.to } else { &entry.from });
        }
    }
    owner
}

/// Whether an item is another's for this reviewer. Who has no part in any hand-over may take anything.
pub fn is_anothers(list: &[HandOver], item: &str, reviewer: &str) -> bool {
    list.iter().any(|e| e.from == reviewer || e.to == reviewer) && owner(list, item).is_some_and(|o| o != reviewer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_goes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(&dir.path().join("missing")).unwrap(), []);
        let entry = |at: &str, from: &str, to: &str, share| HandOver {
            at: format!("2026-01-01T00:00:{at}Z"),
            from: from.into(),
            to: to.into(),
            share,
        };
        hand_over(dir.path(), &entry("02", "ben", "cat", 0.5)).unwrap();
        hand_over(dir.path(), &entry("01", "ann", "ben", 0.5)).unwrap();
        std::fs::write(dir.path().join("handover-x-3.json"), "{\"at\":\"20").unwrap();
        let list = load(dir.path()).unwrap();
        assert_eq!(list.len(), 2);
        let ids: Vec<String> = (0..4_000).map(|i| format!("t{i}")).collect();
        let of = |name: &str| ids.iter().filter(|id| owner(&list, id) == Some(name)).count();
        assert_eq!(of("ann") + of("ben") + of("cat"), 4_000);
        assert!(of("ann").abs_diff(2_000) < 130 && of("ben").abs_diff(1_000) < 120, "{} {}", of("ann"), of("ben"));
        assert!(!ids.iter().any(|id| is_anothers(&list, id, "dan")), "dan has no part in it");
        assert!(ids.iter().all(|id| is_anothers(&list, id, "ann") == (owner(&list, id) != Some("ann"))));
        // All of it back.
        let back = [list, vec![entry("05", "cat", "ann", 1.0)]].concat();
        assert!(!ids.iter().any(|id| owner(&back, id) == Some("cat")));
    }
}
