//! The two names of every weight, Hugging Face's and GGUF's, and the order of q and k rows, in which the two differ.

use crate::config::Architecture;

/// A weight inside a layer: Hugging Face's name after `model.layers.N.`, GGUF's after `blk.N.`.
const IN_LAYER: [(&str, &str); 17] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    ("self_attn.q_proj.bias", "attn_q.bias"),
    ("self_attn.k_proj.bias", "attn_k.bias"),
    ("self_attn.v_proj.bias", "attn_v.bias"),
    ("self_attn.o_proj.bias", "attn_output.bias"),
    ("mlp.gate_proj.bias", "ffn_gate.bias"),
    ("mlp.up_proj.bias", "ffn_up.bias"),
    ("mlp.down_proj.bias", "ffn_down.bias"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
];

/// Where the norm behind attention is the one in front of the feed-forward.
const PLAIN: [(&str, &str); 1] = [("post_attention_layernorm.weight", "ffn_norm.weight")];

/// Gemma's norms, two around each half of a layer.
const GEMMA: [(&str, &str); 3] = [
    ("post_attention_layernorm.weight", "post_attention_norm.weight"),
    ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
    ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
];

/// Phi-3's fused matrices. GGUF has no name of its own for gate above up.
const PHI3: [(&str, &str); 3] = [
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("self_attn.qkv_proj.weight", "attn_qkv.weight"),
    ("mlp.gate_up_proj.weight", "ffn_up.weight"),
];

const OUTSIDE: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// The names in a layer of this family, its own before those that most have.
fn in_layer(of: Architecture) -> impl Iterator<Item = (&'static str, &'static str)> {
    let own: &[_] = match of {
        Architecture::Gemma2 | Architecture::Gemma3 => &GEMMA,
        Architecture::Phi3 => &PHI3,
        _ => &PLAIN,
    };
    own.iter().chain(&IN_LAYER).copied()
}

/// `model.layers.0.self_attn.q_proj.weight` to `blk.0.attn_q.weight`.
pub fn hf_to_gguf(of: Architecture, name: &str) -> Option<String> {
    if let Some((_, gguf)) = OUTSIDE.iter().find(|(hf, _)| *hf == name) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = split_layer(name.strip_prefix("model.layers.")?)?;
    in_layer(of).find(|(hf, _)| *hf == rest).map(|(_, gguf)| format!("blk.{layer}.{gguf}"))
}

/// `blk.0.attn_q.weight` to `model.layers.0.self_attn.q_proj.weight`.
pub fn gguf_to_hf(of: Architecture, name: &str) -> Option<String> {
    if let Some((hf, _)) = OUTSIDE.iter().find(|(_, gguf)| *gguf == name) {
        return Some((*hf).to_owned());
    }
    let (layer, rest) = split_layer(name.strip_prefix("blk.")?)?;
    in_layer(of).find(|(_, gguf)| *gguf == rest).map(|(hf, _)| format!("model.layers.{layer}.{hf}"))
}

/// The layer's number, only in the one way to write it, and what follows.
fn split_layer(rest: &str) -> Option<(u32, &str)> {
    let (number, rest) = rest.split_once('.')?;
    let layer: u32 = number.parse().ok()?;
    (layer.to_string() == number).then_some((layer, rest))
}

/// Rows of q or k from Hugging Face's order to GGUF's: within each of `heads` heads the two halves are interleaved, so
/// that the pair which rotates together lies together. `data` is `[heads * head_dim, n_in]`, or a bias with `n_in` 1. A value
/// may be anything, a byte of a row's blocks as well.
pub fn permute_qk<T: Copy>(data: &[T], heads: usize, n_in: usize) -> Vec<T> {
    reorder(data, heads, n_in, |half, pair, side| (2 * pair + side, side * half + pair))
}

/// The inverse of [`permute_qk`]: GGUF's order to Hugging Face's.
pub fn unpermute_qk<T: Copy>(data: &[T], heads: usize, n_in: usize) -> Vec<T> {
    reorder(data, heads, n_in, |half, pair, side| (side * half + pair, 2 * pair + side))
}

/// `place(half, pair, side)` gives the row (to, from) within a head.
fn reorder<T: Copy>(
    data: &[T],
    heads: usize,
    n_in: usize,
    place: impl Fn(usize, usize, usize) -> (usize, usize),
) -> Vec<T> {
    let rows = data.len() / n_in.max(1);
    let (head_dim, half) = (rows / heads.max(1), rows / heads.max(1) / 2);
    let mut out = data.to_vec();
    for head in 0..heads {
        for pair in 0..half {
            for side in 0..2 {
                let (to, from) = place(half, pair, side);
                let (to, from) = ((head * head_dim + to) * n_in, (head * head_dim + from) * n_in);
                out[to..to + n_in].copy_from_slice(&data[from..from + n_in]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_one_partner() {
        let llama = Architecture::Llama;
        for hf in ["model.embed_tokens.weight", "model.layers.17.mlp.down_proj.weight", "lm_head.weight"] {
            let gguf = hf_to_gguf(llama, hf).expect(hf);
            assert_eq!(gguf_to_hf(llama, &gguf).as_deref(), Some(hf));
        }
        let key = "model.layers.3.self_attn.k_proj.weight";
        assert_eq!(hf_to_gguf(llama, key).as_deref(), Some("blk.3.attn_k.weight"));
        for (of, hf, gguf) in [
            (llama, "post_attention_layernorm", "ffn_norm"),
            (Architecture::Gemma2, "post_attention_layernorm", "post_attention_norm"),
            (Architecture::Gemma3, "pre_feedforward_layernorm", "ffn_norm"),
            (Architecture::Phi3, "mlp.gate_up_proj", "ffn_up"),
            (Architecture::Qwen2, "mlp.up_proj", "ffn_up"),
        ] {
            let (hf, gguf) = (format!("model.layers.2.{hf}.weight"), format!("blk.2.{gguf}.weight"));
            assert_eq!(hf_to_gguf(of, &hf).as_deref(), Some(gguf.as_str()));
            assert_eq!(gguf_to_hf(of, &gguf), Some(hf));
        }
        for odd in
            ["model.layers.03.mlp.up_proj.weight", "model.layers.1", "blk..x", "model.layers.+1.mlp.up_proj.weight"]
        {
            assert_eq!(hf_to_gguf(llama, odd), None, "{odd}");
        }
    }

    #[test]
    fn rows_permute_as_llama_cpp_converts_them() {
        // One head of size 4, one column: reshape(1, 2, 2, 1).swapaxes(1, 2) takes rows 0 1 2 3 to 0 2 1 3.
        assert_eq!(permute_qk(&[0.0, 1.0, 2.0, 3.0], 1, 1), [0.0, 2.0, 1.0, 3.0]);
        let rows: Vec<f32> = (0..48).map(|x| x as f32).collect();
        assert_eq!(unpermute_qk(&permute_qk(&rows, 2, 3), 2, 3), rows);
    }
}
