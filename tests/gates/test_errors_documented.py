# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error_code in the sources has its line in docs/errors.md, and no line is about a code that is gone."""

from __future__ import annotations

import ast
import re

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP

# who raises, and which argument is the code
RAISERS = {"ColoError": 0, "QmpError": 0, "RefusedError": 0, "Problem": 0, "InputError": 3}


def _codes(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        values = [keyword.value for keyword in node.keywords if keyword.arg == "error_code"]
        position = RAISERS.get(name)
        if position is not None and len(node.args) > position:
            values.append(node.args[position])
        found |= {value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)}
    return found


@pytest.mark.fast
def test_sources_and_table_agree() -> None:
    files = [*TOP.glob("plugins/**/*.py"), *TOP.glob("roles/*/files/*.py")]
    raised = set[str]().union(*(_codes(path.read_text()) for path in files)) | {"bad_input", "deadline_passed"}
    rows = re.findall(r"^\| (`[^|]*`) \|", (TOP / "docs/errors.md").read_text(), re.MULTILINE)
    told = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row)}
    assert len(raised) > 50
    assert raised - told == set()
    assert told - raised - _written_as_text() == set()


def _written_as_text() -> set[str]:
    """Codes that travel as plain data: the keeper's answers, and what only one file names."""
    text = "".join(path.read_text() for path in [*TOP.glob("plugins/**/*.py"), *TOP.glob("roles/*/files/*.py")])
    return set(re.findall(r'"([a-z]+(?:_[a-z]+)+)"', text)) | {"duplicate"}
