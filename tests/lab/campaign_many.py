# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One guest and eight on the same pair, in the same run: what each more costs, and whether one of them can hold up the others.

Each half begins on reset hosts with the packages installed (`site.yml --tags colo_host`): their download says nothing about
guests. Half of the eight serve on each host. All of a host's guests are failed over by one run; the second time one of
their QEMUs hangs (SIGSTOP).
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from campaign_report import Report
from labplay import Client, Json, Play, Stage, StageError, continuity, waited

if t.TYPE_CHECKING:
    from collections.abc import Iterator

FROM_NOTHING_FACTOR = 3.0
REPEAT_S_EACH = 2.0
HELD_UP_S = 5.0  # a QEMU that gives no answer costs one look its deadline
INTERVAL_MS = "100"  # eight guests in lock step under TCG share this machine's processors


def with_guests(stage: Stage, count: int) -> Stage:
    """The same hosts, empty, and so many guests in the inventory."""
    stage.labctl("up", "--guests", str(count))
    for host in stage.hosts:
        stage.labctl("reset", host)
    return dataclasses.replace(stage, lab=stage.now())


def from_nothing(stage: Stage) -> Json:
    """Packages, then site.yml from nothing, then site.yml twice with nothing to do."""
    packages = stage.play("site", "--tags", "colo_host")
    first = stage.play("site")
    again = [stage.play("site") for _each in range(2)]
    number = len(stage.lab["guests"])
    stage.say(
        f"{number} guests: site.yml from nothing {first.seconds:.1f} s, again {[round(a.seconds, 1) for a in again]} s"
    )
    return {
        "guests": number,
        "packages_s": packages.seconds,
        "first_s": first.seconds,
        "again_s": min(play.seconds for play in again),
        "again_changed": sum(play.changed for play in again),
    }


@contextlib.contextmanager
def clients(stage: Stage, reports: dict[str, Json]) -> Iterator[dict[str, Client]]:
    """One client for each guest; their reports at the end."""
    lines = {
        name: Client(stage, "--wait", "60", "--interval-ms", INTERVAL_MS, guest=name) for name in stage.lab["guests"]
    }
    try:
        for line in lines.values():
            line.wait_for_answers(5, 90)
        yield lines
    finally:
        for name, line in lines.items():
            reports[name] = line.stop()


def serving(stage: Stage) -> dict[str, list[str]]:
    """Host to the guests that it serves in a protected pair."""
    verdicts = stage.verdicts()["verdicts"]
    return {
        host: [name for name, one in verdicts.items() if one["verdict"] == "protected" and one["serving"] == host]
        for host in stage.hosts
    }


def module_ms(play: Play) -> dict[str, float]:
    """What colo_failover took for each guest that it failed over."""
    return {name: took_ms for name, (_began, took_ms) in failed_over(play).items()}


def alone_after_s(play: Play) -> dict[str, float]:
    """When each guest went on alone, since the playbook began.

    Not when its client had an answer: that one asks again after 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s, whoever is ready before.
    """
    return {name: began - play.began + took_ms / 1000 for name, (began, took_ms) in failed_over(play).items()}


def failed_over(play: Play) -> dict[str, tuple[float, float]]:
    """Each guest that colo_failover failed over: when the module began, and the milliseconds it took."""
    found: dict[str, tuple[float, float]] = {}
    for line in play.results:
        if line.get("module") == "colo_failover":
            for name, one in line.get("guests", {}).items():
                if "error" not in one and one.get("actions"):
                    found[name] = (float(line["began"]), float(one["timings"]["total_ms"]))
    return found


def kill(stage: Stage, lines: dict[str, Client], victim: str, hung: str | None) -> Json:
    """A host is lost, and all guests go on on the other one by one run; `hung` cannot, and is set free afterwards."""
    survivor = stage.other(victim)
    if hung is not None:
        stage.labctl("exec", survivor, "--", "systemctl", "kill", "--signal=STOP", f"colo-guest@{hung}")
    stage.power(victim, "off")
    play = stage.play("failover", "-e", f"colo_confirm_fenced={victim}", check=hung is None)
    others = [name for name in lines if name != hung]
    waits = {name: waited(lines[name].wait_for_answers(3, 90), play.began) for name in others}
    late: Json = {}
    if hung is not None:
        if play.code == 0:
            raise StageError(f"failover.yml was content with {hung}, which hangs; its output is in {play.log}")
        stage.labctl("exec", survivor, "--", "systemctl", "kill", "--signal=CONT", f"colo-guest@{hung}")
        second = stage.play("failover", "-e", f"colo_confirm_fenced={victim}", "-e", f"colo_guest={hung}")
        lines[hung].wait_for_answers(3, 90)
        late = {"second_run_s": second.seconds}
    stage.power(victim, "on")
    again = stage.play("site")
    for line in lines.values():
        line.wait_for_answers(3, 90)
    result = {
        "victim": victim,
        "hung": hung,
        "failover_s": play.seconds,
        "module_ms": module_ms(play),
        "alone_after_s": alone_after_s(play),
        "client_waits_s": waits,
        "protect_s": again.seconds,
        **late,
    }
    stage.say(
        f"{victim} killed, {hung or 'none'} hung: failover.yml {play.seconds:.1f} s, longest wait {max(waits.values()):.1f} s"
    )
    return result


def campaign(stage: Stage, report: Report, number: int) -> None:
    """One guest, then all of them."""
    report.title = (
        f"One guest and {number} on one pair (packages installed before; a client on each, every {INTERVAL_MS} ms)"
    )
    report.columns = ("what", "1 guest", f"{number} guests", "limit")
    one = from_nothing(with_guests(stage, 1))
    stage = with_guests(stage, number)
    try:
        many = from_nothing(stage)
        halves = serving(stage)
        reports: dict[str, Json] = {}
        report.evidence = {"one": one, "many": many, "serving": halves, "clients": reports}
        with clients(stage, reports) as lines:
            plain = kill(stage, lines, stage.hosts[0], None)
            hung = kill(stage, lines, stage.hosts[1], sorted(lines)[2])
            report.evidence |= {"plain": plain, "hung": hung}
            left = serving(stage)
    finally:
        stage.labctl("up", "--guests", "1")
    limit = one["again_s"] + REPEAT_S_EACH * (number - 1)
    report.rows = [
        ("packages s", one["packages_s"], many["packages_s"], None),
        ("site.yml from nothing s", one["first_s"], many["first_s"], FROM_NOTHING_FACTOR * one["first_s"]),
        ("site.yml with nothing to do s", one["again_s"], many["again_s"], limit),
        ("failover.yml s", None, plain["failover_s"], None),
        ("  slowest guest in the module s", None, max(plain["module_ms"].values()) / 1000, None),
        ("  last guest goes on alone s", None, max(plain["alone_after_s"].values()), None),
        ("  longest wait of a client s", None, max(plain["client_waits_s"].values()), None),
        ("all protected again s", None, plain["protect_s"], None),
        ("failover.yml, one guest hangs s", None, hung["failover_s"], None),
        ("  last of the others goes on alone s", None, max(hung["alone_after_s"].values()),
         max(plain["alone_after_s"].values()) + HELD_UP_S),
        ("  longest wait of their clients s", None, max(hung["client_waits_s"].values()), None),
    ]  # fmt: skip
    report.criteria = {
        f"site.yml from nothing: {number} guests take at most {FROM_NOTHING_FACTOR:.0f} times as long as one": many[
            "first_s"
        ]
        <= FROM_NOTHING_FACTOR * one["first_s"],
        f"site.yml with nothing to do: at most {REPEAT_S_EACH:.0f} s for each more": many["again_s"] <= limit,
        "it changes nothing": one["again_changed"] == many["again_changed"] == 0,
        "half of the guests serve on each host": len({len(names) for names in halves.values()}) == 1
        and sum(map(len, halves.values())) == number,
        "one failover.yml run fails all guests of a lost host over": set(plain["module_ms"]) == set(reports),
        f"a guest that hangs holds up none of the others by more than {HELD_UP_S:.0f} s": set(hung["module_ms"])
        >= set(hung["client_waits_s"])
        and max(hung["alone_after_s"].values()) <= max(plain["alone_after_s"].values()) + HELD_UP_S,
        "all are protected in the end": sum(map(len, left.values())) == number,
        "each client kept its connection, and nothing is lost": all(
            all(continuity(client).values()) for client in reports.values()
        ),
    }
