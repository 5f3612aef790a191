"""Model directories that are wrong in one way each, for e2e_bad_input.py.

make_all(root) writes root/models/NAME for every function below named bad_NAME (with - for _), all copies of one
small good model, and root/models/good itself.
"""
import json
import shutil
import struct

from e2e_lib import DEMO, make_checkpoint

SHAPE = ["--layers", 1, "--d-model", 32, "--ffn", 64, "--heads", 2, "--kv-heads", 2, "--head-dim", 16,
         "--vocab", 49, "--max-positions", 64, "--loops", 3]
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def edit_config(directory, **changes):
    """None removes a field."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def edit_header(directory, change):
    """change(header) alters the header of model.safetensors in place; the data stays."""
    path = directory / "model.safetensors"
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n:])


def bad_no_config(d):
    (d / "config.json").unlink()


def bad_config_cut(d):
    path = d / "config.json"
    path.write_text(path.read_text()[:100])


def bad_config_field(d):
    edit_config(d, hidden_size=None)


def bad_config_type(d):
    edit_config(d, num_hidden_layers="two")


def bad_architecture(d):
    edit_config(d, architectures=["GPT2LMHeadModel"])


def bad_rope_scaling(d):
    edit_config(d, rope_scaling={"type": "linear", "factor": 2})


def bad_no_weights(d):
    (d / "model.safetensors").unlink()


def bad_weights_cut(d):
    path = d / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def bad_header_cut(d):
    path = d / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def bad_weights_empty(d):
    (d / "model.safetensors").write_bytes(b"")


def bad_not_safetensors(d):
    (d / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 4)


def bad_shape(d):
    edit_config(d, intermediate_size=80)


def bad_dtype(d):
    edit_header(d, lambda h: h[UP].update(dtype="F8_E4M3"))


def bad_no_tensor(d):
    edit_header(d, lambda h: h.update({"model.layers.0.mlp.other.weight": h.pop(UP)}))


def bad_overlap(d):
    def change(header):
        begin, end = header[UP]["data_offsets"]
        header[UP]["data_offsets"] = [begin - 64, end - 64]
    edit_header(d, change)


def bad_nan(d):
    path = d / "model.safetensors"
    data = bytearray(path.read_bytes())
    (n,) = struct.unpack("<Q", data[:8])
    begin = json.loads(data[8:8 + n])[NORM]["data_offsets"][0]
    struct.pack_into("<f", data, 8 + n + begin + 4 * 5, float("nan"))
    path.write_bytes(data)


def bad_no_shard(d):
    shutil.rmtree(d)
    shutil.copytree(make_checkpoint("bad-sharded", *SHAPE, "--shards", 2), d)
    (d / "model-00002-of-00002.safetensors").unlink()


def bad_shard_index(d):
    """The index places a tensor in the wrong shard."""
    shutil.rmtree(d)
    shutil.copytree(make_checkpoint("bad-sharded", *SHAPE, "--shards", 2), d)
    path = d / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    places = sorted(set(index["weight_map"].values()))
    index["weight_map"][UP] = places[places.index(index["weight_map"][UP]) - 1]
    path.write_text(json.dumps(index))


def bad_tokenizer(d):
    (d / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')


def bad_tokenizer_cut(d):
    text = (DEMO / "tokenizer.json").read_text()
    (d / "tokenizer.json").write_text(text[: len(text) // 2])


def bad_text(d):
    """Nothing is wrong here: the good model with a tokenizer."""
    shutil.copy(DEMO / "tokenizer.json", d)
    shutil.copy(DEMO / "tokenizer_config.json", d)


def bad_other(d):
    """Nothing is wrong here: the good shape with other weights."""
    shutil.rmtree(d)
    shutil.copytree(make_checkpoint("bad-other", *SHAPE, "--seed", 5), d)


def make_all(root):
    models = root / "models"
    shutil.rmtree(models, ignore_errors=True)
    models.mkdir(parents=True)
    good = make_checkpoint("bad-good", *SHAPE)
    names = [name for name in globals() if name.startswith("bad_")]
    for name in ["bad_good", *names]:
        directory = models / name[4:].replace("_", "-")
        shutil.copytree(good, directory)
        (directory / "made_by").unlink()
        if name != "bad_good":
            globals()[name](directory)
