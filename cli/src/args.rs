//! What can be typed. The doc comment of a verb is its help text.

mod artifact;
pub mod capture;
mod keys;
mod review;
mod shadow;
mod students;
mod traces;

pub use artifact::{ArtifactArgs, Drift, Export, Form, OWN_KEY, Promote, Reproduce, Score, Serve, Verify};
pub use keys::{Keys, KeysVerb, Seal, Unseal};
pub use review::{Part, Review, Tool};
pub use shadow::Shadow;
pub use students::{Carve, Ladder, Seeds, Teach};
pub use traces::{Audit, Import, ReadingArgs};

use clap::{Args, Parser, Subcommand, ValueEnum};
use limbeck_model::arithmetic::Arithmetic;
use std::path::PathBuf;

/// In which arithmetic a quantized file is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArithmeticArg {
    /// Straight from its blocks, activations rounded to int8: as llama.cpp serves it
    Served,
    /// Weights expanded to float32, nothing rounded
    F32,
}

impl From<ArithmeticArg> for Arithmetic {
    fn from(arg: ArithmeticArg) -> Arithmetic {
        match arg {
            ArithmeticArg::Served => Arithmetic::Served,
            ArithmeticArg::F32 => Arithmetic::F32,
        }
    }
}

/// Turns production traces of a frontier model into a small, gated, signed model.
#[derive(Parser, Debug)]
#[command(
    name = "limbeck",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Example:
  limbeck run recipes/quickstart                  the whole way, from traces to a promoted artifact
  limbeck score staging \"where is my refund?\"     ask what was promoted

Exit codes:
  0 ok, 1 unexpected, 2 usage, 3 recipe invalid, 4 gate failed, 5 review or approvals incomplete,
  6 verification failed, 7 gate inconclusive (says how many more examples would decide)"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Print the result as JSON on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// Override a recipe value, for example --set train.num_epochs=1 (may be repeated; the last one wins)
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Never use the network: models come from the disk or the hub's cache
    #[arg(long, global = true)]
    pub offline: bool,
    /// Where to compute: cpu, wgpu, cuda or cuda:N (as --set model.device=...)
    #[arg(long, global = true, value_name = "NAME")]
    pub device: Option<String>,
    /// Folder of the run folders
    #[arg(long, global = true, value_name = "DIR", default_value = "runs")]
    pub runs_dir: PathBuf,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, for example train.r=8".to_owned()),
    }
}

#[derive(Args, Debug, Clone)]
pub struct RecipeArg {
    /// A recipe: a folder that holds recipe.toml, or the file itself
    pub recipe: PathBuf,
}

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Write a new, commented recipe
    #[command(after_help = "\
Example:
  limbeck init recipes/router --labels refund,lost_card,other    one label for a message
  limbeck init recipes/bookings --fields date,time,people        fields out of a message, as JSON
  limbeck init recipes/replies --generate                        a text
  limbeck init recipes/retries --role retry-safety               a role, with made-up calls")]
    Init(Init),
    /// Run all stages of a recipe, in order; what is already done is not done again
    #[command(after_help = "\
Example:
  limbeck run recipes/quickstart
  limbeck run recipes/quickstart --set train.num_epochs=1 --json
  limbeck run recipes/quickstart --tensorboard boards    then: tensorboard --logdir boards")]
    Run(RunArgs),
    /// Read traces: accepted.parquet, and rejected.jsonl with a reason for each bad record
    #[command(after_help = "\
Example:
  limbeck import recipes/quickstart                        the traces of a recipe
  limbeck import spans.json calls.jsonl.gz --out imported  files by hand
  limbeck import tickets.csv --map input=text,output=label
  limbeck import --watch logs --out imported               keep up with a folder of logs that grow

Formats: openai (chat completions, stored ones, conversations, Responses), otel (OTLP JSON, GenAI spans and
events), openinference (Phoenix), langfuse, langsmith, tensorzero, openpipe, sharegpt, alpaca, and columns
(any table or JSON). Files: JSON lines, JSON documents, CSV, TSV, Parquet; plain, .gz or .zst.
A watched folder's files are read in numbered steps; a recipe takes them with data.traces = [\"imported\"].")]
    Import(Import),
    /// Find call sites in traces and say which of them deserve a small model, with costs, a score and its parts
    #[command(after_help = "\
Example:
  limbeck audit traces.jsonl --prices prices.toml
  limbeck audit logs/*.jsonl.gz --prices prices.toml --html audit.html
  limbeck audit traces.jsonl --prices prices.toml --write-recipe recipes/router

What nobody can read from traces (the share of calls that the small model answers, a reviewer's wage) is
assumed and told; an [assumptions] table in the price file changes it.")]
    Audit(Audit),
    /// Remove duplicates and leaks, deal rows into train, valid, calibration and test
    #[command(after_help = "Example:\n  limbeck curate recipes/quickstart --set data.near_dup_threshold=0.9")]
    Curate(RecipeArg),
    /// Judge answers in the terminal; each decision is on disk before the next item
    #[command(after_help = "\
Example:
  limbeck review recipes/quickstart
  limbeck review recipes/quickstart --status      how far it got, without opening the screen
  limbeck review recipes/quickstart --plan        how many reviews certify the labels
  limbeck review recipes/quickstart --reviewer ben --blind          a second pass without sight of the first
  limbeck review recipes/quickstart --reviewer cat --adjudicate     settles what two disagree on
  limbeck review recipes/quickstart --reviewer ann --hand-over ben  half of what is ann's is ben's now
  limbeck review recipes/quickstart --export tasks.json --format label-studio
  limbeck review recipes/quickstart --import project-1.json

Answers that are fields (task.kind = \"extract\") come as a form: a digit goes to a field, w takes words of the message.
Several people may review at once, also on other machines: review.store in the recipe names a shared folder.
Keys can be moved in a file of lines such as accept = [\"y\", \"enter\"]: --keys FILE, or limbeck/keys.toml in
$XDG_CONFIG_HOME or ~/.config. The screen's help (?) lists them; `--keys` with a mistake lists the actions.")]
    Review(Review),
    /// Fine-tune the base model on the reviewed rows (LoRA); an interrupted training goes on where it stopped
    #[command(after_help = "\
Example:
  limbeck train recipes/quickstart --device cpu
  limbeck train recipes/quickstart --dry-run --price-per-hour 2.10      one step: time, memory and cost of all
  limbeck train recipes/quickstart --metrics metrics.jsonl")]
    Train(Train),
    /// Try learning rates and the like, the better ones for longer (successive halving), by loss on the valid split
    #[command(after_help = "\
Example:
  limbeck sweep recipes/quickstart --param train.learning_rate=5e-4,1e-3,2e-3
  limbeck sweep recipes/quickstart --param train.learning_rate=1e-4..5e-3 --param train.r=8,16 --samples 9

Trials are ordinary runs, in the run's folder under sweep/. They share its imported, curated and frozen data;
after each rung one in ETA goes on from its checkpoint, on the schedule of the whole training. Ties go to the
smaller learning rate. The test split is never looked at. Killed, the same command goes on to the same result.")]
    Sweep(Sweep),
    /// Show a run as its journal tells it: curves, stages, gates; live, finished or interrupted
    #[command(after_help = "\
Example:
  limbeck watch recipes/quickstart       the dashboard; q leaves it, the run goes on
  limbeck watch --follow | tee run.log   the newest run, as lines, until it ends
  limbeck watch runs/quickstart --json   a summary: steps, losses, times, verdicts
  limbeck watch runs/quickstart --export-tensorboard boards")]
    Watch(Watch),
    /// Merge the adapter into the base and write GGUF files
    #[command(after_help = "\
Example:
  limbeck quantize recipes/quickstart --set quantize.ship=Q4_0
  limbeck quantize recipes/quickstart --set quantize.imatrix=task

Formats (quantize.formats), from fine to coarse: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_1, Q5_0,
Q4_K_M, Q4_K_S, Q4_1, Q4_0, IQ4_NL; and mix, whose block types are chosen for a size:
  limbeck quantize recipes/quickstart --set 'quantize.formats=[\"Q8_0\",\"mix\"]' --set quantize.target=16MB
With quantize.imatrix = \"task\" the merged model reads its own
train rows first, and rounding minds the columns that matter.")]
    Quantize(RecipeArg),
    /// Measure all arms on the reviewed test rows and decide the gates
    #[command(after_help = "\
Example:
  limbeck eval recipes/quickstart --json
  limbeck eval recipes/quickstart --junit gates.xml
  limbeck eval recipes/router --record replies.jsonl       then, in CI and without network: --replay replies.jsonl
  limbeck eval recipes/quickstart --referee http://127.0.0.1:8080/v1     the shipped file in llama.cpp's server
  limbeck eval --compare runs/router runs/router-2
  limbeck eval --self-check      simulate what the gates' statistics claim, in seconds; not 0 where one is off")]
    Eval(EvalArgs),
    /// Make the artifact's folder and sign it
    #[command(after_help = "Example:\n  limbeck package recipes/quickstart")]
    Package(RecipeArg),
    /// Point a channel of the store at the artifact, if its gates passed
    #[command(after_help = "\
Example:
  limbeck promote recipes/quickstart --set promote.channel=production
  limbeck promote runs/quickstart/package --channel production      an artifact that was made before, perhaps elsewhere

Where the store has a trust policy, its keys decide (`limbeck trust`); exit code 5 while approvals are missing.")]
    Promote(Promote),
    /// Give your word for an artifact, where the store's trust policy asks for it
    #[command(after_help = "\
Example:
  limbeck approve runs/quickstart/package --channel production --key ann.pem
  limbeck approve 1c551ab4e2f0 --as eval --channel production --key ci.pem
  limbeck approve 1c551ab4e2f0 --list

An approval is a signed statement (in-toto SVR) about this version alone; a version whose gates did not pass gets none.")]
    Approve(crate::verbs::trust::args::Approve),
    /// Say whose signatures count: who may build, evaluate, and promote to which channel
    #[command(after_help = "\
Example:
  limbeck trust new trust.toml --key ci=ci.pub.pem --key ann=ann.pub.pem
  limbeck trust sign trust.toml --key ann.pem
  limbeck trust install trust.toml
  limbeck trust show

From then on `score`, `serve` and their like check a channel's artifact against the policy instead of --key. A key is revoked as
of an entry of the log: what was promoted with it from there on is no longer served.")]
    Trust(crate::verbs::trust::args::Trust),
    /// Check an artifact's signature and every file's digest
    #[command(after_help = "Example:\n  limbeck verify runs/quickstart/package --key .limbeck/keys/signing.pub.pem")]
    Verify(Verify),
    #[command(flatten)]
    Store(crate::verbs::store::args::StoreVerb),
    /// Answer with an artifact: label, confidence, and whether to serve the answer or to escalate
    #[command(after_help = "\
Example:
  limbeck score runs/quickstart/package \"where is my refund?\"
  limbeck score staging --jsonl < messages.jsonl > answers.jsonl

A JSONL line is {\"text\": \"...\"} or {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}]}, with an optional \"id\".
The route is serve, serve_and_review or escalate. It goes by `score`, the model's own probability, where
eval.escalation asked for a certificate (policy.json), else by `confidence` and eval.threshold.")]
    Score(Score),
    /// Serve an artifact as an OpenAI-compatible API that escalates what it is not sure of
    #[command(after_help = "\
Example:
  limbeck serve quickstart/staging
  limbeck serve quickstart/staging --upstream https://api.example.com/v1 --upstream-model frontier-large-1 --decisions logs
  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"where is my refund?\"}]}'

Also /v1/models, /health, /metrics (Prometheus). Secrets come from the environment: LIMBECK_API_KEY is what callers must send,
LIMBECK_UPSTREAM_API_KEY what the fallback is sent. Listening beyond this machine needs LIMBECK_API_KEY.
What is escalated without a fallback is an error 422 with code \"escalate\", on which a gateway in front falls back.")]
    Serve(Serve),
    /// Run an artifact's recipe again and say whether the same bytes come out, or which step differs first
    #[command(after_help = "\
Example:
  limbeck reproduce quickstart/staging --recipe recipes/quickstart

The settings are the artifact's own; --recipe names the folder that holds its traces, decisions and base. It stops before the
evaluation: the served file is compared by digest. Exit code 6 where something differs.")]
    Reproduce(Reproduce),
    /// Copy an artifact into the form that a registry or another server takes
    #[command(after_help = "\
Example:
  limbeck export quickstart/staging --form oci --out image            then: skopeo copy oci:image:0.1.0 docker://...
  limbeck export runs/quickstart/package --form llama-server --out llama

The artifact's signature is checked first. The files are those that were evaluated, byte for byte.")]
    Export(Export),
    /// Compare new traffic with what an artifact was measured on: its scores, its answers, the shares of labels
    #[command(after_help = "\
Example:
  limbeck drift runs/quickstart/package --traces new.jsonl
  limbeck drift production --traces logs/ --limit 5000 --json

The artifact answers a draw of the new calls, redacted as in training, and its answers are held against the reference in
policy.json. Exit code 0: stable, or to be watched; 4: drifted; 7: too few rows to say.")]
    Drift(Drift),
    /// Have two artifacts answer the same recorded calls: where they differ, what a rollout needs
    #[command(after_help = "\
Example:
  limbeck shadow router/production router/staging --traces calls.jsonl
  limbeck shadow runs/a/package runs/b/package --traces logs/ --data runs/b --prices prices.toml --json

A is what serves, B what would take its place. Each call is asked of both, redacted as in A's training, and timed alone. With
--data, answers to reviewed test rows are also right or wrong.")]
    Shadow(Shadow),
    /// Show every value of a recipe and where it comes from
    #[command(after_help = "\
Example:
  limbeck explain recipes/quickstart
  limbeck explain recipes/quickstart --masks      which tokens of sample rows carry loss")]
    Explain(Explain),
    /// Show a frozen dataset, compare two, trace a row back, export rows for other trainers
    #[command(after_help = "\
Example:
  limbeck data show recipes/quickstart
  limbeck data lineage recipes/quickstart 1c551ab4")]
    Data(crate::verbs::data::args::Data),
    /// Look at a GGUF file: what it holds, how two differ, what llama.cpp would refuse
    #[command(after_help = "\
Example:
  limbeck gguf show model.gguf
  limbeck gguf diff model-Q8_0.gguf model-Q4_K_M.gguf
  limbeck gguf check model.gguf")]
    Gguf(crate::verbs::gguf::args::Gguf),
    /// Say what this machine and this build can do, and what is in the way
    #[command(after_help = "Example:\n  limbeck doctor --json")]
    Doctor,
    /// Measure this program beside others on the same work
    #[command(after_help = "Example:\n  limbeck bench train --peer peer --model smollm2-135m")]
    Bench(crate::bench::args::Bench),
    /// Our side of a comparison, as `bench` starts it: one line of JSON
    #[command(hide = true, after_help = "Example:\n  limbeck bench-ours step --model smollm2-135m")]
    BenchOurs(crate::bench::args::BenchOurs),
    /// Ask a local teacher for its posteriors over labels, or what it expects at each token of answers, for training
    #[command(after_help = "\
Example:
  limbeck capture --teacher big.gguf --data runs/router/dataset --out router.capture
  limbeck capture --teacher smollm2-135m --adapter runs/big/train/adapter --data calls.jsonl --out calls.capture
  limbeck capture --teacher big.gguf --data runs/bookings/dataset --draws 50 --out bookings.capture
  limbeck capture show router.capture

A recipe does the same by itself where distill.teacher is set; distill.capture takes such a file instead. A dataset's train and
valid rows are answered, or each message of a file (JSON lines, CSV or plain lines). Killed, the same command goes on to the same
bytes; a file of another teacher, tokenizer, template, label list or data is refused. A row takes 16 bytes and two a label;
of written answers (extract, generate) a token takes some 80 bytes, with --draws 50 some 10 to 40.")]
    Capture(capture::Capture),
    /// Make a smaller base model out of a base model: some layers, some neurons, and the vocabulary of the first merges
    #[command(after_help = "\
Example:
  limbeck carve SmolLM2-135M-Instruct.gguf --layers 0-3,28,29 --merges 8000 --out base.gguf
  limbeck carve smollm2-135m --prompts runs/router/dataset     what each layer does; nothing is written
  limbeck carve smollm2-135m --prompts runs/router/dataset --keep 12 --out base12.gguf

What is carved is broken until it is trained: `limbeck ladder` carves, trains and measures in one go.")]
    Carve(Carve),
    /// Make students of several sizes of one recipe, each taught by the largest, and name the smallest that passes the gates
    #[command(after_help = "\
Example:
  limbeck ladder recipes/router --rungs 30,20,12,6
  limbeck ladder recipes/router --rungs 30,12,6 --unlabeled calls.jsonl --heal train.method=full --heal train.learning_rate=5e-5

The largest comes first: with all layers it is the recipe as it is. The others are carved out of the same base by what its layers
do on the train rows, learn the labels and the first one's posteriors (distill.*), and answer the same test rows. A recipe that
names a teacher keeps it. Rungs are ordinary runs, in the run's folder under ladder/. Killed, the same command goes on where it
stopped.")]
    Ladder(Ladder),
    /// Train a recipe again with other seeds, and say how much of its result is luck
    #[command(after_help = "\
Example:
  limbeck seeds recipes/router
  limbeck seeds recipes/router --seeds 5 --set eval.base=false

The first training is the recipe's own. Data and splits stay as they are: what differs is what training begins with, the order
of rows and dropout (train.seed). Each is an ordinary run, in the run's folder under seeds/, and answers the same test rows. Keep
the recipe's own seed whatever comes out: the best of several, picked on the test split, is better there than anywhere else.
Killed, the same command goes on where it stopped.")]
    Seeds(Seeds),
    /// Have a live model answer messages that nobody answered: traces to learn from, a queue to review, and what failed
    #[command(after_help = "\
Example:
  limbeck teach recipes/router --arm frontier-live --messages unlabeled.jsonl --out taught --dry-run    what it would cost
  limbeck teach recipes/router --arm frontier-live --messages unlabeled.jsonl --out taught --samples 5
  limbeck teach recipes/router --arm frontier-live --messages unlabeled.jsonl --out taught --batch-write batch.jsonl
  limbeck teach recipes/router --arm frontier-live --messages unlabeled.jsonl --out taught --batch-read results.jsonl errors.jsonl

The arm is an [[eval.arm]] of kind endpoint. A line is {\"text\": \"...\"} or {\"messages\": [...]}, with an optional id, customer,
thread and time. Several draws vote; answers must fit the labels or the schema, and what they quote must be in the message.
Then: data.traces = [\"traces.jsonl\", \"taught/traces.jsonl\", \"taught/queue.jsonl\"]. What the draws could not agree on is in
queue.jsonl; it goes to the reviewers and is never learnt unreviewed. Killed, the same command goes on where it stopped.")]
    Teach(Teach),
    /// Make a signing key or an age identity, or show the public half of one
    #[command(after_help = "\
Example:
  limbeck keys new .limbeck/keys/signing.pem
  limbeck keys public .limbeck/keys/signing.pem > signing.pub.pem")]
    Keys(Keys),
    /// Encrypt a folder's files for named people (age); a recipe's [encrypt] does so by itself with its run folder
    #[command(after_help = "\
Example:
  limbeck seal imported --to age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p

Each file F becomes F.age, which `age` and `rage` open too. A run's journal and its recipe's lock stay as they are: they hold no
texts.")]
    Seal(Seal),
    /// Decrypt a folder that is encrypted, into files readable by you only
    #[command(after_help = "Example:\n  limbeck unseal runs/quickstart")]
    Unseal(Unseal),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  limbeck completions bash > ~/.local/share/bash-completion/completions/limbeck")]
    Completions(Completions),
}

#[derive(Args, Debug)]
pub struct EvalArgs {
    /// A recipe: a folder that holds recipe.toml, or the file itself
    #[arg(required_unless_present_any = ["self_check", "compare"])]
    pub recipe: Option<PathBuf>,
    /// Compare two evaluations on the test rows that both have: runs' folders, or their names
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["recipe", "self_check"])]
    pub compare: Option<Vec<PathBuf>>,
    /// Also write the gates as JUnit XML, for CI
    #[arg(long, value_name = "FILE", conflicts_with_all = ["self_check", "compare"])]
    pub junit: Option<PathBuf>,
    /// Add the replies of live models ([[eval.arm]] of kind endpoint) to FILE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["self_check", "compare"])]
    pub record: Option<PathBuf>,
    /// Take the replies of live models from FILE; the network is not used for them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["self_check", "compare", "record"])]
    pub replay: Option<PathBuf>,
    /// Ask a server of the shipped file (llama.cpp's) about the test rows of a finished evaluation, and compare: the same prompts in tokens, the same answers
    #[arg(long, value_name = "URL", conflicts_with_all = ["self_check", "compare", "junit"])]
    pub referee: Option<String>,
    /// Ask the referee about so many rows only, the first by their digests
    #[arg(long, value_name = "N", requires = "referee", value_parser = clap::value_parser!(u64).range(1..))]
    pub rows: Option<u64>,
    /// Simulate type-I errors and power of every gate, certificates and intervals instead, and compare with what is claimed
    #[arg(long, conflicts_with = "recipe")]
    pub self_check: bool,
    /// What the simulations draw with
    #[arg(long, value_name = "N", default_value_t = 17, requires = "self_check")]
    pub seed: u64,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub recipe: RecipeArg,
    #[command(flatten)]
    pub scalars: ScalarArgs,
}

#[derive(Args, Debug, Default)]
pub struct ScalarArgs {
    /// Also write losses, rates and speeds as TensorBoard event files, in a folder of DIR named after the run
    #[arg(long, value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,
    /// Also append them to a file of JSON lines; where a step comes twice, after a kill, the later line counts
    #[arg(long, value_name = "FILE.jsonl")]
    pub metrics: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Sweep {
    #[command(flatten)]
    pub recipe: RecipeArg,
    /// A train.* value to vary: a list, or LOW..HIGH to draw from on a log scale (may be repeated; lists make a grid)
    #[arg(long = "param", required = true, value_name = "KEY=VALUES", value_parser = crate::sweep::grid::param)]
    pub params: Vec<crate::sweep::grid::Param>,
    /// Draw so many trials instead of taking the whole grid
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub samples: Option<u64>,
    /// What --samples draws with
    #[arg(long, value_name = "N", default_value_t = 0, requires = "samples")]
    pub seed: u64,
    /// One trial in ETA goes on after a rung, for ETA times the steps
    #[arg(long, value_name = "ETA", default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=100))]
    pub eta: u64,
    /// The first rung takes at least this share of a trial's steps
    #[arg(long, value_name = "0..1", default_value_t = 0.1, value_parser = share)]
    pub min_share: f64,
    #[command(flatten)]
    pub scalars: ScalarArgs,
}

pub(crate) fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| *x > 0.0 && *x <= 1.0).ok_or_else(|| "expected a number above 0, at most 1".to_owned())
}

#[derive(Args, Debug)]
pub struct Watch {
    /// A recipe, a run's folder or its name; the newest run when left out
    #[arg(value_name = "RECIPE|RUN")]
    pub of: Option<PathBuf>,
    /// Print lines until the run ends instead of opening the dashboard
    #[arg(long)]
    pub follow: bool,
    /// Write the run's numbers as a TensorBoard event file, in a folder of DIR named after the run
    #[arg(long, value_name = "DIR", conflicts_with = "follow")]
    pub export_tensorboard: Option<PathBuf>,
    /// Write them as JSON lines
    #[arg(long, value_name = "FILE.jsonl", conflicts_with = "follow")]
    pub export_metrics: Option<PathBuf>,
}

fn roles() -> clap::builder::PossibleValuesParser {
    limbeck_recipes::ROLES.iter().map(|role| clap::builder::PossibleValue::new(role.name).help(role.does)).into()
}

#[derive(Args, Debug)]
pub struct Init {
    /// The recipe's folder; its last part becomes the recipe's name
    pub folder: PathBuf,
    /// The taxonomy, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "LABEL,...")]
    pub labels: Vec<String>,
    /// Instead of labels: the fields that are to be pulled out of a message; writes a schema.json of texts to go on from
    #[arg(long, value_delimiter = ',', value_name = "FIELD,...", conflicts_with = "labels")]
    pub fields: Vec<String>,
    /// Instead of labels: the answer is a text
    #[arg(long, conflicts_with_all = ["labels", "fields"])]
    pub generate: bool,
    /// A role that a small model plays beside a large one: its schema, gates and guidelines, and made-up calls to begin with
    #[arg(long, value_parser = roles(), conflicts_with_all = ["labels", "fields", "generate"])]
    pub role: Option<String>,
}

#[derive(Args, Debug)]
pub struct Train {
    #[command(flatten)]
    pub recipe: RecipeArg,
    #[command(flatten)]
    pub scalars: ScalarArgs,
    /// Take one step on the longest micro-batch and say what the training would take; nothing is kept
    #[arg(long)]
    pub dry_run: bool,
    /// What this machine costs an hour, for the dry run's cost
    #[arg(long, value_name = "PRICE", requires = "dry_run", value_parser = price)]
    pub price_per_hour: Option<f64>,
}

fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err("expected a number of at least 0, for example 2.10".to_owned()),
    }
}

#[derive(Args, Debug)]
pub struct Explain {
    #[command(flatten)]
    pub recipe: RecipeArg,
    /// Show which tokens of sample rows carry loss
    #[arg(long)]
    pub masks: bool,
    /// How many sample rows
    #[arg(long, value_name = "N", default_value_t = 3, requires = "masks")]
    pub rows: usize,
}

#[derive(Args, Debug)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound_and_every_verb_has_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands_mut() {
            let help = verb.render_help().to_string();
            assert!(help.contains("Example:\n  limbeck "), "{}:\n{help}", verb.get_name());
        }
    }

    #[test]
    fn help_reads_well() {
        let mut command = Cli::command().term_width(110);
        insta::assert_snapshot!("help", command.render_help().to_string());
        for verb in ["run", "score", "carve", "review", "train", "sweep", "watch", "import", "audit"] {
            let verb = command.find_subcommand_mut(verb).unwrap();
            insta::assert_snapshot!(format!("help-{}", verb.get_name()), verb.render_help().to_string());
        }
        let bench = command.find_subcommand_mut("bench").unwrap().find_subcommand_mut("train").unwrap();
        insta::assert_snapshot!("help-bench-train", bench.render_help().to_string());
    }
}
