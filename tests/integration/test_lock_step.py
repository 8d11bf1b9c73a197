# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens in lock step: hung sides, a planned move, and a healthy pair that is left alone."""

from __future__ import annotations

import concurrent.futures
import signal

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _pair, _plan
from ansible_collections.lockstep.colo.tests.integration._pair import (
    DEADLINE_S,
    NAME,
    Pair,
    refused,
    wait_for,
)


def test_a_standby_that_hangs_in_a_flush_blocks_nobody(pair: Pair) -> None:
    """QEMU's main loop waits for the standby's disk; only what was connected before can free it."""
    alpha, beta = pair.alpha, pair.beta
    alpha.serve()
    before = alpha.things()
    pair.site()
    beta.process.send_signal(signal.SIGSTOP)
    with refused("deadline_passed"):
        alpha.disk("write -P 66 64k 64k", timeout_s=1.0)
    wait_for("alpha is blocked", lambda: alpha.keeper["qemu"]["answer_age_ms"] > 1000)
    assert pair.failover(confirmed="beta") is alpha
    beta.units.stop(signal.SIGKILL)
    assert alpha.things() == before
    assert alpha.holds(0x42)
    pair.site()


def test_a_primary_that_hangs_is_not_taken_over_from_unless_it_is_fenced(pair: Pair) -> None:
    alpha, beta = pair.alpha, pair.beta
    alpha.serve()
    alpha.write(0x41)
    pair.site()
    alpha.process.send_signal(signal.SIGSTOP)
    assert _pair.failover(pair.sides, None).refusal
    assert alpha.standing == "failed"
    with refused("fence_missing"):
        beta.fail_over()
    alpha.units.power_off()
    assert pair.failover(confirmed="alpha") is beta
    assert beta.holds(0x41)
    pair.site()
    pair.assert_protected(beta)


def test_a_healthy_pair_is_left_alone(pair: Pair) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.site()
    processes = alpha.process.pid, beta.process.pid
    for host, role in ((alpha, "primary"), (beta, "secondary")):
        for state in ("ready", "protected"):
            result = host.migrate(role, state, **({"generation": {NAME: 2}} if role == "secondary" else {}))
            assert (result["changed"], result["actions"]) == (False, [])
    with refused("peer_alive"):
        beta.fail_over("a lie")
    with refused("peer_alive"):
        alpha.fail_over()
    with refused("is_standby"):
        beta.serve()
    with refused("is_serving"):
        alpha.stand_by(2)
    with refused("is_serving"):
        alpha.migrate("secondary", "absent")
    with refused("awaits_failover"):
        beta.migrate("secondary", "absent")
    with refused("not_serving"):
        beta.migrate("primary", "protected")
    pair.assert_protected(alpha)
    assert processes == (alpha.process.pid, beta.process.pid)


def test_a_standby_whose_overlay_fails_is_made_anew(pair: Pair) -> None:
    """Its next checkpoint cannot empty the overlay: it leaves lock step, and the primary is told nothing."""
    alpha, beta = pair.alpha, pair.beta
    pair.site()
    beta.break_disk("active0")
    alpha.write(0x44)
    wait_for("the standby has left lock step", lambda: beta.standing in ("orphaned", "stopped"))
    assert pair.judged.verdict == "degraded"
    pair.site()
    pair.assert_protected(alpha)
    assert alpha.holds(0x44)


def test_a_standby_whose_disk_fails_is_never_promoted(pair: Pair) -> None:
    """The replication driver of the primary keeps such an error to itself; the quorum below it does not."""
    alpha, beta = pair.alpha, pair.beta
    pair.site()
    beta.break_disk("parent0")
    alpha.write(0x45)
    wait_for("the standby's copy is stale", lambda: beta.record.stale)
    judged = pair.judged
    assert (judged.verdict, judged.rebuild) == ("degraded", True)
    alpha.units.power_off()
    with refused("copy_not_startable"):
        pair.failover(confirmed="alpha")


@pytest.mark.parametrize("command", ["write -P 68 64k 64k", "read 64k 64k"])
def test_a_primary_whose_disk_fails_leaves_the_guest_to_the_whole_copy(pair: Pair, command: str) -> None:
    """QEMU tells its guest nothing as long as the standby's disk is written; what is read comes from the broken one."""
    alpha, beta = pair.alpha, pair.beta
    pair.site()
    alpha.write(0x43)
    pair.checkpoint(beta)
    process = alpha.process
    alpha.break_disk("parent0", "write", "read")
    alpha.disk(command)
    wait_for("the keeper has ended QEMU", lambda: process.poll() is not None)
    assert pair.judged.verdict == "degraded"
    assert not beta.record.stale
    assert pair.failover() is beta
    assert beta.holds(0x43)
    pair.site()
    pair.assert_protected(beta)


def test_a_write_that_fails_on_both_disks_ends_nothing(pair: Pair) -> None:
    """There is no copy to leave the guest to."""
    alpha, beta = pair.alpha, pair.beta
    pair.site()
    for host in (alpha, beta):
        host.break_disk("parent0")
    alpha.disk("write -P 68 64k 64k")
    wait_for("the standby's copy is stale", lambda: beta.record.stale)
    wait_for("the keeper has thought of it", lambda: "no copy of the disk is whole" in alpha.log.read_text())
    assert alpha.process.poll() is None


def test_tuning_is_changed_without_losing_protection(pair: Pair) -> None:
    """What QEMU says is held against the definition; both QEMUs, their session and the records stay."""
    alpha, beta = pair.alpha, pair.beta
    pair.site()
    processes, records = (alpha.process.pid, beta.process.pid), (alpha.record, beta.record)
    wanted = {"checkpoint_delay_ms": 300, "compare_timeout_ms": 400, "expired_scan_cycle_ms": 60, "max_queue_size": 99}
    for host in (alpha, beta):
        host.tune(**wanted, multifd_channels=2)
    result = alpha.migrate("primary", "protected")
    assert (result["changed"], result["standing"]) == (True, {"before": "primary", "after": "primary"})
    assert len(result["actions"]) == len(wanted)
    assert sorted(result["tuning"]["after"].values()) == sorted(wanted.values())
    assert result["tuning"]["after"].items() <= alpha.qemu().settings.items()
    again = alpha.migrate("primary", "protected")
    assert (again["changed"], again["actions"]) == (False, [])
    assert _plan.waiting(alpha.guest, alpha.look()) == ["multifd-channels: 0 -> 2"]
    assert processes == (alpha.process.pid, beta.process.pid)
    assert records == (alpha.record, beta.record)
    pair.assert_protected(alpha)


def test_memory_goes_over_channels_of_its_own(pair: Pair) -> None:
    """A standby that was made for an earlier definition is made anew, and the session has the channels of the new one."""
    alpha, beta = pair.alpha, pair.beta
    alpha.serve()
    beta.stand_by(1)
    first = beta.process.pid
    for host in (alpha, beta):
        host.tune(multifd_channels=2)
    pair.site()
    assert beta.process.pid != first
    assert alpha.qemu().settings["multifd-channels"] == beta.qemu().settings["multifd-channels"] == 2
    assert _plan.waiting(alpha.guest, alpha.look()) == []
    alpha.units.power_off()
    assert pair.failover(confirmed="alpha") is beta
    assert beta.is_clean()


def test_switchover(pair: Pair) -> None:
    """The serving side lets go, its peer takes over by the word of its keeper."""
    alpha, beta = pair.alpha, pair.beta
    pair.site()
    alpha.write(0x41)
    pair.checkpoint(beta)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        taking_over = pool.submit(beta.fail_over, await_release_s=10.0)
        released = alpha.fail_over(state="released")
        taken_over = taking_over.result(DEADLINE_S)
    assert (released["standing"]["after"], taken_over["standing"]["after"]) == ("stopped", "alone")
    assert beta.is_clean()
    assert beta.holds(0x41)
    pair.site()
    pair.assert_protected(beta)
