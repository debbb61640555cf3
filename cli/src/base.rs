//! The base model of a run: where it lies on this machine, and the digest that stands for it in every cache key.

use crate::exit::{Failure, Result};
use crate::settings::Settings;
use limbeck_artifact::digest::{sha256_file, sha256_hex};
use limbeck_artifact::event::Emit;
use limbeck_model::config::DecoderConfig;
use limbeck_model::gguf::Value;
use limbeck_model::source::{HubOptions, ModelRef, resolve_with};
use limbeck_model::weights::Weights;
use limbeck_recipes::{BaseModel, Recipe};
use std::path::{Path, PathBuf};

pub struct Base {
    pub path: PathBuf,
    /// SHA-256 of the file; of a folder, over the names and digests of its files.
    pub digest: String,
    /// What a person calls it: the hub's name, or the file's.
    pub name: String,
    /// SPDX id, where the file tells.
    pub license: Option<String>,
    pub config: DecoderConfig,
}

/// Files of a folder that decide what the model does.
const BESIDE_WEIGHTS: [&str; 4] = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
/// And these, where there is no tokenizer.json.
const TOKENIZER_MODEL: [&str; 2] = ["tokenizer.model", "added_tokens.json"];

impl Base {
    /// Finds the recipe's base, from the hub where it says so, and takes its digest.
    ///
    /// # Errors
    /// When it is not there, can't be fetched, or is no model of a known kind.
    pub fn open(recipe: &Recipe, settings: &Settings, emit: &dyn Emit) -> Result<Base> {
        let (wanted, name) = match &recipe.model.base {
            BaseModel::Path(path) => (ModelRef::Path(path.clone()), name_of(path)),
            BaseModel::Hub(repo) => (ModelRef::parse(&format!("hf:{repo}"))?, repo.clone()),
        };
        let options = HubOptions {
            revision: recipe.model.revision.clone(),
            token: crate::settings::hub_token(),
            endpoint: recipe.model.endpoint.clone(),
            cache_dir: recipe.model.cache_dir.clone(),
            offline: settings.offline,
            ..HubOptions::default()
        };
        let path = resolve_with(&wanted, &options, emit).map_err(|e| {
            let help = match &wanted {
                ModelRef::Path(_) => {
                    "name another with --set model.base=PATH, or a hub model with --set model.base=hf:OWNER/NAME"
                }
                ModelRef::Hub { .. } => "check the network, or name a local copy with --set model.base=PATH",
            };
            Failure::from(e).help(help)
        })?;
        let weights = Weights::open(&path)?;
        let license = weights.gguf().and_then(|file| match file.get("general.license") {
            Some(Value::String(text)) => Some(text.clone()),
            _ => None,
        });
        let config = weights.config().clone();
        Ok(Base { digest: digest(&path, &weights)?, path, name, license, config })
    }
}

pub fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// Of a file its own digest, of a folder one over those of its files.
///
/// # Errors
/// When one can't be read.
pub fn digest(path: &Path, weights: &Weights) -> Result<String> {
    if weights.gguf().is_some() {
        return Ok(sha256_file(path)?);
    }
    let instead = TOKENIZER_MODEL.iter().filter(|_| !path.join("tokenizer.json").is_file());
    let beside = BESIDE_WEIGHTS.iter().chain(instead).map(|name| path.join(name)).filter(|p| p.is_file());
    let mut lines = Vec::new();
    for file in weights.files().into_iter().chain(beside) {
        lines.push(format!("{} {}\n", name_of(&file), sha256_file(&file)?));
    }
    lines.sort();
    lines.dedup();
    Ok(sha256_hex(lines.concat().as_bytes()))
}
