# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The word for what is on a host, what counts as lost or alive, and which migration states may follow which."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _states
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.tests.unit import _make


@pytest.mark.parametrize(
    ("unit", "process"),
    [
        ("active", True),
        ("activating", True),
        ("deactivating", True),
        ("reloading", True),
        ("maintenance", True),
        ("a word systemd invents tomorrow", True),
        ("inactive", False),
        ("failed", False),
    ],
)
def test_not_knowing_counts_as_running(unit: str, process: bool) -> None:
    seen = _make.seen(unit=unit)
    assert seen.process is process
    assert _states.standing(seen) == ("failed" if process else "stopped")


@pytest.mark.parametrize("runstate", ["running", "paused", "finish-migrate", "debug", "restore-vm", "colo"])
def test_a_guest_that_has_run_here_serves(runstate: str) -> None:
    assert _states.standing(_make.seen(_make.qemu(runstate=runstate))) == "alone"


@pytest.mark.parametrize("runstate", ["internal-error", "io-error", "guest-panicked", "watchdog"])
def test_a_guest_that_stands_still_for_good_has_failed(runstate: str) -> None:
    assert _states.standing(_make.seen(_make.qemu(runstate=runstate))) == "failed"


def test_a_keeper_that_does_not_answer_loses_nobody() -> None:
    for name in ("orphaned-primary", "orphaned-secondary"):
        seen = dataclasses.replace(_make.SIGHTS[name], keeper=None)
        assert _states.standing(seen) in ("primary", "secondary")
        assert _states.peer_lost(seen) is None


@pytest.mark.parametrize(("flags", "lost"), [((True, False), True), ((False, True), True), ((False, False), False)])
def test_either_sign_says_that_the_peer_is_lost(flags: tuple[bool, bool], lost: bool) -> None:
    seen = dataclasses.replace(_make.SIGHTS["secondary"], keeper=_make.keeper(colo_exit=flags[0], lost=flags[1]))
    assert (_states.standing(seen) == "orphaned") is lost


@pytest.mark.parametrize(
    ("heard", "age_ms", "peer", "alive"),
    [
        (True, 100.0, {"qemu_status": "running"}, True),
        (True, 1099.0, {"qemu_status": "paused"}, True),
        (True, 1101.0, {"qemu_status": "running"}, False),
        (True, None, {"qemu_status": "running"}, False),
        (True, 100.0, {"qemu_status": None}, False),
        (True, 100.0, None, False),
        (False, 100.0, {"qemu_status": "running"}, False),
    ],
)
def test_who_is_alive(heard: bool, age_ms: float | None, peer: t.Any, alive: bool) -> None:
    keeper = _make.keeper(heard=heard, peer=peer)
    keeper["heartbeat"]["last_rx_age_ms"] = age_ms
    assert _states.peer_alive(keeper, 500) is alive


def test_nobody_is_heard_without_a_keeper() -> None:
    assert not _states.peer_alive(None, 500)


@pytest.mark.parametrize(
    "more",
    [
        {"jobs": {"resync0": _make.JOB}},
        {"nodes": frozenset({"parent0", "nbd0"})},
        {"nodes": frozenset({"parent0", "watch0"})},
        {"nodes": frozenset({"parent0", "replication0"})},
        {"objects": {"m0": "filter-mirror"}},
        {"objects": {"f1-0": "filter-redirector"}},
        {"objects": {"comp0": "colo-compare"}},
        {"chardevs": {"mirror0": False}},
        {"exports": frozenset({"export0"})},
        {"migration": "active"},
        {"migration": "cancelling"},
    ],
)
def test_each_trace_of_colo_is_a_leftover(more: dict[str, t.Any]) -> None:
    assert _states.leftovers(_make.seen(_make.qemu(**more)))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"objects": {"flush0": "filter-redirector", "rew0": "filter-rewriter"}, "chardevs": {"flushin0": True}},
        {"nodes": frozenset({"parent0", "colo-disk0", "childs0", "active0", "hidden0"})},
        {"migration": "completed"},
        {"migration": "failed"},
    ],
)
def test_what_stays_after_a_life_as_a_standby_is_none(more: dict[str, t.Any]) -> None:
    assert not _states.leftovers(_make.seen(_make.qemu(**more)))
    assert not _states.leftovers(_make.seen())


GOOD = [
    ["none", "setup", "active", "pre-switchover", "device", "colo"],
    ["none", "setup", "active", "pre-switchover", "colo"],
    ["none", "setup", "wait-unplug", "active", "failing", "failed"],
    ["failed", "setup", "active", "cancelling", "cancelled", "setup", "active"],
    ["pre-switchover", "cancelling", "cancelled"],
    ["device", "failing", "failed"],
    ["colo", "completed", "setup"],
    ["active", "active"],
    ["none"],
    [],
]


@pytest.mark.parametrize("way", GOOD)
def test_legal_ways(way: list[str]) -> None:
    _states.check_transitions(way)


@pytest.mark.parametrize(
    ("way", "code"),
    [
        (["none", "setup", "active", "pre-switchover", "device", "completed"], "colo_not_entered"),
        (["active", "completed"], "colo_not_entered"),
        (["none", "setup", "active", "colo"], "illegal_transition"),
        (["none", "colo"], "illegal_transition"),
        (["setup", "device"], "illegal_transition"),
        (["cancelled", "active"], "illegal_transition"),
        (["active", "pre-switchover", "active"], "illegal_transition"),
        (["active", "a-new-state"], "illegal_transition"),
        (["a-new-state", "active"], "illegal_transition"),
    ],
)
def test_illegal_ways(way: list[str], code: str) -> None:
    with pytest.raises(ColoError) as caught:
        _states.check_transitions(way)
    assert caught.value.error_code == code
    assert caught.value.details == {"transitions": way}


def test_every_state_on_the_way_may_fail_and_be_cancelled() -> None:
    for state in _states.MIGRATION_ACTIVE - {"cancelling", "failing"}:
        assert {"failing", "failed", "cancelling"} <= _states.LEGAL_OUTGOING[state]


@pytest.mark.parametrize(
    ("record", "error"), [("PRIMARY", "QUORUM_REPORT_BAD: Input/output error"), ("SECONDARY", None), ("SYNCING", None)]
)
def test_whose_disk_has_failed(record: str, error: str | None) -> None:
    flags = {"io_error": {"time": 1.0, "data": {"event": "QUORUM_REPORT_BAD", "error": "Input/output error"}}}
    seen = _make.seen(_make.qemu(), getattr(_make, record), keeper=_make.keeper(flags=flags))
    assert _states.disk_error(seen) == error
    assert _states.disk_error(_make.seen(_make.qemu(), keeper=None)) is None
    assert _states.disk_error(_make.seen(_make.qemu(), keeper=_make.keeper())) is None


@pytest.mark.parametrize(
    ("qemu", "answered"),
    [
        ({"connected": True, "answer_age_ms": 10.0}, True),
        ({"connected": True, "answer_age_ms": 5000.0}, False),
        ({"connected": True, "answer_age_ms": None}, False),
        ({"connected": False, "answer_age_ms": 10.0}, False),
    ],
)
def test_whether_a_keeper_has_an_answer(qemu: dict[str, t.Any], answered: bool) -> None:
    assert _states.answered_within(_make.keeper(qemu=qemu), 3000) is answered
    assert not _states.answered_within(None, 3000)
