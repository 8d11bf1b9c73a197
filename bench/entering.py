# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Row 2: a running guest is protected; how long it stands still, and how long all of it takes.

Against the procedure of QEMU's docs/COLO-FT.txt (stop, copy, continue), which `campaign_pause` types. Two fifths of the
guest's memory are written by itself before, so that there is something to copy; with `dirtying` it goes on writing. The
documented procedure has no encryption, so neither way has any.
"""

from __future__ import annotations

import contextlib
import typing as t

import campaign_pause
import figures
import svg
from labplay import Json, Stage, StageError
from stand import Findings, Stand, timed

ROW = 2
OURS, DOCUMENTED = "site.yml's way", "stop, copy, continue"
IDLE, DIRTYING = "idle", "dirtying"
LOOP_MIB = 32  # written again and again: it fits into what QEMU moves in its downtime limit
FILLED_MIB = 256
SOURCE = "/srv/bench.qcow2"

Key = tuple[int, int, str]  # memory MiB, disk MiB, load


def load(stand: Stand, memory_mib: int, kind: str) -> None:
    """Two fifths of the memory once (the guest's kernel has the rest of its half); then nothing, or a part of it for ever."""
    dirty(stand, memory_mib * 2 // 5)
    if kind == DIRTYING:
        dirty(stand, LOOP_MIB, 3600)


def dirty(stand: Stand, *words: int) -> None:
    """The guest writes to so many MiB, once or for so many seconds; 0 ends that."""
    answer = stand.stage.ask("dirty", *map(str, words))
    if not answer.startswith("dirty "):
        raise StageError(f"the guest does not write to {words} MiB: {answer}")


def ours(stand: Stand) -> Json:
    made, entered = stand.protect()
    return {
        "pause_ms": entered["timings"]["guest_pause_ms"],
        "total_ms": made["timings"]["total_ms"] + entered["timings"]["total_ms"],
    }


def documented(stand: Stand) -> Json:
    """Its standby is ours; the record of that side is put back afterwards, as the other side's never knew of it."""
    generation = {stand.stage.guest: stand._generation()}
    made, _play = stand.call(stand.standby, "colo_migrate", role="secondary", state="ready", generation=generation)
    keep_record(stand, "record.json", "kept")
    peer = stand.link_address(stand.standby)
    qemu = campaign_pause.monitor(stand.stage, stand.serving)
    with contextlib.closing(qemu.socket):
        prepared = timed(lambda: campaign_pause.prepare(stand.stage, qemu, peer))
        pause, _begun = campaign_pause.enter(qemu, peer)
    return {"pause_ms": pause * 1000, "total_ms": made["timings"]["total_ms"] + (prepared + pause) * 1000}


def keep_record(stand: Stand, source: str, target: str) -> None:
    folder = f"/var/lib/lockstep-colo/{stand.stage.guest}"
    stand.on(stand.standby, "cp", "-a", f"{folder}/{source}", f"{folder}/{target}")


def alone_again(stand: Stand, way: str) -> None:
    stand.go_alone()
    if way == DOCUMENTED:
        stand.on(stand.standby, "systemctl", "stop", stand.unit, f"colo-keeper@{stand.stage.guest}")
        keep_record(stand, "kept", "record.json")


def empty_hosts(stand: Stand, disk_mib: int) -> None:
    """Empty hosts with what a disk of that size begins with; the bigger one is partly filled. Before a guest is defined that has it."""
    for host in stand.stage.hosts:
        stand.stage.labctl("reset", host)
    if disk_mib > 64:
        stand.stage.play("site", "--tags", "colo_host", *stand.extra)
        make = (
            f"qemu-img create -q -f qcow2 {SOURCE} {disk_mib}M && qemu-io -c 'write -q -P 85 1M {FILLED_MIB}M' {SOURCE}"
        )
        for host in stand.stage.hosts:
            stand.on(host, "sh", "-c", make)


def measure(
    stage: Stage, stand: Stand, found: Findings, rounds: int, memories: t.Sequence[int], disks: t.Sequence[int]
) -> None:
    """Every size with both loads, both ways in turn."""
    seen: dict[Key, dict[str, list[Json]]] = {}
    plain = dict(stand.guest["disks"][0])
    stand.settings = {"colo_link_security": "none"}
    try:
        for disk_mib in disks:
            bigger = {**plain, "size": f"{disk_mib}M", "source": SOURCE} if disk_mib > 64 else plain
            for number, memory_mib in enumerate(memories):
                anew = number == 0 and (disk_mib > 64 or not stand.serving)
                if anew:
                    empty_hosts(stand, disk_mib)
                stand.define(memory_mib=memory_mib, disks=[bigger])
                if anew:
                    stand.site()
                else:
                    stand.site("--tags", "colo_guest,colo_protect", "-e", "colo_state=restarted")
                stand.go_alone()
                for kind in (IDLE, DIRTYING):
                    ways = seen[memory_mib, disk_mib, kind] = {OURS: [], DOCUMENTED: []}
                    load(stand, memory_mib, kind)
                    in_turn(stand, ways, rounds)
                    stage.say(f"entering, {memory_mib} MiB, disk {disk_mib} MiB, {kind}: {told(ways)}")
                dirty(stand, 0)
    finally:
        stand.settings = {}
        found.evidence["entering"] = [
            {"memory_mib": key[0], "disk_mib": key[1], "load": key[2], "ways": ways} for key, ways in seen.items()
        ]
        report(found, seen)


def in_turn(stand: Stand, ways: dict[str, list[Json]], rounds: int) -> None:
    """Both ways, one after the other, so many times."""
    for _round in range(rounds):
        for way, function in ((OURS, ours), (DOCUMENTED, documented)):
            ways[way].append(function(stand))
            alone_again(stand, way)


def told(ways: t.Mapping[str, t.Sequence[Json]]) -> str:
    return ", ".join(f"{way} {[round(one['pause_ms']) for one in trials]} ms" for way, trials in ways.items())


def report(found: Findings, seen: t.Mapping[Key, t.Mapping[str, t.Sequence[Json]]]) -> None:
    pauses: dict[Key, figures.Comparison] = {}
    for key, ways in seen.items():
        where = f"{key[0]} MiB, disk {key[1]} MiB, {key[2]}"
        pauses[key] = found.compare(
            ROW,
            f"pause, {where}",
            "ms",
            "less",
            DOCUMENTED,
            {way: [one["pause_ms"] for one in trials] for way, trials in ways.items()},
        )
        found.compare(
            ROW,
            f"total, {where}",
            "s",
            "less",
            DOCUMENTED,
            {way: [one["total_ms"] / 1000 for one in trials] for way, trials in ways.items()},
        )
    for kind in (IDLE, DIRTYING):
        one = pauses.get((1024, 64, kind))
        found.targets.append(
            figures.at_most(
                ROW,
                f"pause at 1 GiB, {kind}: at most 0.1 of stop, copy, continue",
                None if one is None else one.ratio(OURS),
                0.1,
                "x",
            )
        )
    growth(found, pauses)


def growth(found: Findings, pauses: t.Mapping[Key, figures.Comparison]) -> None:
    """What more memory and more disk cost: row 5."""
    series: dict[str, list[figures.Point]] = {}
    for (memory_mib, disk_mib, kind), one in pauses.items():
        for way, values in one.values.items():
            if disk_mib == 64 and values:
                point = (memory_mib / 1024, figures.summary(values)["median"])
                series.setdefault(f"{way}, {kind}", []).append(point)
    for name, points in series.items():
        found.fit(f"pause, {name}", "per GiB of memory", "ms", points)
    idle = series.get(f"{OURS}, {IDLE}", [])
    if len(idle) > 1:
        grown = idle[-1][1] / idle[0][1]
        wanted = f"pause of an idle guest does not grow with its memory: at {idle[-1][0]:g} GiB at most 1.5 times that at {idle[0][0]:g} GiB"
        found.targets.append(figures.at_most(ROW, wanted, grown, 1.5, "x"))
    if series:
        found.curves["pause.svg"] = svg.curves("Pause on the way into lock step", "memory, GiB", "pause, ms", series)
    totals = {one.what: one for one in found.comparisons if one.what.startswith("total, ")}
    for way in (OURS, DOCUMENTED):
        by_disk: list[figures.Point] = []
        for memory_mib, disk_mib, kind in pauses:
            values = totals[f"total, {memory_mib} MiB, disk {disk_mib} MiB, {kind}"].values[way]
            if kind == IDLE and values:
                by_disk.append((disk_mib / 1024, figures.summary(values)["median"]))
        found.fit(f"total, {way}", f"per GiB of disk ({FILLED_MIB} MiB of it filled)", "s", by_disk)
