# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pair's verdict and who may take over: every pair of answers, and never a start while a side may serve."""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _generation as g
from ansible_collections.lockstep.colo.plugins.module_utils import _pair, _states
from ansible_collections.lockstep.colo.plugins.module_utils._pair import Side
from ansible_collections.lockstep.colo.tests.unit import _make


def _records(host: str, peer: str) -> dict[str, g.Record | None]:
    new = g.new_record("web1", host, peer)
    alone = g.started_alone(new)
    secondary = g.enter_protection(g.begin_sync(new, 1), peer)
    return {
        "none": None,
        "new": new,
        "alone1": alone,
        "primary2": g.enter_protection(alone, host),
        "alone3": g.go_alone(g.enter_protection(alone, host), "standby lost"),
        "syncing1": g.begin_sync(new, 1),
        "secondary2": secondary,
        "stale2": g.mark_stale(secondary, "no space"),
        "taken3": g.take_over(secondary, "fenced"),
    }


ALPHA, BETA = _records("alpha", "beta"), _records("beta", "alpha")
STANDINGS: tuple[_states.Standing | None, ...] = (None, *t.get_args(_states.Standing))


def _side(host: str, standing: _states.Standing | None, record: str = "none", **more: t.Any) -> Side:
    return Side(host, standing, (ALPHA if host == "alpha" else BETA)[record], **more)


def _every_pair() -> t.Iterator[tuple[Side, Side]]:
    """Every two answers; a host that does not answer tells no record."""
    ones = [_side("alpha", word, record) for word in STANDINGS for record in ALPHA if word or record == "none"]
    twos = [_side("beta", word, record) for word in STANDINGS for record in BETA if word or record == "none"]
    return itertools.product(ones, twos)


def _may_serve(side: Side) -> bool:
    """Whether this host's QEMU may run the guest, as far as anybody can know."""
    if side.standing in (None, "failed", "alone", "primary"):
        return True
    if side.standing == "syncing":
        return side.record is None or side.record.state in ("new", "alone") or side.record.serving == side.host
    return side.standing == "orphaned" and side.record is not None and side.record.role == "serving"


def test_nothing_is_started_while_a_side_may_serve() -> None:
    started = 0
    for sides in _every_pair():
        found = _pair.pair(sides)
        if found.start:
            started += 1
            assert not any(_may_serve(side) for side in sides), sides
            assert {found.serving, found.standby} == {"alpha", "beta"}
            assert found.refusal == ""
    assert started > 50


def test_only_the_newest_copy_is_started() -> None:
    for one, two in _every_pair():
        found = _pair.pair((one, two))
        if not found.start or found.verdict == "absent":
            continue
        chosen, other = (one, two) if found.serving == "alpha" else (two, one)
        assert chosen.record is not None
        assert chosen.record.state in ("new", "alone", "protected")
        assert not chosen.record.stale
        if other.record is not None and other.record.role == "serving":
            # it served last only up to a generation that the chosen one took over from
            assert (other.record.state, chosen.record.state) == ("protected", "alone")
            assert other.record.generation < chosen.record.generation
        assert found.generation == chosen.record.generation


def test_a_waiting_secondary_is_only_passed_over_for_a_newer_copy() -> None:
    for one, two in _every_pair():
        found = _pair.pair((one, two))
        waiting = [side for side in (one, two) if side.standing in ("secondary", "orphaned")]
        if found.start and waiting and waiting[0].record is not None:
            chosen = one if found.serving == "alpha" else two
            assert chosen.record is not None
            assert chosen.record.generation > waiting[0].record.generation


def test_protected_means_both_sides_proved_it_at_one_generation() -> None:
    found = 0
    for one, two in itertools.product(
        [_side("alpha", word, record, proven=proven) for word in STANDINGS for record in ALPHA for proven in (0, 1)],
        [_side("beta", word, record, proven=proven) for word in STANDINGS for record in BETA for proven in (0, 1)],
    ):
        if _pair.pair((one, two)).verdict == "protected":
            found += 1
            assert {one.standing, two.standing} == {"primary", "secondary"}
            assert one.proven
            assert two.proven
            assert one.record is not None
            assert two.record is not None
            assert (one.record.state, one.record.generation) == (two.record.state, two.record.generation)
    assert found > 0


@pytest.mark.parametrize("standing", ["alone", "primary"])
def test_two_that_serve_are_split_and_nothing_is_done(standing: _states.Standing) -> None:
    found = _pair.pair((_side("alpha", standing, "alone1"), _side("beta", "alone", "taken3")))
    assert found.verdict == "split"
    assert found.refusal
    assert found.serving is None
    assert not found.start


PROVEN = {"proven": True}


@pytest.mark.parametrize(
    ("one", "two", "verdict", "serving", "standby", "start", "refusal"),
    [
        (("absent",), ("absent",), "absent", "alpha", "beta", True, ""),
        (("stopped", "new"), ("stopped", "new"), "unprotected", "alpha", "beta", True, ""),
        (("stopped", "primary2"), ("stopped", "secondary2"), "unprotected", "alpha", "beta", True, ""),
        (("stopped", "primary2"), ("stopped", "taken3"), "unprotected", "beta", "alpha", True, ""),
        (("stopped", "alone3"), ("orphaned", "secondary2"), "unprotected", "alpha", "beta", True, ""),
        (("stopped", "primary2"), ("orphaned", "secondary2"), "degraded", None, None, False, "failover.yml"),
        (("stopped", "alone3"), ("stopped", "taken3"), "unprotected", None, None, False, "two histories"),
        (("stopped", "none"), ("stopped", "none"), "unprotected", None, None, False, "record"),
        (("alone", "alone1"), ("stopped", "new"), "unprotected", "alpha", "beta", False, ""),
        (("alone", "alone1"), ("standby", "syncing1"), "protecting", "alpha", "beta", False, ""),
        (("syncing", "alone1"), ("syncing", "syncing1"), "protecting", "alpha", "beta", False, ""),
        (("primary", "primary2"), ("secondary", "secondary2"), "degraded", "alpha", "beta", False, ""),
        (("primary", "primary2"), ("stopped", "secondary2"), "degraded", "alpha", "beta", False, ""),
        (("orphaned", "primary2"), ("stopped", "secondary2"), "degraded", "alpha", "beta", False, ""),
        (("orphaned", "primary2"), ("orphaned", "secondary2"), "degraded", "alpha", "beta", False, ""),
        (("alone", "alone1"), (None,), "unprotected", "alpha", None, False, ""),
        (("primary", "primary2"), (None,), "unknown", "alpha", None, False, "failover.yml -e colo_confirm_fenced=beta"),
        (("orphaned", "primary2"), (None,), "degraded", "alpha", None, False, "Fence beta"),
        (("stopped", "alone1"), (None,), "unknown", None, None, False, "not knowing counts as running"),
        (("stopped", "alone1"), ("failed", "syncing1"), "unknown", None, None, False, "not knowing"),
        (("stopped", "alone1"), ("syncing", "none"), "unknown", None, None, False, "not knowing"),
        ((None,), (None,), "unknown", None, None, False, "not knowing"),
    ],
)
def test_verdicts(
    one: tuple[t.Any, ...],
    two: tuple[t.Any, ...],
    verdict: str,
    serving: str | None,
    standby: str | None,
    start: bool,
    refusal: str,
) -> None:
    found = _pair.pair((_side("alpha", *one), _side("beta", *two)))
    assert (found.verdict, found.serving, found.standby, found.start) == (verdict, serving, standby, start)
    assert bool(found.refusal) is bool(refusal)
    assert refusal in found.refusal
    assert len(found.reason) > 20


def _lock_step(one: dict[str, t.Any], two: dict[str, t.Any]) -> _pair.Pair:
    return _pair.pair(
        (
            _side("alpha", "primary", **{"record": "primary2", "proven": True, **one}),
            _side("beta", "secondary", **{"record": "secondary2", "proven": True, **two}),
        )
    )


def test_what_makes_a_protection_untrustworthy() -> None:
    assert _lock_step({}, {}).verdict == "protected"
    for one, two, rebuild in (
        ({"proven": False}, {}, False),
        ({}, {"proven": False}, False),
        ({"void_reason": "reboot"}, {}, True),
        ({}, {"void_reason": "reboot"}, True),
        ({"record": "alone3"}, {}, True),
        ({"record": "none"}, {}, True),
        ({}, {"record": "syncing1"}, True),
    ):
        found = _lock_step(one, two)
        assert (found.verdict, found.rebuild, found.refusal) == ("degraded", rebuild, ""), (one, two)


@pytest.mark.parametrize("standing", ["orphaned", "stopped", "standby", "syncing"])
def test_a_primary_that_has_not_noticed_lets_go_before_its_standby_is_made_anew(standing: _states.Standing) -> None:
    found = _pair.pair((_side("alpha", "primary", "primary2", proven=True), _side("beta", standing, "secondary2")))
    assert (found.verdict, found.serving, found.rebuild, found.refusal) == ("degraded", "alpha", True, "")
    found = _pair.pair((_side("alpha", "orphaned", "primary2"), _side("beta", standing, "secondary2")))
    assert (found.verdict, found.serving, found.rebuild) == ("degraded", "alpha", False)


def test_a_serving_side_whose_disk_failed_is_moved_and_not_rebuilt() -> None:
    """Its standby has the only whole copy: to make it anew from the failed disk would lose what is missing there."""
    found = _lock_step({"disk_error": "QUORUM_REPORT_BAD: Input/output error"}, {})
    assert (found.verdict, found.rebuild, found.move) == ("degraded", False, True)
    assert "Input/output error" in found.reason
    assert "switchover.yml" in found.refusal
    for one, two in (("primary", "orphaned"), ("orphaned", "secondary"), ("orphaned", "orphaned")):
        failed = _side("alpha", t.cast("_states.Standing", one), "primary2", disk_error="an error")
        found = _pair.pair((failed, _side("beta", t.cast("_states.Standing", two), "secondary2")))
        assert (found.verdict, found.rebuild, found.move) == ("degraded", False, False)
        assert "failover.yml" in found.refusal
    assert not _lock_step({"disk_error": "an error"}, {"void_reason": "stale"}).move
    assert _lock_step({}, {"disk_error": "overlay full"}).verdict == "protected"


# --- failover ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "two"), [("primary", "secondary"), ("primary", "orphaned"), ("orphaned", "orphaned")])
def test_a_failover_never_stops_the_only_whole_copy(one: _states.Standing, two: _states.Standing) -> None:
    sides = _side("alpha", one, "primary2", disk_error="an error"), _side("beta", two, "secondary2")
    judged = _pair.failover(sides, None)
    assert (judged.survivor, judged.stop) == (None, None)
    assert "only the copy on beta is whole" in judged.refusal
    assert _pair.failover((dataclasses.replace(sides[0], standing="stopped"), sides[1]), None).survivor == "beta"


def test_a_standby_that_hangs_is_made_anew_where_its_copy_is_older() -> None:
    for record in ("syncing1", "secondary2"):
        found = _pair.pair((_side("alpha", "alone", "alone3"), _side("beta", "failed", record)))
        assert (found.verdict, found.serving, found.standby, found.refusal) == ("unprotected", "alpha", "beta", "")
    for serving, record in (("alone3", "taken3"), ("alone3", "none"), ("alone1", "secondary2")):
        assert _pair.pair((_side("alpha", "alone", serving), _side("beta", "failed", record))).standby is None


def test_a_qemu_whose_monitor_is_taken_is_not_fenced() -> None:
    sides = (_side("alpha", "failed", "primary2", busy=True), _side("beta", "secondary", "secondary2"))
    found = _pair.failover(sides, None)
    assert (found.survivor, found.fence) == (None, None)
    assert "another program holds its monitor" in found.refusal
    assert _pair.failover((dataclasses.replace(sides[0], busy=False), sides[1]), None).fence == "alpha"
    assert _pair.failover(sides, "alpha").survivor == "beta"


def test_a_qemu_whose_monitor_is_taken_is_waited_for() -> None:
    """Such as right after a run of site.yml was killed, whose module is still under way: nothing has to be repaired or fenced."""
    busy = _side("alpha", "failed", "primary2", busy=True)
    for other in (
        _side("beta", "standby", "secondary2"),
        _side("beta", "alone", "alone3"),
        _side("beta", "orphaned", "primary2"),
    ):
        found = _pair.pair((busy, other))
        assert (found.verdict, found.standby) == ("unknown", None)
        assert "another program holds its monitor" in found.refusal
        assert "wait" in found.refusal
        assert "fence" not in found.refusal


def test_nobody_takes_over_from_a_side_that_may_serve() -> None:
    """Without a confirmed fence: from a primary that is seen to be stopped, or not at all."""
    taken = 0
    for one, two in _every_pair():
        found = _pair.failover((one, two), None)
        if found.survivor is None:
            assert len(found.refusal) > 40
            continue
        survivor, other = (one, two) if found.survivor == "alpha" else (two, one)
        assert found.refusal == ""
        if not _may_serve(survivor):
            taken += 1
            assert other.standing in ("stopped", "absent"), (survivor, other)
            assert found.fenced_by
            assert other.host in found.fenced_by
        elif survivor.standing in ("primary", "orphaned"):
            # it drops a standby: one that could be promoted later is stopped first
            # (one whose role is not known is stopped only if it does not serve, which the module on that host decides)
            assert found.stop == other.host or other.standing in ("stopped", "absent", "standby")
    assert taken > 0


def test_a_confirmed_fence_lets_the_one_that_holds_the_guest_go_on() -> None:
    for standing, record, survives in (
        ("secondary", "secondary2", True),
        ("orphaned", "secondary2", True),
        ("orphaned", "primary2", True),
        ("alone", "taken3", True),
        ("standby", "syncing1", False),
        ("syncing", "syncing1", False),
        ("stopped", "secondary2", False),
        ("failed", "secondary2", True),
        ("failed", "primary2", True),
        ("failed", "alone1", False),
        (None, "none", False),
    ):
        side = _side("beta", t.cast("_states.Standing", standing), record)
        found = _pair.failover((_side("alpha", None), side), "alpha")
        assert found.survivor == ("beta" if survives else None), standing
        assert bool(found.refusal) is not survives
        assert found.fenced_by == ("operator confirmed that alpha is fenced" if survives else None)


@pytest.mark.parametrize(
    ("one", "two", "survivor", "says"),
    [
        (("stopped", "primary2"), ("orphaned", "secondary2"), "beta", "observed on alpha"),
        ((None,), ("orphaned", "secondary2"), None, "-e colo_confirm_fenced=alpha"),
        (("failed", "primary2"), ("orphaned", "secondary2"), None, "-e colo_confirm_fenced=alpha"),
        (("stopped", "alone3"), ("orphaned", "secondary2"), None, "newer copy"),
        (("primary", "primary2"), ("secondary", "secondary2"), None, "healthy"),
        (("orphaned", "primary2"), (None,), None, "-e colo_confirm_fenced=beta"),
        (("orphaned", "primary2"), ("stopped", "secondary2"), "alpha", "observed on beta"),
        (("orphaned", "primary2"), ("orphaned", "secondary2"), "alpha", "stopped first"),
        (("alone", "alone1"), (None,), "alpha", ""),
        (("alone", "alone3"), ("alone", "taken3"), None, "split"),
        (("stopped", "alone1"), ("stopped", "new"), None, "no host holds a running copy"),
    ],
)
def test_failovers(one: tuple[t.Any, ...], two: tuple[t.Any, ...], survivor: str | None, says: str) -> None:
    found = _pair.failover((_side("alpha", *one), _side("beta", *two)), None)
    assert found.survivor == survivor
    assert says in (found.fenced_by or found.refusal)


HEALTHY = _pair.Failover(None, refusal="the pair is healthy", healthy=True)
LOST = _pair.Failover("beta", "observed")
UNSAFE = _pair.Failover(None, refusal="fence it first")


@pytest.mark.parametrize(
    ("judged", "refused"),
    [
        ({"a": HEALTHY}, {"a"}),
        ({"a": HEALTHY, "b": HEALTHY}, {"a", "b"}),
        ({"a": HEALTHY, "b": LOST}, set()),
        ({"a": HEALTHY, "b": UNSAFE}, {"b"}),
        ({"a": UNSAFE, "b": LOST}, {"a"}),
        ({}, set()),
    ],
)
def test_a_healthy_guest_is_refused_only_where_none_lost_anything(
    judged: dict[str, _pair.Failover], refused: set[str]
) -> None:
    found = _pair.excuse_healthy(judged)
    assert {name for name, one in found.items() if one.refusal} == refused
    assert {name for name, one in found.items() if one.told} == {
        name for name, one in judged.items() if one.healthy and name not in refused
    }
    assert all(one.survivor == judged[name].survivor for name, one in found.items())


def test_the_record_decides_what_a_word_for_both_roles_means() -> None:
    """Orphaned is either side of a broken protection."""
    primary, secondary = _make.SIGHTS["orphaned-primary"], _make.SIGHTS["orphaned-secondary"]
    assert _states.standing(primary) == _states.standing(secondary) == "orphaned"
    assert (
        _pair.pair((_side("alpha", "orphaned", "primary2"), _side("beta", "stopped", "secondary2"))).serving == "alpha"
    )
    assert _pair.pair((_side("alpha", "orphaned", "secondary2"), _side("beta", "stopped", "primary2"))).serving is None


# --- powered off ------------------------------------------------------------------------------------------------


def _off(side: Side) -> Side:
    assert side.record is not None
    return dataclasses.replace(side, record=g.mark_clean(side.record))


IN_STEP = _side("alpha", "primary", "primary2", proven=True), _side("beta", "secondary", "secondary2", proven=True)


def test_a_guest_that_powered_itself_off_in_lock_step_is_not_protected() -> None:
    found = _pair.pair((_off(IN_STEP[0]), _off(IN_STEP[1])))
    assert (found.verdict, found.off, found.serving) == ("unprotected", True, "alpha")
    assert not found.start
    left = _pair.wished(found, "")
    assert (left.stop, left.start, left.run) == (True, False, False)


@pytest.mark.parametrize("lost", ["stopped", "orphaned"])
@pytest.mark.parametrize("told", [True, False])
def test_a_guest_that_is_off_is_not_started_from_either_copy(lost: _states.Standing, told: bool) -> None:
    primary = _side("alpha", "stopped", "primary2")
    found = _pair.pair((_off(primary) if told else primary, _off(_side("beta", lost, "secondary2"))))
    assert (found.off, found.start, found.serving) == (True, False, "alpha")


def test_nothing_of_a_guest_that_is_off_is_failed_over() -> None:
    for confirmed in (None, "alpha"):
        waiting = _off(_side("beta", "orphaned", "secondary2"))
        judged = _pair.failover((_side("alpha", "stopped", "primary2"), waiting), confirmed)
        assert judged.survivor is None
        assert "powered itself off" in judged.refusal


@pytest.mark.parametrize(
    ("sides", "wish", "stop", "start", "run"),
    [
        (IN_STEP, "", False, False, True),
        (IN_STEP, "started", False, False, True),
        (IN_STEP, "stopped", True, False, False),
        (IN_STEP, "restarted", True, True, True),
        ((_side("alpha", "stopped", "alone1"), _side("beta", "stopped", "new")), "", False, True, True),
        ((_side("alpha", "stopped", "alone1"), _side("beta", "stopped", "new")), "stopped", False, False, False),
        ((_off(_side("alpha", "stopped", "alone1")), _side("beta", "stopped", "new")), "", True, False, False),
        ((_off(_side("alpha", "stopped", "alone1")), _side("beta", "stopped", "new")), "stopped", True, False, False),
        ((_off(_side("alpha", "stopped", "alone1")), _side("beta", "stopped", "new")), "started", True, True, True),
        ((_off(_side("alpha", "stopped", "alone1")), _side("beta", "stopped", "new")), "restarted", True, True, True),
    ],
)
def test_wishes(sides: tuple[Side, Side], wish: _pair.Wish, stop: bool, start: bool, run: bool) -> None:
    found = _pair.wished(_pair.pair(sides), wish)
    assert (found.stop, found.start, found.run) == (stop, start, run)


SETTLED = {"settled": True}


@pytest.mark.parametrize(("wish", "rests"), [("", True), ("started", True), ("stopped", False), ("restarted", False)])
def test_what_is_settled_stays_so_unless_something_else_is_wished(wish: _pair.Wish, rests: bool) -> None:
    assert _pair.wished(_lock_step(SETTLED, SETTLED), wish).settled is rests


@pytest.mark.parametrize("allow_restart", [False, True])
def test_what_lacks_some_of_its_definition_is_not_settled(allow_restart: bool) -> None:
    settled = _lock_step(SETTLED, SETTLED)
    assert _pair.changed(settled, [], allow_restart).settled
    assert not _pair.changed(settled, ["memory_mib: 1 -> 2"], allow_restart).settled


def test_one_side_that_wants_something_or_is_not_proven_unsettles_the_pair() -> None:
    for one, two in (
        ({}, SETTLED),
        (SETTLED, {}),
        ({**SETTLED, "proven": False}, SETTLED),
        (SETTLED, {**SETTLED, "void_reason": "reboot"}),
    ):
        assert not _lock_step(one, two).settled, (one, two)


def test_no_wish_gets_past_a_refusal() -> None:
    for sides in _every_pair():
        found = _pair.pair(sides)
        for wish in t.get_args(_pair.Wish):
            after = _pair.wished(found, wish)
            assert after == found or not found.refusal
            assert not after.start or found.start or after.stop


def test_a_changed_definition_is_refused_or_restarted() -> None:
    found = _pair.pair(IN_STEP)
    assert _pair.changed(found, [], False) == found
    assert "memory" in _pair.changed(found, ["memory_mib: 1 -> 2"], False).refusal
    again = _pair.changed(found, ["memory_mib: 1 -> 2"], True)
    assert (again.refusal, again.stop, again.start, again.run) == ("", True, True, True)
    off = _pair.wished(found, "stopped")
    assert _pair.changed(off, ["memory_mib: 1 -> 2"], False) == off


# --- a host is freed of its guests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "goes_on", "stop", "refusal"),
    [
        # before: it leaves by a switchover or without its standby
        (("primary", "primary2"), ("secondary", "secondary2"), "beta", "alpha", ""),
        (("secondary", "secondary2"), ("primary", "primary2"), "beta", "alpha", ""),
        # a run that was killed has left these
        (("stopped", "primary2"), ("alone", "taken3"), "beta", "alpha", ""),
        (("orphaned", "secondary2"), ("alone", "alone3"), "beta", "alpha", ""),
        (("secondary", "secondary2"), ("alone", "alone3"), "beta", "alpha", ""),
        (("standby", "syncing1"), ("alone", "alone1"), "beta", "alpha", ""),
        # nothing runs here
        (("absent",), ("alone", "alone1"), "beta", "alpha", ""),
        (("absent",), ("absent",), None, None, ""),
        (("stopped", "primary2"), ("stopped", "secondary2"), None, None, ""),
        # the guest would be lost, or nobody knows
        (("alone", "alone1"), ("stopped", "new"), None, None, "run site.yml"),
        (("alone", "alone1"), ("standby", "syncing1"), None, None, "run site.yml"),
        (("syncing", "alone1"), ("syncing", "syncing1"), None, None, "run site.yml"),
        (("syncing", "syncing1"), ("syncing", "alone1"), None, None, "run site.yml"),
        (("orphaned", "primary2"), ("stopped", "secondary2"), None, None, "run site.yml"),
        (("orphaned", "primary2"), ("alone", "taken3"), None, None, "split"),
        (("stopped", "primary2"), ("orphaned", "secondary2"), None, None, "failover.yml"),
        (("primary", "primary2"), (None,), None, None, "colo_confirm_fenced=beta"),
        (("stopped", "primary2"), (None,), None, None, "not knowing counts as running"),
        (("failed", "secondary2"), ("alone", "alone3"), None, None, "run site.yml"),
        ((None,), ("alone", "alone3"), None, None, "run site.yml"),
    ],
)
def test_what_frees_a_host(
    one: tuple[t.Any, ...], two: tuple[t.Any, ...], goes_on: str | None, stop: str | None, refusal: str
) -> None:
    sides = (_side("alpha", *one, proven=True), _side("beta", *two, proven=True))
    found = _pair.drain(sides, "alpha")
    assert (found.goes_on, found.stop) == (goes_on, stop)
    assert bool(found.refusal) is bool(refusal)
    assert refusal in found.refusal


def test_a_host_is_never_freed_of_the_only_copy_that_serves() -> None:
    freed = 0
    for (one, two), host in itertools.product(_every_pair(), ("alpha", "beta")):
        found = _pair.drain((one, two), host)
        here, other = (one, two) if host == "alpha" else (two, one)
        if found.stop is not None:
            freed += 1
            assert (found.goes_on, found.stop, found.refusal) == (other.host, host, "")
            assert other.standing == "alone"
            assert not _may_serve(here) or here.standing == "standby"
        elif not found.refusal:
            assert not _may_serve(here)
            assert not _may_serve(other)
    assert freed > 50


def test_a_guest_that_is_off_keeps_no_host() -> None:
    off = (_off(_side("alpha", "stopped", "alone1")), _side("beta", "stopped", "new"))
    assert _pair.drain(off, "alpha") == _pair.drain(off, "beta") == _pair.Drain()
    # what is left of it in lock step is ended by site.yml first
    assert "run site.yml" in _pair.drain((_off(IN_STEP[0]), _off(IN_STEP[1])), "beta").refusal


# --- fencing ----------------------------------------------------------------------------------------------------


def test_a_host_is_fenced_only_where_that_is_needed_and_of_use() -> None:
    """Never one that is known not to run the guest, nor one that is heard to be well, nor for a copy that may not take over."""
    needed = 0
    for sides in _every_pair():
        for hears in (True, False):
            heard = tuple(dataclasses.replace(side, hears=hears) for side in sides)
            found = _pair.failover(t.cast("tuple[Side, Side]", heard), None)
            if found.fence is None:
                assert found.left is None
                continue
            needed += 1
            other, left = heard if heard[0].host == found.fence else (heard[1], heard[0])
            assert found.left == left.host
            assert (found.survivor, found.fenced_by) == (None, None)
            assert f"-e colo_confirm_fenced={other.host}" in found.refusal
            assert other.standing in (None, "failed")
            assert not (other.standing is None and left.hears)
            assert left.standing in ("primary", "secondary", "orphaned", "failed")
            assert _pair.serves(left) or (left.record is not None and not left.record.stale)
            proved = _pair.failover(t.cast("tuple[Side, Side]", heard), None, {other.host: "its power is off"})
            assert (proved.survivor, proved.fenced_by, proved.refusal) == (left.host, "its power is off", "")
    assert needed > 20


@pytest.mark.parametrize(
    ("one", "two", "fence"),
    [
        ((None,), ("orphaned", "secondary2"), "alpha"),
        (("failed", "primary2"), ("secondary", "secondary2"), "alpha"),
        (("orphaned", "primary2"), (None,), "beta"),
        (("failed", "primary2"), (None,), "beta"),
        ((None,), ("failed", "secondary2"), "alpha"),
        ((None,), ("orphaned", "stale2"), None),
        ((None,), ("standby", "syncing1"), None),
        ((None,), ("stopped", "secondary2"), None),
        ((None,), (None,), None),
        (("stopped", "primary2"), ("orphaned", "secondary2"), None),
        (("alone", "alone1"), (None,), None),
        (("alone", "alone3"), ("alone", "taken3"), None),
    ],
)
def test_who_is_fenced(one: tuple[t.Any, ...], two: tuple[t.Any, ...], fence: str | None) -> None:
    assert _pair.failover((_side("alpha", *one), _side("beta", *two)), None).fence == fence


def test_one_that_is_heard_is_not_fenced_and_it_is_said_why() -> None:
    found = _pair.failover((_side("alpha", None), _side("beta", "secondary", "secondary2", hears=True)), None)
    assert found.fence is None
    assert "beta hears its keeper on the link" in found.refusal
    assert "-e colo_confirm_fenced=alpha" in found.refusal


def test_no_host_is_fenced_for_a_guest_that_is_off() -> None:
    found = _pair.failover((_side("alpha", None), _off(_side("beta", "orphaned", "secondary2"))), None)
    assert found.fence is None
    assert "powered itself off" in found.refusal


def test_an_operators_word_comes_first() -> None:
    sides = _side("alpha", None), _side("beta", "orphaned", "secondary2")
    found = _pair.failover(sides, "alpha", {"alpha": "an agent"})
    assert found.fenced_by == "operator confirmed that alpha is fenced"


def test_a_fence_is_no_evidence_against_what_is_seen() -> None:
    found = _pair.failover(
        (_side("alpha", "primary", "primary2"), _side("beta", "secondary", "secondary2")), None, {"alpha": "off"}
    )
    assert found.healthy
