//! Each reader with what it needs around it: a folder in memory, a key, a signed folder or a store.
#![allow(clippy::unwrap_used, reason = "a harness that can't set itself up has nothing to fuzz")]

use crate::attacks;
use crate::gguf::{GgmlType, GgufFile, GgufWriter};
use crate::manifest::manifest;
use crate::safetensor::{self, SafetensorsFile};
use base64ct::{Base64, Encoding};
use limbeck_artifact::encryption::{Identities, MAGIC, Recipients, check_recipient, plain_bytes};
use limbeck_artifact::keys;
use limbeck_artifact::manifest::{ArtifactFile, ArtifactManifest};
use limbeck_artifact::oms::{Strictness, sign_dir, verify_dir};
use limbeck_artifact::schema::Schema;
use limbeck_artifact::store::{Promotion, Store};
use limbeck_artifact::trust::TrustPolicy;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const SCHEMA_TEXT: &str = r#"{"type": "object", "properties": {"time": {"type": ["string", "null"], "format": "time"},
"people": {"type": "integer", "minimum": 1}, "names": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z]"},
"maxItems": 2}, "area": {"enum": ["in", "out"]}}, "required": ["time"], "additionalProperties": false}"#;

const POLICY: &str = r#"version = 1
[root]
keys = ["ann"]
threshold = 1
[key.ann]
public_key = '''
PUBLIC'''
valid_from_seq = 1
[role.build]
keys = ["ann"]
threshold = 1
[role."promote:staging"]
keys = ["ann"]
threshold = 1
"#;

/// Of nobody: for what is encrypted here.
const IDENTITY: &str = "AGE-SECRET-KEY-1V2T9E4XFRZYW6FQX5JAYQKU0QLWW99UVXYR468PDLVNWQZRQ8UKQAVZWK7";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Bundle,
    Statement,
    Manifest,
    Log,
    Policy,
    Schema,
    Age,
    Gguf,
    Safetensors,
}

pub struct Reader {
    kind: Kind,
    /// Every input becomes a file here.
    dir: PathBuf,
    key: SigningKey,
    /// A valid bundle of `dir/signed`.
    bundle: Vec<u8>,
}

fn identity() -> Identities {
    Identities::parse(IDENTITY, "the harness".to_owned()).unwrap()
}

impl Reader {
    pub fn new(name: &str) -> Reader {
        let kind = match name {
            "bundle" => Kind::Bundle,
            "statement" => Kind::Statement,
            "manifest" => Kind::Manifest,
            "log" => Kind::Log,
            "policy" => Kind::Policy,
            "schema" => Kind::Schema,
            "age" => Kind::Age,
            "gguf" => Kind::Gguf,
            "safetensors" => Kind::Safetensors,
            other => panic!("no reader is called {other}"),
        };
        let root = std::env::var_os("LIMBECK_FUZZ_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = root.join(std::process::id().to_string());
        fs::create_dir_all(dir.join("signed")).unwrap();
        fs::write(dir.join("signed/model.gguf"), "weights").unwrap();
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let at = dir.join("bundle.sig");
        sign_dir(&dir.join("signed"), &at, &key).unwrap();
        let bundle = fs::read(&at).unwrap();
        Reader { kind, dir, key, bundle }
    }

    pub fn read(&self, data: &[u8]) {
        let file = |name: &str| {
            let path = self.dir.join(name);
            fs::write(&path, data).unwrap();
            path
        };
        match self.kind {
            // Whatever else a bundle says, it signs this one file or nothing.
            Kind::Bundle => self.verify(data),
            Kind::Statement => self.verify(&self.sealed(data)),
            Kind::Manifest => {
                file("manifest.json");
                if let Ok(manifest) = ArtifactManifest::load(&self.dir) {
                    let _ = manifest.check(&self.dir.join("signed"));
                    manifest
                        .files
                        .keys()
                        .for_each(|name| assert!(!name.starts_with('/') && name.split('/').all(|part| part != "..")));
                    let again = self.dir.join("again");
                    fs::create_dir_all(&again).unwrap();
                    manifest.save(&again).unwrap();
                    assert_eq!(ArtifactManifest::load(&again).unwrap(), manifest, "it is not what it was written as");
                }
            }
            Kind::Log => {
                let store = Store::open(&self.dir.join("store")).unwrap();
                fs::write(self.dir.join("store/log/0000000000000001.json"), data).unwrap();
                if store.log().is_ok() {
                    let _ = (store.channels(), store.head());
                }
            }
            Kind::Policy => {
                if let Ok(text) = std::str::from_utf8(data)
                    && let Ok(policy) = TrustPolicy::parse(text)
                {
                    let rendered = policy.render();
                    let back = TrustPolicy::parse(&rendered).expect("what is rendered reads back");
                    assert_eq!(back.render(), rendered);
                }
            }
            Kind::Schema => {
                let Ok(text) = std::str::from_utf8(data) else { return };
                let (schema, answer) = text.split_once('\0').unwrap_or((SCHEMA_TEXT, text));
                let Ok(schema) = Schema::parse(schema) else { return };
                if let Ok(mut grammar) = schema.grammar("")
                    && grammar.accepts(answer)
                {
                    assert!(schema.canonical_text(answer).is_ok(), "let through, and not valid");
                }
                if let Ok(canonical) = schema.canonical_text(answer) {
                    assert_eq!(schema.canonical_text(&canonical).as_deref(), Ok(canonical.as_str()), "no fixed point");
                }
            }
            Kind::Age => {
                // As a file, as what comes behind a header that is ours, as a key, and as a store's mark.
                self.open(data);
                let ours = self.age(b"");
                let behind = ours.windows(5).position(|at| at == b"\n--- ").unwrap();
                let end = behind + 1 + ours[behind + 1..].iter().position(|b| *b == b'\n').unwrap() + 1;
                self.open(&[&ours[..end], data].concat());
                self.open(&[MAGIC, data].concat());
                let text = String::from_utf8_lossy(data);
                let _ = (Identities::parse(&text, String::new()), check_recipient(&text));
                let dir = self.dir.join("marked");
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join("encryption.json"), data).unwrap();
                if let Ok(store) = Store::open(&dir) {
                    assert!(!store.recipients().unwrap().names().is_empty());
                }
            }
            Kind::Gguf => {
                if let Ok(file) = GgufFile::open(&file("model.gguf")) {
                    for tensor in file.tensors() {
                        if let Ok(bytes) = file.bytes(tensor) {
                            assert_eq!(bytes.len() as u64, tensor.n_bytes);
                        }
                        let whole = file.dequantize(tensor).map_err(|e| e.to_string());
                        let pieces: Result<Vec<Vec<f32>>, _> = file.pieces(tensor).collect();
                        assert_eq!(pieces.map(|p| p.concat()).map_err(|e| e.to_string()), whole, "in pieces");
                        let _ = whole.map(|v| assert_eq!(v.len() as u64, tensor.n_elements()));
                    }
                }
            }
            Kind::Safetensors => {
                if let Ok(file) = SafetensorsFile::open(&file("model.safetensors")) {
                    for (name, shape) in file.shapes() {
                        let _ = file.load(&name).map(|v| assert_eq!(v.len(), shape.iter().product::<usize>()));
                    }
                }
            }
        }
    }

    /// What opens is what somebody sealed for us, and its size was told before.
    fn open(&self, sealed: &[u8]) {
        let told = plain_bytes(sealed, sealed.len() as u64);
        let mut content = Vec::new();
        if let Ok(mut from) = identity().open(sealed)
            && from.read_to_end(&mut content).is_ok()
        {
            assert_eq!(told.unwrap(), content.len() as u64);
        }
    }

    fn verify(&self, bundle: &[u8]) {
        let at = self.dir.join("bundle.sig");
        fs::write(&at, bundle).unwrap();
        if let Ok(verified) = verify_dir(&self.dir.join("signed"), &at, self.key.verifying_key(), Strictness::Strict) {
            assert_eq!(verified.files.keys().collect::<Vec<_>>(), ["model.gguf"]);
        }
    }

    /// The bundle with another payload under a right signature, so that what comes after the signature is read.
    fn sealed(&self, payload: &[u8]) -> Vec<u8> {
        let mut bundle: Value = serde_json::from_slice(&self.bundle).unwrap();
        let envelope = &mut bundle["dsseEnvelope"];
        let kind = envelope["payloadType"].as_str().unwrap().to_owned();
        let mut signed = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
        signed.extend_from_slice(payload);
        let signature: p256::ecdsa::DerSignature = self.key.sign(&signed);
        envelope["payload"] = Base64::encode_string(payload).into();
        envelope["signatures"][0]["sig"] = Base64::encode_string(signature.as_bytes()).into();
        serde_json::to_vec(&bundle).unwrap()
    }

    fn age(&self, content: &[u8]) -> Vec<u8> {
        let mut sealing = Recipients::parse(&identity().recipients()).unwrap().unwrap().seal(Vec::new()).unwrap();
        sealing.write_all(content).unwrap();
        sealing.finish().unwrap()
    }

    pub fn write_seeds(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        let named = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).unwrap();
        let seed = |bytes: &[u8]| named("seed", bytes);
        match self.kind {
            Kind::Bundle => seed(&self.bundle),
            Kind::Statement => {
                let bundle: Value = serde_json::from_slice(&self.bundle).unwrap();
                seed(&Base64::decode_vec(bundle["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap());
            }
            Kind::Manifest => {
                self.manifest().save(dir).unwrap();
            }
            Kind::Log => {
                let store = Store::open(&self.dir.join("seeded")).unwrap();
                let artifact = self.dir.join("signed");
                let digest = self.manifest().save(&artifact).unwrap();
                let version_digest = store.put_artifact(&artifact, &digest).unwrap();
                let [model, channel, by] = ["router", "staging", "ann"].map(str::to_owned);
                let at = "2026-01-02T03:04:05Z".to_owned();
                let evidence = [("report".to_owned(), digest)].into();
                store.promote(Promotion { model, channel, version_digest, evidence, by, at }).unwrap();
                let entry = fs::read_dir(self.dir.join("seeded/log")).unwrap().next().unwrap().unwrap();
                seed(&fs::read(entry.path()).unwrap());
            }
            Kind::Policy => seed(POLICY.replace("PUBLIC", &keys::public_pem(self.key.verifying_key())).as_bytes()),
            Kind::Schema => {
                seed(format!("{SCHEMA_TEXT}\0{{\"time\": \"18:30\", \"people\": 2, \"names\": [\"Ann\"]}}").as_bytes())
            }
            Kind::Age => {
                seed(&self.age(b"weights"));
                let mark =
                    format!("{{\"format\": \"age-encryption.org/v1\", \"recipients\": {:?}}}", identity().recipients());
                fs::write(dir.join("mark"), mark).unwrap();
                fs::write(dir.join("key"), IDENTITY).unwrap();
            }
            Kind::Gguf => {
                let mut writer = GgufWriter::new();
                writer.set("general.architecture", "llama").set("tokenizer.ggml.tokens", 7u32);
                let types = [GgmlType::F32, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::IQ4_NL];
                for (i, ty) in types.into_iter().enumerate() {
                    let bytes = vec![60; ty.bytes_for(256).unwrap() as usize];
                    writer.add_bytes(format!("t{i}"), vec![256, 1], ty, bytes);
                }
                writer.write(&dir.join("seed")).unwrap();
                named("honest", &attacks::honest().0);
                attacks::attacks().iter().for_each(|attack| named(attack.name, &attack.file.0));
            }
            Kind::Safetensors => {
                let values = [0.5f32; 12];
                let tensors = [("a", vec![3, 4]), ("b", vec![12])].map(|(n, s)| (n.to_owned(), s, values.as_slice()));
                safetensor::write(&dir.join("seed"), &tensors).unwrap();
            }
        }
        fs::remove_dir_all(&self.dir).unwrap();
    }

    fn manifest(&self) -> ArtifactManifest {
        let file = ArtifactFile::of(&self.dir.join("signed/model.gguf"), "model").unwrap();
        manifest("router", "0.1.0", [("model.gguf".to_owned(), file)].into())
    }
}
