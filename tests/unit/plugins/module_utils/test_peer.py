# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root talks to the QEMU and the keeper of the guest that is meant: real sockets, whose listener is this process."""

from __future__ import annotations

import collections.abc as c
import os
import pathlib
import socket
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _apply, _link_key, _observe, _peer, _states
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.tests.unit import _make
from ansible_collections.lockstep.colo.tests.unit._monitor import Json, Server

In = c.Callable[[str], None]


@pytest.fixture
def guests(tmp_path: pathlib.Path) -> tuple[Guest, Guest]:
    """Two guests of one host, the directories of the first one as a QEMU that was broken into has left them."""
    one, other = (_make.guest(root=str(tmp_path), name=name) for name in ("web1", "web2"))
    for guest in (one, other):
        pathlib.Path(guest.paths.run).mkdir(parents=True)
    for name in ("qmp.sock", "keeper.sock"):
        pathlib.Path(one.paths.run, name).symlink_to(f"../web2/{name}")
    return one, other


@pytest.fixture
def lives_in(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> In:
    """Put this process into a control group, as far as anybody who asks is told."""
    monkeypatch.setattr(_peer, "PROC", str(tmp_path / "proc"))
    place = tmp_path / "proc" / str(os.getpid())
    place.mkdir(parents=True)
    return lambda groups: t.cast("None", (place / "cgroup").write_text(groups))


def group(unit: str) -> str:
    return f"0::/system.slice/system-colo\\x2dguest.slice/{unit}\n"


def serve(guest: Guest, *answers: Json) -> Server:
    left = list(answers)
    return Server(pathlib.Path(guest.qmp_socket), lambda _command, _arguments: ([], left.pop(0)))


def refused(call: c.Callable[[], object]) -> ColoError:
    with pytest.raises(ColoError) as caught:
        call()
    assert caught.value.error_code == "socket_foreign"
    return caught.value


def test_a_monitor_of_the_guest_that_is_meant(guests: tuple[Guest, Guest], lives_in: In) -> None:
    _one, other = guests
    for text in (group(other.unit), f"12:pids:/x\n1:name=systemd:/system.slice/{other.unit}\n0::/\n"):
        lives_in(text)
        pathlib.Path(other.qmp_socket).unlink(missing_ok=True)
        with serve(other, {"status": "running"}), _observe.connect(other) as monitor:
            assert monitor.execute("query-status") == {"status": "running"}


def test_a_link_to_the_monitor_of_another_guest(guests: tuple[Guest, Guest], lives_in: In) -> None:
    one, other = guests
    lives_in(group(other.unit))
    with serve(other) as server:
        error = refused(lambda: _observe.connect(one))
        assert server.calls == []
        for words in (one.qmp_socket, one.unit, f"process {os.getpid()}", "stop colo-guest@web1.service"):
            assert words in error.message
        # as the modules do all they do
        applier = _apply.Applier(one, lambda _argv: (0, "active\n", ""))
        refused(lambda: applier.monitor)
        assert server.calls == []


def test_an_observation_tells_of_it(guests: tuple[Guest, Guest], lives_in: In, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standing that nothing is done with, and not one that is another guest's."""
    one, other = guests
    lives_in(group(other.unit))
    monkeypatch.setattr(_link_key, "is_current", lambda _guest: True)
    with serve(other):
        seen = _observe.observe(one, lambda _argv: (0, "active\n", ""))
    assert (seen.trouble or "").startswith("socket_foreign: ")
    assert _states.standing(seen) == "failed"


@pytest.mark.parametrize("more", ["x", ".d"])
def test_a_unit_of_a_similar_name_is_another(guests: tuple[Guest, Guest], lives_in: In, more: str) -> None:
    one, other = guests
    lives_in(group(one.unit + more) + "0::/\n" + group("colo-guest@web11.service"))
    with serve(other):
        refused(lambda: _observe.connect(one))


def test_a_process_that_has_ended_meanwhile_is_nobody(guests: tuple[Guest, Guest], lives_in: In) -> None:
    del lives_in  # and nothing is written
    _one, other = guests
    with serve(other), pytest.raises(ColoError) as caught:
        _observe.connect(other)
    assert caught.value.error_code == "qmp_unreachable"


def test_a_link_to_the_keeper_of_another_guest(guests: tuple[Guest, Guest], lives_in: In) -> None:
    """Its words would be evidence, and its yank would reach the other guest."""
    one, other = guests
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(other.keeper_socket)
        listener.listen(4)
        lives_in(group(other.keeper_unit))
        error = refused(lambda: _observe.keeper(one).yank([{"type": "migration"}]))
        assert one.keeper_unit in error.message
        assert _observe.keeper_state(one) is None
        for _call in range(2):
            with listener.accept()[0] as connection:
                assert connection.recv(100) == b"", "nothing was asked"
        # QEMU in the place of its own keeper is no keeper, either
        lives_in(group(one.unit))
        refused(lambda: _observe.keeper(one).state())


def test_the_kernel_tells_which_process_it_is(tmp_path: pathlib.Path) -> None:
    """The check can fail without a stand-in, too: no unit of a guest has run this test."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "x"))
        listener.listen(1)
        client.connect(str(tmp_path / "x"))
        assert _peer.pid_of(client) == os.getpid()
        own = pathlib.Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()[-1].rpartition("/")[2]
        if own:
            _peer.check(client, "x", own)
        refused(lambda: _peer.check(client, "x", "colo-guest@web1.service"))
