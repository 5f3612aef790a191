"""What scripts/seed_tables.py trains: tasks, models, sizes and schedules, and the published figures."""

# arXiv 2502.17416: accuracy in per cent at the hardest setting of its tables (n = 32 numbers,
# p = 32 hops, depth 4), by (layers, loops).
PAPER = {
    "addition": {(12, 1): 100.0, (1, 12): 99.6, (1, 1): 0.0, (2, 6): 99.5, (2, 1): 38.8,
                 (3, 4): 96.6, (3, 1): 60.7},
    "phop": {(6, 1): 99.6, (1, 6): 99.5, (1, 1): 49.0, (2, 3): 99.8, (2, 1): 59.4},
    "igsm": {(8, 1): 73.2, (1, 8): 73.2, (1, 1): 24.5, (2, 4): 73.6, (2, 1): 54.0, (4, 2): 71.6},
}

REDUCED_MODELS = [(4, 1), (1, 4), (1, 1), (2, 2), (2, 1)]

# A plan is a list of (knobs of the task, steps), the same for every model: problems grow by the
# step, not by what a model has learned, so that all see the same sequences. The learning rate
# falls to 0 over the last part. Problems of the last part are what the tables count.
REDUCED = {
    "addition": {
        "models": REDUCED_MODELS, "d": 64, "heads": 2, "ffn": 192, "batch": 64, "lr": 1.5e-3,
        "plan": [({"operands": 2, "digits": 1}, 200), ({"operands": 2, "digits": 2}, 800),
                 ({"operands": 2, "digits": 3}, 1000), ({"operands": 2, "digits": 3}, 2500)],
        "looping": [],
    },
    "phop": {
        "models": REDUCED_MODELS, "d": 64, "heads": 2, "ffn": 192, "batch": 16, "lr": 1.5e-3,
        "plan": [({"length": 8, "hops": 1, "branches": 2}, 500),
                 ({"length": 12, "hops": 2, "branches": 4}, 1000),
                 ({"length": 16, "hops": 3, "branches": 6}, 1500),
                 ({"length": 32, "hops": 4, "branches": 8}, 1000),
                 ({"length": 32, "hops": 4, "branches": 8}, 4000)],
        "looping": [(1, 1), (1, 10), (2, 1), (2, 10)],
    },
    "igsm": {
        "models": REDUCED_MODELS, "d": 64, "heads": 2, "ffn": 384, "batch": 16, "lr": 1.5e-3,
        "plan": [({"variables": 4, "max_depth": 0, "operators": 1, "letters": 6}, 2000),
                 ({"variables": 4, "max_depth": 1, "operators": 1, "letters": 6}, 3500),
                 ({"variables": 5, "max_depth": 2, "operators": 1, "letters": 8}, 2000),
                 ({"variables": 5, "max_depth": 2, "operators": 1, "letters": 8}, 5000)],
        "looping": [],
    },
}

# The two tasks of the bundled model, which the paper does not have.
REDUCED["hop"] = {
    "models": REDUCED_MODELS, "d": 64, "heads": 2, "ffn": 192, "batch": 16, "lr": 1.5e-3,
    "plan": [({"letters": 5, "max_hops": 1}, 2000), ({"letters": 5, "max_hops": 2}, 1500),
             ({"letters": 10, "max_hops": 3}, 1500), ({"letters": 10, "max_hops": 4}, 1000),
             ({"letters": 10, "max_hops": 4}, 4000)],
    "looping": [],
}
REDUCED["chain"] = {
    "models": REDUCED_MODELS, "d": 64, "heads": 2, "ffn": 192, "batch": 16, "lr": 1.5e-3,
    "plan": [({"letters": 6, "max_depth": 0, "operators": 1}, 2000),
             ({"letters": 6, "max_depth": 1, "operators": 1}, 3500),
             ({"letters": 8, "max_depth": 2, "operators": 1}, 2000),
             ({"letters": 8, "max_depth": 3, "operators": 1}, 5000)],
    "looping": [],
}

# The paper's own sizes and steps. Its 1x12 addition model is not here: Carousel runs 8 loops at
# most. i-GSM has the paper's modulus and depth; its width and steps here are those of p-hop.
FULL = {
    "addition": {
        "models": [(12, 1), (1, 1), (2, 6), (2, 1), (3, 4), (3, 1)],
        "d": 256, "heads": 8, "ffn": 1024, "batch": 1024, "lr": 1e-3,
        "plan": [({"operands": 32, "digits": 3}, 200000)],
        "looping": [],
    },
    "phop": {
        "models": list(PAPER["phop"]), "d": 128, "heads": 8, "ffn": 512, "batch": 256, "lr": 1e-3,
        "plan": [({"length": 256, "hops": 32, "branches": 2}, 200000)],
        "looping": [(1, 1), (1, 10), (2, 1), (2, 10)],
    },
    "igsm": {
        "models": list(PAPER["igsm"]), "d": 128, "heads": 8, "ffn": 512, "batch": 256, "lr": 1e-3,
        "plan": [({"variables": 12, "max_depth": 4, "operators": 3}, 200000)],
        "looping": [],
    },
}


class Run:
    """One model to train: a task, layers x loops, and the looping regulariser where there is one."""

    def __init__(self, task, sizes, layers, loops, looping=None):
        self.task, self.sizes, self.layers, self.loops = task, sizes, layers, loops
        self.looping = looping  # (block k, weight lambda)
        self.name = f"{task}-{layers}x{loops}"
        if looping:
            self.name += f"-k{looping[0]}-lambda{looping[1]}"

    def steps(self):
        return sum(steps for _, steps in self.sizes["plan"])

    def recipe(self):
        sizes, stages, data = self.sizes, [], {}
        for i, (knobs, steps) in enumerate(sizes["plan"], 1):
            data[f"part{i}"] = {"task": self.task, **knobs}
            stage = {"name": f"part {i}", "steps": steps, "batch": sizes["batch"],
                     "mix": {f"part{i}": 1}, "objective": "last", "lr": sizes["lr"]}
            if i == 1:
                stage["warmup"] = min(100, steps)
            if i == len(sizes["plan"]):
                stage.update(lr=[sizes["lr"], 0], decay="linear")
            if self.looping:
                stage["looping"] = {"block": self.looping[0], "weight": self.looping[1]}
            stages.append(stage)
        return {
            "name": self.name,
            "model": {
                "architecture": "LlamaForCausalLM", "hidden_size": sizes["d"],
                "num_hidden_layers": self.layers, "total_ut_steps": self.loops,
                "num_attention_heads": sizes["heads"], "head_dim": sizes["d"] // sizes["heads"],
                "intermediate_size": sizes["ffn"], "max_position_embeddings": 1024,
                "rope_theta": 10000, "tie_word_embeddings": False,
            },
            "init": {"embed_std": 1, "head_std": 0.02, "matrix_std": 0, "gain": 1},
            "optimizer": {"betas": [0.9, 0.98], "weight_decay": 0.05, "clip": 1},
            "data": data,
            "stages": stages,
        }


def list_runs(tasks):
    """Plain models first, of a task the longest first, so that two at a time end together."""
    plain, regularised = [], []
    for task, sizes in tasks.items():
        of_task = [Run(task, sizes, k, loops) for k, loops in sizes["models"]]
        plain += sorted(of_task, key=lambda run: -run.layers * run.loops)
        deepest = max(sizes["models"])
        regularised += [Run(task, sizes, *deepest, looping) for looping in sizes["looping"]]
    return plain + regularised
