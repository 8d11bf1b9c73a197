# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator may write about a guest, and that nothing else gets into a definition."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import re
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.lockstep.colo.plugins.module_utils import _guest, _topology
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError
from ansible_collections.lockstep.colo.tests.unit import _make

DEFAULTS = _guest.HostDefaults(accelerator="tcg")


def _definitions(guests: t.Any, host: str = "alpha", **links: t.Any) -> list[dict[str, t.Any]]:
    return _guest.definitions(guests, host, {**_make.LINKS, **links}, DEFAULTS)


def _refused(guests: t.Any, **links: t.Any) -> InputError:
    with pytest.raises(InputError) as caught:
        _definitions(guests, **links)
    error = caught.value
    assert error.details["variable"] in error.message
    assert repr(error.details["value"]) in error.message
    return error


def _disk(**more: t.Any) -> dict[str, t.Any]:
    return _make.wish(disks=1) | {"disks": [{"name": "root", "size": "1G", **more}]}


def _nic(**more: t.Any) -> dict[str, t.Any]:
    return _make.wish() | {"nics": [{"name": "lan", "bridge": "br0", "mac": "52:54:00:12:34:56", **more}]}


# --- one wish, two definitions ----------------------------------------------------------------------------------


def test_both_hosts_get_the_same_guest_seen_from_their_side() -> None:
    guests = {
        "web1": _make.wish(),
        "db": _make.wish(nics=1) | {"nics": [{"name": "lan", "bridge": "br0", "mac": "52:54:00:aa:00:01"}]},
    }
    one, two = _definitions(guests), _definitions(guests, "beta")
    assert [entry["name"] for entry in one] == ["web1", "db"]
    for here, there in zip(one, two):
        assert (here["host"], here["peer"], there["host"], there["peer"]) == ("alpha", "beta", "beta", "alpha")
        differ = {key for key in here if here[key] != there[key]}
        assert differ == {"host", "peer"}


def test_a_definition_survives_its_file(tmp_path: pathlib.Path) -> None:
    raw = _make.definition(disks=2, nics=2, boot={"kernel": "/srv/vmlinuz", "append": "console=ttyS0"})
    file = tmp_path / "web1.json"
    file.write_text(json.dumps(raw))
    assert _guest.load(str(file)) == _guest.from_definition(raw)


def test_names_and_paths_of_a_guest() -> None:
    guest = _make.guest("beta", nics=2, port_base=9100)
    assert (guest.peer, guest.link_address, guest.peer_address) == ("alpha", "192.0.2.2", "192.0.2.1")
    assert (guest.unit, guest.keeper_unit) == ("colo-guest@web1.service", "colo-keeper@web1.service")
    assert guest.definition_file == "/etc/lockstep-colo/web1.json"
    run = "/run/lockstep-colo/web1"
    assert [guest.qmp_socket, guest.keeper_qmp_socket, guest.operator_socket, guest.keeper_socket] == [
        f"{run}/qmp.sock",
        f"{run}/keeper-qmp.sock",
        f"{run}/operator/qmp.sock",
        f"{run}/keeper.sock",
    ]
    assert (guest.permit_file, guest.lock_file) == (f"{run}/permit.json", f"{run}/lock")
    state = "/var/lib/lockstep-colo/web1"
    assert guest.record_file == f"{state}/record.json"
    assert [guest.image(guest.disks[0], kind) for kind in t.get_args(_guest.ImageKind)] == [
        f"{state}/disk0.qcow2",
        f"{state}/disk0.active.qcow2",
        f"{state}/disk0.hidden.qcow2",
    ]
    ports = [guest.port_migration, guest.port_nbd, guest.port_heartbeat]
    ports += [port for nic in (0, 1) for port in (guest.port_mirror(nic), guest.port_compare(nic))]
    assert ports == [9100, 9101, 9102, 9104, 9105, 9106, 9107]


def test_the_most_network_cards_fit_into_the_ports_of_a_guest() -> None:
    guest = _make.guest(nics=14)
    assert guest.port_compare(13) < guest.port_base + _guest.PORTS_PER_GUEST
    assert _refused({"web1": _make.wish(nics=15)}).details["variable"] == "colo_guests.web1.nics"


def test_ports_follow_the_order_of_the_guests_for_all_hosts_alike() -> None:
    cards = [{"name": "lan", "bridge": "br0", "mac": f"52:54:00:00:01:{n:02x}"} for n in range(3)]
    guests = {f"g{n}": _make.wish() | {"nics": [cards[n]]} for n in range(3)}
    guests["g1"]["hosts"] = ["beta", "gamma"]
    links = {"gamma": "192.0.2.3"}
    assert [entry["port_base"] for entry in _definitions(guests, **links)] == [9000, 9064]
    assert [entry["port_base"] for entry in _guest.definitions(guests, "gamma", _make.LINKS | links, DEFAULTS)] == [
        9032
    ]


def _ports(kept: dict[str, dict[str, t.Any]], **wishes: t.Any) -> dict[str, int]:
    """The ports of these guests, each with a card of its own; a number is an explicit ``port_base``."""
    guests = {}
    for number, (name, wish) in enumerate(wishes.items()):
        card = {"name": "lan", "bridge": "br0", "mac": f"52:54:00:00:01:{number:02x}"}
        guests[name] = _make.wish() | {"nics": [card]} | ({} if wish is None else {"port_base": wish})
    here, there = (
        {entry["name"]: entry["port_base"] for entry in _guest.definitions(guests, host, _make.LINKS, DEFAULTS, kept)}
        for host in ("alpha", "beta")
    )
    assert here == there, "the two hosts of a guest were told different ports"
    return here


def test_a_guest_that_is_deployed_keeps_its_ports_whoever_comes_or_goes() -> None:
    kept = {"alpha": {"web1": "9000", "web2": "9032"}, "beta": {"web1": "9000"}}
    assert _ports(kept, aaa=None, web1=None, web2=None) == {"aaa": 9064, "web1": 9000, "web2": 9032}
    assert _ports(kept, web2=None) == {"web2": 9032}
    # web1 was taken out of colo_guests, and its QEMU may run yet
    assert _ports(kept, aaa=None, web2=None) == {"aaa": 9064, "web2": 9032}
    # a host that was replaced by an empty one, or not asked, knows nothing: the other one does
    assert _ports({"beta": {"web1": 9320}}, aaa=None, web1=None) == {"aaa": 9000, "web1": 9320}
    assert _ports({"gamma": {"aaa": 9000}}, aaa=None) == {"aaa": 9032}, "aaa is there yet on a host that it has left"


def test_a_port_base_that_is_given_counts_and_new_guests_go_around_it() -> None:
    assert _ports({"alpha": {"web1": 9000}}, aaa=None, web1=9500) == {"aaa": 9032, "web1": 9500}
    assert _ports({}, aaa=None, bbb=None, web1=9031) == {"aaa": 9064, "bbb": 9096, "web1": 9031}
    links = {"alpha": {"web1": 9000}}
    with pytest.raises(InputError) as caught:
        _ports(links, aaa=9000, web1=None)
    assert caught.value.error_code == "port_clash"


@pytest.mark.parametrize(("guest", "nic", "tap"), [("web1", "lan", "web1-lan"), ("a" * 31, "lan", None)])
def test_tap_names_fit_the_kernel(guest: str, nic: str, tap: str | None) -> None:
    name = _guest.tap_name(guest, nic)
    assert len(name) <= 15
    assert re.fullmatch(r"[a-z][a-z0-9-]*", name)
    assert tap in (None, name)
    assert name != _guest.tap_name(guest, "wan")


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guests", "variable", "code"),
    [
        ([], "colo_guests", "bad_input"),
        ({"Web": _make.wish()}, "colo_guests", "bad_input"),
        ({"a" * 32: _make.wish()}, "colo_guests", "bad_input"),
        ({"1a": _make.wish()}, "colo_guests", "bad_input"),
        ({5: _make.wish()}, "colo_guests", "bad_input"),
        ({"../x": _make.wish()}, "colo_guests", "bad_input"),
        ({"a\n": _make.wish()}, "colo_guests", "bad_input"),
        ({"web1": None}, "colo_guests.web1", "bad_input"),
        ({"web1": {}}, "colo_guests.web1.hosts", "bad_input"),
        ({"web1": _make.wish(hosts=["alpha"])}, "colo_guests.web1.hosts", "bad_input"),
        ({"web1": _make.wish(hosts=["alpha", "alpha"])}, "colo_guests.web1.hosts", "bad_input"),
        ({"web1": _make.wish(hosts=["alpha", "delta"])}, "colo_guests.web1.hosts", "unknown_host"),
        ({"web1": _make.wish(hosts="alpha")}, "colo_guests.web1.hosts", "bad_input"),
        ({"web1": _make.wish(memory=5)}, "colo_guests.web1.memory", "bad_input"),
        ({"web1": _make.wish(vhost=True)}, "colo_guests.web1.vhost", "unsupported_device"),
        ({"web1": _make.wish(memory_mib=15)}, "colo_guests.web1.memory_mib", "bad_input"),
        ({"web1": _make.wish(memory_mib=True)}, "colo_guests.web1.memory_mib", "bad_input"),
        ({"web1": _make.wish(memory_mib=256.0)}, "colo_guests.web1.memory_mib", "bad_input"),
        ({"web1": _make.wish(memory_mib="2G")}, "colo_guests.web1.memory_mib", "bad_input"),
        ({"web1": _make.wish(memory_mib="9" * 5000)}, "colo_guests.web1.memory_mib", "bad_input"),
        ({"web1": _make.wish(vcpus=0)}, "colo_guests.web1.vcpus", "bad_input"),
        ({"web1": _make.wish(machine="microvm")}, "colo_guests.web1.machine", "bad_input"),
        ({"web1": _make.wish(machine="pc-i440fx-11.1,usb=on")}, "colo_guests.web1.machine", "bad_input"),
        ({"web1": _make.wish(machine="pc-i440fx-10.0")}, "colo_guests.web1.machine", "bad_input"),
        ({"web1": _make.wish(machine="pc-q35")}, "colo_guests.web1.machine", "bad_input"),
        ({"web1": _make.wish(accelerator="xen")}, "colo_guests.web1.accelerator", "bad_input"),
        ({"web1": _make.wish(cpu="qemu64 -S")}, "colo_guests.web1.cpu", "bad_input"),
        ({"web1": _make.wish(port_base=80)}, "colo_guests.web1.port_base", "bad_input"),
        ({"web1": _make.wish(port_base=65505)}, "colo_guests.web1.port_base", "bad_input"),
        ({"web1": _make.wish(disks=0)}, "colo_guests.web1.disks", "bad_input"),
        ({"web1": _make.wish(nics=0)}, "colo_guests.web1.nics", "bad_input"),
        ({"web1": _disk(name="Root")}, "colo_guests.web1.disks[0].name", "bad_input"),
        ({"web1": _disk(name="a.active")}, "colo_guests.web1.disks[0].name", "bad_input"),
        ({"web1": _disk(size="0")}, "colo_guests.web1.disks[0].size", "bad_input"),
        ({"web1": _disk(size="1g")}, "colo_guests.web1.disks[0].size", "bad_input"),
        ({"web1": _disk(size="513")}, "colo_guests.web1.disks[0].size", "bad_input"),
        ({"web1": _disk(size=True)}, "colo_guests.web1.disks[0].size", "bad_input"),
        ({"web1": _disk(size="9" * 5000)}, "colo_guests.web1.disks[0].size", "bad_input"),
        ({"web1": _disk(source="image.qcow2")}, "colo_guests.web1.disks[0].source", "bad_input"),
        ({"web1": _disk(source="/srv/../etc/shadow")}, "colo_guests.web1.disks[0].source", "bad_input"),
        ({"web1": _disk(source="/srv/..")}, "colo_guests.web1.disks[0].source", "bad_input"),
        ({"web1": _disk(source="/srv/%i")}, "colo_guests.web1.disks[0].source", "bad_input"),
        ({"web1": _disk(source="ftp://x/y")}, "colo_guests.web1.disks[0].source", "bad_input"),
        ({"web1": _disk(source="http://x/y")}, "colo_guests.web1.disks[0].checksum", "bad_input"),
        (
            {"web1": _disk(source="http://x/\x1b[2J", checksum="sha256:" + "0" * 64)},
            "colo_guests.web1.disks[0].source",
            "bad_input",
        ),
        ({"web1": _disk(source_format="vmdk")}, "colo_guests.web1.disks[0].source_format", "bad_input"),
        ({"web1": _disk(checksum="sha256:00")}, "colo_guests.web1.disks[0].checksum", "bad_input"),
        ({"web1": _disk(iothread=True)}, "colo_guests.web1.disks[0].iothread", "unsupported_device"),
        ({"web1": _nic(mac="52:54:00:12:34")}, "colo_guests.web1.nics[0].mac", "bad_input"),
        ({"web1": _nic(mac=190200000000)}, "colo_guests.web1.nics[0].mac", "bad_input"),
        ({"web1": _nic(mac="53:54:00:12:34:56")}, "colo_guests.web1.nics[0].mac", "bad_input"),
        ({"web1": _nic(bridge="br0,script=/bin/sh")}, "colo_guests.web1.nics[0].bridge", "bad_input"),
        ({"web1": _nic(tap="a" * 16)}, "colo_guests.web1.nics[0].tap", "bad_input"),
        ({"web1": _nic(model="ne2k_pci")}, "colo_guests.web1.nics[0].model", "bad_input"),
        ({"web1": _nic(vlan=5)}, "colo_guests.web1.nics[0].vlan", "unsupported_device"),
        ({"web1": _nic(queues=4)}, "colo_guests.web1.nics[0].queues", "unsupported_device"),
        ({"web1": _make.wish(boot={"append": "x"})}, "colo_guests.web1.boot.kernel", "bad_input"),
        ({"web1": _make.wish(boot={"kernel": "/k", "append": "a\nb"})}, "colo_guests.web1.boot.append", "bad_input"),
        ({"web1": _make.wish(boot={"kernel": "/k", "initrd": "i"})}, "colo_guests.web1.boot.initrd", "bad_input"),
        ({"web1": _make.wish(tuning={"profile": "fast"})}, "colo_guests.web1.tuning.profile", "bad_input"),
        ({"web1": _make.wish(tuning={"checkpoint_delay": 5})}, "colo_guests.web1.tuning.checkpoint_delay", "bad_input"),
        (
            {"web1": _make.wish(tuning={"checkpoint_delay_ms": 99})},
            "colo_guests.web1.tuning.checkpoint_delay_ms",
            "bad_input",
        ),
        (
            {"web1": _make.wish(tuning={"heartbeat_interval_ms": 2000})},
            "colo_guests.web1.tuning.heartbeat_timeout_ms",
            "bad_input",
        ),
        ({"a": _make.wish(port_base=9000), "b": _make.wish(port_base=9031)}, "colo_guests.b.port_base", "port_clash"),
        ({"a": _make.wish(), "b": _make.wish()}, "colo_guests.b.nics[0].mac", "duplicate"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_variable(guests: t.Any, variable: str, code: str) -> None:
    error = _refused(guests)
    assert (error.details["variable"], error.error_code) == (variable, code)


def test_two_cards_that_only_look_like_two_numbers() -> None:
    """web1's card 1 and web's card 11 are two cards."""
    one = _make.wish(nics=2)
    many = _make.wish(nics=12)
    for number, nic in enumerate(many["nics"]):
        nic["mac"] = f"52:54:00:00:01:{number:02x}"
    many["nics"][11]["mac"] = one["nics"][1]["mac"]
    assert _refused({"web1": one, "web": many}).error_code == "duplicate"


def test_names_that_are_there_twice() -> None:
    twice = _make.wish(disks=2)
    twice["disks"][1]["name"] = "disk0"
    assert _refused({"web1": twice}).error_code == "duplicate"
    twice = _make.wish(nics=2)
    twice["nics"][1]["name"] = "nic0"
    assert _refused({"web1": twice}).error_code == "duplicate"


def test_guests_that_never_meet_may_have_the_same_ports_and_taps() -> None:
    one, two = _make.wish(port_base=9000), _make.wish(port_base=9000, hosts=["gamma", "delta"])
    links = {"gamma": "192.0.2.3", "delta": "192.0.2.4"}
    assert len(_definitions({"a": one, "b": two}, **links)) == 1
    two["hosts"] = ["gamma", "alpha"]
    assert _refused({"a": one, "b": two}, **links).error_code == "port_clash"


@pytest.mark.parametrize(
    "address", ["", "x", None, "0.0.0.0", "::", "224.0.0.1", "192.0.2.0/24", "192.0.2.2", "fe80::1%eth0"]
)
def test_a_link_has_one_address_on_each_side(address: t.Any) -> None:
    assert "colo_link_address of host" in _refused({"web1": _make.wish()}, alpha=address).details["variable"]


def test_an_address_is_written_in_one_way() -> None:
    found = _definitions({"web1": _make.wish()}, alpha="2001:DB8:0::1", beta="2001:db8::2")[0]
    assert found["link"] == {"alpha": "2001:db8::1", "beta": "2001:db8::2"}


@pytest.mark.parametrize(
    ("value", "size"),
    [(1024, 1024), ("512", 512), ("1K", 1024), ("64M", 64 * 2**20), ("20G", 20 * 2**30), ("2T", 2 * 2**40)],
)
def test_sizes(value: t.Any, size: int) -> None:
    assert _guest.size_bytes("x", value) == size


# --- nothing hostile gets through -------------------------------------------------------------------------------

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="./-_:,;%$\"'\\ \n\t\x00\x7f\u0130\u212a\uff10aA0", max_size=20),
    st.sampled_from(
        ["web1\n", "a b", "$(id)", "%n", "a;b", "a,b=c", "/x/../y", "//..", "52:54:00:12:34:5G", "\u0661G", "1G\n"]
    ),
    st.from_regex(r"[a-z/][a-z0-9./:,-]{0,30}\n?", fullmatch=True),
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | HOSTILE | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE | st.integers(), inner, max_size=3),
    max_leaves=6,
)

# What each string of a definition may look like: written here once more, on purpose in other words than in the code.
SHAPES: dict[str, str] = {
    "name": r"[a-z][a-z0-9-]{0,30}",
    "disk": r"[a-z][a-z0-9]{0,14}",
    "ifname": r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}",
    "mac": r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}",
    "path": r"/[^\x00-\x1f\x7f%$\"'\\]*",
    "url": r"https?://[!#-&(-\[\]-~\u0080-\U0010ffff]+",
    "cpu": r"[A-Za-z0-9][A-Za-z0-9_.,=+-]*",
    "line": r"[^\x00-\x1f\x7f]*",
}


def _shaped(shape: str, value: t.Any) -> None:
    assert isinstance(value, str)
    assert re.fullmatch(SHAPES[shape], value), (shape, value)


def _whole(value: object) -> bool:
    """True for an int that is no bool, which is one, too."""
    return isinstance(value, int) and not isinstance(value, bool)


def _all_shaped(found: dict[str, t.Any]) -> None:
    _shaped("name", found["name"])
    _shaped("cpu", found["cpu"])
    for disk in found["disks"]:
        _shaped("disk", disk["name"])
        assert _whole(disk["size_bytes"])
        assert disk["size_bytes"] > 0
        assert disk["size_bytes"] % 512 == 0
        if disk["source"] is not None:
            _shaped("path" if disk["source"].startswith("/") else "url", disk["source"])
            assert ".." not in disk["source"].split("/") or disk["source"].startswith("http")
        assert disk["source_format"] in ("qcow2", "raw")
    for nic in found["nics"]:
        _shaped("disk", nic["name"])
        _shaped("ifname", nic["bridge"])
        _shaped("ifname", nic["tap"])
        _shaped("mac", nic["mac"])
    if found["boot"] is not None:
        _shaped("path", found["boot"]["kernel"])
        _shaped("line", found["boot"]["append"])
    for key in ("memory_mib", "vcpus", "port_base"):
        assert _whole(found[key])
    assert all(_whole(value) for value in found["tuning"].values())


@pytest.mark.parametrize("profile", sorted(_guest.PROFILES))
def test_a_profile_sets_its_knobs_and_a_single_knob_overrides_it(profile: str) -> None:
    found = _make.definition(tuning={"profile": profile})["tuning"]
    plain = _make.definition()["tuning"]
    assert found == {**plain, **_guest.PROFILES[profile]}
    own = _make.definition(tuning={"profile": profile, "checkpoint_delay_ms": 777})["tuning"]
    assert own == {**found, "checkpoint_delay_ms": 777}


def test_the_default_profile_is_the_defaults() -> None:
    defaults = dataclasses.asdict(_guest.Tuning())
    assert {**defaults, **_guest.PROFILES[_guest.DEFAULT_PROFILE]} == defaults
    assert len({tuple(sorted(knobs.items())) for knobs in _guest.PROFILES.values()}) == len(_guest.PROFILES)


FULL = _make.wish(
    disks=1,
    nics=1,
    vcpus=1,
    machine="pc",
    cpu="qemu64",
    accelerator="tcg",
    port_base=9000,
    boot={"kernel": "/srv/vmlinuz", "initrd": "/srv/initrd", "append": "quiet"},
    tuning={"checkpoint_delay_ms": 1000},
)
FULL["disks"][0].update({"source": "/srv/x.qcow2", "source_format": "qcow2", "checksum": "sha256:" + "a" * 64})
FULL["nics"][0].update({"model": "virtio-net-pci", "tap": "tap0"})


def _places(value: t.Any, place: tuple[t.Any, ...] = ()) -> t.Iterator[tuple[t.Any, ...]]:
    if place:
        yield place
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*place, key))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _places(entry, (*place, number))


def _put(value: t.Any, place: tuple[t.Any, ...], new: t.Any) -> t.Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return changed


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.sampled_from(list(_places(FULL))), ANYTHING)
def test_whatever_is_put_anywhere_is_refused_or_harmless(place: tuple[t.Any, ...], new: t.Any) -> None:
    try:
        found = _definitions({"web1": _put(FULL, place, new)})
    except InputError as exc:
        refused: str = exc.details["variable"]
        found = []
    else:
        refused = "colo_nothing"
    assert refused.startswith("colo_")
    for entry in found:
        _all_shaped(entry)
        guest = _guest.from_definition(json.loads(json.dumps(entry)))
        assert guest.name == "web1"
        _one_word_each(guest)


def _one_word_each(guest: _guest.Guest) -> None:
    """No value of a definition becomes an option of QEMU's, or a second one: each option has one word."""
    for role in _topology.ROLES:
        words = _topology.qemu_argv(guest, role)[1:]
        while words:
            option = words.pop(0)
            assert option in OPTIONS, option
            if option not in FLAGS:
                word = words.pop(0)
                assert option not in ("-device", "-netdev") or re.fullmatch(r"[A-Za-z0-9_.:,=-]+", word)
                assert option != "-blockdev" or json.loads(word)["driver"] in ("qcow2", "replication", "quorum")


FLAGS = {"-nodefaults", "-no-user-config", "-S"}
OPTIONS = FLAGS | {
    *(
        "-name",
        "-uuid",
        "-msg",
        "-machine",
        "-accel",
        "-cpu",
        "-smp",
        "-m",
        "-display",
        "-action",
        "-sandbox",
        "-chardev",
    ),
    *("-serial", "-mon", "-kernel", "-initrd", "-append", "-blockdev", "-device", "-netdev", "-incoming"),
}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(HOSTILE | st.from_regex(r"(192[.]0[.]2[.]1|fe80::1)[%;{} #a-z0-9/]{0,12}", fullmatch=True))
def test_an_address_of_the_link_is_nothing_but_an_address(address: str) -> None:
    """It goes into firewall rules."""
    try:
        found = _definitions({"web1": FULL}, alpha=address)
    except InputError:
        return
    assert re.fullmatch(r"[0-9a-f.:]+", found[0]["link"]["alpha"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(HOSTILE)
def test_a_guests_name_is_a_file_name_a_unit_instance_and_a_label(name: str) -> None:
    try:
        found = _definitions({name: FULL})
    except InputError:
        assert re.fullmatch(SHAPES["name"], name) is None
        return
    _shaped("name", found[0]["name"])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(["config_dir", "state_dir", "run_dir", "qemu_binary"]), HOSTILE)
def test_directories_of_the_host_are_checked_as_well(name: str, path: str) -> None:
    changed: dict[str, t.Any] = {name: path}
    try:
        found = _guest.definitions({"web1": FULL}, "alpha", _make.LINKS, dataclasses.replace(DEFAULTS, **changed))
    except InputError as exc:
        refused, found = exc.details["variable"], []
    else:
        refused = f"colo_{name}"
    assert refused == f"colo_{name}"
    if not found:
        return
    for value in (*found[0]["paths"].values(), found[0]["qemu_binary"]):
        _shaped("path", value)
        assert ".." not in value.split("/")


# --- a definition on disk ---------------------------------------------------------------------------------------


def test_a_guest_that_is_not_deployed(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ColoError) as caught:
        _guest.load(str(tmp_path / "web1.json"))
    assert caught.value.error_code == "guest_unknown"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "{}", '{"schema": 2}', '{"schema": 1}', "\udcff"])
def test_a_file_that_is_no_definition(tmp_path: pathlib.Path, text: str) -> None:
    file = tmp_path / "web1.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ColoError) as caught:
        _guest.load(str(file))
    assert caught.value.error_code == "definition_unreadable"
    assert "site.yml" in caught.value.message


@pytest.mark.parametrize("key", sorted({*_make.definition()} - {"schema", "peer"}))
@pytest.mark.parametrize("value", [None, "x", 5, [], {}, [5], {"x": 5}])
def test_a_damaged_definition_is_refused_or_read_as_it_is(key: str, value: t.Any) -> None:
    """Whatever a hand did to the file: an error of ours, never a trace back."""
    raw = {**_make.definition(), key: value}
    try:
        guest = _guest.from_definition(raw)
    except ColoError as exc:
        code = exc.error_code
    else:
        code = "definition_unreadable"
        assert {guest.host, guest.peer} == set(guest.hosts)
        assert guest.link_address != guest.peer_address
    assert code == "definition_unreadable"


@pytest.mark.parametrize("key", sorted({*_make.definition()} - {"peer"}))
def test_a_definition_without_one_of_its_keys(key: str) -> None:
    raw = _make.definition()
    del raw[key]
    with pytest.raises(ColoError) as caught:
        _guest.from_definition(raw)
    assert caught.value.error_code == "definition_unreadable"


# --- a running guest and a new definition -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "variables"),
    [
        ({}, []),
        ({"memory_mib": 300}, ["colo_guests.web1.memory_mib"]),
        ({"vcpus": 2, "cpu": "max"}, ["colo_guests.web1.vcpus", "colo_guests.web1.cpu"]),
        ({"disks": 2}, ["colo_guests.web1.disks"]),
        ({"nics": 2}, ["colo_guests.web1.nics"]),
        ({"tuning": {"checkpoint_delay_ms": 500}, "port_base": 9100}, []),
    ],
)
def test_what_needs_a_restart(changed: dict[str, t.Any], variables: list[str]) -> None:
    started = json.loads(json.dumps(_guest.shape(dataclasses.asdict(_make.guest()))))
    found = _guest.changes(started, _make.definition(**changed))
    assert [change.variable for change in found] == variables


def test_where_a_source_comes_from_and_what_is_not_known_need_no_restart() -> None:
    started = _guest.shape(_make.definition())
    moved = copy.deepcopy(_make.definition())
    moved["disks"][0]["source"] = "/srv/other.qcow2"
    moved["nics"][0]["bridge"] = "br7"
    assert _guest.changes(started, moved) == []
    assert _guest.changes(None, moved) == []
    assert _guest.changes({"memory_mib": 1, "more": 2}, moved) == [_guest.Change("colo_guests.web1.memory_mib", 1, 256)]


@pytest.mark.parametrize(
    ("running", "wished", "restart"),
    [
        ("pc", "pc-i440fx-11.1", False),
        ("q35", "pc-q35-11.1", False),
        ("pc", "pc-q35-11.1", True),
        ("pc", "q35", True),
        ("pc-i440fx-11.1", "pc", True),
        ("pc-i440fx-11.1", "pc-i440fx-11.2", True),
    ],
)
def test_a_running_machine_may_be_named(running: str, wished: str, restart: bool) -> None:
    started = _guest.shape(_make.definition(machine=running))
    assert bool(_guest.changes(started, _make.definition(machine=wished))) is restart


def test_a_guest_as_it_was_started() -> None:
    one, two = _make.guest(), _make.guest(nics=2, disks=2)
    shape = json.loads(json.dumps(_guest.shape(dataclasses.asdict(one))))
    assert _guest.as_started(two, shape) == one
    assert _guest.as_started(two, None) == two
    removed = _guest.as_started(one, json.loads(json.dumps(_guest.shape(dataclasses.asdict(two)))))
    assert [nic.tap for nic in removed.nics] == [nic.tap for nic in two.nics]
    assert [disk.name for disk in removed.disks] == [disk.name for disk in two.disks]
