# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Frees the packets that QEMU's ``filter-rewriter`` keeps for itself when a guest goes on.

A packet for the guest that comes while it stands still for a checkpoint waits in the rewriter's own queue, and nothing
flushes that queue when the guest goes on: ``net_vm_change_state_handler`` (QEMU's ``net/net.c``) knows of the network
cards' queues only, and ``qemu_net_queue_send`` flushes after the next TCP packet. Until that comes, the standby's guest
lacks what the serving guest has: a client that waits for an answer waits until it asks again (200 ms with Linux), and
for ever when the serving guest had acknowledged what it asked and its host was lost then.

So whoever sees the guest go on sends such a next packet, through a pipe of its own before the rewriter. It is a TCP
segment for no connection, and its Ethernet address is no guest's: every network card drops it.
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import struct

from ansible_collections.lockstep.colo.plugins.module_utils import _topology
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest

# locally administered; no network card has the first one
_TO, _FROM = bytes.fromhex("02000000fffe"), bytes.fromhex("02000000fffd")
_LOOPBACK = bytes((127, 0, 0, 1))  # an address that no guest takes from a network card
_DISCARD = 9  # port
_RST = 0x04  # makes the rewriter begin nothing
# Which of the two a card has is up to the guest's driver; a frame with the other one is read as one for nobody as well.
_VNET_HEADERS = (12, 10)
# from `open` and `write`: not made, QEMU does not read from it (it has no rewriter), full (QEMU stands still)
_NOBODY = (errno.ENOENT, errno.ENXIO, errno.EAGAIN, errno.EPIPE)


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _segment() -> bytes:
    """An Ethernet frame with one TCP segment without data."""
    tcp = struct.pack("!HHIIBBHHH", _DISCARD, _DISCARD, 0, 0, 5 << 4, _RST, 0, 0, 0)
    pseudo = _LOOPBACK + _LOOPBACK + struct.pack("!BBH", 0, 6, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", _checksum(pseudo + tcp)) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + _LOOPBACK + _LOOPBACK
    ip = ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:]
    return _TO + _FROM + b"\x08\x00" + ip + tcp


def frames(*, vnet_header: bool) -> bytes:
    """What a ``filter-redirector`` reads (QEMU's ``net_fill_rstate``): the length, that of the virtio-net header, the frame."""
    segment = _segment()
    if not vnet_header:
        return struct.pack("!I", len(segment)) + segment
    return b"".join(struct.pack("!II", size + len(segment), size) + bytes(size) + segment for size in _VNET_HEADERS)


def make_pipes(guest: Guest) -> None:
    """One named pipe per network card, which QEMU opens when it becomes a standby. As QEMU's user (OSError)."""
    for number in range(len(guest.nics)):
        path = pathlib.Path(_topology.flush_pipe(guest, number))
        # what an earlier QEMU of this guest has left there may be anything
        if not (os.path.lexists(path) and stat.S_ISFIFO(path.lstat().st_mode)):
            path.unlink(missing_ok=True)
            os.mkfifo(path, 0o600)


def flush(guest: Guest) -> None:
    """Have every rewriter that there is deliver what it holds. Never blocks; OSError of what is not expected."""
    for number, nic in enumerate(guest.nics):
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            pipe = os.open(_topology.flush_pipe(guest, number), flags)
            try:
                os.write(pipe, frames(vnet_header=nic.vnet_header))  # less than PIPE_BUF: whole or not at all
            finally:
                os.close(pipe)
        except OSError as exc:
            if exc.errno not in _NOBODY:
                raise
