//! A path that came from a file (a manifest, a bundle, an index) and must stay inside the folder it speaks of. One
//! parser refuses whatever could climb out, mean something else on another system, or hide from a reader.

use crate::untrusted::visible_line;
use crate::{Error, Result};
use std::fmt;
use std::path::Path;

/// A relative path with `/` between its parts, safe to join to a folder on any system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SafeRelPath(String);

const MAX_PART: usize = 255;
const MAX_WHOLE: usize = 1024;

impl SafeRelPath {
    /// Refuses the empty path, an absolute one, `.` and `..` parts, empty parts, backslashes, colons (drives, streams),
    /// control and invisible characters, parts that end in a space or a dot, device names, and parts over 255 bytes.
    pub fn parse(path: &str) -> Result<SafeRelPath> {
        match fault(path) {
            None => Ok(SafeRelPath(path.to_owned())),
            Some(fault) => Err(Error::refused(
                format!("the path \"{}\" {fault}", visible_line(path)),
                "only plain paths inside the folder are taken",
            )),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for SafeRelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn fault(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("is empty");
    }
    if path.len() > MAX_WHOLE {
        return Some("is longer than 1024 bytes");
    }
    if path.starts_with('/') {
        return Some("is absolute");
    }
    if visible_line(path) != path {
        return Some("has a control or an invisible character");
    }
    if path.contains(['\\', ':']) {
        return Some("has a backslash or a colon");
    }
    path.split('/').find_map(part_fault)
}

fn part_fault(part: &str) -> Option<&'static str> {
    match part {
        "" => Some("has an empty part"),
        "." | ".." => Some("has a part that climbs"),
        _ if part.len() > MAX_PART => Some("has a part longer than 255 bytes"),
        _ if part.ends_with([' ', '.']) => Some("has a part that ends in a space or a dot"),
        _ if is_device(part) => Some("has a part that is a device name on Windows"),
        _ => None,
    }
}

fn is_device(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or(part).trim_end().to_ascii_uppercase();
    match stem.as_bytes() {
        b"CON" | b"PRN" | b"AUX" | b"NUL" => true,
        [b'C', b'O', b'M', n] | [b'L', b'P', b'T', n] => n.is_ascii_digit(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    #[test]
    fn plain_paths_pass() {
        for path in
            ["a", "model.gguf", "adapter/adapter_model.safetensors", ".hidden/x", "ünï/語", "a..b/c", "con1/x y"]
        {
            assert_eq!(SafeRelPath::parse(path).unwrap().as_str(), path);
        }
    }

    #[test]
    fn hostile_paths_do_not() {
        let long = "x".repeat(256);
        let many = "abc/".repeat(300) + "x";
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/./b",
            "./a",
            "a//b",
            "a/",
            "C:",
            "C:/x",
            "a\\b",
            "x:stream",
            "nul\0",
            "a\nb",
            "a\u{202e}b",
            "\u{200b}",
            "NUL",
            "con.txt",
            "a/COM1",
            "lpt9.x",
            "a./b",
            "a ",
            long.as_str(),
            many.as_str(),
        ] {
            assert!(SafeRelPath::parse(path).is_err(), "{path:?} was accepted");
        }
        let told = SafeRelPath::parse("a\u{1b}[2J").unwrap_err().to_string();
        assert!(!told.contains('\u{1b}'), "{told:?}");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_inside(path in r"[a-z./\\: ]{0,12}|\PC{0,20}") {
            if let Ok(safe) = SafeRelPath::parse(&path) {
                prop_assert!(safe.as_path().components().all(|c| matches!(c, Component::Normal(_))));
                prop_assert!(Path::new("/root").join(safe.as_path()).starts_with("/root"));
            }
        }
    }
}
