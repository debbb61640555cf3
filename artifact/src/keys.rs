//! P-256 signing keys as files: PKCS#8 PEM, plain or under a passphrase, readable by their owner only. Made and read by
//! openssl and by Python's `cryptography` too; a key is named by the SHA-256 of its public PEM text.

use crate::digest::sha256_hex;
use crate::files::{AtomicFile, write_atomic};
use crate::{Error, Result};
use base64ct::{Base64, Encoding};
use p256::elliptic_curve::Generate;
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, LineEnding, PrivateKeyInfoRef};
use std::io::Write;
use std::path::Path;
use zeroize::Zeroizing;

pub use p256::ecdsa::{SigningKey, VerifyingKey};

/// SubjectPublicKeyInfo of an uncompressed P-256 point, up to the point.
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A fresh key from the operating system's randomness.
pub fn generate() -> Result<SigningKey> {
    SigningKey::try_generate().map_err(|e| {
        Error::refused(format!("the operating system gave no randomness: {e}"), "make the key with openssl instead")
    })
}

/// Whether the key at `path` is under a passphrase, as far as it can be read.
pub fn is_locked(path: &Path) -> bool {
    std::fs::read_to_string(path).map(Zeroizing::new).is_ok_and(|text| text.contains("BEGIN ENCRYPTED PRIVATE KEY"))
}

/// Reads a private key: PKCS#8 PEM of a P-256 key, with its passphrase where it has one. Refuses a file that its group
/// or others can read.
pub fn load_private(path: &Path, passphrase: Option<&str>) -> Result<SigningKey> {
    refuse_shared(path)?;
    let bytes = Zeroizing::new(std::fs::read(path).map_err(Error::io("read the private key", path))?);
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Error::invalid(path, "it is not a PEM file", "`openssl pkcs8 -topk8` writes one"))?
        // A secret that went through a variable has lost its last line feed, or got another one.
        .trim();
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        let Some(passphrase) = passphrase else {
            return Err(Error::invalid(path, "the key is under a passphrase", "give the passphrase"));
        };
        // CBC does not authenticate: a wrong passphrase and a damaged file look the same.
        return SigningKey::from_pkcs8_encrypted_pem(text, passphrase).map_err(|_| {
            Error::invalid(path, "the key cannot be opened", "the passphrase is wrong, or the file is not a P-256 key")
        });
    }
    SigningKey::from_pkcs8_pem(text).map_err(|_| {
        let hint = "convert it with `openssl pkcs8 -topk8 -nocrypt`, or make a P-256 key";
        Error::invalid(path, "it is not a P-256 key in PKCS#8 PEM", hint)
    })
}

#[cfg(unix)]
pub(crate) fn refuse_shared(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map_err(Error::io("read the private key", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        let reason = format!("others than its owner have access to this private key (mode {:03o})", mode & 0o777);
        return Err(Error::invalid(path, reason, format!("run `chmod 600 {}`", path.display())));
    }
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn refuse_shared(_path: &Path) -> Result<()> {
    Ok(())
}

/// Writes a private key, readable by its owner only, under the passphrase if there is one. Refuses to replace a file.
pub fn save_private(path: &Path, key: &SigningKey, passphrase: Option<&str>) -> Result<()> {
    let defect = |e: pkcs8::Error| Error::invalid(path, format!("the key cannot be encoded: {e}"), "this is a defect");
    let pem = match passphrase {
        None => key.to_pkcs8_pem(LineEnding::LF).map_err(defect)?,
        Some(passphrase) => {
            let der = key.to_pkcs8_der().map_err(defect)?;
            let encrypted = PrivateKeyInfoRef::try_from(der.as_bytes())
                .map_err(defect)?
                .encrypt_with_params(encryption(path)?, passphrase)
                .map_err(defect)?;
            encrypted.to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF).map_err(|e| defect(e.into()))?
        }
    };
    let failed = || Error::io("write the private key", path);
    let mut file = AtomicFile::create_private(path).map_err(failed())?;
    file.write_all(pem.as_bytes()).map_err(failed())?;
    if !file.commit_new().map_err(failed())? {
        return Err(Error::invalid(path, "there is a file already", "name another, or use that key"));
    }
    Ok(())
}

/// scrypt N=2^14, r=8, p=5 and AES-256-CBC. More memory (N=2^15) would be over the limit at which openssl refuses to
/// read the key, so the cost is raised by p.
fn encryption(path: &Path) -> Result<pbes2::Parameters> {
    let defect =
        |e: &dyn std::fmt::Display| Error::invalid(path, format!("cannot set up encryption: {e}"), "this is a defect");
    let cost = scrypt::Params::new(14, 8, 5).map_err(|e| defect(&e))?;
    let salt = <[u8; 16]>::try_generate().map_err(|e| defect(&e))?;
    let iv = <[u8; 16]>::try_generate().map_err(|e| defect(&e))?;
    pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).map_err(|e| defect(&e))
}

/// Reads a public key: SubjectPublicKeyInfo PEM of a P-256 key.
pub fn load_public(path: &Path) -> Result<VerifyingKey> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read the public key", path))?;
    VerifyingKey::from_public_key_pem(&text).map_err(|_| {
        let hint = "`openssl pkey -in KEY -pubout` writes one";
        Error::invalid(path, "it is not the PEM of a P-256 public key", hint)
    })
}

pub fn save_public(path: &Path, key: &VerifyingKey) -> Result<()> {
    write_atomic(path, public_pem(key).as_bytes()).map_err(Error::io("write the public key", path))
}

/// The public key as openssl writes it: PEM, lines of 64, with a line feed at the end.
pub fn public_pem(key: &VerifyingKey) -> String {
    let mut der = SPKI_P256.to_vec();
    der.extend_from_slice(key.to_sec1_point(false).as_bytes());
    let body = Base64::encode_string(&der);
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem + "-----END PUBLIC KEY-----\n"
}

/// A key's name: SHA-256 of its public PEM text, what `sha256sum key.pub.pem` prints.
pub fn key_id(key: &VerifyingKey) -> String {
    sha256_hex(public_pem(key).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pkcs8::EncodePublicKey;

    #[test]
    fn keys_come_back_from_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let key = generate().unwrap();
        for (name, passphrase) in [("plain.pem", None), ("locked.pem", Some("correct horse"))] {
            let path = dir.path().join("keys").join(name);
            save_private(&path, &key, passphrase).unwrap();
            assert!(load_private(&path, passphrase).unwrap() == key);
            let e = save_private(&path, &generate().unwrap(), None).unwrap_err();
            assert!(e.to_string().contains("already"), "{e}");
            assert!(load_private(&path, passphrase).unwrap() == key);
        }
        for path in ["keys/plain.pem", "keys/locked.pem"].map(|name| dir.path().join(name)) {
            let text = std::fs::read_to_string(&path).unwrap();
            for spelled in [text.trim_end().to_owned(), format!("\n{text}\n"), text.clone()] {
                std::fs::write(&path, spelled).unwrap();
                assert!(load_private(&path, Some("correct horse")).unwrap() == key);
            }
        }
        let locked = dir.path().join("keys/locked.pem");
        assert!(load_private(&locked, None).unwrap_err().to_string().contains("give the passphrase"));
        assert!(load_private(&locked, Some("wrong")).unwrap_err().to_string().contains("passphrase is wrong"));
        let public = dir.path().join("key.pub.pem");
        save_public(&public, key.verifying_key()).unwrap();
        assert_eq!(load_public(&public).unwrap(), *key.verifying_key());
        assert_eq!(key_id(key.verifying_key()), crate::digest::sha256_file(&public).unwrap());
    }

    #[test]
    fn the_public_pem_is_the_standard_one() {
        for _ in 0..8 {
            let key = generate().unwrap();
            assert_eq!(public_pem(key.verifying_key()), key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap());
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_private_key_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        save_private(&path, &generate().unwrap(), None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o644] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let e = load_private(&path, None).unwrap_err().to_string();
            assert!(e.contains("chmod 600"), "{e}");
        }
    }

    #[test]
    fn other_kinds_of_key_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let ed25519 = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        for text in [ed25519, "", "not a key", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"] {
            let mut file = AtomicFile::create_private(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.commit().unwrap();
            assert!(load_private(&path, None).is_err());
            assert!(load_public(&path).is_err());
        }
    }
}
