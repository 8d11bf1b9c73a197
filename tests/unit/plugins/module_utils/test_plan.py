# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every decision of a plan: from each thing a host can be and each wish to the exact steps, or the refusal."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _apply, _guest, _plan, _states, _topology
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.tests.unit import _make
from ansible_collections.lockstep.colo.tests.unit._make import SIGHTS

GUEST = _make.guest()
Look = _states.Observation

WISHES: dict[str, t.Callable[[Look], list[_plan.Step]]] = {
    "serve": lambda seen: _plan.serve(GUEST, seen, "site.yml saw both"),
    "serve without evidence": lambda seen: _plan.serve(GUEST, seen, None),
    "protect": lambda seen: _plan.protect(GUEST, seen, _make.FEATURES, 60),
    "unprotect": lambda seen: _plan.unprotect(GUEST, seen),
    "standby of 1": lambda seen: _plan.standby(GUEST, seen, 1),
    "standby of 2": lambda seen: _plan.standby(GUEST, seen, 2),
    "standby of 3": lambda seen: _plan.standby(GUEST, seen, 3),
    "standby of nobody": lambda seen: _plan.standby(GUEST, seen, None),
    "follow": lambda seen: _plan.follow(GUEST, seen),
    "stop": lambda seen: _plan.stop_standby(GUEST, seen, None),
    "stop, left behind": lambda seen: _plan.stop_standby(GUEST, seen, "the other host goes on"),
    "release": lambda seen: _plan.release(GUEST, seen),
    "power off": lambda seen: _plan.power_off(GUEST, seen, 30),
    "set aside": lambda seen: _plan.set_aside(GUEST, seen, "beta"),
    "set aside for nobody": lambda seen: _plan.set_aside(GUEST, seen, None),
    "fail over": lambda seen: _plan.failover(GUEST, seen, "beta is off", False),
    "fail over without evidence": lambda seen: _plan.failover(GUEST, seen, None, False),
}

LET_GO = ["record: this copy is the newest from here on", "yank the peer out of band"]
RUNS = ["the guest runs", "its packets leave"]
START = [
    "record: this copy serves, unprotected",
    "permit one start as primary",
    "start colo-guest@web1.service",
    "the keeper holds its monitor",
    "cont",
    "the guest runs",
    "the guest boots alone",
]
STOP = ["stop colo-guest@web1.service"]
STANDBY = [
    "fresh active and hidden images",
    "permit one start as standby",
    "start colo-guest@web1.service",
    "the keeper holds its monitor",
    "migration capabilities of a standby",
    "QEMU may read the guest's present key",
    "object-add tls-server",
    "nbd-server-start",
    "block-export-add export0",
    "chardev-add red0-0",
    "chardev-add red1-0",
    "object-add f1-0",
    "object-add f2-0",
    "chardev-add flushin0",
    "object-add flush0",
    "object-add rew0",
    "migrate-set-parameters",
    "migrate-incoming",
    "the standby waits for the guest",
]
CREDENTIALS = ["QEMU may read the guest's present key", "object-add tls-client"]
PROTECT = [
    "the standby's keeper answers and waits for this copy",
    *CREDENTIALS,
    "blockdev-add nbd0",
    "blockdev-mirror resync0",
    "the standby's disks are equal",
    "chardev-add mirror0",
    "chardev-add compsec0",
    "chardev-add compare0",
    "chardev-add compare0c",
    "chardev-add out0",
    "chardev-add out0c",
    "the packet channels are connected",
    "migration capabilities of a primary",
    "migrate-set-parameters",
    "migrate",
    "the standby has the RAM; the guest is paused",
    "TCG forgets which pages may be written unseen",
    "block-job-cancel resync0",
    "the mirrors have ended",
    "blockdev-add watch0",
    "blockdev-add replication0",
    "x-blockdev-change",
    "the packet channels are still connected",
    "object-add m0",
    "object-add redire0-0",
    "object-add redire1-0",
    "object-add iocmp0",
    "object-add comp0",
    "record: protected from here on",
    "migrate-continue",
    "both sides are in COLO",
    "checkpoints go on",
]
# a copy of the disks that an earlier run has begun
GO_ON = [step for step in PROTECT if step not in ("blockdev-add nbd0", "blockdev-mirror resync0")]
GO_ON.insert(2, "object-del tls-client")
PROVE = ["checkpoints go on"]
FOLLOW = ["the standby has joined and checkpoints arrive"]
TAKE = [
    "record: this copy serves; beta is fenced",
    "yank the peer out of band",
    "x-colo-lost-heartbeat",
    *RUNS,
    "the overlays are committed",
    "record: the parent image is the whole copy",
]
BY_HAND = [*LET_GO, "nbd-server-stop", *RUNS]
LEFTOVERS = [*LET_GO, "blockdev-del nbd0", *RUNS]
MIRROR = [*LET_GO, "end the resync", "the resync has ended", "blockdev-del nbd0", "object-del tls-client", *RUNS]
CANCEL = [*LET_GO, "migrate_cancel", "the migration has ended", *RUNS]
END_SWITCHOVER = [*LET_GO, "end the switchover", *RUNS]
CONTINUE = [*LET_GO, "cont", *RUNS]
LEAVE = [*LET_GO, "x-colo-lost-heartbeat", *RUNS]
OFF = ["record: the guest is powered off", *STOP]


def _off(way: t.Sequence[str]) -> list[str]:
    """The button is pressed while the guest is as protected as it was; then what there is of a protection goes."""
    return ["system_powerdown", "the guest powers itself off", *(step for step in way if step not in RUNS), *OFF]


def _fill(generation: int) -> list[str]:
    return [f"record: this copy is being overwritten by generation {generation}", *STANDBY]


NOBODY = {"follow": "not_standby", "protect": "not_serving", "unprotect": "not_serving"}
NO_COPY = {"release": "not_protected", "fail over": "not_protected", "fail over without evidence": "not_protected"}
MISSING = {f"standby of {which}": "record_missing" for which in (1, 2, 3)} | {"standby of nobody": "generation_missing"}
SERVES = {f"standby of {which}": "is_serving" for which in (1, 2, 3)} | {
    "standby of nobody": "generation_missing",
    "stop": "is_serving",
    "stop, left behind": "is_serving",
    "follow": "not_standby",
}
# a copy with a history of its own is not overwritten, however old
OWN_HISTORY = {
    "standby of 1": "newer_copy_here",
    "standby of 2": "copy_newer",
    "standby of 3": "copy_newer",
    "standby of nobody": "generation_missing",
}
WAITS = {
    "serve": "is_standby",
    "serve without evidence": "is_standby",
    "protect": "not_serving",
    "unprotect": "not_serving",
    "standby of nobody": "generation_missing",
    "follow": FOLLOW,
    "power off": "is_standby",
}


def _served_by(plan: list[str], protect: list[str] | None = None) -> dict[str, t.Any]:
    """All wishes of a serving side that lead back to alone are one plan."""
    names = ("serve", "serve without evidence", "unprotect", "fail over", "fail over without evidence")
    return {
        **SERVES,
        **dict.fromkeys(names, plan),
        "release": "not_protected",
        "power off": _off(plan),
        "protect": [*plan, *PROTECT] if protect is None else protect,
    }


def _filled(stop: list[str]) -> dict[str, t.Any]:
    return {f"standby of {which}": [*stop, *_fill(which)] for which in (1, 2, 3)}


STOPPED = {
    **NOBODY,
    **NO_COPY,
    "release": [],
    "power off": [],
    **OWN_HISTORY,
    "serve": START,
    "serve without evidence": "fence_missing",
}
NOT_STOPPED = {**NOBODY, **NO_COPY, "release": [], "power off": [], "stop": [], "stop, left behind": []}
STANDS_BY = {**WAITS, **NO_COPY, **_filled(STOP), "stop": STOP, "stop, left behind": STOP}
CANNOT_BE_JUDGED = {
    **NOBODY,
    **NO_COPY,
    **OWN_HISTORY,
    "serve": "standing_failed",
    "serve without evidence": "standing_failed",
    "stop": "is_serving",
    "stop, left behind": "is_serving",
    "power off": "standing_failed",
}
IN_LOCK_STEP = {**WAITS, "release": "not_protected", "fail over": TAKE, "fail over without evidence": "fence_missing"}

EXPECTED: dict[str, dict[str, t.Any]] = {
    "absent": {**NOT_STOPPED, **MISSING, "serve": "record_missing", "serve without evidence": "fence_missing"},
    "stopped": {**STOPPED, "stop": [], "stop, left behind": []},
    "stopped-new": {
        **STOPPED,
        "stop": [],
        "stop, left behind": [],
        **_filled([]),
    },
    "stopped-no-record": {
        **NOT_STOPPED,
        **MISSING,
        "serve": "record_missing",
        "serve without evidence": "fence_missing",
    },
    "stopped-prelaunch": {
        **STOPPED,
        "serve": [*STOP, *START],
        "stop": STOP,
        "stop, left behind": STOP,
        "power off": STOP,
    },
    "stopped-shutdown": {
        **STOPPED,
        "serve": [*STOP, *START],
        "stop": "is_serving",
        "stop, left behind": "is_serving",
        "power off": OFF,
    },
    "alone": _served_by([]),
    "alone-after-failure": _served_by([]),
    # promoted behind the collection's back: it has yet to be recorded, with evidence, and cleaned up
    "alone-by-hand": {
        **_served_by(BY_HAND),
        "fail over": [*TAKE[:2], "nbd-server-stop", *TAKE[3:]],
        "fail over without evidence": "fence_missing",
    },
    "alone-leftovers": _served_by(LEFTOVERS),
    "standby": STANDS_BY,
    "standby-bare": STANDS_BY,
    "syncing-in": STANDS_BY,
    "syncing-mirror": {
        **_served_by(MIRROR, GO_ON),
        "serve": [],
        "serve without evidence": [],
        "follow": FOLLOW,
    },
    "syncing-active": {**_served_by(CANCEL), "follow": FOLLOW},
    "syncing-switchover": {**_served_by(END_SWITCHOVER), "follow": FOLLOW},
    "syncing-device": {**_served_by(END_SWITCHOVER), "follow": FOLLOW},
    "syncing-completed": {
        **_served_by(["the standby waits and does not run the guest", *CONTINUE]),
        "serve": CONTINUE,
        "fail over": CONTINUE,
        "follow": FOLLOW,
        "power off": _off(["the standby waits and does not run the guest", *LET_GO, "cont"]),
    },
    "primary": {**_served_by(LEAVE, PROVE), "serve": [], "serve without evidence": [], "release": "peer_not_ready"},
    "secondary": {
        **IN_LOCK_STEP,
        "standby of nobody": [],
        "standby of 1": [],
        "standby of 2": [],
        "standby of 3": [*STOP, *_fill(3)],
        "stop": "awaits_failover",
        "stop, left behind": STOP,
    },
    "primary-off": {
        **_served_by(LEAVE),
        "serve": [],
        "serve without evidence": [],
        "release": "peer_not_ready",
        "protect": "guest_powered_off",
        "power off": [*LEAVE[:-2], *OFF],
    },
    "secondary-off": {
        **IN_LOCK_STEP,
        "protect": "guest_powered_off",
        "fail over": "guest_powered_off",
        "fail over without evidence": "guest_powered_off",
        "standby of nobody": [],
        "standby of 1": [],
        "standby of 2": [],
        "standby of 3": [*STOP, *_fill(3)],
        "stop": "awaits_failover",
        "stop, left behind": STOP,
    },
    "orphaned-primary": _served_by(LEAVE),
    "orphaned-secondary": {
        **IN_LOCK_STEP,
        "standby of 1": "newer_copy_here",
        "standby of 2": "awaits_failover",
        "standby of 3": [*STOP, *_fill(3)],
        "follow": "not_standby",
        "stop": "awaits_failover",
        "stop, left behind": STOP,
    },
    "failed": CANNOT_BE_JUDGED,
}


for _sight, _row in EXPECTED.items():
    _seen = SIGHTS[_sight]
    _aside = (
        []
        if _seen.record in (None, _make.NEW)
        else [f"keep the copy as a backup, {GUEST.paths.state} under another name"]
    )
    _ended = [*(STOP if _seen.process else []), *_aside]
    EXPECTED[_sight] = {**_row, "set aside": _ended, "set aside for nobody": "keep_missing"}


def _said(plan: t.Callable[[], list[_plan.Step]]) -> list[str] | str:
    try:
        return [step.title for step in plan()]
    except ColoError as exc:
        told = len(exc.message) > 40 and GUEST.name in exc.message
        return exc.error_code if told else f"{exc.error_code} without a word: {exc.message}"


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_word_for_each_sight(sight: str) -> None:
    assert _states.standing(SIGHTS[sight]) == sight.split("-", maxsplit=1)[0]


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("sight", SIGHTS)
def test_each_wish_from_each_sight(sight: str, wish: str) -> None:
    assert _said(lambda: WISHES[wish](SIGHTS[sight])) == EXPECTED[sight][wish]


def test_the_table_is_whole() -> None:
    assert EXPECTED.keys() == SIGHTS.keys()
    for sight, row in EXPECTED.items():
        assert row.keys() == WISHES.keys(), sight


# --- what no plan may ever do ---------------------------------------------------------------------------------


def _commands(steps: t.Sequence[_plan.Step]) -> list[str]:
    return [str(step.arguments.get("command", step.operation)) for step in steps]


EVERY_PLAN = [
    (sight, wish)
    for sight, row in EXPECTED.items()
    for wish, outcome in row.items()
    if isinstance(outcome, list) and outcome
]


@pytest.mark.parametrize(("sight", "wish"), EVERY_PLAN)
def test_rules_that_hold_for_every_plan(sight: str, wish: str) -> None:
    seen = SIGHTS[sight]
    steps = WISHES[wish](seen)
    commands = _commands(steps)
    in_colo = seen.qemu is not None and seen.qemu.colo_mode != "none"
    assert not (in_colo and "migrate_cancel" in commands), "a QEMU cancelled in colo is never protected again"
    for before, after in (
        # out of band before in band: a hung peer must not be waited for
        ("yank", "migrate_cancel"),
        ("yank", "end_switchover"),
        ("yank", "x-colo-lost-heartbeat"),
        ("yank", "cancel_jobs"),
        # recorded before it can be seen outside
        ("record", "permit"),
        ("record", "x-colo-lost-heartbeat"),
        ("record", "migrate_cancel"),
        ("record", "end_switchover"),
        ("record", "migrate-continue"),
        ("overlays", "migrate-incoming"),
        ("permit", "start_unit"),
        ("start_unit", "migrate-incoming"),
        ("capabilities", "migrate-incoming"),
        ("capabilities", "migrate"),
    ):
        if after in commands:
            assert before in commands[: commands.index(after)], f"{before} before {after}"
    for step in steps:
        assert 0 < step.timeout_s <= 660, f"{step.title} has no deadline"
        changing = step.operation == "qmp" or not step.operation.startswith("wait_")
        assert step.changes is changing, step.title


def test_every_operation_is_one_that_can_be_carried_out() -> None:
    known = set(t.get_args(_plan.Operation))
    planned = {step.operation for sight, wish in EVERY_PLAN for step in WISHES[wish](SIGHTS[sight])}
    assert planned == known
    unknown = _plan.Step(t.cast("_plan.Operation", "dance"), "dance")
    with pytest.raises(KeyError):
        _apply.Applier(GUEST, lambda *_: (0, "", "")).run([unknown])


# --- built up, half and whole -----------------------------------------------------------------------------------


def _built(nics: int = 1, disks: int = 1, **more: t.Any) -> _states.Qemu:
    """A primary with everything a protection puts into it."""
    objects = {}
    chardevs = {"monitor-modules": True, "console0": True}
    nodes = set()
    for nic in range(nics):
        kinds = ("colo-compare", "filter-mirror", "filter-redirector", "filter-redirector", "iothread")
        objects.update(dict(zip(_topology.primary_filters(nic), kinds)))
        chardevs.update(dict.fromkeys(_topology.primary_chardevs(nic), True))
    objects["tls-client"] = "tls-creds-psk"
    for disk in range(disks):
        nodes |= {f"parent{disk}", f"colo-disk{disk}", f"nbd{disk}", f"watch{disk}", f"replication{disk}"}
    values: dict[str, t.Any] = {
        "migration": "colo",
        "colo_mode": "primary",
        "objects": objects,
        "chardevs": chardevs,
        "nodes": frozenset(nodes),
        "attached": frozenset(name for disk in range(disks) for name in (f"parent{disk}", f"replication{disk}")),
    }
    return _make.qemu(**{**values, **more})


def test_the_whole_way_out_of_protection_in_the_measured_order() -> None:
    steps = _plan.to_alone(GUEST, _make.seen(_built(), _make.PRIMARY))
    assert [step.title for step in steps] == [
        *LET_GO,
        "x-blockdev-change",
        "x-colo-lost-heartbeat",
        "object-del comp0",
        "object-del m0",
        "object-del redire0-0",
        "object-del redire1-0",
        "object-del iocmp0",
        "chardev-remove mirror0",
        "chardev-remove compsec0",
        "chardev-remove compare0c",
        "chardev-remove compare0",
        "chardev-remove out0c",
        "chardev-remove out0",
        "blockdev-del replication0",
        "blockdev-del watch0",
        "blockdev-del nbd0",
        "object-del tls-client",
        *RUNS,
    ]


def test_a_child_that_is_not_attached_is_not_taken_out() -> None:
    steps = _plan.to_alone(GUEST, _make.seen(_built(attached=frozenset({"parent0"})), _make.PRIMARY))
    assert "x-blockdev-change" not in _commands(steps)
    assert "blockdev-del replication0" in [step.title for step in steps]


@pytest.mark.parametrize("migration", ["pre-switchover", "device"])
def test_a_switchover_is_not_cancelled_before_it_is_looked_at_again(migration: str) -> None:
    """It may be in colo by then, where the disk goes first."""
    qemu = _built(migration=migration, runstate="finish-migrate", colo_mode="none")
    commands = _commands(_plan.to_alone(GUEST, _make.seen(qemu, _make.PRIMARY)))
    assert "migrate_cancel" not in commands
    assert commands.count("x-blockdev-change") == 1
    order = ["yank", "x-blockdev-change", "end_switchover", "blockdev-del"]
    assert [command for command in dict.fromkeys(commands) if command in order] == order


@pytest.mark.parametrize(("migration", "cancels"), [("setup", 1), ("active", 1), ("cancelling", 0)])
def test_a_migration_that_ends_already_is_only_waited_for(migration: str, cancels: int) -> None:
    steps = _plan.to_alone(GUEST, _make.seen(_make.qemu(migration=migration)))
    assert _commands(steps).count("migrate_cancel") == cancels
    wait = next(step for step in steps if step.operation == "wait_migration")
    assert wait.arguments["goal"] == ["cancelled", "failed"]
    assert wait.arguments["since"] == migration


def test_two_of_each_are_all_taken_out() -> None:
    guest = _make.guest(disks=2, nics=2)
    steps = _plan.to_alone(guest, _make.seen(_built(2, 2), _make.PRIMARY))
    commands = _commands(steps)
    assert [commands.count(name) for name in ("x-blockdev-change", "blockdev-del", "object-del", "chardev-remove")] == [
        2,
        6,
        11,
        12,
    ]
    assert steps[-1].arguments["taps"] == [nic.tap for nic in guest.nics]


@pytest.mark.parametrize("left", ["nbd-server", "filters", "chardevs"])
def test_a_takeover_that_was_killed_late_is_cleaned_up(left: str) -> None:
    """What is left is the standby's: QEMU runs alone already."""
    rewriter = {"rew0": "filter-rewriter"}
    qemu = {
        "nbd-server": _make.qemu(exports=frozenset({"export0"}), objects=rewriter),
        "filters": _make.qemu(objects={**rewriter, "f1-0": "filter-redirector", "f2-0": "filter-redirector"}),
        "chardevs": _make.qemu(objects=rewriter, chardevs={"red0-0": True, "red1-0": False}),
    }[left]
    steps = _plan.failover(GUEST, _make.seen(qemu, _make.TAKEN), "beta is off", False)
    titles = [step.title for step in steps]
    gone = {
        "nbd-server": ["nbd-server-stop"],
        "filters": ["object-del f2-0", "object-del f1-0"],
        "chardevs": ["chardev-remove red0-0", "chardev-remove red1-0"],
    }[left]
    assert titles == [*LET_GO, *gone, *RUNS, "the overlays are committed", "record: the parent image is the whole copy"]


def test_a_rewriter_with_its_flusher_is_no_leftover() -> None:
    """It has to stay for as long as connections made in lock step live."""
    seen = _make.seen(
        _make.qemu(
            objects={"flush0": "filter-redirector", "rew0": "filter-rewriter"},
            chardevs={"monitor-keeper": True, "flushin0": True},
        )
    )
    assert _plan.serve(GUEST, seen, None) == []


def test_filters_of_a_former_standby_go_before_its_rewriter() -> None:
    seen = _make.seen(_make.qemu(objects={"flush0": "filter-redirector", "rew0": "filter-rewriter"}))
    steps = _plan.protect(GUEST, seen, _make.FEATURES, 60)
    filters = [step.arguments["arguments"] for step in steps if step.title in ("object-add m0", "object-add redire0-0")]
    assert [entry["position"] for entry in filters] == ["id=flush0", "id=flush0"]
    assert {entry["insert"] for entry in filters} == {"before"}


def test_the_long_waits_have_the_deadline_that_was_asked_for() -> None:
    steps = {step.title: step for step in _plan.protect(GUEST, SIGHTS["alone"], _make.FEATURES, 1234)}
    assert [title for title, step in steps.items() if step.timeout_s == 1234] == [
        "the standby's disks are equal",
        "the standby has the RAM; the guest is paused",
    ]


# --- begun and killed -------------------------------------------------------------------------------------------


def test_a_primary_whose_record_says_alone_is_let_go_by_every_wish() -> None:
    """It wrote its record and was killed: the next failover would make two histories."""
    alone = dataclasses.replace(SIGHTS["primary"], record=_make.LEFT, keeper=_make.keeper(heard=True))
    assert _said(lambda: _plan.serve(GUEST, alone, None)) == LEAVE
    assert _said(lambda: _plan.protect(GUEST, alone, _make.FEATURES, 60)) == [*LEAVE, *PROTECT]
    assert _said(lambda: _plan.failover(GUEST, alone, None, False)) == LEAVE


@pytest.mark.parametrize("sight", ["secondary", "orphaned-secondary"])
def test_a_takeover_is_finished_with_the_evidence_it_was_begun_with(sight: str) -> None:
    begun = dataclasses.replace(SIGHTS[sight], record=_make.TAKEN)
    steps = _plan.failover(GUEST, begun, None, False)
    assert [step.title for step in steps] == TAKE
    assert steps[0].arguments["fenced_by"] == "beta is off"
    assert _said(lambda: _plan.serve(GUEST, begun, None)) == TAKE


def test_a_copy_that_was_not_seen_to_be_whole_is_not_started() -> None:
    assert _said(lambda: _plan.serve(GUEST, _make.seen(record=_make.TAKEN), "both seen")) == "takeover_unfinished"


@pytest.mark.parametrize("sight", ["secondary", "orphaned-secondary"])
@pytest.mark.parametrize("fenced_by", ["the operator says so", None])
def test_no_takeover_from_a_peer_that_is_heard(sight: str, fenced_by: str | None) -> None:
    keeper = _make.keeper(colo_exit=sight.startswith("orphaned"), heard=True, peer={"qemu_status": "running"})
    keeper["heartbeat"]["last_rx_age_ms"] = 100.0
    seen = dataclasses.replace(SIGHTS[sight], keeper=keeper)
    assert _said(lambda: _plan.failover(GUEST, seen, fenced_by, False)) == (
        "peer_alive" if fenced_by else "fence_missing"
    )


def test_a_healthy_primary_is_not_failed_over_without_evidence() -> None:
    keeper = _make.keeper(heard=True, peer={"qemu_status": "running"})
    keeper["heartbeat"]["last_rx_age_ms"] = 100.0
    seen = dataclasses.replace(SIGHTS["primary"], keeper=keeper)
    assert _said(lambda: _plan.failover(GUEST, seen, None, False)) == "peer_alive"
    assert _said(lambda: _plan.failover(GUEST, seen, "beta burns", False)) == LEAVE


# --- a standby that is whole already ----------------------------------------------------------------------------


def _whole_standby(**more: t.Any) -> _states.Qemu:
    values: dict[str, t.Any] = {
        "runstate": "inmigrate",
        "migration": "setup",
        "exports": frozenset({"export0"}),
        "objects": {
            "tls-server": "tls-creds-psk",
            "rew0": "filter-rewriter",
            "f1-0": "filter-redirector",
            "f2-0": "filter-redirector",
        },
        "chardevs": {"red0-0": False, "red1-0": False},
        "incoming": "192.0.2.1:9000",
    }
    return _make.qemu(**{**values, **more})


def test_the_copy_of_a_standby_is_started_by_an_explicit_word_only() -> None:
    seen = _make.seen(record=_make.SECONDARY)
    for accept in (False, True):
        steps = _plan.serve(GUEST, seen, "resolve.yml saw no copy run", accept_older=accept)
        assert steps[0].arguments.get("accept_older", False) is accept


def test_a_standby_that_waits_for_this_generation_stays() -> None:
    assert _plan.standby(GUEST, _make.seen(_whole_standby(), _make.SYNCING), 1) == []


@pytest.mark.parametrize("incoming", [None, "192.0.2.1:9500", "192.0.2.9:9000"])
def test_a_standby_that_waits_elsewhere_is_made_anew(incoming: str | None) -> None:
    """It was made for other ports or another address, and the serving side would connect where nobody listens."""
    seen = _make.seen(_whole_standby(incoming=incoming), _make.SYNCING)
    assert [step.operation for step in _plan.standby(GUEST, seen, 1)][:2] == ["stop_unit", "record"]


def test_a_standby_that_waits_takes_a_new_key() -> None:
    seen = _make.seen(_whole_standby(), _make.SYNCING, key_current=False)
    assert [step.operation for step in _plan.standby(GUEST, seen, 1)] == ["link_key"]


def test_a_pair_in_lock_step_keeps_the_key_it_began_with() -> None:
    for sight, wish in (("primary", "protect"), ("secondary", "standby of 1")):
        seen = dataclasses.replace(SIGHTS[sight], key_current=False)
        assert [step.operation for step in WISHES[wish](seen) if step.changes] == []


def test_credentials_that_a_roll_back_takes_away_are_taken_away_once() -> None:
    seen = _make.seen(_make.qemu(migration="active", objects={"tls-client": "tls-creds-psk"}))
    titles = [step.title for step in _plan.protect(GUEST, seen, _make.FEATURES, 60)]
    assert titles.count("object-del tls-client") == 1
    assert titles.index("object-del tls-client") < titles.index("object-add tls-client")


def test_what_is_half_built_with_another_link_security_is_not_gone_on_with() -> None:
    plain = _guest.from_definition({**_make.definition(), "link_security": "none"})
    standby = _make.seen(_whole_standby(), _make.SYNCING)
    assert [step.title for step in _plan.standby(plain, standby, 1)][:1] == STOP
    mirror = _plan.protect(plain, SIGHTS["syncing-mirror"], _make.FEATURES, 60)
    assert [step.title for step in mirror][: len(MIRROR)] == MIRROR
    assert "tls" not in str([step.arguments for step in mirror][len(MIRROR) :]).replace("'tls-creds': ''", "")


@pytest.mark.parametrize(
    ("generation", "lacking"),
    [
        (2, {}),
        (1, {"migration": "none"}),
        (1, {"exports": frozenset()}),
        (1, {"objects": {}}),
        (1, {"chardevs": {"red0-0": False}}),
        (1, {"chardevs": {"red0-0": False, "red1-0": True}}),
        (1, {"settings": {**_make.settings(), "multifd-channels": 2}}),
    ],
)
def test_any_other_standby_is_made_anew(generation: int, lacking: dict[str, t.Any]) -> None:
    steps = _plan.standby(GUEST, _make.seen(_whole_standby(**lacking), _make.SYNCING), generation)
    assert [step.title for step in steps] == [*STOP, *_fill(generation)]


def test_a_standby_with_a_connection_that_qemu_does_not_tell_of_is_made_anew() -> None:
    seen = _make.seen(_whole_standby(), _make.SYNCING, channels_held=True)
    assert [step.title for step in _plan.standby(GUEST, seen, 1)] == [*STOP, *_fill(1)]


def test_a_primary_in_lock_step_gets_what_differs_and_nothing_else() -> None:
    qemu = dataclasses.replace(
        t.cast("_states.Qemu", SIGHTS["primary"].qemu), settings={**_make.settings(), "comp0.max_queue_size": 17}
    )
    seen = dataclasses.replace(SIGHTS["primary"], qemu=qemu)
    wanted = _make.settings()["comp0.max_queue_size"]
    steps = _plan.protect(GUEST, seen, _make.FEATURES, 60)
    assert [step.title for step in steps] == [f"comp0.max_queue_size: 17 -> {wanted}", "checkpoints go on"]
    assert _plan.tuned(steps) == {"comp0.max_queue_size": wanted}


@pytest.mark.parametrize(
    ("sight", "told"), [("primary", ["multifd-channels: 3 -> 0"]), ("secondary", []), ("alone", [])]
)
def test_only_a_running_protection_makes_a_setting_wait(sight: str, told: list[str]) -> None:
    qemu = t.cast("_states.Qemu", SIGHTS[sight].qemu)
    seen = dataclasses.replace(
        SIGHTS[sight], qemu=dataclasses.replace(qemu, settings={**qemu.settings, "multifd-channels": 3})
    )
    assert _plan.waiting(GUEST, seen) == told
    assert _plan.waiting(GUEST, SIGHTS[sight]) == []
    assert _plan.waiting(GUEST, SIGHTS["stopped"]) == []


@pytest.mark.parametrize(("more", "refused"), [(None, False), (0, False), (-1, True), (1, True)])
def test_a_start_is_of_the_copy_that_was_chosen(more: int | None, refused: bool) -> None:
    stopped = SIGHTS["stopped"]
    assert stopped.record is not None
    chosen = None if more is None else stopped.record.generation + more
    otherwise = _said(lambda: _plan.serve(GUEST, stopped, "both seen"))
    assert _said(lambda: _plan.serve(GUEST, stopped, "both seen", chosen)) == (
        "generation_changed" if refused else otherwise
    )
    assert _plan.serve(GUEST, SIGHTS["alone"], None, chosen) == []


def test_what_is_settled_wants_no_step() -> None:
    settled = {sight: seen for sight, seen in SIGHTS.items() if _plan.settled(GUEST, seen)}
    assert settled.keys() == {"primary", "secondary"}
    assert _plan.serve(GUEST, settled["primary"], None) == []
    assert not any(step.changes for step in _plan.protect(GUEST, settled["primary"], _make.FEATURES, 60))
    assert _plan.standby(GUEST, settled["secondary"], _make.PRIMARY.generation) == []


def test_a_primary_that_wants_a_setting_is_not_settled() -> None:
    qemu = t.cast("_states.Qemu", SIGHTS["primary"].qemu)
    other = dataclasses.replace(qemu, settings={**qemu.settings, "comp0.max_queue_size": 17})
    assert not _plan.settled(GUEST, dataclasses.replace(SIGHTS["primary"], qemu=other))


def test_a_silent_standby_can_be_removed_and_a_silent_server_not() -> None:
    silent = SIGHTS["failed"]
    assert _said(lambda: _plan.stop_standby(GUEST, dataclasses.replace(silent, record=_make.SYNCING), None)) == STOP
    for record in (None, _make.PRIMARY, _make.ALONE):
        seen = dataclasses.replace(silent, record=record)
        assert _said(lambda seen=seen: _plan.stop_standby(GUEST, seen, "left")) == "is_serving"  # type: ignore[misc]


def test_an_old_primary_that_hangs_is_replaced_when_the_other_side_took_over() -> None:
    hung = dataclasses.replace(SIGHTS["failed"], record=_make.PRIMARY)
    assert _said(lambda: _plan.standby(GUEST, hung, 2)) == "copy_newer"
    assert _said(lambda: _plan.standby(GUEST, hung, 3)) == [*STOP, *_fill(3)]


# --- the serving side lets go -----------------------------------------------------------------------------------


def _heard(**more: t.Any) -> _states.Observation:
    """A protected primary that hears its standby."""
    payload = {"qemu_status": "running", "state": "protected", "generation": 2, "stale": False, "void": False, **more}
    keeper = _make.keeper(heard=True, peer=payload)
    keeper["heartbeat"]["last_rx_age_ms"] = 100.0
    return dataclasses.replace(SIGHTS["primary"], keeper=keeper)


def test_a_primary_lets_go_by_being_killed() -> None:
    """What its clients have seen, the standby has seen: an orderly end would go on answering."""
    (step,) = _plan.release(GUEST, _heard())
    assert (step.operation, dict(step.arguments)) == ("stop_unit", {"unit": GUEST.unit, "kill": True})


@pytest.mark.parametrize(
    "more",
    [{"qemu_status": None}, {"state": "syncing"}, {"generation": 1}, {"stale": True}, {"void": True}],
)
def test_a_primary_does_not_let_go_for_a_standby_that_could_not_take_over(more: dict[str, t.Any]) -> None:
    assert _said(lambda: _plan.release(GUEST, _heard(**more))) == "peer_not_ready"


def test_a_primary_that_lets_go_of_protection_is_not_switched_over() -> None:
    assert _said(lambda: _plan.release(GUEST, dataclasses.replace(_heard(), record=_make.LEFT))) == "not_protected"
