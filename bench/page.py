# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures of a run, as the part of docs/performance.md that is written by `make bench`."""

from __future__ import annotations

import pathlib

import figures
from labplay import Json

TITLES = {
    1: "Row 1: failover",
    2: "Row 2: entering lock step",
    3: "Row 3: site.yml",
    4: "Row 4: what lock step costs",
    5: "Row 5: growth",
}
PICTURES = {
    2: {"pause.svg": "The pause by the size of the memory"},
    3: {"site.svg": "Seconds of site.yml by the number of guests"},
    4: {"delay.svg": "What is left of a guest that runs alone, by checkpoint delay"},
}


def block(report: Json, pictures: frozenset[str]) -> str:
    """Everything between the marks."""
    machine, averages = report["machine"], ", ".join(f"{one[0]:.1f}" for one in report["load_average"])
    parts = [
        f"Taken on {report['begun'][:10]} in {report['seconds'] / 60:.0f} minutes on {machine['processors']} processors ({machine['model']}), "
        f"both hosts, the guest and its client on the same machine. Load average of a minute at the begin of each row and in the end: {averages}. "
        + ("Few repetitions (`--quick`): whether it works, not how fast. " if report["quick"] else "")
        + ("Not measured: " + "; ".join(report["errors"]) + "." if report["errors"] else ""),
        "### Targets",
        figures.markdown(figures.TARGET_HEADINGS, figures.target_cells(report["targets"])),
    ]
    for row, title in TITLES.items():
        rows = [one for one in report["comparisons"] if one["row"] == row]
        fits = report["fits"] if row == 5 else []
        if rows:
            parts += [f"### {title}", figures.markdown(figures.HEADINGS, figures.cells(rows))]
        if fits:
            parts += [f"### {title}", figures.markdown(figures.FIT_HEADINGS, figures.fit_cells(fits))]
        parts += [
            f"![{words}](images/bench/{name})" for name, words in PICTURES.get(row, {}).items() if name in pictures
        ]
        if row == 3 and report["evidence"].get("site"):
            parts += _profile(report["evidence"]["site"])
    return "\n\n".join(part.strip() for part in parts)


def _profile(site: list[Json]) -> list[str]:
    most = site[-1]
    rows = [(one["task"], figures.number(one["seconds"])) for one in most["slowest"]]
    return [
        f"Where the time of a run with nothing to do goes, {most['guests']} guests:",
        figures.markdown(("task", "s"), rows),
    ]


def write(docs: pathlib.Path, report: Json) -> None:
    """The pictures and the page."""
    images = docs / "images" / "bench"
    images.mkdir(parents=True, exist_ok=True)
    for name, picture in report["pictures"].items():
        (images / name).write_text(picture, encoding="utf-8")
    there = frozenset(path.name for path in images.glob("*.svg"))
    path = docs / "performance.md"
    path.write_text(figures.replaced(path.read_text(encoding="utf-8"), block(report, there)), encoding="utf-8")
