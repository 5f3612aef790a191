#!/usr/bin/env python3
"""Solves task prompts from their text alone and compares with the answers, levels and splits beside them.

    scripts/check_tasks.py [--split train|validation|test] FILE.jsonl...

A line is {"prompt": ..., "answer": ..., "task": ..., "level": ...}, level and "split" optional. level may count
from 0 (the trainer's index) or be the difficulty itself (hops, depth, numbers), one of the two for all lines of a
task. Nothing here is shared with the C code: the rules are written down a second time. Exit code 1 when
anything differs; the first differences are printed.
"""
import argparse
import json
import re
import sys

SYMBOLS = "\n abcdefghijklmnopqrstuvwxyz0123456789=>;+-*?,.:"


class Wrong(Exception):
    pass


def match(pattern, text, what):
    found = re.fullmatch(pattern, text)
    if not found:
        raise Wrong(f"{what} does not look like one: {text[:60]!r}")
    return found


def solve_hop(prompt):
    """One cycle over distinct letters; follow it. Returns answer, difficulty, index, context."""
    pairs, start, arrows = match(r"([a-z]>[a-z](?: [a-z]>[a-z])*);([a-z])(>+)", prompt, "a hop prompt").groups()
    to = {}
    for pair in pairs.split(" "):
        if pair[0] in to:
            raise Wrong(f"{pair[0]} leads to two letters")
        to[pair[0]] = pair[2]
    walk, at = [], pairs[0]
    while at not in walk:
        walk.append(at)
        at = to.get(at)
    if at != pairs[0] or len(walk) != len(to):
        raise Wrong("the pairs are not one cycle")
    if len(arrows) >= len(to):
        raise Wrong(f"{len(arrows)} hops in a cycle of {len(to)}")
    at = start
    for _ in arrows:
        at = to[at]
    return at, len(arrows), len(arrows) - 1, pairs + ";"


def solve_definitions(prompt, modulus, is_ordered):
    """Variables by recursion through their definitions, constants or two operands."""
    text, asked = match(r"([a-z]=[^ ;]+(?: [a-z]=[^ ;]+)*);([a-z])\?", prompt, "definitions").groups()
    definition, order = {}, []
    for one in text.split(" "):
        if one[0] in definition:
            raise Wrong(f"{one[0]} is defined twice")
        definition[one[0]] = one[2:]
        order.append(one[0])

    def operand(o, above):
        return (int(o), -1) if o.isdigit() else value(o, above)

    def value(name, above):
        if name in above or name not in definition:
            raise Wrong(f"{name} is defined by itself or not at all")
        body = definition[name]
        if re.fullmatch(r"\d", body):
            if int(body) >= modulus:
                raise Wrong(f"the digit {body} is not below {modulus}")
            return int(body), 0
        left, op, right = match(r"([a-z]|\d)([-+*])([a-z]|\d)", body, "a definition").groups()
        if is_ordered and not (left.isalpha() and right.isdigit() and order.index(left) < order.index(name)):
            raise Wrong(f"{name}={body} is not from one variable before it")
        (a, da), (b, db) = operand(left, above + name), operand(right, above + name)
        if max(da, db) < 0:
            raise Wrong(f"{name}={body} has no variable")
        return (a + b if op == "+" else a - b if op == "-" else a * b) % modulus, 1 + max(da, db)

    for name in definition:
        value(name, "")
    answer, depth = value(asked, "")
    return str(answer), depth, depth, text + ";"


def solve_chain(prompt):
    return solve_definitions(prompt, 10, True)


def solve_igsm(prompt):
    return solve_definitions(prompt, 7, False)


def solve_addition(prompt):
    match(r"\d+(\+\d+)+=", prompt, "an addition prompt")
    numbers = prompt[:-1].split("+")
    width = len(numbers[0])
    if any(len(n) != width for n in numbers) or len(numbers) not in (2, 4, 8, 16, 32):
        raise Wrong(f"{len(numbers)} numbers, not all of {width} digits")
    places = len(str(len(numbers) * (10**width - 1)))
    return str(sum(map(int, numbers))).zfill(places), len(numbers), len(numbers).bit_length() - 2, prompt


def solve_phop(prompt):
    """hop_p(v) = v[find_p(v, n)] with the paper's indices from 1."""
    letters, arrows = match(r"([a-z]+);(>+)", prompt, "a phop prompt").groups()
    v = " " + letters
    at = len(letters)
    for done in range(len(arrows)):
        now = max([0] + [j for j in range(2, at + 1) if v[j - 1] == v[at]])
        if now == 0 or now == at:
            raise Wrong(f"hop {done + 1} leads nowhere")
        at = now
    return v[at], len(arrows), len(arrows) - 1, letters + ";"


SOLVERS = {
    "hop": solve_hop,
    "chain": solve_chain,
    "addition": solve_addition,
    "phop": solve_phop,
    "igsm": solve_igsm,
}


def split_of(context):
    """FNV-1a, 64 bits, through MurmurHash3's finalizer; of 64 parts one is test, one validation."""
    mask, h = 2**64 - 1, 0xCBF29CE484222325
    for byte in context.encode():
        h = (h ^ byte) * 0x100000001B3 & mask
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & mask
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & mask
    return {0: "test", 1: "validation"}.get((h ^ h >> 33) % 64, "train")


def check_line(record, wanted_split, levels):
    """Adds (index fits, difficulty fits) of the level to levels."""
    prompt = record["prompt"]
    strange = sorted(set(prompt + record["answer"]) - set(SYMBOLS))
    if strange:
        raise Wrong(f"characters outside the alphabet: {strange}")
    if record["task"] not in SOLVERS:
        raise Wrong(f"unknown task {record['task']!r}, known are {', '.join(SOLVERS)}")
    answer, difficulty, index, context = SOLVERS[record["task"]](prompt)
    if answer != record["answer"]:
        raise Wrong(f"the answer is {answer!r}, the file says {record['answer']!r}")
    if "level" in record:
        fits = levels.setdefault(record["task"], [True, True])
        fits[0] &= record["level"] == index
        fits[1] &= record["level"] == difficulty
        if not any(fits):
            raise Wrong(f"level {record['level']} is not {index} (or {difficulty}), as in the lines before")
    split, wanted = split_of(context), record.get("split", wanted_split)
    if wanted and split != wanted:
        raise Wrong(f"a {split} context, not {wanted}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=["train", "validation", "test"])
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    n_lines, n_wrong = 0, 0
    for path in options.files:
        levels = {}
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                n_lines += 1
                try:
                    check_line(json.loads(line), options.split, levels)
                except (Wrong, KeyError, ValueError) as problem:
                    n_wrong += 1
                    if n_wrong <= 10:
                        print(f"{path}:{number}: {problem}")
    print(f"{n_lines} prompts, {n_wrong} wrong")
    return 1 if n_wrong or not n_lines else 0


if __name__ == "__main__":
    sys.exit(main())
