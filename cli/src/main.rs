//! The limbeck binary: arguments, settings, a verb, an exit code. One file a verb in `verbs`, one a stage in `stages`.

mod args;
mod base;
mod bench;
mod carving;
mod diagnostics;
mod drivers;
mod exit;
mod inner;
mod keys;
mod kl;
mod ladder;
mod live;
mod load;
mod memory;
mod output;
mod prices;
mod progress;
mod queue;
mod replay;
mod scratch;
mod sealing;
mod serve;
mod settings;
mod sinks;
mod stages;
mod stores;
mod sweep;
mod verbs;
mod verifiers;

use args::{Cli, Verb};
use clap::Parser;
use exit::{Exit, Result};
use limbeck_artifact::event::Stage;
use output::Terminal;
use settings::Settings;
use std::process::ExitCode;

fn main() -> ExitCode {
    limbeck_model::memory::keep_freed_memory();
    // clap ends the process with 0 for help and 2 for a usage error, as the table of exit codes says.
    let cli = Cli::parse();
    let settings = Settings::new(&cli.global);
    let exit = match dispatch(&settings, cli.verb) {
        Ok(exit) => exit,
        Err(failure) => {
            if settings.json {
                let _ = output::json(&diagnostics::json(&failure));
            }
            output::stderr(&diagnostics::render(&failure, &Terminal::of_stderr()));
            failure.exit
        }
    };
    ExitCode::from(exit.code())
}

fn dispatch(settings: &Settings, verb: Verb) -> Result<Exit> {
    let none = args::ScalarArgs::default();
    match verb {
        Verb::Init(args) => verbs::init::init(settings, &args),
        Verb::Run(args) => verbs::run::run(settings, &args.recipe.recipe, Stage::Promote, &args.scalars),
        Verb::Import(args) => verbs::import::import(settings, &args),
        Verb::Audit(args) => verbs::audit::audit(settings, &args),
        Verb::Curate(args) => verbs::run::run(settings, &args.recipe, Stage::Curate, &none),
        Verb::Review(args) => verbs::review::review(settings, &args),
        Verb::Train(args) => verbs::train::train(settings, &args),
        Verb::Sweep(args) => verbs::sweep::sweep(settings, &args),
        Verb::Watch(args) => verbs::watch::watch(settings, &args),
        Verb::Quantize(args) => verbs::run::run(settings, &args.recipe, Stage::Quantize, &none),
        Verb::Eval(args) => verbs::eval::eval(settings, &args),
        Verb::Package(args) => verbs::run::run(settings, &args.recipe, Stage::Package, &none),
        Verb::Promote(args) => verbs::promote::promote(settings, &args),
        Verb::Verify(args) => verbs::verify::verify(settings, &args),
        Verb::Store(verb) => verbs::store::store(settings, &verb),
        Verb::Score(args) => verbs::score::score(settings, &args),
        Verb::Serve(args) => verbs::serve::serve(settings, &args),
        Verb::Reproduce(args) => verbs::reproduce::reproduce(settings, &args),
        Verb::Export(args) => verbs::export::export(settings, &args),
        Verb::Drift(args) => verbs::drift::run(settings, &args),
        Verb::Shadow(args) => verbs::shadow::run(settings, &args),
        Verb::Explain(args) => verbs::explain::explain(settings, &args),
        Verb::Data(args) => verbs::data::data(settings, &args.verb),
        Verb::Gguf(args) => verbs::gguf::gguf(settings, &args.verb),
        Verb::Doctor => verbs::doctor::doctor(settings),
        Verb::Bench(args) => verbs::bench::bench(settings, &args.verb),
        Verb::BenchOurs(args) => verbs::bench::ours(settings, &args),
        Verb::Capture(args) => verbs::capture::capture(settings, &args),
        Verb::Ladder(args) => verbs::ladder::ladder(settings, &args),
        Verb::Seeds(args) => verbs::seeds::seeds(settings, &args),
        Verb::Carve(args) => verbs::carve::carve(settings, args),
        Verb::Teach(args) => verbs::teach::teach(settings, &args),
        Verb::Keys(args) => verbs::keys::keys(settings, &args),
        Verb::Seal(args) => verbs::seal::seal(settings, &args),
        Verb::Unseal(args) => verbs::seal::unseal(settings, &args),
        Verb::Trust(args) => verbs::trust::trust(settings, &args),
        Verb::Approve(args) => verbs::trust::approve(settings, &args),
        Verb::Completions(args) => verbs::completions::completions(&args),
    }
}
