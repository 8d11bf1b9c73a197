# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host can take its guests, decided from what is there now.

Pure: :class:`HostState` is what ``_host`` has seen, :func:`problems` compares it with the definitions. It runs before
anything is changed, so things a role is about to make (bridges, taps, images) may be missing, but nothing may be in
their place.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _guest
from ansible_collections.lockstep.colo.plugins.module_utils._features import Problem
from ansible_collections.lockstep.colo.plugins.module_utils._guest import MIB, PORTS_PER_GUEST, Change

#: Memory of a QEMU beside its guest's RAM: code, device state, buffers of the migration and the proxies.
OVERHEAD_BYTES = 128 * MIB
#: Part of a disk's size that each overlay may need between two checkpoints.
OVERLAY_SHARE = 0.1
#: Directories the hardened unit hides from QEMU.
HIDDEN_DIRECTORIES = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108


_IFNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")


@dataclasses.dataclass(frozen=True)
class Link:
    """One network interface; ``network_file`` is the systemd-networkd file that configures it."""

    name: str
    kind: str | None = None
    master: str | None = None
    addresses: tuple[str, ...] = ()
    network_file: str | None = None


@dataclasses.dataclass(frozen=True)
class Listener:
    """One listening TCP socket; ``guest`` is set when it belongs to a QEMU (``qemu``) or keeper of that guest of ours."""

    address: str
    port: int
    process: str
    guest: str | None = None
    qemu: bool = False


@dataclasses.dataclass(frozen=True)
class GuestState:
    """What one host has of one guest: resident bytes of its running QEMU, whether this host's copy serves, and what the
    running QEMU was started with.
    """

    resident_bytes: int = 0
    serving: bool | None = None
    started: t.Mapping[str, t.Any] | None = None


@dataclasses.dataclass(frozen=True)
class FileState:
    """What is at a path: ``problem`` is (error_code, message) when it cannot be used."""

    exists: bool
    allocated_bytes: int = 0
    problem: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class HostState:
    """One look at a host. What was not looked at is not in ``images``, ``sources`` and ``boot_files``."""

    links: t.Mapping[str, Link]
    listeners: tuple[Listener, ...]
    memory_available_bytes: int
    disk_free_bytes: t.Mapping[str, int]
    kvm_problem: str | None
    images: t.Mapping[str, FileState]
    sources: t.Mapping[Source, FileState]
    boot_files: t.Mapping[str, FileState]
    guests: t.Mapping[str, GuestState]
    #: What a start of systemd-networkd would put into force; empty where it has run.
    dormant_network_files: tuple[str, ...] = ()


class Source(t.NamedTuple):
    """What the image of a disk is made from, with all that it has to be for this disk."""

    source: str
    format: str
    size_bytes: int
    checksum: str | None

    @property
    def is_remote(self) -> bool:
        """Whether it has to be fetched first."""
        return not self.source.startswith("/")


def source_of(disk: t.Mapping[str, t.Any]) -> Source | None:
    """What the image of ``disk`` is made from; ``None`` for a blank one."""
    if disk["source"] is None:
        return None
    return Source(disk["source"], disk["source_format"], disk["size_bytes"], disk["checksum"])


def problems(
    state: HostState, definitions: t.Sequence[t.Mapping[str, t.Any]], bridges: t.Mapping[str, t.Any]
) -> list[Problem]:
    """Everything that keeps this host from taking the guests of ``definitions``.

    ``bridges`` are those the network role makes (``colo_bridges``).
    """
    found = _networkd_problems(state) if definitions else []
    found += _bridge_problems(state, bridges)
    for definition in definitions:
        found += _link_problems(state, definition)
        found += _nic_problems(state, definition, bridges)
        found += _port_problems(state, definition)
        found += _accelerator_problems(state, definition)
        found += _disk_problems(state, definition)
        found += _boot_problems(state, definition)
    return [*found, *_memory_problems(state, definitions), *_space_problems(state, definitions)]


def changes(state: HostState, definitions: t.Sequence[t.Mapping[str, t.Any]]) -> list[Change]:
    """What of ``definitions`` the running guests do not have, and would get by a restart only."""
    return [
        change
        for definition in definitions
        for change in _guest.changes(state.guests.get(definition["name"], GuestState()).started, definition)
    ]


def change_problems(found: t.Sequence[Change]) -> list[Problem]:
    """The refusals for changes that nobody has allowed."""
    return [
        Problem(
            "definition_changed",
            change.variable,
            change.wished,
            f"the running guest has {json.dumps(change.running)}, and gets another value by a restart only, which clients notice: "
            "allow that with -e colo_allow_restart=true, or put the value back",
        )
        for change in found
    ]


def parent_path(definition: t.Mapping[str, t.Any], disk: t.Mapping[str, t.Any]) -> str:
    """Path of a disk's parent image (as ``Guest.image`` has it)."""
    return f"{definition['paths']['state']}/{disk['name']}.qcow2"


def needed_memory(definition: t.Mapping[str, t.Any], guest: GuestState) -> int:
    """Bytes a guest still needs on this host: its RAM, twice on a standby (COLO cache), less what it has already."""
    serving = guest.serving if guest.serving is not None else definition["host"] == definition["hosts"][0]
    ram = int(definition["memory_mib"]) * MIB
    return max(0, (ram if serving else 2 * ram) + OVERHEAD_BYTES - guest.resident_bytes)


def needed_memory_of_all(state: HostState, definitions: t.Sequence[t.Mapping[str, t.Any]]) -> int:
    """Bytes all guests of this host together still need."""
    return sum(
        needed_memory(definition, state.guests.get(definition["name"], GuestState())) for definition in definitions
    )


def once(found: t.Sequence[Problem]) -> list[Problem]:
    """The problems in their order, each told once (several guests may share one)."""
    return [problem for number, problem in enumerate(found) if problem not in found[:number]]


def mib(size: int) -> int:
    """Bytes in MiB, rounded up."""
    return -(-size // MIB)


def _is_ours(link: Link) -> bool:
    return link.network_file is not None and _our_file(link.network_file)


def _our_file(path: str) -> bool:
    return path.rsplit("/", maxsplit=1)[-1].startswith("05-colo-")


def _networkd_problems(state: HostState) -> list[Problem]:
    """Files of others that the role network would put into force, as it starts systemd-networkd."""
    return [
        Problem(
            "network_file_dormant",
            "a file of systemd-networkd",
            path,
            f"{path} has no effect now, as systemd-networkd does not run on this host; it would have one, as networkd is started for the "
            "guests' devices: remove the file, or start systemd-networkd yourself when its effect is wanted",
        )
        for path in state.dormant_network_files
        if not _our_file(path)
    ]


def _bridge_problems(state: HostState, bridges: t.Mapping[str, t.Any]) -> list[Problem]:
    found: list[Problem] = []
    for name, bridge in bridges.items():
        odd = _odd_bridge(name, bridge)
        if odd is not None:
            found.append(odd)
            continue
        link = state.links.get(name)
        if link is not None and link.kind != "bridge":
            found.append(
                Problem(
                    "bridge_name_taken",
                    "colo_bridges",
                    name,
                    f"{name} is there and is no bridge: choose another name for the bridge",
                )
            )
        elif link is not None and not _is_ours(link):
            found.append(
                Problem(
                    "bridge_exists",
                    "colo_bridges",
                    name,
                    f"bridge {name} was made by something else and is left alone: remove it from colo_bridges, "
                    "guests can use it as it is",
                )
            )
        for port in bridge.get("ports") or []:
            found += _bridge_port_problems(state, name, port)
    return found


def _odd_bridge(name: str, bridge: t.Any) -> Problem | None:
    """What cannot be written into a file of systemd-networkd."""
    where = f"colo_bridges.{name}"
    if not _IFNAME.match(name):
        return Problem(
            "bad_input", "colo_bridges", name, "no interface can have this name: use 15 letters and digits at most"
        )
    if not isinstance(bridge, dict) or not set(bridge) <= {"ports", "address"}:
        return Problem(
            "bad_input", where, bridge, "this cannot be understood: give a dictionary with ports and address"
        )
    ports = bridge.get("ports") or []
    if not isinstance(ports, list) or not all(isinstance(port, str) and _IFNAME.match(port) for port in ports):
        return Problem("bad_input", f"{where}.ports", ports, "these are no interfaces: give a list of their names")
    try:
        # what follows a '%' may be any text
        if "address" in bridge and "%" in str(ipaddress.ip_interface(bridge["address"])):
            raise ValueError
    except ValueError:
        address = bridge["address"]
        return Problem("bad_input", f"{where}.address", address, "this is no address: give one such as 198.51.100.1/24")
    return None


def _bridge_port_problems(state: HostState, bridge: str, port: str) -> list[Problem]:
    variable = f"colo_bridges.{bridge}.ports"
    link = state.links.get(port)
    if link is None:
        return [Problem("bridge_port_missing", variable, port, f"this host has no interface {port}: correct the name")]
    if _is_ours(link):
        return []
    if link.master is not None and link.master != bridge:
        return [
            Problem(
                "bridge_port_in_use",
                variable,
                port,
                f"{port} belongs to {link.master} already: choose a free interface",
            )
        ]
    if link.addresses:
        return [
            Problem(
                "bridge_port_in_use",
                variable,
                port,
                f"{port} has the address {link.addresses[0]}, which it would lose as a port of a bridge: choose a "
                "free interface, "
                "or make the bridge yourself and leave it out of colo_bridges",
            )
        ]
    if link.network_file is not None:
        return [
            Problem(
                "bridge_port_in_use",
                variable,
                port,
                f"{port} is configured by {link.network_file}: choose a free interface, or make the bridge yourself",
            )
        ]
    return []


def _link_problems(state: HostState, definition: t.Mapping[str, t.Any]) -> list[Problem]:
    wanted = ipaddress.ip_address(definition["link"][definition["host"]])
    here = {ipaddress.ip_address(address) for link in state.links.values() for address in link.addresses}
    if wanted in here:
        return []
    return [
        Problem(
            "link_address_missing",
            f"colo_link_address of host {definition['host']}",
            str(wanted),
            f"no interface of this host has the address {wanted}: configure the link's interface, or correct the "
            "variable",
        )
    ]


def user_is_root(name: str) -> Problem:
    """QEMU would run with all rights."""
    return Problem("bad_input", "colo_user", name, "it is root under another name on this host: name another user")


def no_group(name: str) -> Problem:
    """The group whose members are to reach the monitors is not there."""
    return Problem(
        "group_missing",
        "colo_monitor_group",
        name,
        "this host has no such group: make it (groupadd), or correct the name",
    )


def same_machine(definition: t.Mapping[str, t.Any], machines: t.Mapping[str, str]) -> Problem | None:
    """The refusal of a pair (``machines``: each host's machine id, where it is known) that is one machine by two names."""
    one, two = definition["hosts"]
    if not machines.get(one) or machines.get(one) != machines.get(two):
        return None
    return Problem(
        "same_machine",
        f"colo_guests.{definition['name']}.hosts",
        [one, two],
        f"{one} and {two} are one machine (/etc/machine-id of both is {machines[one]}), which cannot protect a guest from its own "
        "death: correct ansible_host of one of them. A clone of a machine needs an id of its own: remove the file, then "
        "run systemd-machine-id-setup",
    )


def _nic_problems(state: HostState, definition: t.Mapping[str, t.Any], bridges: t.Mapping[str, t.Any]) -> list[Problem]:
    found: list[Problem] = []
    for number, nic in enumerate(definition["nics"]):
        variable = f"colo_guests.{definition['name']}.nics[{number}]"
        bridge = state.links.get(nic["bridge"])
        if nic["bridge"] not in bridges and bridge is None:
            found.append(
                Problem(
                    "bridge_missing",
                    f"{variable}.bridge",
                    nic["bridge"],
                    f"this host has no bridge {nic['bridge']}: make it, declare it in colo_bridges, or correct the "
                    "name",
                )
            )
        elif nic["bridge"] not in bridges and bridge is not None and bridge.kind != "bridge":
            found.append(
                Problem(
                    "bridge_missing",
                    f"{variable}.bridge",
                    nic["bridge"],
                    f"{nic['bridge']} is no bridge: name a bridge",
                )
            )
        tap = state.links.get(nic["tap"])
        if tap is not None and not (tap.kind == "tun" and _is_ours(tap)):
            found.append(
                Problem(
                    "tap_name_taken",
                    f"{variable}.tap",
                    nic["tap"],
                    f"an interface {nic['tap']} is there that is not ours: give the network card another tap name",
                )
            )
    return found


def _port_problems(state: HostState, definition: t.Mapping[str, t.Any]) -> list[Problem]:
    own = ipaddress.ip_address(definition["link"][definition["host"]])
    base = int(definition["port_base"])
    for listener in sorted(state.listeners, key=lambda item: item.port):
        address = ipaddress.ip_address(listener.address)
        mapped = getattr(address, "ipv4_mapped", None)
        meets = address.is_unspecified or own in (address, mapped)
        inside, own_one = base <= listener.port < base + PORTS_PER_GUEST, listener.guest == definition["name"]
        if meets and inside and not own_one:
            return [_port_taken(definition, listener)]
        if own_one and listener.qemu and not inside:
            return [
                Problem(
                    "ports_changed",
                    f"colo_guests.{definition['name']}.port_base",
                    base,
                    f"its standby on this host listens on port {listener.port} and keeps its ports for as long as it is there: put port_base "
                    f"back, or end the standby with maintenance.yml -e colo_maintenance_host={definition['host']}, then run site.yml again",
                )
            ]
    return []


def _port_taken(definition: t.Mapping[str, t.Any], listener: Listener) -> Problem:
    who, remedy = listener.process, "stop it, or choose another port_base or colo_port_base"
    if listener.guest is not None:
        who, remedy = (
            f"guest {listener.guest} ({listener.process})",
            "choose another port_base, that guest keeps its own",
        )
    return Problem(
        "port_taken",
        f"colo_guests.{definition['name']}.port_base",
        definition["port_base"],
        f"{who} listens on port {listener.port}, one of this guest's {PORTS_PER_GUEST}: {remedy}",
    )


def _accelerator_problems(state: HostState, definition: t.Mapping[str, t.Any]) -> list[Problem]:
    if definition["accelerator"] != "kvm" or state.kvm_problem is None:
        return []
    return [
        Problem(
            "kvm_unusable",
            f"colo_guests.{definition['name']}.accelerator",
            "kvm",
            f"{state.kvm_problem}: switch on virtualisation in the firmware and load the kvm module, or accept slow "
            "guests with accelerator tcg",
        )
    ]


def _disk_problems(state: HostState, definition: t.Mapping[str, t.Any]) -> list[Problem]:
    found: list[Problem] = []
    for number, disk in enumerate(definition["disks"]):
        variable = f"colo_guests.{definition['name']}.disks[{number}]"
        parent = state.images.get(parent_path(definition, disk))
        if parent is not None and parent.problem is not None:
            found.append(Problem(parent.problem[0], f"{variable}.size", disk["size_bytes"], parent.problem[1]))
        if parent is not None and parent.exists:
            continue
        source = source_of(disk)
        file = state.sources.get(source) if source is not None else None
        if file is not None and file.problem is not None:
            key = "checksum" if file.problem[0] == "image_checksum_differs" else "source"
            found.append(Problem(file.problem[0], f"{variable}.{key}", disk[key], file.problem[1]))
    return found


def _boot_problems(state: HostState, definition: t.Mapping[str, t.Any]) -> list[Problem]:
    found: list[Problem] = []
    for key in ("kernel", "initrd"):
        path = (definition["boot"] or {}).get(key)
        if path is None:
            continue
        variable = f"colo_guests.{definition['name']}.boot.{key}"
        hidden = next((top for top in _hidden(definition) if path.startswith(top + "/")), None)
        if hidden is not None:
            found.append(
                Problem(
                    "boot_file_hidden",
                    variable,
                    path,
                    f"the guest's unit does not see {hidden}: put the file below /srv or /usr/local",
                )
            )
            continue
        file = state.boot_files.get(path)
        if file is not None and file.problem is not None:
            found.append(Problem(file.problem[0], variable, path, file.problem[1]))
    return found


def _hidden(definition: t.Mapping[str, t.Any]) -> list[str]:
    """Directories that the unit of a guest does not see; of the guests' own it sees its own only, which holds no boot file."""
    own = (str(definition["paths"][kind]) for kind in ("state", "run"))
    return [*HIDDEN_DIRECTORIES, *(path.rsplit("/", 1)[0] for path in own)]


def _memory_problems(state: HostState, definitions: t.Sequence[t.Mapping[str, t.Any]]) -> list[Problem]:
    needed = needed_memory_of_all(state, definitions)
    if needed <= state.memory_available_bytes:
        return []
    biggest = max(definitions, key=lambda definition: int(definition["memory_mib"]))
    return [
        Problem(
            "memory_short",
            f"colo_guests.{biggest['name']}.memory_mib",
            biggest["memory_mib"],
            f"the guests of this host still need {mib(needed)} MiB and {mib(state.memory_available_bytes)} "
            "MiB are available; "
            "a standby needs twice its guest's memory (COLO cache): give the guests less, or the host more",
        )
    ]


def _space_problems(state: HostState, definitions: t.Sequence[t.Mapping[str, t.Any]]) -> list[Problem]:
    needs: dict[str, int] = {}
    for definition in definitions:
        directory = definition["paths"]["state"]
        for disk in definition["disks"]:
            parent = state.images.get(parent_path(definition, disk), FileState(exists=False))
            overlays = int(2 * OVERLAY_SHARE * disk["size_bytes"])
            needs[directory] = needs.get(directory, 0) + max(0, disk["size_bytes"] - parent.allocated_bytes) + overlays
    free = min(
        (state.disk_free_bytes[directory] for directory in needs if directory in state.disk_free_bytes), default=None
    )
    total = sum(needs.values())
    if free is None or total <= free:
        return []
    return [
        Problem(
            "space_short",
            "colo_state_dir",
            next(iter(needs)).rsplit("/", maxsplit=1)[0],
            f"the disks of this host's guests can grow by {mib(total)} MiB with their overlays and {mib(free)} "
            "MiB are free: "
            "make room, or set colo_state_dir to a larger file system",
        )
    ]
