//! An approval: a key's word that a version of an artifact may take a step. An in-toto Simple
//! Verification Result (svr/v0.2) whose property names the role.

use super::{PROMOTE, TrustPolicy};
use crate::Result;
use crate::digest::{canonical_json, is_sha256};
use crate::keys::key_id;
use crate::oms::bundle::{self, Unopened};
use crate::signer::Signer;
use crate::strict_json;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://in-toto.io/attestation/svr/v0.2";
const PROPERTY: &str = "LIMBECK_APPROVED:";

/// What a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// `eval`, or `promote:CHANNEL`.
    pub role: String,
    /// The artifact's name.
    pub model: String,
    /// The version, by its digest: the names and digests of all its files, its signature among them.
    pub version: String,
    /// RFC 3339.
    pub at: String,
    /// The policy that was in force, by digest: what the one who approved looked at.
    pub policy: String,
}

/// The step of promoting to a channel, as approvals name it.
pub fn step_of_channel(channel: &str) -> String {
    format!("{PROMOTE}:{channel}")
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Named>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    digest: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Predicate {
    verifier: Verifier,
    time_created: String,
    policies: Vec<Named>,
    properties: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verifier {
    id: String,
}

fn named(name: &str, sha256: &str) -> Named {
    Named { name: name.to_owned(), digest: BTreeMap::from([("sha256".to_owned(), sha256.to_owned())]) }
}

impl Approval {
    /// The approval as a bundle.
    ///
    /// # Errors
    /// When the signer fails.
    pub fn sign(&self, signer: &dyn Signer) -> Result<Vec<u8>> {
        let statement = Statement {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![named(&self.model, &self.version)],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                verifier: Verifier { id: format!("urn:limbeck:key:{}", key_id(signer.public())) },
                time_created: self.at.clone(),
                policies: vec![named("trust-policy", &self.policy)],
                properties: vec![format!("{PROPERTY}{}", self.role)],
            },
        };
        let value = serde_json::to_value(&statement)
            .map_err(|e| crate::Error::refused(format!("the approval cannot be written: {e}"), "this is a defect"))?;
        bundle::seal(canonical_json(&value).as_bytes(), signer)
    }

    /// The approval in a bundle, and the name of the key that signed it.
    ///
    /// # Errors
    /// When no key of the policy signed it, or it is no approval. Whether the key may say so is asked apart.
    pub fn open(bytes: &[u8], policy: &TrustPolicy) -> std::result::Result<(String, Approval), String> {
        for (name, key) in &policy.keys {
            match bundle::open(bytes, &key.key) {
                Err(Unopened::OtherKey { .. }) => {}
                Err(Unopened::Malformed(reason)) => return Err(format!("it is no bundle: {reason}")),
                Err(Unopened::Signature) => return Err(format!("it is signed in the name of {name}, not by it")),
                Ok(payload) => return Ok((name.clone(), Approval::parse(&payload)?)),
            }
        }
        Err("it is signed by no key of the policy".to_owned())
    }

    fn parse(payload: &[u8]) -> std::result::Result<Approval, String> {
        let wrong = |what: &str| Err(format!("its statement {what}"));
        let statement: Statement = strict_json::from_slice(payload).map_err(|e| format!("it is no approval: {e}"))?;
        if statement.kind != STATEMENT_TYPE || statement.predicate_type != PREDICATE_TYPE {
            return wrong("is of another kind");
        }
        let (Ok([subject]), Ok([policy]), Ok([property])) = (
            <[Named; 1]>::try_from(statement.subject),
            <[Named; 1]>::try_from(statement.predicate.policies),
            <[String; 1]>::try_from(statement.predicate.properties),
        ) else {
            return wrong("names not exactly one artifact, policy and property");
        };
        let sha256 =
            |named: &Named| named.digest.get("sha256").filter(|d| is_sha256(d) && named.digest.len() == 1).cloned();
        let (Some(version), Some(policy_digest)) = (sha256(&subject), sha256(&policy)) else {
            return wrong("names no SHA-256");
        };
        let Some(role) = property.strip_prefix(PROPERTY) else { return wrong("approves nothing") };
        Ok(Approval {
            role: role.to_owned(),
            model: subject.name,
            version,
            at: statement.predicate.time_created,
            policy: policy_digest,
        })
    }
}
