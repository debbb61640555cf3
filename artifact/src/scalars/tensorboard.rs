//! Scalars as a TensorBoard event file: TFRecords (length, masked CRC-32C, data, masked CRC-32C) of `Event` protobufs
//! with simple values. Written by hand, as the six fields in use do not pay for a protobuf compiler.

use super::{Row, ScalarSink};
use crate::journal::unix_ms;
use std::io::{self, Write};

/// A writer of one event file; every row is one whole `write` call, so that a kill tears at most the last record, which
/// readers pass over.
pub struct TensorBoard<W> {
    out: W,
}

impl<W: Write> TensorBoard<W> {
    /// Begins an event file at a time as the journal writes it.
    ///
    /// # Errors
    /// When the first record can't be written.
    pub fn begin(mut out: W, at: &str) -> io::Result<TensorBoard<W>> {
        let mut event = Proto::time_and_step(unix_ms(at).unwrap_or(0), 0);
        event.bytes(3, b"brain.Event:2");
        out.write_all(&record(&event.0))?;
        Ok(TensorBoard { out })
    }

    /// What the rows were written to.
    pub fn into_inner(self) -> W {
        self.out
    }
}

impl<W: Write + Send> ScalarSink for TensorBoard<W> {
    fn write(&mut self, row: &Row) -> io::Result<()> {
        let mut records = Vec::new();
        if row.restarted {
            // SessionLog.START: readers drop what they have of this step and later ones.
            let mut event = Proto::time_and_step(row.unix_ms, row.step);
            event.bytes(7, &[0x08, 0x01]);
            records.extend(record(&event.0));
        }
        let mut summary = Proto::default();
        for (tag, value) in &row.values {
            let mut entry = Proto::default();
            entry.bytes(1, tag.as_bytes());
            entry.f32(2, *value as f32);
            summary.bytes(1, &entry.0);
        }
        let mut event = Proto::time_and_step(row.unix_ms, row.step);
        event.bytes(5, &summary.0);
        records.extend(record(&event.0));
        self.out.write_all(&records)?;
        self.out.flush()
    }
}

/// The name that TensorBoard looks for, of a file that is begun `at`; `of` tells apart the writers of one second.
pub fn event_file_name(at: &str, of: &str) -> String {
    format!("events.out.tfevents.{:010}.{of}", unix_ms(at).unwrap_or(0) / 1000)
}

/// A protobuf message in the making; proto3 leaves out what is zero.
#[derive(Default)]
struct Proto(Vec<u8>);

impl Proto {
    fn time_and_step(unix_ms: i64, step: u64) -> Proto {
        let mut event = Proto::default();
        let seconds = unix_ms as f64 / 1000.0;
        if seconds != 0.0 {
            event.varint(1 << 3 | 1);
            event.0.extend(seconds.to_le_bytes());
        }
        if step != 0 {
            event.varint(2 << 3);
            event.varint(step);
        }
        event
    }

    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn f32(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts = [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()];
    parts.concat()
}

/// TFRecord's mask: a CRC of data that holds CRCs is a poor one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected polynomial 0x82f63b78 (RFC 3720, appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0u32, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/reference/tensorboard_golden.py` with TensorBoard's own classes; torch's SummaryWriter gives the
    /// same bytes for one value a row.
    const GOLDEN: &[u8] = include_bytes!("../../tests/golden/tensorboard.tfevents");

    #[test]
    fn rfc_3720s_examples_of_the_checksum() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_file_is_tensorboards_own_bytes() {
        let row = |step, unix_ms, values: &[(&str, f64)], restarted| Row {
            step,
            at: String::new(),
            unix_ms,
            values: values.iter().map(|(tag, value)| (tag.to_string(), *value)).collect(),
            restarted,
        };
        let mut board = TensorBoard::begin(Vec::new(), "2026-01-02T03:04:05.678Z").unwrap();
        for row in [
            row(0, 1_767_323_046_000, &[("zero", 0.0)], false),
            row(1, 1_767_323_046_250, &[("train/loss", 2.5), ("train/learning_rate", 1e-3)], false),
            row(300, 1_767_323_047_000, &[("train/loss", -0.1), ("system/peak_rss_bytes", 5e9)], false),
            row(129, 1_767_323_048_000, &[("train/loss", f64::INFINITY), ("ünïcode", 1.0 / 3.0)], true),
        ] {
            board.write(&row).unwrap();
        }
        let ours = board.into_inner();
        assert!(ours == GOLDEN, "{} bytes of ours against {}", ours.len(), GOLDEN.len());
    }

    #[test]
    fn files_are_named_by_their_second() {
        assert_eq!(
            event_file_name("2026-01-02T03:04:05.678Z", "limbeck.7"),
            "events.out.tfevents.1767323045.limbeck.7"
        );
    }
}
