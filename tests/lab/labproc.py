# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab builds on: processes that cannot be mistaken, control groups, `ip`, locks and files."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from labroot import LabError, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@functools.cache
def boot_id() -> str:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def parse_stat(stat: str) -> tuple[str, int, int]:
    """State, parent and start time of /proc/PID/stat; the command's name may hold anything."""
    fields = stat.rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[19])


def start_time(pid: int) -> int | None:
    """When the process started, None when it is gone. A zombie is gone: PID 1 may reap late."""
    try:
        state, _parent, started = parse_stat(
            pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        )
    except OSError:
        return None
    return None if state in ("Z", "X") else started


@dataclasses.dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: int
    boot: str = dataclasses.field(default_factory=boot_id)

    @classmethod
    def of(cls, pid: int) -> Process | None:
        started = start_time(pid)
        return None if started is None else cls(pid, started)

    @property
    def alive(self) -> bool:
        return self.boot == boot_id() and start_time(self.pid) == self.started

    def send(self, number: int) -> None:
        """Through a pidfd, checked after it was opened: never to a stranger."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if self.alive:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)

    def store(self, path: pathlib.Path) -> None:
        write_text(path, f"{self.pid} {self.started} {self.boot}\n")

    @classmethod
    def load(cls, path: pathlib.Path) -> Process | None:
        try:
            pid, started, boot = path.read_text(encoding="ascii").split()
            return cls(int(pid), int(started), boot)
        except (OSError, ValueError):
            return None


def serve(
    argv: Sequence[str],
    directory: pathlib.Path,
    log: pathlib.Path,
    record: pathlib.Path,
    ready: Callable[[], bool],
    what: str,
) -> None:
    """Start a program that outlives this one, recorded so that it can be found again, and wait until it is ready."""
    with open(log, "ab") as output:
        child = subprocess.Popen(
            list(argv), cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    started = Process.of(child.pid)
    if started is None:
        raise LabError(f"{what} did not start: see {log}")
    started.store(record)
    wait_until(lambda: child.poll() is not None or ready(), 20, f"{what} listens")
    if child.poll() is not None:
        raise LabError(f"{what} ended: see {log}")


def end(process: Process | None, what: str) -> None:
    """Ask a program to end, and insist."""
    if process is not None:
        process.send(signal.SIGTERM)
        with contextlib.suppress(LabError):
            wait_until(lambda: not process.alive, 3, f"{what} ended")
        process.send(signal.SIGKILL)


def wait_until(condition: Callable[[], bool], seconds: float, what: str, interval: float = 0.02) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"after {seconds:.0f} s still not so: {what}")
        time.sleep(interval)


def write_text(path: pathlib.Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one step, and only when it changes."""
    with contextlib.suppress(OSError):
        if path.read_text(encoding="utf-8") == text:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.chmod(mode)
    part.rename(path)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- control groups and namespaces -----------------------------------------------------------------------------------


@functools.cache
def cgroup2_mount() -> pathlib.Path:
    for line in pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _sep, right = line.partition(" - ")
        if right.split()[0] == "cgroup2" and left.split()[3] == "/":
            return pathlib.Path(left.split()[4])
    raise LabError("no cgroup2 hierarchy is mounted on this machine")


class Cgroup:
    def __init__(self, name: str) -> None:
        self.path = cgroup2_mount() / name

    def pids(self) -> list[int]:
        found: list[int] = []
        for folder, _folders, _files in os.walk(self.path):
            with contextlib.suppress(OSError):  # a folder may vanish under us
                found += [
                    int(word) for word in pathlib.Path(folder, "cgroup.procs").read_text(encoding="ascii").split()
                ]
        return found

    def remove(self) -> None:
        """Only an empty one. Never cgroup.kill: the next boot in the same group would lose its services."""
        for folder, _folders, _files in os.walk(self.path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def freeze(self, frozen: bool) -> None:
        payload = self.path / "payload"
        (payload / "cgroup.freeze").write_text("1" if frozen else "0", encoding="ascii")
        wait_until(
            lambda: f"frozen {int(frozen)}" in (payload / "cgroup.events").read_text(encoding="ascii"),
            10,
            "freeze/thaw",
        )

    @property
    def frozen(self) -> bool:
        with contextlib.suppress(OSError):
            return "frozen 1" in (self.path / "payload" / "cgroup.events").read_text(encoding="ascii")
        return False


def ip(*words: str, netns: str | None = None) -> None:
    run(["ip", *(["-n", netns] if netns else []), *words], timeout=30)


def has_link(netns: str, name: str) -> bool:
    done = subprocess.run(
        ["ip", "-n", netns, "link", "show", "dev", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode == 0
