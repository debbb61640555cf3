//! Where a store's objects lie. Everything that makes a store a store, its log, its folds, its gates, is written once over
//! these few operations; a folder ([`Folder`]) and a bucket (`bucket::Bucket`) each do them their own way.

use super::Repaired;
use super::objects::HashedCopy;
use super::retention::{aside_name, was_aside};
use crate::digest::sha256_file;
use crate::files::{AtomicFile, create_dirs, is_temporary, sync_dir};
use crate::{Error, Result};
use std::fmt::Debug;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A temporary file of this age is nobody's any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What is known of an object without its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    pub bytes: u64,
    pub modified: SystemTime,
}

/// The names in one of the store's parts, sorted.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub names: Vec<String>,
    /// What killed processes left, which is not among the names.
    pub temporary: u64,
    /// What has no place there: in an encrypted store, blobs that are not.
    pub strange: Vec<String>,
}

/// How sure of an object's content one wants to be before it is not stored again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sure {
    /// As sure as costs little: a folder's files are read, a bucket's objects are known by their size.
    Cheaply,
    ByDigest,
}

/// Objects under keys such as `log/0000000000000001.json`. What was acknowledged is durable; an object shows whole or not at
/// all; of any number of concurrent [`Storage::create`] of one key exactly one is told that it was the one.
pub(super) trait Storage: Debug + Send + Sync {
    /// An object's path or address, for a person.
    fn place(&self, key: &str) -> PathBuf;
    fn read(&self, key: &str, max_bytes: u64) -> io::Result<Vec<u8>>;
    /// An object of any size, read as it is asked for.
    fn reader(&self, key: &str) -> io::Result<Box<dyn Read + '_>>;
    fn stat(&self, key: &str) -> io::Result<Stat>;
    fn list(&self, part: &str) -> io::Result<Listing>;
    /// SHA-256 of an object's content, all of it read.
    fn digest(&self, key: &str) -> io::Result<String>;
    fn is_whole(&self, key: &str, sha256: &str, bytes: u64, sure: Sure) -> bool;
    /// Ok(false): there is an object of this key already, and it stays.
    fn create(&self, key: &str, bytes: &[u8]) -> io::Result<bool>;
    /// Writes or replaces.
    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()>;
    /// As [`Storage::put`], a file of any size whose digest was taken before; its size.
    fn put_file(&self, key: &str, source: &Path, sha256: &str) -> Result<u64>;
    /// The object as a new local file, its digest checked. It may share the store's content: for reading only.
    fn fetch(&self, key: &str, sha256: &str, to: &Path) -> Result<()>;
    /// Makes an object young again. Whoever removes what nobody needs spares what is young: it may be on its way into a
    /// channel.
    fn touch(&self, key: &str) -> io::Result<()>;
    /// Makes sure of everything that a log entry rests on. Whoever finds an object in its place does not write it again, but
    /// the process that put it there may have been killed before it was durable.
    fn settle(&self) -> Result<()>;
    /// Says that these are about to be read, one after the other.
    fn expect_reads(&self, _keys: &[String], _max_bytes: u64) {}
    /// Whether [`Storage::remove_old`] can keep what it promises here.
    ///
    /// # Errors
    /// The reason why not.
    fn can_remove(&self) -> Result<()>;
    /// Removes an object unless it is young; false where it stays. Of a [`Storage::touch`] at the same time, either this
    /// sees it, or whoever touched finds the object gone.
    fn remove_old(&self, key: &str, min_age: Duration) -> Result<bool>;
    /// Clears what killed processes left.
    fn clear_leftovers(&self) -> Result<Repaired>;
}

/// The objects as files of a folder.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// Made where it is not there.
    pub fn open(dir: &Path) -> Result<Folder> {
        for part in ["blobs/sha256", "versions", "log", "artifacts"] {
            let path = dir.join(part);
            create_dirs(&path).map_err(Error::io("make the store's folder", &path))?;
        }
        Ok(Folder { dir: dir.to_path_buf() })
    }
}

impl Storage for Folder {
    fn place(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    fn read(&self, key: &str, max_bytes: u64) -> io::Result<Vec<u8>> {
        let path = self.place(key);
        match path.metadata()?.len() {
            bytes if bytes <= max_bytes => fs::read(path),
            _ => Err(too_large(max_bytes)),
        }
    }

    fn reader(&self, key: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(fs::File::open(self.place(key))?))
    }

    fn stat(&self, key: &str) -> io::Result<Stat> {
        let meta = self.place(key).metadata()?;
        Ok(Stat { bytes: meta.len(), modified: meta.modified()? })
    }

    fn list(&self, part: &str) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let entries = match self.place(part).read_dir() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(listing),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            match is_temporary(&name) {
                true => listing.temporary += 1,
                false => listing.names.push(name),
            }
        }
        listing.names.sort();
        Ok(listing)
    }

    fn digest(&self, key: &str) -> io::Result<String> {
        sha256_file(&self.place(key))
    }

    fn is_whole(&self, key: &str, sha256: &str, _bytes: u64, _sure: Sure) -> bool {
        self.digest(key).is_ok_and(|found| found == sha256)
    }

    fn create(&self, key: &str, bytes: &[u8]) -> io::Result<bool> {
        self.written(key, bytes)?.commit_new()
    }

    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        self.written(key, bytes)?.commit()
    }

    fn put_file(&self, key: &str, source: &Path, sha256: &str) -> Result<u64> {
        let path = self.place(key);
        let mut copy = HashedCopy::of(source, sha256, &path)?;
        copy.file.set_read_only().map_err(Error::io("store", &path))?;
        // Replaces a damaged one; of two writers of the same content either may win.
        copy.commit()
    }

    fn fetch(&self, key: &str, sha256: &str, to: &Path) -> Result<()> {
        let path = self.place(key);
        if sha256_file(&path).map_err(Error::io("read the content of a version,", &path))? != sha256 {
            return Err(Error::invalid(&path, "the blob is damaged", "put the artifact again"));
        }
        // Some file systems have no hard links, or a limit to them.
        if fs::hard_link(&path, to).is_err() {
            fs::copy(&path, to).map_err(Error::io("copy a blob to", to))?;
        }
        Ok(())
    }

    fn touch(&self, key: &str) -> io::Result<()> {
        fs::File::open(self.place(key))?.set_modified(SystemTime::now())
    }

    fn settle(&self) -> Result<()> {
        let above = self.dir.parent().unwrap_or(Path::new("."));
        let own = ["", "blobs", "blobs/sha256", "versions", "log", "trust", "trust/policies", "trust/approvals"];
        let own = own.iter().map(|part| self.dir.join(part)).filter(|dir| dir.is_dir());
        for dir in std::iter::once(above.to_path_buf()).chain(own) {
            sync_dir(&dir).map_err(Error::io("sync", &dir))?;
        }
        Ok(())
    }

    fn can_remove(&self) -> Result<()> {
        Ok(())
    }

    /// Takes the file aside, looks at its age again, and puts it back where somebody made it young.
    fn remove_old(&self, key: &str, min_age: Duration) -> Result<bool> {
        let path = self.place(key);
        if !is_old(&path, min_age) {
            return Ok(false);
        }
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
        let aside = dir.join(aside_name(&name.to_string_lossy()));
        match fs::rename(&path, &aside) {
            // Another removed it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            renamed => renamed.map_err(Error::io("take aside", &path))?,
        }
        if is_old(&aside, min_age) {
            return match fs::remove_file(&aside) {
                // A repair put it back.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
                removed => removed.map(|()| true).map_err(Error::io("remove", &aside)),
            };
        }
        fs::rename(&aside, &path).map_err(Error::io("put back", &path))?;
        Ok(false)
    }

    fn clear_leftovers(&self) -> Result<Repaired> {
        let mut done = Repaired::default();
        for part in ["blobs/sha256", "versions", "log"] {
            let dir = self.place(part);
            for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
                let entry = entry.map_err(Error::io("list", &dir))?;
                if let Some(object) = was_aside(&entry.file_name().to_string_lossy()) {
                    let place = dir.join(object);
                    if !place.exists() {
                        fs::rename(entry.path(), &place).map_err(Error::io("put back", &place))?;
                        done.restored += 1;
                    }
                }
            }
            done.temporary += clear_abandoned(&dir)?;
        }
        Ok(done)
    }
}

impl Folder {
    /// In the making; nobody is to write to it again.
    fn written(&self, key: &str, bytes: &[u8]) -> io::Result<AtomicFile> {
        let mut file = AtomicFile::create(&self.place(key))?;
        file.write_all(bytes)?;
        file.set_read_only()?;
        Ok(file)
    }
}

/// Removes temporary files and folders that nobody can be writing any more; how many.
pub(super) fn clear_abandoned(dir: &Path) -> Result<u64> {
    let mut cleared = 0;
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let path = entry.path();
        if is_temporary(&entry.file_name().to_string_lossy()) && is_old(&path, ABANDONED) {
            remove(&path)?;
            cleared += 1;
        }
    }
    Ok(cleared)
}

/// A file, a link or a whole folder.
pub(super) fn remove(path: &Path) -> Result<()> {
    let meta = path.symlink_metadata().map_err(Error::io("read", path))?;
    let removed = if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(Error::io("remove", path))
}

pub(super) fn has_age(modified: SystemTime, min_age: Duration) -> bool {
    SystemTime::now().duration_since(modified).is_ok_and(|age| age >= min_age)
}

fn is_old(path: &Path, min_age: Duration) -> bool {
    path.symlink_metadata().and_then(|m| m.modified()).is_ok_and(|at| has_age(at, min_age))
}

pub(super) fn too_large(max_bytes: u64) -> io::Error {
    io::Error::other(format!("it is larger than {} MiB", max_bytes >> 20))
}
