//! What a person relies on when a store has a trust policy: nothing serves a channel without the keys that the policy asks for, a
//! revoked key counts for nothing from the entry on that is named, and nobody but the root keys changes the policy.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Home, artifact, home, promotion};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::keys::{self, SigningKey, public_pem};
use limbeck_artifact::manifest::SIGNATURE_FILE_NAME;
use limbeck_artifact::store::{LogEntry, Operation, Promotion, Rollback};
use limbeck_artifact::trust::{Approval, SignedPolicy, TrustPolicy};
use limbeck_artifact::{Error, oms};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const AT: &str = "2026-01-02T03:04:05Z";

struct Keys(BTreeMap<&'static str, SigningKey>);

impl Keys {
    fn new() -> Keys {
        Keys(["ci", "ann", "ben", "eve"].map(|name| (name, keys::generate().unwrap())).into())
    }

    fn of(&self, name: &str) -> &SigningKey {
        &self.0[name]
    }

    /// A policy of `ci`, `ann` and `ben`: ci builds, ann and ben are root. `rest` are the other roles and what is said of keys.
    fn policy(&self, version: u64, root: usize, extra: &[(&str, &str)], roles: &str) -> String {
        let mut text = format!("version = {version}\n[root]\nkeys = [\"ann\", \"ben\"]\nthreshold = {root}\n");
        for name in ["ci", "ann", "ben"] {
            let more = extra.iter().find(|(of, _)| *of == name).map_or("", |(_, more)| more);
            let pem = public_pem(self.of(name).verifying_key());
            text.push_str(&format!("[key.{name}]\npublic_key = \"\"\"\n{pem}\"\"\"\n{more}\n"));
        }
        text + "[role.build]\nkeys = [\"ci\"]\n" + roles
    }

    fn signed(&self, text: &str, by: &[&str]) -> SignedPolicy {
        let sign = |name: &&str| serde_json::from_slice(&SignedPolicy::sign(text, self.of(name)).unwrap()).unwrap();
        SignedPolicy::new(Path::new("trust.toml"), text, by.iter().map(sign).collect()).unwrap()
    }
}

const TWO_OF_THREE: &str = "
[role.\"promote:staging\"]
keys = [\"ci\", \"ann\", \"ben\"]
threshold = 2
distinct_from = [\"build\"]
";

impl Home {
    /// A version that `key` signed.
    fn signed(&self, version: &str, key: &SigningKey) -> String {
        let folder = self.dir.path().join(format!("artifact-{version}"));
        let manifest = artifact(&folder, "quickstart", version);
        fs::remove_file(folder.join(SIGNATURE_FILE_NAME)).unwrap();
        oms::sign_dir(&folder, &folder.join(SIGNATURE_FILE_NAME), key).unwrap();
        self.store.put_artifact(&folder, &manifest).unwrap()
    }

    fn install(&self, policy: &SignedPolicy) -> limbeck_artifact::Result<LogEntry> {
        self.store.install_trust(policy, "ann", AT)
    }

    fn approve(&self, version: &str, role: &str, key: &SigningKey) -> limbeck_artifact::Result<()> {
        self.store.approve(&approval(version, role).sign(key).unwrap()).map(|_| ())
    }
}

fn approval(version: &str, role: &str) -> Approval {
    Approval {
        role: role.to_owned(),
        model: "quickstart".to_owned(),
        version: version.to_owned(),
        at: AT.to_owned(),
        policy: sha256_hex(b"policy"),
    }
}

fn rollback() -> Rollback {
    let (model, channel) = ("quickstart".to_owned(), "staging".to_owned());
    Rollback { model, channel, to: None, evidence: BTreeMap::new(), by: "ops".to_owned(), at: AT.to_owned() }
}

fn unapproved(result: limbeck_artifact::Result<LogEntry>) -> String {
    match result.unwrap_err() {
        Error::Unapproved { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

fn untrusted<T: std::fmt::Debug>(result: limbeck_artifact::Result<T>) -> String {
    match result.unwrap_err() {
        Error::Untrusted { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn a_channel_serves_what_enough_keys_approved() {
    let (h, keys) = (home(), Keys::new());
    let ci = keys.of("ci");
    h.install(&keys.signed(&keys.policy(1, 1, &[], TWO_OF_THREE), &["ann"])).unwrap();
    let (one, two) = (h.signed("1.0.0", ci), h.signed("2.0.0", ci));

    let reason = unapproved(h.store.promote(promotion(&one, "ci")));
    assert_eq!(reason, "promote:staging needs 2 of ann, ben to approve, and nobody did", "ci signed it");
    h.approve(&one, "promote:staging", ci).unwrap();
    h.approve(&one, "promote:staging", keys.of("ann")).unwrap();
    h.approve(&one, "promote:staging", keys.of("ann")).unwrap();
    h.approve(&two, "promote:staging", keys.of("ben")).unwrap();
    let reason = unapproved(h.store.promote(promotion(&one, "ci")));
    assert_eq!(reason, "promote:staging needs 2 of ann, ben to approve, and ann did");
    assert!(h.store.channels().unwrap().is_empty());

    h.approve(&one, "promote:staging", keys.of("ben")).unwrap();
    let entry = h.store.promote(promotion(&one, "ci")).unwrap();
    assert_eq!(entry.evidence["builder"], keys::key_id(ci.verifying_key()));
    let named: Vec<&String> = entry.evidence.keys().collect();
    assert_eq!(named, ["builder", "by", "promote:staging:ann", "promote:staging:ben", "trust"]);
    assert_eq!(h.store.promote(promotion(&one, "ci")).unwrap(), entry, "nothing new, no entry");
    let trusted = h.store.trusted("quickstart", "staging").unwrap().unwrap();
    assert_eq!((trusted.builder.as_str(), &trusted.key), ("ci", ci.verifying_key()));
    assert_eq!(h.problems(), [""; 0]);

    // Nobody was given production, and a name without a role approves nothing.
    let production = Promotion { channel: "production".to_owned(), ..promotion(&one, "ci") };
    assert!(untrusted(h.store.promote(production)).contains("gives nobody the role promote:production"));
    assert!(untrusted(h.approve(&one, "eval", keys.of("ann"))).contains("gives nobody the role eval"));
    assert!(untrusted(h.approve(&one, "promote:staging", keys.of("eve"))).contains("signed by no key"));
}

#[test]
fn only_builders_sign_and_gates_are_vouched_for() {
    let (h, keys) = (home(), Keys::new());
    let roles =
        "[role.eval]\nkeys = [\"ben\"]\n[role.promote]\nkeys = [\"ann\", \"ben\"]\ndistinct_from = [\"eval\"]\n";
    h.install(&keys.signed(&keys.policy(1, 1, &[], roles), &["ben"])).unwrap();
    for (signer, reason) in [("eve", "signed by no key of the trust policy"), ("ann", "does not have the role build")] {
        let version = h.signed(signer, keys.of(signer));
        assert!(untrusted(h.store.promote(promotion(&version, "ci"))).contains(reason));
    }
    let version = h.signed("1.0.0", keys.of("ci"));
    h.approve(&version, "promote:staging", keys.of("ben")).unwrap();
    assert!(unapproved(h.store.promote(promotion(&version, "ci"))).starts_with("eval needs 1 of ben"));
    h.approve(&version, "eval", keys.of("ben")).unwrap();
    let reason = unapproved(h.store.promote(promotion(&version, "ci")));
    assert_eq!(reason, "promote:staging needs 1 of ann to approve, and nobody did", "ben vouched for the gates");
    h.approve(&version, "promote:staging", keys.of("ann")).unwrap();
    h.store.promote(promotion(&version, "ci")).unwrap();
    // A file that was changed in the store is not what was approved.
    let blob = h.store.resolve("quickstart", "staging").unwrap().join("model.gguf");
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, "weights of 6.6.6").unwrap();
    let again = Promotion { channel: "other".to_owned(), ..promotion(&version, "ci") };
    assert!(untrusted(h.store.promote(again)).contains("is not what ci signed"));
}

#[test]
fn a_revoked_key_counts_for_nothing_from_that_entry_on() {
    let (h, keys) = (home(), Keys::new());
    let roles = "[role.promote]\nkeys = [\"ann\", \"ben\"]\n";
    h.install(&keys.signed(&keys.policy(1, 2, &[], roles), &["ann", "ben"])).unwrap();
    let versions = ["1.0.0", "2.0.0", "3.0.0"].map(|v| h.signed(v, keys.of("ci")));
    for (version, by) in versions.iter().zip(["ben", "ann", "ben"]) {
        h.approve(version, "promote:staging", keys.of(by)).unwrap();
        h.store.promote(promotion(version, "ci")).unwrap();
    }
    // Entries 2 and 4 rest on ben's word, 3 on ann's. Her key is found to be lost since entry 3.
    let next = keys.policy(2, 1, &[("ann", "revoked_at_seq = 3")], roles);
    assert!(untrusted(h.install(&keys.signed(&next, &["ann"]))).contains("2 of the present policy's root keys"));
    h.install(&keys.signed(&next, &["ann", "ben"])).unwrap();
    assert!(h.store.trusted("quickstart", "staging").unwrap().is_some(), "ben's word stands");
    let problems = h.problems();
    assert!(problems.len() == 1 && problems[0].starts_with("log entry 3 is not to be trusted"), "{problems:?}");
    assert!(h.store.rollback(rollback()).is_err(), "the version before rests on the lost key");
    let first = Rollback { to: Some(versions[0].clone()), ..rollback() };
    assert_eq!(h.store.rollback(first).unwrap().op, Operation::Rollback);
    assert_eq!(h.store.trusted("quickstart", "staging").unwrap().unwrap().version.version, "1.0.0");
    assert!(untrusted(h.approve(&versions[1], "promote:staging", keys.of("ann"))).contains("revoked"));
}

#[test]
fn a_policy_changes_by_its_root_keys_alone() {
    let (h, keys) = (home(), Keys::new());
    let first = keys.policy(1, 2, &[], TWO_OF_THREE);
    for (text, by, reason) in [
        (keys.policy(2, 1, &[], ""), vec!["ann"], "begin with 1"),
        (first.clone(), vec!["ann"], "2 of its own root keys (ann, ben) have to sign it, and 1 did"),
        (first.clone(), vec!["ann", "ann"], "and 1 did"),
        (first.clone(), vec!["ann", "ci", "eve"], "and 1 did"),
    ] {
        assert!(untrusted(h.install(&keys.signed(&text, &by))).contains(reason));
    }
    let entry = h.install(&keys.signed(&first, &["ann", "ben"])).unwrap();
    assert_eq!((entry.seq, entry.op, entry.from.clone()), (1, Operation::Trust, None));
    assert_eq!(h.install(&keys.signed(&first, &["ben", "ann"])).unwrap(), entry);

    let second = keys.policy(2, 1, &[], TWO_OF_THREE);
    let without_ci = second.replace("[key.ci]", "[key.cj]").replace("\"ci\"", "\"cj\"");
    for (text, by, reason) in [
        (keys.policy(3, 1, &[], ""), vec!["ann", "ben"], "version 1 is in force"),
        (second.clone(), vec!["ann"], "2 of the present policy's root keys"),
        (without_ci, vec!["ann", "ben"], "no longer names the key ci"),
    ] {
        assert!(untrusted(h.install(&keys.signed(&text, &by))).contains(reason));
    }
    // A signature is of one text.
    let mut borrowed = keys.signed(&second, &[]);
    borrowed.signatures = keys.signed(&first, &["ann", "ben"]).signatures;
    assert!(untrusted(h.install(&borrowed)).contains("what ann signed is another policy"));
    h.install(&keys.signed(&second, &["ann", "ben"])).unwrap();

    // Somebody who can write to the store writes an entry of their own.
    let mine = keys.signed(&keys.policy(3, 1, &[], "[role.promote]\nkeys = [\"ci\"]\n"), &[]).encode();
    let digest = sha256_hex(mine.as_bytes());
    fs::write(h.at().join(format!("trust/policies/{digest}.json")), &mine).unwrap();
    let head = h.store.head().unwrap();
    let forged = LogEntry { seq: 3, prev: head.sha256, from: Some(entry.to.clone()), to: digest, ..entry };
    fs::write(h.entry(3), canonical_json(&serde_json::to_value(&forged).unwrap()) + "\n").unwrap();
    assert!(untrusted(h.store.trust()).contains("entry 3 is no change of the trust policy"));
    let version = h.signed("1.0.0", keys.of("ci"));
    assert!(h.store.promote(promotion(&version, "ci")).is_err());
    assert!(h.problems().iter().any(|p| p.contains("entry 3 is no change of the trust policy")));
}

#[test]
fn what_was_promoted_before_there_was_a_policy_is_promoted_again() {
    let (h, keys) = (home(), Keys::new());
    let version = h.signed("1.0.0", keys.of("ci"));
    h.store.promote(promotion(&version, "ci")).unwrap();
    assert_eq!(h.store.trusted("quickstart", "staging").unwrap(), None, "no policy, nothing to ask");
    assert!(h.approve(&version, "promote:staging", keys.of("ann")).is_err());
    h.install(&keys.signed(&keys.policy(1, 1, &[], "[role.promote]\nkeys = [\"ann\"]\n"), &["ann"])).unwrap();
    assert!(untrusted(h.store.trusted("quickstart", "staging")).contains("older than the trust policy"));
    h.approve(&version, "promote:staging", keys.of("ann")).unwrap();
    assert_eq!(h.store.promote(promotion(&version, "ci")).unwrap().seq, 3);
    assert!(h.store.trusted("quickstart", "staging").unwrap().is_some());
}

#[test]
fn no_changed_byte_makes_another_approval() {
    let keys = Keys::new();
    let policy = TrustPolicy::parse(&keys.policy(1, 1, &[], TWO_OF_THREE)).unwrap();
    let version = sha256_hex(b"version");
    let bytes = approval(&version, "promote:staging").sign(keys.of("ann")).unwrap();
    let opened = Approval::open(&bytes, &policy).unwrap();
    assert_eq!(opened, ("ann".to_owned(), approval(&version, "promote:staging")));
    let mut same = 0;
    for i in 0..bytes.len() {
        for flip in [1, 0x20, 0x80] {
            let mut changed = bytes.clone();
            changed[i] ^= flip;
            match Approval::open(&changed, &policy) {
                Err(_) => {}
                Ok(found) => {
                    assert_eq!(found, opened, "byte {i} ^ {flip}");
                    same += 1;
                }
            }
        }
    }
    assert_eq!(same, 0, "of {} bytes", bytes.len());
}

#[test]
fn a_policy_that_could_not_work_is_refused_when_it_is_read() {
    let keys = Keys::new();
    let good = keys.policy(1, 1, &[("ben", "valid_from_seq = 4\nrevoked_at_seq = 9")], TWO_OF_THREE);
    let policy = TrustPolicy::parse(&good).unwrap();
    assert_eq!(TrustPolicy::parse(&policy.render()).unwrap(), policy);
    let ben = &policy.keys["ben"];
    assert_eq!([3, 4, 8, 9].map(|seq| ben.is_valid_at(seq)), [false, true, true, false]);
    let ann = public_pem(keys.of("ann").verifying_key());
    for (from, to, reason) in [
        ("version = 1", "version = 0", "the first policy has version 1"),
        ("version = 1", "version = 1\nexpires = 3", "unknown field `expires`"),
        ("threshold = 1", "threshold = 3", "root needs 3 of 2 keys"),
        ("threshold = 2", "threshold = 0", "promote:staging needs 0 of 3 keys"),
        ("[role.build]", "[role.builder]", "there is no role builder"),
        ("[role.build]", "[role.promote]", "names nobody who may build"),
        ("keys = [\"ci\"]", "keys = [\"cj\"]", "build names the key cj"),
        ("keys = [\"ci\"]", "keys = [\"ci\", \"ann\"]\nthreshold = 2", "an artifact has one signature"),
        ("[\"build\"]", "[\"promote\"]", "not from build or eval"),
        ("revoked_at_seq = 9", "revoked_at_seq = 2", "revoked before it is valid"),
        ("[key.ci]", "[key.\"c i\"]", "no name for a key"),
        ("-----BEGIN PUBLIC KEY-----", "-----BEGIN KEY-----", "is not the PEM of a P-256 key"),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        let e = TrustPolicy::parse(&text).unwrap_err();
        assert!(e.contains(reason), "{to}: {e}");
    }
    let twice = format!("{good}[key.anna]\npublic_key = \"\"\"\n{ann}\"\"\"\n");
    assert!(TrustPolicy::parse(&twice).unwrap_err().contains("are the same key"));
}
