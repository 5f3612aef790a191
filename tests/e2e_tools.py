#!/usr/bin/env python3
"""What surrounds the engine: info, doctor, help, options as variables, bench kernels, installing.

Sizes of info come from the reference's reader of safetensors; everything else from what the help promises.
"""
import re
import shutil

from e2e_lib import DEMO, ROOT, WORK, Checks, reference, run, run_command, run_json, run_ok

SUBCOMMANDS = (["generate"], ["serve"], ["batch"], ["lens"], ["bench"], ["bench", "kernels"], ["bench", "net"],
               ["bench", "engine"], ["bench", "trace"], ["train"], ["eval"], ["gate"], ["simulate"], ["info"],
               ["doctor"])
MOST_LINES, MOST_COLUMNS = 36, 80


def info_counts(c):
    found = run_json("info", DEMO)
    model = reference().Model(DEMO)
    c.equal((found["layers"], found["heads"], found["kv_heads"], found["head_dim"], found["vocab_size"], found["loops"]),
            (model.n_layers, model.n_heads, model.n_kv_heads, model.head_dim, model.vocab, model.n_loops), "dimensions")
    c.equal(found["kv_bytes_per_position"], found["kv_bytes_per_position_and_loop"] * found["loops"], "KV of all loops")
    c.equal(found["kv_bytes_per_position_and_loop"], 2 * found["layers"] * found["kv_heads"] * found["head_dim"] * 4,
            "KV of a loop in f32")
    halved = run_json("info", DEMO, "--kv-dtype", "bf16", "--loops", 2)
    c.equal(halved["kv_bytes_per_position"], found["kv_bytes_per_position_and_loop"], "two loops in bf16")
    text = run_ok("info", DEMO).out
    for word in ("2 layers", f"{found['parameters']} parameters", found["fingerprint"], "fits here"):
        c.check(word in text, f"info says {word!r}: {text!r}")


def doctor_proves(c):
    """One hash a level; "all well" with exit code 0."""
    result = run_ok("doctor", timeout=120)
    hashes = {}
    for level, digest in re.findall(r"^  ok +(\w+) .* ([0-9a-f]{16})$", result.out, re.M):
        hashes.setdefault(level, []).append(digest)
    c.check("portable" in hashes, f"the portable level always runs: {result.out!r}")
    for level, digests in hashes.items():
        c.check(len(digests) >= 5 and len(set(digests)) == 1, f"{level}: {digests}")
    c.check(result.out.rstrip().endswith("all well"), f"doctor ends well: {result.out!r}")


def help_fits(c):
    c.check(re.fullmatch(r"carousel \d+\.\d+\.\d+\n", run_ok("--version").out), "--version")
    c.check("doctor" in run_ok("--help").out, "--help lists the subcommands")
    for words in SUBCOMMANDS:
        lines = run_ok(*words, "--help").out.splitlines()
        name = " ".join(words)
        c.check(lines[0].startswith(f"usage: carousel {name}"), f"{name}: first line {lines[0]!r}")
        c.check(len(lines) <= MOST_LINES, f"{name}: {len(lines)} lines of help")
        c.check(max(map(len, lines)) <= MOST_COLUMNS, f"{name}: {max(map(len, lines))} columns of help")


def every_option_is_a_variable(c):
    """A value that the option refuses is refused as a variable, by the variable's name."""
    n_options = 0
    for words in SUBCOMMANDS:
        if words == ["bench"]:
            continue
        text = run_ok(*words, "--help-all").out
        for name, argument in re.findall(r"^  (?:-\w, )?--([a-z-]+) ?(\S*)", text, re.M):
            is_checked = "|" in argument and argument != "N|A-B" or argument in ("N", "X", "Q", "P", "K", "M", "T", "W", "G", "S", "MS", "SIZE")
            if argument and not is_checked:
                continue
            variable = "CAROUSEL_" + name.upper().replace("-", "_")
            result = run(*words, env={variable: "neither"})
            c.check(result.code == 2 and variable in result.err, f"{' '.join(words)}: {variable} is read: {result}")
            n_options += 1
    c.check(n_options > 60, f"{n_options} options seen")
    one = run_json("generate", DEMO, "--ids", "1,2", "-n", 3, "--ignore-eos")
    same = run_ok("generate", DEMO, "--ids", "1,2",
                  env={"CAROUSEL_JSON": "1", "CAROUSEL_MAX_TOKENS": "3", "CAROUSEL_IGNORE_EOS": "yes"}).json()
    c.equal(same["tokens"], one["tokens"], "variables do what options do")
    both = run_json("generate", DEMO, "--ids", "1,2", "-n", 2, "--ignore-eos", env={"CAROUSEL_MAX_TOKENS": "3"})
    c.equal(both["tokens"], one["tokens"][:2], "the command line wins")


def bench_kernels_reports(c):
    rows = run_json("bench", "kernels", "--quick", "--threads", 1, "--rows", "1,3", timeout=120)
    c.equal([(r["shape"], r["rows"]) for r in rows],
            [(s, n) for s in ("qkv", "o", "gate_up", "down", "head") for n in (1, 3)]
            + [("attention_decode_4k", n) for n in (1, 4)], "shapes and rows")
    for r in rows:
        c.check(r["threads"] == 1 and r["seconds"] >= r["best_seconds"] > 0, f"times: {r}")
        c.check(abs(r["of_peak"] - r["gflops"] / r["peak_gflops"]) < 0.001, f"share of the peak: {r}")
        c.check(abs(r["of_read"] - r["gbytes_s"] / r["read_gbytes_s"]) < 0.001, f"share of the bandwidth: {r}")


def prompt_from_standard_input(c):
    """generate and lens take `-`; one final newline is no part of the prompt."""
    prompt = "f>w c>x x>d w>q d>r q>c r>s s>f;c>"
    ids = run_json("generate", prompt, "-n", 1)["prompt_ids"]
    for name, options in (("generate", ["-n", 1]), ("lens", [])):
        for text in (prompt, prompt + "\n"):
            found = run_ok(name, "-", *options, "--json", stdin=text).json()
            c.equal(found["prompt_ids"], ids, f"{name} - with {text[-2:]!r} at the end")
        for text, words in (("a\0b", "NUL byte at offset 1"), ("a\n\0", "NUL byte at offset 2")):
            result = run(name, "-", *options, stdin=text)
            c.check(result.code == 1 and words in result.err and result.err.count("\n") == 1, f"{name} -: {result}")


def workers_are_ranks(c):
    """Worker n of a table is rank n, in batch and in bench."""
    place = WORK / "ranks"
    place.mkdir(parents=True, exist_ok=True)
    (place / "in.jsonl").write_text('{"prompt": "a=2;a?", "max_tokens": 1}\n')
    (place / "out.jsonl").unlink(missing_ok=True)
    batch = ["batch", "-i", place / "in.jsonl", "-o", place / "out.jsonl", "--stats"]
    bench = ["bench", "engine", DEMO, "-r", 2, "-c", 2, "-p", 4, "-o", 2]
    for command in (batch, bench):
        options = [*command, "--workers", 2, "--transport", "inproc"]
        table = run_ok(*options).out.partition("\n")[2]
        rows = re.findall(r"^  (\d+) +[\d.]+ .*\d$", table[re.search(r"^ *worker ", table, re.M).start():], re.M)
        c.equal(rows, ["1", "2"], f"{command[0]}: workers of the table")
        c.equal([w["rank"] for w in run_json(*options)["workers"]], [1, 2], f"{command[0]}: ranks in --json")


def install_stands_alone(c):
    place = WORK / "install"
    shutil.rmtree(place, ignore_errors=True)
    made = run_command(["make", "--no-print-directory", "install", f"PREFIX={place}"], timeout=300, cwd=ROOT)
    c.equal(made.code, 0, f"make install: {made}")
    prompt = "f>w c>x x>d w>q d>r q>c r>s s>f;c>"
    here = run_ok("generate", prompt).out
    there = run_command([place / "bin" / "carousel", "generate", prompt], cwd=place)
    c.equal((there.code, there.out), (0, here), "the installed program finds its model")


def main():
    c = Checks("e2e_tools")
    for test in (info_counts, doctor_proves, help_fits, every_option_is_a_variable, bench_kernels_reports,
                 prompt_from_standard_input, workers_are_ranks, install_stands_alone):
        c.attempt(test)
    c.close()


if __name__ == "__main__":
    main()
