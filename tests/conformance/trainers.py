"""trainers.py CHAT.jsonl PAIRS.jsonl WORK: the rows that limbeck exports, read by the trainers that they are for. Offline: the
tokenizer is made from the rows' own words, the model is tiny and random. Every figure is asserted, so an export that a
trainer silently drops or misreads fails here."""
import json, math, os, sys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", WANDB_DISABLED="true")
# `generation` marks what a trainer that asks for the assistant's tokens alone learns from.
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} \n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }} <|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }} <|im_end|>{% endif %} \n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant \n{% endif %}"
)


def tokenizer_of(texts):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    split = pre_tokenizers.WhitespaceSplit()
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    words |= {"system", "user", "assistant", "tool"}
    vocabulary = {word: i for i, word in enumerate(special + sorted(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny(tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )


def rows_of(path):
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def sft(path, tokenizer, work):
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    rows, dataset = rows_of(path), load_dataset("json", data_files=path, split="train")
    common = dict(output_dir=work, max_steps=2, per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to=[],
                  save_strategy="no", logging_steps=1, disable_tqdm=True)
    trainer = SFTTrainer(
        model=tiny(tokenizer), args=SFTConfig(assistant_only_loss=True, **common), train_dataset=dataset,
        processing_class=tokenizer,
    )
    assert len(trainer.train_dataset) == len(rows), (len(trainer.train_dataset), len(rows))
    for made, row in zip(trainer.train_dataset, rows):
        text = tokenizer.decode(made["input_ids"])
        for message in row["messages"]:
            assert " ".join(message["content"].split()) in " ".join(text.split()), (text, message)
        if "assistant_masks" in made:
            learned = [token for token, mask in zip(made["input_ids"], made["assistant_masks"]) if mask]
        else:
            learned = [token for token in made["labels"] if token != -100]
        answer = " ".join(row["messages"][-1]["content"].split())
        assert " ".join(tokenizer.decode(learned).split()) == f"{answer} <|im_end|>", tokenizer.decode(learned)
    loss = trainer.train().training_loss
    assert math.isfinite(loss), loss
    print(f"SFTTrainer: {len(rows)} chat rows, loss on the answers alone, 2 steps, {loss:.3f}")


def dpo(path, tokenizer, work):
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    rows, dataset = rows_of(path), load_dataset("json", data_files=path, split="train")
    assert rows, "no pair: no recorded answer was corrected"
    trainer = DPOTrainer(
        model=tiny(tokenizer), ref_model=tiny(tokenizer),
        args=DPOConfig(output_dir=work, max_steps=2, per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to=[],
                       save_strategy="no", logging_steps=1, disable_tqdm=True),
        train_dataset=dataset, processing_class=tokenizer,
    )
    assert len(trainer.train_dataset) == len(rows), (len(trainer.train_dataset), len(rows))
    loss = trainer.train().training_loss
    # Policy and reference begin equal: the first step's loss is ln 2.
    first = trainer.state.log_history[0]["loss"]
    assert abs(first - math.log(2)) < 1e-3 and math.isfinite(loss), (first, loss)
    print(f"DPOTrainer: {len(rows)} pairs, 2 steps, {loss:.3f}, the first {first:.4f} = ln 2")


def axolotl(path, tokenizer):
    try:
        from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter, ChatTemplateStrategy
    except Exception as error:
        print(f"axolotl: NOT checked, it can't be imported here ({type(error).__name__}: {error})")
        return
    prompter = ChatTemplatePrompter(tokenizer, chat_template=TEMPLATE, max_length=512)
    strategy = ChatTemplateStrategy(
        prompter, tokenizer=tokenizer, train_on_inputs=False, sequence_len=512, roles_to_train=["assistant"],
        train_on_eos="turn",
    )
    rows = rows_of(path)
    for row in rows:
        made = strategy.tokenize_prompt(row)
        learned = [token for token, label in zip(made["input_ids"], made["labels"]) if label != -100]
        answer = " ".join(row["messages"][-1]["content"].split())
        assert answer in " ".join(tokenizer.decode(learned).split()), (row, tokenizer.decode(learned))
        asked = row["messages"][-2]["content"].split()
        assert not set(tokenizer.decode(learned).split()) >= set(asked), "the prompt carries loss"
    print(f"axolotl chat_template: {len(rows)} chat rows, the answers alone carry loss")


def main():
    chat, pairs, work = sys.argv[1:4]
    texts = [m["content"] for row in rows_of(chat) for m in row["messages"]]
    for row in rows_of(pairs):
        texts += [m["content"] for m in row["prompt"] + row["chosen"] + row["rejected"]]
    tokenizer = tokenizer_of(texts)
    import datasets, torch, transformers, trl

    print("trl", trl.__version__, "datasets", datasets.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
    sft(chat, tokenizer, work)
    dpo(pairs, tokenizer, work)
    axolotl(chat, tokenizer)


main()
