# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Curves as SVG: lines with their points, one colour each, both axes from zero. Pure."""

from __future__ import annotations

import html
import math
import typing as t

Point = tuple[float, float]

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 40, 50
COLOURS = ("#1b6ca8", "#c8502d", "#3c8d40", "#8255a3", "#a37a00", "#555555")
LICENCE = """<!--
Copyright (c) 2026, lockstep.colo maintainers
GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
-->"""


def ticks(top: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to the first that is not below ``top``."""
    if top <= 0:
        return [0.0, 1.0]
    raw = top / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    return [step * place for place in range(math.ceil(top / step * 0.999) + 1)]


def curves(title: str, across: str, up: str, series: t.Mapping[str, t.Sequence[Point]]) -> str:
    """One picture. A series is drawn in the order of its points."""
    points = [point for line in series.values() for point in line]
    x_ticks, y_ticks = (ticks(max((point[axis] for point in points), default=0)) for axis in (0, 1))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(point: Point) -> tuple[float, float]:
        return LEFT + wide * point[0] / x_ticks[-1], TOP + high * (1 - point[1] / y_ticks[-1])

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', _words(LEFT, 22, title, "start", 15)]
    for value in x_ticks:
        x, _y = place((value, 0))
        parts += [_line(x, TOP, x, TOP + high), _words(x, TOP + high + 18, f"{value:g}", "middle")]
    for value in y_ticks:
        _x, y = place((0, value))
        parts += [_line(LEFT, y, LEFT + wide, y), _words(LEFT - 8, y + 4, f"{value:g}", "end")]
    parts.append(_words(LEFT + wide / 2, HEIGHT - 10, across, "middle"))
    parts.append(f'<g transform="translate(16 {TOP + high / 2:.0f}) rotate(-90)">{_words(0, 0, up, "middle")}</g>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [place(point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in placed]
        y = TOP + 12 + 20 * number
        parts.append(f'<rect x="{LEFT + wide + 16}" y="{y - 9}" width="12" height="12" fill="{colour}"/>')
        parts.append(_words(LEFT + wide + 34, y + 2, name, "start"))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img">'
    )
    return "\n".join([head, LICENCE, f"<title>{html.escape(title)}</title>", *parts, "</svg>", ""])


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _words(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(text)}</text>'
