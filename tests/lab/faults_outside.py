# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's guest in the fault campaign, seen and harmed from outside: no ssh, no Ansible, no line of the collection.

`Hand` holds the operator's monitor of one host's QEMU for as long as there is one. It samples whether that QEMU serves, and
strikes at the very event that marks a phase.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import pathlib
import queue
import select
import signal
import socket
import threading
import time
import typing as t

from faults_cases import Phase
from labplay import Json, Stage, StageError
from labproc import Cgroup, Process, wait_until

SAMPLE_S = 0.25
RUN_DIR = "/run/lockstep-colo"


def marks(phase: Phase) -> c.Callable[[str, Json], bool]:
    """Which event, on the serving side's QEMU, is the beginning of a phase."""
    if phase == "checkpoint":
        return lambda name, _data: name == "STOP"
    if phase == "resync":
        return lambda name, data: (
            name == "JOB_STATUS_CHANGE" and data["id"] == "resync0" and data["status"] == "running"
        )
    status = {"precopy": "active", "pre-switchover": "pre-switchover"}[phase]
    return lambda name, data: name == "MIGRATION" and data["status"] == status


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one QEMU said of itself."""

    at: float
    runstate: str
    mode: str

    @property
    def serves(self) -> bool:
        """Whether it runs the guest for clients; a secondary, and what waits for a guest, does not."""
        return self.runstate == "running" and self.mode in ("none", "primary")


class Hand(threading.Thread):
    """One host."""

    def __init__(self, stage: Stage, host: str) -> None:
        super().__init__(daemon=True)
        self.stage = stage
        self.host = host
        self.machine: str = stage.lab["hosts"][host]["netns"]
        self.samples: list[Sample] = []
        self.connected = threading.Event()
        self._channel: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[Json]] = {}
        self._write = threading.Lock()
        self._strike: tuple[c.Callable[[str, Json], bool], c.Callable[[], None]] | None = None
        self.struck = threading.Event()
        self.missed: StageError | None = None  # why it was not done
        self._over = threading.Event()

    # --- processes

    def _find(self, *words: str) -> Process | None:
        """The process of this host whose command line has all the words."""
        for pid in Cgroup(self.machine).pids():
            with contextlib.suppress(OSError):
                line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                if all(word in line for word in words):
                    return Process.of(pid)
        return None

    def qemu(self) -> Process | None:
        return self._find("qemu-system", f"guest={self.stage.guest},")

    def keeper(self) -> Process | None:
        return self._find("colo_keeper.py\0run\0", f"/{self.stage.guest}.json")

    def signal(self, number: int, process: Process | None) -> None:
        if process is None:
            raise StageError(f"{self.host} has no such process")
        process.send(number)

    def kill_qemu(self) -> None:
        """Kill the guest's QEMU and see its end."""
        process = self.qemu()
        if process is not None:
            process.send(signal.SIGKILL)
            wait_until(lambda: not process.alive, 10, f"QEMU on {self.host} is dead")

    # --- the monitor

    def stop(self) -> None:
        self._over.set()
        self.join(5)

    def run(self) -> None:
        while not self._over.is_set():
            try:
                channel = self._connect()
            except OSError:
                self._over.wait(0.1)
                continue
            try:
                with channel:
                    self._follow(channel)
            except (OSError, ValueError, StageError):
                continue  # QEMU went away, or its host, in the middle of a word or of a fault
            finally:
                self._channel = None
                self.connected.clear()

    def socket_path(self, name: str) -> str:
        leader = self.stage.now()["hosts"][self.host]["leader_pid"]
        return f"/proc/{leader}/root{RUN_DIR}/{self.stage.guest}/{name}"

    def _connect(self) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.settimeout(2)
            channel.connect(self.socket_path("operator/qmp.sock"))
        except BaseException:
            channel.close()
            raise
        return channel

    def _follow(self, channel: socket.socket) -> None:
        """Read all that comes, and ask how it is, until the connection ends."""
        channel.sendall(b'{"execute": "qmp_capabilities"}\n')
        self._channel = channel
        process = self.qemu()
        received = b""
        due = time.monotonic()
        asked: dict[int, str] = {}
        said: dict[str, Json] = {}
        while not self._over.is_set() and (process is None or process.alive):
            if time.monotonic() >= due and len(asked) < 10:
                for command in ("query-status", "query-colo-status"):
                    asked[self._send(command)] = command
                due = time.monotonic() + SAMPLE_S
            if not select.select([channel], [], [], SAMPLE_S / 5)[0]:
                continue
            part = channel.recv(65536)
            if not part:
                return
            *lines, received = (received + part).split(b"\n")
            for line in lines:
                self._hear(json.loads(line), asked, said)

    def _hear(self, message: Json, asked: dict[int, str], said: dict[str, Json]) -> None:
        if "event" in message:
            self._event(str(message["event"]), message.get("data") or {})
        number = message.get("id")
        if number in self._answers:
            self._answers.pop(number).put(message)
        elif number in asked and "return" in message:
            said[asked.pop(number)] = message["return"]
            if len(said) == 2:
                self.samples.append(
                    Sample(time.time(), said["query-status"]["status"], said["query-colo-status"]["mode"])
                )
                self.connected.set()
                said.clear()

    def _event(self, name: str, data: Json) -> None:
        if self._strike is not None and self._strike[0](name, data):
            strike, self._strike = self._strike[1], None
            try:
                strike()
            except StageError as exc:
                self.missed = exc
            self.struck.set()

    def strike_at(self, phase: Phase, strike: c.Callable[[], None]) -> None:
        """Have something done at the next event that marks the phase; `struck` tells when it is done, or `missed`."""
        self.struck.clear()
        self.missed = None
        self._strike = (marks(phase), strike)

    def _send(self, command: str, arguments: Json | None = None) -> int:
        number = next(self._numbers)
        message = {"execute": command, "id": number, **({"arguments": arguments} if arguments else {})}
        with self._write:
            if self._channel is None:
                raise StageError(f"{self.host} has no QEMU to ask")
            self._channel.sendall(json.dumps(message).encode() + b"\n")
        return number

    def ask(self, command: str, **arguments: t.Any) -> t.Any:
        """One command on the operator's monitor (not from within a strike)."""
        if not self.connected.wait(10):
            raise StageError(f"{self.host} has no QEMU to ask")
        mailbox: queue.Queue[Json] = queue.Queue()
        with self._write:
            number = next(self._numbers)
            self._answers[number] = mailbox
            if self._channel is None:
                raise StageError(f"{self.host} has no QEMU to ask")
            message = {"execute": command, "id": number, "arguments": arguments}
            self._channel.sendall(json.dumps(message).encode() + b"\n")
        try:
            answer = mailbox.get(timeout=20)
        except queue.Empty:
            raise StageError(f"{self.host}: no answer to {command}") from None
        if "error" in answer:
            raise StageError(f"{self.host}: {command}: {answer['error']['desc']}")
        return answer["return"]

    @property
    def mode(self) -> str:
        """What this side is in COLO by its last sample, "" if that is old."""
        last = self.samples[-1] if self.samples else None
        return last.mode if last is not None and time.time() - last.at < 4 * SAMPLE_S else ""

    def await_stale(self) -> None:
        """Until this host's keeper has written down that its copy does not follow any more."""
        leader = self.stage.now()["hosts"][self.host]["leader_pid"]
        record = pathlib.Path(f"/proc/{leader}/root/var/lib/lockstep-colo/{self.stage.guest}/record.json")
        wait_until(lambda: bool(json.loads(record.read_text(encoding="utf-8"))["stale"]), 15, "the copy is stale")

    # --- the cables, the power

    def freeze(self, frozen: bool) -> None:
        Cgroup(self.machine).freeze(frozen)

    def power_off(self) -> None:
        """At this very moment: what runs is frozen before the slower plug is pulled."""
        self.freeze(True)
        self.stage.power(self.host, "off")

    def plug(self, kind: str, state: str) -> None:
        self.stage.labctl(kind, self.host, state)

    # --- disks

    def break_disk(self, node: str, error: int, once: bool = False) -> None:
        """From now on every write to a node's file fails with this error, as its disk would have it; or the next one."""
        self._debugged(node, **{"inject-error": [{"event": "none", "errno": error, "once": once, "iotype": "write"}]})

    def hang_disk(self, node: str) -> None:
        """The next write to a node's file never ends: what waits for the disk waits for ever, as for one that hangs."""
        name = self._debugged(node)
        self.ask("human-monitor-command", **{"command-line": f'qemu-io {name} "break write_aio hang"'})

    def _debugged(self, node: str, **rules: t.Any) -> str:
        """Put a node of blkdebug below another one, and return its name."""
        nodes = {each["node-name"]: each for each in self.ask("query-named-block-nodes", flat=True)}
        children = {child["child"]: child["node-name"] for child in nodes[node]["children"]}
        name = f"fault{next(self._numbers)}"
        fault = {"driver": "blkdebug", "node-name": name, "image": children["file"], **rules}
        self.ask("blockdev-add", **fault)
        broken = {"driver": "qcow2", "node-name": node, "file": name, "backing": children.get("backing")}
        self.ask("blockdev-reopen", options=[broken])
        return name


Heal = c.Callable[[], None]


def nothing() -> None:
    """A fault that ends by itself, or that is over when it is made."""


Made = tuple[c.Callable[[], None], Heal]  # what makes a fault, and what ends it


def _stopped(hand: Hand) -> Made:
    stopped: list[Process | None] = []  # while a guest is being protected, its standby is not there before

    def stop() -> None:
        stopped.append(hand.qemu())
        hand.signal(signal.SIGSTOP, stopped[-1])

    def go_on() -> None:
        for process in stopped:
            hand.signal(signal.SIGCONT, process)

    return stop, go_on


def _unplugged(hand: Hand, kind: str) -> Made:
    return lambda: hand.plug(kind, "down"), lambda: hand.plug(kind, "up")


def _taken(hand: Hand) -> Made:
    channel = socket.socket(socket.AF_UNIX)
    return lambda: channel.connect(hand.socket_path("qmp.sock")), channel.close


def _killed(hand: Hand) -> Made:
    return lambda: hand.signal(signal.SIGKILL, hand.qemu()), nothing


def _dark(hand: Hand) -> Made:
    return hand.power_off, lambda: _power_on(hand)


#: each fault by its name in `faults_cases.py`
FAULTS: dict[str, c.Callable[[Hand], Made]] = {
    "nothing": lambda _hand: (nothing, nothing),
    "wrong host named": lambda _hand: (nothing, nothing),
    "site.yml twice at once": lambda _hand: (nothing, nothing),
    "controller killed in site.yml": lambda _hand: (nothing, nothing),
    "QEMU killed": _killed,
    "failover.yml twice at once": _killed,
    "controller killed in failover.yml": _killed,
    "QEMU and keeper killed together": lambda hand: (functools.partial(_kill_both, hand), nothing),
    "QEMU stopped (SIGSTOP)": _stopped,
    "host loses its power": _dark,
    "host loses its power, wrong host named": _dark,
    "host freezes": lambda hand: (lambda: hand.freeze(True), lambda: _power_on(hand)),
    "link cut for 3 s": lambda hand: (functools.partial(_cut_for, hand, 3.0), nothing),
    "link cut": lambda hand: _unplugged(hand, "link"),
    "client LAN cut": lambda hand: _unplugged(hand, "lan"),
    "keeper killed": lambda hand: (lambda: hand.signal(signal.SIGKILL, hand.keeper()), nothing),
    "monitor taken by another client": _taken,
    "overlay full (ENOSPC, once)": lambda hand: (lambda: hand.break_disk("active0", errno.ENOSPC, once=True), nothing),
    "overlay fails (EIO)": lambda hand: (lambda: hand.break_disk("active0", errno.EIO), nothing),
    "parent disk fails (EIO)": lambda hand: (lambda: hand.break_disk("parent0", errno.EIO), nothing),
    "disk hangs": lambda hand: (
        lambda: hand.hang_disk("active0" if hand.ask("query-colo-status")["mode"] == "secondary" else "parent0"),
        nothing,
    ),
    "disk replication lost (NBD)": lambda hand: (lambda: t.cast("None", hand.ask("nbd-server-stop")), nothing),
}


def _kill_both(hand: Hand) -> None:
    """As the kernel does that runs out of memory: the largest, and whoever is there as well."""
    qemu, keeper = hand.qemu(), hand.keeper()
    hand.signal(signal.SIGKILL, qemu)
    hand.signal(signal.SIGKILL, keeper)


def _cut_for(hand: Hand, seconds: float) -> None:
    hand.plug("link", "down")
    time.sleep(seconds)  # how long the fault lasts
    hand.plug("link", "up")


def _power_on(hand: Hand) -> None:
    """Its copy is not served by itself, nor by whoever starts the unit by hand."""
    if Cgroup(hand.machine).frozen:
        hand.power_off()
    hand.stage.power(hand.host, "on")
    unit = f"colo-guest@{hand.stage.guest}"
    with contextlib.suppress(StageError):
        hand.stage.labctl("exec", hand.host, "--", "systemctl", "start", unit)
        raise AssertionError(f"{unit} was started by hand on {hand.host}, which has come back")
    if hand.qemu() is not None:
        raise AssertionError(f"{hand.host} runs its old copy")
