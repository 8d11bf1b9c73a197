# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest is: the definition, its validation, and every name and path derived from it.

Two steps, both pure but for ``load``:

* :func:`definitions` turns the operator's ``colo_guests`` into one *definition* per guest and host (plain JSON
  types; the ``guest`` role writes it to ``<config_dir>/<guest>.json``),
* :func:`from_definition` turns a definition into a :class:`Guest`, which the modules and the keeper use.

Bad input raises :class:`InputError` naming variable, value and remedy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import json
import re
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError

SCHEMA = 1
PORTS_PER_GUEST = 32
MIB = 1024 * 1024

# The proxy modules of COLO look into Ethernet frames; a virtio NIC puts a vnet header before each.
NIC_MODELS = ("virtio-net-pci", "e1000", "e1000e", "rtl8139")
ACCELERATORS = ("kvm", "tcg")
LINK_SECURITY = ("tls", "none")

_GUEST_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")
# What an inventory calls a host goes into records, messages and the words of an administrator; not into a path or a unit.
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}\Z")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,30}\Z")
# Goes into unit files, where a space, a colon or a '%' begins something new.
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9._+-]+)+\Z")
_PART_NAME = re.compile(r"[a-z][a-z0-9]{0,14}\Z")
_IFNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}\Z")
_SIZE = re.compile(r"([1-9][0-9]{0,18})([KMGT]?)\Z")
_URL = re.compile(r"https?://[^\s\x00-\x1f\x7f\"'\\]+\Z")
# An alias, or what it stands for in one release of QEMU: a guest keeps it when the hosts get another release. None from
# before 11: with one of those a QEMU 11 and a QEMU 10 could be paired, whose COLO do not understand each other (the
# standby of QEMU 10 would run the guest as its own).
_MACHINE = re.compile(r"(pc|q35|pc-(i440fx|q35)-(1[1-9]|[2-9][0-9])\.[0-9]{1,2})\Z")
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,199}\Z")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}\Z")
_UNIT_BYTES = {"": 1, "K": 1024, "M": MIB, "G": 1024 * MIB, "T": 1024 * 1024 * MIB}

ImageKind = t.Literal["parent", "active", "hidden"]

STARTED = "started.json"


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Knobs of one guest, all with units in their names.

    ``checkpoint_delay_ms`` is QEMU's ``x-checkpoint-delay``; ``compare_timeout_ms``, ``expired_scan_cycle_ms`` and
    ``max_queue_size`` are properties of ``colo-compare``; the rest belongs to the keeper and the modules.
    ``multifd_channels`` carry the memory beside the main stream (0: none do). ``resync_limit_mib_s`` bounds the copy of
    each disk (0: not at all). ``settle_ms`` is how long a guest that was just started boots alone: see
    :func:`default_settle_ms`.
    """

    checkpoint_delay_ms: int = 1000
    compare_timeout_ms: int = 1000
    expired_scan_cycle_ms: int = 500
    max_queue_size: int = 1024
    multifd_channels: int = 0
    heartbeat_interval_ms: int = 500
    heartbeat_timeout_ms: int = 3000
    switchover_limit_ms: int = 10000
    resync_limit_mib_s: int = 0
    settle_ms: int = 0


_TUNING_RANGES: dict[str, tuple[int, int]] = {
    "checkpoint_delay_ms": (100, 600000),
    "compare_timeout_ms": (100, 60000),
    "expired_scan_cycle_ms": (50, 60000),
    "max_queue_size": (16, 65536),
    "multifd_channels": (0, 16),
    "heartbeat_interval_ms": (100, 10000),
    "heartbeat_timeout_ms": (500, 60000),
    "switchover_limit_ms": (1000, 120000),
    "resync_limit_mib_s": (0, 1000000),
    "settle_ms": (0, 600000),
}

# Knobs that go together, by what an operator wants most; each single knob overrides. The numbers behind them are in
# docs/performance.md.
DEFAULT_PROFILE = "balanced"
PROFILES: dict[str, dict[str, int]] = {
    "latency": {"checkpoint_delay_ms": 200},
    DEFAULT_PROFILE: {},
    "throughput": {"checkpoint_delay_ms": 2000},
}
_TUNING_KEYS = ("profile", *_TUNING_RANGES)


@dataclasses.dataclass(frozen=True)
class Disk:
    """One replicated disk; ``size_bytes`` is the virtual size, equal on both hosts."""

    name: str
    size_bytes: int
    source: str | None = None
    source_format: str = "qcow2"
    checksum: str | None = None


@dataclasses.dataclass(frozen=True)
class Nic:
    """One replicated network card behind the persistent tap device ``tap``."""

    name: str
    bridge: str
    mac: str
    model: str
    tap: str

    @property
    def vnet_header(self) -> bool:
        """Whether frames carry a virtio-net header (every filter and colo-compare must then be told so)."""
        return self.model.startswith("virtio")


@dataclasses.dataclass(frozen=True)
class Boot:
    """Direct kernel boot; paths are on the host and must exist on both hosts."""

    kernel: str
    initrd: str | None
    append: str


@dataclasses.dataclass(frozen=True)
class Paths:
    """Directories of one guest on one host (``config`` is shared by all guests)."""

    config: str
    state: str
    run: str


@dataclasses.dataclass(frozen=True)
class Guest:
    """A guest as one of its two hosts sees it."""

    name: str
    host: str
    hosts: tuple[str, str]
    link: t.Mapping[str, str]
    memory_mib: int
    vcpus: int
    machine: str
    cpu: str
    accelerator: str
    qemu_binary: str
    user: str
    link_security: str
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    boot: Boot | None
    port_base: int
    tuning: Tuning
    paths: Paths

    @property
    def peer(self) -> str:
        """Name of the other host."""
        return self.hosts[1] if self.host == self.hosts[0] else self.hosts[0]

    @property
    def link_address(self) -> str:
        """This host's address on the link."""
        return self.link[self.host]

    @property
    def peer_address(self) -> str:
        """The other host's address on the link."""
        return self.link[self.peer]

    @property
    def qmp_socket(self) -> str:
        """Monitor used by the modules."""
        return f"{self.paths.run}/qmp.sock"

    @property
    def keeper_qmp_socket(self) -> str:
        """Monitor held by the keeper, with out-of-band commands enabled."""
        return f"{self.paths.run}/keeper-qmp.sock"

    @property
    def operator_socket(self) -> str:
        """Monitor nobody of ours uses: a human's. (A second client on one monitor never gets a greeting.)

        In a directory of its own, which may belong to a group (``colo_monitor_group``): QEMU has no option for who owns a socket.
        """
        return f"{self.paths.run}/operator/qmp.sock"

    @property
    def keeper_socket(self) -> str:
        """The keeper's own API."""
        return f"{self.paths.run}/keeper.sock"

    @property
    def permit_file(self) -> str:
        """The start permit; without it the unit refuses to start QEMU."""
        return f"{self.paths.run}/permit.json"

    @property
    def started_file(self) -> str:
        """What the running QEMU was started with (:func:`shape`)."""
        return f"{self.paths.run}/{STARTED}"

    @property
    def lock_file(self) -> str:
        """Held by the one module that changes this guest."""
        return f"{self.paths.run}/lock"

    @property
    def record_file(self) -> str:
        """The generation record."""
        return f"{self.paths.state}/record.json"

    @property
    def definition_file(self) -> str:
        """This definition on disk."""
        return f"{self.paths.config}/{self.name}.json"

    @property
    def tls(self) -> bool:
        """Whether what the two QEMUs say to each other is encrypted and authenticated."""
        return self.link_security == "tls"

    @property
    def key_file(self) -> str:
        """The guest's key, the same on both hosts; root's."""
        return f"{self.paths.config}/{self.name}.key"

    @property
    def psk_file(self) -> str:
        """What QEMU reads of it; the name is QEMU's."""
        return f"{self.paths.run}/keys.psk"

    @property
    def unit(self) -> str:
        """systemd unit of the QEMU process."""
        return unit_name(self.name)

    @property
    def keeper_unit(self) -> str:
        """systemd unit of the keeper."""
        return f"colo-keeper@{self.name}.service"

    @property
    def port_migration(self) -> int:
        """TCP port of the migration stream on the standby's link address."""
        return self.port_base

    @property
    def port_nbd(self) -> int:
        """TCP port of the NBD server on the standby's link address."""
        return self.port_base + 1

    @property
    def port_heartbeat(self) -> int:
        """TCP port of the standby's keeper."""
        return self.port_base + 2

    def port_mirror(self, nic: int) -> int:
        """TCP port that takes the mirrored packets of NIC number ``nic``."""
        return self.port_base + 4 + 2 * nic

    def port_compare(self, nic: int) -> int:
        """TCP port that hands out the standby's packets of NIC number ``nic`` for comparison."""
        return self.port_base + 5 + 2 * nic

    def image(self, disk: Disk, kind: ImageKind) -> str:
        """Path of one image: the parent holds the data, active and hidden are disposable overlays."""
        return (
            f"{self.paths.state}/{disk.name}.qcow2"
            if kind == "parent"
            else f"{self.paths.state}/{disk.name}.{kind}.qcow2"
        )


# --- the operator's words -> definitions -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HostDefaults:
    """What the inventory says about all guests; the names are those of the variables without ``colo_``."""

    accelerator: str = "kvm"
    port_base: int = 9000
    config_dir: str = "/etc/lockstep-colo"
    state_dir: str = "/var/lib/lockstep-colo"
    run_dir: str = "/run/lockstep-colo"
    user: str = "colo"
    qemu_binary: str = "/usr/bin/qemu-system-x86_64"
    link_security: str = "tls"
    monitor_group: str = ""
    python: str = "/usr/bin/python3"
    lib_dir: str = "/usr/local/lib/lockstep-colo"


def check_host(defaults: HostDefaults) -> None:
    """Refuse what cannot be used in a unit file, and a user that would take QEMU's confinement away."""
    for name in ("python", "config_dir", "state_dir", "run_dir", "lib_dir", "qemu_binary"):
        _plain_path(f"colo_{name}", getattr(defaults, name))
    words = "give a name of lower-case letters, digits, '_' and '-', 31 at most, that begins with a letter or '_'"
    _matching("colo_user", defaults.user, _ACCOUNT, words)
    if defaults.user == "root":
        raise InputError(
            "colo_user", defaults.user, "QEMU does not run as root: name a user that is nothing else's, such as colo"
        )
    if defaults.monitor_group != "":
        _matching("colo_monitor_group", defaults.monitor_group, _ACCOUNT, f"{words}, or nothing")
    if defaults.monitor_group == defaults.user:
        raise InputError(
            "colo_monitor_group",
            defaults.monitor_group,
            "the user's own group has the other monitors: name another group",
        )


def size_bytes(variable: str, value: t.Any) -> int:
    """Read a size such as ``64M``; powers of 1024, a multiple of 512 (a disk is made of sectors)."""
    match = _SIZE.match(str(value))
    if isinstance(value, bool) or match is None:
        raise InputError(variable, value, "write a size as a whole number with K, M, G or T, such as 20G")
    size = int(match.group(1)) * _UNIT_BYTES[match.group(2)]
    if size % 512:
        raise InputError(variable, value, "a disk's size is a multiple of 512 bytes")
    return size


def _integer(variable: str, value: t.Any, low: int, high: int) -> int:
    text = str(value)
    if isinstance(value, (bool, float)) or not re.match(r"-?[0-9]{1,18}\Z", text):
        raise InputError(variable, value, f"give a whole number from {low} to {high}")
    if not low <= int(text) <= high:
        raise InputError(variable, value, f"give a whole number from {low} to {high}")
    return int(text)


def _matching(variable: str, value: t.Any, pattern: re.Pattern[str], remedy: str) -> str:
    if not isinstance(value, str) or pattern.match(value) is None:
        raise InputError(variable, value, remedy)
    return value


def _choice(variable: str, value: t.Any, choices: t.Sequence[str]) -> str:
    if value not in choices:
        raise InputError(variable, value, "choose one of " + ", ".join(choices))
    return str(value)


def _path(variable: str, value: t.Any) -> str:
    if (
        not isinstance(value, str)
        or not value.startswith("/")
        or re.search(r"[\x00-\x1f\x7f%$\"'\\]", value)
        or "/../" in value + "/"
    ):
        raise InputError(variable, value, "give an absolute path without quotes, '%', '$', '..' or control characters")
    return value


def _plain_path(variable: str, value: t.Any) -> str:
    path = _matching(variable, value, _PLAIN_PATH, "give an absolute path of letters, digits and . _ + -")
    if not {".", ".."}.isdisjoint(path.split("/")):
        raise InputError(variable, value, "give an absolute path without '.' and '..'")
    return path


def _known_keys(
    variable: str, value: t.Any, required: t.Collection[str], optional: t.Collection[str]
) -> dict[str, t.Any]:
    if not isinstance(value, t.Mapping):
        raise InputError(variable, value, "give a dictionary")
    for key in value:
        if key in ("vlan", "vhost", "queues", "iothread", "hostdev", "vfio"):
            raise InputError(
                f"{variable}.{key}",
                value[key],
                "COLO cannot replicate this; remove it (no vhost, multiqueue, VLAN, iothread or passthrough)",
                "unsupported_device",
            )
        if key not in required and key not in optional:
            raise InputError(
                f"{variable}.{key}", value[key], "unknown key; known are " + ", ".join(sorted({*required, *optional}))
            )
    for key in required:
        if key not in value:
            raise InputError(f"{variable}.{key}", None, "this key is required")
    return dict(value)


def guest_name(variable: str, value: t.Any) -> str:
    """A guest's name, which is part of paths, units and interfaces."""
    return _matching(
        variable, value, _GUEST_NAME, "name a guest with a-z, 0-9 and '-', beginning with a letter, 31 at most"
    )


def unit_name(guest: str) -> str:
    """Name of the systemd unit of a guest's QEMU."""
    return f"colo-guest@{guest}.service"


def tap_name(guest: str, nic: str) -> str:
    """Name of the tap device: readable where it fits into the kernel's 15 characters, else a digest."""
    name = f"{guest}-{nic}"
    return name if len(name) <= 15 else "colo" + hashlib.sha256(name.encode()).hexdigest()[:10]


def _disks(variable: str, value: t.Any) -> list[dict[str, t.Any]]:
    if not isinstance(value, list) or not value:
        raise InputError(variable, value, "give a list with at least one disk")
    disks: list[dict[str, t.Any]] = []
    for number, raw in enumerate(value):
        where = f"{variable}[{number}]"
        entry = _known_keys(where, raw, ("name", "size"), ("source", "source_format", "checksum"))
        source = entry.get("source")
        if source is not None and _URL.match(str(source)) is None:
            source = _path(f"{where}.source", source)
        checksum = entry.get("checksum")
        if checksum is not None:
            checksum = _matching(f"{where}.checksum", checksum, _CHECKSUM, "write sha256: and 64 lower-case hex digits")
        if source is not None and source.startswith("http") and checksum is None:
            raise InputError(f"{where}.checksum", None, "a source that is downloaded needs its checksum (sha256:...)")
        disks.append(
            {
                "name": _matching(
                    f"{where}.name", entry["name"], _PART_NAME, "use a-z and 0-9, beginning with a letter, 15 at most"
                ),
                "size_bytes": size_bytes(f"{where}.size", entry["size"]),
                "source": source,
                "source_format": _choice(
                    f"{where}.source_format", entry.get("source_format", "qcow2"), ("qcow2", "raw")
                ),
                "checksum": checksum,
            }
        )
    _no_twice(variable, [disk["name"] for disk in disks])
    return disks


def _nics(variable: str, value: t.Any, guest: str) -> list[dict[str, t.Any]]:
    if not isinstance(value, list) or not value:
        raise InputError(variable, value, "give a list with at least one network card")
    # port_mirror and port_compare take two ports each after the first four
    if len(value) > (PORTS_PER_GUEST - 4) // 2:
        raise InputError(variable, len(value), f"a guest has at most {(PORTS_PER_GUEST - 4) // 2} network cards")
    nics: list[dict[str, t.Any]] = []
    for number, raw in enumerate(value):
        where = f"{variable}[{number}]"
        entry = _known_keys(where, raw, ("name", "bridge", "mac"), ("model", "tap"))
        name = _matching(
            f"{where}.name", entry["name"], _PART_NAME, "use a-z and 0-9, beginning with a letter, 15 at most"
        )
        mac = _matching(
            f"{where}.mac", str(entry["mac"]).lower(), _MAC, "write six pairs of hex digits such as 52:54:00:12:34:56"
        )
        if int(mac[:2], 16) & 1:
            raise InputError(f"{where}.mac", mac, "this is a multicast address; clear the lowest bit of the first byte")
        nics.append(
            {
                "name": name,
                "bridge": _matching(
                    f"{where}.bridge", entry["bridge"], _IFNAME, "give an interface name of 15 characters at most"
                ),
                "mac": mac,
                "model": _choice(f"{where}.model", entry.get("model", "virtio-net-pci"), NIC_MODELS),
                "tap": _matching(
                    f"{where}.tap",
                    entry.get("tap", tap_name(guest, name)),
                    _IFNAME,
                    "give an interface name of 15 characters at most",
                ),
            }
        )
    _no_twice(variable, [nic["name"] for nic in nics])
    return nics


def _no_twice(variable: str, names: t.Sequence[t.Any]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(variable, name, "it is there twice; each may be there once", "duplicate")


def _boot(variable: str, value: t.Any) -> dict[str, t.Any] | None:
    if value is None:
        return None
    entry = _known_keys(variable, value, ("kernel",), ("initrd", "append"))
    append = entry.get("append", "")
    if not isinstance(append, str) or re.search(r"[\x00-\x1f\x7f]", append):
        raise InputError(f"{variable}.append", append, "give one line of text")
    initrd = entry.get("initrd")
    return {
        "kernel": _path(f"{variable}.kernel", entry["kernel"]),
        "initrd": None if initrd is None else _path(f"{variable}.initrd", initrd),
        "append": append,
    }


def default_settle_ms(accelerator: str) -> int:
    """Under TCG a guest that loads code while in lock step ruins its standby: QEMU 11.1 keeps translations of pages that a
    checkpoint has replaced, and the standby's guest runs into old code. Measured: 2 of 11 boots in lock step.
    """
    return 15000 if accelerator == "tcg" else 0


def _tuning(variable: str, value: t.Any, accelerator: str) -> dict[str, int]:
    entry = _known_keys(variable, value, (), _TUNING_KEYS)
    profile = _choice(f"{variable}.profile", entry.get("profile", DEFAULT_PROFILE), tuple(PROFILES))
    merged = {
        **dataclasses.asdict(Tuning()),
        "settle_ms": default_settle_ms(accelerator),
        **PROFILES[profile],
        **entry,
    }
    checked = {key: _integer(f"{variable}.{key}", merged[key], *_TUNING_RANGES[key]) for key in _TUNING_RANGES}
    if checked["heartbeat_timeout_ms"] < 2 * checked["heartbeat_interval_ms"]:
        raise InputError(
            f"{variable}.heartbeat_timeout_ms",
            checked["heartbeat_timeout_ms"],
            "allow at least two intervals (heartbeat_interval_ms)",
        )
    return checked


def _link(variable: str, hosts: t.Sequence[str], links: t.Mapping[str, t.Any]) -> dict[str, str]:
    result: dict[str, str] = {}
    for host in hosts:
        if host not in links:
            raise InputError(
                f"{variable}.hosts",
                host,
                "this host is not in the inventory group colo_hosts: add it, or correct the name",
                "unknown_host",
            )
        try:
            address = ipaddress.ip_address(str(links[host]))
        except ValueError:
            raise InputError(
                f"colo_link_address of host {host}",
                links[host],
                "set it to this host's IP address on the link between the pair",
            ) from None
        # what follows a '%' may be any text, and goes into firewall rules
        if address.is_unspecified or address.is_multicast or "%" in str(address):
            raise InputError(
                f"colo_link_address of host {host}",
                str(address),
                "give one unicast address, without a scope; nothing listens on all of them",
            )
        result[host] = str(address)
    if len({":" in address for address in result.values()}) > 1:
        raise InputError(
            f"colo_link_address of host {hosts[1]}",
            result[hosts[1]],
            f"{hosts[0]} has {result[hosts[0]]}; give addresses that are both IPv4, or both IPv6",
        )
    if len(set(result.values())) != len(result):
        raise InputError(
            f"colo_link_address of host {hosts[1]}",
            result[hosts[1]],
            "both hosts have the same address; each needs its own",
        )
    return result


_REQUIRED = ("hosts", "memory_mib", "disks", "nics")
_OPTIONAL = ("state", "vcpus", "machine", "cpu", "accelerator", "boot", "port_base", "tuning")

State = t.Literal["", "started", "stopped", "restarted"]


def state(variable: str, value: t.Any, once: bool = False) -> State:
    """What an operator may want of a guest's power; ``restarted`` is good for one run only, not as a lasting wish."""
    if value == "":
        return ""
    lasting = ("started", "stopped")
    return t.cast("State", _choice(variable, value, (*lasting, "restarted") if once else lasting))


def _pair(
    name: str, raw: t.Any, port_base: t.Any, links: t.Mapping[str, t.Any], defaults: HostDefaults
) -> dict[str, t.Any]:
    """The part of a definition that is the same on both hosts."""
    guest_name("colo_guests", name)
    variable = f"colo_guests.{name}"
    entry = _known_keys(variable, raw, _REQUIRED, _OPTIONAL)
    hosts = entry["hosts"]
    if not isinstance(hosts, list) or len(hosts) != 2 or not all(isinstance(host, str) for host in hosts):
        raise InputError(f"{variable}.hosts", hosts, "name the two hosts of the pair")
    for host in hosts:
        _matching(
            f"{variable}.hosts",
            host,
            _HOST_NAME,
            "call a host in the inventory by letters, digits, '.', '_' and '-' (how it is reached is ansible_host)",
        )
    if hosts[0] == hosts[1]:
        raise InputError(
            f"{variable}.hosts", hosts, "one host cannot protect a guest from its own death; name two different hosts"
        )
    state(f"{variable}.state", entry.get("state", ""))
    accelerator = _choice(f"{variable}.accelerator", entry.get("accelerator", defaults.accelerator), ACCELERATORS)
    return {
        "schema": SCHEMA,
        "name": name,
        "hosts": hosts,
        "link": _link(variable, hosts, links),
        "memory_mib": _integer(f"{variable}.memory_mib", entry["memory_mib"], 16, 16 * MIB),
        "vcpus": _integer(f"{variable}.vcpus", entry.get("vcpus", 1), 1, 255),
        "machine": _matching(
            f"{variable}.machine",
            entry.get("machine", "pc"),
            _MACHINE,
            "choose pc or q35, or name a release's, such as pc-i440fx-11.1 or pc-q35-11.1",
        ),
        "cpu": _matching(
            f"{variable}.cpu",
            entry.get("cpu", "host" if accelerator == "kvm" else "qemu64"),
            _CPU,
            "give a CPU model and features as QEMU's -cpu takes them",
        ),
        "accelerator": accelerator,
        "qemu_binary": defaults.qemu_binary,
        "user": defaults.user,
        "link_security": _choice("colo_link_security", defaults.link_security, LINK_SECURITY),
        "disks": _disks(f"{variable}.disks", entry["disks"]),
        "nics": _nics(f"{variable}.nics", entry["nics"], name),
        "boot": _boot(f"{variable}.boot", entry.get("boot")),
        "port_base": _integer(f"{variable}.port_base", port_base, 1024, 65536 - PORTS_PER_GUEST),
        "tuning": _tuning(f"{variable}.tuning", entry.get("tuning", {}), accelerator),
    }


def _allot(
    guests: t.Mapping[t.Any, t.Any], kept: t.Mapping[str, t.Mapping[str, t.Any]], first: t.Any
) -> dict[str, t.Any]:
    """The first port of each guest: what its definition says, else what it has on its hosts (``kept``), else the first free block
    from ``first`` on.

    So a guest that comes or goes moves no other one's ports, over which that one may be protected. Nothing is checked here.
    """
    allotted: dict[str, t.Any] = {}
    for name, raw in guests.items():
        entry = raw if isinstance(raw, t.Mapping) else {}
        hosts = entry["hosts"] if isinstance(entry.get("hosts"), list) else []
        has = [kept[host][str(name)] for host in map(str, hosts) if str(name) in kept.get(host, {})]
        if "port_base" in entry or has:
            allotted[str(name)] = entry["port_base"] if "port_base" in entry else has[0]
    # those of guests that were taken out of colo_guests and are still deployed are taken, too
    taken = [*allotted.values(), *(base for bases in kept.values() for base in bases.values())]
    blocks = [int(str(base)) for base in taken if re.match(r"[0-9]{1,5}\Z", str(base))]
    base = _integer("colo_port_base", first, 1024, 65536 - PORTS_PER_GUEST)
    for name in map(str, guests):
        if name not in allotted:
            while any(abs(base - block) < PORTS_PER_GUEST for block in blocks):
                base += PORTS_PER_GUEST
            allotted[name] = base
            blocks.append(base)
    return allotted


def definitions(
    guests: t.Any,
    host: str,
    links: t.Mapping[str, t.Any],
    defaults: HostDefaults,
    kept: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
) -> list[dict[str, t.Any]]:
    """The definitions of all guests that have ``host`` in their pair, in the order of ``colo_guests``.

    ``links`` maps every host of the group to its link address, ``kept`` a host to the first ports of the guests that are
    deployed there. All guests are checked, not only this host's, so that every host refuses bad input alike.
    """
    check_host(defaults)
    if not isinstance(guests, t.Mapping):
        raise InputError("colo_guests", guests, "give a dictionary of guests")
    ports = _allot(guests, kept or {}, defaults.port_base)
    pairs = [_pair(str(name), raw, ports[str(name)], links, defaults) for name, raw in guests.items()]
    _clashes(pairs)
    return [
        {
            **pair,
            "host": host,
            "peer": next(other for other in pair["hosts"] if other != host),
            "paths": {
                "config": defaults.config_dir,
                "state": f"{defaults.state_dir}/{pair['name']}",
                "run": f"{defaults.run_dir}/{pair['name']}",
            },
        }
        for pair in pairs
        if host in pair["hosts"]
    ]


def _clashes(pairs: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    """Refuse two guests that would meet: same port block, tap or MAC on a shared host."""
    for position, one in enumerate(pairs):
        for other in pairs[:position]:
            if not set(one["hosts"]) & set(other["hosts"]):
                continue
            if abs(one["port_base"] - other["port_base"]) < PORTS_PER_GUEST:
                raise InputError(
                    f"colo_guests.{one['name']}.port_base",
                    one["port_base"],
                    f"guest {other['name']} has {other['port_base']}; each guest needs {PORTS_PER_GUEST} ports of its own",
                    "port_clash",
                )
    for key in ("tap", "mac"):
        seen: dict[tuple[str, str], tuple[str, int]] = {}
        for pair in pairs:
            for number, nic in enumerate(pair["nics"]):
                for host in pair["hosts"]:
                    card = (pair["name"], number)
                    if seen.setdefault((host, nic[key]), card) != card:
                        raise InputError(
                            f"colo_guests.{pair['name']}.nics[{number}].{key}",
                            nic[key],
                            f"another network card on host {host} has it; give each its own",
                            "duplicate",
                        )


def shape(definition: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What a QEMU has from its start to its end: keys of ``colo_guests`` whose change needs a restart of the guest.

    ``definition`` is one, or a :class:`Guest` as a dictionary.
    """
    keys = ("memory_mib", "vcpus", "machine", "cpu", "accelerator", "boot")
    return {
        **{key: definition[key] for key in keys},
        "disks": [{key: disk[key] for key in ("name", "size_bytes")} for disk in definition["disks"]],
        "nics": [{key: nic[key] for key in ("name", "mac", "model", "tap")} for nic in definition["nics"]],
    }


@dataclasses.dataclass(frozen=True)
class Change:
    """A key of a running guest whose value differs from what is wished."""

    variable: str
    running: t.Any
    wished: t.Any

    def __str__(self) -> str:
        return f"{self.variable}: {json.dumps(self.running)} -> {json.dumps(self.wished)}"


def changes(started: t.Mapping[str, t.Any] | None, definition: t.Mapping[str, t.Any]) -> list[Change]:
    """Where a QEMU that was ``started`` so differs from ``definition``; nothing when that is not known."""
    if not started:
        return []
    return [
        Change(f"colo_guests.{definition['name']}.{key}", started[key], wished)
        for key, wished in shape(definition).items()
        if key in started and started[key] != wished and not (key == "machine" and _named(started[key], wished))
    ]


def as_started(guest: Guest, started: t.Mapping[str, t.Any] | None) -> Guest:
    """The guest with the disks and network cards that its QEMU was ``started`` with, whatever its definition says by now."""
    if not started or not {"disks", "nics"} <= started.keys():
        return guest
    disks = {disk.name: disk for disk in guest.disks}
    bridges = {nic.name: nic.bridge for nic in guest.nics}
    return dataclasses.replace(
        guest,
        disks=tuple(disks.get(disk["name"], Disk(**disk)) for disk in started["disks"]),
        nics=tuple(Nic(bridge=bridges.get(nic["name"], ""), **nic) for nic in started["nics"]),
    )


def _named(alias: t.Any, machine: t.Any) -> bool:
    """Whether ``machine`` may be what the alias stood for. QEMU itself refuses a guest from another release's machine."""
    return str(machine).startswith({"pc": "pc-i440fx-", "q35": "pc-q35-"}.get(alias, "\n"))


# --- definitions -> Guest ---------------------------------------------------------------------------------------


def from_definition(raw: t.Mapping[str, t.Any]) -> Guest:
    """Read one definition (as written by the ``guest`` role)."""
    if raw.get("schema") != SCHEMA:
        raise ColoError(
            "definition_unreadable",
            f"definition has schema {raw.get('schema')!r}, this release reads {SCHEMA}: run site.yml of the same release",
        )
    try:
        guest = Guest(
            name=raw["name"],
            host=raw["host"],
            hosts=(raw["hosts"][0], raw["hosts"][1]),
            link=dict(raw["link"]),
            memory_mib=raw["memory_mib"],
            vcpus=raw["vcpus"],
            machine=raw["machine"],
            cpu=raw["cpu"],
            accelerator=raw["accelerator"],
            qemu_binary=raw["qemu_binary"],
            user=raw["user"],
            link_security=raw["link_security"],
            disks=tuple(Disk(**disk) for disk in raw["disks"]),
            nics=tuple(Nic(**nic) for nic in raw["nics"]),
            boot=None if raw["boot"] is None else Boot(**raw["boot"]),
            port_base=raw["port_base"],
            tuning=Tuning(**raw["tuning"]),
            paths=Paths(**raw["paths"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as exc:
        raise ColoError(
            "definition_unreadable", f"definition is incomplete ({exc}): run site.yml again to write it"
        ) from exc
    if guest.host not in guest.hosts or guest.link.keys() != set(guest.hosts):
        raise ColoError(
            "definition_unreadable",
            f"definition of {guest.name} is for {guest.host}, with links of {', '.join(map(str, guest.link))}, and the pair is "
            f"{', '.join(map(str, guest.hosts))}: run site.yml again to write it",
        )
    return guest


def load(path: str) -> Guest:
    """Read the definition file at ``path`` (errors: ``guest_unknown``, ``definition_unreadable``)."""
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
    except FileNotFoundError:
        raise ColoError(
            "guest_unknown", f"{path} does not exist: this guest is not deployed on this host; run site.yml"
        ) from None
    except (OSError, ValueError) as exc:
        raise ColoError(
            "definition_unreadable", f"{path} cannot be read ({exc}): run site.yml again to write it"
        ) from exc
    if not isinstance(raw, dict):
        raise ColoError("definition_unreadable", f"{path} holds no definition: run site.yml again to write it")
    return from_definition(raw)
