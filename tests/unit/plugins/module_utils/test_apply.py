# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying out steps: what each one asks QEMU, and every way in which it ends badly. No time passes here."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import socket
import stat
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _apply,
    _generation,
    _image,
    _keeper_client,
    _observe,
    _store,
    _topology,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import (
    ColoError,
    QmpError,
    RefusedError,
)
from ansible_collections.lockstep.colo.plugins.module_utils._plan import Operation, Step
from ansible_collections.lockstep.colo.tests.unit import _make
from ansible_collections.lockstep.colo.tests.unit._script import (
    ANY,
    Call,
    Clock,
    ScriptedMonitor,
    Systemd,
    Tell,
    migration,
    refused,
)


class Stage:
    """One guest on one host, with everything around it scripted."""

    def __init__(self, root: pathlib.Path, patch: pytest.MonkeyPatch) -> None:
        self.guest = _make.guest(root=str(root))
        for path in (self.guest.paths.state, self.guest.paths.run):
            pathlib.Path(path).mkdir(parents=True)
        self.clock = Clock()
        self.patch = patch
        patch.setattr(_apply, "time", self.clock)
        self.keeper(None)

    def keeper(self, *states: dict[str, t.Any] | None) -> None:
        """What the keeper answers, one after the other; the last one for ever."""
        left = list(states)
        self.patch.setattr(_observe, "keeper_state", lambda _guest: left.pop(0) if len(left) > 1 else left[0])

    def record(self, *transitions: t.Callable[[_generation.Record], _generation.Record]) -> None:
        """Bring the record of this host to where the transitions lead."""
        _store.create(self.guest)
        for transition in transitions:
            _store.update(self.guest, transition)

    def run(self, *steps: Step, script: t.Sequence[Call | Tell] = (), systemd: Systemd | None = None) -> _apply.Applier:
        """Carry out the steps; the whole script has to be played."""
        monitor = ScriptedMonitor(self.clock, *script)
        units = systemd or Systemd()
        applier = _apply.Applier(self.guest, units, monitor.as_monitor())
        applier.run(steps)
        monitor.done()
        units.done()
        return applier

    def fails(
        self, *steps: Step, script: t.Sequence[Call | Tell] = (), systemd: Systemd | None = None, code: str
    ) -> ColoError:
        """Carry out the steps, the last of which ends in the error ``code``."""
        with pytest.raises(ColoError) as caught:
            self.run(*steps, script=script, systemd=systemd)
        assert caught.value.error_code == code
        assert caught.value.details["step"] == steps[-1].title
        assert caught.value.message.startswith(f"guest web1, step '{steps[-1].title}': ")
        return caught.value


@pytest.fixture
def stage(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def _wait(operation: Operation, timeout_s: float = 5.0, **arguments: t.Any) -> Step:
    return Step(operation, f"a {operation}", arguments, timeout_s, changes=False)


def _command(name: str, **arguments: t.Any) -> Step:
    return Step("qmp", name, {"command": name, "arguments": arguments})


# --- commands ---------------------------------------------------------------------------------------------------


def test_what_was_done_is_told_in_order_and_what_only_waits_is_not(stage: Stage) -> None:
    applier = stage.run(
        _command("stop"),
        _wait("wait_links", chardevs=[]),
        _command("cont"),
        script=[Call("stop", {}), Call("query-chardev", answer=[]), Call("cont", {})],
    )
    assert applier.actions == ["stop", "cont"]
    assert applier.changed
    assert set(applier.timings_ms) == {"stop", "a wait_links", "cont"}


def _port(access: str, answer: str = "") -> Call:
    return Call("human-monitor-command", {"command-line": access}, answer=answer)


@pytest.mark.parametrize(
    ("machine", "word", "port"), [("pc", "0x80000058", "0xcfe"), ("pc-q35-11.1", "0x80000090", "0xcfd")]
)
def test_the_memory_map_is_changed_and_put_back(stage: Stage, machine: str, word: str, port: str) -> None:
    stage.guest = dataclasses.replace(stage.guest, machine=machine)
    script = [
        _port("i /w 0xcf8", "portl[0x0cf8] = 0x8000003c\r\n"),
        _port(f"o /w 0xcf8 {word}"),
        _port(f"i /b {port}", f"portb[{port}] = 0x31\r\n"),
        _port(f"o /b {port} 0x21"),
        _port(f"o /b {port} 0x31"),
        _port("o /w 0xcf8 0x8000003c"),
    ]
    stage.run(Step("forget_translations", "forget"), script=script)


def test_a_port_that_cannot_be_read_is_not_written(stage: Stage) -> None:
    script = [_port("i /w 0xcf8", "invalid char 'x' in expression\r\n")]
    error = stage.fails(Step("forget_translations", "forget"), script=script, code="qmp_refused")
    assert "invalid char" in error.message


def test_a_run_that_only_waits_has_changed_nothing(stage: Stage) -> None:
    assert not stage.run(_wait("wait_links", chardevs=[]), script=[Call("query-chardev", answer=[])]).changed


def test_a_refusal_ends_the_run_and_tells_how_far_it_came(stage: Stage) -> None:
    steps = [_command("stop"), _command("blockdev-del", **{"node-name": "nbd0"})]
    error = stage.fails(
        *steps,
        script=[Call("stop", {}), Call("blockdev-del", {"node-name": "nbd0"}, refused("blockdev-del"))],
        code="qmp_refused",
    )
    assert error.details["done"] == ["stop"]
    assert error.details["transitions"] == []


@pytest.mark.parametrize("return_path", ["requires", "refuses"])
@pytest.mark.parametrize("role", ["primary", "standby"])
def test_return_path_is_what_this_qemu_needs(stage: Stage, role: _topology.Role, return_path: str) -> None:
    stage.patch.setattr(
        _observe, "live_features", lambda _monitor: t.cast("t.Any", type("F", (), {"return_path": return_path}))
    )
    step = Step("capabilities", "capabilities", {"role": role})
    command, arguments = _topology.capabilities(role, return_path == "requires", multifd=False)
    stage.run(step, script=[Call(command, arguments)])
    state = {entry["capability"]: entry["state"] for entry in arguments["capabilities"]}
    assert state["return-path"] is (return_path == "requires")
    assert state["x-colo"]
    assert state["pause-before-switchover"] is (role == "primary")


def test_the_migration_goes_over_a_connection_that_does_not_block(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as standby:
        step = Step("migrate", "migrate", {"address": "127.0.0.1", "port": standby.getsockname()[1]})
        stage.run(step, script=[Call("getfd", {"fdname": "migration"}), Call("migrate", {"uri": "fd:migration"})])
        connection, _address = standby.accept()
        connection.close()
    error = stage.fails(step, code="migration_failed")
    assert "beta (127.0.0.1 port" in error.message
    assert "refused" in error.details["reason"]


def test_a_resync_that_the_yank_has_ended_needs_no_cancelling(stage: Stage) -> None:
    step = Step("cancel_jobs", "end the resync", {"jobs": ["resync0", "resync1"]})
    stage.run(
        step,
        script=[
            Call("block-job-cancel", {"device": "resync0", "force": True}, refused("x", "DeviceNotActive")),
            Call("block-job-cancel", {"device": "resync1", "force": True}),
        ],
    )
    stage.fails(step, script=[Call("block-job-cancel", ANY, refused("x"))], code="qmp_refused")
    lost = QmpError("qmp_lost", "QEMU went away", command="block-job-cancel")
    stage.fails(step, script=[Call("block-job-cancel", ANY, lost)], code="qmp_lost")


# --- yank -------------------------------------------------------------------------------------------------------


# what QEMU's yank does not know of; a kernel that cannot do it changes nothing
CUT = ("ss --kill --tcp --numeric dst 192.0.2.2:9000", (0, "", ""))


def _yank(stage: Stage) -> Step:
    return Step("yank", "yank the peer", {"instances": _topology.yank_instances(stage.guest)})


def test_the_keeper_yanks(stage: Stage) -> None:
    asked: list[t.Any] = []
    stage.patch.setattr(_keeper_client.KeeperClient, "yank", lambda _self, instances: asked.append(instances))
    stage.run(_yank(stage), systemd=Systemd(CUT))
    assert asked == [_topology.yank_instances(stage.guest)]


def test_without_a_keeper_the_own_monitor_yanks_out_of_band_and_only_what_is_there(stage: Stage) -> None:
    present = [
        {"type": "chardev", "id": "monitor-modules"},
        {"type": "block-node", "node-name": "nbd0"},
        {"type": "migration"},
    ]
    stage.run(
        _yank(stage),
        systemd=Systemd((CUT[0], (1, "", "not supported"))),
        script=[
            Call("query-yank", answer=present, oob=True),
            Call("yank", {"instances": [{"type": "migration"}]}, oob=True),
            Call("yank", {"instances": [{"type": "block-node", "node-name": "nbd0"}]}, oob=True),
        ],
    )


def test_no_monitor_can_be_yanked_by_mistake() -> None:
    for instance in _topology.yank_instances(_make.guest(disks=3, nics=3)):
        assert not instance.get("id", "").startswith(_topology.MONITOR_PREFIX)
        assert instance.get("id") != "console0"


# --- waits for QEMU ---------------------------------------------------------------------------------------------


def test_the_runstate_may_only_pass_through_what_is_named(stage: Stage) -> None:
    step = _wait("wait_runstate", goal=["running"], transit=["paused"])
    status = [Call("query-status", answer={"status": word}) for word in ("paused", "running", "guest-panicked")]
    stage.run(step, script=[status[0], Tell(), status[0], Tell("RESUME"), status[1]])
    error = stage.fails(step, script=[status[0], Tell(), status[2]], code="illegal_runstate")
    assert error.details["runstate"] == "guest-panicked"


def test_a_deadline_tells_what_was_seen_last(stage: Stage) -> None:
    step = _wait("wait_runstate", timeout_s=0.25, goal=["running"], transit=["paused"])
    paused = Call("query-status", answer={"status": "paused"})
    error = stage.fails(step, script=[paused, Tell(), paused, Tell(), paused, Tell(), paused], code="deadline_passed")
    assert error.details["last_seen"] == "paused"
    assert error.details["timeout_s"] == 0.25


def _jobs(ready: bool | None, name: str = "resync0", done: int = 5) -> Call:
    rows = [] if ready is None else [{"device": name, "ready": ready, "offset": done, "len": 9, "status": "running"}]
    return Call("query-block-jobs", answer=rows)


def test_the_resync_is_waited_for(stage: Stage) -> None:
    step = _wait("wait_jobs_ready", jobs=["resync0"])
    stage.run(step, script=[_jobs(False), _jobs(False), Tell("BLOCK_JOB_READY"), _jobs(True)])


def test_a_resync_that_is_gone_was_not_finished(stage: Stage) -> None:
    step = _wait("wait_jobs_ready", jobs=["resync0"])
    error = stage.fails(step, script=[_jobs(False), _jobs(False), Tell(), _jobs(None)], code="resync_failed")
    assert error.details["jobs"] == ["resync0"]


def test_the_resyncs_deadline_tells_how_far_it_came(stage: Stage) -> None:
    step = _wait("wait_jobs_ready", timeout_s=0.1, jobs=["resync0"])
    moving = _jobs(False, done=6)
    error = stage.fails(step, script=[_jobs(False), _jobs(False), Tell(), moving], code="resync_unfinished")
    assert error.details["progress"] == {"resync0": {"done_bytes": 6, "of_bytes": 9}}
    # one that has not moved for as long is nothing to go on with
    error = stage.fails(step, script=[_jobs(False), _jobs(False), Tell(), _jobs(False)], code="deadline_passed")
    assert error.details["last_seen"] == {"resync0": {"done_bytes": 5, "of_bytes": 9}}


def test_a_resync_that_takes_long_is_left_to_go_on(stage: Stage) -> None:
    step = _wait("wait_jobs_ready", jobs=["resync0"], patience_s=0.05)
    with pytest.raises(_apply.Unfinished) as caught:
        stage.run(step, script=[_jobs(False), _jobs(False), Tell(), _jobs(False)])
    assert caught.value.progress == {"resync0": {"done_bytes": 5, "of_bytes": 9}}


def test_a_resync_that_stands_still_has_lost_its_standby(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_apply, "STALL_S", 0.05)
    step = _wait("wait_jobs_ready", jobs=["resync0"], resumed=True)
    error = stage.fails(step, script=[_jobs(False), _jobs(False), Tell(), _jobs(False)], code="resync_failed")
    assert error.details["resumed"]


def test_mirrors_that_do_not_end(stage: Stage) -> None:
    step = _wait("wait_jobs_gone", timeout_s=0.1, jobs=["resync0"])
    stage.run(step, script=[_jobs(True), Tell("BLOCK_JOB_COMPLETED"), _jobs(None)])
    error = stage.fails(step, script=[_jobs(True), Tell(), _jobs(True), _jobs(True)], code="deadline_passed")
    assert error.details["last_seen"] == ["resync0"]
    stage.run(step, script=[_jobs(True, "somebody-elses")])


def test_overlays_are_waited_for(stage: Stage) -> None:
    def nodes(*names: str) -> Call:
        return Call("query-named-block-nodes", {"flat": True}, [{"node-name": name} for name in names])

    step = _wait("wait_nodes_gone", timeout_s=0.1, nodes=["active0", "hidden0"])
    stage.run(step, script=[nodes("parent0", "active0", "hidden0"), Tell("JOB"), nodes("parent0")])
    left = nodes("parent0", "hidden0")
    error = stage.fails(step, script=[left, Tell(), left, left], code="deadline_passed")
    assert error.details["last_seen"] == ["hidden0"]


def test_links_are_connected_when_all_of_them_are(stage: Stage) -> None:
    def state(**up: bool) -> Call:
        rows = [{"label": name, "filename": "tcp:x" if on else "disconnected:tcp:x"} for name, on in up.items()]
        return Call("query-chardev", answer=rows)

    step = _wait("wait_links", timeout_s=0.1, chardevs=["mirror0", "compsec0"])
    stage.run(step, script=[state(mirror0=True), Tell(), state(mirror0=True, compsec0=True)])
    half = state(mirror0=True, compsec0=False)
    error = stage.fails(step, script=[half, Tell(), half], code="deadline_passed")
    assert error.details["last_seen"] == {"mirror0": True, "compsec0": False}


# --- migration --------------------------------------------------------------------------------------------------

BEFORE = ["none", "setup", "wait-unplug", "active", "cancelled", "failed", "completed"]


Script = list[Call | Tell]


def _status(status: str, **more: t.Any) -> Call:
    return Call("query-migrate", answer={"status": status, **more})


def _to_switchover(since: str = "none", timeout_s: float = 60) -> Step:
    return _wait("wait_migration", timeout_s, goal=["pre-switchover"], transit=BEFORE, since=since)


def _to_colo(timeout_s: float = 20) -> Step:
    return _wait(
        "wait_migration", timeout_s, goal=["colo"], transit=["pre-switchover", "device"], since="pre-switchover"
    )


def test_the_whole_way_into_colo(stage: Stage) -> None:
    way = [migration(status) for status in ("setup", "active", "pre-switchover")]
    applier = stage.run(_to_switchover(), _to_colo(), script=[*way, migration("device"), migration("colo")])
    assert applier.transitions == ["setup", "active", "pre-switchover", "device", "colo"]


def test_the_way_on_7_2_has_no_device_state(stage: Stage) -> None:
    way = [migration(status) for status in ("setup", "active", "pre-switchover", "colo")]
    assert stage.run(_to_switchover(), _to_colo(), script=way).transitions[-1] == "colo"


def test_other_events_in_between_do_not_matter(stage: Stage) -> None:
    stage.run(
        _to_switchover(),
        script=[
            Tell("JOB_STATUS_CHANGE"),
            migration("setup"),
            Tell("MIGRATION_PASS"),
            migration("active"),
            Tell("STOP", at=1.0),
            migration("pre-switchover"),
        ],
    )


def test_a_qemu_that_completes_instead_of_entering_colo_is_named(stage: Stage) -> None:
    way = [migration(status) for status in ("setup", "active", "pre-switchover", "device", "completed")]
    error = stage.fails(_to_switchover(), _to_colo(), script=way, code="colo_not_entered")
    assert "10.0.0-10.0.6" in error.message
    assert error.details["transitions"] == ["setup", "active", "pre-switchover", "device", "completed"]


def test_a_switchover_that_nobody_stopped_at_is_illegal(stage: Stage) -> None:
    way = [migration("setup"), migration("active"), migration("colo")]
    stage.fails(_to_switchover(), script=way, code="illegal_transition")


def test_a_migration_that_fails_tells_qemus_reason(stage: Stage) -> None:
    reason = _status("failing", **{"error-desc": "Channel error: Connection reset by peer"})
    error = stage.fails(
        _to_switchover(),
        script=[migration("setup"), migration("active"), migration("failing"), reason],
        code="migration_failed",
    )
    assert error.details["reason"] == "Channel error: Connection reset by peer"
    assert error.details["way"] == ["none", "setup", "active", "failing"]
    assert "journalctl" in error.message


def test_somebody_cancels(stage: Stage) -> None:
    script: Script = [migration("setup"), migration("active"), migration("cancelling"), _status("cancelling")]
    error = stage.fails(_to_switchover(), script=script, code="migration_failed")
    assert error.details["reason"] == "QEMU gives no reason"


def test_a_failure_that_is_told_by_no_event_is_found_by_asking(stage: Stage) -> None:
    """The standby killed at the switchover: the state stays, and only the error's description is there."""
    script: Script = [
        Tell(),
        _status("pre-switchover", **{"error-desc": "Channel error"}),
        _status("x", **{"error-desc": "Channel error"}),
    ]
    error = stage.fails(_to_colo(), script=script, code="migration_failed")
    assert error.details["reason"] == "Channel error"


def test_up_to_10_2_a_migration_fails_without_failing_first(stage: Stage) -> None:
    script: Script = [
        migration("setup"),
        migration("failed"),
        Tell(),
        _status("failed", **{"error-desc": "refused"}),
        _status("failed", **{"error-desc": "refused"}),
    ]
    stage.fails(_to_switchover(), script=script, code="migration_failed")


def test_a_goal_that_no_event_told_is_found_by_asking(stage: Stage) -> None:
    stage.run(_to_colo(), script=[Tell(), _status("device"), Tell(), _status("colo"), Tell(), _status("colo")])


def test_an_event_that_comes_after_the_answer_is_no_part_of_the_next_way(stage: Stage) -> None:
    """Seen on a busy host: nothing was told for half a second, and the goal came between that and the question."""
    way: Script = [migration("setup"), migration("active"), Tell(), _status("pre-switchover")]
    late: Script = [migration("pre-switchover"), migration("device"), migration("colo")]
    applier = stage.run(_to_switchover(), _to_colo(), script=[*way, *late])
    assert applier.transitions == ["setup", "active", "pre-switchover", "device", "colo"]


def test_a_migration_that_stands_still_ends_in_the_deadline(stage: Stage) -> None:
    step = _to_switchover(timeout_s=0.9)
    script: Script = [
        migration("setup"),
        Tell(),
        _status("setup"),
        Tell(),
        _status("setup"),
        _status("setup", ram={"total": 5}),
    ]
    error = stage.fails(step, script=script, code="deadline_passed")
    assert error.details["last_seen"] == "setup"
    assert error.details["migration"] == {"status": "setup", "ram": {"total": 5}}
    assert error.details["transitions"] == ["setup"]


@pytest.mark.parametrize("ram", [{}, {"ram": {"transferred": 5}}])
def test_a_migration_into_a_qemu_that_hangs_is_given_up_long_before_its_deadline(
    stage: Stage, ram: dict[str, t.Any]
) -> None:
    looks = int(_apply.STALL_S / 0.5) + 2
    script: Script = [
        migration("setup"),
        *[each for _look in range(looks) for each in (Tell(), _status("setup", **ram))],
    ]
    error = stage.fails(_to_switchover(timeout_s=3600), script=script, code="migration_failed")
    assert error.details["reason"] == "it stands still"
    moves = [each for number in range(looks) for each in (Tell(), _status("active", ram={"transferred": number}))]
    stage.run(
        _to_switchover(timeout_s=3600),
        script=[migration("setup"), migration("active"), *moves, migration("pre-switchover")],
    )


def test_the_end_of_an_earlier_protection_is_not_that_of_the_next(stage: Stage) -> None:
    """In one run: what is lost is let go, and the guest is protected anew."""
    stage.patch.setattr(
        _observe, "live_features", lambda _monitor: t.cast("t.Any", type("F", (), {"return_path": "requires"}))
    )
    command, arguments = _topology.capabilities("primary", return_path=True, multifd=False)
    steps = [
        _wait("wait_runstate", goal=["running"], transit=["colo"]),
        Step("capabilities", "capabilities", {"role": "primary"}),
        _wait("wait_checkpoints", count=1),
    ]
    script: Script = [
        Call("query-status", answer={"status": "colo"}),
        Tell("COLO_EXIT", {"mode": "primary", "reason": "request"}),
        Call("query-status", answer={"status": "running"}),
        Call(command, arguments),
        Tell("STOP", at=1.0),
        Tell("RESUME", at=1.1),
    ]
    stage.run(*steps, script=script)


@pytest.mark.parametrize("since", ["pre-switchover", "active"])
def test_what_was_before_the_run_is_not_taken_for_what_is_waited_for(stage: Stage, since: str) -> None:
    """A half-built protection is taken back and made anew in one run."""
    back = _wait("wait_migration", goal=["cancelled", "failed"], transit=[since, "cancelling"], since=since)
    way = [migration(status) for status in ("cancelling", "cancelled", "setup", "active", "pre-switchover")]
    assert stage.run(back, _to_switchover(since), script=way).transitions[-1] == "pre-switchover"
    # its end was found by asking, so nothing has been told yet
    asked: Script = [Tell(), _status("cancelled")] * 2
    told: Script = [*asked, Tell(), _status("active"), migration("pre-switchover")]
    if since == "pre-switchover":
        last: Script = [Tell(), _status("pre-switchover")] * 2
        told = [*asked, Tell(), _status("active"), *last]
    stage.run(back, _to_switchover(since), script=told)


def test_the_end_of_an_old_session_may_be_told_late(stage: Stage) -> None:
    way = [migration(status) for status in ("completed", "setup", "active", "pre-switchover")]
    assert stage.run(_to_switchover("colo"), script=way).transitions[0] == "completed"


def test_the_end_of_a_migration_that_is_taken_back(stage: Stage) -> None:
    step = _wait(
        "wait_migration", goal=["cancelled", "failed"], transit=["active", "cancelling", "failing"], since="active"
    )
    stage.run(step, script=[migration("cancelling"), migration("cancelled")])
    stage.run(step, script=[migration("failing"), migration("failed")])
    # it had ended before anybody listened
    stage.run(step, script=[Tell(), _status("cancelled")] * 2)
    # so had this one, and QEMU still says why
    why = {"error-desc": "Unable to read from socket"}
    stage.run(step, script=[Tell(), _status("failed", **why)] * 2)
    stage.run(step, script=[Tell(), _status("pre-switchover", **why), migration("cancelling"), migration("cancelled")])


@pytest.mark.parametrize(
    ("way", "told"),
    [
        (["pre-switchover", "cancelling", "cancelled"], ["migrate_cancel"]),
        (["pre-switchover", "device", "colo"], ["migrate_cancel", "x-colo-lost-heartbeat"]),
        # the keeper was quicker
        (["cancelling", "cancelled"], []),
        (["cancelled"], []),
        (["device", "failing", "failed"], []),
        (["device", "colo"], ["x-colo-lost-heartbeat"]),
        (["colo"], ["x-colo-lost-heartbeat"]),
    ],
)
def test_a_switchover_whose_connections_are_cut(stage: Stage, way: list[str], told: list[str]) -> None:
    """It waits, fails, or was in colo right before; there the guest stands still until it is told."""
    step = _wait("end_switchover", goal=["cancelled", "failed", "colo"])
    cancels: Script = [Call("migrate_cancel")] if "migrate_cancel" in told else []
    looks: list[Script] = [[_status(status), migration(status)] for status in way[:-1]]
    leaves: Script = [Call("x-colo-lost-heartbeat")] if "x-colo-lost-heartbeat" in told else []
    script = [_status(way[0]), *cancels, *itertools.chain(*looks), _status(way[-1]), _status(way[-1]), *leaves]
    stage.run(step, script=script)


def test_a_switchover_that_does_not_end(stage: Stage) -> None:
    step = _wait("end_switchover", 0.1, goal=["cancelled", "failed", "colo"])
    error = stage.fails(
        step, script=[*[_status("device")] * 2, Tell(), *[_status("device")] * 2], code="deadline_passed"
    )
    assert error.details["last_seen"] == "device"


# --- proof ------------------------------------------------------------------------------------------------------


def _checkpoint(at: float, pause: float = 0.05) -> list[Tell]:
    return [Tell("STOP", at=at), Tell("RESUME", at=at + pause)]


PROOF = _wait("wait_checkpoints", timeout_s=0.3, count=2)


def test_two_checkpoints_prove_a_protection(stage: Stage) -> None:
    applier = stage.run(PROOF, script=[*_checkpoint(5.0), *_checkpoint(6.0, 0.2)])
    assert applier.guest_pause_ms == 200.0


def test_the_pause_of_the_switchover_is_no_checkpoint(stage: Stage) -> None:
    """It begins before the wait and ends in it."""
    before = [migration("setup"), migration("active"), Tell("STOP", at=1.0), migration("pre-switchover")]
    applier = stage.run(
        _to_switchover(), PROOF, script=[*before, Tell("RESUME", at=1.4), *_checkpoint(2.0), *_checkpoint(3.0)]
    )
    assert applier.guest_pause_ms == 400.0


def test_the_keepers_word_counts_for_a_protection_that_was_there_before(stage: Stage) -> None:
    stage.keeper(_make.keeper(checkpoints={"last_age_ms": 2400.0}))
    stage.run(PROOF)
    stage.keeper(_make.keeper(checkpoints={"last_age_ms": 2600.0}))
    stage.run(PROOF, script=[*_checkpoint(5.0), *_checkpoint(6.0)])
    stage.keeper(_make.keeper(checkpoints={"last_age_ms": None}))
    stage.run(PROOF, script=[*_checkpoint(5.0), *_checkpoint(6.0)])


def test_the_keepers_word_does_not_count_for_one_that_was_just_made(stage: Stage) -> None:
    stage.keeper(_make.keeper(checkpoints={"last_age_ms": 5.0}))
    way = [migration(status) for status in ("device", "colo")]
    stage.run(_to_colo(), PROOF, script=[*way, *_checkpoint(5.0), *_checkpoint(6.0)])


def test_a_protection_that_dies_in_its_first_checkpoint(stage: Stage) -> None:
    script: Script = [Tell("STOP", at=1.0), Tell("COLO_EXIT", {"mode": "primary", "reason": "error"})]
    error = stage.fails(PROOF, script=script, code="colo_exit")
    assert error.details["data"] == {"mode": "primary", "reason": "error"}


def test_a_protection_without_checkpoints(stage: Stage) -> None:
    error = stage.fails(PROOF, script=[*_checkpoint(5.0), Tell(), Tell(), Tell()], code="deadline_passed")
    assert error.details["last_seen"] == {"checkpoints": 1}


def test_a_guest_that_did_not_stop_has_no_pause(stage: Stage) -> None:
    assert stage.run().guest_pause_ms is None


def test_packets_have_to_leave_through_every_tap(stage: Stage) -> None:
    counts = {"a": [5, 5, 6, 6], "b": [7, 7, 7, 8]}
    stage.patch.setattr(
        _observe, "tap_packets", lambda tap: counts[tap].pop(0) if len(counts[tap]) > 1 else counts[tap][0]
    )
    announce = Call("announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100})
    applier = stage.run(_wait("wait_packets", taps=["a", "b"]), script=[announce, Tell(), Tell(), Tell()])
    assert applier.packets == 2
    assert applier.packets_at is not None


def test_packets_that_do_not_leave(stage: Stage) -> None:
    stage.patch.setattr(_observe, "tap_packets", lambda _tap: 5)
    step = _wait("wait_packets", timeout_s=0.1, taps=["a"])
    error = stage.fails(step, script=[Call("announce-self", ANY), Tell()], code="deadline_passed")
    assert error.details["last_seen"] == {"a": 0}


# --- the keeper -------------------------------------------------------------------------------------------------


def test_the_keeper_has_to_hold_its_monitor(stage: Stage) -> None:
    step = _wait("wait_keeper", timeout_s=0.2)
    stage.keeper(None, {"qemu": {"connected": False}}, {"qemu": {"connected": True}})
    stage.run(step, script=[Tell(), Tell()])
    stage.keeper({"qemu": {"connected": False}})
    error = stage.fails(step, script=[Tell(), Tell()], code="deadline_passed")
    assert error.details["last_seen"] == {"qemu": {"connected": False}}
    stage.keeper(None)
    assert (
        stage.fails(step, script=[Tell(), Tell()], code="deadline_passed").details["last_seen"]
        == "the keeper does not answer"
    )


@pytest.mark.parametrize(
    ("heard", "peer", "good"),
    [(True, {"joins": 2}, True), (True, {"joins": 3}, False), (True, None, False), (False, {"joins": 2}, False)],
)
def test_only_the_standby_that_waits_for_this_copy_will_do(stage: Stage, heard: bool, peer: t.Any, good: bool) -> None:
    stage.record(_generation.started_alone)
    stage.keeper(_make.keeper(heard=heard, peer=peer))
    step = _wait("wait_heartbeat", timeout_s=0.1)
    if good:
        stage.run(step)
    else:
        error = stage.fails(step, script=[Tell()], code="deadline_passed")
        assert error.details["last_seen"]["heartbeat"]["peer"] == peer


@pytest.mark.parametrize(
    ("record", "count", "good"),
    [
        ({"state": "protected", "stale": False}, 2, True),
        ({"state": "protected", "stale": False}, 1, False),
        ({"state": "protected", "stale": True}, 2, False),
        ({"state": "syncing", "stale": False}, 2, False),
        (None, 2, False),
    ],
)
def test_a_good_secondary(stage: Stage, record: t.Any, count: int, good: bool) -> None:
    stage.keeper(_make.keeper(record=record, checkpoints={"count": count}))
    step = _wait("wait_secondary", timeout_s=0.1)
    if good:
        stage.run(step)
    else:
        stage.fails(step, script=[Tell()], code="deadline_passed")


def test_a_secondary_whose_protection_has_ended(stage: Stage) -> None:
    stage.keeper(_make.keeper(colo_exit=True, record={"state": "protected"}, checkpoints={"count": 9}))
    stage.fails(_wait("wait_secondary"), code="colo_exit")


# --- the record and the permit ----------------------------------------------------------------------------------


def _transition(name: str, **arguments: t.Any) -> Step:
    return Step("record", f"record {name}", {"transition": name, **arguments})


def test_the_record_goes_the_whole_round(stage: Stage) -> None:
    stage.record()
    read: list[tuple[int, str]] = []
    for step in (
        _transition("started_alone", fenced_by="both seen"),
        _transition("enter_protection"),
        _transition("enter_protection"),
        _transition("go_alone", reason="protection ended"),
        _transition("go_alone", reason="protection ended"),
    ):
        stage.run(step)
        now = _store.read(stage.guest)
        assert now is not None
        read.append((now.generation, now.state))
    assert read == [(1, "alone"), (2, "protected"), (2, "protected"), (3, "alone"), (3, "alone")]


def test_a_takeover_is_recorded_once(stage: Stage) -> None:
    stage.record(
        lambda record: _generation.begin_sync(record, 4), lambda record: _generation.enter_protection(record, "beta")
    )
    take = _transition("take_over", fenced_by="beta is off", accept_void=False)
    for _time in range(2):
        stage.run(take)
        now = _store.read(stage.guest)
        assert now is not None
        assert (now.generation, now.state, now.serving, now.fenced_by) == (6, "alone", "alpha", "beta is off")
        assert now.uncommitted
    stage.run(_transition("mark_whole"))
    now = _store.read(stage.guest)
    assert now is not None
    assert not now.uncommitted


@pytest.mark.parametrize(
    ("transitions", "code"),
    [
        ([_generation.started_alone], None),
        ([lambda record: _generation.begin_sync(record, 4)], "copy_not_startable"),
        (
            [
                lambda record: _generation.begin_sync(record, 4),
                lambda record: _generation.enter_protection(record, "beta"),
                lambda record: _generation.mark_stale(record, "no space"),
            ],
            "copy_not_startable",
        ),
        (
            [
                lambda record: _generation.begin_sync(record, 4),
                lambda record: _generation.enter_protection(record, "beta"),
                lambda record: _generation.mark_void(record, "reboot"),
            ],
            "protection_void",
        ),
    ],
)
def test_a_copy_that_is_not_good_does_not_take_over(stage: Stage, transitions: t.Any, code: str | None) -> None:
    stage.record(*transitions)
    before = pathlib.Path(stage.guest.record_file).read_bytes()
    step = _transition("take_over", fenced_by="beta is off", accept_void=False)
    if code is None:
        stage.run(step)  # it serves already
    else:
        stage.fails(step, code=code)
    assert pathlib.Path(stage.guest.record_file).read_bytes() == before


def test_no_record_no_transition(stage: Stage) -> None:
    stage.fails(_transition("go_alone", reason="x"), code="record_missing")


PERMIT = Step("permit", "permit one start", {"role": "primary"})


def _permit_file(stage: Stage) -> pathlib.Path:
    return pathlib.Path(stage.guest.permit_file)


def test_a_permit_is_for_one_role_and_generation_and_not_for_everybody(stage: Stage) -> None:
    stage.record(_generation.started_alone)
    old = os.umask(0)
    try:
        stage.run(PERMIT)
    finally:
        os.umask(old)
    permit = _permit_file(stage)
    assert json.loads(permit.read_text()) == {"schema": 1, "guest": "web1", "role": "primary", "generation": 1}
    status = permit.stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_uid, status.st_gid) == (os.geteuid(), pathlib.Path(stage.guest.paths.state).stat().st_gid)
    assert [path.name for path in permit.parent.iterdir()] == ["permit.json"]


@pytest.mark.parametrize("name", ["permit.json", "permit.json.new"])
def test_a_permit_is_never_written_through_a_link(stage: Stage, tmp_path: pathlib.Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    (_permit_file(stage).parent / name).symlink_to(victim)
    stage.record(_generation.started_alone)
    stage.run(PERMIT)
    assert victim.read_text() == "precious"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert not _permit_file(stage).is_symlink()
    assert json.loads(_permit_file(stage).read_text())["generation"] == 1


def test_a_link_that_is_put_there_in_between_is_not_followed(stage: Stage, tmp_path: pathlib.Path) -> None:
    """The directory is the unprivileged user's, who may be quick."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    remove = os.unlink

    def replant(name: str, *, dir_fd: int) -> None:
        (_permit_file(stage).parent / name).touch()
        remove(name, dir_fd=dir_fd)
        os.symlink(victim, name, dir_fd=dir_fd)

    stage.record(_generation.started_alone)
    with stage.patch.context() as patch:
        patch.setattr(os, "unlink", replant)
        error = stage.fails(PERMIT, code="host_refused")
    assert "File exists" in error.message
    assert victim.read_text() == "precious"
    assert not _permit_file(stage).exists()


def test_a_permit_replaces_an_old_one_and_what_a_killed_run_left(stage: Stage) -> None:
    stage.record(_generation.started_alone)
    _permit_file(stage).write_text("old")
    _permit_file(stage).with_name("permit.json.new").write_text("half")
    stage.run(PERMIT)
    assert json.loads(_permit_file(stage).read_text())["role"] == "primary"


# --- units ------------------------------------------------------------------------------------------------------

UNIT = "colo-guest@web1.service"
START = Step("start_unit", "start it", {"unit": UNIT}, timeout_s=0.1)
STOP = Step("stop_unit", "stop it", {"unit": UNIT}, timeout_s=0.1)
ACTIVE = f"systemctl show --property=ActiveState --value {UNIT}"


def _monitors(stage: Stage, *outcomes: QmpError | None) -> list[str]:
    """What connecting to QEMU's monitor ends in, one attempt after the other."""
    left, paths = list(outcomes), []

    def connect(path: str, *, unit: str) -> t.Any:
        assert unit == UNIT
        paths.append(path)
        outcome = left.pop(0)
        if outcome is not None:
            raise outcome
        return ScriptedMonitor(stage.clock)

    stage.patch.setattr(_observe, "Monitor", connect)
    return paths


NOT_YET = QmpError("qmp_unreachable", "no such file")


def test_a_unit_is_started_when_its_monitor_greets(stage: Stage) -> None:
    paths = _monitors(stage, NOT_YET, None)
    applier = stage.run(START, systemd=Systemd((f"systemctl start {UNIT}", (0, "", "")), (ACTIVE, (0, "active\n", ""))))
    assert paths == [stage.guest.qmp_socket] * 2
    assert applier.connected is not None


def test_a_unit_that_systemd_does_not_start(stage: Stage) -> None:
    error = stage.fails(
        START, systemd=Systemd((f"systemctl start {UNIT}", (1, "", "Job failed.\n"))), code="unit_failed"
    )
    assert "Job failed." in error.message
    assert "journalctl" in error.message
    assert error.details["unit"] == UNIT


def test_a_qemu_that_ends_at_once(stage: Stage) -> None:
    _monitors(stage, NOT_YET)
    units = Systemd((f"systemctl start {UNIT}", (0, "", "")), (ACTIVE, (0, "failed\n", "")))
    stage.fails(START, systemd=units, code="unit_failed")


def test_a_qemu_that_never_greets(stage: Stage) -> None:
    _monitors(stage, *[NOT_YET] * 20)
    units = Systemd((f"systemctl start {UNIT}", (0, "", "")), *[(ACTIVE, (0, "active\n", ""))] * 20)
    error = stage.fails(START, systemd=units, code="deadline_passed")
    assert stage.guest.qmp_socket in error.message


def test_a_unit_is_stopped_after_the_monitor_was_let_go(stage: Stage) -> None:
    units = Systemd((f"systemctl stop {UNIT}", (0, "", "")), (ACTIVE, (0, "inactive\n", "")))
    assert stage.run(STOP, systemd=units).connected is None


def test_a_unit_that_is_killed_is_stopped_as_well(stage: Stage) -> None:
    kill = Step("stop_unit", "kill it", {"unit": UNIT, "kill": True})
    stage.run(
        kill,
        systemd=Systemd(
            (f"systemctl kill --kill-whom=main --signal=SIGKILL {UNIT}", (1, "", "not loaded")),
            (f"systemctl stop {UNIT}", (0, "", "")),
            (ACTIVE, (0, "failed\n", "")),
            (f"systemctl reset-failed {UNIT}", (0, "", "")),
        ),
    )


@pytest.mark.parametrize(("code", "state"), [(0, "deactivating"), (0, "active"), (1, "inactive")])
def test_a_unit_that_does_not_stop(stage: Stage, code: int, state: str) -> None:
    units = Systemd((f"systemctl stop {UNIT}", (code, "", "")), (ACTIVE, (0, f"{state}\n", "")))
    stage.fails(STOP, systemd=units, code="unit_failed")


def test_a_host_without_systemd(stage: Stage) -> None:
    units = Systemd((f"systemctl stop {UNIT}", (0, "", "")), (ACTIVE, (1, "", "no bus")))
    stage.fails(STOP, systemd=units, code="systemd_unreachable")


def test_overlays_are_made_by_the_image_code(stage: Stage) -> None:
    made: list[str] = []
    stage.patch.setattr(_image, "fresh_overlays", lambda _run, guest: made.append(guest.name))
    stage.run(Step("overlays", "overlays"))
    assert made == ["web1"]


def test_a_guest_boots_alone_for_as_long_as_it_was_told(stage: Stage) -> None:
    begin = stage.clock.now
    stage.run(_wait("wait_settled", seconds=0.25), script=[Tell("SERIAL"), Tell(), Tell(), Tell()])
    assert stage.clock.now - begin >= 0.25


# --- one run at a time ------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_a_later_one_is_not(stage: Stage) -> None:
    with _apply.exclusive(stage.guest):
        with pytest.raises(RefusedError) as caught, _apply.exclusive(stage.guest):
            raise AssertionError("two runs at a time")
        assert caught.value.error_code == "guest_busy"
    with _apply.exclusive(stage.guest):
        assert stat.S_IMODE(os.stat(stage.guest.lock_file).st_mode) == 0o600


def test_the_lock_ends_with_an_error_in_the_run(stage: Stage) -> None:
    with pytest.raises(ValueError, match="boom"), _apply.exclusive(stage.guest):
        raise ValueError("boom")
    with _apply.exclusive(stage.guest):
        pass


def test_the_lock_is_never_taken_through_a_link(stage: Stage, tmp_path: pathlib.Path) -> None:
    victim = tmp_path / "victim"
    os.symlink(victim, stage.guest.lock_file)
    with pytest.raises(ColoError) as caught, _apply.exclusive(stage.guest):
        raise AssertionError("locked through a link")
    assert caught.value.error_code == "lock_unusable"
    assert not victim.exists()


def test_a_host_whose_run_directory_is_gone(stage: Stage) -> None:
    os.rmdir(stage.guest.paths.run)
    with pytest.raises(ColoError) as caught, _apply.exclusive(stage.guest):
        raise AssertionError("locked nothing")
    assert caught.value.error_code == "lock_unusable"
    assert "site.yml" in caught.value.message
