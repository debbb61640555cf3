"""PyTorch + transformers + PEFT at the works of `limbeck bench gpu`, on random weights. Each call ends with its figures as a
line of JSON. Needs torch, transformers, peft and safetensors; nothing is fetched.

    peer.py model SHAPE DIR                  a Hugging Face folder of random bfloat16 weights
    peer.py roofline                         what the device reaches: a matrix product, a copy
    peer.py ops FILE                         single ops: inputs, float64's answers and those in bfloat16, into FILE
    peer.py train --model DIR --work FILE    LoRA steps on the rows of a work; --save keeps the adapter it begins with
    peer.py label --model DIR --work FILE    the likeliest of some labels, by their log-probability
    peer.py write --model DIR --work FILE    greedy continuations
"""
import argparse
import json
import os
import statistics
import time
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
warnings.filterwarnings("ignore")
import torch  # noqa: E402

LLAMA3 = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
PLAIN = dict(max_position_embeddings=32768, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
SHAPES = {
    "llama-3.2-1b": ("llama", dict(
        PLAIN, vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=LLAMA3,
        max_position_embeddings=131072)),
    "qwen3-0.6b": ("qwen3", dict(
        PLAIN, vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-6, rope_theta=1000000.0)),
    "smollm2-135m": ("llama", dict(
        PLAIN, vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, rms_norm_eps=1e-5, rope_theta=100000.0)),
    # For a rehearsal. The vocabulary is as large as the quickstart's tokenizer needs.
    "tiny-llama": ("llama", dict(
        PLAIN, vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, rope_theta=10000.0)),
    "tiny-qwen3": ("qwen3", dict(
        PLAIN, vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, rope_theta=10000.0)),
}
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def finish(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(device, work, times):
    work()
    taken = []
    for _ in range(times):
        finish(device)
        begun = time.perf_counter()
        work()
        finish(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def model(args, device):
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, values = SHAPES[args.shape]
    torch.manual_seed(0)
    values = dict(values)
    config = AutoConfig.for_model(kind, **values)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(args.folder)
    return dict(parameters=sum(p.numel() for p in made.parameters()))


def roofline(args, device):
    n, copied = (8192, 1 << 28) if device.type == "cuda" else (256, 1 << 22)
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    product = timed(device, lambda: a @ b, 10)
    source = torch.randn(copied, device=device)
    target = torch.empty_like(source)
    copy = timed(device, lambda: target.copy_(source), 10)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return dict(device=name, torch=torch.__version__, bf16_tflops=2 * n**3 / product / 1e12, copy_gb_s=8 * copied / copy / 1e9)


# ---- single ops ------------------------------------------------------------------------------------------------------



def rms_norm_exact(x, t, case):
    return x[0] * torch.rsqrt(x[0].pow(2).mean(-1, keepdim=True) + case["eps"]) * t["weight"]


def rms_norm_peer(x, t, case):
    """As transformers writes it."""
    wide = x[0].float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + case["eps"])
    return t["weight"] * wide.to(x[0].dtype)


def swiglu(x, t, case):
    return torch.nn.functional.silu(x[0]) * x[1]


def linear(x, t, case):
    return x[0] @ t["weight"].T + case["scaling"] * ((x[0] @ x[1].T) @ x[2].T)


def rotated(x, case, start=0):
    n, heads, dim = x.shape
    frequencies = 1.0 / case["theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64, device=x.device) / dim)
    angles = torch.arange(start, start + n, device=x.device)[:, None].double() * frequencies
    angles = torch.cat((angles, angles), -1)[:, None]
    first, second = x[..., : dim // 2], x[..., dim // 2 :]
    turned = torch.cat((-second, first), -1)
    return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)


def attention(x, t, case):
    out, at, dim = [], 0, case["head_dim"]
    for length in case["lengths"]:
        part = [z[at : at + length].reshape(length, -1, dim) for z in x]
        q, k, v = rotated(part[0], case), rotated(part[1], case), part[2]
        q, k, v = (z.transpose(0, 1)[None] for z in (q, k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out.append(y[0].transpose(0, 1).reshape(length, -1))
        at += length
    return torch.cat(out)


def cross_entropy(x, t, case):
    logits = x[0] @ t["head"].T
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(wide, torch.tensor(case["targets"], device=logits.device)).reshape(1, 1)


OPS = {
    "rms_norm": (rms_norm_exact, rms_norm_peer),
    "swiglu": (swiglu, swiglu),
    "linear": (linear, linear),
    "attention": (attention, attention),
    "cross_entropy": (cross_entropy, cross_entropy),
}


def cases(rehearses):
    """Name, op, what it is told, shapes of its inputs and of its frozen tensors."""
    n, width, wide, vocabulary = (7, 16, 24, 50) if rehearses else (512, 2048, 8192, 128256)
    heads, kv_heads = (4, 2) if rehearses else (32, 8)
    yield f"rms_norm {n}x{width}", dict(op="rms_norm", eps=1e-5), [(n, width)], dict(weight=(1, width))
    yield f"swiglu {n}x{wide}", dict(op="swiglu"), [(n, wide)] * 2, {}
    for to, of in [(wide, width), (width, wide)]:
        shapes = [(n, of), (16, of), (to, 16)]
        yield f"linear {n}x{of} to {to}, r=16", dict(op="linear", scaling=2.0), shapes, dict(weight=(to, of))
    for dim in [64, 128]:
        lengths = [3, n - 3] if rehearses else [37, 1024, 963]
        told = dict(op="attention", heads=heads, kv_heads=kv_heads, head_dim=dim, theta=10000.0, lengths=lengths)
        of = sum(lengths)
        shapes = [(of, heads * dim), (of, kv_heads * dim), (of, kv_heads * dim)]
        yield f"attention {of}, {heads}/{kv_heads} x {dim}", told, shapes, {}
    targets = [(i * 7919) % vocabulary for i in range(n)]
    told = dict(op="cross_entropy", targets=targets)
    yield f"cross entropy {n}x{width} of {vocabulary}", told, [(n, width)], dict(head=(vocabulary, width))


def ops(args, device):
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(5)
    # What both sides take stands in bfloat16: only what they compute differs.
    tensor = lambda shape, size: (torch.randn(shape, generator=draw) * size).bfloat16().float()
    told, tensors = [], {}
    for i, (name, case, inputs, frozen) in enumerate(cases(args.rehearse)):
        x = [tensor(shape, 1.0 if case["op"] != "linear" or j == 0 else shape[1] ** -0.5) for j, shape in enumerate(inputs)]
        t = {key: 1 + tensor(s, 0.1) if key == "weight" and s[0] == 1 else tensor(s, s[1] ** -0.5) for key, s in frozen.items()}
        t = {key: value.bfloat16().float() for key, value in t.items()}
        exact, peer = OPS[case["op"]]
        answers = {}
        dy = None
        for whose, f, dtype in [("exact", exact, torch.float64), ("peer", peer, torch.bfloat16)]:
            leaves = [z.to(device, dtype).requires_grad_() for z in x]
            y = f(leaves, {key: value.to(device, dtype) for key, value in t.items()}, case)
            if dy is None:
                dy = torch.ones(y.shape) if case["op"] == "cross_entropy" else tensor(y.shape, 1.0)
            y.backward(dy.to(device, y.dtype))
            answers[whose] = [y.detach()] + [leaf.grad for leaf in leaves]
        case.update(name=name, inputs=len(x), frozen=list(t))
        told.append(case)
        put = lambda key, value: tensors.__setitem__(f"{i}.{key}", value.detach().float().cpu().contiguous().reshape(-1, value.shape[-1]))
        put("dy", dy)
        for j, value in enumerate(x):
            put(f"x{j}", value)
        for key, value in t.items():
            put(key, value)
        for whose, values in answers.items():
            for j, value in enumerate(values):
                put(f"{whose}{j}", value)
    save_file(tensors, args.file)
    return dict(cases=told)


# ---- training, labels, writing ---------------------------------------------------------------------------------------


def opened(args, device, dtype):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa").to(device)
    model.config.use_cache = False
    return model


def batch(rows, packed, device):
    """Rows padded to the longest, or one behind the other, each with positions of its own."""
    if packed:
        ids = [token for row in rows for token in row["ids"]]
        labels = [token if loss else -100 for row in rows for token, loss in zip(row["ids"], row["mask"])]
        positions = [i for row in rows for i in range(len(row["ids"]))]
        made = dict(input_ids=[ids], labels=[labels], position_ids=[positions])
    else:
        longest = max(len(row["ids"]) for row in rows)
        pad = lambda values, with_: values + [with_] * (longest - len(values))
        labels = [[token if loss else -100 for token, loss in zip(row["ids"], row["mask"])] for row in rows]
        made = dict(input_ids=[pad(row["ids"], 0) for row in rows], labels=[pad(row, -100) for row in labels])
        if any(len(row["ids"]) < longest for row in rows):
            made["attention_mask"] = [pad([1] * len(row["ids"]), 0) for row in rows]
    return {key: torch.tensor(value, device=device) for key, value in made.items()}


def train(args, device):
    from peft import LoraConfig, get_peft_model

    work = json.load(open(args.work))
    torch.manual_seed(0)
    m = opened(args, device, DTYPES[args.dtype])
    wanted = LoraConfig(r=work["rank"], lora_alpha=2 * work["rank"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    m = get_peft_model(m, wanted, autocast_adapter_dtype=args.float32_adapter)
    if args.checkpoint:
        m.gradient_checkpointing_enable()
        m.enable_input_require_grads()
    m.train()
    if args.save:
        m.save_pretrained(args.save)
    parameters = [p for p in m.parameters() if p.requires_grad]
    by = torch.optim.AdamW(parameters, lr=work["learning_rate"], weight_decay=work["weight_decay"])
    stepped = torch.compile(m) if args.compile else m
    batches = [batch([work["rows"][i] for i in chosen], work["packed"], device) for chosen in work["batches"]]
    losses, seconds = [], []
    for made in batches:
        finish(device)
        begun = time.perf_counter()
        loss = stepped(**made).loss
        loss.backward()
        if work["max_grad_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(parameters, work["max_grad_norm"])
        by.step()
        by.zero_grad(set_to_none=True)
        losses.append(loss.item())
        finish(device)
        seconds.append(time.perf_counter() - begun)
    allocated = torch.cuda.max_memory_allocated() >> 20 if device.type == "cuda" else None
    return dict(dtype=args.dtype, torch=torch.__version__, losses=losses, seconds=seconds, allocated_mib=allocated)


@torch.no_grad()
def label(args, device):
    work = json.load(open(args.work))
    m = opened(args, device, torch.bfloat16).eval()
    labels = work["labels"]
    longest = max(map(len, labels))
    # A label's probability is the product over its tokens, each among those that may stand there in any label.
    tokens = torch.zeros(len(labels), longest, dtype=torch.long, device=device)
    counts = torch.zeros(len(labels), longest, device=device)
    allowed = torch.zeros(len(labels), longest, m.config.vocab_size, dtype=torch.bool, device=device)
    for i, answer in enumerate(labels):
        for j, token in enumerate(answer):
            tokens[i, j], counts[i, j] = token, 1
            allowed[i, j, [other[j] for other in labels if other[:j] == answer[:j] and len(other) > j]] = True
    allowed[counts == 0] = True
    said = []

    def one(prompt):
        made = batch([dict(ids=prompt + answer, mask=[False] * (len(prompt) + len(answer))) for answer in labels], False, device)
        made.pop("labels")
        # The head on the answers' positions alone, as a careful engineer has it.
        logits = m(**made, logits_to_keep=longest + 1).logits[:, :-1].float()
        of = torch.log_softmax(logits.masked_fill(~allowed, -torch.inf), -1).gather(-1, tokens[..., None])[..., 0]
        said.append(torch.log_softmax((of * counts).sum(-1), -1).tolist())

    one(work["prompts"][0])
    said.clear()
    finish(device)
    begun = time.perf_counter()
    for prompt in work["prompts"]:
        one(prompt)
    finish(device)
    return dict(seconds=time.perf_counter() - begun, log_posteriors=said)


@torch.no_grad()
def write(args, device):
    work = json.load(open(args.work))
    m = opened(args, device, torch.bfloat16).eval()
    m.config.use_cache = True
    ids = torch.tensor(work["prompts"], device=device)
    n = work["tokens"]
    run = lambda: m.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
    run()
    finish(device)
    begun = time.perf_counter()
    run()
    finish(device)
    return dict(seconds=time.perf_counter() - begun)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("model")
    made.add_argument("shape", choices=SHAPES)
    made.add_argument("folder")
    verbs.add_parser("roofline")
    made = verbs.add_parser("ops")
    made.add_argument("file")
    made.add_argument("--rehearse", action="store_true")
    for verb in ["train", "label", "write"]:
        made = verbs.add_parser(verb)
        made.add_argument("--model", required=True)
        made.add_argument("--work", required=True)
        if verb == "train":
            made.add_argument("--dtype", choices=DTYPES, default="bf16")
            made.add_argument("--compile", action="store_true")
            made.add_argument("--checkpoint", action="store_true")
            made.add_argument("--float32-adapter", action="store_true")
            made.add_argument("--save")
    args = parser.parse_args()
    on = torch.device(args.device)
    print(json.dumps(globals()[args.verb](args, on)))
