# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packet that frees others. That QEMU needs it, and is served by it, is asked of real ones in tests/integration."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import stat
import struct

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _guest, _rewriter, _topology
from ansible_collections.lockstep.colo.tests.unit import _make


@pytest.fixture
def guest(tmp_path: pathlib.Path) -> _guest.Guest:
    made = _make.guest(root=str(tmp_path), nics=2)
    pathlib.Path(made.paths.run).mkdir(parents=True)
    return made


def pipe(guest: _guest.Guest, nic: int = 0) -> pathlib.Path:
    return pathlib.Path(_topology.flush_pipe(guest, nic))


def total(data: bytes) -> int:
    """RFC 1071: 0xffff over data with a right checksum in it."""
    value: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def test_a_frame_is_a_tcp_segment_for_no_card() -> None:
    data = _rewriter.frames(vnet_header=False)
    assert struct.unpack_from("!I", data)[0] == len(data) - 4
    frame = data[4:]
    assert frame[0] & 3 == 2, "one card's, given by nobody's factory"
    assert frame[12:14] == b"\x08\x00"
    ip, tcp = frame[14:34], frame[34:]
    assert (ip[0], struct.unpack_from("!H", ip, 2)[0], ip[9]) == (0x45, len(ip) + len(tcp), 6)
    assert total(ip) == 0xFFFF
    assert total(ip[12:] + struct.pack("!HH", 6, len(tcp)) + tcp) == 0xFFFF
    assert tcp[13] == 0x04, "neither SYN, ACK nor FIN: the rewriter changes no state for it"


def test_a_virtio_card_gets_one_for_each_length_of_its_header() -> None:
    data, at, lengths = _rewriter.frames(vnet_header=True), 0, []
    segment = _rewriter.frames(vnet_header=False)[4:]
    while at < len(data):
        size, header = struct.unpack_from("!II", data, at)
        assert data[at + 8 : at + 8 + size] == bytes(header) + segment
        lengths.append(header)
        at += 8 + size
    assert sorted(lengths) == [10, 12]
    assert len(data) <= select.PIPE_BUF, "whole or not at all"


def test_every_card_has_a_pipe_that_only_its_user_may_use(guest: _guest.Guest) -> None:
    pipe(guest, 1).write_text("not a pipe")
    for _time in range(2):
        _rewriter.make_pipes(guest)
        for nic in (0, 1):
            mode = pipe(guest, nic).stat().st_mode
            assert (stat.S_ISFIFO(mode), stat.S_IMODE(mode)) == (True, 0o600)


def test_without_a_reader_nobody_waits(guest: _guest.Guest) -> None:
    _rewriter.flush(guest)
    _rewriter.make_pipes(guest)
    _rewriter.flush(guest)


def test_a_qemu_that_reads_has_it(guest: _guest.Guest) -> None:
    _rewriter.make_pipes(guest)
    reader = os.open(pipe(guest, 1), os.O_RDWR | os.O_NONBLOCK)
    try:
        _rewriter.flush(guest)
        assert os.read(reader, select.PIPE_BUF) == _rewriter.frames(vnet_header=True)
    finally:
        os.close(reader)


def test_a_qemu_that_stands_still_is_not_waited_for(guest: _guest.Guest) -> None:
    _rewriter.make_pipes(guest)
    reader = os.open(pipe(guest), os.O_RDWR | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while os.write(reader, bytes(select.PIPE_BUF)):
                pass
        _rewriter.flush(guest)
    finally:
        os.close(reader)


def test_what_is_no_pipe_is_told(guest: _guest.Guest) -> None:
    pipe(guest).mkdir()
    with pytest.raises(IsADirectoryError):
        _rewriter.flush(guest)
