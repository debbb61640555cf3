//! From what was typed to what it means: the one place that reads the environment (secrets and the person's name only).

use crate::args::Global;
use crate::exit::{Exit, Failure, Result};
use limbeck_eval::looks;
use limbeck_recipes::Resolved;
use std::path::{Path, PathBuf};

#[derive(Clone)]
pub struct Settings {
    pub json: bool,
    pub offline: bool,
    pub runs_dir: PathBuf,
    /// Recipe overrides, `--device` among them.
    pub sets: Vec<(String, String)>,
    pub device: Option<String>,
    pub recording: Recording,
    /// Of a run inside another's folder: where the outermost run keeps what all of them share.
    pub outer: Option<Outer>,
}

/// What belongs to no single training.
#[derive(Clone, Debug)]
pub struct Outer {
    /// Its model's name: the same training is the same file, and the same candidate, wherever it was made.
    pub name: String,
    /// Beside its runs the looks at test splits are counted.
    pub runs_dir: PathBuf,
    /// In its evaluation the replies of live models are kept, which cost money and depend on no seed.
    pub eval: PathBuf,
}

/// Where the replies of live models come from and go to.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// They are added to this file.
    pub record: Option<PathBuf>,
    /// They come from this file, and from nowhere else.
    pub replay: Option<PathBuf>,
}

impl Settings {
    pub fn new(global: &Global) -> Settings {
        let mut sets = global.set.clone();
        if let Some(device) = &global.device {
            sets.push(("model.device".to_owned(), device.clone()));
        }
        let Global { json, offline, runs_dir, device, .. } = global.clone();
        Settings { json, offline, runs_dir, sets, device, recording: Recording::default(), outer: None }
    }

    /// The recipe at `path` under the overrides.
    ///
    /// # Errors
    /// Exit code 3 with every mistake.
    pub fn recipe(&self, path: &Path) -> Result<Resolved> {
        limbeck_recipes::load(path, &self.sets).map_err(Failure::recipe)
    }

    /// Where looks at test splits are counted: a run inside another's folder judges on the other's rows.
    pub fn looks_dir(&self) -> PathBuf {
        self.outer.as_ref().map_or(&self.runs_dir, |outer| &outer.runs_dir).join(looks::FOLDER)
    }

    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.runs_dir.join(name)
    }
}

/// The passphrase of the signing key: from the environment, or from the file that it names.
///
/// # Errors
/// When the file can't be read.
pub fn key_passphrase() -> Result<Option<String>> {
    if let Some(passphrase) = std::env::var("LIMBECK_KEY_PASSPHRASE").ok().filter(|p| !p.is_empty()) {
        return Ok(Some(passphrase));
    }
    let Some(file) = std::env::var_os("LIMBECK_KEY_PASSPHRASE_FILE").filter(|f| !f.is_empty()) else { return Ok(None) };
    let file = PathBuf::from(file);
    let text = std::fs::read_to_string(&file).map_err(|e| {
        let message = format!("failed to read the passphrase from {}: {e}", file.display());
        Failure::new(Exit::Unexpected, message).help("LIMBECK_KEY_PASSPHRASE_FILE names the file")
    })?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()).filter(|p| !p.is_empty()))
}

/// Who reads what is encrypted: a file of age identities, or their text itself.
pub enum AgeIdentity {
    File(PathBuf),
    Text(String),
}

/// The age identity that the environment gives: the key itself, as CI keeps secrets, or the file that it names.
pub fn age_identity() -> Option<AgeIdentity> {
    let text = secret("LIMBECK_AGE_IDENTITY").map(AgeIdentity::Text);
    let file = || std::env::var_os("LIMBECK_AGE_IDENTITY_FILE").filter(|f| !f.is_empty());
    text.or_else(|| Some(AgeIdentity::File(PathBuf::from(file()?))))
}

/// What the program was called with.
pub fn arguments() -> Vec<String> {
    std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// Who is at the keyboard, for decisions and promotions.
pub fn person() -> String {
    ["USER", "LOGNAME", "USERNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.trim().is_empty()))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// The recipe as a command line takes it: its folder where that is enough.
pub fn recipe_arg(resolved: &Resolved) -> String {
    match (resolved.path.file_name().is_some_and(|name| name == "recipe.toml"), resolved.path.parent()) {
        (true, Some(folder)) if !folder.as_os_str().is_empty() => shell(folder),
        _ => shell(&resolved.path),
    }
}

/// A path as a command line takes it.
pub fn shell(path: &Path) -> String {
    limbeck_tui::text::shell_word(&path.display().to_string())
}

/// Where a person keeps the review screen's keys, if a home is known.
pub fn keys_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(config.join("limbeck/keys.toml"))
}

fn secret(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
}

/// What callers of `limbeck serve` must send.
pub fn api_key() -> Option<String> {
    secret("LIMBECK_API_KEY")
}

/// What the fallback of `limbeck serve` is sent.
pub fn upstream_api_key() -> Option<String> {
    secret("LIMBECK_UPSTREAM_API_KEY")
}

/// The API key in the environment variable that a recipe names.
pub fn named_secret(name: &str) -> Option<String> {
    secret(name)
}

/// The hub's token.
pub fn hub_token() -> Option<String> {
    std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty())
}
