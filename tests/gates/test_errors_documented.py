# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error code of the sources is in the table of errors, with a meaning and a remedy, and no other is."""

from __future__ import annotations

import ast
import collections.abc as c
import re

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, tracked

TABLE = TOP / "docs" / "docsite" / "errors.md"
# What takes the code as its argument number ...
RAISES = {"ColoError": 0, "RefusedError": 0, "QmpError": 0, "Problem": 0, "InputError": 3}


def _words(node: ast.AST | None) -> c.Iterator[str]:
    """The text a node may stand for."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _words(node.body)
        yield from _words(node.orelse)
    elif isinstance(node, ast.Tuple) and node.elts:
        yield from _words(node.elts[0])


def _of_call(node: ast.Call) -> c.Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in RAISES and len(node.args) > RAISES[name]:
        yield from _words(node.args[RAISES[name]])
    if name == "__init__" and node.args:  # super().__init__("deadline_passed", ...)
        yield from _words(node.args[0])
    if name == "get" and len(node.args) == 2 and list(_words(node.args[0])) == ["error_code"]:
        yield from _words(node.args[1])
    for keyword in node.keywords:
        if keyword.arg in ("error_code", "problem"):
            yield from _words(keyword.value)


def _of_dict(node: ast.Dict) -> c.Iterator[str]:
    for key, value in zip(node.keys, node.values):
        if list(_words(key)) == ["error_code"]:
            yield from _words(value)


def _of_defaults(node: ast.arguments) -> c.Iterator[str]:
    with_default = node.args[len(node.args) - len(node.defaults) :]
    for argument, default in zip(with_default, node.defaults):
        if argument.arg == "error_code":
            yield from _words(default)


def _of_loop(node: ast.For) -> c.Iterator[str]:
    """The codes of `for condition, code, text in ((..., "image_corrupt", ...), ...)`."""
    if not isinstance(node.target, ast.Tuple) or not isinstance(node.iter, ast.Tuple):
        return
    names = [getattr(element, "id", "") for element in node.target.elts]
    for row in node.iter.elts:
        if "code" in names and isinstance(row, ast.Tuple):
            yield from _words(row.elts[names.index("code")])


def _codes(tree: ast.AST) -> c.Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _of_call(node)
        elif isinstance(node, ast.Dict):
            yield from _of_dict(node)
        elif isinstance(node, ast.arguments):
            yield from _of_defaults(node)
        elif isinstance(node, ast.For):
            yield from _of_loop(node)


def _in_sources() -> set[str]:
    sources = tracked("plugins/*.py", "roles/*.py")
    found = {code for name in sources for code in _codes(ast.parse((TOP / name).read_text()))}
    return {code for code in found if re.fullmatch(r"[a-z]+(_[a-z]+)*", code)}


def _rows() -> list[list[str]]:
    lines = TABLE.read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


@pytest.mark.fast
def test_every_code_is_in_the_table() -> None:
    assert _in_sources() - {row[0].strip("`") for row in _rows()} == set()


@pytest.mark.fast
def test_every_code_of_the_table_is_in_the_sources() -> None:
    assert {row[0].strip("`") for row in _rows()} - _in_sources() == set()


@pytest.mark.fast
def test_every_code_of_the_table_has_a_test() -> None:
    tests = tracked("tests/unit/*.py", "tests/integration/*.py", "molecule/*.yml")
    words = {word for name in tests for word in re.findall(r"[a-z]+(?:_[a-z]+)+|duplicate", (TOP / name).read_text())}
    assert {row[0].strip("`") for row in _rows()} - words == set()


@pytest.mark.fast
def test_each_has_one_row_with_a_meaning_and_a_remedy() -> None:
    rows = _rows()
    codes = [row[0] for row in rows]
    assert [code for code in codes if codes.count(code) > 1] == []
    assert [row for row in rows if len(row) != 3 or not all(row)] == []
