# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""These tests run beside a real QEMU, in the rooms of tests/lab/labqemu.py; tests/gates/test_integration.py runs them there.

Outside of a room there is nothing to collect here. In the room of an older QEMU, whose COLO works for some guests or for none,
only what is said about releases is asked.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import typing as t

import pytest

from ansible_collections.lockstep.colo.tests.integration._pair import Pair

RELEASE = os.environ.get("LOCKSTEP_QEMU")

collect_ignore_glob = {None: ["test_*.py"], "11.1": []}.get(RELEASE, ["test_[!r]*.py"])

PORTS = itertools.count(30000, 32)


def pytest_configure(config: pytest.Config) -> None:
    """A worker of pytest-xdist has a network of its own, as taps and ports have the same names in each."""
    if hasattr(config, "workerinput"):
        os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS)
        for words in ("ip link set lo up", "mount -t sysfs -o ro sysfs /sys"):
            subprocess.run(words.split(), check=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> t.Iterator[Pair]:
    """Two hosts on which nothing was ever started; a test may ask for other keys of the definition."""
    made = Pair(tmp_path_factory.mktemp("p"), next(PORTS), **getattr(request, "param", {}))
    try:
        yield made
    finally:
        made.end()
        for host in (made.alpha, made.beta):
            text = host.log.read_text() if host.log.exists() else ""
            print(f"--- {host.guest.host}\n{text}")
            assert "Traceback" not in text
