# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Half done is a state like any other: every plan is killed before each of its steps, and begun anew from what is there."""

from __future__ import annotations

import time
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _apply, _plan
from ansible_collections.lockstep.colo.plugins.module_utils._guest import MIB
from ansible_collections.lockstep.colo.tests.integration._pair import KilledError, Pair, plan_of, wait_for


class Walk:
    """Kills the module before one step after the other."""

    def __init__(self) -> None:
        self.boundary = 0
        self.titles: list[str] = []

    def _kill(self, number: int, step: _plan.Step) -> None:
        if number == self.boundary:
            self.titles.append(step.title)
            raise KilledError(step.title)

    def once(self, function: str, run: t.Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
        """Carry the plans of ``_plan.FUNCTION`` out up to the next boundary; whether there was one."""
        with monkeypatch.context() as patch:
            plan_of(function, self._kill, patch)
            try:
                run()
            except KilledError:
                self.boundary += 1
                return True
        return False


def test_protecting(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    alpha, beta = pair.alpha, pair.beta
    before = pair.wait()
    walk = Walk()
    while walk.once("protect", lambda: alpha.migrate("primary", "protected"), monkeypatch):
        pair.site()
        alpha.migrate("primary", "absent")
        assert alpha.things() == before, walk.titles[-1]
        beta.stand_by(alpha.record.generation)
    assert "migrate-continue" in walk.titles
    assert alpha.holds(0x41)


def test_starting(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = pair.alpha
    walk = Walk()
    while walk.once("serve", alpha.serve, monkeypatch):
        if pair.judged.start:
            alpha.serve()
        assert alpha.is_clean(), walk.titles[-1]
        alpha.units.power_off()
    assert "cont" in walk.titles


def test_standing_by(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    alpha, beta = pair.alpha, pair.beta
    generation = alpha.serve()["generation"]
    walk = Walk()
    while walk.once("standby", lambda: beta.stand_by(generation), monkeypatch):
        assert pair.judged.serving == "alpha"
        beta.stand_by(generation)
        assert beta.standing == "standby", walk.titles[-1]
        beta.migrate("secondary", "absent")
    assert "migrate-incoming" in walk.titles
    pair.site()


def test_ending_protection(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = pair.alpha
    before = pair.wait()
    walk = Walk()
    pair.site()
    while walk.once("to_alone", lambda: alpha.migrate("primary", "absent"), monkeypatch):
        alpha.migrate("primary", "absent")
        assert alpha.things() == before, walk.titles[-1]
        pair.site()
    assert "x-colo-lost-heartbeat" in walk.titles


def test_failing_over(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time in the other direction: the one that took over is the next one to be lost."""
    serving, standby = pair.alpha, pair.beta
    walk = Walk()
    pair.site()
    while True:
        pattern = 0x41 + walk.boundary
        serving.write(pattern)
        pair.checkpoint(standby)
        serving.units.power_off()
        wait_for("the loss is seen", lambda host=standby: host.standing == "orphaned")  # type: ignore[misc]
        killed = walk.once("failover", lambda host=standby: host.fail_over("power is off"), monkeypatch)  # type: ignore[misc]
        if killed:
            assert pair.failover() is standby, walk.titles[-1]
        assert standby.holds(pattern)
        if not killed:
            break
        serving, standby = standby, serving
        pair.site()
    assert "x-colo-lost-heartbeat" in walk.titles


BIG = {"name": "root", "size_bytes": 64 * MIB, "source": None, "source_format": "qcow2", "checksum": None}


@pytest.mark.parametrize("pair", [{"disks": [BIG]}], indirect=True)
def test_a_copy_of_a_disk_keeps_to_its_limit_and_goes_on_when_its_run_is_killed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha, beta = pair.alpha, pair.beta
    alpha.tune(resync_limit_mib_s=8)
    generation = alpha.serve()["generation"]
    # QEMU copies 16 MiB at once, and keeps to the limit between such pieces
    for place in (0, 16, 32):
        assert "wrote 16777216/16777216" in alpha.disk(f"write -P 65 {place}M 16M")
    beta.stand_by(generation)

    def job() -> dict[str, t.Any]:
        """Asked by the human's monitor: the module has the other one."""
        with alpha.operator() as monitor:
            (found,) = monitor.execute("query-block-jobs")
        return t.cast("dict[str, t.Any]", found)

    began = time.monotonic()
    told = alpha.migrate("primary", "protected", patience_s=0.5)
    assert not told["finished"]
    assert told["standing"]["after"] == "syncing"
    assert (job()["device"], job()["speed"]) == ("resync0", 8 * MIB)
    offsets = [told["progress"]["resync0"]["done_bytes"], job()["offset"]]

    def killed(_applier: _apply.Applier, _timeout_s: float) -> None:
        if job()["offset"] > offsets[-1]:
            raise KilledError("while it waits for the disks")

    with monkeypatch.context() as patch:
        patch.setattr(_apply.Applier, "_next_event", killed)
        with pytest.raises(KilledError):
            alpha.migrate("primary", "protected")
    offsets.append(job()["offset"])
    first = wait_for("the keeper sees it", lambda: alpha.keeper["resync"].get("resync0"))
    second = wait_for("it moves", lambda: moved(alpha.keeper["resync"]["resync0"], first))
    offsets.append(job()["offset"])
    assert second["bytes_per_s"] < 4 * 8 * MIB
    assert 0 < second["left_s"] < 8

    assert beta.stand_by(generation)["actions"] == [], "the standby that is being filled stays"
    result = alpha.migrate("primary", "protected")
    assert not [title for title in result["actions"] if title.startswith("blockdev-mirror")], "it began anew"
    assert offsets == sorted(offsets), "it went back"
    assert offsets[-1] > offsets[0] > 0
    assert time.monotonic() - began > (48 - 16) / 8
    pair.assert_protected(alpha)


def moved(now: dict[str, t.Any], before: dict[str, t.Any]) -> dict[str, t.Any] | None:
    """The figures of a copy that has gone on; None before."""
    return now if now["done_bytes"] > before["done_bytes"] else None
