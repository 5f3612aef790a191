"""Medians of a few repetitions and what they are worth: percentile bootstrap, seeded."""
import zlib

import numpy

RESAMPLES = 10000
LEVEL = 0.95


def resampled_medians(values, label):
    """Medians of RESAMPLES samples drawn from values with replacement; the same for the same label."""
    values = numpy.asarray(values, dtype=float)
    rng = numpy.random.default_rng(zlib.crc32(label.encode()))
    return numpy.median(values[rng.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)


def interval(medians):
    tail = (1 - LEVEL) / 2
    # Values that were seen, not means of two: a median of few values takes few values.
    low, high = numpy.quantile(medians, [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def median_interval(values, label):
    """(median, low, high); one value has no width."""
    low, high = interval(resampled_medians(values, label))
    return float(numpy.median(values)), low, high


def ratio_interval(values, base, scale, label):
    """median(values) / median(base) * scale, both resampled on their own."""
    ratios = resampled_medians(values, label) / resampled_medians(base, label + "/base") * scale
    low, high = interval(ratios)
    return float(numpy.median(values) / numpy.median(base) * scale), low, high
