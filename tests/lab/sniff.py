# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Listens on an interface as somebody on the same wire would, and counts words that cross it in the clear, port by port.

Runs on a lab host with nothing but its Python, until it gets SIGTERM; then it writes what it heard as JSON.

  sniff.py INTERFACE REPORT NAME=WORD...
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import signal
import socket
import struct
import sys

SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE = 33
BUFFER = 64 * 1024 * 1024
TAIL = 64  # a word may be cut by the end of a segment

Flow = tuple[bytes, bytes, bytes]


def payload(frame: bytes) -> tuple[Flow, int, bytes] | None:
    """Flow, lower port and content of a TCP segment over IPv4."""
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return None
    head = 14 + 4 * (frame[14] & 15)
    end = 14 + struct.unpack("!H", frame[16:18])[0] if frame[16:18] != b"\0\0" else len(frame)
    content = frame[head + 4 * (frame[head + 12] >> 4) : end]
    ports = struct.unpack("!HH", frame[head : head + 4])
    return (frame[26:30], frame[30:34], frame[head : head + 4]), min(ports), content


def listen(interface: str, report: pathlib.Path, words: dict[str, bytes]) -> None:
    """Until SIGTERM."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        wire.bind((interface, 0))
        ended: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
        report.with_suffix(".pid").write_text(str(os.getpid()), encoding="ascii")
        wire.settimeout(0.2)
        found: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in words}
        volume: collections.Counter[int] = collections.Counter()
        tails: dict[Flow, bytes] = {}
        while not ended:
            try:
                seen = payload(wire.recv(1 << 18))
            except TimeoutError:
                continue
            if seen is None:
                continue
            flow, port, content = seen
            volume[port] += len(content)
            text = tails.get(flow, b"") + content
            for name, word in words.items():
                found[name][str(port)] += text.count(word) - tails.get(flow, b"").count(word)
            tails[flow] = content[-TAIL:]
        _packets, dropped = struct.unpack("II", wire.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    heard = {"found": found, "bytes": {str(port): number for port, number in volume.items()}, "dropped": dropped}
    report.write_text(json.dumps(heard, sort_keys=True), encoding="ascii")


def main() -> None:
    interface, report, *rest = sys.argv[1:]
    listen(
        interface, pathlib.Path(report), {name: word.encode() for name, word in (each.split("=", 1) for each in rest)}
    )


if __name__ == "__main__":
    main()
