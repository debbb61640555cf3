//! `limbeck trust` and `limbeck approve`: the policy that says whose signatures count, and a person's word for an artifact.

pub mod args;

use super::store::{open, say_entry, whole};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, short};
use crate::settings::{Settings, person};
use args::{Approve, Step, Trust, TrustVerb};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::keys::{self, key_id};
use limbeck_artifact::store::{Approved, InForce, Store};
use limbeck_artifact::trust::{Approval, EVAL, Role, SignedPolicy, TrustPolicy, TrustedKey, step_of_channel};
use limbeck_artifact::untrusted::visible_line;
use limbeck_artifact::{journal, manifest};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub fn trust(settings: &Settings, args: &Trust) -> Result<Exit> {
    match &args.verb {
        TrustVerb::New { path, keys } => new(settings, path, keys),
        TrustVerb::Sign { policy, key } => sign(settings, policy, key),
        TrustVerb::Install { store, policy, dry_run } => install(settings, &open(store)?, policy, *dry_run),
        TrustVerb::Show { store, text } => show(settings, &open(store)?, *text),
    }
}

fn new(settings: &Settings, path: &Path, named: &[(String, PathBuf)]) -> Result<Exit> {
    let mut keys = BTreeMap::new();
    for (name, path) in named {
        let key = keys::load_public(path)?;
        let trusted = TrustedKey { id: key_id(&key), key, valid_from_seq: 0, revoked_at_seq: None };
        if keys.insert(name.clone(), trusted).is_some() {
            return Err(Failure::new(Exit::Usage, format!("two keys are called {}", visible_line(name))));
        }
    }
    let names = || keys.keys().cloned().collect();
    let role = || Role { keys: names(), threshold: 1, distinct_from: Default::default() };
    let roles = ["build", "promote"].map(|name| (name.to_owned(), role())).into();
    let text = TrustPolicy { version: 1, root: role(), keys: keys.clone(), roles }.render();
    TrustPolicy::parse(&text).map_err(|reason| Failure::new(Exit::Usage, reason))?;
    save_new(path, &text)?;
    if settings.json {
        output::json(&json!({"policy": path, "keys": keys.keys().collect::<Vec<_>>()}))?;
    } else {
        let at = path.display();
        output::stdout(&format!(
            "{at}: every key may do everything; edit it, then `limbeck trust sign {at} --key KEY` and `limbeck trust install {at}`\n"
        ))?;
    }
    Ok(Exit::Ok)
}

/// A policy that somebody wrote is not replaced.
pub fn save_new(path: &Path, text: &str) -> Result<()> {
    if path.exists() {
        let message = format!("there is a file {} already", path.display());
        return Err(Failure::new(Exit::Usage, message).help("name another, or edit that one"));
    }
    Ok(write_atomic(path, text.as_bytes())?)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| {
        Failure::new(Exit::Usage, format!("cannot read the policy {}: {e}", path.display()))
            .help("`limbeck trust new` writes one to start from")
    })
}

/// `trust.toml` -> the start of `trust.toml.KEY.sig`.
fn signature_prefix(policy: &Path) -> String {
    format!("{}.", policy.file_name().unwrap_or_default().to_string_lossy())
}

fn sign(settings: &Settings, path: &Path, key: &Path) -> Result<Exit> {
    let text = read(path)?;
    let policy = SignedPolicy::new(path, &text, Vec::new())?.policy;
    let key = crate::keys::load(key)?;
    let id = key_id(key.verifying_key());
    let bundle = SignedPolicy::sign(&text, &key)?;
    let to = path.with_file_name(format!("{}{}.sig", signature_prefix(path), short(&id)));
    write_atomic(&to, &bundle)?;
    let name = policy.key_by_id(&id).map(|(name, _)| name.to_owned());
    let is_root = name.as_ref().is_some_and(|name| policy.root.keys.contains(name));
    if settings.json {
        output::json(&json!({"signature": to, "key": name, "key_id": id, "root": is_root}))?;
        return Ok(Exit::Ok);
    }
    let note = match (&name, is_root) {
        (Some(name), true) => format!("signed as {}", visible_line(name)),
        (Some(name), false) => format!("signed as {}, which is no root key of this policy", visible_line(name)),
        (None, _) => {
            "signed with a key that this policy does not name: it counts if it is a root key of the one in force"
                .to_owned()
        }
    };
    output::stdout(&format!("{}: {note}\n", to.display()))?;
    Ok(Exit::Ok)
}

/// The policy and what signs it beside it.
fn signed(path: &Path) -> Result<SignedPolicy> {
    let text = read(path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = signature_prefix(path);
    let mut names: Vec<PathBuf> = fs::read_dir(dir)?.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    names.retain(|p| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&prefix) && name.ends_with(".sig")
    });
    names.sort();
    let mut signatures = Vec::new();
    for name in names {
        let bytes = fs::read(&name)?;
        signatures.push(serde_json::from_slice(&bytes).map_err(|e| {
            Failure::new(Exit::VerificationFailed, format!("{} is no signature: {e}", name.display()))
                .help("remove it, and sign the policy again")
        })?);
    }
    Ok(SignedPolicy::new(path, &text, signatures)?)
}

fn install(settings: &Settings, store: &Store, path: &Path, dry_run: bool) -> Result<Exit> {
    let signed = signed(path)?;
    let current = store.trust()?;
    // Somebody who asks before everyone signed wants to know the rest all the same.
    if !dry_run {
        let entry = store.install_trust(&signed, &person(), &journal::now())?;
        say_entry(settings, store, &entry)?;
        if !settings.json {
            output::stdout(&channel_lines(&channel_states(store)?))?;
        }
        return Ok(Exit::Ok);
    }
    let fault = signed.check_follows(current.as_ref().map(|c| &c.policy)).err();
    let own = signed.signers(&signed.policy).unwrap_or_default();
    if settings.json {
        output::json(&json!({"version": signed.policy.version, "signed_by": own, "fault": fault}))?;
    } else {
        let by = if own.is_empty() { "nobody".to_owned() } else { Vec::from_iter(own).join(", ") };
        let verdict = fault
            .as_ref()
            .map_or("it can be put into force".to_owned(), |f| format!("it can't be put into force: {f}"));
        output::stdout(&format!("version {}, signed by {by}; {verdict}\n", signed.policy.version))?;
    }
    Ok(if fault.is_some() { Exit::VerificationFailed } else { Exit::Ok })
}

/// Model, channel, and why it is not trusted where it is not.
type ChannelTrust = (String, String, Option<String>);

fn channel_states(store: &Store) -> Result<Vec<ChannelTrust>> {
    let mut states = Vec::new();
    for (model, of) in store.channels()? {
        for channel in of.into_keys() {
            let fault = store.trusted(&model, &channel).err().map(|e| e.to_string());
            states.push((model.clone(), channel, fault));
        }
    }
    Ok(states)
}

fn channel_lines(states: &[ChannelTrust]) -> String {
    let line = |(model, channel, fault): &ChannelTrust| match fault {
        None => format!("{model}/{channel} is trusted\n"),
        Some(fault) => format!("{}\n", visible_line(fault)),
    };
    states.iter().map(line).collect()
}

fn show(settings: &Settings, store: &Store, text: bool) -> Result<Exit> {
    let Some(trust) = store.trust()? else {
        let help = "`limbeck trust new` writes one; until it is installed, whoever can write to the store can promote";
        return Err(Failure::new(Exit::Usage, "this store has no trust policy").help(help));
    };
    if text {
        output::stdout(&trust.text)?;
        return Ok(Exit::Ok);
    }
    let states = channel_states(store)?;
    let next = store.head()?.seq + 1;
    if settings.json {
        output::json(&json!({
            "version": trust.policy.version, "digest": trust.digest, "since_entry": trust.seq,
            "keys": trust.policy.keys.iter().map(|(name, key)| json!({
                "name": name, "id": key.id, "valid_from_seq": key.valid_from_seq, "revoked_at_seq": key.revoked_at_seq,
                "valid": key.is_valid_at(next),
            })).collect::<Vec<_>>(),
            "roles": trust.policy.roles.iter().chain([(&"root".to_owned(), &trust.policy.root)]).map(|(name, role)| {
                (name.clone(), json!({
                    "keys": role.keys, "threshold": role.threshold, "distinct_from": role.distinct_from,
                }))
            }).collect::<serde_json::Map<String, Value>>(),
            "channels": states.iter().map(|(model, channel, fault)| json!({
                "model": model, "channel": channel, "trusted": fault.is_none(), "fault": fault,
            })).collect::<Vec<_>>(),
        }))?;
    } else {
        output::stdout(&(policy_lines(&trust, next) + &channel_lines(&states)))?;
    }
    Ok(if states.iter().all(|(_, _, fault)| fault.is_none()) { Exit::Ok } else { Exit::VerificationFailed })
}

fn policy_lines(trust: &InForce, next: u64) -> String {
    let policy = &trust.policy;
    let mut text =
        format!("trust policy {}, {}, in force since entry {}\n", policy.version, short(&trust.digest), trust.seq);
    let role_line = |name: &str, role: &Role| {
        let keys: Vec<&str> = role.keys.iter().map(String::as_str).collect();
        let distinct: Vec<&str> = role.distinct_from.iter().map(String::as_str).collect();
        let distinct =
            if distinct.is_empty() { String::new() } else { format!(", none who did {}", distinct.join(" or ")) };
        format!("  {name:<20} {} of {}{distinct}\n", role.threshold, keys.join(", "))
    };
    text.push_str(&role_line("root", &policy.root));
    policy.roles.iter().for_each(|(name, role)| text.push_str(&role_line(name, role)));
    for (name, key) in &policy.keys {
        let state = match (key.is_valid_at(next), key.revoked_at_seq) {
            (true, _) => String::new(),
            (false, Some(at)) => format!(", revoked as of entry {at}"),
            (false, None) => format!(", valid from entry {}", key.valid_from_seq),
        };
        text.push_str(&format!("  key {name:<16} {}{state}\n", short(&key.id)));
    }
    text
}

pub fn approve(settings: &Settings, args: &Approve) -> Result<Exit> {
    let store = open(&args.store)?;
    let path = Path::new(&args.artifact);
    let version = match path.join(manifest::FILE_NAME) {
        file if file.is_file() => store.put_artifact(path, &sha256_file(&file)?)?,
        _ => whole(&args.artifact, &store.versions()?)?,
    };
    let approved = match (&args.key, args.list) {
        (Some(key), false) => {
            let step = match args.step {
                Step::Eval => EVAL.to_owned(),
                Step::Promote => step_of_channel(args.channel.as_deref().unwrap_or_default()),
            };
            Some(give(&store, &version, &step, &crate::keys::load(key)?)?)
        }
        _ => None,
    };
    let all = store.approvals(&version)?;
    if settings.json {
        output::json(&json!({"version": version, "given": approved, "approvals": all}))?;
        return Ok(Exit::Ok);
    }
    let mut text = format!("version {}\n", short(&version));
    for a in &all {
        let at = visible_line(&a.at);
        text.push_str(&format!("  {:<22} by {}  {at}  {}\n", visible_line(&a.role), a.key, short(&a.digest)));
    }
    if all.is_empty() {
        text.push_str("  nobody approved anything yet\n");
    }
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

/// Approves a version in the name of `key`. Gates are vouched for only where they passed.
///
/// # Errors
/// When the policy does not give the key the role, or the version's gates did not pass.
pub fn give(store: &Store, version: &str, step: &str, key: &dyn limbeck_artifact::signer::Signer) -> Result<Approved> {
    let Some(trust) = store.trust()? else {
        let help = "`limbeck trust new` writes a policy, `limbeck trust install` puts it into force";
        return Err(Failure::new(Exit::Usage, "this store has no trust policy, so nobody needs an approval").help(help));
    };
    let dir = store.lay_out(version)?;
    let manifest = manifest::ArtifactManifest::load(&dir)?;
    if manifest.verdict != "pass" {
        let message =
            format!("the gates of this version say {}: it cannot be approved", visible_line(&manifest.verdict));
        return Err(Failure::new(Exit::GateFailed, message).help("its report is in the artifact's folder"));
    }
    let approval = Approval {
        role: step.to_owned(),
        model: manifest.name,
        version: version.to_owned(),
        at: journal::now(),
        policy: trust.digest,
    };
    Ok(store.approve(&approval.sign(key)?)?)
}
