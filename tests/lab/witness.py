# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second opinion on a host, for tests: what the system says, asked without a line of the collection.

Runs on the host with nothing but its Python. Prints one JSON object: files with their hashes, units, listening sockets,
network interfaces, QEMU processes, packages, and for each named guest what its QEMU answers on the operator's monitor and its
footprint: everything that a round of failover and protection could leave behind, counted.

  witness.py [--run-dir DIR] [--tree DIR]... [GUEST]...
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pathlib
import re
import socket
import stat
import subprocess
import time
import typing as t

Json = dict[str, t.Any]

UNITS = ("colo-guest@{}.service", "colo-keeper@{}.service")
PROPERTIES = ("ActiveState", "InvocationID", "MainPID", "NRestarts", "UnitFileState", "User")
COMPARE = ("compare_timeout", "expired_scan_cycle", "max_queue_size", "vnet_hdr_support")
TCP_STATES = {"01": "established", "02": "syn-sent", "08": "close-wait", "0A": "listen"}
# ssh, and the way to the package mirror
LAB_LISTENS = (("sshd", "22"), ("systemd", "3142"))
# What is written all the time is known by its inode only: images, locks, sockets.
MOVING = (".qcow2", ".lock", "/lock", ".sock")


def said(*argv: str) -> str:
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=30).stdout


def describe(path: str) -> str:
    """Kind, mode, owner, and content or inode of one file."""
    status = os.lstat(path)
    words = [oct(status.st_mode), f"{status.st_uid}:{status.st_gid}"]
    if stat.S_ISLNK(status.st_mode):
        words.append(os.readlink(path))
    elif stat.S_ISREG(status.st_mode) and not path.endswith(MOVING):
        words.append(hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest())
    else:
        words.append(str(status.st_ino))
    return " ".join(words)


def files(trees: t.Iterable[str]) -> list[str]:
    """One line per file, so that two looks can be compared as sets."""
    found = []
    for tree in trees:
        for folder, folders, names in os.walk(tree):
            for name in (*folders, *names):
                path = os.path.join(folder, name)
                try:
                    found.append(f"{path} {describe(path)}")
                except FileNotFoundError:
                    continue  # written beside its place and renamed just now
    return sorted(found)


def unit(name: str) -> dict[str, str]:
    lines = said("systemctl", "show", "--property=" + ",".join(PROPERTIES), name).splitlines()
    return dict(line.split("=", 1) for line in lines)


def listeners() -> list[Json]:
    """TCP and UDP sockets that listen, whoever has them, but for those that a host of the lab always has."""
    found = []
    for line in said("ss", "-Htulnp").splitlines():
        words = line.split()
        address, port = words[4].rsplit(":", 1)
        process = words[6] if len(words) > 6 else ""
        if not any(f'"{name}"' in process and port == own for name, own in LAB_LISTENS):
            found.append({"protocol": words[0], "address": address, "port": int(port), "process": process})
    return found


def links() -> dict[str, Json]:
    shown = json.loads(said("ip", "-j", "-d", "link", "show"))
    keys = ("ifindex", "master", "operstate")
    return {
        link["ifname"]: {
            **{key: link.get(key) for key in keys},
            "kind": link.get("linkinfo", {}).get("info_kind"),
        }
        for link in shown
    }


def qemus() -> list[Json]:
    """Every QEMU that runs here, ours or not."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text().startswith("qemu-system"):
                found.append({"pid": int(entry.name), "uid": entry.stat().st_uid})
        except OSError:
            continue
    return sorted(found, key=lambda process: int(process["pid"]))


class Monitor:
    """The operator's monitor of a QEMU."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.file = self.socket.makefile("rwb", buffering=0)
        self.file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: t.Any) -> t.Any:
        self.file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            line = self.file.readline()
            if not line:
                raise EOFError(f"QEMU ended during {command}")
            answer = json.loads(line)
            if "error" in answer:
                raise ValueError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


def kinds(monitor: Monitor, path: str) -> dict[str, str]:
    """Name to type of everything below a place in QEMU's object tree."""
    items = monitor.ask("qom-list", path=path)
    return {item["name"]: item["type"][6:-1] for item in items if item["type"].startswith("child<")}


def runstate(monitor: Monitor) -> str:
    """The run state; a checkpoint (`colo`) is waited for, a guest that stays in one is told as such."""
    end = time.monotonic() + 5
    while (status := str(monitor.ask("query-status")["status"])) == "colo" and time.monotonic() < end:
        time.sleep(0.01)
    return status


def qemu(path: str) -> Json:
    """What the QEMU behind a monitor has and does."""
    monitor = Monitor(path)
    objects = kinds(monitor, "/objects")
    return {
        "status": runstate(monitor),
        "migration": monitor.ask("query-migrate").get("status"),
        "colo": monitor.ask("query-colo-status")["mode"],
        "checkpoint_delay_ms": monitor.ask("query-migrate-parameters")["x-checkpoint-delay"],
        "devices": kinds(monitor, "/machine/peripheral"),
        "objects": objects,
        "filters": sorted(kind for kind in objects.values() if kind.startswith("filter-") or kind == "colo-compare"),
        "compare": {
            name: {key: monitor.ask("qom-get", path=f"/objects/{name}", property=key) for key in COMPARE}
            for name, kind in objects.items()
            if kind == "colo-compare"
        },
        "chardevs": sorted(device["label"] for device in monitor.ask("query-chardev")),
        "nodes": sorted(node["node-name"] for node in monitor.ask("query-named-block-nodes")),
        "exports": sorted(export["id"] for export in monitor.ask("query-block-exports")),
        "jobs": sorted(job["id"] for job in monitor.ask("query-jobs")),
        "vcpus": len(monitor.ask("query-cpus-fast")),
        "memory_mib": monitor.ask("query-memory-size-summary")["base-memory"] >> 20,
        "machine": monitor.ask("qom-get", path="/machine", property="type"),
    }


def guest(name: str, run_dir: str) -> Json | None:
    path = f"{run_dir}/{name}/operator/qmp.sock"
    try:
        return qemu(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None  # no QEMU


# --- what could be left behind ----------------------------------------------------------------------------------------


def sockets() -> dict[str, str]:
    """Inode to kind of every socket in this network namespace, and TCP's state with it."""
    found = {}
    for line in pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]:
        found[line.split()[6]] = "unix"
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            found[words[9]] = f"tcp {TCP_STATES.get(words[3], words[3])}"
    return found


def descriptors(pid: int) -> list[str]:
    """One word for each descriptor of a process: a path, or the kind of what has none."""
    known, found = sockets(), []
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue  # closed while we look
        kind, bracket, inode = target.partition(":[")
        if kind == "socket" and bracket:
            found.append(f"socket {known.get(inode[:-1], 'other')}")
        else:
            found.append(kind if bracket and kind == "pipe" else target)
    return found


def mappings(pid: int) -> list[str]:
    """One word for each file that is mapped into a process, and one for each mapping without a file."""
    found = []
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        found.append(words[5] if len(words) > 5 else "anonymous")
    return found


def processes(name: str) -> Json:
    """A guest's processes on this host, each with its memory and with everything it holds, as words."""
    found = {}
    for what, template in zip(("qemu", "keeper"), UNITS):
        pid = int(unit(template.format(name))["MainPID"])
        if pid:
            words = [f"{what} descriptor: {word}" for word in descriptors(pid)]
            words += [f"{what} map: {word}" for word in mappings(pid)]
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            resident = int(status.split("VmRSS:")[1].split()[0])
            found[what] = {"pid": pid, "resident_kib": resident, "words": words}
    return found


def footprint(seen: Json | None, held: Json, trees: t.Iterable[str]) -> dict[str, int]:
    """What there is of a guest, and of the collection's files, as words with their numbers: two looks can be subtracted."""
    words: list[str] = []
    for part in ("nodes", "chardevs", "objects", "exports", "jobs", "devices"):
        # QEMU numbers the nodes that nobody named
        words += [f"{part}: {re.sub('^#block[0-9]+$', '#block', item)}" for item in (seen or {}).get(part, [])]
    for process in held.values():
        words += process.pop("words")
    words += [f"file: {line.split()[0]}" for line in files(trees)]
    return dict(sorted(collections.Counter(words).items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", default="/run/lockstep-colo")
    parser.add_argument("--state-dir", default="/var/lib/lockstep-colo")
    parser.add_argument("--config-dir", default="/etc/lockstep-colo")
    parser.add_argument("--tree", action="append", default=[], help="tell every file below it with its content")
    parser.add_argument("guest", nargs="*")
    options = parser.parse_args()
    held = {each: processes(each) for each in options.guest}  # before we hold a monitor ourselves
    guests = {each: guest(each, options.run_dir) for each in options.guest}
    seen = {
        "files": files(options.tree),
        "packages": hashlib.sha256(said("dpkg-query", "--show").encode()).hexdigest(),
        "units": {name.format(each): unit(name.format(each)) for each in options.guest for name in UNITS},
        "listeners": listeners(),
        "links": links(),
        "qemus": qemus(),
        "guests": guests,
        "footprints": {
            each: footprint(guests[each], held[each], (options.run_dir, options.state_dir, options.config_dir))
            for each in held
        },
        "processes": held,
    }
    print(json.dumps(seen, sort_keys=True))


if __name__ == "__main__":
    main()
