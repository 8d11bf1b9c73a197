# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill a host, fail over, protect again, ten times: one connection all the way, and nothing is left behind.

`kills` kills the host that serves, so the hosts take turns and each QEMU lives for two rounds. `standby` kills the host
that follows, so one primary QEMU and its keeper go through all rounds: what a round leaks piles up there.
"""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t

from campaign_report import Report
from labplay import Client, Json, Stage, StageError, bring_back, continuity, gap_over, protection

Victim = t.Literal["serving", "standby"]
Counts = dict[str, int]

PROTECT_S = 30.0  # a lost host is back: how long site.yml may take to protect the guest again
SETTLE_S = 30.0  # what is only closing is gone by then
# The allocator of the C library maps and unmaps as it likes, and each idle thread of a pool has a stack for 10 s more:
# these numbers go up and down, so for them only growth that goes on counts.
WAVERING = ("qemu map: anonymous", "keeper map: anonymous")


def difference(first: Counts, now: Counts) -> dict[str, tuple[int, int]]:
    """What is there in other numbers than in the first look: both numbers."""
    return {
        word: (first.get(word, 0), now.get(word, 0))
        for word in sorted(first.keys() | now.keys())
        if word not in WAVERING and first.get(word, 0) != now.get(word, 0)
    }


@dataclasses.dataclass(frozen=True)
class Look:
    """One side after a round."""

    counts: Counts
    processes: Json

    def figure(self, process: str, what: str) -> int:
        return int(self.processes[process][what])

    def count(self, prefix: str) -> int:
        return sum(number for word, number in self.counts.items() if word.startswith(prefix))


def look(stage: Stage, host: str) -> Look:
    seen = stage.look(host)
    return Look(seen["footprints"][stage.guest], seen["processes"][stage.guest])


def settled(stage: Stage, host: str, goal: Counts | None) -> Look:
    """Look until it equals the goal, or for so long that what differs is no passing thing. Without a goal: until it stands."""
    end = time.monotonic() + SETTLE_S
    now = look(stage, host)
    while time.monotonic() < end:
        before = now.counts if goal is None else goal
        if goal is None or difference(before, now.counts):
            time.sleep(1)
            now = look(stage, host)
        if not difference(before, now.counts):
            break
    return now


def one_round(stage: Stage, client: Client, victim: str, survivor: str, tags: tuple[str, ...]) -> Json:
    """Kill a host, go on without it, take it back."""
    client.wait_for_answers(50, 60)
    killed, gone = stage.power(victim, "off")
    lost = stage.play("failover", "-e", f"colo_confirm_fenced={victim}")
    module = next(lost.of("colo_failover", stage.guest), None)
    if module is None or module["host"] != survivor:
        raise StageError(f"failover.yml did nothing on {survivor}; its output is in {lost.log}")
    alone = client.wait_for_answers(50, 60)
    stage.power(victim, "on")
    again = stage.play("site", *tags)
    entered = protection(again, stage.guest)
    if not entered or entered["host"] != survivor:
        raise StageError(f"site.yml did not protect the guest from {survivor}; its output is in {again.log}")
    client.wait_for_answers(50, 60)
    return {
        "victim": victim,
        "serves": survivor,
        "load": os.getloadavg()[0],
        "power_off_s": gone - killed,
        "failover_s": lost.seconds,
        "failover_module_ms": module["timings"]["total_ms"],
        "client_gap_s": gap_over(alone, gone),
        "protect_s": again.seconds,
        "guest_pause_ms": entered["guest_pause_ms"],
    }


def campaign(stage: Stage, report: Report, kills: Victim, rounds: int, tags: tuple[str, ...] = ()) -> None:
    """All rounds with one client, then what holds."""
    bring_back(stage)
    stage.play("site")
    verdict = stage.verdict()
    serving = verdict["serving"]
    report.title = (
        f"{rounds} host kills, each time the host of the {'guest' if kills == 'serving' else 'standby'}; protected again by "
        + " ".join(("site.yml", *tags))
    )
    report.columns = (
        "round",
        "killed",
        "serves",
        "failover s",
        "client waits s",
        "protected again s",
        "load",
        "pause ms",
        "QEMU fds",
        "QEMU maps",
        "QEMU MiB",
        "keeper fds",
        "standby fds",
        "differs",
    )
    client = Client(stage)
    done: list[Json] = []
    first: dict[str, Look] = {}
    try:
        for number in range(1, rounds + 1):
            victim = serving if kills == "serving" else stage.other(serving)
            survivor = stage.other(victim)
            result = one_round(stage, client, victim, survivor, tags)
            serving = survivor
            now = {
                role: settled(stage, host, first[role].counts if first else None)
                for role, host in (("primary", serving), ("standby", stage.other(serving)))
            }
            first = first or now
            differs = {role: difference(first[role].counts, seen.counts) for role, seen in now.items()}
            done.append(
                {**result, "looks": {role: dataclasses.asdict(seen) for role, seen in now.items()}, "differs": differs}
            )
            primary, standby = now["primary"], now["standby"]
            report.rows.append(
                (
                    number,
                    victim,
                    serving,
                    result["failover_s"],
                    result["client_gap_s"],
                    result["protect_s"],
                    result["load"],
                    result["guest_pause_ms"],
                    primary.count("qemu descriptor"),
                    primary.count("qemu map"),
                    primary.figure("qemu", "resident_kib") >> 10,
                    primary.count("keeper descriptor"),
                    standby.count("qemu descriptor"),
                    sum(map(len, differs.values())),
                )
            )
            stage.say(f"round {number}: {victim} killed, protected again after {result['protect_s']:.1f} s; {differs}")
    except StageError as error:
        stage.say(f"it ends here: {error}")
        report.evidence["error"] = str(error)
    finally:
        report.evidence |= {"rounds": done, "client": client.stop()}
    report.criteria = judge(done, report.evidence["client"], rounds, kills, tags)


def grows(figures: list[int]) -> bool:
    """Whether a number that goes up and down has grown by one a round: the least of each half is compared."""
    half = len(figures) // 2
    return half > 0 and min(figures[-half:]) - min(figures[:half]) >= half


def judge(done: list[Json], client: Json, rounds: int, kills: Victim, tags: tuple[str, ...] = ()) -> dict[str, bool]:
    """Which of the promises were kept."""
    criteria = {
        f"{rounds} kills, each followed by protection": len(done) == rounds,
        **continuity(client),
        f"protected again by {' '.join(('site.yml', *tags))} in under {PROTECT_S:.0f} s each time": all(
            each["protect_s"] < PROTECT_S for each in done
        ),
        "after each round as much is there as after the first": not any(
            differs for each in done for differs in each["differs"].values()
        ),
    }
    if kills == "standby":
        pids = {each["looks"]["primary"]["processes"]["qemu"]["pid"] for each in done}
        criteria["one QEMU served all the time"] = len(pids) == 1
        criteria["its memory maps without a file, and its keeper's, do not grow with the rounds"] = not any(
            grows([each["looks"]["primary"]["counts"][word] for each in done]) for word in WAVERING
        )
    return criteria
