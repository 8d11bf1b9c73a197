# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an installed QEMU can do, decided from its own answers.

Pure: :data:`PROBE` is what to ask a QEMU over QMP, :func:`features` reads the answers, :func:`refusals` says why a
definition cannot be protected with it. Everything that differs between QEMU releases is decided here, and nothing is
kept between calls: the next package upgrade may change every answer.
"""

from __future__ import annotations

import dataclasses
import typing as t

#: Questions to a QEMU, by the id their answer carries. Two do not only read, and are for a QEMU that was started to be asked
#: and quits afterwards: ``return_path`` switches a migration capability on, ``tls_psk`` makes credentials from a key that
#: does not exist. The refusal of these two is the answer.
PROBE: dict[str, tuple[str, dict[str, t.Any]]] = {
    "version": ("query-version", {}),
    "schema": ("query-qmp-schema", {}),
    "capabilities": ("query-migrate-capabilities", {}),
    "objects": ("qom-list-types", {"implements": "user-creatable"}),
    "accelerators": ("qom-list-types", {"implements": "accel"}),
    "devices": ("qom-list-types", {"implements": "pci-device"}),
    "machines": ("query-machines", {}),
    "cpus": ("query-cpu-definitions", {}),
    "return_path": ("migrate-set-capabilities", {"capabilities": [{"capability": "x-colo", "state": True}]}),
    "tls_psk": (
        "object-add",
        {"qom-type": "tls-creds-psk", "id": "probe", "endpoint": "client", "dir": "/nonexistent"},
    ),
}
REFUSED = ("return_path", "tls_psk")

WORKING = "QEMU 11.1.3 or later"
NEEDED_CAPABILITIES = ("events", "pause-before-switchover", "x-colo")
NEEDED_DRIVERS = ("nbd", "qcow2", "quorum", "replication")
NEEDED_OBJECTS = ("colo-compare", "filter-mirror", "filter-redirector", "filter-rewriter", "iothread")
NEEDED_COMMANDS = (
    "block-export-add",
    "blockdev-add",
    "blockdev-mirror",
    "chardev-add",
    "migrate-continue",
    "migrate-incoming",
    "nbd-server-start",
    "object-add",
    "query-colo-status",
    "x-blockdev-change",
    "x-colo-lost-heartbeat",
    "yank",
)

Version = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One reason to refuse: what, where it was said, what was said, and what helps."""

    error_code: str
    variable: str
    value: t.Any
    message: str

    def as_dict(self) -> dict[str, t.Any]:
        """The same as plain JSON types, for a module's result, with one line that says it all."""
        return {
            **dataclasses.asdict(self),
            "line": f"{self.error_code}: {self.variable}: {self.value!r}: {self.message}",
        }


@dataclasses.dataclass(frozen=True)
class Features:
    """What one QEMU binary can do.

    ``return_path`` says whether x-colo ``requires`` the capability return-path or fails with it (``refuses``).
    ``reconnect`` is the name of the chardev option, ``None`` where this QEMU has neither.
    ``device_state`` says whether a migration passes through the state ``device`` between pre-switchover and colo.
    """

    version: Version
    package: str
    commands: frozenset[str]
    capabilities: frozenset[str]
    block_drivers: frozenset[str]
    objects: frozenset[str]
    accelerators: frozenset[str]
    nic_models: frozenset[str]
    machines: frozenset[str]
    cpus: frozenset[str]
    return_path: t.Literal["requires", "refuses"]
    reconnect: t.Literal["reconnect-ms", "reconnect"] | None
    device_state: bool
    tls_psk: bool

    @property
    def version_text(self) -> str:
        """The version as people write it."""
        return ".".join(str(part) for part in self.version)

    def missing(self) -> list[str]:
        """Everything COLO needs that this QEMU was built without."""
        return [
            *(f"migration capability {name}" for name in NEEDED_CAPABILITIES if name not in self.capabilities),
            *(f"block driver {name}" for name in NEEDED_DRIVERS if name not in self.block_drivers),
            *(f"object {name}" for name in NEEDED_OBJECTS if name not in self.objects),
            *(f"command {name}" for name in NEEDED_COMMANDS if name not in self.commands),
            *(["chardev option reconnect-ms"] if self.reconnect is None else []),
        ]

    def as_dict(self) -> dict[str, t.Any]:
        """What a module returns: the answers COLO depends on, not the long lists."""
        return {
            "version": self.version_text,
            "package": self.package,
            "missing": self.missing(),
            "accelerators": sorted(self.accelerators),
            "machines": sorted(self.machines & {"pc", "q35"}),
            "return_path": self.return_path,
            "reconnect": self.reconnect,
            "device_state": self.device_state,
            "multifd": "multifd" in self.capabilities,
            "tls_psk": self.tls_psk,
        }


class _Schema:
    """The part of ``query-qmp-schema`` that can be asked by name: commands, and the types below their arguments."""

    def __init__(self, entities: t.Sequence[t.Mapping[str, t.Any]]) -> None:
        self._entities = {str(entity["name"]): entity for entity in entities}

    def commands(self) -> frozenset[str]:
        return frozenset(name for name, entity in self._entities.items() if entity.get("meta-type") == "command")

    def arguments(self, command: str) -> t.Mapping[str, t.Any]:
        return self._entities.get(str(self._entities.get(command, {}).get("arg-type")), {})

    def member(self, entity: t.Mapping[str, t.Any], name: str) -> t.Mapping[str, t.Any]:
        """The type of a member, or of the variant, called ``name``; empty when there is none."""
        for member in entity.get("members", []):
            if isinstance(member, dict) and member.get("name") == name:
                return self._entities.get(str(member["type"]), {})
        for variant in entity.get("variants", []):
            if variant.get("case") == name:
                return self._entities.get(str(variant["type"]), {})
        return {}

    def names(self, entity: t.Mapping[str, t.Any]) -> frozenset[str]:
        """Member names of an object, or values of an enumeration."""
        members = entity.get("members") or entity.get("values") or []
        return frozenset(str(member["name"] if isinstance(member, dict) else member) for member in members)


def _names(rows: t.Any) -> frozenset[str]:
    return frozenset(str(row["name"]) for row in rows or [])


def features(answers: t.Mapping[str, t.Any]) -> Features:
    """Read the answers to :data:`PROBE`, by id: a command's return value, or ``{"error": text}`` where it was refused.

    Answers that are not there count as "cannot": only ``version`` and ``schema`` are needed.
    """
    triple = answers["version"]["qemu"]
    version: Version = (triple["major"], triple["minor"], triple["micro"])
    schema = _Schema(answers["schema"])
    blockdev = schema.arguments("blockdev-add")
    backend = schema.member(schema.arguments("chardev-add"), "backend")
    socket = schema.names(schema.member(schema.member(backend, "socket"), "data"))
    machines = answers.get("machines") or []
    return Features(
        version=version,
        package=str(answers["version"].get("package", "")),
        commands=schema.commands(),
        capabilities=frozenset(str(row["capability"]) for row in answers.get("capabilities") or []),
        block_drivers=schema.names(schema.member(blockdev, "driver")),
        objects=_names(answers.get("objects")),
        accelerators=frozenset(name.removesuffix("-accel") for name in _names(answers.get("accelerators"))),
        nic_models=_names(answers.get("devices")),
        machines=_names(machines) | frozenset(str(row["alias"]) for row in machines if "alias" in row),
        cpus=_names(answers.get("cpus")),
        return_path=_return_path(version, answers.get("return_path")),
        reconnect="reconnect-ms" if "reconnect-ms" in socket else "reconnect" if "reconnect" in socket else None,
        device_state=version >= (8, 0, 0),
        tls_psk=_tls_psk(answers.get("tls_psk")),
    )


def _tls_psk(answer: t.Any) -> bool:
    """A QEMU that knows TLS looks for the key, and misses it; the object is there in a build without GnuTLS, too."""
    return isinstance(answer, dict) and "Unable to access credentials" in str(answer.get("error"))


def _return_path(version: Version, answer: t.Any) -> t.Literal["requires", "refuses"]:
    """Setting x-colo alone is refused where return-path is required; a running QEMU cannot be asked, so by release."""
    if isinstance(answer, dict) and "error" in answer:
        return "requires" if "return-path" in str(answer["error"]) else "refuses"
    if answer is not None:
        return "refuses"
    return "requires" if version >= (11, 0, 0) else "refuses"


def version_refusal(version: Version) -> str | None:
    """Why a release cannot be used at all, or ``None``."""
    text = ".".join(str(part) for part in version)
    if version < (8, 0, 0):
        return (
            f"QEMU {text} cannot enter COLO from a guest that runs: a migration that pauses before its switchover ends in state "
            f"completed (seen on 7.2.22). Install {WORKING}"
        )
    if (10, 0, 0) <= version <= (10, 0, 6) or (10, 1, 0) <= version <= (10, 1, 2):
        return (
            f"QEMU {text} cannot enter COLO: its migration ends in state completed (fixed in 10.0.7, 10.1.3 and 10.2). "
            f"Install {WORKING}"
        )
    return None


def mixed(guest: str, found: t.Mapping[str, Version]) -> Problem | None:
    """The refusal of a pair (host to version) of which one has QEMU 11 and the other an earlier one.

    They do not understand each other's COLO. Seen with 11.1.3 and 10.0.13: a standby of 10.0 takes the guest of an 11.1
    primary for an ordinary migration and runs it.
    """
    if len({version < (11, 0, 0) for version in found.values()}) < 2:
        return None
    words = {host: ".".join(map(str, version)) for host, version in found.items()}
    return Problem(
        "qemu_mixed",
        f"colo_guests.{guest}.hosts",
        words,
        "their QEMUs do not understand each other's COLO: install the same series on both (docs/runbooks/maintenance.md)",
    )


#: CPU models that are whatever the host's processor is
HOST_CPUS = ("host", "max")


def takes_host_cpu(definition: t.Mapping[str, t.Any]) -> bool:
    """Whether the guest's processor is whatever its host's is."""
    return definition["accelerator"] == "kvm" and str(definition["cpu"]).split(",", maxsplit=1)[0] in HOST_CPUS


def processor_differs(guest: str, found: t.Mapping[str, str]) -> Problem | None:
    """The refusal of a guest with its hosts' processor (host to its kind), where the two are not of one kind.

    The standby would be another machine than its primary, and run into instructions that it does not have.
    """
    if len(set(found.values())) < 2:
        return None
    return Problem(
        "cpu_differs",
        f"colo_guests.{guest}.cpu",
        dict(found),
        "a guest that has its host's processor needs the same kind on both: give a model that both have (qemu-system-x86_64 -cpu help)",
    )


def tested(version: Version) -> bool:
    """Whether this release series is one COLO was seen to work on."""
    return version[:2] in ((10, 0), (10, 1), (10, 2), (11, 1))


def refusals(found: Features | None, definition: t.Mapping[str, t.Any], accept_untested: bool = False) -> list[Problem]:
    """Why this QEMU (``None``: there is none) cannot protect the guest of ``definition``; empty when it can."""
    binary = definition["qemu_binary"]
    guest = f"colo_guests.{definition['name']}"
    if found is None:
        return [Problem("qemu_missing", "colo_qemu_binary", binary, f"{binary} is not installed: install {WORKING}")]
    broken = version_refusal(found.version)
    if broken is not None:
        return [Problem("qemu_broken", "colo_qemu_binary", found.version_text, broken)]
    missing = found.missing()
    if missing:
        return [
            Problem(
                "qemu_lacks_feature",
                "colo_qemu_binary",
                found.version_text,
                f"QEMU {found.version_text} was built without {', '.join(missing)}: install a build that has them, "
                f"such as Debian's {WORKING}",
            )
        ]
    if not tested(found.version) and not accept_untested:
        return [
            Problem(
                "qemu_untested",
                "colo_qemu_binary",
                found.version_text,
                f"COLO was never tried on QEMU {found.version_text}: install {WORKING} of the 11.1 series, or "
                "accept it with "
                "colo_accept_untested_qemu after trying a failover of a guest you can lose",
            )
        ]
    return _device_refusals(found, definition, guest)


def _device_refusals(found: Features, definition: t.Mapping[str, t.Any], guest: str) -> list[Problem]:
    problems: list[Problem] = []
    if definition["link_security"] == "tls" and not found.tls_psk:
        problems.append(
            Problem(
                "qemu_lacks_tls",
                "colo_link_security",
                "tls",
                f"QEMU {found.version_text} was built without TLS: install a build that has it, such as Debian's {WORKING}. On a "
                "link that nobody else can reach, colo_link_security: none does without",
            )
        )
    old = found.version < (11, 0, 0)
    machine, accelerator, cpu = (
        definition["machine"],
        definition["accelerator"],
        str(definition["cpu"]).split(",", maxsplit=1)[0],
    )
    if machine not in found.machines:
        problems.append(
            Problem(
                "machine_unknown",
                f"{guest}.machine",
                machine,
                f"QEMU {found.version_text} has no machine {machine}: choose pc or q35, or one that both hosts' QEMUs have",
            )
        )
    elif "q35" in machine and old:
        problems.append(
            Problem(
                "machine_broken",
                f"{guest}.machine",
                machine,
                f"the standby of a q35 guest aborts on QEMU {found.version_text}: install {WORKING}, or set machine "
                "to pc",
            )
        )
    if accelerator not in found.accelerators:
        problems.append(
            Problem(
                "accelerator_missing",
                f"{guest}.accelerator",
                accelerator,
                f"QEMU {found.version_text} was built without {accelerator}: install a build that has it, or set "
                "colo_accelerator",
            )
        )
    elif accelerator == "tcg" and old:
        problems.append(
            Problem(
                "accelerator_broken",
                f"{guest}.accelerator",
                accelerator,
                f"COLO under tcg hangs on QEMU {found.version_text}: install {WORKING}, or use kvm",
            )
        )
    if found.cpus and cpu not in found.cpus:
        problems.append(
            Problem(
                "cpu_unknown",
                f"{guest}.cpu",
                cpu,
                f"QEMU {found.version_text} has no CPU model {cpu}: see qemu-system-x86_64 -cpu help",
            )
        )
    channels = definition["tuning"].get("multifd_channels", 0)  # a definition of an earlier release has none
    if channels and old:
        problems.append(
            Problem(
                "multifd_broken",
                f"{guest}.tuning.multifd_channels",
                channels,
                f"COLO of QEMU {found.version_text} has no channels beside the main stream: install {WORKING}, or set it to 0",
            )
        )
    for number, nic in enumerate(definition["nics"]):
        if nic["model"] not in found.nic_models:
            problems.append(
                Problem(
                    "nic_model_missing",
                    f"{guest}.nics[{number}].model",
                    nic["model"],
                    f"QEMU {found.version_text} was built without {nic['model']}: choose another model",
                )
            )
    return problems
