# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of measurements: medians, ratios, slopes, and the tables that people read. Pure."""

from __future__ import annotations

import dataclasses
import math
import statistics
import typing as t

Json = dict[str, t.Any]
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One thing, measured in several ways in the same run. ``base`` names the way that the others are held against.

    A ratio above 1 says that a way takes that much longer than the base (``less`` is better), or gives that much more
    (``more`` is better).
    """

    row: int
    what: str
    unit: str
    better: t.Literal["less", "more"]
    base: str
    values: t.Mapping[str, t.Sequence[float]]

    def ratio(self, way: str, to: str = "") -> float | None:
        """Median over median; None where one of the two was not measured or is nothing."""
        own, base = self.values.get(way), self.values.get(to or self.base)
        if not own or not base or not statistics.median(base):
            return None
        return statistics.median(own) / statistics.median(base)

    def as_json(self) -> Json:
        ways = {
            way: {**summary(values), "ratio": self.ratio(way), "values": list(values)}
            for way, values in self.values.items()
            if values
        }
        told = {"row": self.row, "what": self.what, "unit": self.unit, "better": self.better, "base": self.base}
        return {**told, "ways": ways}


@dataclasses.dataclass(frozen=True)
class Target:
    """What was wanted, what was seen, and whether it holds (None: what it takes was not measured in this run)."""

    row: int
    wanted: str
    seen: str
    holds: bool | None


@dataclasses.dataclass(frozen=True)
class Fit:
    """A straight line through measured points: what each more costs."""

    what: str
    per: str
    unit: str
    slope: float
    start: float
    points: tuple[Point, ...]


def summary(values: t.Sequence[float]) -> Json:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def percentile(values: t.Sequence[float], fraction: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered), max(1, math.ceil(fraction * len(ordered)))) - 1]


def fit(what: str, per: str, unit: str, points: t.Sequence[Point]) -> Fit | None:
    """Least squares; None with fewer than two different places."""
    if len({x for x, _y in points}) < 2:
        return None
    slope, start = statistics.linear_regression([x for x, _y in points], [y for _x, y in points])
    return Fit(what, per, unit, slope, start, tuple(points))


def at_most(row: int, wanted: str, seen: float | None, limit: float, unit: str = "") -> Target:
    """A target that holds up to a limit."""
    return Target(row, wanted, "-" if seen is None else number(seen) + unit, None if seen is None else seen <= limit)


def at_least(row: int, wanted: str, seen: float | None, limit: float, unit: str = "") -> Target:
    """A target that holds from a limit on."""
    return Target(row, wanted, "-" if seen is None else number(seen) + unit, None if seen is None else seen >= limit)


def number(value: float | None) -> str:
    """Three digits are all that such a measurement carries."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


# --- tables ----------------------------------------------------------------------------------------------------------

HEADINGS = ("what", "way", "median", "min", "max", "runs", "ratio")
Cells = list[tuple[str, ...]]


def cells(comparisons: t.Sequence[Json]) -> Cells:
    """The rows of a table, from comparisons as JSON."""
    rows: Cells = []
    for one in comparisons:
        for place, (way, seen) in enumerate(one["ways"].items()):
            what = f"{one['what']}, {one['unit']}" if place == 0 else ""
            told = "1 (base)" if way == one["base"] else number(seen["ratio"])
            figures = (number(seen["median"]), number(seen["min"]), number(seen["max"]), str(seen["runs"]))
            rows.append((what, way, *figures, told))
    return rows


def text(headings: t.Sequence[str], rows: t.Sequence[t.Sequence[str]]) -> str:
    """A table for a terminal."""
    lines = [list(headings), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def markdown(headings: t.Sequence[str], rows: t.Sequence[t.Sequence[str]]) -> str:
    """A table for a page."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def target_cells(targets: t.Sequence[Json]) -> Cells:
    words = {True: "holds", False: "missed", None: "not measured"}
    return [(str(one["row"]), one["wanted"], one["seen"], words[one["holds"]]) for one in targets]


def fit_cells(fits: t.Sequence[Json]) -> Cells:
    return [
        (one["what"], f"{number(one['slope'])} {one['unit']} {one['per']}", f"{number(one['start'])} {one['unit']}")
        for one in fits
    ]


TARGET_HEADINGS = ("row", "wanted", "seen", "")
FIT_HEADINGS = ("what", "each more costs", "and to begin with")


# --- the page --------------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- figures: begin (make bench writes what follows) -->", "<!-- figures: end -->"


def replaced(page: str, block: str) -> str:
    """The page with other figures between the two marks; ValueError when they are not there once, in order."""
    before, begin, rest = page.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"the page needs {BEGIN!r} and {END!r}, once each")
    return f"{before}{BEGIN}\n\n{block.strip()}\n\n{END}{after}"
