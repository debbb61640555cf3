//! A store's objects in a bucket that speaks the S3 protocol. The commit point is the same as in a folder, creating the next
//! log entry where nothing has its name; here the server decides who was first (`If-None-Match: *`).

mod http;

use super::Repaired;
use super::storage::{Listing, Stat, Storage, Sure, too_large};
use crate::digest::hex;
use crate::files::AtomicFile;
use crate::{Error, Result};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Key;
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// What begins the address of a store in a bucket.
pub const SCHEME: &str = "s3://";
/// A larger file goes and comes in pieces of this size; so much of it is in memory.
const PIECE_BYTES: u64 = 16 << 20;
const FIRST_PIECE_BYTES: u64 = 64 << 10;
/// Log entries that are read ahead at a time.
const READ_AHEAD: usize = 16;
/// A server that goes on saying that somebody else is just writing is asked no more often than this.
const MAX_CONFLICTS: u32 = 20;
/// Says in an entry's metadata which attempt wrote it.
const WRITER: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("limbeck-writer"));

/// Where a bucket is and how it is opened.
#[derive(Clone)]
pub struct BucketAccess {
    address: String,
    bucket: String,
    prefix: String,
    /// `AWS_*` and their values.
    settings: BTreeMap<String, String>,
}

/// Secrets are not shown.
impl std::fmt::Debug for BucketAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketAccess").field("address", &self.address).finish_non_exhaustive()
    }
}

impl BucketAccess {
    /// `address` is `s3://BUCKET/PREFIX`; `settings` are the variables that other S3 clients read: `AWS_ENDPOINT_URL`,
    /// `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_ALLOW_HTTP` and so on.
    pub fn new(address: &str, settings: impl IntoIterator<Item = (String, String)>) -> Result<BucketAccess> {
        let rest = address.strip_prefix(SCHEME).unwrap_or_default();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let is_plain = |part: &str| part.bytes().all(plain) && !part.is_empty() && !part.bytes().all(|b| b == b'.');
        if !is_plain(bucket) || !(prefix.is_empty() || prefix.split('/').all(is_plain)) {
            let reason = format!("{address:?} is no address of a store in a bucket");
            return Err(Error::refused(
                reason,
                "it is written s3://BUCKET/PREFIX, of letters, digits, '-', '_' and '.'",
            ));
        }
        let address =
            if prefix.is_empty() { format!("{SCHEME}{bucket}") } else { format!("{SCHEME}{bucket}/{prefix}") };
        let settings = settings.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        Ok(BucketAccess { address, bucket: bucket.to_owned(), prefix: prefix.to_owned(), settings })
    }

    /// Differs where the store differs: the server and the place on it, without keys.
    pub fn identity(&self) -> String {
        format!("{} on {}", self.address, self.endpoint().unwrap_or("amazonaws.com"))
    }

    /// Whether all is said that opening it takes; the server is not asked.
    ///
    /// # Errors
    /// What is missing, or would go openly over a network.
    pub fn check(&self) -> Result<()> {
        self.build().map(|_| ())
    }

    /// The server's own address, where it isn't Amazon's.
    fn endpoint(&self) -> Option<&str> {
        ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
            .iter()
            .find_map(|name| self.settings.get(*name))
            .map(String::as_str)
    }

    /// What is signed with the keys and then sent openly can be changed on its way back.
    fn check_endpoint(&self) -> Result<()> {
        let Some(endpoint) = self.endpoint() else { return Ok(()) };
        let allowed = self.settings.get("AWS_ALLOW_HTTP").is_some_and(|v| matches!(v.as_str(), "true" | "1"));
        let written = "AWS_ENDPOINT_URL=https://HOST[:PORT]";
        let uri = match endpoint.parse::<ureq::http::Uri>() {
            Ok(uri) if uri.host().is_some() => uri,
            // Not shown: a password may be in it.
            _ => return Err(Error::refused("the bucket's AWS_ENDPOINT_URL is no address of a server", written)),
        };
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            let reason = "the bucket's AWS_ENDPOINT_URL has a user or a password in it";
            return Err(Error::refused(reason, "keys go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
        }
        let refused = |reason: &str, hint: &str| Err(Error::refused(format!("{endpoint}: {reason}"), hint));
        let host = uri.host().unwrap_or_default();
        let loopback = matches!(host, "localhost" | "[::1]")
            || host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
        match uri.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if loopback || allowed => Ok(()),
            Some("http") => refused(
                "plain http goes to this machine only",
                "use https; AWS_ALLOW_HTTP=true allows it in a network you trust",
            ),
            _ => refused("it is neither https nor http", written),
        }
    }

    fn check_credentials(&self) -> Result<()> {
        let has = |name: &str| self.settings.contains_key(name);
        let known = ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_METADATA_ENDPOINT"];
        let full = has("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        if (has("AWS_ACCESS_KEY_ID") && has("AWS_SECRET_ACCESS_KEY")) || known.iter().any(|name| has(name)) || full {
            return Ok(());
        }
        let reason = format!("nothing says with which keys {} is opened", self.address);
        let hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for another server than Amazon's \
                    (on a machine with a role of its own AWS_METADATA_ENDPOINT=http://169.254.169.254)";
        Err(Error::refused(reason, hint))
    }

    fn build(&self) -> Result<AmazonS3> {
        self.check_endpoint()?;
        self.check_credentials()?;
        let refused = |e: object_store::Error| {
            Error::refused(format!("{} cannot be opened: {e}", self.address), "the AWS_* variables say how")
        };
        let mut builder = AmazonS3Builder::new().with_bucket_name(&self.bucket).with_http_connector(http::Connector);
        // Its default is this too, but others' servers want it said.
        if !self.settings.contains_key("AWS_REGION") && !self.settings.contains_key("AWS_DEFAULT_REGION") {
            builder = builder.with_region("us-east-1");
        }
        for (name, value) in &self.settings {
            // Not all that begins with AWS_ is about this.
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        builder.build().map_err(refused)
    }
}

/// The bucket, asked by plain threads; a runtime of its own keeps what object_store needs to wait and try again.
pub(super) struct Bucket {
    address: String,
    prefix: String,
    client: Arc<AmazonS3>,
    runtime: Runtime,
    /// Log entries that were read: they are written once and never replaced.
    entries: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bucket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Bucket {
    pub fn open(access: &BucketAccess) -> Result<Bucket> {
        let client = Arc::new(access.build()?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .map_err(Error::io("start the client of", Path::new(&access.address)))?;
        let (address, prefix) = (access.address.clone(), access.prefix.clone());
        Ok(Bucket { address, prefix, client, runtime, entries: Mutex::default() })
    }

    fn key(&self, key: &str) -> Key {
        Key::from(format!("{}/{key}", self.prefix))
    }

    /// Does something with the client on its runtime and waits; unlike `block_on`, from any thread.
    fn ask<T, F, D>(&self, what: D) -> object_store::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
        D: FnOnce(Arc<AmazonS3>) -> F,
    {
        let (tell, answer) = std::sync::mpsc::sync_channel(1);
        let work = what(Arc::clone(&self.client));
        self.runtime.spawn(async move { tell.send(work.await).unwrap_or_default() });
        answer.recv().unwrap_or_else(|_| {
            let source = "the client stopped".into();
            Err(object_store::Error::Generic { store: "S3", source })
        })
    }

    /// Who wrote an object: the mark of [`Storage::create`].
    fn writer(&self, key: &str) -> object_store::Result<Option<String>> {
        let key = self.key(key);
        self.ask(move |client| async move {
            let found = client.get(&key).await?;
            Ok(found.attributes.get(&WRITER).map(|mark| mark.to_string()))
        })
    }

    fn piece(&self, key: &str, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let key = self.key(key);
        let bytes = self.ask(move |client| async move { client.get_range(&key, from..to).await }).map_err(told)?;
        if bytes.len() as u64 == to - from { Ok(bytes.to_vec()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Hands on all of an object, piece by piece; the digest of what came.
    fn pieces(&self, key: &str, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<String> {
        let bytes = self.stat(key)?.bytes;
        let (mut hash, mut from) = (Sha256::new(), 0);
        while from < bytes {
            let to = bytes.min(from + PIECE_BYTES);
            let piece = self.piece(key, from, to)?;
            hash.update(&piece);
            take(&piece)?;
            from = to;
        }
        Ok(hex(&hash.finalize()))
    }

    fn put_pieces(&self, key: &str, source: &Path, sha256: &str) -> Result<u64> {
        let place = self.place(key);
        let failed = |e: object_store::Error| Error::io("store", &place)(told(e));
        let mut file = fs::File::open(source).map_err(Error::io("read", source))?;
        let to = self.key(key);
        let upload = self.ask(move |client| async move { client.put_multipart(&to).await }).map_err(failed)?;
        let upload = Arc::new(tokio::sync::Mutex::new(upload));
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let sent = loop {
            let mut piece = Vec::new();
            if let Err(e) = (&mut file).take(PIECE_BYTES).read_to_end(&mut piece) {
                break Err(Error::io("read", source)(e));
            }
            if piece.is_empty() {
                break Ok(());
            }
            hash.update(&piece);
            bytes += piece.len() as u64;
            let upload = Arc::clone(&upload);
            let put = self.ask(|_| async move {
                let part = upload.lock().await.put_part(PutPayload::from(piece));
                part.await
            });
            if let Err(e) = put {
                break Err(failed(e));
            }
        };
        let changed = || Error::invalid(source, "it changed while it was stored", "try again when nobody writes to it");
        let sent = sent.and_then(|()| if hex(&hash.finalize()) == sha256 { Ok(()) } else { Err(changed()) });
        let ended = Arc::clone(&upload);
        match sent {
            Ok(()) => self.ask(|_| async move { ended.lock().await.complete().await }).map_err(failed).map(|_| bytes),
            Err(e) => {
                // What is not cleared here the bucket's own rules clear.
                let _ = self.ask(|_| async move { ended.lock().await.abort().await });
                Err(e)
            }
        }
    }

    fn remembered(&self, key: &str) -> Option<Vec<u8>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn remember(&self, key: &str, bytes: &[u8]) {
        if key.starts_with("log/") {
            self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), bytes.to_vec());
        }
    }
}

impl Storage for Bucket {
    fn place(&self, key: &str) -> PathBuf {
        if key.is_empty() { PathBuf::from(&self.address) } else { PathBuf::from(format!("{}/{key}", self.address)) }
    }

    fn read(&self, key: &str, max_bytes: u64) -> io::Result<Vec<u8>> {
        if let Some(bytes) = self.remembered(key) {
            return Ok(bytes);
        }
        let at = self.key(key);
        let got = self.ask(move |client| async move {
            let found = client.get(&at).await?;
            if found.meta.size > max_bytes { Ok(None) } else { found.bytes().await.map(Some) }
        });
        let bytes = got.map_err(told)?.ok_or_else(|| too_large(max_bytes))?.to_vec();
        self.remember(key, &bytes);
        Ok(bytes)
    }

    fn reader(&self, key: &str) -> io::Result<Box<dyn Read + '_>> {
        let bytes = self.stat(key)?.bytes;
        Ok(Box::new(Pieces { bucket: self, key: key.to_owned(), bytes, from: 0, piece: io::Cursor::default() }))
    }

    fn stat(&self, key: &str) -> io::Result<Stat> {
        let key = self.key(key);
        let meta = self.ask(move |client| async move { client.head(&key).await }).map_err(told)?;
        let seconds = u64::try_from(meta.last_modified.timestamp()).unwrap_or(0);
        Ok(Stat { bytes: meta.size, modified: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) })
    }

    fn list(&self, part: &str) -> io::Result<Listing> {
        let part = self.key(part);
        let found =
            self.ask(move |client| async move { client.list_with_delimiter(Some(&part)).await }).map_err(told)?;
        let mut names: Vec<String> =
            found.objects.iter().filter_map(|o| o.location.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(Listing { names, ..Listing::default() })
    }

    fn digest(&self, key: &str) -> io::Result<String> {
        self.pieces(key, |_| Ok(()))
    }

    /// The server checked the digest of what it took, for it is signed with the request: an object of the right name and size
    /// is cheaply believed.
    fn is_whole(&self, key: &str, sha256: &str, bytes: u64, sure: Sure) -> bool {
        match sure {
            Sure::Cheaply => self.stat(key).is_ok_and(|stat| stat.bytes == bytes),
            Sure::ByDigest => self.digest(key).is_ok_and(|found| found == sha256),
        }
    }

    /// An answer may be lost, and the request sent again: then it is our own entry that is there already. Which of the
    /// attempts wrote it stands in its metadata.
    fn create(&self, key: &str, bytes: &[u8]) -> io::Result<bool> {
        let mark = format!("{:016x}{:016x}", random(), random());
        for _ in 0..MAX_CONFLICTS {
            let (at, payload) = (self.key(key), PutPayload::from(bytes.to_vec()));
            let attributes = Attributes::from_iter([(WRITER, mark.clone())]);
            let options = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
            let put = self.ask(move |client| async move { client.put_opts(&at, payload, options).await });
            let error = match put {
                Ok(_) => return Ok(true),
                Err(e) => e,
            };
            match self.writer(key) {
                Ok(writer) => return Ok(writer.as_deref() == Some(mark.as_str())),
                // Another one's write was refused or is not through: the server decides on the next attempt.
                Err(object_store::Error::NotFound { .. }) if error.to_string().contains("409") => {
                    std::thread::sleep(Duration::from_millis(50 + random() % 200));
                }
                Err(_) => {
                    let told = told(error);
                    let doubt = format!("{told}; whether it was written is not known, `limbeck log` tells");
                    return Err(io::Error::new(told.kind(), doubt));
                }
            }
        }
        Err(io::Error::other("the server went on saying that another write of the same entry is under way"))
    }

    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let (at, payload) = (self.key(key), PutPayload::from(bytes.to_vec()));
        self.ask(move |client| async move { client.put(&at, payload).await }).map(|_| ()).map_err(told)
    }

    fn put_file(&self, key: &str, source: &Path, sha256: &str) -> Result<u64> {
        let bytes = source.metadata().map_err(Error::io("read", source))?.len();
        if bytes > PIECE_BYTES {
            return self.put_pieces(key, source, sha256);
        }
        let content = fs::read(source).map_err(Error::io("read", source))?;
        if crate::digest::sha256_hex(&content) != sha256 {
            return Err(Error::invalid(source, "it changed while it was stored", "try again when nobody writes to it"));
        }
        self.put(key, &content).map_err(Error::io("store", &self.place(key)))?;
        Ok(content.len() as u64)
    }

    fn fetch(&self, key: &str, sha256: &str, to: &Path) -> Result<()> {
        let place = self.place(key);
        let mut file = AtomicFile::create(to).map_err(Error::io("write", to))?;
        let found = self.pieces(key, |piece| file.write_all(piece));
        if found.map_err(Error::io("read the content of a version,", &place))? != sha256 {
            return Err(Error::invalid(&place, "the blob is damaged", "put the artifact again"));
        }
        file.commit().map_err(Error::io("write", to))
    }

    /// Nothing is removed from a bucket, so nothing has to be young; but it has to be there.
    fn touch(&self, key: &str) -> io::Result<()> {
        self.stat(key).map(|_| ())
    }

    /// What the server acknowledged is durable.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn expect_reads(&self, keys: &[String], max_bytes: u64) {
        let missing: Vec<&String> = keys.iter().filter(|key| self.remembered(key).is_none()).collect();
        for keys in missing.chunks(READ_AHEAD).filter(|_| missing.len() > 1) {
            let wanted: Vec<(String, Key)> = keys.iter().map(|key| ((*key).clone(), self.key(key))).collect();
            let got = self.ask(move |client| async move {
                let mut under_way = JoinSet::new();
                for (name, key) in wanted {
                    let client = Arc::clone(&client);
                    under_way.spawn(async move {
                        let found = client.get(&key).await?;
                        let fits = found.meta.size <= max_bytes;
                        Ok::<_, object_store::Error>(if fits { Some((name, found.bytes().await?)) } else { None })
                    });
                }
                Ok::<_, object_store::Error>(under_way.join_all().await)
            });
            // What failed, or is larger than it may be, is asked for again by whoever needs it, and told then.
            for (name, bytes) in got.unwrap_or_default().into_iter().flatten().flatten() {
                self.remember(&name, &bytes);
            }
        }
    }

    fn can_remove(&self) -> Result<()> {
        let reason = format!(
            "nothing is removed from {}: object storage cannot take an object aside to see whether a \
                              promotion wants it after all",
            self.address
        );
        Err(Error::refused(reason, "`limbeck gc --dry-run` tells what nothing needs"))
    }

    fn remove_old(&self, _key: &str, _min_age: Duration) -> Result<bool> {
        self.can_remove().map(|()| false)
    }

    fn clear_leftovers(&self) -> Result<Repaired> {
        Ok(Repaired::default())
    }
}

/// An object from front to back.
struct Pieces<'a> {
    bucket: &'a Bucket,
    key: String,
    bytes: u64,
    /// Up to where it was asked for.
    from: u64,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.piece.position() == self.piece.get_ref().len() as u64 && self.from < self.bytes {
            // A small one first: some want no more than a header.
            let length = if self.from == 0 { FIRST_PIECE_BYTES } else { PIECE_BYTES };
            let to = self.bytes.min(self.from + length);
            self.piece = io::Cursor::new(self.bucket.piece(&self.key, self.from, to)?);
            self.from = to;
        }
        self.piece.read(into)
    }
}

/// Seeded by the system; no secret depends on it.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// As the errors of a folder are told.
fn told(e: object_store::Error) -> io::Error {
    use object_store::Error as E;
    let kind = match &e {
        E::NotFound { source, .. } if source.to_string().contains("NoSuchBucket") => {
            return io::Error::other("the server has no such bucket; make it first");
        }
        E::NotFound { .. } => return io::Error::new(io::ErrorKind::NotFound, "there is no such object"),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    let mut text = e.to_string();
    // Servers answer with pages; what they say of themselves stands at the beginning.
    if let Some((at, _)) = text.char_indices().nth(400) {
        text.truncate(at);
        text.push_str(" ...");
    }
    io::Error::new(kind, crate::untrusted::visible_line(&text).into_owned())
}
