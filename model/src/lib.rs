//! The decoder: architectures, weights, tokenizer, chat template, KV cache, label trie, and the compute kernels under
//! them. Trainer, quantizer and evaluation share it; it knows none of them.
