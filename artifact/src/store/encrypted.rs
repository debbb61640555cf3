//! A store whose blobs only named people can read. Around a [`Storage`] of either kind: a blob lies as `blobs/sha256/<hex>.age`,
//! under the digest of what it says when decrypted, so that versions, log and signatures know nothing of it.
//!
//! For whom, the store itself says (`encryption.json`), so that every verb and every machine encrypts for the same people.
//! Encrypting needs no key: who promotes may be unable to read.

use super::Repaired;
use super::objects::read_hashed;
use super::storage::{Listing, Stat, Storage, Sure, too_large};
use crate::digest::hex;
use crate::encryption::{self, Identities, Recipients, SUFFIX, Unreadable};
use crate::files::AtomicFile;
use crate::strict_json;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What makes a store an encrypted one.
pub(super) const MARK: &str = "encryption.json";
const FORMAT: &str = "age-encryption.org/v1";
const BLOBS: &str = "blobs/sha256";
const MAX_MARK_BYTES: u64 = 1 << 20;
const PIECE_BYTES: usize = 1 << 20;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The content of [`MARK`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    format: String,
    recipients: Vec<String>,
}

/// Whom a store is encrypted for; None where it is not encrypted.
pub(super) fn recipients_of(storage: &dyn Storage) -> Result<Option<Recipients>> {
    let path = storage.place(MARK);
    let bytes = match storage.read(MARK, MAX_MARK_BYTES) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", &path)(e)),
    };
    let invalid = |reason: String| Error::invalid(&path, reason, "restore it from a copy");
    let mark: Mark =
        strict_json::from_slice(&bytes).map_err(|e| invalid(format!("it does not say whom the store is for: {e}")))?;
    if mark.format != FORMAT {
        return Err(invalid("the store is encrypted in a format that this program does not know".to_owned()));
    }
    let recipients = Recipients::parse(&mark.recipients).map_err(invalid)?;
    recipients.map(Some).ok_or_else(|| invalid("it names nobody whom the store is for".to_owned()))
}

/// Makes an empty store an encrypted one. Of several who do it at the same time one wins, and all see what that one wrote.
pub(super) fn mark(storage: &dyn Storage, recipients: &Recipients) -> Result<()> {
    let path = storage.place(MARK);
    let mark = Mark { format: FORMAT.to_owned(), recipients: recipients.names() };
    let text = serde_json::to_string_pretty(&mark).map_err(|e| Error::io("write", &path)(e.into()))?;
    storage.create(MARK, format!("{text}\n").as_bytes()).map(|_| ()).map_err(Error::io("write", &path))
}

#[derive(Debug)]
pub(super) struct Encrypted {
    inner: Arc<dyn Storage>,
    recipients: Recipients,
    identities: Identities,
    /// A local folder for what is encrypted before it is put.
    scratch: PathBuf,
}

impl Encrypted {
    pub fn new(inner: Arc<dyn Storage>, recipients: Recipients, identities: Identities, scratch: &Path) -> Encrypted {
        Encrypted { inner, recipients, identities, scratch: scratch.to_path_buf() }
    }

    /// The content of a blob, decrypted as it is read.
    fn open(&self, key: &str) -> std::result::Result<impl Read + '_, Unreadable> {
        let sealed = self.inner.reader(&name(key))?;
        self.identities.open(sealed).map_err(|e| e.among(&self.recipients, &self.identities))
    }

    /// Hands on all of a blob, piece by piece; the digest of what it says.
    fn pieces(
        &self,
        key: &str,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> std::result::Result<String, Unreadable> {
        let mut from = self.open(key)?;
        let (mut hash, mut piece) = (Sha256::new(), vec![0u8; PIECE_BYTES]);
        loop {
            let n = match from.read(&mut piece) {
                Ok(0) => return Ok(hex(&hash.finalize())),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if encryption::is_damage(&e) => return Err(Unreadable::Damaged),
                Err(e) => return Err(e.into()),
            };
            hash.update(&piece[..n]);
            take(&piece[..n])?;
        }
    }

    /// The source as an encrypted file in the scratch folder, and that file's digest.
    fn sealed(&self, source: &Path, sha256: &str) -> Result<(Scratch, String)> {
        let scratch = Scratch::new(&self.scratch, sha256)?;
        let failed = || Error::io("encrypt to", &scratch.0);
        let to = OpenOptions::new().write(true).open(&scratch.0).map_err(failed())?;
        let mut sealing = self.recipients.seal(Hashing { to, sha256: Sha256::new() }).map_err(failed())?;
        read_hashed(source, sha256, |piece| sealing.write_all(piece).map_err(failed()))?;
        let written = sealing.finish().map_err(failed())?;
        Ok((scratch, hex(&written.sha256.finalize())))
    }
}

impl Storage for Encrypted {
    fn place(&self, key: &str) -> PathBuf {
        self.inner.place(&name(key))
    }

    fn read(&self, key: &str, max_bytes: u64) -> io::Result<Vec<u8>> {
        if !is_blob(key) {
            return self.inner.read(key, max_bytes);
        }
        let mut bytes = Vec::new();
        self.open(key)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max_bytes { Err(too_large(max_bytes)) } else { Ok(bytes) }
    }

    fn reader(&self, key: &str) -> io::Result<Box<dyn Read + '_>> {
        if is_blob(key) { Ok(Box::new(self.open(key)?)) } else { self.inner.reader(key) }
    }

    /// Of a blob, the size of what it says.
    fn stat(&self, key: &str) -> io::Result<Stat> {
        let stat = self.inner.stat(&name(key))?;
        if !is_blob(key) {
            return Ok(stat);
        }
        let bytes = encryption::plain_bytes(self.inner.reader(&name(key))?, stat.bytes)?;
        Ok(Stat { bytes, ..stat })
    }

    fn list(&self, part: &str) -> io::Result<Listing> {
        let mut listing = self.inner.list(part)?;
        if part == BLOBS {
            let (sealed, strange): (Vec<String>, Vec<String>) =
                std::mem::take(&mut listing.names).into_iter().partition(|name| name.ends_with(SUFFIX));
            listing.names = sealed.iter().map(|name| name.trim_end_matches(SUFFIX).to_owned()).collect();
            listing.strange.extend(strange);
        }
        Ok(listing)
    }

    fn digest(&self, key: &str) -> io::Result<String> {
        if is_blob(key) { Ok(self.pieces(key, |_| Ok(()))?) } else { self.inner.digest(key) }
    }

    /// Cheaply, and where nobody can read it, by its size: a file of this size under this name was encrypted from this content,
    /// unless somebody changed it, which is told when it is read.
    fn is_whole(&self, key: &str, sha256: &str, bytes: u64, sure: Sure) -> bool {
        if !is_blob(key) {
            return self.inner.is_whole(key, sha256, bytes, sure);
        }
        match sure {
            Sure::Cheaply => self.stat(key).is_ok_and(|stat| stat.bytes == bytes),
            Sure::ByDigest => self.digest(key).is_ok_and(|found| found == sha256),
        }
    }

    fn create(&self, key: &str, bytes: &[u8]) -> io::Result<bool> {
        if is_blob(key) {
            self.inner.create(&name(key), &self.sealed_bytes(bytes)?)
        } else {
            self.inner.create(key, bytes)
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        if is_blob(key) { self.inner.put(&name(key), &self.sealed_bytes(bytes)?) } else { self.inner.put(key, bytes) }
    }

    fn put_file(&self, key: &str, source: &Path, sha256: &str) -> Result<u64> {
        if !is_blob(key) {
            return self.inner.put_file(key, source, sha256);
        }
        let bytes = source.metadata().map_err(Error::io("read", source))?.len();
        let (scratch, digest) = self.sealed(source, sha256)?;
        self.inner.put_file(&name(key), &scratch.0, &digest)?;
        Ok(bytes)
    }

    /// A file that its owner alone may read.
    fn fetch(&self, key: &str, sha256: &str, to: &Path) -> Result<()> {
        let place = self.place(key);
        let mut file = AtomicFile::create_private(to).map_err(Error::io("write", to))?;
        let again = "put the artifact again (`limbeck fsck --repair --from DIR`)";
        let found = self.pieces(key, |piece| file.write_all(piece)).map_err(|e| match e {
            Unreadable::Io(e) => Error::io("read the content of a version,", &place)(e),
            locked @ Unreadable::NoKey { .. } => Error::Locked { path: place.clone(), reason: locked.to_string() },
            other => Error::invalid(&place, other.to_string(), again),
        })?;
        if found != sha256 {
            return Err(Error::invalid(&place, "the blob is damaged", again));
        }
        file.commit().map_err(Error::io("write", to))
    }

    fn touch(&self, key: &str) -> io::Result<()> {
        self.inner.touch(&name(key))
    }

    fn settle(&self) -> Result<()> {
        self.inner.settle()
    }

    fn expect_reads(&self, keys: &[String], max_bytes: u64) {
        self.inner.expect_reads(keys, max_bytes);
    }

    fn can_remove(&self) -> Result<()> {
        self.inner.can_remove()
    }

    fn remove_old(&self, key: &str, min_age: Duration) -> Result<bool> {
        self.inner.remove_old(&name(key), min_age)
    }

    fn clear_leftovers(&self) -> Result<Repaired> {
        self.inner.clear_leftovers()
    }
}

impl Encrypted {
    fn sealed_bytes(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut sealing = self.recipients.seal(Vec::new())?;
        sealing.write_all(bytes)?;
        sealing.finish()
    }
}

fn is_blob(key: &str) -> bool {
    key.strip_prefix(BLOBS).is_some_and(|rest| rest.starts_with('/'))
}

/// What an object is called where it lies.
fn name(key: &str) -> String {
    if is_blob(key) { format!("{key}{SUFFIX}") } else { key.to_owned() }
}

/// A file that goes away with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path, name: &str) -> Result<Scratch> {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".{}.{}-{n}.tmp", &name[..name.len().min(16)], std::process::id()));
        // A killed process of the same number may have left one: it is written over.
        File::create(&path).map_err(Error::io("write", &path))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Takes the digest of what is written.
struct Hashing {
    to: File,
    sha256: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.sha256.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
