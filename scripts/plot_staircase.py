#!/usr/bin/env python3
"""Draws the staircase: which difficulty is right at which loop, and where the gate lets it off.

    carousel eval MODEL --task hop,chain -n 10000 --json > eval.json
    /usr/bin/python3 scripts/plot_staircase.py eval.json -o staircase.png
"""
import argparse
import json
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("eval", help="what `carousel eval --json` printed")
    parser.add_argument("-o", "--output", required=True, help="PNG, SVG or PDF by its ending")
    parser.add_argument("-q", type=float, default=0.5, help="exit threshold whose exits are marked")
    a = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot_staircase: matplotlib is not there: apt-get install python3-matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    try:
        with open(a.eval, encoding="utf-8") as file:
            found = json.load(file)
        levels, n_loops = found["levels"], found["loops"]
        at = min(range(len(found["q"])), key=lambda i: abs(found["q"][i] - a.q))
    except (OSError, ValueError, KeyError) as e:
        sys.exit(f"plot_staircase: {a.eval}: not what `carousel eval --json` prints: {e!r}")
    share = [[100 * x for x in level["exact_by_loop"]] for level in levels]
    figure, axes = pyplot.subplots(figsize=(1.5 + 1.1 * n_loops, 1.2 + 0.42 * len(levels)), dpi=120)
    image = axes.imshow(share, cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
    for i, level in enumerate(levels):
        for t in range(n_loops):
            axes.text(t, i, f"{share[i][t]:.1f}", ha="center", va="center", fontsize=9,
                      color="white" if share[i][t] > 60 else "black")
        axes.plot(level["mean_exit_by_q"][at] - 1 + 0.36, i - 0.24, marker="v", color="tab:red", markersize=7)
    axes.set_xticks(range(n_loops), [f"loop {t + 1}" for t in range(n_loops)])
    axes.set_yticks(range(len(levels)), [level["level"] for level in levels])
    axes.set_title(f"exact answers in %; red: mean exit loop at q = {found['q'][at]:g}", fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.05)
    figure.tight_layout()
    figure.savefig(a.output)


main()
