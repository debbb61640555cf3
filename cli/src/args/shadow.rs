//! What `limbeck shadow` is asked.

use super::ReadingArgs;
use super::artifact::ArtifactArgs;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct Shadow {
    /// The artifact that serves: its folder, or a channel of the store
    #[arg(value_name = "A")]
    pub first: String,
    /// The artifact that would take its place
    #[arg(value_name = "B")]
    pub second: String,
    /// Trace files of recorded calls, or folders of them
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub traces: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// A run or its dataset, whose reviewed test rows say which answers are right
    #[arg(long, value_name = "RUN")]
    pub data: Option<PathBuf>,
    /// Price table (TOML) for the cost of a call
    #[arg(long, value_name = "FILE")]
    pub prices: Option<PathBuf>,
    /// Calls that are answered, drawn from all
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub limit: u64,
    /// How much worse B would have to be for the rollout plan to see it, in points of wrong answers
    #[arg(long, value_name = "POINTS", default_value_t = 2.0, value_parser = points)]
    pub difference: f64,
    /// The store that channels are looked up in
    #[arg(long, value_name = "DIR", default_value = crate::stores::DEFAULT)]
    pub store: PathBuf,
    /// The public key that both must be signed with (PEM) [default: .limbeck/keys/signing.pub.pem, or by the store's trust policy]
    #[arg(long, value_name = "PUB")]
    pub key: Option<PathBuf>,
    /// Answer without checking the signatures
    #[arg(long, conflicts_with = "key")]
    pub no_verify: bool,
    /// Leave personal data in: where the training's traces were not redacted either
    #[arg(long)]
    pub no_redact: bool,
    /// What calls are drawn with
    #[arg(long, value_name = "N", default_value_t = 17)]
    pub seed: u64,
}

impl Shadow {
    /// How one of the two is found.
    pub fn artifact(&self, artifact: &str) -> ArtifactArgs {
        ArtifactArgs {
            artifact: artifact.to_owned(),
            store: self.store.clone(),
            key: self.key.clone(),
            no_verify: self.no_verify,
        }
    }
}

fn points(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(points) if points > 0.0 && points <= 50.0 => Ok(points),
        _ => Err("write a number of points above 0, at most 50, such as 2".to_owned()),
    }
}
