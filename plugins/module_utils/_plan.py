# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All decisions: from what is (an observation) and a wish to the steps that lead there, or a refusal.

Pure. Check mode prints these steps, ``_apply`` carries them out, and a unit test needs no QEMU. A plan starts from
whatever is there, so a run that was killed half-way is finished or rolled back by the next one.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _generation, _rules, _states, _topology
from ansible_collections.lockstep.colo.plugins.module_utils._errors import RefusedError
from ansible_collections.lockstep.colo.plugins.module_utils._features import Features
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._states import Observation

# What _apply knows how to do.
Operation = t.Literal[
    "qmp",
    "capabilities",
    "migrate",
    "yank",
    "overlays",
    "record",
    "permit",
    "link_key",
    "set_aside",
    "start_unit",
    "stop_unit",
    "wait_keeper",
    "wait_runstate",
    "wait_settled",
    "forget_translations",
    "wait_powered_off",
    "wait_heartbeat",
    "wait_peer_waits",
    "cancel_jobs",
    "wait_jobs_ready",
    "wait_jobs_gone",
    "wait_nodes_gone",
    "wait_migration",
    "end_switchover",
    "wait_links",
    "wait_checkpoints",
    "wait_secondary",
    "wait_packets",
]

#: where the next that happens may be colo: by itself, or by a migrate-continue that QEMU has yet to read
SWITCHING = ("pre-switchover", "device")


@dataclasses.dataclass(frozen=True)
class Step:
    """One step. ``changes`` is false for steps that only wait or prove; ``timeout_s`` is this step's deadline."""

    operation: Operation
    title: str
    arguments: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    timeout_s: float = 5.0
    changes: bool = True


def _qmp(command: str, arguments: t.Mapping[str, t.Any] | None = None, timeout_s: float = 5.0) -> Step:
    named = (
        next((arguments[key] for key in ("id", "node-name", "job-id", "device") if key in arguments), "")
        if arguments
        else ""
    )
    return Step("qmp", f"{command} {named}".strip(), {"command": command, "arguments": arguments or {}}, timeout_s)


def _all(commands: t.Iterable[_topology.Command]) -> list[Step]:
    # A server of QEMU 10.0 makes Diffie-Hellman parameters of its own, which takes seconds; it is a standby, and nobody waits for it
    slow = {"tls-creds-psk": 60.0}
    return [_qmp(command, arguments, slow.get(arguments.get("qom-type", ""), 5.0)) for command, arguments in commands]


def _capabilities(role: _topology.Role) -> Step:
    # by probe: with x-colo, return-path is required on 11.x and fatal up to 10.2
    return Step("capabilities", f"migration capabilities of a {role}", {"role": role})


def _link_key() -> Step:
    return Step("link_key", "QEMU may read the guest's present key")


def _record(transition: str, title: str, **arguments: t.Any) -> Step:
    return Step("record", f"record: {title}", {"transition": transition, **arguments})


# --- the serving side -------------------------------------------------------------------------------------------


def serve(
    guest: Guest,
    seen: Observation,
    fenced_by: str | None,
    generation: int | None = None,
    accept_older: bool = False,
) -> list[Step]:
    """The guest runs here (colo_migrate role=primary state=ready); protected or not, but with nothing half-built.

    Refuses to start a stopped guest without evidence about the other side (``fence_missing``), or another copy than that of
    ``generation``, of which the evidence is (``generation_changed``); refuses a standby
    (``is_standby``) and a QEMU that cannot be judged (``standing_failed``). The copy of a standby is started with ``accept_older`` only
    (``illegal_transition``).
    """
    now = _states.standing(seen)
    if now in ("absent", "stopped"):
        return _start(guest, seen, fenced_by, generation, accept_older)
    if now == "primary":
        return to_alone(guest, seen) if _half_way(seen) else []
    if now == "alone":
        return (to_alone(guest, seen) if _states.leftovers(seen) else []) + _whole(guest, seen)
    if now in ("syncing", "orphaned") and is_outgoing(seen):
        return [] if _resyncing(guest, seen) else to_alone(guest, seen, fenced_by)
    if now in ("secondary", "orphaned") and _half_way(seen):
        return failover(guest, seen, None, accept_void=False)
    if now == "failed":
        raise RefusedError(
            "standing_failed",
            f"guest {guest.name}: QEMU runs on {guest.host} and cannot be used ({trouble(seen)}): look at "
            f"'journalctl -u {guest.unit}'; if the guest is lost, stop the unit and run site.yml again",
        )
    raise RefusedError(
        "is_standby",
        f"guest {guest.name}: {guest.host} is {now}; a standby starts to serve by failover.yml, not by being asked to run",
    )


def no_record(guest: Guest) -> RefusedError:
    """A copy without a record may be of any age: it is neither started nor overwritten."""
    return RefusedError(
        "record_missing",
        f"guest {guest.name}: {guest.record_file} does not exist on {guest.host}, so nobody can say how old this copy is. Restore "
        "the file, or move the images away and run site.yml, which makes new ones with a record",
    )


def trouble(seen: Observation) -> str:
    """In words, what is wrong with a QEMU whose standing is failed."""
    if seen.trouble is not None:
        return seen.trouble
    return "no answer" if seen.qemu is None else f"runstate {seen.qemu.runstate}, migration {seen.qemu.migration}"


def is_outgoing(seen: Observation) -> bool:
    """Whether this QEMU is the serving side of a protection that stands, is built, or has lost its standby."""
    if seen.qemu is None:
        return False
    if seen.qemu.colo_mode != "none":
        return seen.qemu.colo_mode == "primary"
    return seen.qemu.runstate not in ("inmigrate", "prelaunch")


def _half_way(seen: Observation) -> bool:
    """Whether a takeover, or an end of protection, was killed: the record says alone, and QEMU is still in COLO."""
    in_colo = seen.qemu is not None and seen.qemu.colo_mode != "none"
    return in_colo and seen.record is not None and seen.record.state == "alone"


def _start(
    guest: Guest, seen: Observation, fenced_by: str | None, generation: int | None, accept_older: bool
) -> list[Step]:
    if not fenced_by:
        raise RefusedError(
            "fence_missing",
            f"guest {guest.name} is stopped on {guest.host}: starting it needs fenced_by, the evidence that {guest.peer} does "
            "not run it. site.yml gives it when it has seen both hosts; otherwise fence the peer first",
        )
    if seen.record is None:
        raise no_record(guest)
    if generation is not None and seen.record.generation != generation:
        raise RefusedError(
            "generation_changed",
            f"guest {guest.name}: the copy on {guest.host} was of generation {generation} when it was chosen to be started, and is of "
            f"{seen.record.generation} now: another run has been here meanwhile. Run site.yml again, which looks again",
        )
    if seen.record.uncommitted:
        # Whether QEMU had finished its commit cannot be told from the images: committing again could put old data over new.
        raise RefusedError(
            "takeover_unfinished",
            f"guest {guest.name}: {guest.host} died while it took over, before its overlays were seen to be committed; its image may "
            f"lack the last writes. Follow 'A takeover that was cut short' in docs/runbooks/failover.md",
        )
    steps: list[Step] = []
    if seen.process:
        # a QEMU that has the guest but does not run it (killed between start and cont, or the guest powered itself off)
        steps.append(_stop(guest))
    return steps + [
        _record(
            "started_alone",
            "this copy serves, unprotected",
            fenced_by=fenced_by,
            **({"accept_older": True} if accept_older else {}),
        ),
        Step("permit", "permit one start as primary", {"role": "primary"}),
        Step("start_unit", f"start {guest.unit}", {"unit": guest.unit}, timeout_s=30),
        Step("wait_keeper", "the keeper holds its monitor", timeout_s=10, changes=False),
        _qmp("cont"),
        Step(
            "wait_runstate", "the guest runs", {"goal": ["running"], "transit": ["prelaunch", "paused"]}, changes=False
        ),
        *_settled(guest),
    ]


def _settled(guest: Guest) -> list[Step]:
    """Let a guest that was just started boot alone, where booting in lock step is known to ruin the standby."""
    seconds = guest.tuning.settle_ms / 1000
    if not seconds:
        return []
    return [Step("wait_settled", "the guest boots alone", {"seconds": seconds}, timeout_s=seconds + 5, changes=False)]


def _whole(guest: Guest, seen: Observation) -> list[Step]:
    """After a takeover QEMU commits the overlays into the parent image by itself; see that end, and write it down."""
    return [] if seen.record is None or not seen.record.uncommitted else _committed(guest)


def _committed(guest: Guest) -> list[Step]:
    nodes = [node for disk in range(len(guest.disks)) for node in _topology.overlay_nodes(disk)]
    return [
        Step("wait_nodes_gone", "the overlays are committed", {"nodes": nodes}, timeout_s=600, changes=False),
        _record("mark_whole", "the parent image is the whole copy"),
    ]


def _stop(guest: Guest) -> Step:
    return Step("stop_unit", f"stop {guest.unit}", {"unit": guest.unit}, timeout_s=30)


def to_alone(guest: Guest, seen: Observation, fenced_by: str | None = None) -> list[Step]:
    """From whatever is half-built, lost or protected back to a guest that serves alone; skips what is not there.

    One rule for rolling back, for dropping protection and for the failover of a primary whose standby died.
    """
    return [*_let_go(guest, seen, fenced_by), *_runs(guest)]


def _let_go(guest: Guest, seen: Observation, fenced_by: str | None = None) -> list[Step]:
    """End whatever there is of a protection on the serving side.

    The order is the measured one: yank first (a peer that hangs must not be waited for), the disk before the lost
    heartbeat, colo-compare before its redirectors (deleting it flushes held packets through them).

    A guest that is paused because its migration completed goes on only when the peer is fenced (``fenced_by``) or its
    keeper says that it waits: a standby without x-colo would have begun to run the guest itself.
    """
    qemu = seen.qemu
    if qemu is None:
        raise RefusedError(
            "standing_failed", f"guest {guest.name}: QEMU on {guest.host} gives no answer ({trouble(seen)})"
        )
    disks, nics = range(len(guest.disks)), range(len(guest.nics))
    replicated = [disk for disk in disks if _topology.replication_node(disk) in qemu.attached]
    steps = [
        *_peer_waits(seen, fenced_by),
        _record("go_alone", "this copy is the newest from here on", reason="protection ended"),
        Step("yank", "yank the peer out of band", {"instances": _topology.yank_instances(guest)}),
    ]
    detach = [
        _qmp("x-blockdev-change", {"parent": _topology.quorum_node(disk), "child": _topology.QUORUM_CHILD})
        for disk in replicated
    ]
    disk_first = qemu.colo_mode == "primary" or qemu.migration in SWITCHING
    if disk_first:
        steps += detach
    steps += _leave(qemu)
    # what a takeover that was killed half-way leaves
    if qemu.exports:
        steps.append(_qmp("nbd-server-stop"))
    steps += _objects_gone(qemu, [name for nic in nics for name in _topology.standby_filters(nic)])
    steps += _chardevs_gone(qemu, [name for nic in nics for name in _topology.standby_chardevs(nic)])
    jobs = [job for job in qemu.jobs if job in {_topology.resync_job(disk) for disk in disks}]
    if jobs:
        steps.append(Step("cancel_jobs", "end the resync", {"jobs": jobs}))
        steps.append(Step("wait_jobs_gone", "the resync has ended", {"jobs": jobs}, changes=False))
    steps += _objects_gone(qemu, [name for nic in nics for name in _topology.primary_filters(nic)])
    steps += _chardevs_gone(qemu, [name for nic in nics for name in _topology.primary_chardevs(nic)])
    if not disk_first:
        steps += detach
    for disk in disks:
        steps += [
            _qmp("blockdev-del", {"node-name": name})
            for name in (_topology.replication_node(disk), _topology.watch_node(disk), _topology.nbd_node(disk))
            if name in qemu.nodes
        ]
    steps += _objects_gone(qemu, [_topology.tls_credentials(role) for role in _topology.ROLES])
    if qemu.runstate == "postmigrate":
        steps.append(_qmp("cont"))
    return steps


def _leave(qemu: _states.Qemu) -> list[Step]:
    """End the migration, or the lock step that it led to. Never migrate_cancel in colo: that guest would stand still for good."""
    if qemu.colo_mode == "primary":
        return [_qmp("x-colo-lost-heartbeat")]
    if qemu.migration not in _states.MIGRATION_ACTIVE:
        return []
    if qemu.migration in SWITCHING:
        # it may be in colo by now
        return [Step("end_switchover", "end the switchover", {"goal": ["cancelled", "failed", "colo"]})]
    ended = {"goal": ["cancelled", "failed"], "transit": sorted(_states.MIGRATION_ACTIVE), "since": qemu.migration}
    cancel = [] if qemu.migration in ("cancelling", "failing") else [_qmp("migrate_cancel")]
    return [*cancel, Step("wait_migration", "the migration has ended", ended, changes=False)]


def _peer_waits(seen: Observation, fenced_by: str | None) -> list[Step]:
    """What has to be known before a guest goes on whose migration completed."""
    completed = seen.qemu is not None and seen.qemu.runstate == "postmigrate"
    # a record that says alone was written after this wait, by a run that was killed
    known = fenced_by or (seen.record is not None and seen.record.state == "alone")
    if not completed or known:
        return []
    return [Step("wait_peer_waits", "the standby waits and does not run the guest", changes=False)]


def _objects_gone(qemu: _states.Qemu, names: t.Sequence[str]) -> list[Step]:
    return [_qmp("object-del", {"id": name}) for name in names if name in qemu.objects]


def _chardevs_gone(qemu: _states.Qemu, names: t.Sequence[str]) -> list[Step]:
    return [_qmp("chardev-remove", {"id": name}) for name in names if name in qemu.chardevs]


def _runs(guest: Guest) -> list[Step]:
    """Proof that the guest serves: it runs, and packets reach its taps."""
    transit = ["colo", "inmigrate", "finish-migrate", "paused", "postmigrate"]
    return [
        Step("wait_runstate", "the guest runs", {"goal": ["running"], "transit": transit}, changes=False),
        Step("wait_packets", "its packets leave", {"taps": [nic.tap for nic in guest.nics]}, changes=False),
    ]


def protect(
    guest: Guest, seen: Observation, features: Features | None, timeout_s: float, patience_s: float = 0
) -> list[Step]:
    """Protect the guest that runs here (colo_migrate role=primary state=protected).

    Pauses the guest only for the switchover: mirror the disks and copy the RAM while it runs, stop at pre-switchover,
    swap mirror for replication, switch the filters in, go on. ``timeout_s`` bounds each of the two long waits. With
    ``patience_s``, a copy of the disks that takes longer is left to go on by itself; the next run goes on with it.
    """
    now = _states.standing(seen)
    if seen.record is not None and seen.record.clean:
        raise _is_off(guest)
    if now == "primary" and not _half_way(seen):
        return [*_retune(guest, seen), _proof(guest)]
    if now in ("alone", "primary", "syncing", "orphaned") and is_outgoing(seen):
        resumed = _resyncing(guest, seen)
        half_built = to_alone(guest, seen) if not resumed and (now != "alone" or _states.leftovers(seen)) else []
        return half_built + _protect_forward(guest, seen, features, timeout_s, patience_s, resumed)
    raise RefusedError(
        "not_serving",
        f"guest {guest.name} does not serve on {guest.host} (standing {now}): protect it on the host where it runs",
        standing=now,
    )


def _retune(guest: Guest, seen: Observation) -> list[Step]:
    """Give a primary in lock step the settings of its definition; it stays protected meanwhile."""
    has = {} if seen.qemu is None else seen.qemu.settings
    steps: list[Step] = []
    for setting, value in _topology.live_settings(guest).items():
        if has.get(setting) != value:
            command, arguments = _topology.set_command(setting, value)
            told = {"command": command, "arguments": arguments, "setting": setting, "value": value}
            steps.append(Step("qmp", f"{setting}: {has.get(setting)} -> {value}", told))
    return steps


def settled(guest: Guest, seen: Observation) -> bool:
    """Whether this side of a guest in lock step is in want of no step of :func:`serve`, :func:`protect` and :func:`standby`."""
    now = _states.standing(seen)
    if now not in _states.LOCK_STEP or seen.record is None or seen.record.clean or _half_way(seen):
        return False
    return now == "secondary" or not _retune(guest, seen)


def tuned(steps: t.Sequence[Step]) -> dict[str, int]:
    """The settings that these steps change, with their new values."""
    return {step.arguments["setting"]: step.arguments["value"] for step in steps if "setting" in step.arguments}


def tuning_titles(steps: t.Sequence[Step]) -> set[str]:
    """Those of these steps that change a setting."""
    return {step.title for step in steps if "setting" in step.arguments}


def waiting(guest: Guest, seen: Observation) -> list[str]:
    """What the definition wants that a guest in lock step gets only with its next protection, in words."""
    if seen.qemu is None or seen.qemu.colo_mode != "primary":
        return []
    has = seen.qemu.settings
    return [
        f"{setting}: {has.get(setting)} -> {value}"
        for setting, value in _topology.fixed_settings(guest).items()
        if has.get(setting) != value
    ]


def _resyncing(guest: Guest, seen: Observation) -> bool:
    """Whether a run has left nothing but a copy of every disk that goes on: the mirrors have not lost their standby."""
    qemu, disks = seen.qemu, range(len(guest.disks))
    if qemu is None or _states.standing(seen) != "syncing" or qemu.migration in _states.MIGRATION_ACTIVE:
        return False
    return (
        qemu.runstate == "running"
        and qemu.jobs.keys() == {_topology.resync_job(disk) for disk in disks}
        and not any(_topology.replication_node(disk) in qemu.nodes for disk in disks)
        and not any(name in qemu.chardevs for nic in range(len(guest.nics)) for name in _topology.primary_chardevs(nic))
        and not qemu.exports
        and _encrypted_as_wished(guest, qemu, "primary")
    )


def _encrypted_as_wished(guest: Guest, qemu: _states.Qemu, role: _topology.Role) -> bool:
    return (_topology.tls_credentials(role) in qemu.objects) == guest.tls


def _proof(guest: Guest) -> Step:
    """Two checkpoints, begun and ended: a broken combination dies in the first."""
    delay_s = guest.tuning.checkpoint_delay_ms / 1000
    return Step("wait_checkpoints", "checkpoints go on", {"count": 2}, timeout_s=10 + 4 * delay_s, changes=False)


def _forget_translations() -> Step:
    """Let TCG forget which pages it may write without saying so; for a guest that is paused at the switchover.

    QEMU's ``physical_memory_sync_dirty_bitmap`` (migration/ram.c of 11.1, cpu_physical_memory_sync_dirty_bitmap before) clears the
    marks of pages that are still to be sent, and tells TCG so only if it finds a page that was not. What an idle guest writes to such
    pages from the switchover to the first checkpoint is then not marked and never sent, and the standby may keep old timers or packet
    buffers. That is read from the source; how many of the standby's crashes it explains was not measured. With no translation of an address left,
    the first write to each page is marked again.
    """
    return Step("forget_translations", "TCG forgets which pages may be written unseen")


def _protect_forward(
    guest: Guest, seen: Observation, features: Features | None, timeout_s: float, patience_s: float, resumed: bool
) -> list[Step]:
    qemu = seen.qemu
    if qemu is None or features is None:
        raise RefusedError(
            "standing_failed", f"guest {guest.name}: QEMU on {guest.host} gives no answer ({trouble(seen)})"
        )
    disks = range(len(guest.disks))
    resyncs = [_topology.resync_job(disk) for disk in disks]
    link_chardevs = [name for nic in range(len(guest.nics)) for name in _topology.primary_link_chardevs(nic)]
    # what an earlier session came to may be told late
    before_switchover = ["none", "setup", "wait-unplug", "active", "cancelled", "failed", "colo", "completed"]
    return [
        Step("wait_heartbeat", "the standby's keeper answers and waits for this copy", timeout_s=15, changes=False),
        *_client_credentials(guest, qemu, resumed),
        *([] if resumed else [*_all(_topology.nbd_commands(guest)), *_all(_topology.resync_commands(guest))]),
        Step(
            "wait_jobs_ready",
            "the standby's disks are equal",
            {"jobs": resyncs, "patience_s": patience_s, "resumed": resumed},
            timeout_s=timeout_s,
            changes=False,
        ),
        *_all(_topology.primary_chardev_commands(guest, features.reconnect)),
        Step(
            "wait_links", "the packet channels are connected", {"chardevs": link_chardevs}, timeout_s=10, changes=False
        ),
        _capabilities("primary"),
        *_all([_topology.parameters(guest, "primary")]),
        _migrate(guest),
        Step(
            "wait_migration",
            "the standby has the RAM; the guest is paused",
            {"goal": ["pre-switchover"], "transit": before_switchover, "since": qemu.migration},
            timeout_s=timeout_s,
            changes=False,
        ),
        # --- the guest is paused from here ...
        *([_forget_translations()] if guest.accelerator == "tcg" else []),
        *[_qmp("block-job-cancel", {"device": job}) for job in resyncs],
        # a mirror that ends with an error has left the standby without the last writes
        Step("wait_jobs_gone", "the mirrors have ended", {"jobs": resyncs, "well": True}, changes=False),
        *_all(_topology.replication_commands(guest)),
        # QEMU 11.1 may crash when colo-compare is put on a channel whose other end has just died
        Step("wait_links", "the packet channels are still connected", {"chardevs": link_chardevs}, 0.1, changes=False),
        *_all(_topology.primary_filter_commands(guest, qemu.objects)),
        _record("enter_protection", "protected from here on"),
        _qmp("migrate-continue", {"state": "pre-switchover"}),
        Step(
            "wait_migration",
            "both sides are in COLO",
            {"goal": ["colo"], "transit": ["pre-switchover", "device"], "since": "pre-switchover"},
            # the guest stands still meanwhile
            timeout_s=guest.tuning.switchover_limit_ms / 1000,
            changes=False,
        ),
        # --- ... to here
        _proof(guest),
    ]


def _migrate(guest: Guest) -> Step:
    if guest.tuning.multifd_channels:
        # QEMU makes the further connections, and wants to make the first one, too
        return _qmp("migrate", {"uri": _topology.migration_uri(guest.peer_address, guest.port_migration)})
    return Step("migrate", "migrate", {"address": guest.peer_address, "port": guest.port_migration})


def _client_credentials(guest: Guest, qemu: _states.Qemu, resumed: bool) -> list[Step]:
    """From the present key; a copy that goes on (``resumed``) keeps the connection that was made with an earlier one."""
    if not guest.tls:
        return []
    old = _objects_gone(qemu, [_topology.tls_credentials("primary")]) if resumed else []
    return [_link_key(), *old, *_all(_topology.tls_commands(guest, "primary"))]


# --- the standby ------------------------------------------------------------------------------------------------


def standby(guest: Guest, seen: Observation, generation: int | None) -> list[Step]:
    """A QEMU waits here for the guest (colo_migrate role=secondary state=ready).

    ``generation`` is the serving copy's: the standby joins as the next one. Refuses where this host serves
    (``is_serving``), where the copy here may be newer (``newer_copy_here``) or where this copy awaits a failover
    (``awaits_failover``): an older copy never replaces a newer one.
    """
    now = _states.standing(seen)
    if now == "secondary" and not _outdated(seen, generation):
        return []
    if generation is None:
        raise RefusedError(
            "generation_missing",
            f"guest {guest.name}: a standby needs the generation of the copy that serves on {guest.peer} (colo_info returns it)",
        )
    if now in _states.SERVING or (now in ("syncing", "orphaned") and is_outgoing(seen)):
        raise RefusedError(
            "is_serving",
            f"guest {guest.name}: {guest.host} serves it (standing {now}) and cannot become the standby while it does",
            standing=now,
        )
    record = seen.record
    if record is None:
        raise no_record(guest)
    if record.state != "syncing":
        if record.generation > generation or (
            record.generation == generation and record.state == "alone" and generation > 0
        ):
            raise RefusedError(
                "newer_copy_here",
                f"guest {guest.name}: the copy on {guest.host} is of generation {record.generation}, the one that serves on "
                f"{guest.peer} of {generation}: the newer copy is not overwritten. Look at status.yml",
                generation_here=record.generation,
                generation_serving=generation,
            )
        if now in ("orphaned", "secondary") and record.generation >= generation:
            raise RefusedError(
                "awaits_failover",
                f"guest {guest.name}: {guest.host} holds the guest and lost its primary: run failover.yml",
            )
    # what the record's step would refuse is refused before anything is stopped
    _generation.begin_sync(record, generation)
    if now == "standby" and record.joins == generation + 1 and _standby_complete(guest, seen):
        # QEMU reads the key at each handshake: one that waits takes a new one without a restart
        return [] if seen.key_current else [_link_key()]
    stop = [_stop(guest)] if seen.process else []
    return stop + [
        _record("begin_sync", f"this copy is being overwritten by generation {generation}", generation=generation),
        Step("overlays", "fresh active and hidden images", timeout_s=30),
        Step("permit", "permit one start as standby", {"role": "standby"}),
        Step("start_unit", f"start {guest.unit}", {"unit": guest.unit}, timeout_s=30),
        Step("wait_keeper", "the keeper holds its monitor", timeout_s=10, changes=False),
        _capabilities("standby"),
        *([_link_key()] if guest.tls else []),
        *_all(_topology.standby_commands(guest)),
        *_all([_topology.parameters(guest, "standby")]),
        _qmp("migrate-incoming", {"uri": _topology.migration_uri(guest.link_address, guest.port_migration)}),
        Step(
            "wait_runstate",
            "the standby waits for the guest",
            {"goal": ["inmigrate"], "transit": []},
            changes=False,
        ),
    ]


def _outdated(seen: Observation, generation: int | None) -> bool:
    """Whether the copy of ``generation`` that serves has left the session of this secondary behind."""
    return generation is not None and seen.record is not None and seen.record.generation < generation


def _standby_complete(guest: Guest, seen: Observation) -> bool:
    """Whether everything a standby needs is there; ``migrate-incoming`` is the last command and leaves setup behind.

    A packet channel that is connected, or just being so, while nobody protects the guest has not noticed that its peer is
    gone, and takes no other.
    """
    qemu = seen.qemu
    if qemu is None or seen.channels_held:
        return False
    nics = range(len(guest.nics))
    return (
        qemu.migration == "setup"
        # the other ports go with this one
        and qemu.incoming == _topology.socket_address(guest.link_address, guest.port_migration)
        and _encrypted_as_wished(guest, qemu, "standby")
        # both sides need the same of these: one that was made for an earlier definition is made anew
        and all(qemu.settings.get(setting) == value for setting, value in _topology.fixed_settings(guest).items())
        and len(qemu.exports) == len(guest.disks)
        and all(_topology.rewriter(nic) in qemu.objects for nic in nics)
        and all(qemu.chardevs.get(name) is False for nic in nics for name in _topology.standby_chardevs(nic))
    )


def follow(guest: Guest, seen: Observation) -> list[Step]:
    """Prove that this side is a good secondary (colo_migrate role=secondary state=protected); changes nothing."""
    now = _states.standing(seen)
    if now not in ("standby", "syncing", "secondary"):
        raise RefusedError(
            "not_standby",
            f"guest {guest.name}: {guest.host} is {now}, not a standby: ask for role=secondary state=ready first",
            standing=now,
        )
    delay_s = guest.tuning.checkpoint_delay_ms / 1000
    return [
        Step(
            "wait_secondary", "the standby has joined and checkpoints arrive", timeout_s=15 + 4 * delay_s, changes=False
        )
    ]


def stop_standby(guest: Guest, seen: Observation, left_behind: str | None) -> list[Step]:
    """No QEMU waits here (colo_migrate role=secondary state=absent).

    Refuses where this host serves (``is_serving``), and where its copy may be the only running one
    (``awaits_failover``) unless ``left_behind`` says why it is not.
    """
    now = _states.standing(seen)
    if not seen.process:
        return []
    # a QEMU that gives no answer is what its record says
    silent = now == "failed" and (seen.record is None or seen.record.role == "serving")
    if now in _states.SERVING or is_outgoing(seen) or silent:
        raise RefusedError(
            "is_serving",
            f"guest {guest.name}: {guest.host} serves it; a standby can be removed, a server not",
            standing=now,
        )
    if now in ("orphaned", "secondary") and not left_behind:
        raise RefusedError(
            "awaits_failover",
            f"guest {guest.name}: {guest.host} is {now} and may hold the only running copy. If {guest.peer} serves and goes on "
            "without it, say so in fenced_by",
            standing=now,
        )
    return [_stop(guest)]


def unprotect(guest: Guest, seen: Observation) -> list[Step]:
    """The guest serves alone here (colo_migrate role=primary state=absent)."""
    now = _states.standing(seen)
    if now == "alone" and not _states.leftovers(seen):
        return []
    if now in ("alone", "primary", "syncing", "orphaned") and is_outgoing(seen):
        return to_alone(guest, seen)
    raise RefusedError(
        "not_serving", f"guest {guest.name} does not serve on {guest.host} (standing {now})", standing=now
    )


def power_off(guest: Guest, seen: Observation, timeout_s: float) -> list[Step]:
    """The guest is powered off in an orderly way and no QEMU of it runs here (colo_power state=stopped).

    Its power button is pressed while it is as protected as it was: a guest that ignores the button stays so. Refuses
    on a standby (``is_standby``) and where QEMU cannot be judged (``standing_failed``).
    """
    now = _states.standing(seen)
    if not seen.process:
        return []
    if seen.record is None:
        raise no_record(guest)
    off = _record("mark_clean", "the guest is powered off")
    if now == "stopped":
        # switched off by itself while it served alone, or never begun
        return [*([off] if seen.qemu is not None and seen.qemu.runstate == "shutdown" else []), _stop(guest)]
    if now == "failed":
        raise RefusedError(
            "standing_failed",
            f"guest {guest.name}: QEMU runs on {guest.host} and cannot be asked to power the guest off ({trouble(seen)}): look at "
            f"'journalctl -u {guest.unit}'",
        )
    if now not in ("alone", "primary") and not (now in ("syncing", "orphaned") and is_outgoing(seen)):
        raise RefusedError(
            "is_standby", f"guest {guest.name}: {guest.host} is {now}; power it off on {guest.peer}, where it runs"
        )
    button: list[Step] = []
    if not (seen.record.clean or _states.powered_off(seen.keeper)):
        button = [
            _qmp("system_powerdown"),
            Step("wait_powered_off", "the guest powers itself off", timeout_s=timeout_s, changes=False),
        ]
    protected = now != "alone" or _states.leftovers(seen)
    return [*button, *(_let_go(guest, seen) if protected else []), off, _stop(guest)]


def _is_off(guest: Guest) -> RefusedError:
    return RefusedError(
        "guest_powered_off",
        f"guest {guest.name} has powered itself off and is not brought back by this: power.yml -e colo_guest={guest.name} "
        "-e colo_state=started starts it",
    )


def set_aside(guest: Guest, seen: Observation, kept_on: t.Any) -> list[Step]:
    """This host's copy is a backup, and no QEMU of it runs (colo_backup). ``kept_on`` names the host whose copy goes on.

    Whatever runs here is ended: that is what was asked for, by name (``keep_missing``).
    """
    if kept_on != guest.peer:
        raise RefusedError(
            "keep_missing",
            f"guest {guest.name}: the copy on {guest.host} is given up only for the one on {guest.peer}, by its exact name; kept_on is "
            f"{kept_on!r}",
        )
    stop = [_stop(guest)] if seen.process else []
    if seen.record is None or seen.record.state == "new":
        # set aside by a run that was killed; a copy that never ran holds nothing
        return stop
    return [*stop, Step("set_aside", f"keep the copy as a backup, {guest.paths.state} under another name")]


# --- failover and switchover ---------------------------------------------------------------------------------------------------


def release(guest: Guest, seen: Observation) -> list[Step]:
    """This host lets go of a protected guest so that its peer takes over (colo_failover state=released).

    QEMU is killed, not asked: whatever its clients have seen, the peer has seen too. Refused unless the peer is heard,
    lives and follows (``peer_not_ready``): a guest with nobody to take over would only be stopped.
    """
    now = _states.standing(seen)
    if now in ("absent", "stopped"):
        return []
    if now != "primary" or seen.record is None or seen.record.state != "protected":
        raise RefusedError(
            "not_protected",
            f"guest {guest.name}: {guest.host} is {now}; only a protected guest can be switched over: run site.yml first",
            standing=now,
        )
    payload = (seen.keeper or {}).get("heartbeat", {}).get("peer") or {}
    if not _rules.follows(payload, seen.record) or not _states.peer_alive(
        seen.keeper, guest.tuning.heartbeat_interval_ms
    ):
        raise RefusedError(
            "peer_not_ready",
            f"guest {guest.name}: {guest.peer} is not heard as a good standby, so it could not take over: run site.yml first",
            peer=payload,
        )
    return [Step("stop_unit", f"kill {guest.unit}", {"unit": guest.unit, "kill": True}, timeout_s=15)]


def failover(guest: Guest, seen: Observation, fenced_by: str | None, accept_void: bool) -> list[Step]:
    """The guest serves alone here, its peer is gone (colo_failover state=alone).

    A primary may always let go of its standby. A secondary takes over only with evidence that the primary is fenced
    (``fence_missing``), that is not contradicted by a living peer (``peer_alive``), and only if its copy is good
    (refused by the record: ``copy_stale``, ``protection_void``, ``copy_unprotected``).
    """
    now = _states.standing(seen)
    by_hand = now == "alone" and seen.record is not None and seen.record.role == "standby"
    if now == "alone" and not by_hand:
        return (to_alone(guest, seen) if _states.leftovers(seen) else []) + _whole(guest, seen)
    if now in ("primary", "orphaned", "syncing") and is_outgoing(seen):
        if (
            now == "primary"
            and not fenced_by
            and not _half_way(seen)
            and _states.peer_alive(seen.keeper, guest.tuning.heartbeat_interval_ms)
        ):
            raise RefusedError(
                "peer_alive",
                f"guest {guest.name}: the pair is healthy and {guest.host} serves already: nothing to fail over",
                standing=now,
            )
        return to_alone(guest, seen, fenced_by)
    # one that was promoted behind the collection's back has yet to take over: by its record, and by what is left in QEMU
    if (now not in ("secondary", "orphaned") and not by_hand) or seen.qemu is None:
        raise RefusedError(
            "not_protected",
            f"guest {guest.name}: {guest.host} is {now} and holds no running copy to fail over to",
            standing=now,
        )
    if seen.record is not None and seen.record.clean:
        raise _is_off(guest)
    if _half_way(seen) and seen.record is not None:
        # the takeover that is finished here was begun with evidence
        fenced_by = fenced_by or seen.record.fenced_by
    if not fenced_by:
        raise RefusedError(
            "fence_missing",
            f"guest {guest.name}: {guest.host} takes over only with fenced_by, the evidence that {guest.peer} no longer runs the "
            "guest: an unreachable peer is not a dead peer",
        )
    if _states.peer_alive(seen.keeper, guest.tuning.heartbeat_interval_ms):
        raise RefusedError(
            "peer_alive",
            f"guest {guest.name}: the keeper on {guest.peer} is heard on the link and its QEMU lives, so {guest.peer} is not fenced "
            f"(evidence given: {fenced_by}). Fence it, or use switchover.yml for a planned move",
        )
    return _take_over(guest, seen.qemu, fenced_by, accept_void)


def _take_over(guest: Guest, qemu: _states.Qemu, fenced_by: str, accept_void: bool) -> list[Step]:
    nics = range(len(guest.nics))
    steps = [
        _record("take_over", f"this copy serves; {guest.peer} is fenced", fenced_by=fenced_by, accept_void=accept_void),
        Step("yank", "yank the peer out of band", {"instances": _topology.yank_instances(guest)}),
    ]
    if qemu.exports:
        steps.append(_qmp("nbd-server-stop"))
    if qemu.colo_mode == "secondary":
        steps.append(_qmp("x-colo-lost-heartbeat"))
    steps += _objects_gone(qemu, [name for nic in nics for name in _topology.standby_filters(nic)])
    steps += _chardevs_gone(qemu, [name for nic in nics for name in _topology.standby_chardevs(nic)])
    steps += _objects_gone(qemu, [_topology.tls_credentials("standby")])
    return [*steps, *_runs(guest), *_committed(guest)]
