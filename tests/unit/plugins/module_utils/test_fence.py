# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fencing: what may be configured, what is tried where, what counts as proof, and that no secret is told by anybody."""

from __future__ import annotations

import os
import pathlib
import time
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _fence, _fencer
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

Json = dict[str, t.Any]
SECRET = "b7-hush"
AGENT: Json = {
    "method": "agent",
    "agent": "fence_x",
    "parameters": {"ip": "192.0.2.201", "password": SECRET, "lanplus": True},
}
COMMAND: Json = {"method": "command", "argv": ["/bin/pdu", "off", 1]}
SSH: Json = {"method": "ssh"}
MANUAL: Json = {"method": "manual"}


def test_methods_are_read() -> None:
    agent, command, ssh, manual = _fence.methods(
        "colo_fence", [AGENT, {**COMMAND, "run_on": "controller", "timeout_s": 5}, SSH, MANUAL]
    )
    assert [one.title for one in (agent, command, ssh, manual)] == ["fence_x", "/bin/pdu", "ssh", "manual"]
    assert (agent.run_on, agent.timeout_s, command.run_on, command.timeout_s) == ("survivor", 60, "controller", 5)
    assert command.argv == ("/bin/pdu", "off", "1")
    assert _fence.agent_input(agent, "off") == f"ip=192.0.2.201\npassword={SECRET}\nlanplus=1\naction=off\n"
    assert SECRET not in repr(agent)


BAD: dict[str, tuple[t.Any, str]] = {
    "no list": ({"method": "ssh"}, "give a list of methods"),
    "text": ("ssh", "give a list of methods"),
    "no method": ([{}], "colo_fence[0].method"),
    "method that is none": ([{"method": "pray"}], "agent, command, ssh, manual"),
    "no dictionary": ([SECRET], "colo_fence[0].method"),
    "unknown key": ([SSH, {**AGENT, "passwd": SECRET}], "colo_fence[1].passwd"),
    "key of another method": ([{**SSH, "argv": ["/bin/true"]}], "colo_fence[0].argv"),
    "agent without a name": ([{"method": "agent"}], "colo_fence[0].agent"),
    "agent that is a path": ([{**AGENT, "agent": "/tmp/fence_x"}], "name of a fence agent"),
    "parameters that are none": ([{**AGENT, "parameters": [SECRET]}], "colo_fence[0].parameters"),
    "an action": ([{**AGENT, "parameters": {"action": "on"}}], "colo_fence[0].parameters.action"),
    "a value with a second line": ([{**AGENT, "parameters": {"password": f"{SECRET}\naction=on"}}], "one line of text"),
    "a value that is a list": ([{**AGENT, "parameters": {"password": [SECRET]}}], "one line of text"),
    "a key with a second line": ([{**AGENT, "parameters": {"ip=1\naction": "on"}}], "names of the agent's parameters"),
    "no command": ([{"method": "command", "argv": []}], "colo_fence[0].argv"),
    "a command line": ([{"method": "command", "argv": "/bin/pdu off"}], "list of words"),
    "a relative command": ([{"method": "command", "argv": ["pdu"]}], "absolute path"),
    "a place that is none": ([{**COMMAND, "run_on": "moon"}], "survivor, controller"),
    "no time": ([{**COMMAND, "timeout_s": 0}], "from 1 to 600"),
    "a time that is none": ([{**COMMAND, "timeout_s": "soon"}], "from 1 to 600"),
    "something after a person": ([MANUAL, SSH], "name it last"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_understood_is_refused_without_its_secrets(case: str) -> None:
    value, says = BAD[case]
    with pytest.raises(ColoError) as caught:
        _fence.methods("colo_fence", value)
    assert caught.value.error_code == "bad_input"
    assert says in caught.value.message
    assert SECRET not in caught.value.message + str(caught.value.details)


def test_nothing_but_known_parameters_is_taken_for_harmless() -> None:
    chosen = _fence.methods(
        "colo_fence", [{**AGENT, "parameters": {"ip": "a", "lanplus": 1, "new_option": "s1", "snmp-priv-passwd": "s2"}}]
    )
    assert _fence.secrets(chosen) == {"s1", "s2"}


def test_what_is_said_is_short_and_without_secrets() -> None:
    method = _fence.methods("colo_fence", [{**AGENT, "parameters": {"password": "abc", "passwd_script": "abcdef"}}])[0]
    assert _fence.said("login with abcdef\n\n failed for abc\n", method) == "login with ********; failed for ********"
    assert len(_fence.said("x" * 5000, method)) < 400


def test_a_host_that_answers_is_not_switched_off() -> None:
    chosen = _fence.methods("colo_fence", [SSH, AGENT, {**COMMAND, "run_on": "controller"}, COMMAND, AGENT, MANUAL])
    found = _fence.attempts(chosen, "alpha", "yes", "beta", ["web1"])
    assert [(one.at, one.controller, one.first, one.last) for one in found] == [("alpha", False, 0, 1)]
    found = _fence.attempts(chosen, "alpha", "no", "beta", ["web1"])
    assert [(one.at, one.controller, one.first, one.last) for one in found] == [
        ("beta", False, 1, 2),
        ("beta", True, 2, 3),
        ("beta", False, 3, 5),
    ]


def test_a_host_that_was_not_asked_is_not_fenced() -> None:
    chosen = _fence.methods("colo_fence", [SSH, AGENT, COMMAND])
    assert _fence.attempts(chosen, "alpha", "not asked", "beta", ["web1"]) == []
    assert "--limit" in _fence.why_none(chosen, "alpha", "not asked")


def test_where_nothing_can_be_tried_it_is_said_why() -> None:
    assert _fence.why_none([], "alpha", "no") == ""
    assert _fence.why_none(_fence.methods("colo_fence", [MANUAL]), "alpha", "no") == ""
    assert "does not answer" in _fence.why_none(_fence.methods("colo_fence", [SSH]), "alpha", "no")
    assert "not switched off" in _fence.why_none(_fence.methods("colo_fence", [AGENT]), "alpha", "yes")


# --- on real processes ----------------------------------------------------------------------------------------------


def _program(directory: pathlib.Path, name: str, text: str) -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def _fencer_in(directory: pathlib.Path, **more: t.Any) -> _fencer.Fencer:
    def find(name: str) -> str | None:
        path = name if name.startswith("/") else str(directory / name)
        return path if os.access(path, os.X_OK) else None

    return _fencer.Fencer("alpha", "beta", ["web1"], find, **more)


# reads its parameters as agents do, does what the file says
READ = "action=; while IFS== read -r key value; do case $key in action) action=$value;; password) password=$value;; esac; done"


@pytest.mark.parametrize(
    ("off", "status", "error", "says"),
    [
        (
            "exit 0",
            "echo Status: OFF; exit 2",
            None,
            "fence_x, run on beta, switched alpha off, and its status says off",
        ),
        ("exit 0", "echo Status: ON; exit 0", "fence_not_off", "status says that alpha is still on (Status: ON)"),
        ("exit 0", "echo lost; exit 1", "fence_not_off", "does not say that alpha is off (exit 1): lost"),
        ('echo "no login as $password"; exit 1', "exit 2", "fence_refused", "(exit 1): no login as ********"),
        ("exit 1", "exit 2", "fence_refused", "it gave no reason"),
        ("kill -9 $$", "exit 2", "fence_refused", "exit -9"),
    ],
)
def test_an_agent_is_believed_by_its_status_only(
    tmp_path: pathlib.Path, off: str, status: str, error: str | None, says: str
) -> None:
    _program(
        tmp_path,
        "fence_x",
        f"{READ}\n[ $# = 0 ] || exit 9\ncase $action in off) {off};; status) {status};; esac; exit 9",
    )
    evidence, results = _fencer_in(tmp_path).fence(_fence.methods("colo_fence", [AGENT]))
    assert results[0].get("error_code") == error
    assert (evidence is None) is (error is not None)
    assert says in results[0]["message"]
    assert SECRET not in str(results)


def test_the_first_that_proves_it_ends_the_search(tmp_path: pathlib.Path) -> None:
    good = _program(tmp_path, "good", f"touch {tmp_path}/asked")
    bad = _program(tmp_path, "bad", "echo nothing there >&2; exit 3")
    chosen = _fence.methods("colo_fence", [{"method": "command", "argv": [path]} for path in (bad, good, bad)])
    evidence, results = _fencer_in(tmp_path).fence(chosen)
    assert evidence == f"{good}, run on beta, said that alpha is fenced (exit 0)"
    assert [(one["title"], one["off"], one.get("error_code")) for one in results] == [
        (bad, False, "fence_refused"),
        (good, True, None),
    ]
    assert "nothing there" in results[0]["message"]
    assert (tmp_path / "asked").exists()


def test_nothing_outlives_its_deadline(tmp_path: pathlib.Path) -> None:
    """Neither a program that hangs, nor a child of it that keeps its output open."""
    hangs = _program(tmp_path, "hangs", f"sleep 300 &\necho $! > {tmp_path}/child\nwait")
    leaves = _program(tmp_path, "leaves", f"setsid sleep 300 &\necho $! > {tmp_path}/left\nexit 0")
    chosen = _fence.methods(
        "colo_fence", [{"method": "command", "argv": [path], "timeout_s": 2} for path in (hangs, leaves)]
    )
    begin = time.monotonic()
    evidence, results = _fencer_in(tmp_path).fence(chosen)
    assert time.monotonic() - begin < 60
    assert results[0]["error_code"] == "fence_timeout"
    assert evidence is not None
    child = pathlib.Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    end = time.monotonic() + 30
    while child.exists() and " Z " not in child.read_text():
        assert time.monotonic() < end
    os.kill(int((tmp_path / "left").read_text()), 9)


def test_a_program_that_is_not_there(tmp_path: pathlib.Path) -> None:
    chosen = _fence.methods("colo_fence of host alpha", [{**AGENT, "agent": "fence_ipmilan"}, COMMAND, SSH, MANUAL])
    evidence, results = _fencer_in(tmp_path).fence(chosen[:2])
    assert evidence is None
    assert {one["error_code"] for one in results} == {"fence_agent_missing"}
    missing = _fencer_in(tmp_path).missing(chosen)
    assert [error.details["variable"] for error in missing] == [
        "colo_fence of host alpha[0]",
        "colo_fence of host alpha[1]",
    ]
    assert "fence-agents-ipmilan" in missing[0].message


@pytest.mark.parametrize(
    ("stop", "left", "error"),
    [("exit 0", False, None), ("exit 1", False, "fence_not_off"), ("exit 0", True, "fence_not_off")],
)
def test_a_unit_is_ended_when_no_process_is_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stop: str, left: bool, error: str | None
) -> None:
    _program(tmp_path, "systemctl", f'echo "$*" >> {tmp_path}/asked\n[ "$1" = kill ] && exit 1\n{stop}')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    proc = tmp_path / "proc"
    for pid, name in ((7, "web1"), (8, "web10")):
        (proc / str(pid)).mkdir(parents=True)
        if left or name != "web1":
            (proc / str(pid) / "cmdline").write_bytes(f"qemu\0-name\0guest={name},debug-threads=on\0".encode())
    evidence, results = _fencer_in(tmp_path, proc=str(proc)).fence(_fence.methods("colo_fence", [SSH]))
    assert results[0].get("error_code") == error
    assert (evidence == "the QEMUs of web1 were killed on alpha, and no process is left") is (error is None)
    assert ("[7]" in results[0]["message"]) is left
    assert (tmp_path / "asked").read_text().splitlines() == [
        "kill --kill-whom=all --signal=SIGKILL colo-guest@web1.service",
        "stop colo-guest@web1.service",
    ]
