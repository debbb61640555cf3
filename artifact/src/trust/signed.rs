//! A policy with its root keys' signatures, as the store keeps it: one JSON object whose digest the log names.

use super::TrustPolicy;
use crate::digest::{canonical_json, sha256_hex};
use crate::oms::bundle::{self, Unopened};
use crate::signer::Signer;
use crate::strict_json;
use crate::untrusted::visible_line;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "urn:limbeck:trust-policy:v1";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPolicy {
    pub policy: TrustPolicy,
    /// The policy's TOML, to the byte.
    pub text: String,
    /// A bundle a signature.
    pub signatures: Vec<Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    policy: String,
    signatures: Vec<Value>,
}

impl SignedPolicy {
    /// A policy and the bundles that sign it. What they are worth is asked apart.
    ///
    /// # Errors
    /// When the text is no policy; `path` is where it came from.
    pub fn new(path: &Path, text: &str, signatures: Vec<Value>) -> Result<SignedPolicy> {
        let policy = TrustPolicy::parse(text)
            .map_err(|reason| Error::invalid(path, reason, "`limbeck trust new` writes one to start from"))?;
        Ok(SignedPolicy { policy, text: text.to_owned(), signatures })
    }

    /// As the store keeps it.
    pub fn encode(&self) -> String {
        canonical_json(&json!({"policy": self.text, "signatures": self.signatures})) + "\n"
    }

    pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<SignedPolicy> {
        let stored: Stored = strict_json::from_slice(bytes)
            .map_err(|e| Error::invalid(path, format!("it is no signed policy: {e}"), "restore it from a copy"))?;
        SignedPolicy::new(path, &stored.policy, stored.signatures)
    }

    /// A signature of a policy's text, as a bundle.
    ///
    /// # Errors
    /// When the signer fails.
    pub fn sign(text: &str, signer: &dyn Signer) -> Result<Vec<u8>> {
        let statement = json!({
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "trust-policy", "digest": {"sha256": sha256_hex(text.as_bytes())}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {},
        });
        bundle::seal(canonical_json(&statement).as_bytes(), signer)
    }

    /// Those of `by`'s root keys that signed this policy, by name.
    ///
    /// # Errors
    /// A signature in a root key's name that is not its own.
    pub fn signers(&self, by: &TrustPolicy) -> std::result::Result<BTreeSet<String>, String> {
        let mut signers = BTreeSet::new();
        for signature in &self.signatures {
            for name in &by.root.keys {
                let Some(key) = by.keys.get(name) else { continue };
                match bundle::open(signature.to_string().as_bytes(), &key.key) {
                    Err(Unopened::OtherKey { .. }) => {}
                    Err(Unopened::Malformed(reason)) => return Err(format!("a signature is no bundle: {reason}")),
                    Err(Unopened::Signature) => return Err(format!("the signature of {name} does not verify")),
                    Ok(payload) => {
                        self.check_statement(&payload).map_err(|reason| format!("what {name} signed is {reason}"))?;
                        signers.insert(name.clone());
                    }
                }
            }
        }
        Ok(signers)
    }

    fn check_statement(&self, payload: &[u8]) -> std::result::Result<(), String> {
        let statement: Value = strict_json::from_slice(payload).map_err(|e| format!("no statement: {e}"))?;
        let expected = json!([{"name": "trust-policy", "digest": {"sha256": sha256_hex(self.text.as_bytes())}}]);
        if statement["_type"] != STATEMENT_TYPE || statement["predicateType"] != PREDICATE_TYPE {
            return Err(format!("no policy but {}", visible_line(statement["predicateType"].as_str().unwrap_or("?"))));
        }
        if statement["subject"] == expected { Ok(()) } else { Err("another policy".to_owned()) }
    }

    /// Whether this policy may follow on `current`, or be the first: its version, its keys, and the signatures of the root
    /// keys of both.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check_follows(&self, current: Option<&TrustPolicy>) -> std::result::Result<(), String> {
        match current {
            None if self.policy.version != 1 => {
                return Err(format!(
                    "its version is {}, and no policy is in force yet: begin with 1",
                    self.policy.version
                ));
            }
            None => {}
            Some(current) => current.check_next(&self.policy)?,
        }
        for (of, which) in [(Some(&self.policy), "its own"), (current, "the present policy's")] {
            let Some(of) = of else { continue };
            let signed = self.signers(of)?;
            if signed.len() < of.root.threshold {
                let names: Vec<&str> = of.root.keys.iter().map(String::as_str).collect();
                let (threshold, found) = (of.root.threshold, signed.len());
                return Err(format!(
                    "{threshold} of {which} root keys ({}) have to sign it, and {found} did",
                    names.join(", ")
                ));
            }
        }
        Ok(())
    }
}
