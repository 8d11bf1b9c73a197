# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a protected guest on two real QEMUs, and everything that may be killed on the way."""

from __future__ import annotations

import itertools
import signal
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _plan
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.tests.integration._pair import NAME, Hooked, Pair, refused, wait_for

PORTS = itertools.count(30000, 32)


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("p"), next(PORTS))
    try:
        yield made
    finally:
        made.end()
        for host in (made.alpha, made.beta):
            text = host.log.read_text() if host.log.exists() else ""
            print(f"--- {host.guest.host}\n{text}")
            assert "Traceback" not in text


def test_a_whole_life(pair: Pair) -> None:
    """From nothing to protection, both failovers, protection in both directions; the data is always there."""
    alpha, beta = pair.alpha, pair.beta
    assert pair.judged.start
    alpha.serve()
    before = alpha.things()
    alpha.write(0x41)
    pair.site()
    assert alpha.record.generation == beta.record.generation == 2
    alpha.write(0x42)

    beta.units.power_off()
    wait_for("the loss is seen", lambda: alpha.standing == "orphaned")
    assert pair.failover() is alpha
    assert alpha.things() == before
    assert alpha.holds(0x42)
    alpha.write(0x43)

    pair.site()
    alpha.write(0x44)
    begun = beta.keeper["checkpoints"]["count"]
    wait_for("a checkpoint", lambda: beta.keeper["checkpoints"]["count"] >= begun + 2)
    alpha.units.power_off()
    wait_for("the loss is seen", lambda: beta.standing == "orphaned")
    assert pair.failover() is beta
    assert beta.holds(0x44)
    beta.write(0x45)

    pair.site()
    pair.assert_protected(beta)
    beta.write(0x46)
    beta.migrate("primary", "absent")
    assert beta.is_clean()
    assert pair.judged.verdict in ("unprotected", "degraded")
    alpha.migrate("secondary", "absent", fenced_by={NAME: "beta serves"})
    beta.process.kill()
    beta.process.wait()
    pair.site()
    pair.assert_protected(beta)
    assert beta.holds(0x46)


# --- a side dies, or hangs, in each phase -----------------------------------------------------------------------

# The phases of a protection, each by the first step in it.
PHASES = {
    "resync": "the standby's disks are equal",
    "packet channels": "the packet channels are connected",
    "precopy": "the standby has the RAM; the guest is paused",
    "pre-switchover": "block-job-cancel resync0",
    "switched over": "migrate-continue",
}


def plan_of(function: str, hook: t.Callable[[int, _plan.Step], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the plans that ``_plan.<function>`` makes be disturbed by ``hook``."""
    original = getattr(_plan, function)
    monkeypatch.setattr(_plan, function, lambda *args: Hooked(original(*args), hook))


def at(title: str, action: t.Callable[[], object]) -> t.Callable[[int, _plan.Step], None]:
    """A hook that acts once, before the step of that title."""
    left = [action]

    def hook(_number: int, step: _plan.Step) -> None:
        if step.title == title and left:
            left.pop()()

    return hook


def ready(pair: Pair) -> dict[str, t.Any]:
    """alpha serves, beta waits; what alpha consists of."""
    generation = pair.alpha.serve()["generation"]
    before = pair.alpha.things()
    pair.alpha.write(0x41)
    pair.beta.stand_by(generation)
    return before


def rolled_back(pair: Pair, error: ColoError, before: dict[str, t.Any]) -> None:
    """The guest serves alone as if nothing had been tried, and can be protected."""
    assert error.details["rolled_back"]["complete"], error.details
    assert pair.alpha.is_clean()
    assert pair.alpha.things() == before
    assert pair.alpha.holds(0x41)
    pair.site()
    pair.assert_protected(pair.alpha)


@pytest.mark.parametrize("phase", PHASES)
def test_the_standby_dies(pair: Pair, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ready(pair)
    with monkeypatch.context() as patch:
        plan_of("protect", at(PHASES[phase], pair.beta.units.power_off), patch)
        with refused("resync_failed", "migration_failed", "deadline_passed", "qmp_refused") as caught:
            pair.alpha.migrate("primary", "protected")
    rolled_back(pair, caught[0], before)


@pytest.mark.parametrize("phase", PHASES)
def test_the_standby_hangs(pair: Pair, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ready(pair)

    def hang() -> None:
        pair.beta.process.send_signal(signal.SIGSTOP)

    with monkeypatch.context() as patch:
        plan_of("protect", at(PHASES[phase], hang), patch)
        with refused("resync_failed", "migration_failed", "deadline_passed", "qmp_refused") as caught:
            pair.alpha.migrate("primary", "protected", timeout_s=3.0)
    assert pair.beta.standing == "failed"
    assert "standby" not in (pair.judged.refusal or "")
    # what hangs is killed by the unit's stop
    pair.beta.units.stop(signal.SIGKILL)
    rolled_back(pair, caught[0], before)


@pytest.mark.parametrize("phase", PHASES)
def test_the_serving_side_dies(pair: Pair, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(pair)
    with monkeypatch.context() as patch:
        plan_of("protect", at(PHASES[phase], pair.alpha.units.power_off), patch)
        with refused("qmp_lost"):
            pair.alpha.migrate("primary", "protected")
    with refused("not_protected", "fence_missing"):
        pair.beta.fail_over()
    pair.site()
    pair.assert_protected(pair.alpha)
    assert pair.alpha.holds(0x41)
