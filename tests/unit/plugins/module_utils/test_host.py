# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking at a host: QEMU is asked over stdio, everything else is read; nothing is changed."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess
import time
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _features, _host, _image
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._preflight import Source

VERSION = {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": "Debian"}


class Script:
    """Stands in for run_command: an ordered script, in which every command must be called."""

    def __init__(self, *script: tuple[list[str], tuple[int, str, str]]) -> None:
        self.script = list(script)
        self.data: list[str | None] = []

    def __call__(self, args: list[str], *, data: str | None = None) -> tuple[int, str, str]:
        assert self.script, f"unexpected command {args}"
        expected, answer = self.script.pop(0)
        assert args == expected
        self.data.append(data)
        return answer

    def done(self) -> None:
        assert not self.script, f"commands that were not called: {self.script}"


def find(name: str) -> str:
    return f"/usr/bin/{name}"


def ask(location: str) -> str | None:
    """Stands in for the network: one server, that has one file."""
    return None if location == "https://example.org/x" else "HTTP Error 404: Not Found"


@pytest.fixture
def binary(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "qemu"
    path.write_text("")
    path.chmod(0o755)
    return str(path)


def asked(binary: str) -> list[str]:
    options = ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio"]
    return ["/bin/sh", "-c", _host._TO_FILE, "sh", "/usr/bin/timeout", "--signal=KILL", "15", binary, *options]


def test_probe(binary: str) -> None:
    replies = [
        {"QMP": {"version": VERSION, "capabilities": ["oob"]}},
        {"return": {}, "id": "hello"},
        {"return": VERSION, "id": "version"},
        {"return": [], "id": "schema"},
        {"error": {"class": "CommandNotFound", "desc": "no such command"}, "id": "cpus"},
        {
            "error": {"class": "GenericError", "desc": "Capability 'x-colo' requires capability 'return-path'"},
            "id": "return_path",
        },
        {"event": "SHUTDOWN", "data": {}},
        {"return": {}, "id": "quit"},
    ]
    out = "\r\n".join([*(json.dumps(reply) for reply in replies), "not json"])
    run = Script((asked(binary), (0, out, "")))
    found = _host.probe(_host.Tools(run, find, ask), binary)
    run.done()
    assert found is not None
    assert (found.version_text, found.return_path, found.cpus) == ("11.1.3", "requires", frozenset())
    sent = [json.loads(line) for line in (run.data[0] or "").splitlines()]
    assert sent[0] == {"execute": "qmp_capabilities", "id": "hello"}
    assert [question["id"] for question in sent[1:-1]] == list(_features.PROBE)
    assert sent[-1]["execute"] == "quit"


def test_an_answer_that_no_pipe_holds_arrives_whole(tmp_path: pathlib.Path) -> None:
    """QEMU writes what goes into the pipe, drops the rest and quits: as this program does, whose reader comes late."""
    hasty = tmp_path / "qemu"
    hasty.write_text(
        "#!/usr/bin/env python3\nimport os\nos.set_blocking(1, False)\n"
        "data = b'x' * 300_000 + b'end'\n"
        "while data:\n    data = data[os.write(1, data):]\n"
    )
    hasty.chmod(0o755)

    def late(args: list[str]) -> tuple[int, str, str]:
        with subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as child:
            time.sleep(0.3)
            out = child.stdout.read() if child.stdout is not None else ""
        return child.returncode, out, ""

    code, out, _err = late(["/bin/sh", "-c", _host._TO_FILE, "sh", str(hasty)])
    assert (code, len(out), out[-3:]) == (0, 300_003, "end")
    assert late([str(hasty)])[0] != 0
    code, _out, _err = late(["/bin/sh", "-c", _host._TO_FILE, "sh", "/bin/sh", "-c", "exit 3"])
    assert code == 3


def test_probe_without_qemu(tmp_path: pathlib.Path) -> None:
    assert _host.probe(_host.Tools(Script(), find, ask), str(tmp_path / "no")) is None


@pytest.mark.parametrize(
    "replies",
    [
        [],
        [{"return": VERSION, "id": "version"}],
        [{"return": VERSION, "id": "version"}, {"return": [], "id": "schema"}],  # it died before it was told to
    ],
)
def test_probe_of_a_qemu_that_does_not_answer(binary: str, replies: list[dict[str, t.Any]]) -> None:
    run = Script((asked(binary), (137, "\n".join(json.dumps(reply) for reply in replies), "Killed\n")))
    with pytest.raises(ColoError) as caught:
        _host.probe(_host.Tools(run, find, ask), binary)
    assert caught.value.error_code == "qemu_probe_failed"
    assert "137" in caught.value.message


# --- what is there ------------------------------------------------------------------------------------------------


@pytest.fixture
def proc(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small proc: QEMU of web1 is process 7 and listens on 192.0.2.1:9001, nginx is 8 and on [::]:9040."""
    top = tmp_path / "proc"
    for pid, command, inode in ((7, f"qemu\0-chardev\0socket,path={tmp_path}/run/web1/qmp.sock", 70), (8, "nginx", 80)):
        (top / str(pid) / "fd").mkdir(parents=True)
        (top / str(pid) / "cmdline").write_text(command)
        (top / str(pid) / "comm").write_text("qemu\n" if pid == 7 else "nginx\n")
        (top / str(pid) / "statm").write_text("1000 25 3 4")
        (top / str(pid) / "fd" / "3").symlink_to(f"socket:[{inode}]")
        (top / str(pid) / "fd" / "4").symlink_to("/dev/null")
    (top / "9").mkdir()
    (top / "sys").mkdir()
    (top / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4096 kB\n")
    (top / "net").mkdir()
    (top / "net" / "tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 010200C0:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 70 1\n"
        "   1: 010200C0:232A 020200C0:1234 01 00000000:00000000 00:00000000 00000000     0        0 71 1\n"
        "   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 72 1\n"
    )
    (top / "net" / "tcp6").write_text(
        "  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        f"   0: {'0' * 32}:2338 {'0' * 32}:0000 0A 00000000:00000000 00:00000000 00000000     0        0 80 1\n"
    )
    return top


def definition(directory: pathlib.Path, **changed: t.Any) -> dict[str, t.Any]:
    return {
        "name": "web1",
        "host": "alpha",
        "hosts": ["alpha", "beta"],
        "link": {"alpha": "192.0.2.1", "beta": "192.0.2.2"},
        "memory_mib": 256,
        "accelerator": "tcg",
        "user": "nobody-of-this-name",
        "port_base": 9000,
        "disks": [{"name": "root", "size_bytes": 1024, "source": None, "source_format": "raw", "checksum": None}],
        "nics": [{"name": "lan", "bridge": "br0", "tap": "web1-lan", "model": "e1000"}],
        "boot": None,
        "paths": {
            "config": f"{directory}/etc",
            "state": f"{directory}/state/web1",
            "run": f"{directory}/run/web1",
        },
        **changed,
    }


ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
    {
        "ifname": "br0",
        "linkinfo": {"info_kind": "bridge"},
        "addr_info": [{"local": "198.51.100.1", "scope": "global"}, {"local": "fe80::1", "scope": "link"}, {}],
    },
    {"ifname": "lan0", "master": "br0", "addr_info": []},
]
IP = ["/usr/bin/ip", "-json", "-details", "address", "show"]
NETWORKCTL = ["/usr/bin/networkctl", "--json=short", "list"]


def look(
    proc: pathlib.Path, *definitions: dict[str, t.Any], networkctl: tuple[int, str, str] = (1, "", "not running")
) -> t.Any:
    run = Script((IP, (0, json.dumps(ADDRESSES), "")), (NETWORKCTL, networkctl))
    state = _host.look(_host.Tools(run, find, ask, str(proc), "/nonexistent/kvm"), definitions)
    run.done()
    return state


def test_links(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    listed = {
        "Interfaces": [{"Name": "br0", "NetworkFile": "/etc/systemd/network/05-colo-br0.network"}, {"Name": "lo"}]
    }
    links = look(proc, definition(tmp_path), networkctl=(0, json.dumps(listed), "")).links
    assert links["br0"].kind == "bridge"
    assert links["br0"].addresses == ("198.51.100.1",)
    assert links["br0"].network_file == "/etc/systemd/network/05-colo-br0.network"
    assert (links["lan0"].master, links["lan0"].network_file) == ("br0", None)


def test_a_host_without_ip(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    tools = _host.Tools(Script(), lambda _name: None, ask, str(proc))
    with pytest.raises(ColoError) as caught:
        _host.look(tools, [definition(tmp_path)])
    assert caught.value.error_code == "host_unreadable"


def test_the_kind_of_a_processor(proc: pathlib.Path) -> None:
    tools = _host.Tools(Script(), lambda _name: None, ask, str(proc))
    assert _host.processor(tools) == ""
    one = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: EPYC\nflags\t\t: fpu vme\n\n"
    (proc / "cpuinfo").write_text(one + one.replace("model\t\t: 1", "model\t\t: 9"))
    assert _host.processor(tools) == "vendor_id AuthenticAMD, cpu family 25, model 1"


def test_a_user_as_the_host_has_it() -> None:
    root = _host.account("root")
    assert root is not None
    assert (root["group"], root["home"]) == ("root", "/root")
    assert _host.account("nobody-of-this-name") is None
    assert _host.has_group("root")
    assert not _host.has_group("no-group-of-this-name")


def test_processes_and_listeners(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    paths = {"config": f"{tmp_path}/etc", "state": f"{tmp_path}/state/web2", "run": f"{tmp_path}/run/web2"}
    state = look(proc, definition(tmp_path), definition(tmp_path, name="web2", port_base=9032, paths=paths))
    assert [(one.address, one.port, one.guest) for one in state.listeners] == [
        ("192.0.2.1", 9001, "web1"),
        ("::", 9016, None),
    ]
    assert state.listeners[1].process == "nginx (pid 8)"
    assert state.memory_available_bytes == 4096 * 1024
    assert state.guests["web1"].resident_bytes == 25 * os.sysconf("SC_PAGE_SIZE")
    assert state.guests["web2"].resident_bytes == 0


def test_a_qemu_of_ours_is_seen_wherever_it_listens(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    state = look(proc, definition(tmp_path, port_base=9500))
    assert [(one.port, one.guest, one.qemu) for one in state.listeners] == [(9001, "web1", True)]
    (proc / "7" / "cmdline").write_text(f"python3\0colo_keeper.py\0run\0{tmp_path}/etc/web1.json")
    state = look(proc, definition(tmp_path, port_base=9500))
    assert [(one.port, one.guest, one.qemu) for one in state.listeners] == [(9001, "web1", False)]


def test_a_descriptor_that_is_closed_meanwhile_hides_no_other(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    """A QEMU at a checkpoint closes one now and then; here one that cannot be read stands for it."""
    for process in ("7", "8"):
        for name in ("0", "9"):
            (proc / process / "fd" / name).write_text("no link")
    state = look(proc, definition(tmp_path), definition(tmp_path, name="web2", port_base=9032))
    assert [one.process for one in state.listeners if one.process == "another process"] == []


def test_a_listener_whose_process_cannot_be_seen(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    (proc / "8" / "fd" / "3").unlink()
    assert look(proc, definition(tmp_path)).listeners[1].process == "another process"


@pytest.mark.parametrize(
    ("record", "serving"),
    [
        (None, None),
        ("", None),
        ("broken", None),
        ("[]", None),
        ('{"serving": null}', None),
        ('{"serving": "alpha"}', True),
        ('{"serving": "beta"}', False),
    ],
)
def test_who_serves(tmp_path: pathlib.Path, proc: pathlib.Path, record: str | None, serving: bool | None) -> None:
    directory = tmp_path / "state" / "web1"
    directory.mkdir(parents=True)
    if record is not None:
        (directory / "record.json").write_text(record)
    assert look(proc, definition(tmp_path)).guests["web1"].serving is serving


def test_images_and_sources(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    (tmp_path / "good").write_bytes(bytes(512))
    (tmp_path / "big").write_bytes(bytes(2048))
    right, wrong = "sha256:" + hashlib.sha256(bytes(512)).hexdigest(), "sha256:" + 64 * "0"
    good, big, missing = (str(tmp_path / name) for name in ("good", "big", "missing"))
    sources = {
        Source(good, "raw", 1024, None): None,
        Source(good, "raw", 1024, right): None,
        Source(good, "raw", 1024, wrong): "image_checksum_differs",
        # one file for disks of several sizes, and read in several ways
        Source(good, "raw", 256, None): "image_source_larger",
        Source(good, "qcow2", 1024, None): "image_not_format",
        Source(big, "raw", 4096, None): None,
        Source(big, "raw", 1024, wrong): "image_source_larger",  # without the time that its checksum takes
        Source(missing, "raw", 1024, right): "image_missing",
        Source("https://example.org/x", "raw", 1024, right): None,
        Source("https://who:hush@example.org/y", "raw", 1024, right): "image_not_fetched",
    }
    disks = [
        {
            "name": f"d{number}",
            "size_bytes": each.size_bytes,
            "source": each.source,
            "source_format": each.format,
            "checksum": each.checksum,
        }
        for number, each in enumerate(sources)
    ]
    disks.append({"name": "blank", "size_bytes": 1024, "source": None, "source_format": "raw", "checksum": None})
    state = look(proc, definition(tmp_path, disks=disks))
    assert {source: file.problem and file.problem[0] for source, file in state.sources.items()} == sources
    told = " ".join(file.problem[1] for file in state.sources.values() if file.problem)
    assert "https://example.org/y does not give the image to this host (HTTP Error 404: Not Found)" in told
    assert "hush" not in told
    assert not any(file.exists for file in state.images.values())
    assert state.disk_free_bytes[f"{tmp_path}/state/web1"] > 0


def test_a_source_of_many_disks_is_read_once(
    tmp_path: pathlib.Path, proc: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(_image, "check_checksum", lambda path, _checksum: read.append(path))
    source = tmp_path / "good"
    source.write_bytes(bytes(512))
    disks = [
        {"name": f"d{size}", "size_bytes": size, "source": str(source), "source_format": "raw", "checksum": "sha256:1"}
        for size in (1024, 2048)
    ]
    assert len(look(proc, definition(tmp_path, disks=disks)).sources) == 2
    assert read == [str(source)]


def test_a_parent_that_is_no_image(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    parent = tmp_path / "state" / "web1" / "root.qcow2"
    parent.parent.mkdir(parents=True)
    parent.write_bytes(b"x" * 200)
    state = look(proc, definition(tmp_path))
    assert state.images[str(parent)].problem[0] == "image_not_format"
    assert state.sources == {}


def test_boot_files(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    private = tmp_path / "private"
    private.write_text("x")
    private.chmod(0o600)
    boot = {"kernel": str(private), "initrd": str(tmp_path / "missing"), "append": ""}
    files = look(proc, definition(tmp_path, boot=boot)).boot_files
    assert files[str(private)].problem[0] == "boot_file_unreadable"
    assert files[str(tmp_path / "missing")].problem[0] == "boot_file_missing"
    public = pathlib.Path("/etc/passwd")
    readable = {"kernel": str(public), "initrd": None, "append": ""}
    assert look(proc, definition(tmp_path, boot=readable)).boot_files[str(public)].problem is None
    boot_of_root = look(proc, definition(tmp_path, user="root", boot={"kernel": "/etc/passwd", "initrd": None}))
    assert boot_of_root.boot_files["/etc/passwd"].problem is None


def test_a_boot_file_that_may_not_even_be_looked_at(
    tmp_path: pathlib.Path, proc: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_file(_path: pathlib.Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "is_file", is_file)
    boot = {"kernel": "/srv/vmlinuz", "initrd": None, "append": ""}
    problem = look(proc, definition(tmp_path, boot=boot, disks=[])).boot_files["/srv/vmlinuz"].problem
    assert problem[0] == "boot_file_unreadable"
    assert "Permission denied" in problem[1]


def test_network_files_count_where_networkd_has_not_run(
    tmp_path: pathlib.Path, proc: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, etc, run = (tmp_path / name for name in ("netif", "etc-network", "run-network"))
    monkeypatch.setattr(_host, "NETWORKD_STATE", str(state))
    monkeypatch.setattr(_host, "NETWORK_DIRECTORIES", (str(etc), str(run), str(tmp_path / "missing")))
    etc.mkdir()
    run.mkdir()
    for path in (
        etc / "20-lan.network",
        etc / "30-br.netdev",
        etc / "40.link",
        run / "20-lan.network",
        run / "masked.network",
    ):
        path.write_text("[Match]\n")
    (etc / "masked.network").symlink_to("/dev/null")
    (etc / "empty.network").touch()
    (etc / "dangling.network").symlink_to(tmp_path / "nowhere")
    expected = (str(etc / "20-lan.network"), str(etc / "30-br.netdev"))
    assert look(proc, definition(tmp_path)).dormant_network_files == expected
    state.touch()
    assert look(proc, definition(tmp_path)).dormant_network_files == ()


def test_kvm_is_looked_at_only_for_guests_that_want_it(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    assert look(proc, definition(tmp_path)).kvm_problem is None
    problem = look(proc, definition(tmp_path, accelerator="kvm")).kvm_problem
    assert problem == "/nonexistent/kvm cannot be opened (No such file or directory)"


@pytest.mark.parametrize(("mode", "usable"), [(0o666, True), (0o600, False), (0o660, False)])
def test_who_may_use_kvm(tmp_path: pathlib.Path, mode: int, usable: bool) -> None:
    device = tmp_path / "kvm"
    device.write_text("")
    device.chmod(mode)
    assert (_host._kvm_problem(str(device)) is None) is usable


def test_memory_that_is_not_told(tmp_path: pathlib.Path, proc: pathlib.Path) -> None:
    (proc / "meminfo").write_text("MemTotal: 9 kB\n")
    with pytest.raises(ColoError):
        _host.look(
            _host.Tools(Script((IP, (0, "[]", "")), (NETWORKCTL, (1, "", ""))), find, ask, str(proc)),
            [definition(tmp_path)],
        )
