# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The short form of the fault campaign, on the lab's hosts."""

from __future__ import annotations

import sys

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, run


@pytest.mark.usefixtures("lab")
def test_the_short_campaign(request: pytest.FixtureRequest) -> None:
    campaign = (
        sys.executable,
        TOP / "tests" / "lab" / "campaign.py",
        "--fresh",
        "--seed",
        "0",
        "--cases",
        "short",
        "faults",
    )
    output = run(*campaign, timeout_s=1200)
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line("\n  " + "\n  ".join(line for line in output.splitlines() if line.startswith("holds ")))
    assert "FAILS" not in output
