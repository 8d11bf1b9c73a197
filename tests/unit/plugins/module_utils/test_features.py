# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a QEMU can do is read from its answers; what cannot work is refused by name, with what helps."""

from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _features

DEFINITION: dict[str, t.Any] = {
    "name": "web1",
    "qemu_binary": "/usr/bin/qemu-system-x86_64",
    "machine": "pc",
    "accelerator": "kvm",
    "cpu": "qemu64,+avx",
    "link_security": "tls",
    "nics": [{"model": "virtio-net-pci"}],
    "tuning": {"multifd_channels": 0},
}


def schema(
    reconnect: str = "reconnect-ms", drivers: t.Sequence[str] = _features.NEEDED_DRIVERS
) -> list[dict[str, t.Any]]:
    """The part of query-qmp-schema that is looked at, in its shape of 11.1."""
    commands = [{"meta-type": "command", "name": name, "arg-type": "0"} for name in _features.NEEDED_COMMANDS]
    for command in commands:
        command["arg-type"] = {"blockdev-add": "10", "chardev-add": "20"}.get(command["name"], "0")
    return [
        *commands,
        {"meta-type": "event", "name": "STOP", "arg-type": "0"},
        {"meta-type": "object", "name": "0", "members": []},
        {"meta-type": "object", "name": "10", "tag": "driver", "members": [{"name": "driver", "type": "11"}]},
        {"meta-type": "enum", "name": "11", "members": [{"name": name} for name in drivers], "values": list(drivers)},
        {
            "meta-type": "object",
            "name": "20",
            "members": [{"name": "id", "type": "str"}, {"name": "backend", "type": "21"}],
        },
        {
            "meta-type": "object",
            "name": "21",
            "tag": "type",
            "variants": [{"case": "socket", "type": "22"}],
            "members": [],
        },
        {"meta-type": "object", "name": "22", "members": [{"name": "data", "type": "23"}]},
        {
            "meta-type": "object",
            "name": "23",
            "members": [{"name": "addr", "type": "0"}, {"name": reconnect, "type": "int"}],
        },
    ]


def answers(version: tuple[int, int, int] = (11, 1, 3), **changed: t.Any) -> dict[str, t.Any]:
    """What a good QEMU answers, but for what is ``changed``."""
    return {
        "version": {"qemu": dict(zip(("major", "minor", "micro"), version, strict=True)), "package": "Debian"},
        "schema": schema(),
        "capabilities": [{"capability": name} for name in (*_features.NEEDED_CAPABILITIES, "return-path", "multifd")],
        "objects": [{"name": name} for name in _features.NEEDED_OBJECTS],
        "accelerators": [{"name": "tcg-accel"}, {"name": "kvm-accel"}],
        "devices": [{"name": "virtio-net-pci"}],
        "machines": [{"name": "pc-i440fx-11.1", "alias": "pc"}, {"name": "pc-q35-11.1", "alias": "q35"}],
        "cpus": [{"name": "qemu64"}, {"name": "host"}],
        "return_path": {"error": "Capability 'x-colo' requires capability 'return-path'"},
        "tls_psk": {"error": "Unable to access credentials /nonexistent/keys.psk: No such file or directory"},
        **changed,
    }


def codes(version: tuple[int, int, int] = (11, 1, 3), accept_untested: bool = False, **definition: t.Any) -> list[str]:
    found = _features.features(answers(version))
    return [problem.error_code for problem in _features.refusals(found, {**DEFINITION, **definition}, accept_untested)]


def test_a_good_qemu() -> None:
    found = _features.features(answers())
    assert found.missing() == []
    assert found.as_dict() == {
        "version": "11.1.3",
        "package": "Debian",
        "missing": [],
        "accelerators": ["kvm", "tcg"],
        "machines": ["pc", "q35"],
        "return_path": "requires",
        "reconnect": "reconnect-ms",
        "device_state": True,
        "multifd": True,
        "tls_psk": True,
    }


@pytest.mark.parametrize(
    ("version", "answer", "expected"),
    [
        ((11, 1, 3), {"error": "Capability 'x-colo' requires capability 'return-path'"}, "requires"),
        ((10, 0, 13), {}, "refuses"),
        ((12, 0, 0), {}, "refuses"),
        ((12, 0, 0), {"error": "something else"}, "refuses"),
        ((11, 1, 3), None, "requires"),
        ((10, 2, 0), None, "refuses"),
    ],
)
def test_return_path_is_asked_and_only_guessed_of_a_running_qemu(
    version: tuple[int, int, int], answer: t.Any, expected: str
) -> None:
    assert _features.features(answers(version, return_path=answer)).return_path == expected


@pytest.mark.parametrize(
    ("reconnect", "expected"), [("reconnect-ms", "reconnect-ms"), ("reconnect", "reconnect"), ("other", None)]
)
def test_reconnect(reconnect: str, expected: str | None) -> None:
    assert _features.features(answers(schema=schema(reconnect))).reconnect == expected


def test_the_state_device_came_with_8() -> None:
    assert not _features.features(answers((7, 2, 22))).device_state


@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({"capabilities": []}, [f"migration capability {name}" for name in _features.NEEDED_CAPABILITIES]),
        ({"objects": []}, [f"object {name}" for name in _features.NEEDED_OBJECTS]),
        ({"schema": schema(drivers=["nbd", "qcow2"])}, ["block driver quorum", "block driver replication"]),
        (
            {"schema": [entity for entity in schema() if entity["name"] != "yank"]},
            ["command yank"],
        ),
        ({"schema": schema("other")}, ["chardev option reconnect-ms"]),
    ],
)
def test_what_a_build_lacks_is_named(changed: dict[str, t.Any], missing: list[str]) -> None:
    found = _features.features(answers(**changed))
    assert found.missing() == missing
    problems = _features.refusals(found, DEFINITION)
    assert [problem.error_code for problem in problems] == ["qemu_lacks_feature"]
    assert ", ".join(missing) in problems[0].message


def test_an_old_schema_without_enum_members() -> None:
    entities = copy.deepcopy(schema())
    for entity in entities:
        if entity["meta-type"] == "enum":
            del entity["members"]
    assert _features.features(answers(schema=entities)).block_drivers == frozenset(_features.NEEDED_DRIVERS)


def test_no_qemu() -> None:
    assert [problem.error_code for problem in _features.refusals(None, DEFINITION)] == ["qemu_missing"]


@pytest.mark.parametrize("version", [(7, 1, 0), (7, 2, 22), (10, 0, 0), (10, 0, 2), (10, 0, 6), (10, 1, 0), (10, 1, 2)])
def test_known_broken_releases_are_refused_whatever_is_accepted(version: tuple[int, int, int]) -> None:
    assert codes(version, accept_untested=True) == ["qemu_broken"]


@pytest.mark.parametrize("version", [(10, 0, 7), (10, 0, 13), (10, 1, 3), (10, 2, 0), (11, 1, 0), (11, 1, 3)])
def test_releases_that_work_with_pc_and_kvm(version: tuple[int, int, int]) -> None:
    assert codes(version) == []


@pytest.mark.parametrize("version", [(8, 2, 0), (9, 2, 0), (11, 0, 0), (11, 2, 0), (12, 0, 0)])
def test_releases_nobody_tried_are_refused_unless_accepted(version: tuple[int, int, int]) -> None:
    assert codes(version) == ["qemu_untested"]
    assert codes(version, accept_untested=True) == []


def test_old_releases_work_with_pc_and_kvm_only() -> None:
    for machine in ("q35", "pc-q35-11.1"):
        assert codes((10, 0, 13), machine=machine, accelerator="tcg") == ["machine_broken", "accelerator_broken"]
    assert codes((10, 2, 0), tuning={"multifd_channels": 2}) == ["multifd_broken"]
    assert codes((11, 1, 3), machine="q35", accelerator="tcg", tuning={"multifd_channels": 2}) == []


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ({"machine": "microvm"}, ["machine_unknown"]),
        ({"machine": "pc-i440fx-11.1"}, []),
        ({"machine": "pc-q35-12.0"}, ["machine_unknown"]),
        ({"accelerator": "hvf"}, ["accelerator_missing"]),
        ({"cpu": "nonsense,+x"}, ["cpu_unknown"]),
        ({"nics": [{"model": "virtio-net-pci"}, {"model": "e1000"}]}, ["nic_model_missing"]),
    ],
)
def test_what_this_build_does_not_have(definition: dict[str, t.Any], expected: list[str]) -> None:
    assert codes(**definition) == expected


@pytest.mark.parametrize(
    ("accelerator", "cpu", "takes"),
    [("kvm", "host", True), ("kvm", "max,-avx", True), ("kvm", "EPYC", False), ("tcg", "max", False)],
)
def test_which_guests_have_their_hosts_processor(accelerator: str, cpu: str, takes: bool) -> None:
    assert _features.takes_host_cpu({"accelerator": accelerator, "cpu": cpu}) == takes


def test_a_problem_says_what_it_is_about() -> None:
    found = _features.features(answers())
    (problem,) = _features.refusals(found, {**DEFINITION, "nics": [{"model": "e1000"}]})
    assert problem.as_dict() == {
        "error_code": "nic_model_missing",
        "variable": "colo_guests.web1.nics[0].model",
        "value": "e1000",
        "message": "QEMU 11.1.3 was built without e1000: choose another model",
        "line": "nic_model_missing: colo_guests.web1.nics[0].model: 'e1000': QEMU 11.1.3 was built without e1000: choose "
        "another model",
    }


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"error": "TLS credentials support requires GNUTLS"},
        {"error": "Parameter 'qom-type' does not accept value 'tls-creds-psk'"},
    ],
)
def test_a_qemu_without_tls_is_refused_unless_none_is_wished(answer: t.Any) -> None:
    found = _features.features(answers(tls_psk=answer))
    assert [problem.error_code for problem in _features.refusals(found, DEFINITION)] == ["qemu_lacks_tls"]
    assert _features.refusals(found, {**DEFINITION, "link_security": "none"}) == []


def test_probe_only_reads_but_for_two_questions() -> None:
    reading = {command for key, (command, _arguments) in _features.PROBE.items() if key not in _features.REFUSED}
    assert all(command.startswith(("query-", "qom-list-")) for command in reading)
