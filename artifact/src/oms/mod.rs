//! OpenSSF Model Signing v1.0, key method, P-256: one signature over a directory's files, which PyPI's `model-signing`
//! makes and checks too. What is accepted is less than the specification allows: whatever is in the directory and not
//! in the signature is refused, so no unsigned byte can ride along.

pub(crate) mod bundle;
mod tree;

use crate::digest::{hex, sha256_file, unhex32};
use crate::files::write_atomic;
use crate::keys::{VerifyingKey, key_id};
use crate::relpath::SafeRelPath;
use crate::signer::Signer;
use crate::untrusted::visible_line;
use crate::{Error, Result};
use bundle::{Resource, Statement, Unopened};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub(crate) use tree::{Fault, files};

/// What other implementations leave out at the top of a directory. We never sign such files.
const GIT_FILES: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];
const MAX_BUNDLE_BYTES: u64 = 64 << 20;

/// What [`sign_dir`] signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Relative path to SHA-256.
    pub files: BTreeMap<String, String>,
    /// SHA-256 over the files' digests in the order of their names: the directory's digest.
    pub root: String,
    pub key_id: String,
}

/// What [`verify_dir`] found to be signed: every file of the directory but the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Relative path to SHA-256.
    pub files: BTreeMap<String, String>,
    pub root: String,
}

/// What may be in a directory without being signed, besides the bundle itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// Nothing.
    #[default]
    Strict,
    /// `.git`, `.gitattributes`, `.github` and `.gitignore` at the top, as the specification has it: for a directory
    /// that is a git checkout.
    AllowGit,
}

/// Why a directory is not what was signed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot {attempted} {}: {source}", path.display())]
    Io { attempted: &'static str, path: PathBuf, source: io::Error },
    #[error("the bundle {} is not one we accept: {reason}", path.display())]
    Bundle { path: PathBuf, reason: String },
    #[error("signed by another key: the bundle names {found}, the trusted key is {trusted}")]
    OtherKey { found: String, trusted: String },
    #[error("the signature does not verify: the bundle was changed, or another key signed it")]
    Signature,
    #[error("the signed statement is not one we accept: {0}")]
    Statement(String),
    #[error("{} is missing; it was signed", visible_line(.0))]
    Missing(String),
    #[error("{} was changed after it was signed", visible_line(.0))]
    Changed(String),
    #[error("{} is in the directory but not in the signature; take it out", visible_line(.0))]
    Unlisted(String),
    #[error("{} {reason}; take it out", visible_line(path))]
    Refused { path: String, reason: &'static str },
}

/// Signs every file below `dir` and writes the bundle to `bundle_path` (inside or outside of `dir`; where it is inside,
/// it is the one file that is not signed). Refuses symlinks, special files, empty folders, names that another system
/// cannot hold, and git's own files. The same files and key give the same bundle.
pub fn sign_dir(dir: &Path, bundle_path: &Path, signer: &dyn Signer) -> Result<Signed> {
    let exempt = tree::inside(dir, bundle_path).map_err(Error::io("find", dir))?;
    let listing =
        files(dir, exempt.as_deref(), &[]).map_err(|fault| fault.into_error(dir, "take it out, then sign again"))?;
    if listing.is_empty() {
        return Err(Error::invalid(dir, "there is nothing in it to sign", "name the artifact's folder"));
    }
    let mut files = BTreeMap::new();
    for (name, path) in &listing {
        SafeRelPath::parse(name)?;
        let top = name.split('/').next().unwrap_or(name);
        if GIT_FILES.contains(&top) {
            return Err(Error::invalid(dir, format!("{name} belongs to git"), "sign a folder that is not a checkout"));
        }
        files.insert(name.clone(), sha256_file(path).map_err(Error::io("take the digest of", path))?);
    }
    let root = root_digest(files.values()).map_err(|reason| Error::invalid(dir, reason, "this is a defect"))?;
    let mut ignored: Vec<String> = GIT_FILES.iter().map(|s| (*s).to_owned()).collect();
    ignored.extend(exempt);
    let resources = files.iter().map(|(name, digest)| Resource::new(name, digest)).collect();
    let statement = Statement::new(&tree::base_name(dir)?, &root, ignored, resources);
    let defect = |e: serde_json::Error| Error::invalid(bundle_path, e.to_string(), "this is a defect");
    let payload = serde_json::to_vec(&statement).map_err(defect)?;
    let bytes = bundle::seal(&payload, signer)?;
    let key_id = key_id(signer.public());
    write_atomic(bundle_path, &bytes).map_err(Error::io("write the signature", bundle_path))?;
    Ok(Signed { files, root, key_id })
}

/// Checks that `dir` holds exactly what was signed with `key`. The key is the caller's choice: what the bundle says of
/// its key only serves the error message. The signature is checked before what it signs is parsed.
pub fn verify_dir(
    dir: &Path,
    bundle_path: &Path,
    key: &VerifyingKey,
    strictness: Strictness,
) -> std::result::Result<Verified, VerifyError> {
    let statement = verify_bundle(bundle_path, key)?;
    let signed = statement.files().map_err(VerifyError::Statement)?;
    let listed_order = statement.predicate.resources.iter().map(|r| &r.digest);
    let root = root_digest(listed_order).map_err(VerifyError::Statement)?;
    if statement.root() != Some(&root) {
        return Err(VerifyError::Statement("its subject is not the digest of its files".to_owned()));
    }
    let exempt = tree::inside(dir, bundle_path).map_err(io_error("find", dir))?;
    let skipped: &[&str] = if strictness == Strictness::AllowGit { &GIT_FILES } else { &[] };
    let found = files(dir, exempt.as_deref(), skipped)?;
    if let Some(name) = found.keys().find(|name| !signed.contains_key(*name)) {
        return Err(VerifyError::Unlisted(name.clone()));
    }
    for (name, digest) in &signed {
        let Some(path) = found.get(name) else { return Err(VerifyError::Missing(name.clone())) };
        if sha256_file(path).map_err(io_error("read", path))? != *digest {
            return Err(VerifyError::Changed(name.clone()));
        }
    }
    Ok(Verified { files: signed, root })
}

fn verify_bundle(path: &Path, key: &VerifyingKey) -> std::result::Result<Statement, VerifyError> {
    let bytes = read_capped(path)?;
    let payload = bundle::open(&bytes, key).map_err(|why| match why {
        Unopened::Malformed(reason) => VerifyError::Bundle { path: path.to_path_buf(), reason },
        Unopened::OtherKey { found } => {
            VerifyError::OtherKey { found: visible_line(&found).into_owned(), trusted: key_id(key) }
        }
        Unopened::Signature => VerifyError::Signature,
    })?;
    Statement::parse(&payload).map_err(VerifyError::Statement)
}

fn read_capped(path: &Path) -> std::result::Result<Vec<u8>, VerifyError> {
    let meta = path.symlink_metadata().map_err(io_error("read the signature", path))?;
    let refused = |reason: &str| VerifyError::Bundle { path: path.to_path_buf(), reason: reason.to_owned() };
    if !meta.is_file() {
        return Err(refused("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(io_error("read the signature", path))?;
    file.take(MAX_BUNDLE_BYTES + 1).read_to_end(&mut bytes).map_err(io_error("read the signature", path))?;
    if bytes.len() as u64 > MAX_BUNDLE_BYTES {
        return Err(refused("it is larger than 64 MiB"));
    }
    Ok(bytes)
}

/// SHA-256 over the raw digests in the given order.
fn root_digest<'a>(digests: impl IntoIterator<Item = &'a String>) -> std::result::Result<String, String> {
    let mut hash = Sha256::new();
    for digest in digests {
        hash.update(unhex32(digest).ok_or_else(|| format!("{} is not a SHA-256", visible_line(digest)))?);
    }
    Ok(hex(&hash.finalize()))
}

fn io_error(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VerifyError {
    let path = path.to_path_buf();
    move |source| VerifyError::Io { attempted, path, source }
}

impl From<Fault> for VerifyError {
    fn from(fault: Fault) -> VerifyError {
        match fault {
            Fault::Io { attempted, path, source } => VerifyError::Io { attempted, path, source },
            Fault::Refused { path, reason } => VerifyError::Refused { path, reason },
        }
    }
}
