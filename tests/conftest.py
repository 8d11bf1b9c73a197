# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every test shares: which tests are fast, and the lab."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import typing as t

import pytest

if t.TYPE_CHECKING:
    from collections.abc import Iterator

TOP = pathlib.Path(__file__).resolve().parent.parent
LAB = TOP / "build" / "lab"


@dataclasses.dataclass(frozen=True)
class Lab:
    """The two hosts of tests/lab, up; ``data`` is its lab.json."""

    data: dict[str, t.Any]

    @property
    def inventory(self) -> pathlib.Path:
        return pathlib.Path(self.data["inventory"])

    def ctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``labctl ARGUMENTS`` and return what it printed."""
        return subprocess.run(
            _labctl(*arguments), check=check, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )


def _labctl(*arguments: str) -> list[str]:
    return [sys.executable, str(TOP / "tests" / "lab" / "labctl.py"), *arguments]


def _lab_is_up() -> bool:
    try:
        hosts = json.loads((LAB / "lab.json").read_text())["hosts"].values()
    except (OSError, ValueError, KeyError):
        return False
    return any(pathlib.Path(f"/proc/{host['leader_pid']}").exists() for host in hosts)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and let a terminated run take its lab away, as an interrupted one does."""
    config.addinivalue_line("markers", "fast: needs neither root, nor a network, nor a lab; `make check` runs these")
    config.addinivalue_line("markers", "lab: needs the two hosts; the `lab` fixture brings them up")

    def interrupt(number: int, _frame: object) -> t.NoReturn:
        raise KeyboardInterrupt(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, interrupt)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests are fast, all that take the lab are lab tests; the lab's tests come last."""
    for item in items:
        if TOP / "tests" / "unit" in item.path.parents:
            item.add_marker("fast")
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker("lab")
    items.sort(key=lambda item: item.get_closest_marker("lab") is not None)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Bring up the lab, and take it away at the end unless it was up before or LAB_KEEP is set."""
    keep = _lab_is_up() or bool(os.environ.get("LAB_KEEP"))
    try:
        subprocess.run(["sh", str(TOP / "tests" / "lab" / "prerequisites.sh")], check=True, stdin=subprocess.DEVNULL)
        subprocess.run(_labctl("up"), check=True, stdin=subprocess.DEVNULL)
        yield Lab(json.loads((LAB / "lab.json").read_text()))
    finally:
        if not keep:
            subprocess.run(_labctl("down"), check=True, stdin=subprocess.DEVNULL)
