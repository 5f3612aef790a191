"""Draws a directory of scaling_study.py: scaling.csv, scaling.svg, scaling.png, manifest.json."""
import csv
import json
import sys

import scaling_model
import scaling_stats

try:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    sys.exit("scaling_study: matplotlib is not installed: apt install python3-matplotlib (scripts/setup.sh plots)")

# series, metric, what it is, of a result; more of it is better
METRICS = (
    ("strong", "tokens_per_s", "tokens/s", lambda r: r.get("steady_tokens_per_s") or r["tokens_per_s"]),
    ("weak", "tokens_per_s", "tokens/s", lambda r: r.get("steady_tokens_per_s") or r["tokens_per_s"]),
    ("kv", "sequences", "sequences open at once", lambda r: r["open_max"]),
    ("kv", "tokens_per_s", "tokens/s", lambda r: r.get("steady_tokens_per_s") or r["tokens_per_s"]),
    ("single", "tpot_ms", "ms a token", lambda r: r["tpot_ms"]["p50"]),
    ("single", "ttft_ms", "ms to the first token", lambda r: r["ttft_ms"]["p50"]),
)
# What grows with the workers, so that its efficiency is its share of W times one worker.
GROWS = {"tokens_per_s", "sequences"}
COLUMNS = ["series", "metric", "workers", "n", "failed", "median", "ci_low", "ci_high", "model", "model_kind",
           "efficiency", "efficiency_low", "efficiency_high", "message"]
PANELS = (("strong", "tokens_per_s", "Strong: {strong_concurrency} requests in flight"),
          ("weak", "tokens_per_s", "Weak: {weak_concurrency} requests in flight a worker"),
          ("kv", "sequences", "KV: sequences that fit, memory fixed a worker"),
          ("single", "tpot_ms", "One stream: time per token"),
          ("single", "ttft_ms", "One stream: first token of a prompt of {long_prompt}"))
MEASURED, MODEL, IDEAL, WARNING = "#0b5fa5", "#d9730d", "#8a8a8a", "#b3261e"


def fail(message):
    sys.exit(f"scaling_study: {message}")


def read(directory):
    """plan, {workers: book}"""
    try:
        plan = json.loads((directory / "plan.json").read_text())
        books = [json.loads(path.read_text()) for path in sorted(directory.glob("w*.json"))]
    except FileNotFoundError:
        fail(f"{directory} has no study; scaling_study.sh run --out {directory} makes one")
    except ValueError as e:
        fail(f"{directory}: a file is not JSON: {e}")
    books = {book["workers"]: book for book in books if book["points"]}
    if not books:
        fail(f"{directory} has no points yet")
    return plan, dict(sorted(books.items()))


def number(value):
    return "" if value is None else f"{value:.6g}"


def row_of(series, metric, value_of, workers, book, base, model):
    """One line of the CSV."""
    points = [p for p in book["points"] if p["series"] == series]
    values = [value_of(p["result"]) for p in points if p["ok"]]
    failed = [p["message"] for p in points if not p["ok"]]
    row = dict.fromkeys(COLUMNS)
    row.update(series=series, metric=metric, workers=workers, n=len(values), failed=len(failed),
               message=failed[-1] if failed else "")
    row["model"], row["model_kind"] = model(series, metric, workers, value_of)
    label = f"{series}/{metric}/{workers}"
    if values:
        row["median"], row["ci_low"], row["ci_high"] = scaling_stats.median_interval(values, label)
    if values and base and metric in GROWS:
        row["efficiency"], row["efficiency_low"], row["efficiency_high"] = scaling_stats.ratio_interval(
            values, base, scaling_model.share_of_one(workers), label)
    return row


def make_rows(directory, plan, books):
    rows, bases = [], {}
    for series, metric, _, value_of in METRICS:
        one = books.get(1, {"points": []})["points"]
        bases[series, metric] = [value_of(p["result"]) for p in one if p["series"] == series and p["ok"]]
    model = scaling_model.line(directory, plan, bases, books)
    for series, metric, _, value_of in METRICS:
        for workers, book in books.items():
            if any(p["series"] == series for p in book["points"]):
                rows.append(row_of(series, metric, value_of, workers, book, bases[series, metric], model))
    return rows


def write_csv(rows, path):
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([number(row[c]) if isinstance(row[c], float) else row[c] for c in COLUMNS])


# ---- the picture ----------------------------------------------------------------------------------------------------

def panel(axes, rows, title, unit, grows):
    good = [r for r in rows if r["median"] is not None]
    x = [r["workers"] for r in good]
    y = [r["median"] for r in good]
    if good:
        bars = [[m - r["ci_low"] for m, r in zip(y, good)], [r["ci_high"] - m for m, r in zip(y, good)]]
        axes.errorbar(x, y, yerr=bars, fmt="o", color=MEASURED, capsize=3, markersize=5, label="measured, 95 % CI")
    modelled = [r for r in rows if r["model"] is not None]
    if modelled:
        kind = modelled[0]["model_kind"]
        axes.plot([r["workers"] for r in modelled], [r["model"] for r in modelled], "--" if kind == "ideal" else "-",
                  color=IDEAL if kind == "ideal" else MODEL, linewidth=1.3, zorder=1, label=kind)
    for r in rows:
        if r["failed"]:
            axes.plot([r["workers"]], [0], "x", color=WARNING, clip_on=False, markersize=8, zorder=3)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("workers")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({r["workers"] for r in rows}))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper left" if grows else "best", frameon=False)


def efficiency_panel(axes, rows):
    for series, colour, shift in (("strong", MEASURED, -0.06), ("weak", MODEL, 0.06)):
        good = [r for r in rows if r["series"] == series and r["efficiency"] is not None]
        if not good:
            continue
        y = [r["efficiency"] for r in good]
        bars = [[e - r["efficiency_low"] for e, r in zip(y, good)], [r["efficiency_high"] - e for e, r in zip(y, good)]]
        axes.errorbar([r["workers"] + shift for r in good], y, yerr=bars, fmt="o-", color=colour, capsize=3,
                      markersize=4, linewidth=1, label=series)
    axes.axhline(1, color=IDEAL, linestyle="--", linewidth=1)
    axes.set_title("Efficiency: share of W times one worker", fontsize=10)
    axes.set_xlabel("workers")
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({r["workers"] for r in rows}))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower left", frameon=False)


def is_timed(plan):
    return scaling_model.option(plan["extra"], "--backend") == "timed"


def warning(plan, books):
    """What must be known before these points are called scaling, or None."""
    crowded = [w for w, book in books.items() if book["facts"]["cpu"]["cores"] * book["facts"]["nodes"] < w + 1]
    if is_timed(plan) or not crowded:
        return None
    cores = books[crowded[0]]["facts"]["cpu"]["cores"] * books[crowded[0]]["facts"]["nodes"]
    return (f"From {crowded[0]} workers on the ranks share {cores} cores and do real arithmetic: "
            "these points show what sharing costs, not how a cluster scales.")


def footnote(plan, books, rows):
    facts = next(iter(books.values()))["facts"]
    most = max(r["n"] for r in rows)
    where = f"{facts['cpu']['cores']} cores" if facts["nodes"] == 1 else f"{facts['nodes']} nodes"
    computing = f"computing waits as long as cost file {scaling_model.cost_of(plan)} says" if is_timed(plan) else "real arithmetic"
    git = facts["git"]["commit"]
    version = f"{facts['carousel']}{', ' + git[:12] if git else ''}{', changed' if facts['git']['dirty'] else ''}"
    return (f"{computing}; {plan['model']}, T = {plan['loops']}; median of {most}, 95 % CI by bootstrap; "
            f"{facts['launcher']}, {where}, {facts['mpi']}; {version}")


def draw(plan, books, rows, directory):
    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "scaling"})
    figure, grid = plt.subplots(2, 3, figsize=(12.5, 7.2))
    units = {(s, m): unit for s, m, unit, _ in METRICS}
    places = list(grid.flat)
    for axes, (series, metric, title) in zip(places[:2] + places[3:], PANELS):
        mine = [r for r in rows if r["series"] == series and r["metric"] == metric]
        if mine:
            panel(axes, mine, title.format(**plan), units[series, metric], metric in GROWS)
        else:
            axes.set_axis_off()
    grown = [r for r in rows if r["metric"] == "tokens_per_s" and r["series"] in ("strong", "weak")]
    if grown:
        efficiency_panel(places[2], grown)
    else:
        places[2].set_axis_off()
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.text(0.01, 0.012, footnote(plan, books, rows), fontsize=7.5, color="#444444")
    warned = warning(plan, books)
    if warned:
        figure.text(0.01, 0.035, warned, fontsize=9, color=WARNING)
    if any(r["failed"] for r in rows):
        figure.text(0.99, 0.035, "x: a repetition failed", fontsize=8, color=WARNING, ha="right")
    figure.savefig(directory / "scaling.svg", metadata={"Date": None})
    figure.savefig(directory / "scaling.png", dpi=100)
    plt.close(figure)


def manifest(directory, plan, books, rows):
    points = [dict(workers=w, **{k: p[k] for k in ("series", "repetition", "order", "began", "seconds", "ok")},
                   **({"command": p["command"]} if p["ok"] else {"message": p["message"]}))
              for w, book in books.items() for p in book["points"]]
    hashes = {}
    for w, book in books.items():
        for p in book["points"]:
            if p["ok"] and p["series"] in ("strong", "single"):
                hashes.setdefault(p["series"], {}).setdefault(p["result"]["tokens_hash"], set()).add(w)
    base = directory / "base.json"
    return {
        "plan": plan,
        "base": json.loads(base.read_text()) if base.exists() else None,
        "facts": {str(w): book["facts"] for w, book in books.items()},
        "versions": {"matplotlib": matplotlib.__version__, "numpy": scaling_stats.numpy.__version__},
        "bootstrap": {"resamples": scaling_stats.RESAMPLES, "level": scaling_stats.LEVEL, "of": "median"},
        "is_timed": is_timed(plan), "warning": warning(plan, books),
        # Series whose requests do not depend on W: their tokens must not either.
        "tokens_hashes": {s: {h: sorted(ws) for h, ws in of.items()} for s, of in hashes.items()},
        "failed": sum(not p["ok"] for p in points), "rows": len(rows),
        "points": sorted(points, key=lambda p: (p["began"], p["order"])),
    }


def plot(directory):
    plan, books = read(directory)
    rows = make_rows(directory, plan, books)
    write_csv(rows, directory / "scaling.csv")
    draw(plan, books, rows, directory)
    text = json.dumps(manifest(directory, plan, books, rows), indent=1)
    (directory / "manifest.json").write_text(text + "\n")
    print(f"{directory}: scaling.csv, scaling.svg, scaling.png, manifest.json")
