//! `limbeck keys`: make a signing key, show its public half.

use crate::args::{Keys, KeysVerb};
use crate::exit::{Exit, Result};
use crate::output;
use crate::settings::Settings;
use limbeck_artifact::keys;
use serde_json::json;

pub fn keys(settings: &Settings, args: &Keys) -> Result<Exit> {
    match &args.verb {
        KeysVerb::New { path } => {
            let key = crate::keys::make(path)?;
            let public = crate::keys::public_path(path);
            let id = keys::key_id(key.verifying_key());
            if settings.json {
                output::json(&json!({"private": path, "public": public, "key_id": id}))?;
            } else {
                output::stdout(&format!(
                    "private key  {} (keep it to yourself)\npublic key   {} (for those who are to trust it)\nkey id       {id}\n",
                    path.display(),
                    public.display()
                ))?;
            }
        }
        KeysVerb::Show { path } => {
            let public = match keys::load_public(path) {
                Ok(public) => public,
                Err(_) => *crate::keys::load(path)?.verifying_key(),
            };
            let id = keys::key_id(&public);
            match settings.json {
                true => output::json(&json!({"key_id": id, "public": keys::public_pem(&public)}))?,
                false => output::stdout(&format!("{id}\n"))?,
            }
        }
        KeysVerb::Public { path } => output::stdout(&keys::public_pem(crate::keys::load(path)?.verifying_key()))?,
    }
    Ok(Exit::Ok)
}
