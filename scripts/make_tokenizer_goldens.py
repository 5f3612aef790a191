#!/usr/bin/env python3
"""Writes tests/data/tokenizer_small.json and tokenizer_goldens.jsonl with the reference library.

A small byte-level BPE with the settings of the published vocabulary is trained on the sources of
Python's standard library, some byte symbols are taken out of it, and the library's own answers for
curated and random texts become the goldens. Needs `pip install tokenizers`; not part of make test.
"""
import glob
import json
import os
import random
import sysconfig
import unicodedata

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <reponame> <file_sep> <filename> <gh_stars> "
    "<issue_start> <issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> "
    "<jupyter_output> <jupyter_script> <empty_output>"
).split()
VOCAB_SIZE = 1500
N_RANDOM = 700
# Rare control bytes, as the published vocabulary lacks some, and one that text does contain.
MISSING_BYTES = [0x01, 0x02, 0x07, 0x0B, 0x1C, 0x7F, ord("~")]
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "data")


def symbol_of_byte(byte):
    """GPT-2's table: printable Latin-1 stays, the rest is numbered from U+0100 in order."""
    kept = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    moved = [b for b in range(256) if b not in kept]
    return chr(byte) if byte in kept else chr(256 + moved.index(byte))


def read_corpus():
    texts = []
    for path in sorted(glob.glob(sysconfig.get_path("stdlib") + "/*.py")):
        with open(path, encoding="utf-8", errors="ignore") as file:
            texts.append(file.read())
    names = (chr(c) + " " + unicodedata.name(chr(c), "") for c in range(0xA0, 0x3100))
    texts.append("\n".join(names))
    return texts


def train(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [symbol_of_byte(b) for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())


def take_out(config, byte):
    """Removes a byte's symbol and all that was merged from it; ids close up, because the library
    gives an added token the number of tokens as its id, whatever the file says."""
    symbol = symbol_of_byte(byte)
    model = config["model"]
    model["merges"] = [m for m in model["merges"] if symbol not in "".join(m)]
    specials = set(SPECIAL)
    kept = [t for t in model["vocab"] if t in specials or symbol not in t]
    kept.sort(key=model["vocab"].get)
    model["vocab"] = {token: i for i, token in enumerate(kept)}


def add_tokens(config):
    next_id = max(config["model"]["vocab"].values()) + 1
    for offset, (content, normalized, special) in enumerate(
        [("<tool>", True, False), ("<tool> call", False, False), ("<|secret|>", False, True)]
    ):
        config["added_tokens"].append(
            {
                "id": next_id + offset,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": normalized,
                "special": special,
            }
        )


def curated():
    return [
        "", "a 12 b", "a  12", "1 000", "a   1   b", "\r\n1\r\n", "  lead", "trail  ", " ", "\n\n\n",
        "½ Ⅷ ٣٤ ²³ 一二", "don't DON'T we'll WE'LL it's I'd you've they're I'm 's'S", "e\u0301 \u0301x",
        "a\u00a0b \u00a0 c\u00a0\u00a0d", "a\u2003b\u3000c\u0085d", "~ a~b \x01\x7f \x0b x~y 1~2",
        "<|im_start|>user\nhi<|im_end|>\n", "<|im_end", "<<|im_end|>>", "<tool> call <tool>x<tool",
        "<|secret|>", "x<empty_output>y", "👩\u200d👩\u200d👧 🙂🙂", "def f(x):\n\treturn x  # why\n",
        "a" * 200, " " * 100 + "x", "=" * 77, "\0\0a\0",
    ]


def random_texts(texts):
    rng = random.Random(7)
    numbers = [chr(c) for c in range(0x1F200) if unicodedata.category(chr(c))[0] == "N"]
    marks = [chr(c) for c in range(0x1F200) if unicodedata.category(chr(c))[0] == "M"]
    atoms = list(" \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u200b\u2028\u202f\u3000\ufeffab1'.!~") + [
        "'s", "'t", "'re", "'ve", "'ll", "'S", "  ", "\r\n", " '", "the", " of", "é", "一", "½", "🙂",
        "<|im_end|>", "<tool>", "<tool> call", "<|", "|>",
    ]
    for i in range(N_RANDOM):
        kind, n = i % 4, rng.choice([1, 2, 5, 12, 30])
        if kind == 0:
            yield "".join(rng.choice(atoms) for _ in range(n))
        elif kind == 1:
            yield "".join(
                rng.choice(atoms + [rng.choice(numbers), rng.choice(marks)]) for _ in range(n)
            )
        elif kind == 2:
            points = [rng.randrange(0x80), rng.randrange(0x800), rng.randrange(0xD800),
                      rng.randrange(0xE000, 0x110000)]
            yield "".join(chr(rng.choice(points)) for _ in range(n))
        else:
            text = rng.choice(texts)
            at = rng.randrange(max(1, len(text) - 80))
            yield text[at : at + 4 * n]


def main():
    texts = read_corpus()
    config = train(texts)
    for byte in MISSING_BYTES:
        take_out(config, byte)
    add_tokens(config)
    os.makedirs(DATA, exist_ok=True)
    path = os.path.join(DATA, "tokenizer_small.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, ensure_ascii=False, indent=None, separators=(",", ":"))
        file.write("\n")
    tokenizer = Tokenizer.from_file(path)
    with open(os.path.join(DATA, "tokenizer_goldens.jsonl"), "w", encoding="utf-8") as file:
        for text in curated() + list(random_texts(texts)):
            row = {"text": text}
            for name, as_text in (("parsed", False), ("plain", True)):
                tokenizer.encode_special_tokens = as_text
                ids = tokenizer.encode(text).ids
                row[name] = ids
                row[name + "_decoded"] = tokenizer.decode(ids, skip_special_tokens=True)
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
