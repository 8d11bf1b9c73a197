# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words for what is on one host: the observation, its standing, legal migration states.

Pure: everything here is decided from what ``_observe`` saw.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _rules, _topology
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._generation import Record

Standing = t.Literal["absent", "stopped", "alone", "standby", "syncing", "primary", "secondary", "orphaned", "failed"]

# Standings in which this host's QEMU executes the guest for its clients, or might.
SERVING: frozenset[str] = frozenset({"alone", "primary"})

# Standings in lock step with a living peer.
LOCK_STEP: frozenset[str] = frozenset({"primary", "secondary"})

# MIGRATION states while a primary is on its way; anything before colo but these is no way to COLO.
MIGRATION_ACTIVE: frozenset[str] = frozenset(
    {"setup", "wait-unplug", "active", "pre-switchover", "device", "cancelling", "failing"}
)

# What may follow what, on the outgoing side (qapi/migration.json, MigrationStatus; 7.2 has no device state).
LEGAL_OUTGOING: dict[str, frozenset[str]] = {
    "none": frozenset({"setup"}),
    "setup": frozenset({"active", "wait-unplug", "failing", "failed", "cancelling"}),
    "wait-unplug": frozenset({"active", "failing", "failed", "cancelling"}),
    "active": frozenset({"pre-switchover", "failing", "failed", "cancelling"}),
    "pre-switchover": frozenset({"device", "colo", "failing", "failed", "cancelling"}),
    "device": frozenset({"colo", "failing", "failed", "cancelling"}),
    "failing": frozenset({"failed"}),
    "cancelling": frozenset({"cancelled", "failed"}),
    "colo": frozenset({"completed", "cancelling", "failing", "failed"}),
}
# A new attempt may begin where an old one has ended.
LEGAL_OUTGOING.update({ended: frozenset({"setup"}) for ended in ("failed", "cancelled", "completed")})


@dataclasses.dataclass(frozen=True)
class Job:
    """A block job; ``ready`` is true when a mirror has caught up. Sizes in bytes."""

    ready: bool
    status: str
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class Qemu:
    """What one running QEMU answered."""

    version: tuple[int, int, int]
    runstate: str
    migration: str
    migration_error: str | None
    colo_mode: str
    nodes: frozenset[str]
    attached: frozenset[str]  # the nodes that are children of a guest device's quorum
    jobs: t.Mapping[str, Job]
    objects: t.Mapping[str, str]
    chardevs: t.Mapping[str, bool]
    exports: frozenset[str]
    settings: t.Mapping[str, int]  # by the names that _topology has for them
    incoming: str | None = None  # address and port at which this one takes a migration


@dataclasses.dataclass(frozen=True)
class Observation:
    """What one host says about one guest.

    ``unit`` is systemd's ActiveState; ``qemu`` is None when there is no process or no answer (then ``trouble`` says
    why); ``keeper`` is the keeper's state or None when it does not answer. ``busy``: no answer, but the keeper has had one
    meanwhile, so that another program holds the monitor and nothing is wrong with QEMU. ``channels_held``: somebody is
    connected to a packet channel of a waiting standby, whatever QEMU says of it.
    """

    deployed: bool
    unit: str
    trouble: str | None
    qemu: Qemu | None
    keeper: t.Mapping[str, t.Any] | None
    record: Record | None
    key_current: bool = True  # what QEMU reads of the guest's key is made from the present one, or none is needed
    busy: bool = False
    channels_held: bool = False

    @property
    def process(self) -> bool:
        """Whether a QEMU process may exist. Not knowing counts as running."""
        return self.unit not in ("inactive", "failed")


ABSENT = Observation(deployed=False, unit="inactive", trouble=None, qemu=None, keeper=None, record=None)


def standing(seen: Observation) -> Standing:
    """The one word for what this host's QEMU is for the guest."""
    if not seen.deployed:
        return "absent"
    if not seen.process:
        return "stopped"
    if seen.qemu is None:
        return "failed"
    qemu = seen.qemu
    if qemu.colo_mode in ("primary", "secondary"):
        if peer_lost(seen) is not None:
            return "orphaned"
        return "primary" if qemu.colo_mode == "primary" else "secondary"
    if qemu.runstate == "inmigrate":
        return "standby" if qemu.migration in ("none", "setup") else "syncing"
    if qemu.runstate in ("prelaunch", "shutdown"):
        return "stopped"
    if qemu.runstate in ("internal-error", "io-error", "guest-panicked", "watchdog"):
        return "failed"
    # postmigrate: a migration that completed instead of entering COLO; the guest is whole, and paused
    if qemu.migration in MIGRATION_ACTIVE or qemu.jobs or qemu.runstate == "postmigrate":
        return "syncing"
    return "alone"


def peer_lost(seen: Observation) -> str | None:
    """Why a QEMU in COLO has no peer any more, or None. COLO_EXIT is the fast path; silence on the link the other."""
    if seen.keeper is None:
        return None
    if seen.keeper["flags"].get("colo_exit"):
        return "QEMU reported COLO_EXIT"
    heartbeat = seen.keeper["heartbeat"]
    if heartbeat.get("lost"):
        return "the peer's keeper is silent"
    return None


def powered_off(keeper: t.Mapping[str, t.Any] | None) -> bool:
    """Whether the guest powered itself off, by the event that its keeper saw. Its record says so a moment later."""
    told = None if keeper is None else keeper["flags"].get("shutdown")
    return told is not None and told["data"].get("reason") == _rules.POWERED_OFF


def disk_error(seen: Observation) -> str | None:
    """What QEMU said when a write of the serving side failed on this host's own disk, or None.

    With the standby's copy beside it the guest is told nothing. A standby's overlays are emptied by its next checkpoint.
    """
    told = None if seen.keeper is None else seen.keeper["flags"].get("io_error")
    if told is None or seen.record is None or seen.record.role != "serving":
        return None
    data = told["data"]
    return (
        f"{data.get('event')}: {data.get('error') or data.get('reason') or data.get('node-name') or 'no reason given'}"
    )


def silence_limit_ms(heartbeat_interval_ms: int) -> float:
    """A keeper that beats cannot be silent for longer than this (two beats, and slack for a busy host)."""
    return 2.2 * heartbeat_interval_ms


def peer_alive(keeper: t.Mapping[str, t.Any] | None, heartbeat_interval_ms: int) -> bool:
    """Whether the peer's keeper is heard right now and says that its QEMU lives: such a peer is not fenced."""
    if keeper is None:
        return False
    heartbeat = keeper["heartbeat"]
    age_ms = heartbeat.get("last_rx_age_ms")
    payload = heartbeat.get("peer") or {}
    heard = (
        bool(heartbeat.get("authenticated")) and age_ms is not None and age_ms < silence_limit_ms(heartbeat_interval_ms)
    )
    return heard and payload.get("qemu_status") is not None


def answered_within(keeper: t.Mapping[str, t.Any] | None, limit_ms: float) -> bool:
    """Whether QEMU has answered this keeper in the last ``limit_ms``."""
    if keeper is None or not keeper["qemu"]["connected"]:
        return False
    age_ms = keeper["qemu"].get("answer_age_ms")
    return age_ms is not None and age_ms < limit_ms


def peer_released(keeper: t.Mapping[str, t.Any] | None, generation: int) -> bool:
    """Whether the last word of the peer's keeper, of this very session, is that its QEMU has ended."""
    payload = {} if keeper is None else keeper["heartbeat"].get("peer") or {}
    return (
        payload.get("generation") == generation and payload.get("role") == "none" and payload.get("qemu_status") is None
    )


def leftovers(seen: Observation) -> bool:
    """Whether a QEMU that serves alone still has objects of COLO in it (a half-built or half-ended protection)."""
    if seen.qemu is None:
        return False
    qemu = seen.qemu
    return (
        bool(qemu.jobs)
        or any(node.startswith(("nbd", "watch", "replication")) for node in qemu.nodes)
        or any(
            kind in ("filter-mirror", "filter-redirector", "colo-compare", "tls-creds-psk")
            for name, kind in qemu.objects.items()
            if not name.startswith(_topology.FLUSHER_PREFIX)
        )
        or any(not name.startswith(("monitor-", "console", _topology.FLUSHER_PREFIX)) for name in qemu.chardevs)
        or bool(qemu.exports)
        or qemu.migration in MIGRATION_ACTIVE
    )


def check_transitions(seen: t.Sequence[str]) -> None:
    """Hold observed outgoing migration states against the legal graph (``illegal_transition``, ``colo_not_entered``)."""
    for before, after in zip(seen, seen[1:]):
        if after == "completed" and before != "colo":
            raise ColoError(
                "colo_not_entered",
                "the migration completed instead of entering COLO: this QEMU is broken for COLO (7.2, 10.0.0-10.0.6 and "
                "10.1.0-10.1.2 are; 10.0.7, 10.1.3 and 11.1 work) or the standby was started without x-colo",
                transitions=list(seen),
            )
        if after != before and after not in LEGAL_OUTGOING.get(before, frozenset()):
            raise ColoError(
                "illegal_transition",
                f"the migration went from {before} to {after}, which no QEMU should do: look at the journal of the guest's unit",
                transitions=list(seen),
            )
