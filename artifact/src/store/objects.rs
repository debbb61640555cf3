//! Blobs and versions: content under its digest, written once. What is stored is what was hashed, and what is laid out
//! for use is hashed again.

use super::laid::{LaidOut, Private};
use super::storage::Sure;
use super::{Store, check_digest};
use crate::digest::{canonical_json, hex, sha256_file, sha256_hex};
use crate::files::AtomicFile;
use crate::manifest::{self, ArtifactManifest};
use crate::oms;
use crate::relpath::SafeRelPath;
use crate::strict_json;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// One artifact as the store keeps it. Its digest is the SHA-256 of its canonical JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// The model's name and version, from the manifest.
    pub name: String,
    pub version: String,
    /// SHA-256 of `manifest.json`.
    pub manifest: String,
    /// Every file of the folder, the manifest and the signature among them.
    pub files: BTreeMap<String, StoredFile>,
}

impl Version {
    /// Whether `files`, relative path to SHA-256, are this version's, the signature aside, which does not sign itself.
    pub fn check_files(&self, files: &BTreeMap<String, String>) -> Result<()> {
        let own = self.files.iter().filter(|(name, _)| *name != manifest::SIGNATURE_FILE_NAME);
        if own.map(|(name, file)| (name, &file.sha256)).eq(files.iter()) {
            return Ok(());
        }
        let reason = format!("the folder is another artifact than version {} of {}", self.version, self.name);
        Err(Error::untrusted(reason, "`limbeck fsck --repair` lays it out anew"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredFile {
    pub sha256: String,
    pub bytes: u64,
}

/// Records are small, whatever a stranger's store says.
pub(super) const MAX_OBJECT_BYTES: u64 = 64 << 20;

static COUNTER: AtomicU64 = AtomicU64::new(0);

impl Store {
    /// Takes an artifact's folder into the store and returns the version's digest. `manifest_digest` is what
    /// [`ArtifactManifest::save`] returned: a folder with another manifest, or whose files are not those that the
    /// manifest names, is refused. Putting the same folder again changes nothing, and mends blobs that were damaged (in a
    /// bucket, and where they are encrypted, only where their size tells; [`Store::mend`] reads them).
    pub fn put_artifact(&self, dir: &Path, manifest_digest: &str) -> Result<String> {
        self.put_folder(dir, manifest_digest, Sure::Cheaply)
    }

    /// As [`Store::put_artifact`], and replaces whatever is stored of it and differs.
    pub fn mend(&self, dir: &Path, manifest_digest: &str) -> Result<String> {
        self.put_folder(dir, manifest_digest, Sure::ByDigest)
    }

    fn put_folder(&self, dir: &Path, manifest_digest: &str, sure: Sure) -> Result<String> {
        let listing =
            oms::files(dir, None, &[]).map_err(|fault| fault.into_error(dir, "take it out, then try again"))?;
        let manifest = ArtifactManifest::load(dir)?;
        let mut files = BTreeMap::new();
        for (name, path) in listing {
            SafeRelPath::parse(&name)?;
            files.insert(name, self.put_blob(&path, sure)?);
        }
        // Compared to what was stored, not to what the folder holds by now.
        let stored = |name: &str| files.get(name).map(|f| f.sha256.as_str());
        if stored(manifest::FILE_NAME) != Some(manifest_digest) {
            return Err(Error::invalid(dir, "its manifest is not the one that was announced", "package it again"));
        }
        if let Some((name, _)) = manifest.files.iter().find(|(name, f)| stored(name) != Some(&f.sha256)) {
            return Err(Error::invalid(
                dir,
                format!("{name} is not the file that its manifest names"),
                "package it again",
            ));
        }
        let version =
            Version { name: manifest.name, version: manifest.version, manifest: manifest_digest.to_owned(), files };
        self.put_version(&version, sure)
    }

    fn put_version(&self, version: &Version, sure: Sure) -> Result<String> {
        let defect = |e: serde_json::Error| Error::invalid(&self.place(""), e.to_string(), "this is a defect");
        let text = canonical_json(&serde_json::to_value(version).map_err(defect)?);
        let digest = sha256_hex(text.as_bytes());
        self.put_bytes(&version_key(&digest), &digest, text.as_bytes(), sure)?;
        Ok(digest)
    }

    /// The record of a version, its digest checked.
    pub fn version(&self, digest: &str) -> Result<Version> {
        check_digest(digest)?;
        let path = self.version_path(digest);
        let bytes = match self.storage.read(&version_key(digest), MAX_OBJECT_BYTES) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let reason = format!("the store {} has no version {digest}", self.place("").display());
                return Err(Error::refused(reason, "put the artifact into it first"));
            }
            Err(e) => return Err(Error::io("read the version", &path)(e)),
        };
        if sha256_hex(&bytes) != digest {
            return Err(Error::invalid(&path, "it was changed after it was stored", "put the artifact again"));
        }
        strict_json::from_slice(&bytes)
            .map_err(|e| Error::invalid(&path, format!("it is not a version: {e}"), "put the artifact again"))
    }

    pub(super) fn touch_version(&self, digest: &str) -> Result<()> {
        let path = self.version_path(digest);
        self.storage.touch(&version_key(digest)).map_err(Error::io("mark as wanted the version", &path))
    }

    /// Whether all content of a version is here, by size.
    pub(super) fn check_blobs_present(&self, version: &Version) -> Result<()> {
        for (name, file) in &version.files {
            let path = self.place(&blob_key(&file.sha256));
            let stat = self.storage.stat(&blob_key(&file.sha256));
            let bytes = stat.map_err(Error::io("find the content of a version,", &path))?.bytes;
            if bytes != file.bytes {
                let reason = format!("it holds {name} and has {bytes} bytes, not {}", file.bytes);
                return Err(Error::invalid(&path, reason, "put the artifact again"));
            }
        }
        Ok(())
    }

    pub(super) fn version_path(&self, digest: &str) -> PathBuf {
        self.place(&version_key(digest))
    }

    fn put_blob(&self, source: &Path, sure: Sure) -> Result<StoredFile> {
        let sha256 = sha256_file(source).map_err(Error::io("take the digest of", source))?;
        let bytes = source.metadata().map_err(Error::io("read", source))?.len();
        let key = blob_key(&sha256);
        if self.storage.is_whole(&key, &sha256, bytes, sure) && self.storage.touch(&key).is_ok() {
            return Ok(StoredFile { sha256, bytes });
        }
        let bytes = self.storage.put_file(&key, source, &sha256)?;
        Ok(StoredFile { sha256, bytes })
    }

    pub(super) fn put_bytes(&self, key: &str, sha256: &str, bytes: &[u8], sure: Sure) -> Result<()> {
        if self.storage.is_whole(key, sha256, bytes.len() as u64, sure) && self.storage.touch(key).is_ok() {
            return Ok(());
        }
        self.storage.put(key, bytes).map_err(Error::io("store", &self.place(key)))
    }

    /// The names in one of the store's parts, sorted; what killed processes left is counted.
    pub(super) fn names(&self, part: &str, temporary: &mut u64) -> Result<Vec<String>> {
        let listing = self.storage.list(part).map_err(Error::io("list", &self.place(part)))?;
        *temporary += listing.temporary;
        Ok(listing.names)
    }

    /// The version as a folder; made where it is not there yet. Of an encrypted store it is there for the caller alone, and as
    /// long as the caller holds it.
    pub fn lay_out(&self, digest: &str) -> Result<LaidOut> {
        let version = self.version(digest)?;
        if self.recipients().is_some() {
            let laid = LaidOut::within(Private::new(&self.artifacts)?, digest);
            self.link_files(&laid, &version)?;
            return Ok(laid);
        }
        let target = self.artifacts.join(digest);
        if self.is_laid_out(&target, &version) {
            return Ok(target.into());
        }
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let tmp = self.artifacts.join(format!(".{digest}.{}-{n}.tmp", std::process::id()));
        let made = self
            .link_files(&tmp, &version)
            .and_then(|()| swap_in(&tmp, &target, || self.is_laid_out(&target, &version)));
        if made.is_err() {
            let _ = fs::remove_dir_all(&tmp);
        }
        made.map(|()| target.into())
    }

    pub(super) fn is_laid_out(&self, target: &Path, version: &Version) -> bool {
        let Ok(found) = oms::files(target, None, &[]) else { return false };
        found.len() == version.files.len()
            && version.files.iter().all(|(name, file)| {
                found.get(name).is_some_and(|path| path.metadata().is_ok_and(|m| m.len() == file.bytes))
            })
    }

    fn link_files(&self, dir: &Path, version: &Version) -> Result<()> {
        // What a killed process of the same number left.
        let _ = fs::remove_dir_all(dir);
        for (name, file) in &version.files {
            let path = dir.join(SafeRelPath::parse(name)?.as_path());
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(Error::io("make the folder", parent))?;
            }
            self.storage.fetch(&blob_key(&file.sha256), &file.sha256, &path)?;
        }
        Ok(())
    }
}

/// Hands on all of a file, whose digest was taken before, piece by piece; its size. An error where it changed in between.
pub(super) fn read_hashed(source: &Path, sha256: &str, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let mut from = fs::File::open(source).map_err(Error::io("read", source))?;
    let (mut hash, mut piece, mut bytes) = (Sha256::new(), vec![0u8; 1 << 20], 0);
    loop {
        let n = from.read(&mut piece).map_err(Error::io("read", source))?;
        if n == 0 {
            break;
        }
        hash.update(&piece[..n]);
        take(&piece[..n])?;
        bytes += n as u64;
    }
    if hex(&hash.finalize()) != sha256 {
        return Err(Error::invalid(source, "it changed while it was stored", "try again when nobody writes to it"));
    }
    Ok(bytes)
}

/// A file in the making under its digest: hashed as it is copied, so that what is named is what is there.
pub(crate) struct HashedCopy {
    pub file: AtomicFile,
    path: PathBuf,
    bytes: u64,
}

impl HashedCopy {
    /// Of `source`, whose digest was taken before, to `path`. An error where it changed in between.
    pub fn of(source: &Path, sha256: &str, path: &Path) -> Result<HashedCopy> {
        let failed = || Error::io("store", path);
        let mut file = AtomicFile::create(path).map_err(failed())?;
        let bytes = read_hashed(source, sha256, |piece| file.write_all(piece).map_err(failed()))?;
        Ok(HashedCopy { file, path: path.to_path_buf(), bytes })
    }

    /// Puts it under its name; its size.
    pub fn commit(self) -> Result<u64> {
        self.file.commit().map_err(Error::io("store", &self.path))?;
        Ok(self.bytes)
    }
}

/// Puts a finished folder in place of one that is absent or not whole. Where another was faster, that one's stays: somebody
/// may be reading it.
fn swap_in(tmp: &Path, target: &Path, is_whole: impl Fn() -> bool) -> Result<()> {
    let discard = || fs::remove_dir_all(tmp).map_err(Error::io("remove", tmp));
    // Nothing is looked at before: what is absent now may be whole a moment later. A folder with something in it refuses.
    match fs::rename(tmp, target) {
        Ok(()) => return Ok(()),
        Err(_) if is_whole() => return discard(),
        Err(_) => {}
    }
    // It is damaged. One at a time, or the second would take aside what the first has mended.
    let _alone = target.parent().and_then(|above| fs::File::open(above).and_then(|f| f.lock().map(|()| f)).ok());
    if is_whole() {
        return discard();
    }
    if target.symlink_metadata().is_ok() {
        let aside = tmp.with_extension("old.tmp");
        fs::rename(target, &aside).map_err(Error::io("take aside the damaged folder", target))?;
        fs::remove_dir_all(&aside).map_err(Error::io("remove the damaged folder", &aside))?;
    }
    match fs::rename(tmp, target) {
        Ok(()) => Ok(()),
        Err(_) if is_whole() => discard(),
        Err(e) => Err(Error::io("put in place", target)(e)),
    }
}

pub(super) fn blob_key(sha256: &str) -> String {
    format!("blobs/sha256/{sha256}")
}

pub(super) fn version_key(digest: &str) -> String {
    format!("versions/{digest}.json")
}
