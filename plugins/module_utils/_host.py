# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at this host: ask its QEMU, and see what is there already. Nothing is changed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import grp
import ipaddress
import json
import os
import pathlib
import pwd
import re
import stat
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _features,
    _guest,
    _image,
    _nofollow,
    _preflight,
    _store,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import PORTS_PER_GUEST

PROBE_DEADLINE_S = 15
_LISTEN = "0A"
#: Where systemd-networkd keeps its state once it has run, and where it finds what an administrator has written.
NETWORKD_STATE = "/run/systemd/netif/state"
NETWORK_DIRECTORIES = ("/etc/systemd/network", "/run/systemd/network", "/usr/local/lib/systemd/network")

Definition = t.Mapping[str, t.Any]


class Run(t.Protocol):
    """``AnsibleModule.run_command`` as it is used here."""

    def __call__(self, args: list[str], *, data: str | None = None) -> tuple[int, str, str]:
        """Run a command; return code, stdout, stderr."""
        ...  # pylint: disable=unnecessary-ellipsis


@dataclasses.dataclass(frozen=True)
class Tools:
    """How to reach the host: run a command, find one (``None``: not there), ask a location (why it does not give its file), and
    where proc is mounted.
    """

    run: Run
    find: t.Callable[[str], str | None]
    ask: t.Callable[[str], str | None]
    proc: str = "/proc"
    kvm: str = "/dev/kvm"
    machine_id: str = "/etc/machine-id"

    def json(self, *args: str) -> t.Any:
        """Output of a command that prints JSON; ``None`` when it is not there or fails."""
        path = self.find(args[0])
        if path is None:
            return None
        code, out, _err = self.run([path, *args[1:]])
        try:
            return json.loads(out) if code == 0 else None
        except ValueError:
            return None


# --- QEMU ---------------------------------------------------------------------------------------------------------


#: QEMU quits without waiting for its reader: what a pipe does not hold by then (64 KiB; the schema has 250) is lost. A
#: file takes it at once.
_TO_FILE = 'file=$(mktemp) && exec 3>"$file" 4<"$file" && rm "$file" && "$@" >&3; code=$?; cat <&4; exit $code'


def probe(tools: Tools, binary: str) -> _features.Features | None:
    """Start ``binary`` without a machine, ask it, let it quit; ``None`` when it is not installed."""
    if not os.access(binary, os.X_OK):
        return None
    questions: list[dict[str, t.Any]] = [{"execute": "qmp_capabilities", "id": "hello"}]
    questions += [
        {"execute": command, "arguments": arguments, "id": key} for key, (command, arguments) in _features.PROBE.items()
    ]
    questions += [{"execute": "quit", "id": "quit"}]
    command = [binary, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio"]
    timeout = tools.find("timeout")
    deadline = [] if timeout is None else [timeout, "--signal=KILL", str(PROBE_DEADLINE_S)]
    argv = ["/bin/sh", "-c", _TO_FILE, "sh", *deadline, *command]
    code, out, err = tools.run(argv, data="\n".join(json.dumps(question) for question in questions))
    answers = _answers(out)
    if "version" not in answers or "schema" not in answers or "quit" not in answers:
        raise ColoError(
            "qemu_probe_failed",
            f"{binary} did not answer when it was asked what it can do (exit code {code}): "
            f"{err.strip()[-400:] or 'no message'}",
            binary=binary,
            rc=code,
        )
    return _features.features(answers)


def _answers(out: str) -> dict[str, t.Any]:
    answers: dict[str, t.Any] = {}
    for line in out.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if "id" in message:
            answers[message["id"]] = message["return"] if "return" in message else {"error": message["error"]["desc"]}
    # a question that was refused is no answer, except for those whose refusal tells something
    return {
        key: value
        for key, value in answers.items()
        if key in _features.REFUSED or not (isinstance(value, dict) and "error" in value)
    }


# --- what is there ------------------------------------------------------------------------------------------------


def look(tools: Tools, definitions: t.Sequence[Definition], sources: bool = True) -> _preflight.HostState:
    """Look at everything :func:`_preflight.problems` needs for these definitions; at what images are made from on request."""
    processes = _processes(tools.proc, definitions)
    images = {
        _preflight.parent_path(definition, disk): _image_state(_preflight.parent_path(definition, disk), disk)
        for definition in definitions
        for disk in definition["disks"]
    }
    return _preflight.HostState(
        links=_links(tools),
        dormant_network_files=_dormant_network_files(),
        listeners=_listeners(tools.proc, definitions, processes),
        memory_available_bytes=_memory_available(tools.proc),
        disk_free_bytes={
            definition["paths"]["state"]: _free_bytes(definition["paths"]["state"]) for definition in definitions
        },
        kvm_problem=_kvm_problem(tools.kvm)
        if any(definition["accelerator"] == "kvm" for definition in definitions)
        else None,
        images=images,
        sources=_sources(tools, definitions, images) if sources else {},
        boot_files=_boot_files(definitions),
        guests={
            definition["name"]: _preflight.GuestState(
                resident_bytes=sum(
                    _resident_bytes(tools.proc, pid) for pid, name in processes.items() if name == definition["name"]
                ),
                serving=_serving(definition),
                started=started(definition) if definition["name"] in processes.values() else None,
            )
            for definition in definitions
        },
    )


def _links(tools: Tools) -> dict[str, _preflight.Link]:
    rows = tools.json("ip", "-json", "-details", "address", "show")
    if rows is None:
        raise ColoError("host_unreadable", "the interfaces of this host cannot be listed: install iproute2")
    files = _network_files(tools)
    return {
        row["ifname"]: _preflight.Link(
            name=row["ifname"],
            kind=(row.get("linkinfo") or {}).get("info_kind"),
            master=row.get("master"),
            addresses=tuple(
                address["local"]
                for address in row.get("addr_info", [])
                if address.get("scope") != "link" and "local" in address
            ),
            network_file=files.get(row["ifname"]),
        )
        for row in rows
    }


def _network_files(tools: Tools) -> dict[str, str]:
    """Which systemd-networkd file configures which interface; empty where networkd does not run."""
    listed = tools.json("networkctl", "--json=short", "list") or {}
    return {row["Name"]: row["NetworkFile"] for row in listed.get("Interfaces", []) if row.get("NetworkFile")}


def _dormant_network_files() -> tuple[str, ...]:
    """What a start of systemd-networkd would put into force, where it has not run yet."""
    if os.path.lexists(NETWORKD_STATE):
        return ()
    found: dict[str, str] = {}
    for directory in NETWORK_DIRECTORIES:
        for kind in ("network", "netdev"):
            for path in pathlib.Path(directory).glob(f"*.{kind}"):
                # of two with one name the first one counts; an empty one, or a link to /dev/null, stands for none
                if path.name not in found:
                    found[path.name] = str(path) if path.exists() and path.stat().st_size else ""
    return tuple(path for _name, path in sorted(found.items()) if path)


def _processes(proc: str, definitions: t.Sequence[Definition]) -> dict[int, str]:
    """The processes of our guests (QEMU and keeper, known by the paths in their command lines), with the guest's "
    "name."""
    marks = {
        mark: definition["name"]
        for definition in definitions
        for mark in (f"{definition['paths']['run']}/", f"{definition['paths']['config']}/{definition['name']}.json")
    }
    found: dict[int, str] = {}
    for pid in _pids(proc):
        command = _read(f"{proc}/{pid}/cmdline")
        for mark, name in marks.items():
            if mark in command:
                found[pid] = name
    return found


def _is_qemu(proc: str, pid: int | None, definitions: t.Sequence[Definition]) -> bool:
    """Whether this process of ours is a QEMU: a keeper names the definition, a QEMU the directory of its sockets."""
    command = "" if pid is None else _read(f"{proc}/{pid}/cmdline")
    return any(f"{definition['paths']['run']}/" in command for definition in definitions)


def _pids(proc: str) -> list[int]:
    return [int(entry.name) for entry in pathlib.Path(proc).iterdir() if entry.name.isdigit()]


def _read(path: str) -> str:
    """A small file; empty when it is not there, as those of a process that has gone."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _listeners(
    proc: str, definitions: t.Sequence[Definition], processes: t.Mapping[int, str]
) -> tuple[_preflight.Listener, ...]:
    ports = {definition["port_base"] + offset for definition in definitions for offset in range(PORTS_PER_GUEST)}
    wanted: dict[str, tuple[str, int]] = {}
    for table in ("tcp", "tcp6"):
        for line in _read(f"{proc}/net/{table}").splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN:
                wanted[fields[9]] = _socket_address(fields[1])
    owners = _socket_owners(proc, wanted) if wanted else {}
    # of our guests' all, wherever they listen
    wanted = {
        inode: socket for inode, socket in wanted.items() if socket[1] in ports or owners.get(inode, -1) in processes
    }
    return tuple(
        _preflight.Listener(
            address=address,
            port=port,
            process=_process_name(proc, owners.get(inode)),
            guest=processes.get(owners.get(inode, -1)),
            qemu=_is_qemu(proc, owners.get(inode), definitions),
        )
        for inode, (address, port) in wanted.items()
    )


def _socket_address(text: str) -> tuple[str, int]:
    """Read ``0100007F:2328`` as the kernel writes it: words of 32 bits in the machine's (little-endian) order."""
    digits, port = text.split(":")
    raw = bytes.fromhex(digits)
    packed = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    return str(ipaddress.ip_address(packed)), int(port, 16)


def _socket_owners(proc: str, inodes: t.Collection[str]) -> dict[str, int]:
    owners: dict[str, int] = {}
    for pid in _pids(proc):
        for inode in _socket_inodes(pathlib.Path(proc, str(pid), "fd")):
            if inode in inodes:
                owners.setdefault(inode, pid)
    return owners


def _socket_inodes(directory: pathlib.Path) -> list[str]:
    targets: list[str] = []
    # the process may go, and one that works (a QEMU at a checkpoint) closes descriptors while they are read
    with contextlib.suppress(OSError):
        for descriptor in directory.iterdir():
            with contextlib.suppress(OSError):
                targets.append(str(descriptor.readlink()))
    return [target.removeprefix("socket:[").rstrip("]") for target in targets if target.startswith("socket:[")]


def _process_name(proc: str, pid: int | None) -> str:
    return "another process" if pid is None else f"{_read(f'{proc}/{pid}/comm').strip() or 'a process'} (pid {pid})"


def _memory_available(proc: str) -> int:
    for line in _read(f"{proc}/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ColoError("host_unreadable", f"{proc}/meminfo does not say how much memory is available")


def processor(tools: Tools) -> str:
    """The kind of this host's processor in words; two hosts of one kind say the same. Empty where none is told."""
    told: dict[str, str] = {}
    for line in _read(f"{tools.proc}/cpuinfo").splitlines():
        key, _colon, value = (part.strip() for part in line.partition(":"))
        told.setdefault(key, value)
    # Not its flags: some of them are the kernel's, and differ between two releases of it.
    words = [f"{key} {told[key]}" for key in ("vendor_id", "cpu family", "model") if key in told]
    return ", ".join(words)


def machine_id(tools: Tools) -> str:
    """What tells this machine from every other one. Empty where it has none yet; then it is not known."""
    return _read(tools.machine_id).strip()


def account(name: str) -> dict[str, t.Any] | None:
    """A user with its groups, home and shell; ``None`` where there is none."""
    try:
        entry = pwd.getpwnam(name)
        group = grp.getgrgid(entry.pw_gid).gr_name
    except KeyError:
        return None
    groups = sorted(each.gr_name for each in grp.getgrall() if name in each.gr_mem)
    return {"group": group, "groups": groups, "home": entry.pw_dir, "shell": entry.pw_shell}


def is_root(name: str) -> bool:
    """Whether the user is root under another name."""
    try:
        return pwd.getpwnam(name).pw_uid == 0
    except KeyError:
        return False


def has_group(name: str) -> bool:
    """Whether this host has the group."""
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _resident_bytes(proc: str, pid: int) -> int:
    fields = _read(f"{proc}/{pid}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def _free_bytes(path: str) -> int:
    """Free bytes where ``path`` is or will be."""
    place = next(place for place in (pathlib.Path(path), *pathlib.Path(path).parents) if place.exists())
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def _kvm_problem(path: str) -> str | None:
    try:
        status = pathlib.Path(path).stat()
        os.close(os.open(path, os.O_RDWR))
    except OSError as exc:
        return f"{path} cannot be opened ({exc.strerror})"
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    if status.st_mode & 0o006 == 0o006 or (group == "kvm" and status.st_mode & 0o060 == 0o060):
        return None
    return f"{path} belongs to group {group}, which the guests' user is not in"


def _image_state(path: str, disk: t.Mapping[str, t.Any]) -> _preflight.FileState:
    if not os.path.lexists(path):
        return _preflight.FileState(exists=False)
    try:
        _image.check_existing(path, disk["size_bytes"])
    except ColoError as exc:
        return _preflight.FileState(exists=True, problem=(exc.error_code, exc.message))
    return _preflight.FileState(exists=True, allocated_bytes=pathlib.Path(path).lstat().st_blocks * 512)


def _sources(
    tools: Tools, definitions: t.Sequence[Definition], images: t.Mapping[str, _preflight.FileState]
) -> dict[_preflight.Source, _preflight.FileState]:
    """The sources of images that are still to be made. What is fetched is looked into when it is there."""
    # a checksum is made, and a location asked, once, however many disks have them
    problem_of = functools.cache(_problem_of)
    found: dict[_preflight.Source, _preflight.FileState] = {}
    for definition in definitions:
        for disk in definition["disks"]:
            path = _preflight.parent_path(definition, disk)
            source = _preflight.source_of(disk)
            if source is None or source in found or images[path].exists:
                continue
            if source.is_remote:
                problem = problem_of(_check_location, tools, source.source)
            else:
                wish = _image.Wish(path, source.size_bytes, source.source, source.format)
                problem = problem_of(_image.check_source, wish)
                if problem is None and source.checksum is not None:
                    problem = problem_of(_image.check_checksum, source.source, source.checksum)
            found[source] = _preflight.FileState(exists=problem is None, problem=problem)
    return found


def _problem_of(check: t.Callable[..., object], *arguments: t.Any) -> tuple[str, str] | None:
    """Code and message of what a check raises."""
    try:
        check(*arguments)
    except ColoError as exc:
        return exc.error_code, exc.message
    return None


def _check_location(tools: Tools, location: str) -> None:
    why = tools.ask(location)
    if why is not None:
        shown = re.sub("//[^/@]*@", "//", location)  # without a password
        raise ColoError(
            "image_not_fetched",
            f"{shown} does not give the image to this host ({why}): correct it, or see why the server does not answer",
        )


def _boot_files(definitions: t.Sequence[Definition]) -> dict[str, _preflight.FileState]:
    found: dict[str, _preflight.FileState] = {}
    for definition in definitions:
        for key in ("kernel", "initrd"):
            path = (definition["boot"] or {}).get(key)
            if path is None:
                continue
            found[path] = _boot_file(path, definition["user"])
    return found


def _boot_file(path: str, user: str) -> _preflight.FileState:
    try:
        if not pathlib.Path(path).is_file():
            text = f"{path} is not a file on this host: put it there, or correct the path"
            return _preflight.FileState(exists=False, problem=("boot_file_missing", text))
        if _readable_by(path, user):
            return _preflight.FileState(exists=True)
        text = f"user {user} may not read {path}: correct its mode, or that of a directory above it"
    except OSError as exc:
        text = f"{path} cannot be looked at ({exc.strerror}): correct the mode of a directory above it, or see to its file system"
    return _preflight.FileState(exists=True, problem=("boot_file_unreadable", text))


def _readable_by(path: str, user: str) -> bool:
    """Whether ``user`` (who may not exist yet, then anybody) may read the file and pass the directories above it."""
    try:
        account = pwd.getpwnam(user)
        uid, gids = account.pw_uid, set(os.getgrouplist(user, account.pw_gid))
    except KeyError:
        uid, gids = -1, set()
    file = pathlib.Path(path).resolve()
    wanted = stat.S_IROTH
    for place in (file, *file.parents):
        status = place.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in gids else 0
        if not status.st_mode & (wanted << shift):
            return False
        wanted = stat.S_IXOTH
    return True


def started(definition: Definition) -> dict[str, t.Any] | None:
    """What the running QEMU was started with, as its start gate wrote it; ``None`` when there is no word on it."""
    return _json_of_guest(f"{definition['paths']['run']}/{_guest.STARTED}")


def _serving(definition: Definition) -> bool | None:
    """Whether this host's copy served last, by its record; ``None`` when there is no word on it."""
    record = _json_of_guest(f"{definition['paths']['state']}/record.json")
    serving = None if record is None else record.get("serving")
    return None if serving is None else bool(serving == definition["host"])


def _json_of_guest(path: str) -> dict[str, t.Any] | None:
    """A file in a directory that the guest's QEMU can write; ``None`` when it is not there or nothing of ours."""
    try:
        found = json.loads(_nofollow.read(path, _store.MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
