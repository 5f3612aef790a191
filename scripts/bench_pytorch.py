#!/usr/bin/env python3
"""The same model in plain PyTorch, as Hugging Face Transformers runs it: a static KV cache and, on a
GPU, one CUDA graph a decoding step. What `carousel bench replica` is compared with.

    bench_pytorch.py --sequences 1,64 --context 2048 [--shape ouro-1.4b] [--steps 32] [-o out.json]
    bench_pytorch.py --check MODEL       the same code against scripts/reference.py, on the CPU

One step decodes one token of every sequence: embedding, T loops of the block, the final norm after
each, the gate, the head after the last loop, argmax. Weights are random, in bfloat16. Modules follow
the published modeling code: separate q, k, v and gate, up projections, RMSNorm in float32, rotary
angles once a step, scaled_dot_product_attention over the whole static cache with a mask, one cache
per loop and layer. Needs torch; --check needs numpy, too.
"""
import argparse
import gc
import json
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))


class Shape:
    """Dimensions of a model, by the names of make_checkpoint.py."""

    def __init__(self, values):
        for name in ("layers", "d_model", "ffn", "heads", "kv_heads", "head_dim", "vocab", "loops",
                     "rope_theta"):
            setattr(self, name, values[name])
        self.eps = values.get("eps", 1e-6)


def rms_norm(x, gain, eps):
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return gain * wide.to(x.dtype)


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class Model:
    """Weights and one decoding step over a static cache of `context` positions a sequence."""

    LAYER = ("input_layernorm", "input_layernorm_2", "post_attention_layernorm",
             "post_attention_layernorm_2")

    def __init__(self, shape, device, dtype, read=None):
        self.s, self.device, self.dtype = shape, device, dtype
        self.read = read or self.random
        s = shape
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        self.embed = self.read("model.embed_tokens.weight", (s.vocab, s.d_model))
        self.head = self.read("lm_head.weight", (s.vocab, s.d_model))
        self.norm = self.read("model.norm.weight", (s.d_model,))
        self.gate = self.read("model.early_exit_gate.weight", (1, s.d_model))
        self.gate_bias = self.read("model.early_exit_gate.bias", (1,))
        self.layers = []
        for i in range(s.layers):
            p = f"model.layers.{i}."
            layer = {name: self.read(p + name + ".weight", (s.d_model,)) for name in self.LAYER}
            for name, form in (("q", (q, s.d_model)), ("k", (kv, s.d_model)), ("v", (kv, s.d_model)),
                               ("o", (s.d_model, q))):
                layer[name] = self.read(f"{p}self_attn.{name}_proj.weight", form)
            for name, form in (("gate", (s.ffn, s.d_model)), ("up", (s.ffn, s.d_model)),
                               ("down", (s.d_model, s.ffn))):
                layer[name] = self.read(f"{p}mlp.{name}_proj.weight", form)
            self.layers.append(layer)

    def random(self, name, form):
        if "norm" in name:
            return torch.ones(form, device=self.device, dtype=self.dtype)
        scale = 1.0 if name.endswith("embed_tokens.weight") else form[-1] ** -0.5
        return torch.randn(form, device=self.device, dtype=self.dtype) * scale

    def make_cache(self, n, context):
        s = self.s
        form = (s.loops, s.layers, 2, n, s.kv_heads, context, s.head_dim)
        n_bytes = torch.empty((), dtype=self.dtype).element_size()
        for size in form:
            n_bytes *= size
        self.cache_bytes = n_bytes
        # Values of a usual size: what reading costs may depend on the bits.
        self.cache = torch.empty(form, device=self.device, dtype=self.dtype)
        for t in range(s.loops):
            self.cache[t].normal_()

    def attention(self, x, layer, loop, index, cos, sin, position, mask):
        s, n = self.s, x.shape[0]
        q = F.linear(x, layer["q"]).view(n, 1, s.heads, s.head_dim).transpose(1, 2)
        k = F.linear(x, layer["k"]).view(n, 1, s.kv_heads, s.head_dim).transpose(1, 2)
        v = F.linear(x, layer["v"]).view(n, 1, s.kv_heads, s.head_dim).transpose(1, 2)
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        keys, values = self.cache[loop, index, 0], self.cache[loop, index, 1]
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        groups = s.heads // s.kv_heads
        if groups > 1:
            keys, values = (a.repeat_interleave(groups, dim=1) for a in (keys, values))
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return F.linear(out.transpose(1, 2).reshape(n, 1, -1), layer["o"])

    def step(self, ids, position):
        """ids [n], position [1] (all sequences are equally long): logits [n, V], lambda [T, n]."""
        s = self.s
        half = torch.arange(0, s.head_dim, 2, device=self.device, dtype=torch.float32)
        angles = position.to(torch.float32) * s.rope_theta ** (-half / s.head_dim)
        angles = torch.cat((angles, angles))
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        mask = (torch.arange(self.cache.shape[5], device=self.device) <= position)[None, None, None]
        h = F.embedding(ids, self.embed)[:, None]
        lambdas = []
        for loop in range(s.loops):
            for index, layer in enumerate(self.layers):
                x = rms_norm(h, layer["input_layernorm"], s.eps)
                x = self.attention(x, layer, loop, index, cos, sin, position, mask)
                h = h + rms_norm(x, layer["input_layernorm_2"], s.eps)
                x = rms_norm(h, layer["post_attention_layernorm"], s.eps)
                x = F.silu(F.linear(x, layer["gate"])) * F.linear(x, layer["up"])
                x = F.linear(x, layer["down"])
                h = h + rms_norm(x, layer["post_attention_layernorm_2"], s.eps)
            h = rms_norm(h, self.norm, s.eps)
            lambdas.append(torch.sigmoid(F.linear(h, self.gate, self.gate_bias))[:, 0, 0])
        return F.linear(h[:, 0], self.head), torch.stack(lambdas)


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def time_steps(model, n, context, n_steps):
    """Seconds of each step, the last n_steps positions of the context being decoded in turn."""
    ids = torch.zeros(n, dtype=torch.long, device=model.device)
    position = torch.full((1,), context - 1, dtype=torch.long, device=model.device)
    graph = None

    def run():
        logits, _ = model.step(ids, position)
        ids.copy_(logits.argmax(-1))

    if model.device == "cuda":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    else:
        run()
    took = []
    for i in range(n_steps + 2):
        position.fill_(context - 1 - i % 8)
        synchronize(model.device)
        began = time.perf_counter()
        if graph is not None:
            graph.replay()
        else:
            run()
        synchronize(model.device)
        took.append(time.perf_counter() - began)
    return took[2:]


def measure_machine():
    """Copy bandwidth (bytes read and written) and the bf16 matrix rate of this GPU."""
    a = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_(0, 255)
    b = torch.empty_like(a)
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def best(run, repeats=10):
        took = []
        for _ in range(repeats + 3):
            torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            torch.cuda.synchronize()
            took.append(time.perf_counter() - began)
        return statistics.median(took[3:])

    copy_s, product_s = best(lambda: b.copy_(a)), best(lambda: torch.mm(x, y))
    return {"copy_gbytes_s": 2 * a.numel() / copy_s / 1e9,
            "matrix_tflops": 2 * 8192**3 / product_s / 1e12}


def run_bench(args, shape):
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = Model(shape, device, torch.bfloat16)
    rows = []
    for n in args.sequences:
        model.make_cache(n, args.context)
        with torch.no_grad():
            took = time_steps(model, n, args.context, args.steps)
        step_s = statistics.median(took)
        rows.append({"sequences": n, "context": args.context, "step_ms": step_s * 1e3,
                     "step_ms_min": min(took) * 1e3, "step_ms_max": max(took) * 1e3,
                     "tokens_per_s": n / step_s, "cache_gbytes": model.cache_bytes / 1e9})
        print(f"pytorch: {n} sequences at {args.context}: {step_s * 1e3:.3f} ms a token of each, "
              f"{n / step_s:.1f} tokens/s", file=sys.stderr)
        model.cache = None
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    result = {"torch": torch.__version__, "device": name, "is_graph": device == "cuda", "decode": rows}
    if device == "cuda":
        result["machine"] = measure_machine()
    return result


def run_check(directory):
    """Largest difference of logits and lambdas from the float64 reference over a few positions."""
    import numpy as np
    import reference

    plain = reference.Model(directory)
    w = plain.w
    values = dict(layers=plain.n_layers, heads=plain.n_heads, kv_heads=plain.n_kv_heads,
                  head_dim=plain.head_dim, vocab=plain.vocab, loops=plain.n_loops,
                  rope_theta=plain.theta, eps=plain.eps,
                  d_model=w["model.embed_tokens.weight"].shape[1],
                  ffn=w["model.layers.0.mlp.gate_proj.weight"].shape[0])

    def read(name, form):
        value = w[plain.head_name if name == "lm_head.weight" else name]
        return torch.tensor(np.asarray(value), dtype=torch.float64).reshape(form)

    model = Model(Shape(values), "cpu", torch.float64, read)
    ids = [(7 * i + 3) % plain.vocab for i in range(12)]
    model.make_cache(1, 16)
    hidden, lambdas = plain.forward(ids)
    want = plain.logits(hidden[-1])
    worst = 0.0
    with torch.no_grad():
        for i, token in enumerate(ids):
            logits, lam = model.step(torch.tensor([token]), torch.tensor([i]))
            worst = max(worst, float(np.abs(logits[0].numpy() - want[i]).max()),
                        float(np.abs(lam[:, 0].numpy() - lambdas[:, i]).max()))
    # Norms and angles are taken in float32, as the published code does.
    print(f"bench_pytorch: largest difference from the reference over {len(ids)} positions: {worst:.2e}")
    return worst < 1e-3


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sequences", type=lambda t: [int(x) for x in t.split(",")], default=[1, 64])
    p.add_argument("--context", type=int, default=2048)
    p.add_argument("--steps", type=int, default=32)
    p.add_argument("--shape", default="ouro-1.4b", help="of make_checkpoint.py")
    p.add_argument("--device", choices=("cpu", "cuda"))
    p.add_argument("--check", metavar="MODEL")
    p.add_argument("-o", "--out")
    args = p.parse_args()
    if args.check:
        sys.exit(0 if run_check(args.check) else 1)
    if args.context < 16 or args.steps < 1 or min(args.sequences) < 1:
        p.error("--context must be at least 16, --steps and --sequences at least 1")
    import make_checkpoint

    if args.shape not in make_checkpoint.SHAPES:
        p.error(f"--shape {args.shape}: choose from {', '.join(sorted(make_checkpoint.SHAPES))}")
    result = run_bench(args, Shape(make_checkpoint.SHAPES[args.shape]))
    text = json.dumps(result, indent=1)
    if args.out:
        pathlib.Path(args.out).write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
