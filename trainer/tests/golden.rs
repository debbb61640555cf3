//! Schedules, LoRA+ and scalings against transformers and PEFT; `tests/reference/trainer_golden.py` made the values.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_model::adapter::AdapterConfig;
use limbeck_trainer::optimizer::{AdamWSettings, Group, Moments, adamw, update_of};
use limbeck_trainer::schedule::{Decay, Schedule, Scheduler};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Warm-up is one step ahead of transformers', whose first step has a rate of zero; after it the two are the same.
#[test]
fn schedules_are_those_of_transformers() {
    let golden = &golden()["schedules"];
    let of = |key: &str| golden[key].as_u64().unwrap();
    let (total_steps, warmup_steps, decay_steps) = (of("total_steps"), of("warmup_steps"), of("decay_steps"));
    for (name, kind, decay) in [
        ("constant", Scheduler::Constant, Decay::Cosine),
        ("linear", Scheduler::Linear, Decay::Cosine),
        ("cosine", Scheduler::Cosine, Decay::Cosine),
        ("wsd cosine", Scheduler::WarmupStableDecay, Decay::Cosine),
        ("wsd linear", Scheduler::WarmupStableDecay, Decay::Linear),
        ("wsd 1-sqrt", Scheduler::WarmupStableDecay, Decay::OneMinusSqrt),
    ] {
        let schedule = Schedule { kind, peak: 1.0, warmup_steps, decay_steps, decay, total_steps };
        let want = floats(&golden["factors"][name]);
        for step in 0..total_steps + 1 {
            let theirs = if step < warmup_steps { want[step as usize + 1] } else { want[step as usize] };
            assert!((schedule.rate(step) - theirs).abs() < 1e-12, "{name}, step {step}: {theirs}");
        }
    }
}

#[test]
fn loraplus_groups_and_steps_are_those_of_peft() {
    let golden = &golden()["loraplus"];
    let of = |key: &str| golden[key].as_f64().unwrap();
    let settings = AdamWSettings { weight_decay: of("weight_decay"), ..AdamWSettings::default() };
    for factor in ["lora_A", "lora_B", "lora_magnitude_vector"] {
        let case = &golden["factors"][factor];
        let name = format!("model.layers.0.self_attn.q_proj.{factor}");
        let group = Group::of(&name, of("learning_rate"), of("loraplus_lr_ratio"), settings.weight_decay);
        assert_eq!(group.learning_rate, case["group_lr"].as_f64().unwrap());
        assert_eq!(group.weight_decay, case["group_weight_decay"].as_f64().unwrap());
        let single = |value: &Value| -> Vec<f32> { floats(value).iter().map(|x| *x as f32).collect() };
        let mut values = single(&case["start"]);
        let mut moments = Moments::zeros(values.len());
        for (i, grads) in case["grads"].as_array().unwrap().iter().enumerate() {
            let by = update_of(&settings, &group, i as u64 + 1, 1.0);
            adamw(&by, &mut values, &single(grads), &mut moments);
        }
        for (ours, theirs) in values.iter().zip(single(&case["end"])) {
            let tolerance = 1e-6 + 2e-6 * group.learning_rate as f32;
            assert!((ours - theirs).abs() < tolerance, "{factor}: {ours} against {theirs}");
        }
    }
}

#[test]
fn scalings_are_those_of_peft() {
    for case in golden()["scalings"].as_array().unwrap() {
        let (r, alpha) = (case["r"].as_u64().unwrap() as usize, case["lora_alpha"].as_f64().unwrap() as f32);
        let config = AdapterConfig::lora("base", r, alpha, &[], case["use_rslora"].as_bool().unwrap());
        let want = case["scaling"].as_f64().unwrap() as f32;
        assert!((config.scaling() - want).abs() < 1e-6 * want, "{case}: {}", config.scaling());
    }
}
