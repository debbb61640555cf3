//! What a person relies on when a signature verifies: the folder holds what was signed with the trusted key, no more
//! and no less, and no change to the bundle makes it say anything else.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use base64ct::{Base64, Encoding};
use limbeck_artifact::digest::{hex, sha256_file, sha256_hex};
use limbeck_artifact::keys::{self, SigningKey};
use limbeck_artifact::oms::{Strictness, Verified, VerifyError, sign_dir, verify_dir};
use p256::ecdsa::Signature;
use p256::ecdsa::signature::Signer;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Signed {
    _home: TempDir,
    dir: PathBuf,
    bundle: PathBuf,
    key: SigningKey,
}

/// A signed folder, its bundle inside.
fn signed() -> Signed {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("model");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("model.gguf"), b"weights").unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::write(dir.join("sub/tokenizer.json"), b"{}").unwrap();
    let bundle = dir.join("model.sig");
    let key = keys::generate().unwrap();
    sign_dir(&dir, &bundle, &key).unwrap();
    Signed { _home: home, dir, bundle, key }
}

impl Signed {
    fn verify(&self) -> Result<Verified, VerifyError> {
        verify_dir(&self.dir, &self.bundle, self.key.verifying_key(), Strictness::Strict)
    }

    fn statement(&self) -> Value {
        let bundle: Value = serde_json::from_slice(&fs::read(&self.bundle).unwrap()).unwrap();
        let payload = bundle["dsseEnvelope"]["payload"].as_str().unwrap();
        serde_json::from_slice(&Base64::decode_vec(payload).unwrap()).unwrap()
    }

    /// Replaces the bundle by one that signs `payload` with the right key.
    fn sign_payload(&self, payload: &[u8]) {
        let mut pae = format!("DSSEv1 28 application/vnd.in-toto+json {} ", payload.len()).into_bytes();
        pae.extend_from_slice(payload);
        let signature: Signature = self.key.sign(&pae);
        let mut bundle: Value = serde_json::from_slice(&fs::read(&self.bundle).unwrap()).unwrap();
        bundle["dsseEnvelope"]["payload"] = json!(Base64::encode_string(payload));
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = json!(Base64::encode_string(signature.to_der().as_bytes()));
        fs::write(&self.bundle, bundle.to_string()).unwrap();
    }
}

#[test]
fn a_signed_folder_verifies_and_names_every_file() {
    let s = signed();
    let verified = s.verify().unwrap();
    assert_eq!(verified.files.keys().collect::<Vec<_>>(), ["empty", "model.gguf", "sub/tokenizer.json"]);
    assert_eq!(verified.files["model.gguf"], sha256_hex(b"weights"));
    let digests = [b"".as_slice(), b"weights", b"{}"].map(|b| {
        let digest = sha256_hex(b);
        (0..32).map(|i| u8::from_str_radix(&digest[2 * i..2 * i + 2], 16).unwrap()).collect::<Vec<u8>>()
    });
    assert_eq!(verified.root, sha256_hex(&digests.concat()));
}

#[test]
fn signing_again_gives_the_same_bytes_and_the_bundle_may_lie_outside() {
    let s = signed();
    let first = fs::read(&s.bundle).unwrap();
    sign_dir(&s.dir, &s.bundle, &s.key).unwrap();
    assert_eq!(fs::read(&s.bundle).unwrap(), first);
    fs::remove_file(&s.bundle).unwrap();
    let outside = s.dir.parent().unwrap().join("signatures/model.sig");
    sign_dir(&s.dir, &outside, &s.key).unwrap();
    verify_dir(&s.dir, &outside, s.key.verifying_key(), Strictness::Strict).unwrap();
    // Moved and renamed, the folder is still what was signed.
    let moved = s.dir.parent().unwrap().join("other-name");
    fs::rename(&s.dir, &moved).unwrap();
    verify_dir(&moved, &outside, s.key.verifying_key(), Strictness::Strict).unwrap();
}

#[test]
fn whatever_happens_to_the_folder_is_found() {
    let check = |change: &dyn Fn(&Path), says: &str| {
        let s = signed();
        change(&s.dir);
        let e = s.verify().expect_err(says).to_string();
        assert!(e.contains(says), "{e}");
    };
    check(&|d| fs::write(d.join("model.gguf"), b"weightS").unwrap(), "model.gguf was changed");
    check(&|d| fs::write(d.join("empty"), b"\n").unwrap(), "empty was changed");
    check(&|d| fs::remove_file(d.join("sub/tokenizer.json")).unwrap(), "sub");
    check(&|d| fs::remove_dir_all(d.join("sub")).unwrap(), "sub/tokenizer.json is missing");
    check(&|d| fs::rename(d.join("empty"), d.join("Empty")).unwrap(), "not in the signature");
    check(&|d| fs::write(d.join("extra"), b"").unwrap(), "extra is in the directory but not in the signature");
    check(&|d| fs::write(d.join("sub/extra"), b"").unwrap(), "sub/extra");
    check(&|d| fs::write(d.join("sub/model.sig"), b"").unwrap(), "sub/model.sig");
    check(&|d| fs::write(d.join(".gitattributes"), b"").unwrap(), ".gitattributes");
    check(&|d| fs::create_dir(d.join("void")).unwrap(), "void is an empty folder");
    check(&|d| fs::write(d.join("e\u{202e}vil"), b"").unwrap(), "e\\u{202e}vil");
}

#[cfg(unix)]
#[test]
fn links_are_not_followed() {
    use std::os::unix::fs::symlink;
    let s = signed();
    let weights = s.dir.parent().unwrap().join("weights");
    fs::rename(s.dir.join("model.gguf"), &weights).unwrap();
    symlink(&weights, s.dir.join("model.gguf")).unwrap();
    assert!(s.verify().unwrap_err().to_string().contains("model.gguf is a symlink"));
    assert!(sign_dir(&s.dir, &s.bundle, &s.key).is_err());
    fs::remove_file(s.dir.join("model.gguf")).unwrap();
    fs::rename(&weights, s.dir.join("model.gguf")).unwrap();
    s.verify().unwrap();
    symlink(s.dir.join("sub"), s.dir.join("again")).unwrap();
    assert!(s.verify().unwrap_err().to_string().contains("again is a symlink"));
    fs::remove_file(s.dir.join("again")).unwrap();
    let link = s.dir.parent().unwrap().join("link");
    symlink(&s.dir, &link).unwrap();
    assert!(verify_dir(&link, &s.bundle, s.key.verifying_key(), Strictness::Strict).is_err());
    let elsewhere = s.dir.parent().unwrap().join("elsewhere.sig");
    fs::rename(&s.bundle, &elsewhere).unwrap();
    symlink(&elsewhere, &s.bundle).unwrap();
    assert!(s.verify().is_err());
}

#[test]
fn a_folder_in_the_place_of_the_bundle_hides_nothing() {
    let s = signed();
    let elsewhere = s.dir.parent().unwrap().join("model.sig");
    fs::rename(&s.bundle, &elsewhere).unwrap();
    verify_dir(&s.dir, &elsewhere, s.key.verifying_key(), Strictness::Strict).unwrap();
    fs::create_dir(&s.bundle).unwrap();
    fs::write(s.bundle.join("payload"), b"unsigned").unwrap();
    let e = verify_dir(&s.dir, &elsewhere, s.key.verifying_key(), Strictness::Strict).unwrap_err().to_string();
    assert!(e.contains("model.sig/payload"), "{e}");
}

#[test]
fn a_git_checkout_verifies_only_where_that_was_asked_for() {
    let s = signed();
    fs::create_dir(s.dir.join(".git")).unwrap();
    fs::write(s.dir.join(".git/HEAD"), b"ref").unwrap();
    assert!(matches!(s.verify(), Err(VerifyError::Unlisted(path)) if path == ".git/HEAD"));
    verify_dir(&s.dir, &s.bundle, s.key.verifying_key(), Strictness::AllowGit).unwrap();
    fs::create_dir(s.dir.join("sub/.git")).unwrap();
    fs::write(s.dir.join("sub/.git/HEAD"), b"ref").unwrap();
    assert!(verify_dir(&s.dir, &s.bundle, s.key.verifying_key(), Strictness::AllowGit).is_err());
    assert!(sign_dir(&s.dir, &s.bundle, &s.key).unwrap_err().to_string().contains("belongs to git"));
}

#[test]
fn another_key_is_told_apart_and_the_bundle_does_not_choose_the_key() {
    let s = signed();
    let other = keys::generate().unwrap();
    let verify = || verify_dir(&s.dir, &s.bundle, other.verifying_key(), Strictness::Strict);
    assert!(matches!(verify(), Err(VerifyError::OtherKey { .. })));
    // A bundle that claims the trusted key does not become trusted.
    let text = fs::read_to_string(&s.bundle).unwrap();
    let claimed = text.replace(&keys::key_id(s.key.verifying_key()), &keys::key_id(other.verifying_key()));
    assert_ne!(text, claimed);
    fs::write(&s.bundle, claimed).unwrap();
    assert!(matches!(verify(), Err(VerifyError::Signature)));
}

#[test]
fn nothing_is_signed_where_there_is_nothing_to_sign() {
    let home = tempfile::tempdir().unwrap();
    let key = keys::generate().unwrap();
    let bundle = home.path().join("b.sig");
    let empty = home.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(sign_dir(&empty, &bundle, &key).is_err());
    let file = home.path().join("file");
    fs::write(&file, b"x").unwrap();
    assert!(sign_dir(&file, &bundle, &key).is_err());
    assert!(sign_dir(&home.path().join("absent"), &bundle, &key).is_err());
    fs::write(empty.join("a:b"), b"x").unwrap();
    assert!(sign_dir(&empty, &bundle, &key).is_err());
    assert!(!bundle.exists());
}

#[test]
fn every_flipped_bit_of_the_bundle_is_rejected_or_changes_nothing() {
    let s = signed();
    let good = fs::read(&s.bundle).unwrap();
    let wanted = s.verify().unwrap();
    let mut rejected = 0;
    for at in 0..good.len() {
        for bit in [0, 2, 5] {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            fs::write(&s.bundle, &bad).unwrap();
            match s.verify() {
                Ok(verified) => assert_eq!(verified, wanted, "byte {at}, bit {bit}"),
                Err(_) => rejected += 1,
            }
        }
    }
    assert_eq!(rejected, good.len() * 3, "none of these flips is harmless");
}

/// Every byte of a hundred files, and every bit of their bundle.
#[test]
#[ignore = "takes minutes"]
#[expect(clippy::print_stdout, reason = "the figure is what it is run for")]
fn no_other_byte_anywhere_in_a_hundred_files_is_taken() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("model");
    for i in 0..100 {
        let path = dir.join(format!("part-{}/file-{i:03}.bin", i % 7));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, sha256_hex(&[i]).as_bytes()).unwrap();
    }
    let (bundle, key) = (dir.join("model.sig"), keys::generate().unwrap());
    let signed = sign_dir(&dir, &bundle, &key).unwrap();
    let verify = || verify_dir(&dir, &bundle, key.verifying_key(), Strictness::Strict);
    let (mut tried, mut same) = (0u64, 0u64);
    let mut try_all = |path: &Path| {
        let good = fs::read(path).unwrap();
        for at in 0..good.len() {
            // One value of each byte in the files; in the bundle, which is parsed, eight.
            let flips: &[u8] = if path == bundle { &[1, 2, 4, 8, 16, 32, 64, 128] } else { &[1] };
            for flip in flips {
                let mut bad = good.clone();
                bad[at] ^= flip;
                fs::write(path, &bad).unwrap();
                tried += 1;
                if let Ok(verified) = verify() {
                    assert_eq!(verified.files, signed.files, "{} byte {at} ^ {flip}", path.display());
                    same += 1;
                }
            }
        }
        fs::write(path, &good).unwrap();
    };
    signed.files.keys().for_each(|name| try_all(&dir.join(name)));
    try_all(&bundle);
    verify().unwrap();
    println!("{tried} changed bytes: {} rejected, {same} of the same manifest", tried - same);
    assert_eq!(same, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_edit_of_the_bundle_is_rejected_or_changes_nothing(
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), 0usize..4, prop::collection::vec(any::<u8>(), 0..4)), 1..4)
    ) {
        let s = signed();
        let wanted = s.verify().unwrap();
        let mut bytes = fs::read(&s.bundle).unwrap();
        for (at, removed, inserted) in edits {
            let at = at.index(bytes.len());
            let end = (at + removed).min(bytes.len());
            bytes.splice(at..end, inserted);
        }
        fs::write(&s.bundle, &bytes).unwrap();
        if let Ok(verified) = s.verify() {
            prop_assert_eq!(verified, wanted);
        }
    }
}

#[test]
fn a_bundle_of_another_shape_is_refused() {
    let check = |from: &str, to: &str| {
        let s = signed();
        let text = fs::read_to_string(&s.bundle).unwrap();
        assert!(text.contains(from), "{text} lacks {from}");
        fs::write(&s.bundle, text.replacen(from, to, 1)).unwrap();
        let e = s.verify().expect_err(to);
        assert!(matches!(e, VerifyError::Bundle { .. }), "{to}: {e}");
    };
    check("{\"mediaType\"", "{\"extra\":1,\"mediaType\"");
    check("{\"mediaType\"", "{\"mediaType\":\"x\",\"mediaType\"");
    check("bundle.v0.3", "bundle.v0.2");
    check("{\"hint\"", "{\"rawBytes\":\"\",\"hint\"");
    check("\"tlogEntries\":[]", "\"tlogEntries\":[{}]");
    check("\"keyid\":\"\"", "\"keyid\":\"x\"");
    check("\"keyid\":\"\"}", "\"keyid\":\"\"},{\"sig\":\"\",\"keyid\":\"\"}");
    check("vnd.in-toto+json", "vnd.in-toto2json");
    check("\"payload\":\"", "\"payload\":\" ");
    check("\"sig\":\"M", "\"sig\":\"\\n");
}

#[test]
fn base64_has_one_spelling() {
    let signature_of = |s: &Signed| {
        let bundle: Value = serde_json::from_slice(&fs::read(&s.bundle).unwrap()).unwrap();
        bundle["dsseEnvelope"]["signatures"][0]["sig"].as_str().unwrap().to_owned()
    };
    // A signature is 70 to 72 bytes long; one of 72 has no padding.
    let s = std::iter::repeat_with(signed).take(200).find(|s| signature_of(s).ends_with('=')).unwrap();
    let text = fs::read_to_string(&s.bundle).unwrap();
    let signature = signature_of(&s);
    // The last digit before the padding has slack bits; another one decodes to the same bytes in a lax reader.
    let mut lax: Vec<u8> = signature.clone().into_bytes();
    let at = lax.iter().rposition(|b| *b != b'=').unwrap();
    lax[at] += 1;
    fs::write(&s.bundle, text.replace(&signature, &String::from_utf8(lax).unwrap())).unwrap();
    assert!(matches!(s.verify(), Err(VerifyError::Bundle { .. })));
    fs::write(&s.bundle, text.replace(&signature, signature.trim_end_matches('='))).unwrap();
    assert!(matches!(s.verify(), Err(VerifyError::Bundle { .. })));
}

#[test]
fn the_signature_is_checked_before_the_payload_is_read() {
    let s = signed();
    let text = fs::read_to_string(&s.bundle).unwrap();
    let bundle: Value = serde_json::from_str(&text).unwrap();
    let payload = bundle["dsseEnvelope"]["payload"].as_str().unwrap();
    fs::write(&s.bundle, text.replace(payload, &Base64::encode_string(b"not json"))).unwrap();
    assert!(matches!(s.verify(), Err(VerifyError::Signature)));
}

#[test]
fn a_statement_of_another_shape_is_refused_even_when_signed_with_the_right_key() {
    let check = |what: &str, change: &dyn Fn(&mut Value)| {
        let s = signed();
        let mut statement = s.statement();
        s.sign_payload(statement.to_string().as_bytes());
        s.verify().unwrap();
        change(&mut statement);
        s.sign_payload(statement.to_string().as_bytes());
        let e = s.verify().expect_err(what);
        assert!(matches!(e, VerifyError::Statement(_)), "{what}: {e}");
    };
    check("type", &|v| v["_type"] = json!("https://in-toto.io/Statement/v0.1"));
    check("predicate type", &|v| v["predicateType"] = json!("https://slsa.dev/provenance/v1"));
    check("unknown field", &|v| v["predicate"]["lineage"] = json!({}));
    check("unknown field of a file", &|v| v["predicate"]["resources"][0]["size"] = json!(1));
    check("no subject", &|v| v["subject"] = json!([]));
    check("two subjects", &|v| v["subject"] = json!([v["subject"][0], v["subject"][0]]));
    check("root", &|v| v["subject"][0]["digest"]["sha256"] = json!("0".repeat(64)));
    check("root in capitals", &|v| {
        let root = v["subject"][0]["digest"]["sha256"].as_str().unwrap().to_uppercase();
        v["subject"][0]["digest"]["sha256"] = json!(root);
    });
    check("shards", &|v| v["predicate"]["serialization"]["method"] = json!("shards"));
    check("blake3", &|v| v["predicate"]["serialization"]["hash_type"] = json!("blake3"));
    check("symlinks", &|v| v["predicate"]["serialization"]["allow_symlinks"] = json!(true));
    check("algorithm", &|v| v["predicate"]["resources"][0]["algorithm"] = json!("sha512"));
    check("no files", &|v| v["predicate"]["resources"] = json!([]));
    check("one file twice", &|v| {
        let first = v["predicate"]["resources"][0].clone();
        v["predicate"]["resources"].as_array_mut().unwrap().push(first);
    });
    for name in ["../model.gguf", "/etc/passwd", "./model.gguf", "sub//tokenizer.json", ".", ""] {
        check(name, &|v| v["predicate"]["resources"][0]["name"] = json!(name));
    }
    check("short digest", &|v| v["predicate"]["resources"][0]["digest"] = json!("00"));
}

#[test]
fn a_payload_that_names_a_key_twice_is_refused() {
    let s = signed();
    let text = s.statement().to_string();
    s.sign_payload(text.replacen("{", "{\"predicateType\":\"x\",", 1).as_bytes());
    let e = s.verify().unwrap_err().to_string();
    assert!(e.contains("occurs twice"), "{e}");
    s.sign_payload(b"not json");
    assert!(matches!(s.verify(), Err(VerifyError::Statement(_))));
}

#[test]
fn files_may_be_listed_in_any_order_as_long_as_the_root_follows_it() {
    let s = signed();
    let mut statement = s.statement();
    let files = statement["predicate"]["resources"].as_array_mut().unwrap();
    files.reverse();
    let mut all = Vec::new();
    for file in files.iter() {
        let digest = file["digest"].as_str().unwrap();
        all.extend((0..32).map(|i| u8::from_str_radix(&digest[2 * i..2 * i + 2], 16).unwrap()));
    }
    statement["subject"][0]["digest"]["sha256"] = json!(sha256_hex(&all));
    s.sign_payload(statement.to_string().as_bytes());
    assert_eq!(s.verify().unwrap().root, sha256_hex(&all));
    assert_eq!(hex(&[0xab, 0x01]), "ab01");
}

/// Signed by PyPI's model-signing 1.1.1; tests/conformance/oms.sh made it and checks both directions live.
#[test]
fn a_folder_signed_by_model_signing_verifies() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/model-signing-1.1.1");
    let key = keys::load_public(&fixture.join("key.pub.pem")).unwrap();
    assert_eq!(keys::key_id(&key), sha256_file(&fixture.join("key.pub.pem")).unwrap());
    let verified = verify_dir(&fixture.join("model"), &fixture.join("model.sig"), &key, Strictness::Strict).unwrap();
    assert_eq!(verified.files.len(), 4);
}
