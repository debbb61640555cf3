//! What the verbs over the store take.

use clap::{Args, Subcommand};
use limbeck_artifact::store::Head;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Subcommand, Debug)]
pub enum StoreVerb {
    /// Show the promotion log: which version each channel served, since when, and who decided
    #[command(after_help = "\
Example:
  limbeck log
  limbeck log --channel quickstart/staging --json
  limbeck log --expect-head 12:3f9c...      fails (exit code 6) if the log was cut short or rewritten since

The last line names the head. Note it down elsewhere (CI prints it): a chain of hashes can't show that its end is gone.")]
    Log(Log),
    /// Have a channel serve again what it served before, as a new entry of the log
    #[command(after_help = "\
Example:
  limbeck rollback quickstart/staging                     the version before the present one
  limbeck rollback quickstart/staging --to 1c551ab4e2f0   one that it served earlier")]
    Rollback(Rollback),
    /// Keep a version whatever channels do, or end that
    #[command(after_help = "\
Example:
  limbeck hold quickstart/staging --name audit-2026     the version that the channel serves now
  limbeck hold quickstart --release --name audit-2026")]
    Hold(HoldArgs),
    /// Remove versions that no channel and no hold needs, and content that no version has
    #[command(after_help = "\
Example:
  limbeck gc --dry-run
  limbeck gc --keep-last 3 --min-age 7d")]
    Gc(Gc),
    /// Check every entry, version and file of the store by its digest
    #[command(after_help = "\
Example:
  limbeck fsck
  limbeck fsck --expect-head 12:3f9c... --json
  limbeck fsck --repair --from runs/quickstart/package    mends damaged content from the artifact's folder

Exit code 6 when something is wrong. --repair clears what killed processes left and what the store makes anew by itself.")]
    Fsck(FsckArgs),
}

#[derive(Args, Debug)]
pub struct StoreArg {
    /// The store: a folder, or s3://BUCKET/PREFIX where the build can (AWS_* say with which keys)
    #[arg(long, value_name = "DIR", default_value = crate::stores::DEFAULT)]
    pub store: PathBuf,
}

#[derive(Args, Debug)]
pub struct Log {
    #[command(flatten)]
    pub store: StoreArg,
    /// Only this channel: MODEL/CHANNEL, or a model's all
    #[arg(long, value_name = "MODEL[/CHANNEL]")]
    pub channel: Option<String>,
    /// A head that was noted down: the log must still hold that entry
    #[arg(long, value_name = "SEQ:SHA256", value_parser = head)]
    pub expect_head: Option<Head>,
}

#[derive(Args, Debug)]
pub struct Rollback {
    #[command(flatten)]
    pub store: StoreArg,
    /// The channel
    #[arg(value_name = "MODEL/CHANNEL", value_parser = channel)]
    pub channel: Channel,
    /// A version that it served, by its digest or the digest's beginning
    #[arg(long, value_name = "VERSION")]
    pub to: Option<String>,
}

#[derive(Args, Debug)]
pub struct HoldArgs {
    #[command(flatten)]
    pub store: StoreArg,
    /// The channel whose version is held; the model alone with --release or --version
    #[arg(value_name = "MODEL[/CHANNEL]")]
    pub of: String,
    /// What the hold is called
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Another version than the one that a channel serves
    #[arg(long, value_name = "DIGEST", conflicts_with = "release")]
    pub version: Option<String>,
    /// End the hold
    #[arg(long)]
    pub release: bool,
}

#[derive(Args, Debug)]
pub struct Gc {
    #[command(flatten)]
    pub store: StoreArg,
    /// Keep so many versions of each channel, the served one among them
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub keep_last: u16,
    /// Spare what is younger: a promotion must not take longer
    #[arg(long, value_name = "N[s|m|h|d]", default_value = "24h", value_parser = duration)]
    pub min_age: Duration,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct FsckArgs {
    #[command(flatten)]
    pub store: StoreArg,
    /// A head that was noted down: the log must still hold that entry
    #[arg(long, value_name = "SEQ:SHA256", value_parser = head)]
    pub expect_head: Option<Head>,
    /// Clear leftovers and laid-out folders that are not their version
    #[arg(long)]
    pub repair: bool,
    /// Put this artifact's content again first (may be repeated)
    #[arg(long, value_name = "ARTIFACT", requires = "repair")]
    pub from: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    pub model: String,
    pub channel: String,
}

pub fn channel(text: &str) -> Result<Channel, String> {
    match text.split_once('/') {
        Some((model, channel)) if !model.is_empty() && !channel.is_empty() => {
            Ok(Channel { model: model.to_owned(), channel: channel.to_owned() })
        }
        _ => Err("expected MODEL/CHANNEL, for example quickstart/staging".to_owned()),
    }
}

fn head(text: &str) -> Result<Head, String> {
    let parsed = text.split_once(':').and_then(|(seq, sha256)| Some((seq.parse().ok()?, sha256)));
    match parsed {
        Some((seq, sha256)) if limbeck_artifact::digest::is_sha256(sha256) => {
            Ok(Head { seq, sha256: sha256.to_owned() })
        }
        _ => {
            Err("expected the number of an entry and its SHA-256, as `limbeck log` prints them: 12:3f9c...".to_owned())
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number with s, m, h or d, for example 24h".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_told_apart() {
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("2d").unwrap(), Duration::from_secs(172_800));
        for bad in ["", "d", "1w", "-1h", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(channel("a/b").unwrap(), Channel { model: "a".to_owned(), channel: "b".to_owned() });
        for bad in ["a", "/b", "a/"] {
            assert!(channel(bad).is_err(), "{bad}");
        }
        assert_eq!(head(&format!("3:{}", "a".repeat(64))).unwrap().seq, 3);
        for bad in ["3", "x:y", &format!("3:{}", "g".repeat(64))] {
            assert!(head(bad).is_err(), "{bad}");
        }
    }
}
