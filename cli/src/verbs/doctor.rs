//! `limbeck doctor`: what this machine and this build can do, and what stands in the way of a run.

use crate::drivers::Places;
use crate::exit::{Exit, Result};
use crate::output;
use crate::settings::Settings;
use limbeck_artifact::keys;
use limbeck_model::device::{self, DeviceName};
use limbeck_tui::progress::bytes;
use serde_json::json;
use std::path::Path;

const KEY: &str = ".limbeck/keys/signing.pem";
const STORE: &str = crate::stores::DEFAULT;

pub fn doctor(settings: &Settings) -> Result<Exit> {
    let memory = memory();
    let devices: Vec<(String, String)> =
        device::built().into_iter().map(|name| (name.to_owned(), try_device(name))).collect();
    let mut problems = Vec::new();
    if let Some((_, available)) = memory.filter(|(_, available)| *available < 1 << 30) {
        problems.push(format!("only {} of memory are free; the quickstart wants 1 GB", bytes(available)));
    }
    if let Some(name) = &settings.device
        && !devices.iter().any(|(built, state)| built == name.split(':').next().unwrap_or(name) && state == "ready")
    {
        problems.push(format!("device {name} can't be used; see the list of devices"));
    }
    let key = key_state(Path::new(KEY));
    if let Err(problem) = &key {
        problems.push(problem.clone());
    }
    let key = key.unwrap_or_else(|_| "unusable".to_owned());
    let writable = writable(&settings.runs_dir);
    if let Err(problem) = &writable {
        problems.push(problem.clone());
    }
    let features = cpu_features();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if settings.json {
        output::json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            "cores": cores,
            "cpu_features": features,
            "memory_bytes": memory.map(|(total, _)| total),
            "memory_available_bytes": memory.map(|(_, available)| available),
            "devices": devices.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "signing_key": key,
            "runs_dir_writable": writable.is_ok(),
            "problems": problems,
        }))?;
        return Ok(Exit::Ok);
    }
    let mut text = String::new();
    let mut line = |what: &str, value: String| text.push_str(&format!("{what:<13} {value}\n"));
    line(
        "limbeck",
        format!("{} for {} on {}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS),
    );
    line(
        "processor",
        format!(
            "{cores} cores; {}",
            if features.is_empty() { "no vector extensions known to us".to_owned() } else { features.join(" ") }
        ),
    );
    line("training", format!("on cpu in {} (train.dtype = \"auto\")", products()));
    line(
        "memory",
        memory.map_or("unknown".to_owned(), |(total, free)| format!("{}, {} free", bytes(total), bytes(free))),
    );
    for (name, state) in &devices {
        line("device", format!("{name}: {state}"));
    }
    for (name, feature) in [("wgpu", "wgpu"), ("cuda", "cuda")] {
        if !devices.iter().any(|(built, _)| built == name) {
            line("device", format!("{name}: not in this build (cargo build --release --features {feature})"));
        }
    }
    line("signing key", key);
    line(
        "store",
        if Path::new(STORE).is_dir() {
            format!("{STORE} is there")
        } else {
            format!("{STORE} will be made by the first promotion")
        },
    );
    line("runs", writable.map_or_else(|e| e, |()| format!("{} can be written to", settings.runs_dir.display())));
    match problems.as_slice() {
        [] => text.push_str("\nNothing stands in the way of a run.\n"),
        problems => problems.iter().for_each(|p| text.push_str(&format!("\nproblem: {p}\n"))),
    }
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

fn try_device(name: &str) -> String {
    let Ok(device) = name.parse::<DeviceName>() else { return "unknown".to_owned() };
    match device::probe(device) {
        Ok(()) => "ready".to_owned(),
        Err(e) => {
            let missing = Places::here().missing(name);
            if missing.is_empty() { e.to_string() } else { format!("can't start: {}", missing.join("; ")) }
        }
    }
}

/// What training's matrix products compute in on this processor.
fn products() -> &'static str {
    device::training_ops(DeviceName::Cpu, device::Dtype::Auto).map_or("nothing", |ops| ops.compute())
}

fn key_state(path: &Path) -> std::result::Result<String, String> {
    if !path.exists() {
        return Ok(format!("none at {}; the first package makes a local development key", path.display()));
    }
    let passphrase = crate::settings::key_passphrase().map_err(|failure| failure.message)?;
    match keys::load_private(path, passphrase.as_deref()) {
        Ok(key) => Ok(format!("{} (id {})", path.display(), &keys::key_id(key.verifying_key())[..12])),
        Err(e) => Err(e.to_string()),
    }
}

fn writable(dir: &Path) -> std::result::Result<(), String> {
    let nearest = dir.ancestors().find(|d| d.is_dir()).unwrap_or(Path::new("."));
    let probe = nearest.join(format!(".limbeck-doctor-{}.tmp", std::process::id()));
    let tried = std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe));
    tried.map_err(|e| format!("{} can't be written to: {e}; choose another with --runs-dir", nearest.display()))
}

/// Total and available, in bytes.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|l| l.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

/// The vector extensions that the kernels make use of.
pub fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! detect {
            ($($name:tt),*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
        }
        detect!("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! detect {
            ($($name:tt),*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
        }
        detect!("neon", "dotprod", "fp16", "bf16", "i8mm", "sve");
    }
    found
}
