# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper: the small resident process beside one guest's QEMU, and the gate QEMU is started through.

``run CONFIG``     watch QEMU, exchange the heartbeat with the peer's keeper, answer on keeper.sock (colo-keeper@)
``check CONFIG``   hold the start permit against the generation record (colo-guest@, so that `systemctl start` says no)
``launch CONFIG``  the same, then become QEMU (colo-guest@)
``state CONFIG``   print what the running keeper knows

QEMU tells the death of a peer once, to whoever is connected; and when its main loop is blocked, only a monitor that
was connected before can free it. So the keeper connects before the guest runs and holds on. It may let go, never take
over: all that it does by itself is to end a switchover that waits too long, to end a serving QEMU whose own disk has failed
in lock step, to write down, durably, that a copy is stale or that protection is void, and to have QEMU deliver packets
that it holds (``_rewriter``). What an event means is decided in ``_rules``. The parts: ``_keeper_monitor`` (QEMU),
``_keeper_records`` (the generation record), ``_keeper_heartbeat`` (the peer); here are the local API, the start gate,
and what joins them.

Nothing waits without an end except for work to do. What may hang (QEMU's main loop, the disk) is asked through a
``Lane``, one call at a time, and never by the event loop itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import socket
import sys
import time
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _generation,
    _keeper_monitor,
    _key,
    _nofollow,
    _rewriter,
    _rules,
    _store,
    _topology,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._files import replace_file
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest, load, shape
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_base import Json, age_ms, line, log, now_iso
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_client import KeeperClient
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_heartbeat import Heartbeat
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_monitor import Monitor
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_records import DISK_S, Records

LAST_WORD_S = 1.0  # of a keeper that is told to end, to tell its peer that QEMU is gone
READY_S = 4.0  # a QEMU that hangs is watched all the same
RESTART_S = 0.25  # a part of the keeper that failed
API_IDLE_S = 30.0
API_LINE = 64 * 1024  # bytes
CLIENTS = 16  # at once
EXIT_FAILED, EXIT_USAGE, EXIT_BUSY, EXIT_REFUSED = 1, 64, 75, 78


def notify(message: str) -> None:
    """Tell systemd (sd_notify); without a NOTIFY_SOCKET nobody wants to know."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(message.encode())


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
        # a connection that ends in the moment in which it is let go of has an error that nobody waits for
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, seen: log("warning", seen["message"], reason=repr(seen.get("exception")))
        )
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        async with asyncio.TaskGroup() as parts:
            tasks = [
                parts.create_task(self._for_ever(part))
                for part in (self._records.run, self._monitor.run, self._heartbeat.run)
            ]
            tasks.append(parts.create_task(self._ready()))
            await ended.wait()
            await self._last_word()
            for task in tasks:
                task.cancel()

    async def _ready(self) -> None:
        """Ready is a keeper that sees what its QEMU tells, so that whoever restarts one after the other leaves no moment without any."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                await self._monitor.looked.wait()
        log("info", "keeper ready", guest=self._guest.name, host=self._guest.host)
        notify("READY=1")

    async def _last_word(self) -> None:
        """systemd stops this keeper in the moment in which its QEMU has ended: the peer is told before."""
        process = self._monitor.qemu.process
        if process is not None and _keeper_monitor.is_alive(process):
            return  # QEMU lives; only the keeper is restarted
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                # The heartbeat ends its session by itself once it has said that QEMU is gone.
                while self._heartbeat.state()["authenticated"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    @staticmethod
    async def _for_ever(part: t.Callable[[], t.Awaitable[None]]) -> None:
        while True:
            try:
                await part()
            except Exception as exc:  # noqa: BLE001 - see run(): the monitor outlives a fault elsewhere
                log("error", "a part of the keeper failed and is begun again", part=part.__qualname__, reason=repr(exc))
            await asyncio.sleep(RESTART_S)

    def _record_role(self) -> str:
        return self._records.current.role if self._records.current else "none"

    def _role(self) -> str:
        return "none" if self._monitor.qemu.process is None else self._record_role()

    def _act(self, action: _rules.Action, reason: str) -> None:
        if action is _rules.Action.TELL_PEER:
            self._heartbeat.tell()
        elif action is _rules.Action.LET_GO:
            if self._standby_follows():
                self._monitor.let_go(reason)
            else:
                log("error", "there is no standby to leave the guest to", reason=reason)
        else:
            self._records.want(action, reason)

    def _standby_follows(self) -> bool:
        heartbeat = self._heartbeat.state()
        heard = heartbeat["authenticated"] and not heartbeat["lost"]
        return bool(heard) and _rules.follows(heartbeat["peer"] or {}, self._records.current)

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
            # what is about to be written is told at once: this host may not live to write it
            "clean": record and (record.clean or _rules.Action.MARK_CLEAN in self._records.waiting),
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
            "resync": qemu.resync.figures(),
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
        return _key.read_key(path.read_text(encoding="ascii", errors="replace"))
    except (OSError, ColoError) as exc:
        log("error", "no heartbeat: the key cannot be used", path=str(path), reason=str(exc))
        return None


def run(guest: Guest) -> int:
    """The resident process (``qmp_library_missing``)."""
    if _keeper_monitor.QMP_IMPORT_ERROR is not None:
        raise ColoError(
            "qmp_library_missing",
            "The Python library qemu.qmp is missing: run the role lockstep.colo.host, or install python3-qemu-qmp.",
        )
    with open(_nofollow.open_regular(f"{guest.paths.run}/keeper.lock", os.O_WRONLY | os.O_CREAT), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("error", "another keeper runs for this guest", guest=guest.name)
            return EXIT_BUSY
        asyncio.run(Keeper(guest).run())
    return 0


def read_permit(guest: Guest) -> tuple[str, int]:
    """Return the start permit's role and generation (``start_refused``)."""
    path = pathlib.Path(guest.permit_file)
    try:
        with open(_nofollow.open_regular(str(path), os.O_RDONLY), "rb") as stream:
            owner = os.fstat(stream.fileno())
            raw = stream.read(API_LINE)
    except FileNotFoundError:
        raise ColoError(
            "start_refused",
            f"{guest.name} is not started on {guest.host}: there is no start permit. Do not start this unit by hand; "
            f"run site.yml, which finds out whether the guest may run here.",
        ) from None
    except OSError as exc:
        raise ColoError("start_refused", f"{guest.name} is not started: the permit cannot be read ({exc}).") from exc
    try:
        permit = json.loads(raw)
        role, generation, name, schema = (permit[field] for field in ("role", "generation", "guest", "schema"))
    except (ValueError, KeyError, TypeError) as exc:
        raise ColoError("start_refused", f"{guest.name} is not started: the permit is malformed ({exc!r}).") from exc
    if owner.st_uid != 0:
        raise ColoError("start_refused", f"{guest.name} is not started: the permit was not given by root.")
    if (name, schema) != (guest.name, 1) or role not in ("primary", "standby") or not isinstance(generation, int):
        raise ColoError("start_refused", f"{guest.name} is not started: the permit is for {name!r} as {role!r}.")
    return role, generation


def check(guest: Guest) -> str:
    """The start gate: the role to start in, if the permit and the generation record agree (``start_refused`` and others).

    A permit that does not hold is taken away: it is good for one try.
    """
    try:
        role, generation = read_permit(guest)
        record = _store.read(guest)
        if record is None:
            raise ColoError(
                "start_refused", f"{guest.name} is not started on {guest.host}: it has no generation record."
            )
        _generation.check_start(record, role, generation)
    except ColoError:
        pathlib.Path(guest.permit_file).unlink(missing_ok=True)
        raise
    return role


def launch(guest: Guest) -> t.NoReturn:
    """Pass the start gate, take the permit away, and become QEMU."""
    role = check(guest)
    pathlib.Path(guest.permit_file).unlink()
    _rewriter.make_pipes(guest)
    started = json.dumps(shape(dataclasses.asdict(guest)))
    replace_file(guest.started_file, started, os.geteuid(), os.getegid(), 0o600)
    argv = _topology.qemu_argv(guest, t.cast("_topology.Role", role))
    os.execv(argv[0], argv)  # noqa: S606 - to become QEMU is the purpose


def tell_end(command: str, what: str, **fields: t.Any) -> None:
    """Write why it ends. Of the guest's unit no line begins with a priority: what its console writes could begin so, too."""
    if command == "run":
        log("error", what, **fields)
    else:
        sys.stderr.write(line(what, **fields) + "\n")


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("run", "check", "launch", "state"):
        sys.stderr.write("usage: colo_keeper.py run|check|launch|state CONFIG.json\n")
        return EXIT_USAGE
    try:
        guest = load(arguments[1])
        if arguments[0] == "check":
            check(guest)
            return 0
        if arguments[0] == "launch":
            launch(guest)
        if arguments[0] == "state":
            sys.stdout.write(json.dumps(KeeperClient(guest.keeper_socket).state(), indent=2) + "\n")
            return 0
        return run(guest)
    except ColoError as exc:
        tell_end(arguments[0], exc.message, error_code=exc.error_code)
        return EXIT_REFUSED
    except OSError as exc:
        # Not one of the refusals above: the next try may succeed.
        tell_end(arguments[0], f"{arguments[0]} failed", reason=str(exc))
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
