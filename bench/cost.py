# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Row 4: what lock step costs the guest's clients, by tuning.

In one round: the guest alone; protected, with all tunings in turn on the same pair of QEMUs (set as colo_migrate sets them);
protected anew with multifd channels, and anew without encryption. Then the next round.
"""

from __future__ import annotations

import dataclasses
import statistics
import typing as t

import figures
import svg
from labplay import Json, Stage
from qmp import RawMonitor, checkpoints
from stand import Findings, Stand

from ansible_collections.lockstep.colo.plugins.module_utils import _guest

ROW = 4
ALONE, OURS, QEMU = "alone", f"ours ({_guest.DEFAULT_PROFILE})", "QEMU's defaults"
# All right after the guest was protected; the last two by site.yml, at the end of each round.
FRESH, CHANNELS, CLEAR = "ours, just protected", "ours, just protected, multifd", "ours, just protected, not encrypted"
# qapi/migration.json and net/colo-compare.c
QEMU_DEFAULTS = {"checkpoint_delay_ms": 20000, "compare_timeout_ms": 3000, "expired_scan_cycle_ms": 1000}
MULTIFD_CHANNELS = 2
DELAYS_MS = (100, 500, 5000)  # beside those of the profiles
WARM_S = 0.4
PROPERTIES = {
    "compare_timeout_ms": "compare_timeout",
    "expired_scan_cycle_ms": "expired_scan_cycle",
    "max_queue_size": "max_queue_size",
}


def tunings(curve: bool) -> dict[str, dict[str, int]]:
    """Name to what is set; with ``curve`` also our default with more checkpoint delays."""
    default = {key: getattr(_guest.Tuning(), key) for key in (*PROPERTIES, "checkpoint_delay_ms")}
    named = {
        OURS: default,
        QEMU: {**default, **QEMU_DEFAULTS},
        **{name: {**default, **knobs} for name, knobs in _guest.PROFILES.items() if name != _guest.DEFAULT_PROFILE},
    }
    delays = {f"delay {delay} ms": {**default, "checkpoint_delay_ms": delay} for delay in DELAYS_MS} if curve else {}
    return {**named, **delays}


def tune(stand: Stand, knobs: t.Mapping[str, int]) -> None:
    with RawMonitor(stand.socket(stand.serving)) as monitor:
        for key, name in PROPERTIES.items():
            monitor.ask("qom-set", path="/objects/comp0", property=name, value=knobs[key])
        monitor.ask("migrate-set-parameters", **{"x-checkpoint-delay": knobs["checkpoint_delay_ms"]})


@dataclasses.dataclass
class Seen:
    """One way, over all rounds: one value of each kind for each round."""

    pages_s: list[float] = dataclasses.field(default_factory=list)
    page_p50_ms: list[float] = dataclasses.field(default_factory=list)
    page_p99_ms: list[float] = dataclasses.field(default_factory=list)
    download_mb_s: list[float] = dataclasses.field(default_factory=list)
    writes_s: list[float] = dataclasses.field(default_factory=list)
    write_p99_ms: list[float] = dataclasses.field(default_factory=list)
    checkpoints_s: list[float] = dataclasses.field(default_factory=list)
    pauses_ms: list[float] = dataclasses.field(default_factory=list)

    def add(self, load: Json, pauses: t.Sequence[float] | None) -> None:
        pages, writes, download = load["pages"], load["writes"], load["download"]
        self.pages_s.append(len(pages["latencies_ms"]) / pages["seconds"])
        self.page_p50_ms.append(figures.percentile(pages["latencies_ms"], 0.5))
        self.page_p99_ms.append(figures.percentile(pages["latencies_ms"], 0.99))
        self.download_mb_s.append(download["bytes"] / 1e6 / download["seconds"])
        self.writes_s.append(len(writes["latencies_ms"]) / writes["seconds"])
        self.write_p99_ms.append(figures.percentile(writes["latencies_ms"], 0.99))
        if pauses is not None:
            self.checkpoints_s.append(len(pauses) / sum(part["seconds"] for part in load.values()))
            self.pauses_ms += pauses


KINDS: tuple[tuple[str, str, str, t.Literal["less", "more"]], ...] = (
    ("small page", "pages_s", "requests/s", "more"),
    ("small page p50", "page_p50_ms", "ms", "less"),
    ("small page p99", "page_p99_ms", "ms", "less"),
    ("download", "download_mb_s", "MB/s", "more"),
    ("write on the disk", "writes_s", "writes/s", "more"),
    ("write on the disk p99", "write_p99_ms", "ms", "less"),
    ("checkpoints", "checkpoints_s", "1/s", "less"),
    ("checkpoint pause", "pauses_ms", "ms", "less"),
)


def use(stand: Stand, seconds: float, protected: bool) -> tuple[Json, list[float] | None]:
    """A short load that nobody counts: what was set takes hold. Then the one that is measured."""
    stand.load(WARM_S)
    if not protected:
        return stand.load(seconds), None
    with checkpoints(stand.socket(stand.serving)) as pauses:
        load = stand.load(seconds)
    return load, pauses


def measure(stage: Stage, stand: Stand, found: Findings, rounds: int, seconds: float, curve: bool) -> None:
    """All ways in turn, so many times; begins and ends with a protected guest."""
    named = tunings(curve)
    seen = {way: Seen() for way in (ALONE, *named, FRESH, CHANNELS, CLEAR)}
    try:
        for number in range(rounds):
            one_round(stand, seen, named, number, seconds)
            latest = {
                way: f"{one.pages_s[-1]:.0f}/s {one.download_mb_s[-1]:.1f} MB/s {one.writes_s[-1]:.0f} w/s"
                for way, one in seen.items()
            }
            stage.say(f"cost, round {number + 1}: {latest}")
    finally:
        found.evidence["cost"] = {
            "tunings": named,
            "multifd_channels": MULTIFD_CHANNELS,
            "ways": {way: dataclasses.asdict(one) for way, one in seen.items()},
        }
        report(found, seen, named)


def one_round(
    stand: Stand, seen: t.Mapping[str, Seen], named: t.Mapping[str, t.Mapping[str, int]], number: int, seconds: float
) -> None:
    """Each way once."""
    stand.go_alone()
    seen[ALONE].add(*use(stand, seconds, protected=False))
    stand.protect()
    seen[FRESH].add(*use(stand, seconds, protected=True))
    # the order turns, so that nobody always comes first
    ways = [*named.items()]
    for way, knobs in ways[number % len(ways) :] + ways[: number % len(ways)]:
        tune(stand, knobs)
        seen[way].add(*use(stand, seconds, protected=True))
    anew = ("--tags", "colo_guest,colo_protect")
    stand.go_alone()
    stand.define(tuning={"multifd_channels": MULTIFD_CHANNELS})
    stand.site(*anew)
    seen[CHANNELS].add(*use(stand, seconds, protected=True))
    stand.go_alone()
    stand.define()
    stand.site(*anew, "-e", "colo_link_security=none")
    seen[CLEAR].add(*use(stand, seconds, protected=True))
    stand.go_alone()
    stand.site(*anew)


def report(found: Findings, seen: t.Mapping[str, Seen], named: t.Mapping[str, t.Mapping[str, int]]) -> None:
    shown = [way for way in seen if not way.startswith("delay ")]
    for what, key, unit, better in KINDS:
        values = {way: list(getattr(seen[way], key)) for way in shown if getattr(seen[way], key)}
        one = found.compare(ROW, what, unit, better, QEMU, values)
        if FRESH in values and CLEAR in values:
            found.compare(
                ROW, f"{what}, by encryption", unit, better, CLEAR, {way: values[way] for way in (FRESH, CLEAR)}
            )
        if key in ("checkpoints_s", "pauses_ms"):
            continue  # what they cost is in the rows above
        ratio = one.ratio(OURS)
        gain = None if ratio is None else ratio if better == "more" else 1 / ratio
        times = 3 if key == "download_mb_s" else 1
        found.targets.append(
            figures.at_least(ROW, f"{what}: ours at least {times} times as good as QEMU's defaults", gain, times, "x")
        )
    # what differs from our default in nothing but the delay
    line = sorted(
        (knobs["checkpoint_delay_ms"], way)
        for way, knobs in named.items()
        if {**knobs, "checkpoint_delay_ms": 0} == {**named[OURS], "checkpoint_delay_ms": 0}
    )
    curve = {
        name: [
            (delay / 1000, statistics.median(getattr(seen[way], key)) / statistics.median(getattr(seen[ALONE], key)))
            for delay, way in line
            if getattr(seen[way], key) and getattr(seen[ALONE], key)
        ]
        for name, key in (("small pages", "pages_s"), ("download", "download_mb_s"), ("writes", "writes_s"))
    }
    if all(curve.values()):
        title = "What is left of a guest that runs alone, by checkpoint delay"
        found.curves["delay.svg"] = svg.curves(title, "checkpoint delay, s", "share of alone", curve)
