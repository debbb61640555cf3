//! What the verbs about trust take.

use crate::verbs::store::args::StoreArg;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct Trust {
    #[command(subcommand)]
    pub verb: TrustVerb,
}

#[derive(Subcommand, Debug)]
pub enum TrustVerb {
    /// Write a policy to start from: the named keys may do everything, until you edit it
    #[command(after_help = "\
Example:
  limbeck trust new trust.toml --key ci=ci.pub.pem --key ann=ann.pub.pem")]
    New {
        /// Where the policy goes
        path: PathBuf,
        /// A key and what it is called in the policy (may be repeated)
        #[arg(long = "key", required = true, value_name = "NAME=PUB", value_parser = named_key)]
        keys: Vec<(String, PathBuf)>,
    },
    /// Sign a policy as it stands, with a root key
    #[command(after_help = "Example:\n  limbeck trust sign trust.toml --key ann.pem       writes trust.toml.KEY.sig")]
    Sign {
        /// The policy
        policy: PathBuf,
        /// The private key
        #[arg(long, value_name = "KEY")]
        key: PathBuf,
    },
    /// Put a policy into force, with the signatures beside it (POLICY.*.sig)
    #[command(after_help = "\
Example:
  limbeck trust install trust.toml --dry-run     which channels it would no longer trust
  limbeck trust install trust.toml

The first policy is signed by its own root keys; each later one has one version more and is signed by the root keys of both.
It is an entry of the log: who pins the log's head pins the policy.")]
    Install {
        #[command(flatten)]
        store: StoreArg,
        /// The policy
        policy: PathBuf,
        /// Only check it, and say what it would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Say who may do what, and whether what the channels serve is trusted
    #[command(
        after_help = "Example:\n  limbeck trust show\n  limbeck trust show --text > trust.toml    the policy itself"
    )]
    Show {
        #[command(flatten)]
        store: StoreArg,
        /// The policy's text instead
        #[arg(long)]
        text: bool,
    },
}

/// What an approval is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// It may serve a channel
    Promote,
    /// Its gates are vouched for
    Eval,
}

#[derive(Args, Debug)]
pub struct Approve {
    #[command(flatten)]
    pub store: StoreArg,
    /// The artifact's folder, or the digest of a version in the store, or the digest's beginning
    #[arg(value_name = "ARTIFACT")]
    pub artifact: String,
    /// The channel that it may serve
    #[arg(long, value_name = "CHANNEL", required_unless_present = "list", required_if_eq("step", "promote"))]
    pub channel: Option<String>,
    /// What is approved
    #[arg(long = "as", value_enum, default_value_t = Step::Promote, value_name = "STEP")]
    pub step: Step,
    /// Your private key
    #[arg(long, value_name = "KEY", required_unless_present = "list")]
    pub key: Option<PathBuf>,
    /// Only list the approvals that there are
    #[arg(long, conflicts_with_all = ["key", "channel"])]
    pub list: bool,
}

fn named_key(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), PathBuf::from(path))),
        _ => Err("expected NAME=PUB, for example ann=ann.pub.pem".to_owned()),
    }
}
