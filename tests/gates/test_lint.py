# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The linters, the type checker and ansible-test."""

from __future__ import annotations

import sys
import typing as t

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, end, finish, run, start, tracked

if t.TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

ANSIBLE_TEST = (sys.executable, TOP / "scripts" / "ansible_test.py")


@pytest.fixture(scope="module", autouse=True)
def sanity(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str] | None]:
    """ansible-test sanity, if it is asked for: it takes two minutes, and runs beside the other tests of this module."""
    if not any(item.name == test_ansible_test_sanity.__name__ for item in request.session.items):
        yield None
        return
    process = start(*ANSIBLE_TEST, "sanity")
    try:
        yield process
    finally:
        end(process)


@pytest.mark.fast
def test_ruff_check() -> None:
    run("ruff", "check", ".", timeout_s=60)


@pytest.mark.fast
def test_ruff_format() -> None:
    """`make format` mends this."""
    run("ruff", "format", "--check", ".", timeout_s=60)


@pytest.mark.fast
def test_types() -> None:
    run(TOP / "scripts" / "types", timeout_s=300)


@pytest.mark.fast
def test_yamllint() -> None:
    run("yamllint", "--strict", ".", timeout_s=120)


@pytest.mark.fast
def test_ansible_lint() -> None:
    run("ansible-lint", timeout_s=300)


@pytest.mark.fast
def test_shell_syntax() -> None:
    shells = (b"#!/bin/sh", b"#!/bin/bash", b"#!/usr/bin/env bash")
    scripts = [name for name in tracked() if (TOP / name).read_bytes().startswith(shells)]
    assert scripts
    for name in scripts:
        run("bash", "-n", name, timeout_s=10)


def test_ansible_test_sanity(sanity: subprocess.Popen[str]) -> None:
    finish(sanity, timeout_s=1200)


def test_ansible_test_units() -> None:
    run(*ANSIBLE_TEST, "units", timeout_s=1200)  # not beside the other: they have one directory


@pytest.mark.fast
def test_nothing_is_ignored_in_ansible_test() -> None:
    assert not tracked("tests/sanity/ignore*")


@pytest.mark.fast
def test_changelog_fragments() -> None:
    run("antsibull-changelog", "lint", timeout_s=60)
