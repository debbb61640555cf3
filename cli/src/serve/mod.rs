//! An artifact behind an OpenAI-compatible address: its answers where it is sure, the fallback's where it is not, and a
//! log of both that `limbeck import` reads. Async stays in this folder; the model answers on plain threads.

mod decisions;
mod metrics;
mod otlp;
mod upstream;
mod wire;
mod workers;

pub use decisions::Decisions;
pub use otlp::Otlp;
pub use upstream::{Upstream, UpstreamPlan};
pub use workers::Workers;

use decisions::Decision;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use metrics::{Metrics, Outcome};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use upstream::Fault;
use wire::{Chat, Refusal};
use workers::Answered;

/// A client that has not sent its headers by then is none.
const HEADERS: Duration = Duration::from_secs(10);
/// What is under way when the server is told to stop has this long to end.
const DRAIN: Duration = Duration::from_secs(20);

pub type Page = Response<Full<Bytes>>;

/// What happens to an answer that is not to be served, where no fallback gives a better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Escalated {
    /// An error that says so: the gateway in front falls back.
    Refuse,
    /// The answer, marked as escalated.
    Answer,
}

/// The bounds of one server.
#[derive(Clone, Debug)]
pub struct Limits {
    pub body_bytes: usize,
    pub connections: usize,
    /// From the last byte of a request to the first of its answer.
    pub timeout: Duration,
}

/// Everything that a request needs.
pub struct Serving {
    pub name: String,
    pub version: String,
    pub manifest_digest: String,
    /// From which number an answer is served; None where nothing could be certified, and everything escalates.
    pub threshold: Option<f64>,
    /// That number: `confidence`, or `score` where the threshold is a certificate's.
    pub threshold_on: &'static str,
    pub workers: Workers,
    pub upstream: Option<Upstream>,
    pub escalated: Escalated,
    pub api_key: Option<String>,
    pub decisions: Option<Decisions>,
    pub otlp: Option<Otlp>,
    pub limits: Limits,
    pub metrics: Metrics,
}

/// Serves until `stop` ends, then lets what is under way end.
///
/// # Errors
/// When the listener breaks.
pub async fn run(serving: Arc<Serving>, listener: TcpListener, stop: impl Future<Output = ()>) -> std::io::Result<()> {
    let connections = Arc::new(Semaphore::new(serving.limits.connections));
    let under_way = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (Ok(permit), accepted) = (match select(stop.as_mut(), std::pin::pin!(next)).await {
            Either::Left(_) => break,
            Either::Right((next, _)) => next,
        }) else {
            break;
        };
        let Ok((stream, _)) = accepted else {
            // One connection's fault, or no file left for a moment.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let serving = Arc::clone(&serving);
        let answer = service_fn(move |request| {
            let serving = Arc::clone(&serving);
            async move { Ok::<_, Infallible>(respond(&serving, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .serve_connection(TokioIo::new(stream), answer);
        let watched = under_way.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off is no event.
            let _ = watched.await;
            drop(permit);
        });
    }
    let _ = tokio::time::timeout(DRAIN, under_way.shutdown()).await;
    Ok(())
}

async fn respond(serving: &Serving, request: Request<Incoming>) -> Page {
    let path = request.uri().path().to_owned();
    match (path.as_str(), request.method()) {
        ("/v1/chat/completions", &Method::POST) => chat(serving, request).await,
        ("/v1/models", &Method::GET) => models(serving, request.headers()),
        ("/health", &Method::GET) => health(serving),
        ("/metrics", &Method::GET) => {
            wire::page(StatusCode::OK, "text/plain; version=0.0.4", serving.metrics.render(serving))
        }
        ("/v1/chat/completions" | "/v1/models" | "/health" | "/metrics", _) => {
            let text = "completions are asked for by POST, everything else by GET";
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text).into_page()
        }
        _ => {
            let text = format!("nothing is served at {path}; POST /v1/chat/completions");
            Refusal::new(StatusCode::NOT_FOUND, "not_found", text).into_page()
        }
    }
}

fn health(serving: &Serving) -> Page {
    let lost = serving.decisions.as_ref().and_then(Decisions::fault);
    let status = if lost.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let body = json!({
        "status": if lost.is_some() { "failing" } else { "ok" },
        "artifact": serving.name,
        "version": serving.version,
        "waiting": serving.workers.waiting(),
        "upstream": serving.upstream.as_ref().map(|u| if u.is_open() { "cut off" } else { "in use" }),
        "decision_log": lost,
    });
    wire::json_page(status, &body)
}

fn models(serving: &Serving, headers: &HeaderMap) -> Page {
    if let Err(refusal) = authorize(serving, headers) {
        return refusal.into_page();
    }
    let model = json!({"id": serving.name, "object": "model", "created": 0, "owned_by": "limbeck"});
    wire::json_page(StatusCode::OK, &json!({"object": "list", "data": [model]}))
}

/// What became of a request.
struct Done {
    /// As the API has it.
    completion: Value,
    outcome: Outcome,
}

async fn chat(serving: &Serving, request: Request<Incoming>) -> Page {
    let begun = Instant::now();
    let (parts, body) = request.into_parts();
    let decided = decide(serving, &parts.headers, body, begun).await;
    serving.metrics.answered(decided.as_ref().map_or(Outcome::Refused, |(done, _)| done.outcome), begun.elapsed());
    let (done, chat) = match decided {
        Ok(decided) => decided,
        Err(refusal) => return refusal.into_page(),
    };
    let mut page = match chat.stream {
        true => wire::page(StatusCode::OK, "text/event-stream", wire::events(&done.completion, chat.include_usage)),
        false => wire::json_page(StatusCode::OK, &done.completion),
    };
    page.headers_mut().insert("x-limbeck-outcome", HeaderValue::from_static(done.outcome.name()));
    page
}

async fn decide(
    serving: &Serving,
    headers: &HeaderMap,
    body: Incoming,
    begun: Instant,
) -> Result<(Done, Chat), Refusal> {
    authorize(serving, headers)?;
    let limits = &serving.limits;
    let late = || Refusal::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request's body did not arrive in time");
    let too_long = |_| {
        let text = format!("the request's body is broken off, or longer than {} bytes", limits.body_bytes);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_long", text)
    };
    let read = tokio::time::timeout(limits.timeout, Limited::new(body, limits.body_bytes).collect());
    let bytes = read.await.map_err(|_| late())?.map_err(too_long)?.to_bytes();
    let chat = Chat::parse(&bytes)?;
    let answering = serving.workers.answer(chat.messages.clone());
    let answered = tokio::time::timeout(limits.timeout, answering).await.map_err(|_| {
        Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            "no answer in time; the server has more requests than it can answer",
        )
    })??;
    serving.metrics.sure(answered.confidence);
    let id = decisions::id();
    let done = route(serving, &chat, &answered, &id).await;
    let outcome = done.as_ref().map_or(Outcome::Refused, |done| done.outcome);
    if let Some(otlp) = &serving.otlp {
        otlp.send(serving, &answered, outcome, headers, begun.elapsed());
    }
    if let Some(log) = &serving.decisions {
        let completion =
            done.as_ref().map_or_else(|refusal| refusal.completion.as_deref(), |done| Some(&done.completion));
        let decision =
            Decision { id: &id, chat: &chat, answered: &answered, completion, outcome, took: begun.elapsed() };
        log.write(serving, &decision).await;
    }
    done.map(|done| (done, chat))
}

/// The policy: serve what is sure enough; ask the fallback for the rest.
async fn route(serving: &Serving, chat: &Chat, answered: &Answered, id: &str) -> Result<Done, Refusal> {
    let own = |outcome| Done { completion: wire::completion(serving, answered, id, outcome), outcome };
    if !answered.escalates {
        return Ok(own(Outcome::Served));
    }
    let fault = match &serving.upstream {
        None => None,
        Some(upstream) => match upstream.ask(&chat.request).await {
            Ok(mut completion) => {
                completion["limbeck"] = wire::told(serving, answered, Outcome::Upstream);
                return Ok(Done { completion, outcome: Outcome::Upstream });
            }
            Err(fault) => {
                serving.metrics.upstream_failed();
                Some(fault)
            }
        },
    };
    if serving.escalated == Escalated::Answer {
        return Ok(own(Outcome::Escalated));
    }
    Err(refuse(serving, answered, fault).about(wire::completion(serving, answered, id, Outcome::Refused)))
}

fn refuse(serving: &Serving, answered: &Answered, fault: Option<Fault>) -> Refusal {
    let unsure = match (serving.threshold, answered.number(serving.threshold_on)) {
        (Some(from), Some(number)) => format!("{} {number:.3} is below the artifact's {from:.4}", serving.threshold_on),
        (Some(_), None) => "the artifact's answer is not valid".to_owned(),
        (None, _) => "nothing could be certified for this artifact, so every call escalates".to_owned(),
    };
    match fault {
        // Not a status that client libraries try again by themselves: the answer would be the same.
        None => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "escalate", format!("{unsure}; ask the fallback model")),
        Some(Fault::Busy { retry_after }) => {
            let text = format!("{unsure}, and the fallback model takes no more requests now");
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "upstream_busy", text).retry_after(retry_after)
        }
        Some(Fault::CutOff { retry_after }) => {
            let text = format!("{unsure}, and the fallback model failed several times running; it is tried again soon");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "upstream_down", text).retry_after(Some(retry_after))
        }
        Some(Fault::Failed(why)) => {
            let text = format!("{unsure}, and the fallback model could not be asked: {why}");
            Refusal::new(StatusCode::BAD_GATEWAY, "upstream_failed", text)
        }
    }
}

fn authorize(serving: &Serving, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(key) = &serving.api_key else { return Ok(()) };
    let given =
        headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    match given.is_some_and(|given| same(given.trim().as_bytes(), key.as_bytes())) {
        true => Ok(()),
        false => Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "invalid_api_key",
            "send the server's key as `Authorization: Bearer KEY`",
        )),
    }
}

/// Takes as long wherever the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}
