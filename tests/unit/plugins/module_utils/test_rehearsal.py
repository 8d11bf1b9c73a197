# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a rehearsal has passed, and what it says when it has not."""

from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _rehearsal

Json = dict[str, t.Any]


def _seen(verdict: str, serving: str | None, generation: int | None, **more: t.Any) -> Json:
    return {"verdict": verdict, "serving": serving, "generation": generation, "start": False, "refusal": "", **more}


LOOKS: list[Json] = [
    {"at": 100.0, "verdicts": {"web1": _seen("protected", "alpha", 2)}},
    {"at": 104.0, "verdicts": {"web1": _seen("unprotected", "beta", 3)}},
    {"at": 110.0, "verdicts": {"web1": _seen("protected", "beta", 4)}},
    {"at": 125.5, "verdicts": {"web1": _seen("protected", "alpha", 6)}},
]
OVER: Json = {"web1": {"module_ms": 123.4, "gap_ms": 900, "packets": 3, "packets_after": 40, "watched_s": 2}}
ENDED: Json = {"at": 126.0, "verdicts": LOOKS[-1]["verdicts"], "error": ""}


def test_a_rehearsal_that_passes() -> None:
    made = _rehearsal.report(LOOKS, OVER, ENDED)
    assert made["passed"]
    assert (made["failed_in"], made["error"], made["seconds"]) == ("", "", 26.0)
    web1 = made["guests"]["web1"]
    assert [one["seconds"] for one in web1["phases"]] == [0.0, 4.0, 6.0, 15.5]
    assert [one["generation"] for one in web1["phases"]] == [2, 3, 4, 6]
    assert web1["to_do"] == ""
    lines = _rehearsal.table(made)
    assert lines[0] == "PASSED"
    assert "  failed over         4.0 s  unprotected, beta serves, generation 3: ok" in lines
    assert any("123 ms in the module; 900 ms from the loss" in line for line in lines)


@pytest.mark.parametrize(
    ("look", "change"),
    [
        (0, {"verdict": "degraded"}),
        (1, {"serving": "alpha"}),
        (1, {"verdict": "protected"}),
        (1, {"generation": 2}),
        (1, {"generation": None}),
        (1, {"start": True}),
        (2, {"verdict": "degraded"}),
        (2, {"serving": "alpha"}),
        (2, {"generation": 3}),
        (3, {"verdict": "unprotected"}),
        (3, {"serving": "beta"}),
        (3, {"serving": None}),
        (3, {"generation": 4}),
    ],
)
def test_every_phase_has_to_be_as_it_has_to_be(look: int, change: Json) -> None:
    looks = copy.deepcopy(LOOKS)
    looks[look]["verdicts"]["web1"].update(change)
    made = _rehearsal.report(looks, OVER, ENDED)
    assert not made["passed"]
    assert not made["guests"]["web1"]["phases"][look]["passed"]
    assert any("NOT as it has to be" in line for line in _rehearsal.table(made))


def test_nothing_is_passed_without_packets_and_an_end() -> None:
    assert not _rehearsal.report(LOOKS, {}, ENDED)["passed"]
    assert not _rehearsal.report(LOOKS, {"web1": {**OVER["web1"], "packets": 0}}, ENDED)["passed"]
    assert not _rehearsal.report(LOOKS, OVER, {**ENDED, "error": "boom"})["passed"]
    assert not _rehearsal.report([], {}, {**ENDED, "verdicts": {}})["passed"]


@pytest.mark.parametrize(
    ("reached", "now", "failed_in", "to_do"),
    [
        (0, _seen("degraded", None, 2, refusal="run failover.yml"), "before", "failover.yml"),
        (1, _seen("degraded", None, 2, refusal="run failover.yml"), "failed over", "failover.yml"),
        (2, _seen("unprotected", "beta", 3), "protected again", "site.yml"),
        (3, _seen("protected", "beta", 4), "moved back", "moves it back to alpha"),
        (3, _seen("protected", "alpha", 6), "moved back", ""),
    ],
)
def test_one_that_fails_half_way_says_where_and_what_to_do(reached: int, now: Json, failed_in: str, to_do: str) -> None:
    ended: Json = {"at": 130.0, "verdicts": {"web1": now}, "error": "it broke"}
    made = _rehearsal.report(LOOKS[:reached], OVER if reached > 1 else {}, ended)
    assert not made["passed"]
    assert made["failed_in"] == failed_in
    assert to_do in made["guests"]["web1"]["to_do"]
    assert bool(made["guests"]["web1"]["to_do"]) is bool(to_do)
    lines = _rehearsal.table(made)
    assert lines[0] == f"FAILED, on the way to: {failed_in}"
    assert lines[-1] == "error: it broke"


def test_what_a_failover_measured() -> None:
    result: Json = {"timings": {"total_ms": 150.0, "packets_at": 1002.5, "packets": 4}}
    look: Json = {
        "keeper": {"flags": {"colo_exit": {"time": 1001.25, "data": {}}}},
        "sample": {"seconds": 2, "packets": {"tap0": 7, "tap1": 2}},
    }
    assert _rehearsal.measured(result, look) == {
        "module_ms": 150.0,
        "gap_ms": 1250,
        "packets": 4,
        "packets_after": 9,
        "watched_s": 2,
    }


@pytest.mark.parametrize("look", [{}, {"keeper": None}, {"keeper": {"flags": {"colo_exit": None}}}])
def test_a_loss_that_nobody_saw_has_no_gap(look: Json) -> None:
    """A QEMU that hung tells no peer."""
    made = _rehearsal.measured({"timings": {"total_ms": 1.0, "packets_at": 5.0, "packets": 1}}, look)
    assert made["gap_ms"] is None
    assert "not known" in "".join(_rehearsal.table(_rehearsal.report(LOOKS, {"web1": made}, ENDED)))
