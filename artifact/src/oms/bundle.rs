//! The bytes of a signature: a Sigstore bundle around a DSSE envelope around an in-toto statement. Everything unknown,
//! doubled or spelled in two ways is refused.

use crate::keys::{VerifyingKey, key_id};
use crate::relpath::SafeRelPath;
use crate::signer::Signer;
use crate::strict_json;
use base64ct::{Base64, Encoding};
use p256::ecdsa::Signature;
use p256::ecdsa::signature::Verifier;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bundle {
    media_type: String,
    verification_material: VerificationMaterial,
    dsse_envelope: DsseEnvelope,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VerificationMaterial {
    public_key: PublicKey,
    #[serde(default)]
    tlog_entries: Vec<Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicKey {
    hint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DsseEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<DsseSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DsseSignature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

/// A bundle's parts, not yet authenticated.
struct Envelope {
    payload: Vec<u8>,
    /// ASN.1 DER.
    signature: Vec<u8>,
    /// What the bundle says of its key.
    hint: String,
}

/// Why a bundle does not say what it seems to.
pub(crate) enum Unopened {
    Malformed(String),
    /// It names another key than the trusted one.
    OtherKey {
        found: String,
    },
    /// Changed, or signed by another key than it says.
    Signature,
}

/// Signs a statement.
pub(crate) fn seal(payload: &[u8], signer: &dyn Signer) -> crate::Result<Vec<u8>> {
    let signature = signer.sign_der(&pae(payload))?;
    encode(payload, &signature, &key_id(signer.public()))
        .map_err(|e| crate::Error::refused(format!("the signature cannot be written: {e}"), "this is a defect"))
}

/// The statement in a bundle, once its signature is known to be `key`'s.
pub(crate) fn open(bytes: &[u8], key: &VerifyingKey) -> Result<Vec<u8>, Unopened> {
    let envelope = decode(bytes).map_err(Unopened::Malformed)?;
    if envelope.hint != key_id(key) {
        return Err(Unopened::OtherKey { found: envelope.hint });
    }
    let signature = Signature::from_der(&envelope.signature).map_err(|_| Unopened::Signature)?;
    key.verify(&pae(&envelope.payload), &signature).map_err(|_| Unopened::Signature)?;
    Ok(envelope.payload)
}

/// What a bundle says of its key; nothing proves it.
pub(crate) fn hint(bytes: &[u8]) -> Option<String> {
    decode(bytes).ok().map(|envelope| envelope.hint)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    pub predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Predicate {
    serialization: Serialization,
    pub resources: Vec<Resource>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    /// What the signer left out. Never obeyed: the verifier decides what may be unsigned.
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resource {
    name: String,
    algorithm: String,
    pub digest: String,
}

impl Resource {
    pub fn new(name: &str, digest: &str) -> Resource {
        Resource { name: name.to_owned(), algorithm: "sha256".to_owned(), digest: digest.to_owned() }
    }
}

impl Statement {
    pub fn new(name: &str, root: &str, ignore_paths: Vec<String>, resources: Vec<Resource>) -> Statement {
        Statement {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject { name: name.to_owned(), digest: SubjectDigest { sha256: root.to_owned() } }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                serialization: Serialization {
                    method: "files".to_owned(),
                    hash_type: "sha256".to_owned(),
                    allow_symlinks: false,
                    ignore_paths,
                },
                resources,
            },
        }
    }

    pub fn parse(payload: &[u8]) -> Result<Statement, String> {
        let statement: Statement = strict_json::from_slice(payload).map_err(|e| e.to_string())?;
        let how = &statement.predicate.serialization;
        for (what, found, wanted) in [
            ("type", &statement.kind, STATEMENT_TYPE),
            ("predicate type", &statement.predicate_type, PREDICATE_TYPE),
            ("method", &how.method, "files"),
            ("hash type", &how.hash_type, "sha256"),
        ] {
            expect(what, found, wanted)?;
        }
        if how.allow_symlinks {
            return Err("it allows symlinks".to_owned());
        }
        if statement.subject.len() != 1 {
            return Err(format!("it has {} subjects; one is expected", statement.subject.len()));
        }
        Ok(statement)
    }

    /// The digest of the whole, as the statement has it.
    pub fn root(&self) -> Option<&String> {
        self.subject.first().map(|s| &s.digest.sha256)
    }

    /// The signed files: relative path to SHA-256. At least one.
    pub fn files(&self) -> Result<BTreeMap<String, String>, String> {
        let mut files = BTreeMap::new();
        for resource in &self.predicate.resources {
            expect("algorithm", &resource.algorithm, "sha256")?;
            let name = SafeRelPath::parse(&resource.name).map_err(|e| e.to_string())?;
            if files.insert(name.as_str().to_owned(), resource.digest.clone()).is_some() {
                return Err(format!("it names {name} twice"));
            }
        }
        if files.is_empty() { Err("it signs no file".to_owned()) } else { Ok(files) }
    }
}

/// DSSE's pre-authentication encoding: what is signed.
fn pae(payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

fn encode(payload: &[u8], signature_der: &[u8], key_id: &str) -> serde_json::Result<Vec<u8>> {
    let signature = DsseSignature { sig: Base64::encode_string(signature_der), keyid: String::new() };
    serde_json::to_vec(&Bundle {
        media_type: BUNDLE_TYPE.to_owned(),
        verification_material: VerificationMaterial {
            public_key: PublicKey { hint: key_id.to_owned() },
            tlog_entries: Vec::new(),
        },
        dsse_envelope: DsseEnvelope {
            payload: Base64::encode_string(payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![signature],
        },
    })
}

/// Takes a bundle apart. Errors are reasons in words.
fn decode(bytes: &[u8]) -> Result<Envelope, String> {
    let bundle: Bundle = strict_json::from_slice(bytes).map_err(|e| e.to_string())?;
    expect("media type", &bundle.media_type, BUNDLE_TYPE)?;
    expect("payload type", &bundle.dsse_envelope.payload_type, PAYLOAD_TYPE)?;
    if !bundle.verification_material.tlog_entries.is_empty() {
        return Err("it has transparency log entries, which nobody checked".to_owned());
    }
    let [signature] = bundle.dsse_envelope.signatures.as_slice() else {
        return Err("it has not exactly one signature".to_owned());
    };
    expect("keyid", &signature.keyid, "")?;
    Ok(Envelope {
        payload: from_base64("payload", &bundle.dsse_envelope.payload)?,
        signature: from_base64("signature", &signature.sig)?,
        hint: bundle.verification_material.public_key.hint,
    })
}

fn expect(what: &str, found: &str, wanted: &str) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("its {what} is {found:?}, not {wanted:?}")) }
}

/// base64ct takes one spelling only: padded, no white space, slack bits zero.
fn from_base64(what: &str, text: &str) -> Result<Vec<u8>, String> {
    Base64::decode_vec(text).map_err(|_| format!("its {what} is not canonical base64"))
}
