# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client gets out of a guest: small pages, a download, writes that are on the disk before they are answered.

Runs in the client's network and prints one JSON object. One request at a time: what a single user feels, and what lock step
costs most. Each part ends by its deadline; a request that is under way then is waited for and counts with its whole length,
but for the download, of which the bytes that came are counted.

  load.py 198.51.100.10 --seconds 5 [--part pages|download|writes]...
"""

from __future__ import annotations

import argparse
import contextlib
import http
import http.client
import json
import socket
import time
import typing as t

HTTP_PORT, LINE_PORT = 80, 7000
ANSWER_S = 60.0
CHUNK = 262144


@contextlib.contextmanager
def _get(address: str, path: str) -> t.Iterator[tuple[socket.socket, http.client.HTTPResponse]]:
    """A connection of its own, and the answer on it, which is there when all of its Content-Length is: no client waits for the FIN."""
    with (
        socket.create_connection((address, HTTP_PORT), timeout=ANSWER_S) as connection,
        contextlib.closing(http.client.HTTPResponse(connection)) as answer,
    ):
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        answer.begin()
        if answer.status != http.HTTPStatus.OK:
            raise OSError(f"not a page: {answer.status} {answer.reason}")
        yield connection, answer


def pages(address: str, seconds: float) -> dict[str, t.Any]:
    """The small page again and again."""
    latencies: list[float] = []
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        asked = time.monotonic()
        with _get(address, "/") as (_connection, answer):
            answer.read()
            latencies.append((time.monotonic() - asked) * 1000)
    return {"seconds": time.monotonic() - begun, "latencies_ms": latencies}


def download(address: str, seconds: float) -> dict[str, t.Any]:
    """The big file, from its beginning again when it is through."""
    size = 0
    begun = time.monotonic()
    while (left := begun + seconds - time.monotonic()) > 0:
        with _get(address, "/big") as (connection, answer):
            while left > 0:
                connection.settimeout(left)
                try:
                    data = answer.read1(CHUNK)
                except TimeoutError:
                    break
                if not data:
                    break
                size += len(data)
                left = begun + seconds - time.monotonic()
    return {"seconds": time.monotonic() - begun, "bytes": size}


def writes(address: str, seconds: float) -> dict[str, t.Any]:
    """Numbers that the guest writes to its disk (O_DSYNC) before it answers, over one connection."""
    latencies: list[float] = []
    number = int(time.time()) << 20  # no number of an earlier run
    begun = time.monotonic()
    with socket.create_connection((address, LINE_PORT), timeout=ANSWER_S) as line, line.makefile("rwb") as stream:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() - begun < seconds:
            asked = time.monotonic()
            number += 1
            stream.write(b"%d\n" % number)
            stream.flush()
            answer = stream.readline().split()
            if not answer or answer[0] != b"%d" % number:
                raise OSError(f"the guest did not write {number}: {answer!r}")
            latencies.append((time.monotonic() - asked) * 1000)
    return {"seconds": time.monotonic() - begun, "latencies_ms": latencies}


PARTS: dict[str, t.Callable[[str, float], dict[str, t.Any]]] = {"pages": pages, "download": download, "writes": writes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each part (default 5)")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="default: all of them")
    options = parser.parse_args()
    print(json.dumps({part: PARTS[part](options.address, options.seconds) for part in options.part or PARTS}))


if __name__ == "__main__":
    main()
