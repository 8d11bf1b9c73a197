# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules colo_image, colo_files, colo_absent and colo_host_info from their options to their results."""

from __future__ import annotations

import grp
import http.server
import json
import os
import pathlib
import pwd
import socket
import threading
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.lockstep.colo.plugins.module_utils import _host
from ansible_collections.lockstep.colo.plugins.modules import (
    colo_absent,
    colo_fence,
    colo_files,
    colo_host_info,
    colo_image,
)
from ansible_collections.lockstep.colo.tests.unit.plugins.module_utils.test_features import answers
from ansible_collections.lockstep.colo.tests.unit.plugins.module_utils.test_files import GROUP, OWNER
from ansible_collections.lockstep.colo.tests.unit.plugins.module_utils.test_image import SIZE, qcow2

Script = list[tuple[str, tuple[int, str, str]]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """An ordered script for run_command: how the command ends, and its answer; a qemu-img writes what it should."""
    steps: Script = []

    def run_command(_module: AnsibleModule, args: list[str], **_data: str) -> tuple[int, str, str]:
        assert steps, f"unexpected command {args}"
        ending, answer = steps.pop(0)
        told = [os.readlink(word) if word.startswith("/proc/") else word for word in args]
        assert " ".join(told).endswith(ending)
        if args[0] == "qemu-img":
            pathlib.Path(args[-2]).write_bytes(qcow2(int(args[-1])))
        return answer

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)
    monkeypatch.setattr(_host, "NETWORK_DIRECTORIES", ())  # this machine's own
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _module, name: f"/usr/bin/{name}")
    return steps


def run(module: t.Any, capsys: pytest.CaptureFixture[str], **options: t.Any) -> dict[str, t.Any]:
    """Run the module to its end and return its result."""
    with patch_module_args(options), pytest.raises(SystemExit):
        module.main()
    result = json.loads(capsys.readouterr().out)
    assert isinstance(result, dict)
    return result


def test_image_is_made_once(tmp_path: pathlib.Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "root.qcow2")
    options = {"images": [{"path": path, "size": "64M"}], "mode": "0640"}

    would = run(colo_image, capsys, **options, _ansible_check_mode=True)
    assert (would["changed"], would["images"][0]["made"]) == (True, True)
    assert not pathlib.Path(path).exists()

    script.append((f"{path}.part {SIZE}", (0, "", "")))
    made = run(colo_image, capsys, **options)
    assert script == []
    assert made["changed"]
    assert made["images"] == [{"path": path, "format": "qcow2", "virtual_size": SIZE, "made": True}]
    assert made["diff"][0]["before"] == {"path": path, "state": "absent"}
    assert pathlib.Path(path).stat().st_mode & 0o777 == 0o640

    again = run(colo_image, capsys, **options)
    assert (again["changed"], again["images"][0]["made"]) == (False, False)
    assert again["diff"][0]["before"] == again["diff"][0]["after"]


def test_image_gets_its_mode_back(tmp_path: pathlib.Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "root.qcow2"
    path.write_bytes(qcow2())
    path.chmod(0o644)
    assert run(colo_image, capsys, images=[{"path": str(path), "size": "64M"}], mode="0600")["changed"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert script == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_image_gets_its_owner(tmp_path: pathlib.Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "root.qcow2"
    path.write_bytes(qcow2())
    options = {"images": [{"path": str(path), "size": "64M"}], "owner": "nobody"}
    assert run(colo_image, capsys, **options, _ansible_check_mode=True)["changed"]
    before = path.stat()
    assert run(colo_image, capsys, **options)["changed"]
    after = path.stat()
    assert after.st_uid == pwd.getpwnam("nobody").pw_uid != before.st_uid
    assert (after.st_gid, after.st_mode) == (before.st_gid, before.st_mode)
    assert not run(colo_image, capsys, **options)["changed"]
    refused = run(colo_image, capsys, **{**options, "owner": "no-such-user"})
    assert refused["error_code"] == "bad_input"
    assert script == []


def test_image_errors_carry_a_code(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "root.qcow2"
    path.write_bytes(qcow2())
    result = run(colo_image, capsys, images=[{"path": str(path), "size": "128M"}])
    assert (result["failed"], result["error_code"]) == (True, "image_size_differs")
    result = run(
        colo_image, capsys, images=[{"path": f"{path}.new", "size": "64M"}, {"path": str(path), "size": "a lot"}]
    )
    assert (result["error_code"], result["details"]["variable"]) == ("bad_input", "images[1].size")
    assert os.listdir(tmp_path) == ["root.qcow2"]


def test_many_images_are_one_call(tmp_path: pathlib.Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    there, new = str(tmp_path / "root.qcow2"), str(tmp_path / "data.qcow2")
    pathlib.Path(there).write_bytes(qcow2())
    os.chmod(there, 0o600)
    script.append((f"{new}.part {SIZE}", (0, "", "")))
    images = [{"path": path, "size": "64M"} for path in (there, new)]
    result = run(colo_image, capsys, images=images, mode="0600")
    assert result["changed"]
    assert [(image["path"], image["made"]) for image in result["images"]] == [(there, False), (new, True)]
    assert [diff["before"] == diff["after"] for diff in result["diff"]] == [True, False]
    assert not run(colo_image, capsys, images=images, mode="0600")["changed"]


def test_files(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    rights = {"owner": OWNER, "group": GROUP}
    top, one = str(tmp_path / "lib"), str(tmp_path / "lib" / "one.txt")
    options = {
        "directories": [{"path": top, **rights}],
        "files": [{"path": one, "content": "1\n", "mode": "0600", **rights}],
    }
    would = run(colo_files, capsys, **options, _ansible_check_mode=True)
    assert (would["changed"], would["written"]) == (True, [top, one])
    assert [(diff["after_header"], diff["before"], diff["after"]) for diff in would["diff"]] == [
        (top, {"state": "absent"}, {**rights, "mode": "0755"}),
        (one, "", "1\n"),
        (one, {"state": "absent"}, {**rights, "mode": "0600"}),
    ]
    assert not os.path.exists(top)
    assert run(colo_files, capsys, **options)["diff"] == would["diff"]
    again = run(colo_files, capsys, **options)
    assert (again["changed"], again["written"], again["diff"]) == (False, [], [])


def test_files_whose_rights_alone_differ(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.txt"
    path.write_text("not to be shown twice")
    path.chmod(0o600)
    files = [{"path": str(path), "content": "not to be shown twice", "owner": OWNER, "group": GROUP}]
    (diff,) = run(colo_files, capsys, files=files)["diff"]
    assert (diff["before"]["mode"], diff["after"]["mode"]) == ("0600", "0644")
    files[0]["mode"] = "rw"
    assert run(colo_files, capsys, files=files)["error_code"] == "bad_input"


def replies() -> str:
    lines: list[dict[str, t.Any]] = [{"id": "quit", "return": {}}]
    for key, value in answers().items():
        error = isinstance(value, dict) and "error" in value
        lines.append(
            {"id": key, "error": {"class": "GenericError", "desc": value["error"]}}
            if error
            else {"id": key, "return": value}
        )
    return "\n".join(json.dumps(line) for line in lines)


@pytest.fixture
def binary(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "qemu"
    path.write_text("")
    path.chmod(0o755)
    return str(path)


def definition(directory: pathlib.Path, binary: str) -> dict[str, t.Any]:
    return {
        "name": "web1",
        "host": "alpha",
        "hosts": ["alpha", "beta"],
        "link": {"alpha": "192.0.2.1", "beta": "192.0.2.2"},
        "memory_mib": 1,
        "machine": "pc",
        "cpu": "qemu64",
        "accelerator": "tcg",
        "user": "root",
        "link_security": "tls",
        "qemu_binary": binary,
        "port_base": 9000,
        "disks": [{"name": "root", "size_bytes": 1024, "source": None, "source_format": "raw", "checksum": None}],
        "nics": [{"name": "lan", "bridge": "br0", "tap": "web1-lan", "model": "virtio-net-pci"}],
        "tuning": {"multifd_channels": 0},
        "boot": None,
        "paths": {"config": f"{directory}/etc", "state": f"{directory}/state", "run": f"{directory}/run"},
    }


def test_files_are_removed_once(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file").write_text("x")
    (tmp_path / "kept").write_text("x")
    options = {"path": [f"{tmp_path}/one/*", f"{tmp_path}/one/", f"{tmp_path}/"]}
    removed = [f"{tmp_path}/one/file", f"{tmp_path}/one/"]

    would = run(colo_absent, capsys, **options, _ansible_check_mode=True)
    assert (would["changed"], would["removed"], would["left"]) == (True, removed, {str(tmp_path): ["kept"]})
    assert would["diff"] == {"before": "".join(f"{path}\n" for path in removed), "after": ""}
    assert (tmp_path / "one" / "file").exists()
    assert run(colo_absent, capsys, **options) == would
    again = run(colo_absent, capsys, **options)
    assert (again["changed"], again["removed"], again["left"]) == (False, [], {str(tmp_path): ["kept"]})
    assert run(colo_absent, capsys, path=["/etc/"])["error_code"] == "bad_input"


def test_host_info_of_qemu_alone(script: Script, binary: str, capsys: pytest.CaptureFixture[str]) -> None:
    script.append(("-qmp stdio", (0, replies(), "")))
    result = run(colo_host_info, capsys, qemu_binary=binary)
    assert script == []
    assert (result["changed"], result["problems"]) == (False, [])
    assert result["host"]["qemu"]["version"] == "11.1.3"


@pytest.mark.parametrize(
    ("qemu", "there", "codes"),
    [
        ("require", False, ["qemu_missing", "link_address_missing", "bridge_missing"]),
        ("if_present", False, ["link_address_missing", "bridge_missing"]),
        ("ignore", False, ["link_address_missing", "bridge_missing"]),
        ("require", True, ["link_address_missing", "bridge_missing"]),
    ],
)
def test_host_info_returns_all_problems(
    tmp_path: pathlib.Path,
    script: Script,
    binary: str,
    capsys: pytest.CaptureFixture[str],
    qemu: str,
    there: bool,
    codes: list[str],
) -> None:
    if there:
        script.append(("-qmp stdio", (0, replies(), "")))
    script.append(("address show", (0, "[]", "")))
    script.append(("list", (0, "{}", "")))
    used = binary if there else str(tmp_path / "missing")
    result = run(colo_host_info, capsys, qemu_binary=used, qemu=qemu, definitions=[definition(tmp_path, used)])
    assert script == []
    assert [problem["error_code"] for problem in result["problems"]] == codes
    assert result["host"]["memory_needed_mib"] == 129


class OneFile(http.server.BaseHTTPRequestHandler):
    """One large file; HEAD is not taken, as by some object stores."""

    def do_GET(self) -> None:
        there = self.path == "/there"
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", str(1 << 40 if there else 0))
        self.end_headers()
        if there:
            self.wfile.write(bytes(1024))

    def log_message(self, *_words: t.Any) -> None:
        """Say nothing."""


def test_host_info_asks_locations(
    tmp_path: pathlib.Path, script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A location that answers is not waited for to its end, one that does not is refused by name; on request only."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OneFile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        gone = f"http://127.0.0.1:{unused_port()}/there"
        sources = (f"{here}/there", f"{here}/other", gone)
        wanted = definition(tmp_path, "/nowhere")
        wanted["disks"] = [{**wanted["disks"][0], "name": f"d{n}", "source": each} for n, each in enumerate(sources)]
        seen = {}
        for look in (True, False):
            script += [("address show", (0, "[]", "")), ("list", (0, "{}", ""))]
            result = run(colo_host_info, capsys, qemu="ignore", definitions=[wanted], sources=look)
            seen[look] = [each for each in result["problems"] if each["error_code"] == "image_not_fetched"]
        server.shutdown()
    assert seen[False] == []
    assert [each["variable"] for each in seen[True]] == [
        f"colo_guests.web1.disks[{number}].source" for number in (1, 2)
    ]
    assert [each["value"] for each in seen[True]] == [f"{here}/other", gone]
    assert "404" in seen[True][0]["message"]
    assert "refused" in seen[True][1]["message"]


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_host_info_misses_a_group(script: Script, binary: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, codes in (("", []), (grp.getgrgid(0).gr_name, []), ("no-such-group", ["group_missing"])):
        script.append(("-qmp stdio", (0, replies(), "")))
        result = run(colo_host_info, capsys, qemu_binary=binary, monitor_group=name)
        assert [problem["error_code"] for problem in result["problems"]] == codes


def test_host_info_refuses_a_user_that_is_root(script: Script, binary: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, codes in (("nobody", []), ("no-such-user", []), (pwd.getpwuid(0).pw_name, ["bad_input"])):
        script.append(("-qmp stdio", (0, replies(), "")))
        result = run(colo_host_info, capsys, qemu_binary=binary, user=name)
        assert [problem["error_code"] for problem in result["problems"]] == codes


def test_host_info_of_a_qemu_that_hangs(script: Script, binary: str, capsys: pytest.CaptureFixture[str]) -> None:
    script.append(("-qmp stdio", (137, "", "Killed")))
    assert run(colo_host_info, capsys, qemu_binary=binary)["error_code"] == "qemu_probe_failed"


# --- colo_fence -------------------------------------------------------------------------------------------------

PASSWORD = "b7-hush"
AGENT: dict[str, t.Any] = {
    "method": "agent",
    "agent": "fence_x",
    "parameters": {"ip": "192.0.2.1", "password": PASSWORD, "lanplus": 1, "power_wait": "0"},
    "timeout_s": 20,
}


@pytest.fixture
def agent(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[str], None]:
    """Writes a fence agent: what it does for off, as a line of a shell script. It tells its password."""

    def write(off: str) -> None:
        path = tmp_path / "fence_x"
        path.write_text(
            f'#!/bin/sh\ninput=$(cat)\necho "$input" >&2\ncase $input in *action=off*) {off};; esac; exit 2\n'
        )
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return write


def fence(capsys: pytest.CaptureFixture[str], **options: t.Any) -> dict[str, t.Any]:
    result = run(colo_fence, capsys, **{"host": "web1-host-10", "place": "beta", "methods": [AGENT], **options})
    assert PASSWORD not in json.dumps(result)
    return result


def test_a_host_is_fenced(agent: t.Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    agent("exit 0")
    result = fence(capsys, _ansible_inject_invocation=True)
    # whole, although "1" and "0" are parameters
    assert result["evidence"] == "fence_x, run on beta, switched web1-host-10 off, and its status says off"
    assert (result["changed"], result["methods"][0]["off"]) == (True, True)
    assert result["invocation"]["module_args"]["methods"] == ["fence_x"]


def test_a_host_that_is_not_fenced(agent: t.Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    agent("exit 1")
    result = fence(capsys)
    assert (result["failed"], result["error_code"]) == (True, "fence_failed")
    assert "fence_x: fence_refused: fence_x did not switch web1-host-10 off (exit 1)" in result["msg"]
    assert result["details"]["methods"][0]["error_code"] == "fence_refused"
    assert fence(capsys, methods=[])["error_code"] == "fence_failed"
    assert fence(capsys, methods=[{"method": "manual"}])["details"]["methods"][0]["error_code"] == "fence_refused"


def test_check_mode_fences_nothing(agent: t.Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    agent("exit 1")
    result = fence(capsys, _ansible_check_mode=True)
    assert (result["changed"], result["evidence"]) == (True, "fence_x would be asked to fence web1-host-10")


def test_readiness_is_told_and_nothing_is_run(
    agent: t.Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    agent("exit 1")
    command = {"method": "command", "argv": ["/none/pdu"], "run_on": "controller"}
    options = {"state": "ready", "methods": [AGENT, command], "variable": "colo_fence of host alpha"}
    result = fence(capsys, **options)
    assert [(one["error_code"], one["variable"], one["value"]) for one in result["problems"]] == [
        ("fence_agent_missing", "colo_fence of host alpha[1]", "/none/pdu")
    ]
    assert fence(capsys, **options, run_on="survivor")["problems"] == []


def test_methods_that_cannot_be_understood(capsys: pytest.CaptureFixture[str]) -> None:
    result = fence(capsys, methods=[{**AGENT, "agent": "rm"}])
    assert (result["error_code"], result["details"]["variable"]) == ("bad_input", "colo_fence[0].agent")
