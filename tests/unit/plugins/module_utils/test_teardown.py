# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be taken away: only what is off, only the disks that are named, only the devices that the roles have made."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _states, _teardown
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._pair import Side
from ansible_collections.lockstep.colo.tests.unit import _make

OFF = {"absent", "stopped"}


@pytest.mark.parametrize("one", [*t.get_args(_states.Standing), None])
@pytest.mark.parametrize("two", [*t.get_args(_states.Standing), None])
def test_only_what_is_off_on_every_host_may_go(one: _states.Standing | None, two: _states.Standing | None) -> None:
    reason = _teardown.not_off("web1", [Side("alpha", one), Side("beta", two)])
    assert (reason == "") == ({one, two} <= OFF)
    for host, standing in (("alpha", one), ("beta", two)):
        assert (host in reason) == (standing not in OFF)


@pytest.mark.parametrize(
    ("standing", "remedy"),
    [
        ("primary", "power.yml -e colo_guest=web1 -e colo_state=stopped"),
        ("orphaned", "power.yml -e colo_guest=web1 -e colo_state=stopped"),
        ("failed", "stop colo-guest@web1.service there"),
        (None, "--limit"),
    ],
)
def test_the_remedy_is_told(standing: _states.Standing | None, remedy: str) -> None:
    assert remedy in _teardown.not_off("web1", [Side("alpha", standing), Side("beta", "stopped")])


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ([], []),
        ("", []),
        ("web1", ["web1"]),
        (["db", "web1"], ["web1", "db"]),
        ("db, web1", ["web1", "db"]),
        (["web1", "web1"], ["web1"]),
    ],
)
def test_disks_are_deleted_by_exact_names(value: t.Any, names: list[str]) -> None:
    assert _teardown.named(value, ["web1", "db"]) == names


@pytest.mark.parametrize(
    "value", ["all", "web", "web*", "WEB1", "web1,all", ["web1", None], True, 1, {"web1": True}, "web1 db"]
)
def test_no_other_word_deletes_disks(value: t.Any) -> None:
    with pytest.raises(ColoError, match=r"colo_delete_disks: .*by its exact name: web1, db") as caught:
        _teardown.named(value, ["web1", "db"])
    assert caught.value.error_code == "bad_input"


def test_a_guest_whose_name_is_all_is_meant_by_its_name_alone() -> None:
    assert _teardown.named("all", ["all", "web1"]) == ["all"]


def test_the_record_goes_before_the_images_and_the_directory_last() -> None:
    guest = _make.guest(disks=2)
    paths = _teardown.copy_paths(guest)
    assert paths[0] == guest.record_file
    assert paths[-1] == "/var/lib/lockstep-colo/web1/"
    images = {guest.image(disk, "parent") for disk in guest.disks} | {
        guest.image(disk, "active") for disk in guest.disks
    }
    images |= {guest.image(disk, "hidden") for disk in guest.disks}
    assert images < set(paths)
    assert min(paths.index(image) for image in images) > max(n for n, path in enumerate(paths) if "record.json" in path)
    assert len(paths) == len(set(paths))


PLACE = "/etc/systemd/network"
FILES = [
    f"{PLACE}/05-colo-{name}"
    for name in (
        "web1-lan.netdev",
        "web1-lan.network",
        "br0.netdev",
        "br0.network",
        "lan0.network",
        "db-lan.netdev",
        "db-lan.network",
    )
]
BRIDGES: dict[str, dict[str, t.Any]] = {"br0": {"ports": ["lan0"]}}


def _link(name: str, kind: str | None = None, master: str | None = None) -> dict[str, t.Any]:
    link: dict[str, t.Any] = {"ifname": name}
    if kind is not None:
        link["linkinfo"] = {"info_kind": kind}
    if master is not None:
        link["master"] = master
    return link


LINKS = [_link("lan0", None, "br0"), _link("web1-lan", "tun", "br0"), _link("br0", "bridge")]


def test_devices_go_with_their_files() -> None:
    assert _teardown.devices(LINKS, FILES, ["web1-lan"], BRIDGES) == {
        "go": ["web1-lan", "br0"],
        "stay": [],
        "names": ["web1-lan", "br0", "lan0"],
        "files": FILES[:5],
    }


def test_bridges_stay_as_long_as_another_guest_is_there() -> None:
    assert _teardown.devices(LINKS, FILES, ["web1-lan"], {}) == {
        "go": ["web1-lan"],
        "stay": [],
        "names": ["web1-lan"],
        "files": FILES[:2],
    }


def test_a_bridge_that_others_use_stays_with_its_ports() -> None:
    found = _teardown.devices([*LINKS, _link("vnet0", "tun", "br0")], FILES, ["web1-lan"], BRIDGES)
    assert found == {"go": ["web1-lan"], "stay": ["br0"], "names": ["web1-lan"], "files": FILES[:2]}


@pytest.mark.parametrize(
    ("links", "files"),
    [
        (LINKS, []),  # made by others
        ([_link("web1-lan", "dummy"), _link("br0", "vlan"), _link("lan0")], FILES),  # others took the names
        ([_link("lan0")], FILES),  # a run was killed after it had removed the devices
        ([{"ifname": "br0", "linkinfo": None}], FILES),
    ],
)
def test_only_devices_of_ours_go(links: list[dict[str, t.Any]], files: list[str]) -> None:
    found = _teardown.devices(links, files, ["web1-lan"], BRIDGES)
    assert found["go"] == []
    assert found["files"] == files[:5]
