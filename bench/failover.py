# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Row 1: the QEMU that serves has died; how long until the client has its next answer, counted from the first act.

The ways take turns. After a way that is not ours both QEMUs are thrown away.
"""

from __future__ import annotations

import subprocess
import sys
import time
import typing as t

import figures
from labplay import Json, Stage
from qmp import Command, RawMonitor
from stand import BENCH, PROTECT, Findings, Stand, answered_after, floor_play, timed

ROW = 1
# How long the client has been without an answer when the act begins: whoever looks after guests noticed that one has died.
NOTICED_S = 0.5
# What QEMU's docs/COLO-FT.txt says for a secondary, in the collection's names.
DOCUMENTED: list[Command] = [
    ("nbd-server-stop", {}),
    ("x-colo-lost-heartbeat", {}),
    ("object-del", {"id": "f2-0"}),
    ("object-del", {"id": "f1-0"}),
    ("chardev-remove", {"id": "red1-0"}),
    ("chardev-remove", {"id": "red0-0"}),
]
# colo_failover looks at QEMU before and after, by so many questions each; then come its waits, and one for every act.
LOOK, WAITS = 12, 3

MODULE, PLAYBOOK, PIPED, TYPED = (
    "colo_failover",
    "failover.yml",
    "sleep 1; cat commands | nc",
    "documented, by a script",
)


def piped(path: str) -> None:
    """`sleep 1; cat commands | nc -U`: nobody looks at the answers; the pipe ends when they have come."""
    time.sleep(1)  # what is measured
    with RawMonitor(path) as monitor:
        monitor.send(DOCUMENTED)
        for _command in DOCUMENTED:
            monitor.answer()


def typed(path: str) -> None:
    with RawMonitor(path) as monitor:
        for name, arguments in DOCUMENTED:
            monitor.ask(name, **arguments)


def act(stand: Stand, way: str, survivor: str, path: str) -> Json:
    """What is done, and what it told."""
    if way == MODULE:
        result, play = stand.call(survivor, MODULE, fenced_by={stand.stage.guest: "the bench killed its primary"})
        return {"module_ms": result["timings"]["total_ms"], "actions": len(result["actions"]), "seconds": play.seconds}
    if way == PLAYBOOK:
        play = stand.stage.play("failover", *stand.extra)
        result = next(play.of(MODULE, stand.stage.guest))
        return {"module_ms": result["timings"]["total_ms"], "actions": len(result["actions"]), "seconds": play.seconds}
    return {"seconds": timed(lambda: (piped if way == PIPED else typed)(path))}


def trial(stand: Stand, way: str) -> Json:
    """One failover, and protected again."""
    survivor, victim = stand.standby, stand.serving
    path = stand.socket(survivor)
    client = stand.client()
    try:
        stand.kill(victim)
        time.sleep(NOTICED_S)
        begun = time.time()
        told = act(stand, way, survivor, path)
        told["answer_s"] = answered_after(client, begun)
    finally:
        client.stop()
    if way in (MODULE, PLAYBOOK):
        stand.serving = survivor
        stand.site(*PROTECT)
    else:
        stand.all_over()
    stand.stage.say(f"failover, {way}: answered after {told['answer_s']:.2f} s, over after {told['seconds']:.2f} s")
    return told


def floor_ms(stand: Stand, questions: int) -> float:
    """Python's start and so many commands over a raw socket to the QEMU that serves."""
    command = [sys.executable, str(BENCH / "qmp.py"), stand.socket(stand.serving), str(questions)]
    return 1000 * timed(lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL))


def measure(stage: Stage, stand: Stand, found: Findings, rounds: int) -> None:
    """All ways in turn, so many times."""
    trials: dict[str, list[Json]] = {way: [] for way in (MODULE, PLAYBOOK, PIPED, TYPED)}
    raw: list[float] = []
    floor: list[float] = []
    try:
        for _round in range(rounds):
            for way, seen in trials.items():
                seen.append(trial(stand, way))
            raw.append(floor_ms(stand, 2 * LOOK + WAITS + trials[MODULE][-1]["actions"]))
            floor.append(floor_play(stage).seconds)
    finally:
        found.evidence["failover"] = {"trials": trials, "raw_floor_ms": raw, "floor_playbook_s": floor}
        report(found, trials, raw, floor)


def report(found: Findings, trials: t.Mapping[str, t.Sequence[Json]], raw: list[float], floor: list[float]) -> None:
    def each(way: str, key: str) -> list[float]:
        return [one[key] for one in trials[way]]

    answers = {way: each(way, "answer_s") for way in trials}
    answer = found.compare(ROW, "first answer after the act began", "s", "less", TYPED, answers)
    inside = {
        "python and as many raw commands": raw,
        MODULE: each(MODULE, "module_ms"),
        "in failover.yml": each(PLAYBOOK, "module_ms"),
    }
    module = found.compare(ROW, "in the module", "ms", "less", "python and as many raw commands", inside)
    whole = {
        "one module that does nothing": floor,
        PLAYBOOK: each(PLAYBOOK, "seconds"),
        "ansible -m colo_failover": each(MODULE, "seconds"),
    }
    play = found.compare(ROW, "the whole playbook", "s", "less", "one module that does nothing", whole)
    found.targets += [
        figures.at_most(
            ROW, "colo_failover at most 1.5 times the raw commands and Python's start", module.ratio(MODULE), 1.5, "x"
        ),
        figures.at_most(
            ROW,
            "failover.yml at most 1.5 times a playbook with one module that does nothing",
            play.ratio(PLAYBOOK),
            1.5,
            "x",
        ),
    ]
    found.evidence["failover"]["answer_ratio_to_piped"] = answer.ratio(PLAYBOOK, PIPED)
