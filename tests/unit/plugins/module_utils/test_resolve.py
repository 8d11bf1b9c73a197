# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two histories: only a named choice decides, a torn copy is never chosen, and a healthy pair is left alone."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _generation as g
from ansible_collections.lockstep.colo.plugins.module_utils import _pair, _resolve
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._resolve import Resolution
from ansible_collections.lockstep.colo.tests.unit.plugins.module_utils.test_pair import _every_pair, _side

ROWS: dict[str, tuple[tuple[t.Any, ...], tuple[t.Any, ...], str, Resolution]] = {
    "split, the primary's": (
        ("orphaned", "primary2"), ("alone", "taken3"), "alpha", Resolution("alpha", "beta", goes_on=True)
    ),
    "split, the other one's": (
        ("orphaned", "primary2"), ("alone", "taken3"), "beta", Resolution("beta", "alpha", goes_on=True)
    ),
    "promoted by hand, the primary's": (
        ("orphaned", "primary2"), ("alone", "secondary2"), "alpha", Resolution("alpha", "beta", goes_on=True)
    ),
    "promoted by hand, that one's": (
        ("orphaned", "primary2"), ("alone", "secondary2"), "beta", Resolution("beta", "alpha", goes_on=True)
    ),
    "killed after the QEMU was ended": (
        ("stopped", "primary2"), ("alone", "taken3"), "beta", Resolution(refusal="there are no two histories")
    ),
    "killed after the other one's was ended": (
        ("orphaned", "primary2"), ("stopped", "taken3"), "alpha", Resolution("alpha", "beta", goes_on=True)
    ),
    "killed after the copy was set aside": (
        ("orphaned", "primary2"), ("stopped", "none"), "alpha", Resolution("alpha", goes_on=True)
    ),
    "and a new one was made": (("alone", "alone3"), ("stopped", "new"), "alpha", Resolution("alpha", goes_on=True)),
    "two histories, both off": (
        ("stopped", "alone3"), ("stopped", "taken3"), "alpha", Resolution("alpha", "beta", start=True)
    ),
    "two histories, one unfinished": (
        ("stopped", "alone3"), ("stopped", "taken3"), "beta", Resolution(refusal="takeover_unfinished")
    ),
    "a takeover that was cut short": (
        ("stopped", "primary2"), ("stopped", "taken3"), "alpha", Resolution("alpha", "beta", start=True)
    ),
    "and its copy was set aside": (
        ("stopped", "primary2"), ("stopped", "none"), "alpha", Resolution("alpha", start=True)
    ),
    "both off in lock step": (
        ("stopped", "primary2"), ("stopped", "secondary2"), "alpha", Resolution(refusal="Run site.yml")
    ),
    "both off, the standby's": (
        ("stopped", "primary2"), ("stopped", "secondary2"), "beta", Resolution(refusal="never served, or not last")
    ),
    "healthy": (
        ("primary", "primary2"), ("secondary", "secondary2"), "alpha", Resolution(refusal="there are no two histories")
    ),
    "healthy, the standby's": (
        ("primary", "primary2"), ("secondary", "secondary2"), "beta", Resolution(refusal="there are no two histories")
    ),
    "a lost standby": (
        ("orphaned", "primary2"), ("stopped", "secondary2"), "alpha", Resolution(refusal="there are no two histories")
    ),
    "a lost primary": (
        ("stopped", "primary2"), ("orphaned", "secondary2"), "beta", Resolution(refusal="there are no two histories")
    ),
    "split, a stale copy": (
        ("orphaned", "primary2"), ("alone", "stale2"), "beta", Resolution(refusal="cannot be kept: its disk is behind")
    ),
    "a copy without a record": (
        ("orphaned", "primary2"), ("alone", "none"), "beta", Resolution(refusal="cannot be kept: it has no generation record")
    ),
    "a torn copy": (("alone", "alone1"), ("stopped", "syncing1"), "beta", Resolution(refusal="cannot be kept: it was being filled")),
    "no choice": (("orphaned", "primary2"), ("alone", "taken3"), "", Resolution(refusal="the copy on beta is the newer one")),
    "a host that does not answer": ((None,), ("alone", "taken3"), "beta", Resolution(refusal="alpha does not answer")),
    "a QEMU that does not answer": (
        ("failed", "primary2"), ("alone", "taken3"), "beta", Resolution(refusal="alpha has a QEMU that gives no answer")
    ),
}  # fmt: skip


# the copy of one host is gone with the host, which was replaced by an empty one
LOST: dict[str, tuple[tuple[t.Any, ...], tuple[t.Any, ...], str, str, Resolution]] = {
    "the serving one is left": (
        ("stopped", "primary2"), ("stopped", "new"), "alpha", "", Resolution("alpha", start=True)
    ),
    "the serving one is left, said in full": (
        ("stopped", "primary2"), ("stopped", "new"), "alpha", "beta", Resolution("alpha", start=True)
    ),
    "the standby's is left": (
        ("stopped", "new"), ("stopped", "secondary2"), "beta", "alpha", Resolution("beta", start=True, older=True)
    ),
    "the standby's is left, not even a record of the other": (
        ("absent", "none"), ("stopped", "secondary2"), "beta", "alpha", Resolution("beta", start=True, older=True)
    ),
    "the standby's is left, without the word": (
        ("stopped", "new"), ("stopped", "secondary2"), "beta", "", Resolution(refusal="-e colo_lost_host=alpha")
    ),
    "the word, and the other copy is there": (
        ("stopped", "primary2"), ("stopped", "secondary2"), "beta", "alpha", Resolution(refusal="never served, or not last")
    ),
    "the word, and the other copy runs": (
        ("orphaned", "primary2"), ("stopped", "secondary2"), "beta", "alpha", Resolution(refusal="there are no two histories")
    ),
    "the word, and the other host does not answer": (
        (None,), ("stopped", "secondary2"), "beta", "alpha", Resolution(refusal="alpha does not answer")
    ),
    "a stale one is left": (
        ("stopped", "new"), ("stopped", "stale2"), "beta", "alpha", Resolution(refusal="cannot be kept: its disk is behind")
    ),
    "a torn one is left": (
        ("stopped", "new"), ("stopped", "syncing1"), "beta", "alpha", Resolution(refusal="cannot be kept: it was being filled")
    ),
    "one that never ran": (
        ("stopped", "none"), ("stopped", "new"), "beta", "alpha", Resolution(refusal="never served, or not last")
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", LOST)
def test_a_copy_whose_other_one_is_lost(row: str) -> None:
    one, two, keep, lost, wanted = LOST[row]
    found = _resolve.resolve((_side("alpha", *one), _side("beta", *two)), keep, lost)
    assert wanted.refusal in found.refusal
    assert found == Resolution(**{**vars(wanted), "refusal": found.refusal})
    assert bool(found.refusal) is bool(wanted.refusal)


def test_the_host_that_is_lost_is_the_other_one() -> None:
    sides = (_side("alpha", "stopped", "new"), _side("beta", "stopped", "secondary2"))
    for lost in ("beta", "gamma"):
        with pytest.raises(ColoError, match=f"colo_lost_host: '{lost}'"):
            _resolve.resolve(sides, "beta", lost)


@pytest.mark.parametrize(("left", "host"), [("primary2", "alpha"), ("secondary2", "beta")])
def test_what_site_says_of_a_lost_copy_leads_to_where_it_is_started(left: str, host: str) -> None:
    sides = tuple(_side(name, "stopped", left if name == host else "new") for name in ("alpha", "beta"))
    refusal = _pair.pair(t.cast("tuple[_pair.Side, _pair.Side]", sides)).refusal
    words = dict(word.rstrip(".").split("=") for word in refusal.split() if word.startswith("colo_"))
    assert words.pop("colo_guest") == "web1"
    found = _resolve.resolve(
        t.cast("tuple[_pair.Side, _pair.Side]", sides), words["colo_keep"], words.get("colo_lost_host", "")
    )
    assert (found.keep, found.start, found.refusal) == (host, True, "")


@pytest.mark.parametrize("row", ROWS)
def test_choices(row: str) -> None:
    one, two, keep, wanted = ROWS[row]
    found = _resolve.resolve((_side("alpha", *one), _side("beta", *two)), keep)
    assert wanted.refusal in found.refusal
    assert (found.keep, found.give_up, found.goes_on, found.start) == (
        wanted.keep,
        wanted.give_up,
        wanted.goes_on,
        wanted.start,
    )
    assert bool(found.refusal) is bool(wanted.refusal)


def test_a_name_that_is_no_host_is_refused() -> None:
    with pytest.raises(ColoError, match="colo_keep: 'gamma'"):
        _resolve.resolve((_side("alpha", "orphaned", "primary2"), _side("beta", "alone", "taken3")), "gamma")


def test_what_no_choice_may_ever_do() -> None:
    """Whatever is kept is whole; whatever is given up was one of two histories; a pair with one history is left alone."""
    acted = 0
    for sides in _every_pair():
        for keep in ("alpha", "beta"):
            kept, other = sides if keep == "alpha" else (sides[1], sides[0])
            found = _resolve.resolve(sides, keep)
            if found.refusal:
                assert (found.give_up, found.goes_on, found.start) == (None, False, False)
                continue
            acted += 1
            assert None not in (kept.standing, other.standing)
            assert kept.record is not None
            assert kept.record.state in ("alone", "protected", "new")
            assert not kept.record.stale
            assert found.start is False or (not _pair.serves(other) and not kept.record.uncommitted)
            if found.give_up is not None:
                assert other.record is None or other.record.state != "new" or _pair.serves(other)
                assert _pair.serves(other) or other.standing in ("stopped", "absent")
            assert _pair.pair(sides).verdict != "protected"
    assert acted > 100


def test_the_same_choice_again_is_never_worse() -> None:
    """A run that was killed once the other copy was set aside is finished by the next one."""
    for sides in _every_pair():
        for keep in ("alpha", "beta"):
            found = _resolve.resolve(sides, keep)
            if found.refusal or found.give_up is None:
                continue
            after = tuple(side if side.host == keep else _pair.Side(side.host, "stopped", None) for side in sides)
            again = _resolve.resolve(t.cast("tuple[_pair.Side, _pair.Side]", after), keep)
            assert (again.refusal, again.give_up, again.goes_on, again.start) == ("", None, found.goes_on, found.start)


def test_a_guest_that_is_off_stays_off() -> None:
    kept = g.mark_clean(g.started_alone(g.new_record("web1", "alpha", "beta")))
    other = g.started_alone(g.new_record("web1", "beta", "alpha"))
    found = _resolve.resolve((_pair.Side("alpha", "stopped", kept), _pair.Side("beta", "stopped", other)), "alpha")
    assert (found.give_up, found.start, found.goes_on, found.refusal) == ("beta", False, False, "")
