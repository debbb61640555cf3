//! Files that only named people can read: the age format for X25519 recipients, read and written by `age` and `rage` too.
//! Here are whom a file is for, who may read it, and the two streams; what is encrypted is for others to say.

use crate::files::AtomicFile;
use crate::keys::refuse_shared;
use crate::{Error, Result};
use age::secrecy::ExposeSecret;
use age::x25519;
use age::{DecryptError, Decryptor, Encryptor};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use zeroize::Zeroizing;

/// What such a file's name ends with.
pub const SUFFIX: &str = ".age";
/// What such a file begins with.
pub const MAGIC: &[u8] = b"age-encryption.org/v1\n";
/// Of the format: so much of the content is sealed at a time, under a tag.
const CHUNK_BYTES: u64 = 64 << 10;
const TAG_BYTES: u64 = 16;
const NONCE_BYTES: u64 = 16;
/// Of a stranger's file; ours have some hundred bytes.
const MAX_HEADER_BYTES: u64 = 64 << 10;
/// Of a key file: a few lines.
const MAX_KEY_FILE_BYTES: u64 = 64 << 10;

/// Whom files are encrypted for; at least one.
#[derive(Clone)]
pub struct Recipients(BTreeMap<String, x25519::Recipient>);

impl Recipients {
    /// None where nobody is named.
    ///
    /// # Errors
    /// Which of them is no recipient, and why.
    pub fn parse(texts: &[String]) -> std::result::Result<Option<Recipients>, String> {
        let parsed = texts.iter().map(|text| Ok((text.clone(), recipient(text)?)));
        let recipients: BTreeMap<_, _> = parsed.collect::<std::result::Result<_, String>>()?;
        Ok((!recipients.is_empty()).then_some(Recipients(recipients)))
    }

    /// Whether one of these can read what is encrypted for them.
    pub fn include(&self, who: &Identities) -> bool {
        who.recipients().iter().any(|one| self.0.contains_key(one))
    }

    /// As they are written, sorted.
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// What is written to it comes out of `to` encrypted. Only [`Sealing::finish`] makes it whole.
    ///
    /// # Errors
    /// When writing fails.
    pub fn seal<W: Write>(&self, to: W) -> io::Result<Sealing<W>> {
        let recipients = self.0.values().map(|one| one as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(recipients).map_err(|e| io::Error::other(e.to_string()))?;
        Ok(Sealing(encryptor.wrap_output(to)?))
    }
}

impl PartialEq for Recipients {
    fn eq(&self, other: &Recipients) -> bool {
        self.0.keys().eq(other.0.keys())
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl fmt::Display for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

/// Whether a text is a recipient.
///
/// # Errors
/// Why not.
pub fn check_recipient(text: &str) -> std::result::Result<(), String> {
    recipient(text).map(|_| ())
}

fn recipient(text: &str) -> std::result::Result<x25519::Recipient, String> {
    let told = || text.chars().take(80).collect::<String>();
    if text.starts_with("AGE-SECRET-KEY-") {
        return Err(
            "a secret key stands where a recipient belongs: `limbeck keys recipient FILE` prints its recipient, \
                    and what was written here others may have read by now"
                .to_owned(),
        );
    }
    if text.starts_with("age1pq1") || text.starts_with("ssh-") {
        return Err(format!("{:?} is a recipient of another kind: age1 and 58 characters are read here", told()));
    }
    // The crate takes capitals for the same key: then one recipient would have two names.
    let parsed = if text.bytes().any(|b| b.is_ascii_uppercase()) { None } else { text.parse().ok() };
    parsed.ok_or_else(|| {
        format!("{:?} is no age recipient, which is age1 and 58 characters: one is mistyped or missing", told())
    })
}

/// Encrypts what is written to it.
pub struct Sealing<W: Write>(age::stream::StreamWriter<W>);

impl<W: Write> Sealing<W> {
    /// # Errors
    /// When writing fails.
    pub fn finish(self) -> io::Result<W> {
        self.0.finish()
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Why an encrypted file can't be read, as a person is told it.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is for others, as far as is known for whom, and this is who asked.
    #[error("it is encrypted{}, and {have}", wanted.as_ref().map(|wanted| format!(" for {wanted}")).unwrap_or_default())]
    NoKey { wanted: Option<String>, have: String },
    #[error("it is no age file of version 1: it was overwritten or cut off at its beginning")]
    NotAge,
    /// Some of it was changed, cut off or added.
    #[error("it was changed after it was encrypted, or is cut short")]
    Damaged,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Unreadable {
    /// As it is told where it is known for whom all files are encrypted, and who reads.
    pub fn among(self, recipients: &Recipients, who: &Identities) -> Unreadable {
        match self {
            // Who can read all else can't read this: its beginning was changed, or it is from elsewhere.
            Unreadable::NoKey { .. } if recipients.include(who) => Unreadable::Damaged,
            Unreadable::NoKey { have, .. } => Unreadable::NoKey { wanted: Some(recipients.to_string()), have },
            other => other,
        }
    }
}

impl From<Unreadable> for io::Error {
    fn from(e: Unreadable) -> io::Error {
        match e {
            Unreadable::Io(e) => e,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// Who reads: secret keys, and where they came from.
#[derive(Clone, Default)]
pub struct Identities {
    keys: Vec<x25519::Identity>,
    /// For a person who is told that none of them fits: the file, or where one was looked for.
    origin: String,
}

/// The keys are not shown.
impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} identities, {}", self.keys.len(), self.origin)
    }
}

impl Identities {
    /// Nobody, and where somebody was looked for: "no identity is at FILE".
    pub fn none(origin: impl Into<String>) -> Identities {
        Identities { keys: Vec::new(), origin: origin.into() }
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys in a file as `age-keygen` writes it, which its owner alone may read.
    ///
    /// # Errors
    /// When there is none in it, or others can read it.
    pub fn load(path: &Path) -> Result<Identities> {
        let failed = || Error::io("read the age identity", path);
        if path.metadata().map_err(failed())?.len() > MAX_KEY_FILE_BYTES {
            return Err(Error::invalid(path, "it is too large for a file of age identities", "name another"));
        }
        refuse_shared(path)?;
        let bytes = Zeroizing::new(std::fs::read(path).map_err(failed())?);
        if bytes.starts_with(MAGIC) {
            let hint = format!("open it first: `age -d {0} > KEY && chmod 600 KEY`", path.display());
            return Err(Error::invalid(path, "the identity is itself encrypted, under a passphrase", hint));
        }
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        Identities::parse(text, path.display().to_string()).map_err(|reason| {
            Error::invalid(path, reason, "`limbeck keys identity FILE` makes one, and so does age-keygen")
        })
    }

    /// From a text of that kind; `origin` names where it came from.
    ///
    /// # Errors
    /// Why there is none in it.
    pub fn parse(text: &str, origin: String) -> std::result::Result<Identities, String> {
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            match line.trim() {
                "" => {}
                line if line.starts_with('#') => {}
                // Its reason is never shown: the line may be a secret with one character missing.
                line => match line.parse::<x25519::Identity>() {
                    Ok(key) => keys.push(key),
                    Err(_) => return Err(format!("line {number} is no age identity (AGE-SECRET-KEY-1…)")),
                },
            }
        }
        if keys.is_empty() { Err("no age identity is in it".to_owned()) } else { Ok(Identities { keys, origin }) }
    }

    /// Whom one encrypts for so that these can read it.
    pub fn recipients(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.to_public().to_string()).collect()
    }

    /// The content of an encrypted file. What was read before an error is not to be used: the end may be missing.
    ///
    /// # Errors
    /// [`Unreadable`]; while it is read, an error of the kind `InvalidData` or `UnexpectedEof` says that it is damaged.
    pub fn open<R: Read>(&self, from: R) -> std::result::Result<impl Read + use<R>, Unreadable> {
        let from = BufReader::with_capacity(1 << 16, from);
        let decryptor = Decryptor::new_buffered(from).map_err(|e| self.unreadable(e))?;
        decryptor.decrypt(self.keys.iter().map(|key| key as &dyn age::Identity)).map_err(|e| self.unreadable(e))
    }

    fn unreadable(&self, e: DecryptError) -> Unreadable {
        match e {
            DecryptError::NoMatchingKeys if self.keys.is_empty() => {
                Unreadable::NoKey { wanted: None, have: self.origin.clone() }
            }
            DecryptError::NoMatchingKeys => {
                let of = self.recipients().join(", ");
                let wanted = Some("others, or was changed at its beginning".to_owned());
                Unreadable::NoKey { wanted, have: format!("the identity in {} is of {of}", self.origin) }
            }
            DecryptError::InvalidMac | DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
                Unreadable::Damaged
            }
            DecryptError::Io(e) if !is_damage(&e) => Unreadable::Io(e),
            _ => Unreadable::NotAge,
        }
    }
}

/// Whether an error of reading on says that the content isn't what was encrypted, and not that the disk failed.
pub fn is_damage(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Makes an identity, in a new file that its owner alone may read, as age-keygen writes it. Returns its recipient.
///
/// # Errors
/// When there is a file already, or it can't be written.
pub fn make_identity(path: &Path, at: &str) -> Result<String> {
    let key = x25519::Identity::generate();
    let recipient = key.to_public().to_string();
    let secret = key.to_string();
    let text = Zeroizing::new(format!("# created: {at}\n# public key: {recipient}\n{}\n", secret.expose_secret()));
    let failed = || Error::io("write the age identity", path);
    let mut file = AtomicFile::create_private(path).map_err(failed())?;
    file.write_all(text.as_bytes()).map_err(failed())?;
    if !file.commit_new().map_err(failed())? {
        return Err(Error::invalid(path, "there is a file already", "name another, or use that key"));
    }
    Ok(recipient)
}

/// Of how many bytes an encrypted file is, told from its header and its own size, without a key. `from` is at its beginning.
///
/// # Errors
/// When its header can't be read or has no end, or what is behind it can be no content.
pub fn plain_bytes(from: impl Read, sealed_bytes: u64) -> io::Result<u64> {
    let damaged = || io::Error::from(Unreadable::NotAge);
    let mut header = Vec::new();
    from.take(MAX_HEADER_BYTES).read_to_end(&mut header)?;
    if !header.starts_with(MAGIC) {
        return Err(damaged());
    }
    // The last line: three dashes and a code, which no line of a recipient begins with.
    let last = header.windows(5).position(|at| at == b"\n--- ").ok_or_else(damaged)? + 1;
    let end = header[last..].iter().position(|b| *b == b'\n').ok_or_else(damaged)? + last + 1;
    let payload = sealed_bytes.checked_sub(end as u64 + NONCE_BYTES).ok_or_else(damaged)?;
    let chunks = payload.div_ceil(CHUNK_BYTES + TAG_BYTES);
    payload.checked_sub(chunks * TAG_BYTES).filter(|_| chunks > 0).ok_or_else(damaged)
}
