#!/usr/bin/python3
"""Writes a random checkpoint (config.json and safetensors, no tokenizer) in Ouro or Llama layout.

    make_checkpoint.py --shape tiny DIR
    make_checkpoint.py --shape ouro-1.4b --dtype bf16 DIR          (2.87 GB, seconds)
    make_checkpoint.py --shape ouro-1.4b --sparse DIR              (zeros that take no room: backend timed)
    make_checkpoint.py --layers 3 --d-model 96 --heads 6 --kv-heads 2 --head-dim 16 --shards 3 DIR

The weights are random but sane in scale: matrices N(0, 1/fan_in), embedding N(0, 1), norm gains near 1
(0.5 for the norms on the branches), so activations neither die nor explode over many loops. Values
depend on the seed and the tensor's name only, not on dtype (but for rounding) or shards.
"""
import argparse
import json
import os
import sys
import zlib

import numpy as np

SHAPES = {
    "tiny": dict(layers=2, d_model=64, ffn=192, heads=4, kv_heads=2, head_dim=16, vocab=128, loops=4,
                 max_positions=512, rope_theta=10000.0),
    "ouro-1.4b": dict(layers=24, d_model=2048, ffn=5632, heads=16, kv_heads=16, head_dim=128,
                      vocab=49152, loops=4, max_positions=65536, rope_theta=1000000.0),
}
DTYPES = {"f32": ("F32", "float32", 4), "bf16": ("BF16", "bfloat16", 2), "f16": ("F16", "float16", 2)}
# A tensor above this many elements is cut from one long random block, at a place of its own: drawing
# billions of normals would take minutes. A prime, so that no two rows of a matrix are the same.
BLOCK = 4194301


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir", metavar="DIR")
    p.add_argument("--shape", choices=sorted(SHAPES), default="tiny",
                   help="where dimensions not given below come from (default: tiny)")
    for name in ("layers", "d-model", "ffn", "heads", "kv-heads", "head-dim", "vocab", "loops",
                 "max-positions"):
        p.add_argument("--" + name, type=int)
    p.add_argument("--rope-theta", type=float)
    p.add_argument("--arch", choices=("ouro", "llama"), default="ouro")
    p.add_argument("--tied", action="store_true", help="no lm_head: the embedding is the head")
    p.add_argument("--dtype", choices=sorted(DTYPES), default="f32")
    p.add_argument("--shards", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--eos-id", type=int, default=1, help="-1 writes null")
    p.add_argument("--bos-id", type=int, default=0, help="-1 writes null")
    p.add_argument("--sparse", action="store_true",
                   help="all weights are zero and the file has holes: for what reads only shapes")
    p.add_argument("--gate-scale", type=float, default=1.5,
                   help="standard deviation of the gate's logit over positions")
    p.add_argument("--gate-bias", type=float, default=-0.5)
    a = p.parse_args()
    if a.arch == "llama" and a.loops is not None and a.loops != 1:
        p.error("a Llama config.json has no loops; choose them with --loops of the program that runs it")
    base = dict(SHAPES[a.shape])
    # A stated number of heads or width must not inherit what no longer fits it.
    if a.heads is not None and a.kv_heads is None:
        base["kv_heads"] = a.heads
    for name, value in base.items():
        if getattr(a, name) is None:
            setattr(a, name, value)
    for name in ("layers", "d_model", "ffn", "heads", "kv_heads", "head_dim", "vocab", "loops",
                 "max_positions", "shards"):
        if getattr(a, name) < 1:
            p.error(f"--{name.replace('_', '-')} must be at least 1, found {getattr(a, name)}")
    if a.heads % a.kv_heads or a.head_dim % 2:
        p.error("--kv-heads must divide --heads and --head-dim must be even")
    for flag, value in (("eos", a.eos_id), ("bos", a.bos_id)):
        if not -1 <= value < a.vocab:
            p.error(f"--{flag}-id must be from -1 to {a.vocab - 1}, found {value}")
    return a


def config_of(a):
    ouro = a.arch == "ouro"
    config = {
        "architectures": ["OuroForCausalLM" if ouro else "LlamaForCausalLM"],
        "model_type": a.arch,
        "hidden_size": a.d_model,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "intermediate_size": a.ffn,
        "vocab_size": a.vocab,
        "rms_norm_eps": 1e-06,
        "rope_theta": a.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": a.max_positions,
        "torch_dtype": DTYPES[a.dtype][1],
        "bos_token_id": a.bos_id if a.bos_id >= 0 else None,
        "eos_token_id": a.eos_id if a.eos_id >= 0 else None,
        "tie_word_embeddings": a.tied,
        "hidden_act": "silu",
        "attention_bias": False,
    }
    if ouro:
        config.update(total_ut_steps=a.loops, early_exit_threshold=1.0, use_sliding_window=False,
                      layer_types=["full_attention"] * a.layers)
    return config


def tensors_of(a):
    """name -> (shape, mean, deviation), in order of name."""
    d, q, kv = a.d_model, a.heads * a.head_dim, a.kv_heads * a.head_dim
    ouro = a.arch == "ouro"

    def matrix(rows, cols):
        return ((rows, cols), 0.0, cols ** -0.5)

    t = {"model.embed_tokens.weight": ((a.vocab, d), 0.0, 1.0), "model.norm.weight": ((d,), 1.0, 0.1)}
    if not a.tied:
        t["lm_head.weight"] = matrix(a.vocab, d)
    if ouro:
        t["model.early_exit_gate.weight"] = ((1, d), 0.0, a.gate_scale * d ** -0.5)
        t["model.early_exit_gate.bias"] = ((1,), a.gate_bias, 0.0)
    for i in range(a.layers):
        layer = {
            "self_attn.q_proj": matrix(q, d), "self_attn.k_proj": matrix(kv, d),
            "self_attn.v_proj": matrix(kv, d), "self_attn.o_proj": matrix(d, q),
            "mlp.gate_proj": matrix(a.ffn, d), "mlp.up_proj": matrix(a.ffn, d),
            "mlp.down_proj": matrix(d, a.ffn),
            "input_layernorm": ((d,), 1.0, 0.1), "post_attention_layernorm": ((d,), 1.0, 0.1),
        }
        if ouro:
            layer["input_layernorm_2"] = ((d,), 0.5, 0.05)
            layer["post_attention_layernorm_2"] = ((d,), 0.5, 0.05)
        for name, spec in layer.items():
            t[f"model.layers.{i}.{name}.weight"] = spec
    return dict(sorted(t.items()))


def encode(values, dtype):
    """fp32 array -> array whose bytes are the file's."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == "f32":
        return values
    if dtype == "f16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


class Source:
    """Random tensors, the large ones as slices of a block that is encoded once per deviation."""

    def __init__(self, a):
        self.a = a
        self.block = None
        self.encoded = {}

    def write(self, out, name, shape, mean, deviation):
        count = int(np.prod(shape))
        rng = np.random.default_rng([self.a.seed, zlib.crc32(name.encode())])
        if count <= BLOCK // 4:
            values = mean + deviation * rng.standard_normal(count, dtype=np.float32)
            encode(values, self.a.dtype).tofile(out)
            return
        if deviation not in self.encoded:
            if self.block is None:
                self.block = np.random.default_rng(self.a.seed).standard_normal(BLOCK, dtype=np.float32)
            self.encoded[deviation] = encode(mean + deviation * self.block, self.a.dtype)
        block = self.encoded[deviation]
        at = int(rng.integers(BLOCK))
        while count > 0:
            n = min(count, BLOCK - at)
            block[at:at + n].tofile(out)
            count -= n
            at = 0


def split(tensors, width, shards):
    """Cuts the tensors, in order, into at most `shards` files of about equal size."""
    sizes = [int(np.prod(spec[0])) * width for spec in tensors.values()]
    total, done, parts = sum(sizes), 0, [[] for _ in range(shards)]
    for name, size in zip(tensors, sizes):
        parts[min(shards - 1, (done + size // 2) * shards // total)].append(name)
        done += size
    return [part for part in parts if part], total


def write_file(path, names, tensors, a, source):
    label, _, width = DTYPES[a.dtype]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        shape = tensors[name][0]
        end = offset + int(np.prod(shape)) * width
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data starts aligned
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.flush()
        if a.sparse:
            out.truncate(8 + len(text) + offset)
            return
        for name in names:
            source.write(out, name, *tensors[name])


def main():
    a = parse_args()
    os.makedirs(a.dir, exist_ok=True)
    tensors, source = tensors_of(a), Source(a)
    parts, total = split(tensors, DTYPES[a.dtype][2], a.shards)
    # What an earlier run left must not be mixed with this one's files.
    for old in os.listdir(a.dir):
        if old.startswith("model") and old.endswith((".safetensors", ".safetensors.index.json")):
            os.unlink(os.path.join(a.dir, old))
    if len(parts) == 1 and a.shards == 1:
        write_file(os.path.join(a.dir, "model.safetensors"), parts[0], tensors, a, source)
    else:
        weight_map = {}
        for i, names in enumerate(parts):
            file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
            write_file(os.path.join(a.dir, file), names, tensors, a, source)
            weight_map.update((name, file) for name in names)
        with open(os.path.join(a.dir, "model.safetensors.index.json"), "w") as out:
            json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, out, indent=1)
    with open(os.path.join(a.dir, "config.json"), "w") as out:
        json.dump(config_of(a), out, indent=1)
    parameters = sum(int(np.prod(spec[0])) for spec in tensors.values())
    print(f"{a.dir}: {parameters:,} parameters, {total:,} bytes, {len(parts)} file(s)")


if __name__ == "__main__":
    sys.exit(main())
