# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a protected guest on two real QEMUs, and everything that may be killed on the way."""

from __future__ import annotations

import dataclasses
import signal
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _plan
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._states import Observation
from ansible_collections.lockstep.colo.tests.integration._pair import (
    NAME,
    KilledError,
    Pair,
    at,
    plan_of,
    refused,
    wait_for,
)


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
    assert not alpha.holds(0x41)

    beta.units.power_off()
    wait_for("the loss is seen", lambda: alpha.standing == "orphaned")
    assert pair.failover() is alpha
    assert alpha.things() == before
    assert alpha.holds(0x42)
    alpha.write(0x43)

    pair.site()
    alpha.write(0x44)
    pair.checkpoint(beta)
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
    before = pair.wait()
    with monkeypatch.context() as patch:
        plan_of("protect", at(PHASES[phase], pair.beta.units.power_off), patch)
        with refused("resync_failed", "migration_failed", "deadline_passed", "qmp_refused") as caught:
            pair.alpha.migrate("primary", "protected")
    rolled_back(pair, caught[0], before)


@pytest.mark.parametrize("phase", PHASES)
def test_the_standby_hangs(pair: Pair, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pair.wait()

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
    pair.wait()
    with monkeypatch.context() as patch:
        plan_of("protect", at(PHASES[phase], pair.alpha.units.power_off), patch)
        with refused("qmp_lost"):
            pair.alpha.migrate("primary", "protected")
    with refused("not_protected", "fence_missing"):
        pair.beta.fail_over()
    pair.site()
    pair.assert_protected(pair.alpha)
    assert pair.alpha.holds(0x41)


def test_a_switchover_that_nobody_ends_though_the_standby_hangs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller is gone and the standby hangs: the keeper lets the guest go on."""
    alpha = pair.alpha
    before = pair.wait()

    def disturb(_number: int, step: _plan.Step) -> None:
        if step.title == PHASES["pre-switchover"]:
            pair.beta.process.send_signal(signal.SIGSTOP)
        elif step.title == "the mirrors have ended":
            # the mirror waits for the standby's disk
            raise KilledError

    with monkeypatch.context() as patch:
        plan_of("protect", disturb, patch)
        with pytest.raises(KilledError):
            alpha.migrate("primary", "protected")
    wait_for("the keeper ends it", lambda: alpha.keeper["flags"]["switchover_ended"])
    wait_for("it has ended", lambda: alpha.keeper["migration"]["status"] == "cancelled", timeout_s=3.0)
    wait_for("the guest runs", lambda: alpha.keeper["qemu"]["status"] == "running", timeout_s=3.0)
    assert alpha.keeper["qemu"]["answer_age_ms"] < 1000
    alpha.write(0x42)
    pair.beta.units.stop(signal.SIGKILL)
    alpha.migrate("primary", "absent")
    assert alpha.is_clean()
    assert alpha.things() == before
    assert alpha.holds(0x42)


def test_a_switchover_that_gets_through_while_it_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was on its way into lock step when it was looked at, and is there when the run acts."""
    before = pair.wait()
    pair.site()
    plan = _plan.unprotect

    def looked_too_early(guest: Guest, seen: Observation) -> list[_plan.Step]:
        assert seen.qemu is not None
        early = dataclasses.replace(seen.qemu, migration="device", colo_mode="none")
        return plan(guest, dataclasses.replace(seen, qemu=early))

    with monkeypatch.context() as patch:
        patch.setattr(_plan, "unprotect", looked_too_early)
        pair.alpha.migrate("primary", "absent")
    assert pair.alpha.is_clean()
    assert pair.alpha.things() == before
    assert pair.alpha.holds(0x41)
    pair.site()
