//! The numbers of a run that other tools plot: events become rows of named values at a step, and a sink writes each row
//! in its own format. A live run and the journal of a finished one go through the same sinks.

mod jsonl;
mod tensorboard;

pub use jsonl::{Jsonl, jsonl_line};
pub use tensorboard::{TensorBoard, event_file_name};

use crate::event::{Event, EventKind};
use crate::journal::unix_ms;
use std::io;

/// Values that belong to one training step.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The step that training had reached.
    pub step: u64,
    /// RFC 3339, as the journal has it.
    pub at: String,
    /// The same in milliseconds since 1970 UTC.
    pub unix_ms: i64,
    /// Name to value, such as `train/loss`; a value may be NaN.
    pub values: Vec<(String, f64)>,
    /// Training went back to this step, after a kill or for another plan: what was written for it and for later steps no
    /// longer counts.
    pub restarted: bool,
}

/// Somewhere that rows go.
pub trait ScalarSink: Send {
    /// # Errors
    /// Where the row can't be written.
    fn write(&mut self, row: &Row) -> io::Result<()>;
}

/// Makes rows of a run's events; feed it every event in order.
#[derive(Clone, Debug, Default)]
pub struct Scalars {
    /// The newest step, and whether it was of this session.
    step: u64,
    begun: bool,
}

impl Scalars {
    /// The row of one event; most events have none.
    pub fn row(&mut self, event: &Event) -> Option<Row> {
        let mut restarted = false;
        let values: Vec<(&str, f64)> = match &event.kind {
            EventKind::RunStarted { .. } => {
                self.begun = false;
                return None;
            }
            EventKind::TrainStep { step, epoch, loss, learning_rate, grad_norm, tokens_per_s, .. } => {
                // The first step of a session that is not the training's first follows on a checkpoint.
                restarted = *step <= self.step || (!self.begun && *step > 1);
                (self.step, self.begun) = (*step, true);
                vec![
                    ("train/loss", *loss),
                    ("train/learning_rate", *learning_rate),
                    ("train/grad_norm", *grad_norm),
                    ("train/epoch", *epoch),
                    ("train/tokens_per_s", *tokens_per_s),
                ]
            }
            EventKind::Validated { loss, accuracy, .. } => vec![("valid/loss", *loss), ("valid/accuracy", *accuracy)],
            EventKind::Resources { peak_rss_bytes } => vec![("system/peak_rss_bytes", *peak_rss_bytes as f64)],
            EventKind::ArmScored { arm, accuracy, p50_ms, p95_ms, .. } => {
                let tag = |what: &str| format!("eval/{what}/{}", crate::untrusted::visible_line(arm));
                let values = vec![(tag("accuracy"), *accuracy), (tag("p50_ms"), *p50_ms), (tag("p95_ms"), *p95_ms)];
                return self.at(event, self.step, values, false);
            }
            _ => return None,
        };
        let step = if let EventKind::Validated { step, .. } = event.kind { step } else { self.step };
        self.at(event, step, values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(), restarted)
    }

    fn at(&self, event: &Event, step: u64, values: Vec<(String, f64)>, restarted: bool) -> Option<Row> {
        Some(Row { step, at: event.at.clone(), unix_ms: unix_ms(&event.at)?, values, restarted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Stage;

    fn event(kind: EventKind) -> Event {
        Event { run: "r".into(), seq: 0, at: "2026-01-02T03:04:05.678Z".into(), stage: Some(Stage::Train), kind }
    }

    fn step(step: u64) -> EventKind {
        let (loss, learning_rate, grad_norm) = (2.0 / step as f64, 1e-3, 0.5);
        EventKind::TrainStep {
            step,
            total: 9,
            epoch: 0.1,
            loss,
            learning_rate,
            grad_norm,
            tokens_per_s: 9.0,
            eta_s: 1.0,
        }
    }

    fn started() -> EventKind {
        EventKind::RunStarted { recipe: "a".into(), version: "b".into(), device: "cpu".into(), arguments: Vec::new() }
    }

    #[test]
    fn events_become_rows_and_a_resumed_training_says_where_it_went_back_to() {
        let mut scalars = Scalars::default();
        let arm = EventKind::ArmScored { arm: "Q8_0".into(), n: 3, accuracy: 0.5, p50_ms: 1.0, p95_ms: 2.0 };
        let story = [
            started(),
            step(1),
            step(2),
            step(3),
            started(),
            step(3),
            EventKind::Resources { peak_rss_bytes: 7 },
            EventKind::Validated { step: 3, loss: 1.0, accuracy: 0.25 },
            arm,
            EventKind::Note { text: "no number".into() },
        ];
        let rows: Vec<Row> = story.into_iter().filter_map(|kind| scalars.row(&event(kind))).collect();
        let told: Vec<_> = rows.iter().map(|r| (r.step, r.restarted, r.values[0].0.as_str(), r.values[0].1)).collect();
        assert_eq!(
            told,
            [
                (1, false, "train/loss", 2.0),
                (2, false, "train/loss", 1.0),
                (3, false, "train/loss", 2.0 / 3.0),
                (3, true, "train/loss", 2.0 / 3.0),
                (3, false, "system/peak_rss_bytes", 7.0),
                (3, false, "valid/loss", 1.0),
                (3, false, "eval/accuracy/Q8_0", 0.5),
            ]
        );
        assert_eq!(rows[0].unix_ms, 1_767_323_045_678);
    }

    #[test]
    fn a_session_that_sees_only_what_follows_a_checkpoint_says_so() {
        let mut scalars = Scalars::default();
        assert_eq!(scalars.row(&event(started())), None);
        assert!(scalars.row(&event(step(21))).is_some_and(|row| row.restarted));
        assert!(scalars.row(&event(step(22))).is_some_and(|row| !row.restarted));
    }
}
