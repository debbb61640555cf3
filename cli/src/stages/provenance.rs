//! What other people's tools read of an artifact: how it was built (SLSA provenance), what its gates said (in-toto test
//! result) and what is in it (CycloneDX ML-BOM). All under the artifact's signature, all made from what the run knows anyway.
//!
//! Sources: slsa.dev/provenance/v1, in-toto attestation test-result v0.1, CycloneDX 1.6. A run on one's own machine is SLSA
//! Build L1 at most: nobody else vouches for the builder.

use super::PROGRAM_VERSION;
use crate::base::Base;
use limbeck_artifact::dataset::DatasetCard;
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_eval::{AnswerKind, Report, Verdict};
use limbeck_recipes::Recipe;
use serde_json::{Value, json};

/// What the documents are made from.
pub struct Facts<'a> {
    pub recipe: &'a Recipe,
    pub lock_digest: &'a str,
    pub base: &'a Base,
    pub dataset: &'a DatasetCard,
    pub report: &'a Report,
    pub report_digest: &'a str,
    /// The files that are served: name and SHA-256.
    pub served: &'a [(String, String)],
    /// RFC 3339.
    pub created: &'a str,
}

/// File name, text.
pub fn documents(facts: &Facts<'_>) -> [(&'static str, String); 3] {
    let text = |value: &Value| canonical_json(value) + "\n";
    [
        ("provenance/slsa-provenance.json", text(&statement(facts, "https://slsa.dev/provenance/v1", build(facts)))),
        (
            "provenance/test-result.json",
            text(&statement(facts, "https://in-toto.io/attestation/test-result/v0.1", tests(facts))),
        ),
        ("provenance/bom.cdx.json", text(&bom(facts))),
    ]
}

fn statement(facts: &Facts<'_>, kind: &str, predicate: Value) -> Value {
    let subject: Vec<Value> =
        facts.served.iter().map(|(name, sha256)| json!({"name": name, "digest": {"sha256": sha256}})).collect();
    json!({
        "_type": "https://in-toto.io/Statement/v1", "subject": subject, "predicateType": kind, "predicate": predicate,
    })
}

fn build(facts: &Facts<'_>) -> Value {
    let Facts { recipe, base, dataset, .. } = facts;
    let mut dependencies = vec![
        json!({"name": "recipe-lock", "digest": {"sha256": facts.lock_digest}}),
        json!({"name": "base-model", "uri": uri(base), "digest": {"sha256": base.digest}}),
        json!({"name": "dataset", "digest": {"sha256": dataset.digest}}),
    ];
    for (file, sha256) in &dataset.sources {
        dependencies.push(json!({"name": format!("traces/{file}"), "digest": {"sha256": sha256}}));
    }
    json!({
        "buildDefinition": {
            "buildType": "urn:limbeck:recipe:v1",
            "externalParameters": {"recipe": recipe.name, "version": recipe.version, "seed": recipe.seed.to_string()},
            "internalParameters": {"device": recipe.model.device},
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {"id": "urn:limbeck:builder:local:v1", "version": {"limbeck": PROGRAM_VERSION}},
            "metadata": {"invocationId": invocation(facts), "startedOn": facts.created},
            "byproducts": [{"name": "report.json", "digest": {"sha256": facts.report_digest}}],
        },
    })
}

/// Of a hub's model its package URL; of a local file its name.
fn uri(base: &Base) -> String {
    match base.name.split_once('/') {
        Some((owner, name)) if !owner.is_empty() && !name.contains('/') => {
            let revision = name.split_once('@').map_or_else(|| name.to_owned(), |(name, at)| format!("{name}@{at}"));
            format!("pkg:huggingface/{owner}/{revision}")
        }
        _ => format!("file:{}", base.name),
    }
}

/// The same for the same inputs, so that the document is.
fn invocation(facts: &Facts<'_>) -> String {
    let text = format!("{} {} {}", facts.lock_digest, facts.base.digest, facts.dataset.digest);
    format!("{}-{}", facts.recipe.name, &sha256_hex(text.as_bytes())[..16])
}

fn tests(facts: &Facts<'_>) -> Value {
    let named = |verdict: Verdict| -> Vec<&str> {
        facts.report.gates.iter().filter(|g| g.verdict == verdict).map(|g| g.gate.as_str()).collect()
    };
    let result = match facts.report.verdict {
        Verdict::Pass => "PASSED",
        Verdict::Inconclusive => "WARNED",
        Verdict::Fail => "FAILED",
    };
    json!({
        "result": result,
        "configuration": [
            {"name": "recipe-lock", "digest": {"sha256": facts.lock_digest}},
            {"name": "dataset", "digest": {"sha256": facts.dataset.digest}},
            {"name": "report.json", "digest": {"sha256": facts.report_digest}},
        ],
        "passedTests": named(Verdict::Pass),
        "warnedTests": named(Verdict::Inconclusive),
        "failedTests": named(Verdict::Fail),
    })
}

fn bom(facts: &Facts<'_>) -> Value {
    let Facts { recipe, base, dataset, report, .. } = facts;
    let hash = |sha256: &str| json!([{"alg": "SHA-256", "content": sha256}]);
    let mut ancestor = json!({"type": "machine-learning-model", "name": base.name, "hashes": hash(&base.digest)});
    if uri(base).starts_with("pkg:") {
        ancestor["purl"] = json!(uri(base));
    }
    let licenses = base.license.as_ref().map(|license| json!([license_choice(license)]));
    let mut model = json!({
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": recipe.name,
        "version": recipe.version,
        "pedigree": {"ancestors": [ancestor]},
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": pipeline_tag(report),
                "architectureFamily": "transformer",
                "datasets": [{"ref": "dataset"}],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": metrics(report)},
            "considerations": {"technicalLimitations": report.notes},
        },
    });
    if let Some((_, sha256)) = facts.served.first() {
        model["hashes"] = hash(sha256);
    }
    if let Some(licenses) = licenses {
        model["licenses"] = licenses;
    }
    let rows: u64 = dataset.splits.values().map(|split| split.rows).sum();
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial(facts),
        "version": 1,
        "metadata": {
            "timestamp": facts.created,
            "tools": {"components": [{"type": "application", "name": "limbeck", "version": PROGRAM_VERSION}]},
            "component": model,
        },
        "components": [{
            "type": "data",
            "bom-ref": "dataset",
            "name": format!("{}-dataset", recipe.name),
            "hashes": hash(&dataset.digest),
            "data": [{"type": "dataset", "contents": {"properties": [
                {"name": "limbeck:rows", "value": rows.to_string()},
                {"name": "limbeck:traces", "value": dataset.traces_in.to_string()},
            ]}}],
        }],
        "dependencies": [{"ref": "model", "dependsOn": ["dataset"]}, {"ref": "dataset"}],
    })
}

/// SPDX ids have a field of their own; anything else is a name.
fn license_choice(license: &str) -> Value {
    let is_id = ["Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0"]
        .iter()
        .find(|id| id.eq_ignore_ascii_case(license));
    match is_id {
        Some(id) => json!({"license": {"id": id}}),
        None => json!({"license": {"name": license}}),
    }
}

/// Of the file that is served; numbers are texts there.
fn metrics(report: &Report) -> Vec<Value> {
    let Some(arm) = report.candidate_arm() else { return Vec::new() };
    let scores = &arm.scores;
    let text = |x: f64| format!("{x:.4}");
    let texts = report.answers() == AnswerKind::Texts;
    vec![
        json!({
            "type": report.what(),
            "value": text(scores.accuracy),
            "slice": "test",
            "confidenceInterval": {
                "lowerBound": text(scores.accuracy_interval.low), "upperBound": text(scores.accuracy_interval.high),
            },
        }),
        json!({"type": if texts { "ROUGE-L" } else { "macro-F1" }, "value": text(arm.partial()), "slice": "test"}),
    ]
}

/// The task's name on the Hugging Face hub.
pub fn pipeline_tag(report: &Report) -> &'static str {
    match report.answers() {
        AnswerKind::Labels => "text-classification",
        AnswerKind::Fields | AnswerKind::Texts => "text-generation",
    }
}

/// A version 8 UUID (RFC 9562: the bits are our own) of what went in.
fn serial(facts: &Facts<'_>) -> String {
    let served: String = facts.served.iter().map(|(_, sha256)| sha256.as_str()).collect();
    let hex = sha256_hex(format!("{} {served} {}", facts.lock_digest, facts.report_digest).as_bytes());
    format!("urn:uuid:{}-{}-8{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}
