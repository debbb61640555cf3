//! Every key a recipe may hold, in the order in which a person reads them: its type and range, its default, and one
//! sentence on what it does. Reading, `explain`, the lock and the template all go by this one table.

use toml::Value;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Text,
    /// Lower-case letters, digits, `.`, `_`, `-`; becomes part of file names.
    Name,
    Bool,
    Int {
        min: i64,
        max: i64,
    },
    /// From `min` to `max`, both allowed.
    Float {
        min: f64,
        max: f64,
    },
    /// Greater than zero and at most `max`.
    Positive {
        max: f64,
    },
    Choice(&'static [&'static str]),
    /// A non-empty list of distinct choices.
    Choices(&'static [&'static str]),
    /// As `Choices`, or none of them.
    Subset(&'static [&'static str]),
    /// A list of distinct, non-empty texts, at least `min` of them.
    Texts {
        min: usize,
    },
    Path,
    /// A list of at least `min` paths.
    Paths {
        min: usize,
    },
    /// `hf:OWNER/NAME` or a path.
    BaseModel,
    /// `cpu`, `cpu-reference`, `wgpu`, `cuda` or `cuda:N`.
    Device,
    /// One of these arms, or one of the recipe's own.
    Arm(&'static [&'static str]),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Need {
    Required,
    /// Required where `task.kind` is this, and out of place where it is another.
    Of(&'static str),
    /// As `Of`, but may be left out.
    OptionalOf(&'static [&'static str]),
    Optional,
    /// TOML text of the value.
    Default(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// Dotted, from the root.
    pub key: &'static str,
    pub kind: Kind,
    pub need: Need,
    pub doc: &'static str,
}

use Kind::*;
use Need::{Default, Of, Optional, OptionalOf, Required};

const fn field(key: &'static str, kind: Kind, need: Need, doc: &'static str) -> Field {
    Field { key, kind, need, doc }
}

const UNIT: Kind = Float { min: 0.0, max: 1.0 };
/// Strictly between 0 and 1: what no evidence can show is no demand.
const OPEN: Kind = Positive { max: 0.9999 };

/// The modules LoRA can adapt, under the names Hugging Face gives them.
pub(crate) const MODULES: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const DEVICES: &[&str] = &["cpu", "cpu-reference", "wgpu", "cuda"];
/// Of `limbeck_quantize::Format`, which knows each by this name, and the one that `quantize.target` is of.
const FORMATS: &[&str] = &[
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "BF16", "F16", "F32", "mix",
];
/// The readers of traces; the data-curation room has them under these names.
const TRACE_FORMATS: &[&str] = &[
    "auto",
    "openai",
    "otel",
    "openinference",
    "langfuse",
    "langsmith",
    "tensorzero",
    "openpipe",
    "sharegpt",
    "alpaca",
    "columns",
];
/// Signs of a bad example; `limbeck-data-curation` knows each by this name.
const SIGNS: &[&str] =
    &["refusal", "truncated", "outside_taxonomy", "repeated_ngrams", "template_leakage", "cut_by_collector"];
/// What a floor may be under, by kind of task.
pub(crate) const METRICS_OF: &[(&str, &[&str])] = &[
    ("classify", &["accuracy", "macro_f1"]),
    ("extract", &["exact_match", "validity"]),
    ("generate", &["rouge_l", "exact_match", "validity"]),
];
const METRICS: &[&str] = &["accuracy", "macro_f1", "exact_match", "validity", "rouge_l"];
pub(crate) const KINDS: &[&str] = &["classify", "extract", "generate"];
/// Kinds whose answers are written token by token.
pub(crate) const WRITTEN: &[&str] = &["extract", "generate"];

#[rustfmt::skip]
pub(crate) const FIELDS: &[Field] = &[
    field("name", Name, Required, "name of the run folder and of the artifact"),
    field("version", Name, Default("\"0.1.0\""), "version of the artifact"),
    field("seed", Int { min: 0, max: i64::MAX }, Default("17"), "seeds the split, the order of batches, the adapter and the bootstrap"),

    field("task.kind", Choice(KINDS), Default("\"classify\""), "what the artifact does: classify picks one label for a message, extract pulls fields out of it as JSON, generate writes a text"),
    field("task.labels", Texts { min: 2 }, Of("classify"), "the taxonomy; the tuned model answers with exactly one of these"),
    field("task.schema", Path, Of("extract"), "JSON Schema of the answer: an object of plain fields, each with a description for reviewers"),
    field("task.max_new_tokens", Int { min: 1, max: 32_768 }, OptionalOf(WRITTEN), "longest answer in tokens; one that does not end by then is cut off, and invalid"),
    field("task.constrained", Bool, OptionalOf(&["extract"]), "keeps answers to the schema while they are written: tokens that no valid answer can go on with get no probability; evaluation, score and serve alike"),
    field("task.system", Text, Optional, "replaces the system prompt that the traces recorded"),
    field("task.guidelines", Path, Optional, "a text file that tells reviewers how to give the labels; a key of the review screen shows it"),

    field("model.base", BaseModel, Required, "the base model: a .gguf, a folder of safetensors, hf:OWNER/NAME or hf:OWNER/NAME/FILE.gguf"),
    field("model.revision", Text, Optional, "commit of a hub model; required for hf: so that a run can be repeated"),
    field("model.endpoint", Text, Optional, "address of a mirror of the hub"),
    field("model.cache_dir", Path, Optional, "folder of the hub's cache; ~/.cache/huggingface/hub when left out"),
    field("model.max_seq_length", Int { min: 8, max: 131_072 }, Default("512"), "longest row in tokens; longer ones are refused, never cut"),
    field("model.device", Device, Default("\"cpu\""), "where training and scoring run: cpu, wgpu, cuda or cuda:N"),

    field("data.traces", Paths { min: 1 }, Required, "recorded calls: files of any format that `limbeck import --help` names, or folders of them"),
    field("data.format", Choice(TRACE_FORMATS), Default("\"auto\""), "what wrote the traces; auto tells it from each file's first records"),
    field("data.notes", Texts { min: 0 }, Default("[]"), "what a reader of the report must know before believing a number"),
    field("data.redact", Bool, Default("true"), "replaces e-mail addresses, phone and card numbers and the like with placeholders"),
    field("data.redact_patterns", Texts { min: 0 }, Default("[]"), "what else to replace, as NAME=REGEX: \"order=ORD-[0-9]{8}\" leaves <ORDER_1>"),
    field("data.redact_key", Path, Optional, "secret key file, relative to the current directory: a value then has one placeholder in all traces (keyed HMAC) instead of a number within its trace"),
    field("data.drop", Subset(SIGNS), Default("[]"), "signs of a bad example whose rows are left out; all are counted, with samples in curate/quality.jsonl"),
    field("data.decontaminate_against", Paths { min: 0 }, Default("[]"), "files of texts that no row may repeat (lines, JSONL or CSV): evaluation sets, benchmarks"),
    field("data.balance", Choice(&["none", "sqrt", "equal"]), Default("\"none\""), "evens out the classes of train by leaving rows of large ones out: to sqrt(n x smallest), or to the smallest; never test"),
    field("data.near_dup_threshold", Positive { max: 1.0 }, Default("0.8"), "similarity from which two messages are near-duplicates (1: identical shingles)"),
    field("data.min_chars", Int { min: 0, max: 10_000_000 }, Default("1"), "shorter messages are left out"),
    field("data.max_chars", Int { min: 1, max: 10_000_000 }, Default("8000"), "longer messages are left out"),
    field("data.map.input", Text, Optional, "column of the user's message, or of a prompt as JSON; naming any column reads the traces as columns"),
    field("data.map.output", Text, Optional, "column of the answer"),
    field("data.map.messages", Text, Optional, "column of a conversation as JSON, instead of input; without output its last turn is the answer"),
    field("data.map.system", Text, Optional, "column of the system prompt"),
    field("data.map.id", Text, Optional, "column of the call's id"),
    field("data.map.customer", Text, Optional, "column of what groups a customer's calls"),
    field("data.map.thread", Text, Optional, "column of the conversation that a call belongs to; one never straddles splits"),
    field("data.map.time", Text, Optional, "column of the time: RFC 3339, or a number since 1970"),
    field("data.map.model", Text, Optional, "column of the model's name"),
    field("data.map.finish_reason", Text, Optional, "column of why the answer ended"),
    field("data.map.latency_ms", Text, Optional, "column of the milliseconds a call took"),
    field("data.map.prompt_tokens", Text, Optional, "column of the prompt's tokens"),
    field("data.map.completion_tokens", Text, Optional, "column of the answer's tokens"),
    field("data.map.feedback", Text, Optional, "column of what the user thought of it"),
    field("data.split.valid", Float { min: 0.0, max: 0.9 }, Default("0.1"), "share of rows that watch the training"),
    field("data.split.calibration", Float { min: 0.0, max: 0.9 }, Default("0.15"), "share of rows kept for calibrating confidence"),
    field("data.split.test", Positive { max: 0.9 }, Default("0.3"), "share of rows that decide the gates; the rest is train"),
    field("data.split.by_time", Bool, Default("false"), "test is the newest share of the rows instead of a random one; older rows of its customers are left out"),

    field("review.decisions", Paths { min: 0 }, Default("[]"), "review decisions made elsewhere, JSONL; `limbeck review` adds its own in the run folder"),
    field("review.store", Path, Optional, "folder of the reviewers' decision streams, also on a network file system; the run's own folder when left out"),
    field("review.random_share", UNIT, Default("0.2"), "share of the review queue drawn at random, which alone estimates are made from"),
    field("review.reviewers_per_item", Int { min: 1, max: 9 }, Default("1"), "how many people must judge an item, each without sight of the others where it is more than one"),
    field("review.max_label_error", OPEN, Default("0.05"), "share of wrong recorded labels that the review is to certify not to be exceeded"),
    field("review.min_reviewed.train", UNIT, Default("1.0"), "share of train rows a reviewer must have decided"),
    field("review.min_reviewed.valid", UNIT, Default("1.0"), "the same for valid"),
    field("review.min_reviewed.calibration", UNIT, Default("1.0"), "the same for calibration"),
    field("review.min_reviewed.test", UNIT, Default("1.0"), "the same for test"),

    field("train.method", Choice(&["lora", "full"]), Default("\"lora\""), "how the base is adapted: lora trains an adapter, full trains every weight (its r, lora_alpha and targets then play no part)"),
    field("train.head", Choice(&["verbalizer", "classification"]), Default("\"verbalizer\""), "what answers: verbalizer, the base's own head, which spells a label; classification, a linear head on the prompt's last token, trained beside the adapter (or all weights) and folded into the served file as a token a label"),
    field("train.r", Int { min: 1, max: 1024 }, Default("16"), "rank of the adapter"),
    field("train.lora_alpha", Positive { max: 65_536.0 }, Default("32"), "scale of the adapter: lora_alpha / r, or / sqrt(r) with use_rslora"),
    field("train.use_rslora", Bool, Default("false"), "rank-stabilised scale"),
    field("train.use_dora", Bool, Default("false"), "trains the length of each adapted row apart from its direction (DoRA); a step takes up to twice as long, the merged model costs nothing"),
    field("train.lora_dropout", Float { min: 0.0, max: 0.9 }, Default("0.0"), "chance that an element of an adapter's input is dropped in training"),
    field("train.loraplus_lr_ratio", Positive { max: 1000.0 }, Default("1.0"), "rate of lora_B over that of lora_A (LoRA+; 16 is usual, with half the rate; 1 is plain LoRA)"),
    field("train.target_modules", Choices(MODULES), Default("[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"]"), "the linear layers that get an adapter"),
    field("train.turbo_layers", Int { min: 0, max: 10_000 }, Default("0"), "adapts so many layers from the top only and keeps what comes out of the rest (0: all layers)"),
    field("train.turbo_cache_dtype", Choice(&["f32", "bf16"]), Default("\"f32\""), "how turbo keeps hidden states: f32 as computed, bf16 rounded in half the memory"),
    field("train.train_on", Choice(&["last", "all_assistant"]), Default("\"last\""), "which of the assistant's turns carry loss: the wanted answer, or earlier ones too"),
    field("train.loss_normalization", Choice(&["token", "example"]), Default("\"token\""), "a step's loss is the mean of its tokens, or of its rows (a long answer then counts as a short one)"),
    field("train.learning_rate", Positive { max: 1.0 }, Default("5e-4"), "peak learning rate"),
    field("train.lr_scheduler", Choice(&["linear", "cosine", "constant", "warmup_stable_decay"]), Default("\"linear\""), "how the rate falls after warm-up; warmup_stable_decay (WSD) stays at the peak until its last share"),
    field("train.warmup_ratio", Float { min: 0.0, max: 0.9 }, Default("0.05"), "share of the steps that warm up"),
    field("train.decay_ratio", UNIT, Default("0.2"), "share of the steps in which warmup_stable_decay falls to zero"),
    field("train.decay_type", Choice(&["cosine", "linear", "1-sqrt"]), Default("\"cosine\""), "the shape of that fall"),
    field("train.seed", Int { min: 0, max: i64::MAX }, Optional, "seed of the training alone: what it begins with, the order of rows, dropout; `seed` when left out"),
    field("train.num_epochs", Int { min: 1, max: 10_000 }, Default("3"), "passes over the train split"),
    field("train.batch_size", Int { min: 1, max: 65_536 }, Default("16"), "rows a micro-batch"),
    field("train.gradient_accumulation_steps", Int { min: 1, max: 65_536 }, Default("1"), "micro-batches a step"),
    field("train.weight_decay", UNIT, Default("0.0"), "AdamW's decoupled decay"),
    field("train.max_grad_norm", Positive { max: 1e6 }, Default("1.0"), "gradients are clipped to this global norm"),
    field("train.adam_beta1", Float { min: 0.0, max: 0.999_999 }, Default("0.9"), "AdamW"),
    field("train.adam_beta2", Float { min: 0.0, max: 0.999_999 }, Default("0.999"), "AdamW"),
    field("train.adam_epsilon", Positive { max: 1.0 }, Default("1e-8"), "AdamW"),
    field("train.dtype", Choice(&["auto", "bf16", "fp32"]), Default("\"auto\""), "what matrix products compute in: auto takes bf16 where the processor gains by it; masters and sums stay fp32"),
    field("train.quantize_base", Choice(&["none", "int8", "nf4"]), Default("\"none\""), "QLoRA: how the base's linear layers are kept while the adapter trains: none as the products take them, int8 in 8.5 bits a weight, nf4 in 4.5; the adapter is merged into the base as it was"),
    field("train.bnb_4bit_use_double_quant", Bool, Default("false"), "with quantize_base = nf4: keeps the blocks' scales in eight bits each, 4.13 bits a weight instead of 4.5"),
    field("train.gradient_checkpointing", Bool, Default("false"), "keep only each layer's input and run the layer again in the backward pass: a third more work, far less memory, the same bits"),
    field("train.save_steps", Int { min: 1, max: 1_000_000 }, Default("20"), "steps between checkpoints"),
    field("train.save_total_limit", Int { min: 1, max: 10_000 }, Default("2"), "checkpoints that are kept, the newest; the best one stays beside them"),
    field("train.eval_steps", Int { min: 0, max: 1_000_000 }, Default("0"), "steps between looks at the valid split (0: at the end only)"),
    field("train.early_stopping_patience", Int { min: 0, max: 10_000 }, Default("0"), "stops after so many looks in a row that were no better than the best (0: never)"),
    field("train.metric_for_best_model", Choice(&["loss", "accuracy"]), Default("\"loss\""), "what the best model is best at, on the valid split; of equals the earlier"),
    field("train.load_best_model_at_end", Bool, Default("false"), "gives back the best model instead of the last"),

    field("distill.unreviewed_weight", UNIT, Default("0.0"), "loss weight of the recorded model's answers that nobody reviewed (0 leaves them out); times the share of draws that agree, where a teacher was asked several times"),
    field("distill.teacher", Path, Optional, "a local teacher whose posteriors over the labels, or what it expects at each token of written answers, the student learns beside them: a .gguf, a folder of safetensors, or an artifact's folder; naming one adds the capture stage"),
    field("distill.teacher_adapter", Path, Optional, "what a training left on that teacher, with its classification head if it has one: an adapter's folder as PEFT and `limbeck train` write it, or that of all weights (runs/NAME/train/model)"),
    field("distill.committee", Paths { min: 0 }, Default("[]"), "further teachers beside distill.teacher, each a .gguf, a folder of safetensors or an artifact's folder: the student learns the mean of what they all say. Written answers to unlabeled messages, and what is on-policy, are the first one's"),
    field("distill.capture", Path, Optional, "a teacher's answers that `limbeck capture` wrote, instead of a teacher"),
    field("distill.unlabeled", Paths { min: 0 }, Default("[]"), "files of messages that nobody labelled (JSON lines, CSV or plain lines), learnt from the teacher alone; where answers are written it writes them. What is like a held-out row is left out"),
    field("distill.samples", Int { min: 1, max: 64 }, OptionalOf(WRITTEN), "draws of the teacher to each unlabeled message, at a temperature of 0.7; 1, or nothing said, is its likeliest answer. What the draws agree on is learnt, weighed by the share that does"),
    field("distill.min_agreement", UNIT, OptionalOf(WRITTEN), "what a smaller share of these draws agrees on is for the reviewers (0.6 when not said)"),
    field("distill.top_k", Int { min: 1, max: 100 }, OptionalOf(WRITTEN), "of what a teacher expects at a token, so many likeliest tokens are kept, and the sum of all others (20 where neither this nor distill.draws is said)"),
    field("distill.draws", Int { min: 1, max: 100 }, OptionalOf(WRITTEN), "instead of the likeliest: so many draws, which are unbiased and take half the room (50 do)"),
    field("distill.lambda", UNIT, Default("0.5"), "share of the teacher in the loss of a row that has a label too, or of a token; where a person decided otherwise than the teacher it is 0"),
    field("distill.temperature", Positive { max: 100.0 }, Default("2.0"), "softens the posteriors of teacher and student alike; the loss is multiplied by its square. 1 where answers are written: of a part of a distribution no other can be made"),
    field("distill.exact_mass", UNIT, Default("0.98"), "labels that are spelled: the likeliest ones that hold this share of a teacher's posterior are told apart in a row, and its own; the others may count together with those they share a beginning with. 1 tells all apart, at the cost of their common tokens in each row"),
    field("distill.divergence", Choice(&["forward_kl", "reverse_kl", "js", "skew_kl", "alpha_beta"]), Default("\"forward_kl\""), "how far the student is from the teacher: forward_kl keeps it calibrated, the others weigh unlikely labels otherwise"),
    field("distill.divergence_alpha", Positive { max: 1.0 }, Optional, "alpha of skew_kl (its default 0.1) or of alpha_beta (0.2)"),
    field("distill.divergence_beta", Positive { max: 1.0 }, Optional, "beta of js (its default 0.5) or of alpha_beta (0.7)"),
    field("distill.trust", Choice(&["reviewed", "full"]), Default("\"reviewed\""), "weight of a teacher's answer that nobody confirmed: reviewed is the lower bound (Wilson, 95 %) of its precision on reviewed rows where it said that label, or of how often it would have written a reviewed answer; full is 1, and where answers are written its word counts beside a person's other one too"),
    field("distill.on_policy", UNIT, Default("0.0"), "answers that are written: chance that a train row is answered by the student itself, as it stands at that step, and the teacher tells at each of its tokens what it would have written; needs distill.teacher. 0.25 to 0.5 are usual"),
    field("distill.on_policy_after", Float { min: 0.0, max: 0.99 }, Default("0.25"), "share of the steps before the student answers any row itself: what it writes at first is not worth reading"),
    field("distill.on_policy_temperature", Positive { max: 2.0 }, Default("1.0"), "of the student's own answers; 1 draws from its own distribution"),
    field("distill.on_policy_divergence", Choice(&["reverse_kl", "forward_kl", "js"]), Default("\"reverse_kl\""), "how far the student is from the teacher at its own tokens: reverse_kl takes from it what the teacher would not write, js is half of either"),
    field("distill.hidden_weight", Float { min: 0.0, max: 1000.0 }, Default("0.0"), "weight of hidden-state matching in the loss: what the student's layers give is held against the layers of distill.teacher, token by token, for students that were cut out of their teacher or begin from nothing; both need the same tokenizer. The teacher runs in every step, so a step costs that much more; nothing is stored. 0 leaves it out, 1 is a beginning"),
    field("distill.hidden_layers", Int { min: 0, max: 1000 }, Default("0"), "so many of the student's layers are matched, evenly from the top one down (0: all). Each goes with the teacher's layer that it was carved from, as the base's file tells, or with one at the same share of the depth"),
    field("distill.hidden_loss", Choice(&["relative", "mse", "cosine"]), Default("\"relative\""), "relative: squared error over the square of the teacher's state, by token, so that no token outweighs others by its size; mse: mean squared error; cosine: one minus the cosine, as in DistilBERT"),
    field("distill.attention_weight", Float { min: 0.0, max: 1000.0 }, Default("0.0"), "weight of attention matching in the loss, in the same layers as hidden_weight's: KL divergence of the student's attention weights from the teacher's, by head where both have as many, else of the heads' mean. They are worked out apart from the layers, by plain loops: slow, for short rows. 0 leaves it out"),
    field("distill.rationales", Paths { min: 0 }, Default("[]"), "files (JSON lines) of why answers are the answers, learnt as a second task: a line names its row by `id` (a trace's or a row's) or `message` and has `rationale`; the traces themselves will do where a model's reasoning was recorded (`reasoning_content`). Redacted as traces are; of train rows alone, and not where a person corrected the answer that it argues for"),
    field("distill.rationale_weight", Float { min: 0.0, max: 100.0 }, Default("1.0"), "weight of the rationales' loss beside that of the answers, each a mean of its own"),
    field("distill.rationale_prompt", Text, Default("\"Explain, then stop.\""), "the paragraph behind the user's message that asks for a rationale; it is asked in training alone, never where the model serves or is evaluated"),

    field("quantize.formats", Choices(FORMATS), Default("[\"Q8_0\", \"Q4_0\"]"), "GGUF files to make of the merged model"),
    field("quantize.ship", Choice(FORMATS), Default("\"Q8_0\""), "the one that is gated and packaged"),
    field("quantize.target", Text, Optional, "size of the format mix, such as \"90MB\" or \"4.5bpw\": block types are chosen matrix by matrix by what rounding each costs the model on the task's rows"),
    field("quantize.imatrix", Text, Default("\"none\""), "importance matrix that rounding goes by (F32, F16, BF16 and Q8_0 need none): none, task (made from the train split's prompts and answers), or a file that limbeck or llama-imatrix wrote"),
    field("quantize.rounding", Choice(&["nearest", "compensated"]), Default("\"nearest\""), "how the layers' matrices are rounded: nearest, each block for itself; compensated, so that errors make up for each other on what the task's train rows put in (GPTQ's feedback and descent on the same blocks: smaller loss in as many bytes, minutes instead of seconds)"),
    field("quantize.rounding_tokens", Int { min: 256, max: 10_000_000 }, Default("16384"), "tokens that compensated rounding goes by at most, chosen as imatrix_tokens are; all of them are in memory, a layer at a time"),
    field("quantize.imatrix_text", Path, Optional, "a text file whose beginning is mixed into the task's rows, for imatrix = \"task\" and for compensated rounding, so that the file forgets the rest of the language less"),
    field("quantize.imatrix_text_share", Float { min: 0.0, max: 0.9 }, Default("0.25"), "share of the calibration's tokens that come from imatrix_text, where there is one"),
    field("quantize.imatrix_tokens", Int { min: 256, max: 100_000_000 }, Default("65536"), "tokens to calibrate on at most; of more rows, some all over the split are taken"),
    field("quantize.recover_epochs", Int { min: 0, max: 100 }, Default("0"), "epochs over the train rows in which the codes of files with fewer than eight bits are trained to say what the exact model says (quantization-aware training; scales, types and size stay). Takes the memory of a full fine-tuning; kept where the valid split bears it out"),
    field("quantize.recover_learning_rate", Positive { max: 1.0 }, Default("2e-5"), "of that training"),

    field("eval.prices", Path, Optional, "price table (TOML) for the cost of a call"),
    field("eval.threshold", UNIT, Default("0.7"), "confidence from which an answer is served, below it the call escalates: your own number, measured and not certified; in force where eval.escalation asks for no certificate"),
    field("eval.confidence", Float { min: 0.51, max: 0.9999 }, Default("0.95"), "level of the intervals, and of the one-sided bounds by which gates decide"),
    field("eval.power", Float { min: 0.5, max: 0.9999 }, Default("0.8"), "chance of a decision for which an inconclusive gate counts the examples it still needs"),
    field("eval.bootstrap_samples", Int { min: 100, max: 1_000_000 }, Default("2000"), "resamples for intervals without a closed form"),

    field("eval.calibration", Choice(&["temperature", "platt", "isotonic", "none"]), Default("\"temperature\""), "how a probability becomes a confidence, fitted on the calibration split: one temperature, Platt's curve, or isotonic regression, which wants 1,000 rows; the report compares them"),
    field("eval.out_of_scope", Text, OptionalOf(&["classify"]), "the label that says that a message is none of the task's business: the report tells how well it is told from the others"),
    field("eval.base", Bool, Default("true"), "whether the untuned base answers too: what tuning is worth is told against it, but with many labels on a large base it takes longest of all"),
    field("eval.arithmetic", Choice(&["served", "f32"]), Default("\"served\""), "how quantized files are computed to be judged, and then served: straight from their blocks with activations rounded to int8, as llama.cpp does, or with weights expanded to float32; files with blocks that have no kernel are expanded"),
    field("eval.escalation.max_error", Positive { max: 0.5 }, Optional, "asks for a certificate: the threshold is chosen on the calibration split so that at most this share of the served answers is wrong; where that cannot be shown, every call escalates"),
    field("eval.escalation.confidence", Float { min: 0.5, max: 0.9999 }, Default("0.95"), "how sure the certificate is of it"),
    field("eval.escalation.review_share", UNIT, Default("0.1"), "share of the served answers, the least sure ones, that is queued for review"),
    field("eval.escalation.fallback", Texts { min: 0 }, Default("[]"), "where escalated calls go, in order: names that your gateway knows, such as the frontier model's"),
    field("eval.escalation.valid_days", Int { min: 1, max: 3650 }, Default("30"), "days after the newest row by which the policy asks to be certified again"),
    field("eval.ranking.positive", Text, OptionalOf(&["classify"]), "the label of an item that is wanted, where messages are an item for a query each: the report tells what an order by its probability is worth (nDCG, recall), and how much text is dropped"),
    field("eval.ranking.separator", Text, Default("\"Passage\""), "the word at which a message goes on from query to item: what comes before it is the query"),
    field("eval.load.rate", Positive { max: 1e6 }, Optional, "calls a second at random times (Poisson): asks for a load test of the served file, timed from when each call is due; what the machine can take is rate times seconds a call"),
    field("eval.load.calls", Int { min: 20, max: 1_000_000 }, Default("1000"), "calls of a load test; the 99th percentile takes 1,000"),
    field("eval.load.workers", Int { min: 1, max: 256 }, Default("2"), "requests that the served file's server answers at the same time"),
    field("eval.load.at_most", Int { min: 1, max: 2000 }, Default("200"), "calls under way at the same time; one that is due beyond them waits, and its time runs"),
    field("eval.load.arms", Texts { min: 0 }, Default("[]"), "endpoints among [[eval.arm]] that are tested too, at the same rate; every call is paid for, and counts under the arm's max_spend"),

    field("promote.channel", Name, Default("\"staging\""), "channel that points at the artifact once its gates pass"),
    field("promote.store", Path, Default("\".limbeck/store\""), "the store: a folder, relative to the current directory, or s3://BUCKET/PREFIX in a build with the feature object-store"),

    field("sign.key", Path, Default("\".limbeck/keys/signing.pem\""), "P-256 private key (PKCS#8 PEM), relative to the current directory"),
    field("sign.exec", Texts { min: 0 }, Default("[]"), "instead of the key: a program and its arguments that sign what they get on stdin (DER on stdout), for a KMS or an HSM"),
    field("sign.public_key", Path, Optional, "its public key (PEM), relative to the current directory; its signatures are checked against it"),

    field("encrypt.recipients", Texts { min: 0 }, Default("[]"), "age recipients (age1…, `limbeck keys identity` makes one): the store's files and the run folder at rest are encrypted for these people; none: nothing is encrypted"),
    field("encrypt.identity", Path, Optional, "file of the age identity that reads them, relative to the current directory; LIMBECK_AGE_IDENTITY_FILE comes before it, .limbeck/keys/age.txt after it"),
];

/// A default that another setting changes.
struct DefaultUnder {
    key: &'static str,
    value: &'static str,
    /// The key whose default is another where `key` has that value, and its TOML text.
    of: &'static str,
    default: &'static str,
}

const DEFAULTS_UNDER: &[DefaultUnder] = &[
    // LoRA's best rate is some ten times full fine-tuning's (LoRA Without Regret, in TRL's documentation).
    DefaultUnder { key: "train.method", value: "full", of: "train.learning_rate", default: "5e-5" },
    DefaultUnder { key: "task.kind", value: "extract", of: "task.max_new_tokens", default: "256" },
    DefaultUnder { key: "task.kind", value: "generate", of: "task.max_new_tokens", default: "256" },
    // Who serves an extractor expects answers that can be read.
    DefaultUnder { key: "task.kind", value: "extract", of: "task.constrained", default: "true" },
    // That a text is the wanted one word for word is seldom likely, and says little of how good it is.
    DefaultUnder { key: "task.kind", value: "generate", of: "eval.threshold", default: "0.0" },
    // Of a part of a distribution no other temperature can be made.
    DefaultUnder { key: "task.kind", value: "extract", of: "distill.temperature", default: "1.0" },
    DefaultUnder { key: "task.kind", value: "generate", of: "distill.temperature", default: "1.0" },
    DefaultUnder { key: "distill.divergence", value: "skew_kl", of: "distill.divergence_alpha", default: "0.1" },
    DefaultUnder { key: "distill.divergence", value: "alpha_beta", of: "distill.divergence_alpha", default: "0.2" },
    DefaultUnder { key: "distill.divergence", value: "alpha_beta", of: "distill.divergence_beta", default: "0.7" },
    DefaultUnder { key: "distill.divergence", value: "js", of: "distill.divergence_beta", default: "0.5" },
    // AdamW's usual decay; on LoRA's factors it would pull back to the base.
    DefaultUnder { key: "train.method", value: "full", of: "train.weight_decay", default: "0.01" },
];

/// Keys that ask for something only an adapter can do, with the value that asks for nothing.
pub(crate) const OF_ADAPTERS: &[(&str, &str)] = &[
    ("train.use_dora", "false"),
    ("train.lora_dropout", "0.0"),
    ("train.loraplus_lr_ratio", "1.0"),
    ("train.turbo_layers", "0"),
];

/// An array of tables among the sections.
#[derive(Debug)]
pub(crate) struct Array {
    pub key: &'static str,
    /// What one of its tables is called, and the same with its article.
    pub word: &'static str,
    pub one: &'static str,
    pub kinds: &'static [TableKind],
}

/// The arrays of tables, in the order in which a lock has them.
pub(crate) const ARRAYS: &[&Array] = &[&ARMS, &JUDGES, &GATES];
pub(crate) const GATES: Array = Array { key: "eval.gate", word: "gate", one: "a gate", kinds: GATE_KINDS };
pub(crate) const JUDGES: Array = Array { key: "eval.judge", word: "judge", one: "a judge", kinds: JUDGE_KINDS };
pub(crate) const ARMS: Array = Array { key: "eval.arm", word: "arm", one: "an arm", kinds: ARM_KINDS };

impl Array {
    pub(crate) fn kind(&self, kind: &str) -> Option<&'static TableKind> {
        self.kinds.iter().find(|k| k.kind == kind)
    }
}

/// The arms that every evaluation may have; a recipe's own have other names.
pub(crate) const OWN_ARMS: &[&str] =
    &["frontier", "linear", "base", "tuned", "referee", "constrained", "unconstrained"];

/// What a table of an array of tables may hold, by its `kind`.
#[derive(Debug)]
pub(crate) struct TableKind {
    pub kind: &'static str,
    /// Keys are relative to the table.
    pub fields: &'static [Field],
    pub doc: &'static str,
}

const METRIC: Field = field(
    "metric",
    Choice(METRICS),
    Default("\"accuracy\""),
    "accuracy or macro_f1 of labels; exact_match (all fields right) or validity (answers that fit the schema) of an extraction, where exact_match is the default; rouge_l, exact_match or validity (ended in time, not empty) of a generation, where rouge_l is",
);

#[rustfmt::skip]
const GATE_KINDS: &[TableKind] = &[
    TableKind { kind: "floor", doc: "the metric is at least min", fields: &[
        METRIC,
        field("min", OPEN, Required, "lowest value that passes"),
    ] },
    TableKind { kind: "improvement", doc: "accuracy beats another arm's by min (Tango score, paired)", fields: &[
        field("over", Arm(&["base", "linear", "frontier"]), Default("\"base\""), "the arm to beat: base, linear, frontier, or one of [[eval.arm]]"),
        field("min", Float { min: 0.0, max: 0.9999 }, Required, "by how much, as a share (0.4 is 40 points)"),
    ] },
    TableKind { kind: "non_inferiority", doc: "not worse than another arm by more than margin (Tango score, paired)", fields: &[
        field("against", Arm(&["frontier", "base", "linear"]), Default("\"frontier\""), "the arm to match: frontier, base, linear, or one of [[eval.arm]]"),
        field("margin", OPEN, Required, "the loss of accuracy that is acceptable, as a share"),
    ] },
    TableKind { kind: "per_class_recall", doc: "every label's recall is at least min", fields: &[
        field("min", OPEN, Required, "lowest recall of any label"),
    ] },
    TableKind { kind: "cell", doc: "of the rows of one label, at most a share is answered with a certain other one: a mistake that costs more than others", fields: &[
        field("gold", Text, Required, "the label that is right"),
        field("predicted", Text, Required, "the label that it must not be taken for"),
        field("max", OPEN, Required, "share of the label's rows that may be; none of n shows no less than about 3 / n"),
    ] },
    TableKind { kind: "slice_floor", doc: "accuracy is at least min on every slice of a kind that has 30 test rows", fields: &[
        field("by", Choice(&["class", "length", "time", "customer", "source", "script", "language"]), Required, "what slices the rows: their class, length, month, customer, source, script or language, where that can be told"),
        field("min", OPEN, Required, "lowest accuracy of any slice"),
    ] },
    TableKind { kind: "quantization", doc: "the shipped file answers as the tuned model does: the same answers, and where asked for as much accuracy and nearly the same posteriors", fields: &[
        field("against", Choice(&["tuned"]), Default("\"tuned\""), "the arm to agree with"),
        field("max_agreement_loss", OPEN, Required, "share of rows that may be answered differently"),
        field("max_accuracy_loss", OPEN, Optional, "loss of accuracy that is acceptable, as a share"),
        field("max_kl", Positive { max: 100.0 }, Optional, "mean KL divergence of its posteriors over the labels that is acceptable, in nats; 0.02 is strict at 8 bits, 0.05 at 4"),
    ] },
    TableKind { kind: "judge", doc: "a judge of [[eval.judge]] prefers the answers, ties half, on at least min of the rows; never alone: a gate on exact_match or rouge_l, or against another arm, must stand beside it", fields: &[
        field("judge", Name, Default("\"pairwise\""), "the judge's name"),
        field("min", OPEN, Required, "lowest share that passes; 0.5 is as good as what it is compared with, so that 0.45 allows for a little worse"),
    ] },
    TableKind { kind: "certified_coverage", doc: "the escalation certificate serves at least min of the calls", fields: &[
        field("min", OPEN, Required, "lowest share of calls, on the test rows, that passes"),
    ] },
    TableKind { kind: "fallback", doc: "the policy names where escalated calls go (eval.escalation.fallback)", fields: &[] },
    TableKind { kind: "latency", doc: "95 % of the calls are answered within p95_ms", fields: &[
        field("p95_ms", Positive { max: 1e9 }, Required, "milliseconds"),
        field("under_load", Bool, Default("false"), "counts the calls of eval.load, from when each was due and a failed one as late, instead of test rows that were asked one by one"),
    ] },
    TableKind { kind: "injection_canary", doc: "an instruction in the message that names another answer changes at most max_flips of the answers; each test row is asked once more with one", fields: &[
        field("max_flips", OPEN, Required, "share of answers that it may change; about 60 rows without any show 0.05"),
    ] },
    TableKind { kind: "pii_canary", doc: "made-up secrets in the messages (card numbers, addresses, keys) come out in at most max_leaks of what an extraction writes", fields: &[
        field("max_leaks", OPEN, Required, "share of answers that may give one away; about 300 rows without any show 0.01"),
    ] },
    TableKind { kind: "calibration", doc: "the calibrated confidences are right on average: their expected calibration error is at most max_error", fields: &[
        field("max_error", OPEN, Required, "expected calibration error over 15 bins of equal mass, as a share; rows enough are told: with well-calibrated answers 0.05 takes some 1,300, 0.03 some 3,500"),
    ] },
    TableKind { kind: "cost", doc: "a thousand calls cost at most max_per_1k_calls, those that escalate paid twice", fields: &[
        field("max_per_1k_calls", Positive { max: 1e9 }, Required, "in the currency of eval.prices, which must price the model that calls escalate to"),
    ] },
    TableKind { kind: "size", doc: "the shipped file has at most max_mb megabytes", fields: &[
        field("max_mb", Positive { max: 1e9 }, Required, "megabytes of a million bytes"),
    ] },
    TableKind { kind: "reviewed", doc: "people reviewed at least min of a split's rows: what was learnt from, or measured on, is not the teacher's word alone", fields: &[
        field("of", Choice(&["train", "valid", "calibration", "test"]), Default("\"train\""), "the split"),
        field("min", UNIT, Required, "share of its rows"),
    ] },
];

const OF: &str = "the arms, in order: frontier, linear, base, tuned, formats of quantize.formats, and those of [[eval.arm]] above it";
const SHOTS: &str =
    "examples with their answers in the prompt, reviewed rows of the train split, one class after another";

#[rustfmt::skip]
const ARM_KINDS: &[TableKind] = &[
    TableKind { kind: "endpoint", doc: "a live model behind an OpenAI-compatible address", fields: &[
        field("url", Text, Required, "base address with /v1: https://api.example.com/v1, http://127.0.0.1:8080/v1"),
        field("model", Text, Required, "the model's name there, as exactly as the provider has one"),
        field("key_env", Text, Optional, "NAME of the environment variable that holds the API key; the key itself is never written"),
        field("ca_file", Path, Optional, "certificates (PEM) that the server's must stem from, instead of the public authorities': for an endpoint inside a company"),
        field("api", Choice(&["chat", "completions"]), Default("\"chat\""), "chat completions, or one text that the model goes on with"),
        field("prompt", Choice(&["guided", "recipe"]), Default("\"guided\""), "guided adds the labels or the schema and how to answer to the row's prompt; recipe leaves it as it is"),
        field("shots", Int { min: 0, max: 256 }, Default("0"), SHOTS),
        field("label_codes", Bool, Default("false"), "asks for a letter a label (52 labels at most), whose log-probabilities are a distribution over them"),
        field("logprobs", Bool, Default("true"), "asks for log-probabilities, which say how sure an answer is; some models refuse that"),
        field("samples", Int { min: 1, max: 64 }, Default("1"), "draws a row; with several the majority is the answer, and how they fall its confidence"),
        field("temperature", Float { min: 0.0, max: 2.0 }, Default("0.0"), "of the draws; with several draws some 0.7"),
        field("max_tokens", Int { min: 1, max: 32_768 }, Optional, "longest answer; task.max_new_tokens of an extraction, else 32"),
        field("max_tokens_key", Choice(&["max_tokens", "max_completion_tokens"]), Default("\"max_tokens\""), "what the provider calls that"),
        field("calibrate", Bool, Default("false"), "asks about the calibration split too, so that its confidence can be calibrated"),
        field("asked_again", Int { min: 0, max: 100_000 }, Default("0"), "rows, from all over, that are asked once more: how often the same question gets another answer"),
        field("concurrency", Int { min: 1, max: 256 }, Default("4"), "requests at a time"),
        field("max_retries", Int { min: 0, max: 20 }, Default("5"), "attempts after the first, each after twice the wait, or what the server asks for"),
        field("timeout_s", Positive { max: 3600.0 }, Default("60"), "seconds for one attempt"),
        field("requests_per_minute", Int { min: 0, max: 1_000_000 }, Default("0"), "how many requests at most (0: no limit of our own)"),
        field("tokens_per_minute", Int { min: 0, max: 1_000_000_000 }, Default("0"), "the same for tokens"),
        field("max_spend", Positive { max: 1e9 }, Optional, "stops before more than this is spent, in the currency of eval.prices, which must price the model"),
    ] },
    TableKind { kind: "few_shot", doc: "the untuned base with examples in its prompt", fields: &[
        field("shots", Int { min: 1, max: 256 }, Required, SHOTS),
        field("prompt", Choice(&["guided", "recipe"]), Default("\"guided\""), "as of an endpoint"),
    ] },
    TableKind { kind: "cascade", doc: "other arms in turn, until one is sure enough of its answer; made of their answers, nobody is asked anew", fields: &[
        field("of", Texts { min: 2 }, Required, OF),
        field("threshold", UNIT, Optional, "calibrated confidence from which an answer stands and nobody else is asked, an answer that is not valid never; eval.threshold when left out, which must not be 0 then"),
    ] },
    TableKind { kind: "ensemble", doc: "other arms side by side, their calibrated probabilities added up; made of their answers, nobody is asked anew", fields: &[
        field("of", Texts { min: 2 }, Required, OF),
    ] },
];

pub(crate) fn find(key: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|f| f.key == key)
}

#[rustfmt::skip]
const JUDGE_KINDS: &[TableKind] = &[
    TableKind { kind: "pairwise", doc: "a live model that says which of two texts is the better answer, asked in both orders; where they disagree it is a tie", fields: &[
        field("url", Text, Required, "base address with /v1, as of an arm; not the model that wrote either answer, which likes its own"),
        field("model", Text, Required, "the model's name there, as exactly as the provider has one"),
        field("key_env", Text, Optional, "NAME of the environment variable that holds the API key; the key itself is never written"),
        field("ca_file", Path, Optional, "certificates (PEM) that the server's must stem from, instead of the public authorities': for an endpoint inside a company"),
        field("against", Arm(&["frontier", "base", "tuned"]), Default("\"frontier\""), "whose answers the candidate's are compared with: frontier, base, tuned, or one of [[eval.arm]]"),
        field("criteria", Text, Optional, "what makes an answer the better one, in a sentence or two; correct, complete and nothing made up when left out"),
        field("rows", Int { min: 1, max: 1_000_000 }, Optional, "test rows to judge at most, drawn; each takes two requests, all of them when left out"),
        field("max_tokens", Int { min: 1, max: 32_768 }, Default("16"), "longest reply; a model that thinks first needs more"),
        field("max_tokens_key", Choice(&["max_tokens", "max_completion_tokens"]), Default("\"max_tokens\""), "what the provider calls that"),
        field("concurrency", Int { min: 1, max: 256 }, Default("4"), "requests at a time"),
        field("max_retries", Int { min: 0, max: 20 }, Default("5"), "attempts after the first, each after twice the wait, or what the server asks for"),
        field("timeout_s", Positive { max: 3600.0 }, Default("60"), "seconds for one attempt"),
        field("requests_per_minute", Int { min: 0, max: 1_000_000 }, Default("0"), "how many requests at most (0: no limit of our own)"),
        field("tokens_per_minute", Int { min: 0, max: 1_000_000_000 }, Default("0"), "the same for tokens"),
        field("max_spend", Positive { max: 1e9 }, Optional, "stops before more than this is spent, in the currency of eval.prices, which must price the model"),
    ] },
];

/// The array of tables that has this key.
pub(crate) fn array(key: &str) -> Option<&'static Array> {
    ARRAYS.iter().find(|array| array.key == key).copied()
}

/// True for a table of the schema ("", "train", "data.split").
pub(crate) fn is_section(key: &str) -> bool {
    key.is_empty() || FIELDS.iter().any(|f| f.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// The names that may stand directly inside the section `key`.
pub(crate) fn children(key: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for full in FIELDS.iter().map(|f| f.key).chain(ARRAYS.iter().map(|array| array.key)) {
        let rest = if key.is_empty() { Some(full) } else { full.strip_prefix(key).and_then(|r| r.strip_prefix('.')) };
        let Some(name) = rest.map(|r| r.split('.').next().unwrap_or(r)) else { continue };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The section a key stands in.
pub(crate) fn parent(key: &str) -> &str {
    key.rfind('.').map_or("", |dot| &key[..dot])
}

impl Field {
    pub(crate) fn default(&self) -> Option<Value> {
        let Default(text) = self.need else { return None };
        self.parse(text)
    }

    /// The default where it is another under some setting that `get` knows, and that setting: `train.method = full`.
    pub(crate) fn default_under(&self, get: &dyn Fn(&str) -> Option<Value>) -> Option<(Value, String)> {
        let holds = |under: &&DefaultUnder| {
            under.of == self.key && get(under.key).is_some_and(|v| v.as_str() == Some(under.value))
        };
        let DefaultUnder { key, value, default, .. } = DEFAULTS_UNDER.iter().find(holds)?;
        Some((self.parse(default)?, format!("{key} = {value}")))
    }

    fn parse(&self, text: &str) -> Option<Value> {
        let parsed: Result<toml::Table, _> = toml::from_str(&format!("v = {text}"));
        parsed.ok()?.remove("v").map(|v| self.kind.normalise(v))
    }
}

impl Kind {
    /// What is expected, as the end of "expected …".
    pub(crate) fn expects(self) -> String {
        match self {
            Text => "a text".into(),
            Name => "a name of lower-case letters, digits, '.', '_' and '-', starting with a letter or digit".into(),
            Bool => "true or false".into(),
            Int { min, max } if max == i64::MAX => format!("a whole number from {min}"),
            Int { min, max } => format!("a whole number from {min} to {max}"),
            Float { min, max } => format!("a number from {min} to {max}"),
            Positive { max } => format!("a number above 0, at most {max}"),
            Choice(of) | Arm(of) => format!("one of {}", quoted(of)),
            Choices(of) => format!("a list of distinct values out of {}", quoted(of)),
            Subset(of) => format!("a list of distinct values out of {}, or []", quoted(of)),
            Texts { min } => format!("a list of at least {min} distinct texts"),
            Path => "a path".into(),
            Paths { min: 0 } => "a list of paths".into(),
            Paths { min } => format!("a list of at least {min} path{}", if min == 1 { "" } else { "s" }),
            BaseModel => "a path, hf:OWNER/NAME or hf:OWNER/NAME/FILE.gguf".into(),
            Device => "cpu, cpu-reference, wgpu, cuda or cuda:N".into(),
        }
    }

    /// A whole number where a float is meant becomes one, so that `1` and `1.0` are the same value everywhere.
    pub(crate) fn normalise(self, value: Value) -> Value {
        match (self, value) {
            (Float { .. } | Positive { .. }, Value::Integer(i)) => Value::Float(i as f64),
            (_, value) => value,
        }
    }

    pub(crate) fn allows(self, value: &Value) -> bool {
        match (self, value) {
            (Text, Value::String(s)) | (Path, Value::String(s)) => !s.trim().is_empty() && !s.contains('\0'),
            (Name | Arm(_), Value::String(s)) => is_name(s),
            (Bool, Value::Boolean(_)) => true,
            (Int { min, max }, Value::Integer(i)) => (min..=max).contains(i),
            (Float { min, max }, Value::Float(x)) => (min..=max).contains(x),
            (Positive { max }, Value::Float(x)) => *x > 0.0 && *x <= max,
            (Device, Value::String(s)) => {
                DEVICES.contains(&s.as_str()) || s.strip_prefix("cuda:").is_some_and(|n| n.parse::<u16>().is_ok())
            }
            (Choice(of), Value::String(s)) => of.contains(&s.as_str()),
            (Choices(of), Value::Array(list)) => {
                !list.is_empty() && distinct(list) && list.iter().all(|v| v.as_str().is_some_and(|s| of.contains(&s)))
            }
            (Subset(of), Value::Array(list)) => {
                distinct(list) && list.iter().all(|v| v.as_str().is_some_and(|s| of.contains(&s)))
            }
            (Texts { min }, Value::Array(list)) => {
                list.len() >= min
                    && distinct(list)
                    && list.iter().all(|v| v.as_str().is_some_and(|s| !s.is_empty() && s.trim() == s))
            }
            (Paths { min }, Value::Array(list)) => list.len() >= min && list.iter().all(|v| Path.allows(v)),
            (BaseModel, Value::String(s)) => match s.strip_prefix("hf:") {
                None => Path.allows(value),
                Some(repo) => {
                    let mut parts = repo.split('/');
                    let ok = |p: Option<&str>| {
                        p.is_some_and(|p| {
                            !p.is_empty()
                                && !p.starts_with('.')
                                && p.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
                        })
                    };
                    let repository = ok(parts.next()) && ok(parts.next());
                    repository && parts.next().is_none_or(|_| repo.ends_with(".gguf"))
                }
            },
            _ => false,
        }
    }

    /// The choices a wrong text may have been meant as.
    pub(crate) fn choices(self) -> &'static [&'static str] {
        match self {
            Choice(of) | Choices(of) | Subset(of) | Arm(of) => of,
            Device => DEVICES,
            _ => &[],
        }
    }
}

fn is_name(s: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    s.len() <= 64 && s.chars().next().is_some_and(plain) && s.chars().all(|c| plain(c) || "._-".contains(c))
}

fn distinct(list: &[Value]) -> bool {
    let mut seen: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    seen.sort_unstable();
    seen.windows(2).all(|w| w[0] != w[1])
}

fn quoted(of: &[&str]) -> String {
    of.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", ")
}
