//! The rows of a Parquet file, a few thousand in memory at a time. Columns of text, numbers, truth values and times are read;
//! a nested column is left out, since what it holds is better exported as JSON text.

use super::source::Record;
use crate::Error;
use polars::prelude::*;
use polars_io::SerReader;
use polars_io::parquet::read::{ParallelStrategy, ParquetReader};
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Rows that are decoded at a time; a row group of fewer ends a batch too.
const BATCH_ROWS: usize = 1024;

pub struct Rows {
    path: PathBuf,
    columns: Vec<String>,
    /// Rows of each row group that was not begun.
    groups: std::collections::VecDeque<usize>,
    /// Where the group under way begins, how many rows it has, and how many of them were given.
    group: (usize, usize, usize),
    batch: DataFrame,
    /// Of the batch.
    next: usize,
    /// Of the file.
    row: u64,
    rows: u64,
    bytes: u64,
}

impl Rows {
    /// # Errors
    /// When the file is no Parquet, or has no column that can be read.
    pub fn open(path: &Path) -> Result<Rows, Error> {
        let cannot = |e| Error::table("open the traces", path, e);
        let file = File::open(path).map_err(|e| Error::io("open the traces", path, e))?;
        let bytes = file.metadata().map(|m| m.len()).unwrap_or(0);
        let mut reader = ParquetReader::new(file);
        let schema = reader.schema().map_err(cannot)?;
        let metadata = reader.get_metadata().map_err(cannot)?;
        let groups: std::collections::VecDeque<usize> = metadata.row_groups.iter().map(|g| g.num_rows()).collect();
        let readable = |dtype: &ArrowDataType| {
            !matches!(
                dtype,
                ArrowDataType::Struct(_)
                    | ArrowDataType::List(_)
                    | ArrowDataType::LargeList(_)
                    | ArrowDataType::FixedSizeList(..)
                    | ArrowDataType::Map(..)
                    | ArrowDataType::Dictionary(..)
                    | ArrowDataType::Binary
                    | ArrowDataType::LargeBinary
                    | ArrowDataType::BinaryView
                    | ArrowDataType::FixedSizeBinary(_)
                    | ArrowDataType::Decimal(..)
                    | ArrowDataType::Decimal256(..)
            )
        };
        let columns: Vec<String> =
            schema.iter_values().filter(|f| readable(&f.dtype)).map(|f| f.name.to_string()).collect();
        if columns.is_empty() {
            let why = format!("{} has no column of text or numbers; export messages as JSON text", path.display());
            return Err(Error::Source { why });
        }
        Ok(Rows {
            path: path.to_path_buf(),
            columns,
            rows: groups.iter().sum::<usize>() as u64,
            groups,
            group: (0, 0, 0),
            batch: DataFrame::empty(),
            next: 0,
            row: 0,
            bytes,
        })
    }

    /// How much of the file was read, by rows.
    pub fn bytes(&self) -> u64 {
        (self.bytes as u128 * u128::from(self.row) / u128::from(self.rows.max(1))) as u64
    }

    /// # Errors
    /// When a row group can't be decoded.
    pub fn next_row(&mut self) -> Result<Option<Record<'_>>, Error> {
        while self.next >= self.batch.height() {
            let (begin, rows, given) = self.group;
            if given >= rows {
                let Some(rows) = self.groups.pop_front() else { return Ok(None) };
                self.group = (begin + self.group.1, rows, 0);
                continue;
            }
            let take = BATCH_ROWS.min(rows - given);
            self.batch = self.read(begin + given, take)?;
            self.next = 0;
            self.group.2 += take;
        }
        let mut cells = Map::new();
        for column in self.batch.columns() {
            let cell = column.get(self.next).map(|v| cell(&v)).unwrap_or(Value::Null);
            if !cell.is_null() {
                cells.insert(column.name().to_string(), cell);
            }
        }
        self.next += 1;
        self.row += 1;
        Ok(Some(Record::Row { line: self.row, value: Value::Object(cells) }))
    }

    fn read(&self, from: usize, rows: usize) -> Result<DataFrame, Error> {
        let file = File::open(&self.path).map_err(|e| Error::io("open the traces", &self.path, e))?;
        ParquetReader::new(file)
            .read_parallel(ParallelStrategy::None)
            .with_columns(Some(self.columns.clone()))
            .with_slice(Some((from, rows)))
            .finish()
            .map_err(|e| Error::table("read the traces", &self.path, e))
    }
}

fn cell(value: &AnyValue<'_>) -> Value {
    match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(b) => Value::Bool(*b),
        AnyValue::String(s) => Value::String((*s).to_string()),
        AnyValue::StringOwned(s) => Value::String(s.to_string()),
        AnyValue::UInt8(n) => Value::from(*n),
        AnyValue::UInt16(n) => Value::from(*n),
        AnyValue::UInt32(n) => Value::from(*n),
        AnyValue::UInt64(n) => Value::from(*n),
        AnyValue::Int8(n) => Value::from(*n),
        AnyValue::Int16(n) => Value::from(*n),
        AnyValue::Int32(n) => Value::from(*n),
        AnyValue::Int64(n) => Value::from(*n),
        AnyValue::Float32(x) => Number::from_f64(f64::from(*x)).map_or(Value::Null, Value::Number),
        AnyValue::Float64(x) => Number::from_f64(*x).map_or(Value::Null, Value::Number),
        other => match other.extract::<i64>() {
            // Times come as counts of their unit, told apart by size.
            Some(n) => Value::from(n),
            None => Value::String(other.to_string()),
        },
    }
}
