//! A folder whose files are encrypted while nobody works in it: each file `F` then lies as `F.age`. Killed anywhere, a file is there
//! encrypted or not, whole either way, and the next call goes on.

use crate::encryption::{self, Identities, Recipients, SUFFIX, Unreadable};
use crate::files::{AtomicFile, is_temporary, sync_parent};
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Files of these names tell how a run went and nothing of what was in the traces; they are left as they are.
pub const OPEN_NAMES: &[&str] = &["journal.jsonl", "recipe.lock.toml"];
/// Held, shared, by who reads or writes in the folder; alone, by who encrypts or decrypts it.
pub const LOCK_NAME: &str = ".sealing.lock";

/// Whether there is a file in it that is encrypted.
///
/// # Errors
/// When it can't be listed.
pub fn is_sealed(dir: &Path) -> Result<bool> {
    Ok(files(dir)?.iter().any(|path| is_age(path)))
}

/// Encrypts every file in a folder and in those below it; how many were.
///
/// # Errors
/// When the disk fails. What was encrypted by then stays so.
pub fn seal(dir: &Path, recipients: &Recipients) -> Result<u64> {
    let mut sealed = 0;
    for path in files(dir)? {
        let is_open = path.file_name().is_some_and(|name| OPEN_NAMES.iter().any(|open| name == *open));
        if is_open || is_age(&path) {
            continue;
        }
        let to = with_suffix(&path);
        let failed = || Error::io("encrypt", &path);
        let mut file = AtomicFile::create_private(&to).map_err(Error::io("write", &to))?;
        let mut from = File::open(&path).map_err(failed())?;
        let mut sealing = recipients.seal(&mut file).map_err(failed())?;
        io::copy(&mut from, &mut sealing).and_then(|_| sealing.finish().map(|_| ())).map_err(failed())?;
        file.commit().map_err(Error::io("write", &to))?;
        fs::remove_file(&path).and_then(|()| sync_parent(&path)).map_err(Error::io("remove", &path))?;
        sealed += 1;
    }
    Ok(sealed)
}

/// Decrypts what [`seal`] encrypted, into files that their owner alone may read; how many were. `recipients`: for whom it was, as far as
/// that is known.
///
/// # Errors
/// [`Error::Locked`] where no identity fits; when a file was changed, or the disk fails. That file stays as it was.
pub fn unseal(dir: &Path, identities: &Identities, recipients: Option<&Recipients>) -> Result<u64> {
    let mut opened = 0;
    for path in files(dir)?.into_iter().filter(|path| is_age(path)) {
        let Some(to) = path.to_str().and_then(|text| text.strip_suffix(SUFFIX)).map(PathBuf::from) else { continue };
        // A kill between two steps: what lies open is whole, and no older.
        if !to.exists() {
            decrypt(&path, &to, identities, recipients)?;
            opened += 1;
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path)(e)),
            _ => {}
        }
    }
    Ok(opened)
}

fn decrypt(path: &Path, to: &Path, identities: &Identities, recipients: Option<&Recipients>) -> Result<()> {
    let told = |e: Unreadable| if let Some(recipients) = recipients { e.among(recipients, identities) } else { e };
    let unreadable = |e: Unreadable| match told(e) {
        Unreadable::Io(e) => Error::io("decrypt", path)(e),
        locked @ Unreadable::NoKey { .. } => Error::Locked { path: path.to_path_buf(), reason: locked.to_string() },
        other => Error::invalid(path, other.to_string(), "restore it from a copy, or remove it and make it again"),
    };
    let from = File::open(path).map_err(Error::io("read", path))?;
    let mut from = identities.open(from).map_err(unreadable)?;
    let mut file = AtomicFile::create_private(to).map_err(Error::io("write", to))?;
    let mut piece = vec![0u8; 1 << 20];
    loop {
        let n = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if encryption::is_damage(&e) => return Err(unreadable(Unreadable::Damaged)),
            Err(e) => return Err(Error::io("decrypt", path)(e)),
        };
        file.write_all(&piece[..n]).map_err(Error::io("write", to))?;
    }
    file.commit().map_err(Error::io("write", to))
}

/// The files in a folder and those below it, sorted. Links are nobody's content here, and neither are locks.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let kind = entry.file_type().map_err(Error::io("examine", &entry.path()))?;
            let name = entry.file_name();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && name != LOCK_NAME && !is_temporary(&name.to_string_lossy()) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_age(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == &SUFFIX[1..])
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    PathBuf::from(name)
}
