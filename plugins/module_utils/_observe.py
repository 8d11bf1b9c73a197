# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look: what systemd, QEMU, the keeper and the record say about one guest on this host. Changes nothing.

The keeper is asked first. It answers without QEMU, and when it says that QEMU's main loop is blocked, nothing may be
asked in band before the peer has been yanked.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _features,
    _link_key,
    _pair,
    _states,
    _store,
    _topology,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, DeadlineError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_client import KeeperClient
from ansible_collections.lockstep.colo.plugins.module_utils._qmp import Monitor
from ansible_collections.lockstep.colo.plugins.module_utils._states import Job, Observation, Qemu

# AnsibleModule.run_command, as far as it is used here
RunCommand = t.Callable[..., "tuple[int, str, str]"]

KEEPER_TIMEOUT_S = 2.0
# How long a process without a monitor may be one that has just begun or is just ending.
PASSING_S = 1.0
_ESTABLISHED = "01"  # TCP_ESTABLISHED of the kernel's include/net/tcp_states.h


def unit_state(run_command: RunCommand, unit: str) -> str:
    """systemd's ActiveState. Error: ``systemd_unreachable``."""
    code, out, err = run_command(["systemctl", "show", "--property=ActiveState", "--value", unit])
    if code != 0 or not out.strip():
        raise ColoError(
            "systemd_unreachable", f"systemctl show {unit} failed ({err.strip()}): is systemd running on this host?"
        )
    return out.strip()


def unit_details(run_command: RunCommand, unit: str) -> dict[str, str]:
    """State, main process and start time of a unit, as systemd words them."""
    code, out, err = run_command(
        ["systemctl", "show", "--property=ActiveState,MainPID,ActiveEnterTimestamp,Result", unit]
    )
    if code != 0:
        raise ColoError(
            "systemd_unreachable", f"systemctl show {unit} failed ({err.strip()}): is systemd running on this host?"
        )
    words = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return {
        "state": words["ActiveState"],
        "pid": words["MainPID"],
        "since": words["ActiveEnterTimestamp"],
        "result": words["Result"],
    }


def connect(guest: Guest) -> Monitor:
    """The modules' monitor of this guest's QEMU, and of no other process."""
    return Monitor(guest.qmp_socket, unit=guest.unit)


def keeper(guest: Guest) -> KeeperClient:
    """The client of this guest's keeper, and of no other process."""
    return KeeperClient(guest.keeper_socket, KEEPER_TIMEOUT_S, guest.keeper_unit)


def keeper_state(guest: Guest) -> dict[str, t.Any] | None:
    """The keeper's state, or None when it does not answer (the caller decides what that means)."""
    try:
        return keeper(guest).state()
    except ColoError:
        return None


def await_silence(guest: Guest) -> None:
    """Return when the peer's keeper has been silent for long enough to be called silent, or goes on beating.

    A failover that begins a moment after the peer's death would take the last heartbeat for a sign of life.
    """
    interval_ms = guest.tuning.heartbeat_interval_ms
    end = time.monotonic() + (_states.silence_limit_ms(interval_ms) + interval_ms) / 1000
    while time.monotonic() < end and _states.peer_alive(keeper_state(guest), interval_ms):
        # that nothing comes is no event that could be awaited; ends with the loop's own deadline
        time.sleep(0.02)


def await_release(guest: Guest, timeout_s: float) -> str:
    """Wait until the peer's keeper says that its QEMU has ended; return that as evidence (``deadline_passed``)."""
    known = _store.read(guest)
    end = time.monotonic() + timeout_s
    while known is None or not _states.peer_released(keeper_state(guest), known.generation):
        if time.monotonic() >= end:
            raise DeadlineError(f"the keeper on {guest.peer} saying that its QEMU has ended", timeout_s)
        # the keeper answers questions and announces nothing; ends with timeout_s
        time.sleep(0.01)
    return f"the keeper on {guest.peer} said that its QEMU has ended (switchover)"


def observe(guest: Guest, run_command: RunCommand, monitor: Monitor | None = None) -> Observation:
    """Everything about ``guest`` on this host; uses ``monitor`` if given, else one of its own."""
    end = time.monotonic() + PASSING_S
    while True:
        unit = unit_state(run_command, guest.unit)
        seen = Observation(
            deployed=True,
            unit=unit,
            trouble=None,
            qemu=None,
            keeper=keeper_state(guest),
            record=_store.read(guest),
            key_current=_link_key.is_current(guest),
        )
        if not seen.process:
            return seen
        asked = time.monotonic()
        try:
            if monitor is not None:
                return _with(guest, seen, ask(monitor))
            with connect(guest) as own:
                return _with(guest, seen, ask(own))
        except ColoError as exc:
            if exc.error_code not in ("qmp_lost", "qmp_unreachable") or time.monotonic() >= end:
                taken = exc.error_code == "qmp_busy" and _answers_keeper(guest, asked)
                return dataclasses.replace(seen, trouble=f"{exc.error_code}: {exc.message}", busy=taken)
        monitor = None
        # It is leaving, or does not listen yet: systemd tells which, a moment later and to nobody who waits. PASSING_S ends it.
        time.sleep(0.02)


def _with(guest: Guest, seen: Observation, qemu: Qemu) -> Observation:
    held = qemu.runstate == "inmigrate" and channels_held(guest)
    return dataclasses.replace(seen, qemu=qemu, channels_held=held)


def channels_held(guest: Guest) -> bool:
    """Whether the kernel has a connection to a packet channel of a standby.

    QEMU tells of one from the end of its TLS handshake on, and takes no other from its begin on. One that began when the
    link was lost never ends: nobody retransmits anything.
    """
    ports = {port for nic in range(len(guest.nics)) for port in (guest.port_mirror(nic), guest.port_compare(nic))}
    for name in ("tcp", "tcp6"):
        try:
            table = pathlib.Path("/proc/self/net", name).read_text(encoding="ascii")
        except FileNotFoundError:
            continue  # a kernel without IPv6
        if established(table) & ports:
            return True
    return False


def established(table: str) -> set[int]:
    """Local ports of the established connections in a ``/proc/net/tcp`` (``Documentation/networking/proc_net_tcp.rst``)."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _ESTABLISHED}


def _answers_keeper(guest: Guest, since: float) -> bool:
    """Whether QEMU has answered its keeper *since* (monotonic); asks for as long as a keeper may be without an answer."""
    end = since + guest.tuning.heartbeat_timeout_ms / 1000
    while True:
        waited_ms = (time.monotonic() - since) * 1000
        if _states.answered_within(keeper_state(guest), waited_ms):
            return True
        if time.monotonic() >= end:
            return False
        # the keeper answers questions and announces nothing; ends with heartbeat_timeout_ms
        time.sleep(0.05)


def ask(monitor: Monitor) -> Qemu:
    """One look at a QEMU; about ten short queries."""
    version = monitor.execute("query-version")["qemu"]
    migration = monitor.execute("query-migrate")
    here = objects(monitor)
    return Qemu(
        version=(version["major"], version["minor"], version["micro"]),
        runstate=monitor.execute("query-status")["status"],
        migration=migration.get("status", "none"),
        migration_error=migration.get("error-desc"),
        colo_mode=monitor.execute("query-colo-status")["mode"],
        nodes=frozenset(
            node["node-name"]
            for node in monitor.execute("query-named-block-nodes", {"flat": True})
            if not node["node-name"].startswith("#")
        ),
        attached=attached(monitor),
        jobs={
            job["device"]: Job(
                ready=bool(job.get("ready")), status=job["status"], offset=job["offset"], length=job["len"]
            )
            for job in monitor.execute("query-block-jobs")
        },
        objects=here,
        chardevs=chardevs(monitor),
        exports=frozenset(export["id"] for export in monitor.execute("query-block-exports")),
        settings=settings(monitor, here),
        incoming=incoming(migration),
    )


def incoming(migration: t.Mapping[str, t.Any]) -> str | None:
    """Where QEMU takes a migration, by its answer to ``query-migrate``."""
    inet = [row for row in migration.get("socket-address") or [] if row["type"] == "inet"]
    return _topology.socket_address(inet[0]["host"], int(inet[0]["port"])) if inet else None


def settings(monitor: Monitor, here: t.Mapping[str, str]) -> dict[str, int]:
    """What can be tuned, as QEMU has it; ``here`` are its objects."""
    parameters = monitor.execute("query-migrate-parameters")
    switched_on = {row["capability"] for row in monitor.execute("query-migrate-capabilities") if row["state"]}
    compare = {
        f"{name}.{key}": int(monitor.execute("qom-get", {"path": f"/objects/{name}", "property": key}))
        for name, kind in sorted(here.items())
        if kind == "colo-compare"
        for key in _topology.COMPARE_PROPERTIES
    }
    return {
        _topology.CHECKPOINT_DELAY: parameters[_topology.CHECKPOINT_DELAY],
        _topology.MULTIFD_CHANNELS: parameters[_topology.MULTIFD_CHANNELS] if "multifd" in switched_on else 0,
        **compare,
    }


def attached(monitor: Monitor) -> frozenset[str]:
    """Nodes that are children of a guest device's quorum: taking out one that is not there is an error."""
    graph = monitor.execute("x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    quorums = {number for number, name in names.items() if name.startswith(_topology.QUORUM_PREFIX)}
    return frozenset(names[edge["child"]] for edge in graph["edges"] if edge["parent"] in quorums)


def objects(monitor: Monitor) -> dict[str, str]:
    """User-created objects: id to QOM type."""
    rows = monitor.execute("qom-list", {"path": "/objects"})
    return {
        row["name"]: row["type"].removeprefix("child<").removesuffix(">")
        for row in rows
        if row["type"].startswith("child<")
    }


def chardevs(monitor: Monitor) -> dict[str, bool]:
    """Character devices: label to whether the other end is connected."""
    return {row["label"]: not row["filename"].startswith("disconnected:") for row in monitor.execute("query-chardev")}


def live_features(monitor: Monitor) -> _features.Features:
    """Features of a QEMU that has a guest (it is not asked anything that would change it)."""
    return _features.features(
        {"version": monitor.execute("query-version"), "schema": monitor.execute("query-qmp-schema")}
    )


def tap_packets(tap: str) -> int:
    """Packets the guest has sent through its tap so far (what leaves the guest is received by the tap)."""
    with open(f"/sys/class/net/{tap}/statistics/rx_packets", encoding="ascii") as file:
        return int(file.read())


def side(guest: Guest, seen: Observation) -> _pair.Side:
    """This host's answer for the pair's verdict."""
    void = None
    if seen.record is not None and seen.record.stale:
        void = f"the copy on {guest.host} is stale ({seen.record.stale_reason})"
    elif seen.record is not None and seen.record.void:
        void = seen.record.void_reason
    return _pair.Side(
        guest.host, _states.standing(seen), seen.record, proven(guest, seen), void, _states.disk_error(seen)
    )


def proven(guest: Guest, seen: Observation) -> bool:
    """Whether this side's keeper saw a checkpoint within the last three delays and hears the peer."""
    if seen.keeper is None:
        return False
    checkpoints, heartbeat = seen.keeper["checkpoints"], seen.keeper["heartbeat"]
    age = checkpoints.get("last_age_ms")
    limit = 3 * guest.tuning.checkpoint_delay_ms + 1000
    return age is not None and age <= limit and bool(heartbeat.get("authenticated"))
