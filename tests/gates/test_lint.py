# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The linters, the type checker and ansible-test."""

from __future__ import annotations

import sys

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, run, tracked


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


@pytest.mark.parametrize("command", ["sanity", "units"])
def test_ansible_test(command: str) -> None:
    run(sys.executable, TOP / "scripts" / "ansible_test.py", command, timeout_s=1200)


@pytest.mark.fast
def test_nothing_is_ignored_in_ansible_test() -> None:
    assert not tracked("tests/sanity/ignore*")


@pytest.mark.fast
def test_changelog_fragments() -> None:
    run("antsibull-changelog", "lint", timeout_s=60)
