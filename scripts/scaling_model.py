"""The line beside the points of a scaling study: what W workers would do if nothing were lost."""
import statistics


def share_of_one(series, workers):
    """Efficiency is a value over one worker's, times this; the same for all series that grow."""
    return 1 / workers


def ideal(plan, metric, one, workers):
    """From the median of one worker. A token takes its loops one after the other however many workers there are; the
    chunks of a prompt are at up to min(W, T) loops at a time."""
    if metric in ("tokens_per_s", "sequences"):
        return one * workers
    return one / min(workers, plan["loops"]) if metric == "ttft_ms" else one


def line(directory, plan, bases, counts):
    """Returns model(series, metric, workers): (value or None, what kind of line it is)."""
    def model(series, metric, workers):
        base = bases[series, metric]
        return (ideal(plan, metric, statistics.median(base), workers) if base else None), "ideal"
    return model
