//! The signing key on disk and its public half beside it.

use crate::exit::{Failure, Result};
use crate::settings::{key_passphrase, shell};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::keys;
use std::path::{Path, PathBuf};

pub use keys::SigningKey;

/// `signing.pem` -> `signing.pub.pem`.
pub fn public_path(private: &Path) -> PathBuf {
    private.with_extension("pub.pem")
}

/// The key at `path`. Where there is none, makes one for this machine and says plainly what it is worth.
///
/// # Errors
/// When the key can't be read, is under another passphrase, or others may read it.
pub fn load_or_make(path: &Path, emit: &dyn Emit) -> Result<SigningKey> {
    if path.exists() {
        return load(path);
    }
    let key = make(path)?;
    let text = format!(
        "no signing key at {}: made one. It is a local development key, readable by you only; whoever is to trust what it signs needs {}",
        path.display(),
        public_path(path).display()
    );
    emit.emit(EventKind::Warning { text });
    Ok(key)
}

/// # Errors
/// As [`load_or_make`].
pub fn load(path: &Path) -> Result<SigningKey> {
    keys::load_private(path, key_passphrase().as_deref()).map_err(|e| {
        let help = format!(
            "set LIMBECK_KEY_PASSPHRASE if the key has a passphrase; `chmod 600 {}` if others may read it; `limbeck keys new PATH` makes another",
            shell(path)
        );
        Failure::from(e).help(help)
    })
}

/// Makes a key pair; refuses to replace one.
///
/// # Errors
/// When either half can't be written.
pub fn make(path: &Path) -> Result<SigningKey> {
    let key = keys::generate()?;
    keys::save_private(path, &key, key_passphrase().as_deref())?;
    keys::save_public(&public_path(path), key.verifying_key())?;
    Ok(key)
}
