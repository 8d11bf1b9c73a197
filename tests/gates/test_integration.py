# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/integration, beside each QEMU that operators have: every test of it runs, none is skipped."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, run

LAB = TOP / "tests" / "lab"
# as in labqemu.py; the newest has all the tests, the older ones what differs between releases
SELECTION = os.environ.get("INTEGRATION", "").split()  # words for pytest, to run some of the tests beside the newest
RELEASES = ("11.1",) if SELECTION else ("11.1", "10.0", "10.0.2", "7.2")
DEADLINE_S = 900
TWO_AT_ONCE = ("--numprocesses=2", "--dist=worksteal")  # the older ones have seven tests, which take seconds


@pytest.mark.lab
@pytest.mark.parametrize("release", RELEASES)
def test_integration(release: str, request: pytest.FixtureRequest) -> None:
    subprocess.run(["sh", str(LAB / "prerequisites.sh")], check=True, stdin=subprocess.DEVNULL)
    room = (sys.executable, LAB / "labqemu.py", "--timeout", str(DEADLINE_S))
    run(*room, "root", release, timeout_s=900)
    how = (*TWO_AT_ONCE, *SELECTION) if release == RELEASES[0] else ()
    output = run(*room, "test", release, "tests/integration", *how, timeout_s=DEADLINE_S + 30)
    closing = output.rstrip().splitlines()[-1].strip("= ")
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\n  beside QEMU {release}: {closing}")
    counts = {word: int(number) for number, word in re.findall(r"([0-9]+) ([a-z]+)", closing.split(" in ")[0])}
    allowed = {"passed", "deselected"} if SELECTION else {"passed"}
    assert counts.get("passed", 0) > 0
    assert set(counts) <= allowed, output
