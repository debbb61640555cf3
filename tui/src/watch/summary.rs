//! A run's summary for scripts: what the dashboard shows, as JSON. Names and units are the journal's.

use super::curve::EMA;
use super::state::{Life, StageState, Valid, Watched};
use serde_json::{Value, json};

/// The run as `limbeck watch --json` prints it; `now_ms` (since 1970 UTC) matters for a live run only.
pub fn summary(run: &Watched, life: Life, now_ms: i64) -> Value {
    let stages: Vec<Value> = run
        .shown_stages()
        .map(|(stage, line)| {
            json!({
                "stage": stage,
                "state": stage_word(line.state, life),
                "wall_ms": line.wall_ms,
                "summary": line.summary,
            })
        })
        .collect();
    let arms: Vec<Value> = run
        .arms
        .iter()
        .map(|a| json!({"arm": a.arm, "n": a.n, "accuracy": a.accuracy, "p50_ms": a.p50_ms, "p95_ms": a.p95_ms}))
        .collect();
    let gates: Vec<Value> =
        run.gates.iter().map(|g| json!({"gate": g.gate, "verdict": g.verdict, "reason": g.reason})).collect();
    json!({
        "run": run.run,
        "recipe": run.recipe,
        "version": run.version,
        "device": run.device,
        "state": life.name(),
        "exit_code": run.finished.map(|(code, _)| code),
        "wall_ms": run.wall_ms(life, now_ms),
        "resume": (life == Life::Interrupted).then(|| run.resume()),
        "stages": stages,
        "train": training(run),
        "peak_rss_bytes": run.peak_rss_bytes,
        "arms": arms,
        "gates": gates,
        "warnings": run.warnings,
        "illegible_lines": run.bad_lines,
    })
}

fn training(run: &Watched) -> Value {
    let Some(s) = run.step else { return Value::Null };
    let losses: Vec<Value> = run.curve.points().map(|p| json!([p.step, p.loss])).collect();
    let valid: Vec<Value> = run
        .valid
        .iter()
        .map(|Valid { step, loss, accuracy }| json!({"step": step, "loss": loss, "accuracy": accuracy}))
        .collect();
    let checkpoints: Vec<Value> =
        run.checkpoints.iter().map(|(step, path)| json!({"step": step, "path": path})).collect();
    json!({
        "step": s.step,
        "total": s.total,
        "epoch": s.epoch,
        "loss": s.loss,
        "loss_ema": run.curve.smoothed().next_back().map(|(_, loss)| loss),
        "ema": EMA,
        "learning_rate": s.learning_rate,
        "grad_norm": s.grad_norm,
        "tokens_per_s": s.tokens_per_s,
        "eta_s": s.eta_s,
        "losses": losses,
        "valid": valid,
        "checkpoints": checkpoints,
    })
}

/// What is said of a stage, which depends on whether the run still goes on.
pub fn stage_word(state: StageState, life: Life) -> &'static str {
    match (state, life) {
        (StageState::Pending, Life::Live) => "waiting",
        (StageState::Pending, _) => "not reached",
        (StageState::Running, Life::Live) => "running",
        (StageState::Running, _) => "stopped",
        (StageState::Cached, _) => "cached",
        (StageState::Done, _) => "done",
    }
}
