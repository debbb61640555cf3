//! The readers of what strangers send, under libFuzzer: `LIMBECK_FUZZ` names the reader, `LIMBECK_FUZZ_DIR` a folder for files,
//! `LIMBECK_FUZZ_SEEDS=DIR` writes valid inputs to begin with instead. A reader may refuse anything and panic at nothing; what it takes must hold (see each).
#![no_main]
#![allow(dead_code, reason = "the readers' files come whole")]

#[path = "../../tests/attacks/gguf.rs"]
mod attacks;
#[path = "../../model/src/error.rs"]
mod error;
#[path = "../../model/src/gguf/mod.rs"]
#[allow(unused_imports, reason = "the readers' files come whole")]
mod gguf;
#[path = "../../artifact/tests/common/manifest.rs"]
mod manifest;
mod readers;
#[path = "../../model/src/safetensor.rs"]
mod safetensor;

use libfuzzer_sys::fuzz_target;
use readers::Reader;
use std::sync::OnceLock;

static READER: OnceLock<Reader> = OnceLock::new();

fuzz_target!(init: {
    let name = std::env::var("LIMBECK_FUZZ").expect("LIMBECK_FUZZ names a reader");
    let reader = Reader::new(&name);
    if let Ok(dir) = std::env::var("LIMBECK_FUZZ_SEEDS") {
        reader.write_seeds(std::path::Path::new(&dir));
        std::process::exit(0);
    }
    let _ = READER.set(reader);
}, |data: &[u8]| {
    if let Some(reader) = READER.get() {
        reader.read(data);
    }
});
