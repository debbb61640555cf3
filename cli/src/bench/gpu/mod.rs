//! `limbeck bench gpu`: our training, scoring and writing on a GPU beside PyTorch + PEFT, in turn, on random weights of real
//! shapes. Both sides get the same tokens; neither needs a model or a network.

pub mod ours;
mod sides;
mod table;
mod works;

use super::args::{BenchGpu, GpuPart};
use super::ours::median;
use super::report::{Bar, Figure};
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::Settings;
use clap::ValueEnum;
use limbeck_model::device::{self, DeviceName};
use limbeck_model::kernel_time::KernelTime;
use ours::{Labelled, OpsErrors, Trained, WroteAll};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sides::{Answer, Sides};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use works::{TrainWork, WriteWork, intents};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Roofline {
    device: String,
    torch: String,
    bf16_tflops: f64,
    copy_gb_s: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Made {
    parameters: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cases {
    cases: Vec<serde_json::Value>,
}

/// What is run: real shapes, or tiny ones.
struct Plan {
    /// The first is the one that bars are about.
    models: &'static [&'static str],
    /// Its vocabulary holds the quickstart's tokens.
    intent_model: &'static str,
    shapes: Vec<(&'static str, Vec<usize>)>,
    /// That bars and the profile are about.
    main_shape: &'static str,
    /// Tokens are drawn below this.
    vocabulary: usize,
    warmup: usize,
    steps: usize,
    /// Rows a step, and the longest.
    curve: (usize, usize),
    intents: (usize, usize),
    labelled: usize,
    /// Prompts, their tokens, tokens to write.
    written: [usize; 3],
}

impl Plan {
    fn of(rehearses: bool) -> Plan {
        match rehearses {
            false => Plan {
                models: &["llama-3.2-1b", "qwen3-0.6b", "smollm2-135m"],
                intent_model: "smollm2-135m",
                shapes: vec![
                    ("8x512", vec![512; 8]),
                    ("4x2048", vec![2048; 4]),
                    ("packed 1x8192", vec![1024, 512, 2048, 256, 768, 1536, 512, 1536]),
                ],
                main_shape: "4x2048",
                vocabulary: 49_000,
                warmup: 3,
                steps: 8,
                curve: (8, 256),
                intents: (480, 16),
                labelled: 96,
                written: [16, 128, 64],
            },
            true => Plan {
                models: &["tiny-llama", "tiny-qwen3"],
                intent_model: "tiny-llama",
                shapes: vec![("2x24", vec![24; 2]), ("packed 1x32", vec![7, 20, 5])],
                main_shape: "2x24",
                vocabulary: 2_000,
                warmup: 1,
                steps: 2,
                curve: (2, 16),
                intents: (8, 4),
                labelled: 3,
                written: [2, 8, 4],
            },
        }
    }
}

/// All that was found.
#[derive(Debug, Default, Serialize)]
struct Found {
    device: Option<String>,
    torch: Option<String>,
    ours: Option<String>,
    bf16_tflops: Option<f64>,
    copy_gb_s: Option<f64>,
    figures: Vec<Figure>,
    profiles: Vec<Profile>,
}

/// Where the time of a step goes.
#[derive(Clone, Debug, Serialize)]
struct Profile {
    work: String,
    /// Of an unwatched step.
    step_s: f64,
    kernels: BTreeMap<String, KernelTime>,
}

/// Shares of errors that ours may have of the peer's: both round the same numbers to bfloat16, at other places.
const PARITY: Bar = Bar::RatioAtMost(1.5);

pub fn bench(settings: &Settings, args: &BenchGpu) -> Result<Exit> {
    let name = settings.device.as_deref().unwrap_or("cuda:0");
    let device: DeviceName = name.parse()?;
    device::probe(device)?;
    if !args.rehearse && !matches!(device, DeviceName::Cuda(_)) {
        let message = format!("PyTorch has no device that is ours under the name {name}");
        return Err(
            Failure::new(Exit::Usage, message).help("--device cuda:0, or --rehearse, which shows that all parts run")
        );
    }
    let plan = Plan::of(args.rehearse);
    let mut bench = Bench { args, plan, sides: Sides::new(args, device)?, found: Found::default() };
    let parts = if args.part.is_empty() { GpuPart::value_variants().to_vec() } else { args.part.clone() };
    for part in parts {
        match part {
            GpuPart::Roofline => bench.roofline(),
            GpuPart::Ops => bench.ops()?,
            GpuPart::Curve => bench.curve()?,
            GpuPart::Step => bench.step()?,
            GpuPart::Intent => bench.intent()?,
            GpuPart::Answer => bench.answer()?,
            GpuPart::Profile => bench.profile()?,
        }
    }
    let Bench { found, sides: Sides { failed, .. }, .. } = bench;
    let text = table::text(name, args.rehearse, &found, &failed);
    let report = json!({"on": name, "rehearsal": args.rehearse, "found": found, "failed": failed});
    for (file, what) in [("table.txt", text.clone().into_bytes()), ("report.json", serde_json::to_vec_pretty(&report)?)]
    {
        let path = args.out.join(file);
        std::fs::write(&path, what).map_err(|e| crate::stages::cannot("write", &path, &e))?;
    }
    match settings.json {
        true => output::json(&report)?,
        false => output::stdout(&text)?,
    }
    let wrong = found.figures.iter().filter(|f| f.bar == Some(PARITY) && f.met == Some(false)).count();
    match (wrong, failed.len()) {
        (0, 0) => Ok(Exit::Ok),
        (wrong, failed) => Err(Failure::new(
            Exit::Unexpected,
            format!("{wrong} figures are further from exact than PyTorch's, and {failed} runs failed"),
        )
        .help("the same command runs only what failed again")),
    }
}

struct Bench<'a> {
    args: &'a BenchGpu,
    plan: Plan,
    sides: Sides<'a>,
    found: Found,
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

impl Bench<'_> {
    fn figure(&mut self, work: &str, figure: &'static str, digits: usize, peer: f64, ours: f64, bar: Option<Bar>) {
        let made = Figure::of(work, figure, digits, vec![peer], vec![ours]);
        self.found.figures.extend(made.map(|f| match bar {
            Some(bar) => f.with(bar),
            None => f,
        }));
    }

    /// A bar on speed or memory, which a rehearsal says nothing of.
    fn judged(&self, bar: Bar) -> Option<Bar> {
        (!self.args.rehearse).then_some(bar)
    }

    fn model(&mut self, shape: &str) -> Option<PathBuf> {
        let dir = self.sides.out().join("models").join(shape);
        self.sides.peer::<Made>(&format!("model-{shape}"), &["model", shape, text(&dir)])?;
        Some(dir)
    }

    fn roofline(&mut self) {
        let Some(found) = self.sides.peer::<Roofline>("roofline", &["roofline"]) else { return };
        let Roofline { device, torch, bf16_tflops, copy_gb_s } = found.of;
        self.found.device = Some(device);
        self.found.torch = Some(torch);
        self.found.bf16_tflops = Some(bf16_tflops);
        self.found.copy_gb_s = Some(copy_gb_s);
    }

    fn ops(&mut self) -> Result<()> {
        let tensors = self.sides.out().join("works/ops.safetensors");
        let mut args = vec!["ops", text(&tensors)];
        if self.args.rehearse {
            args.push("--rehearse");
        }
        let Some(told) = self.sides.peer::<Cases>("ops", &args) else { return Ok(()) };
        let cases = self.sides.work("ops", &told.of.cases)?;
        let args = ["op", "--tensors", text(&tensors), "--cases", text(&cases)];
        let Some(found) = self.sides.ours::<OpsErrors>("ops", &args) else { return Ok(()) };
        for op in found.of.ops {
            let pairs: Vec<(f64, f64)> = op.peer.iter().copied().zip(op.ours.iter().copied()).collect();
            let Some((&(peer, ours), gradients)) = pairs.split_first() else { continue };
            self.figure(&op.name, "error of the output", 5, peer, ours, Some(PARITY));
            // Not a number is the worst of all.
            let worst = gradients.iter().max_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
            if let Some(&(peer, ours)) = worst {
                self.figure(&op.name, "error of the gradients", 5, peer, ours, Some(PARITY));
            }
        }
        Ok(())
    }

    fn curve(&mut self) -> Result<()> {
        let shape = self.plan.intent_model;
        let Some(model) = self.model(shape) else { return Ok(()) };
        let (rows, longest) = self.plan.curve;
        let work = self.sides.work("curve", &TrainWork::curve(self.plan.vocabulary, rows, longest))?;
        let adapter = self.sides.out().join("works/curve-adapter");
        let both = ["--model", text(&model), "--work", text(&work)];
        let exact = [&["train"][..], &both, &["--dtype", "f32", "--save", text(&adapter)]].concat();
        let Some(exact) = self.sides.peer::<Trained>("curve-f32", &exact) else { return Ok(()) };
        let peer = [&["train"][..], &both, &["--float32-adapter"]].concat();
        let Some(peer) = self.sides.peer::<Trained>("curve", &peer) else { return Ok(()) };
        let ours = [&["train"][..], &both, &["--adapter", text(&adapter)]].concat();
        let Some(ours) = self.sides.ours::<Trained>("curve", &ours) else { return Ok(()) };
        let apart = |of: &Trained| {
            let apart = of.losses.iter().zip(&exact.of.losses).map(|(a, b)| (a - b).abs());
            apart.fold(0.0, f64::max)
        };
        let work = format!("50 steps, {shape}");
        let ends = [&exact, &ours].map(|of| of.of.losses.last().copied().unwrap_or(f64::NAN));
        self.figure(&work, "loss at the end (peer: f32)", 4, ends[0], ends[1], None);
        self.figure(&work, "largest distance from f32", 5, apart(&peer.of), apart(&ours.of), Some(PARITY));
        self.found.ours = Some(ours.of.dtype);
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let plan = (self.plan.warmup, self.plan.steps, self.plan.vocabulary, self.plan.main_shape);
        let (warmup, steps, vocabulary, main_shape) = plan;
        for (i, shape) in self.plan.models.iter().enumerate() {
            let Some(model) = self.model(shape) else { continue };
            for (called, lengths) in self.plan.shapes.clone() {
                let mut work = TrainWork::shape(&lengths, vocabulary, warmup, steps);
                work.packed = called.starts_with("packed");
                let name = format!("step-{shape}-{}", called.replace(' ', "-"));
                let file = self.sides.work(&name, &work)?;
                let both = ["train", "--model", text(&model), "--work", text(&file)];
                let peer = self.sides.peer::<Trained>(&name, &both);
                let ours = self.sides.ours::<Trained>(&name, &both);
                let judged = i == 0 && called == main_shape;
                // Compiling takes a processor a minute at the tiniest shape.
                let compiled = match self.args.rehearse && !judged {
                    true => None,
                    false => {
                        let args = [&both[..], &["--compile"]].concat();
                        self.sides.peer::<Trained>(&format!("{name}-compiled"), &args)
                    }
                };
                let title = format!("{shape} {called}");
                self.speed(&title, &work, [peer.as_ref(), compiled.as_ref(), ours.as_ref()], judged);
            }
        }
        Ok(())
    }

    /// Tokens a second, memory, and the share of the device's peak.
    fn speed(&mut self, title: &str, work: &TrainWork, sides: [Option<&Answer<Trained>>; 3], judged: bool) {
        let [peer, compiled, Some(ours)] = sides else { return };
        let a_step = work.tokens() as f64 / (work.batches.len() - work.warmup) as f64;
        let rate = |of: &Answer<Trained>| a_step / median(&of.of.seconds[work.warmup..]);
        let bar = |bar| if judged { self.judged(bar) } else { None };
        let (speed, memory) = (bar(Bar::RatioAtLeast(1.5)), bar(Bar::RatioAtMost(0.7)));
        let eager = peer.map(|peer| (peer, "tokens/s", "GPU memory, MiB"));
        let compiled = compiled.map(|peer| (peer, "tokens/s (torch.compile)", "GPU memory (compile)"));
        for (peer, named, memory_named) in eager.into_iter().chain(compiled) {
            self.figure(title, named, 0, rate(peer), rate(ours), speed);
            if let (Some(theirs), Some(own)) = (peer.gpu_mib, ours.gpu_mib) {
                self.figure(title, memory_named, 0, theirs as f64, own as f64, memory);
            }
        }
        if let (Some(peak), Some(peer)) = (self.found.bf16_tflops, peer) {
            // A frozen product is taken twice, forward and for its input's gradient; attention's two become six.
            let flops = 2.0 * ours.of.linear_flops + 3.0 * ours.of.attention_flops;
            let share = |of| rate(of) * flops / (peak * 1e12) * 100.0;
            self.figure(title, "% of the bf16 product peak", 1, share(peer), share(ours), None);
        }
        self.found.ours = Some(ours.of.dtype.clone());
    }

    fn intent(&mut self) -> Result<()> {
        let shape = self.plan.intent_model;
        let Some(model) = self.model(shape) else { return Ok(()) };
        let (rows, a_step) = self.plan.intents;
        let (train, _) = intents(self.args, rows, a_step)?;
        let file = self.sides.work("intent", &train)?;
        let both = ["train", "--model", text(&model), "--work", text(&file)];
        let peer = self.sides.peer::<Trained>("intent", &both);
        let ours = self.sides.ours::<Trained>("intent", &both);
        if let (Some(peer), Some(ours)) = (peer, ours) {
            let title = format!("{rows} intents, {shape}");
            let rate = |of: &Answer<Trained>| train.tokens() as f64 / of.of.seconds[train.warmup..].iter().sum::<f64>();
            let bar = self.judged(Bar::RatioAtLeast(5.0));
            self.figure(&title, "tokens/s, without padding", 0, rate(&peer), rate(&ours), bar);
            if let (Some(theirs), Some(own)) = (peer.gpu_mib, ours.gpu_mib) {
                self.figure(&title, "GPU memory, MiB", 0, theirs as f64, own as f64, None);
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<()> {
        let shape = self.plan.intent_model;
        let Some(model) = self.model(shape) else { return Ok(()) };
        let (_, work) = intents(self.args, self.plan.labelled, 1)?;
        let file = self.sides.work("label", &work)?;
        let both = ["label", "--model", text(&model), "--work", text(&file)];
        let peer = self.sides.peer::<Labelled>("label", &both);
        let tokenizer = [&both[..], &["--tokenizer", text(&self.args.tokenizer)]].concat();
        let ours = self.sides.ours::<Labelled>("label", &tokenizer);
        if let (Some(peer), Some(ours)) = (peer, ours) {
            let title = format!("{} labels, {shape}", work.names.len());
            let rate = |of: &Labelled| work.prompts.len() as f64 / of.seconds;
            self.figure(&title, "prompts/s", 1, rate(&peer.of), rate(&ours.of), None);
            let best = |row: &Vec<f64>| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            let rows = peer.of.log_posteriors.iter().zip(&ours.of.log_posteriors);
            let same = rows.filter(|(a, b)| best(a) == best(b)).count() as f64 / work.prompts.len() as f64;
            self.figure(&title, "% chosen as the peer", 1, 100.0, 100.0 * same, None);
        }
        let [prompts, length, tokens] = self.plan.written;
        let file = self.sides.work("write", &WriteWork::new(prompts, length, tokens, self.plan.vocabulary))?;
        let both = ["write", "--model", text(&model), "--work", text(&file)];
        let peer = self.sides.peer::<WroteAll>("write", &both);
        let ours = self.sides.ours::<WroteAll>("write", &both);
        if let (Some(peer), Some(ours)) = (peer, ours) {
            let rate = |of: &WroteAll| (prompts * tokens) as f64 / of.seconds;
            let title = format!("{prompts} answers of {tokens}, {shape}");
            self.figure(&title, "tokens written/s", 0, rate(&peer.of), rate(&ours.of), None);
        }
        Ok(())
    }

    fn profile(&mut self) -> Result<()> {
        let main_shape = self.plan.main_shape;
        let lengths = self.plan.shapes.iter().find(|s| s.0 == main_shape).map(|s| s.1.clone()).unwrap_or_default();
        let work = TrainWork::shape(&lengths, self.plan.vocabulary, self.plan.warmup, 3);
        let file = self.sides.work("profile", &work)?;
        for shape in self.plan.models {
            let Some(model) = self.model(shape) else { continue };
            let args = ["train", "--model", text(&model), "--work", text(&file), "--profile"];
            let Some(found) = self.sides.ours::<Trained>(&format!("profile-{shape}"), &args) else { continue };
            let Trained { seconds, kernels, .. } = found.of;
            // The last one is watched.
            let step_s = median(&seconds[work.warmup..seconds.len() - 1]);
            self.found.profiles.push(Profile { work: format!("{shape} {main_shape}"), step_s, kernels });
        }
        Ok(())
    }
}
