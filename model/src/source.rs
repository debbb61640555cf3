//! Where a base model comes from: a local folder or file, or the Hugging Face hub at a pinned revision. A download lands
//! in the hub's own cache layout, so that transformers and other tools share it; offline, only that cache is read.

use crate::error::{ModelError, Result};
use crate::patience::{Silence, until_silent};
use crate::safetensor::shard_names;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::event::{Emit, EventKind, Silent};
use limbeck_artifact::relpath::SafeRelPath;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_REVISION: &str = "main";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// One of the two; the first where there are both.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "tokenizer.model"];
const OPTIONAL: [&str; 4] =
    ["tokenizer_config.json", "added_tokens.json", "chat_template.jinja", "generation_config.json"];
const RETRIES: usize = 3;
/// How long the hub may send nothing: a server that is there answers within seconds, and a mobile network stalls for some.
const SILENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// What a recipe names as its base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A Hugging Face folder or a `.gguf` file.
    Path(PathBuf),
    /// `hf:OWNER/NAME`, or one GGUF file of it, `hf:OWNER/NAME/FILE.gguf`.
    Hub { repo: String, file: Option<String> },
}

impl ModelRef {
    /// # Errors
    /// When the text is empty or begins with `hf:` and does not name a repository.
    pub fn parse(given: &str) -> Result<Self> {
        let wrong = |why: &str| Err(ModelError::ModelRef { given: given.into(), why: why.into() });
        let Some(hub) = given.strip_prefix("hf:") else {
            return if given.is_empty() { wrong("it is empty") } else { Ok(Self::Path(given.into())) };
        };
        let how = "write hf:OWNER/NAME, or hf:OWNER/NAME/FILE.gguf";
        let mut parts = hub.splitn(3, '/');
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else { return wrong(how) };
        let plain = |part: &str| {
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty()
                && part.len() <= 96
                && part.chars().all(fine)
                && !part.starts_with('.')
                && !part.contains("--")
        };
        if !plain(owner) || !plain(name) {
            return wrong(how);
        }
        let file = parts.next().map(str::to_owned);
        if file.as_ref().is_some_and(|f| !f.ends_with(".gguf") || SafeRelPath::parse(f).is_err()) {
            return wrong("the file is to be a .gguf within the repository");
        }
        Ok(Self::Hub { repo: format!("{owner}/{name}"), file })
    }
}

/// How to reach the hub. Nothing is read from the environment here.
#[derive(Clone, Debug, Default)]
pub struct HubOptions {
    /// Branch, tag or commit; `main` when absent. A run records the commit that it got.
    pub revision: Option<String>,
    pub token: Option<String>,
    /// A mirror's address instead of huggingface.co.
    pub endpoint: Option<String>,
    /// The cache's folder, `~/.cache/huggingface/hub` when absent.
    pub cache_dir: Option<PathBuf>,
    /// Read the cache only.
    pub offline: bool,
    /// Give up when the hub sends nothing for so long; a minute when absent. A slow download that goes on is never given up.
    pub silence: Option<Duration>,
}

/// A local path for `model`: itself, or what the hub has at the pinned revision.
///
/// # Errors
/// When a path does not exist, the hub refuses or lacks a file, or, offline, the cache lacks it.
pub fn resolve(model: &ModelRef, options: &HubOptions) -> Result<PathBuf> {
    resolve_with(model, options, &Silent)
}

/// [`resolve`], telling `emit` about downloads.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_with(model: &ModelRef, options: &HubOptions, emit: &dyn Emit) -> Result<PathBuf> {
    match model {
        ModelRef::Path(path) => match path.exists() {
            true => Ok(path.clone()),
            false => Err(ModelError::Read {
                path: path.clone(),
                source: std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    "no such file or folder; a model of the hub is written hf:OWNER/NAME",
                ),
            }),
        },
        ModelRef::Hub { repo, file } => Hub::new(repo, options)?.fetch(file.as_deref(), emit),
    }
}

struct Hub<'a> {
    repo: &'a str,
    options: &'a HubOptions,
    revision: &'a str,
    cache: Cache,
}

impl<'a> Hub<'a> {
    fn new(repo: &'a str, options: &'a HubOptions) -> Result<Self> {
        let revision = options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
        if SafeRelPath::parse(revision).is_err() {
            return Err(ModelError::ModelRef { given: revision.into(), why: "it is no branch, tag or commit".into() });
        }
        let cache = match &options.cache_dir {
            Some(dir) => Cache::new(std::path::absolute(dir).map_err(ModelError::read(dir))?),
            // hf-hub would panic without a home.
            None if std::env::home_dir().is_none() => {
                let why = "there is no home folder to keep it in; name a cache folder";
                return Err(ModelError::ModelRef { given: repo.into(), why: why.into() });
            }
            None => Cache::default(),
        };
        Ok(Self { repo, options, revision, cache })
    }

    fn fetch(&self, file: Option<&str>, emit: &dyn Emit) -> Result<PathBuf> {
        if self.options.offline {
            return self.read_cache(file);
        }
        let api = self.api()?;
        let asked = api.repo(self.at(self.revision));
        let about = self.answered(None, move |_| asked.info(), |()| {})?;
        if !is_commit(&about.sha) {
            return Err(self.wrong(format!("it answers with '{}', which is no commit", about.sha)));
        }
        // From here on everything is asked by commit: a branch may move between two files.
        let has: BTreeSet<&str> = about.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let path = match file {
            Some(file) if has.contains(file) => self.download(&api, &about.sha, file, emit)?,
            Some(file) => return Err(self.wrong(format!("it has no {file}{}", also(&has)))),
            None => self.download_folder(&api, &about.sha, &has, emit)?,
        };
        // What `main` meant is remembered, so that the same recipe runs offline.
        let remember = self.cache.repo(self.at(self.revision)).create_ref(&about.sha);
        remember.map_err(ModelError::write(self.cache.path()))?;
        Ok(path)
    }

    fn download_folder(&self, api: &Api, commit: &str, has: &BTreeSet<&str>, emit: &dyn Emit) -> Result<PathBuf> {
        let get = |name: &str| self.download(api, commit, name, emit);
        let tokenizer = TOKENIZERS.into_iter().find(|name| has.contains(name)).unwrap_or(TOKENIZERS[0]);
        let required = [CONFIG, tokenizer];
        if let Some(missing) = required.iter().find(|name| !has.contains(*name)) {
            return Err(self.wrong(format!("it has no {missing}{}", also(has))));
        }
        for name in required.into_iter().chain(OPTIONAL).filter(|name| has.contains(name)) {
            get(name)?;
        }
        if has.contains(SINGLE) {
            get(SINGLE)?;
        } else if has.contains(INDEX) {
            for shard in shard_names(&get(INDEX)?)? {
                get(&shard)?;
            }
        } else {
            return Err(self.wrong(format!("it has no {SINGLE} and no {INDEX}{}", also(has))));
        }
        Ok(self.cache.repo(self.at(commit)).pointer_path(commit))
    }

    fn download(&self, api: &Api, commit: &str, name: &str, emit: &dyn Emit) -> Result<PathBuf> {
        if let Some(cached) = self.cache.repo(self.at(commit)).get(name) {
            return Ok(cached);
        }
        let repo = api.repo(self.at(commit));
        let (asked, url) = (api.clone(), repo.url(name));
        let about = self.answered(Some(name), move |_| asked.metadata(&url), |()| {})?;
        // hf-hub makes paths of both: a server must not choose where on this disk they lead.
        let etag = about.etag();
        if about.commit_hash() != commit
            || etag.is_empty()
            || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(self.wrong(format!("for {name} it answers with another commit or an unusable etag")));
        }
        let mut bar = Bar { emit, unit: format!("MiB of {name}"), done: 0, total: about.size() as u64, shown: 0 };
        let file = name.to_owned();
        let download = move |tell: Tell| repo.download_with_progress(&file, Arrived(tell));
        let path = self.answered(Some(name), download, |bytes| bar.arrived(bytes))?;
        self.check(&path, name, etag, about.size() as u64)?;
        emit.emit(EventKind::Wrote { path: path.display().to_string(), bytes: about.size() as u64 });
        Ok(path)
    }

    /// What `ask` is answered, if the hub does not fall silent.
    fn answered<T: Send + 'static, N: Send + 'static>(
        &self,
        file: Option<&str>,
        ask: impl FnOnce(Box<dyn Fn(N) + Send>) -> Result<T, ApiError> + Send + 'static,
        news: impl FnMut(N),
    ) -> Result<T> {
        let silence = self.options.silence.unwrap_or(SILENCE);
        match until_silent(silence, ask, news) {
            Ok(answer) => answer.map_err(|e| self.failed(e, file)),
            Err(Silence) => {
                let what = file.map(|f| format!("{f}: ")).unwrap_or_default();
                let hint = "check the network or the endpoint and try again, or run with --offline if the model is in the cache";
                Err(self.wrong(format!("{what}nothing came for {} s; {hint}", silence.as_secs_f64())))
            }
        }
    }

    /// Large files carry their SHA-256 as etag; all have a length.
    fn check(&self, path: &Path, name: &str, etag: &str, size: u64) -> Result<()> {
        let found = std::fs::metadata(path).map_err(ModelError::read(path))?.len();
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        let same = found == size && (!is_sha256 || sha256_file(path).map_err(ModelError::read(path))? == etag);
        if same {
            return Ok(());
        }
        if let Ok(blob) = std::fs::canonicalize(path) {
            let _ = std::fs::remove_file(blob);
        }
        let _ = std::fs::remove_file(path);
        Err(self.wrong(format!("{name} arrived damaged; it was removed from the cache, try again")))
    }

    fn read_cache(&self, file: Option<&str>) -> Result<PathBuf> {
        let repo = self.cache.repo(self.at(self.revision));
        // A commit that was fetched under a branch's name has no reference of its own.
        let by_commit = is_commit(self.revision).then(|| repo.pointer_path(self.revision));
        let cached = |name: &str| {
            repo.get(name).or_else(|| by_commit.as_ref().map(|dir| dir.join(name)).filter(|path| path.exists()))
        };
        let need = |name: &str| cached(name).ok_or_else(|| self.not_cached(name));
        if let Some(file) = file {
            return need(file);
        }
        let config = need(CONFIG)?;
        if TOKENIZERS.iter().all(|name| cached(name).is_none()) {
            return Err(self.not_cached(TOKENIZERS[0]));
        }
        if cached(SINGLE).is_none() {
            let index = cached(INDEX).ok_or_else(|| self.not_cached(SINGLE))?;
            for shard in shard_names(&index)? {
                need(&shard)?;
            }
        }
        Ok(config.parent().unwrap_or(Path::new(".")).to_path_buf())
    }

    fn api(&self) -> Result<Api> {
        let builder = ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint().to_owned())
            .with_token(self.options.token.clone())
            .with_retries(RETRIES)
            .with_progress(false)
            .with_user_agent("limbeck", env!("CARGO_PKG_VERSION"));
        builder.build().map_err(|e| self.failed(e, None))
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.to_owned(), RepoType::Model, revision.to_owned())
    }

    fn endpoint(&self) -> &str {
        self.options.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/')
    }

    fn model(&self) -> String {
        format!("{}@{}", self.repo, self.revision)
    }

    fn wrong(&self, why: String) -> ModelError {
        ModelError::Hub { model: self.model(), endpoint: self.endpoint().into(), why }
    }

    fn not_cached(&self, name: &str) -> ModelError {
        let why = format!("{name} is missing; run once without --offline");
        ModelError::Offline { model: self.model(), cache: self.cache.path().clone(), why }
    }

    fn failed(&self, error: ApiError, file: Option<&str>) -> ModelError {
        let what = file.map(|f| format!("{f}: ")).unwrap_or_default();
        let said = error.to_string();
        let hint = match status(&error) {
            Some(401 | 403) if self.options.token.is_none() => {
                "; the model is private, gated or misspelt: give a token, and accept its terms on the hub"
            }
            Some(401 | 403) => "; the token has no access: check it, and accept the model's terms on the hub",
            Some(404) => "; check owner, name and revision",
            Some(_) => "",
            None => "; check the network, or run with --offline if the model is in the cache",
        };
        self.wrong(format!("{what}{said}{hint}"))
    }
}

fn status(error: &ApiError) -> Option<u16> {
    // hf-hub does not export ureq's error type; its text says `http status: 404`.
    let text = error.to_string();
    let (_, after) = text.split_once("http status: ")?;
    after.get(..3)?.parse().ok()
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Names the GGUF files, when that is what the repository has.
fn also(has: &BTreeSet<&str>) -> String {
    let ggufs: Vec<_> = has.iter().filter(|name| name.ends_with(".gguf")).take(8).copied().collect();
    if ggufs.is_empty() {
        String::new()
    } else {
        format!("; it has {}: name one, hf:OWNER/NAME/FILE", ggufs.join(", "))
    }
}

/// Tells how many bytes have arrived.
type Tell = Box<dyn Fn(u64) + Send>;

/// hf-hub's progress, told to another thread.
struct Arrived(Tell);

impl Progress for Arrived {
    fn init(&mut self, _size: usize, _filename: &str) {}

    fn update(&mut self, size: usize) {
        (self.0)(size as u64);
    }

    fn finish(&mut self) {}
}

/// Download progress as events, one for each 16 MiB.
struct Bar<'a> {
    emit: &'a dyn Emit,
    unit: String,
    done: u64,
    total: u64,
    shown: u64,
}

impl Bar<'_> {
    fn arrived(&mut self, bytes: u64) {
        self.done += bytes;
        if self.done - self.shown >= 16 * MIB {
            self.shown = self.done;
            let (done, total) = (self.done / MIB, self.total.div_ceil(MIB));
            self.emit.emit(EventKind::Progress { done, total, unit: self.unit.clone() });
        }
    }
}
