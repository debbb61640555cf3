//! Package: everything that is needed to serve the file and to believe in it, in one signed folder, `package/`. It is
//! made beside its place and moved there whole.

use super::eval::{Evaluated, POLICY, arithmetic, max_new_tokens};
use super::quantize::QuantizedFiles;
use super::train::outcome_files;
use super::{Finished, PROGRAM_VERSION, Run, Work, cannot, provenance};
use crate::base::Base;
use crate::exit::Result;
use limbeck_artifact::dataset::{Dataset, DatasetCard, Example, Split};
use limbeck_artifact::digest::{canonical_json, sha256_file, sha256_hex};
use limbeck_artifact::event::{EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::manifest::{self, ArtifactFile, ArtifactManifest, BaseModel, Task};
use limbeck_artifact::{keys, oms};
use limbeck_eval::{AnswerKind, CardPlan, Report, model_card};
use limbeck_model::ops::codes::QuantizeBase;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_recipes::{Head, Method, Recipe};
use limbeck_trainer::TrainReport;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Packaged {
    /// Relative to the run's folder.
    pub dir: String,
    pub manifest_digest: String,
    /// The digest that the signature is over.
    pub root: String,
    pub key_id: String,
    pub bytes: u64,
    pub example: String,
}

pub fn run(
    run: &Run<'_>,
    dataset: &Finished<DatasetCard>,
    trained: &Finished<TrainReport>,
    quantized: &Finished<QuantizedFiles>,
    evaluated: &Finished<Evaluated>,
) -> Result<Finished<Packaged>> {
    let recipe = run.recipe();
    let sink = run.sink.stage(Stage::Package);
    let base = run.base(&sink)?;
    let key = crate::keys::signer(recipe, &sink)?;
    let inputs = BTreeMap::from([
        ("dataset".to_owned(), dataset.summary.digest.clone()),
        ("train".to_owned(), trained.digest()),
        ("quantize".to_owned(), quantized.digest()),
        ("eval".to_owned(), evaluated.digest()),
        ("base".to_owned(), base.digest.clone()),
        ("key".to_owned(), keys::key_id(key.public())),
    ]);
    run.stage(Stage::Package, inputs, |emit, _| {
        let place = run.folder(Stage::Package);
        let making = run.dir.join("package.new");
        remove(&making)?;
        let report = Report::load(&run.dir.join(&evaluated.summary.report))?;
        let dataset = Dataset::load(&run.dataset_dir())?;
        let mut parts = Parts { from: run.dir.clone(), to: making.clone(), roles: BTreeMap::new() };

        let model = format!("{}-{}.gguf", recipe.name, recipe.quantize.ship);
        let shipped = quantized
            .summary
            .get(&recipe.quantize.ship)
            .map_or_else(|| format!("quantize/{model}"), |q| q.file.clone());
        parts.copy(&shipped, &model, "model")?;
        // All weights, trained, are in the file that is served; in float32 they would be many times its size.
        let adapter = recipe.train.method == Method::Lora;
        for file in outcome_files(recipe).filter(|_| adapter) {
            parts.copy(&format!("train/adapter/{file}"), &format!("adapter/{file}"), "adapter")?;
        }
        // A head that was folded into the file gave its tokenizer a token a label.
        let told = if recipe.train.head == Head::Classification { run.dir.join(&shipped) } else { base.path.clone() };
        ChatTokenizer::open(&told)?.save(&making.join("tokenizer"))?;
        parts.found("tokenizer", "tokenizer")?;
        parts.write("recipe.lock.toml", run.resolved.lock_toml().as_bytes(), "recipe-lock")?;
        parts.copy("dataset/dataset.json", "lineage/dataset.json", "lineage")?;
        parts.write("lineage/rows.jsonl", lineage(&dataset).as_bytes(), "lineage")?;
        parts.copy(&evaluated.summary.report, "report/report.json", "report")?;
        parts.copy(&evaluated.summary.page, "report/report.html", "report-page")?;
        if report.policy.is_some() {
            parts.copy(POLICY, "policy.json", "policy")?;
        }
        parts.copy("train/loss.jsonl", "report/loss.jsonl", "training-log")?;
        let documents = provenance::documents(&provenance::Facts {
            recipe,
            lock_digest: &run.lock_digest(),
            base,
            dataset: &dataset.card,
            report: &report,
            report_digest: &sha256_file(&making.join("report/report.json"))?,
            served: &[(model.clone(), sha256_file(&making.join(&model))?)],
            created: &run.created,
        });
        for (name, text) in documents {
            parts.write(name, text.as_bytes(), "provenance")?;
        }
        let example = example(&dataset);
        let kept = trained.summary.quantize_base;
        let card = card(run, &report, base, kept, &model, &example);
        parts.write("README.md", card.as_bytes(), "card")?;

        let manifest = ArtifactManifest {
            schema: manifest::SCHEMA,
            name: recipe.name.clone(),
            version: recipe.version.clone(),
            created: run.created.clone(),
            task: task(recipe, &dataset),
            base: BaseModel {
                name: base.name.clone(),
                digest: base.digest.clone(),
                license: base.license.clone(),
                quantize_base: (kept != QuantizeBase::None).then(|| kept.to_string()),
            },
            dataset_digest: dataset.card.digest.clone(),
            recipe_lock_digest: run.lock_digest(),
            files: parts.files()?,
            // A certified threshold is on another number; the policy tells which.
            threshold: recipe.eval.escalation.max_error.is_none().then_some(recipe.eval.threshold),
            arithmetic: Some(arithmetic(run, &run.dir.join(&shipped))?.name().to_owned()),
            verdict: report.verdict.name().to_owned(),
            program_version: PROGRAM_VERSION.to_owned(),
        };
        let manifest_digest = manifest.save(&making)?;
        remove(&place)?;
        std::fs::rename(&making, &place).map_err(|e| cannot("move the artifact to", &place, &e))?;
        // Signed in its place: the signature names the folder.
        let signed = oms::sign_dir(&place, &place.join(manifest::SIGNATURE_FILE_NAME), key.as_ref())?;
        let bytes = manifest.files.values().map(|f| f.bytes).sum();
        emit.emit(EventKind::Wrote { path: place.display().to_string(), bytes });
        let summary = Packaged {
            dir: "package".to_owned(),
            manifest_digest,
            root: signed.root,
            key_id: signed.key_id,
            bytes,
            example,
        };
        let mut outputs: Vec<String> = manifest.files.keys().map(|name| format!("package/{name}")).collect();
        outputs.extend([manifest::FILE_NAME, manifest::SIGNATURE_FILE_NAME].map(|name| format!("package/{name}")));
        Ok(Work {
            line: format!("{} files signed with key {}", signed.files.len(), &summary.key_id[..12]),
            outputs,
            summary,
        })
    })
}

/// What the artifact answers, and how it is to be asked.
pub fn task(recipe: &Recipe, dataset: &Dataset) -> Task {
    Task {
        kind: recipe.task.kind.clone(),
        labels: dataset.card.labels.clone(),
        schema: dataset.card.schema.clone(),
        max_new_tokens: dataset.card.schema.as_ref().map(|_| max_new_tokens(recipe)),
        constrained: recipe.task.constrained,
        system: system(dataset),
    }
}

/// The files of an artifact as they are put together.
struct Parts {
    from: PathBuf,
    to: PathBuf,
    roles: BTreeMap<String, &'static str>,
}

impl Parts {
    fn copy(&mut self, from: &str, to: &str, role: &'static str) -> Result<()> {
        let (source, target) = (self.from.join(from), self.to.join(to));
        if let Some(dir) = target.parent() {
            std::fs::create_dir_all(dir).map_err(|e| cannot("make the folder", dir, &e))?;
        }
        std::fs::copy(&source, &target).map_err(|e| cannot("copy to the artifact", &source, &e))?;
        self.roles.insert(to.to_owned(), role);
        Ok(())
    }

    fn write(&mut self, to: &str, bytes: &[u8], role: &'static str) -> Result<()> {
        let target = self.to.join(to);
        write_atomic(&target, bytes).map_err(|e| cannot("write", &target, &e))?;
        self.roles.insert(to.to_owned(), role);
        Ok(())
    }

    /// Files that someone else wrote into `folder`.
    fn found(&mut self, folder: &str, role: &'static str) -> Result<()> {
        let dir = self.to.join(folder);
        for entry in std::fs::read_dir(&dir).map_err(|e| cannot("list", &dir, &e))? {
            let name = entry.map_err(|e| cannot("list", &dir, &e))?.file_name();
            self.roles.insert(format!("{folder}/{}", name.to_string_lossy()), role);
        }
        Ok(())
    }

    fn files(&self) -> Result<BTreeMap<String, ArtifactFile>> {
        let of = |(name, role): (&String, &&str)| Ok((name.clone(), ArtifactFile::of(&self.to.join(name), role)?));
        self.roles.iter().map(of).collect()
    }
}

fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(cannot("remove the old", dir, &e)),
        _ => Ok(()),
    }
}

/// From each row to its trace and to the decision behind its target; no message text.
fn lineage(dataset: &Dataset) -> String {
    let mut text = String::new();
    for split in Split::ALL {
        for row in dataset.rows(split) {
            // Fields hold what customers said; labels don't.
            let target = dataset.card.schema.is_none().then_some(&row.target);
            let line = json!({
                "id": row.id,
                "split": split.name(),
                "target": target,
                "label_source": row.label_source,
                "trace": row.trace,
                "decision": row.decision,
            });
            text.push_str(&canonical_json(&line));
            text.push('\n');
        }
    }
    text
}

/// The system prompt of most rows: what a message is to be asked with.
fn system(dataset: &Dataset) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in dataset.rows(Split::Train) {
        if let Some(message) = row.messages.iter().find(|m| m.role == "system") {
            *counts.entry(&message.content).or_default() += 1;
        }
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(text, _)| text.to_owned())
}

/// A short message of the test split, for the command to try; the same on every machine.
fn example(dataset: &Dataset) -> String {
    let user = |row: &Example| row.messages.iter().rev().find(|m| m.role == "user").map(|m| m.content.clone());
    let fits = |text: &String| {
        (20..=70).contains(&text.chars().count())
            && text.chars().all(|c| {
                c.is_ascii()
                    && !c.is_ascii_control()
                    && c != '\''
                    && c != '"'
                    && c != '!'
                    && c != '$'
                    && c != '`'
                    && c != '\\'
            })
    };
    let mut texts: Vec<String> = dataset.rows(Split::Test).iter().filter_map(user).filter(fits).collect();
    texts.sort_by_key(|text| sha256_hex(text.as_bytes()));
    texts.into_iter().next().unwrap_or_else(|| "hello".to_owned())
}

fn when_to_serve(recipe: &Recipe, report: &Report) -> String {
    match report.routing.as_ref().and_then(|routing| routing.certificate.as_ref()) {
        None => format!("Serve an answer of confidence {} or more; escalate the others.", recipe.eval.threshold),
        Some(certificate) if certificate.threshold.is_none() => {
            "Escalate every call: no threshold could be certified.".to_owned()
        }
        Some(_) => "Serve, review and escalate as policy.json says.".to_owned(),
    }
}

fn card(run: &Run<'_>, report: &Report, base: &Base, kept: QuantizeBase, model: &str, example: &str) -> String {
    let recipe = run.recipe();
    let over_codes = match kept {
        QuantizeBase::None => None,
        kept => Some(format!(
            "The adapter was trained over the base's linear layers in {kept} codes (QLoRA) and merged into the base's own \
             weights. What was evaluated is the merged file."
        )),
    };
    let by_tokens = (recipe.train.head == Head::Classification).then(|| {
        "A classification head answers. In the served file it is a token a label, `<|label:NAME|>`: on any server, ask for one token \
         with all others ruled out (llama.cpp: `logit_bias` over these tokens, `n_probs`; vLLM: `allowed_token_ids`, `logprobs`), \
         and the probabilities are the classes'."
            .to_owned()
    });
    let pipeline_tag = provenance::pipeline_tag(report);
    let answers = match report.answers() {
        AnswerKind::Labels => format!("Answers a message with one of {} labels.", report.labels.len()),
        AnswerKind::Fields => {
            format!("Answers a message with a JSON object of its fields: {}.", report.fields.join(", "))
        }
        AnswerKind::Texts => {
            "Answers a message with a text, learnt from answers that people accepted or edited.".to_owned()
        }
    };
    let plan = CardPlan {
        license: base.license.clone().unwrap_or_else(|| "other".to_owned()),
        base_model: base.name.clone(),
        base_model_relation: "finetune".to_owned(),
        language: vec!["en".to_owned()],
        pipeline_tag: pipeline_tag.to_owned(),
        tags: [pipeline_tag, "gguf", "lora", "limbeck"].map(String::from).to_vec(),
        files: [
            (model, "the served model, a GGUF file that llama.cpp loads too"),
            ("adapter/", "the LoRA adapter, in PEFT's layout"),
            ("tokenizer/", "the tokenizer and chat template"),
            ("recipe.lock.toml", "every setting of the run"),
            ("lineage/", "each row's trace and decision"),
            ("provenance/", "how it was built, what its gates said, what is in it: SLSA, in-toto, CycloneDX"),
            ("policy.json", "from which score to serve, what to review, where to escalate: for any gateway"),
            ("report/", "the evaluation, for machines and for people"),
            (manifest::FILE_NAME, "what is in here, with digests"),
            (manifest::SIGNATURE_FILE_NAME, "the signature over all files (OpenSSF Model Signing)"),
        ]
        .map(|(file, what)| (file.to_owned(), what.to_owned()))
        .to_vec(),
        intended_use: format!("{answers} {}", when_to_serve(recipe, report)),
        notes: recipe.data.notes.iter().cloned().chain(over_codes).chain(by_tokens).collect(),
        // From within the folder, wherever it went.
        try_it: format!("limbeck score . \"{example}\" --key signing.pub.pem"),
    };
    model_card(&plan, report)
}
