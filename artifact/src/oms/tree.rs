//! The files below a directory, for signing and for checking a signature. Links and special files are faults, and so
//! is an empty folder: no digest covers it.

use crate::untrusted::visible_line;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

const MAX_DEPTH: usize = 64;

#[derive(Debug)]
pub(crate) enum Fault {
    Io { attempted: &'static str, path: PathBuf, source: io::Error },
    Refused { path: String, reason: &'static str },
}

impl Fault {
    /// As an error about `dir`; `hint` says what to do once the file that is at fault is out.
    pub(crate) fn into_error(self, dir: &Path, hint: &str) -> Error {
        match self {
            Fault::Io { attempted, path, source } => Error::Io { attempted, path, source },
            Fault::Refused { path, reason } => Error::invalid(dir, format!("{} {reason}", visible_line(&path)), hint),
        }
    }
}

/// Every regular file below `dir`: its name (parts joined by `/`), in code point order, and where it is. `exempt` is the
/// one file that does not count; `skipped` are names at the top that are not looked into.
pub(crate) fn files(
    dir: &Path,
    exempt: Option<&str>,
    skipped: &[&str],
) -> std::result::Result<BTreeMap<String, PathBuf>, Fault> {
    let meta = dir.symlink_metadata().map_err(|source| fault("read", dir, source))?;
    if !meta.is_dir() {
        let reason = if meta.is_symlink() { "is a symlink" } else { "is not a directory" };
        return Err(Fault::Refused { path: dir.display().to_string(), reason });
    }
    let mut found = BTreeMap::new();
    walk(dir, "", 0, &mut Visit { exempt, skipped, found: &mut found })?;
    Ok(found)
}

struct Visit<'a> {
    exempt: Option<&'a str>,
    skipped: &'a [&'a str],
    found: &'a mut BTreeMap<String, PathBuf>,
}

fn walk(dir: &Path, prefix: &str, depth: usize, visit: &mut Visit<'_>) -> std::result::Result<(), Fault> {
    let refused = |path: &str, reason| Err(Fault::Refused { path: path.to_owned(), reason });
    if depth > MAX_DEPTH {
        return refused(prefix, "is too deep");
    }
    let mut is_empty = true;
    for entry in dir.read_dir().map_err(|source| fault("list", dir, source))? {
        let entry = entry.map_err(|source| fault("list", dir, source))?;
        is_empty = false;
        let Ok(name) = entry.file_name().into_string() else {
            return refused(&entry.path().to_string_lossy(), "has a name that is not UTF-8");
        };
        let rel = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if visit.skipped.contains(&rel.as_str()) {
            continue;
        }
        let path = entry.path();
        // Of the entry itself: a link is not followed.
        let kind = entry.file_type().map_err(|source| fault("read", &path, source))?;
        if kind.is_symlink() {
            return refused(&rel, "is a symlink");
        } else if kind.is_dir() {
            walk(&path, &rel, depth + 1, visit)?;
        } else if !kind.is_file() {
            return refused(&rel, "is neither a file nor a folder");
        } else if visit.exempt != Some(rel.as_str()) {
            visit.found.insert(rel, path);
        }
    }
    if is_empty && depth > 0 {
        return refused(prefix, "is an empty folder");
    }
    Ok(())
}

/// The name that `file` has below `dir`, where it is below it; `file` itself need not exist.
pub(super) fn inside(dir: &Path, file: &Path) -> io::Result<Option<String>> {
    let Some(name) = file.file_name() else { return Ok(None) };
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = match folder.canonicalize() {
        Ok(folder) => folder,
        // A folder that does not exist yet holds none of the files.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let dir = dir.canonicalize()?;
    let Ok(rel) = folder.join(name).strip_prefix(dir).map(Path::to_path_buf) else { return Ok(None) };
    let parts: Option<Vec<&str>> = rel
        .components()
        .map(|c| match c {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    Ok(parts.map(|parts| parts.join("/")))
}

/// The last part of a directory's real path: the name under which it is signed.
pub(super) fn base_name(dir: &Path) -> Result<String> {
    let real = dir.canonicalize().map_err(Error::io("find", dir))?;
    match real.file_name().and_then(|n| n.to_str()) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Error::invalid(dir, "its name is not UTF-8, or it has none", "sign a folder with a name")),
    }
}

fn fault(attempted: &'static str, path: &Path, source: io::Error) -> Fault {
    Fault::Io { attempted, path: path.to_path_buf(), source }
}
