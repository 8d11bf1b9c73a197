# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host of the lab: a systemd-nspawn container that is powered, cabled and frozen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import labbmc
from labproc import Cgroup, Process, has_link, ip, locked, parse_stat, start_time, wait_until, write_text
from labroot import LabError, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from labctl import Lab

HERE = pathlib.Path(__file__).resolve().parent
HOSTS = {"alpha": 1, "beta": 2}
LINK = "192.0.2"
LINK_PREFIX = 25  # the other half is the management network's
LAN = "198.51.100"
CABLES = {"link": ("r", "repl0"), "lan": ("l", "lan0"), "mgmt": ("m", "mgmt0")}
NETNS_RUN = pathlib.Path("/run/netns")
HOST_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
RTMIN = 34  # what glibc calls SIGRTMIN; systemd as PID 1 takes RTMIN+4 as "power off"


class Host:
    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.number = HOSTS[name]
        self.machine = f"{lab.name}-{name}"
        self.directory = lab.directory / "hosts" / name
        self.cgroup = Cgroup(self.machine)
        self.bmc = labbmc.Bmc(self)

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
                if state == "up":
                    wait_until(lambda: self._forwards(kind), 10, f"the switch forwards on {self.cable(kind)}")

    def _forwards(self, kind: str) -> bool:
        links = json.loads(run(["ip", "-n", self.lab.switch, "-d", "-j", "link", "show", "dev", self.cable(kind)]))
        return bool(links[0]["linkinfo"]["info_slave_data"]["state"] == "forwarding")

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
            f"[Match]\nName=repl0\n\n[Network]\nAddress={LINK}.{number}/{LINK_PREFIX}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n"
        ),
        "etc/systemd/network/21-mgmt0.network": (
            f"[Match]\nName=mgmt0\n\n[Network]\nAddress={labbmc.host_address(number)}/{labbmc.PREFIX}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
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
