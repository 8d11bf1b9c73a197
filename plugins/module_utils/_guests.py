# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guest modules share: options, several guests side by side, and the one way through for each.

A module handles all named guests in one call, each in a thread of its own, so that a slow guest delays no other and
the number of module runs does not grow with the guests. One guest's error does not stop the others; the module fails
at the end and returns every guest's result.
"""

from __future__ import annotations

import collections.abc as c
import concurrent.futures
import contextlib
import dataclasses
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _apply,
    _guest,
    _host,
    _observe,
    _plan,
    _states,
    _store,
    _topology,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._states import Observation

ARGUMENTS: dict[str, t.Any] = {
    "name": {"type": "list", "elements": "str", "required": True},
    "config_dir": {"type": "path", "default": "/etc/lockstep-colo"},
}

Result = dict[str, t.Any]

FREED = "yank the peer out of band"


def deployed(config_dir: str) -> list[str]:
    """Names of the guests that have a definition in ``config_dir``."""
    try:
        entries = os.listdir(config_dir)
    except FileNotFoundError:
        return []
    return sorted(entry.removesuffix(".json") for entry in entries if entry.endswith(".json"))


def load(config_dir: str, name: str) -> Guest:
    """The deployed definition of one guest (errors: ``bad_input``, ``guest_unknown``, ``definition_unreadable``)."""
    if "/" in name or name.startswith("."):
        raise InputError("name", name, "give the name of a guest, a key of colo_guests")
    return _guest.load(f"{config_dir}/{name}.json")


def running(guest: Guest) -> Guest:
    """A guest as its running QEMU has it: between a new definition and the restart that it needs, a failover goes by that."""
    return _guest.as_started(guest, _host.started(dataclasses.asdict(guest)))


def each(names: c.Sequence[str], work: c.Callable[[str], Result]) -> dict[str, Result]:
    """Do ``work`` for every guest side by side; an error becomes that guest's ``error``."""

    def one(name: str) -> Result:
        try:
            return work(name)
        except ColoError as exc:
            return {"changed": False, **exc.details.pop("result", {}), "error": error_dict(exc)}

    names = list(dict.fromkeys(names))  # one that is named twice would wait for its own lock
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, min(len(names), 16))) as pool:
        return dict(zip(names, pool.map(one, names)))


def error_dict(error: ColoError) -> dict[str, t.Any]:
    """An error as plain data."""
    return {"error_code": error.error_code, "message": error.message, "details": error.details}


def tell(module: AnsibleModule, guests: dict[str, Result]) -> None:
    """Leave a module that only looks: a guest that cannot be looked at is an answer too, beside those of the others."""
    for result in guests.values():
        result.pop("changed")
    module.exit_json(changed=False, guests=guests)


def finish(module: AnsibleModule, guests: dict[str, Result]) -> t.NoReturn:
    """Leave the module with all results; fail when any guest has an error."""
    changed = any(result.pop("changed") for result in guests.values())
    words = {name: result["standing"] for name, result in guests.items() if isinstance(result.get("standing"), dict)}
    diff = {
        side: "".join(f"{name}: {standing[side]}\n" for name, standing in sorted(words.items()))
        + "".join(
            f"{name}: {setting}: {value}\n"
            for name, result in sorted(guests.items())
            for setting, value in result.get("tuning", {}).get(side, {}).items()
        )
        for side in ("before", "after")
    }
    errors = [result["error"] for result in guests.values() if "error" in result]
    if errors:
        module.fail_json(
            msg="; ".join(error["message"] for error in errors),
            error_code=errors[0]["error_code"],
            details=errors[0]["details"],
            guests=guests,
            changed=changed,
        )
    module.exit_json(changed=changed, guests=guests, diff=diff)
    raise AssertionError("exit_json returned")


def converge(
    guest: Guest,
    module: AnsibleModule,
    plan: c.Callable[[Observation, _apply.Applier], c.Sequence[_plan.Step]],
    wished: str,
    roll_back: c.Callable[[Observation], c.Sequence[_plan.Step]] | None = None,
) -> Result:
    """Observe, plan, apply, observe: the one way through for everything that changes a guest.

    In check mode it ends after the plan; ``wished`` is then told as the standing after. When a step fails,
    ``roll_back`` plans from what is there at that moment, and the error says how that went.
    """
    begin = time.monotonic()
    with _apply.exclusive(guest):
        freed = [FREED] if is_hung(guest, guest.tuning.heartbeat_timeout_ms) else []
        if freed and not module.check_mode:
            free_main_loop(guest, module.run_command)
        applier = _apply.Applier(guest, module.run_command)
        try:
            seen = _observe.observe(guest, module.run_command)
            before = _states.standing(seen)
            steps = plan(seen, applier)
            wanted = _plan.tuned(steps)
            observed = time.monotonic()
            if module.check_mode:
                actions = freed + [step.title for step in steps if step.changes]
                # what the other host is told of is what it would be told of
                record = applier.foretold(steps, seen.record)
                return {
                    "changed": bool(actions),
                    "standing": {"before": before, "after": wished if actions else before},
                    "actions": actions,
                    "timings": {},
                    "transitions": [],
                    "generation": None if record is None else record.generation,
                    **_tuning(wanted, seen, wanted),
                }
            try:
                applier.run(steps)
            except _apply.Unfinished as exc:
                after = _states.standing(_look_again(guest, module, applier))
                return {
                    **_told(applier, freed, before, after, begin, observed),
                    "finished": False,
                    "progress": exc.progress,
                }
            except ColoError as exc:
                # a monitor greets one client at a time
                applier.close()
                # a setting that QEMU did not take is no reason to end a protection that goes on, nor is a copy that takes longer
                ends = exc.error_code != "resync_unfinished" and exc.details.get("step") not in _plan.tuning_titles(
                    steps
                )
                if roll_back is not None and ends:
                    exc.details["rolled_back"] = _roll_back(guest, module, roll_back)
                exc.details["result"] = _told(applier, freed, before, _after_error(guest, module), begin, observed)
                raise
            now = _look_again(guest, module, applier)
            told = _told(applier, freed, before, _states.standing(now), begin, observed)
            return {**told, **_tuning(wanted, seen, {} if now.qemu is None else now.qemu.settings)}
        finally:
            applier.close()


def _after_error(guest: Guest, module: AnsibleModule) -> str:
    """The standing after a failed run: where that cannot be told, either, the first error is the one to tell."""
    try:
        return _states.standing(_observe.observe(guest, module.run_command))
    except ColoError:
        return "failed"


def _look_again(guest: Guest, module: AnsibleModule, applier: _apply.Applier) -> Observation:
    return _observe.observe(guest, module.run_command, applier.connected)


def _tuning(wanted: t.Collection[str], seen: Observation, after: t.Mapping[str, int]) -> Result:
    """The settings that were to be changed, as they were and as they are; nothing where none was."""
    if not wanted:
        return {}
    before = {} if seen.qemu is None else seen.qemu.settings
    told = {"before": before, "after": after}
    return {"tuning": {side: {name: values.get(name) for name in wanted} for side, values in told.items()}}


def _told(applier: _apply.Applier, freed: list[str], before: str, after: str, begin: float, observed: float) -> Result:
    now = time.monotonic()
    record = _store.read(applier.guest)
    timings: dict[str, t.Any] = {
        "observe_ms": round((observed - begin) * 1000, 1),
        "steps_ms": applier.timings_ms,
        "total_ms": round((now - begin) * 1000, 1),
    }
    if applier.guest_pause_ms is not None:
        timings["guest_pause_ms"] = applier.guest_pause_ms
    if applier.packets_at is not None:
        timings.update(packets_at=applier.packets_at, packets=applier.packets)
    backup = {} if applier.backup is None else {"backup": applier.backup}
    return {
        **backup,
        "changed": applier.changed or bool(freed),
        "standing": {"before": before, "after": after},
        "actions": freed + applier.actions,
        "timings": timings,
        "finished": True,
        "transitions": applier.transitions,
        "generation": None if record is None else record.generation,
    }


def _roll_back(
    guest: Guest, module: AnsibleModule, plan: c.Callable[[Observation], c.Sequence[_plan.Step]]
) -> dict[str, t.Any]:
    """Undo what a failed run has built, from what is there now; its own error is told beside the first one."""
    applier = _apply.Applier(guest, module.run_command)
    try:
        # What failed may have left a main loop that waits for the peer, and too short a time ago to be called hung. Where the
        # keeper cannot help, the observation that follows says what is wrong.
        with contextlib.suppress(ColoError):
            if is_hung(guest, 0):
                free_main_loop(guest, module.run_command)
        applier.run(plan(_observe.observe(guest, module.run_command)))
    except ColoError as exc:
        return {"complete": False, "actions": applier.actions, "error": error_dict(exc)}
    finally:
        applier.close()
    return {"complete": True, "actions": applier.actions}


def is_hung(guest: Guest, limit_ms: float) -> bool:
    """Whether QEMU has not answered its keeper, which can free it, for longer than ``limit_ms``."""
    state = _observe.keeper_state(guest)
    if state is None or not state["qemu"]["connected"]:
        return False
    age_ms = state["qemu"].get("answer_age_ms")
    return age_ms is not None and age_ms > limit_ms


def free_main_loop(guest: Guest, run_command: _observe.RunCommand) -> None:
    """Yank the peer out of band, before anything is asked in band (``qemu_unreachable``).

    A main loop that waits for a silent peer in a disk flush answers nothing until the NBD connection is yanked, and a
    monitor that connects now would never be greeted.
    """
    _apply.cut_migration(guest, run_command)
    _observe.keeper(guest).yank(_topology.yank_instances(guest))
