# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two hosts that exist only in memory: what a plan's steps do to QEMU's objects, to the records and to the data.

Pure, and strict: a command that QEMU would refuse, or that is known to do harm, is an :class:`AssertionError`; a wait
that would not end is :class:`Failed`. After every step the promises are checked: never two hosts run the guest, and
nobody serves a copy that lacks what a client has seen.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _apply,
    _generation,
    _guest,
    _observe,
    _pair,
    _plan,
    _rules,
    _states,
    _topology,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.tests.unit import _make


class KilledError(Exception):
    """The program that carries out the plan was killed at this boundary."""


class FailedError(Exception):
    """A step ended in an error, or in its deadline."""


Json = dict[str, t.Any]


@dataclasses.dataclass
class Machine:
    """One QEMU process."""

    runstate: str
    nodes: set[str]
    migration: str = "none"
    incoming: str | None = None  # where it takes one
    colo_mode: str = "none"
    role: str = ""  # of the migration capabilities
    tls_creds: str = ""  # of the migration
    met: set[str] = dataclasses.field(default_factory=set)  # ports to which somebody was connected: they take no other
    unmet: set[str] = dataclasses.field(default_factory=set)  # character devices that got no connection
    nbd_server: bool = False
    jobs: dict[str, bool] = dataclasses.field(default_factory=dict)  # to: whether it was cancelled
    ready: bool = False
    objects: dict[str, Json] = dataclasses.field(default_factory=dict)
    chardevs: dict[str, Json] = dataclasses.field(default_factory=dict)
    exports: set[str] = dataclasses.field(default_factory=set)
    replicated: set[str] = dataclasses.field(default_factory=set)  # quorum nodes that have a second child
    committing: bool = False  # the overlays into the parent images, after a takeover
    connected: bool = False  # to the other QEMU: migration stream, disk and packets as one
    colo_exit: bool = False
    heard: bool = False  # the peer's keeper, in this QEMU's life

    @property
    def serves(self) -> bool:
        """Whether it runs the guest for its clients (a secondary's output goes to the primary only)."""
        return self.runstate == "running" and self.colo_mode != "secondary"


@dataclasses.dataclass
class Host:
    """One host of the pair."""

    guest: _guest.Guest
    record: _generation.Record
    powered: bool = True
    data: int = 0  # the version of the guest's data on its disks
    torn: bool = False
    overlays: bool = False
    psk: bool = False  # QEMU may read the key
    permit: tuple[str, int] | None = None
    qemu: Machine | None = None
    crashed: bool = False

    @property
    def name(self) -> str:
        return self.guest.host


def _never(*_arguments: t.Any, **_keywords: t.Any) -> tuple[int, str, str]:
    raise AssertionError("the world runs no programs")


class World:
    """Both hosts, the link between them, and what a client has seen."""

    def __init__(self, disks: int = 1, nics: int = 1, kill_after: int | None = None) -> None:
        self.hosts: dict[str, Host] = {}
        for name in ("alpha", "beta"):
            guest = _make.guest(name, disks=disks, nics=nics)
            self.hosts[name] = Host(guest, _generation.new_record(guest.name, name, guest.peer))
        self.link = True
        self.shown = 0
        self.kill_after = kill_after
        self.done: list[str] = []

    def other(self, host: Host) -> Host:
        return self.hosts[host.guest.peer]

    # --- carrying out

    def run(self, name: str, steps: t.Sequence[_plan.Step]) -> None:
        """Carry out a plan on one host; killed after ``kill_after`` steps from the beginning of the world."""
        for step in steps:
            if self.kill_after is not None and len(self.done) >= self.kill_after:
                raise KilledError(f"before {name}: {step.title}")
            self.step(self.hosts[name], step)
            self.done.append(f"{name}: {step.title}")
            self.check()

    def step(self, host: Host, step: _plan.Step) -> None:
        """One step; what happens by itself happens while a step waits."""
        if not step.changes:
            self.settle()
        kind = f"_{step.operation}"
        arguments = step.arguments
        if step.operation == "qmp":
            kind = "qmp_" + arguments["command"].replace("-", "_")
            arguments = arguments["arguments"]
        try:
            getattr(self, kind)(host, dict(arguments))
        except ColoError as exc:
            raise FailedError(f"{step.title}: {exc.error_code}: {exc.message}") from exc

    def check(self) -> None:
        """The promises that hold at every moment."""
        serving = [host for host in self.hosts.values() if host.qemu is not None and host.qemu.serves]
        assert len(serving) < 2, f"both hosts run the guest after {self.done[-1]}"
        for host in serving:
            assert not host.torn, f"{host.name} serves a torn copy after {self.done[-1]}"
            assert host.data >= self.shown, f"{host.name} lost what a client saw, after {self.done[-1]}"
            assert host.record.serving == host.name, f"{host.name} serves, and its record says {host.record}"

    def _reach(self, host: Host) -> Machine:
        """The other host's QEMU, over the link."""
        peer = self.other(host)
        if not (self.link and peer.powered and peer.qemu is not None):
            raise FailedError(f"{peer.name} is not reached")
        return peer.qemu

    def _freed(self, host: Host, machine: Machine) -> None:
        """A command that waits for the peer must not be sent while the peer is silent and its connections stand."""
        silent = machine.connected and not (self.link and self.other(host).powered)
        assert not silent, f"{host.name}: this command blocks the main loop, nothing was yanked"

    # --- what happens by itself

    def settle(self) -> None:
        """Time passes: whatever QEMU, the keepers and the guest do without being told."""
        for _rest in range(4):
            for host in self.hosts.values():
                if host.qemu is not None:
                    self._settle(host, host.qemu)
        for host in self.hosts.values():
            if host.qemu is not None and host.qemu.serves:
                self._write(host, host.qemu)

    def _settle(self, host: Host, machine: Machine) -> None:
        peer = self.other(host)
        alive = bool(self.link and peer.powered and peer.qemu and peer.qemu.connected)
        # a QEMU that is gone on a living host closes its connections; a host that is off does not
        closed = machine.connected and self.link and peer.powered and not alive
        self._beat(host)
        for job in [job for job, cancelled in machine.jobs.items() if cancelled or closed or not machine.connected]:
            del machine.jobs[job]
        if machine.runstate == "inmigrate":
            self._settle_incoming(host, machine, peer)
        else:
            self._settle_outgoing(host, machine, peer, alive, closed)
        if machine.colo_mode != "none" and (closed or not machine.connected):
            machine.colo_exit, machine.connected = True, False
        if closed:
            machine.connected = False
        if machine.committing:
            machine.committing = False
            machine.nodes -= {node for disk in range(len(host.guest.disks)) for node in _topology.overlay_nodes(disk)}

    def _settle_incoming(self, host: Host, machine: Machine, peer: Host) -> None:
        """A standby ends with rc 1 when the migration into it breaks, if it is told."""
        broken = peer.qemu is None or peer.qemu.migration not in ON_THE_WAY
        if machine.migration == "active" and broken and self.link and peer.powered:
            host.qemu, host.crashed = None, True

    def _settle_outgoing(self, host: Host, machine: Machine, peer: Host, alive: bool, closed: bool) -> None:
        if machine.migration == "cancelling":
            machine.migration, machine.runstate = "cancelled", "running"
        elif (machine.migration == "active" and closed) or (machine.migration == "device" and not machine.connected):
            machine.migration, machine.runstate = "failed", "running"
        elif machine.migration == "device" and alive and peer.qemu is not None:
            self._enter_colo(host, machine, peer, peer.qemu)

    def _beat(self, host: Host) -> None:
        """What the keeper hears from its peer's."""
        peer = self.other(host)
        if not (self.link and peer.powered and peer.qemu and host.qemu):
            return
        host.qemu.heard = True
        payload = {**peer.record.to_dict(), "role": peer.record.role, "flags": {}}
        action, reason = _rules.interpret_peer(payload, host.record)
        if action is _rules.Action.MARK_STALE:
            host.record = _generation.mark_stale(host.record, reason)
        elif action is _rules.Action.MARK_VOID:
            host.record = _generation.mark_void(host.record, reason)
        else:
            assert action is None, action

    def _enter_colo(self, host: Host, machine: Machine, peer: Host, standby: Machine) -> None:
        machine.migration, machine.runstate, machine.colo_mode = "colo", "running", "primary"
        standby.migration, standby.runstate, standby.colo_mode = "colo", "running", "secondary"
        machine.colo_exit = standby.colo_exit = False
        peer.torn, peer.data = False, host.data
        peer.record = _generation.enter_protection(peer.record, host.name)  # by its keeper

    def _write(self, host: Host, machine: Machine) -> None:
        """The guest writes; a client sees the answer unless it is held back for a standby that does not answer."""
        host.data += 1
        if machine.colo_mode == "none":
            self.shown = max(self.shown, host.data)
        elif self._healthy(host):
            self.other(host).data = host.data
            self.shown = max(self.shown, host.data)

    def _healthy(self, host: Host) -> bool:
        peer = self.other(host)
        return bool(
            host.qemu
            and peer.qemu
            and self.link
            and peer.powered
            and host.qemu.connected
            and peer.qemu.connected
            and "none" not in (host.qemu.colo_mode, peer.qemu.colo_mode)
            and host.qemu.colo_mode != peer.qemu.colo_mode
        )

    # --- faults

    def power_off(self, name: str) -> None:
        """The host is gone from one moment to the next."""
        self.kill_qemu(name)
        self.hosts[name].powered = False
        self.settle()

    def power_on(self, name: str) -> None:
        """It comes back: /run is empty, nothing is started."""
        self.hosts[name].powered = True
        self.hosts[name].permit = None
        self.hosts[name].psk = False
        self.hosts[name].crashed = False
        self.settle()

    def kill_qemu(self, name: str) -> None:
        host = self.hosts[name]
        if host.qemu is not None:
            host.torn = host.torn or host.qemu.committing
            host.qemu, host.crashed = None, True

    def reset_guest(self, seen_by: str) -> None:
        """The guest reboots in lock step, and the keeper of one host sees it; it tells the other one."""
        host = self.hosts[seen_by]
        if self._healthy(host):
            host.record = _generation.mark_void(host.record, "guest reset in COLO")
            self.settle()

    def watchdog(self) -> None:
        """The keeper's: a switchover that waits too long is ended."""
        for host in self.hosts.values():
            if host.qemu is not None and host.qemu.migration == "pre-switchover":
                host.qemu.migration = "cancelling"
        self.settle()

    # --- looking

    def observe(self, name: str) -> _states.Observation:
        """What the host would say; only to be asked of one that is on."""
        host = self.hosts[name]
        assert host.powered
        machine = host.qemu
        unit = "active" if machine else "failed" if host.crashed else "inactive"
        seen = _states.Observation(True, unit, None, None, None, host.record)
        if machine is None:
            return seen
        peer = self.other(host)
        near = self.link and peer.powered and peer.qemu is not None
        payload = {**peer.record.to_dict(), "qemu_status": peer.qemu.runstate} if peer.qemu is not None else None
        checkpoints = {"count": 5, "last_age_ms": 100.0 if self._healthy(host) else 90000.0}
        keeper = _make.keeper(
            colo_exit=machine.colo_exit,
            lost=machine.heard and not near,
            heard=near,
            peer=payload,
            checkpoints=checkpoints,
        )
        keeper["heartbeat"]["last_rx_age_ms"] = 100.0 if near else 9000.0
        return dataclasses.replace(
            seen,
            keeper=keeper,
            qemu=_states.Qemu(
                version=(11, 1, 3),
                runstate=machine.runstate,
                migration=machine.migration,
                migration_error=None,
                colo_mode=machine.colo_mode,
                nodes=frozenset(machine.nodes),
                attached=frozenset(
                    _topology.replication_node(disk)
                    for disk in range(len(host.guest.disks))
                    if _topology.quorum_node(disk) in machine.replicated
                ),
                jobs={job: _states.Job(machine.ready, "running", 1, 1) for job in machine.jobs},
                objects={name: str(value["qom-type"]) for name, value in machine.objects.items()},
                chardevs={
                    "monitor-modules": True,
                    "console0": True,
                    **{name: self._connected(machine, data) for name, data in machine.chardevs.items()},
                },
                exports=frozenset(machine.exports),
                settings={**_topology.fixed_settings(host.guest), **_topology.live_settings(host.guest)},
                incoming=machine.incoming,
            ),
        )

    @staticmethod
    def _connected(machine: Machine, data: Json) -> bool:
        return (
            "addr" not in data
            or data["addr"]["type"] == "unix"
            or not data["server"]
            or data["addr"]["data"]["port"] in machine.met
        )

    def side(self, name: str) -> _pair.Side:
        host = self.hosts[name]
        return _observe.side(host.guest, self.observe(name)) if host.powered else _pair.Side(name, None)

    def sides(self) -> tuple[_pair.Side, _pair.Side]:
        return self.side("alpha"), self.side("beta")

    # --- steps on the host

    def _record(self, host: Host, arguments: Json) -> None:
        transition = arguments.pop("transition")
        applier = _apply.Applier(host.guest, _never)
        host.record = applier._transition(transition, arguments, host.record)

    def _overlays(self, host: Host, arguments: Json) -> None:
        assert host.qemu is None, "the overlays of a running QEMU"
        assert host.record.state == "syncing", "this copy is written over, and its record does not say so"
        host.overlays = True

    def _permit(self, host: Host, arguments: Json) -> None:
        host.permit = (arguments["role"], host.record.generation)

    def _link_key(self, host: Host, arguments: Json) -> None:
        host.psk = True

    def _start_unit(self, host: Host, arguments: Json) -> None:
        assert host.qemu is None, "systemd would not start it a second time"
        assert arguments == {"unit": host.guest.unit}
        assert host.permit is not None, "there is no permit"
        role, generation = host.permit
        host.permit, host.crashed = None, False
        _generation.check_start(host.record, role, generation)
        disks = range(len(host.guest.disks))
        nodes = {name for disk in disks for name in (_topology.parent_node(disk), _topology.quorum_node(disk))}
        if role == "primary":
            host.qemu = Machine("prelaunch", nodes)
            return
        assert host.overlays, "a standby needs fresh overlays"
        host.overlays = False
        for disk in disks:
            nodes |= {_topology.standby_node(disk), *_topology.overlay_nodes(disk)}
        host.qemu = Machine("inmigrate", nodes)

    def _stop_unit(self, host: Host, arguments: Json) -> None:
        assert host.qemu is not None, "there is nothing to stop"
        assert not host.qemu.committing, "its disk is not whole yet"
        host.qemu, host.crashed = None, False

    def _yank(self, host: Host, arguments: Json) -> None:
        assert arguments["instances"] == _topology.yank_instances(host.guest)
        machine, peer = self._machine(host), self.other(host)
        if machine.migration == "device" and self.link and peer.powered and peer.qemu and peer.qemu.connected:
            # a switchover gets through after it was looked at, and just before it is ended
            self._enter_colo(host, machine, peer, peer.qemu)
        machine.connected = False
        if machine.colo_mode == "none" and machine.migration in ("active", "pre-switchover", "device"):
            # the stream is broken; QEMU tells it when it next writes to it
            machine.migration = "failed" if machine.migration == "active" else machine.migration
            machine.runstate = "running" if machine.migration == "failed" else machine.runstate

    def _capabilities(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert machine.migration not in ON_THE_WAY, "capabilities cannot be changed now"
        machine.role = arguments["role"]

    def _machine(self, host: Host) -> Machine:
        if host.qemu is None:
            raise FailedError(f"QEMU on {host.name} is gone")
        return host.qemu

    # --- waits

    def _wait(self, what: str, reached: bool) -> None:
        if not reached:
            raise FailedError(f"{what}: deadline")

    def _wait_keeper(self, host: Host, arguments: Json) -> None:
        self._machine(host)

    def _wait_runstate(self, host: Host, arguments: Json) -> None:
        runstate = self._machine(host).runstate
        self._wait(f"{host.name} is {runstate}", runstate in arguments["goal"])

    def _wait_settled(self, host: Host, arguments: Json) -> None:
        assert self._machine(host).runstate == "running", f"{host.name} lets a guest boot that does not run"
        assert arguments["seconds"] > 0

    def _forget_translations(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        self._freed(host, machine)
        assert machine.migration == "pre-switchover", "what a running guest does next, TCG learns anew"

    def _wait_packets(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert arguments["taps"] == [nic.tap for nic in host.guest.nics]
        held = [
            name
            for name, value in machine.objects.items()
            if value["qom-type"] in HOLDS_PACKETS and not str(value.get("indev")).startswith("flushin")
        ]
        assert not held, f"{host.name}: packets go to the peer that is gone ({held})"

    def _wait_heartbeat(self, host: Host, arguments: Json) -> None:
        self._reach(host)
        self._wait("the standby joins", self.other(host).record.joins == host.record.generation + 1)

    def _wait_jobs_ready(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        self._wait("resync", set(arguments["jobs"]) == set(machine.jobs) and machine.connected)
        machine.ready = True

    def _wait_jobs_gone(self, host: Host, arguments: Json) -> None:
        self._wait("jobs", not set(arguments["jobs"]) & set(self._machine(host).jobs))

    def _wait_nodes_gone(self, host: Host, arguments: Json) -> None:
        self._wait("the commit", not set(arguments["nodes"]) & self._machine(host).nodes)

    def _wait_links(self, host: Host, arguments: Json) -> None:
        self._reach(host)
        assert set(arguments["chardevs"]) <= set(self._machine(host).chardevs)
        self._wait("the packet channels", not self._machine(host).unmet)

    def _wait_migration(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        if "pre-switchover" in arguments["goal"] and machine.migration == "active" and machine.connected:
            machine.migration, machine.runstate = "pre-switchover", "finish-migrate"
        self._wait(f"migration {machine.migration}", machine.migration in arguments["goal"])

    def _end_switchover(self, host: Host, arguments: Json) -> None:
        if self._machine(host).migration == "pre-switchover":
            self.qmp_migrate_cancel(host, {})
        self.settle()
        self._wait_migration(host, arguments)
        if self._machine(host).migration == "colo":
            self.qmp_x_colo_lost_heartbeat(host, {})

    def _wait_checkpoints(self, host: Host, arguments: Json) -> None:
        self._wait("checkpoints", self._healthy(host))

    def _wait_secondary(self, host: Host, arguments: Json) -> None:
        self._wait("checkpoints", self._healthy(host) and host.record.state == "protected")

    # --- QMP

    def qmp_cont(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert machine.runstate == "prelaunch"
        machine.runstate = "running"

    def qmp_nbd_server_start(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert not machine.nbd_server
        assert arguments["addr"]["data"]["host"] == host.guest.link_address
        self._credentials(machine, arguments.get("tls-creds"), "server")
        machine.nbd_server = True

    def qmp_nbd_server_stop(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert machine.nbd_server
        machine.nbd_server = False
        machine.exports.clear()

    def qmp_block_export_add(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert machine.nbd_server
        assert arguments["node-name"] in machine.nodes
        _add(machine.exports, arguments["id"])

    def qmp_chardev_add(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        name, data = arguments["id"], arguments["backend"]["data"]
        assert name not in machine.chardevs, f"{name} is there already"
        address = data.get("addr", {"type": "pipe"})
        if address["type"] == "inet":
            own = host.guest.link_address if data["server"] else host.guest.peer_address
            assert address["data"]["host"] == own, "only the standby listens, on its link address"
            self._credentials(machine, data.get("tls-creds"), "server" if data["server"] else "client")
            if not data["server"]:
                standby, port = self._reach(host), address["data"]["port"]
                (machine.unmet if port in standby.met else standby.met).add(name if port in standby.met else port)
        elif address["type"] == "unix" and not data["server"]:
            assert name[:-1] in machine.chardevs, "a client before its server"
        machine.chardevs[name] = data

    def qmp_chardev_remove(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        self._freed(host, machine)
        name = arguments["id"]
        users = [user for user, value in machine.objects.items() if name in value.values()]
        assert not users, f"{name} is used by {users}"
        del machine.chardevs[name]
        machine.unmet.discard(name)

    def qmp_object_add(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        name = arguments["id"]
        assert name not in machine.objects, f"{name} is there already"
        assert arguments["qom-type"] != "tls-creds-psk" or host.psk, "there is no key to read"
        for key in ("indev", "outdev", "primary_in", "secondary_in"):
            assert arguments.get(key) is None or arguments[key] in machine.chardevs, f"{name}: {key}"
        assert "iothread" not in arguments or arguments["iothread"] in machine.objects
        position = arguments.get("position")
        assert position is None or position.removeprefix("id=") in machine.objects
        rewriters = [value["netdev"] for value in machine.objects.values() if value["qom-type"] == "filter-rewriter"]
        if arguments["qom-type"] in ("filter-mirror", "filter-redirector") and arguments["netdev"] in rewriters:
            assert position is not None, f"{name} goes before the rewriter"
        machine.objects[name] = arguments

    def qmp_object_del(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        self._freed(host, machine)
        name = arguments["id"]
        kind = machine.objects.pop(name)["qom-type"]
        assert name not in [value.get("tls-creds") for value in machine.chardevs.values()], f"{name} is used"
        assert kind != "filter-rewriter", "connections made in COLO break without the rewriter"
        if kind in ("filter-redirector", "iothread"):
            left = [user for user, value in machine.objects.items() if value["qom-type"] == "colo-compare"]
            number = name.rsplit("-", 1)[-1].removeprefix("iocmp")
            assert f"comp{number}" not in left, f"{name} before the colo-compare that flushes through it"

    def qmp_migrate_incoming(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert machine.runstate == "inmigrate"
        assert machine.migration == "none"
        assert machine.tls_creds
        assert machine.role == "standby", "without x-colo this would be a plain migration"
        assert len(machine.exports) == len(host.guest.disks)
        machine.migration = "setup"
        machine.incoming = arguments["uri"].removeprefix("tcp:")

    def qmp_blockdev_add(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        if arguments["driver"] == "nbd":
            self._credentials(machine, arguments.get("tls-creds"), "client")
            standby = self._reach(host)
            if not standby.nbd_server:
                raise FailedError("no NBD server")
            machine.connected = standby.connected = True
        else:
            below = arguments["children"] if arguments["driver"] == "quorum" else [arguments["file"]]
            assert machine.nodes.issuperset(below)
            assert not machine.jobs, "the mirror still writes to it"
        _add(machine.nodes, arguments["node-name"])

    def qmp_blockdev_mirror(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert arguments["target"] in machine.nodes
        assert arguments["device"] in machine.nodes
        assert arguments["job-id"] not in machine.jobs
        self._reach(host)
        assert self.other(host).record.state == "syncing", "the copy that is written over says nothing about it"
        self.other(host).torn = True
        machine.jobs[arguments["job-id"]] = False
        machine.ready = False

    def _cancel_jobs(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        self._freed(host, machine)
        for job in set(arguments["jobs"]) & set(machine.jobs):
            machine.jobs[job] = True

    def qmp_block_job_cancel(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        self._freed(host, machine)
        if arguments["device"] not in machine.jobs:
            raise FailedError("no such job")
        assert machine.ready or arguments.get("force"), "the mirror has not caught up"
        machine.jobs[arguments["device"]] = True

    def qmp_migrate_set_parameters(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        if arguments.keys() == {"x-checkpoint-delay"}:
            return  # another tuning of a primary in lock step
        machine.tls_creds = arguments["tls-creds"]
        self._credentials(machine, machine.tls_creds or None, "client" if machine.role == "primary" else "server")

    def _credentials(self, machine: Machine, name: str | None, endpoint: str) -> None:
        """Every connection to the peer is made with credentials of the right end."""
        assert name is not None, "in the clear"
        assert machine.objects[name]["endpoint"] == endpoint

    def _migrate(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert machine.role == "primary"
        assert machine.tls_creds in machine.objects
        assert machine.migration not in ON_THE_WAY
        assert machine.runstate == "running"
        standby = self._reach(host)
        if standby.migration != "setup":
            raise FailedError("connection refused")
        machine.migration = standby.migration = "active"
        machine.connected = standby.connected = True

    def qmp_migrate_continue(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert machine.migration == "pre-switchover" == arguments["state"]
        assert not machine.jobs
        assert len(machine.replicated) == len(host.guest.disks), "protected without its disks"
        kinds = [value["qom-type"] for value in machine.objects.values()]
        assert kinds.count("filter-mirror") == kinds.count("colo-compare") == len(host.guest.nics)
        assert (host.record.state, host.record.serving) == ("protected", host.name), "visible before it is recorded"
        machine.migration = "device"

    def qmp_migrate_cancel(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        assert machine.colo_mode == "none", "migrate_cancel in colo: never protected again"
        if machine.migration in ON_THE_WAY:
            machine.migration = "cancelling"

    def qmp_x_blockdev_change(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        self._freed(host, machine)
        quorum = arguments["parent"]
        assert quorum in machine.nodes
        if "node" in arguments:
            assert arguments["node"] in machine.nodes
            _add(machine.replicated, quorum)
        else:
            assert arguments["child"] == _topology.QUORUM_CHILD
            if quorum not in machine.replicated:
                raise FailedError(f"{quorum} has no child children.1")
            machine.replicated.discard(quorum)

    def qmp_x_colo_lost_heartbeat(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        self._freed(host, machine)
        assert (host.record.state, host.record.serving) == ("alone", host.name), "visible before it is recorded"
        assert machine.colo_mode != "none", "VM is not in COLO mode"
        if machine.colo_mode == "primary":
            assert not machine.replicated, "the disk goes first"
        else:
            assert not machine.nbd_server, "the old primary could still write"
            machine.committing = True
        machine.colo_mode, machine.migration, machine.runstate = "none", "completed", "running"
        machine.connected = False

    def qmp_blockdev_del(self, host: Host, arguments: Json) -> None:
        machine = self._machine(host)
        self._freed(host, machine)
        name = arguments["node-name"]
        number = name.removeprefix("nbd").removeprefix("watch").removeprefix("replication")
        above = {"nbd": "watch", "watch": "replication"}.get(name.removesuffix(number))
        if above is not None:
            assert f"{above}{number}" not in machine.nodes, f"{name} is used"
            assert f"resync{number}" not in machine.jobs, f"{name} is used"
        else:
            assert f"colo-disk{number}" not in machine.replicated, f"{name} is used"
        machine.nodes.remove(name)


ON_THE_WAY = {"setup", "active", "pre-switchover", "device", "colo", "cancelling"}
HOLDS_PACKETS = ("colo-compare", "filter-mirror", "filter-redirector")


def _add(names: set[str], name: str) -> None:
    assert name not in names, f"{name} is there already"
    names.add(name)


# --- the playbooks, as far as they decide ---------------------------------------------------------------------


def judge(world: World) -> _pair.Pair:
    """status.yml."""
    world.settle()
    return _pair.pair(world.sides())


def _module(
    world: World,
    name: str,
    plan: t.Callable[[_states.Observation], t.Sequence[_plan.Step]],
    roll_back: t.Callable[[_states.Observation], t.Sequence[_plan.Step]] | None = None,
) -> str | None:
    """One module's run on one host: what it refused, or what failed, or None."""
    try:
        world.run(name, plan(world.observe(name)))
    except ColoError as exc:
        return f"{exc.error_code}: {exc.message}"
    except FailedError as exc:
        if roll_back is not None:
            _module(world, name, roll_back)
        return str(exc)
    return None


def site(world: World) -> str | None:
    """site.yml; None when it ends well, else what it says."""
    found = judge(world)
    if found.refusal:
        return found.refusal
    serving = found.serving
    assert serving is not None
    guest = world.hosts[serving].guest
    evidence, chosen = ("site.yml saw that no host runs it", found.generation) if found.start else (None, None)
    standings = {side.host: side.standing for side in world.sides()}
    if _pair.stands_behind(standings.get(serving), standings.get(found.standby or "")):
        assert found.standby is not None
        behind = world.hosts[found.standby].guest
        trouble = _module(
            world, found.standby, lambda seen: _plan.stop_standby(behind, seen, "the other host goes on alone")
        )
        if trouble:
            return trouble
    if found.rebuild:
        trouble = _module(world, serving, lambda seen: _plan.unprotect(guest, seen))
        if trouble:
            return trouble
    trouble = _module(world, serving, lambda seen: _plan.serve(guest, seen, evidence, chosen))
    if trouble or found.standby is None:
        return trouble or "there is no standby"
    other = world.hosts[found.standby].guest
    generation = world.hosts[serving].record.generation
    for name, plan, undo in (
        (
            found.standby,
            lambda seen: _plan.standby(other, seen, generation),
            lambda seen: _plan.stop_standby(other, seen, None),
        ),
        (
            serving,
            lambda seen: _plan.protect(guest, seen, _make.FEATURES, 60),
            lambda seen: _plan.unprotect(guest, seen),
        ),
        (found.standby, lambda seen: _plan.follow(other, seen), None),
    ):
        trouble = _module(world, name, plan, undo)
        if trouble:
            return trouble
    after = judge(world)
    return None if after.verdict == "protected" else f"{after.verdict}: {after.reason}"


def fail_over(world: World, confirmed: str | None = None, accept_void: bool = False) -> str | None:
    """failover.yml; a host that is confirmed to be fenced is not asked."""
    world.settle()
    one, two = (
        _pair.Side(host.name, None) if host.name == confirmed else world.side(host.name)
        for host in world.hosts.values()
    )
    found = _pair.failover((one, two), confirmed)
    if found.survivor is None:
        return found.refusal
    if found.stop is not None:
        other = world.hosts[found.stop].guest
        trouble = _module(world, found.stop, lambda seen: _plan.stop_standby(other, seen, "the other host goes on"))
        if trouble:
            return trouble
    guest = world.hosts[found.survivor].guest
    return _module(world, found.survivor, lambda seen: _plan.failover(guest, seen, found.fenced_by, accept_void))


def switch_over(world: World) -> str | None:
    """switchover.yml: the standby takes over at the last word of the other keeper."""
    found = judge(world)
    if found.verdict != "protected" or found.serving is None or found.standby is None:
        return f"{found.verdict}: {found.reason}"
    old, new = world.hosts[found.serving].guest, world.hosts[found.standby].guest
    trouble = _module(world, found.serving, lambda seen: _plan.release(old, seen))
    world.settle()
    return trouble or _module(world, found.standby, lambda seen: _plan.failover(new, seen, "the keeper said so", False))
