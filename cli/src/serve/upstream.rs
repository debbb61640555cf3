//! The fallback model: asked for what the artifact is not sure of, bounded in time and size, its answers checked. After
//! several failures in a row it is left alone for a while (a circuit breaker).

use limbeck_distill::endpoint::{refused, tls};
use serde_json::{Value, json};
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The fallback's answer may have so many bytes.
const MAX_BYTES: u64 = 8 << 20;
/// So many failures in a row cut the fallback off, for so long.
const FAILURES: u32 = 5;
const COOL_OFF: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct UpstreamPlan {
    /// A base address as OpenAI clients take it, with `/v1`.
    pub url: String,
    /// The model's name there; the caller's own when left out.
    pub model: Option<String>,
    pub api_key: Option<String>,
    /// Certificates (PEM) that its must stem from; None: the public authorities'.
    pub ca: Option<Vec<u8>>,
    pub timeout: Duration,
}

pub struct Upstream(Arc<Inner>);

struct Inner {
    plan: UpstreamPlan,
    agent: ureq::Agent,
    breaker: Mutex<Breaker>,
}

/// Why the fallback gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It takes no more requests (429).
    Busy {
        retry_after: Option<Duration>,
    },
    /// It failed several times, and is not asked for a while.
    CutOff {
        retry_after: Duration,
    },
    Failed(String),
}

#[derive(Default)]
struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Err while the fallback is left alone. After that one request may try, the others wait for how it goes.
    fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.open_until {
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                self.open_until = Some(now + COOL_OFF);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn ended(&mut self, well: bool, now: Instant) {
        if well {
            *self = Breaker::default();
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.open_until = Some(now + COOL_OFF);
        }
    }

    fn is_open(&self, now: Instant) -> bool {
        self.open_until.is_some_and(|until| now < until)
    }
}

impl Upstream {
    pub fn new(plan: UpstreamPlan) -> Upstream {
        // No redirects: a key goes to the address that was named, and nowhere else.
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(plan.timeout.min(Duration::from_secs(10))))
            .timeout_global(Some(plan.timeout))
            .max_redirects(0)
            .http_status_as_error(false)
            .tls_config(tls(plan.ca.as_deref()))
            .build();
        Upstream(Arc::new(Inner { plan, agent: config.new_agent(), breaker: Mutex::default() }))
    }

    /// Whether it is left alone now.
    pub fn is_open(&self) -> bool {
        self.0.breaker.lock().is_ok_and(|breaker| breaker.is_open(Instant::now()))
    }

    /// The fallback's completion for the request as it came, whole even where the caller wants a stream.
    pub async fn ask(&self, request: &Value) -> Result<Value, Fault> {
        let admitted = match self.0.breaker.lock() {
            Ok(mut breaker) => breaker.admit(Instant::now()),
            Err(_) => Ok(()),
        };
        admitted.map_err(|retry_after| Fault::CutOff { retry_after })?;
        let mut request = request.clone();
        if let Some(object) = request.as_object_mut() {
            object.remove("stream");
            object.remove("stream_options");
            if let Some(model) = &self.0.plan.model {
                object.insert("model".to_owned(), json!(model));
            }
        }
        let inner = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || inner.post(&request));
        let answer = asked.await.unwrap_or_else(|_| Err(Fault::Failed("the call was broken off".to_owned())));
        // A full house is no failure.
        let well = matches!(answer, Ok(_) | Err(Fault::Busy { .. }));
        if let Ok(mut breaker) = self.0.breaker.lock() {
            breaker.ended(well, Instant::now());
        }
        answer
    }
}

impl Inner {
    fn post(&self, request: &Value) -> Result<Value, Fault> {
        let url = format!("{}/chat/completions", self.plan.url.trim_end_matches('/'));
        let mut call = self.agent.post(&url).header("content-type", "application/json");
        if let Some(key) = &self.plan.api_key {
            call = call.header("authorization", format!("Bearer {key}"));
        }
        // Not the address: it may hold a secret, and the caller has no use for it.
        let mut response = call.send(request.to_string()).map_err(|e| Fault::Failed(transport(&e)))?;
        match response.status().as_u16() {
            200 => {}
            429 => {
                let told = response.headers().get("retry-after").and_then(|v| v.to_str().ok());
                let retry_after = told.and_then(|s| s.parse().ok()).map(Duration::from_secs);
                return Err(Fault::Busy { retry_after });
            }
            status => return Err(Fault::Failed(format!("it answered {status}"))),
        }
        let mut bytes = Vec::new();
        let read = response.body_mut().as_reader().take(MAX_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|_| Fault::Failed("its answer was cut off".to_owned()))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Fault::Failed(format!("its answer is longer than {MAX_BYTES} bytes")));
        }
        let completion: Value =
            serde_json::from_slice(&bytes).map_err(|_| Fault::Failed("its answer is no JSON".to_owned()))?;
        check(&completion).map_err(|why| Fault::Failed(why.to_owned()))?;
        Ok(completion)
    }
}

fn transport(error: &ureq::Error) -> String {
    if let Some(why) = refused(error) {
        return format!("TLS: {why}");
    }
    match error {
        ureq::Error::Timeout(_) => "it took too long".to_owned(),
        ureq::Error::HostNotFound => "its host is not known".to_owned(),
        ureq::Error::Io(e) => format!("no connection ({})", e.kind()),
        ureq::Error::ConnectionFailed => "no connection".to_owned(),
        _ => "the call failed".to_owned(),
    }
}

/// Whether it is a completion with something in it.
fn check(completion: &Value) -> Result<(), &'static str> {
    let message = &completion["choices"][0]["message"];
    let says = message["content"].as_str().is_some_and(|text| !text.trim().is_empty());
    let calls = message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty());
    if says || calls { Ok(()) } else { Err("its answer is no chat completion with a message") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_opens_after_failures_in_a_row_and_lets_one_request_try() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES - 1 {
            breaker.ended(false, start);
        }
        breaker.ended(true, start);
        for _ in 0..FAILURES {
            assert!(breaker.admit(start).is_ok());
            breaker.ended(false, start);
        }
        assert!(breaker.admit(start).is_err() && breaker.is_open(start));
        let later = start + COOL_OFF;
        assert!(breaker.admit(later).is_ok());
        assert!(breaker.admit(later).is_err(), "a second one has to wait for the first");
        breaker.ended(true, later);
        assert!(breaker.admit(later).is_ok() && !breaker.is_open(later));
    }

    #[test]
    fn only_a_completion_that_says_something_counts() {
        assert!(check(&json!({"choices": [{"message": {"content": "a"}}]})).is_ok());
        assert!(check(&json!({"choices": [{"message": {"content": null, "tool_calls": [{}]}}]})).is_ok());
        for bad in [json!(null), json!([]), json!({"choices": []}), json!({"choices": [{"message": {"content": " "}}]})]
        {
            assert!(check(&bad).is_err(), "{bad}");
        }
    }
}
