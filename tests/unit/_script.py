# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A monitor and a systemd that follow a script to the letter, and a clock that only they move."""

from __future__ import annotations

import socket
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import QmpError
from ansible_collections.lockstep.colo.plugins.module_utils._qmp import Event, Monitor

# in place of arguments: they are another test's business
ANY: t.Any = object()


def refused(command: str, kind: str = "GenericError") -> QmpError:
    """What a refusal by QEMU looks like."""
    return QmpError("qmp_refused", f"QEMU refused {command}", command=command, error_class=kind)


class Call(t.NamedTuple):
    """An expected command and its answer (or error)."""

    command: str
    arguments: t.Any = None
    answer: t.Any = None
    oob: bool = False


class Tell(t.NamedTuple):
    """An expected wait for an event, and what comes; without a name nothing does, and the time passes."""

    name: str | None = None
    data: t.Any = None
    at: float = 0.0


def migration(status: str) -> Tell:
    """A MIGRATION event."""
    return Tell("MIGRATION", {"status": status})


class Clock:
    """Stands in for ``time`` in the code under test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class ScriptedMonitor:
    """Ordered and exhaustive: an extra call fails at once, a missing one at ``done``."""

    def __init__(self, clock: Clock, *script: Call | Tell) -> None:
        self.left = list(script)
        self.closed = False
        self._clock = clock

    def as_monitor(self) -> Monitor:
        return t.cast("Monitor", self)

    def execute(
        self, command: str, arguments: t.Any = None, timeout_s: float | None = None, oob: bool = False
    ) -> t.Any:
        assert not self.closed
        assert timeout_s is None or timeout_s > 0
        assert self.left, f"nobody expects {command} {arguments}"
        expected = self.left.pop(0)
        assert isinstance(expected, Call), f"{command} where {expected} was expected"
        wanted = arguments if expected.arguments is ANY else expected.arguments
        assert (command, arguments, oob) == (expected.command, wanted, expected.oob)
        if isinstance(expected.answer, Exception):
            raise expected.answer
        return expected.answer

    def give(self, name: str, given: socket.socket) -> None:
        given.getpeername()
        self.execute("getfd", {"fdname": name})

    def next_event(self, timeout_s: float) -> Event | None:
        assert not self.closed
        assert timeout_s >= 0
        assert self.left, "nobody expects a wait"
        expected = self.left.pop(0)
        assert isinstance(expected, Tell), f"a wait where {expected} was expected"
        if expected.name is None:
            self._clock.now += max(timeout_s, 0.001)
            return None
        return Event(expected.name, expected.data or {}, expected.at)

    def close(self) -> None:
        self.closed = True

    def done(self) -> None:
        assert self.left == [], "the script was not played to its end"


class Systemd:
    """``run_command``: ordered answers to exact command lines."""

    def __init__(self, *script: tuple[str, tuple[int, str, str]]) -> None:
        self.left = list(script)

    def __call__(self, argv: list[str], **_options: t.Any) -> tuple[int, str, str]:
        assert self.left, f"nobody expects {argv}"
        line, answer = self.left.pop(0)
        assert " ".join(argv) == line
        return answer

    def done(self) -> None:
        assert self.left == []
