//! The load tests of an evaluation: the file as it would be served, by a server in a process of its own, and the endpoints that
//! the recipe names, all asked the test rows at the same rate. What was measured is kept beside the answers, and asked for once.

use super::eval::arithmetic;
use super::package::task as task_of;
use super::quantize::QuantizedFiles;
use super::{Finished, PROGRAM_VERSION, Run, cannot, program};
use crate::exit::Result;
use crate::live::{self, Live, Task};
use crate::load::{Coming, Served, measure};
use crate::scratch::Scratch;
use limbeck_artifact::dataset::{Dataset, Example, LabelSource, Split};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::journal;
use limbeck_artifact::manifest::{self, ArtifactFile, ArtifactManifest, BaseModel};
use limbeck_distill::endpoint::{Endpoint, EndpointPlan, MaxTokensKey, Question, Replies, Sampling};
use limbeck_eval::{Fact, LoadTest, PriceTable};
use limbeck_recipes::{ArmKind, EndpointArm};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A caller who has waited so long has gone.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    test: LoadTest,
}

/// One test of each arm that is tested; none where the recipe sets no rate.
///
/// # Errors
/// When a server does not start, is not there, or costs more than is allowed.
pub fn tests(
    run: &Run<'_>,
    dataset: &Dataset,
    quantized: &Finished<QuantizedFiles>,
    task: &Task,
    prices: Option<&PriceTable>,
    emit: &dyn Emit,
) -> Result<BTreeMap<String, LoadTest>> {
    let load = &run.recipe().eval.load;
    let Some(rate) = load.rate else { return Ok(BTreeMap::new()) };
    let rows: Vec<&Example> =
        dataset.rows(Split::Test).iter().filter(|row| row.label_source == LabelSource::Human).collect();
    if rows.is_empty() {
        return Ok(BTreeMap::new());
    }
    let tester = Tester { run, rate, rows, emit };
    let mut tests = BTreeMap::new();
    let ship = &run.recipe().quantize.ship;
    if let Some(file) = quantized.summary.get(ship) {
        let path = run.dir.join(&file.file);
        let how = json!({
            "file": file.sha256, "workers": load.workers, "device": run.recipe().model.device,
            "arithmetic": arithmetic(run, &path)?.name(), "task": task_of(run.recipe(), dataset),
        });
        tests.insert(ship.clone(), tester.kept(ship, &how, || tester.served(dataset, &path, load.workers))?);
    }
    for arm in &run.recipe().eval.arms {
        let ArmKind::Endpoint(endpoint) = &arm.kind else { continue };
        if !load.arms.contains(&arm.name) {
            continue;
        }
        let kept = live::kept_in(&run.asked_in(), &arm.name);
        let train = dataset.rows(Split::Train);
        let mut live = Live::new(&arm.name, endpoint, task.clone(), train, run.recipe(), prices, kept, run.settings)?;
        live.plan.concurrency = load.at_most;
        let how = json!({"arm": live.key()});
        if !live.plan.online && tester.find(&arm.name, &how).is_none() {
            let text = format!("arm {}: not tested under load, for the network is not to be used", arm.name);
            emit.emit(EventKind::Warning { text });
            continue;
        }
        tests.insert(arm.name.clone(), tester.kept(&arm.name, &how, || tester.endpoint(&live, endpoint))?);
    }
    Ok(tests)
}

struct Tester<'a> {
    run: &'a Run<'a>,
    rate: f64,
    rows: Vec<&'a Example>,
    emit: &'a dyn Emit,
}

impl Tester<'_> {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.run.folder(Stage::Eval).join("load").join(format!("{name}.json"))
    }

    /// Of all that decides what is measured, as far as it is ours to decide.
    fn key(&self, how: &serde_json::Value) -> String {
        let load = &self.run.recipe().eval.load;
        let rows: Vec<&str> = self.rows.iter().map(|row| row.id.as_str()).collect();
        let asked = json!({
            "how": how, "rate": self.rate, "calls": load.calls, "at_most": load.at_most, "rows": rows,
            "program": program(Stage::Eval),
        });
        sha256_hex(canonical_json(&asked).as_bytes())
    }

    fn find(&self, name: &str, how: &serde_json::Value) -> Option<LoadTest> {
        let kept: Kept = serde_json::from_slice(&std::fs::read(self.path(name)).ok()?).ok()?;
        (kept.key == self.key(how)).then_some(kept.test)
    }

    /// What was measured before, or what `measure` gives now.
    fn kept(
        &self,
        name: &str,
        how: &serde_json::Value,
        measure: impl FnOnce() -> Result<LoadTest>,
    ) -> Result<LoadTest> {
        if let Some(test) = self.find(name, how) {
            self.emit.emit(EventKind::Note { text: format!("arm {name}: the load test kept from before is used") });
            return Ok(test);
        }
        let calls = self.run.recipe().eval.load.calls;
        let text = format!(
            "arm {name} under load: {calls} calls, {} a second, some {:.0} s",
            self.rate,
            calls as f64 / self.rate
        );
        self.emit.emit(EventKind::Note { text });
        let kept = Kept { key: self.key(how), test: measure()? };
        let path = self.path(name);
        let bytes = serde_json::to_vec(&kept)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| cannot("make the folder", folder, &e))?;
        }
        write_atomic(&path, &bytes).map_err(|e| cannot("write", &path, &e))?;
        self.emit.emit(EventKind::Wrote { path: path.display().to_string(), bytes: bytes.len() as u64 });
        Ok(kept.test)
    }

    /// The file by `limbeck serve`, out of a folder that stands in for the artifact to be.
    fn served(&self, dataset: &Dataset, file: &Path, workers: u16) -> Result<LoadTest> {
        let recipe = self.run.recipe();
        let scratch = Scratch::within(&self.run.dir, "load")?;
        let model = scratch.path().join("model.gguf");
        std::fs::hard_link(file, &model)
            .or_else(|_| std::fs::copy(file, &model).map(|_| ()))
            .map_err(|e| cannot("copy", file, &e))?;
        let manifest = ArtifactManifest {
            schema: manifest::SCHEMA,
            name: recipe.name.clone(),
            version: recipe.version.clone(),
            created: self.run.created.clone(),
            task: task_of(recipe, dataset),
            base: BaseModel { name: String::new(), digest: String::new(), license: None, quantize_base: None },
            dataset_digest: dataset.card.digest.clone(),
            recipe_lock_digest: self.run.lock_digest(),
            files: BTreeMap::from([("model.gguf".to_owned(), ArtifactFile::of(&model, "model")?)]),
            threshold: Some(0.0),
            arithmetic: Some(arithmetic(self.run, file)?.name().to_owned()),
            verdict: "inconclusive".to_owned(),
            program_version: PROGRAM_VERSION.to_owned(),
        };
        manifest.save(scratch.path())?;
        let artifact = [scratch.path().display().to_string(), "--no-verify".to_owned()];
        let served = Served::start(&artifact, workers, Some(&recipe.model.device))?;
        let at_most = recipe.eval.load.at_most;
        let plan = EndpointPlan {
            concurrency: at_most,
            timeout: PATIENCE,
            ..EndpointPlan::plain(&served.url, &recipe.name, journal::now)
        };
        let sampling = Sampling {
            temperature: 0.0,
            max_tokens: u32::try_from(super::eval::max_new_tokens(recipe)).unwrap_or(u32::MAX),
            max_tokens_key: MaxTokensKey::MaxTokens,
            logprobs: None,
            grammar: None,
        };
        let questions: Vec<Question> =
            self.rows.iter().map(|row| Question { messages: row.messages.clone(), sample: 0 }).collect();
        let mut test = self.measure(&mut Endpoint::new(plan, Replies::default()), &questions, &sampling)?;
        test.summary.peak_memory_bytes = served.peak_memory();
        test.summary.facts = vec![Fact::new(
            "server",
            format!("limbeck serve, {workers} worker{}, on this machine", if workers == 1 { "" } else { "s" }),
        )];
        Ok(test)
    }

    fn endpoint(&self, live: &Live, arm: &EndpointArm) -> Result<LoadTest> {
        let asked: Vec<_> = self.rows.iter().map(|row| row.messages.as_slice()).collect();
        let mut endpoint = live.open()?;
        let before = endpoint.spent();
        let mut test = self.measure(&mut endpoint, &live.questions(&asked), &live.sampling)?;
        test.summary.facts = vec![Fact::new("server", format!("{} at {}", arm.model, arm.url))];
        let spent = endpoint.spent() - before;
        if spent > 0.0 {
            test.summary.facts.push(Fact::new("spent", live.money(spent)));
        }
        Ok(test)
    }

    fn measure(&self, endpoint: &mut Endpoint, questions: &[Question], sampling: &Sampling) -> Result<LoadTest> {
        let load = &self.run.recipe().eval.load;
        let total = load.calls as u64;
        let told = |done: usize| {
            self.emit.emit(EventKind::Progress { done: done as u64, total, unit: "calls under load".to_owned() });
        };
        let coming = Coming::AtRate { rate: self.rate, calls: load.calls };
        measure(endpoint, questions, sampling, coming, load.at_most, &told)
    }
}
