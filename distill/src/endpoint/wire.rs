//! One attempt: a request sent, its response read within bounds, and either a reply or the fault that kept it away.

use super::load::Streamed;
use super::reply::{Reply, reply};
use super::tls::{refused, tls};
use super::{EndpointPlan, Key};
use limbeck_artifact::untrusted::visible_line;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read};
use std::time::{Duration, Instant};
use ureq::http::HeaderMap;

/// A response may have so many bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Of a server's own words so many characters are kept.
const SHOWN_CHARS: usize = 300;
/// Longer waits are not what anybody means who says "retry".
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Why a question has no answer, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Busy,
    ServerError,
    Timeout,
    NoConnection,
    CutOff,
    TooLong,
    NoJson,
    NoChoice,
    Refused,
    /// A batch came back without its answer.
    NoResult,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Busy => "busy",
            Reason::ServerError => "server_error",
            Reason::Timeout => "timeout",
            Reason::NoConnection => "no_connection",
            Reason::CutOff => "cut_off",
            Reason::TooLong => "too_long",
            Reason::NoJson => "no_json",
            Reason::NoChoice => "no_choice",
            Reason::Refused => "refused",
            Reason::NoResult => "no_result",
        }
    }
}

/// A question without an answer, after all attempts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    pub reason: Reason,
    pub detail: String,
    /// Whether it is worth asking again another time: nothing was wrong with the question.
    pub again: bool,
    pub at: String,
    pub retries: u32,
}

/// What kept one attempt from an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Busy {
        retry_after: Option<Duration>,
    },
    Server {
        status: u16,
        retry_after: Option<Duration>,
    },
    Timeout,
    NoConnection(String),
    CutOff(String),
    TooLong,
    NoJson,
    NoChoice,
    /// The question itself.
    Refused {
        status: u16,
        message: String,
    },
    /// Whoever asks, or what for: no other question will fare better.
    Denied {
        status: u16,
        message: String,
    },
}

impl Fault {
    pub fn reason(&self) -> Reason {
        match self {
            Fault::Busy { .. } => Reason::Busy,
            Fault::Server { .. } => Reason::ServerError,
            Fault::Timeout => Reason::Timeout,
            Fault::NoConnection(_) => Reason::NoConnection,
            Fault::CutOff(_) => Reason::CutOff,
            Fault::TooLong => Reason::TooLong,
            Fault::NoJson => Reason::NoJson,
            Fault::NoChoice => Reason::NoChoice,
            Fault::Refused { .. } | Fault::Denied { .. } => Reason::Refused,
        }
    }

    /// In words, as a sentence goes on after "it".
    pub fn told(&self) -> String {
        match self {
            Fault::Busy { .. } => "takes no more requests (429)".to_owned(),
            Fault::Server { status, .. } => format!("failed with {status}"),
            Fault::Timeout => "took too long".to_owned(),
            Fault::NoConnection(why) => format!("can't be reached ({why})"),
            Fault::CutOff(why) => format!("broke its response off ({why})"),
            Fault::TooLong => format!("sent a response of more than {} MiB", MAX_BYTES >> 20),
            Fault::NoJson => "sent something that is no JSON".to_owned(),
            Fault::NoChoice => "sent no choice with a text".to_owned(),
            Fault::Refused { status, message } | Fault::Denied { status, message } => {
                format!("refused with {status}: {message}")
            }
        }
    }

    /// Whether the same question may fare better.
    pub(crate) fn is_passing(&self) -> bool {
        !matches!(self, Fault::Refused { .. } | Fault::Denied { .. } | Fault::TooLong)
    }

    /// Whether the provider may have reckoned it: the model was at work.
    pub(crate) fn may_cost(&self) -> bool {
        matches!(self, Fault::Timeout | Fault::CutOff(_) | Fault::TooLong | Fault::NoJson | Fault::NoChoice)
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Fault::Busy { retry_after } | Fault::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

pub(crate) struct Wire {
    agent: ureq::Agent,
    url: String,
    key: Option<Key>,
}

impl Wire {
    pub fn new(plan: &EndpointPlan) -> Wire {
        // No redirects: a key goes to the address that was named, and nowhere else.
        let mut config = ureq::Agent::config_builder()
            .timeout_connect(Some(plan.timeout.min(Duration::from_secs(10))))
            .timeout_global(Some(plan.timeout))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .tls_config(tls(plan.ca.as_deref()))
            .max_idle_connections_per_host(plan.concurrency.max(1));
        if plan.is_local() {
            config = config.proxy(None);
        }
        let path = match plan.api {
            super::Api::Chat => "chat/completions",
            super::Api::Completions => "completions",
        };
        let url = format!("{}/{path}", plan.url.trim_end_matches('/'));
        Wire { agent: config.build().new_agent(), url, key: plan.key.clone() }
    }

    /// Sends `body` and reads the reply; its time, date and attempts are the caller's to fill in.
    pub fn post(&self, body: &str) -> Result<Reply, Fault> {
        let mut response = self.send(body)?;
        reply(&serde_json::from_str(&self.read(&mut response)?).map_err(|_| Fault::NoJson)?)
    }

    /// Sends `body`, which asks for an answer in pieces, and reads them to their end. A server that answers in one piece all the
    /// same has no first one.
    pub fn stream(&self, body: &str) -> Result<Streamed, Fault> {
        let mut response = self.send(body)?;
        let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            let whole = reply(&serde_json::from_str(&self.read(&mut response)?).map_err(|_| Fault::NoJson)?)?;
            let Reply { prompt_tokens, completion_tokens, .. } = whole;
            return Ok(Streamed { first: None, prompt_tokens, completion_tokens });
        }
        pieces(response.body_mut().as_reader().take(MAX_BYTES + 1))
    }

    /// A response that says yes.
    fn send(&self, body: &str) -> Result<ureq::http::Response<ureq::Body>, Fault> {
        let mut call = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            call = call.header("authorization", key.header());
        }
        let mut response = call.send(body).map_err(|e| transport(&e))?;
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        match status {
            200..=299 => Ok(response),
            429 => Err(Fault::Busy { retry_after }),
            408 | 500.. => Err(Fault::Server { status, retry_after }),
            300..=399 => {
                let message =
                    "it redirects, and a key is not sent on; name the address that it redirects to".to_owned();
                Err(Fault::Denied { status, message })
            }
            401..=404 => Err(Fault::Denied { status, message: said(&self.read(&mut response)?) }),
            _ => Err(Fault::Refused { status, message: said(&self.read(&mut response)?) }),
        }
    }

    fn read(&self, response: &mut ureq::http::Response<ureq::Body>) -> Result<String, Fault> {
        let mut bytes = Vec::new();
        let read = response.body_mut().as_reader().take(MAX_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|e| broken(&e))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Fault::TooLong);
        }
        let text = String::from_utf8(bytes).map_err(|_| Fault::NoJson)?;
        Ok(self.key.as_ref().map_or_else(|| text.clone(), |key| key.scrub(&text)))
    }
}

/// What keeps a response from its end.
fn broken(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Fault::Timeout,
        _ => match error.get_ref().and_then(|e| e.downcast_ref::<ureq::Error>()) {
            Some(ureq::Error::Timeout(_)) => Fault::Timeout,
            _ => Fault::CutOff(error.kind().to_string()),
        },
    }
}

/// Server-sent events up to `[DONE]`. A stream without that, or without any piece of an answer, was broken off.
fn pieces(body: impl Read) -> Result<Streamed, Fault> {
    let mut streamed = Streamed { first: None, prompt_tokens: None, completion_tokens: None };
    let (mut body, mut line, mut bytes, mut chosen) = (BufReader::new(body), String::new(), 0, false);
    loop {
        line.clear();
        bytes += body.read_line(&mut line).map_err(|e| broken(&e))? as u64;
        if bytes > MAX_BYTES {
            return Err(Fault::TooLong);
        }
        if line.is_empty() {
            return Err(Fault::CutOff("no end of the stream".to_owned()));
        }
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            // An answer may be empty; a stream without a choice is none.
            return if chosen { Ok(streamed) } else { Err(Fault::NoChoice) };
        }
        let event: Value = serde_json::from_str(data).map_err(|_| Fault::NoJson)?;
        if event.get("error").is_some_and(|e| !e.is_null()) {
            return Err(Fault::Refused { status: 200, message: said(&event.to_string()) });
        }
        let choice = event.pointer("/choices/0");
        chosen |= choice.is_some();
        // Thinking counts: it is what a caller sees first.
        let places = ["/delta/content", "/delta/reasoning_content", "/delta/reasoning", "/text"];
        let has_text = |choice: &Value| {
            places.iter().any(|at| choice.pointer(at).and_then(Value::as_str).is_some_and(|t| !t.is_empty()))
        };
        if streamed.first.is_none() && choice.is_some_and(has_text) {
            streamed.first = Some(Instant::now());
        }
        let count = |at: &str| event.pointer(at).and_then(Value::as_u64);
        streamed.prompt_tokens = count("/usage/prompt_tokens").or(streamed.prompt_tokens);
        streamed.completion_tokens = count("/usage/completion_tokens").or(streamed.completion_tokens);
    }
}

fn transport(error: &ureq::Error) -> Fault {
    if let Some(why) = refused(error) {
        return Fault::NoConnection(untrusted(&why));
    }
    match error {
        ureq::Error::Timeout(_) => Fault::Timeout,
        ureq::Error::HostNotFound => Fault::NoConnection("its host is not known".to_owned()),
        ureq::Error::ConnectionFailed => Fault::NoConnection("no connection".to_owned()),
        ureq::Error::Io(e) => match e.kind() {
            io::ErrorKind::TimedOut => Fault::Timeout,
            // Sent, and then nothing: the model may have been at work.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Fault::CutOff(e.kind().to_string())
            }
            kind => Fault::NoConnection(kind.to_string()),
        },
        ureq::Error::Protocol(_) => Fault::CutOff("no HTTP".to_owned()),
        ureq::Error::Tls(why) => Fault::NoConnection(format!("TLS: {why}")),
        _ => Fault::NoConnection("the call failed".to_owned()),
    }
}

/// Why there is no TLS, and what may be done about it.
fn untrusted(why: &str) -> String {
    let cure = match why {
        why if why.contains("UnknownIssuer") => {
            "; where a company's own authority vouches for it, name its certificates (ca_file in a recipe, --ca-file otherwise)"
        }
        why if why.contains("NotValidForName") => "; its certificate is for another name than the address has",
        why if why.contains("Expired") => "; its certificate has expired",
        _ => "",
    };
    format!("TLS: {why}{cure}")
}

/// What an error's body says.
pub(super) fn said(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let found = ["/error/message", "/error", "/message", "/detail"];
    let message = found.iter().find_map(|at| value.pointer(at).and_then(Value::as_str)).unwrap_or(text).trim();
    let cut: String = message.chars().take(SHOWN_CHARS).collect();
    match visible_line(&cut).trim() {
        "" => "it does not say why".to_owned(),
        told => told.to_owned(),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    let ms = text("retry-after-ms").and_then(|v| v.parse().ok()).map(Duration::from_millis);
    let asked = text("retry-after");
    let seconds = || asked.and_then(|v| v.parse::<f64>().ok()).and_then(|s| Duration::try_from_secs_f64(s).ok());
    // A date is measured by the server's own clock.
    let date = || {
        let (until, now) = (epoch(asked?)?, epoch(text("date")?)?);
        Some(Duration::from_secs(until.saturating_sub(now)))
    };
    ms.or_else(seconds).or_else(date).map(|wait| wait.min(LONGEST_WAIT))
}

/// Seconds since 1970 of an HTTP date: `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, IMF-fixdate).
fn epoch(date: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = date.split_once(", ")?.1.split([' ', ':']);
    let mut number = || parts.next()?.parse::<u64>().ok();
    let day = number()?;
    let month = date.split(' ').nth(2).and_then(|name| MONTHS.iter().position(|m| *m == name))? as u64 + 1;
    let mut rest = date.split(' ').skip(3).flat_map(|part| part.split(':'));
    let mut number = || rest.next()?.parse::<u64>().ok();
    let (year, hour, minute, second) = (number()?, number()?, number()?, number()?);
    if day > 31 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from civil (Hinnant), with the year beginning in March.
    let y = year.checked_sub(u64::from(month <= 2)).filter(|y| (1970..10_000).contains(y) || *y == 1969)?;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let days = (y * 365 + y / 4 - y / 100 + y / 400 + day_of_year).checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_say_how_long_to_wait_in_several_ways() {
        let wait = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            retry_after(&headers)
        };
        assert_eq!(wait(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(wait(&[("retry-after", "1.5")]), Some(Duration::from_millis(1500)));
        assert_eq!(wait(&[("retry-after-ms", "250"), ("retry-after", "9")]), Some(Duration::from_millis(250)));
        let (now, then) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:00 GMT");
        assert_eq!(wait(&[("date", now), ("retry-after", then)]), Some(Duration::from_secs(23)));
        assert_eq!(epoch(now), Some(784_111_777));
        assert_eq!(epoch("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(wait(&[("retry-after", "86400")]), Some(LONGEST_WAIT));
        let most = "Sun, 18446744073709551615 Nov 1994 18446744073709551615:49:37 GMT";
        for bad in ["", "soon", "-3", "nan", "Sun, 99 Foo 1994", most] {
            assert_eq!(wait(&[("date", now), ("retry-after", bad)]), None, "{bad}");
        }
    }
}
