//! What the verbs over trace files take: how files are to be understood, importing, looking for call sites.

use super::key_value;
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::path::PathBuf;

/// How files are to be understood.
#[derive(Args, Debug, Clone, Default)]
pub struct ReadingArgs {
    /// What wrote the files; seen from their first records when left out
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(formats()))]
    pub format: Option<String>,
    /// Which column, or dotted path in JSON, holds which field (input, output, messages, system, id, customer, time, ...)
    #[arg(long, value_delimiter = ',', value_name = "FIELD=COLUMN,...", value_parser = key_value)]
    pub map: Vec<(String, String)>,
}

fn formats() -> Vec<&'static str> {
    let mut names: Vec<&str> = limbeck_data_curation::trace::Format::ALL.iter().map(|f| f.name()).collect();
    names.sort_unstable();
    names
}

#[derive(Args, Debug)]
pub struct Import {
    /// A recipe, or trace files and folders of them
    #[arg(required_unless_present = "watch", value_name = "RECIPE|FILE")]
    pub what: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// Where the result goes when no recipe says it
    #[arg(long, value_name = "DIR", default_value = "imported")]
    pub out: PathBuf,
    /// Leave personal data in: only for files that are known to hold none
    #[arg(long)]
    pub no_redact: bool,
    /// Read what is appended to the logs of a folder, every 2 seconds, until stopped; nothing is read twice
    #[arg(long, value_name = "DIR", conflicts_with = "what")]
    pub watch: Option<PathBuf>,
    /// Look once and stop
    #[arg(long, requires = "watch")]
    pub once: bool,
}

#[derive(Args, Debug)]
pub struct Audit {
    /// Trace files, or folders of them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// Price table (TOML): [models.NAME] input_per_1m, output_per_1m; [self_hosted] per_hour; [assumptions]
    #[arg(long, value_name = "TOML")]
    pub prices: Option<PathBuf>,
    /// Days that the traces cover, where they tell no time or not all of it
    #[arg(long, value_name = "N", value_parser = days)]
    pub days: Option<f64>,
    /// Also write the report as one self-contained page
    #[arg(long, value_name = "FILE.html")]
    pub html: Option<PathBuf>,
    /// Write a starter recipe for the best call site: recipe.toml and its calls, redacted
    #[arg(long, value_name = "DIR")]
    pub write_recipe: Option<PathBuf>,
    /// For this call site instead
    #[arg(long, value_name = "N", requires = "write_recipe")]
    pub site: Option<usize>,
}

fn days(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0).ok_or_else(|| "expected a number above 0".to_owned())
}
