# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Row 3: site.yml on bare hosts, with nothing to do, and with one guest more; by the number of guests.

The packages of the bare hosts are told apart: their unpacking says nothing about guests.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import statistics
import typing as t

import campaign_pause
import figures
import svg
from labplay import Json, Play, Stage
from stand import SETTLE_MS, Findings, floor_play

ROW = 3
# What Ansible does by itself, without a word to the host.
LOCAL = frozenset({
    "assert", "debug", "fail", "import_role", "import_tasks", "include_role", "include_tasks", "meta", "set_fact", "validate_argument_spec",
})  # fmt: skip
TOLD = 12  # of the tasks that take longest


@dataclasses.dataclass(frozen=True)
class Work:
    """What a run did on the host on which it did most."""

    tasks: int
    module_runs: int

    @classmethod
    def of(cls, play: Play) -> Work:
        tasks: collections.Counter[str] = collections.Counter()
        runs: collections.Counter[str] = collections.Counter()
        for line in play.results:
            if "task" in line:
                tasks[line["host"]] += 1
                runs[line["host"]] += 0 if line["module"] in LOCAL else line["runs"]
        return cls(max(tasks.values(), default=0), max(runs.values(), default=0))


def slowest(play: Play) -> list[Json]:
    """Where the time goes: from the first host's begin to the last one's end of each task, longest first."""
    spans: dict[str, tuple[float, float]] = {}
    for line in play.results:
        if "task" in line and line["began"]:
            begun, ended = spans.get(line["task"], (line["began"], line["ended"]))
            # a task that comes twice has two spans: what lies between them is not its own
            if line["began"] - ended > 1:
                begun += line["began"] - ended
            spans[line["task"]] = (min(begun, line["began"]), max(ended, line["ended"]))
    ordered = sorted(spans.items(), key=lambda item: item[1][0] - item[1][1])
    return [{"task": name, "seconds": round(ended - begun, 2)} for name, (begun, ended) in ordered[:TOLD]]


def with_guests(stage: Stage, count: int) -> tuple[Stage, list[str]]:
    """So many guests in the inventory, and the arguments that make them settle as quickly as they can."""
    stage.labctl("up", "--guests", str(count))
    grown = dataclasses.replace(stage, lab=stage.now())
    guests = campaign_pause.inventory(grown)["vars"]["colo_guests"]
    quick = {name: {**guest, "tuning": {"settle_ms": SETTLE_MS}} for name, guest in guests.items()}
    return grown, ["-e", json.dumps({"colo_guests": quick})]


def one_count(stage: Stage, count: int, again: int) -> Json:
    """Empty hosts, so many guests; then nothing to do; then one more."""
    stage, extra = with_guests(stage, count)
    for host in stage.hosts:
        stage.labctl("reset", host)
    packages = stage.play("site", "--tags", "colo_host", *extra)
    first = stage.play("site", *extra)
    repeats = [stage.play("site", *extra) for _each in range(again)]
    floor = [floor_play(stage) for _each in range(again)]
    stage, extra = with_guests(stage, count + 1)
    added = stage.play("site", *extra)
    quickest = min(repeats, key=lambda play: play.seconds)
    result = {
        "guests": count,
        "packages_s": packages.seconds,
        "first_s": first.seconds,
        "again_s": [play.seconds for play in repeats],
        "again_changed": sum(play.changed for play in repeats),
        "added_s": added.seconds,
        "floor_s": [play.seconds for play in floor],
        "work": dataclasses.asdict(Work.of(quickest)),
        "slowest": slowest(quickest),
    }
    stage.say(
        f"site.yml, {count} guests: {first.seconds:.1f} s, nothing to do {result['again_s']}, one more {added.seconds:.1f} s"
    )
    return result


def measure(stage: Stage, found: Findings, counts: t.Sequence[int], again: int) -> None:
    """Each number of guests from nothing."""
    seen: list[Json] = []
    try:
        for count in counts:
            seen.append(one_count(stage, count, again))
    finally:
        found.evidence["site"] = seen
        if seen:
            report(found, seen)
        stage.labctl("up", "--guests", "1")


def report(found: Findings, seen: t.Sequence[Json]) -> None:
    def by_guests(key: str) -> dict[str, list[float]]:
        values = {guests(one["guests"]): one[key] if isinstance(one[key], list) else [one[key]] for one in seen}
        return {
            "a playbook with one module that does nothing": [value for one in seen for value in one["floor_s"]],
            **values,
        }

    base = "a playbook with one module that does nothing"
    found.compare(ROW, "site.yml on bare hosts with the packages", "s", "less", base, by_guests("first_s"))
    again = found.compare(ROW, "site.yml with nothing to do", "s", "less", base, by_guests("again_s"))
    found.compare(ROW, "site.yml with one guest more", "s", "less", base, by_guests("added_s"))
    for key, what in (("tasks", "tasks on a host"), ("module_runs", "module runs on a host")):
        works = {guests(one["guests"]): [float(one["work"][key])] for one in seen}
        found.compare(ROW, f"{what}, nothing to do", "", "less", guests(seen[0]["guests"]), works)
    curves: dict[str, list[figures.Point]] = {
        "bare hosts": [(one["guests"], one["first_s"]) for one in seen],
        "one guest more": [(one["guests"], one["added_s"]) for one in seen],
        "nothing to do": [(one["guests"], statistics.median(one["again_s"])) for one in seen],
    }
    for name, points in curves.items():
        found.fit(f"site.yml, {name}", "per guest", "s", points)
    found.fit(
        "module runs on a host, nothing to do",
        "per guest",
        "",
        [(one["guests"], one["work"]["module_runs"]) for one in seen],
    )
    slope = next((fit.slope for fit in found.fits if fit.what == "site.yml, nothing to do"), None)
    changed = sum(one["again_changed"] for one in seen)
    most, least = (function(one["work"]["module_runs"] for one in seen) for function in (max, min))
    found.targets += [
        figures.at_most(
            ROW, "site.yml with nothing to do: at most twice the floor for one guest", again.ratio("1 guest"), 2, "x"
        ),
        figures.at_most(ROW, "and under 1 s for each more guest", slope, 1, " s"),
        figures.at_most(ROW, "module runs on a host do not grow with the guests", most / least, 1, "x"),
        figures.Target(ROW, "site.yml with nothing to do changes nothing", str(changed), changed == 0),
    ]
    found.curves["site.svg"] = svg.curves("site.yml by the number of guests", "guests", "seconds", curves)


def guests(count: int) -> str:
    return f"{count} guest" + ("s" if count > 1 else "")
