//! `limbeck serve`: an artifact as an OpenAI-compatible API. From what was typed to a server that runs until it is told to
//! stop.

use super::score::{Scorer, find};
use crate::args::Serve;
use crate::exit::{Exit, Failure, Result};
use crate::live::authorities;
use crate::output;
use crate::serve::{Decisions, Escalated, Limits, Otlp, Serving, Upstream, UpstreamPlan, Workers};
use crate::settings::{self, Settings, shell};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::manifest::{self, ArtifactManifest};
use limbeck_artifact::untrusted::visible_line;
use limbeck_distill::endpoint::certificates;
use limbeck_model::arithmetic::Arithmetic;
use limbeck_model::tokenizer::ChatTokenizer;
use serde_json::json;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

pub fn serve(settings: &Settings, args: &Serve) -> Result<Exit> {
    let address = address(&args.listen)?;
    let api_key = settings::api_key();
    if api_key.is_none() && !address.ip().is_loopback() {
        let message = format!("{address} can be reached from other machines, and no key is asked for");
        return Err(Failure::new(Exit::Usage, message)
            .help("set LIMBECK_API_KEY to what callers must send, or listen at 127.0.0.1"));
    }
    let upstream = args.upstream.as_ref().map(|url| upstream(settings, args, url)).transpose()?;
    let (dir, manifest) = find(&args.of)?;
    let serving = Arc::new(serving(settings, args, &dir, manifest, api_key, upstream)?);
    // What was decrypted to be read is read.
    drop(dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let listener = TcpListener::bind(address).await.map_err(|e| {
            Failure::new(Exit::Unexpected, format!("failed to listen at {address}: {e}"))
                .help("another server may run there; name another port with --listen HOST:PORT, 0 for a free one")
        })?;
        announce(settings, args, &serving, listener.local_addr()?)?;
        crate::serve::run(Arc::clone(&serving), listener, stopped()).await.map_err(Failure::from)
    });
    // The last lines of the log, and no wait for calls that hang.
    if let Some(log) = &serving.decisions {
        log.finish();
    }
    runtime.shutdown_background();
    result.map(|()| Exit::Ok)
}

fn address(listen: &str) -> Result<SocketAddr> {
    let unknown = |why: String| {
        Failure::new(Exit::Usage, format!("`{}` is no address to listen at: {why}", visible_line(listen)))
            .help("write HOST:PORT, for example 127.0.0.1:8080")
    };
    let mut found = listen.to_socket_addrs().map_err(|e| unknown(e.to_string()))?;
    found.next().ok_or_else(|| unknown("the name has no address".to_owned()))
}

/// A key travels by TLS, or not beyond this machine.
fn upstream(settings: &Settings, args: &Serve, url: &str) -> Result<UpstreamPlan> {
    let host = url.split_once("://").map_or("", |(_, rest)| rest).split(['/', '?']).next().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let local = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let wrong = |why: &str| Err(Failure::new(Exit::Usage, format!("--upstream {}: {why}", visible_line(url))));
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return wrong("an address begins with https:// or http://");
    }
    if host.contains('@') {
        return wrong("no name or password in the address; the key goes into LIMBECK_UPSTREAM_API_KEY");
    }
    let api_key = settings::upstream_api_key();
    if api_key.is_some() && !url.starts_with("https://") && !local {
        return wrong("the key would travel unencrypted; use https://");
    }
    if settings.offline && !local {
        return wrong("--offline allows fallbacks on this machine only");
    }
    let ca = args.upstream_ca.as_deref().map(authorities).transpose()?;
    if ca.as_deref().is_some_and(|pem| certificates(pem).is_empty()) {
        return wrong("the file of --upstream-ca holds no certificate (PEM)");
    }
    let timeout = Duration::from_secs(args.upstream_timeout);
    Ok(UpstreamPlan { url: url.to_owned(), model: args.upstream_model.clone(), api_key, ca, timeout })
}

fn serving(
    settings: &Settings,
    args: &Serve,
    dir: &Path,
    manifest: ArtifactManifest,
    api_key: Option<String>,
    upstream: Option<UpstreamPlan>,
) -> Result<Serving> {
    let (name, version) = (manifest.name.clone(), manifest.version.clone());
    let manifest_digest = sha256_file(&dir.join(manifest::FILE_NAME))?;
    let tokenizer = Arc::new(ChatTokenizer::open(&manifest.file(dir, "model")?)?);
    let scorer =
        Arc::new(Scorer::open(dir, manifest, settings, args.threshold, args.arithmetic.map(Arithmetic::from))?);
    let (threshold, threshold_on) = scorer.served_from();
    let decisions = args.decisions.as_ref().map(|dir| Decisions::start(dir)).transpose()?;
    Ok(Serving {
        otlp: args.otlp.as_ref().map(|endpoint| Otlp::start(endpoint, &name)),
        name,
        version,
        manifest_digest,
        threshold,
        threshold_on,
        workers: Workers::start(scorer, tokenizer, usize::from(args.workers), args.queue as usize),
        upstream: upstream.map(Upstream::new),
        escalated: args.escalated,
        api_key,
        decisions,
        limits: Limits {
            body_bytes: args.max_body as usize,
            connections: args.connections as usize,
            timeout: Duration::from_secs(args.timeout),
        },
        metrics: Default::default(),
    })
}

/// One line of JSON for a script that waits for the address; for a person, what goes where.
fn announce(settings: &Settings, args: &Serve, serving: &Serving, address: SocketAddr) -> Result<()> {
    if settings.json {
        let line = json!({
            "address": address.to_string(), "url": format!("http://{address}/v1"), "artifact": serving.name,
            "version": serving.version, "manifest_sha256": serving.manifest_digest, "threshold": serving.threshold,
            "threshold_on": serving.threshold_on,
        });
        return output::stdout(&format!("{line}\n"));
    }
    let unsure = match (&args.upstream, serving.escalated) {
        (Some(url), _) => format!("are answered by {}", visible_line(url)),
        (None, Escalated::Refuse) => {
            "are error 422, for a gateway to fall back on (--upstream URL answers them)".to_owned()
        }
        (None, Escalated::Answer) => "are answered all the same, marked as escalated".to_owned(),
    };
    let which = match serving.threshold {
        Some(from) => format!("answers ({} below {from})", serving.threshold_on),
        None => "nothing could be certified: all answers".to_owned(),
    };
    let mut text = format!(
        "serving {} {} at http://{address}/v1\n  unsure     {which} {unsure}\n",
        visible_line(&serving.name),
        visible_line(&serving.version),
    );
    if let Some(dir) = &args.decisions {
        text.push_str(&format!("  decisions  {0}; read them with `limbeck import {0}`\n", shell(dir)));
    }
    let key = if serving.api_key.is_some() { "callers send LIMBECK_API_KEY" } else { "none asked for" };
    text.push_str(&format!("  key        {key}\n  also       /health, /metrics, /v1/models; Ctrl-C stops\n"));
    output::stderr(&text);
    Ok(())
}

/// Ends at Ctrl-C, or at a service manager's SIGTERM; a second one ends the program at once.
async fn stopped() {
    let (told, stopped) = tokio::sync::oneshot::channel();
    #[cfg(unix)]
    std::thread::spawn(move || {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else {
            // Signals end the program as they do without us.
            std::thread::park();
            return;
        };
        let mut told = Some(told);
        for signal in signals.forever() {
            match told.take() {
                Some(told) => drop(told.send(())),
                None => drop(signal_hook::low_level::emulate_default_handler(signal)),
            }
        }
    });
    #[cfg(not(unix))]
    std::mem::forget(told);
    let _ = stopped.await;
}
