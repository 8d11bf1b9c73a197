# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a campaign hands over: a table of what was measured, and which criteria hold."""

from __future__ import annotations

import dataclasses
import typing as t

Json = dict[str, t.Any]


@dataclasses.dataclass
class Report:
    """One campaign. Without a criterion nothing is proved, and it has failed."""

    title: str = ""
    columns: tuple[str, ...] = ()
    rows: list[tuple[t.Any, ...]] = dataclasses.field(default_factory=list)
    criteria: dict[str, bool] = dataclasses.field(default_factory=dict)
    evidence: Json = dataclasses.field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return bool(self.criteria) and all(self.criteria.values())

    def as_json(self) -> Json:
        rows = [dict(zip(self.columns, row)) for row in self.rows]
        return {"title": self.title, "holds": self.holds, "criteria": self.criteria, "rows": rows, **self.evidence}

    def table(self) -> str:
        """Title, table and criteria, to be read by people."""
        cells = [list(self.columns), *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
        verdicts = [f"{'holds ' if holds else 'FAILS '} {what}" for what, holds in self.criteria.items()]
        return "\n".join([self.title, "", *lines, "", *(verdicts or ["FAILS  nothing was measured"])])


def _cell(value: t.Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
