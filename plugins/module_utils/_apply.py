# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Act: carry out the steps of a plan on one guest of this host, each within its deadline.

The one place with effects. An error carries what was done, the step that failed and the migration states seen, so
that half done is a state like any other.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import fcntl
import functools
import json
import os
import re
import socket
import time
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _generation,
    _image,
    _link_key,
    _nofollow,
    _observe,
    _rules,
    _states,
    _store,
    _topology,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import (
    ColoError,
    DeadlineError,
    QmpError,
    RefusedError,
)
from ansible_collections.lockstep.colo.plugins.module_utils._files import replace_file
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._observe import RunCommand
from ansible_collections.lockstep.colo.plugins.module_utils._plan import Step
from ansible_collections.lockstep.colo.plugins.module_utils._qmp import Event, Monitor

# How long one look at a condition waits for an event that may change it.
LOOK_S = 0.1
# How long a copy of disks may stand still. Longer than a disk takes to come back from a flush of everything it has.
STALL_S = 30.0


class Unfinished(Exception):  # noqa: N818 - no error: what was begun goes on by itself, and nobody wants to wait longer
    """Carries how far it is."""

    def __init__(self, progress: dict[str, t.Any]) -> None:
        super().__init__()
        self.progress = progress


@contextlib.contextmanager
def exclusive(guest: Guest) -> c.Iterator[None]:
    """One module at a time changes a guest (``guest_busy``). The lock dies with the process."""
    try:
        descriptor = _nofollow.open_regular(guest.lock_file, os.O_RDWR | os.O_CREAT)
    except OSError as exc:
        raise ColoError(
            "lock_unusable",
            f"guest {guest.name}: {guest.lock_file} cannot be opened ({exc.strerror}): run site.yml, which makes its directory",
        ) from exc
    with os.fdopen(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                "guest_busy",
                f"guest {guest.name}: another run is working on it on {guest.host}; wait for that run to end, then try again",
            ) from None
        yield


def cut_migration(guest: Guest, run_command: RunCommand) -> None:
    """End this side's connections to where the peer's QEMU takes the migration, in the kernel.

    The part of a yank that QEMU does not know of: a connection in its TLS handshake. A kernel that cannot do it
    (CONFIG_INET_DIAG_DESTROY) leaves them until the peer's QEMU ends.
    """
    run_command(
        [
            "ss",
            "--kill",
            "--tcp",
            "--numeric",
            "dst",
            _topology.socket_address(guest.peer_address, guest.port_migration),
        ]
    )


class Applier:
    """Carries out steps on one guest. ``actions``, ``timings_ms`` and ``transitions`` tell what happened."""

    def __init__(self, guest: Guest, run_command: RunCommand, monitor: Monitor | None = None) -> None:
        self.guest = guest
        self.run_command = run_command
        self.actions: list[str] = []
        self.changed = False
        self.timings_ms: dict[str, float] = {}
        self.transitions: list[str] = []
        self.pauses: list[tuple[float, float]] = []
        self.packets_at: float | None = None  # the clock of events, which is the host's
        self.packets = 0
        self.backup: str | None = None
        self._stopped_at: float | None = None
        self._colo_exit: dict[str, t.Any] | None = None
        self._powered_off = False
        self._job_errors: dict[str, str] = {}
        self._monitor = monitor
        self._keeper = _observe.keeper(guest)

    @property
    def monitor(self) -> Monitor:
        """The connection to QEMU, made at the first use."""
        if self._monitor is None:
            self._monitor = _observe.connect(self.guest)
        return self._monitor

    @property
    def connected(self) -> Monitor | None:
        """The connection if there is one."""
        return self._monitor

    def close(self) -> None:
        """Let go of the monitor."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def run(self, steps: c.Sequence[Step]) -> None:
        """Do all steps in order, or raise the error of the first that fails."""
        operations: dict[str, c.Callable[[Step, float], None]] = {
            "qmp": self._qmp,
            "capabilities": self._capabilities,
            "migrate": self._migrate,
            "yank": self._yank,
            "overlays": self._overlays,
            "record": self._record,
            "permit": self._permit,
            "link_key": self._link_key,
            "set_aside": self._set_aside,
            "start_unit": self._start_unit,
            "stop_unit": self._stop_unit,
            "wait_keeper": self._wait_keeper,
            "wait_runstate": self._wait_runstate,
            "wait_settled": self._wait_settled,
            "forget_translations": self._forget_translations,
            "wait_powered_off": self._wait_powered_off,
            "wait_heartbeat": self._wait_heartbeat,
            "wait_peer_waits": self._wait_peer_waits,
            "cancel_jobs": self._cancel_jobs,
            "wait_jobs_ready": self._wait_jobs_ready,
            "wait_jobs_gone": self._wait_jobs_gone,
            "wait_nodes_gone": self._wait_nodes_gone,
            "wait_migration": self._wait_migration,
            "end_switchover": self._end_switchover,
            "wait_links": self._wait_links,
            "wait_checkpoints": self._wait_checkpoints,
            "wait_secondary": self._wait_secondary,
            "wait_packets": self._wait_packets,
        }
        for step in steps:
            begin = time.monotonic()
            try:
                operations[step.operation](step, begin + step.timeout_s)
            except (ColoError, OSError) as error:
                exc = (
                    error if isinstance(error, ColoError) else ColoError("host_refused", f"this host refuses: {error}")
                )
                exc.message = f"guest {self.guest.name}, step '{step.title}': {exc.message}"
                exc.details.update(step=step.title, done=list(self.actions), transitions=list(self.transitions))
                if exc is error:
                    raise
                raise exc from error
            finally:
                spent = (time.monotonic() - begin) * 1000
                self.timings_ms[step.title] = round(self.timings_ms.get(step.title, 0.0) + spent, 1)
            if step.changes:
                self.actions.append(step.title)
                self.changed = True

    @property
    def guest_pause_ms(self) -> float | None:
        """The longest time the guest stood still while steps ran (STOP to RESUME by QEMU's clock), if it did."""
        return round(max((end - begin) * 1000 for begin, end in self.pauses), 1) if self.pauses else None

    # --- waiting

    def _next_event(self, timeout_s: float) -> Event | None:
        event = self.monitor.next_event(timeout_s)
        if event is None:
            return None
        if event.name == "MIGRATION":
            self.transitions.append(event.data["status"])
        elif event.name == "STOP":
            self._stopped_at = event.time_s
        elif event.name == "RESUME" and self._stopped_at is not None:
            self.pauses.append((self._stopped_at, event.time_s))
            self._stopped_at = None
        elif event.name == "COLO_EXIT":
            self._colo_exit = event.data
        elif event.name == "SHUTDOWN":
            self._powered_off = event.data.get("reason") == _rules.POWERED_OFF
        elif event.name == "BLOCK_JOB_COMPLETED" and "error" in event.data:
            self._job_errors[event.data["device"]] = event.data["error"]
        return event

    def _wait(
        self, step: Step, deadline: float, condition: c.Callable[[], bool], partial: c.Callable[[], t.Any]
    ) -> None:
        """Until ``condition`` holds; each look waits for QEMU's next event, so nothing is slept through."""
        while not condition():
            if time.monotonic() >= deadline:
                raise DeadlineError(f"'{step.title}'", step.timeout_s, last_seen=partial())
            self._next_event(min(LOOK_S, max(0.0, deadline - time.monotonic())))

    # --- QEMU

    def _qmp(self, step: Step, deadline: float) -> None:
        self.monitor.execute(
            step.arguments["command"], step.arguments["arguments"], timeout_s=max(0.1, deadline - time.monotonic())
        )

    def _capabilities(self, step: Step, deadline: float) -> None:
        # the end of an earlier protection is not the end of the one that begins here
        self._colo_exit = None
        needed = _observe.live_features(self.monitor).return_path == "requires"
        multifd = self.guest.tuning.multifd_channels > 0
        command, arguments = _topology.capabilities(step.arguments["role"], needed, multifd)
        self.monitor.execute(command, arguments)

    def _migrate(self, step: Step, deadline: float) -> None:
        """Over a connection of ours, which does not block.

        On one of its own QEMU's main loop waits for the standby's side of the TLS handshake, however long that takes, and with it all
        of the guest's I/O; no yank reaches it there (QEMU 11.1: a migration can be yanked from the end of the handshake on).
        """
        address, port = step.arguments["address"], step.arguments["port"]
        try:
            link = socket.create_connection((address, port), timeout=max(0.1, deadline - time.monotonic()))
        except OSError as exc:
            raise ColoError(
                "migration_failed",
                f"no connection to {self.guest.peer} ({address} port {port}: {exc}): does its QEMU wait for the guest, and does its firewall "
                "admit this host?",
                way=[],
                reason=str(exc),
            ) from exc
        with link:
            self.monitor.give("migration", link)
            self.monitor.execute("migrate", {"uri": "fd:migration"})

    def _yank(self, step: Step, deadline: float) -> None:
        cut_migration(self.guest, self.run_command)
        try:
            self._keeper.yank(step.arguments["instances"])
        except ColoError:
            # The keeper is the way that works when the main loop is blocked; without it ours may still do, and when
            # both do not, the error of this one says so.
            present = self.monitor.execute("query-yank", oob=True)
            for instance in step.arguments["instances"]:
                if instance in present:
                    self.monitor.execute("yank", {"instances": [instance]}, oob=True)

    def _wait_runstate(self, step: Step, deadline: float) -> None:
        goal, transit, last = step.arguments["goal"], step.arguments["transit"], ""

        def reached() -> bool:
            nonlocal last
            last = self.monitor.execute("query-status")["status"]
            if last not in goal and last not in transit:
                raise ColoError("illegal_runstate", f"the guest is {last}; expected {' or '.join(goal)}", runstate=last)
            return last in goal

        self._wait(step, deadline, reached, lambda: last)

    def _wait_settled(self, step: Step, deadline: float) -> None:
        end = time.monotonic() + float(step.arguments["seconds"])
        self._wait(step, deadline, lambda: time.monotonic() >= end, lambda: None)

    def _forget_translations(self, step: Step, deadline: float) -> None:
        """Any change of the memory map makes TCG forget all it knows of it; QMP has none, so a register is changed and put back."""
        word, port = _topology.shadow_register(self.guest)
        # the guest may be paused between its own two accesses
        latched = self._port("i /w", _topology.PCI_ADDRESS_PORT)
        self._port("o /w", _topology.PCI_ADDRESS_PORT, word)
        value = self._port("i /b", port)
        self._port("o /b", port, value ^ 0x10)
        self._port("o /b", port, value)
        self._port("o /w", _topology.PCI_ADDRESS_PORT, latched)

    def _port(self, access: str, port: int, *value: int) -> int:
        """Read or write an I/O port of the guest's machine by the human monitor; returns what was read, or written."""
        line = " ".join([access, *(f"{number:#x}" for number in (port, *value))])
        answer = str(self.monitor.execute("human-monitor-command", {"command-line": line}))
        if value:
            return value[0]
        found = re.search(r"= (0x[0-9a-f]+)", answer)
        if found is None:
            raise QmpError("qmp_refused", f"QEMU does not read an I/O port: {answer.strip()}", command=line)
        return int(found.group(1), 16)

    def _wait_powered_off(self, step: Step, deadline: float) -> None:
        def off() -> bool:
            # in lock step the next checkpoint sets it to running: then only an event has told
            shut = self._powered_off or _states.powered_off(_observe.keeper_state(self.guest))
            return shut or self.monitor.execute("query-status")["status"] == "shutdown"

        try:
            self._wait(step, deadline, off, lambda: "the guest runs")
        except DeadlineError as exc:
            raise ColoError(
                "powerdown_ignored",
                f"the guest does not power itself off within {step.timeout_s:g} s of its power button: does it handle ACPI events? "
                "Power it off from inside, or allow it more time (colo_power_timeout_s)",
                timeout_s=step.timeout_s,
            ) from exc

    def _jobs(self) -> dict[str, dict[str, t.Any]]:
        return {job["device"]: job for job in self.monitor.execute("query-block-jobs")}

    @staticmethod
    def _progress(jobs: dict[str, dict[str, t.Any]]) -> dict[str, t.Any]:
        return {name: {"done_bytes": job["offset"], "of_bytes": job["len"]} for name, job in jobs.items()}

    def _cancel_jobs(self, step: Step, deadline: float) -> None:
        for job in step.arguments["jobs"]:
            try:
                self.monitor.execute("block-job-cancel", {"device": job, "force": True})
            except QmpError as exc:
                # the yank of its connection may have ended it already
                if exc.details.get("error_class") != "DeviceNotActive":
                    raise

    def _wait_jobs_ready(self, step: Step, deadline: float) -> None:
        # of copies that an earlier protection began
        self._job_errors.clear()
        wanted, jobs = step.arguments["jobs"], self._jobs()
        patience_s = float(step.arguments.get("patience_s", 0))
        patient_until = time.monotonic() + patience_s if patience_s else None
        moved, moved_at = self._progress(jobs), time.monotonic()

        def ready() -> bool:
            nonlocal jobs, moved, moved_at
            jobs = self._jobs()
            gone = [name for name in wanted if name not in jobs]
            if gone:
                raise ColoError(
                    "resync_failed",
                    f"the resync ended before the copy was equal ({', '.join(gone)}): is the standby alive and its disk large enough?",
                    jobs=gone,
                    resumed=step.arguments.get("resumed", False),
                )
            if all(jobs[name].get("ready") for name in wanted):
                return True
            now, progress = time.monotonic(), self._progress(jobs)
            if progress != moved:
                moved, moved_at = progress, now
            elif now - moved_at > STALL_S:
                # a peer whose host died says nothing, and TCP would wait for a quarter of an hour
                raise ColoError(
                    "resync_failed",
                    f"the copy of the disks has stood still for {STALL_S:g} s: does {self.guest.peer} live, and is the link up?",
                    progress=progress,
                    resumed=step.arguments.get("resumed", False),
                )
            if patient_until is not None and now >= patient_until:
                raise Unfinished(progress)
            return False

        try:
            self._wait(step, deadline, ready, lambda: self._progress(jobs))
        except DeadlineError as exc:
            if time.monotonic() - moved_at >= min(STALL_S, step.timeout_s / 2):
                raise  # it stands still: there is nothing to go on with
            raise ColoError(
                "resync_unfinished",
                f"the disks are not equal after {step.timeout_s:g} s, and their copy goes on by itself: run site.yml again, which goes on with it",
                progress=self._progress(jobs),
            ) from exc

    def _wait_jobs_gone(self, step: Step, deadline: float) -> None:
        wanted = set(step.arguments["jobs"])
        self._wait(
            step, deadline, lambda: not wanted & self._jobs().keys(), lambda: sorted(wanted & self._jobs().keys())
        )
        if not step.arguments.get("well"):
            return
        # a job's last event comes before the answer that no longer lists it
        while self._next_event(0.0) is not None:
            pass
        errors = {job: self._job_errors[job] for job in wanted & self._job_errors.keys()}
        if errors:
            raise ColoError(
                "resync_failed",
                f"the last writes did not reach {self.guest.peer} ({'; '.join(errors.values())}): is the standby alive?",
                jobs=errors,
            )

    def _wait_nodes_gone(self, step: Step, deadline: float) -> None:
        wanted = set(step.arguments["nodes"])

        def left() -> set[str]:
            return wanted & {
                node["node-name"] for node in self.monitor.execute("query-named-block-nodes", {"flat": True})
            }

        self._wait(step, deadline, lambda: not left(), lambda: sorted(left()))

    def _wait_migration(self, step: Step, deadline: float) -> None:
        """By events, held against the legal graph; the query is for what no event tells (a peer that died at the switchover)."""
        goal, allowed = step.arguments["goal"], {*step.arguments["goal"], *step.arguments["transit"]}
        # what was seen in earlier waits of this run is part of the way
        way = [step.arguments["since"]]
        seen = self.transitions.index(way[0]) + 1 if way[0] in self.transitions else 0
        asked = None
        moved, moved_at = None, time.monotonic()
        while True:
            way += self.transitions[seen:]
            seen = len(self.transitions)
            _states.check_transitions(way)
            # what the plan saw in the beginning may be long over: only what was told since then ends the wait
            if len(way) > 1 and way[-1] in goal:
                return
            if len(way) > 1 and way[-1] not in allowed:
                raise self._migration_error(way)
            if time.monotonic() >= deadline:
                raise DeadlineError(
                    f"'{step.title}'",
                    step.timeout_s,
                    last_seen=way[-1],
                    migration=self.monitor.execute("query-migrate"),
                )
            if self._next_event(0.5) is None:
                answer = self.monitor.execute("query-migrate")
                status = answer.get("status", "none")
                # An event comes right after the state that it tells: an answer in between must not end this wait, or the
                # event would be taken for a part of the next one's way. What is answered twice no event will tell.
                if status in goal and status == asked:
                    return
                asked = status
                progress = (len(self.transitions), answer.get("ram", {}).get("transferred"))
                if progress != moved:
                    moved, moved_at = progress, time.monotonic()
                elif time.monotonic() - moved_at > STALL_S:
                    raise ColoError(
                        "migration_failed",
                        f"the migration has stood still in {status} for {STALL_S:g} s: does the QEMU on {self.guest.peer} hang?",
                        way=way,
                        reason="it stands still",
                    )
                # one that is to end may well have such an error
                if "failed" not in goal and answer.get("error-desc") and status in ("pre-switchover", "failed"):
                    raise self._migration_error(way)

    def _end_switchover(self, step: Step, deadline: float) -> None:
        """End a switchover whose connections are cut: it waits to be told to go on, fails, or was in COLO by then and is told to leave.

        A ``migrate_cancel`` that comes when QEMU is in COLO would leave a guest that stands still for good (QEMU 11.1: ``cancelling`` and
        ``finish-migrate`` from then on; x-colo-lost-heartbeat and cont are refused).
        """
        if self._migration_status() == "pre-switchover":
            self.monitor.execute("migrate_cancel")
        # by asking, not by events: what happened before the first command of this connection is told to nobody
        goal = step.arguments["goal"]
        self._wait(step, deadline, lambda: self._migration_status() in goal, self._migration_status)
        if self._migration_status() == "colo":
            self.monitor.execute("x-colo-lost-heartbeat")

    def _migration_status(self) -> str:
        status: str = self.monitor.execute("query-migrate").get("status", "none")
        return status

    def _migration_error(self, way: list[str]) -> ColoError:
        reason = self.monitor.execute("query-migrate").get("error-desc", "QEMU gives no reason")
        return ColoError(
            "migration_failed",
            f"the migration to {self.guest.peer} went {' -> '.join(way)}: {reason}. Look at 'journalctl -u {self.guest.unit}' on both hosts",
            way=way,
            reason=reason,
        )

    def _wait_links(self, step: Step, deadline: float) -> None:
        wanted = step.arguments["chardevs"]
        state: dict[str, bool] = {}

        def connected() -> bool:
            nonlocal state
            state = _observe.chardevs(self.monitor)
            return all(state.get(name) for name in wanted)

        self._wait(step, deadline, connected, lambda: {name: state.get(name) for name in wanted})

    def _wait_checkpoints(self, step: Step, deadline: float) -> None:
        keeper = _observe.keeper_state(self.guest)
        if keeper is not None and not self.transitions:
            # already in COLO before this run: the keeper has watched all the time
            age = keeper["checkpoints"].get("last_age_ms")
            if age is not None and age <= 2 * self.guest.tuning.checkpoint_delay_ms + 500:
                return
        first = len(self.pauses) + (1 if self._stopped_at is not None else 0)

        def enough() -> bool:
            if self._colo_exit is not None:
                raise ColoError(
                    "colo_exit", f"protection ended at once: COLO_EXIT {self._colo_exit}", data=self._colo_exit
                )
            return len(self.pauses) >= first + int(step.arguments["count"])

        self._wait(step, deadline, enough, lambda: {"checkpoints": len(self.pauses) - first})

    def _wait_packets(self, step: Step, deadline: float) -> None:
        taps: c.Sequence[str] = step.arguments["taps"]
        before = {tap: _observe.tap_packets(tap) for tap in taps}
        self.monitor.execute("announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100})
        self._wait(
            step,
            deadline,
            lambda: all(_observe.tap_packets(tap) > before[tap] for tap in taps),
            lambda: {tap: _observe.tap_packets(tap) - before[tap] for tap in taps},
        )
        self.packets_at = time.time()
        self.packets = sum(_observe.tap_packets(tap) - before[tap] for tap in taps)

    # --- the keeper and the record

    def _wait_keeper(self, step: Step, deadline: float) -> None:
        self._wait_state(step, deadline, lambda state: bool(state["qemu"]["connected"]))

    def _wait_heartbeat(self, step: Step, deadline: float) -> None:
        own = _store.read(self.guest)
        wanted = None if own is None else own.generation + 1

        def heard(state: dict[str, t.Any]) -> bool:
            payload = state["heartbeat"].get("peer") or {}
            return bool(state["heartbeat"].get("authenticated")) and payload.get("joins") == wanted

        self._wait_state(step, deadline, heard)

    def _wait_peer_waits(self, step: Step, deadline: float) -> None:
        own = _store.read(self.guest)

        def waits(state: dict[str, t.Any]) -> bool:
            payload = state["heartbeat"].get("peer") or {}
            # written by the peer's keeper when its QEMU reported colo: that one runs for nobody until it is told to take over
            follows = payload.get("role") == "standby" and payload.get("state") == "protected"
            generation = None if own is None else own.generation
            heard = bool(state["heartbeat"].get("authenticated"))
            return heard and follows and payload.get("generation") == generation

        self._wait_state(step, deadline, waits)

    def _wait_secondary(self, step: Step, deadline: float) -> None:
        def follows(state: dict[str, t.Any]) -> bool:
            if state["flags"].get("colo_exit"):
                raise ColoError("colo_exit", f"protection ended: {state['flags']['colo_exit']}", flags=state["flags"])
            seen = state["record"] or {}
            return seen.get("state") == "protected" and not seen.get("stale") and state["checkpoints"]["count"] >= 2

        self._wait_state(step, deadline, follows)

    def _wait_state(self, step: Step, deadline: float, condition: c.Callable[[dict[str, t.Any]], bool]) -> None:
        state: dict[str, t.Any] = {}

        def holds() -> bool:
            nonlocal state
            state = _observe.keeper_state(self.guest) or {}
            return bool(state) and condition(state)

        def partial() -> t.Any:
            return {
                key: state[key] for key in ("qemu", "heartbeat", "checkpoints", "flags") if key in state
            } or "the keeper does not answer"

        self._wait(step, deadline, holds, partial)

    def foretold(self, steps: t.Sequence[Step], record: _generation.Record | None) -> _generation.Record | None:
        """The generation record as it would be after ``steps``; nothing is written (``illegal_transition``)."""
        for step in steps:
            if step.operation == "record" and record is not None:
                record = self._after(step, record)
        return record

    def _record(self, step: Step, deadline: float) -> None:
        _store.update(self.guest, functools.partial(self._after, step))

    def _after(self, step: Step, record: _generation.Record) -> _generation.Record:
        arguments = {key: value for key, value in step.arguments.items() if key != "transition"}
        return self._transition(step.arguments["transition"], arguments, record)

    def _transition(self, name: str, arguments: dict[str, t.Any], record: _generation.Record) -> _generation.Record:
        own = self.guest.host
        if name == "started_alone":
            return _generation.started_alone(record, **arguments)
        if name == "begin_sync":
            return _generation.begin_sync(record, **arguments)
        if name == "enter_protection":
            return _generation.enter_protection(record, own)
        if name == "go_alone":
            return _generation.go_alone(record, **arguments)
        if name == "mark_whole":
            return _generation.mark_whole(record)
        if name == "mark_clean":
            return _generation.mark_clean(record, reason="powered off")
        if name == "take_over" and record.state == "alone" and record.serving == own:
            # a takeover that was killed after this step
            return record
        if name == "take_over":
            return _generation.take_over(record, **arguments)
        raise ValueError(name)

    # --- the host

    def _overlays(self, step: Step, deadline: float) -> None:
        _image.fresh_overlays(self.run_command, self.guest)

    def _permit(self, step: Step, deadline: float) -> None:
        record = _store.read(self.guest)
        permit = {
            "schema": 1,
            "guest": self.guest.name,
            "role": step.arguments["role"],
            "generation": 0 if record is None else record.generation,
        }
        # owned by root, so that the start gate can tell a permit of ours; readable through the group of the guest's user
        group = os.stat(self.guest.paths.state).st_gid
        replace_file(self.guest.permit_file, json.dumps(permit), os.geteuid(), group, 0o640)

    def _link_key(self, step: Step, deadline: float) -> None:
        _link_key.write(self.guest)

    def _set_aside(self, step: Step, deadline: float) -> None:
        self.backup = _store.set_aside(self.guest)

    def _start_unit(self, step: Step, deadline: float) -> None:
        unit = step.arguments["unit"]
        self.close()
        code, _out, err = self.run_command(["systemctl", "start", unit])
        if code != 0:
            raise ColoError(
                "unit_failed", f"{unit} did not start ({err.strip()}): look at 'journalctl -u {unit}'", unit=unit
            )
        while self._monitor is None:
            try:
                self._monitor = _observe.connect(self.guest)
            except QmpError as exc:
                if _observe.unit_state(self.run_command, unit) != "active":
                    raise ColoError(
                        "unit_failed", f"QEMU ended at once: look at 'journalctl -u {unit}'", unit=unit
                    ) from exc
                if time.monotonic() >= deadline:
                    raise DeadlineError(f"a greeting on {self.guest.qmp_socket}", step.timeout_s) from exc
                # a socket that is not there yet cannot be connected to and waited on; ends with the step's deadline
                time.sleep(0.02)

    def _stop_unit(self, step: Step, deadline: float) -> None:
        unit = step.arguments["unit"]
        self.close()
        if step.arguments.get("kill"):
            # its exit is seen by the stop below, whatever this one answers
            self.run_command(["systemctl", "kill", "--kill-whom=main", "--signal=SIGKILL", unit])
        code, _out, err = self.run_command(["systemctl", "stop", unit])
        state = _observe.unit_state(self.run_command, unit)
        if code != 0 or state not in ("inactive", "failed"):
            raise ColoError(
                "unit_failed",
                f"{unit} did not stop ({err.strip() or state}): look at 'systemctl status {unit}'",
                unit=unit,
            )
        if step.arguments.get("kill") and state == "failed":
            # killed on purpose: nobody is to be told that a unit has failed
            self.run_command(["systemctl", "reset-failed", unit])
