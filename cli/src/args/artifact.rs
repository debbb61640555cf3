//! What the verbs over an artifact take: checking it, answering with it, serving it, comparing traffic with it, handing it on.

use super::ReadingArgs;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct Verify {
    /// The artifact's folder
    pub artifact: PathBuf,
    /// The public key that the signature must be of (PEM)
    #[arg(long, value_name = "PUB")]
    pub key: PathBuf,
}

/// An artifact, and how its signature is checked.
#[derive(Args, Debug, Clone)]
pub struct ArtifactArgs {
    /// An artifact's folder, or a channel of the store: CHANNEL or MODEL/CHANNEL
    pub artifact: String,
    /// The store that channels are looked up in
    #[arg(long, value_name = "DIR", default_value = crate::stores::DEFAULT)]
    pub store: PathBuf,
    /// The public key that the artifact must be signed with (PEM) [default: .limbeck/keys/signing.pub.pem, or by the store's
    /// trust policy]
    #[arg(long, value_name = "PUB")]
    pub key: Option<PathBuf>,
    /// Answer without checking the signature
    #[arg(long, conflicts_with = "key")]
    pub no_verify: bool,
}

/// The key that `limbeck run` makes where there is none.
pub const OWN_KEY: &str = ".limbeck/keys/signing.pub.pem";

#[derive(Args, Debug)]
pub struct Promote {
    /// A recipe, or an artifact's folder
    #[arg(value_name = "RECIPE|ARTIFACT")]
    pub of: PathBuf,
    /// The channel, of an artifact; a recipe names its own (promote.channel)
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Option<String>,
    /// The store, of an artifact; a recipe names its own (promote.store)
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The public key that an artifact must be signed with (PEM), where the store has no trust policy
    #[arg(long, value_name = "PUB")]
    pub key: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Drift {
    #[command(flatten)]
    pub of: ArtifactArgs,
    /// Trace files of the new traffic, or folders of them
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub traces: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// Calls that are answered, drawn from all
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    pub limit: u64,
    /// Leave personal data in: where the training's traces were not redacted either
    #[arg(long)]
    pub no_redact: bool,
    /// What calls and permutations are drawn with
    #[arg(long, value_name = "N", default_value_t = 17)]
    pub seed: u64,
}

#[derive(Args, Debug)]
pub struct Score {
    #[command(flatten)]
    pub of: ArtifactArgs,
    /// The message; without it, one is read from stdin
    pub text: Option<String>,
    /// Read JSON lines from stdin and answer each with a JSON line
    #[arg(long, conflicts_with = "text")]
    pub jsonl: bool,
    /// Serve from this confidence, whatever the artifact's own policy certifies
    #[arg(long, value_name = "0..1")]
    pub threshold: Option<f64>,
    /// Compute in this arithmetic, whatever the artifact was evaluated in
    #[arg(long, value_name = "HOW", value_enum)]
    pub arithmetic: Option<super::ArithmeticArg>,
    /// Of a stream, lines to answer at once where so many wait: faster in all, slower for each
    #[arg(long, value_name = "N", default_value_t = 32, requires = "jsonl", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch: u16,
}

#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    pub of: ArtifactArgs,
    /// Address and port to listen at; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    pub listen: String,
    /// The fallback for what the artifact is not sure of: the base address of an OpenAI-compatible API, with /v1
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
    /// The model to ask for there, instead of the one that the caller names
    #[arg(long, value_name = "NAME", requires = "upstream")]
    pub upstream_model: Option<String>,
    /// Certificates (PEM) that the fallback's must stem from, instead of the public authorities'
    #[arg(long, value_name = "PEM", requires = "upstream")]
    pub upstream_ca: Option<PathBuf>,
    /// How long the fallback may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub upstream_timeout: u64,
    /// What becomes of an unsure answer where no fallback gives a better one: an error, or the answer, marked
    #[arg(long, value_enum, default_value_t = crate::serve::Escalated::Refuse)]
    pub escalated: crate::serve::Escalated,
    /// Write a line a decision to DIR/decisions-DATE.jsonl, for `limbeck import`; messages are in it as they came
    #[arg(long, value_name = "DIR")]
    pub decisions: Option<PathBuf>,
    /// Send a span a decision to an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
    /// Serve from this confidence, whatever the artifact's own policy certifies
    #[arg(long, value_name = "0..1")]
    pub threshold: Option<f64>,
    /// Compute in this arithmetic, whatever the artifact was evaluated in
    #[arg(long, value_name = "HOW", value_enum)]
    pub arithmetic: Option<super::ArithmeticArg>,
    /// Requests that are answered at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// Requests that may wait for the model; more are refused at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue: u32,
    /// Connections that may be open; more wait
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: u32,
    /// Longest request body, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub max_body: u64,
    /// How long a request may wait for the artifact's answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

#[derive(Args, Debug)]
pub struct Reproduce {
    #[command(flatten)]
    pub of: ArtifactArgs,
    /// The recipe's folder: its traces, decisions and base are read from there
    #[arg(long, value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Keep the second run in this folder; killed, the same command goes on there
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Export {
    #[command(flatten)]
    pub of: ArtifactArgs,
    /// What for
    #[arg(long, value_enum)]
    pub form: Form,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The image's tag; the artifact's version when left out
    #[arg(long, value_name = "TAG")]
    pub tag: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// An OCI image layout with ModelPack media types, for registries
    Oci,
    /// The GGUF file with llama.cpp's command line, grammar and request
    LlamaServer,
    /// The GGUF file with a Modelfile
    Ollama,
    /// The adapter alone, for PEFT and vLLM
    Peft,
    /// The adapter alone as GGUF, for llama.cpp's --lora
    LlamaAdapter,
}
