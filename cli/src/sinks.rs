//! Where a training's numbers go besides the journal, when asked: TensorBoard event files and JSON lines. A live run and
//! the journal of a finished one go through the same writers.

use crate::args::ScalarArgs;
use limbeck_artifact::event::Event;
use limbeck_artifact::files::{create_dirs, write_atomic};
use limbeck_artifact::scalars::{Jsonl, Row, ScalarSink, Scalars, TensorBoard, event_file_name, jsonl_line};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// The sinks that were asked for, of the run called `name`.
pub fn open(args: &ScalarArgs, name: &str) -> Vec<Box<dyn ScalarSink>> {
    let mut sinks: Vec<Box<dyn ScalarSink>> = Vec::new();
    if let Some(dir) = &args.tensorboard {
        sinks.push(Box::new(EventFile { dir: dir.join(name), board: None }));
    }
    if let Some(path) = &args.metrics {
        sinks.push(Box::new(Jsonl::new(path)));
    }
    sinks
}

/// An event file of this process, made with the first row.
struct EventFile {
    dir: PathBuf,
    board: Option<TensorBoard<File>>,
}

impl ScalarSink for EventFile {
    fn write(&mut self, row: &Row) -> io::Result<()> {
        if self.board.is_none() {
            create_dirs(&self.dir)?;
            let path = self.dir.join(event_file_name(&row.at, &format!("limbeck.{}", std::process::id())));
            let file = OpenOptions::new().create_new(true).append(true).open(path)?;
            self.board = Some(TensorBoard::begin(file, &row.at)?);
        }
        self.board.as_mut().map_or(Ok(()), |board| board.write(row))
    }
}

/// Writes what the events of a journal hold as one event file, `DIR/NAME/events…`; the same journal gives the same file.
///
/// # Errors
/// When it can't be written.
pub fn export_tensorboard(events: &[Event], dir: &Path, name: &str) -> io::Result<PathBuf> {
    let rows = rows(events);
    let begun = rows.first().map_or("", |row| row.at.as_str());
    let mut board = TensorBoard::begin(Vec::new(), begun)?;
    for row in &rows {
        board.write(row)?;
    }
    let path = dir.join(name).join(event_file_name(begun, "limbeck"));
    write_atomic(&path, &board.into_inner())?;
    Ok(path)
}

/// The same as JSON lines, in one file.
///
/// # Errors
/// When it can't be written.
pub fn export_metrics(events: &[Event], path: &Path) -> io::Result<()> {
    let lines: String = rows(events).iter().map(|row| jsonl_line(row) + "\n").collect();
    write_atomic(path, lines.as_bytes())
}

fn rows(events: &[Event]) -> Vec<Row> {
    let mut scalars = Scalars::default();
    events.iter().filter_map(|event| scalars.row(event)).collect()
}
