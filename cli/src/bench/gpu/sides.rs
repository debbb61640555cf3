//! Runs a side in a process of its own and keeps its answer, with the memory that the GPU had given out meanwhile. What was
//! answered before is not asked again.

use crate::bench::args::BenchGpu;
use crate::bench::sides::{failed, last_json};
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::stages::cannot;
use limbeck_model::device::DeviceName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const PEER: &str = include_str!("peer.py");

/// A side's figures, and the GPU's memory that it took at most: its context, kernels and what its allocator keeps included.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer<T> {
    pub of: T,
    pub gpu_mib: Option<u64>,
    /// Of the whole process, its start included.
    pub seconds: f64,
}

pub struct Sides<'a> {
    args: &'a BenchGpu,
    device: DeviceName,
    script: PathBuf,
    /// What went wrong, by the name of the answer.
    pub failed: Vec<(String, String)>,
}

impl<'a> Sides<'a> {
    /// # Errors
    /// When the folder can't be written to.
    pub fn new(args: &'a BenchGpu, device: DeviceName) -> Result<Sides<'a>> {
        for dir in ["answers", "works", "models"] {
            let dir = args.out.join(dir);
            std::fs::create_dir_all(&dir).map_err(|e| cannot("create", &dir, &e))?;
        }
        let script = args.out.join("peer.py");
        std::fs::write(&script, PEER).map_err(|e| cannot("write", &script, &e))?;
        Ok(Sides { args, device, script, failed: Vec::new() })
    }

    pub fn out(&self) -> &'a Path {
        &self.args.out
    }

    /// Writes a work for both sides.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn work(&self, name: &str, work: &impl Serialize) -> Result<PathBuf> {
        let path = self.out().join("works").join(format!("{name}.json"));
        std::fs::write(&path, serde_json::to_vec(work)?).map_err(|e| cannot("write", &path, &e))?;
        Ok(path)
    }

    /// peer.py with these arguments.
    pub fn peer<T: Serialize + DeserializeOwned>(&mut self, name: &str, args: &[&str]) -> Option<Answer<T>> {
        let device = match self.device {
            DeviceName::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        };
        let mut command = Command::new(&self.args.python);
        command.arg(&self.script).args(["--device", &device]).args(args);
        self.answer(&format!("{name}-peer"), command)
    }

    /// `limbeck bench-ours` with these arguments.
    pub fn ours<T: Serialize + DeserializeOwned>(&mut self, name: &str, args: &[&str]) -> Option<Answer<T>> {
        let Ok(program) = std::env::current_exe() else { return None };
        let mut command = Command::new(program);
        command.arg("bench-ours").args(args).args(["--device", &self.device.to_string()]);
        self.answer(&format!("{name}-ours"), command)
    }

    fn answer<T: Serialize + DeserializeOwned>(&mut self, name: &str, command: Command) -> Option<Answer<T>> {
        let path = self.out().join("answers").join(format!("{name}.json"));
        if !self.args.again
            && let Some(known) = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok())
        {
            return Some(known);
        }
        output::stderr(&format!("{name} ... "));
        match self.run(name, command) {
            Ok(answer) => {
                let memory = answer.gpu_mib.map_or(String::new(), |mib| format!(", {mib} MiB on the GPU"));
                output::stderr(&format!("{:.0} s{memory}\n", answer.seconds));
                let kept = serde_json::to_vec(&answer).map_err(std::io::Error::from);
                if let Err(e) = kept.and_then(|text| std::fs::write(&path, text)) {
                    output::stderr(&format!("warning: its answer could not be kept: {e}\n"));
                }
                Some(answer)
            }
            Err(failure) => {
                output::stderr(&format!("failed\n{}\n", failure.message));
                self.failed.push((name.to_owned(), failure.message));
                None
            }
        }
    }

    fn run<T: DeserializeOwned>(&self, name: &str, mut command: Command) -> Result<Answer<T>> {
        let begun = Instant::now();
        let memory = Memory::watch(self.device);
        let out = command.output().map_err(|e| {
            let program = PathBuf::from(command.get_program());
            Failure::new(Exit::Usage, format!("failed to start {}: {e}", program.display()))
        })?;
        let gpu_mib = memory.map(Memory::most);
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            return Err(failed(name, &out.status.to_string(), &said, Path::new(".")));
        }
        let of = last_json(&String::from_utf8_lossy(&out.stdout))
            .map_err(|e| Failure::new(Exit::Unexpected, format!("it did not end with its figures as JSON: {e}")))?;
        Ok(Answer { of, gpu_mib, seconds: begun.elapsed().as_secs_f64() })
    }
}

/// The GPU's memory in use, asked of the driver ten times a second from outside: the same for both sides.
struct Memory {
    asked: Child,
    before: u64,
    most: Arc<AtomicU64>,
    reader: std::thread::JoinHandle<()>,
}

impl Memory {
    /// Of an NVIDIA GPU; nobody says it of others.
    fn watch(device: DeviceName) -> Option<Memory> {
        let DeviceName::Cuda(index) = device else { return None };
        let mut asked = Command::new("nvidia-smi")
            .args(["-i", &index.to_string(), "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "100"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut lines = BufReader::new(asked.stdout.take()?).lines();
        let Some(before) = lines.next().and_then(|line| line.ok()?.trim().parse().ok()) else {
            let _ = asked.kill();
            let _ = asked.wait();
            return None;
        };
        let most = Arc::new(AtomicU64::new(before));
        let seen = most.clone();
        let reader = std::thread::spawn(move || {
            for mib in lines.map_while(std::result::Result::ok).filter_map(|line| line.trim().parse().ok()) {
                seen.fetch_max(mib, Ordering::Relaxed);
            }
        });
        Some(Memory { asked, before, most, reader })
    }

    fn most(mut self) -> u64 {
        let _ = self.asked.kill();
        let _ = self.asked.wait();
        let _ = self.reader.join();
        self.most.load(Ordering::Relaxed).saturating_sub(self.before)
    }
}
