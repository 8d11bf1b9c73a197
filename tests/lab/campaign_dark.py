# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both hosts lose their power, at a random moment of everything that is done with a pair; then site.yml decides.

A client writes all the time. After each darkness site.yml either starts a copy that holds every number that was ever
acknowledged, or refuses with a reason, and then the runbook's way out is walked. The moments come from a seed, so a run
can be repeated; what the machine makes of them cannot. The lab's power cut keeps the page cache: a missing fsync is not
found here.
"""

from __future__ import annotations

import dataclasses
import random
import re
import time
import typing as t

from campaign_report import Report
from client import SLOTS, parse_check
from labplay import Client, Json, Play, Running, Stage, StageError, bring_back

Phase = t.Literal["protecting", "protected", "failover", "site"]
# The runs that are cut short leave the hosts' provision out: nothing of a guest moves there.
PROTECT = ("--tags", "colo_protect")
PHASES: tuple[Phase, ...] = ("protecting", "protected", "failover", "site")


@dataclasses.dataclass
class Ledger:
    """Every number that a client was answered since the guest's disk was made."""

    next: int
    ranges: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def open(self, stage: Stage, wait_s: float) -> Client:
        """A client on the line that gives up soon when it is told to end in the dark."""
        words = ["--wait", str(wait_s), "--connect-timeout", "2", "--check-timeout", "2", "--first", str(self.next)]
        return Client(stage, *words)

    def close(self, client: Client) -> int:
        """End the client and enter what it was acknowledged; says how many."""
        report = client.stop()
        if not report.get("final"):
            raise StageError("the client has left no report")
        count = int(report["acknowledged"])
        if count:
            self.ranges.append((self.next, self.next + count - 1))
        self.next += int(report["sent"]) + 1
        return count

    def missing(self, stage: Stage) -> int:
        """How many of them the guest's disk does not hold now."""
        return sum(
            last - first + 1 - parse_check(stage.ask("check", str(first), str(last)).encode())
            for first, last in self.ranges
        )


@dataclasses.dataclass(frozen=True)
class Chance:
    """What a round leaves to chance, drawn before it begins."""

    phase: Phase
    moment: float  # how far into what is going on, 0 to 1
    gap_s: float  # between the two hosts' ends
    order: tuple[str, str]  # who is lost first
    back: tuple[str, str]  # who comes back first
    delayed: bool  # site.yml is tried before the other one is back


def chances(seed: int, rounds: int, hosts: t.Sequence[str]) -> list[Chance]:
    """As many rounds, each phase as often as the others."""
    source = random.Random(seed)
    drawn = []
    for number in range(rounds):
        order, back = (source.sample(list(hosts), 2) for _half in range(2))
        drawn.append(
            Chance(
                PHASES[number % len(PHASES)],
                source.random(),
                source.choice((0.0, source.uniform(0, 2.0))),
                (order[0], order[1]),
                (back[0], back[1]),
                source.random() < 0.5,
            )
        )
    return drawn


def wait_until(moment: float, running: Running | None) -> None:
    """A moment of the clock; with a playbook under way also its end, whichever comes first."""
    while time.time() < moment and (running is None or running.process.poll() is None):
        time.sleep(0.01)


def dark(stage: Stage, chance: Chance) -> None:
    stage.power(chance.order[0], "off")
    time.sleep(chance.gap_s)
    stage.power(chance.order[1], "off")


def reasons(play: Play) -> list[str]:
    """Why a playbook has ended with an error: the words it ends with, and what unreachable hosts and modules said."""
    text = play.log.read_text(encoding="utf-8")
    found = re.findall(r"^\[ERROR\]: (?:Task failed: )?(?:(?:Action|Module) failed: )?(.*)$", text, re.MULTILINE)
    found += [f"{host} is unreachable" for host in re.findall(r"^fatal: \[(\w+)\]: UNREACHABLE!", text, re.MULTILINE)]
    return list(dict.fromkeys(found)) or [f"exit code {play.code}"]


class Pair:
    """The pair through all rounds, with what is known of how long things take."""

    def __init__(self, stage: Stage, tags: tuple[str, ...]) -> None:
        self.stage = stage
        self.tags = tags
        self.ledger = Ledger(int(time.time()) * SLOTS % 2**52)
        self.seconds: dict[str, float] = {}

    def run(self, what: str, name: str, *arguments: str) -> Play:
        play = self.stage.play(name, *arguments)
        self.seconds[what] = play.seconds
        return play

    def lose_one(self, chance: Chance) -> tuple[str, str]:
        """One host is lost; returns it and the other."""
        victim, survivor = chance.order
        self.stage.power(victim, "off")
        return victim, survivor

    def darken(self, chance: Chance) -> tuple[float, int]:
        """Lose both hosts in the round's phase; returns how far into it that was, and how many answers were given."""
        stage = self.stage
        client = self.ledger.open(stage, 30)
        acknowledged = 0
        try:
            client.wait_for_answers(20, 60)
            begun, running = time.time(), None
            if chance.phase == "protected":
                wait_until(begun + 5 * chance.moment, None)
                dark(stage, chance)
            elif chance.phase == "protecting":
                dark(stage, chance)
                acknowledged += self.ledger.close(client)
                self.light(chance, try_early=False)
                client = self.ledger.open(stage, 600)
                running = stage.start("site", *PROTECT)
                begun = running.began
                wait_until(begun + self.seconds["start"] * chance.moment, running)
                dark(stage, chance)
            else:
                victim, survivor = self.lose_one(chance)
                running = stage.start("failover", "-e", f"colo_confirm_fenced={victim}")
                begun = running.began
                if chance.phase == "failover":
                    wait_until(begun + self.seconds["failover"] * chance.moment, running)
                    stage.power(survivor, "off")
                else:
                    self.seconds["failover"] = running.wait().seconds
                    stage.power(victim, "on")
                    running = stage.start("site", *PROTECT)
                    begun = running.began
                    wait_until(begun + self.seconds["again"] * chance.moment, running)
                    dark(stage, chance)
            cut = time.time() - begun
            if running is not None:
                running.wait(check=False)
        finally:
            acknowledged += self.ledger.close(client)
        return cut, acknowledged

    def light(self, chance: Chance, try_early: bool) -> str | None:
        """Power for both hosts; returns what site.yml said while one was still without."""
        stage, said = self.stage, None
        first, second = chance.back
        stage.power(first, "on")
        if try_early:
            early = stage.play("site", *self.tags, check=False)
            said = "; ".join(reasons(early))
            if early.code == 0 or stage.look(first)["qemus"]:
                raise StageError(f"site.yml started the guest although {second} could not be asked; see {early.log}")
        stage.power(second, "on")
        for host in stage.hosts:
            if stage.look(host)["qemus"]:
                raise StageError(f"{host} has started a QEMU by itself")
        return said

    def recover(self) -> tuple[str, float, list[str]]:
        """site.yml, and the runbooks where it refuses: outcome, seconds of the first run, its reasons."""
        stage = self.stage
        play = stage.play("site", *self.tags, check=False)
        if play.code == 0:
            return "started", play.seconds, []
        said = reasons(play)
        way = "run again"
        cut_short = re.search(r"(\w+): takeover_unfinished", " ".join(said))
        verdict = stage.verdict()
        if cut_short:
            way = "a takeover that was cut short"
            self.take_other_copy(cut_short.group(1))
        elif "failover.yml" in verdict.get("refusal", ""):
            way = "failover.yml"
            stage.play("failover", check=False)
        # with all tags: resolve.yml has taken away a host's directory, images and all
        again = stage.play("site", *(() if cut_short else self.tags), check=False)
        if again.code:
            said += reasons(again)
            return "NO WAY OUT", play.seconds, said
        return f"refused; {way}", play.seconds, said

    def take_other_copy(self, host: str) -> None:
        """As docs/runbooks/failover.md has it: resolve.yml goes on with the other host's copy, and keeps this one as a backup."""
        stage = self.stage
        stage.play("resolve", "-e", f"colo_guest={stage.guest}", "-e", f"colo_keep={stage.other(host)}")


def campaign(stage: Stage, report: Report, rounds: int, seed: int, tags: tuple[str, ...] = ()) -> None:
    """All rounds; a round that nobody gets out of ends the campaign."""
    report.title = f"{rounds} times both hosts lose their power, seed {seed}; then {' '.join(('site.yml', *tags))}"
    report.columns = (
        "round",
        "while",
        "at s",
        "first lost",
        "gap s",
        "first back",
        "early",
        "outcome",
        "site.yml s",
        "acknowledged",
        "missing",
    )
    bring_back(stage)
    pair = Pair(stage, tags)
    stage.play("site")
    done: list[Json] = []
    report.evidence = {"seed": seed, "rounds": done}
    measure(pair, chances(seed, 1, stage.hosts)[0])
    for number, chance in enumerate(chances(seed, rounds, stage.hosts), start=1):
        try:
            done.append(one_round(pair, number, chance, report))
        except StageError as error:
            stage.say(f"it ends here: {error}")
            report.evidence["error"] = str(error)
            break
        if done[-1]["missing"] is None:
            break
    report.evidence["started"] = sum(one["outcome"] == "started" for one in done)
    report.evidence["refused"] = sum(one["outcome"] != "started" for one in done)
    report.criteria = judge(done, rounds)


def one_round(pair: Pair, number: int, chance: Chance, report: Report) -> Json:
    """Lose both, take both back, see what is there."""
    stage = pair.stage
    one: Json = {"round": number, **dataclasses.asdict(chance)}
    one["cut_s"], one["acknowledged"] = pair.darken(chance)
    one["early"] = pair.light(chance, try_early=chance.delayed)
    one["outcome"], one["site_s"], one["reasons"] = pair.recover()
    one["missing"] = None if one["outcome"] == "NO WAY OUT" else pair.ledger.missing(stage)
    report.rows.append(
        (
            number,
            chance.phase,
            one["cut_s"],
            chance.order[0],
            chance.gap_s,
            chance.back[0],
            "refused" if one["early"] else None,
            one["outcome"],
            one["site_s"],
            one["acknowledged"],
            one["missing"],
        )
    )
    stage.say(" ".join(str(cell) for cell in report.rows[-1]) + "".join(f"\n    {why[:300]}" for why in one["reasons"]))
    if one["missing"]:
        pair.ledger.ranges.clear()  # counted once
    return one


def measure(pair: Pair, chance: Chance) -> None:
    """How long a failover and a protection take here: the moments are drawn from these."""
    stage = pair.stage
    victim, survivor = chance.order
    stage.power(victim, "off")
    pair.run("failover", "failover", "-e", f"colo_confirm_fenced={victim}")
    stage.power(victim, "on")
    pair.run("again", "site", *PROTECT)
    pair.seconds["start"] = pair.seconds["again"] + 15  # and settle_ms
    stage.say(
        f"failover.yml takes {pair.seconds['failover']:.1f} s, site.yml {pair.seconds['again']:.1f} s; {survivor} serves"
    )


def judge(done: list[Json], rounds: int) -> dict[str, bool]:
    """Which of the promises were kept."""
    return {
        f"{rounds} times dark, and each time a way back": len(done) == rounds
        and all(one["outcome"] != "NO WAY OUT" for one in done),
        "a copy that site.yml started was never older than the newest acknowledged write": not any(
            one["missing"] for one in done if one["outcome"] == "started"
        ),
        "every refusal gave a reason": all(one["reasons"] for one in done if one["outcome"] != "started"),
        "site.yml started nothing while a host could not be asked": all(one["early"] for one in done if one["delayed"]),
    }
