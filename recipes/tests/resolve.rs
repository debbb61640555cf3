//! Defaults < file < `--set`, and what keeps its origin.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_artifact::event::Stage;
use limbeck_recipes::{
    Asked, BaseModel, CacheDtype, DecayType, GateRule, Head, LossNormalization, LrScheduler, Method, Origin,
    QuantizeBase, Resolved, TrainOn, ValidMetric, load, load_text, settings, template,
};
use std::path::Path;

const RECIPE: &str = r#"
name = "small"
seed = 3

[task]
labels = ["refund", "card lost", "other"]

[model]
base = "base.gguf"

[data]
traces = ["a.jsonl", "/abs/b.jsonl"]

[review]
decisions = ["decisions.jsonl"]
min_reviewed = { train = 0.5 }

[train]
r = 8
lora_alpha = 16

[eval]
prices = "prices.toml"

[[eval.gate]]
kind = "floor"
min = 0.8

[[eval.gate]]
kind = "floor"
metric = "macro_f1"
min = 0.6

[[eval.gate]]
name = "fast"
kind = "latency"
p95_ms = 50
"#;

fn resolve(sets: &[(&str, &str)]) -> Resolved {
    let sets: Vec<(String, String)> = sets.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    load_text(Path::new("some/folder/recipe.toml"), RECIPE, &sets).unwrap()
}

#[test]
fn the_file_beats_defaults_and_set_beats_the_file() {
    let r = resolve(&[("train.r", "4"), ("train.r", "2"), ("train.lr_scheduler", "cosine"), ("version", "1.2")]);
    assert_eq!(r.recipe.seed, 3);
    assert_eq!(r.recipe.train.r, 2, "the last --set wins");
    assert_eq!(r.recipe.train.lora_alpha, 16.0);
    assert_eq!(r.recipe.train.lr_scheduler, LrScheduler::Cosine);
    assert_eq!(r.recipe.version, "1.2");
    assert_eq!(r.recipe.train.num_epochs, 3);
    assert_eq!(r.recipe.review.min_reviewed.train, 0.5);
    assert_eq!(r.recipe.review.min_reviewed.test, 1.0);
    assert_eq!(r.origins["train.r"], Origin::Set { argument: "train.r=2".into() });
    assert_eq!(
        r.origins["train.lora_alpha"],
        Origin::File { file: "some/folder/recipe.toml".into(), line: 20, column: 14 }
    );
    assert_eq!(r.origins["train.num_epochs"], Origin::Default);
}

#[test]
fn the_trainers_keys_arrive_with_their_values_and_origins() {
    let sets = [
        ("train.lr_scheduler", "warmup_stable_decay"),
        ("train.decay_type", "1-sqrt"),
        ("train.lora_dropout", "0.05"),
        ("train.loraplus_lr_ratio", "16"),
        ("train.eval_steps", "20"),
        ("train.early_stopping_patience", "3"),
        ("train.metric_for_best_model", "accuracy"),
        ("train.load_best_model_at_end", "true"),
        ("train.loss_normalization", "example"),
        ("train.train_on", "all_assistant"),
        ("train.turbo_layers", "10"),
        ("train.turbo_cache_dtype", "bf16"),
        ("train.quantize_base", "nf4"),
        ("train.bnb_4bit_use_double_quant", "true"),
    ];
    let r = resolve(&sets);
    let t = &r.recipe.train;
    assert_eq!((t.lr_scheduler, t.decay_type), (LrScheduler::WarmupStableDecay, DecayType::OneMinusSqrt));
    assert_eq!((t.lora_dropout, t.loraplus_lr_ratio, t.decay_ratio), (0.05, 16.0, 0.2));
    assert_eq!((t.eval_steps, t.early_stopping_patience, t.save_total_limit), (20, 3, 2));
    assert!(t.metric_for_best_model == ValidMetric::Accuracy && t.load_best_model_at_end);
    assert_eq!((t.loss_normalization, t.train_on), (LossNormalization::Example, TrainOn::AllAssistant));
    assert_eq!((t.turbo_layers, t.turbo_cache_dtype), (10, CacheDtype::Bf16));
    assert_eq!((t.quantize_base, t.bnb_4bit_use_double_quant, t.head), (QuantizeBase::Nf4, true, Head::Verbalizer));
    assert!(sets.iter().all(|(key, _)| matches!(r.origins[*key], Origin::Set { .. })));
    let plain = resolve(&[]);
    assert!(sets.iter().all(|(key, _)| plain.origins[*key] == Origin::Default));
}

#[test]
fn the_method_brings_its_own_defaults_and_says_so() {
    let full = resolve(&[("train.method", "full")]);
    assert_eq!(full.recipe.train.method, Method::Full);
    assert_eq!((full.recipe.train.learning_rate, full.recipe.train.weight_decay), (5e-5, 0.01));
    let under = Origin::DefaultUnder { setting: "train.method = full".into() };
    assert_eq!(full.origins["train.learning_rate"], under);
    assert_eq!(under.to_string(), "default under train.method = full");
    assert_eq!(full.origins["train.max_grad_norm"], Origin::Default);
    let own = resolve(&[("train.method", "full"), ("train.learning_rate", "1e-4")]);
    assert_eq!(own.recipe.train.learning_rate, 1e-4);
    assert!(matches!(own.origins["train.learning_rate"], Origin::Set { .. }));
    let lora = resolve(&[]);
    assert_eq!((lora.recipe.train.method, lora.recipe.train.learning_rate), (Method::Lora, 5e-4));
    assert_eq!(lora.origins["train.learning_rate"], Origin::Default);
    // A lock says the values out: it resolves to the same, whatever the defaults are.
    let again = load_text(Path::new("some/folder/recipe.toml"), &full.lock_toml(), &[]).unwrap();
    assert_eq!(again.recipe, full.recipe);
}

#[test]
fn what_only_an_adapter_can_do_is_not_asked_of_all_weights() {
    let sets = |key: &str, value: &str| {
        let sets = [("train.method", "full"), (key, value)].map(|(k, v)| (k.to_string(), v.to_string()));
        load_text(Path::new("recipe.toml"), RECIPE, &sets)
    };
    for (key, value) in [
        ("train.use_dora", "true"),
        ("train.lora_dropout", "0.1"),
        ("train.loraplus_lr_ratio", "16"),
        ("train.turbo_layers", "2"),
    ] {
        let error = sets(key, value).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}` is for adapters")) && error.contains("to \"lora\""), "{error}");
    }
    assert!(sets("train.lora_dropout", "0").is_ok() && sets("train.r", "4").is_ok());
    assert_eq!(sets("train.head", "classification").unwrap().recipe.train.head, Head::Classification);
}

#[test]
fn paths_are_relative_to_the_recipe_except_store_and_key() {
    let r = resolve(&[]).recipe;
    assert_eq!(r.data.traces, [Path::new("some/folder/a.jsonl"), Path::new("/abs/b.jsonl")]);
    assert_eq!(r.review.decisions, [Path::new("some/folder/decisions.jsonl")]);
    assert_eq!(r.eval.prices.as_deref(), Some(Path::new("some/folder/prices.toml")));
    assert_eq!(r.model.base, BaseModel::Path("some/folder/base.gguf".into()));
    assert_eq!(r.promote.store, Path::new(".limbeck/store"));
    assert_eq!(r.sign.key, Path::new(".limbeck/keys/signing.pem"));
    let hub = resolve(&[("model.base", "hf:OWNER/NAME"), ("model.revision", "abc")]).recipe;
    assert_eq!(hub.model.base, BaseModel::Hub("OWNER/NAME".into()));
}

#[test]
fn gates_get_names_and_can_be_overridden_by_name_or_index() {
    let r = resolve(&[("eval.gate.fast.p95_ms", "80"), ("eval.gate.0.min", "0.7")]);
    let gates = &r.recipe.eval.gates;
    let names: Vec<&str> = gates.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["floor", "floor-2", "fast"]);
    assert_eq!(gates[2].rule, GateRule::Latency { p95_ms: 80.0, under_load: false });
    assert!(matches!(gates[0].rule, GateRule::Floor { min, .. } if min == 0.7));
    assert_eq!(r.origins["eval.gate.fast.p95_ms"], Origin::Set { argument: "eval.gate.fast.p95_ms=80".into() });
    assert!(resolve(&[("eval.gate", "[]")]).recipe.eval.gates.is_empty());
}

#[test]
fn a_lock_resolves_to_the_same_recipe_and_ignores_comments() {
    let r = resolve(&[("train.learning_rate", "3e-4"), ("task.system", "Answer with a \"label\".\nNothing else.")]);
    let lock = r.lock_toml();
    let again = load_text(Path::new("some/folder/recipe.toml"), &lock, &[]).unwrap_or_else(|e| panic!("{e}\n{lock}"));
    assert_eq!(again.recipe, r.recipe);
    let commented = format!("# one more line\n{RECIPE}");
    let commented = load_text(Path::new("elsewhere/recipe.toml"), &commented, &[]).unwrap();
    assert_eq!(commented.lock_toml(), resolve(&[]).lock_toml());
    insta::assert_snapshot!(lock);
}

#[test]
fn the_channel_is_honoured_and_has_no_part_in_what_is_made() {
    let (staging, production) = (resolve(&[]), resolve(&[("promote.channel", "production")]));
    assert_eq!(production.recipe.promote.channel, "production");
    assert_eq!(production.lock_toml(), staging.lock_toml());
    for stage in Stage::ALL {
        let same = settings(&production, stage) == settings(&staging, stage);
        assert_eq!(same, stage != Stage::Promote, "{}", stage.name());
    }
    // Anything else is another run.
    assert_ne!(resolve(&[("promote.store", "elsewhere")]).lock_toml(), staging.lock_toml());
    // Locks of earlier versions have it, and are read.
    let old = staging.lock_toml().replace("[promote]\n", "[promote]\nchannel = \"production\" # --set\n");
    let old = load_text(Path::new("recipe.toml"), &old, &[]).unwrap();
    assert_eq!(old.recipe.promote.channel, "production");
}

#[test]
fn a_stage_depends_on_its_own_settings_only() {
    let plain = resolve(&[]);
    let faster = resolve(&[("train.num_epochs", "1")]);
    for stage in Stage::ALL {
        let same = settings(&plain, stage) == settings(&faster, stage);
        assert_eq!(same, !matches!(stage, Stage::Train | Stage::Package), "{}", stage.name());
    }
    let stricter = resolve(&[("eval.gate.fast.p95_ms", "10")]);
    assert_eq!(settings(&plain, Stage::Train), settings(&stricter, Stage::Train));
    assert_ne!(settings(&plain, Stage::Eval), settings(&stricter, Stage::Eval));
}

#[test]
fn the_template_is_a_recipe_and_shows_every_default() {
    let labels = ["a".to_owned(), "b \"quoted\"".to_owned()];
    let text = template("fresh", Asked::Labels(&labels));
    let r = load_text(Path::new("recipe.toml"), &text, &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(r.recipe.task.labels, labels);
    assert_eq!(r.recipe.eval.gates.len(), 3);
    // What is commented out is exactly the default: uncommenting it changes nothing but the origins.
    let open: String = text
        .lines()
        .map(|l| match l.strip_prefix("# ") {
            Some(rest)
                if rest.split_once(" = ").is_some_and(|(key, v)| !key.contains(' ') && !v.starts_with("\"…\"")) =>
            {
                format!("{rest}\n")
            }
            _ => format!("{l}\n"),
        })
        .collect();
    let opened = load_text(Path::new("recipe.toml"), &open, &[]).unwrap_or_else(|e| panic!("{e}\n{open}"));
    assert_eq!(opened.recipe, r.recipe);
    assert!(
        opened.origins.iter().all(|(k, o)| *o != Origin::Default || k.starts_with("eval.gate.")),
        "{:?}",
        opened.origins
    );
}

#[test]
fn a_folder_stands_for_its_recipe() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("recipe.toml"), RECIPE).unwrap();
    let r = load(dir.path(), &[]).unwrap();
    assert_eq!(r.path, dir.path().join("recipe.toml"));
    assert_eq!(r.recipe.data.traces[0], dir.path().join("a.jsonl"));
}

#[test]
fn settings_that_do_not_go_together_are_refused_at_both() {
    for (sets, because, hint) in [
        (
            [("train.head", "classification"), ("train.train_on", "all_assistant")],
            "a classification head answers the last turn only",
            "leave `train.train_on` out",
        ),
        (
            [("train.quantize_base", "int8"), ("train.bnb_4bit_use_double_quant", "true")],
            "is about the scales of nf4",
            "set `train.quantize_base` to \"nf4\"",
        ),
        (
            [("train.head", "classification"), ("quantize.recover_epochs", "2")],
            "a classification head spells no answer",
            "set quantize.recover_epochs to 0",
        ),
    ] {
        let sets = sets.map(|(k, v)| (k.to_string(), v.to_string()));
        let said = format!("{:?}", load_text(Path::new("recipe.toml"), RECIPE, &sets).unwrap_err());
        assert!(said.contains(because) || said.contains(&because.replace('"', "\\\"")), "{said}");
        assert!(said.contains(hint) || said.contains(&hint.replace('"', "\\\"")), "{said}");
    }
    assert_eq!(resolve(&[("train.head", "classification")]).recipe.train.head, Head::Classification);
}

#[test]
fn arms_are_read_like_gates_and_a_recipe_without_them_is_locked_as_before() {
    let arms = "\n[[eval.arm]]\nname = \"gpt-4.1\"\nkind = \"endpoint\"\nurl = \"https://api.example.com/v1\"\nmodel = \"m\"\n\
                label_codes = true\n\n[[eval.arm]]\nkind = \"few_shot\"\nshots = 3\n\n\
                [[eval.gate]]\nname = \"live\"\nkind = \"improvement\"\nover = \"gpt-4.1\"\nmin = 0.0\n";
    let text = RECIPE.to_owned() + arms;
    let sets =
        [("eval.arm.gpt-4.1.samples".to_owned(), "5".to_owned()), ("eval.arm.1.shots".to_owned(), "4".to_owned())];
    let warm = ("eval.arm.gpt-4.1.temperature".to_owned(), "0.7".to_owned());
    let sets = [&sets[..], &[warm]].concat();
    let r = load_text(Path::new("recipe.toml"), &text, &sets).unwrap();
    let [live, shown] = r.recipe.eval.arms.as_slice() else { panic!("{:?}", r.recipe.eval.arms) };
    assert_eq!((live.name.as_str(), shown.name.as_str()), ("gpt-4.1", "few_shot"));
    let limbeck_recipes::ArmKind::Endpoint(endpoint) = &live.kind else { panic!() };
    assert_eq!((endpoint.samples, endpoint.temperature, endpoint.concurrency, endpoint.label_codes), (5, 0.7, 4, true));
    assert!(matches!(shown.kind, limbeck_recipes::ArmKind::FewShot { shots: 4, .. }));
    let lock = r.lock_toml();
    assert!(lock.contains("\n[[eval.arm]]\nname = \"gpt-4.1\" # recipe\n"), "{lock}");
    assert_eq!(load_text(Path::new("recipe.toml"), &lock, &[]).unwrap().recipe, r.recipe);
    assert!(!resolve(&[]).lock_toml().contains("eval.arm"));
}
