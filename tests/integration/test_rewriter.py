# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's filter-rewriter holds what came while the guest stood still; the keeper has it delivered. For every release."""

from __future__ import annotations

import fcntl
import os
import pathlib
import signal
import termios
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _peer, _rewriter, _topology
from ansible_collections.lockstep.colo.tests.integration._pair import Host, wait_for

PORTS = 40000
FRAME = _rewriter.frames(vnet_header=False)


@pytest.fixture
def alpha(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Host]:
    """Its card takes packets, and throws them away, before a driver has it."""
    card = {"name": "lan", "bridge": "br0", "mac": "52:54:00:12:34:56", "model": "rtl8139", "tap": "alpha-lan"}
    directory = tmp_path_factory.mktemp("p")
    monkeypatch.setattr(_peer, "PROC", str(directory / "proc"))  # as in Pair
    made = Host(directory, "alpha", PORTS, nics=[card])
    try:
        yield made
    finally:
        made.end()
        print(made.log.read_text() if made.log.exists() else "")


def packets(dump: pathlib.Path) -> int:
    """How many of ours are in a pcap file; the host's own kernel says this and that through a tap as well."""
    return dump.read_bytes().count(FRAME[4:])


def is_read(pipe: pathlib.Path) -> bool:
    """Whether QEMU has taken all that was written into a pipe."""
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        return fcntl.ioctl(reader, termios.FIONREAD, bytes(4)) == bytes(4)
    finally:
        os.close(reader)


@pytest.mark.parametrize("keeper", [True, False], ids=["keeper", "QEMU by itself"])
def test_what_came_while_the_guest_stood_still(alpha: Host, keeper: bool) -> None:
    """Where `QEMU by itself` fails, that QEMU needs `_rewriter` no more."""
    alpha.serve()
    arrivals, dump = pathlib.Path(alpha.guest.paths.run, "in0"), pathlib.Path(alpha.guest.paths.run, "dump")
    os.mkfifo(arrivals)
    own = _topology.flusher(0), _topology.flusher_chardev(0), _topology.rewriter(0)
    watching = alpha.units.keeper
    assert watching is not None
    with alpha.operator() as monitor:
        monitor.execute("chardev-add", {"id": "in0", "backend": {"type": "pipe", "data": {"device": str(arrivals)}}})
        first = {"qom-type": "filter-redirector", "id": "f1-0", "queue": "tx", "indev": "in0"}
        last = {"qom-type": "filter-dump", "id": "dump0", "queue": "tx", "file": str(dump)}
        monitor.execute("object-add", {**first, "netdev": "hn0"})
        for command, arguments in _topology.standby_commands(alpha.guest):
            if arguments.get("id") in own:
                monitor.execute(command, arguments)
        monitor.execute("object-add", {**last, "netdev": "hn0"})
        monitor.execute("stop")
        if not keeper:
            watching.send_signal(signal.SIGSTOP)
        arrivals.write_bytes(FRAME)
        wait_for("QEMU has the packet", lambda: is_read(arrivals))
        assert packets(dump) == 0
        monitor.execute("cont")
        if not keeper:
            assert monitor.execute("query-status")["running"]
            assert packets(dump) == 0
            _rewriter.flush(alpha.guest)
        wait_for("the packet, and the one that flushes", lambda: packets(dump) == 2)
        watching.send_signal(signal.SIGCONT)
