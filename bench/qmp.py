# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A monitor without any of the collection's code: what a script does that an operator would write.

Run as a program it is the floor of a failover: Python's start, and so many commands that are asked and answered.

  qmp.py /run/lockstep-colo/web1/operator/qmp.sock 60
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, t.Any]
Command = tuple[str, Json]

ANSWER_S = 30.0


class RawMonitor:
    """One connection. Events are kept in ``events``."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_S)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")
        self.events: list[Json] = []
        self._file.readline()
        self.ask("qmp_capabilities")

    def __enter__(self) -> RawMonitor:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()

    def send(self, commands: t.Sequence[Command]) -> None:
        """All at once, as a file that is piped into the socket."""
        lines = [json.dumps({"execute": name, "arguments": arguments}) for name, arguments in commands]
        self._socket.sendall("\n".join(lines).encode() + b"\n")

    def answer(self) -> Json:
        """The next answer, good or bad; EOFError at the end."""
        while True:
            line = self._file.readline()
            if not line:
                raise EOFError("QEMU closed the monitor")
            said: Json = json.loads(line)
            if "event" not in said:
                return said
            self.events.append(said)

    def ask(self, command: str, **arguments: t.Any) -> t.Any:
        self.send([(command, arguments)])
        said = self.answer()
        if "error" in said:
            raise ValueError(f"{command}: {said['error']['desc']}")
        return said["return"]


@contextlib.contextmanager
def checkpoints(path: str) -> Iterator[list[float]]:
    """The pauses of the checkpoints meanwhile, in milliseconds by QEMU's clock."""
    pauses: list[float] = []
    with RawMonitor(path) as monitor:
        reader = threading.Thread(target=_read_to_the_end, args=(monitor,))
        reader.start()
        try:
            yield pauses
        finally:
            monitor.send([("query-version", {})])  # its answer ends the reader
            reader.join()
            pauses += pauses_ms(monitor.events)


def _read_to_the_end(monitor: RawMonitor) -> None:
    monitor._socket.settimeout(None)
    monitor.answer()


def pauses_ms(events: t.Sequence[Json]) -> list[float]:
    """From each STOP to its RESUME."""
    pauses: list[float] = []
    stopped: float | None = None
    for event in events:
        at = event["timestamp"]["seconds"] * 1e3 + event["timestamp"]["microseconds"] / 1e3
        if event["event"] == "STOP":
            stopped = at
        elif event["event"] == "RESUME" and stopped is not None:
            pauses.append(at - stopped)
            stopped = None
    return pauses


if __name__ == "__main__":
    with RawMonitor(sys.argv[1]) as floor:
        for _number in range(int(sys.argv[2])):
            floor.ask("query-status")
