//! Writes `traces.jsonl` and `decisions.jsonl` of simulated calls, made from Banking77:
//! `cargo run --release -p limbeck-data-curation --example simulate-traces -- --source DIR/banking77 --out DIR
//! [--classes 12] [--skip 0] [--per-class 87] [--customers 160] [--seed 17]`. 0 classes or 0 a class take all; the first
//! `--skip` categories in byte order are left out. `--bookings recipes/booking-extractor/schema.json` makes traces of an
//! extraction out of restaurant8k instead. With `--count N` no source is needed: N traces of made-up words, and
//! `pairs.jsonl` with the near-duplicates that were planted.

use limbeck_artifact::files::{AtomicFile, write_atomic};
use limbeck_data_curation::simulate::booking::{BookingPlan, read_restaurant8k, simulate_bookings};
use limbeck_data_curation::simulate::bulk::{BulkPlan, bulk};
use limbeck_data_curation::simulate::{SimulatePlan, read_banking77, simulate};
use std::collections::BTreeSet;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let mut plan = SimulatePlan::default();
    let (mut source, mut out, mut count, mut schema, mut skip) = (None, None::<PathBuf>, None, None, 0);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--source" => source = Some(PathBuf::from(value)),
            "--out" => out = Some(PathBuf::from(value)),
            "--count" => count = Some(value.parse()?),
            "--classes" => plan.classes = value.parse()?,
            "--skip" => skip = value.parse()?,
            "--per-class" => plan.per_class = value.parse()?,
            "--customers" => plan.customers = value.parse()?,
            "--bookings" => schema = Some(PathBuf::from(value)),
            "--seed" => plan.seed = value.parse()?,
            _ => return Err(format!("there is no {name}; see the first lines of this file").into()),
        }
    }
    if let (Some(count), Some(out)) = (count, &out) {
        let file = |name: &str| AtomicFile::create(&out.join(name));
        let mut files = [file("traces.jsonl")?, file("pairs.jsonl")?, file("decisions.jsonl")?];
        let [traces, pairs, decisions] = &mut files;
        bulk(&BulkPlan { count, seed: plan.seed }, traces, pairs, decisions)?;
        return Ok(files.into_iter().try_for_each(AtomicFile::commit)?);
    }
    let source = source.ok_or("--source names the folder with Banking77's train.csv and test.csv, or restaurant8k's train_0.json and test.json")?;
    let out = out.ok_or("--out names the folder to write to")?;
    if let Some(schema) = schema {
        let plan = BookingPlan { seed: plan.seed, ..BookingPlan::default() };
        let schema = std::fs::read_to_string(schema)?;
        let [traces, decisions] = simulate_bookings(&plan, &read_restaurant8k(&source)?, &schema)?;
        write_atomic(&out.join("traces.jsonl"), traces.as_bytes())?;
        write_atomic(&out.join("decisions.jsonl"), decisions.as_bytes())?;
        return Ok(());
    }
    let mut source = read_banking77(&source)?;
    let categories: BTreeSet<String> = source.iter().map(|l| l.category.clone()).collect();
    let skipped: BTreeSet<String> = categories.into_iter().take(skip).collect();
    source.retain(|l| !skipped.contains(&l.category));
    let made = simulate(&plan, &source)?;
    write_atomic(&out.join("traces.jsonl"), made.traces.as_bytes())?;
    write_atomic(&out.join("decisions.jsonl"), made.decisions.as_bytes())?;
    Ok(())
}
