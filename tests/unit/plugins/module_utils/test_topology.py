# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What QEMU is told: nothing listens without need, both sides fit together, and devices that break COLO are not there."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _guest, _topology
from ansible_collections.lockstep.colo.tests.unit import _make

ALPHA, BETA = _make.guest("alpha", disks=2, nics=2), _make.guest("beta", disks=2, nics=2)


def _after(argv: list[str], option: str) -> list[str]:
    return [value for name, value in zip(argv, argv[1:]) if name == option]


def _address_type(arguments: dict[str, t.Any]) -> str | None:
    """Of a character device that is made; None of one without an address."""
    return t.cast("str | None", arguments["backend"]["data"].get("addr", {}).get("type"))


def _inet(commands: t.Iterable[_topology.Command]) -> list[tuple[str, str, bool]]:
    """(address, port, listens) of every TCP socket that these commands make."""
    found: list[tuple[str, str, bool]] = []
    for command, arguments in commands:
        if command == "nbd-server-start":
            found.append((arguments["addr"]["data"]["host"], arguments["addr"]["data"]["port"], True))
        elif command == "blockdev-add" and arguments["driver"] == "nbd":
            found.append((arguments["server"]["host"], arguments["server"]["port"], False))
        elif command == "chardev-add" and _address_type(arguments) == "inet":
            data = arguments["backend"]["data"]
            found.append((data["addr"]["data"]["host"], data["addr"]["data"]["port"], data["server"]))
    return found


def test_all_listeners_are_the_standbys_on_its_link_address() -> None:
    listens = _inet(_topology.standby_commands(BETA))
    assert {(address, server) for address, _port, server in listens} == {("192.0.2.2", True)}
    connects = _inet([*_topology.nbd_commands(ALPHA), *_topology.primary_chardev_commands(ALPHA, "reconnect-ms")])
    assert {(address, server) for address, _port, server in connects} == {("192.0.2.2", False)}
    assert {port for _address, port, _server in connects} == {port for _address, port, _server in listens}
    for role in t.get_args(_topology.Role):
        argv = _topology.qemu_argv(ALPHA, role)
        assert not any("0.0.0.0" in word or "tcp:" in word or ",host=" in word for word in argv)


def test_qemu_may_start_nothing_and_become_nobody() -> None:
    """What the sandbox denies, on both sides."""
    for role in _topology.ROLES:
        (sandbox,) = _after(_topology.qemu_argv(ALPHA, role), "-sandbox")
        assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def _over_the_link(guest: _guest.Guest) -> list[t.Any]:
    """What every connection to the peer is told, of both sides."""
    commands = [
        *_topology.standby_commands(guest),
        *_topology.nbd_commands(guest),
        *_topology.primary_chardev_commands(guest, "reconnect-ms"),
        *(_topology.parameters(guest, role) for role in _topology.ROLES),
    ]
    return [
        (command, arguments.get("tls-creds", arguments.get("backend", {}).get("data", {}).get("tls-creds")))
        for command, arguments in commands
        if command in ("nbd-server-start", "migrate-set-parameters")
        or (command == "blockdev-add" and arguments["driver"] == "nbd")
        or (command == "chardev-add" and _address_type(arguments) == "inet")
    ]


def test_every_connection_to_the_peer_has_credentials_of_its_own_end() -> None:
    told = _over_the_link(BETA)
    assert len(told) == 1 + 4 + 2 + 4 + 2
    servers = ["tls-server"] * 5 + ["tls-client"] * 6
    assert [name for _command, name in told] == [*servers, "tls-client", "tls-server"]
    for role, endpoint in (("primary", "client"), ("standby", "server")):
        ((command, arguments),) = _topology.tls_commands(BETA, t.cast("_topology.Role", role))
        assert (command, arguments["id"], arguments["endpoint"]) == ("object-add", f"tls-{endpoint}", endpoint)
        assert arguments["dir"] == BETA.paths.run


def test_without_link_security_there_are_none_and_old_ones_are_taken_back() -> None:
    guest = _guest.from_definition({**_make.definition("beta", disks=2, nics=2), "link_security": "none"})
    told = _over_the_link(guest)
    assert {name for command, name in told if command != "migrate-set-parameters"} == {None}
    assert {name for command, name in told if command == "migrate-set-parameters"} == {""}
    assert not _topology.tls_commands(guest, "primary")
    assert not any("tls" in str(command) for command in _topology.standby_commands(guest))


def test_loops_inside_one_qemu_are_unix_sockets_with_the_server_first() -> None:
    seen: set[str] = set()
    for _command, arguments in _topology.primary_chardev_commands(ALPHA, "reconnect-ms"):
        data = arguments["backend"]["data"]
        if data["addr"]["type"] == "unix":
            path = data["addr"]["data"]["path"]
            assert path.startswith(f"{ALPHA.paths.run}/")
            assert data["server"] is (path not in seen)
            seen.add(path)
    assert len(seen) == 4


@pytest.mark.parametrize(("option", "value"), [("reconnect-ms", 500), ("reconnect", 1)])
def test_clients_never_connect_in_the_main_loop(option: str, value: int) -> None:
    clients = [
        arguments["backend"]["data"]
        for _command, arguments in _topology.primary_chardev_commands(ALPHA, option)
        if _address_type(arguments) == "inet"
    ]
    assert len(clients) == 4
    assert all(data[option] == value for data in clients)


def test_names_of_objects_are_unique_and_every_reference_is_there() -> None:
    for commands in (
        _topology.standby_commands(BETA),
        [*_topology.primary_chardev_commands(ALPHA, "reconnect-ms"), *_topology.primary_filter_commands(ALPHA, ())],
    ):
        made: list[str] = []
        for command, arguments in commands:
            if command == "chardev-add":
                made.append(arguments["id"])
            elif command == "object-add":
                for key in ("indev", "outdev", "primary_in", "secondary_in", "iothread"):
                    assert key not in arguments or arguments[key] in made, (arguments["id"], key)
                made.append(arguments["id"])
        assert len(made) == len(set(made))


def test_every_object_that_is_made_is_taken_away_again() -> None:
    made = {args["id"] for command, args in _topology.primary_filter_commands(ALPHA, ()) if command == "object-add"}
    assert made == {name for nic in (0, 1) for name in _topology.primary_filters(nic)}
    made = {args["id"] for _command, args in _topology.primary_chardev_commands(ALPHA, "reconnect-ms")}
    assert made == {name for nic in (0, 1) for name in _topology.primary_chardevs(nic)}
    standby = _topology.standby_commands(BETA)
    made = {args["id"] for command, args in standby if command == "object-add"}
    stay = {name for nic in (0, 1) for name in (_topology.flusher(nic), _topology.rewriter(nic))}
    filters = {name for nic in (0, 1) for name in _topology.standby_filters(nic)}
    assert made == filters | stay | {_topology.tls_credentials("standby")}
    made = {args["id"] for command, args in standby if command == "chardev-add"}
    stay = {_topology.flusher_chardev(nic) for nic in (0, 1)}
    assert made == stay | {name for nic in (0, 1) for name in _topology.standby_chardevs(nic)}


@pytest.mark.parametrize("model", _guest.NIC_MODELS)
def test_a_virtio_card_has_its_header_told_to_all_filters_or_to_none(model: str) -> None:
    guest = _one_card(model)
    objects = [
        arguments
        for command, arguments in [*_topology.standby_commands(guest), *_topology.primary_filter_commands(guest, ())]
        if command == "object-add" and arguments["qom-type"] not in ("iothread", "tls-creds-psk")
    ]
    assert len(objects) == 8
    assert {entry.get("vnet_hdr_support", False) for entry in objects} == {model == "virtio-net-pci"}


def _one_card(model: str) -> _guest.Guest:
    raw = _make.definition()
    raw["nics"][0]["model"] = model
    return _guest.from_definition(raw)


@pytest.mark.parametrize(("present", "first"), [({"rew1", "flush1"}, "flush1"), ({"rew1"}, "rew1")])
def test_only_cards_that_have_a_rewriter_get_their_filters_before_it(present: set[str], first: str) -> None:
    placed = {
        arguments["id"]: arguments.get("position")
        for command, arguments in _topology.primary_filter_commands(ALPHA, present)
        if arguments["qom-type"].startswith("filter-")
    }
    assert {name: where for name, where in placed.items() if where} == {
        "m1": f"id={first}",
        "redire0-1": f"id={first}",
        "redire1-1": f"id={first}",
    }


def test_every_live_setting_can_be_set_where_it_was_made() -> None:
    made = {
        f"{arguments['id']}.{name}": arguments[name]
        for command, arguments in _topology.primary_filter_commands(ALPHA, ())
        if arguments["qom-type"] == "colo-compare"
        for name in _topology.COMPARE_PROPERTIES
    }
    parameters = _topology.parameters(ALPHA, "primary")[1]
    wanted = _topology.live_settings(ALPHA)
    assert wanted == {**made, "x-checkpoint-delay": parameters["x-checkpoint-delay"]}
    assert _topology.set_command("x-checkpoint-delay", 7) == ("migrate-set-parameters", {"x-checkpoint-delay": 7})
    assert _topology.set_command("comp1.max_queue_size", 7) == (
        "qom-set",
        {"path": "/objects/comp1", "property": "max_queue_size", "value": 7},
    )


@pytest.mark.parametrize("channels", [0, 4])
def test_both_sides_have_the_same_channels(channels: int) -> None:
    raw = _make.definition(tuning={"multifd_channels": channels})
    guest = _guest.from_definition(raw)
    for role in _topology.ROLES:
        assert _topology.parameters(guest, role)[1].get("multifd-channels", 0) == channels
    assert _topology.fixed_settings(guest) == {"multifd-channels": channels}


def test_devices_that_are_known_to_break_lock_step_are_not_there() -> None:
    for role in t.get_args(_topology.Role):
        argv = _topology.qemu_argv(ALPHA, role)
        disks = [device for device in _after(argv, "-device") if device.startswith("virtio-blk")]
        assert len(disks) == 2
        assert all("werror=report,rerror=report" in device and "iothread" not in device for device in disks)
        assert all("vhost=off" in netdev and "script=no" in netdev for netdev in _after(argv, "-netdev"))
        assert _after(argv, "-action") == ["shutdown=pause"]
        assert "-daemonize" not in argv
        assert "-nodefaults" in argv


def test_the_guest_does_not_run_before_it_is_told_to() -> None:
    assert _topology.qemu_argv(ALPHA, "primary")[-1] == "-S"
    assert _topology.qemu_argv(ALPHA, "standby")[-2:] == ["-incoming", "defer"]
    assert "-incoming" not in _topology.qemu_argv(ALPHA, "primary")


def test_both_sides_have_the_same_machine() -> None:
    """What the guest sees must be equal; only disks' back ends and the way of starting differ."""
    one, two = _topology.qemu_argv(ALPHA, "primary"), _topology.qemu_argv(BETA, "standby")
    for option in ("-machine", "-cpu", "-smp", "-m", "-uuid", "-device", "-netdev", "-accel", "-name"):
        assert _after(one, option) == _after(two, option), option
    assert _after(_topology.qemu_argv(_make.guest(name="db"), "primary"), "-uuid") != _after(one, "-uuid")


def test_nobody_waits_for_a_monitors_client() -> None:
    argv = _topology.qemu_argv(ALPHA, "primary")
    monitors = [chardev for chardev in _after(argv, "-chardev") if chardev.startswith("socket,")]
    assert len(monitors) == len(_after(argv, "-mon")) == 3
    assert all(chardev.startswith(f"socket,id={_topology.MONITOR_PREFIX}") for chardev in monitors)
    assert all(chardev.endswith(",server=on,wait=off") for chardev in monitors)
    assert len({chardev.split("path=")[1] for chardev in monitors}) == 3


def test_a_comma_in_a_path_is_no_option() -> None:
    raw = _make.definition()
    # none that definitions() would let through
    guest = _guest.from_definition({**raw, "paths": {**raw["paths"], "run": "/a,server=off/run"}})
    (chardev, *_rest) = [
        entry for entry in _after(_topology.qemu_argv(guest, "primary"), "-chardev") if "socket" in entry
    ]
    assert "path=/a,,server=off/run" in chardev


def _blockdevs(role: _topology.Role) -> dict[str, t.Any]:
    nodes = [json.loads(text) for text in _after(_topology.qemu_argv(BETA, role), "-blockdev")]
    return {node["node-name"]: node for node in nodes}


def test_a_primary_has_a_quorum_over_its_image() -> None:
    nodes = _blockdevs("primary")
    assert set(nodes) == {"parent0", "colo-disk0", "parent1", "colo-disk1"}
    assert nodes["colo-disk1"]["children"] == ["parent1"]
    assert nodes["parent1"]["backing"] is None


def test_a_standby_has_its_overlays_between_quorum_and_image() -> None:
    nodes = _blockdevs("standby")
    child = nodes["childs1"]
    assert nodes["colo-disk1"]["children"] == ["childs1"]
    assert (child["mode"], child["top-id"]) == ("secondary", "colo-disk1")
    active = child["file"]
    assert (active["node-name"], active["file"]["filename"]) == ("active1", BETA.image(BETA.disks[1], "active"))
    hidden = active["backing"]
    assert (hidden["node-name"], hidden["file"]["filename"]) == ("hidden1", BETA.image(BETA.disks[1], "hidden"))
    assert hidden["backing"] == "parent1"
    assert (active["node-name"], hidden["node-name"]) == _topology.overlay_nodes(1)


def test_what_the_primary_writes_goes_into_the_image_that_the_standby_exports() -> None:
    exported = {
        (args["name"], args["node-name"], args["writable"])
        for command, args in _topology.standby_commands(BETA)
        if command == "block-export-add"
    }
    assert exported == {("parent0", "parent0", True), ("parent1", "parent1", True)}
    assert [args["export"] for _command, args in _topology.nbd_commands(ALPHA)] == ["parent0", "parent1"]


def test_replication_takes_the_mirrors_target() -> None:
    targets = [args["target"] for _command, args in _topology.resync_commands(ALPHA)]
    added = [args for command, args in _topology.replication_commands(ALPHA) if command == "blockdev-add"]
    watched = {args["node-name"]: args["children"] for args in added if args["driver"] == "quorum"}
    written = [watched[args["file"]] for args in added if args["driver"] == "replication"]
    assert targets == ["nbd0", "nbd1"]
    assert written == [["nbd0"], ["nbd1"]]
    assert all(args["sync"] == "full" for _command, args in _topology.resync_commands(ALPHA))


@pytest.mark.parametrize(
    ("host", "uri"), [("192.0.2.2", "tcp:192.0.2.2:9000"), ("2001:db8::2", "tcp:[2001:db8::2]:9000")]
)
def test_an_address_of_either_kind(host: str, uri: str) -> None:
    assert _topology.migration_uri(host, 9000) == uri


def test_everything_that_can_block_the_main_loop_is_yanked_migration_first() -> None:
    instances = _topology.yank_instances(ALPHA)
    assert instances[0] == {"type": "migration"}
    assert [entry["node-name"] for entry in instances if entry["type"] == "block-node"] == ["nbd0", "nbd1"]
    over_the_link = {
        args["id"]
        for _command, args in [*_topology.primary_chardev_commands(ALPHA, None), *_topology.standby_commands(ALPHA)]
        if _command == "chardev-add" and _address_type(args) == "inet"
    }
    assert {entry["id"] for entry in instances if entry["type"] == "chardev"} == over_the_link


def test_boot_and_console() -> None:
    raw = _make.definition(boot={"kernel": "/srv/vmlinuz", "initrd": "/srv/initrd", "append": "console=ttyS0"})
    argv = _topology.qemu_argv(_guest.from_definition(raw), "primary")
    assert [_after(argv, name) for name in ("-kernel", "-initrd", "-append")] == [
        ["/srv/vmlinuz"],
        ["/srv/initrd"],
        ["console=ttyS0"],
    ]
    assert not {"-kernel", "-initrd", "-append"} & set(_topology.qemu_argv(ALPHA, "primary"))
