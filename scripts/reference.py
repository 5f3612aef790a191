#!/usr/bin/python3
"""Plain float64 LoopLM, independent of the engine: what every loop of every position computes.

    reference.py lens MODEL --ids 1,2,3 [--loops T] [--top N] [-o out.json|out.npz]
    reference.py generate MODEL --ids 1,2,3 --max-tokens N [--exit exact|full]
                          [--exit-threshold Q] [--loops T] [--min-loops M]
                          [--stop-ids 1,2 | --ignore-eos] [--incremental | --check]
    reference.py accuracy MODEL PROMPTS.jsonl [--exit-threshold Q] [--exit exact|full] [--limit N]

It reads config.json and safetensors by itself (F32, BF16, F16, single or sharded), needs numpy
only, and is written from the published description of the model (arXiv 2510.25741), not from the
engine: no paging, no batches, no parked rows. All loops of all positions are always computed; the
exit loop is chosen afterwards. `generate` recomputes everything for every token; --incremental
keeps K and V per loop, --check does both and fails when they differ.

lens: positions[i].loops[t] with lambda, cdf, top: [{id, logit}], in full precision. generate:
prompt_ids, tokens (a stop id included), exit_loops (1-based), finish_reason; and, to keep tests
away from ties, margin (min |cdf - q| over decisions) and top2_gap (min distance of the two best
logits).
"""
import argparse
import json
import pathlib
import struct
import sys

import numpy as np

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class Problem(Exception):
    """Something the user can mend; printed as one line."""


# ---- a checkpoint on disk ------------------------------------------------------------------------


def widen(stored, kind):
    """Stored elements as float64, exactly."""
    if kind == "BF16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


class Tensors:
    """All tensors of a model directory by name, mapped; read() widens one to float64."""

    def __init__(self, directory):
        index = directory / "model.safetensors.index.json"
        if index.exists():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        else:
            shards = ["model.safetensors"]
        self.entries = {}
        for shard in shards:
            path = directory / shard
            if not path.exists():
                raise Problem(f"{path}: no such file")
            with open(path, "rb") as f:
                (n,) = struct.unpack("<Q", f.read(8))
                header = json.loads(f.read(n))
            data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + n)
            for name, info in header.items():
                if name != "__metadata__":
                    begin, end = info["data_offsets"]
                    self.entries[name] = (data[begin:end], info["dtype"], info["shape"])

    def read(self, name):
        if name not in self.entries:
            raise Problem(f"the checkpoint has no tensor {name}")
        data, kind, shape = self.entries[name]
        if kind not in DTYPES:
            raise Problem(f"{name}: dtype {kind} is none of {', '.join(DTYPES)}")
        return widen(np.frombuffer(data.tobytes(), DTYPES[kind]), kind).reshape(shape)


class Weights:
    """Widened weights by name, kept when the model is small and widened anew each time when not."""

    KEEP_BYTES = 2 << 30

    def __init__(self, tensors):
        self.tensors = tensors
        self.kept = {}
        n = sum(int(np.prod(shape)) for _, _, shape in tensors.entries.values())
        self.keeps = n * 8 <= self.KEEP_BYTES

    def __getitem__(self, name):
        if name in self.kept:
            return self.kept[name]
        value = self.tensors.read(name)
        if self.keeps:
            self.kept[name] = value
        return value


# ---- the model -----------------------------------------------------------------------------------


def rms_norm(x, gain, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def rotate(x, positions, theta):
    """x [n, heads, D]: half-split rotation by position."""
    half = x.shape[-1] // 2
    frequency = theta ** (-2.0 * np.arange(half) / x.shape[-1])
    angle = positions[:, None] * frequency[None, :]
    c, s = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    x1, x2 = x[..., :half], x[..., half:]
    return np.concatenate([x1 * c - x2 * s, x2 * c + x1 * s], axis=-1)


class Model:
    def __init__(self, directory, n_loops=0):
        directory = pathlib.Path(directory)
        path = directory / "config.json"
        if not path.exists():
            raise Problem(f"{path}: no such file")
        c = json.loads(path.read_text())
        self.is_ouro = "OuroForCausalLM" in c["architectures"]
        if not self.is_ouro and "LlamaForCausalLM" not in c["architectures"]:
            raise Problem(f"{path}: architectures {c['architectures']}: neither Ouro nor Llama")
        self.n_layers = c["num_hidden_layers"]
        self.n_heads = c["num_attention_heads"]
        self.n_kv_heads = c.get("num_key_value_heads") or self.n_heads
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.n_heads
        self.eps = c["rms_norm_eps"]
        self.theta = float(c.get("rope_theta", 10000.0))
        self.vocab = c["vocab_size"]
        self.n_loops = n_loops or (c["total_ut_steps"] if self.is_ouro else 1)
        eos = c.get("eos_token_id")
        self.eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self.w = Weights(Tensors(directory))
        self.head_name = (
            "model.embed_tokens.weight" if c.get("tie_word_embeddings") else "lm_head.weight"
        )

    def linear(self, x, name):
        return x @ self.w[name].T

    def attention(self, x, prefix, positions, past):
        """past: [k, v] of the earlier positions at this loop and layer, extended in place."""
        n, groups = len(x), self.n_heads // self.n_kv_heads
        q = self.linear(x, prefix + "q_proj.weight").reshape(n, self.n_heads, self.head_dim)
        k = self.linear(x, prefix + "k_proj.weight").reshape(n, self.n_kv_heads, self.head_dim)
        v = self.linear(x, prefix + "v_proj.weight").reshape(n, self.n_kv_heads, self.head_dim)
        q, k = rotate(q, positions, self.theta), rotate(k, positions, self.theta)
        past[0] = k if past[0] is None else np.concatenate([past[0], k])
        past[1] = v if past[1] is None else np.concatenate([past[1], v])
        k, v = (np.repeat(a, groups, axis=1) for a in past)
        scores = np.einsum("ihd,jhd->hij", q, k) * self.head_dim**-0.5
        hidden = np.arange(len(k))[None, :] > positions[:, None]
        scores = np.where(hidden[None], -np.inf, scores)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        out = np.einsum("hij,jhd->ihd", scores, v).reshape(n, -1)
        return self.linear(out, prefix + "o_proj.weight")

    def block(self, h, positions, past):
        for i in range(self.n_layers):
            p = f"model.layers.{i}."

            def norm(x, name, p=p):
                return rms_norm(x, self.w[p + name + ".weight"], self.eps)

            x = norm(h, "input_layernorm")
            branch = self.attention(x, p + "self_attn.", positions, past[i])
            h = h + (norm(branch, "input_layernorm_2") if self.is_ouro else branch)
            x = norm(h, "post_attention_layernorm")
            gate = self.linear(x, p + "mlp.gate_proj.weight")
            up = self.linear(x, p + "mlp.up_proj.weight")
            branch = self.linear(gate * sigmoid(gate) * up, p + "mlp.down_proj.weight")
            h = h + (norm(branch, "post_attention_layernorm_2") if self.is_ouro else branch)
        return rms_norm(h, self.w["model.norm.weight"], self.eps)

    def empty_past(self):
        return [[[None, None] for _ in range(self.n_layers)] for _ in range(self.n_loops)]

    def forward(self, ids, first=0, past=None):
        """hidden [T, n, d] and lambda [T, n] of positions from `first`, given the earlier ones."""
        if any(not 0 <= i < self.vocab for i in ids):
            raise Problem(f"a token id is outside 0..{self.vocab - 1}")
        past = past or self.empty_past()
        positions = first + np.arange(len(ids))
        h = self.w["model.embed_tokens.weight"][np.asarray(ids)]
        hidden, lambdas = [], []
        for t in range(self.n_loops):
            h = self.block(h, positions, past[t])
            hidden.append(h)
            if self.is_ouro:
                gate = self.linear(h, "model.early_exit_gate.weight")[:, 0]
                lambdas.append(sigmoid(gate + self.w["model.early_exit_gate.bias"][0]))
            else:
                lambdas.append(np.zeros(len(ids)))
        return np.stack(hidden), np.stack(lambdas)

    def logits(self, hidden):
        return self.linear(hidden, self.head_name)


# ---- the exit rule -------------------------------------------------------------------------------


def exit_cdf(lambdas):
    """lambda [T, ...] to the cumulative exit probability; the last loop gets what remains."""
    survival, total, cdf = np.ones_like(lambdas[0]), np.zeros_like(lambdas[0]), []
    for t, lam in enumerate(lambdas):
        total = total + (survival if t + 1 == len(lambdas) else lam * survival)
        survival = survival * (1 - lam)
        cdf.append(total)
    return np.stack(cdf)


def exit_loop(cdf, q, is_full, min_loops):
    """1-based loop of one row's exit, and how near the nearest decision was to the other."""
    last = len(cdf)
    margin = np.inf
    if is_full or q >= 1:
        return last, margin
    for t in range(min_loops, last):
        margin = min(margin, abs(cdf[t - 1] - q))
        if cdf[t - 1] >= q:
            return t, margin
    return last, margin


# ---- what the commands do ------------------------------------------------------------------------


def lens(model, ids, top):
    hidden, lambdas = model.forward(ids)
    cdf = exit_cdf(lambdas)
    logits = np.stack([model.logits(h) for h in hidden])
    return hidden, lambdas, cdf, logits, min(top or model.vocab, model.vocab)


def lens_json(model, ids, top):
    _, lambdas, cdf, logits, top = lens(model, ids, top)
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :top]
    positions = []
    for i, token in enumerate(ids):
        loops = []
        for t in range(model.n_loops):
            best = [{"id": int(j), "logit": float(logits[t, i, j])} for j in order[t, i]]
            loops.append({"lambda": float(lambdas[t, i]), "cdf": float(cdf[t, i]), "top": best})
        positions.append({"position": i, "id": int(token), "loops": loops})
    return {"prompt_ids": list(ids), "n_loops": model.n_loops, "positions": positions}


def generate(model, ids, max_tokens, q, is_full, min_loops, stop_ids, incremental):
    prompt, past, pending, first = list(ids), model.empty_past(), list(ids), 0
    tokens, exits, margin, gap, finish = [], [], np.inf, np.inf, "length"
    for _ in range(max_tokens):
        if incremental:
            hidden, lambdas = model.forward(pending, first, past)
            first, pending = first + len(pending), []
        else:
            hidden, lambdas = model.forward(prompt + tokens)
        loop, near = exit_loop(exit_cdf(lambdas)[:, -1], q, is_full, min_loops)
        logits = model.logits(hidden[loop - 1, -1])
        second, best = np.partition(logits, -2)[-2:]
        token = int(np.argmax(logits))
        margin, gap = min(margin, near), min(gap, best - second)
        tokens.append(token)
        exits.append(loop)
        pending = [token]
        if token in stop_ids:
            finish = "stop"
            break
    return {
        "prompt_ids": prompt,
        "tokens": tokens,
        "exit_loops": exits,
        "finish_reason": finish,
        "margin": None if np.isinf(margin) else float(margin),
        "top2_gap": float(gap),
    }


def check_equal(model, *args):
    full, quick = generate(model, *args, False), generate(model, *args, True)
    for key in ("tokens", "exit_loops", "finish_reason"):
        if full[key] != quick[key]:
            raise Problem(f"{key}: recomputed {full[key]}, incremental {quick[key]}")
    h_full, _ = model.forward(full["prompt_ids"] + full["tokens"])
    past, rows = model.empty_past(), []
    for i, token in enumerate(full["prompt_ids"] + full["tokens"]):
        rows.append(model.forward([token], i, past)[0][:, 0])
    worst = float(np.max(np.abs(h_full - np.stack(rows, axis=1))))
    if worst > 1e-9:
        raise Problem(f"hidden states differ by {worst}")
    full["check"] = {"hidden_difference": worst}
    return full


def accuracy(model, path, q, is_full, min_loops, limit):
    """Demo prompts: <s>, then one id per character; the answer is the greedy continuation."""
    vocab = json.loads((path["model"] / "tokenizer.json").read_text())["model"]["vocab"]
    vocab = {**vocab, " ": vocab["Ġ"], "\n": vocab["Ċ"]}
    right, n, loops, by_loop = 0, 0, 0, {}
    for line in path["prompts"].read_text().splitlines()[: limit or None]:
        item = json.loads(line)
        ids = [vocab["<s>"]] + [vocab[c] for c in item["prompt"]]
        answer = [vocab[c] for c in item["answer"]]
        out = generate(model, ids, len(answer), q, is_full, min_loops, [], True)
        n += 1
        right += out["tokens"] == answer
        loops += sum(out["exit_loops"]) / len(answer)
        key = f"{item['task']} {item['level']}"
        row = by_loop.setdefault(key, [0] * model.n_loops)
        row[out["exit_loops"][0] - 1] += 1
    return {
        "prompts": n,
        "right": right,
        "accuracy": right / max(n, 1),
        "mean_exit_loop": loops / max(n, 1),
        "exits_by_difficulty": dict(sorted(by_loop.items())),
    }


def parse_ids(text):
    try:
        return [int(x) for x in text.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ids like 1,2,3") from None


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    for name in ("lens", "generate", "accuracy"):
        c = commands.add_parser(name)
        c.add_argument("model", type=pathlib.Path)
        c.add_argument("--loops", type=int, default=0, help="T; 0 = the model's own")
        c.add_argument("-o", "--output", type=pathlib.Path)
        if name == "accuracy":
            c.add_argument("prompts", type=pathlib.Path)
            c.add_argument("--limit", type=int, default=0)
        else:
            c.add_argument("--ids", type=parse_ids, required=True)
        if name == "lens":
            c.add_argument("--top", type=int, default=0, help="logits per row; 0 = all")
            continue
        c.add_argument("--exit", choices=("exact", "full"), default="full")
        c.add_argument("--exit-threshold", type=float, default=1.0)
        c.add_argument("--min-loops", type=int, default=1)
        if name == "generate":
            c.add_argument("--max-tokens", type=int, default=16)
            c.add_argument("--stop-ids", type=parse_ids, help="default: config.json's eos ids")
            c.add_argument("--ignore-eos", action="store_true")
            c.add_argument("--incremental", action="store_true")
            c.add_argument("--check", action="store_true")
    return p.parse_args()


def run(a):
    model = Model(a.model, a.loops)
    if a.command == "lens":
        if not a.ids:
            raise Problem("--ids is empty")
        if a.output and a.output.suffix == ".npz":
            hidden, lambdas, cdf, logits, _ = lens(model, a.ids, 0)
            np.savez(a.output, ids=a.ids, hidden=hidden, lambdas=lambdas, cdf=cdf, logits=logits)
            return None
        return lens_json(model, a.ids, a.top)
    is_full = a.exit == "full"
    if a.command == "accuracy":
        path = {"model": a.model, "prompts": a.prompts}
        return accuracy(model, path, a.exit_threshold, is_full, a.min_loops, a.limit)
    if not a.ids:
        raise Problem("--ids is empty")
    stop_ids = [] if a.ignore_eos else model.eos if a.stop_ids is None else a.stop_ids
    args = (model, a.ids, a.max_tokens, a.exit_threshold, is_full, a.min_loops, stop_ids)
    return check_equal(*args) if a.check else generate(*args, a.incremental)


def main():
    a = parse_arguments()
    try:
        out = run(a)
    except Problem as e:
        sys.exit(f"reference.py: {e}")
    if out is not None:
        text = json.dumps(out)
        if a.output:
            a.output.write_text(text + "\n")
        else:
            print(text)


if __name__ == "__main__":
    main()
