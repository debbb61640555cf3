//! The two sides as processes. Each is started, waited for, and answers with one line of JSON, the last on its stdout; what
//! goes wrong on the way says what is missing and how to get it.

use super::args::BenchTrain;
use super::{FinetuneFigures, StepFigures, THREADS};
use crate::exit::{Exit, Failure, Result};
use crate::settings::shell;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where both sides find what they need.
pub struct Sides<'a> {
    pub args: &'a BenchTrain,
    pub python: PathBuf,
    pub device: Option<&'a str>,
}

impl<'a> Sides<'a> {
    /// Checks that everything is there before anything is measured.
    ///
    /// # Errors
    /// With exit code 2 and what to install or to name.
    pub fn new(args: &'a BenchTrain, scripts: &[&str], device: Option<&'a str>) -> Result<Sides<'a>> {
        let missing = |path: &Path, help: String| {
            Failure::new(Exit::Usage, format!("{} is not there", path.display())).help(help)
        };
        for name in ["config.json", "tokenizer.json"] {
            let path = args.model.join(name);
            if !path.is_file() {
                let help = "--model names a Hugging Face folder, which both sides read: config.json, tokenizer.json and \
                            safetensors";
                return Err(missing(&path, help.to_owned()));
            }
        }
        for name in scripts {
            let path = args.peer.join(name);
            if !path.is_file() {
                return Err(missing(&path, "--peer names the folder of peer_step.py and peer_finetune.py".to_owned()));
            }
        }
        let python = args.python.clone().unwrap_or_else(|| args.peer.join(".venv/bin/python"));
        if !scripts.is_empty() && !python.is_file() {
            return Err(missing(&python, install(&args.peer)));
        }
        Ok(Sides { args, python, device })
    }

    /// Steps of peer_step.py.
    ///
    /// # Errors
    /// When it fails, with the end of what it said.
    pub fn peer_step(&self) -> Result<StepFigures> {
        let mut command = self.peer("peer_step.py");
        command.args(["--r", &super::RANK.to_string(), "--threads", &THREADS.to_string()]);
        command.args(["--bs", &self.args.batch_size.to_string(), "--seq", &self.args.length.to_string()]);
        command.args(["--warmup", &self.args.warmup.to_string(), "--steps", &self.args.steps.to_string()]);
        self.answer(command, "the peer's step")
    }

    /// peer_finetune.py on the rows in `data`.
    ///
    /// # Errors
    /// As [`Sides::peer_step`].
    pub fn peer_finetune(&self, data: &Path) -> Result<FinetuneFigures> {
        let mut command = self.peer("peer_finetune.py");
        command.arg("--train").arg(data.join("train.csv")).arg("--test").arg(data.join("test.csv"));
        command.args(["--classes", &self.args.classes.to_string(), "--per-class", &self.args.per_class.to_string()]);
        command.args(["--epochs", &self.args.epochs.to_string(), "--bs", &self.args.batch_size.to_string()]);
        command.args(["--lr", &self.args.learning_rate.to_string(), "--r", &super::RANK.to_string()]);
        self.answer(command, "the peer's fine-tuning")
    }

    /// Our steps of one shape.
    ///
    /// # Errors
    /// When the child fails, with the end of what it said.
    pub fn our_step(&self, rows: usize, length: usize, warmup: u64, steps: u64) -> Result<StepFigures> {
        let mut command = self.ours("step")?;
        command.args(["--bs", &rows.to_string(), "--seq", &length.to_string()]);
        command.args(["--warmup", &warmup.to_string(), "--steps", &steps.to_string()]);
        self.answer(command, "our step")
    }

    /// Our fine-tuning on the rows in `data`.
    ///
    /// # Errors
    /// As [`Sides::our_step`].
    pub fn our_finetune(&self, data: &Path) -> Result<FinetuneFigures> {
        let mut command = self.ours("finetune")?;
        command.arg("--data").arg(data).args(["--epochs", &self.args.epochs.to_string()]);
        command.args(["--bs", &self.args.batch_size.to_string(), "--lr", &self.args.learning_rate.to_string()]);
        self.answer(command, "our fine-tuning")
    }

    fn peer(&self, script: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(self.args.peer.join(script)).arg("--model").arg(&self.args.model);
        command.args(["--dtype", self.args.dtype.name()]);
        command
    }

    fn ours(&self, work: &str) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench-ours", work, "--model"]).arg(&self.args.model);
        command.args(["--dtype", self.args.our_dtype.name()]).env("RAYON_NUM_THREADS", THREADS.to_string());
        if self.args.gradient_checkpointing {
            command.arg("--gradient-checkpointing");
        }
        if let Some(device) = self.device {
            command.args(["--device", device]);
        }
        Ok(command)
    }

    fn answer<T: DeserializeOwned>(&self, mut command: Command, what: &str) -> Result<T> {
        let program = PathBuf::from(command.get_program());
        let out = command.output().map_err(|e| {
            Failure::new(Exit::Usage, format!("failed to start {}: {e}", program.display()))
                .help(install(&self.args.peer))
        })?;
        let said = String::from_utf8_lossy(&out.stderr);
        if !out.status.success() {
            return Err(failed(what, &out.status.to_string(), &said, &self.args.peer));
        }
        last_json(&String::from_utf8_lossy(&out.stdout)).map_err(|e| {
            Failure::new(Exit::Unexpected, format!("{what} did not end with its figures as a line of JSON: {e}"))
        })
    }
}

/// How to get what the peer needs.
fn install(peer: &Path) -> String {
    let venv = shell(&peer.join(".venv"));
    format!(
        "python3 -m venv {venv} && {venv}/bin/pip install torch transformers peft numpy; or name another with --python"
    )
}

/// Of a side that ended badly: the module it lacks, or the end of what it said.
pub(super) fn failed(what: &str, status: &str, said: &str, peer: &Path) -> Failure {
    let lacks = said.lines().rev().find_map(|line| line.split_once("No module named '")?.1.split('\'').next());
    if let Some(module) = lacks {
        return Failure::new(Exit::Usage, format!("{what} needs the Python module {module}")).help(install(peer));
    }
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(8)..].join("\n");
    Failure::new(Exit::Unexpected, format!("{what} failed ({status}):\n{tail}"))
}

pub(super) fn last_json<T: DeserializeOwned>(stdout: &str) -> std::result::Result<T, serde_json::Error> {
    serde_json::from_str(stdout.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_the_last_line_of_json() {
        let out = "step 20/180 loss 1.2\n{\"accuracy\": 0, \"n\": 0, \"seconds\": 0}\n\
                   {\"accuracy\": 0.5, \"n\": 4, \"seconds\": 1.5}\ndone\n";
        assert_eq!(last_json::<super::super::Tuned>(out).unwrap().n, 4);
        assert!(last_json::<super::super::Tuned>("killed\n").is_err());
    }

    #[test]
    fn a_missing_module_says_what_to_install_and_anything_else_is_shown() {
        let traceback = "Traceback (most recent call last):\n  x\nModuleNotFoundError: No module named 'torch'\n";
        let failure = failed("the peer's step", "exit status: 1", traceback, Path::new("my peer"));
        assert_eq!(failure.message, "the peer's step needs the Python module torch");
        assert!(failure.help.unwrap().contains("pip install torch transformers peft"));
        let failure = failed("our step", "signal: 9", "a\n\nb\n", Path::new("p"));
        assert_eq!(failure.message, "our step failed (signal: 9):\na\nb");
    }
}
