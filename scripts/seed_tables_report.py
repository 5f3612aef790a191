"""Writes the tables of scripts/seed_tables.sh: published figures beside those of the runs."""
import array
import json
import math
import operator
import os

import seed_tables_sizes as sizes

GROUPS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
          "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
          "down": "mlp.down_proj"}


def read_tensors(model):
    """Name -> values of model.safetensors, all fp32 as the trainer writes them."""
    with open(os.path.join(model, "model.safetensors"), "rb") as data:
        header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
        base = data.tell()
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            assert entry["dtype"] == "F32", f"{name} is {entry['dtype']}"
            begin, end = entry["data_offsets"]
            data.seek(base + begin)
            tensors[name] = array.array("f", data.read(end - begin))
    return tensors


def count_parameters(model):
    return sum(len(values) for values in read_tensors(model).values())


def dot(a, b):
    return sum(map(operator.mul, a, b))


def layer_cosines(model, layers, looping):
    """R_G(k) of the finished weights, by k and group, as the regulariser defines it; with a looping
    regulariser for its own k, else for every k below the layers that divides them."""
    blocks = [looping[0]] if looping else [k for k in range(1, layers) if layers % k == 0]
    tensors = read_tensors(model) if blocks else {}
    cosines = {}
    for k in blocks:
        cosines[str(k)] = {}
        for group, name in GROUPS.items():
            total = 0
            for layer in range(layers - k):
                a = tensors[f"model.layers.{layer}.{name}.weight"]
                b = tensors[f"model.layers.{layer + k}.{name}.weight"]
                total += dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))
            cosines[str(k)][group] = total / (layers - k)
    return cosines


def row(out, *cells):
    out.write("| " + " | ".join(cells) + " |\n")


def heading(out, *cells):
    row(out, *cells)
    row(out, *("---" for _ in cells))


def percent(share):
    return f"{100 * share:.1f}"


def describe(task, run_sizes):
    """What a task's runs have in common, for the line above its table."""
    def part(knobs, steps):
        return f"{steps} of " + ", ".join(f"{name} {value}" for name, value in knobs.items())

    plan = run_sizes["plan"]
    return (f"d {run_sizes['d']}, {run_sizes['heads']} heads, FFN {run_sizes['ffn']}, "
            f"batch {run_sizes['batch']}, {sum(steps for _, steps in plan)} steps ("
            + "; ".join(part(*step) for step in plan)
            + f"), learning rate {run_sizes['lr']:g}, linear to 0 in the last part")


def published_role(task, layers, loops, deepest):
    """The published model in the same place: as deep as its deepest, or as many layers."""
    if task not in sizes.PAPER:
        return None
    depth = max(k for k, n in sizes.PAPER[task] if n == 1)
    if (layers, loops) == (deepest, 1):
        return depth, 1
    if loops == 1:
        return layers, 1
    return layers, depth // layers


def write_task(task, run_sizes, results, out):
    deepest = max(k for k, _ in run_sizes["models"])
    done = [(k, n, results[run.name]) for k, n in run_sizes["models"]
            for run in [sizes.Run(task, run_sizes, k, n)] if run.name in results]
    if not done:
        return
    levels = [name for name, _ in done[0][2]["levels"]]
    out.write(f"### {task}\n\n{describe(task, run_sizes)}.\n\n")
    heading(out, "layers x loops", *levels, "all", "parameters", "loss", "CPU s",
            "published: layers x loops", "accuracy")
    for k, n, result in done:
        published = published_role(task, k, n, deepest)
        score = sizes.PAPER[task].get(published) if published else None
        row(out, f"{k} x {n}", *(percent(score) for _, score in result["levels"]),
            percent(result["all"]), f"{result['parameters']}", f"{result['loss']:.3f}",
            f"{result['cpu_seconds']:.0f}", *((f"{published[0]} x {published[1]}", f"{score:.1f}")
                                              if score is not None else ("-", "-")))
    out.write("\n")


def write_looping(task, run_sizes, results, out):
    deepest = max(run_sizes["models"])
    plain = results.get(sizes.Run(task, run_sizes, *deepest).name)
    done = [(looping, results[run.name]) for looping in run_sizes["looping"]
            for run in [sizes.Run(task, run_sizes, *deepest, looping)] if run.name in results]
    if not done:
        return
    out.write(f"### Looping regulariser: {task}, {deepest[0]} layers, not looped\n\n")
    levels = [name for name, _ in done[0][1]["levels"]]
    heading(out, "k", "lambda", *levels, "all", *(f"cos {group}" for group in GROUPS))

    def line(k, weight, result, cosines):
        row(out, f"{k}", f"{weight}", *(percent(score) for _, score in result["levels"]),
            percent(result["all"]), *(f"{cosines[group]:.3f}" for group in GROUPS))

    for k in sorted({looping[0] for looping, _ in done}):
        if plain is not None:
            line(k, 0, plain, plain["weight_cosines"][str(k)])
        for (block, weight), result in done:
            if block == k:
                line(k, weight, result, result["cosines"])
    apart = max(abs(result["cosines"][group] - result["weight_cosines"][str(k)][group])
                for (k, _), result in done for group in GROUPS)
    out.write("\nThe cosines are those of the trainer's log at its last step (lambda 0: of the "
              f"finished weights); the finished weights differ from the log by at most {apart:.4f}."
              "\n\n")


def write_tables(tasks, results, options, out):
    """results: of the finished runs, by name."""
    cpu = sum(result["cpu_seconds"] for result in results.values())
    out.write(f"Seed {options.seed}. {len(results)} runs, {cpu / 60:.1f} CPU-minutes of training. "
              f"Exact answers in per cent, on {options.problems} problems of the test split, "
              "every level equally often; \"published\" is the model of arXiv 2502.17416 in "
              "the same place, at that paper's sizes.\n\n")
    for task, run_sizes in tasks.items():
        write_task(task, run_sizes, results, out)
    for task, run_sizes in tasks.items():
        write_looping(task, run_sizes, results, out)
