//! The program itself as a server on loopback, in a process of its own, so that its memory is its own.

use crate::exit::{Exit, Failure, Result};
use crate::memory::peak_rss_bytes_of;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A server that ends with its owner.
pub struct Served {
    child: Child,
    /// Base address, with `/v1`.
    pub url: String,
}

impl Served {
    /// Serves everything, however unsure it is, on a free port. `artifact` are the arguments that name it and say how its signature
    /// is checked.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(artifact: &[String], workers: u16, device: Option<&str>) -> Result<Served> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").args(artifact).args(["--listen", "127.0.0.1:0", "--json", "--threshold", "0"]);
        // A load test finds out by itself how much is too much.
        command.args(["--escalated", "answer", "--queue", "100000", "--workers"]).arg(workers.to_string());
        if let Some(device) = device {
            command.args(["--device", device]);
        }
        // It is asked on this machine, by this process.
        let child = command.env_remove("LIMBECK_API_KEY").stdout(Stdio::piped()).stdin(Stdio::null()).spawn()?;
        // From here on it ends with this value, whatever goes wrong.
        let mut served = Served { child, url: String::new() };
        let mut line = String::new();
        if let Some(stdout) = served.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        said["url"].as_str().unwrap_or_default().clone_into(&mut served.url);
        match served.url.is_empty() {
            false => Ok(served),
            true => Err(Failure::new(Exit::Unexpected, "the server did not start; what it said is above")),
        }
    }

    /// The most memory that it has held so far, in bytes.
    pub fn peak_memory(&self) -> Option<u64> {
        peak_rss_bytes_of(self.child.id())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
