//! A model file of made-up weights with the tokenizer of a Hugging Face folder, as limbeck writes it, for
//! tests/conformance/sentence_piece.sh: `tokenizer-file FOLDER NAME OUT.gguf`.

#[path = "../../tests/fixtures/tiny_base.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "a fixture of tests")]
mod tiny_base;

use limbeck_model::gguf::GgmlType;
use limbeck_model::tokenizer::ChatTokenizer;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, name, out] = args.as_slice() else { return Err("usage: tokenizer-file FOLDER NAME OUT.gguf".into()) };
    let tokenizer = ChatTokenizer::open(Path::new(folder))?;
    tiny_base::write_with(Path::new(out), 1, GgmlType::F32, 1, name, tokenizer.gguf_metadata());
    Ok(())
}
