#!/usr/bin/env python3
"""Draws the log of `carousel train`: loss, accuracy by level, what was open when, learning rate.

    scripts/plot_training.py LOG.jsonl [LOG.jsonl ...] -o FILE.png

Several logs (seeds of a recipe, or recipes) stand side by side, one a column. A directory stands for the
log.jsonl in it. The picture's kind follows from FILE's name: png, svg, pdf.
"""
import argparse
import json
import pathlib
import sys


def fail(message):
    sys.exit(f"plot_training.py: {message}")


try:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, PercentFormatter
except ImportError:
    fail("matplotlib is not installed: apt install python3-matplotlib (and start this with /usr/bin/python3)")


class Log:
    """One run: its header, the report lines by step, the events."""

    def __init__(self, path):
        self.path = path / "log.jsonl" if path.is_dir() else path
        self.header, self.reports, self.events = None, [], []
        try:
            text = self.path.read_text()
        except OSError as e:
            fail(f"{self.path}: {e.strerror}")
        for number, line in enumerate(text.splitlines(), 1):
            try:
                self.take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                fail(f"{self.path}:{number}: not a line of a training log: {line[:80]!r}")
        if self.header is None or not self.reports:
            fail(f"{self.path} has no report yet; train for --report-every steps first")

    def take(self, line):
        kind = line["type"]
        if kind == "header":
            self.header = {key: line[key] for key in ("recipe", "seed", "levels", "parameters")}
        elif kind == "report":
            self.reports.append({key: line[key] for key in (
                "step", "loss", "ce", "accuracy", "loops", "knobs", "lr", "cpu_seconds")})
        elif kind == "event":
            self.events.append({key: line[key] for key in ("step", "events", "loops", "knobs")})

    @property
    def opened(self):
        """Reports and events in order: what was open when."""
        return sorted(self.reports + self.events, key=lambda line: line["step"])

    @property
    def steps(self):
        return [r["step"] for r in self.reports]

    def title(self):
        minutes = self.reports[-1]["cpu_seconds"] / 60
        return f"{self.header['recipe']}, seed {self.header['seed']} ({minutes:.1f} CPU-minutes)"


def own_loop(level, log):
    """The loop, from 0, at which a level should be known first: its place among the levels of its task."""
    task = level.rsplit(" ", 1)[0]
    return [name for name in log.header["levels"] if name.rsplit(" ", 1)[0] == task].index(level)


def series(log, level, loop_of):
    """Steps and accuracies of a level at loop_of(report); gaps where it was not open."""
    points = []
    for report in log.reports:
        accuracy = report["accuracy"].get(level)
        if accuracy:
            points.append((report["step"], accuracy[min(loop_of(report), len(accuracy) - 1)]))
    return [p[0] for p in points], [p[1] for p in points]


def mark_events(axis, log):
    for step, names in ((e["step"], e["events"]) for e in log.events):
        if "restart" in names:
            axis.axvline(step, color="tab:red", linewidth=1, alpha=0.7)
        elif "stage" in names:
            axis.axvline(step, color="black", linewidth=1, linestyle="--", alpha=0.7)
        elif "advanced" in names:
            axis.axvline(step, color="gray", linewidth=0.8, linestyle=":")


def draw_loss(axis, log):
    deepest = max(len(r["ce"]) for r in log.reports)
    for loop in range(deepest):
        points = [(r["step"], r["ce"][loop]) for r in log.reports if loop < len(r["ce"])]
        axis.plot(*zip(*points), linewidth=0.8, color=plt.cm.viridis(loop / max(deepest, 2)), label=f"CE, loop {loop + 1}")
    axis.plot(log.steps, [r["loss"] for r in log.reports], color="black", linewidth=1.2, label="loss")
    # The entropy bonus can take the loss below zero.
    if min(r["loss"] for r in log.reports) > 0:
        axis.set_yscale("log")
    else:
        axis.set_yscale("symlog", linthresh=0.05)
    axis.set_ylabel("loss")
    axis.legend(fontsize=7)


def draw_accuracy(axis, log, what):
    levels = log.header["levels"]
    for i, level in enumerate(levels):
        loop = own_loop(level, log)
        steps, values = series(log, level, (lambda r: loop) if what == "own loop" else (lambda r: r["loops"] - 1))
        if steps:
            axis.plot(steps, values, linewidth=1, color=plt.cm.tab20(i % 20), label=level)
    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_ylabel(f"right at its {what}" if what == "own loop" else "right at the last loop")
    axis.legend(fontsize=6, ncol=1 + len(levels) // 10, loc="lower right")


def turned_knobs(log):
    """(source, knob) pairs that take more than one value."""
    seen = {}
    for line in log.opened:
        for source, values in line["knobs"].items():
            for knob, value in values.items():
                seen.setdefault((source, knob), set()).add(value)
    return sorted(pair for pair, values in seen.items() if len(values) > 1)


def draw_curriculum(axis, log):
    """What is open, each as a share of the most it comes to."""
    lines = [("loops", [(o["step"], o["loops"]) for o in log.opened])]
    for source, knob in turned_knobs(log):
        lines.append((f"{source} {knob}", [(o["step"], o["knobs"][source][knob]) for o in log.opened]))
    for i, (name, points) in enumerate(lines):
        most = max(value for _, value in points)
        axis.step([p[0] for p in points], [p[1] / most + 0.012 * i for p in points], where="post", linewidth=1.2,
                  label=f"{name} (to {most})")
    axis.set_ylabel("open")
    axis.set_ylim(0, 1.15)
    axis.legend(fontsize=6, loc="lower right")


def draw_rate(axis, log):
    axis.plot(log.steps, [r["lr"] for r in log.reports], color="tab:brown", linewidth=1)
    axis.set_ylabel("learning rate")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("step")
    axis.xaxis.set_major_formatter(EngFormatter())


def draw(logs, file):
    rows = [draw_loss, lambda a, g: draw_accuracy(a, g, "own loop"), lambda a, g: draw_accuracy(a, g, "last loop"),
            draw_curriculum, draw_rate]
    figure, axes = plt.subplots(len(rows), len(logs), figsize=(7 * len(logs), 14), sharex="col", sharey="row", squeeze=False,
                                gridspec_kw={"height_ratios": [3, 3, 3, 2, 1]})
    for column, log in enumerate(logs):
        axes[0][column].set_title(log.title(), fontsize=10)
        for row, draw_row in enumerate(rows):
            axis = axes[row][column]
            draw_row(axis, log)
            mark_events(axis, log)
            axis.grid(alpha=0.2)
            if column > 0:
                axis.set_ylabel("")
    figure.tight_layout()
    try:
        figure.savefig(file, dpi=110)
    except (OSError, ValueError) as e:
        fail(f"cannot write {file}: {e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=pathlib.Path, metavar="LOG.jsonl")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.png")
    options = parser.parse_args()
    draw([Log(path) for path in options.logs], options.output)


if __name__ == "__main__":
    main()
