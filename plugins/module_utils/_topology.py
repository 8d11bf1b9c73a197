# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What QEMU is told: a guest's command line and the objects of COLO, for primary and standby.

Pure. Everything that differs between the two sides is here, and so is every object name. Sources: QEMU's
docs/COLO-FT.txt and docs/block-replication.txt, with two changes: all listeners are on the standby's link address
(the serving side connects), and the loops inside one QEMU are unix sockets.
"""

from __future__ import annotations

import json
import typing as t
import uuid

from ansible_collections.lockstep.colo.plugins.module_utils._guest import MIB, Disk, Guest

Role = t.Literal["primary", "standby"]
ROLES: tuple[Role, ...] = ("primary", "standby")
Command = tuple[str, dict[str, t.Any]]

# Monitors have this prefix so that no rule can ever yank one by mistake (query-yank lists them too).
MONITOR_PREFIX = "monitor-"
FLUSHER_PREFIX = "flush"
#: as ``yank`` names the migration
YANK_MIGRATION = {"type": "migration"}
QUORUM_PREFIX = "colo-disk"
QUORUM_CHILD = "children.1"

_UUID_NAMESPACE = uuid.UUID("6f0d0f55-9f0c-5b5e-9d5a-4c0a3c0f7c3e")


# --- names ------------------------------------------------------------------------------------------------------


def parent_node(disk: int) -> str:
    """The node of the image that holds the data."""
    return f"parent{disk}"


def quorum_node(disk: int) -> str:
    """The guest device's drive."""
    return f"{QUORUM_PREFIX}{disk}"


def standby_node(disk: int) -> str:
    """The standby's replication node over active, hidden and parent."""
    return f"childs{disk}"


def overlay_nodes(disk: int) -> tuple[str, str]:
    """The standby's overlays; QEMU drops these nodes when it has committed them after a takeover."""
    return (f"active{disk}", f"hidden{disk}")


def nbd_node(disk: int) -> str:
    """The primary's NBD client of the standby's parent image."""
    return f"nbd{disk}"


def watch_node(disk: int) -> str:
    """A quorum of one over the NBD client: it tells a failed write, which the replication node above it keeps to itself."""
    return f"watch{disk}"


def replication_node(disk: int) -> str:
    """The primary's replication node over the watched NBD client."""
    return f"replication{disk}"


def resync_job(disk: int) -> str:
    """The mirror job that makes the standby's copy equal."""
    return f"resync{disk}"


def primary_filters(nic: int) -> tuple[str, ...]:
    """Objects of one NIC on the primary, in the order in which they may be deleted.

    colo-compare goes first: deleting it flushes the packets it holds through the redirector that comes after.
    """
    return (f"comp{nic}", f"m{nic}", f"redire0-{nic}", f"redire1-{nic}", f"iocmp{nic}")


def primary_chardevs(nic: int) -> tuple[str, ...]:
    """Character devices of one NIC on the primary, in the order in which they may be removed (clients first)."""
    return (f"mirror{nic}", f"compsec{nic}", f"compare{nic}c", f"compare{nic}", f"out{nic}c", f"out{nic}")


def primary_link_chardevs(nic: int) -> tuple[str, str]:
    """The two of them that go over the link."""
    return (f"mirror{nic}", f"compsec{nic}")


def standby_filters(nic: int) -> tuple[str, ...]:
    """Redirectors of one NIC on the standby, in the order in which they are deleted at failover (the rewriter stays)."""
    return (f"f2-{nic}", f"f1-{nic}")


def rewriter(nic: int) -> str:
    """The filter that keeps TCP sequence numbers equal; it must stay for as long as connections made in COLO live."""
    return f"rew{nic}"


def flusher(nic: int) -> str:
    """The redirector before the rewriter, which ``_rewriter`` says the use of; it stays with the rewriter."""
    return f"{FLUSHER_PREFIX}{nic}"


def flusher_chardev(nic: int) -> str:
    """The character device that :func:`flusher` reads from; it stays as well."""
    return f"{FLUSHER_PREFIX}in{nic}"


def flush_pipe(guest: Guest, nic: int) -> str:
    """The named pipe behind :func:`flusher_chardev`."""
    return f"{guest.paths.run}/flush{nic}"


def standby_chardevs(nic: int) -> tuple[str, str]:
    """Character devices of one NIC on the standby (servers on the link address)."""
    return (f"red0-{nic}", f"red1-{nic}")


def tls_credentials(role: Role) -> str:
    """Credentials of one end of the link; the standby is the server of every connection."""
    return "tls-client" if role == "primary" else "tls-server"


def yank_instances(guest: Guest) -> list[dict[str, str]]:
    """Everything that can make this guest's main loop wait for the peer, in the order to yank it.

    The migration stream alone does not free a main loop that is blocked in a disk flush: the NBD node does.
    """
    instances = [YANK_MIGRATION]
    instances += [{"type": "block-node", "node-name": nbd_node(disk)} for disk in range(len(guest.disks))]
    for nic in range(len(guest.nics)):
        names = primary_link_chardevs(nic) + standby_chardevs(nic)
        instances += [{"type": "chardev", "id": name} for name in names]
    return instances


# --- command line -----------------------------------------------------------------------------------------------


def qemu_argv(guest: Guest, role: Role) -> list[str]:
    """The command line; the guest never runs before it is told to (``-S``, or ``-incoming defer``)."""
    argv = [
        guest.qemu_binary,
        "-name",
        f"guest={guest.name},debug-threads=on",
        "-uuid",
        str(uuid.uuid5(_UUID_NAMESPACE, guest.name)),
        "-nodefaults",
        "-no-user-config",
        "-msg",
        "timestamp=on",
        "-machine",
        guest.machine,
        "-accel",
        guest.accelerator,
        "-cpu",
        guest.cpu,
        "-smp",
        str(guest.vcpus),
        "-m",
        f"{guest.memory_mib}M",
        "-display",
        "none",
        # A guest that powers itself off must not be brought back by a failover: pause, and let us see the event.
        "-action",
        "shutdown=pause",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-chardev",
        "stdio,id=console0,signal=off",
        "-serial",
        "chardev:console0",
    ]
    for name, path in (
        ("modules", guest.qmp_socket),
        ("keeper", guest.keeper_qmp_socket),
        ("operator", guest.operator_socket),
    ):
        argv += ["-chardev", f"socket,id={MONITOR_PREFIX}{name},path={_comma(path)},server=on,wait=off"]
        argv += ["-mon", f"chardev={MONITOR_PREFIX}{name},mode=control"]
    if guest.boot is not None:
        argv += ["-kernel", guest.boot.kernel]
        argv += ["-initrd", guest.boot.initrd] if guest.boot.initrd is not None else []
        argv += ["-append", guest.boot.append] if guest.boot.append else []
    for number, disk in enumerate(guest.disks):
        for node in _disk_nodes(guest, number, disk, role):
            argv += ["-blockdev", json.dumps(node, sort_keys=True)]
        # report: with the default policy a full overlay on the standby ends in an abort of QEMU at the next checkpoint.
        # No iothread: the standby aborts on failover with one.
        argv += [
            "-device",
            f"virtio-blk-pci,id=disk{number},drive={quorum_node(number)},werror=report,rerror=report,bootindex={number + 1}",
        ]
    for number, nic in enumerate(guest.nics):
        argv += ["-netdev", f"tap,id=hn{number},ifname={nic.tap},script=no,downscript=no,vhost=off"]
        argv += ["-device", f"{nic.model},id=nic{number},netdev=hn{number},mac={nic.mac}"]
    argv += ["-S"] if role == "primary" else ["-incoming", "defer"]
    return argv


def _comma(value: str) -> str:
    return value.replace(",", ",,")


def _qcow2(name: str, path: str, **more: t.Any) -> dict[str, t.Any]:
    return {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": path}, **more}


def _disk_nodes(guest: Guest, number: int, disk: Disk, role: Role) -> list[dict[str, t.Any]]:
    # backing: null in so many words: what an image's header says is never followed
    nodes = [_qcow2(parent_node(number), guest.image(disk, "parent"), backing=None)]
    child = parent_node(number)
    if role == "standby":
        child = standby_node(number)
        active_node, hidden_node = overlay_nodes(number)
        hidden = _qcow2(hidden_node, guest.image(disk, "hidden"), backing=parent_node(number))
        nodes.append(
            {
                "driver": "replication",
                "node-name": child,
                "mode": "secondary",
                "top-id": quorum_node(number),
                "file": _qcow2(active_node, guest.image(disk, "active"), backing=hidden),
            }
        )
    nodes.append(
        {
            "driver": "quorum",
            "node-name": quorum_node(number),
            "vote-threshold": 1,
            "read-pattern": "fifo",
            "children": [child],
        }
    )
    return nodes


# --- objects added at run time ----------------------------------------------------------------------------------


def _inet(host: str, port: int) -> dict[str, t.Any]:
    return {"type": "inet", "data": {"host": host, "port": str(port)}}


def socket_address(host: str, port: int) -> str:
    """An address with its port; an IPv6 address needs brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def migration_uri(host: str, port: int) -> str:
    """The migration stream's address."""
    return f"tcp:{socket_address(host, port)}"


def tls_commands(guest: Guest, role: Role) -> list[Command]:
    """Credentials for the connections to the peer; read from a file, so that no secret is in a command."""
    if not guest.tls:
        return []
    endpoint = "client" if role == "primary" else "server"
    return [
        (
            "object-add",
            {"qom-type": "tls-creds-psk", "id": tls_credentials(role), "endpoint": endpoint, "dir": guest.paths.run},
        )
    ]


def _tls(guest: Guest, role: Role) -> dict[str, str]:
    return {"tls-creds": tls_credentials(role)} if guest.tls else {}


def _chardev(name: str, addr: dict[str, t.Any], **data: t.Any) -> Command:
    return ("chardev-add", {"id": name, "backend": {"type": "socket", "data": {"addr": addr, **data}}})


def _pipe(path: str) -> dict[str, t.Any]:
    return {"type": "pipe", "data": {"device": path}}


def standby_commands(guest: Guest) -> list[Command]:
    """Listeners and filters of a standby, before ``migrate-incoming``; all listeners on the own link address."""
    own = guest.link_address
    tls = _tls(guest, "standby")
    commands = [
        *tls_commands(guest, "standby"),
        ("nbd-server-start", {"addr": _inet(own, guest.port_nbd), **tls}),
    ]
    for disk in range(len(guest.disks)):
        commands.append(
            (
                "block-export-add",
                {
                    "type": "nbd",
                    "id": f"export{disk}",
                    "node-name": parent_node(disk),
                    "name": parent_node(disk),
                    "writable": True,
                },
            )
        )
    for number, nic in enumerate(guest.nics):
        vnet = {"vnet_hdr_support": True} if nic.vnet_header else {}
        red0, red1 = standby_chardevs(number)
        netdev = f"hn{number}"
        commands += [
            _chardev(red0, _inet(own, guest.port_mirror(number)), server=True, wait=False, **tls),
            _chardev(red1, _inet(own, guest.port_compare(number)), server=True, wait=False, **tls),
            (
                "object-add",
                {
                    "qom-type": "filter-redirector",
                    "id": f"f1-{number}",
                    "netdev": netdev,
                    "queue": "tx",
                    "indev": red0,
                    **vnet,
                },
            ),
            (
                "object-add",
                {
                    "qom-type": "filter-redirector",
                    "id": f"f2-{number}",
                    "netdev": netdev,
                    "queue": "rx",
                    "outdev": red1,
                    **vnet,
                },
            ),
            ("chardev-add", {"id": flusher_chardev(number), "backend": _pipe(flush_pipe(guest, number))}),
            (
                "object-add",
                {
                    "qom-type": "filter-redirector",
                    "id": flusher(number),
                    "netdev": netdev,
                    "queue": "tx",
                    "indev": flusher_chardev(number),
                    **vnet,
                },
            ),
            (
                "object-add",
                {"qom-type": "filter-rewriter", "id": rewriter(number), "netdev": netdev, "queue": "all", **vnet},
            ),
        ]
    return commands


def nbd_commands(guest: Guest) -> list[Command]:
    """The serving side's connection to the standby's parent images."""
    server = {"type": "inet", "host": guest.peer_address, "port": str(guest.port_nbd)}
    common = {"driver": "nbd", "server": server, **_tls(guest, "primary")}
    return [
        ("blockdev-add", {"node-name": nbd_node(disk), "export": parent_node(disk), **common})
        for disk in range(len(guest.disks))
    ]


def resync_commands(guest: Guest) -> list[Command]:
    """One mirror per disk; the guest goes on running."""
    return [
        (
            "blockdev-mirror",
            {
                "job-id": resync_job(disk),
                "device": quorum_node(disk),
                "target": nbd_node(disk),
                "sync": "full",
                "speed": guest.tuning.resync_limit_mib_s * MIB,
                "on-source-error": "report",
                "on-target-error": "report",
            },
        )
        for disk in range(len(guest.disks))
    ]


def primary_chardev_commands(guest: Guest, reconnect_option: str | None) -> list[Command]:
    """Character devices of the primary: clients to the standby, unix pairs inside.

    The clients get a reconnect time only because without one QEMU connects in the main loop and a silent peer would
    block the guest; ``reconnect-ms`` replaced ``reconnect`` (seconds) in 9.2.
    """
    link: dict[str, t.Any] = {"reconnect-ms": 500} if reconnect_option == "reconnect-ms" else {"reconnect": 1}
    link.update(_tls(guest, "primary"))
    commands: list[Command] = []
    for number in range(len(guest.nics)):
        mirror, compsec = primary_link_chardevs(number)
        commands += [
            _chardev(mirror, _inet(guest.peer_address, guest.port_mirror(number)), server=False, **link),
            _chardev(compsec, _inet(guest.peer_address, guest.port_compare(number)), server=False, **link),
        ]
        for name in (f"compare{number}", f"out{number}"):
            unix = {"type": "unix", "data": {"path": f"{guest.paths.run}/{name}.sock"}}
            commands.append(_chardev(name, unix, server=True, wait=False))
            commands.append(_chardev(f"{name}c", unix, server=False))
    return commands


def primary_filter_commands(guest: Guest, present: t.Collection[str]) -> list[Command]:
    """Filters of the primary, added while the guest is paused at the switchover.

    Where a rewriter of an earlier life as a standby is still there (*present* names QEMU's objects), ours go before it and
    its flusher: packets must be compared as the wire sees them.
    """
    commands: list[Command] = []
    for number, nic in enumerate(guest.nics):
        vnet = {"vnet_hdr_support": True} if nic.vnet_header else {}
        first = next((name for name in (flusher(number), rewriter(number)) if name in present), None)
        place = {"insert": "before", "position": f"id={first}"} if first else {}
        common = {"netdev": f"hn{number}", **place, **vnet}
        commands += [
            (
                "object-add",
                {"qom-type": "filter-mirror", "id": f"m{number}", "queue": "tx", "outdev": f"mirror{number}", **common},
            ),
            (
                "object-add",
                {
                    "qom-type": "filter-redirector",
                    "id": f"redire0-{number}",
                    "queue": "rx",
                    "indev": f"out{number}",
                    **common,
                },
            ),
            (
                "object-add",
                {
                    "qom-type": "filter-redirector",
                    "id": f"redire1-{number}",
                    "queue": "rx",
                    "outdev": f"compare{number}",
                    **common,
                },
            ),
            ("object-add", {"qom-type": "iothread", "id": f"iocmp{number}"}),
            (
                "object-add",
                {
                    "qom-type": "colo-compare",
                    "id": f"comp{number}",
                    "primary_in": f"compare{number}c",
                    "secondary_in": f"compsec{number}",
                    "outdev": f"out{number}c",
                    "iothread": f"iocmp{number}",
                    **_compare_settings(guest),
                    **vnet,
                },
            ),
        ]
    return commands


def replication_commands(guest: Guest) -> list[Command]:
    """Put the standby's disk under the quorum, once its copy is equal and the mirror has ended."""
    commands: list[Command] = []
    for disk in range(len(guest.disks)):
        watch = {
            "driver": "quorum",
            "node-name": watch_node(disk),
            "vote-threshold": 1,
            "read-pattern": "fifo",
            "children": [nbd_node(disk)],
        }
        replication = {
            "driver": "replication",
            "node-name": replication_node(disk),
            "mode": "primary",
            "file": watch_node(disk),
        }
        commands += [
            ("blockdev-add", watch),
            ("blockdev-add", replication),
            ("x-blockdev-change", {"parent": quorum_node(disk), "node": replication_node(disk)}),
        ]
    return commands


def capabilities(role: Role, return_path: bool, multifd: bool) -> Command:
    """Migration capabilities of one side. ``return_path``: required with x-colo on 11.x, fatal for it up to 10.2."""
    wanted = {
        "events": True,
        "x-colo": True,
        "return-path": return_path,
        "pause-before-switchover": role == "primary",
        "multifd": multifd,
    }
    return (
        "migrate-set-capabilities",
        {"capabilities": [{"capability": name, "state": state} for name, state in wanted.items()]},
    )


def parameters(guest: Guest, role: Role) -> Command:
    """Migration parameters of one side. The bandwidth is the link's, not QEMU's default of 128 MiB/s.

    The credentials are named, or taken back, each time: a QEMU that took over has those of a standby from its earlier life.
    """
    tls = {"tls-creds": tls_credentials(role) if guest.tls else ""}
    channels = {MULTIFD_CHANNELS: guest.tuning.multifd_channels} if guest.tuning.multifd_channels else {}
    return (
        "migrate-set-parameters",
        {CHECKPOINT_DELAY: guest.tuning.checkpoint_delay_ms, "max-bandwidth": 10 * 1024**3, **channels, **tls},
    )


# --- TCG --------------------------------------------------------------------------------------------------------

PCI_ADDRESS_PORT = 0xCF8


def shadow_register(guest: Guest) -> tuple[int, int]:
    """A register that maps memory, and whose value no running system needs: PAM1 of the host bridge (video BIOS shadow).

    The word for the PCI address port, and the port at which the register's byte then is.
    """
    if guest.machine.startswith(("q35", "pc-q35")):
        return 0x80000090, 0xCFD
    return 0x80000058, 0xCFE


# --- what can be tuned ------------------------------------------------------------------------------------------

# A setting has the name of a migration parameter, or OBJECT.PROPERTY.
CHECKPOINT_DELAY = "x-checkpoint-delay"
MULTIFD_CHANNELS = "multifd-channels"
COMPARE_PROPERTIES = ("compare_timeout", "expired_scan_cycle", "max_queue_size")


def _compare_settings(guest: Guest) -> dict[str, int]:
    tuning = guest.tuning
    return dict(
        zip(COMPARE_PROPERTIES, (tuning.compare_timeout_ms, tuning.expired_scan_cycle_ms, tuning.max_queue_size))
    )


def live_settings(guest: Guest) -> dict[str, int]:
    """What the definition wants of a primary that is protected, as far as QEMU takes it while it is."""
    compare = {
        f"{primary_filters(nic)[0]}.{name}": value
        for nic in range(len(guest.nics))
        for name, value in _compare_settings(guest).items()
    }
    return {CHECKPOINT_DELAY: guest.tuning.checkpoint_delay_ms, **compare}


def fixed_settings(guest: Guest) -> dict[str, int]:
    """What the definition wants and a protection has from its beginning to its end, on both sides."""
    return {MULTIFD_CHANNELS: guest.tuning.multifd_channels}


def set_command(setting: str, value: int) -> Command:
    """Change one live setting. A new checkpoint delay begins with a checkpoint at once."""
    owner, _dot, name = setting.rpartition(".")
    if not owner:
        return ("migrate-set-parameters", {name: value})
    return ("qom-set", {"path": f"/objects/{owner}", "property": name, "value": value})
