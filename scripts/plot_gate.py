#!/usr/bin/python3
"""Draws what `carousel gate` found: accuracy against mean loops of both gates, and where tokens get off.

    plot_gate.py DIR/gate.json [-o gate.png]

Needs matplotlib (Debian: python3-matplotlib). The picture's type follows from its name: png, svg, pdf.
"""
import argparse
import json
import pathlib
import sys


def load(path):
    try:
        found = json.loads(pathlib.Path(path).read_text())
        held = found["held_out"]
        if not held["thresholds"] or not held["loops"]:
            raise KeyError("held_out.thresholds")
        return found
    except OSError as e:
        sys.exit(f"plot_gate: cannot read {path}: {e.strerror}")
    except (ValueError, KeyError, TypeError) as e:
        sys.exit(f"plot_gate: {path} is no gate.json of `carousel gate`: {e}")


def draw(plt, found, out):
    held, fit = found["held_out"], found["fit"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4))
    loops = held["loops"]
    left.plot([x["loop"] for x in loops], [100 * x["accuracy"] for x in loops], "o:", color="0.5",
              label="every row at one loop")
    for name, colour in (("old", "tab:orange"), ("new", "tab:blue")):
        # By threshold, so that a gate that gets worse with more loops is seen to.
        points = [x[name] for x in held["thresholds"]]
        left.plot([p["mean_loops"] for p in points], [100 * p["accuracy"] for p in points], "s-",
                  markersize=4, color=colour, label=f"{name} gate, q = "
                  f"{held['thresholds'][0]['q']:g} .. {held['thresholds'][-1]['q']:g}")
    left.set(xlabel="mean loops", ylabel="right, % of held-out rows",
             title=f"{held['rows']} rows of {held['texts']} texts")
    left.legend(fontsize=8, loc="lower right")
    names = [f"{x['q']:g}" for x in held["thresholds"]]
    bottom = [0.0] * len(names)
    for loop in range(found["n_loops"]):
        shares = [100 * x["new"]["exits"][loop] / held["rows"] for x in held["thresholds"]]
        middle.bar(names, shares, bottom=bottom, label=f"loop {loop + 1}")
        bottom = [b + s for b, s in zip(bottom, shares)]
    middle.set(xlabel="q", ylabel="exits of the new gate, %", title="where rows get off")
    middle.tick_params(axis="x", labelsize=7)
    middle.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    right.plot(*zip(*fit["loss"]))
    right.set(xlabel="step", ylabel="loss of the gate",
              title=f"{fit['label']}, gamma {fit['gamma']:g}, k {fit['sharpness']:g}")
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("json", metavar="gate.json")
    p.add_argument("-o", "--output", help="default: gate.png beside gate.json")
    a = p.parse_args()
    found = load(a.json)
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot_gate: matplotlib is not installed (Debian: apt-get install python3-matplotlib); "
                 "the numbers are in " + a.json)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    out = a.output or str(pathlib.Path(a.json).with_suffix(".png"))
    try:
        draw(plt, found, out)
    except (OSError, ValueError) as e:
        sys.exit(f"plot_gate: cannot write {out}: {e}")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
