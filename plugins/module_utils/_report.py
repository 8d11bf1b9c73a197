# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What colo_info returns: an observation as plain data."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _guest,
    _guests,
    _host,
    _observe,
    _plan,
    _states,
    _topology,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._states import Observation, Qemu


def look(name: str, module: AnsibleModule) -> _guests.Result:
    """One guest's part of colo_info; a guest that is not deployed here has the standing absent."""
    try:
        guest = _guests.load(module.params["config_dir"], name)
    except ColoError as exc:
        if exc.error_code != "guest_unknown":
            raise
        # a QEMU that runs without a definition is not absent
        if _observe.unit_state(module.run_command, _guest.unit_name(name)) not in ("inactive", "failed"):
            raise
        return {
            "changed": False,
            "standing": "absent",
            "record": None,
            "proven": False,
            "void_reason": None,
            "disk_error": None,
        }
    if module.params["listen"]:
        _observe.await_silence(guest)
    seen = _observe.observe(guest, module.run_command)
    result = {"changed": False, **report(guest, seen), "unit": _observe.unit_details(module.run_command, guest.unit)}
    if seen.process:
        definition = dataclasses.asdict(guest)
        result["changes"] = [str(change) for change in _guest.changes(_host.started(definition), definition)]
    if module.params["sample_s"] > 0 and seen.qemu is not None:
        result["sample"] = sample(guest, module.params["sample_s"])
    return result


def report(guest: Guest, seen: Observation) -> dict[str, t.Any]:
    """An observation as plain data (pure)."""
    side = _observe.side(guest, seen)
    keeper = dict(seen.keeper) if seen.keeper is not None else None
    if keeper is not None:
        keeper.pop("record", None)
    return {
        "standing": side.standing,
        "host": guest.host,
        "record": None if seen.record is None else seen.record.to_dict(),
        "proven": side.proven,
        "void_reason": side.void_reason,
        "disk_error": side.disk_error,
        "trouble": seen.trouble,
        "busy": seen.busy,
        "peer_heard": _states.peer_alive(seen.keeper, guest.tuning.heartbeat_interval_ms),
        "settled": _plan.settled(guest, seen),
        "leftovers": _states.leftovers(seen),
        "qemu": None if seen.qemu is None else _qemu(seen.qemu),
        "waiting": _plan.waiting(guest, seen),
        "checkpoints": {} if keeper is None else keeper.pop("checkpoints"),
        "resync": {} if keeper is None else keeper.pop("resync", {}),
        "keeper": keeper,
        "ports": ports(guest),
        "taps": {nic.name: nic.tap for nic in guest.nics},
    }


def ports(guest: Guest) -> dict[str, t.Any]:
    """TCP ports of one guest on the standby's link address."""
    nics = range(len(guest.nics))
    return {
        "migration": guest.port_migration,
        "nbd": guest.port_nbd,
        "heartbeat": guest.port_heartbeat,
        "mirror": [guest.port_mirror(nic) for nic in nics],
        "compare": [guest.port_compare(nic) for nic in nics],
    }


def _qemu(qemu: Qemu) -> dict[str, t.Any]:
    filters = {name: kind for name, kind in qemu.objects.items() if kind.startswith(("filter-", "colo-compare"))}
    return {
        "version": ".".join(str(part) for part in qemu.version),
        "runstate": qemu.runstate,
        "migration": qemu.migration,
        "migration_error": qemu.migration_error,
        "colo_mode": qemu.colo_mode,
        "nodes": sorted(qemu.nodes),
        "jobs": {name: dataclasses.asdict(job) for name, job in qemu.jobs.items()},
        "filters": filters,
        "links": {
            name: up
            for name, up in qemu.chardevs.items()
            if not name.startswith((_topology.MONITOR_PREFIX, _topology.FLUSHER_PREFIX, "console"))
        },
        "exports": sorted(qemu.exports),
        "encrypted": "tls-creds-psk" in qemu.objects.values(),
        "settings": dict(qemu.settings),
        "incoming": qemu.incoming,
    }


def sample(guest: Guest, seconds: float) -> dict[str, t.Any]:
    """Count checkpoints (STOP to RESUME by QEMU's clock), and packets that left through each tap, for ``seconds``."""
    packets = {nic.tap: _observe.tap_packets(nic.tap) for nic in guest.nics}
    pauses_ms: list[float] = []
    stopped: float | None = None
    with _observe.connect(guest) as monitor:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            event = monitor.next_event(left)
            if event is None:
                break
            if event.name == "STOP":
                stopped = event.time_s
            elif event.name == "RESUME" and stopped is not None:
                pauses_ms.append(round((event.time_s - stopped) * 1000, 1))
                stopped = None
    left_through = {tap: _observe.tap_packets(tap) - before for tap, before in packets.items()}
    return {"seconds": seconds, "count": len(pauses_ms), "pauses_ms": pauses_ms, "packets": left_through}
