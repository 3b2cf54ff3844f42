"""A benchmark's figures, as a table of ratios and as drawings in SVG: medians with quartiles."""

import dataclasses
import html
import math
import statistics

INK, FAINT, GRID = "#1f2328", "#59636e", "#d8dee4"
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
WIDTH = 860
BLUE, YELLOW = "#0969da", "#d4a72c"
OURS = "this service"
# Colours of the parts of a bar.
SHADES = (
    *("#8c959f", "#0969da", "#54aeff", "#1a7f37", "#d4a72c"),
    *("#e16f24", "#a40e26", "#8250df", "#d8dee4"),
)

# The label and colour of each server. The service is blue.
NAMES = {
    "fastapi": ("P: FastAPI + Redis GET, as a model", "#6639ba"),
    "fastapi-ready": ("P: FastAPI + Redis GET, as bytes", "#8250df"),
    "grpcio": ("P: grpcio + Redis GET, as bytes", "#bf87ff"),
    "a-plain": ("A: tonic, rows in memory; thin LTO, system allocator", "#a40e26"),
    "e-decoded": ("E: tonic + Redis GET, decoding the value", "#e16f24"),
    "a": ("A: tonic, rows in memory", "#e5534b"),
    "e": ("E: tonic + Redis GET", YELLOW),
    "f": ("F: hyper, a fixed frame", "#6e7781"),
    "cold": ("this service, PostgreSQL + Redis, L1 cold", "#80ccff"),
    "warm": ("this service, PostgreSQL + Redis, L1 warm", BLUE),
    "embedded": ("this service, embedded", "#0a3069"),
}


def spread(values):
    """Median and quartiles."""
    if len(values) == 1:
        return values * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


# --- The table ---

# Figure, target (a maximum), numerator, denominator, and the field of both.
RATIOS = (
    ("embedded hit / fair A (same profile)", 0.40, "list/4x32/embedded", "list/4x32/a", "cpu_us"),
    ("embedded hit / F, both with TLS", None, "tls/embedded-tls", "tls/f-tls", "cpu_us"),
    (
        "warm L1 hit validated through Redis / fair A",
        0.45,
        "list/4x32/warm",
        "list/4x32/a",
        "cpu_us",
    ),
    (
        "the same / A built with thin LTO and the system allocator",
        0.22,
        "list/4x32/warm",
        "list/4x32/a-plain",
        "cpu_us",
    ),
    ("the same / F", 1.0, "list/4x32/warm", "list/4x32/f", "cpu_us"),
    ("the same / FastAPI with Redis", 0.02, "list/4x32/warm", "list/4x32/fastapi", "cpu_us"),
    (
        "the same / FastAPI that forwards bytes",
        None,
        "list/4x32/warm",
        "list/4x32/fastapi-ready",
        "cpu_us",
    ),
    ("L1-cold hit / E", 0.8, "list/4x32/cold", "list/4x32/e", "cpu_us"),
    ("L1-cold hit / E that decodes", None, "list/4x32/cold", "list/4x32/e-decoded", "cpu_us"),
    ("Redis commands a hit at 128 in flight", 0.05, "list/4x32/warm", None, "commands"),
    ("miss / (bare SQL + prost encoding)", 1.15, "miss/128/postgres", "miss/128/sql", "cpu_us"),
    (
        "create / (bare insert and commit + two Redis round trips), p50 with one in flight",
        1.2,
        "create/1x1/postgres",
        "create/1x1/sql",
        "p50_us",
    ),
    ("p50 with one in flight, warm L1 / E", 1.0, "list/1x1/warm", "list/1x1/e", "p50_us"),
    ("page 10,000 / page 1 (CPU of a miss)", 1.2, "depth/10000", "depth/1", "cpu_us"),
    ("the same, of PostgreSQL", None, "depth/10000", "depth/1", "database_us"),
    ("10^6 rows / 10^4 rows (CPU of a miss)", 1.2, "rows/1000000", "rows/10000", "cpu_us"),
    ("the same, of PostgreSQL", None, "rows/1000000", "rows/10000", "database_us"),
    ("closing a tag of 10^6 entries / 10^3", 2, "closing", None, None),
    ("four replicas / one (CPU a hit, summed)", 1.1, "replicas/4", "replicas/1", "cpu_us"),
    (
        "bytes of memory that a cached list of one takes beside the response, L1",
        300,
        "memory/1/warm",
        None,
        "entry_bytes",
    ),
    ("the same, embedded", 300, "memory/1/embedded", None, "entry_bytes"),
    ("the same of lists of up to 50, L1", 300, "memory/50/warm", None, "entry_bytes"),
    ("the same, embedded", 300, "memory/50/embedded", None, "entry_bytes"),
    ("KiB that the process grew by over ten million calls", None, "endurance", None, "grown_kib"),
)


def before(measured):
    """The ratios of two builds of the service."""
    for name in measured:
        if name.endswith("@before"):
            over = name.removesuffix("@before")
            yield (f"{over} / the build before", None, over, name, "cpu_us")


def ratios(measured, closing):
    """The figures of the table, each with its median and quartiles over the rounds."""
    table = []
    for figure, goal, over, under, field in (*RATIOS, *before(measured)):
        if over == "closing":
            values = closing and closing["ratios"]
        elif over not in measured or under and under not in measured:
            values = None
        else:
            values = [round_[field] for round_ in measured[over]]
            if under:
                pairs = zip(values, measured[under], strict=True)
                values = [value / round_[field] for value, round_ in pairs]
        if values:
            median, low, high = spread(values)
            table.append(
                {"figure": figure, "goal": goal, "median": median, "quartiles": [low, high]}
            )
    return table


def significant(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(table):
    lines = ["| figure | target | measured (quartiles) | |", "| --- | --- | --- | --- |"]
    for row in table:
        low, high = row["quartiles"]
        measured = f"{significant(row['median'])} ({significant(low)} - {significant(high)})"
        goal = row["goal"]
        verdict = "" if goal is None else "yes" if row["median"] <= goal else "**no**"
        lines.append(f"| {row['figure']} | {goal or ''} | {measured} | {verdict} |")
    return "\n".join(lines)


# The labels of the loads.
LOADS = {
    "1x1": "1 in flight",
    "4x2": "8",
    "4x8": "32",
    "4x32": "128",
    "32x1": "32 connections, one call each",
    "4x32@4000": "4,000 a second",
}
IN_FLIGHT = {"1x1": "1", "4x2": "8", "4x8": "32", "4x32": "128"}
OTHER_CALLS = {
    "get": "a cached location",
    "create": "a creation",
    "miss": "a list that isn't cached",
}
OTHER_SERVERS = {
    "embedded": "embedded",
    "warm": "L1 warm",
    "cold": "L1 cold",
    "postgres": "PostgreSQL + Redis",
    "sql": "bare SQL",
}


def by_load(measured, run):
    """A table of the cost and latency of calls, by load."""
    lines = [f"CPU of the server in µs a call / p50 in µs / p99 in µs. {run}", ""]
    lines += [f"| | {' | '.join(LOADS.values())} |", "| --- " * (len(LOADS) + 1) + "|"]

    def add(label, kind, name):
        cells = []
        for load in LOADS:
            rounds = measured.get(f"{kind}/{load}/{name}")
            # The names of misses have only the number in flight.
            rounds = rounds or measured.get(f"{kind}/{IN_FLIGHT.get(load)}/{name}")
            fields = "cpu_us", "p50_us", "p99_us"
            medians = [spread([each[field] for each in rounds])[0] for field in fields if rounds]
            cells.append(" / ".join(map(significant, medians)))
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")

    for name, (label, _) in NAMES.items():
        add(f"a cached list: {label}", "list", name)
    for kind, call in OTHER_CALLS.items():
        for name, server in OTHER_SERVERS.items():
            add(f"{call}: {server}", kind, name)
    return "\n".join(lines) + "\n"


# --- The drawings ---


class Drawing:
    """Elements of an SVG."""

    def __init__(self):
        self.elements = []

    def text(self, x, y, text, *, size=12, colour=INK, anchor="start", weight="normal"):
        self.elements.append(
            f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{colour}' "
            f"text-anchor='{anchor}' font-weight='{weight}'>{html.escape(text)}</text>"
        )

    def line(self, points, colour, width=1.0):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.elements.append(
            f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{width}'/>"
        )

    def dot(self, x, y, colour):
        self.elements.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/>")

    def write(self, path, height):
        body = "\n".join(self.elements)
        path.write_text(
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' "
            f"width='{WIDTH}' height='{height}' {FONT}>\n"
            f"<rect width='{WIDTH}' height='{height}' rx='6' fill='#ffffff'/>\n{body}\n</svg>\n"
        )


class Axis:
    """A scale from values to places, linear from zero or logarithmic."""

    def __init__(self, values, first, last, *, log=False):
        self.first, self.last, self.log = first, last, log
        top = max(values) or 1
        if log:
            low = math.floor(math.log10(min(values)))
            decades = [10.0**power for power in range(low, math.ceil(math.log10(top)) + 1)]
            steps = [decade * factor for decade in decades for factor in (1, 2, 5)]
            start = max(step for step in steps if step <= min(values))
            end = min(step for step in steps if step >= top)
            self.ticks = [step for step in steps if start <= step <= end]
        else:
            magnitude = 10 ** math.floor(math.log10(top))
            steps = [magnitude * factor for factor in (0.1, 0.2, 0.25, 0.5, 1, 2)]
            step = next(step for step in steps if top / step <= 5)
            self.ticks = [step * number for number in range(math.ceil(top / step) + 1)]

    def __call__(self, value):
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self.first + (self.last - self.first) * (value - low) / (high - low)


def number(value):
    if value >= 1_000_000 and value % 100_000 == 0:
        return f"{value / 1e6:g} M"
    if value >= 10_000 and value % 1_000 == 0:
        return f"{value / 1e3:g} k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def dots(path, title, unit, note, rows):
    """A row for each server, on a logarithmic scale, the most expensive first."""
    rows = sorted(rows, key=lambda row: -row[2][0])
    left, right, top = 340, WIDTH - 60, 58
    bottom = top + 28 * len(rows)
    drawing = Drawing()
    drawing.text(20, 28, title, size=16, weight="600")
    values = [value for _, _, values in rows for value in values]
    axis = Axis(values, left, right, log=True)
    for tick in axis.ticks:
        drawing.line([(axis(tick), top - 8), (axis(tick), bottom)], GRID)
        drawing.text(axis(tick), bottom + 18, number(tick), colour=FAINT, anchor="middle")
    for place, (name, colour, (middle, low, high)) in enumerate(rows):
        y = top + 28 * place + 12
        drawing.text(left - 14, y + 4, name, anchor="end")
        drawing.line([(axis(low), y), (axis(high), y)], colour, 2)
        drawing.dot(axis(middle), y, colour)
        drawing.text(axis(high) + 10, y + 4, number(middle), weight="600")
    drawing.text((left + right) / 2, bottom + 38, unit, anchor="middle")
    drawing.text(20, bottom + 64, note, size=11, colour=FAINT)
    drawing.write(path, bottom + 80)


def stacked(path, title, unit, note, rows):
    """A bar for each profile, divided into its parts."""
    left, right, top = 340, WIDTH - 60, 58
    bottom = top + 34 * len(rows)
    drawing = Drawing()
    drawing.text(20, 28, title, size=16, weight="600")
    axis = Axis([sum(parts.values()) for _, parts in rows], left, right)
    for tick in axis.ticks:
        drawing.line([(axis(tick), top - 8), (axis(tick), bottom)], GRID)
        drawing.text(axis(tick), bottom + 18, number(tick), colour=FAINT, anchor="middle")
    colours = dict(zip(rows[0][1], SHADES, strict=True))
    for place, (name, parts) in enumerate(rows):
        y, start = top + 34 * place + 12, 0
        drawing.text(left - 14, y + 4, name, anchor="end")
        for part, value in parts.items():
            drawing.line([(axis(start), y), (axis(start + value), y)], colours[part], 18)
            start += value
        drawing.text(axis(start) + 10, y + 4, number(start), weight="600")
    drawing.text((left + right) / 2, bottom + 38, unit, anchor="middle")
    for index, (part, colour) in enumerate(colours.items()):
        x, y = 40 + index % 4 * 205, bottom + 64 + index // 4 * 20
        drawing.line([(x, y - 4), (x + 18, y - 4)], colour, 12)
        drawing.text(x + 26, y, part)
    end = bottom + 64 + (len(colours) + 3) // 4 * 20
    drawing.text(20, end + 8, note, size=11, colour=FAINT)
    drawing.write(path, end + 24)


@dataclasses.dataclass
class Panel:
    """Curves over the same few values along x, which are evenly spaced."""

    unit: str
    x_label: str
    xs: list[str]
    # Name and colour, and for each x the median and quartiles, or `None`.
    curves: list[tuple[str, str, list]]
    log: bool = False

    def is_seen(self):
        """Whether each curve has more than one point."""
        return all(sum(map(bool, points)) > 1 for *_, points in self.curves)


def lines(path, title, note, panels):
    """Panels next to each other, with a legend below."""
    gap, left, top, height = 76, 70, 62, 240
    width = (WIDTH - left - 24 - gap * (len(panels) - 1)) / len(panels)
    bottom = top + height
    drawing = Drawing()
    drawing.text(20, 28, title, size=16, weight="600")
    legend = {}
    for place, panel in enumerate(panels):
        start = left + place * (width + gap)
        values = [
            value for *_, points in panel.curves for point in points if point for value in point
        ]
        axis = Axis(values, bottom, top, log=panel.log)
        drawing.text(start - 50, top - 14, panel.unit)
        for tick in axis.ticks:
            drawing.line([(start, axis(tick)), (start + width, axis(tick))], GRID)
            drawing.text(start - 8, axis(tick) + 4, number(tick), colour=FAINT, anchor="end")
        count = len(panel.xs)
        places = [start + width * (index + 0.5) / count for index in range(count)]
        for x, label in zip(places, panel.xs, strict=True):
            drawing.text(x, bottom + 18, label, colour=FAINT, anchor="middle")
        drawing.text(start + width / 2, bottom + 38, panel.x_label, anchor="middle")
        for name, colour, points in panel.curves:
            legend[name] = colour
            seen = [(x, point) for x, point in zip(places, points, strict=True) if point]
            drawing.line([(x, axis(middle)) for x, (middle, _, _) in seen], colour, 2)
            for x, (middle, low, high) in seen:
                drawing.line([(x, axis(low)), (x, axis(high))], colour, 2)
                drawing.dot(x, axis(middle), colour)
    for index, (name, colour) in enumerate(legend.items()):
        x, y = left + index % 2 * 390, bottom + 64 + index // 2 * 20
        drawing.line([(x, y - 4), (x + 22, y - 4)], colour, 2)
        drawing.dot(x + 11, y - 4, colour)
        drawing.text(x + 30, y, name)
    end = bottom + 64 + (len(legend) + 1) // 2 * 20
    drawing.text(20, end + 14, note, size=11, colour=FAINT)
    drawing.write(path, end + 30)


PROFILES = (
    (
        "profile.svg",
        "Where the CPU of a cached list goes, L1 warm and E",
        {
            "list/1x1/e": "E, one call in flight",
            "list/1x1/warm": f"{OURS}, one call in flight",
            "list/4x32/e": "E, 128 in flight",
            "list/4x32/warm": f"{OURS}, 128 in flight",
        },
    ),
    (
        "profile-replicas.svg",
        "Where the CPU of a cached list goes, L1 warm, 128 in flight on each replica",
        {"replicas/1": "one replica", "replicas/4": "four replicas on the same core"},
    ),
    (
        "profile-database.svg",
        "Where the CPU of a list that isn't cached goes, and of a creation",
        {
            "miss/128/sql": "miss, bare SQL",
            "miss/128/postgres": f"miss, {OURS}",
            "create/1x1/sql": "creation, bare SQL",
            "create/1x1/postgres": f"creation, {OURS}",
        },
    ),
)


def draw(results, folder):
    """Draws the figures whose variants were measured, and writes the table by load."""
    measured, closing = results["measured"], results["closing"]
    run = f"{results['machine']}; commit {results['commit']}, {results['started'][:10]}."
    note = f"{run} Medians, and lines from quartile to quartile."
    (folder / "by-load.md").write_text(by_load(measured, run))

    def point(name, field="cpu_us", scale=1.0):
        rounds = measured.get(name)
        return rounds and spread([scale * round_[field] for round_ in rounds])

    def chart(file, title, *panels):
        panels = [panel for panel in panels if panel.is_seen()]
        if panels:
            lines(folder / file, title, note, panels)

    rows = [(*NAMES[name], point(f"list/4x32/{name}")) for name in NAMES]
    rows = [row for row in rows if row[2]]
    if rows:
        title = "What a cached list of 50 locations costs the server"
        unit = "CPU µs a call, 128 calls in flight (log scale)"
        dots(folder / "list.svg", title, unit, note, rows)

    for file, title, names in PROFILES:
        rows = []
        for name, label in names.items():
            parts, cost = results["profile"].get(name), point(name)
            if parts and cost:
                micros = {part: share * cost[0] for part, share in parts.items()}
                rows.append((label, micros))
        if rows:
            stacked(folder / file, title, "CPU µs a call", run, rows)

    def compared(pattern, xs, field="cpu_us"):
        curves = []
        for name in "a", "e", "f", "cold", "warm", "embedded":
            points = [point(pattern.format(x, name), field) for x in xs]
            curves.append((*NAMES[name], points))
        return curves

    in_flight = "calls in flight", list(IN_FLIGHT.values())
    every = "list/{}/{}"
    chart(
        "in-flight.svg",
        "A cached list of 50 locations, by calls in flight",
        Panel("server's CPU, µs a call", *in_flight, compared(every, IN_FLIGHT)),
        Panel("p50, µs (log scale)", *in_flight, compared(every, IN_FLIGHT, "p50_us"), log=True),
    )
    sizes = 1, 50, 1_000
    curves = compared("page/{}/{}", sizes)
    labels = ["1", "50", "1,000"]
    chart(
        "pages.svg",
        "Cached lists by their size, 128 calls in flight",
        Panel(
            "server's CPU, µs a call (log scale)", "locations in the list", labels, curves, log=True
        ),
    )

    def mixed(field, scale=1.0):
        curves = []
        for kind, name, colour in (
            ("service", OURS, BLUE),
            ("e", "E: tonic + Redis GET, a write drops all of the type", YELLOW),
        ):
            points = [
                point(f"writes/{share}/{kind}", field, scale) for share in (0, 0.01, 0.1, 0.5)
            ]
            curves.append((name, colour, points))
        return curves

    shares = "creations among the calls", ["0", "1 %", "10 %", "50 %"]
    chart(
        "writes.svg",
        "Lists and creations mixed, 32 calls in flight",
        Panel("lists that hit, %", *shares, mixed("hit_rate", 100)),
        Panel("lists that are stale, %", *shares, mixed("stale_rate", 100)),
        Panel("CPU, µs a call", *shares, mixed("cpu_us")),
        Panel("p99 of lists, ms", *shares, mixed("p99_us", 1e-3)),
    )

    counts = 10_000, 100_000, 1_000_000
    by_rows = [
        (OURS, BLUE, [point(f"rows/{count}") for count in counts]),
        ("PostgreSQL", YELLOW, [point(f"rows/{count}", "database_us") for count in counts]),
    ]
    times = closing["ms"] if closing else [[]] * 4
    by_entries = [(OURS, BLUE, [spread(rounds) if rounds else None for rounds in times])]
    by_replicas = [(OURS, BLUE, [point(f"replicas/{count}") for count in (1, 2, 4)])]
    chart(
        "growth.svg",
        "Costs as rows, entries and replicas grow",
        Panel("a miss: CPU, µs", "rows in the database", ["10⁴", "10⁵", "10⁶"], by_rows),
        Panel(
            "invalidation: time, ms",
            "entries under the tag",
            ["10³", "10⁴", "10⁵", "10⁶"],
            by_entries,
        ),
        Panel("a hit: CPU of all, µs", "replicas", ["1", "2", "4"], by_replicas),
    )
