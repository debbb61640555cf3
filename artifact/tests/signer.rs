//! What a person relies on whose key lies in a KMS: the program's signature goes into the bundle, and nothing else it says
//! is taken for one.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use limbeck_artifact::keys::{self, SigningKey};
use limbeck_artifact::oms::{Strictness, sign_dir, verify_dir};
use limbeck_artifact::signer::{Exec, Signer};
use std::fs;
use std::path::PathBuf;

struct Place {
    dir: tempfile::TempDir,
    key: SigningKey,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("model/weights"), "w").unwrap();
        Place { dir, key: keys::generate().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn exec(&self, script: &str) -> Exec {
        let command = ["sh", "-c", script].map(str::to_owned);
        Exec::new(&command, *self.key.verifying_key())
    }

    fn refused(&self, script: &str, says: &str) {
        let bundle = self.path("model/model.sig");
        let e = sign_dir(&self.path("model"), &bundle, &self.exec(script)).unwrap_err().to_string();
        assert!(e.contains(says), "{script}: {e}");
        assert!(!bundle.exists(), "nothing may be written by {script}");
    }
}

#[test]
fn a_program_that_signs_signs_the_folder() {
    let place = Place::new();
    // A person carries the bytes to where the key is, and the signature back.
    place.refused(&format!("cat > '{}'; exit 1", place.path("request").display()), "failed");
    let signature = place.key.sign_der(&fs::read(place.path("request")).unwrap()).unwrap();
    fs::write(place.path("signature"), signature).unwrap();
    let signer = place.exec(&format!("cat > /dev/null; cat '{}'", place.path("signature").display()));
    let bundle = place.path("model/model.sig");
    sign_dir(&place.path("model"), &bundle, &signer).unwrap();
    verify_dir(&place.path("model"), &bundle, place.key.verifying_key(), Strictness::Strict).unwrap();
}

#[test]
fn what_is_no_signature_of_the_public_key_is_refused_and_nothing_is_written() {
    let place = Place::new();
    place.refused("cat > /dev/null; exit 3", "failed (exit status: 3)");
    place.refused("cat > /dev/null", "no DER signature");
    place.refused("cat", "no DER signature");
    place.refused("yes", "failed");
    // A true signature, over something else and by another key.
    let elsewhere = place.path("other.sig");
    fs::write(&elsewhere, place.key.sign_der(b"another message").unwrap()).unwrap();
    place.refused(&format!("cat '{}'", elsewhere.display()), "another key");
    let e = Exec::new(&["/no/such/program".to_owned()], *place.key.verifying_key()).sign_der(b"x").unwrap_err();
    assert!(e.to_string().contains("can't be started"), "{e}");
}
