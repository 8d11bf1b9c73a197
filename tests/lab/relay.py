# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's apt relay: an HTTP proxy on a unix socket that reaches the Debian mirror and nothing else.

relay.py SOCKET SITE... [--via PROXY]
A host has no way out; its 127.0.0.1:3142 is passed by systemd-socket-proxyd to this socket. apt keeps to one site per
connection, so only the head of the first request is looked at; afterwards bytes go both ways untouched. `CONNECT` (a
mirror with https) works as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import pathlib
from urllib.parse import urlsplit

MAX_HEAD = 65536


def split_site(site: str, default: int = 80) -> tuple[str, int]:
    parts = urlsplit("//" + site)
    if parts.hostname is None:
        raise ValueError(f"no host in {site!r}")
    return parts.hostname, parts.port or default


def target_of(head: bytes) -> tuple[str, int, bool]:
    """Host, port and whether it is a CONNECT, of the first line of a proxy request."""
    words = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
    if len(words) != 3:
        raise ValueError("not a proxy request")
    if words[0] == "CONNECT":
        return *split_site(words[1], 443), True
    parts = urlsplit(words[1])
    if parts.scheme != "http" or parts.hostname is None:
        raise ValueError("not an absolute http URI")
    return parts.hostname, parts.port or 80, False


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(262144):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class Relay:
    def __init__(self, sites: list[str], via: str | None) -> None:
        self.hosts = {split_site(site)[0] for site in sites}
        self.via = split_site(urlsplit(via).netloc or via, 3128) if via else None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams = [writer]
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            host, port, connect = target_of(head)
            if host not in self.hosts:
                writer.write(
                    b"HTTP/1.1 403 the lab relay does not go there\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                return
            back, upstream = await asyncio.wait_for(asyncio.open_connection(*(self.via or (host, port))), 30)
            streams.append(upstream)
            if connect and self.via is None:
                writer.write(b"HTTP/1.1 200 connected\r\n\r\n")
            else:
                upstream.write(head)
            await asyncio.gather(_pump(reader, upstream), _pump(back, writer))
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            with contextlib.suppress(OSError):
                writer.write(b"HTTP/1.1 502 the lab relay failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        finally:
            for stream in streams:
                stream.close()


def _publish(part: pathlib.Path, place: str) -> None:
    """Under its name only when somebody listens."""
    part.chmod(0o600)
    part.rename(place)


def _identity(place: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = pathlib.Path(place).stat()
        return found.st_dev, found.st_ino
    return None


async def _main(options: argparse.Namespace) -> None:
    relay = Relay(options.sites, options.via)
    part = pathlib.Path(f"{options.socket}.part")
    server = await asyncio.start_unix_server(relay.serve, part, limit=MAX_HEAD)
    _publish(part, options.socket)
    own = _identity(options.socket)
    async with server:
        while _identity(options.socket) == own:  # noqa: ASYNC110 - the directory may be removed under us, silently
            await asyncio.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="apt relay of the lab (started by labctl)")
    parser.add_argument("socket")
    parser.add_argument("sites", nargs="+")
    parser.add_argument("--via", help="the HTTP proxy that this machine's apt uses")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
