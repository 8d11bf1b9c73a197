#!/usr/bin/env python3
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper: the small resident process beside one guest's QEMU, and the gate QEMU is started through.

``run CONFIG``     watch QEMU, exchange the heartbeat with the peer's keeper, answer on keeper.sock (colo-keeper@)
``launch CONFIG``  check the start permit against the generation record, then become QEMU (colo-guest@)
``state CONFIG``   print what the running keeper knows

QEMU tells the death of a peer once, to whoever is connected; and when its main loop is blocked, only a monitor that
was connected before can free it. So the keeper connects before the guest runs and holds on. It may let go, never take
over: all that it does by itself is to end a switchover that waits too long and to write down, durably, that a copy is
stale or that protection is void. What an event means is decided in ``_rules``; this file is about who talks to whom.

Nothing here waits without an end except for work to do. What may hang (QEMU's main loop, the disk) is asked through a
:class:`Lane`, one call at a time, and never by the event loop itself.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import datetime
import fcntl
import functools
import json
import os
import pathlib
import secrets
import socket
import stat
import struct
import sys
import time
import typing as t

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from ansible_collections.lockstep.colo.plugins.module_utils import _generation, _heartbeat, _rules, _store, _topology
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest, load
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_client import KeeperClient

Json = dict[str, t.Any]
T = t.TypeVar("T")

EVENTS_KEPT = 64
CONNECT_S = 2.0  # greeting and negotiation; a QEMU that is blocked, or talks to another client, never greets
OUT_OF_BAND_S = 1.0  # answers in milliseconds even while the main loop is blocked
IN_BAND_S = 2.0
DISK_S = 10.0
RETRY_FIRST_S, RETRY_LAST_S = 0.02, 0.25
API_IDLE_S = 30.0
API_LINE = 64 * 1024  # bytes
CLIENTS = 16  # at once, on each of the two servers
EXIT_USAGE, EXIT_BUSY, EXIT_REFUSED = 64, 75, 78

_LEVELS = {"error": 3, "warning": 4, "notice": 5, "info": 6}


def log(level: str, what: str, **fields: t.Any) -> None:
    """Write one line to the journal: priority, words, key=value with JSON values."""
    words = " ".join([what, *(f"{key}={json.dumps(value, default=str)}" for key, value in fields.items())])
    sys.stderr.write(f"<{_LEVELS[level]}>{words}\n")
    sys.stderr.flush()


def now_iso() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def age_ms(since: float | None) -> float | None:
    return None if since is None else round((time.monotonic() - since) * 1000, 3)


def notify(message: str) -> None:
    """Tell systemd (sd_notify); without a NOTIFY_SOCKET nobody wants to know."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(message.encode())


def started_ticks(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; with the pid it names one process for ever."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])  # the command in parentheses may hold anything


class Lane:
    """One call at a time, each with a deadline.

    A call that outlives its deadline is not cancelled, because what it asked for cannot be taken back; it keeps the
    lane until it ends, so that nothing piles up behind it.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, call: t.Callable[[], t.Awaitable[T]], deadline_s: float) -> T:
        """Return what *call* returns, or raise TimeoutError."""
        ends = asyncio.get_running_loop().time() + deadline_s
        async with asyncio.timeout_at(ends):
            await self._lock.acquire()
        try:
            future = asyncio.ensure_future(call())
        except BaseException:
            self._lock.release()
            raise
        future.add_done_callback(self._free)
        await asyncio.wait({future}, timeout=ends - asyncio.get_running_loop().time())
        if not future.done():
            raise TimeoutError
        return future.result()

    def _free(self, future: asyncio.Future[t.Any]) -> None:
        self._lock.release()
        if not future.cancelled():
            future.exception()  # seen: nobody may be waiting for it any more


class Records:
    """The generation record: the last known one, and the transitions that must get to the disk."""

    def __init__(self, guest: Guest, interval_s: float) -> None:
        self.current: _generation.Record | None = None
        self.error: ColoError | None = None
        self.waiting: collections.deque[_rules.Action] = collections.deque()
        self._guest = guest
        self._interval_s = interval_s
        self._reasons: dict[_rules.Action, str] = {}
        self._more = asyncio.Event()
        self._lane = Lane()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "disk")

    async def refresh(self, deadline_s: float = 0.5) -> None:
        """Read the record again; on failure keep the last known one and say so in ``error``."""
        try:
            self.current = await self._on_disk(functools.partial(_store.read, self._guest), deadline_s)
            self.error = None
        except TimeoutError:
            self.error = ColoError("record_slow", f"{self._guest.record_file} was not read within {deadline_s:g} s")
        except ColoError as exc:
            if self.error is None or self.error.message != exc.message:
                log("error", "record", error_code=exc.error_code, message=exc.message)
            self.error = exc

    def want(self, action: _rules.Action, reason: str) -> None:
        """Have a transition written; asked again while it waits, it is written once."""
        if action not in self.waiting:
            self._reasons[action] = reason
            self.waiting.append(action)
            self._more.set()

    async def run(self) -> None:
        """Write what waits, in order and until it is on the disk; read the record again in between."""
        while True:
            if self.waiting and await self._write(self.waiting[0]):
                self.waiting.popleft()
                continue
            # A failed write is tried again, and a module's change is seen, after one interval.
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._more.wait()
            await self.refresh()

    def _transition(self, action: _rules.Action, record: _generation.Record) -> _generation.Record:
        reason = self._reasons[action]
        if action is _rules.Action.ENTER_PROTECTION:
            return _generation.enter_protection(record, self._guest.peer, reason=reason)
        if action is _rules.Action.MARK_STALE:
            return _generation.mark_stale(record, reason)
        return _generation.mark_void(record, reason)

    async def _write(self, action: _rules.Action) -> bool:
        """Return whether the matter is settled."""
        step = functools.partial(_store.update, self._guest, functools.partial(self._transition, action))
        try:
            before, after = await self._on_disk(step, DISK_S)
        except TimeoutError:
            log("error", "record not written yet", action=action.value)
            return False
        except ColoError as exc:
            log("error", "record not written", action=action.value, error_code=exc.error_code, message=exc.message)
            # An illegal transition stays one. Everything else may be mended while this keeper lives.
            return exc.error_code == "illegal_transition"
        self.current, self.error = after, None
        if after != before:
            log("notice", "record written", action=action.value, reason=self._reasons[action], **after.to_dict())
        return True

    async def _on_disk(self, call: t.Callable[[], T], deadline_s: float) -> T:
        # In a thread: a disk that hangs must not stop the one process that can free QEMU.
        loop = asyncio.get_running_loop()
        return await self._lane.run(lambda: loop.run_in_executor(self._thread, call), deadline_s)


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
        self.events: collections.deque[Json] = collections.deque(maxlen=EVENTS_KEPT)
        self.counts: collections.Counter[str] = collections.Counter()
        self.checkpoints = _rules.Checkpoints()

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
        self._own_ticks = started_ticks(os.getpid())
        self._trouble = ""

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
                pid = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
                self._first = self._is_new((pid, started_ticks(pid)))
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
            return True
        return self.qemu.since is None

    async def _hold(self) -> None:
        """Watch until the connection ends."""
        assert self._client is not None  # noqa: S101 - for the type checker
        jobs = (self._pump(), self._poll(), self._watch_switchover(), self._disconnected(self._client))
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
        assert self._client is not None  # noqa: S101 - for the type checker
        async for event in self._client.events:
            stamp = t.cast("dict[str, int]", event.get("timestamp") or {})
            at = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
            self._on_event(str(event["event"]), t.cast("Json", event.get("data") or {}), at)

    def _on_event(self, name: str, data: Json, at: float) -> None:
        qemu = self.qemu
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
        if meaning.new_session:
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

    # --- questions

    async def _poll(self) -> None:
        """Ask for the run state each interval, one question at a time; learn the rest after a connection."""
        known = False
        while True:
            try:
                began = time.monotonic()
                reply = await self._in_band("query-status", self._guest.tuning.heartbeat_timeout_ms / 1000)
                self.qemu.answer(began, reply["status"])
                if not known:
                    await self._catch_up()
                    known = True
            except TimeoutError:
                log("warning", "QEMU does not answer in band", age_ms=age_ms(self.qemu.answered))
            except ExecuteError as exc:
                log("error", "QEMU refused a question", reason=str(exc))
            await asyncio.sleep(self._interval_s)

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
        # Asked again right before: whoever continued in time must not be cancelled in `colo`. The modules continue
        # well within the limit or not at all, so the gap between question and command is not entered by them.
        status = (await self._in_band("query-migrate")).get("status", "none")
        if _rules.may_cancel(status):
            await self._in_band("migrate_cancel")
            data = {"waited_ms": round(waited_s * 1000), "limit_ms": self._guest.tuning.switchover_limit_ms}
            self.qemu.flags["switchover_ended"] = {"time": time.time(), "data": data}
            log("warning", "switchover ended: it waited too long", **data)
            status = (await self._in_band("query-migrate")).get("status", "none")
        self.qemu.set_migration(status)

    # --- out of band

    async def query_yank(self) -> list[Json]:
        """Return what QEMU says can be yanked (``qemu_unreachable``)."""
        return t.cast("list[Json]", await self._out_of_band("query-yank"))

    async def yank(self, wanted: list[Json]) -> list[Json]:
        """Yank what is there of *wanted*, one by one (``yank_refused``, ``qemu_unreachable``)."""
        allowed = _topology.yank_instances(self._guest)
        for instance in wanted:
            if instance not in allowed:
                raise ColoError("yank_refused", f"{instance} is not on the link to {self._guest.peer}; nothing was yanked.")
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
            raise ColoError("qemu_unreachable", "The keeper is not connected to QEMU; only killing the process is left.")
        try:
            async with asyncio.timeout(OUT_OF_BAND_S):
                return await self._client.execute(command, arguments, oob=True)
        except TimeoutError as exc:
            raise ColoError("qemu_unreachable", f"QEMU did not answer {command} within {OUT_OF_BAND_S:g} s.") from exc
        except QMPError as exc:
            raise ColoError("qemu_unreachable", f"{command}: {exc}") from exc


class Heartbeat:
    """The exchange with the peer's keeper: the standby's side listens, the serving side connects."""

    def __init__(
        self,
        guest: Guest,
        key: bytes | None,
        role: t.Callable[[], str],
        payload: t.Callable[[], Json],
        heard: t.Callable[[Json], None],
    ) -> None:
        self._guest, self._key, self._role, self._payload, self._heard = guest, key, role, payload, heard
        self._interval_s = guest.tuning.heartbeat_interval_ms / 1000
        self._timeout_s = guest.tuning.heartbeat_timeout_ms / 1000
        self._listening = False
        self._strangers = 0
        self._now = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None  # of the authenticated session
        self._received: float | None = None  # monotonic
        self._peer: Json | None = None
        self._trouble: str | None = None

    def tell(self) -> None:
        """Send now."""
        self._now.set()

    def state(self) -> Json:
        return {
            "listening": self._listening,
            "connected": self._writer is not None or self._strangers > 0,
            "authenticated": self._writer is not None,
            "last_rx_age_ms": age_ms(self._received),
            "lost": self._received is not None and time.monotonic() - self._received > self._timeout_s,
            "peer": self._peer,
            "trouble": self._trouble,
        }

    async def run(self) -> None:
        """Do what the role asks for, for ever."""
        while True:
            role = self._role()
            if role == "none" or self._key is None:
                self._received = self._peer = None
            else:
                try:
                    await (self._listen() if role == "standby" else self._connect())
                except (OSError, EOFError, ValueError) as exc:
                    self._note(str(exc) or type(exc).__name__)
            await asyncio.sleep(self._interval_s)

    async def _listen(self) -> None:
        server = await asyncio.start_server(
            self._accept, self._guest.link_address, self._guest.port_heartbeat, limit=_heartbeat.MAX_LINE
        )
        self._listening = True
        log("info", "heartbeat listens", address=self._guest.link_address, port=self._guest.port_heartbeat)
        try:
            # The role is the record's and QEMU's; both are looked at once an interval.
            while self._role() == "standby":  # noqa: ASYNC110
                await asyncio.sleep(self._interval_s)
        finally:
            self._listening = False
            server.close()
            if self._writer is not None:
                self._writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._strangers >= CLIENTS or self._key is None:
            writer.close()
            return
        handshake = _heartbeat.ServerHandshake(
            self._key, self._guest.name, self._guest.host, self._guest.peer, secrets.token_hex(_heartbeat.NONCE_BYTES)
        )
        with self._stranger(writer):
            async with asyncio.timeout(self._timeout_s):
                writer.write(handshake.challenge(await reader.readline()))
                await writer.drain()
                session = handshake.finish(await reader.readline())
        if not writer.is_closing():
            await self._converse(reader, writer, session)

    async def _connect(self) -> None:
        assert self._key is not None  # noqa: S101 - for the type checker
        async with asyncio.timeout(self._timeout_s):
            reader, writer = await asyncio.open_connection(
                self._guest.peer_address,
                self._guest.port_heartbeat,
                limit=_heartbeat.MAX_LINE,
                local_addr=(self._guest.link_address, 0),
            )
        handshake = _heartbeat.ClientHandshake(
            self._key, self._guest.name, self._guest.host, self._guest.peer, secrets.token_hex(_heartbeat.NONCE_BYTES)
        )
        with self._stranger(writer):
            async with asyncio.timeout(self._timeout_s):
                writer.write(handshake.hello())
                proof, session = handshake.finish(await reader.readline())
                writer.write(proof)
                await writer.drain()
        if not writer.is_closing():
            await self._converse(reader, writer, session)

    @contextlib.contextmanager
    def _stranger(self, writer: asyncio.StreamWriter) -> t.Iterator[None]:
        """Count one that is not authenticated yet; close it when it fails to be."""
        self._strangers += 1
        try:
            yield
        except (OSError, EOFError, ValueError, ColoError) as exc:
            self._note(str(exc) or type(exc).__name__)
            writer.close()
        except BaseException:
            writer.close()
            raise
        finally:
            self._strangers -= 1

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: _heartbeat.Session
    ) -> None:
        if self._writer is not None:
            self._writer.close()  # the peer came again: it gave the older connection up
        self._writer = writer
        role = self._role()
        self._trouble = None
        log("notice", "heartbeat authenticated", peer=self._guest.peer, role=role)
        tasks = [asyncio.create_task(self._send(writer, session, role)), asyncio.create_task(self._receive(reader, session))]
        try:
            done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (OSError, EOFError, ValueError, ColoError) as exc:
            self._note(str(exc) or "no heartbeat in time")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()
            if self._writer is writer:
                self._writer = None
            log("notice", "heartbeat ended", peer=self._guest.peer, reason=self._trouble)

    async def _send(self, writer: asyncio.StreamWriter, session: _heartbeat.Session, role: str) -> None:
        while True:
            self._now.clear()
            going = self._role() == role
            writer.write(session.seal(self._payload()))
            async with asyncio.timeout(self._timeout_s):
                await writer.drain()
            if not going:
                return  # that was the last word: this QEMU is gone, or changed sides
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._now.wait()

    async def _receive(self, reader: asyncio.StreamReader, session: _heartbeat.Session) -> None:
        while True:
            async with asyncio.timeout(self._timeout_s):
                line = await reader.readline()
            if not line:
                raise EOFError("the peer closed the connection")
            self._peer = session.open(line)
            self._received = time.monotonic()
            self._heard(self._peer)

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log("warning", "heartbeat", peer=self._guest.peer, trouble=trouble)


class Api:
    """The local API: one JSON object per line on keeper.sock, answered in order."""

    def __init__(self, guest: Guest, state: t.Callable[[], t.Awaitable[Json]], monitor: Monitor) -> None:
        self._path = pathlib.Path(guest.keeper_socket)
        self._state = state
        self._monitor = monitor
        self._clients = 0

    async def start(self) -> asyncio.Server:
        """Listen. The socket appears under its name when it can be connected to, and replaces a dead keeper's."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        temporary = self._path.with_name(self._path.name + ".new")
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(0o600)  # the modules are root; nobody else yanks
        listener.listen(CLIENTS)
        temporary.rename(self._path)
        return await asyncio.start_unix_server(self._serve, sock=listener, limit=API_LINE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            while self._clients <= CLIENTS:
                async with asyncio.timeout(API_IDLE_S):
                    line = await reader.readline()
                if not line:
                    break
                writer.write(json.dumps(await self._answer(line), default=str).encode() + b"\n")
                async with asyncio.timeout(API_IDLE_S):
                    await writer.drain()
        except (OSError, ValueError):
            pass  # it went away, stayed silent, or sent a line without an end
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, line: bytes) -> Json:
        try:
            request = json.loads(line)
            operation = request["op"]
            instances = request["instances"] if operation == "yank" else []
            if not isinstance(instances, list):
                raise TypeError("instances is not a list")
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            return {"ok": False, "error_code": "bad_request", "message": f"The request cannot be read: {exc!r}"}
        try:
            if operation == "state":
                return {"ok": True, "state": await self._state()}
            if operation == "query_yank":
                return {"ok": True, "instances": await self._monitor.query_yank()}
            if operation == "yank":
                return {"ok": True, "results": await self._monitor.yank(instances)}
        except ColoError as exc:
            return {"ok": False, "error_code": exc.error_code, "message": exc.message}
        return {"ok": False, "error_code": "bad_request", "message": f"There is no operation {operation!r}."}


class Keeper:
    """Puts the parts together."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._started_at = now_iso()
        self._records = Records(guest, guest.tuning.heartbeat_interval_ms / 1000)
        self._monitor = Monitor(guest, self._record_role, self._act)
        self._heartbeat = Heartbeat(guest, heartbeat_key(), self._role, self._payload, self._heard)
        self._api = Api(guest, self._state, self._monitor)

    async def run(self) -> None:
        """Run until cancelled. A part that fails unexpectedly is begun again: the others must not be lost with it."""
        await self._records.refresh(DISK_S)
        await self._api.start()
        notify("READY=1")
        log("info", "keeper ready", guest=self._guest.name, host=self._guest.host)
        async with asyncio.TaskGroup() as parts:
            for part in (self._records.run, self._monitor.run, self._heartbeat.run):
                parts.create_task(self._for_ever(part))

    @staticmethod
    async def _for_ever(part: t.Callable[[], t.Awaitable[None]]) -> None:
        while True:
            try:
                await part()
            except Exception as exc:  # noqa: BLE001 - see run(): the monitor outlives a fault elsewhere
                log("error", "a part of the keeper failed and is begun again", part=part.__qualname__, reason=repr(exc))
            await asyncio.sleep(RETRY_LAST_S)

    def _record_role(self) -> str:
        return self._records.current.role if self._records.current else "none"

    def _role(self) -> str:
        return "none" if self._monitor.qemu.process is None else self._record_role()

    def _act(self, action: _rules.Action, reason: str) -> None:
        if action is _rules.Action.TELL_PEER:
            self._heartbeat.tell()
        else:
            self._records.want(action, reason)

    def _heard(self, payload: Json) -> None:
        action, reason = _rules.interpret_peer(payload, self._records.current)
        if action is not None:
            self._act(action, reason)

    def _payload(self) -> Json:
        qemu, record = self._monitor.qemu, self._records.current
        return {
            "guest": self._guest.name,
            "host": self._guest.host,
            "role": self._role(),
            "generation": record and record.generation,
            "state": record and record.state,
            "joins": record and record.joins,
            "stale": record and record.stale,
            "void": record and record.void,
            "void_reason": record and record.void_reason,
            "qemu_status": qemu.status,
            "answer_age_ms": age_ms(qemu.answered),
            "checkpoints": qemu.checkpoints.count,
            # What was seen in an earlier session says nothing about the copy that is filled now.
            "flags": {flag: bool(seen) and _rules.in_session(qemu.migration) for flag, seen in qemu.flags.items()},
        }

    async def _state(self) -> Json:
        await self._records.refresh()
        qemu, record = self._monitor.qemu, self._records.current
        return {
            "pid": os.getpid(),
            "guest": self._guest.name,
            "started_at": self._started_at,
            "role": self._role(),
            "qemu": {
                "pid": qemu.process and qemu.process[0],
                "connected": qemu.connected,
                "since": qemu.since,
                "status": qemu.status,
                "answer_ms": qemu.answer_ms,
                "answer_age_ms": age_ms(qemu.answered),
            },
            "events": list(qemu.events),
            "event_counts": dict(qemu.counts),
            "flags": qemu.flags,
            "checkpoints": qemu.checkpoints.figures(time.monotonic()),
            "migration": {"status": qemu.migration, "since": qemu.migration_since},
            "heartbeat": self._heartbeat.state(),
            "record": record and record.to_dict(),
            "record_error": self._records.error and self._records.error.error_code,
            "record_waiting": [action.value for action in self._records.waiting],
        }


def heartbeat_key() -> bytes | None:
    """Return the shared key; without one the keeper does everything else (no weaker heartbeat instead)."""
    path = pathlib.Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "key")
    try:
        return _heartbeat.read_key(path.read_text(encoding="ascii", errors="replace"))
    except (OSError, ColoError) as exc:
        log("error", "no heartbeat: the key cannot be used", path=str(path), reason=str(exc))
        return None


def run(guest: Guest) -> int:
    """The resident process."""
    with open(f"{guest.paths.run}/keeper.lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("error", "another keeper runs for this guest", guest=guest.name)
            return EXIT_BUSY
        asyncio.run(Keeper(guest).run())
    return 0


def take_permit(guest: Guest) -> tuple[str, int]:
    """Take the start permit away and return its role and generation (``start_refused``). It is good for one try."""
    path = pathlib.Path(guest.permit_file)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
            owner = os.fstat(stream.fileno())
            raw = stream.read(API_LINE)
        path.unlink()
    except FileNotFoundError:
        raise ColoError(
            "start_refused",
            f"{guest.name} is not started on {guest.host}: there is no start permit. Do not start this unit by hand; "
            f"run site.yml, which finds out whether the guest may run here.",
        ) from None
    except OSError as exc:
        raise ColoError("start_refused", f"{guest.name} is not started: the permit cannot be taken ({exc}).") from exc
    try:
        permit = json.loads(raw)
        role, generation, name, schema = (permit[field] for field in ("role", "generation", "guest", "schema"))
    except (ValueError, KeyError, TypeError) as exc:
        raise ColoError("start_refused", f"{guest.name} is not started: the permit is malformed ({exc!r}).") from exc
    if owner.st_uid != 0 or not stat.S_ISREG(owner.st_mode):
        raise ColoError("start_refused", f"{guest.name} is not started: the permit was not given by root.")
    if (name, schema) != (guest.name, 1) or role not in ("primary", "standby") or type(generation) is not int:
        raise ColoError("start_refused", f"{guest.name} is not started: the permit is for {name!r} as {role!r}.")
    return role, generation


def launch(guest: Guest) -> t.NoReturn:
    """The start gate: become QEMU if the permit and the generation record agree (``start_refused`` and others)."""
    role, generation = take_permit(guest)
    record = _store.read(guest)
    if record is None:
        raise ColoError("start_refused", f"{guest.name} is not started on {guest.host}: it has no generation record.")
    _generation.check_start(record, role, generation)
    argv = _topology.qemu_argv(guest, t.cast("_topology.Role", role))
    os.execv(argv[0], argv)  # noqa: S606 - to become QEMU is the purpose


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("run", "launch", "state"):
        sys.stderr.write("usage: colo_keeper.py run|launch|state CONFIG.json\n")
        return EXIT_USAGE
    try:
        guest = load(arguments[1])
        if arguments[0] == "launch":
            launch(guest)
        if arguments[0] == "state":
            sys.stdout.write(json.dumps(KeeperClient(guest.keeper_socket).state(), indent=2) + "\n")
            return 0
        return run(guest)
    except ColoError as exc:
        log("error", exc.message, error_code=exc.error_code)
        return EXIT_REFUSED
    except OSError as exc:
        log("error", f"{arguments[0]} failed", reason=str(exc))
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
