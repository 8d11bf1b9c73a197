# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wishes of colo_migrate and colo_failover, each as a plan handed to the one way through."""

from __future__ import annotations

import collections.abc as c
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _apply, _guests, _observe, _plan, _states
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._states import Observation

Plan = c.Callable[[Observation, _apply.Applier], c.Sequence[_plan.Step]]

# What each wish ends in.
WISHED = {
    ("primary", "ready"): "alone",
    ("primary", "protected"): "primary",
    ("primary", "absent"): "alone",
    ("secondary", "ready"): "standby",
    ("secondary", "protected"): "secondary",
    ("secondary", "absent"): "stopped",
}


def migrate(name: str, module: AnsibleModule) -> _guests.Result:
    """One guest's part of colo_migrate."""
    role, state = module.params["role"], module.params["state"]
    wished = WISHED[role, state]
    try:
        guest = _guests.load(module.params["config_dir"], name)
    except ColoError as exc:
        if not module.check_mode or exc.error_code != "guest_unknown":
            raise
        # before the first deployment: what there is to plan from would only be made by the roles
        return {
            "changed": wished not in ("stopped", "secondary"),
            "standing": {"before": "absent", "after": wished},
            "actions": [f"bring {name} to {wished}, once it is deployed"],
            "timings": {},
            "transitions": [],
        }
    plans: dict[tuple[str, str], Plan] = {
        ("primary", "ready"): lambda seen, _applier: _plan.serve(
            guest,
            seen,
            _evidence(name, module),
            _generation(name, module),
            accept_older=name in module.params["accept_older"],
        ),
        ("primary", "protected"): lambda seen, applier: _protect(guest, seen, applier, module),
        ("primary", "absent"): lambda seen, _applier: _plan.unprotect(guest, seen),
        ("secondary", "ready"): lambda seen, _applier: _plan.standby(guest, seen, _serving_generation(name, module)),
        ("secondary", "protected"): lambda seen, _applier: [] if module.check_mode else _plan.follow(guest, seen),
        ("secondary", "absent"): lambda seen, _applier: _plan.stop_standby(guest, seen, _evidence(name, module)),
    }
    roll_backs: dict[tuple[str, str], c.Callable[[Observation], c.Sequence[_plan.Step]]] = {
        ("primary", "protected"): lambda seen: _plan.unprotect(guest, seen),
        ("secondary", "ready"): lambda seen: _plan.stop_standby(guest, seen, None),
    }

    def once() -> _guests.Result:
        return _guests.converge(guest, module, plans[role, state], wished, roll_backs.get((role, state)))

    try:
        return once()
    except ColoError as exc:
        if exc.error_code != "resync_failed" or not exc.details.get("resumed"):
            raise
        # what an earlier run had begun led to a standby that is gone; it is rolled back by now
        return once()


def _protect(guest: Guest, seen: Observation, applier: _apply.Applier, module: AnsibleModule) -> c.Sequence[_plan.Step]:
    if module.check_mode and _states.standing(seen) in ("absent", "stopped"):
        # an earlier task of the same run would have started it
        return [_plan.Step("qmp", "protect the guest, once it runs")]
    features = None
    protected = seen.record is not None and seen.record.state == "protected"
    if seen.qemu is not None and not (protected and _states.standing(seen) == "primary"):
        features = _observe.live_features(applier.monitor)
    return _plan.protect(guest, seen, features, module.params["timeout_s"], module.params["patience_s"])


def _serving_generation(name: str, module: AnsibleModule) -> int | None:
    """The generation that a standby is made for; in check mode nobody has made the serving copy yet."""
    return 0 if name not in module.params["generation"] and module.check_mode else _generation(name, module)


def _generation(name: str, module: AnsibleModule) -> int | None:
    value: t.Any = module.params["generation"].get(name)
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InputError(f"generation.{name}", value, "give the number that colo_info returned") from None


def _evidence(name: str, module: AnsibleModule) -> str | None:
    value = module.params["fenced_by"].get(name)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise InputError(
            f"fenced_by.{name}", value, "say in words what proves that the other host does not run the guest"
        )
    return value


def power(name: str, module: AnsibleModule) -> _guests.Result:
    """One guest's part of colo_power."""
    guest = _guests.load(module.params["config_dir"], name)
    timeout_s = module.params["timeout_s"]
    return _guests.converge(guest, module, lambda seen, _applier: _plan.power_off(guest, seen, timeout_s), "stopped")


def set_aside(name: str, module: AnsibleModule) -> _guests.Result:
    """One guest's part of colo_backup."""
    guest = _guests.load(module.params["config_dir"], name)
    kept_on = module.params["kept_on"].get(name)
    return _guests.converge(guest, module, lambda seen, _applier: _plan.set_aside(guest, seen, kept_on), "stopped")


def fail_over(name: str, module: AnsibleModule) -> _guests.Result:
    """One guest's part of colo_failover."""
    guest = _guests.running(_guests.load(module.params["config_dir"], name))
    if module.params["state"] == "unblocked":
        return _guests.converge(guest, module, lambda _seen, _applier: [], "orphaned")
    if module.params["state"] == "released":
        return _guests.converge(guest, module, lambda seen, _applier: _plan.release(guest, seen), "stopped")
    evidence = _evidence(name, module)
    if module.params["await_release_s"] > 0 and not module.check_mode:
        evidence = _observe.await_release(guest, module.params["await_release_s"])
    elif evidence:
        _observe.await_silence(guest)
    accept_void = module.params["accept_void"]
    return _guests.converge(
        guest, module, lambda seen, _applier: _plan.failover(guest, seen, evidence, accept_void), "alone"
    )
