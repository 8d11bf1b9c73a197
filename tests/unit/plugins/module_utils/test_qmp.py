# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The monitor connection: every way in which a QEMU answers, refuses, stays silent or goes away."""

from __future__ import annotations

import pathlib
import socket
import time
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _qmp
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, DeadlineError, QmpError
from ansible_collections.lockstep.colo.plugins.module_utils._qmp import Monitor
from ansible_collections.lockstep.colo.tests.unit._monitor import Close, Hang, Json, Refuse, Server, event

SHORT_S = 0.15


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "qmp.sock"


def _says(*replies: t.Any, events: t.Sequence[Json] = ()) -> t.Callable[[str, Json], tuple[list[Json], t.Any]]:
    """Answer one command after the other; an extra one is an error. Events come before the first answer."""
    left = list(replies)
    told = list(events)

    def handler(command: str, _arguments: Json) -> tuple[list[Json], t.Any]:
        assert left, f"nobody expects {command}"
        first, told[:] = list(told), []
        return first, left.pop(0)

    return handler


def _code(call: t.Callable[[], t.Any]) -> ColoError:
    with pytest.raises(ColoError) as caught:
        call()
    return caught.value


def test_a_command_and_its_answer(path: pathlib.Path) -> None:
    with Server(path, _says({"status": "running"}, {})) as server, Monitor(str(path)) as monitor:
        assert monitor.execute("query-status") == {"status": "running"}
        assert monitor.execute("object-del", {"id": "m0"}) == {}
    assert server.calls == [("query-status", {}, False), ("object-del", {"id": "m0"}, False)]


def test_a_socket_that_is_given_away_does_not_block(path: pathlib.Path) -> None:
    here, there = socket.socketpair()
    with (
        here,
        there,
        Server(path, _says({}, Refuse("no file descriptor supplied"))) as server,
        Monitor(str(path)) as monitor,
    ):
        monitor.give("migration", here)
        assert server.calls == [("getfd", {"fdname": "migration"}, False)]
        assert not here.getblocking()
        assert _code(lambda: monitor.give("migration", there)).error_code == "qmp_refused"
        monitor.close()
        assert _code(lambda: monitor.give("migration", there)).error_code == "qmp_lost"


def test_out_of_band(path: pathlib.Path) -> None:
    with Server(path, _says([])) as server, Monitor(str(path)) as monitor:
        monitor.execute("query-yank", oob=True)
    assert server.calls == [("query-yank", {}, True)]


def test_a_refusal_has_qemus_words_and_the_connection_goes_on(path: pathlib.Path) -> None:
    with (
        Server(path, _says(Refuse("Block job 'resync0' not found", "DeviceNotActive"), {})),
        Monitor(str(path)) as monitor,
    ):
        error = _code(lambda: monitor.execute("block-job-cancel", {"device": "resync0"}))
        assert isinstance(error, QmpError)
        assert error.error_code == "qmp_refused"
        assert error.details == {
            "command": "block-job-cancel",
            "arguments": {"device": "resync0"},
            "error_class": "DeviceNotActive",
            "reason": "Block job 'resync0' not found",
        }
        assert monitor.execute("query-status") == {}


def test_nobody_listens(path: pathlib.Path) -> None:
    error = _code(lambda: Monitor(str(path), SHORT_S))
    assert error.error_code == "qmp_unreachable"
    assert str(path) in error.message


def test_a_monitor_that_has_another_client_does_not_greet(path: pathlib.Path) -> None:
    with Server(path, _says({})), Monitor(str(path)) as first:
        begin = time.monotonic()
        error = _code(lambda: Monitor(str(path), SHORT_S))
        assert error.error_code == "qmp_busy"
        assert time.monotonic() - begin < 5
        assert first.execute("query-status") == {}


def test_a_silent_monitor(path: pathlib.Path) -> None:
    with Server(path, _says(), greet=False):
        assert _code(lambda: Monitor(str(path), SHORT_S)).error_code == "qmp_busy"


@pytest.mark.parametrize("greeting", [b'{"hello": 1}\r\n', b"SSH-2.0-OpenSSH_9.2\r\n", b"[]\r\n"])
def test_something_else_that_listens_there(path: pathlib.Path, greeting: bytes) -> None:
    with Server(path, _says(), greeting=greeting):
        assert _code(lambda: Monitor(str(path), SHORT_S)).error_code in ("qmp_unreachable", "qmp_busy")


def test_a_blocked_main_loop_ends_in_the_deadline_and_closes_the_connection(path: pathlib.Path) -> None:
    with Server(path, _says(Hang())), Monitor(str(path)) as monitor:
        error = _code(lambda: monitor.execute("query-status", timeout_s=SHORT_S))
        assert isinstance(error, DeadlineError)
        assert error.error_code == "deadline_passed"
        assert error.details == {"timeout_s": SHORT_S, "command": "query-status"}
        # what QEMU does with that command is not known: nothing more goes over this connection
        again = _code(lambda: monitor.execute("query-status"))
        assert again.error_code == "qmp_lost"
        assert _code(lambda: monitor.next_event(SHORT_S)).error_code == "qmp_lost"


def test_the_default_deadline_is_that_of_the_connection(path: pathlib.Path) -> None:
    with Server(path, _says(Hang())), Monitor(str(path), SHORT_S) as monitor:
        assert _code(lambda: monitor.execute("query-status")).details["timeout_s"] == SHORT_S


def test_qemu_dies_in_the_middle_of_a_command(path: pathlib.Path) -> None:
    with Server(path, _says(Close())), Monitor(str(path)) as monitor:
        error = _code(lambda: monitor.execute("x-colo-lost-heartbeat"))
        assert (error.error_code, error.details) == ("qmp_lost", {"command": "x-colo-lost-heartbeat"})
        assert _code(lambda: monitor.execute("query-status")).error_code == "qmp_lost"


def test_events_keep_their_order_and_wait_until_they_are_asked_for(path: pathlib.Path) -> None:
    events = [event("STOP", 5), event("MIGRATION", 6, status="colo"), event("RESUME", 7)]
    with Server(path, _says({}, {}, events=events)), Monitor(str(path)) as monitor:
        monitor.execute("query-status")
        monitor.execute("query-status")
        seen = [monitor.next_event(5) for _time in range(3)]
        assert [(entry.name, entry.data, entry.time_s) for entry in seen if entry] == [
            ("STOP", {}, 5.25),
            ("MIGRATION", {"status": "colo"}, 6.25),
            ("RESUME", {}, 7.25),
        ]
        assert monitor.next_event(0) is None
        assert monitor.next_event(SHORT_S / 3) is None


def test_an_event_of_the_last_moment_is_not_lost(path: pathlib.Path) -> None:
    """QEMU tells why it ends, and ends."""
    with Server(path, _says(Close(), events=[event("SHUTDOWN", guest=False)])), Monitor(str(path)) as monitor:
        assert _code(lambda: monitor.execute("quit")).error_code == "qmp_lost"
    # and where nothing was asked, the event comes first, then the end
    with Server(path.with_name("b"), _says({}, Close())) as server, Monitor(str(path.with_name("b"))) as monitor:
        monitor.execute("query-status")
        for client in server._clients:
            client.sendall(b'{"event": "SHUTDOWN", "timestamp": {"seconds": 1, "microseconds": 0}}\r\n')
            client.shutdown(2)
        seen = monitor.next_event(5)
        assert seen is not None
        assert (seen.name, seen.data) == ("SHUTDOWN", {})
        begin = time.monotonic()
        assert _code(lambda: monitor.next_event(30)).error_code == "qmp_lost"
        assert time.monotonic() - begin < 10


def test_waiting_for_events_ends_with_the_connection(path: pathlib.Path) -> None:
    with Server(path, _says({})) as server, Monitor(str(path)) as monitor:
        monitor.execute("query-status")
        server._clients[0].shutdown(2)
        begin = time.monotonic()
        assert _code(lambda: monitor.next_event(30)).error_code == "qmp_lost"
        assert time.monotonic() - begin < 10


def test_closing_twice_and_with_a_silent_peer(path: pathlib.Path) -> None:
    with Server(path, _says()):
        monitor = Monitor(str(path))
        monitor.close()
        monitor.close()
        assert _code(lambda: monitor.execute("query-status")).error_code == "qmp_lost"


def test_the_next_client_is_served_after_a_close(path: pathlib.Path) -> None:
    with Server(path, _says({}, {})) as server:
        for _time in range(2):
            with Monitor(str(path)) as monitor:
                monitor.execute("query-status")
    assert len(server.calls) == 2


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_qmp, "QMP_IMPORT_ERROR", "Traceback: no module named qemu")
    error = _code(lambda: Monitor("/nowhere"))
    assert error.error_code == "qmp_library_missing"
    assert "lockstep.colo.host" in error.message
    assert error.details["traceback"].startswith("Traceback")
