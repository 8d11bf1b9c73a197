# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One synchronous monitor connection with a deadline on everything.

A facade over ``qemu.qmp`` (asyncio), which has no deadlines of its own: a monitor that has another client accepts the
connection and never greets, and a blocked main loop accepts commands and never answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import traceback
import types
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _peer
from ansible_collections.lockstep.colo.plugins.module_utils._errors import DeadlineError, QmpError

QMP_IMPORT_ERROR: str | None
try:
    from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate
except ImportError:
    QMP_IMPORT_ERROR = traceback.format_exc()
else:
    QMP_IMPORT_ERROR = None

T = t.TypeVar("T")


class Event(t.NamedTuple):
    """One event: ``name``, ``data`` and QEMU's own time stamp in seconds since the epoch."""

    name: str
    data: dict[str, t.Any]
    time_s: float


class Monitor:
    """A connected monitor. Use as a context manager; not for use by two threads.

    With ``unit``, only a process of that systemd unit is talked to (``socket_foreign``).

    Errors: ``qmp_library_missing``, ``qmp_unreachable``, ``qmp_busy`` (no greeting in time), ``qmp_refused`` (with
    QEMU's ``error_class`` and text), ``qmp_lost``, ``deadline_passed``.
    """

    def __init__(self, path: str, timeout_s: float = 3.0, unit: str | None = None) -> None:
        if QMP_IMPORT_ERROR is not None:
            raise QmpError(
                "qmp_library_missing",
                "the Python library qemu.qmp is missing on this host: run the role lockstep.colo.host, or install python3-qemu-qmp",
                traceback=QMP_IMPORT_ERROR,
            )
        self.path = path
        self.timeout_s = timeout_s
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("lockstep.colo")
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        try:
            self._run(self._connect(unit), timeout_s)
        except TimeoutError:
            self._abandon()
            raise QmpError(
                "qmp_busy",
                f"{path} accepts a connection and does not greet within {timeout_s:g} s: "
                "another client holds this monitor, or QEMU's main loop is blocked",
                path=path,
            ) from None
        except QmpError:
            self._abandon()
            raise
        except (QMPError, OSError, EOFError) as exc:
            self._abandon()
            raise QmpError("qmp_unreachable", f"{path} cannot be reached ({exc}): is QEMU running?", path=path) from exc

    async def _connect(self, unit: str | None) -> None:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.setblocking(False)
        try:
            await self._loop.sock_connect(channel, self.path)
            if unit is not None:
                _peer.check(channel, self.path, unit)
            await self._client.connect(channel)
        except BaseException:
            channel.close()
            raise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def _run(self, awaitable: t.Awaitable[T], timeout_s: float) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(awaitable, timeout_s))

    def _abandon(self) -> None:
        """Close without waiting for an orderly goodbye from the other side."""
        if self._loop.is_closed():
            return
        # the connection is given up: why its goodbye failed changes nothing
        with contextlib.suppress(asyncio.TimeoutError, QMPError, OSError, EOFError):
            self._run(self._client.disconnect(), 1.0)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def close(self) -> None:
        """End the connection; QEMU goes on."""
        self._abandon()

    def execute(
        self,
        command: str,
        arguments: t.Mapping[str, t.Any] | None = None,
        timeout_s: float | None = None,
        oob: bool = False,
    ) -> t.Any:
        """Send one command and return its answer. After a deadline the connection is closed: its state is unknown."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        if self._loop.is_closed():
            raise QmpError("qmp_lost", f"{command}: the monitor connection is closed", command=command)
        try:
            return self._run(self._client.execute(command, dict(arguments) if arguments else None, oob=oob), limit)
        except TimeoutError:
            self._abandon()
            raise DeadlineError(f"an answer to {command}", limit, command=command) from None
        except ExecuteError as exc:
            raise QmpError(
                "qmp_refused",
                f"QEMU refused {command}: {exc}",
                command=command,
                arguments=dict(arguments or {}),
                error_class=exc.error_class,
                reason=str(exc),
            ) from exc
        except (QMPError, OSError, EOFError) as exc:
            self._abandon()
            raise QmpError("qmp_lost", f"QEMU went away during {command} ({exc})", command=command) from exc

    def give(self, name: str, given: socket.socket) -> None:
        """Hand a connected socket to QEMU, under a name. It is QEMU's then, and does not block.

        Errors: those of :meth:`execute`.
        """
        if self._loop.is_closed():
            raise QmpError("qmp_lost", "getfd: the monitor connection is closed", command="getfd")
        try:
            self._client.send_fd_scm(given.fileno())
        except (QMPError, OSError) as exc:
            self._abandon()
            raise QmpError("qmp_lost", f"QEMU went away during getfd ({exc})", command="getfd") from exc
        self.execute("getfd", {"fdname": name})
        # after the answer: QEMU makes every socket that it is given a blocking one (io/channel-socket.c), and the flag is of both ends
        given.setblocking(False)

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event in order, or None when none came in ``timeout_s``. Raises ``qmp_lost`` when QEMU is gone."""
        if self._loop.is_closed():
            raise QmpError("qmp_lost", "the monitor connection is closed")
        if self._client.runstate != Runstate.RUNNING:
            # only what came before the end is left
            timeout_s = 0.0
        raw = self._loop.run_until_complete(self._event_or_end(timeout_s))
        if raw is not None:
            stamp = t.cast("dict[str, int]", raw["timestamp"])
            data = t.cast("dict[str, t.Any]", raw.get("data", {}))
            return Event(str(raw["event"]), data, stamp["seconds"] + stamp["microseconds"] / 1e6)
        if self._client.runstate != Runstate.RUNNING:
            self._abandon()
            raise QmpError("qmp_lost", "QEMU closed the monitor")
        return None

    async def _event_or_end(self, timeout_s: float) -> t.Mapping[str, t.Any] | None:
        """Wait for an event, the end of the connection, or the time-out, whichever is first."""
        event = asyncio.ensure_future(self._listener.get())
        end = asyncio.ensure_future(self._client.runstate_changed())
        await asyncio.wait({event, end}, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
        result = event.result() if event.done() else None
        for task in (event, end):
            task.cancel()
        await asyncio.gather(event, end, return_exceptions=True)
        return result
