# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one of the project's tools as a test: on failure the test shows the command and its whole output."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import typing as t

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
COLLECTION = TOP / "build" / "collections" / "ansible_collections" / "lockstep" / "colo"

# What Ansible prints when it has guessed, or when something will stop working.
_WARNING = re.compile(r"\[(DEPRECATION )?WARNING\]|^WARNING:", re.MULTILINE)


def environment() -> dict[str, str]:
    """The environment of every tool: the tools of build/venv, the checkout as a collection, no colours."""
    own = {
        "ANSIBLE_COLLECTIONS_PATH": str(TOP / "build" / "collections"),
        "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
        "PATH": f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | own


def run(
    *argv: str | pathlib.Path,
    timeout_s: float,
    cwd: pathlib.Path = TOP,
    warnings: bool = True,
    env: dict[str, str] | None = None,
) -> str:
    """Run a command and return its output; fail the test if it fails or, unless ``warnings``, if it warns."""
    return finish(start(*argv, cwd=cwd, env=env), timeout_s, warnings)


def start(
    *argv: str | pathlib.Path, cwd: pathlib.Path = TOP, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command, in a session of its own, for :func:`finish`."""
    return subprocess.Popen(
        [str(word) for word in argv],
        cwd=cwd,
        env=environment() | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float, warnings: bool = True) -> str:
    """Wait for a command that was started and return its output, as :func:`run` does."""
    problem = None
    try:
        output, _rest = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        problem = f"did not end within {timeout_s:g} s"
        output = end(process)
    except BaseException:
        end(process)
        raise
    if problem is None and process.returncode:
        problem = f"ended with {process.returncode}"
    if problem is None and not warnings and _WARNING.search(output):
        problem = "printed a warning"
    if problem is not None:
        print(output)  # pytest shows it above the summary
        pytest.fail(f"{shlex.join(t.cast('list[str]', process.args))}: {problem}", pytrace=False)
    return output


def end(process: subprocess.Popen[str]) -> str:
    """End a command that was started, if it runs, and return what it had printed that nobody has read."""
    if process.poll() is not None:
        return ""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        output, _rest = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _rest = process.communicate()
    return output


def tracked(*patterns: str) -> list[pathlib.Path]:
    """The files of the checkout that git tracks or would add, relative to its top."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=TOP,
        check=True,
        capture_output=True,
        text=True,
    )
    names = (pathlib.Path(name) for name in sorted(listing.stdout.split("\0")) if name)
    return [name for name in names if (TOP / name).is_file()]
