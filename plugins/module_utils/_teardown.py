# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be taken away: guests that are off, disks that were named, devices that the roles have made. Pure."""

from __future__ import annotations

import os.path
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import InputError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._pair import Side

Json = t.Mapping[str, t.Any]

FILE_PREFIX = "05-colo-"  # of the role network's files


def not_off(guest: str, sides: t.Iterable[Side]) -> str:
    """Why ``guest`` cannot be taken away from the hosts of ``sides``, with the remedy; empty when it can.

    Whatever is not known to be off counts as running.
    """
    unreachable = [side.host for side in sides if side.standing is None]
    unclear = [side.host for side in sides if side.standing == "failed"]
    running = [
        f"{side.standing} on {side.host}"
        for side in sides
        if side.standing not in (None, "failed", "absent", "stopped")
    ]
    reasons: list[str] = []
    if running:
        reasons.append(
            f"it is not off ({', '.join(running)}): switch it off with power.yml -e colo_guest={guest} -e colo_state=stopped"
        )
    if unclear:
        reasons.append(
            f"{' and '.join(unclear)} cannot tell whether it runs, which counts as running: see what status.yml says, and "
            f"stop colo-guest@{guest}.service there"
        )
    if unreachable:
        reasons.append(
            f"{' and '.join(unreachable)} does not answer, which counts as running: repair the way there; a host that is "
            "gone for good is left out of the run with --limit"
        )
    return "; ".join(reasons)


def named(value: t.Any, guests: t.Collection[str]) -> list[str]:
    """The guests whose disks are to be deleted: exact names of ``guests``, as a list or with commas between them."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, t.Sequence):
        names = [names]
    names = [name.strip() if isinstance(name, str) else name for name in names]
    for name in names:
        if name not in guests and name != "":
            raise InputError(
                "colo_delete_disks", name, "name guests of this run, each by its exact name: " + ", ".join(guests)
            )
    return [name for name in guests if name in names]


def copy_paths(guest: Guest) -> list[str]:
    """Everything that is a guest's copy on its host, in the order in which it has to go.

    The record first: images without a record are never started, but a record without its images would lend its
    generation to blank ones.
    """
    records = [guest.record_file, f"{guest.record_file}.tmp"]
    images = [
        path
        for disk in guest.disks
        for kind in ("parent", "active", "hidden")
        for path in (guest.image(disk, kind), f"{guest.image(disk, kind)}.part")
    ]
    return [*records, *images, f"{guest.paths.state}/record.lock", f"{guest.paths.state}/"]


def devices(
    links: t.Sequence[Json], files: t.Collection[str], taps: t.Collection[str], bridges: t.Mapping[str, Json]
) -> dict[str, list[str]]:
    """What becomes of tap devices and bridges: which devices have to ``go``, which bridges ``stay`` as others use them.

    ``names`` are all interfaces that the role is done with, ports of bridges among them, and ``files`` those of them.

    ``links`` is what ``ip -json -details link show`` says, ``files`` the paths of the role's files that are there: they
    are the evidence that a device is ours, so it goes before they do.
    """
    ours = {os.path.basename(path): path for path in files}
    kinds = {link["ifname"]: (link.get("linkinfo") or {}).get("info_kind") for link in links}
    ports = {bridge: about.get("ports") or [] for bridge, about in bridges.items()}
    own = {*taps, *(port for several in ports.values() for port in several)}
    stay = {link["master"] for link in links if link.get("master") in bridges and link["ifname"] not in own}
    leaving = [bridge for bridge in bridges if bridge not in stay]
    names = [*taps, *leaving, *(port for bridge in leaving for port in ports[bridge])]
    made = [(tap, "tun") for tap in taps] + [(bridge, "bridge") for bridge in leaving]
    places = [f"{FILE_PREFIX}{name}.{suffix}" for name in names for suffix in ("netdev", "network")]
    return {
        "go": [name for name, kind in made if kinds.get(name) == kind and f"{FILE_PREFIX}{name}.netdev" in ours],
        "stay": sorted(stay),
        "names": names,
        "files": [ours[place] for place in places if place in ours],
    }
