# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two real hosts on one machine: containers with their own network, a switch, a client, and a power switch outside.

Everything a lab makes carries the lab's name (colo-XXXX, from its directory): network namespaces, control groups,
machines. `down` finds it by that name and by recorded process ids with their start times; so it also cleans up after a
crash. See tests/lab/README.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import labbmc
import labguest
import labroot
from labhost import CABLES, HOSTS, LAN, LINK, NETNS_RUN, Host
from labproc import Process, end, has_link, ip, locked, serve, wait_until, write_text
from labroot import LabError, run

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CLIENT_ADDRESS = f"{LAN}.100"


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
        self.connections = f"~/.ansible/cp-{self.name}"  # what Ansible keeps open
        self.lock = self.cache / f"{self.name}.lock"  # outlives the lab's directory
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

    def up(self, guests: int | None) -> None:
        run([str(HERE / "prerequisites.sh")])
        with locked(self.lock):
            count = guests or int(self.settings().get("guests", 1))
            settings = {"guests": count, "cache": str(self.cache)}
            write_text(self.directory / "settings.json", json.dumps(settings) + "\n")
            with locked(self.cache / "lock"):
                self.layers.build()
                self.guest.build()
            self._make_key()
            self._make_networks()
            self.start_relay()
            for host in self.hosts.values():
                host.bmc.set_mode("good")
            self.log(
                "booting " + " and ".join(name for name, host in self.hosts.items() if not host.is_on)
                if not self.all_on
                else "hosts are on"
            )
            with concurrent.futures.ThreadPoolExecutor(len(self.hosts)) as pool:
                for _done in pool.map(lambda host: host.power_on(), self.hosts.values()):
                    pass
            self._write_inventory(count)
            self.describe_to_others()
        self.log(f"up: inventory {self.directory / 'inventory.yml'}")

    @property
    def all_on(self) -> bool:
        return all(host.is_on for host in self.hosts.values())

    def down(self) -> None:
        """Also after a crash, also twice: what is not there is not missed."""
        with locked(self.lock):
            for host in self.hosts.values():
                host.directory.mkdir(parents=True, exist_ok=True)
                with locked(host.directory / "lock"):
                    host._kill()
            self.stop_relay()
            for host in self.hosts.values():
                host.bmc.stop()
            for netns in (self.client, self.switch):
                if (NETNS_RUN / netns).exists():
                    self._empty_netns(netns)
                    ip("netns", "delete", netns)
            shutil.rmtree(self.directory)
            shutil.rmtree(pathlib.Path(self.connections).expanduser(), ignore_errors=True)
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
        for host in self.hosts.values():
            ip("addr", "replace", f"{labbmc.address(host.number)}/{labbmc.PREFIX}", "dev", "mgmt", netns=self.switch)
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
            serve(argv, self.relay_directory, self.directory / "relay.log", record, socket_path.exists, "the apt relay")

    def stop_relay(self) -> None:
        end(Process.load(self.relay_directory / "process"), "the apt relay")

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
                    # two labs have hosts of the same names: their connections must not be shared
                    "ansible_control_path_dir": self.connections,
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
                    "bmc": {"address": labbmc.address(host.number), "user": labbmc.USER, "password": labbmc.PASSWORD},
                    "power_off": self.ctl("power-off", name),
                    "power_on": self.ctl("power-on", name),
                }
            facts = {
                "inventory": str(self.directory / "inventory.yml"),
                "client_netns": self.client,
                "switch_netns": self.switch,
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
    """One entry of colo_guests; they begin on the hosts in turn."""
    return {
        "hosts": ["alpha", "beta"] if index % 2 else ["beta", "alpha"],
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
        "boot both hosts, leave alone what is there already, write inventory.yml and lab.json",
    )
    up.add_argument(
        "--guests",
        type=int,
        choices=range(1, 10),
        metavar="1-9",
        help="define web1..webN, 198.51.100.10 and up (default: as before, at first 1)",
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
    cables = {
        "link": "the replication link (repl0)",
        "lan": "the client LAN (lan0)",
        "mgmt": "the management network (mgmt0)",
    }
    for kind, text in cables.items():
        plug = add(kind, f"pull or plug in the cable of {text}; stays so over power-off/on", host=True)
        plug.add_argument("state", choices=["up", "down"])
    bmc = add("bmc", "what its management controller is like from now on", host=True)
    bmc.add_argument(
        "mode", choices=list(labbmc.MODES), help="; ".join(f"{mode}: {text}" for mode, text in labbmc.MODES.items())
    )
    chassis = add("chassis", "what a simulated management controller asks of the power switch", host=True)
    chassis.add_argument("words", nargs=argparse.REMAINDER)
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
            print(f"{name}: {host.describe()}; BMC {host.bmc.describe()}")
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
    elif command in ("bmc", "chassis", "freeze", "thaw") or command in CABLES:
        disturb(host, options)
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


def disturb(host: Host, options: argparse.Namespace) -> None:
    """What is done to a host from outside, beside its power."""
    if options.command == "bmc":
        host.bmc.set_mode(options.mode)
    elif options.command == "chassis":
        host.bmc.chassis(options.words)
    elif options.command in CABLES:
        host.plug(options.command, options.state)
    else:
        host.freeze(options.command == "freeze")


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
