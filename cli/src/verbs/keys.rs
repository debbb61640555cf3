//! `limbeck keys`: make a signing key, show its public half, put another in its place; the same for age identities.

use crate::args::{Keys, KeysVerb};
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::{Settings, shell};
use crate::stores;
use crate::verbs::store::args::StoreArg;
use crate::verbs::trust::save_new;
use limbeck_artifact::encryption::{self, Identities};
use limbeck_artifact::journal;
use limbeck_artifact::keys::{self, VerifyingKey};
use limbeck_artifact::trust::{TrustPolicy, TrustedKey};
use serde_json::json;
use std::path::Path;

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
        KeysVerb::Rotate { store, old, new, policy } => return rotate(settings, store, old, new, policy),
        KeysVerb::Identity { path } => {
            let recipient = encryption::make_identity(path, &journal::now())?;
            match settings.json {
                true => output::json(&json!({"identity": path, "recipient": recipient}))?,
                false => output::stdout(&format!(
                    "identity   {} (keep it to yourself, and a copy elsewhere: nothing else opens what is for it)\nrecipient  {recipient}\n",
                    path.display()
                ))?,
            }
        }
        KeysVerb::Recipient { path } => {
            let recipients = Identities::load(path)?.recipients();
            match settings.json {
                true => output::json(&json!({"recipients": recipients}))?,
                false => output::stdout(&format!("{}\n", recipients.join("\n")))?,
            }
        }
        KeysVerb::Show { path } => {
            let public = either_half(path)?;
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

/// The public key in a file that holds it, or its private half.
fn either_half(path: &Path) -> Result<VerifyingKey> {
    match keys::load_public(path) {
        Ok(public) => Ok(public),
        Err(_) => Ok(*crate::keys::load(path)?.verifying_key()),
    }
}

/// A new key, and the policy in which it has the roles of the old one, which then counts for what was before.
fn rotate(settings: &Settings, store: &StoreArg, old: &Path, new: &Path, policy: &Path) -> Result<Exit> {
    let old = keys::key_id(&either_half(old)?);
    let in_force = match stores::find(&store.store)? {
        Some(store) => store.trust()?,
        None => None,
    };
    if in_force.is_some() && policy.exists() {
        return Err(Failure::new(Exit::Usage, format!("there is a file {} already", policy.display()))
            .help("name another with --policy FILE; no key was made"));
    }
    let next = match &in_force {
        None => None,
        Some(trust) => {
            let Some((name, _)) = trust.policy.key_by_id(&old) else {
                let message = format!("the store's trust policy does not name the key {old}");
                return Err(Failure::new(Exit::Usage, message).help("`limbeck trust show` tells whom it names"));
            };
            Some((trust.policy.clone(), name.to_owned()))
        }
    };
    let key = crate::keys::make(new)?;
    let id = keys::key_id(key.verifying_key());
    let mut written = None;
    let mut text = format!("{} takes the place of key {}\n", new.display(), output::short(&old));
    match next {
        Some((current, name)) => {
            let next = succeed(current, &name, *key.verifying_key());
            save_new(policy, &next.render())?;
            text.push_str(&format!(
                "{} is the next trust policy, with the new key in the roles of {name}; {name} counts for what was promoted before\n",
                policy.display()
            ));
            let policy = shell(policy);
            text.push_str(&format!(
                "sign it: `limbeck trust sign {policy} --key KEY`, then `limbeck trust install {policy}`\n"
            ));
            written = Some(policy);
        }
        None => text.push_str(
            "the store has no trust policy: give the new public key to whoever checks artifacts with --key\n",
        ),
    }
    match settings.json {
        true => output::json(&json!({"private": new, "key_id": id, "replaces": old, "policy": written}))?,
        false => output::stdout(&text)?,
    }
    Ok(Exit::Ok)
}

/// The policy after `current` in which `key` has the roles of `name`. The old key stays listed and valid: an entry from which it
/// is not to be believed is for people to name.
fn succeed(current: TrustPolicy, name: &str, key: VerifyingKey) -> TrustPolicy {
    let mut next = TrustPolicy { version: current.version + 1, ..current };
    let taken = |name: &String| next.keys.contains_key(name);
    let base = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-').to_owned();
    let fresh = (2..).map(|n| format!("{base}-{n}")).find(|name| !taken(name)).unwrap_or(base);
    next.keys
        .insert(fresh.clone(), TrustedKey { id: keys::key_id(&key), key, valid_from_seq: 0, revoked_at_seq: None });
    for role in next.roles.values_mut().chain([&mut next.root]) {
        if role.keys.remove(name) {
            role.keys.insert(fresh.clone());
        }
    }
    next
}
