# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second opinion on a host, for tests: what the system says, asked without a line of the collection.

Runs on the host with nothing but its Python. Prints one JSON object: files with their hashes, units, listening sockets,
network interfaces, QEMU processes, packages, and for each named guest what its QEMU answers on the operator's monitor.

  witness.py [--run-dir DIR] [--tree DIR]... [GUEST]...
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import socket
import stat
import subprocess
import time
import typing as t

Json = dict[str, t.Any]

UNITS = ("colo-guest@{}.service", "colo-keeper@{}.service")
PROPERTIES = ("ActiveState", "InvocationID", "MainPID", "NRestarts", "UnitFileState", "User")
COMPARE = ("compare_timeout", "expired_scan_cycle", "max_queue_size", "vnet_hdr_support")
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
    """TCP sockets that listen, of QEMU and of Python programs (the keeper is one)."""
    found = []
    for line in said("ss", "-Hltnp").splitlines():
        words = line.split()
        process = words[5] if len(words) > 5 else ""
        if "qemu" in process or "python" in process:
            address, port = words[3].rsplit(":", 1)
            found.append({"address": address, "port": int(port), "process": process})
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
    path = f"{run_dir}/{name}/operator.sock"
    try:
        return qemu(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None  # no QEMU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", default="/run/lockstep-colo")
    parser.add_argument("--tree", action="append", default=[])
    parser.add_argument("guest", nargs="*")
    options = parser.parse_args()
    seen = {
        "files": files(options.tree),
        "packages": hashlib.sha256(said("dpkg-query", "--show").encode()).hexdigest(),
        "units": {name.format(each): unit(name.format(each)) for each in options.guest for name in UNITS},
        "listeners": listeners(),
        "links": links(),
        "qemus": qemus(),
        "guests": {each: guest(each, options.run_dir) for each in options.guest},
    }
    print(json.dumps(seen, sort_keys=True))


if __name__ == "__main__":
    main()
