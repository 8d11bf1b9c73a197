# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who serves, seen at the switch: which ports frames of the guest's MAC address come in by, and when.

Runs in the switch's network until SIGTERM, then prints one JSON object: port to the spans of time in which it sent. Only
what came in counts: frames that the switch sends out again are the same ones.

  ip netns exec SWITCH senders.py MAC PORT...
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import socket
import struct
import sys
import time
import typing as t

ETH_P_ALL = 3
SO_ATTACH_FILTER = 26
# frames that are less apart belong to one span
JOIN_S = 1.0

Span = tuple[float, float]


def join(times: t.Iterable[float], apart_s: float = JOIN_S) -> list[Span]:
    """The spans of time that sightings, in order, make up."""
    spans: list[Span] = []
    for moment in times:
        if spans and moment - spans[-1][1] <= apart_s:
            spans[-1] = (spans[-1][0], moment)
        else:
            spans.append((moment, moment))
    return spans


def overlaps(one: t.Iterable[Span], two: t.Iterable[Span]) -> list[Span]:
    """The spans of time that lie in spans of both."""
    other = list(two)
    found = [(max(a[0], b[0]), min(a[1], b[1])) for a in one for b in other]
    return [(begin, end) for begin, end in found if begin <= end]


def program(mac: str) -> list[tuple[int, int, int, int]]:
    """A packet filter: the source address is this one."""
    address = bytes.fromhex(mac.replace(":", ""))
    high, low = struct.unpack("!IH", address)
    return [(0x20, 0, 0, 6), (0x15, 0, 3, high), (0x28, 0, 0, 10), (0x15, 0, 1, low), (0x06, 0, 0, 64), (0x06, 0, 0, 0)]


def listen(mac: str) -> socket.socket:
    """A socket for all interfaces, also those that are plugged in later."""
    channel = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program(mac))
    held = ctypes.create_string_buffer(code)
    channel.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(code) // 8, ctypes.addressof(held)))
    # what came in before there was a filter
    with contextlib.suppress(BlockingIOError):
        while channel.recv(64, socket.MSG_DONTWAIT):
            pass
    return channel


def main() -> None:
    mac, *ports = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    seen: dict[str, list[Span]] = {port: [] for port in ports}
    with listen(mac) as channel:
        print("listening", flush=True)
        try:
            while True:
                _frame, (port, _protocol, kind, *_rest) = channel.recvfrom(64)
                if kind == socket.PACKET_OUTGOING or port not in seen:
                    continue
                spans, now = seen[port], time.time()
                if spans and now - spans[-1][1] <= JOIN_S:
                    spans[-1] = (spans[-1][0], now)
                else:
                    spans.append((now, now))
        finally:
            print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
