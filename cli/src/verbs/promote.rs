//! `limbeck promote`: a recipe's last stage, or an artifact that was made before.

use super::score::public_key;
use super::{run, verify};
use crate::args::{Promote, ScalarArgs};
use crate::exit::{Exit, Failure, Result};
use crate::sealing;
use crate::settings::{Settings, person};
use crate::stages::promote::unapproved;
use crate::stores;
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::event::Stage;
use limbeck_artifact::manifest::{self, ArtifactManifest};
use limbeck_artifact::store::Promotion;
use limbeck_artifact::untrusted::visible_line;
use limbeck_artifact::{journal, keys};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub fn promote(settings: &Settings, args: &Promote) -> Result<Exit> {
    if args.of.join(manifest::FILE_NAME).is_file() {
        return artifact(settings, args);
    }
    sealing::refuse(&args.of, manifest::FILE_NAME)?;
    if args.channel.is_some() || args.store.is_some() || args.key.is_some() {
        let message =
            format!("{} is no artifact, and a recipe names its channel, store and key itself", args.of.display());
        return Err(
            Failure::new(Exit::Usage, message).help("--set promote.channel=production, --set promote.store=DIR")
        );
    }
    run::run(settings, &args.of, Stage::Promote, &ScalarArgs::default())
}

fn artifact(settings: &Settings, args: &Promote) -> Result<Exit> {
    let Some(channel) = &args.channel else {
        return Err(Failure::new(Exit::Usage, "which channel is to serve it?").help("--channel production"));
    };
    let at = args.store.clone().unwrap_or_else(|| PathBuf::from(stores::DEFAULT));
    let store = stores::open(&at)?;
    let dir = &args.of;
    let manifest = match (&args.key, store.trust()?) {
        // The policy's keys are asked by the store itself.
        (None, Some(_)) => ArtifactManifest::load(dir)?,
        (key, _) => verify::check(dir, &public_key(key.as_deref())?)?.1,
    };
    check_verdict(&manifest)?;
    let digest = sha256_file(&dir.join(manifest::FILE_NAME))?;
    let version = store.put_artifact(dir, &digest)?;
    let mut evidence = BTreeMap::from([("recipe-lock".to_owned(), manifest.recipe_lock_digest.clone())]);
    if let Ok(report) = manifest.file(dir, "report") {
        evidence.insert("report".to_owned(), sha256_file(&report)?);
    }
    if let Some(key) = &args.key {
        evidence.insert("key".to_owned(), keys::key_id(&keys::load_public(key)?));
    }
    let wish = Promotion {
        model: manifest.name,
        channel: channel.clone(),
        version_digest: version,
        evidence,
        by: person(),
        at: journal::now(),
    };
    let entry = store.promote(wish).map_err(|e| unapproved(e, dir, Path::new(&at), channel))?;
    super::store::say_entry(settings, &store, &entry)
}

/// A signed artifact tells what its gates said.
fn check_verdict(manifest: &ArtifactManifest) -> Result<()> {
    let exit = match manifest.verdict.as_str() {
        "pass" => return Ok(()),
        "inconclusive" => Exit::Inconclusive,
        _ => Exit::GateFailed,
    };
    let message = format!("not promoted: the gates of this artifact say {}", visible_line(&manifest.verdict));
    Err(Failure::new(exit, message).help("its report is in the artifact's folder"))
}
