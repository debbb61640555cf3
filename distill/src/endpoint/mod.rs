//! A live model behind an OpenAI-compatible address, asked many things at once: as an arm of an evaluation and as a teacher.
//! Whatever the network does, each question ends answered or rejected with a reason; what was answered is on disk before it
//! is handed on, and no more is spent than was allowed.

mod ask;
mod batch;
mod budget;
mod limits;
mod load;
mod posterior;
mod replies;
mod reply;
mod request;
mod tls;
mod wire;

pub use ask::{Asked, Endpoint, Stopped, Told};
pub use batch::{BatchError, BatchFile, Batched, Fate, MAX_REQUESTS, Taken, read_batch};
pub use budget::{Budget, Price};
pub use load::{LoadError, LoadPlan, Pace, Timed};
pub use posterior::{Codes, of_codes, of_samples};
pub use replies::{Replies, ReplyError};
pub use reply::{Reply, TokenProb};
pub use request::{Api, MaxTokensKey, Question, Sampling, text_tokens};
pub use tls::{certificates, refused, tls};
pub use wire::{Fault, Reason, Rejection};

use std::fmt;
use std::time::Duration;

/// Where the model is and how hard it may be asked.
#[derive(Clone, Debug)]
pub struct EndpointPlan {
    /// A base address as OpenAI clients take it, with `/v1`.
    pub url: String,
    /// The model's name there.
    pub model: String,
    pub api: Api,
    pub key: Option<Key>,
    /// Certificates (PEM) that the server's must stem from; None: the public authorities'.
    pub ca: Option<Vec<u8>>,
    /// Requests at a time.
    pub concurrency: usize,
    /// Attempts after the first one.
    pub max_retries: u32,
    /// Of one attempt.
    pub timeout: Duration,
    /// Before the second attempt; doubled before each further one.
    pub backoff: Duration,
    /// 0: as many as it takes.
    pub requests_per_minute: u32,
    /// Tokens of prompts and answers; 0: as many as it takes.
    pub tokens_per_minute: u32,
    pub budget: Budget,
    /// What a question costs in a batch, of what it costs asked by itself.
    pub batch_share: f64,
    /// Whether the network may be used at all; without it only kept replies answer.
    pub online: bool,
    /// The time of day, RFC 3339: what is asked of a model that changes is dated.
    pub clock: fn() -> String,
}

/// A secret that is sent and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    pub fn new(secret: String) -> Key {
        Key(secret)
    }

    /// The text without the secret: servers repeat it in their errors.
    pub(crate) fn scrub(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "(key)") }
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl EndpointPlan {
    /// A chat model that asks for no key and costs nothing, one question at a time, each once.
    pub fn plain(url: &str, model: &str, clock: fn() -> String) -> EndpointPlan {
        EndpointPlan {
            url: url.to_owned(),
            model: model.to_owned(),
            api: Api::Chat,
            key: None,
            ca: None,
            concurrency: 1,
            max_retries: 0,
            timeout: Duration::from_secs(60),
            backoff: Duration::from_millis(500),
            requests_per_minute: 0,
            tokens_per_minute: 0,
            budget: Budget::default(),
            batch_share: 1.0,
            online: true,
            clock,
        }
    }

    /// What is wrong with the address, if anything is.
    pub fn problem(&self) -> Option<String> {
        let rest = self.url.strip_prefix("https://").or_else(|| self.url.strip_prefix("http://"));
        let Some(rest) = rest.filter(|rest| !rest.is_empty() && !rest.starts_with('/')) else {
            return Some("it is no http:// or https:// address".to_owned());
        };
        let host = rest.split('/').next().unwrap_or(rest);
        if host.contains('@') {
            return Some("it holds a name or a password; name the key's environment variable instead".to_owned());
        }
        if self.url.contains(char::is_whitespace) {
            return Some("it holds white space".to_owned());
        }
        let unusable = self.ca.as_ref().is_some_and(|pem| certificates(pem).is_empty());
        unusable.then(|| "the file of its authorities holds no certificate (PEM)".to_owned())
    }

    /// Whether the key would cross a network in the clear.
    pub fn is_exposed(&self) -> bool {
        self.key.is_some() && self.url.starts_with("http://") && !self.is_local()
    }

    pub(crate) fn is_local(&self) -> bool {
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        let host = rest.split('/').next().unwrap_or(rest);
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or(v6),
            None => host.split(':').next().unwrap_or(host),
        };
        host == "localhost" || host == "::1" || host.starts_with("127.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(url: &str) -> EndpointPlan {
        EndpointPlan { key: Some(Key::new("sk-secret".to_owned())), ..EndpointPlan::plain(url, "m", String::new) }
    }

    #[test]
    fn addresses_are_checked_and_a_key_is_never_shown() {
        for bad in
            ["", "api.example.com/v1", "ftp://x/v1", "https://", "https:///v1", "https://me:pw@x/v1", "http://x /v1"]
        {
            assert!(plan(bad).problem().is_some(), "{bad}");
        }
        let local = plan("http://127.0.0.1:8080/v1");
        assert!(local.problem().is_none() && !local.is_exposed());
        assert!(!plan("http://[::1]:80/v1").is_exposed() && !plan("https://api.example.com/v1").is_exposed());
        assert!(plan("http://api.example.com/v1").is_exposed());
        assert!(!format!("{local:?}").contains("sk-secret"));
        assert_eq!(Key::new("sk-secret".to_owned()).scrub("bad key sk-secret!"), "bad key (key)!");
    }
}
