//! The HTTP under the bucket's client: ureq, which the program has anyway, on threads that may wait.

use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use std::pin::Pin;
use std::time::Duration;
use ureq::http::{Method, Request, Response};

/// A piece of a file has to be through by then.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// No answer is larger: files are asked for in pieces, and a page of a listing names a thousand objects.
const MAX_ANSWER_BYTES: u64 = 80 << 20;

#[derive(Clone, Copy, Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .accept_encoding(ureq::config::AutoHeaderValue::None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(REQUEST_TIMEOUT))
            .build();
        Ok(HttpClient::new(Service { agent: config.new_agent() }))
    }
}

#[derive(Clone, Debug)]
struct Service {
    agent: ureq::Agent,
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Service {
    fn call<'me, 'answer>(&'me self, request: HttpRequest) -> Answer<'answer>
    where
        'me: 'answer,
        Self: 'answer,
    {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let agent = self.agent.clone();
            let sent = tokio::task::spawn_blocking(move || send(&agent, Request::from_parts(parts, body.to_vec())));
            sent.await.map_err(|e| HttpError::new(HttpErrorKind::Interrupted, e))?
        })
    }
}

fn send(agent: &ureq::Agent, request: Request<Vec<u8>>) -> Result<HttpResponse, HttpError> {
    let has_body = matches!(*request.method(), Method::PUT | Method::POST);
    let (parts, body) = request.into_parts();
    let answer = match has_body {
        true => agent.run(Request::from_parts(parts, body.as_slice())),
        false => agent.run(Request::from_parts(parts, ())),
    };
    let (parts, mut body) = answer.map_err(failed)?.into_parts();
    let bytes = body.with_config().limit(MAX_ANSWER_BYTES).read_to_vec().map_err(failed)?;
    Ok(Response::from_parts(parts, HttpResponseBody::from(bytes)))
}

fn failed(e: ureq::Error) -> HttpError {
    let kind = match &e {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => HttpErrorKind::Connect,
        // It may have been sent, and answered.
        ureq::Error::Io(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, e)
}
