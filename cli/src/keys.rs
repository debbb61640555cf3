//! The signing key on disk and its public half beside it.

use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::{key_passphrase, shell};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::keys;
use limbeck_artifact::signer::{Exec, Signer};
use limbeck_recipes::Recipe;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

pub use keys::SigningKey;

/// `signing.pem` -> `signing.pub.pem`.
pub fn public_path(private: &Path) -> PathBuf {
    private.with_extension("pub.pem")
}

/// Who signs for a recipe: its key, or the program that reaches one.
///
/// # Errors
/// As [`load_or_make`]; when a program is named and its public key is not, or can't be read.
pub fn signer(recipe: &Recipe, emit: &dyn Emit) -> Result<Box<dyn Signer>> {
    let sign = &recipe.sign;
    if sign.exec.is_empty() {
        return Ok(Box::new(load_or_make(&sign.key, emit)?));
    }
    let Some(public) = &sign.public_key else {
        let message =
            "sign.exec names a program, and nothing names the public key that its signatures are checked against";
        return Err(Failure::new(Exit::RecipeInvalid, message).help("add sign.public_key = \"signing.pub.pem\""));
    };
    Ok(Box::new(Exec::new(&sign.exec, keys::load_public(public)?)))
}

/// What of the key can be known to be wrong before anything is trained.
///
/// # Errors
/// When it is no key, others may read it, or it is under a passphrase that nobody gave and nobody can be asked for.
pub fn check(recipe: &Recipe) -> Result<()> {
    let sign = &recipe.sign;
    if let (false, Some(public)) = (sign.exec.is_empty(), &sign.public_key) {
        keys::load_public(public)?;
    }
    if !sign.exec.is_empty() || !sign.key.exists() {
        return Ok(());
    }
    let asks = keys::is_locked(&sign.key) && key_passphrase()?.is_none() && std::io::stdin().is_terminal();
    if asks { Ok(()) } else { load(&sign.key).map(|_| ()) }
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

/// Asks for the passphrase where the key has one, nobody gave it, and a person sits there.
///
/// # Errors
/// As [`load_or_make`].
pub fn load(path: &Path) -> Result<SigningKey> {
    let mut passphrase = key_passphrase()?;
    if passphrase.is_none() && keys::is_locked(path) {
        passphrase = ask(&format!("Passphrase of {}: ", path.display()))?;
    }
    keys::load_private(path, passphrase.as_deref()).map_err(|e| {
        let help = format!(
            "set LIMBECK_KEY_PASSPHRASE or LIMBECK_KEY_PASSPHRASE_FILE if the key has a passphrase; `chmod 600 {}` if others may read it; `limbeck keys new PATH` makes another",
            shell(path)
        );
        Failure::from(e).help(help)
    })
}

/// What a person types, unseen; None where nobody can be asked.
fn ask(prompt: &str) -> Result<Option<String>> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    output::stderr(prompt);
    enable_raw_mode()?;
    let typed = typed();
    let restored = disable_raw_mode();
    output::stderr("\n");
    restored?;
    typed
}

fn typed() -> Result<Option<String>> {
    let mut text = String::new();
    loop {
        let Event::Key(key) = event::read()? else { continue };
        let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            _ if key.kind == KeyEventKind::Release => {}
            KeyCode::Enter => return Ok(Some(text)),
            KeyCode::Esc => return Ok(None),
            KeyCode::Char('c' | 'd') if ctrl => return Ok(None),
            KeyCode::Char('u') if ctrl => text.clear(),
            KeyCode::Char(c) if !ctrl => text.push(c),
            KeyCode::Backspace => drop(text.pop()),
            _ => {}
        }
    }
}

/// Makes a key pair; refuses to replace one.
///
/// # Errors
/// When either half can't be written.
pub fn make(path: &Path) -> Result<SigningKey> {
    let key = keys::generate()?;
    keys::save_private(path, &key, key_passphrase()?.as_deref())?;
    keys::save_public(&public_path(path), key.verifying_key())?;
    Ok(key)
}
