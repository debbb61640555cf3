//! What an evaluation leaves and what is done with it, from outside: the policy in the artifact and how `score` routes by it,
//! drift against its reference, two runs side by side, gates for CI, and the statistics' own examination.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use serde_json::{Value, json};

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn said(mini: &Mini, code: i32, args: &[&str]) -> String {
    let out = mini.limbeck(args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "limbeck {args:?}\n{said}");
    said
}

const ASKING: [&str; 4] =
    ["--set", "eval.escalation.max_error=0.2", "--set", "eval.escalation.fallback=[\"frontier-large\"]"];

#[test]
fn a_policy_travels_with_the_artifact_and_routes() {
    let mini = Mini::new(0.0001, true);
    let path = mini.path().join("mini/recipe.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, recipe.replace("[promote]", "[[eval.gate]]\nkind = \"fallback\"\n\n[promote]")).unwrap();

    // Without a fallback nothing is promoted, and the gate says what to do.
    let text = mini.expect(4, &["run", "mini", "--offline"]);
    assert!(text.contains("eval.escalation.fallback"), "{text}");

    let run: Vec<&str> = ["run", "mini", "--offline"].into_iter().chain(ASKING).collect();
    let text = mini.expect(0, &run);
    assert!(text.contains("Nothing can be certified at 20 %") && text.contains("escalates 100 % of calls"), "{text}");
    let package = mini.run_dir().join("package");
    let policy = parsed(&std::fs::read_to_string(package.join("policy.json")).unwrap());
    assert_eq!((&policy["score"], &policy["fallback"]), (&json!("top_probability"), &json!(["frontier-large"])));
    assert_eq!(policy["bands"], json!([{"action": "escalate", "from": null}]));
    assert_eq!(policy["certificate"]["certified"], json!(false));
    assert_eq!(policy["calibration"]["method"], json!("temperature"));
    let manifest = parsed(&std::fs::read_to_string(package.join("manifest.json")).unwrap());
    assert_eq!(manifest["files"]["policy.json"]["role"], json!("policy"));
    assert!(manifest["threshold"].is_null(), "a certified threshold is another number: {manifest:#}");
    mini.expect(0, &["verify", "runs/mini/package", "--key", ".limbeck/keys/signing.pub.pem"]);

    let answer = parsed(&mini.expect(0, &["score", "mini/staging", "where is my card", "--json"]));
    assert_eq!(answer["route"], json!("escalate"), "{answer}");
    let text = mini.expect(0, &["score", "mini/staging", "where is my card"]);
    assert!(text.contains("nothing could be certified: every call escalates"), "{text}");
    // The caller's own number goes by the confidence, as ever.
    let own = parsed(&mini.expect(0, &["score", "mini/staging", "where is my card", "--json", "--threshold", "0"]));
    assert_eq!(own["route"], json!("serve"), "{own}");

    // As if more had been certified: three bands around the answer's own score.
    let score = answer["score"].as_f64().unwrap();
    let file = package.join("policy.json");
    for (serve, review, route) in
        [(0.0, 0.0, "serve"), (1.0, score / 2.0, "serve_and_review"), (1.0, 0.999, "escalate")]
    {
        let mut policy = policy.clone();
        policy["bands"] = json!([
            {"action": "serve", "from": serve}, {"action": "serve_and_review", "from": review}, {"action": "escalate", "from": null}
        ]);
        std::fs::write(&file, policy.to_string()).unwrap();
        let args = ["score", "runs/mini/package", "where is my card", "--no-verify", "--json"];
        assert_eq!(parsed(&mini.expect(0, &args))["route"], json!(route), "{score}");
    }
    let told = said(&mini, 6, &["score", "runs/mini/package", "where is my card"]);
    assert!(told.contains("policy.json"), "a changed policy is refused: {told}");
}

#[test]
fn evaluations_are_compared_watched_for_drift_and_told_to_ci() {
    let mini = Mini::new(0.0001, true);
    mini.expect(0, &["run", "mini", "--offline"]);
    let text = mini.expect(0, &["eval", "mini", "--offline", "--junit", "gates.xml"]);
    assert!(text.contains("the recipe's own, not certified"), "{text}");
    let suite = std::fs::read_to_string(mini.path().join("gates.xml")).unwrap();
    assert!(
        suite.contains("tests=\"1\" failures=\"0\" errors=\"0\"") && suite.contains("accuracy at least"),
        "{suite}"
    );

    let text = mini.expect(0, &["eval", "--compare", "mini", "runs/mini"]);
    assert!(text.contains("B minus A       +0.0 points") && text.contains("same answer     100.0 % of rows"), "{text}");
    let compared = parsed(&mini.expect(0, &["eval", "--compare", "mini", "mini", "--json"]));
    assert_eq!((&compared["pair"]["b"], &compared["only_first"]), (&json!(0), &json!(0)));
    let told = said(&mini, 2, &["eval", "--compare", "mini", "other"]);
    assert!(told.contains("there is no evaluation in runs/other"), "{told}");
    said(&mini, 2, &["eval"]);

    // The very traces that it was made of are no other traffic.
    let args = ["drift", "mini/staging", "--traces", "mini/traces.jsonl", "--json"];
    let same = parsed(&mini.expect(0, &args));
    assert_eq!((&same["calls"], &same["rejected"]), (&json!(239), &json!(1)), "one line is damaged: {same:#}");
    assert_ne!(same["verdict"], json!("drifted"), "{same:#}");
    let other = std::fs::read_to_string(mini.path().join("mini/traces.jsonl")).unwrap();
    let other = other.replace("card", "voucher").replace(" my ", " our fine ").replace(" I ", " nobody ");
    std::fs::write(mini.path().join("other.jsonl"), other).unwrap();
    let other = parsed(&String::from_utf8_lossy(
        &mini.limbeck(&["drift", "mini/staging", "--traces", "other.jsonl", "--json"]).stdout,
    ));
    let p = |drift: &Value| drift["messages_mmd"]["p"].as_f64().unwrap();
    assert!(p(&other) <= 0.01 && p(&other) < p(&same), "{other:#} {same:#}");
    assert!(other["advice"].to_string().contains("The messages are others"), "{other:#}");
    let part = parsed(&mini.expect(0, &[&args[..], &["--limit", "100"]].concat()));
    assert_eq!(
        (&part["rows"], &part["calls"]),
        (&json!(100), &json!(239)),
        "a draw of as many as were asked for: {part:#}"
    );
    let few: String = std::fs::read_to_string(mini.path().join("mini/traces.jsonl"))
        .unwrap()
        .lines()
        .take(20)
        .map(|l| format!("{l}\n"))
        .collect();
    std::fs::write(mini.path().join("few.jsonl"), few).unwrap();
    let text = mini.expect(7, &["drift", "mini/staging", "--traces", "few.jsonl"]);
    assert!(text.contains("TOO FEW ROWS") && text.contains("Come back with at least 100 rows; there are 20"), "{text}");
    let told = said(&mini, 2, &["drift", "mini/staging", "--traces", "none.jsonl"]);
    assert!(told.contains("none.jsonl"), "{told}");
}

#[test]
fn two_artifacts_answer_the_same_calls() {
    let mini = Mini::new(0.0001, true);
    // Words of four letters are no secret, but the pattern is the recipe's own; decisions on what it changes don't count.
    let redacts = [
        "--set",
        "data.redact_patterns=[\"word=(?i)card\"]",
        "--set",
        "review.min_reviewed.train=0.3",
        "--set",
        "review.min_reviewed.valid=0.3",
        "--set",
        "review.min_reviewed.calibration=0.3",
        "--set",
        "review.min_reviewed.test=0.3",
    ];
    mini.expect(0, &[&["run", "mini", "--offline"], &redacts[..]].concat());
    std::fs::create_dir(mini.path().join("first")).unwrap();
    std::fs::rename(mini.run_dir().join("package"), mini.path().join("first/package")).unwrap();
    let other = ["run", "mini", "--offline", "--set", "version=0.2.0", "--set", "train.num_epochs=1"];
    mini.expect(0, &[&other[..], &redacts[..]].concat());
    let traces = ["--traces", "mini/traces.jsonl", "--limit", "60"];

    let with_gold =
        ["shadow", "first/package", "mini/staging", "--data", "mini", "--prices", "mini/prices.toml", "--json"];
    let report = parsed(&mini.expect(0, &[&with_gold[..], &traces[..]].concat()));
    assert_eq!((&report["calls"], &report["asked"], &report["rejected"]), (&json!(239), &json!(60), &json!(1)));
    assert_eq!((&report["first"]["version"], &report["second"]["version"]), (&json!("0.1.0"), &json!("0.2.0")));
    let agreement = report["agreement"].as_f64().unwrap();
    let interval = &report["agreement_interval"];
    assert!(interval["low"].as_f64().unwrap() < agreement.max(1e-9) && agreement <= interval["high"].as_f64().unwrap());
    let differ: u64 = report["changes"].as_array().unwrap().iter().map(|change| change["rows"].as_u64().unwrap()).sum();
    assert!(differ <= 60 - report["same"].as_u64().unwrap(), "the commonest differences: {report:#}");
    for example in report["examples"].as_array().unwrap() {
        let text = example["text"].as_str().unwrap().to_lowercase();
        assert!(!text.contains("card"), "the recipe's own pattern redacts: {text}");
    }
    let reviewed = &report["reviewed"];
    assert!(reviewed["rows"].as_u64().unwrap() > 0 && reviewed["p_mcnemar"].is_number(), "{reviewed:#}");
    assert_eq!(report["error_is_measured"], json!(true));
    assert!(report["first"]["cost"]["per_1k_calls"].as_f64().unwrap() > 0.0);
    let steps = report["rollout"].as_array().unwrap();
    let requests: Vec<u64> = steps.iter().map(|step| step["requests"].as_u64().unwrap()).collect();
    assert!(requests.len() == 3 && requests.is_sorted_by(|a, b| a > b), "a smaller share takes longer: {requests:?}");

    // Against itself nothing differs, and without reviewed rows the plan says that it guesses.
    let text = mini.expect(0, &[&["shadow", "first/package", "first/package"], &traces[..]].concat());
    assert!(text.contains("same answer    100.0 % of 60 calls") && text.contains("a guess: --data names"), "{text}");
    assert!(text.contains("Redacted with the recipe's 1 own pattern too."), "{text}");
    let text = mini.expect(0, &["drift", "mini/staging", "--traces", "mini/traces.jsonl"]);
    assert!(text.contains("Redacted with the recipe's 1 own pattern too."), "{text}");
    let told =
        said(&mini, 1, &[&["shadow", "first/package", "first/package", "--data", "nowhere"], &traces[..]].concat());
    assert!(told.contains("nowhere"), "{told}");
}

#[test]
fn what_the_statistics_claim_is_what_they_do() {
    let mini = Mini::new(0.0001, false);
    let checked = parsed(&mini.expect(0, &["eval", "--self-check", "--json"]));
    assert_eq!(checked["off"], json!(0), "{checked:#}");
    assert!(checked["figures"].as_array().unwrap().len() > 30, "{checked:#}");
}
