# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The generation record: every transition, every refusal, and random histories of a pair."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.lockstep.colo.plugins.module_utils import _generation as g
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

NEW = g.new_record("web1", "alpha", "beta")
ALONE = g.started_alone(NEW)
PRIMARY = g.enter_protection(ALONE, "alpha")
PEER_NEW = g.new_record("web1", "beta", "alpha")
SYNCING = g.begin_sync(PEER_NEW, 1)
STANDBY = g.enter_protection(SYNCING, "alpha")
STALE = g.mark_stale(STANDBY, "no space")
VOID = g.mark_void(STANDBY, "reboot")
TAKEN = g.take_over(STANDBY, "pdu")
LEFT = g.go_alone(PRIMARY, "standby lost")
EVERY = [NEW, ALONE, PRIMARY, PEER_NEW, SYNCING, STANDBY, STALE, VOID, TAKEN, LEFT]


def code(call: t.Callable[..., t.Any], *arguments: t.Any, **keywords: t.Any) -> str:
    with pytest.raises(ColoError) as caught:
        call(*arguments, **keywords)
    assert len(caught.value.message) > 20
    return caught.value.error_code


@pytest.mark.parametrize("record", EVERY)
def test_round_trip(record: g.Record) -> None:
    assert g.Record.from_dict(record.to_dict()) == record


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"generation": -1},
        {"generation": True},
        {"generation": "1"},
        {"generation": 0},
        {"generation": 1.0},
        {"state": "running"},
        {"state": "new"},
        {"state": "syncing"},
        {"state": "protected", "serving": None},
        {"serving": "gamma"},
        {"serving": "beta"},
        {"joins": 2},
        {"stale": True},
        {"stale": None},
        {"void": 0},
        {"host": ""},
        {"peer": "alpha"},
        {"reason": None},
        {"colour": "red"},
    ],
)
def test_unreadable(change: dict[str, t.Any]) -> None:
    assert code(g.Record.from_dict, {**ALONE.to_dict(), **change}) == "record_unreadable"


@pytest.mark.parametrize("data", [None, [], "x", {}, {"schema": 1}])
def test_unreadable_forms(data: t.Any) -> None:
    assert code(g.Record.from_dict, data) == "record_unreadable"


def test_missing_field() -> None:
    data = ALONE.to_dict()
    del data["void"]
    assert code(g.Record.from_dict, data) == "record_unreadable"


def test_whole_life() -> None:
    assert (NEW.generation, ALONE.generation, PRIMARY.generation) == (0, 1, 2)
    assert (SYNCING.generation, SYNCING.joins, STANDBY.generation, STANDBY.joins) == (1, 2, 2, None)
    assert (TAKEN.generation, TAKEN.serving, TAKEN.fenced_by) == (3, "beta", "pdu")
    assert (LEFT.generation, LEFT.serving, LEFT.state) == (3, "alpha", "alone")
    assert [record.role for record in (NEW, ALONE, PRIMARY, SYNCING, STANDBY, TAKEN)] == [
        "none", "serving", "serving", "standby", "standby", "serving",
    ]  # fmt: skip


def test_repeated_steps_change_nothing() -> None:
    assert g.enter_protection(PRIMARY, "alpha", reason="again") is PRIMARY
    assert g.enter_protection(STANDBY, "alpha") is STANDBY
    assert g.begin_sync(SYNCING, 1, reason="again") is SYNCING
    assert g.mark_stale(STALE, "another") is STALE
    assert g.mark_void(VOID, "another") is VOID
    assert g.go_alone(LEFT, "again") is LEFT
    assert g.go_alone(SYNCING, "not protected") is SYNCING
    assert g.mark_clean(g.mark_clean(ALONE)) == g.mark_clean(ALONE)


def test_marks_stay_where_they_belong() -> None:
    assert g.mark_stale(PRIMARY, "x") is PRIMARY
    assert g.mark_stale(ALONE, "x") is ALONE
    assert g.mark_void(ALONE, "x") is ALONE
    assert g.mark_clean(SYNCING) is SYNCING
    assert g.mark_clean(STALE) is STALE
    assert g.mark_running(g.mark_clean(ALONE)) == dataclasses.replace(ALONE, reason="guest reset")
    assert g.mark_running(ALONE) is ALONE
    torn = g.mark_stale(SYNCING, "nbd lost")
    assert g.enter_protection(torn, "alpha").stale, "what was found out during the sync stays"
    assert not g.begin_sync(torn, 1).stale
    assert not g.enter_protection(dataclasses.replace(LEFT, void=True, void_reason="x"), "alpha").void


def test_never_started() -> None:
    assert code(g.started_alone, SYNCING, accept_older=True) == "copy_not_startable"
    assert code(g.started_alone, STALE, accept_older=True) == "copy_not_startable"
    assert code(g.started_alone, STANDBY) == "illegal_transition"
    assert g.started_alone(STANDBY, accept_older=True).generation == 3


def test_never_overwritten() -> None:
    assert code(g.begin_sync, ALONE, 1) == "copy_newer"
    assert code(g.begin_sync, ALONE, 9) == "copy_newer"
    assert code(g.begin_sync, TAKEN, 2) == "copy_newer"
    assert code(g.begin_sync, PRIMARY, 2) == "copy_newer"
    assert code(g.begin_sync, STANDBY, 1) == "copy_newer"
    assert g.begin_sync(PRIMARY, 3).joins == 4
    assert g.begin_sync(ALONE, 9, discard=True).joins == 10


def test_entering_protection_out_of_turn() -> None:
    for record, serving in [(NEW, "alpha"), (ALONE, "beta"), (STANDBY, "beta"), (SYNCING, "beta"), (PRIMARY, "beta")]:
        assert code(g.enter_protection, record, serving) == "illegal_transition"


def test_take_over_is_refused() -> None:
    assert code(g.take_over, STANDBY, " ") == "not_fenced"
    assert code(g.take_over, STALE, "pdu") == "copy_not_startable"
    assert code(g.take_over, SYNCING, "pdu") == "copy_not_startable"
    assert code(g.take_over, VOID, "pdu") == "protection_void"
    assert g.take_over(VOID, "pdu", accept_void=True).state == "alone"
    for record in (NEW, ALONE, PRIMARY):
        assert code(g.take_over, record, "pdu") == "illegal_transition"
    assert code(g.go_alone, STANDBY, "why not") == "illegal_transition"


@pytest.mark.parametrize("record", EVERY)
@pytest.mark.parametrize("role", ["primary", "standby", "other"])
def test_start_gate(record: g.Record, role: str) -> None:
    may = (record.state, role) in (("alone", "primary"), ("syncing", "standby"))
    if may:
        g.check_start(record, role, record.generation)
        assert code(g.check_start, record, role, record.generation + 1) == "start_refused"
    else:
        assert code(g.check_start, record, role, record.generation) in ("start_refused", "copy_not_startable")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (NEW, PEER_NEW, "alpha"),
        (ALONE, PEER_NEW, "alpha"),
        (ALONE, SYNCING, "alpha"),
        (ALONE, None, "alpha"),
        (PRIMARY, SYNCING, "alpha"),
        (PRIMARY, STANDBY, "alpha"),
        (PRIMARY, STALE, "alpha"),
        (PRIMARY, TAKEN, "beta"),
        (LEFT, STANDBY, "alpha"),
        (LEFT, SYNCING, "alpha"),
        (LEFT, TAKEN, "records_split"),
        (ALONE, TAKEN, "records_split"),
        (ALONE, STANDBY, "records_inconsistent"),
        (PRIMARY, g.go_alone(g.enter_protection(g.started_alone(PEER_NEW), "beta"), "x"), "beta"),
        (PRIMARY, g.enter_protection(g.started_alone(PEER_NEW), "beta"), "records_inconsistent"),
        (PRIMARY, PEER_NEW, "newest_unknown"),
        (PRIMARY, None, "newest_unknown"),
        (NEW, None, "newest_unknown"),
        (NEW, STANDBY, "newest_unknown"),
        (NEW, SYNCING, "newest_unknown"),
        (None, STANDBY, "newest_unknown"),
        (None, SYNCING, "no_startable_copy"),
        (None, STALE, "no_startable_copy"),
        (g.begin_sync(NEW, 1), SYNCING, "no_startable_copy"),
        (None, None, "records_missing"),
        (ALONE, ALONE, "records_foreign"),
        (ALONE, dataclasses.replace(SYNCING, guest="web2"), "records_foreign"),
    ],
)
def test_newest(one: g.Record | None, other: g.Record | None, expected: str) -> None:
    for choice in (g.newest(one, other), g.newest(other, one)):
        if one is NEW and other is PEER_NEW:
            assert choice.host in ("alpha", "beta")
        else:
            assert (choice.host or choice.error_code) == expected
        assert choice.message
        assert (choice.host is None) != (choice.error_code is None)


def test_newest_prefers_the_first_host_of_two_new_ones() -> None:
    assert g.newest(NEW, PEER_NEW).host == "alpha"
    assert g.newest(PEER_NEW, NEW).host == "beta"


def test_newest_of_a_split_names_the_higher_number_only_as_a_hint() -> None:
    assert g.newest(LEFT, TAKEN).newer is None
    choice = g.newest(g.started_alone(LEFT), TAKEN)
    assert (choice.host, choice.newer) == (None, "alpha")


# --- random histories -------------------------------------------------------------------------------------------


class World:
    """A pair whose disks hold a number, the last write. What a client was told is ``acknowledged``.

    Each operation is cut at a random step, as by a power cut or a killed module: records are durable, processes not.
    A host that was replaced comes back with blank images and a new record; one whose record is gone has images of any age.
    """

    def __init__(self) -> None:
        self.record: dict[str, g.Record | None] = {"alpha": NEW, "beta": PEER_NEW}
        self.data = {"alpha": 0, "beta": 0}
        self.runs: str | None = None  # who serves
        self.follows: str | None = None  # who is in lock step with it
        self.acknowledged = 0

    def of(self, host: str) -> g.Record:
        """The record of a host whose copy is used."""
        record = self.record[host]
        assert record is not None
        return record

    @property
    def choice(self) -> g.Choice:
        return g.newest(self.record["alpha"], self.record["beta"])

    @property
    def gone(self) -> bool:
        """Whether no copy has any more what was acknowledged."""
        return max(self.data.values()) < self.acknowledged

    def write(self, _steps: int = 0) -> None:
        """A client's write, acknowledged when every copy that must have it has it."""
        if self.runs:
            self.data[self.runs] += 1
            if self.follows and not self.of(self.follows).stale:
                self.data[self.follows] = self.data[self.runs]
            self.acknowledged = self.data[self.runs]

    def start(self, steps: int) -> None:
        host = self.choice.host
        if self.runs or host is None or self.of(host).uncommitted:
            return
        if self.gone:
            assert self.of(host).state == "new", "an older copy is started, because the newest one is lost"
            self.acknowledged = self.data[host]
        self.record[host] = g.started_alone(self.of(host))
        if steps > 0:
            self.runs = host

    def protect(self, steps: int) -> None:
        if not self.runs or self.follows:
            return
        here, there = self.runs, self.peer(self.runs)
        target = self.record[there]
        if target is None:
            return  # a copy of any age is not overwritten
        if self.of(here).state == "protected":
            self.record[here] = g.go_alone(self.of(here), "again")
        self.record[here] = g.mark_whole(self.of(here))  # QEMU commits by itself, and is waited for
        self.record[there] = g.begin_sync(target, self.of(here).generation)
        self.data[there] = -1  # torn
        if steps < 1:
            return
        self.data[there] = self.data[here]  # mirrored; the guest is paused
        if steps < 2:
            self.data[there] = -1
            return
        self.record[here] = g.enter_protection(self.of(here), here)
        if steps < 3:
            self.data[there] = -1
            return
        self.follows = there
        if steps < 4:
            return  # its keeper was dead; it is in lock step and does not know
        self.record[there] = g.enter_protection(self.of(there), here)

    def lose_standby(self, steps: int) -> None:
        if self.runs and self.follows:
            self.follows = None
            if steps > 0:
                self.record[self.runs] = g.go_alone(self.of(self.runs), "standby lost")

    def lose_primary(self, steps: int) -> None:
        """The primary is fenced; the standby takes over if its record lets it, a void one by an explicit word."""
        follows = self.follows
        self._down()
        if follows and steps > 0:
            try:
                self.record[follows] = g.take_over(self.of(follows), "pdu", accept_void=steps > 2)
            except ColoError:
                return
            if steps > 1:
                self.runs = follows
            else:
                self.data[follows] = -1  # it died before its overlays were committed
            if steps > 3:
                self.commit(9)

    def commit(self, _steps: int) -> None:
        if self.runs:
            self.record[self.runs] = g.mark_whole(self.of(self.runs))

    def lose_replication(self, steps: int) -> None:
        if self.follows and steps > 0:
            self.record[self.follows] = g.mark_stale(self.of(self.follows), "nbd lost")

    def reset(self, steps: int) -> None:
        """The guest reboots in lock step; one keeper or both see it. The disk goes on to follow."""
        if self.runs and self.follows:
            self.record[self.follows] = g.mark_void(self.of(self.follows), "reboot")
            if steps > 0:
                self.record[self.runs] = g.mark_void(self.of(self.runs), "reboot")

    def power_off(self, steps: int) -> None:
        """In an orderly way: the keepers write it down, then the module lets go of the protection."""
        if self.runs:
            self.record[self.runs] = g.mark_clean(self.of(self.runs))
            if self.follows and steps > 0:
                self.record[self.follows] = g.mark_clean(self.of(self.follows))
            if steps > 1:
                self.record[self.runs] = g.mark_clean(g.go_alone(self.of(self.runs), "protection ended"))
            self._down()

    def lose_both(self, _steps: int) -> None:
        self._down()

    def replace(self, steps: int) -> None:
        """A host comes back empty: its copy is lost for ever."""
        self._lose("alpha" if steps % 2 else "beta", blank=True)

    def lose_record(self, steps: int) -> None:
        self._lose("alpha" if steps % 2 else "beta", blank=False)

    def _lose(self, host: str, blank: bool) -> None:
        if host == self.runs:
            self._down()
        elif host == self.follows:
            self.lose_standby(9)
        self.record[host] = g.new_record("web1", host, self.peer(host)) if blank else None
        self.data[host] = 0 if blank else self.data[host]

    def keep_older(self, steps: int) -> None:
        """resolve.yml with colo_lost_host: what the lost copy had is given up by name."""
        host = "alpha" if steps % 2 else "beta"
        record, other = self.record[host], self.record[self.peer(host)]
        lost = other is None or other.state == "new"
        if not self.runs and record and record.state == "protected" and record.role == "standby" and lost:
            try:
                self.record[host] = g.started_alone(record, accept_older=True)
            except ColoError:
                assert record.stale
                return
            assert self.data[host] >= 0, "a torn copy was started"
            self.runs, self.acknowledged = host, self.data[host]

    def _down(self) -> None:
        """Both QEMUs end; overlays of a takeover that were not seen to be committed may not be in the image."""
        if self.runs and self.of(self.runs).uncommitted:
            self.data[self.runs] = -1
        self.runs = self.follows = None

    @staticmethod
    def peer(host: str) -> str:
        return "beta" if host == "alpha" else "alpha"


# Mostly whole operations in a useful order, so that the histories get somewhere; any order and any cut among them.
LIFE = (
    ["write"] * 4
    + ["start", "protect"] * 3
    + ["lose_primary"] * 2
    + ["lose_standby", "lose_replication", "lose_both", "commit", "reset", "power_off"]
)
CUTS = st.sampled_from([9, 9, 9, 9, 9, 0, 1, 2, 3])
STEPS = st.tuples(st.sampled_from(LIFE), CUTS)
LOSSES = st.tuples(st.sampled_from(LIFE * 2 + ["replace", "lose_record", "keep_older"]), CUTS)


def _live(world: World, name: str, steps: int) -> None:
    getattr(world, name)(steps)
    for record in world.record.values():
        assert record is None or g.Record.from_dict(record.to_dict()) == record
    if world.runs:
        assert world.data[world.runs] >= world.acknowledged, "an older copy was started"


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, min_size=5, max_size=50))
def test_the_newest_copy_has_every_acknowledged_write(history: list[tuple[str, int]]) -> None:
    world = World()
    for name, steps in history:
        _live(world, name, steps)
        choice = world.choice
        assert choice.error_code not in ("records_split", "records_inconsistent", "records_foreign")
        if choice.host and not world.of(choice.host).uncommitted:
            assert world.data[choice.host] == world.acknowledged


@settings(max_examples=300, deadline=None)
@given(st.lists(LOSSES, min_size=5, max_size=50))
def test_a_copy_or_a_record_that_is_lost_never_makes_an_older_one_the_newest(history: list[tuple[str, int]]) -> None:
    """Where the newest copy is lost for ever, nothing is chosen but images that never ran, both of them."""
    world = World()
    for name, steps in history:
        _live(world, name, steps)
        host = world.choice.host
        if host and not world.of(host).uncommitted:
            assert world.data[host] == world.acknowledged or (world.gone and world.of(host).state == "new")


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, min_size=5, max_size=50), st.sampled_from(["alpha", "beta"]))
def test_one_record_is_enough_or_nothing_is_started(history: list[tuple[str, int]], asked: str) -> None:
    world = World()
    for name, steps in history:
        _live(world, name, steps)
    choice = g.newest_of_one(world.of(asked))
    if choice.host and not world.of(choice.host).uncommitted:
        assert world.data[choice.host] == world.acknowledged


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=5,
    )
)
def test_from_dict_takes_anything(data: t.Any) -> None:
    assert code(g.Record.from_dict, data) == "record_unreadable"


@given(st.dictionaries(st.sampled_from(sorted(ALONE.to_dict())), st.none() | st.booleans() | st.integers() | st.text()))
def test_from_dict_is_safe_or_refuses(change: dict[str, t.Any]) -> None:
    data = {**ALONE.to_dict(), **change}
    try:
        record = g.Record.from_dict(data)
    except ColoError:
        assert code(g.Record.from_dict, data) == "record_unreadable"
    else:
        assert g.Record.from_dict(record.to_dict()) == record
