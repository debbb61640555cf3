//! The trust policy in the store. It comes into force by an entry of the log, so that "since when" and "until when" are
//! numbers of entries; policies and approvals lie under `trust/`, each under its digest.
//!
//! A promotion is admitted by the policy that is in force when its entry is written. Whoever reads a channel asks again, by
//! the same policy's roles and by what is known of the keys today: a key that was revoked as of an entry counts for nothing
//! from there on, also backwards.

use super::log::Log;
use super::storage::Sure;
use super::{Channels, LogEntry, Operation, Step, Store, Version};
use crate::digest::sha256_hex;
use crate::keys::VerifyingKey;
use crate::manifest::SIGNATURE_FILE_NAME;
use crate::oms::{self, Strictness, bundle};
use crate::trust::{Approval, BUILD, EVAL, PROMOTE, Role, SignedPolicy, TrustPolicy, step_of_channel};
use crate::untrusted::visible_line;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

/// What an entry's evidence calls the policy it was admitted by, and the key that signed the artifact.
const TRUST: &str = "trust";
const BUILDER: &str = "builder";
const TO_PROMOTE: &str = "promote it again, or roll the channel back to a version that is trusted";
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A policy, and since which entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    pub policy: TrustPolicy,
    /// The policy's TOML, to the byte.
    pub text: String,
    /// Of what the store keeps: the policy with its signatures.
    pub digest: String,
    pub seq: u64,
}

/// An approval in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Approved {
    /// The key's name in the policy.
    pub key: String,
    /// `eval` or `promote:CHANNEL`.
    pub role: String,
    /// The version's digest.
    pub version: String,
    pub at: String,
    /// SHA-256 of the bundle.
    pub digest: String,
}

/// What whoever reads a channel checks the artifact against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    pub version: Version,
    /// The key that signed it, by its name in the policy.
    pub builder: String,
    pub key: VerifyingKey,
}

impl Store {
    /// The policy that is in force; None where there is none, and any key may do anything.
    pub fn trust(&self) -> Result<Option<InForce>> {
        self.trust_in(&self.log()?)
    }

    /// The policy that is in force after these entries, each policy's place checked against the one before.
    pub(super) fn trust_in(&self, entries: &[LogEntry]) -> Result<Option<InForce>> {
        let mut current: Option<InForce> = None;
        for entry in entries.iter().filter(|e| e.op == Operation::Trust) {
            let path = self.trust_path("policies", &entry.to);
            let signed = SignedPolicy::decode(&path, &self.trust_file("policies", &entry.to)?)?;
            signed.check_follows(current.as_ref().map(|c| &c.policy)).map_err(|reason| {
                let hint = "somebody wrote to the log who may not; restore it from a copy";
                Error::untrusted(format!("entry {} is no change of the trust policy: {reason}", entry.seq), hint)
            })?;
            let SignedPolicy { policy, text, .. } = signed;
            current = Some(InForce { policy, text, digest: entry.to.clone(), seq: entry.seq });
        }
        Ok(current)
    }

    /// Puts a policy into force, by an entry of the log. The same policy again changes nothing.
    ///
    /// # Errors
    /// When it does not follow on the present one, or the root keys of either did not sign it.
    pub fn install_trust(&self, signed: &SignedPolicy, by: &str, at: &str) -> Result<LogEntry> {
        let text = signed.encode();
        let digest = sha256_hex(text.as_bytes());
        self.append(|log, _| {
            let current = self.trust_in(&log.entries)?;
            if let Some(current) = current.as_ref().filter(|c| c.text == signed.text)
                && let Some(entry) = log.entries.get((current.seq as usize).saturating_sub(1))
            {
                return Ok(Step::Already(entry.clone()));
            }
            signed.check_follows(current.as_ref().map(|c| &c.policy)).map_err(|reason| {
                Error::untrusted(format!("the policy is not put into force: {reason}"), "nothing was changed")
            })?;
            self.put_trust_file("policies", &digest, text.as_bytes())?;
            let from = current.map(|c| c.digest);
            Ok(Step::Append(log.next(Operation::Trust, ("", ""), (from, digest.clone()), &BTreeMap::new(), (by, at))))
        })
    }

    /// Keeps an approval. One in the name of a key that the policy does not give the role is refused.
    pub fn approve(&self, bundle: &[u8]) -> Result<Approved> {
        let refused =
            |reason: String| Error::untrusted(format!("the approval is refused: {reason}"), "nothing was kept");
        let Some(trust) = self.trust()? else {
            let hint = "`limbeck trust new` writes a policy, `limbeck trust install` puts it into force";
            return Err(Error::refused("this store has no trust policy, so nobody needs an approval", hint));
        };
        let (key, approval) = Approval::open(bundle, &trust.policy).map_err(refused)?;
        let version = self.version(&approval.version)?;
        if version.name != approval.model {
            return Err(refused(format!(
                "the version is of {}, not of {}",
                version.name,
                visible_line(&approval.model)
            )));
        }
        let role = role_for(&trust.policy, &approval.role).map_err(refused)?;
        if !role.keys.contains(&key) {
            let holders: Vec<&str> = role.keys.iter().map(String::as_str).collect();
            let holders = holders.join(", ");
            return Err(refused(format!(
                "{key} does not have the role {}; {holders} do",
                visible_line(&approval.role)
            )));
        }
        let next = self.head()?.seq + 1;
        if trust.policy.keys.get(&key).is_none_or(|key| !key.is_valid_at(next)) {
            return Err(refused(format!("the key {key} is revoked, or not valid yet")));
        }
        let digest = sha256_hex(bundle);
        self.put_trust_file("approvals", &digest, bundle)?;
        Ok(Approved { key, role: approval.role, version: approval.version, at: approval.at, digest })
    }

    /// Whatever approves a version and is signed by a key of the policy.
    pub fn approvals(&self, version: &str) -> Result<Vec<Approved>> {
        let Some(trust) = self.trust()? else { return Ok(Vec::new()) };
        self.approvals_under(&trust.policy, version)
    }

    fn approvals_under(&self, policy: &TrustPolicy, version: &str) -> Result<Vec<Approved>> {
        let mut found = Vec::new();
        for name in self.names("trust/approvals", &mut 0)? {
            let Some(digest) = name.strip_suffix(".json") else { continue };
            let approved = self.approval(policy, digest)?;
            found.extend(approved.filter(|a| a.version == version));
        }
        found.sort_by(|a, b| (&a.role, &a.key, &a.at).cmp(&(&b.role, &b.key, &b.at)));
        Ok(found)
    }

    /// None where the file is no approval by a key of the policy.
    fn approval(&self, policy: &TrustPolicy, digest: &str) -> Result<Option<Approved>> {
        let bytes = self.trust_file("approvals", digest)?;
        let opened = Approval::open(&bytes, policy).ok();
        Ok(opened.map(|(key, a)| Approved {
            key,
            role: a.role,
            version: a.version,
            at: a.at,
            digest: digest.to_owned(),
        }))
    }

    /// The evidence by which a policy admits a version to a channel as entry `seq`.
    ///
    /// # Errors
    /// [`Error::Unapproved`] where keys have yet to agree, [`Error::Untrusted`] where they could not.
    pub(super) fn admit(
        &self,
        trust: &InForce,
        version: &str,
        channel: &str,
        seq: u64,
    ) -> Result<BTreeMap<String, String>> {
        let builder = self.builder(&trust.policy, version)?;
        let approvals = self.approvals_under(&trust.policy, version)?;
        let key_id = trust.policy.keys.get(&builder).map(|key| key.id.clone()).unwrap_or_default();
        let mut evidence = BTreeMap::from([(TRUST.to_owned(), trust.digest.clone()), (BUILDER.to_owned(), key_id)]);
        evidence.extend(admitted(&trust.policy, &trust.policy, &builder, &approvals, channel, seq)?);
        Ok(evidence)
    }

    /// The name of the key that signed a version, its files checked.
    fn builder(&self, policy: &TrustPolicy, version: &str) -> Result<String> {
        let dir = self.lay_out(version)?;
        let signature = dir.join(SIGNATURE_FILE_NAME);
        let bytes = fs::read(&signature).map_err(Error::io("read the signature", &signature))?;
        let hint = bundle::hint(&bytes).unwrap_or_default();
        let Some((name, key)) = policy.key_by_id(&hint) else {
            let reason = "the artifact is signed by no key of the trust policy".to_owned();
            return Err(Error::untrusted(reason, "sign it with a key that has the role build"));
        };
        let verified = oms::verify_dir(&dir, &signature, &key.key, Strictness::Strict).map_err(|e| {
            Error::untrusted(format!("version {version} is not what {name} signed: {e}"), "put the artifact again")
        })?;
        self.version(version)?.check_files(&verified.files)?;
        Ok(name.to_owned())
    }

    /// What a reader of a channel has to check its artifact against. None where the store has no policy.
    ///
    /// # Errors
    /// [`Error::Untrusted`] where the policy does not admit what the channel serves, or no longer does.
    pub fn trusted(&self, model: &str, channel: &str) -> Result<Option<Trusted>> {
        let log = self.read_log()?;
        let Some(now) = self.trust_in(&log.entries)? else { return Ok(None) };
        let channels = super::fold(&log.entries);
        let Some(version) = served(&channels, model, channel) else { return Ok(None) };
        let (builder, key) = self.vet(&log, &now, model, channel, &version).map_err(|e| match e {
            Error::Untrusted { reason, .. } | Error::Unapproved { reason, .. } => {
                Error::untrusted(format!("{model}/{channel} is not to be trusted: {reason}"), TO_PROMOTE)
            }
            other => other,
        })?;
        Ok(Some(Trusted { version: self.version(&version)?, builder, key }))
    }

    /// Whether what a channel serves was admitted, by the policy of then and the keys of today; the builder's key.
    pub(super) fn vet(
        &self,
        log: &Log,
        now: &InForce,
        model: &str,
        channel: &str,
        version: &str,
    ) -> Result<(String, VerifyingKey)> {
        let promoted = log
            .entries
            .iter()
            .rev()
            .find(|e| e.op == Operation::Promote && e.model == model && e.channel == channel && e.to == version);
        let Some(entry) = promoted else {
            return Err(Error::untrusted(format!("version {version} was never promoted to it"), TO_PROMOTE));
        };
        self.vet_entry(log, now, entry)
    }

    /// As [`Store::vet`], of one promotion.
    pub(super) fn vet_entry(&self, log: &Log, now: &InForce, entry: &LogEntry) -> Result<(String, VerifyingKey)> {
        let before = usize::try_from(entry.seq).unwrap_or(usize::MAX).saturating_sub(1).min(log.entries.len());
        let Some(then) = self.trust_in(&log.entries[..before])? else {
            return Err(Error::untrusted(format!("entry {} is older than the trust policy", entry.seq), TO_PROMOTE));
        };
        let id = entry.evidence.get(BUILDER).map_or("", String::as_str);
        let Some((builder, key)) = now.policy.key_by_id(id) else {
            return Err(Error::untrusted(format!("entry {} names no builder of the policy", entry.seq), TO_PROMOTE));
        };
        let (builder, key) = (builder.to_owned(), key.key);
        let mut approvals = Vec::new();
        for (name, digest) in &entry.evidence {
            if name.starts_with(EVAL) || name.starts_with(PROMOTE) {
                approvals.extend(self.approval(&now.policy, digest)?.filter(|a| a.version == entry.to));
            }
        }
        admitted(&then.policy, &now.policy, &builder, &approvals, &entry.channel, entry.seq)?;
        Ok((builder, key))
    }

    fn trust_path(&self, kind: &str, digest: &str) -> PathBuf {
        self.place(&trust_key(kind, digest))
    }

    fn trust_file(&self, kind: &str, digest: &str) -> Result<Vec<u8>> {
        super::check_digest(digest)?;
        let path = self.trust_path(kind, digest);
        let bytes = self.storage.read(&trust_key(kind, digest), MAX_FILE_BYTES).map_err(Error::io("read", &path))?;
        if sha256_hex(&bytes) == digest {
            return Ok(bytes);
        }
        Err(Error::untrusted(format!("{} was changed after it was stored", path.display()), "restore it from a copy"))
    }

    fn put_trust_file(&self, kind: &str, digest: &str, bytes: &[u8]) -> Result<()> {
        self.put_bytes(&trust_key(kind, digest), digest, bytes, Sure::ByDigest)
    }
}

fn trust_key(kind: &str, digest: &str) -> String {
    format!("trust/{kind}/{digest}.json")
}

fn served(channels: &Channels, model: &str, channel: &str) -> Option<String> {
    channels.get(model).and_then(|of| of.get(channel)).map(|state| state.version.clone())
}

/// The role that decides on a step: `eval`, or a channel's own before the one for all channels.
fn role_for<'a>(policy: &'a TrustPolicy, step: &str) -> std::result::Result<&'a Role, String> {
    let shared = step.starts_with(PROMOTE).then_some(PROMOTE);
    let role = policy.roles.get(step).or_else(|| policy.roles.get(shared?));
    role.ok_or_else(|| format!("the trust policy gives nobody the role {}", visible_line(step)))
}

/// The approvals that admit a version which `builder` signed to `channel`, as evidence. `roles` is the policy whose roles
/// count, `keys` the one that knows until when keys do.
fn admitted(
    roles: &TrustPolicy,
    keys: &TrustPolicy,
    builder: &str,
    approvals: &[Approved],
    channel: &str,
    seq: u64,
) -> Result<BTreeMap<String, String>> {
    let valid = |name: &str| keys.keys.get(name).is_some_and(|key| key.is_valid_at(seq));
    let untrusted = |reason: String| Error::untrusted(reason, "`limbeck trust show` tells who may do what");
    let build = role_for(roles, BUILD).map_err(untrusted)?;
    if !build.keys.contains(builder) {
        return Err(untrusted(format!("it is signed by {builder}, who does not have the role build")));
    }
    if !valid(builder) {
        return Err(untrusted(format!("it is signed by {builder}, and that key is revoked or not valid yet")));
    }
    let mut evidence = BTreeMap::new();
    let mut evaluators = BTreeSet::new();
    let promote = step_of_channel(channel);
    let steps = roles.roles.contains_key(EVAL).then_some(EVAL).into_iter().chain([promote.as_str()]);
    for step in steps {
        let role = role_for(roles, step).map_err(untrusted)?;
        let barred = |name: &str| {
            (role.distinct_from.contains(BUILD) && name == builder)
                || (role.distinct_from.contains(EVAL) && evaluators.contains(name))
        };
        let counts = |a: &&Approved| a.role == step && role.keys.contains(&a.key) && valid(&a.key) && !barred(&a.key);
        let agreed: BTreeMap<&str, &Approved> = approvals.iter().filter(counts).map(|a| (a.key.as_str(), a)).collect();
        if agreed.len() < role.threshold {
            let may: Vec<&str> =
                role.keys.iter().map(String::as_str).filter(|name| valid(name) && !barred(name)).collect();
            return Err(lacking(step, role.threshold, &may, &agreed.keys().copied().collect::<Vec<_>>()));
        }
        evidence.extend(agreed.iter().map(|(name, a)| (format!("{step}:{name}"), a.digest.clone())));
        if step == EVAL {
            evaluators.extend(agreed.keys().map(|name| (*name).to_owned()));
        }
    }
    Ok(evidence)
}

fn lacking(step: &str, threshold: usize, may: &[&str], agreed: &[&str]) -> Error {
    let step = visible_line(step);
    let have = if agreed.is_empty() { "nobody did".to_owned() } else { format!("{} did", agreed.join(", ")) };
    if may.len() < threshold {
        let reason = format!("{step} needs {threshold} approvals, and only {} keys may give one", may.len());
        return Error::untrusted(reason, "change the trust policy");
    }
    let reason = format!("{step} needs {threshold} of {} to approve, and {have}", may.join(", "));
    Error::Unapproved { reason, hint: "`limbeck approve` gives an approval; then promote again".to_owned() }
}
