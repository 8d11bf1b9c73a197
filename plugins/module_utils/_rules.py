# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a QEMU event, or a word from the peer's keeper, means (pure; shared by the keeper and the modules).

The keeper may let go, never take over: no rule here ends in a promotion, a start, or anything on the other host.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import statistics
import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.lockstep.colo.plugins.module_utils._generation import Record

Json = dict[str, t.Any]

#: what can be found out about the present COLO session; each is None or ``{"time": seconds, "data": {...}}``
FLAGS = (
    "colo_exit",
    "reset",
    "shutdown",
    "replication_failed",
    "io_error",
    "switchover_ended",
    "blind_since",
)

#: a migration in one of these, and in ``colo``, belongs to a COLO session that is being built or stands
BUILDING = ("setup", "wait-unplug", "active", "pre-switchover", "device")
#: the guest is paused and waits for somebody to continue or to cancel
WAITS = "pre-switchover"
COLO = "colo"

#: QEMU's reason of a SHUTDOWN that the guest asked for (qapi/run-state.json, ShutdownCause)
POWERED_OFF = "guest-shutdown"

#: the block nodes of a serving side through which the standby's disk is written (``_topology``)
TO_STANDBY = ("replication", "watch", "nbd")

#: QEMU has no guest that could run, or does not run it yet: no event of a session can have been missed
NOT_YET_RUN = ("prelaunch", "inmigrate")


class Action(enum.Enum):
    """What the keeper does about it."""

    ENTER_PROTECTION = "enter_protection"  #: standby: lock step begins; write the generation it joins
    MARK_STALE = "mark_stale"  #: standby: the disk no longer follows
    MARK_VOID = "mark_void"  #: this side in protection: the running standby may have diverged
    MARK_CLEAN = "mark_clean"  #: the guest powered itself off: nobody brings it back without being asked to
    MARK_RUNNING = "mark_running"  #: a guest that had powered itself off was reset, and runs again
    LET_GO = "let_go"  #: serving side in lock step: its own disk has failed, and only the standby's copy is whole
    TELL_PEER = "tell_peer"  #: send the heartbeat now, not at the next interval


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What follows from one event. ``migration`` and ``runstate`` are None when it says nothing about them."""

    flags: t.Mapping[str, Json] = dataclasses.field(default_factory=dict)
    clear: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ()
    reason: str = ""
    migration: str | None = None
    runstate: str | None = None
    new_session: bool = False
    #: one of the two events of every checkpoint: counted, and not kept in the list of events
    checkpoint: t.Literal["stop", "resume"] | None = None


NOTHING = Meaning()


def in_session(migration: str | None) -> bool:
    """Whether a COLO session is being built or stands."""
    return migration == COLO or migration in BUILDING


#: Events that QEMU tells once a second at most (``monitor_qapi_event_conf`` in its monitor/monitor.c): what happens within that
#: second is told at its end, with the time at which it happened.
THROTTLED = ("QUORUM_REPORT_BAD", "QUORUM_FAILURE", "BLOCK_IO_ERROR")
THROTTLED_S = 1.0


def is_late(name: str, at: float, session_at: float | None) -> bool:
    """Whether the event, which happened *at*, tells of what was before the session that began at *session_at*.

    Both by QEMU's clock. No later than throttling makes it: a clock that was set back hides no error for long.
    """
    return name in THROTTLED and session_at is not None and 0 < session_at - at <= 2 * THROTTLED_S


def interpret(name: str, data: Json, *, role: str, migration: str | None) -> Meaning:
    """Say what event *name* with *data* means to a keeper whose record says *role* while *migration* is the status.

    ``role`` is ``serving``, ``standby`` or ``none``.
    """
    if name == "MIGRATION":
        return _migration(str(data.get("status")), role)
    if name == "STOP":
        return Meaning(runstate="paused", checkpoint="stop" if migration == COLO else None)
    if name == "RESUME":
        return Meaning(runstate="running", checkpoint="resume" if migration == COLO else None)
    if name == "COLO_EXIT":
        return Meaning(flags={"colo_exit": data}, actions=(Action.TELL_PEER,))
    if name == "RESET":
        return _reset(data, migration, role)
    if name == "SHUTDOWN":
        return _shutdown(data, role)
    if name == "QUORUM_REPORT_BAD" and str(data.get("node-name")).startswith(TO_STANDBY):
        return _replication_failed(data, role)
    if name == "QUORUM_FAILURE" and str(data.get("reference")).startswith(TO_STANDBY):
        return _replication_failed(data, role)
    if name in ("BLOCK_IO_ERROR", "QUORUM_FAILURE", "QUORUM_REPORT_BAD"):
        return _own_disk_failed(name, data, role, migration)
    return NOTHING


def _migration(status: str, role: str) -> Meaning:
    if status == "setup":
        # A session begins with its migration, not with its first `colo`: what goes wrong with the replicated disk
        # between the two must not be forgotten. A guest that powered itself off stays off whoever copies it.
        clear = tuple(flag for flag in FLAGS if flag != "shutdown")
        return Meaning(migration=status, clear=clear, new_session=True, actions=(Action.TELL_PEER,))
    if status == COLO and role == "standby":
        return Meaning(
            migration=status,
            actions=(Action.ENTER_PROTECTION, Action.TELL_PEER),
            reason="QEMU reported migration status colo",
        )
    return Meaning(migration=status, actions=(Action.TELL_PEER,))


def _shutdown(data: Json, role: str) -> Meaning:
    """In lock step both guests power off, and the next checkpoint sets both to running, halted: nothing but this event
    tells. The serving side's word counts: a standby's guest may do what the next checkpoint takes back.
    """
    flags = {"shutdown": data}
    if role == "serving" and data.get("reason") == POWERED_OFF:
        return Meaning(
            flags=flags, actions=(Action.MARK_CLEAN, Action.TELL_PEER), reason="the guest powered itself off"
        )
    return Meaning(flags=flags, actions=(Action.TELL_PEER,))


def _reset(data: Json, migration: str | None, role: str) -> Meaning:
    """A guest reboot in COLO left the standby silently wrong in 9 of 35 runs on QEMU 11.1.3.

    A reset from outside is announced by an event without ``guest``, followed by the one with it: both count.
    """
    running = (Action.MARK_RUNNING,) if role == "serving" else ()
    if migration == COLO and data.get("guest"):
        return Meaning(
            flags={"reset": data},
            clear=("shutdown",),
            actions=(*running, Action.MARK_VOID, Action.TELL_PEER),
            reason=f"guest reset in COLO ({data.get('reason', 'no reason given')})",
        )
    return Meaning(flags={"reset": data}, clear=("shutdown",), actions=running, reason="guest reset")


def _own_disk_failed(name: str, data: Json, role: str, migration: str | None) -> Meaning:
    flags = {"io_error": {"event": name, **data}}
    if name == "QUORUM_REPORT_BAD" and role == "serving" and migration == COLO:
        # A write that reached one of the two disks is a good one to the guest, and its next read is of the other: of this
        # one, which lacks it. What the guest makes of that must not become the state of the standby.
        reason = "this side's own disk has failed in lock step"
        return Meaning(flags=flags, actions=(Action.LET_GO, Action.TELL_PEER), reason=reason)
    # On a standby a full overlay ends so; the next checkpoint empties the overlay and mends it (werror=report).
    return Meaning(flags=flags, actions=(Action.TELL_PEER,))


def _replication_failed(data: Json, role: str) -> Meaning:
    if data.get("type") == "read":
        # never to be read from there: asked for what the own disk does not give, the replication driver refuses
        return NOTHING
    if role == "standby":
        # The replication node of a primary, on a host whose record says standby: somebody is promoting; not ours.
        return NOTHING
    # COLO carries on without an error to anybody while the standby's disk falls behind.
    return Meaning(flags={"replication_failed": data}, actions=(Action.TELL_PEER,))


def follows(payload: Json, record: Record | None) -> bool:
    """Whether the peer, by the last word of its keeper, is a good standby of this side, with this *record*."""
    return (
        record is not None
        and record.state == "protected"
        and not record.void
        and payload.get("state") == "protected"
        and payload.get("generation") == record.generation
        and not payload.get("stale")
        and not payload.get("void")
    )


def interpret_peer(payload: Json, record: Record | None) -> tuple[Action | None, str]:
    """Say what the peer's heartbeat *payload* asks of this side, given this side's *record*; with the reason.

    Words about another session do not count: the peer is at the generation this copy has, or at the one it joins (the
    serving side writes that a moment before the standby does). But a peer that serves at a later generation than this
    standby's went on without it.
    """
    generation = payload.get("generation")
    if record is None or not isinstance(generation, int):
        return None, ""
    host = str(payload.get("host"))
    standby_of_it = record.role == "standby" and not record.stale and payload.get("role") == "serving"
    if standby_of_it and record.state == "protected" and generation > record.generation:
        return Action.MARK_STALE, f"{host} serves at generation {generation}, without this copy"
    if generation not in (record.generation, record.joins):
        return None, ""
    if standby_of_it and _told(payload, "replication_failed"):
        return Action.MARK_STALE, f"{host} reported that replication to this disk failed"
    if record.state == "protected" and not record.void and payload.get("void"):
        return Action.MARK_VOID, f"{host} reported: {payload.get('void_reason') or 'protection is void'}"
    if standby_of_it and record.state == "protected" and payload.get("clean") is (not record.clean):
        action = Action.MARK_CLEAN if payload["clean"] else Action.MARK_RUNNING
        return action, f"{host} reported that the guest {'powered itself off' if payload['clean'] else 'runs again'}"
    return None, ""


def _told(payload: Json, flag: str) -> bool:
    flags = payload.get("flags")
    return isinstance(flags, dict) and bool(flags.get(flag))


def blind(runstate: str | None, migration: str | None, *, first_connection: bool, keeper_was_first: bool) -> bool:
    """Whether events may have been missed before this connection to QEMU.

    Not when the keeper waited before QEMU started and this is its first connection, nor when the guest has not run
    yet and nothing was migrated.
    """
    if first_connection and keeper_was_first:
        return False
    return not (runstate in NOT_YET_RUN and migration in (None, "none", "setup"))


def may_cancel(migration: str | None) -> bool:
    """Whether the switchover watchdog may send ``migrate_cancel``: only while the guest waits, never in COLO.

    Cancelling in ``colo`` leaves a QEMU that can never be protected again.
    """
    return migration == WAITS


class Checkpoints:
    """Figures about the checkpoints of one COLO session, from its STOP and RESUME events. Times in seconds."""

    WINDOW = 512  #: pauses kept for the percentiles
    RATE_S = 30.0  #: span over which the rate is counted

    def __init__(self) -> None:
        self.count = 0
        self.last_at: float | None = None  # wall clock, for humans
        self._ended: collections.deque[float] = collections.deque(maxlen=self.WINDOW)  # monotonic
        self._pauses_ms: collections.deque[float] = collections.deque(maxlen=self.WINDOW)
        self._stopped: tuple[float, float] | None = None

    def stop(self, at: float, now: float) -> None:
        """A checkpoint stopped the guest: *at* by QEMU's clock, *now* by the keeper's monotonic one."""
        self._stopped = (at, now)

    def resume(self, at: float, now: float) -> None:
        """The guest goes on."""
        if self._stopped is None:
            return
        pause, seen = at - self._stopped[0], now - self._stopped[1]
        self._stopped = None
        # QEMU's stamps are free of the keeper's delays, but follow the wall clock, which may be set in between.
        if pause < 0 or abs(pause - seen) > 1.0:
            pause = seen
        self.count += 1
        self.last_at = at
        self._ended.append(now)
        self._pauses_ms.append(pause * 1000)

    def abandon(self) -> None:
        """The session ended in mid-checkpoint: what resumes the guest now is not the end of one."""
        self._stopped = None

    def figures(self, now: float) -> Json:
        """Return the figures at monotonic time *now*; milliseconds where the name says so, else None without data."""
        pauses = list(self._pauses_ms)
        recent = [ended for ended in self._ended if now - ended <= self.RATE_S]
        span = recent[-1] - recent[0] if len(recent) > 1 else 0.0
        cuts = statistics.quantiles(pauses, n=100, method="inclusive") if len(pauses) > 1 else pauses * 99
        return {
            "count": self.count,
            "last_at": self.last_at,
            "last_age_ms": _ms(now - self._ended[-1]) if self._ended else None,
            "last_pause_ms": _round(pauses[-1]) if pauses else None,
            "p50_pause_ms": _round(cuts[49]) if cuts else None,
            "p99_pause_ms": _round(cuts[98]) if cuts else None,
            "rate_hz": _round((len(recent) - 1) / span) if span > 0 else None,
            "stopped_for_ms": _ms(now - self._stopped[1]) if self._stopped else None,
        }


class Resync:
    """How far the copies of disks to a standby are, and how fast they go, from looks at QEMU's jobs. Times in seconds."""

    SPAN_S = 10.0  #: over which the rate is told

    def __init__(self) -> None:
        self._looks: collections.deque[tuple[float, dict[str, tuple[int, int]]]] = collections.deque()

    def look(self, now: float, jobs: t.Sequence[Json]) -> None:
        """The jobs at monotonic time *now*, as QEMU tells them; one that has caught up is over."""
        seen = {str(job["device"]): (int(job["offset"]), int(job["len"])) for job in jobs if not job.get("ready")}
        self._looks.append((now, seen))
        while self._looks[0][0] < now - self.SPAN_S:
            self._looks.popleft()

    def figures(self) -> Json:
        """Bytes, rate and time left by job; no time while nothing moves."""
        now, last = self._looks[-1] if self._looks else (0.0, {})
        told: Json = {}
        for name, (done, of) in last.items():
            began, first = next((at, seen[name][0]) for at, seen in self._looks if name in seen)
            rate = max(0.0, (done - first) / (now - began)) if now > began else 0.0
            left = _round((of - done) / rate) if rate else None
            told[name] = {"done_bytes": done, "of_bytes": of, "bytes_per_s": round(rate), "left_s": left}
        return told


def _ms(seconds: float) -> float:
    return _round(seconds * 1000)


def _round(value: float) -> float:
    return round(value, 3)
