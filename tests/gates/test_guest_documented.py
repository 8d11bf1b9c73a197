# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page about guest definitions has every key that is accepted, and the true defaults and ranges of all knobs."""

from __future__ import annotations

import ast
import dataclasses
import re

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _guest
from ansible_collections.lockstep.colo.tests.gates._run import TOP

PAGE = TOP / "docs" / "docsite" / "guest-definition.md"


def _sections() -> dict[str, dict[str, list[str]]]:
    """Heading -> key -> the other cells of its row."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            sections[line[3:]] = {}
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            sections[list(sections)[-1]][cells[0].strip("`")] = cells[1:]
    return sections


def _accepted() -> list[set[str]]:
    """The keys that each call of _known_keys accepts where they are written down there, in the order of the file."""
    found: list[set[str]] = []
    for node in ast.walk(ast.parse((TOP / "plugins" / "module_utils" / "_guest.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_known_keys":
            keys = [
                value for value in ast.walk(node) if isinstance(value, ast.Constant) and isinstance(value.value, str)
            ]
            found.append({str(key.value) for key in keys})
    return [keys for keys in found if keys]


@pytest.mark.fast
def test_every_key_is_there_and_no_other() -> None:
    sections = {name: set(rows) for name, rows in _sections().items()}
    assert sections["Guest"] == {*_guest._REQUIRED, *_guest._OPTIONAL}
    parts = [sections[name] for name in ("disks", "nics", "boot")]
    assert sorted(map(sorted, _accepted())) == sorted(map(sorted, parts))


@pytest.mark.fast
def test_knobs_have_their_defaults_and_ranges() -> None:
    told = {
        key: ([int(number) for number in re.findall(r"[0-9]+", default)], [int(end) for end in span.split(" to ")])
        for key, (_unit, default, span, _meaning) in _sections()["tuning"].items()
        if key != "profile"
    }
    defaults = {key: [value] for key, value in dataclasses.asdict(_guest.Tuning()).items()}
    defaults["settle_ms"] = [_guest.default_settle_ms(accelerator) for accelerator in ("kvm", "tcg")]
    assert told == {key: (defaults[key], list(_guest._TUNING_RANGES[key])) for key in defaults}


@pytest.mark.fast
def test_profiles_set_what_is_told() -> None:
    assert set(_sections()["tuning"]) == set(_guest._TUNING_KEYS)
    rows = _sections()["profiles"]
    defaults = dataclasses.asdict(_guest.Tuning())
    names = ("latency", "balanced", "throughput")
    assert set(names) == set(_guest.PROFILES)
    assert set(rows) == {key for knobs in _guest.PROFILES.values() for key in knobs}
    for key, told in rows.items():
        assert [int(cell) for cell in told] == [{**defaults, **_guest.PROFILES[name]}[key] for name in names]
