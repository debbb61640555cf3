//! `limbeck bench train`: runs both sides in turn and prints their figures, ratios and bars.

use crate::bench::args::{BenchOurs, BenchTrain, BenchVerb, OursVerb, Work};
use crate::bench::banking::Rows;
use crate::bench::report::{self, Figure, Growth};
use crate::bench::sides::Sides;
use crate::bench::text::{Heading, table};
use crate::bench::{
    FinetuneFigures, StepFigures, THREADS, curate, distill, escalation, gpu, ours, review, runtime, serve, write,
};
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::scratch::Scratch;
use crate::settings::Settings;
use crate::verbs::doctor::cpu_features;
use serde_json::json;

/// Shapes of the growth tables, rows × tokens: more rows, then longer ones of about as many tokens in all.
const BATCHES: [(usize, usize); 4] = [(4, 128), (8, 128), (16, 128), (32, 128)];
const LENGTHS: [(usize, usize); 4] = [(8, 128), (2, 512), (1, 2048), (1, 8192)];

pub fn bench(settings: &Settings, verb: &BenchVerb) -> Result<Exit> {
    let args = match verb {
        BenchVerb::Train(args) => args,
        BenchVerb::Curate(args) => return super::bench_curate::bench(settings, args),
        BenchVerb::Quantize(args) => return super::bench_quantize::bench(settings, args),
        BenchVerb::Kl(args) => return super::bench_kl::bench(settings, args),
        BenchVerb::Review(args) => return review::desk(settings, args),
        BenchVerb::Write(args) => return write::write(settings, args),
        BenchVerb::Runtime(args) => return runtime::bench(settings, args),
        BenchVerb::Suspects(args) => return review::suspects(settings, args),
        BenchVerb::Distill(args) => return distill::bench(settings, args),
        BenchVerb::Serve(args) => return serve::bench(settings, args),
        BenchVerb::Gpu(args) => return gpu::bench(settings, args),
        BenchVerb::Escalation(args) => return escalation::bench(settings, args),
    };
    let measured = measure(args, settings.device.as_deref())?;
    let figures = measured.figures(&args.work);
    let growth: Vec<Vec<Growth>> = measured.growth.iter().map(|series| report::growth(series)).collect();
    let noise = report::noise(&figures);
    let heading = measured.heading(args);
    if settings.json {
        let Measured { steps, tunings, growth: shapes } = &measured;
        output::json(&json!({
            "heading": heading, "figures": figures, "growth": growth, "noise": noise,
            "peer": {"step": steps.0, "finetune": tunings.0},
            "ours": {"step": steps.1, "finetune": tunings.1, "growth": shapes},
        }))?;
    } else {
        output::stdout(&table(&heading, &figures, &growth, &noise))?;
    }
    Ok(Exit::Ok)
}

/// Our side in a process of its own: one line of JSON.
pub fn ours(settings: &Settings, args: &BenchOurs) -> Result<Exit> {
    let device = settings.device.as_deref();
    let line = match &args.verb {
        OursVerb::Step(args) => serde_json::to_string(&ours::step(args, device)?)?,
        OursVerb::Curate(args) => serde_json::to_string(&curate::stage(args.stage, &args.dir, args.count, args.seed)?)?,
        OursVerb::Op(args) => serde_json::to_string(&gpu::ours::ops(args, device)?)?,
        OursVerb::Train(args) => serde_json::to_string(&gpu::ours::train(args, device)?)?,
        OursVerb::Label(args) => serde_json::to_string(&gpu::ours::label(args, device)?)?,
        OursVerb::Write(args) => serde_json::to_string(&gpu::ours::write(args, device)?)?,
        OursVerb::Finetune(args) => serde_json::to_string(&ours::finetune(args, device)?)?,
    };
    output::stdout(&format!("{line}\n"))?;
    Ok(Exit::Ok)
}

/// What the sides answered, the peer first.
#[derive(Default)]
struct Measured {
    steps: (Vec<StepFigures>, Vec<StepFigures>),
    tunings: (Vec<FinetuneFigures>, Vec<FinetuneFigures>),
    growth: Vec<Vec<StepFigures>>,
}

fn measure(args: &BenchTrain, device: Option<&str>) -> Result<Measured> {
    let asks = |work: Work| args.work.contains(&work);
    let tunes = asks(Work::Finetune) || asks(Work::Score);
    let scripts: Vec<&str> = [(asks(Work::Step), "peer_step.py"), (tunes, "peer_finetune.py")]
        .into_iter()
        .filter(|s| s.0)
        .map(|s| s.1)
        .collect();
    let sides = Sides::new(args, &scripts, device)?;
    let scratch = Scratch::new("bench")?;
    if tunes {
        let data = args.data.as_deref().ok_or_else(|| {
            Failure::new(Exit::Usage, "--work finetune and score need rows")
                .help("--data DIR, a folder with train.csv and test.csv, columns text,category (Banking77 has them)")
        })?;
        let rows = Rows::read(data)?.choose(args.classes, args.per_class, args.test_per_class);
        if rows.labels().len() < 2 || rows.test.is_empty() {
            return Err(Failure::new(Exit::Usage, "a comparison needs two categories or more, and test rows"));
        }
        rows.write(scratch.path())?;
    }
    let mut measured = Measured::default();
    for round in 1..=args.rounds {
        let say = |what: &str| output::stderr(&format!("round {round} of {}: {what}\n", args.rounds));
        if asks(Work::Step) {
            say("steps, the peer");
            measured.steps.0.push(sides.peer_step()?);
            say("steps, ours");
            measured.steps.1.push(sides.our_step(args.batch_size, args.length, args.warmup, args.steps)?);
        }
        if tunes {
            say("fine-tuning and scoring, the peer");
            measured.tunings.0.push(sides.peer_finetune(scratch.path())?);
            say("fine-tuning and scoring, ours");
            measured.tunings.1.push(sides.our_finetune(scratch.path())?);
        }
    }
    if asks(Work::Growth) {
        for shapes in [BATCHES, LENGTHS] {
            let mut series = Vec::new();
            for (rows, length) in shapes {
                output::stderr(&format!("growth: {rows} x {length}"));
                let figures = sides.our_step(rows, length, 1, 3)?;
                output::stderr(&format!(", {:.0} tokens/s\n", figures.tokens_per_s_median));
                series.push(figures);
            }
            measured.growth.push(series);
        }
    }
    Ok(measured)
}

impl Measured {
    fn figures(&self, work: &[Work]) -> Vec<Figure> {
        let mut figures = report::step(&self.steps.0, &self.steps.1);
        if work.contains(&Work::Finetune) {
            figures.extend(report::finetune(&self.tunings.0, &self.tunings.1));
        }
        if work.contains(&Work::Score) {
            figures.extend(report::score(&self.tunings.0, &self.tunings.1));
        }
        figures
    }

    fn heading(&self, args: &BenchTrain) -> Heading {
        let torch = self.steps.0.first().and_then(|f| f.torch.as_deref()).map_or(String::new(), |v| format!(" {v}"));
        let compared = !self.steps.0.is_empty() || !self.tunings.0.is_empty();
        let steps = self.steps.1.first().or(self.growth.iter().flatten().next()).map(|f| &f.dtype);
        let ours = steps.or(self.tunings.1.first().map(|f| &f.dtype));
        let checkpoints = if args.gradient_checkpointing { ", gradient checkpointing" } else { "" };
        Heading {
            version: env!("CARGO_PKG_VERSION"),
            processor: processor(),
            model: args.model.display().to_string(),
            threads: THREADS,
            rounds: args.rounds as usize,
            peer: compared.then(|| format!("PyTorch{torch} + PEFT, {}", args.dtype.name())),
            ours: ours.map(|compute| format!("products in {compute}{checkpoints}")),
        }
    }
}

/// Its name where the system tells it, and what the kernels can use of it.
pub(crate) fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    format!("{name} ({})", cpu_features().join(" "))
}
