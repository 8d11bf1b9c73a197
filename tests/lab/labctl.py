# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two real hosts on one machine: systemd-nspawn containers with their own network, a switch, a client, and a power switch outside of them.

Everything a lab makes carries the lab's name (colo-XXXX, from its directory): network namespaces, control groups,
machines. `down` finds it by that name and by recorded process ids with their start times; so it also cleans up after a
crash. See tests/lab/README.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import labguest
import labroot
from labroot import LabError, run

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
HOSTS = {"alpha": 1, "beta": 2}
LINK = "192.0.2"
LAN = "198.51.100"
CLIENT_ADDRESS = f"{LAN}.100"
CABLES = {"link": ("r", "repl0"), "lan": ("l", "lan0")}
NETNS_RUN = pathlib.Path("/run/netns")
HOST_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
RTMIN = 34  # what glibc calls SIGRTMIN; systemd as PID 1 takes RTMIN+4 as "power off"


# --- processes -------------------------------------------------------------------------------------------------------


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
        left, _, right = line.partition(" - ")
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


# --- one host --------------------------------------------------------------------------------------------------------


class Host:
    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.number = HOSTS[name]
        self.machine = f"{lab.name}-{name}"
        self.directory = lab.directory / "hosts" / name
        self.cgroup = Cgroup(self.machine)

    # what it is

    @property
    def leader(self) -> Process | None:
        """PID 1 of the host, while it lives."""
        process = Process.load(self.directory / "leader")
        return process if process is not None and process.alive else None

    @property
    def is_on(self) -> bool:
        return self.leader is not None

    @property
    def is_empty(self) -> bool:
        """Nothing of it runs any more; the leader's death alone does not say so."""
        return not any(start_time(pid) is not None for pid in self.cgroup.pids())

    def cable(self, kind: str) -> str:
        return f"{CABLES[kind][0]}-{self.name}"

    def _cut(self) -> set[str]:
        with contextlib.suppress(OSError):
            return set((self.directory / "cut-cables").read_text(encoding="ascii").split())
        return set()

    def describe(self) -> str:
        leader = self.leader
        if leader is None:
            return "off" if self.is_empty else "off, but processes are left over: power it off"
        cut = self._cut()
        words = ["frozen" if self.cgroup.frozen else "on", f"leader {leader.pid}"]
        return ", ".join(words + [f"{kind} cable out" for kind in CABLES if kind in cut])

    # running things in it

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs the words inside, with a clean environment."""
        leader = self.leader
        if leader is None:
            raise LabError(f"{self.name} is off")
        environment = [f"{key}={value}" for key, value in HOST_ENVIRONMENT.items()]
        return [
            "nsenter",
            "-t",
            str(leader.pid),
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            "-C",
            "-r",
            "-w",
            "--",
            "env",
            "-i",
            *environment,
            *words,
        ]

    # power

    def power_on(self, timeout: float = 90.0) -> None:
        with locked(self.directory / "lock"):
            if self.is_on:
                self._wait_running(timeout)
                return
            if not self.is_empty:
                self._kill()
            self._clear()
            self.lab.start_relay()
            self._prepare()
            try:
                self._boot(timeout)
            except BaseException:
                self._kill()
                raise
            self.lab.describe_to_others()

    def _prepare(self) -> None:
        for folder in ("upper", "work", "merged"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        config = self.directory / "config"
        for path, (text, mode) in host_files(
            self.name, self.number, self.lab.layers.mirror.apt_options, self.lab.public_key()
        ).items():
            write_text(config / path, text, mode)
        machine_id = config / "etc/machine-id"
        if not machine_id.exists():
            write_text(machine_id, os.urandom(16).hex() + "\n", 0o444)
        for path, target in HOST_LINKS.items():
            link = config / path
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(target)
        (config / "root").chmod(0o700)
        (config / "root/.ssh").chmod(0o700)

    def _boot(self, timeout: float) -> None:
        lower = ":".join(
            str(path) for path in (self.directory / "config", self.lab.layers.archives, self.lab.layers.root)
        )
        self.cgroup.path.mkdir(exist_ok=True)
        argv = ["unshare", "-m", "-n", "--propagation", "private", str(HERE / "host-start.sh"), self.name, self.machine]
        argv += [str(self.directory), lower, str(self.lab.relay_directory), str(self.lab.guest.directory)]
        environment = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
        with open(self.directory / "console.log", "wb") as console:
            child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=console, stderr=console, start_new_session=True, env=environment
            )
        assert child.stdin is not None
        nspawn = Process.of(child.pid)
        if nspawn is None:
            raise LabError(f"{self.name} did not start: {self._console()}")
        nspawn.store(self.directory / "nspawn")

        def entered() -> bool:
            if child.poll() is not None:
                raise LabError(f"{self.name} did not start: {self._console()}")
            return child.pid in self.cgroup.pids()

        wait_until(entered, 20, f"{self.name} has its own mounts and network")
        self._plug_in(child.pid)
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(b"go\n")
            child.stdin.close()

        def has_leader() -> bool:
            if child.poll() is not None:
                raise LabError(f"{self.name} did not boot: {self._console()}")
            leader = find_leader(child.pid, self.cgroup.pids())
            if leader is not None:
                leader.store(self.directory / "leader")
            return leader is not None

        wait_until(has_leader, 30, f"{self.name} has a PID 1")
        leader = self.leader
        if leader is None:
            raise LabError(f"{self.name} went away while booting: {self._console()}")
        # A name for `ip netns exec` that does not keep the namespace alive: it has to die with the host.
        netns = NETNS_RUN / self.machine
        netns.unlink(missing_ok=True)
        netns.symlink_to(f"/proc/{leader.pid}/ns/net")
        self._point_root(pathlib.Path(f"/proc/{leader.pid}/root"))
        self._wait_running(timeout)

    def _console(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.directory / "console.log").read_text(encoding="utf-8", errors="replace").splitlines()
            return " | ".join(line for line in lines[-6:] if line.strip())
        return "no console output"

    def _point_root(self, target: pathlib.Path) -> None:
        root = self.directory / "root"
        part = self.directory / ".root"
        part.unlink(missing_ok=True)
        part.symlink_to(target)
        part.rename(root)

    def _plug_in(self, pid: int) -> None:
        switch = self.lab.switch
        cut = self._cut()
        for index, (kind, (_letter, inside)) in enumerate(CABLES.items()):
            outside = self.cable(kind)
            self._unplug(kind)
            address = f"02:c0:10:0{index}:00:{self.number:02x}"
            ip(
                "link",
                "add",
                outside,
                "type",
                "veth",
                "peer",
                "name",
                inside,
                "address",
                address,
                "netns",
                str(pid),
                netns=switch,
            )
            ip("link", "set", outside, "master", kind, *([] if kind in cut else ["up"]), netns=switch)
        run(["nsenter", "-t", str(pid), "-n", "ip", "link", "set", "lan0", "addrgenmode", "none", "up"], timeout=30)

    def _unplug(self, kind: str) -> None:
        """Delete a cable, also a stale one: a network namespace is cleaned up some time after its last process."""
        switch, outside = self.lab.switch, self.cable(kind)

        def gone() -> bool:
            if not has_link(switch, outside):
                return True
            with contextlib.suppress(LabError):  # lost the race against the kernel's own clean-up
                ip("link", "delete", outside, netns=switch)
            return not has_link(switch, outside)

        if (NETNS_RUN / switch).exists():
            wait_until(gone, 10, f"cable {outside} is gone")

    def _wait_running(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        state = "unknown"
        while time.monotonic() < end:
            try:
                done = subprocess.run(
                    self.command(["systemctl", "is-system-running", "--wait"]),
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=max(1.0, end - time.monotonic()), check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                break
            state = done.stdout.strip() or done.stderr.strip()
            if state == "running":
                return
            if state == "degraded":
                failed = subprocess.run(
                    self.command(["systemctl", "--failed", "--plain", "--no-legend"]),
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False,
                )  # fmt: skip
                self.lab.log(
                    f"{self.name} runs, with failed units: {' '.join(line.split()[0] for line in failed.stdout.splitlines())}"
                )
                return
            time.sleep(0.05)  # its bus is not there yet
        raise LabError(f"{self.name} is {state!r} after {timeout:.0f} s: {self._console()}")

    def power_off(self) -> None:
        """The plug: nothing it was about to send leaves it, then everything in it is gone."""
        with locked(self.directory / "lock"):
            self._kill()
            self.lab.describe_to_others()

    def _kill(self) -> None:
        for kind in CABLES:
            with contextlib.suppress(LabError):
                ip("link", "set", self.cable(kind), "down", netns=self.lab.switch)
        leader, nspawn = Process.load(self.directory / "leader"), Process.load(self.directory / "nspawn")
        if leader is not None:
            leader.send(signal.SIGKILL)
        if nspawn is not None:
            if leader is None:
                nspawn.send(signal.SIGKILL)
            with contextlib.suppress(LabError):
                wait_until(lambda: not nspawn.alive, 5, "nspawn ended by itself")
            nspawn.send(signal.SIGKILL)
        self._wait_empty(20)
        self._clear()

    def _wait_empty(self, seconds: float) -> None:
        """Whatever is in the host's own control group is the host's: also after a crash that left no record."""
        end = time.monotonic() + seconds
        while not self.is_empty:
            for pid in self.cgroup.pids():
                process = Process.of(pid)
                if process is not None:
                    process.send(signal.SIGKILL)
            if time.monotonic() > end:
                raise LabError(f"processes of {self.name} do not die: {self.cgroup.pids()}")
            time.sleep(0.02)

    def _clear(self) -> None:
        for kind in CABLES:
            self._unplug(kind)
        self.cgroup.remove()
        for name in ("leader", "nspawn"):
            (self.directory / name).unlink(missing_ok=True)
        netns = NETNS_RUN / self.machine
        if netns.is_symlink():
            netns.unlink()
        with contextlib.suppress(OSError):
            os.rmdir(f"/run/systemd/nspawn/unix-export/{self.machine}")
        if self.directory.is_dir():
            self._point_root(self.directory / "upper")

    def shut_down(self, timeout: float = 60.0) -> None:
        """The clean way: systemd stops everything, then the machine is off."""
        with locked(self.directory / "lock"):
            leader = self.leader
            if leader is not None:
                if self.cgroup.frozen:
                    raise LabError(f"{self.name} is frozen: thaw it or pull the plug")
                leader.send(RTMIN + 4)
                wait_until(lambda: not leader.alive, timeout, f"{self.name} shut down")
            self._kill()
            self.lab.describe_to_others()

    def reset(self) -> None:
        """An empty host of the same name, as after a new installation: a new machine id, nothing of the old disk."""
        with locked(self.directory / "lock"):
            self._kill()
            for folder in ("upper", "work", "config"):
                shutil.rmtree(self.directory / folder, ignore_errors=True)

    # faults

    def plug(self, kind: str, state: str) -> None:
        with locked(self.directory / "lock"):
            cut = self._cut() - {kind} | ({kind} if state == "down" else set())
            write_text(self.directory / "cut-cables", " ".join(sorted(cut)))
            if self.is_on:
                ip("link", "set", self.cable(kind), state, netns=self.lab.switch)

    def freeze(self, frozen: bool) -> None:
        with locked(self.directory / "lock"):
            if not self.is_on:
                raise LabError(f"{self.name} is off")
            self.cgroup.freeze(frozen)


def find_leader(nspawn: int, pids: Sequence[int]) -> Process | None:
    """The child of nspawn that is PID 1 of its own namespace and has become systemd."""
    for pid in pids:
        try:
            status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
            _state, parent, started = parse_stat(
                pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            )
        except OSError:
            continue
        found = re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE)
        if found and parent == nspawn and status.startswith("Name:\tsystemd\n"):
            return Process(pid, started)
    return None


HOST_LINKS = {
    "etc/systemd/system/sockets.target.wants/lab-apt.socket": "/etc/systemd/system/lab-apt.socket",
}


def host_files(name: str, number: int, apt_options: Sequence[str], public_key: str) -> dict[str, tuple[str, int]]:
    """What makes one host different from the common root, and where it finds the lab."""
    names = "".join(f"{LINK}.{other_number} {other}\n" for other, other_number in HOSTS.items())
    proxy = 'Acquire::http::Proxy "http://127.0.0.1:3142";\nAcquire::https::Proxy "http://127.0.0.1:3142";\n'
    texts = {
        "etc/hostname": f"{name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n{names}",
        "etc/systemd/network/20-repl0.network": (
            f"[Match]\nName=repl0\n\n[Network]\nAddress={LINK}.{number}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n"
        ),
        "etc/tmpfiles.d/lab-devices.conf": "d /dev/net 0755 root root\nc! /dev/net/tun 0666 root root - 10:200\nc! /dev/kvm 0660 root kvm - 10:232\n",
        "etc/apt/apt.conf.d/99lab": proxy + "".join(f"{option}\n" for option in apt_options),
        "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStopSec=15s\n",
        "etc/systemd/system/lab-apt.socket": "[Unit]\nDescription=The way to the package mirror\n\n[Socket]\nListenStream=127.0.0.1:3142\n",
        "etc/systemd/system/lab-apt.service": (
            "[Unit]\nDescription=The way to the package mirror\nRequires=lab-apt.socket\nAfter=lab-apt.socket\n\n"
            "[Service]\nExecStart=/usr/lib/systemd/systemd-socket-proxyd --exit-idle-time=60 /opt/lab/apt.sock\n"
        ),
    }
    files = {path: (text, 0o644) for path, text in texts.items()}
    files["root/.ssh/authorized_keys"] = (public_key, 0o600)
    return files


# --- the lab ---------------------------------------------------------------------------------------------------------


class Lab:
    def __init__(self, directory: pathlib.Path, cache: pathlib.Path, verbose: bool = True) -> None:
        self.directory = directory.resolve()
        self.cache = cache.resolve()
        self.verbose = verbose
        self.begun = time.monotonic()
        self.name = f"colo-{hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:4]}"
        self.switch = f"{self.name}-sw"
        self.client = f"{self.name}-client"
        self.relay_directory = self.directory / "relay"
        self.hosts = {name: Host(self, name) for name in HOSTS}

    @functools.cached_property
    def layers(self) -> labroot.Layers:
        return labroot.Layers(self.cache, labroot.find_mirror(), self.log)

    @functools.cached_property
    def guest(self) -> labguest.GuestImage:
        return labguest.GuestImage(self.cache, self.layers.kernel, self.log)

    def log(self, text: str) -> None:
        if self.verbose:
            print(f"[lab {time.monotonic() - self.begun:6.1f} s] {text}", file=sys.stderr, flush=True)

    def host(self, name: str) -> Host:
        if name not in self.hosts:
            raise LabError(f"no such host: {name} (there are {', '.join(self.hosts)})")
        return self.hosts[name]

    def settings(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            loaded = json.loads((self.directory / "settings.json").read_text(encoding="utf-8"))
            if isinstance(loaded, dict):
                return loaded
        return {}

    # up and down

    def up(self, guests: int) -> None:
        run([str(HERE / "prerequisites.sh")])
        with locked(self.directory / "lock"):
            settings = {"guests": guests, "cache": str(self.cache)}
            write_text(self.directory / "settings.json", json.dumps(settings) + "\n")
            with locked(self.cache / "lock"):
                self.layers.build()
                self.guest.build()
            self._make_key()
            self._make_networks()
            self.start_relay()
            self.log(
                "booting " + " and ".join(name for name, host in self.hosts.items() if not host.is_on)
                if not self.all_on
                else "hosts are on"
            )
            with concurrent.futures.ThreadPoolExecutor(len(self.hosts)) as pool:
                for _ in pool.map(lambda host: host.power_on(), self.hosts.values()):
                    pass
            self._write_inventory(guests)
            self.describe_to_others()
        self.log(f"up: inventory {self.directory / 'inventory.yml'}")

    @property
    def all_on(self) -> bool:
        return all(host.is_on for host in self.hosts.values())

    def down(self) -> None:
        """Also after a crash, also twice: what is not there is not missed."""
        with locked(self.directory.with_name(self.directory.name + ".lock")):
            for host in self.hosts.values():
                host.directory.mkdir(parents=True, exist_ok=True)
                with locked(host.directory / "lock"):
                    host._kill()
            self.stop_relay()
            for netns in (self.client, self.switch):
                if (NETNS_RUN / netns).exists():
                    self._empty_netns(netns)
                    ip("netns", "delete", netns)
            shutil.rmtree(self.directory)
        self.directory.with_name(self.directory.name + ".lock").unlink(missing_ok=True)
        self.log("down")

    def _empty_netns(self, netns: str) -> None:
        def processes() -> list[Process]:
            found = (Process.of(int(word)) for word in run(["ip", "netns", "pids", netns], timeout=30).split())
            return [process for process in found if process is not None]

        for number, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
            for process in processes():
                process.send(number)
            with contextlib.suppress(LabError):
                wait_until(lambda: not processes(), seconds, f"{netns} is empty")
                return

    # the parts

    def _make_key(self) -> None:
        key = self.directory / "id"
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key)], timeout=60)

    def public_key(self) -> str:
        return (self.directory / "id.pub").read_text(encoding="utf-8")

    def _make_networks(self) -> None:
        for netns in (self.switch, self.client):
            if not (NETNS_RUN / netns).exists():
                ip("netns", "add", netns)
            ip("link", "set", "lo", "up", netns=netns)
            run(
                ["ip", "netns", "exec", netns, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"],
                timeout=30,
            )
        for bridge in CABLES:
            if not has_link(self.switch, bridge):
                ip(
                    "link",
                    "add",
                    "dev",
                    bridge,
                    "type",
                    "bridge",
                    "forward_delay",
                    "0",
                    "mcast_snooping",
                    "0",
                    netns=self.switch,
                )
            ip("link", "set", "dev", bridge, "up", netns=self.switch)
        if not has_link(self.client, "lan0"):
            ip(
                "link",
                "add",
                "l-client",
                "type",
                "veth",
                "peer",
                "name",
                "lan0",
                "netns",
                self.client,
                netns=self.switch,
            )
        ip("link", "set", "l-client", "master", "lan", "up", netns=self.switch)
        ip("addr", "replace", f"{CLIENT_ADDRESS}/24", "dev", "lan0", netns=self.client)
        ip("link", "set", "lan0", "up", netns=self.client)

    def start_relay(self) -> None:
        self.relay_directory.mkdir(parents=True, exist_ok=True)
        record, socket_path = self.relay_directory / "process", self.relay_directory / "apt.sock"
        with locked(self.directory / "relay.lock"):
            process = Process.load(record)
            if process is not None and process.alive and socket_path.exists():
                return
            socket_path.unlink(missing_ok=True)
            mirror = self.layers.mirror
            # A unix socket's path is short; the relay is started where its socket lives.
            argv = [
                sys.executable,
                str(HERE / "relay.py"),
                "apt.sock",
                *mirror.sites,
                *(["--via", mirror.proxy] if mirror.proxy else []),
            ]
            with open(self.directory / "relay.log", "ab") as output:
                child = subprocess.Popen(
                    argv,
                    cwd=self.relay_directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            started = Process.of(child.pid)
            if started is None:
                raise LabError(f"the apt relay did not start: see {self.directory / 'relay.log'}")
            started.store(record)
            wait_until(lambda: socket_path.exists() or child.poll() is not None, 20, "the apt relay listens")
            if child.poll() is not None:
                raise LabError(f"the apt relay ended: see {self.directory / 'relay.log'}")

    def stop_relay(self) -> None:
        process = Process.load(self.relay_directory / "process")
        if process is not None:
            process.send(signal.SIGTERM)
            with contextlib.suppress(LabError):
                wait_until(lambda: not process.alive, 3, "the relay ended")
            process.send(signal.SIGKILL)

    # what others read

    def ctl(self, *words: str) -> str:
        """A command line of labctl that works from anywhere."""
        argv = [
            sys.executable,
            str(HERE / "labctl.py"),
            "--dir",
            str(self.directory),
            "--cache",
            str(self.cache),
            *words,
        ]
        return shlex.join(argv)

    def ssh_arguments(self) -> str:
        proxy = f"{HERE / 'proxy.sh'} {shlex.quote(str(self.directory))} %h"
        options = [
            f"ProxyCommand={proxy}", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes",
            "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3",
        ]  # fmt: skip
        return " ".join(f"-o {shlex.quote(option)}" for option in options)

    def guest_specs(self, count: int) -> dict[str, dict[str, Any]]:
        return {f"web{index}": guest_spec(index) for index in range(1, count + 1)}

    def _write_inventory(self, count: int) -> None:
        inventory = {
            "colo_hosts": {
                "hosts": {
                    name: {
                        "ansible_host": name,
                        "colo_link_address": f"{LINK}.{number}",
                        "colo_bridges": {"br0": {"ports": ["lan0"], "address": f"{LAN}.{number}/24"}},
                    }
                    for name, number in HOSTS.items()
                },
                "vars": {
                    "ansible_user": "root",
                    "ansible_python_interpreter": "/usr/bin/python3",
                    "ansible_ssh_private_key_file": str(self.directory / "id"),
                    "ansible_ssh_common_args": self.ssh_arguments(),
                    "ansible_ssh_pipelining": True,
                    "colo_accelerator": accelerator(),
                    "colo_guests": self.guest_specs(count),
                },
            }
        }
        # JSON is YAML; this way no library is needed to write it.
        write_text(self.directory / "inventory.yml", json.dumps(inventory, indent=2) + "\n")

    def describe_to_others(self) -> None:
        """lab.json, for tools that attach from outside."""
        count = int(self.settings().get("guests", 1))
        with locked(self.directory / "lab.json.lock"):
            hosts = {}
            for name, host in self.hosts.items():
                leader = host.leader
                hosts[name] = {
                    "netns": host.machine,
                    "leader_pid": leader.pid if leader else None,
                    "root": str(host.directory / "root"),
                    "power_off": self.ctl("power-off", name),
                    "power_on": self.ctl("power-on", name),
                }
            facts = {
                "inventory": str(self.directory / "inventory.yml"),
                "client_netns": self.client,
                "guests": {
                    name: {"address": f"{LAN}.{9 + index}", "line_port": 7000, "http_port": 80}
                    for index, name in enumerate(self.guest_specs(count), start=1)
                },
                "hosts": hosts,
            }
            write_text(self.directory / "lab.json", json.dumps(facts, indent=2) + "\n")


def accelerator() -> str:
    """kvm where the processor offers it and the device can be opened, else tcg."""
    if not re.search(
        r"^flags\s*:.*\b(vmx|svm)\b", pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
    ):
        return "tcg"
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return "tcg"
    return "kvm"


def guest_spec(index: int) -> dict[str, Any]:
    """One entry of colo_guests."""
    return {
        "hosts": ["alpha", "beta"],
        "memory_mib": 256,
        "vcpus": 1,
        "disks": [{"name": "data", "size": "64M"}],
        "nics": [{"name": "lan", "bridge": "br0", "mac": f"52:54:00:c0:10:{index:02x}"}],
        "boot": {
            "kernel": "/srv/lab/vmlinuz",
            "initrd": "/srv/lab/initrd.img",
            "append": f"{labguest.KERNEL_OPTIONS} lab.ip={LAN}.{9 + index}/24",
        },
    }


# --- command line ----------------------------------------------------------------------------------------------------


def into(argv: Sequence[str]) -> NoReturn:
    sys.stdout.flush()
    os.execvp(argv[0], list(argv))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="labctl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument(
        "--dir",
        type=pathlib.Path,
        default=REPOSITORY / "build" / "lab",
        help="the lab's directory (default: build/lab)",
    )
    top.add_argument(
        "--cache", type=pathlib.Path, help="bootstrapped layers (default: lab-cache beside --dir); `down` leaves it"
    )
    top.add_argument("-q", "--quiet", action="store_true", help="no progress lines")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, host: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if host:
            command.add_argument("host", choices=list(HOSTS))
        return command

    up = add(
        "up",
        "boot both hosts; nothing happens to what is there already. Writes inventory.yml and lab.json into the lab's directory",
    )
    up.add_argument(
        "--guests",
        type=int,
        choices=range(1, 9),
        default=1,
        metavar="1-8",
        help="define web1..webN (198.51.100.10 and up)",
    )
    add("down", "remove everything the lab made, also after a crash (the cache stays)")
    add("status", "one line per host")
    add("clean", "down, and remove the cache as well")
    add("power-on", "boot a host; returns when its systemd says running", host=True)
    add("power-off", "pull the plug: cables first, then SIGKILL; returns when nothing of the host is left", host=True)
    add("shutdown", "stop a host the clean way", host=True)
    add("reset", "give back an empty host (powered on): its whole disk is thrown away", host=True)
    add("freeze", "the host hangs: every process stops, the kernel still answers ping", host=True)
    add("thaw", "end of freeze", host=True)
    for kind, text in (("link", "the replication link (repl0)"), ("lan", "the client LAN (lan0)")):
        plug = add(kind, f"pull or plug in the cable of {text}; stays so over power-off/on", host=True)
        plug.add_argument("state", choices=["up", "down"])
    execute = add("exec", "run a command in a host, as root, with a clean environment and without ssh", host=True)
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    ssh = add("ssh", "log in, or run a command, the way Ansible does", host=True)
    ssh.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    netns = add("netns", "run any command of this machine in the client's network")
    netns.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    client = add("client", "run the continuity client in the client's network: see `labctl client --help`")
    client.add_argument("words", nargs=argparse.REMAINDER)
    add("guest", "build (or rebuild) the test guest only")
    return top


def without_dashes(words: list[str], default: list[str]) -> list[str]:
    return (words[1:] if words[:1] == ["--"] else words) or default


def act(lab: Lab, options: argparse.Namespace) -> None:
    command: str = options.command
    if command == "up":
        lab.up(options.guests)
    elif command in ("down", "clean"):
        lab.down()
        if command == "clean":
            shutil.rmtree(lab.cache, ignore_errors=True)
    elif command == "status":
        for name, host in lab.hosts.items():
            print(f"{name}: {host.describe()}")
        relay = Process.load(lab.relay_directory / "process")
        print(f"apt relay: {'on' if relay and relay.alive else 'off'}")
        print(f"client: {lab.client if (NETNS_RUN / lab.client).exists() else 'absent'}")
    elif command == "guest":
        with locked(lab.cache / "lock"):
            lab.layers.build()
            lab.guest.build()
    elif command == "netns":
        into(["ip", "netns", "exec", lab.client, *without_dashes(options.words, ["bash"])])
    elif command == "client":
        into(
            [
                "ip",
                "netns",
                "exec",
                lab.client,
                sys.executable,
                str(HERE / "client.py"),
                *without_dashes(options.words, ["--help"]),
            ]
        )
    else:
        act_on_host(lab, lab.host(options.host), options)


def act_on_host(lab: Lab, host: Host, options: argparse.Namespace) -> None:
    command: str = options.command
    if command not in ("power-off", "exec", "ssh") and not (lab.directory / "settings.json").exists():
        raise LabError("there is no lab: run `labctl up`")
    if command == "power-on":
        host.power_on()
    elif command == "power-off":
        host.power_off()
    elif command == "shutdown":
        host.shut_down()
    elif command == "reset":
        host.reset()
        host.power_on()
    elif command in ("freeze", "thaw"):
        host.freeze(command == "freeze")
    elif command in CABLES:
        host.plug(command, options.state)
    elif command == "exec":
        into(host.command(without_dashes(options.words, ["bash", "-l"])))
    elif command == "ssh":
        into(
            [
                "ssh",
                *shlex.split(lab.ssh_arguments()),
                "-i",
                str(lab.directory / "id"),
                f"root@{host.name}",
                *without_dashes(options.words, []),
            ]
        )
    else:
        raise AssertionError(command)


def main() -> int:
    options = parser().parse_args()
    if os.geteuid() != 0:
        print("labctl: root is needed (namespaces, mounts)", file=sys.stderr)
        return 1
    os.umask(0o022)
    cache = options.cache or options.dir.resolve().with_name("lab-cache")
    lab = Lab(options.dir, cache, verbose=not options.quiet)
    try:
        act(lab, options)
    except LabError as error:
        print(f"labctl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
