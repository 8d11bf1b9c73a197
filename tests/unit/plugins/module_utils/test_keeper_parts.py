# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper's parts that need no QEMU: the lane, the record writer, the client's deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _generation as g
from ansible_collections.lockstep.colo.plugins.module_utils import _guest, _keeper_monitor, _rewriter, _store
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_base import Lane
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_client import KeeperClient
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_records import Records
from ansible_collections.lockstep.colo.plugins.module_utils._rules import Action

# --- the lane ---------------------------------------------------------------------------------------------------


def test_a_call_that_outlives_its_deadline_keeps_the_lane() -> None:
    async def scenario() -> list[str]:
        lane, gate, seen = Lane(), asyncio.Event(), list[str]()

        async def slow() -> None:
            await gate.wait()
            seen.append("slow")

        async def quick() -> str:
            seen.append("quick")
            return "done"

        with pytest.raises(TimeoutError):
            await lane.run(slow, 0.02)
        with pytest.raises(TimeoutError):
            await lane.run(quick, 0.02)
        assert seen == [], "nothing overtakes it, nothing piles up behind it"
        gate.set()
        assert await lane.run(quick, 1.0) == "done"
        return seen

    assert asyncio.run(scenario()) == ["slow", "quick"]


def test_a_failing_call_frees_the_lane() -> None:
    async def scenario() -> None:
        lane = Lane()

        async def fails() -> None:
            raise ValueError("x")

        def fails_at_once() -> t.Awaitable[None]:
            raise KeyError("y")

        with pytest.raises(ValueError, match="x"):
            await lane.run(fails, 1.0)
        with pytest.raises(KeyError):
            await lane.run(fails_at_once, 1.0)
        await lane.run(lambda: asyncio.sleep(0), 1.0)

    asyncio.run(scenario())


# --- the monitor ------------------------------------------------------------------------------------------------


def test_a_connection_to_a_process_that_has_ended_is_none(standby: _guest.Guest) -> None:
    """The kernel accepts for a listener as long as anybody holds it; a QEMU that was killed may still seem to answer."""
    pathlib.Path(standby.paths.run).mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(standby.keeper_qmp_socket)
        pid = os.fork()
        if pid == 0:
            listener.listen(4)  # who calls this is who the kernel names
            os._exit(0)
        ticks = _keeper_monitor.started_ticks(pid)
        assert ticks is not None
        os.waitpid(pid, 0)
        told: list[Action] = []
        monitor = _keeper_monitor.Monitor(standby, lambda: "serving", lambda action, _reason: told.append(action))
        monitor.qemu = _keeper_monitor.Qemu((pid, ticks))

        async def scenario() -> None:
            running = asyncio.ensure_future(monitor.run())
            async with asyncio.timeout(5):
                while monitor.qemu.process is not None:  # noqa: ASYNC110 - the monitor announces nothing
                    await asyncio.sleep(0.01)
            running.cancel()

        asyncio.run(scenario())
        assert told == [Action.TELL_PEER]


def test_a_guest_that_goes_on_has_its_rewriters_flushed(
    standby: _guest.Guest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(_rewriter, "flush", lambda guest: flushed.append(guest.host))
    monitor = _keeper_monitor.Monitor(standby, lambda: "standby", lambda _action, _reason: None)
    for name in ("STOP", "RESUME", "VNC_CONNECTED"):
        monitor._on_event(name, {}, 1.0)
    assert flushed == ["beta"]

    def broken(_guest: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(_rewriter, "flush", broken)
    monitor._on_event("RESUME", {}, 2.0)
    assert "packets may be held by a rewriter" in "".join(capsys.readouterr())


@pytest.mark.parametrize("before", [None, "replication_failed", "colo_exit"])
def test_a_guest_is_left_to_a_standby_that_follows_and_to_no_other(
    standby: _guest.Guest, before: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = _keeper_monitor.Monitor(standby, lambda: "serving", lambda _action, _reason: None)
    if before:
        monitor.qemu.flags[before] = {"time": 1.0, "data": {}}
    monitor.let_go("its disk has failed")
    assert monitor._leaving.is_set() is (before is None)
    assert ("QEMU is ended" if before is None else "no copy of the disk is whole") in "".join(capsys.readouterr())


def test_a_second_error_of_a_disk_changes_nothing(standby: _guest.Guest, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = _keeper_monitor.Monitor(standby, lambda: "serving", lambda _action, _reason: None)
    monitor.let_go("its disk has failed")
    monitor.qemu.flags["colo_exit"] = {"time": 1.0, "data": {}}  # of the yank
    capsys.readouterr()
    monitor.let_go("its disk has failed")
    assert not "".join(capsys.readouterr())
    assert monitor._leaving.is_set()


@pytest.mark.parametrize(
    ("answers", "told", "ended"),
    [
        (["pre-switchover", "pre-switchover", "cancelling"], ["yank", "migrate_cancel"], True),
        # a module told it to go on meanwhile
        (["pre-switchover", "device"], ["yank"], False),
        (["pre-switchover", "colo"], ["yank"], False),
        (["colo"], [], False),
    ],
)
def test_a_switchover_that_went_on_meanwhile_is_not_cancelled(
    standby: _guest.Guest, monkeypatch: pytest.MonkeyPatch, answers: list[str], told: list[str], *, ended: bool
) -> None:
    """In colo the guest would stand still for good."""
    monitor = _keeper_monitor.Monitor(standby, lambda: "serving", lambda _action, _reason: None)
    left, done = list(answers), list[str]()

    async def in_band(command: str) -> dict[str, str]:
        if command == "query-migrate":
            return {"status": left.pop(0)}
        done.append(command)
        return {}

    async def yank(_instances: list[dict[str, str]]) -> list[dict[str, str]]:
        done.append("yank")
        return []

    monkeypatch.setattr(monitor, "_in_band", in_band)
    monkeypatch.setattr(monitor, "yank", yank)
    asyncio.run(monitor._end_switchover(1.0))
    assert (done, left) == (told, [])
    assert bool(monitor.qemu.flags["switchover_ended"]) is ended
    assert monitor.qemu.migration == answers[-1]


# --- the record writer ------------------------------------------------------------------------------------------


@pytest.fixture
def standby(tmp_path: pathlib.Path) -> _guest.Guest:
    guest = _guest.Guest(
        name="web1", host="beta", hosts=("alpha", "beta"), link={"alpha": "192.0.2.1", "beta": "192.0.2.2"},
        memory_mib=64, vcpus=1, machine="pc", cpu="qemu64", accelerator="tcg", qemu_binary="/bin/false", user="colo", link_security="tls",
        disks=(), nics=(), boot=None, port_base=9000, tuning=_guest.Tuning(),
        paths=_guest.Paths(config=str(tmp_path), state=str(tmp_path), run=str(tmp_path)),
    )  # fmt: skip
    _store.create(guest)
    _store.update(guest, lambda rec: g.begin_sync(rec, 1))
    return guest


def record_of(guest: _guest.Guest) -> g.Record:
    record = _store.read(guest)
    assert record is not None
    return record


async def until(condition: t.Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is on the disk
            await asyncio.sleep(0.01)


def writing(guest: _guest.Guest, scenario: t.Callable[[Records], t.Awaitable[None]]) -> None:
    async def run() -> None:
        records = Records(guest, 0.02)
        task = asyncio.create_task(records.run())
        try:
            await scenario(records)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_transitions_are_written_in_order(standby: _guest.Guest) -> None:
    async def scenario(records: Records) -> None:
        records.want(Action.ENTER_PROTECTION, "colo")
        records.want(Action.MARK_STALE, "nbd lost")
        records.want(Action.MARK_STALE, "again")
        records.want(Action.MARK_VOID, "reboot")
        await until(lambda: not records.waiting)

    writing(standby, scenario)
    record = record_of(standby)
    assert (record.state, record.stale_reason, record.void_reason) == ("protected", "nbd lost", "reboot")


def test_an_illegal_transition_is_given_up(standby: _guest.Guest) -> None:
    _store.update(standby, lambda rec: g.begin_sync(rec, 1))
    _store.update(standby, lambda rec: g.enter_protection(rec, "alpha"))
    _store.update(standby, lambda rec: g.take_over(rec, "pdu"))
    before = record_of(standby)

    async def scenario(records: Records) -> None:
        records.want(Action.ENTER_PROTECTION, "late")
        await until(lambda: not records.waiting)

    writing(standby, scenario)
    assert record_of(standby) == before


def test_a_write_that_fails_is_tried_until_it_succeeds(standby: _guest.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    update, tries = _store.update, list[int]()

    def fails_twice(guest: _guest.Guest, transition: t.Callable[[g.Record], g.Record]) -> tuple[g.Record, g.Record]:
        tries.append(1)
        if len(tries) < 3:
            raise ColoError("record_not_written", "no space")
        return update(guest, transition)

    monkeypatch.setattr(_store, "update", fails_twice)

    async def scenario(records: Records) -> None:
        records.want(Action.MARK_STALE, "nbd lost")
        await until(lambda: not records.waiting)

    writing(standby, scenario)
    assert len(tries) == 3
    assert record_of(standby).stale


def test_a_hanging_disk_does_not_hang_the_keeper(standby: _guest.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hangs(_guest: _guest.Guest) -> None:
        release.wait(10)

    monkeypatch.setattr(_store, "read", hangs)

    async def scenario() -> None:
        records = Records(standby, 10.0)
        began = time.monotonic()
        await records.refresh(0.05)
        await records.refresh(0.05)
        assert time.monotonic() - began < 2
        assert records.error is not None
        assert records.error.error_code == "record_slow"
        release.set()

    asyncio.run(scenario())


def test_a_broken_record_is_reported_and_the_last_one_kept(standby: _guest.Guest) -> None:
    path = pathlib.Path(standby.record_file)
    text = path.read_text()
    with asyncio.Runner() as runner:
        records = Records(standby, 10.0)
        runner.run(records.refresh(5.0))
        known = records.current
        path.write_text("{")
        runner.run(records.refresh(5.0))
        assert records.current == known
        assert records.error is not None
        assert records.error.error_code == "record_unreadable"
        path.write_text(text)
        runner.run(records.refresh(5.0))
        assert records.error is None


# --- the client -------------------------------------------------------------------------------------------------


def answering(path: pathlib.Path, answer: bytes | None, requests: list[bytes]) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            requests.append(connection.recv(65536))
            if answer is None:
                connection.recv(1)  # silent until the client goes
            else:
                with contextlib.suppress(OSError):
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def ask(tmp_path: pathlib.Path, answer: bytes | None, call: t.Callable[[KeeperClient], t.Any]) -> tuple[t.Any, bytes]:
    path, requests = tmp_path / "keeper.sock", list[bytes]()
    thread = answering(path, answer, requests)
    try:
        return call(KeeperClient(str(path), 0.3)), requests[0]
    finally:
        thread.join(10)


def test_calls(tmp_path: pathlib.Path) -> None:
    seen, request = ask(tmp_path, b'{"ok": true, "state": {"pid": 1}}\n', KeeperClient.state)
    assert (seen, json.loads(request)) == ({"pid": 1}, {"op": "state"})
    (tmp_path / "keeper.sock").unlink()
    seen, request = ask(tmp_path, b'{"ok": true, "results": []}\n', lambda client: client.yank([{"type": "migration"}]))
    assert json.loads(request) == {"op": "yank", "instances": [{"type": "migration"}]}
    (tmp_path / "keeper.sock").unlink()
    seen, request = ask(tmp_path, b'{"ok": true, "instances": []}\n', KeeperClient.query_yank)
    assert (seen, json.loads(request)) == ([], {"op": "query_yank"})


@pytest.mark.parametrize(
    ("answer", "error_code"),
    [
        (b"", "keeper_unreachable"),
        (b'{"ok": true', "keeper_unreachable"),
        (b"{\n", "keeper_unreachable"),
        (b"[]\n", "keeper_unreachable"),
        (b'{"ok": true}\n', "keeper_unreachable"),
        (b'{"ok": true, "state": []}\n', "keeper_unreachable"),
        (b'{"ok": 1, "state": {}}\n', "keeper_unreachable"),
        (b"x" * 2000000, "keeper_unreachable"),
        (b'{"ok": false, "error_code": "yank_refused", "message": "no"}\n', "yank_refused"),
        (b'{"ok": false}\n', "keeper_error"),
        (None, "keeper_unreachable"),
    ],
)
def test_bad_answers(tmp_path: pathlib.Path, answer: bytes | None, error_code: str) -> None:
    began = time.monotonic()
    with pytest.raises(ColoError) as caught:
        ask(tmp_path, answer, KeeperClient.state)
    assert caught.value.error_code == error_code
    assert time.monotonic() - began < 5


def test_nobody_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ColoError) as caught:
        KeeperClient(str(tmp_path / "none")).state()
    assert caught.value.error_code == "keeper_unreachable"
    assert "colo-keeper@" in caught.value.message
