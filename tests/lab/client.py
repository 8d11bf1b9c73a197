# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Continuity client: proves from outside that a guest went on.

`run` keeps its TCP connections open, sends increasing numbers and waits for each answer, which the guest gives only
after the number is on its disk. At the end (--seconds, SIGTERM or SIGINT) it asks the guest how many of the acknowledged
numbers its disk holds and prints one JSON report. It never opens a second connection in place of a lost one: a lost
connection is a result. `ask` sends one line, `fetch` measures a download. All know nothing of the lab; only the standard library is used.

  labctl client run 198.51.100.10 --seconds 30 --status build/evidence/client.json
  labctl client ask 198.51.100.10 check 1000 1999
  labctl client fetch http://198.51.100.10/big

Exit code of `run`: 0 when continuity was proved (every connection survived, same boot id, counter monotone, nothing lost), else 2.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import signal
import socket
import sys
import time
import urllib.request
from typing import Any

LINE_PORT = 7000
GAP_MS = 200.0
SLOTS = (
    8_000_000  # records that a 64 MiB disk of the test guest holds at the least; more numbers than that get no answer
)


def percentile(ordered: list[float], fraction: float) -> float | None:
    """Nearest rank, of a sorted list."""
    if not ordered:
        return None
    return ordered[min(len(ordered), max(1, math.ceil(fraction * len(ordered)))) - 1]


def explain(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


# Offsets in Linux's `struct tcp_info` (include/uapi/linux/tcp.h): bytes to begin with, then 32-bit words.
TCP_INFO_BYTES = {"state": 0, "retransmits": 2, "backoff": 4}
TCP_INFO_WORDS = {"rto_us": 8, "unacked": 24, "last_data_sent_ms": 44, "last_data_recv_ms": 52, "last_ack_recv_ms": 56}


def tcp_info(line: socket.socket) -> dict[str, int]:
    """What the kernel knows of a connection; ``unacked`` segments mean that the other side's TCP is silent, not only its program."""
    told = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    found = {name: told[at] for name, at in TCP_INFO_BYTES.items()}
    return found | {name: int.from_bytes(told[at : at + 4], sys.byteorder) for name, at in TCP_INFO_WORDS.items()}


def tcp_counters() -> dict[str, int]:
    """`TcpExt` of this network namespace, among them PAWSEstab, TCPACKSkippedSeq and others that say why segments were dropped."""
    lines = [line.split() for line in pathlib.Path("/proc/net/netstat").read_text(encoding="ascii").splitlines()]
    names, values = (line for line in lines if line[0] == "TcpExt:")
    return dict(zip(names[1:], map(int, values[1:]), strict=True))


def parse_answer(line: bytes) -> tuple[int, int, str]:
    """`n COUNTER BOOTID`; everything else is a ValueError."""
    words = line.decode("ascii", "replace").split()
    if len(words) != 3 or words[0] in ("error", "check"):
        raise ValueError(f"not an acknowledgement: {line!r}")
    return int(words[0]), int(words[1]), words[2]


def parse_check(line: bytes) -> int:
    """`check A B PRESENT`; everything else is a ValueError."""
    words = line.decode("ascii", "replace").split()
    if len(words) != 4 or words[0] != "check":
        raise ValueError(f"not an answer to check: {line!r}")
    return int(words[3])


@dataclasses.dataclass(frozen=True)
class Gap:
    """A time without any answer on one connection."""

    connection: int
    begin: float  # seconds since the epoch
    milliseconds: float


@dataclasses.dataclass
class Channel:
    """What one connection has seen."""

    number: int
    first: int
    room: int  # numbers of its own, so that `check` of its range counts nothing of others
    sent: int = 0
    acknowledged: int = 0
    first_ack_wall: float = 0.0
    last_ack_wall: float = 0.0
    last_ack: float | None = None  # monotonic
    last_counter: int = 0
    counter_monotone: bool = True
    boot_ids: list[str] = dataclasses.field(default_factory=list)
    latencies_ms: list[float] = dataclasses.field(default_factory=list)
    gaps: list[Gap] = dataclasses.field(default_factory=list)
    longest_ms: float = 0.0
    longest_at: float = 0.0
    error: str | None = None
    autopsy: dict[str, Any] | None = None  # of a connection that was lost
    lost: int | None = None
    checked_on_same_connection: bool = False

    def saw(self, counter: int, boot_id: str, latency_ms: float, wall: float, clock: float) -> None:
        self.acknowledged += 1
        self.latencies_ms.append(latency_ms)
        if counter <= self.last_counter:
            self.counter_monotone = False
        self.last_counter = counter
        if boot_id not in self.boot_ids:
            self.boot_ids.append(boot_id)
        self._gap_until(clock)
        self.last_ack, self.last_ack_wall = clock, wall
        self.first_ack_wall = self.first_ack_wall or wall

    def _gap_until(self, clock: float) -> None:
        if self.last_ack is None:
            return
        milliseconds = (clock - self.last_ack) * 1000
        if milliseconds > self.longest_ms:
            self.longest_ms, self.longest_at = milliseconds, self.last_ack_wall
        if milliseconds > GAP_MS:
            self.gaps.append(Gap(self.number, self.last_ack_wall, round(milliseconds, 1)))

    def end(self, clock: float) -> None:
        """Silence up to the end counts as well."""
        self._gap_until(clock)


@dataclasses.dataclass(frozen=True)
class Settings:
    address: str
    port: int = LINE_PORT
    connections: int = 1
    interval_ms: float = 10.0
    seconds: float | None = None  # None: until stop()
    first: int | None = None  # None: from the clock, so that runs on one guest do not overlap
    connect_timeout: float = 20.0
    wait: float = 0.0  # for a guest that does not run yet: try again for so long
    answer_timeout: float = 120.0  # a connection that is silent for longer is given up as lost
    check_timeout: float = 30.0
    slots: int = SLOTS
    status: pathlib.Path | None = None


class ContinuityClient:
    """`report = await ContinuityClient(Settings("198.51.100.10")).run()`, or `.run_blocking()`.

    `stop()`, from a signal handler or another task of the same loop, ends it early. It talks from the network that its
    process is in: inside the lab that is the client's namespace (`ip netns exec`, `labctl client`).
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # From the clock and below 2^53: a number of an earlier run, which may still be on the disk, does not come again.
        first = settings.first if settings.first is not None else int(time.time()) * settings.slots % 2**52
        room = settings.slots // settings.connections
        self.channels = [Channel(number, first + number * room, room) for number in range(settings.connections)]
        self.begun = time.time()
        self.ended: float | None = None
        self._stop = asyncio.Event()

    def stop(self) -> None:
        self._stop.set()

    def run_blocking(self) -> dict[str, Any]:
        return asyncio.run(self.run())

    async def run(self) -> dict[str, Any]:
        self.begun = time.time()
        tasks = [asyncio.create_task(self._talk(channel)) for channel in self.channels]
        status = asyncio.create_task(self._write_status())
        timer = asyncio.create_task(self._timer())
        try:
            await asyncio.gather(*tasks)
        finally:
            self._stop.set()
            for task in (*tasks, status, timer):
                task.cancel()
            await asyncio.gather(*tasks, status, timer, return_exceptions=True)
        self.ended = time.time()
        report = self.report()
        self._store(report)
        return report

    async def _timer(self) -> None:
        if self.settings.seconds is not None:
            await asyncio.sleep(self.settings.seconds)
            self.stop()

    async def _talk(self, channel: Channel) -> None:
        try:
            reader, writer = await self._connect()
        except (OSError, TimeoutError) as error:
            channel.error = f"connect: {explain(error)}"
            return
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = tcp_counters()
        healthy = True
        try:
            await self._requests(channel, reader, writer)
        except (OSError, ValueError, EOFError, TimeoutError) as error:
            channel.error = explain(error)
            grown = {name: value - before[name] for name, value in tcp_counters().items() if value != before[name]}
            # of a connection that was reset the transport has closed the socket by now
            info = tcp_info(raw) if raw.fileno() >= 0 else None
            channel.autopsy = {"connection": channel.number, "tcp_info": info, "counters_grown_by": grown}
            healthy = False
        channel.end(time.monotonic())
        await self._check(channel, (reader, writer) if healthy else None)
        writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        settings = self.settings
        end = time.monotonic() + settings.wait
        while time.monotonic() < end and not self._stop.is_set():
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.5):
                    return await asyncio.open_connection(settings.address, settings.port)
            await asyncio.sleep(0.05)
        async with asyncio.timeout(settings.connect_timeout):
            return await asyncio.open_connection(settings.address, settings.port)

    async def _requests(self, channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        interval = self.settings.interval_ms / 1000
        due = time.monotonic()
        while not self._stop.is_set() and channel.sent < channel.room:
            n = channel.first + channel.sent
            channel.sent += 1
            asked = time.monotonic()
            writer.write(b"%d\n" % n)
            line = await self._answer(reader, self.settings.answer_timeout)
            answered = time.monotonic()
            got, counter, boot_id = parse_answer(line)
            if got != n:
                raise ValueError(f"{got} was acknowledged, {n} was asked for")
            channel.saw(counter, boot_id, (answered - asked) * 1000, time.time(), answered)
            due = max(due + interval, answered)
            with contextlib.suppress(TimeoutError):
                if due > answered:
                    await asyncio.wait_for(self._stop.wait(), due - answered)

    async def _answer(self, reader: asyncio.StreamReader, limit: float) -> bytes:
        """One line. After stop() the guest has check_timeout left to answer what is under way."""
        read = asyncio.ensure_future(reader.readline())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({read, stopped}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not read.done() and stopped.done():
                await asyncio.wait({read}, timeout=self.settings.check_timeout)
            if not read.done():
                raise TimeoutError("no answer")
            line = read.result()
            if not line.endswith(b"\n"):
                raise EOFError("the guest closed the connection")
            return line
        finally:
            for task in (read, stopped):
                task.cancel()
            await asyncio.gather(read, stopped, return_exceptions=True)

    async def _check(self, channel: Channel, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None) -> None:
        """How many acknowledged numbers the disk does not hold; over the same connection, else over a new one."""
        if channel.acknowledged == 0:
            channel.lost = 0
            return
        failures = (OSError, ValueError, TimeoutError)
        if streams is not None:
            try:
                channel.lost = await self._missing(channel, *streams)
            except failures as error:
                channel.error = f"check: {explain(error)}"
            else:
                channel.checked_on_same_connection = True
                return
        with contextlib.suppress(*failures):
            async with asyncio.timeout(self.settings.check_timeout):
                reader, writer = await asyncio.open_connection(self.settings.address, self.settings.port)
            try:
                channel.lost = await self._missing(channel, reader, writer)
            finally:
                writer.close()

    async def _missing(self, channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(b"check %d %d\n" % (channel.first, channel.first + channel.acknowledged - 1))
        async with asyncio.timeout(self.settings.check_timeout):
            line = await reader.readline()
        return channel.acknowledged - parse_check(line)

    async def _write_status(self) -> None:
        while self.settings.status is not None:
            self._store(self.report(final=False))
            await asyncio.sleep(0.25)

    def _store(self, report: dict[str, Any]) -> None:
        if self.settings.status is not None:
            path = self.settings.status
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}")
            part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            part.rename(path)

    def report(self, final: bool = True) -> dict[str, Any]:
        """Also while it runs; then `lost` is not known and `proved` is none. Times are seconds since the epoch."""
        channels = self.channels
        latencies = sorted(value for channel in channels for value in channel.latencies_ms) if final else []
        boot_ids = sorted({boot_id for channel in channels for boot_id in channel.boot_ids})
        longest = max(channels, key=lambda channel: channel.longest_ms)
        lost: int | None = None
        if final and all(channel.lost is not None for channel in channels):
            lost = sum(channel.lost or 0 for channel in channels)
        acknowledged = sum(channel.acknowledged for channel in channels)
        survived = all(channel.error is None for channel in channels)
        monotone = all(channel.counter_monotone for channel in channels)
        same_boot = len(boot_ids) == 1
        now = time.monotonic()
        silent = [(now - channel.last_ack) * 1000 for channel in channels if channel.last_ack is not None]
        return {
            "address": f"{self.settings.address}:{self.settings.port}",
            "pid": os.getpid(),
            "final": final,
            "proved": (survived and monotone and same_boot and lost == 0 and acknowledged > 0) if final else None,
            "begun": self.begun,
            "first_answer_at": min(
                (channel.first_ack_wall for channel in channels if channel.first_ack_wall), default=None
            ),
            "ended": self.ended,
            "connections": len(channels),
            "connections_lost": sum(channel.error is not None for channel in channels),
            "connection_survived": survived,
            "errors": [
                f"connection {channel.number}: {channel.error}" for channel in channels if channel.error is not None
            ],
            "autopsies": [channel.autopsy for channel in channels if channel.autopsy is not None],
            "sent": sum(channel.sent for channel in channels),
            "acknowledged": acknowledged,
            "lost": lost,
            "checked_on_same_connection": all(channel.checked_on_same_connection for channel in channels)
            if final
            else None,
            "boot_ids": boot_ids,
            "same_boot_id": same_boot,
            "counter_monotone": monotone,
            "last_counter": max(channel.last_counter for channel in channels),
            "longest_gap_ms": round(longest.longest_ms, 1),
            "longest_gap_at": longest.longest_at,
            "gaps": [dataclasses.asdict(gap) for channel in channels for gap in channel.gaps],
            "silent_ms": round(max(silent), 1) if silent and not final else None,
            "latency_ms": {
                name: None if (value := percentile(latencies, fraction)) is None else round(value, 2)
                for name, fraction in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            },
        }


def ask(address: str, port: int, words: list[str], timeout: float) -> str:
    """What the line service answers to one request."""
    with socket.create_connection((address, port), timeout=timeout) as line, line.makefile("rwb") as stream:
        stream.write(" ".join(words).encode() + b"\n")
        stream.flush()
        return stream.readline().decode("ascii", "replace").strip()


@dataclasses.dataclass(frozen=True)
class Download:
    url: str
    bytes: int
    seconds: float
    megabytes_per_second: float
    sha256: str


def fetch(url: str, timeout: float = 60.0) -> Download:
    """Download to nowhere. The time starts before the connection and ends with the last byte. No proxy is used."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    digest = hashlib.sha256()
    size = 0
    begun = time.monotonic()
    with opener.open(url, timeout=timeout) as answer:
        expected = answer.headers.get("Content-Length")
        while data := answer.read(262144):
            digest.update(data)
            size += len(data)
            if time.monotonic() - begun > timeout:
                raise TimeoutError(f"{url}: {size} bytes in {timeout:.0f} s")
    seconds = time.monotonic() - begun
    if expected is not None and int(expected) != size:
        raise OSError(f"{url}: {size} of {expected} bytes")
    return Download(url, size, round(seconds, 4), round(size / 1e6 / seconds, 2), digest.hexdigest())


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="client", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="hold connections until --seconds or SIGTERM, then report")
    run.add_argument("address")
    run.add_argument("--port", type=int, default=LINE_PORT)
    run.add_argument("--connections", type=int, default=1)
    run.add_argument("--interval-ms", type=float, default=10.0, help="between two requests (default 10)")
    run.add_argument("--seconds", type=float, default=3600.0, help="stop after this long (default 3600)")
    run.add_argument("--first", type=int, help="the first number (default: from the clock)")
    run.add_argument("--connect-timeout", type=float, default=20.0)
    run.add_argument(
        "--wait", type=float, default=0.0, help="try so many seconds to connect to a guest that does not run yet"
    )
    run.add_argument(
        "--answer-timeout", type=float, default=120.0, help="silence that counts as a lost connection (default 120 s)"
    )
    run.add_argument(
        "--check-timeout", type=float, default=30.0, help="for the last answer, and for those about the disk (30 s)"
    )
    run.add_argument(
        "--slots", type=int, default=SLOTS, help=f"records the smallest disk holds (default {SLOTS}: 64 MiB)"
    )
    run.add_argument("--status", type=pathlib.Path, help="a JSON file with the latest figures, in the end the report")
    request = commands.add_parser("ask", help="send one line to the line service and print its answer")
    request.add_argument("address")
    request.add_argument("words", nargs="+", metavar="WORD")
    request.add_argument("--port", type=int, default=LINE_PORT)
    request.add_argument("--timeout", type=float, default=60.0)
    get = commands.add_parser("fetch", help="download a URL and print the rate as JSON")
    get.add_argument("url")
    get.add_argument("--timeout", type=float, default=60.0)
    get.add_argument("--repeat", type=int, default=1)
    return top


async def _run(client: ContinuityClient) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, client.stop)
    return await client.run()


def main() -> int:
    options = _parser().parse_args()
    if options.command == "fetch":
        try:
            for _round in range(options.repeat):
                print(json.dumps(dataclasses.asdict(fetch(options.url, options.timeout))), flush=True)
        except OSError as error:
            print(f"client: {error}", file=sys.stderr)
            return 2
        return 0
    if options.command == "ask":
        try:
            print(ask(options.address, options.port, options.words, options.timeout), flush=True)
        except OSError as error:
            print(f"client: {error}", file=sys.stderr)
            return 2
        return 0
    if options.connections < 1 or options.interval_ms < 0 or options.seconds <= 0:
        print("client: connections >= 1, interval-ms >= 0 and seconds > 0, please", file=sys.stderr)
        return 1
    settings = Settings(
        options.address, options.port, options.connections, options.interval_ms, options.seconds, options.first,
        options.connect_timeout, options.wait, options.answer_timeout, options.check_timeout, slots=options.slots, status=options.status,
    )  # fmt: skip
    report = asyncio.run(_run(ContinuityClient(settings)))
    print(json.dumps(report, indent=2))
    return 0 if report["proved"] else 2


if __name__ == "__main__":
    sys.exit(main())
