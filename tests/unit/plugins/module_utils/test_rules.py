# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an event or a peer's word means: every rule, without QEMU."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lockstep.colo.plugins.module_utils import _generation as g
from ansible_collections.lockstep.colo.plugins.module_utils import _rules, _topology
from ansible_collections.lockstep.colo.plugins.module_utils._rules import Action

PRIMARY = g.enter_protection(g.started_alone(g.new_record("web1", "alpha", "beta")), "alpha")
SYNCING = g.begin_sync(g.new_record("web1", "beta", "alpha"), 1)
STANDBY = g.enter_protection(SYNCING, "alpha")


def meaning(name: str, data: _rules.Json, role: str = "serving", migration: str | None = "colo") -> _rules.Meaning:
    return _rules.interpret(name, data, role=role, migration=migration)


def test_only_colo_on_a_standby_enters_protection() -> None:
    assert Action.ENTER_PROTECTION in meaning("MIGRATION", {"status": "colo"}, "standby", "active").actions
    for role in ("serving", "none"):
        assert Action.ENTER_PROTECTION not in meaning("MIGRATION", {"status": "colo"}, role).actions
    for status in ("setup", "active", "completed", "failed", "cancelled"):
        assert Action.ENTER_PROTECTION not in meaning("MIGRATION", {"status": status}, "standby").actions


def test_a_session_begins_with_setup_and_forgets_the_last_one_but_not_a_power_off() -> None:
    begun = meaning("MIGRATION", {"status": "setup"})
    assert begun.new_session
    assert set(begun.clear) == set(_rules.FLAGS) - {"shutdown"}
    entered = meaning("MIGRATION", {"status": "colo"}, migration="device")
    assert not entered.new_session
    assert not entered.clear, "what went wrong between setup and colo is not forgotten"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("QUORUM_REPORT_BAD", {"node-name": "replication0", "type": "flush"}),
        ("QUORUM_REPORT_BAD", {"node-name": "nbd0", "type": "write"}),
        ("QUORUM_FAILURE", {"reference": "watch0"}),
    ],
)
def test_replication_failure_is_for_the_serving_side_to_tell(name: str, data: _rules.Json) -> None:
    seen = meaning(name, data)
    assert seen.flags == {"replication_failed": data}
    assert seen.actions == (Action.TELL_PEER,)
    assert meaning(name, data, "standby") == _rules.NOTHING


@pytest.mark.parametrize(
    ("name", "at", "late"),
    [
        ("QUORUM_REPORT_BAD", 99.4, True),
        ("QUORUM_FAILURE", 99.4, True),
        ("QUORUM_REPORT_BAD", 100.0, False),
        ("QUORUM_REPORT_BAD", 100.7, False),
        # no throttling: somebody has set the clock back
        ("QUORUM_REPORT_BAD", 40.0, False),
        ("COLO_EXIT", 99.4, False),
    ],
)
def test_an_error_of_the_session_before_is_not_held_against_this_one(name: str, at: float, late: bool) -> None:
    assert _rules.is_late(name, at, 100.0) == late
    assert not _rules.is_late(name, at, None)


def test_the_nodes_to_the_standby_are_those_of_the_topology() -> None:
    nodes = (_topology.nbd_node(0), _topology.watch_node(0), _topology.replication_node(0))
    assert sorted(node.removesuffix("0") for node in nodes) == sorted(_rules.TO_STANDBY)
    assert not any(node.startswith(_rules.TO_STANDBY) for node in (_topology.parent_node(0), _topology.quorum_node(0)))


def test_an_error_of_the_own_disk() -> None:
    assert set(meaning("QUORUM_REPORT_BAD", {"node-name": "childs0"}, "standby").flags) == {"io_error"}
    assert set(meaning("QUORUM_REPORT_BAD", {"node-name": "parent0"}).flags) == {"io_error"}


@pytest.mark.parametrize("node", ["parent0", "childs0"], ids=["from the start", "taken over"])
def test_a_serving_side_whose_own_disk_fails_in_lock_step_lets_go(node: str) -> None:
    """What its guest reads from then on is older than what it wrote."""
    data = {"node-name": node, "type": "write", "error": "Input/output error"}
    assert _rules.Action.LET_GO in meaning("QUORUM_REPORT_BAD", data, "serving", "colo").actions
    for role, migration in (("serving", "none"), ("serving", "active"), ("standby", "colo")):
        assert _rules.Action.LET_GO not in meaning("QUORUM_REPORT_BAD", data, role, migration).actions
    assert _rules.Action.LET_GO not in meaning("QUORUM_REPORT_BAD", {"node-name": "watch0"}, "serving", "colo").actions


@pytest.mark.parametrize(
    ("data", "migration", "void"),
    [
        ({"guest": True, "reason": "guest-reset"}, "colo", True),
        ({"guest": True}, "colo", True),
        ({"guest": False, "reason": "host-qmp-system-reset"}, "colo", False),
        ({"guest": True}, "none", False),
        ({"guest": True}, None, False),
        ({"guest": True}, "active", False),
    ],
)
def test_reset(data: _rules.Json, migration: str | None, void: bool) -> None:
    seen = meaning("RESET", data, migration=migration)
    assert (Action.MARK_VOID in seen.actions) == void
    assert set(seen.flags) == {"reset"}
    assert seen.clear == ("shutdown",)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("COLO_EXIT", "colo_exit"),
        ("SHUTDOWN", "shutdown"),
        ("BLOCK_IO_ERROR", "io_error"),
        ("QUORUM_FAILURE", "io_error"),
    ],
)
def test_flags(name: str, flag: str) -> None:
    seen = meaning(name, {"x": 1})
    assert set(seen.flags) == {flag}
    assert seen.actions == (Action.TELL_PEER,)


def test_stop_and_resume_are_checkpoints_only_in_colo() -> None:
    assert [meaning(name, {}).checkpoint for name in ("STOP", "RESUME")] == ["stop", "resume"]
    for migration in ("none", "pre-switchover", "completed", None):
        assert meaning("STOP", {}, migration=migration).checkpoint is None
        assert meaning("RESUME", {}, migration=migration).checkpoint is None
    assert [meaning(name, {}).runstate for name in ("STOP", "RESUME")] == ["paused", "running"]


@given(
    st.text(),
    st.dictionaries(st.text(), st.none() | st.text() | st.integers()),
    st.sampled_from(["serving", "standby", "none"]),
)
def test_unknown_events_mean_nothing(name: str, data: _rules.Json, role: str) -> None:
    assert isinstance(meaning(name, data, role), _rules.Meaning)


def test_a_read_that_the_standbys_disk_does_not_answer_says_nothing_of_it() -> None:
    """The replication driver never reads there; it is asked where the own disk gives an error."""
    for node in ("replication0", "watch0", "nbd0"):
        assert meaning("QUORUM_REPORT_BAD", {"node-name": node, "type": "read"}) == _rules.NOTHING
        assert meaning("QUORUM_REPORT_BAD", {"node-name": node, "type": "write"}).flags


@pytest.mark.parametrize(
    ("payload", "follows"),
    [
        ({}, True),
        ({"state": "syncing"}, False),
        ({"generation": 99}, False),
        ({"stale": True}, False),
        ({"void": True}, False),
    ],
)
def test_who_follows(payload: _rules.Json, follows: bool) -> None:
    record = PRIMARY
    good = {"state": "protected", "generation": record.generation, "stale": False, "void": False}
    assert _rules.follows({**good, **payload}, record) is follows
    assert not _rules.follows({}, record)
    assert not _rules.follows(good, None)
    assert not _rules.follows(good, g.mark_void(record, "a reboot"))


def test_no_rule_promotes() -> None:
    assert {action.value for action in Action} == {
        "enter_protection",
        "mark_stale",
        "mark_void",
        "mark_clean",
        "mark_running",
        "let_go",
        "tell_peer",
    }


@pytest.mark.parametrize(
    ("reason", "role", "clean"),
    [
        ("guest-shutdown", "serving", True),
        ("guest-shutdown", "standby", False),  # the next checkpoint may take it back
        ("host-signal", "serving", False),
        ("host-qmp-quit", "serving", False),
    ],
)
def test_a_guest_that_powers_itself_off(reason: str, role: str, clean: bool) -> None:
    seen = meaning("SHUTDOWN", {"guest": clean, "reason": reason}, role)
    assert (Action.MARK_CLEAN in seen.actions) == clean
    assert set(seen.flags) == {"shutdown"}


@pytest.mark.parametrize(("role", "runs"), [("serving", True), ("standby", False)])
def test_a_guest_that_is_reset_runs_again(role: str, runs: bool) -> None:
    for migration in ("colo", "none"):
        seen = meaning("RESET", {"guest": True}, role, migration)
        assert (Action.MARK_RUNNING in seen.actions) == runs


# --- the peer ---------------------------------------------------------------------------------------------------

FAILED = {"host": "alpha", "role": "serving", "generation": 2, "flags": {"replication_failed": True}}


@pytest.mark.parametrize(
    ("payload", "record", "expected"),
    [
        (FAILED, STANDBY, Action.MARK_STALE),
        (FAILED, SYNCING, Action.MARK_STALE),
        ({**FAILED, "generation": 1}, SYNCING, Action.MARK_STALE),
        ({**FAILED, "generation": 1}, STANDBY, None),
        ({**FAILED, "role": "standby"}, STANDBY, None),
        ({**FAILED, "flags": {}}, STANDBY, None),
        ({**FAILED, "flags": None}, STANDBY, None),
        ({**FAILED, "generation": None}, STANDBY, None),
        ({**FAILED, "generation": "2"}, STANDBY, None),
        (FAILED, g.mark_stale(STANDBY, "x"), None),
        (FAILED, PRIMARY, None),
        (FAILED, None, None),
        ({**FAILED, "flags": {}, "generation": 3}, STANDBY, Action.MARK_STALE),
        ({**FAILED, "flags": {}, "generation": 3}, SYNCING, None),
        ({**FAILED, "flags": {}, "generation": 3, "role": "standby"}, STANDBY, None),
        ({**FAILED, "flags": {}, "void": True, "void_reason": "reboot"}, STANDBY, Action.MARK_VOID),
        ({**FAILED, "flags": {}, "void": True}, g.mark_void(STANDBY, "x"), None),
        ({"host": "beta", "role": "standby", "generation": 2, "void": True}, PRIMARY, Action.MARK_VOID),
        ({}, STANDBY, None),
        ({**FAILED, "flags": {}, "clean": True}, STANDBY, Action.MARK_CLEAN),
        ({**FAILED, "flags": {}, "clean": True}, g.mark_clean(STANDBY), None),
        ({**FAILED, "flags": {}, "clean": False}, STANDBY, None),
        ({**FAILED, "flags": {}, "clean": False}, g.mark_clean(STANDBY), Action.MARK_RUNNING),
        ({**FAILED, "flags": {}, "clean": True, "generation": 1}, SYNCING, None),
        ({"host": "beta", "role": "standby", "generation": 2, "clean": True}, PRIMARY, None),
    ],
)
def test_what_the_peer_says(payload: _rules.Json, record: g.Record | None, expected: Action | None) -> None:
    action, reason = _rules.interpret_peer(payload, record)
    assert action is expected
    assert bool(reason) == (action is not None)


def test_being_blind() -> None:
    assert not _rules.blind("running", "none", first_connection=True, keeper_was_first=True)
    assert _rules.blind("running", "none", first_connection=True, keeper_was_first=False)
    assert _rules.blind("running", "colo", first_connection=False, keeper_was_first=True)
    assert not _rules.blind("prelaunch", "none", first_connection=False, keeper_was_first=False)
    assert not _rules.blind("inmigrate", "setup", first_connection=False, keeper_was_first=False)
    assert _rules.blind("inmigrate", "active", first_connection=False, keeper_was_first=False)


def test_only_a_waiting_switchover_may_be_cancelled() -> None:
    every = ("none", "setup", "wait-unplug", "active", "device", "colo", "completed", "failed", "cancelled", None)
    assert not any(_rules.may_cancel(status) for status in every)
    assert _rules.may_cancel("pre-switchover")


def test_sessions() -> None:
    assert all(_rules.in_session(status) for status in ("setup", "active", "pre-switchover", "device", "colo"))
    assert not any(_rules.in_session(status) for status in (None, "none", "completed", "failed", "cancelled"))


# --- figures ----------------------------------------------------------------------------------------------------


def test_checkpoint_figures() -> None:
    checkpoints = _rules.Checkpoints()
    empty = checkpoints.figures(0.0)
    assert empty["count"] == 0
    assert {key for key, value in empty.items() if value is None} == set(empty) - {"count"}
    checkpoints.resume(1.0, 1.0)  # the one that begins the session ends no checkpoint
    assert checkpoints.count == 0
    for number in range(11):
        checkpoints.stop(1000.0 + number, float(number))
        checkpoints.resume(1000.0 + number + 0.01 * (number + 1), number + 0.01 * (number + 1))
    figures = checkpoints.figures(10.2)
    assert figures["count"] == 11
    assert figures["last_pause_ms"] == pytest.approx(110, abs=0.1)
    assert figures["p50_pause_ms"] == pytest.approx(60, abs=0.1)
    assert 105 < figures["p99_pause_ms"] <= 110.1
    assert figures["rate_hz"] == pytest.approx(1, abs=0.02)
    assert figures["last_age_ms"] == pytest.approx(90, abs=0.1)
    assert figures["stopped_for_ms"] is None


def test_a_checkpoint_that_does_not_end_is_seen() -> None:
    checkpoints = _rules.Checkpoints()
    checkpoints.stop(1000.0, 5.0)
    assert checkpoints.figures(9.0)["stopped_for_ms"] == 4000
    checkpoints.abandon()
    checkpoints.resume(1010.0, 15.0)
    assert checkpoints.figures(20.0)["count"] == 0


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_clock_that_is_set_does_not_spoil_the_figures(step: float) -> None:
    checkpoints = _rules.Checkpoints()
    checkpoints.stop(1000.0, 5.0)
    checkpoints.resume(1000.05 + step, 5.05)
    assert checkpoints.figures(6.0)["last_pause_ms"] == pytest.approx(50)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e9), st.floats(0, 1e9)), max_size=50))
def test_figures_of_anything(history: list[tuple[bool, float, float]]) -> None:
    checkpoints = _rules.Checkpoints()
    for stop, at, now in history:
        (checkpoints.stop if stop else checkpoints.resume)(at, now)
    figures: dict[str, t.Any] = checkpoints.figures(1e9)
    assert figures["count"] <= len(history)


def _job(offset: int, name: str = "resync0", **more: t.Any) -> dict[str, t.Any]:
    return {"device": name, "offset": offset, "len": 1000, "status": "running", **more}


def test_a_resync_has_a_rate_and_time_left() -> None:
    resync = _rules.Resync()
    assert resync.figures() == {}
    resync.look(100.0, [_job(0)])
    assert resync.figures()["resync0"] == {"done_bytes": 0, "of_bytes": 1000, "bytes_per_s": 0, "left_s": None}
    resync.look(102.0, [_job(200), _job(0, "resync1")])
    resync.look(104.0, [_job(400), _job(0, "resync1")])
    assert resync.figures() == {
        "resync0": {"done_bytes": 400, "of_bytes": 1000, "bytes_per_s": 100, "left_s": 6.0},
        "resync1": {"done_bytes": 0, "of_bytes": 1000, "bytes_per_s": 0, "left_s": None},
    }


def test_the_rate_of_a_resync_is_that_of_the_last_seconds() -> None:
    resync = _rules.Resync()
    for second in range(30):
        resync.look(float(second), [_job(10 * min(second, 15))])
    assert resync.figures()["resync0"]["left_s"] is None
    resync.look(30.0, [_job(250)])
    assert resync.figures()["resync0"]["bytes_per_s"] == 10


@pytest.mark.parametrize("jobs", [[], [_job(1000, ready=True)]])
def test_a_resync_that_has_caught_up_is_over(jobs: list[dict[str, t.Any]]) -> None:
    resync = _rules.Resync()
    resync.look(1.0, [_job(10)])
    resync.look(2.0, jobs)
    assert resync.figures() == {}
