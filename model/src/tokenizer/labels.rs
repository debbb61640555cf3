//! Labels as tokens of their own. A classification head goes into a served file as further rows of the model's head, a token a
//! label: the classes' logits are then those of tokens, which every server gives.

use super::byte_level::letter;
use super::json::SPACE;

/// What stands around a label. No text becomes such a token: it is a normal one that no merge makes.
const AROUND: [&str; 2] = ["<|label:", "|>"];

/// A label's token as a vocabulary spells it.
pub fn label_token(label: &str, byte_level: bool) -> String {
    let text = format!("{}{label}{}", AROUND[0], AROUND[1]);
    match byte_level {
        true => text.bytes().map(letter).collect(),
        false => text.replace(' ', SPACE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn bytes_are_spelled_in_gpt_2s_alphabet() {
        let ours: HashSet<char> = (0..=255).map(letter).collect();
        assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
        assert_eq!(label_token("lost card", true), "<|label:lostĠcard|>");
        assert_eq!(label_token("lost card", false), "<|label:lost▁card|>");
        assert_eq!(label_token("é\n", true), "<|label:Ã©Ċ|>");
    }
}
