//! `limbeck bench serve`: a server in a process of its own, and callers that all ask at once (closed loop) or arrive at
//! random times whatever the server does (open loop, Poisson). Times are from when a request was due, so that a server
//! that makes callers wait before they ask hides nothing.

use crate::bench::args::BenchServe;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::Settings;
use limbeck_data_curation::trace;
use limbeck_eval::SplitMix64;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// With fewer, the 99th percentile is one of a handful of calls.
const ENOUGH_FOR_P99: usize = 1000;
/// Requests before the clock starts.
const WARM_UP: usize = 20;

struct Server {
    child: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the callers saw.
#[derive(Default)]
struct Seen {
    /// Milliseconds from when the request was due to its answer.
    times: Vec<f64>,
    errors: usize,
}

pub fn bench(settings: &Settings, args: &BenchServe) -> Result<Exit> {
    let bodies = bodies(&args.messages)?;
    let server = start(args)?;
    let agent = || {
        let config =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(120)));
        config.build().new_agent()
    };
    let warm = agent();
    for body in bodies.iter().cycle().take(WARM_UP) {
        ask(&warm, &server.url, body)?;
    }
    let (seen, next) = (Mutex::new(Seen::default()), AtomicUsize::new(0));
    let due = args.rate.map(|rate| arrivals(rate, args.seconds));
    let begun = Instant::now();
    let until = begun + Duration::from_secs(args.seconds);
    std::thread::scope(|scope| {
        for _ in 0..args.clients {
            scope.spawn(|| {
                let (agent, mut mine) = (agent(), Seen::default());
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let from = match &due {
                        None if Instant::now() >= until => break,
                        None => Instant::now(),
                        Some(due) => {
                            let Some(at) = due.get(i) else { break };
                            let at = begun + *at;
                            std::thread::sleep(at.saturating_duration_since(Instant::now()));
                            at
                        }
                    };
                    match ask(&agent, &server.url, &bodies[i % bodies.len()]) {
                        Ok(200) => mine.times.push(from.elapsed().as_secs_f64() * 1e3),
                        Ok(_) | Err(_) => mine.errors += 1,
                    }
                }
                if let Ok(mut all) = seen.lock() {
                    all.times.append(&mut mine.times);
                    all.errors += mine.errors;
                }
            });
        }
    });
    let took = begun.elapsed().as_secs_f64();
    let mut seen = seen.into_inner().unwrap_or_default();
    seen.times.sort_by(f64::total_cmp);
    say(settings, args, &seen, took)
}

fn say(settings: &Settings, args: &BenchServe, seen: &Seen, took: f64) -> Result<Exit> {
    let (n, rate) = (seen.times.len(), seen.times.len() as f64 / took);
    let at = |p: f64| percentile(&seen.times, p);
    let p99 = (n >= ENOUGH_FOR_P99).then(|| at(0.99)).flatten();
    if settings.json {
        output::json(&json!({
            "clients": args.clients, "rate": args.rate, "seconds": took, "answered": n, "errors": seen.errors,
            "per_second": rate, "p50_ms": at(0.5), "p95_ms": at(0.95), "p99_ms": p99, "most_ms": seen.times.last(),
        }))?;
        return Ok(Exit::Ok);
    }
    let how = match args.rate {
        None => format!("{} callers at once", args.clients),
        Some(rate) => format!("{rate} requests a second at random times, at most {} at once", args.clients),
    };
    let ms = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.1}"));
    let p99 = match p99 {
        Some(_) => ms(p99),
        None => format!("not said of {n} answers: it takes {ENOUGH_FOR_P99}"),
    };
    output::stdout(&format!(
        "{how}, {took:.0} s\n  answered   {n}, {rate:.0} a second\n  errors     {}\n  p50 / p95  {} / {} ms\n  p99        {p99}\n  longest    {} ms\n",
        seen.errors,
        ms(at(0.5)),
        ms(at(0.95)),
        ms(seen.times.last().copied())
    ))?;
    Ok(Exit::Ok)
}

/// Of sorted values, the nearest rank.
fn percentile(sorted: &[f64], p: f64) -> Option<f64> {
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Times of a Poisson process of `rate` a second, the same every time.
fn arrivals(rate: f64, seconds: u64) -> Vec<Duration> {
    let (mut random, mut at, mut times) = (SplitMix64::new(0), 0.0, Vec::new());
    loop {
        at -= (1.0 - random.unit()).ln() / rate;
        if at >= seconds as f64 {
            return times;
        }
        times.push(Duration::from_secs_f64(at));
    }
}

fn ask(agent: &ureq::Agent, url: &str, body: &str) -> Result<u16> {
    let call = agent.post(url).header("content-type", "application/json").send(body);
    let mut response = call.map_err(|e| Failure::new(Exit::Unexpected, format!("the server did not answer: {e}")))?;
    let status = response.status().as_u16();
    // Read to its end, or the connection can't be used again.
    response.body_mut().read_to_string().map_err(|e| Failure::new(Exit::Unexpected, e.to_string()))?;
    Ok(status)
}

/// The messages of a log of traces as requests.
fn bodies(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(Exit::Usage, format!("failed to read {}: {e}", path.display())))?;
    let request = |line: &str| {
        let trace = trace::parse(line.as_bytes()).ok()?;
        let messages: Vec<Value> =
            trace.messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect();
        Some(json!({"model": "bench", "messages": messages}).to_string())
    };
    let bodies: Vec<String> = text.lines().filter_map(request).collect();
    match bodies.is_empty() {
        true => Err(Failure::new(Exit::Usage, format!("{} holds no traces", path.display()))
            .help("name a log of chat completions, such as recipes/quickstart/traces.jsonl")),
        false => Ok(bodies),
    }
}

/// The program itself, serving everything however unsure it is.
fn start(args: &BenchServe) -> Result<Server> {
    let which = &args.of;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", &which.artifact, "--listen", "127.0.0.1:0", "--json", "--threshold", "0"]);
    command.arg("--workers").arg(args.workers.to_string()).arg("--store").arg(&which.store);
    if which.no_verify {
        command.arg("--no-verify");
    } else if let Some(key) = &which.key {
        command.arg("--key").arg(key);
    }
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let said: Value = serde_json::from_str(&line).unwrap_or_default();
    let server = Server { child, url: format!("{}/chat/completions", said["url"].as_str().unwrap_or_default()) };
    match said["url"].is_string() {
        true => Ok(server),
        false => Err(Failure::new(Exit::Unexpected, "the server did not start; what it said is above")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_the_rate_and_at_random() {
        let times = arrivals(100.0, 50);
        let n = times.len() as f64;
        // Five standard deviations of a Poisson count.
        assert!((n - 5000.0).abs() < 5.0 * 5000f64.sqrt(), "{n}");
        let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
        let long = gaps.iter().filter(|gap| **gap > 0.01).count() as f64 / gaps.len() as f64;
        // Of exponential gaps, 1/e are longer than their mean.
        assert!((long - (-1f64).exp()).abs() < 0.04, "{long}");
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&sorted, 0.5), percentile(&sorted, 0.99)), (Some(50.0), Some(99.0)));
        assert_eq!((percentile(&[7.0], 0.99), percentile(&[], 0.5)), (Some(7.0), None));
    }
}
