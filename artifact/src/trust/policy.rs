//! The policy as people write it: TOML, every name checked. A policy that could never admit anything is refused when it is
//! read, not when it is needed.

use super::{BUILD, EVAL, PROMOTE};
use crate::keys::{VerifyingKey, key_id, public_pem};
use crate::untrusted::visible_line;
use pkcs8::DecodePublicKey;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// More text than this is no policy.
const MAX_BYTES: usize = 1 << 20;

/// Who may do what. Keys go by the names that the policy gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustPolicy {
    /// 1 for the first; the next one has one more.
    pub version: u64,
    /// Who may change the policy.
    pub root: Role,
    pub keys: BTreeMap<String, TrustedKey>,
    /// `build`, `eval`, `promote`, `promote:CHANNEL`.
    pub roles: BTreeMap<String, Role>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    pub key: VerifyingKey,
    /// As [`key_id`] has it.
    pub id: String,
    /// The first entry of the log for which the key counts.
    pub valid_from_seq: u64,
    /// The first entry for which it does no longer.
    pub revoked_at_seq: Option<u64>,
}

impl TrustedKey {
    /// Whether the key counts for entry `seq` of the log.
    pub fn is_valid_at(&self, seq: u64) -> bool {
        seq >= self.valid_from_seq && self.revoked_at_seq.is_none_or(|revoked| seq < revoked)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    pub keys: BTreeSet<String>,
    /// So many different keys have to agree.
    #[serde(default = "one")]
    pub threshold: usize,
    /// A key that acted in one of these roles for the same artifact does not count here.
    #[serde(default)]
    pub distinct_from: BTreeSet<String>,
}

fn one() -> usize {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u64,
    root: Role,
    key: BTreeMap<String, KeyEntry>,
    role: BTreeMap<String, Role>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    public_key: String,
    #[serde(default)]
    valid_from_seq: u64,
    revoked_at_seq: Option<u64>,
}

impl TrustPolicy {
    /// Reads a policy.
    ///
    /// # Errors
    /// What is wrong, in words: unknown keys of the file, roles without keys, thresholds that cannot be reached.
    pub fn parse(text: &str) -> Result<TrustPolicy, String> {
        if text.len() > MAX_BYTES {
            return Err("it is longer than a mebibyte".to_owned());
        }
        let file: File = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        let mut keys = BTreeMap::new();
        for (name, entry) in file.key {
            let key = VerifyingKey::from_public_key_pem(&entry.public_key)
                .map_err(|_| format!("the public_key of {} is not the PEM of a P-256 key", visible_line(&name)))?;
            let KeyEntry { valid_from_seq, revoked_at_seq, .. } = entry;
            keys.insert(name, TrustedKey { id: key_id(&key), key, valid_from_seq, revoked_at_seq });
        }
        let policy = TrustPolicy { version: file.version, root: file.root, keys, roles: file.role };
        policy.check().map(|()| policy)
    }

    fn check(&self) -> Result<(), String> {
        if self.version == 0 {
            return Err("its version is 0; the first policy has version 1".to_owned());
        }
        let mut ids: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, key) in &self.keys {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
                return Err(format!(
                    "{:?} is no name for a key: letters, digits, '-', '_' and '.'",
                    visible_line(name)
                ));
            }
            if let Some(other) = ids.insert(&key.id, name) {
                return Err(format!("{other} and {name} are the same key"));
            }
            if key.revoked_at_seq.is_some_and(|revoked| revoked < key.valid_from_seq) {
                return Err(format!("the key {name} is revoked before it is valid"));
            }
        }
        self.check_role("root", &self.root)?;
        for (name, role) in &self.roles {
            let is_channel = name.strip_prefix("promote:").is_some_and(|channel| !channel.is_empty());
            if ![BUILD, EVAL, PROMOTE].contains(&name.as_str()) && !is_channel {
                let known = "build, eval, promote and promote:CHANNEL";
                return Err(format!("there is no role {}; the roles are {known}", visible_line(name)));
            }
            self.check_role(name, role)?;
        }
        match self.roles.get(BUILD) {
            None => Err("it names nobody who may build: add [role.build] with keys".to_owned()),
            Some(build) if build.threshold != 1 => {
                Err("the threshold of build is not 1, but an artifact has one signature".to_owned())
            }
            Some(_) => Ok(()),
        }
    }

    fn check_role(&self, name: &str, role: &Role) -> Result<(), String> {
        let name = visible_line(name);
        if let Some(unknown) = role.keys.iter().find(|key| !self.keys.contains_key(*key)) {
            return Err(format!("{name} names the key {}, which has no [key] table", visible_line(unknown)));
        }
        if role.threshold == 0 || role.threshold > role.keys.len() {
            return Err(format!("{name} needs {} of {} keys, which cannot be", role.threshold, role.keys.len()));
        }
        match role.distinct_from.iter().find(|other| ![BUILD, EVAL].contains(&other.as_str()) || **other == name) {
            Some(other) => {
                Err(format!("{name} is to be distinct from {}, not from build or eval", visible_line(other)))
            }
            None => Ok(()),
        }
    }

    /// The policy as TOML, as [`TrustPolicy::parse`] reads it.
    pub fn render(&self) -> String {
        let list = |names: &BTreeSet<String>| {
            format!("[{}]", names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", "))
        };
        let role = |role: &Role| {
            let distinct = match role.distinct_from.is_empty() {
                true => String::new(),
                false => format!("distinct_from = {}\n", list(&role.distinct_from)),
            };
            format!("keys = {}\nthreshold = {}\n{distinct}", list(&role.keys), role.threshold)
        };
        let mut text = format!(
            "# Whose signatures count. The next version has one more here, and is signed by the root keys of both.\n\
             version = {}\n\n# Who may change this policy.\n[root]\n{}",
            self.version,
            role(&self.root)
        );
        for (name, key) in &self.keys {
            text.push_str(&format!("\n[key.\"{name}\"]\npublic_key = \"\"\"\n{}\"\"\"\n", public_pem(&key.key)));
            if key.valid_from_seq > 0 {
                text.push_str(&format!("valid_from_seq = {}\n", key.valid_from_seq));
            }
            if let Some(revoked) = key.revoked_at_seq {
                text.push_str(&format!("revoked_at_seq = {revoked}\n"));
            }
        }
        text.push_str(
            "\n# build signs artifacts, eval vouches for their gates, promote approves for channels; promote:CHANNEL is a\n\
             # channel's own. threshold: so many different keys. distinct_from = [\"build\"]: not the key that signed it.\n",
        );
        for (name, of) in &self.roles {
            text.push_str(&format!("\n[role.\"{name}\"]\n{}", role(of)));
        }
        text
    }

    /// The key with this id, and its name.
    pub fn key_by_id(&self, id: &str) -> Option<(&str, &TrustedKey)> {
        self.keys.iter().find(|(_, key)| key.id == id).map(|(name, key)| (name.as_str(), key))
    }

    /// Whether `next` may take this one's place, its signatures aside.
    ///
    /// # Errors
    /// Why not.
    pub fn check_next(&self, next: &TrustPolicy) -> Result<(), String> {
        if next.version != self.version + 1 {
            return Err(format!("its version is {}, and version {} is in force", next.version, self.version));
        }
        for (name, key) in &self.keys {
            let Some(kept) = next.keys.get(name) else {
                return Err(format!("it no longer names the key {name}: set revoked_at_seq instead"));
            };
            if kept.id != key.id {
                return Err(format!("{name} is another key now: give the new one a new name"));
            }
            if key.revoked_at_seq.is_some_and(|was| kept.revoked_at_seq.is_none_or(|now| now > was)) {
                return Err(format!("{name} was revoked, and is to be valid again: make a new key"));
            }
        }
        Ok(())
    }
}
