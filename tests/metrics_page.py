"""A strict reader of Prometheus' text format 0.0.4, so that a /metrics page is checked where there is no promtool."""
import math
import re

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
SAMPLE = re.compile(rf"^({NAME})(?:\{{(.*)\}})? (\S+)$")
ESCAPES = {'\\"': '"', "\\\\": "\\", "\\n": "\n"}


class Family:
    def __init__(self, name, help_text):
        self.name, self.help, self.type = name, help_text, None
        self.samples = {}  # (name, ((label, value), ...)) -> number

    def value(self, suffix="", **labels):
        """The one sample with these labels."""
        return self.samples[(self.name + suffix, tuple(sorted(labels.items())))]

    def total(self, suffix="", **labels):
        """The sum over all samples that have these labels."""
        wanted = set(labels.items())
        return sum(v for (name, has), v in self.samples.items() if name == self.name + suffix and wanted <= set(has))


class Page:
    """families by name; errors: what breaks the format, each with its line."""

    def __init__(self, text):
        self.families, self.errors = {}, []
        if text and not text.endswith("\n"):
            self.errors.append("the last line does not end")
        self.current = None
        for number, line in enumerate(text.split("\n")[:-1], 1):
            try:
                self.take(line)
            except ValueError as e:
                self.errors.append(f"line {number}: {e}: {line[:200]!r}")
        for family in self.families.values():
            if family.type is None:
                self.errors.append(f"{family.name} has no TYPE")
            elif family.type == "histogram":
                self.check_histogram(family)
            elif family.type == "counter":
                self.check_counter(family)

    def take(self, line):
        if line.startswith("# HELP "):
            name, _, help_text = line[7:].partition(" ")
            if not re.fullmatch(NAME, name) or not help_text:
                raise ValueError("HELP needs a name and a text")
            if name in self.families:
                raise ValueError("a family comes twice")
            self.current = self.families[name] = Family(name, help_text)
        elif line.startswith("# TYPE "):
            name, _, kind = line[7:].partition(" ")
            if self.current is None or name != self.current.name:
                raise ValueError("TYPE does not follow its HELP")
            if self.current.type is not None:
                raise ValueError("TYPE comes twice")
            if kind not in ("counter", "gauge", "histogram"):
                raise ValueError("unknown type")
            self.current.type = kind
        elif line.startswith("#") or not line:
            raise ValueError("neither HELP, TYPE nor a sample")
        else:
            self.take_sample(line)

    def take_sample(self, line):
        match = SAMPLE.match(line)
        if not match:
            raise ValueError("not a sample")
        name, text, number = match.groups()
        family = self.current
        suffixes = ("_bucket", "_sum", "_count") if family and family.type == "histogram" else ("",)
        if family is None or family.type is None or name not in [family.name + s for s in suffixes]:
            raise ValueError("a sample outside its family")
        labels, at = [], 0
        while text is not None and at < len(text):
            pair = LABEL.match(text, at)
            if not pair:
                raise ValueError("a bad label")
            labels.append((pair[1], re.sub(r"\\.", lambda m: ESCAPES[m[0]], pair[2])))
            at = pair.end()
            if at < len(text):
                if text[at] != "," or at + 1 == len(text):
                    raise ValueError("a bad label")
                at += 1
        if text == "" or len({k for k, _ in labels}) != len(labels):
            raise ValueError("no label, or one twice")
        if not re.fullmatch(r"[+-]Inf|NaN|-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?", number):
            raise ValueError("not a number")
        key = (name, tuple(sorted(labels)))
        if key in family.samples:
            raise ValueError("a series comes twice")
        family.samples[key] = float(number.replace("Inf", "inf"))

    def check_counter(self, family):
        if not family.name.endswith("_total"):
            self.errors.append(f"the counter {family.name} does not end in _total")
        for key, value in family.samples.items():
            if not 0 <= value < math.inf:
                self.errors.append(f"the counter {key} is {value}")

    def check_histogram(self, family):
        series = {}
        for (name, labels), value in family.samples.items():
            rest = tuple(pair for pair in labels if pair[0] != "le")
            one = series.setdefault(rest, {"le": [], "_sum": None, "_count": None})
            if name == family.name + "_bucket":
                bound = dict(labels).get("le")
                if bound is None:
                    self.errors.append(f"a bucket of {family.name}{rest} without le")
                else:
                    one["le"].append((float(bound.replace("Inf", "inf")), value))
            else:
                one[name[len(family.name):]] = value
        for rest, one in series.items():
            where = f"{family.name}{dict(rest)}"
            bounds = [b for b, _ in one["le"]]
            counts = [c for _, c in one["le"]]
            if bounds != sorted(set(bounds)) or not bounds or bounds[-1] != math.inf:
                self.errors.append(f"{where}: bounds {bounds}")
            elif counts != sorted(counts):
                self.errors.append(f"{where}: buckets are not cumulative: {counts}")
            elif counts[-1] != one["_count"]:
                self.errors.append(f"{where}: +Inf is {counts[-1]}, _count {one['_count']}")
            if one["_sum"] is None or not 0 <= one["_sum"] < math.inf:
                self.errors.append(f"{where}: _sum {one['_sum']}")


GOOD = """# HELP a_total A.
# TYPE a_total counter
a_total{x="q\\"\\\\\\n",y=""} 1
a_total{x="other",y=""} 2.5e-07
# HELP h H.
# TYPE h histogram
h_bucket{le="0.1"} 1
h_bucket{le="+Inf"} 2
h_sum 0.5
h_count 2
"""

# What to put in the good page's place of something, and what the reader must say then.
BROKEN = [
    ("# TYPE a_total counter\n", "", "TYPE"),
    ("# HELP a_total A.\n", "", "TYPE does not follow"),
    ("# HELP a_total A.", "# HELP a_total", "HELP needs"),
    ("# HELP h H.", "# HELP a_total A.", "twice"),
    ("a_total counter", "a_total summary", "unknown type"),
    ("a_total{x=\"other\"", "b_total{x=\"other\"", "outside its family"),
    ("h_count 2\n", "h_count 2\na_total 3\n", "outside its family"),
    ('x="other",y=""} 2.5e-07', 'x="q\\"\\\\\\n",y=""} 1', "a series comes twice"),
    ('x="other"', 'x="a"b"', "a bad label"),
    ('x="other"', 'x="\\t"', "a bad label"),
    ('x="other",y=""', 'x="other",', "a bad label"),
    ('x="other",y=""', 'x="other",x=""', "one twice"),
    ("2.5e-07", "2,5", "not a number"),
    ("2.5e-07", "-1", "the counter"),
    ("a_total", "a", "does not end in _total"),
    ('h_bucket{le="0.1"} 1', 'h_bucket{le="0.1"} 3', "not cumulative"),
    ('h_bucket{le="+Inf"} 2\n', "", "bounds"),
    ("h_count 2", "h_count 3", "+Inf is"),
    ("h_sum 0.5\n", "", "_sum"),
    ("h_bucket{le=\"0.1\"}", "h_bucket", "without le"),
    ("h_count 2\n", "h_count 2", "does not end"),
    ("h_sum 0.5\n", "h_sum 0.5\n\n", "neither"),
]


def check_reader(checks):
    """The reader takes a good page and refuses each broken one with its reason."""
    page = Page(GOOD)
    checks.equal(page.errors, [], "a good page")
    checks.equal(page.families["a_total"].value(x='q"\\\n', y=""), 1, "an escaped label")
    for old, new, reason in BROKEN:
        assert old in GOOD
        errors = Page(GOOD.replace(old, new)).errors
        checks.check(any(reason in e for e in errors), f"{old!r} as {new!r} is {reason!r}: {errors}")
