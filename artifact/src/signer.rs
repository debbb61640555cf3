//! Whoever signs: a key of this process, or a command that reaches one in a KMS or an HSM. What a command answers is
//! checked against the public key before anything is written.

use crate::keys::{SigningKey, VerifyingKey};
use crate::untrusted::visible_line;
use crate::{Error, Result};
use p256::ecdsa::Signature;
use p256::ecdsa::signature::{Signer as _, Verifier};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A signature of P-256 has at most 72 bytes.
const MAX_ANSWER: u64 = 4096;
/// A person may have to touch a token.
const PATIENCE: Duration = Duration::from_secs(120);

pub trait Signer {
    fn public(&self) -> &VerifyingKey;

    /// The signature (ECDSA, P-256, SHA-256) over `message`, in ASN.1 DER.
    ///
    /// # Errors
    /// When the signer can't be reached, or what it answers is no signature of this key.
    fn sign_der(&self, message: &[u8]) -> Result<Vec<u8>>;
}

impl Signer for SigningKey {
    fn public(&self) -> &VerifyingKey {
        self.verifying_key()
    }

    fn sign_der(&self, message: &[u8]) -> Result<Vec<u8>> {
        let signature: Signature = self.sign(message);
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

/// A command that takes the bytes to sign on stdin and answers with the signature on stdout: `openssl dgst -sha256 -sign`,
/// a wrapper of `aws kms sign` or `pkcs11-tool --signature-format openssl`.
#[derive(Clone, Debug)]
pub struct Exec {
    command: Vec<String>,
    public: VerifyingKey,
}

impl Exec {
    /// `command` is a program and its arguments; no shell sees them.
    pub fn new(command: &[String], public: VerifyingKey) -> Exec {
        Exec { command: command.to_vec(), public }
    }

    fn failed(&self, what: impl std::fmt::Display) -> Error {
        let program = self.command.first().map_or("", String::as_str);
        let hint = "run it by hand: the bytes to sign on stdin, the signature (DER) on stdout";
        Error::refused(format!("the signer {} {what}", visible_line(program)), hint)
    }

    fn ask(&self, message: &[u8]) -> Result<Vec<u8>> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(self.failed("names no program"));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|e| self.failed(format!("can't be started: {e}")))?;
        // A signer that reads nothing must not hold us up: what it is given fits a pipe, or a thread waits.
        let (stdin, message) = (child.stdin.take(), message.to_vec());
        std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&message)));
        let stdout = child.stdout.take();
        let reader = std::thread::spawn(move || {
            let mut answer = Vec::new();
            stdout.map(|stdout| stdout.take(MAX_ANSWER).read_to_end(&mut answer));
            answer
        });
        let status = wait(&mut child).ok_or_else(|| self.failed("did not answer within two minutes"))?;
        if !status.success() {
            return Err(self.failed(format!("failed ({status})")));
        }
        Ok(reader.join().unwrap_or_default())
    }
}

impl Signer for Exec {
    fn public(&self) -> &VerifyingKey {
        &self.public
    }

    fn sign_der(&self, message: &[u8]) -> Result<Vec<u8>> {
        let answer = self.ask(message)?;
        let signature = Signature::from_der(&answer)
            .map_err(|_| self.failed("answered with something that is no DER signature of P-256"))?;
        let verified = self.public.verify(message, &signature);
        verified.map_err(|_| self.failed("signed with another key than the public one that the recipe names"))?;
        Ok(answer)
    }
}

/// None when it takes too long; it is ended then.
fn wait(child: &mut Child) -> Option<std::process::ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
