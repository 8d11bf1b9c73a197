# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper's connection to QEMU: held from before the guest runs, every event seen, out of band open (effect)."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import pathlib
import socket
import time
import traceback
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _peer, _rewriter, _rules, _topology
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_base import Json, Lane, age_ms, log, now_iso

QMP_IMPORT_ERROR: str | None
try:
    from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate
except ImportError:
    QMP_IMPORT_ERROR = traceback.format_exc()
else:
    QMP_IMPORT_ERROR = None

EVENTS_KEPT = 64
CONNECT_S = 2.0  # greeting and negotiation; a QEMU that is blocked, or talks to another client, never greets
OUT_OF_BAND_S = 1.0  # answers in milliseconds even while the main loop is blocked
IN_BAND_S = 2.0
SECOND_WORD_S = 0.25  # between the errors of one write on two hosts; nothing tells that there will be none
RETRY_FIRST_S, RETRY_LAST_S = 0.02, 0.25


def started_ticks(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; with the pid it names one process for ever."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])  # the command in parentheses may hold anything


def is_alive(process: tuple[int, int | None]) -> bool:
    """Whether that very process is still there. Not being allowed to signal it, or to see when it was started, is no sign of its end."""
    pid, ticks = process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives in a user namespace of its own
    return started_ticks(pid) == ticks


class Qemu:
    """All that is known about one QEMU process."""

    def __init__(self, process: tuple[int, int | None] | None = None) -> None:
        self.process = process
        self.connected = False
        self.since: str | None = None
        self.seen_until: float | None = None  # wall clock, end of the last connection
        self.runstate: str | None = None
        self.answer_ms: float | None = None
        self.answered: float | None = None  # monotonic
        self.migration: str | None = None
        self.migration_since: str | None = None
        self.migration_events = 0
        self.flags: dict[str, Json | None] = dict.fromkeys(_rules.FLAGS)
        self.session_at: float | None = None  # QEMU's clock
        self.events: collections.deque[Json] = collections.deque(maxlen=EVENTS_KEPT)
        self.counts: collections.Counter[str] = collections.Counter()
        self.checkpoints = _rules.Checkpoints()
        self.resync = _rules.Resync()

    def set_migration(self, status: str | None) -> None:
        if status != self.migration:
            log("notice", "migration", before=self.migration, now=status)
            self.migration, self.migration_since = status, now_iso()
            if status != _rules.COLO:
                self.checkpoints.abandon()

    def answer(self, began: float, runstate: str) -> None:
        self.answered = time.monotonic()
        self.answer_ms = round((self.answered - began) * 1000, 3)
        self.runstate = runstate

    @property
    def status(self) -> str | None:
        """The run state; ``unknown`` of a process that does not answer, None when there is no process."""
        if self.process is None:
            return None
        return self.runstate if self.connected and self.runstate else "unknown"


class Monitor:
    """The connection to QEMU's keeper monitor: connects for ever, sees every event, holds the out-of-band way open."""

    def __init__(self, guest: Guest, role: t.Callable[[], str], act: t.Callable[[_rules.Action, str], None]) -> None:
        self.qemu = Qemu()
        self._guest = guest
        self._role = role
        self._act = act
        self._interval_s = guest.tuning.heartbeat_interval_ms / 1000
        self._client: QMPClient | None = None
        self._lane = Lane()
        self._first = True  # whether this is the first connection to this process
        self._migration_changed = asyncio.Event()
        self._leaving = asyncio.Event()
        self._own_ticks = started_ticks(os.getpid())
        self._trouble = ""
        self.looked = asyncio.Event()  # QEMU was found and is known, or was not there to be

    async def run(self) -> None:
        """Connect, hold, connect again."""
        retry_s = RETRY_FIRST_S
        while True:
            try:
                await self._connect()
            except (OSError, EOFError, QMPError) as exc:
                if str(exc) != self._trouble:
                    self._trouble = str(exc)
                    log("info", "QEMU's monitor cannot be used", reason=self._trouble)
                self.looked.set()
                # Awaits a condition: that QEMU listens. It is about to be started, or has just died.
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_LAST_S)
                continue
            retry_s, self._trouble = RETRY_FIRST_S, ""
            try:
                await self._hold()
            except (OSError, EOFError, QMPError) as exc:
                log("notice", "QEMU's monitor was lost", reason=str(exc))
            finally:
                await self._let_go()

    async def _connect(self) -> None:
        """Connect and negotiate, with a deadline; learn which process it is even if it does not greet."""
        client = QMPClient()
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(channel, self._guest.keeper_qmp_socket)
                pid = _peer.pid_of(channel)
                process = (pid, started_ticks(pid))
                if not is_alive(process):
                    # the kernel had taken the connection for a process that has ended by now
                    raise ConnectionRefusedError(f"process {pid} has ended")
                self._first = self._is_new(process)
                await client.connect(channel)
        except BaseException as exc:
            channel.close()
            if isinstance(exc, (FileNotFoundError, ConnectionRefusedError)) and self.qemu.process is not None:
                log("notice", "QEMU is gone", pid=self.qemu.process[0])
                self.qemu.process = None
                self._act(_rules.Action.TELL_PEER, "QEMU is gone")
            raise
        self._client, self._lane = client, Lane()
        self.qemu.connected, self.qemu.since = True, now_iso()
        log("info", "QEMU connected", pid=pid, first=self._first)

    def _is_new(self, process: tuple[int, int | None]) -> bool:
        if process != self.qemu.process:
            self.qemu = Qemu(process)
            self._leaving.clear()
            return True
        return self.qemu.since is None

    async def _hold(self) -> None:
        """Watch until the connection ends."""
        if self._client is None:
            raise EOFError("the monitor is not connected")
        jobs = (self._pump(), self._poll(), self._watch_switchover(), self._leave(), self._disconnected(self._client))
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _disconnected(client: QMPClient) -> None:
        while client.runstate is Runstate.RUNNING:
            await client.runstate_changed()

    async def _let_go(self) -> None:
        client, self._client = self._client, None
        self.qemu.connected, self.qemu.seen_until = False, time.time()
        log("notice", "QEMU disconnected")
        if client is not None:
            # Raises what ended the connection, which is what brought us here.
            with contextlib.suppress(OSError, EOFError, QMPError):
                async with asyncio.timeout(CONNECT_S):
                    await client.disconnect()

    async def _in_band(self, command: str, deadline_s: float = IN_BAND_S) -> t.Any:
        client = self._client
        if client is None:
            raise ColoError("qemu_unreachable", "The keeper is not connected to QEMU.")
        return await self._lane.run(lambda: client.execute(command), deadline_s)

    # --- events

    async def _pump(self) -> None:
        if self._client is None:
            raise EOFError("the monitor is not connected")
        async for event in self._client.events:
            stamp = t.cast("dict[str, int]", event.get("timestamp") or {})
            at = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
            self._on_event(str(event["event"]), t.cast("Json", event.get("data") or {}), at)

    def _on_event(self, name: str, data: Json, at: float) -> None:
        qemu = self.qemu
        if _rules.is_late(name, at, qemu.session_at):
            log("info", "event of the session before", event=name, data=data)
            return
        meaning = _rules.interpret(name, data, role=self._role(), migration=qemu.migration)
        qemu.counts[name] += 1
        if meaning.checkpoint == "stop":
            qemu.checkpoints.stop(at, time.monotonic())
        elif meaning.checkpoint == "resume":
            qemu.checkpoints.resume(at, time.monotonic())
        else:
            qemu.events.append({"time": at, "event": name, "data": data})
            log("info", "event", event=name, data=data)
        if meaning.runstate:
            qemu.runstate = meaning.runstate
        if name == "RESUME":
            self._flush()
        if meaning.new_session:
            qemu.session_at = at
            qemu.checkpoints = _rules.Checkpoints()
        qemu.flags.update(dict.fromkeys(meaning.clear))
        for flag, seen in meaning.flags.items():
            # The first word on a matter is kept: what follows repeats it.
            qemu.flags[flag] = qemu.flags[flag] or {"time": at, "data": seen}
        if meaning.migration:
            qemu.migration_events += 1
            qemu.set_migration(meaning.migration)
            self._migration_changed.set()
        for action in meaning.actions:
            self._act(action, meaning.reason)

    def _flush(self) -> None:
        try:
            _rewriter.flush(self._guest)
        except OSError as exc:
            log("error", "packets may be held by a rewriter", reason=str(exc))

    # --- questions

    async def _poll(self) -> None:
        """Ask for the run state each interval, one question at a time; learn the rest after a connection."""
        known = False
        while True:
            try:
                began = time.monotonic()
                reply = await self._in_band("query-status", self._guest.tuning.heartbeat_timeout_ms / 1000)
                self.qemu.answer(began, reply["status"])
                await self._look_at_resync()
                if not known:
                    await self._catch_up()
                    known = True
                    self.looked.set()
            except TimeoutError:
                log("warning", "QEMU does not answer in band", age_ms=age_ms(self.qemu.answered))
            except ExecuteError as exc:
                log("error", "QEMU refused a question", reason=str(exc))
            await asyncio.sleep(self._interval_s)

    async def _look_at_resync(self) -> None:
        """Only where there can be one: disks are copied by the serving side, before lock step."""
        copies = self._role() == "serving" and self.qemu.migration != _rules.COLO
        jobs = await self._in_band("query-block-jobs") if copies else []
        self.qemu.resync.look(time.monotonic(), jobs)

    async def _catch_up(self) -> None:
        """Learn what happened before this connection; note what cannot be learned."""
        qemu, before = self.qemu, self.qemu.migration_events
        status = (await self._in_band("query-migrate")).get("status", "none")
        ticks = qemu.process[1] if qemu.process else None
        keeper_first = ticks is not None and self._own_ticks is not None and self._own_ticks <= ticks
        if _rules.blind(qemu.runstate, status, first_connection=self._first, keeper_was_first=keeper_first):
            log("warning", "events may have been missed", since=qemu.seen_until)
            qemu.flags["blind_since"] = {"time": time.time(), "data": {"connected_until": qemu.seen_until}}
        if qemu.migration_events == before:  # else an event that came meanwhile is newer than the answer
            qemu.set_migration(status)
            self._migration_changed.set()
            if status == _rules.COLO and self._role() == "standby":
                self._act(_rules.Action.ENTER_PROTECTION, "found in migration status colo")
        self._act(_rules.Action.TELL_PEER, "")

    # --- the switchover watchdog

    async def _watch_switchover(self) -> None:
        """End a switchover that waits longer than the limit: the guest is paused while it does."""
        limit_s = self._guest.tuning.switchover_limit_ms / 1000
        while True:
            await self._migration(until=_rules.may_cancel)
            began = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._migration(until=lambda status: not _rules.may_cancel(status))
            while _rules.may_cancel(self.qemu.migration):
                try:
                    await self._end_switchover(time.monotonic() - began)
                except (TimeoutError, ExecuteError) as exc:
                    log("error", "the switchover was not ended yet", reason=str(exc) or "no answer")
                    await asyncio.sleep(self._interval_s)

    async def _migration(self, until: t.Callable[[str | None], bool]) -> None:
        while not until(self.qemu.migration):
            self._migration_changed.clear()
            await self._migration_changed.wait()

    async def _end_switchover(self, waited_s: float) -> None:
        before = self.qemu.migration_events
        status = await self._migration_status()
        if _rules.may_cancel(status):
            # The guest goes on when the migration is cancelled, and with it a mirror: a peer that hangs would block both.
            with contextlib.suppress(ColoError):
                await self.yank(_topology.yank_instances(self._guest))
            # Asked again right before: whoever continued meanwhile must not be cancelled in `colo`. From here on nobody gets there, as
            # the connections are cut.
            status = await self._migration_status()
        if _rules.may_cancel(status):
            await self._in_band("migrate_cancel")
            data = {"waited_ms": round(waited_s * 1000), "limit_ms": self._guest.tuning.switchover_limit_ms}
            self.qemu.flags["switchover_ended"] = {"time": time.time(), "data": data}
            log("warning", "switchover ended: it waited too long", **data)
            before = self.qemu.migration_events
            status = await self._migration_status()
        if self.qemu.migration_events == before:  # else an event that came meanwhile is newer than the answer
            self.qemu.set_migration(status)

    async def _migration_status(self) -> str:
        status: str = (await self._in_band("query-migrate")).get("status", "none")
        return status

    # --- a disk that has failed

    def let_go(self, reason: str) -> None:
        """Leave the guest to the standby: no checkpoint any more, and this QEMU ends. Not to one that does not follow."""
        if self._leaving.is_set():
            return
        if self._standby_is_lost():
            log("error", "no copy of the disk is whole any more", reason=reason)
            return
        log("error", "QEMU is ended: the guest is left to the standby", reason=reason)
        self._leaving.set()

    def _standby_is_lost(self) -> bool:
        return bool(self.qemu.flags["replication_failed"] or self.qemu.flags["colo_exit"])

    async def _leave(self) -> None:
        await self._leaving.wait()
        # Not the disk replication: an error of that would make the standby's copy, the good one, a stale one.
        try:
            await self._out_of_band("yank", {"instances": [_topology.YANK_MIGRATION]})
        except ColoError as exc:
            log("warning", "the migration was not yanked", reason=exc.message)
        # The same write may have failed on the standby's disk as well, which is told when that has answered.
        await asyncio.sleep(SECOND_WORD_S)
        if self.qemu.flags["replication_failed"]:
            log("error", "QEMU is not ended: no copy of the disk is whole any more")
            await asyncio.Event().wait()  # as long as this connection is held
        while True:
            try:
                await self._in_band("quit")
            except (TimeoutError, ExecuteError) as exc:
                log("error", "QEMU was not ended yet", reason=str(exc) or "no answer")
            await asyncio.sleep(self._interval_s)

    # --- out of band

    async def query_yank(self) -> list[Json]:
        """Return what QEMU says can be yanked (``qemu_unreachable``)."""
        return t.cast("list[Json]", await self._out_of_band("query-yank"))

    async def yank(self, wanted: list[Json]) -> list[Json]:
        """Yank what is there of *wanted*, one by one (``yank_refused``, ``qemu_unreachable``)."""
        allowed = _topology.yank_instances(self._guest)
        for instance in wanted:
            if instance not in allowed:
                raise ColoError(
                    "yank_refused", f"{instance} is not on the link to {self._guest.peer}; nothing was yanked."
                )
        present = await self.query_yank()
        results: list[Json] = []
        for instance in wanted:
            reason = None if instance in present else "not there"
            if reason is None:
                try:
                    await self._out_of_band("yank", {"instances": [instance]})
                except ColoError as exc:
                    reason = exc.message
            results.append({"instance": instance, "yanked": reason is None, "reason": reason})
        log("notice", "yanked", results=results)
        return results

    async def _out_of_band(self, command: str, arguments: Json | None = None) -> object:
        if self._client is None:
            raise ColoError("qemu_unreachable", "The keeper is not connected to QEMU; what is left is killing it.")
        try:
            async with asyncio.timeout(OUT_OF_BAND_S):
                return await self._client.execute(command, arguments, oob=True)
        except TimeoutError as exc:
            raise ColoError("qemu_unreachable", f"QEMU did not answer {command} within {OUT_OF_BAND_S:g} s.") from exc
        except QMPError as exc:
            raise ColoError("qemu_unreachable", f"{command}: {exc}") from exc
