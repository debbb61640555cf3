//! `limbeck verify`: is this folder exactly what the holder of that key signed?

use crate::args::Verify;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::sealing;
use crate::settings::Settings;
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::keys::{self, VerifyingKey};
use limbeck_artifact::manifest::{self, ArtifactManifest};
use limbeck_artifact::oms::{self, Strictness, Verified};
use limbeck_artifact::untrusted::visible_line;
use serde_json::json;
use std::path::Path;

pub fn verify(settings: &Settings, args: &Verify) -> Result<Exit> {
    let key = keys::load_public(&args.key).map_err(|e| Failure::of(Exit::VerificationFailed, &e))?;
    sealing::refuse(&args.artifact, manifest::FILE_NAME)?;
    let (verified, manifest) = check(&args.artifact, &key)?;
    if settings.json {
        output::json(&json!({
            "verified": true,
            "artifact": args.artifact,
            "files": verified.files.len(),
            "root": verified.root,
            "key_id": keys::key_id(&key),
            "name": manifest.name,
            "version": manifest.version,
            "verdict": manifest.verdict,
        }))?;
    } else {
        output::stdout(&format!(
            "ok: {} files of {} {} are as signed by {}\n    gates: {} · dataset {} · recipe {}\n",
            verified.files.len(),
            visible_line(&manifest.name),
            visible_line(&manifest.version),
            keys::key_id(&key),
            visible_line(&manifest.verdict),
            visible_line(&manifest.dataset_digest),
            visible_line(&manifest.recipe_lock_digest),
        ))?;
    }
    Ok(Exit::Ok)
}

/// The signature, then every file against it, then the manifest against the files. Nothing of the folder is believed
/// before that.
///
/// # Errors
/// Exit code 6 with what is wrong.
pub fn check(artifact: &Path, key: &VerifyingKey) -> Result<(Verified, ArtifactManifest)> {
    let bundle = artifact.join(manifest::SIGNATURE_FILE_NAME);
    let failed = |e: &(dyn std::error::Error + 'static)| {
        let failure = Failure::of(Exit::VerificationFailed, e);
        let help =
            "do not serve this artifact; fetch it again from where it was made, or check that --key is the signer's";
        Failure { message: format!("{} is not what was signed: {}", artifact.display(), failure.message), ..failure }
            .help(help)
    };
    let verified = oms::verify_dir(artifact, &bundle, key, Strictness::Strict).map_err(|e| failed(&e))?;
    let manifest = ArtifactManifest::load(artifact).map_err(|e| failed(&e))?;
    let missing = |reason: String| failed(&std::io::Error::other(reason));
    for (name, file) in &manifest.files {
        if verified.files.get(name) != Some(&file.sha256) {
            return Err(missing(format!("the manifest names another {}", visible_line(name))));
        }
    }
    let lock = manifest.file(artifact, "recipe-lock").map_err(|e| failed(&e))?;
    if sha256_file(&lock)? != manifest.recipe_lock_digest {
        return Err(missing("the manifest names another recipe lock".to_owned()));
    }
    Ok((verified, manifest))
}
