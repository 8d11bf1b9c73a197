# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that cannot take its guests is refused by name; what is ours, or about to be made, is no obstacle."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _preflight
from ansible_collections.lockstep.colo.plugins.module_utils._guest import MIB
from ansible_collections.lockstep.colo.plugins.module_utils._preflight import (
    FileState,
    GuestState,
    HostState,
    Link,
    Listener,
    Source,
)
from ansible_collections.lockstep.colo.tests.unit import _make

SOURCE = Source("/srv/x.qcow2", "qcow2", 1000 * MIB, None)
PARENT = "/var/lib/lockstep-colo/web1/root.qcow2"


def definition(**changed: t.Any) -> dict[str, t.Any]:
    return {
        "name": "web1",
        "host": "alpha",
        "hosts": ["alpha", "beta"],
        "link": {"alpha": "192.0.2.1", "beta": "192.0.2.2"},
        "memory_mib": 256,
        "accelerator": "kvm",
        "port_base": 9000,
        "disks": [
            {
                "name": "root",
                "size_bytes": 1000 * MIB,
                "source": "/srv/x.qcow2",
                "source_format": "qcow2",
                "checksum": None,
            }
        ],
        "nics": [{"name": "lan", "bridge": "br0", "tap": "web1-lan", "model": "e1000"}],
        "boot": {"kernel": "/srv/vmlinuz", "initrd": None, "append": ""},
        "paths": {
            "config": "/etc/lockstep-colo",
            "state": "/var/lib/lockstep-colo/web1",
            "run": "/run/lockstep-colo/web1",
        },
        **changed,
    }


HOST = HostState(
    links={
        "repl0": Link("repl0", addresses=("192.0.2.1",)),
        "br0": Link("br0", kind="bridge"),
        "lan0": Link("lan0"),
    },
    listeners=(),
    memory_available_bytes=8192 * MIB,
    disk_free_bytes={"/var/lib/lockstep-colo/web1": 100000 * MIB},
    kvm_problem=None,
    images={PARENT: FileState(exists=False)},
    sources={SOURCE: FileState(exists=True)},
    boot_files={"/srv/vmlinuz": FileState(exists=True)},
    guests={},
)


def found(
    host: HostState = HOST,
    bridges: dict[str, t.Any] | None = None,
    definitions: list[dict[str, t.Any]] | None = None,
    **changed: t.Any,
) -> list[tuple[str, str]]:
    problems = _preflight.problems(
        dataclasses.replace(host, **changed), [definition()] if definitions is None else definitions, bridges or {}
    )
    return [(problem.error_code, problem.variable) for problem in problems]


def with_link(*links: Link) -> dict[str, Link]:
    return {**HOST.links, **{link.name: link for link in links}}


def test_a_good_host() -> None:
    assert found() == []


def test_no_guests_no_problems() -> None:
    assert found(definitions=[], memory_available_bytes=0) == []


def test_link_address() -> None:
    assert found(links={"br0": HOST.links["br0"]}) == [("link_address_missing", "colo_link_address of host alpha")]


def test_ipv6_link_in_another_spelling() -> None:
    link = {"alpha": "fd00::1", "beta": "fd00::2"}
    host = dataclasses.replace(HOST, links=with_link(Link("repl0", addresses=("fd00:0::0001",))))
    assert found(host, definitions=[definition(link=link)]) == []


@pytest.mark.parametrize("bridge", [None, Link("br0"), Link("br0", kind="vlan")])
def test_bridge(bridge: Link | None) -> None:
    links = {name: link for name, link in HOST.links.items() if name != "br0"}
    if bridge is not None:
        links["br0"] = bridge
    assert found(links=links) == [("bridge_missing", "colo_guests.web1.nics[0].bridge")]


def test_what_a_start_of_networkd_would_put_into_force() -> None:
    ours = "/etc/systemd/network/05-colo-br0.network"  # written by a run that was killed before it got to the start
    assert found(dormant_network_files=(ours,)) == []
    state = dataclasses.replace(HOST, dormant_network_files=(ours, "/etc/systemd/network/20-lan.network"))
    (problem,) = _preflight.problems(state, [definition()], {})
    assert (problem.error_code, problem.value) == ("network_file_dormant", "/etc/systemd/network/20-lan.network")
    assert "remove the file" in problem.message


def test_a_bridge_that_will_be_made() -> None:
    links = {name: link for name, link in HOST.links.items() if name != "br0"}
    assert found(links=links, bridges={"br0": {"ports": ["lan0"]}}) == []


def test_a_bridge_that_we_made() -> None:
    ours = Link("br0", kind="bridge", network_file="/etc/systemd/network/05-colo-br0.network")
    port = Link("lan0", master="br0", network_file="/etc/systemd/network/05-colo-lan0.network")
    assert found(links=with_link(ours, port), bridges={"br0": {"ports": ["lan0"]}}) == []


def test_a_bridge_of_others_is_not_ours_to_make() -> None:
    assert found(bridges={"br0": {}}) == [("bridge_exists", "colo_bridges")]
    assert found(links=with_link(Link("br0")), bridges={"br0": {}}) == [("bridge_name_taken", "colo_bridges")]


@pytest.mark.parametrize(
    ("name", "bridge", "variable"),
    [
        ("../x", {}, "colo_bridges"),
        ("a" * 16, {}, "colo_bridges"),
        ("br1\n", {}, "colo_bridges"),
        ("br1", "lan0", "colo_bridges.br1"),
        ("br1", {"port": "lan0"}, "colo_bridges.br1"),
        ("br1", {"ports": "lan0"}, "colo_bridges.br1.ports"),
        ("br1", {"ports": ["lan0\nX=1"]}, "colo_bridges.br1.ports"),
        ("br1", {"ports": [7]}, "colo_bridges.br1.ports"),
        ("br1", {"address": "198.51.100.1/24\nX=1"}, "colo_bridges.br1.address"),
        ("br1", {"address": "198.51.100.1/33"}, "colo_bridges.br1.address"),
    ],
)
def test_odd_bridges(name: str, bridge: t.Any, variable: str) -> None:
    assert found(bridges={name: bridge}) == [("bad_input", variable)]


def test_a_bridge_with_an_address() -> None:
    assert found(bridges={"br1": {"ports": None, "address": "fd00::1/64"}}) == []


@pytest.mark.parametrize(
    ("port", "code"),
    [
        (Link("lan0"), None),
        (Link("lan0", master="br1"), None),
        (Link("lan0", master="bond0"), "bridge_port_in_use"),
        (Link("lan0", addresses=("198.51.100.7",)), "bridge_port_in_use"),
        (Link("lan0", network_file="/etc/systemd/network/20-wired.network"), "bridge_port_in_use"),
        (Link("lan0", addresses=("198.51.100.7",), network_file="/etc/systemd/network/05-colo-lan0.network"), None),
        (Link("other"), "bridge_port_missing"),
    ],
)
def test_bridge_ports(port: Link, code: str | None) -> None:
    links = {name: link for name, link in HOST.links.items() if name != "lan0"} | {port.name: port}
    expected = [] if code is None else [(code, "colo_bridges.br1.ports")]
    assert found(links=links, bridges={"br1": {"ports": ["lan0"]}}) == expected


@pytest.mark.parametrize(
    ("tap", "free"),
    [
        (Link("web1-lan", kind="tun", network_file="/etc/systemd/network/05-colo-web1-lan.network"), True),
        (Link("web1-lan", kind="tun"), False),
        (Link("web1-lan", kind="veth", network_file="/etc/systemd/network/05-colo-web1-lan.network"), False),
        (Link("web1-lan"), False),
    ],
)
def test_tap_name(tap: Link, free: bool) -> None:
    assert found(links=with_link(tap)) == ([] if free else [("tap_name_taken", "colo_guests.web1.nics[0].tap")])


@pytest.mark.parametrize(
    ("listener", "free"),
    [
        (Listener("192.0.2.1", 9000, "nginx"), False),
        (Listener("0.0.0.0", 9031, "nginx"), False),
        (Listener("::", 9002, "nginx"), False),
        (Listener("::ffff:192.0.2.1", 9002, "nginx"), False),
        (Listener("192.0.2.1", 9032, "nginx"), True),
        (Listener("192.0.2.1", 8999, "nginx"), True),
        (Listener("127.0.0.1", 9000, "nginx"), True),
        (Listener("198.51.100.1", 9000, "nginx"), True),
        (Listener("192.0.2.1", 9001, "qemu", guest="web1"), True),
        (Listener("192.0.2.1", 9001, "qemu", guest="db1"), False),
    ],
)
def test_ports(listener: Listener, free: bool) -> None:
    assert found(listeners=(listener,)) == ([] if free else [("port_taken", "colo_guests.web1.port_base")])


def test_a_standby_that_is_there_keeps_its_ports() -> None:
    qemu, keeper = (Listener("192.0.2.1", 9001, "process", guest="web1", qemu=qemu) for qemu in (True, False))
    moved = definition(port_base=9500)
    assert found(listeners=(qemu,), definitions=[moved]) == [("ports_changed", "colo_guests.web1.port_base")]
    # a keeper is restarted, and listens where its definition says
    assert found(listeners=(keeper,), definitions=[moved]) == []
    assert found(listeners=(qemu, keeper)) == []


def test_a_guest_of_ours_whose_port_is_asked_for_is_named() -> None:
    state = dataclasses.replace(HOST, listeners=(Listener("192.0.2.1", 9001, "qemu (pid 7)", guest="db1"),))
    message = _preflight.problems(state, [definition()], {})[0].message
    assert message.startswith("guest db1 (qemu (pid 7)) listens on port 9001")
    assert "stop it" not in message


def test_kvm_counts_for_kvm_guests_only() -> None:
    assert found(kvm_problem="/dev/kvm is missing") == [("kvm_unusable", "colo_guests.web1.accelerator")]
    assert found(kvm_problem="/dev/kvm is missing", definitions=[definition(accelerator="tcg")]) == []


def test_a_parent_of_another_size() -> None:
    wrong = FileState(exists=True, problem=("image_size_differs", "too big"))
    assert found(images={PARENT: wrong}) == [("image_size_differs", "colo_guests.web1.disks[0].size")]


def test_a_source_counts_only_while_its_image_is_missing() -> None:
    missing = {SOURCE: FileState(exists=False, problem=("image_missing", "not there"))}
    assert found(sources=missing) == [("image_missing", "colo_guests.web1.disks[0].source")]
    assert found(sources=missing, images={PARENT: FileState(exists=True)}) == []


def test_a_source_counts_for_the_disk_it_was_looked_at_for() -> None:
    """Two disks of one file: the smaller one is too small, and what is wrong with the checksum is told of the checksum."""
    disk = definition()["disks"][0]
    small = {**disk, "name": "small", "size_bytes": MIB}
    summed = {**disk, "name": "summed", "checksum": "sha256:1"}
    sources = {
        SOURCE: FileState(exists=True),
        SOURCE._replace(size_bytes=MIB): FileState(exists=False, problem=("image_source_larger", "too big")),
        SOURCE._replace(checksum="sha256:1"): FileState(exists=False, problem=("image_checksum_differs", "other")),
    }
    assert found(sources=sources, definitions=[definition(disks=[disk, small, summed])]) == [
        ("image_source_larger", "colo_guests.web1.disks[1].source"),
        ("image_checksum_differs", "colo_guests.web1.disks[2].checksum"),
    ]


def test_boot_files() -> None:
    wrong = {"/srv/vmlinuz": FileState(exists=False, problem=("boot_file_missing", "not there"))}
    assert found(boot_files=wrong) == [("boot_file_missing", "colo_guests.web1.boot.kernel")]
    hidden = {"kernel": "/root/vmlinuz", "initrd": "/srv/vmlinuz", "append": ""}
    assert found(definitions=[definition(boot=hidden)]) == [("boot_file_hidden", "colo_guests.web1.boot.kernel")]
    assert found(definitions=[definition(boot=None)]) == []


@pytest.mark.parametrize(
    ("changed", "state", "expected"),
    [
        ({}, GuestState(), 256 + 128),
        ({"host": "beta"}, GuestState(), 512 + 128),
        ({"host": "beta"}, GuestState(serving=True), 256 + 128),
        ({}, GuestState(serving=False), 512 + 128),
        ({}, GuestState(serving=True, resident_bytes=100 * MIB), 256 + 128 - 100),
        ({}, GuestState(serving=True, resident_bytes=1000 * MIB), 0),
    ],
)
def test_memory_of_one_guest(changed: dict[str, t.Any], state: GuestState, expected: int) -> None:
    assert _preflight.needed_memory(definition(**changed), state) == expected * MIB


def test_changes_of_a_running_guest_are_refused_by_name() -> None:
    started = {"memory_mib": 128}
    host = dataclasses.replace(HOST, guests={"web1": GuestState(started=started)})
    changes = _preflight.changes(host, [_make.definition()])
    assert [str(change) for change in changes] == ["colo_guests.web1.memory_mib: 128 -> 256"]
    problems = _preflight.change_problems(changes)
    assert [(problem.error_code, problem.variable, problem.value) for problem in problems] == [
        ("definition_changed", "colo_guests.web1.memory_mib", 256)
    ]
    assert "colo_allow_restart" in problems[0].message


def test_memory_of_all_guests() -> None:
    two = [definition(), definition(name="web2", hosts=["beta", "alpha"], memory_mib=512, port_base=9032)]
    needed = (256 + 128 + 1024 + 128) * MIB
    assert found(definitions=two, memory_available_bytes=needed) == []
    assert found(definitions=two, memory_available_bytes=needed - 1) == [
        ("memory_short", "colo_guests.web2.memory_mib")
    ]


def test_space_for_parents_and_overlays() -> None:
    directory = "/var/lib/lockstep-colo/web1"
    assert found(disk_free_bytes={directory: 1200 * MIB}) == []
    assert found(disk_free_bytes={directory: 1199 * MIB}) == [("space_short", "colo_state_dir")]
    grown = {PARENT: FileState(exists=True, allocated_bytes=900 * MIB)}
    assert found(disk_free_bytes={directory: 300 * MIB}, images=grown) == []


def test_every_message_says_what_helps() -> None:
    bad = dataclasses.replace(
        HOST,
        links={"br0": Link("br0"), "web1-lan": Link("web1-lan")},
        listeners=(Listener("::", 9002, "nginx (pid 7)"),),
        memory_available_bytes=0,
        disk_free_bytes={"/var/lib/lockstep-colo/web1": 0},
        kvm_problem="/dev/kvm cannot be opened",
    )
    problems = _preflight.problems(bad, [definition()], {"br9": {"ports": ["x0"]}})
    assert len({problem.error_code for problem in problems}) == len(problems) == 8
    assert all(": " in problem.message for problem in problems)


def test_once() -> None:
    problems = _preflight.problems(dataclasses.replace(HOST, links={}), [definition()], {})
    assert _preflight.once([*problems, *problems]) == problems
