# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The integration tests, in a room of their own with a real QEMU: this machine needs none."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, run


@pytest.mark.lab
def test_beside_a_real_qemu() -> None:
    subprocess.run(["sh", str(TOP / "tests/lab/prerequisites.sh")], check=True, stdin=subprocess.DEVNULL)
    output = run(sys.executable, TOP / "tests/lab/labqemu.py", "test", "11.1", "tests/integration", timeout_s=900)
    (passed,) = re.findall(r"^=+ ([0-9]+) passed.* in ", output, re.MULTILINE)
    assert int(passed) > 0
    assert "skipped" not in output.splitlines()[-1], output
