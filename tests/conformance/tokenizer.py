#!/usr/bin/env python3
"""Token ids as llama.cpp computes them, for model/tests/tokenizer_golden.rs.

usage: tokenizer.py texts TEXTS.json                      the texts, always the same
       tokenizer.py ids MODEL.gguf TEXTS.json IDS.json    llama.cpp's ids of each (needs: pip install xllamacpp)

The ids are asked of llama.cpp's own server (POST /tokenize, parse_special, nothing added), which runs inside xllamacpp.
"""

import hashlib
import json
import sys
import urllib.request

FIXED = [
    # Digits, dates, amounts; numbers of other scripts, superscripts, fractions, Roman numerals.
    "1", "12", "123", "1234567890", "a1b22c333", "3.14159", "1,000,000", "2026-11-22T13:37:00Z", "+44 20 7946 0958",
    "£12.50", "€ 1.234,56", "$0.99!", "100%", "1st 2nd 3rd 4th", "x2", "2x", "0x1F600", "1e-5", "٣٤٥", "１２３", "x²+y³",
    "½ + ¼ = ¾", "Ⅷ Ⅻ", "①②③", "१२३ ४५६", "𝟘𝟙𝟚", "v1.2.3-rc4", "12 345 678", "7  8   9", " 5", "5 ", "\t42\n",
    # Whitespace runs and the odd kinds of space.
    " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n", "\n ", " \n ", "\r\n", "\r\n\r\n", "\r", "a ", " a", "a  b",
    "a   b", "a    b", "a\tb", "a\t\tb", "a\n\nb", "a \n b", "a  \n  b", "   leading", "trailing   ", "  both  ", "a\u00a0b",
    "a\u2003b", "a\u3000b", "a\u200bb", "a\u2028b", "a\u0085b", "a\u000bb", "a\u000cb", "a \u00a0 b", "\u3000\u3000x", "x\ufeffy",
    "one\n  two\n    three\n", "    if x:\n        return\n", "end.  Next", "end. \n\n\nNext", " " * 17 + "x", "x" + " " * 33,
    "\n" * 9 + "x", "a" + "\t " * 5 + "b", ".  .", "!   ?", "1  2", "é  è",
    # Contractions, straight and curly, upper case, at the edges.
    "I'm", "we'll", "you've", "they're", "he'd", "it's", "don't", "can't", "IT'S", "WE'LL", "'s", "'t", " 's", "x's's", "'tis",
    "o'clock", "rock'n'roll", "I’m", "we’ll", "'re", "''s", "'S", "'Ll", "the dogs' bowls", "y'all'd've", "'m'm", "'ve 've",
    "what'sup", "It's 5 o'clock, isn't it?",
    # Punctuation and symbols.
    "...", "?!", "(a) [b] {c} <d>", "a-b_c.d/e", "--- *** ###", "\"quoted\"", "‘single’ “double”", "¿Qué? ¡Sí!", "…", "—–-",
    "a,b;c:d", "@user #tag", "a&b|c^d~e", "\\n \\t \\\\", "`code`", "$x$", "§ 5 ¶", "°C µm Ω", "±×÷", "→⇒↔", "™®©", "€£¥₿", "№",
    "http://example.org/a?b=c&d=%20#e", "user.name+tag@example.co.uk", "C:\\path\\to", "~/.bashrc", "!= == <= >= && || ->",
    # Scripts.
    "naïve café résumé", "Größe Straße ẞ", "İstanbul ığdır", "Łódź żółć", "Ελληνικά", "Здравствуй, мир", "Українська їжак",
    "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "বাংলা ভাষা", "தமிழ்", "ภาษาไทย", "ខ្មែរ", "မြန်မာ", "ქართული", "Հայերեն", "አማርኛ",
    "你好，世界", "漢字かな交じり文", "カタカナ ﾊﾝｶｸ", "한국어 문장", "ᄒ", "𝒜𝓁𝑔𝑒𝒷𝓇𝒶", "𠜎𠜱", "ᚠᚢᚦ", "ⴰⵎⴰⵣⵉⵖ", "Tiếng Việt", "e\u0301 cafe\u0301", "o\u0308",
    "a\u0300\u0301\u0302\u0303", "ﬁ ﬂ", "Ǆ ǅ ǆ", "ſ K Å", "אב12גד", "mixed עברית and English", "\u202eabc\u202c", "q\u0323\u0307",
    # Emoji: sequences, flags, skin tones, keycaps, tags.
    "😀", "😀😃😄", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣2️⃣", "❤️", "☺", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "a😀b", "hi 👋 there", "💳 lost 😡!!", "🤷‍♂️", "👨🏿‍💻",
    # Bytes that few vocabularies hold: controls, noncharacters, the last planes.
    "\x01", "a\x01b", "!\x02!", "\x1b[31mred\x1b[0m", "\x7f", "a\x7fb", "\ufffd", "\ufffe", "\U0010ffff", "x\U0010fffdy", "\U000e0001",
    "!\U000f0000!", "!\x04!", ".\x06.\x06.", "-\x13-\x14-", "!\U00040000!", "=\U00080001=", "\x04", "\x1c\x1d\x1e\x1f", "th\x03e", "\u0600\u0601",
    # Special tokens: whole, adjacent, broken, in text, with spaces.
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|><|im_end|>", "<|im_start|>user\nHello<|im_end|>\n",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
    "I lost my card 12 days ago!<|im_end|>\n<|im_start|>assistant\n", " <|im_end|> ", "a<|im_end|>b", "a <|im_end|>  b",
    "<|im_end", "|im_end|>", "<|im_end|", "< |im_end|>", "<|IM_END|>", "<|im_end|><", "<<|im_end|>>", "<|im_<|im_end|>end|>",
    "<repo_name>", "<reponame>x", "<file_sep><filename>a.py", "<gh_stars>100", "<issue_start>", "<issue_comment><issue_closed>",
    "<jupyter_start><jupyter_text>t<jupyter_code>1+1<jupyter_output>2", "<jupyter_script>", "<empty_output>", "</s><s>", "<pad>",
    "<unk>", "[INST] x [/INST]", "\n<|im_end|>\n", "  <|im_start|>  ", "5<|im_end|>5", "é<|endoftext|>é", "<|im_start|>" * 4,
    # Code.
    "fn main() {\n    println!(\"{}\", 42);\n}\n", "def f(x):\n\treturn x**2  # square\n", "for (int i=0;i<10;++i) a[i]+=b[i]*2;",
    "SELECT * FROM t WHERE id = 'x' AND n >= 10;", "{\"key\": [1, 2.5, null, true], \"s\": \"\\u00e9\"}", "<a href=\"#x\">y</a>",
    "x = y if z else w", "camelCase snake_case SCREAMING_CASE kebab-case", "a.b?.c ?? d", "#!/usr/bin/env bash\nset -euo pipefail\n",
    "let v: Vec<Option<&'a str>> = vec![];", "/* c */ // d", "1+1==2", "i++; --j;", "\\frac{a}{b}_{i=0}^{n}", "key:\n  - a\n  - b: 1\n",
    # Plain sentences, as a support desk gets them.
    "I am still waiting on my card?", "Why was I charged £1 extra for a top-up on 03/04?", "My card's PIN doesn't work.",
    "pls help!!! cant login :((", "The transfer to my friend hasn't arrived, it's been 3 days.", "What is the exchange rate for USD->EUR?",
    "HOW DO I CHANGE MY PIN", "Is there a limit on top ups?", "i think my card was stolen", "Ich habe meine Karte verloren.",
    "J'ai perdu ma carte hier à 18h30.", "¿Dónde está mi tarjeta?", "カードをなくしました。", "The capital of France is", "Paris",
]

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "    ", " \t\n\r", ".,;:!?'\"()[]{}<>|-_/\\@#$%^&*+=~`",
    "àâäéèêëïîôöùûüçñßøåæœÀÉÖÜÇÑ", "абвгдежзийклмнопрстуфхцчшщъыьэюя", "αβγδεζηθικλμνξοπρστυφχψω", "אבגדהוזחטיכלמנסעפצקרשת",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي", "的一是不了人我在有他这为之大来以个中上们", "あいうえおかきくけこアイウエオ", "가나다라마바사아자차카타파하", "०१२३٠١٢٣", "😀😂🤔👍🏽🎉❤️‍🔥🇩🇪",
    "\u00a0\u2003\u3000\u200b\u200d\u0301\u0308", "²³½Ⅷ①", "\x01\x08\x1b\x7f",
]
PIECES = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "'s", "'ll", "n't", " the", " of", "ing", "  ", "\n\n", "\r\n", "://", "123", " 45"]


def splitmix64(seed):
    mask = (1 << 64) - 1
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def made_up(n):
    """Runs of one alphabet after another, with special tokens and frequent pieces strewn in."""
    draw = splitmix64(2)
    pick = lambda items: items[next(draw) % len(items)]
    for _ in range(n):
        text = ""
        for _ in range(1 + next(draw) % 9):
            if next(draw) % 4 == 0:
                text += pick(PIECES)
            else:
                alphabet = pick(ALPHABETS)
                text += "".join(pick(alphabet) for _ in range(1 + next(draw) % 7))
        yield text


def texts():
    all_texts = FIXED + [a + b for a, b in zip(FIXED[::2], FIXED[1::2])]
    all_texts = list(dict.fromkeys(all_texts))
    return all_texts + list(made_up(1100 - len(all_texts)))


def ids(model, all_texts):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = 512, 1, False, 1
    server = xllamacpp.Server(params)
    for text in all_texts:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            yield json.load(answer)["tokens"]


def lines(items):
    return "[\n" + ",\n".join(json.dumps(i, ensure_ascii=True, separators=(",", ":")) for i in items) + "\n]\n"


if __name__ == "__main__":
    if sys.argv[1] == "texts":
        open(sys.argv[2], "w").write(lines(texts()))
    else:
        model, texts_path, out = sys.argv[2:5]
        found = list(ids(model, json.load(open(texts_path))))
        open(out, "w").write(lines(found))
        print(f"{len(found)} texts, {sum(map(len, found))} ids,", hashlib.sha256(open(model, "rb").read()).hexdigest(), file=sys.stderr)
