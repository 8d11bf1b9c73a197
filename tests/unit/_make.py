# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the unit tests are about: a guest, its definition, what a host says about it."""

from __future__ import annotations

import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _features, _generation, _guest, _states, _topology

LINKS = {"alpha": "192.0.2.1", "beta": "192.0.2.2"}


def wish(disks: int = 1, nics: int = 1, **more: t.Any) -> dict[str, t.Any]:
    """One entry of ``colo_guests``."""
    return {
        "hosts": ["alpha", "beta"],
        "memory_mib": 256,
        "disks": [{"name": f"disk{number}", "size": "64M"} for number in range(disks)],
        "nics": [
            {"name": f"nic{number}", "bridge": "br0", "mac": f"52:54:00:00:00:{number:02x}"} for number in range(nics)
        ],
        **more,
    }


def definition(
    host: str = "alpha", root: str = "", disks: int = 1, nics: int = 1, name: str = "web1", **more: t.Any
) -> dict[str, t.Any]:
    """The definition of one guest, with all its directories below ``root``."""
    defaults = _guest.HostDefaults(
        accelerator="tcg",
        config_dir=f"{root}/etc/lockstep-colo",
        state_dir=f"{root}/var/lib/lockstep-colo",
        run_dir=f"{root}/run/lockstep-colo",
    )
    return _guest.definitions({name: wish(disks, nics, **more)}, host, LINKS, defaults)[0]


def guest(host: str = "alpha", root: str = "", **more: t.Any) -> _guest.Guest:
    """The guest as ``host`` sees it."""
    return _guest.from_definition(definition(host, root, **more))


NEW = _generation.new_record("web1", "alpha", "beta")
ALONE = _generation.started_alone(NEW)
PRIMARY = _generation.enter_protection(ALONE, "alpha")
LEFT = _generation.go_alone(PRIMARY, "standby lost")
SYNCING = _generation.begin_sync(NEW, 1)
SECONDARY = _generation.enter_protection(SYNCING, "beta")
TAKEN = _generation.take_over(SECONDARY, "beta is off")

FEATURES = _features.Features(
    version=(11, 1, 3),
    package="",
    commands=frozenset(_features.NEEDED_COMMANDS),
    capabilities=frozenset(_features.NEEDED_CAPABILITIES),
    block_drivers=frozenset(_features.NEEDED_DRIVERS),
    objects=frozenset(_features.NEEDED_OBJECTS),
    accelerators=frozenset({"kvm", "tcg"}),
    nic_models=frozenset({"virtio-net-pci"}),
    machines=frozenset({"pc", "q35"}),
    cpus=frozenset({"qemu64"}),
    return_path="requires",
    reconnect="reconnect-ms",
    device_state=True,
    tls_psk=True,
)


def keeper(
    colo_exit: bool = False, lost: bool = False, heard: bool = False, peer: t.Any = None, **more: t.Any
) -> dict[str, t.Any]:
    """The keeper's answer, as far as anything is decided from it."""
    return {
        "qemu": {"connected": True, "answer_age_ms": 10.0},
        "flags": {"colo_exit": {"time": 1.0, "data": {"reason": "error"}} if colo_exit else None},
        "checkpoints": {"count": 5, "last_age_ms": 100.0},
        "heartbeat": {"listening": False, "connected": heard, "authenticated": heard, "lost": lost, "peer": peer},
        "record": None,
        **more,
    }


def settings() -> dict[str, int]:
    """What a QEMU has that was protected by the definition of ``guest()``."""
    return {**_topology.fixed_settings(guest()), **_topology.live_settings(guest())}


def qemu(**more: t.Any) -> _states.Qemu:
    """A QEMU whose guest runs alone, with no trace of COLO."""
    values: dict[str, t.Any] = {
        "version": (11, 1, 3),
        "runstate": "running",
        "migration": "none",
        "migration_error": None,
        "colo_mode": "none",
        "nodes": frozenset({"parent0", "colo-disk0"}),
        "attached": frozenset({"parent0"}),
        "jobs": {},
        "objects": {},
        "chardevs": {"monitor-modules": True, "monitor-keeper": True, "monitor-operator": False, "console0": True},
        "exports": frozenset(),
        "settings": settings(),
    }
    return _states.Qemu(**{**values, **more})


def seen(
    qemu: _states.Qemu | None = None, record: _generation.Record | None = ALONE, **more: t.Any
) -> _states.Observation:
    """What a host says whose unit is active exactly when there is a ``qemu``."""
    values: dict[str, t.Any] = {
        "deployed": True,
        "unit": "inactive" if qemu is None else "active",
        "trouble": None,
        "qemu": qemu,
        "keeper": None if qemu is None else keeper(),
        "record": record,
    }
    return _states.Observation(**{**values, **more})


JOB = _states.Job(ready=False, status="running", offset=1, length=2)

# One observation for each thing a host can be. The word before the dash is the standing.
SIGHTS: dict[str, _states.Observation] = {
    "absent": _states.ABSENT,
    "stopped": seen(),
    "stopped-new": seen(record=NEW),
    "stopped-no-record": seen(record=None),
    "stopped-prelaunch": seen(qemu(runstate="prelaunch")),
    "stopped-shutdown": seen(qemu(runstate="shutdown")),
    "alone": seen(qemu()),
    "alone-after-failure": seen(qemu(migration="failed")),
    "alone-by-hand": seen(qemu(migration="completed", exports=frozenset({"export0"})), SECONDARY),
    "alone-leftovers": seen(qemu(nodes=frozenset({"parent0", "colo-disk0", "nbd0"}))),
    "standby": seen(qemu(runstate="inmigrate", migration="setup"), SYNCING),
    "standby-bare": seen(qemu(runstate="inmigrate"), SYNCING),
    "syncing-in": seen(qemu(runstate="inmigrate", migration="active"), SYNCING),
    "syncing-mirror": seen(
        qemu(
            jobs={"resync0": JOB},
            nodes=frozenset({"parent0", "colo-disk0", "nbd0"}),
            objects={"tls-client": "tls-creds-psk"},
        )
    ),
    "syncing-active": seen(qemu(migration="active")),
    "syncing-switchover": seen(qemu(migration="pre-switchover", runstate="finish-migrate"), PRIMARY),
    "syncing-device": seen(qemu(migration="device", runstate="finish-migrate"), PRIMARY),
    "syncing-completed": seen(qemu(runstate="postmigrate", migration="completed"), PRIMARY),
    "primary": seen(qemu(migration="colo", colo_mode="primary"), PRIMARY),
    "secondary": seen(qemu(migration="colo", colo_mode="secondary"), SECONDARY),
    "primary-off": seen(qemu(migration="colo", colo_mode="primary"), _generation.mark_clean(PRIMARY)),
    "secondary-off": seen(qemu(migration="colo", colo_mode="secondary"), _generation.mark_clean(SECONDARY)),
    "orphaned-primary": seen(
        qemu(migration="colo", colo_mode="primary"), PRIMARY, keeper=keeper(colo_exit=True, lost=True)
    ),
    "orphaned-secondary": seen(
        qemu(migration="colo", colo_mode="secondary"), SECONDARY, keeper=keeper(colo_exit=True, lost=True)
    ),
    "failed": seen(None, unit="active", trouble="qmp_busy: no greeting"),
}
