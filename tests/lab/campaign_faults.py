# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault, on each side, in each phase, with a client on the line all the time: never two, never lose.

The cases and what is expected of them are in `faults_cases.py`. Each ends with a protected guest, so that the next one can
follow on the same lab. Moments come from a seed. Every run is one line of build/evidence/faults-SEED.jsonl, written when it is
over: a campaign that was ended goes on where it was.

  python tests/lab/campaign_faults.py      writes each case's last result into docs/docsite/faults.md
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
import typing as t

from campaign_dark import PROTECT, Ledger, reasons
from campaign_report import Report
from client import SLOTS
from faults_cases import BUILDING, CASES, SHORT, Case, Do
from faults_outside import FAULTS, Hand, nothing
from labplay import EVIDENCE, HERE, TOP, Client, Json, Play, Running, Stage, StageError, bring_back
from labroot import LabError
from senders import Span, join, overlaps

sys.path.insert(0, str(TOP / "build" / "collections"))

from ansible_collections.lockstep.colo.plugins.filter.colo import FilterModule
from ansible_collections.lockstep.colo.tests.unit import _plans

FILTERS = FilterModule().filters()
PAGE = TOP / "docs" / "docsite" / "faults.md"
RUNS = PAGE.with_name("faults-runs.jsonl")
# A playbook that is still not over then hangs.
PLAYBOOK_S = 300.0
# What a machine that does much else may add to a step's own deadline.
SLACK_S = 3.0
SEE_S = 30.0  # until the verdict has to be what is expected
BUSY_S = 60.0  # how long another run's module may go on after its controller is gone
OVERLAP_S = 0.3  # two samples of one side are so far apart at the most
# how a client asks: often, or now and then
PACE = {"load": 4, "idle": 250}


# --- deadlines -------------------------------------------------------------------------------------------------------


def deadlines() -> dict[str, float]:
    """Every step's title, without its numbers, and the longest deadline that a plan gives it."""
    found: dict[str, float] = {}
    for step in _plans.steps():
        title = _plans.nameless(step.title)
        found[title] = max(found.get(title, 0.0), step.timeout_s)
    return found


def overdue(play: Play, guest: str, known: dict[str, float]) -> list[str]:
    """The steps of a playbook's modules that took longer than their deadlines; one that is not known has a QMP command's."""
    late = []
    for line in play.results:
        steps = line.get("guests", {}).get(guest, {}).get("timings", {}).get("steps_ms", {})
        for title, spent_ms in steps.items():
            limit_s = known.get(_plans.nameless(title), 5.0)
            if spent_ms / 1000 > limit_s + SLACK_S:
                late.append(f"{title}: {spent_ms / 1000:.1f} s of {limit_s:g} s")
    return late


# --- what the operator sees ------------------------------------------------------------------------------------------


def judged(play: Play, guest: str, hosts: t.Sequence[str]) -> Json:
    """The verdict on the hosts' first answers in a playbook: what status.yml would have said. Empty if it asked none."""
    answers: dict[str, Json] = {}
    for line in play.results:
        if line.get("module") == "colo_info" and "guests" in line:
            answers.setdefault(line["host"], {"seen": {"guests": line["guests"]}})
    if not answers:
        return {}
    return dict(FILTERS["verdicts"]({guest: {"hosts": list(hosts)}}, answers, "seen")[guest])


def codes(play: Play, guest: str) -> list[str]:
    """The error codes that modules returned for the guest."""
    errors = (line.get("guests", {}).get(guest, {}).get("error", {}).get("error_code") for line in play.results)
    return sorted({code for code in errors if code})


@dataclasses.dataclass
class Watch:
    """All eyes on one case: the client, the switch, a playbook's results."""

    client: Client
    switch: subprocess.Popen[str]
    seen: list[Json] = dataclasses.field(default_factory=list)
    late: list[str] = dataclasses.field(default_factory=list)
    starts: int = 0


class Field:
    """The lab through all cases."""

    def __init__(self, stage: Stage, chance: random.Random) -> None:
        self.stage = stage
        self.chance = chance
        self.hands: dict[str, Hand] = {}
        self.ledger = Ledger(int(time.time()) * SLOTS % 2**52)
        self.deadlines = deadlines()
        self.boot_id = ""  # of the guest that runs, once known
        inventory = json.loads(pathlib.Path(stage.lab["inventory"]).read_text(encoding="utf-8"))
        self.mac: str = inventory["colo_hosts"]["vars"]["colo_guests"][stage.guest]["nics"][0]["mac"]
        # the lab's name comes before that of its parts
        self.switch = stage.lab["client_netns"].removesuffix("client") + "sw"

    def __enter__(self) -> Field:
        self.hands = {host: Hand(self.stage, host) for host in self.stage.hosts}
        for hand in self.hands.values():
            hand.start()
        return self

    def __exit__(self, *_: object) -> None:
        for hand in self.hands.values():
            hand.stop()

    def serving(self) -> str:
        """The host whose QEMU is the primary of a pair in lock step."""
        end = time.monotonic() + 15
        while time.monotonic() < end:
            found = [host for host, hand in self.hands.items() if hand.mode == "primary"]
            other = [hand.mode for host, hand in self.hands.items() if host not in found]
            if len(found) == 1 and other == ["secondary"]:
                return found[0]
            time.sleep(0.1)
        raise StageError("the guest is not in lock step")

    # --- watching

    def open(self, pace_ms: int) -> Watch:
        words = [
            "--wait",
            "60",
            "--answer-timeout",
            "400",
            "--interval-ms",
            str(pace_ms),
            "--first",
            str(self.ledger.next),
        ]
        words += ["--check-timeout", "15"]
        ports = [f"l-{host}" for host in self.stage.hosts]
        argv = ["ip", "netns", "exec", self.switch, sys.executable, str(HERE / "senders.py"), self.mac, *ports]
        switch = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert switch.stdout is not None
        if switch.stdout.readline().strip() != "listening":
            raise StageError("nobody listens at the switch")
        return Watch(Client(self.stage, *words), switch)

    def close(self, watch: Watch) -> tuple[Json, dict[str, list[Span]]]:
        """The client's last report, and who sent when."""
        report = watch.client.stop()
        watch.switch.send_signal(signal.SIGTERM)
        said, _none = watch.switch.communicate(timeout=20)
        if not report.get("final"):
            raise StageError("the client has left no report")
        if report["acknowledged"]:
            self.ledger.ranges.append((self.ledger.next, self.ledger.next + int(report["acknowledged"]) - 1))
        self.ledger.next += int(report["sent"]) + 1
        return report, {port.removeprefix("l-"): spans for port, spans in json.loads(said).items()}

    # --- playbooks

    def end(self, running: Running, watch: Watch, what: str) -> Play:
        """A playbook's end, and what it showed."""
        try:
            running.process.wait(PLAYBOOK_S)
        except subprocess.TimeoutExpired:
            slay(running)
            watch.late.append(f"{what} was not over after {PLAYBOOK_S:.0f} s")
        play = running.wait(check=False)
        guest = self.stage.guest
        watch.late += overdue(play, guest, self.deadlines)
        watch.starts += sum("permit one start as primary" in each["actions"] for each in play.of("colo_migrate", guest))
        watch.seen.append(
            {
                "command": what,
                "code": play.code,
                "seconds": round(play.seconds, 1),
                "error_codes": codes(play, guest),
                "said": [text[:300] for text in reasons(play)[:3]] if play.code else [],
                "changed": play.changed,
                "log": play.log.name,
            }
        )
        return play

    def play(self, watch: Watch, name: str, *arguments: str) -> Play:
        """Run a playbook as an operator does: one who meets another run waits for it."""
        until = time.monotonic() + BUSY_S
        while True:
            play = self.end(self.stage.start(name, *arguments), watch, " ".join((f"{name}.yml", *arguments)))
            if "guest_busy" not in codes(play, self.stage.guest) or time.monotonic() >= until:
                return play

    def module(self, host: str, module: str, **arguments: t.Any) -> None:
        """One module on one host, to set the stage for a case."""
        words = json.dumps({"name": [self.stage.guest], **arguments})
        argv = ["ansible", "-i", self.stage.lab["inventory"], host, "-m", f"lockstep.colo.{module}", "-a", words]
        done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise StageError(f"{module} on {host}: {done.stdout}{done.stderr}")


def slay(running: Running) -> None:
    """The controller is gone, with all its forks, in one moment."""
    family, more = [running.process.pid], [running.process.pid]
    while more:
        with contextlib.suppress(OSError):
            children = pathlib.Path(f"/proc/{more[0]}/task/{more[0]}/children").read_text().split()
            family += [int(child) for child in children]
            more += [int(child) for child in children]
        more.pop(0)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# --- one case --------------------------------------------------------------------------------------------------------


class Run:
    """One run of one case, from protected to protected."""

    def __init__(self, field: Field, case: Case) -> None:
        self.field = field
        self.case = case
        self.stage = field.stage
        self.serving = field.serving()
        self.sides = {"serving": self.serving, "standby": self.stage.other(self.serving)}
        self.harmed = self.sides.get(case.side, self.serving)
        self.troubles: list[str] = []
        self.heal: t.Callable[[], None] = nothing
        self.verdict: Json = {}  # of the first look after the fault
        self.struck = 0.0

    def hand(self, side: str) -> Hand:
        return self.field.hands[self.sides[side]]

    def go(self) -> Json:
        case, field, begun = self.case, self.field, time.time()
        if case.phase == "alone" or case.phase in BUILDING:
            self._alone()
        watch = field.open(PACE.get(case.phase, 20))
        sampled = {host: len(hand.samples) for host, hand in field.hands.items()}
        try:
            watch.client.wait_for_answers(3, 60)
            self.struck = self._strike(watch)
            for do in case.way:
                self._do(do, watch)
            self.heal()
            self._protect(watch)
            if not case.restart:
                watch.client.wait_for_answers(3, 60)
        except (StageError, LabError, AssertionError) as error:
            self.troubles.append(str(error)[:600])
        finally:
            client, frames = field.close(watch)
        samples = {
            host: join([each.at for each in hand.samples[sampled[host] :] if each.serves])
            for host, hand in field.hands.items()
        }
        return self._judge(begun, watch, client, frames, samples)

    def _play(self, watch: Watch, name: str, *arguments: str) -> Play:
        """Run a playbook. The first that looks after the fault tells the verdict; run too early, it is run once more."""
        while True:
            play = self.field.play(watch, name, *arguments)
            found = {} if self.verdict else judged(play, self.stage.guest, self.stage.hosts)
            if not found:
                return play
            if found["verdict"] in self.case.verdict or time.time() > self.struck + SEE_S:
                self.verdict = {key: found[key] for key in ("verdict", "reason", "refusal")}
                self._expect(
                    found["verdict"] in self.case.verdict, f"the verdict is {found['verdict']}: {found['reason']}"
                )
                return play

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.troubles.append(otherwise)

    def _alone(self) -> None:
        """The guest serves alone, and nothing is left of its standby."""
        self.field.module(self.serving, "colo_migrate", role="primary", state="absent")
        self.hand("standby").kill_qemu()

    def _strike(self, watch: Watch) -> float:
        """Make the fault in its phase; returns when."""
        case, field = self.case, self.field
        fault, self.heal = FAULTS[case.fault](field.hands[self.harmed])
        if case.phase in BUILDING:
            return self._strike_building(fault, watch)
        if case.phase == "checkpoint":
            self._at_event(fault, 30)
            return time.time()
        time.sleep(field.chance.uniform(0, 2))  # a random moment
        if case.fault == "site.yml twice at once":
            self._both([self.stage.start("site", *PROTECT) for _one in range(2)], watch)
        elif case.fault == "controller killed in site.yml":
            self._killed(self.stage.start("site", *PROTECT), field.chance.uniform(2, 12), watch)
        fault_at = time.time()
        fault()
        if case.fault == "failover.yml twice at once":
            self._both([self.stage.start("failover") for _one in range(2)], watch)
        elif case.fault == "controller killed in failover.yml":
            self._killed(self.stage.start("failover"), field.chance.uniform(1, 6), watch)
        return fault_at

    def _both(self, runs: list[Running], watch: Watch) -> None:
        codes_of = [self.field.end(run, watch, f"{run.name}.yml, one of two").code for run in runs]
        self._expect(0 in codes_of, "neither of two runs at once succeeded")

    def _killed(self, running: Running, after_s: float, watch: Watch) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(after_s)
        slay(running)
        self.field.end(running, watch, f"{running.name}.yml, killed after {after_s:.1f} s")

    def _at_event(self, fault: t.Callable[[], None], seconds: float) -> None:
        hand = self.hand("serving")
        if not hand.connected.wait(10):
            raise StageError(f"{hand.host} has no QEMU to watch")
        hand.strike_at(self.case.phase, fault)
        if not hand.struck.wait(seconds):
            raise StageError(f"the phase {self.case.phase} was not reached in {seconds:.0f} s")
        if hand.missed is not None:
            raise hand.missed

    def _strike_building(self, fault: t.Callable[[], None], watch: Watch) -> float:
        running = self.stage.start("site", *PROTECT)
        try:
            self._at_event(fault, 120)
            struck = time.time()
        finally:
            play = self.field.end(running, watch, "site.yml, under way")
        self._expect((play.code != 0) or self.case.build != "fails", "site.yml, under way, succeeded")
        return struck

    def _do(self, do: Do, watch: Watch) -> None:
        if do.what == "kill QEMU" and do.side:
            self.hand(do.side).kill_qemu()
        elif do.what == "power off" and do.side:
            self.hand(do.side).power_off()
        elif do.what == "copy is stale" and do.side:
            self.hand(do.side).await_stale()
        elif do.what == "end of the fault":
            self.heal()
            self.heal = nothing
        else:
            confirm = (
                [] if do.confirm is None else ["-e", f"colo_confirm_fenced={self.sides.get(do.confirm, do.confirm)}"]
            )
            play = self._play(watch, do.what, *(PROTECT if do.what == "site" else ()), *confirm)
            text = re.sub(r"\s+", " ", play.log.read_text(encoding="utf-8"))
            if do.refused:
                self._expect(play.code != 0, f"{do} did not refuse")
                self._expect(re.search(do.refused, text) is not None, f"{do}: it said {reasons(play)[:2]}")
            else:
                self._expect(play.code == 0, f"{do} failed: {reasons(play)[:2]}")

    def _protect(self, watch: Watch) -> None:
        """Back to protected: at the first try, or the case has not gone as it should."""
        play = self._play(watch, "site", *PROTECT)
        self._expect(play.code == 0, f"site.yml, in the end, failed: {reasons(play)[:2]}")
        if play.code:
            again = self.field.play(watch, "site", *PROTECT)
            if again.code:
                raise StageError("site.yml does not protect the guest again")
        after = self.field.serving()
        wanted = self.serving if self.case.serves == "same" else self.stage.other(self.serving)
        self._expect(after == wanted, f"{after} serves in the end, not {wanted}")

    def _other_boot(self, boot_ids: t.Sequence[str]) -> bool:
        """Whether the guest that answers is not the one of the run before, though nobody was to start it anew."""
        known, self.field.boot_id = self.field.boot_id, "" if self.case.restart or not boot_ids else boot_ids[-1]
        return bool(known and boot_ids and boot_ids[0] != known)

    def _judge(
        self,
        begun: float,
        watch: Watch,
        client: Json,
        frames: dict[str, list[Span]],
        samples: dict[str, list[Span]],
    ) -> Json:
        one, two = self.stage.hosts
        both = overlaps(frames[one], frames[two])
        both += [span for span in overlaps(samples[one], samples[two]) if span[1] - span[0] > OVERLAP_S]
        kept = bool(client["connection_survived"])
        same_boot = bool(client["same_boot_id"]) and bool(client["counter_monotone"])
        restarted = watch.starts > 0
        missing = client["lost"] if kept else self.field.ledger.missing(self.stage) if not self.troubles else None
        self._expect(
            kept == self.case.kept, f"the connection was {'kept' if kept else 'lost: ' + '; '.join(client['errors'])}"
        )
        self._expect(same_boot, "the guest answered from another boot on one connection")
        self._expect(missing is not None, "nobody could say what the guest's disk holds")
        restarted = self._other_boot(client["boot_ids"]) or restarted
        return {
            "case": self.case.name,
            "at": begun,
            "seconds": round(time.time() - begun, 1),
            "served": self.serving,
            "struck": self.struck,
            "load": os.getloadavg()[0],
            "verdict": self.verdict,
            "two": both,
            "lost": missing,
            "kept": kept,
            "acknowledged": client["acknowledged"],
            "gap_ms": client["longest_gap_ms"],
            "overdue": watch.late,
            "restarted": restarted,
            "boot_ids": client["boot_ids"],
            "restart_without_need": restarted and not self.case.restart,
            "seen": watch.seen,
            "frames": frames,
            "serving_samples": samples,
            "troubles": self.troubles,
        }


def holds(run: Json) -> bool:
    """Whether all went as it was to go."""
    return not (run["two"] or run["lost"] or run["overdue"] or run["restart_without_need"] or run["troubles"])


# --- all of them -----------------------------------------------------------------------------------------------------


def chosen(patterns: t.Sequence[str]) -> list[Case]:
    """The cases that one of the patterns names; `short` stands for those of every test run."""
    wanted = [each for pattern in patterns for each in (SHORT if pattern == "short" else (pattern,))]
    return [case for case in CASES if not wanted or any(fnmatch.fnmatchcase(case.name, f"*{each}*") for each in wanted)]


def draw(seed: int, number: int, cases: t.Sequence[Case], runs: int | None) -> tuple[Case, random.Random]:
    """The case of a run and where its moments come from: each once, or, for a number of runs, in a random order each time."""
    chance = random.Random(f"{seed}/{number}")
    if runs is None:
        return cases[number], chance
    order = list(cases)
    random.Random(f"{seed}/round {number // len(cases)}").shuffle(order)
    return order[number % len(cases)], chance


def read(path: pathlib.Path) -> list[Json]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclasses.dataclass(frozen=True)
class Wish:
    """Which runs are wanted: cases by patterns, how many of them (None: each once), for how long, and what comes before."""

    seed: int
    patterns: t.Sequence[str]
    runs: int | None
    minutes: float | None
    fresh: bool
    tags: tuple[str, ...]


def campaign(stage: Stage, report: Report, wish: Wish) -> None:
    """The runs that are not in the evidence of this seed yet; then what holds of all of them."""
    cases, seed = chosen(wish.patterns), wish.seed
    if not cases:
        raise StageError(f"no case is named by {', '.join(wish.patterns)}")
    evidence = EVIDENCE / f"faults-{seed}.jsonl"
    evidence.parent.mkdir(parents=True, exist_ok=True)
    if wish.fresh:
        evidence.unlink(missing_ok=True)
    # what takes more than one call goes on; else all is run that is named
    goes_on = wish.runs is not None or wish.minutes is not None
    known = {(run["number"], run["case"]): run for run in read(evidence)} if goes_on else {}
    wanted = len(cases) if wish.runs is None else wish.runs
    ends = time.monotonic() + (wish.minutes or 1e6) * 60
    done: list[Json] = []
    stage.say(f"seed {seed}, {wanted} runs of {len(cases)} cases; {len(known)} are in {evidence}")
    bring_back(stage)
    stage.play("site", *wish.tags)
    with Field(stage, random.Random(seed)) as field:
        for number in range(wanted):
            case, field.chance = draw(seed, number, cases, wish.runs)
            if (number, case.name) in known:
                done.append(known[number, case.name])
                continue
            if time.monotonic() >= ends:
                stage.say(f"time is up before run {number + 1}")
                break
            one = {"number": number, "seed": seed, **Run(field, case).go()}
            done.append(one)
            with open(evidence, "a", encoding="utf-8") as file:
                file.write(json.dumps(one) + "\n")
            stage.say(told(one))
            if one["troubles"]:
                recover(stage, field)
        if field.ledger.ranges:
            report.evidence["missing_in_the_end"] = field.ledger.missing(stage)
    summarize(report, done, wanted)


def told(run: Json) -> str:
    words = f"{run['number'] + 1}. {run['case']}: {'as expected' if holds(run) else 'NOT AS EXPECTED'}, {run['seconds']} s, gap {run['gap_ms'] / 1000:.1f} s"
    return words + "".join(f"\n          {why}" for why in [*run["troubles"], *run["overdue"]])


def recover(stage: Stage, field: Field) -> None:
    """A case that did not end where it should must not spoil the next one: both hosts are as after a black-out."""
    for hand in field.hands.values():
        if hand.qemu() is not None:
            with contextlib.suppress(StageError):
                hand.signal(signal.SIGCONT, hand.qemu())
        for kind in ("link", "lan"):
            hand.plug(kind, "up")
    stage.play("failover", check=False)  # refused where nothing is left to fail over
    if stage.play("site", *PROTECT, check=False).code:
        for host in stage.hosts:
            stage.power(host, "off")
        for host in stage.hosts:
            stage.power(host, "on")
        stage.play("site")


def summarize(report: Report, done: list[Json], wanted: int) -> None:
    report.title = f"{len(done)} runs of the fault campaign"
    report.columns = ("case", "verdict", "two", "lost", "kept", "gap s", "overdue", "restarted", "seconds", "holds")
    report.rows = [
        (
            run["case"],
            run["verdict"].get("verdict"),
            len(run["two"]),
            run["lost"],
            run["kept"],
            run["gap_ms"] / 1000,
            len(run["overdue"]),
            run["restarted"],
            run["seconds"],
            holds(run),
        )
        for run in done
    ]
    report.criteria = judge(done, wanted) | {
        "every write that was ever acknowledged is on the disk in the end": not report.evidence.get(
            "missing_in_the_end"
        )
    }


def judge(done: list[Json], wanted: int) -> dict[str, bool]:
    """Which of the promises were kept."""
    return {
        f"{wanted} runs": len(done) >= wanted,
        "never two: no moment in which both hosts served": not any(run["two"] for run in done),
        "never lose: every acknowledged write is there": not any(run["lost"] for run in done),
        "every wait ends: no step took longer than its deadline": not any(run["overdue"] for run in done),
        "no guest was restarted without need": not any(run["restart_without_need"] for run in done),
        "each went as was expected of it": not any(run["troubles"] for run in done),
    }


# --- the page --------------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- begin: written by tests/lab/campaign_faults.py -->", "<!-- end -->"


def table(done: t.Sequence[Json]) -> str:
    """Each case with what is expected of it and how its last run went."""
    last = {run["case"]: run for run in sorted(done, key=lambda run: float(run["at"]))}
    count = {name: sum(run["case"] == name for run in done) for name in last}
    good = {name: sum(run["case"] == name and holds(run) for run in done) for name in last}
    lines = [
        "| fault | side | phase | expected | then serves | runs as expected | last run |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        run = last.get(case.name)
        how = "not run yet"
        if run is not None:
            day = time.strftime("%Y-%m-%d", time.gmtime(run["at"]))
            how = (
                f"{day}: {'as expected' if holds(run) else 'not as expected'}, longest gap {run['gap_ms'] / 1000:.1f} s"
            )
        counts = f"{good[case.name]} of {count[case.name]}" if run is not None else "-"
        lines.append(
            f"| {case.fault} | {case.side} | {case.phase} | {case.expected.replace('|', ' or ')} | {case.outcome} | {counts} | {how} |"
        )
    return "\n".join(lines)


def sums(done: t.Sequence[Json]) -> str:
    return (
        f"{len(done)} runs, seeds {', '.join(sorted({str(run['seed']) for run in done}))}: two hosts served in "
        f"{sum(bool(run['two']) for run in done)} of them, acknowledged writes lost in {sum(bool(run['lost']) for run in done)} "
        f"(of {sum(run['acknowledged'] for run in done)}), a deadline was passed in {sum(bool(run['overdue']) for run in done)}, "
        f"a guest was restarted without need in {sum(run['restart_without_need'] for run in done)}; {sum(holds(run) for run in done)} went "
        "in all as expected."
    )


def slim(run: Json) -> Json:
    """What the page wants of a run. It is kept with the sources: no machine does all runs, and a count that nobody can count again says little."""
    kept = {key: run[key] for key in ("seed", "number", "case", "lost", "acknowledged", "restart_without_need")}
    return {
        **kept,
        "at": round(run["at"]),
        "gap_ms": round(run["gap_ms"]),
        **{key: len(run[key]) for key in ("two", "overdue", "troubles")},
    }


def merged(kept: t.Sequence[Json], new: t.Sequence[Json]) -> list[Json]:
    """All runs, oldest first, each once."""
    runs = {(run["seed"], run["number"], run["at"]): run for run in (*kept, *map(slim, new))}
    return sorted(runs.values(), key=lambda run: (run["at"], run["number"]))


def main() -> int:
    """Add the evidence of this machine to the runs that are kept, and write the table of all of them into the page."""
    found = [run for path in sorted(EVIDENCE.glob("faults-*.jsonl")) for run in read(path)]
    if not RUNS.exists():
        # the first time: what the page says of earlier runs is not in the evidence of this machine
        print(
            f"{RUNS.name} begins with the {len(found)} runs of this machine; those that the page tells of were not kept one by one"
        )
    runs = merged(read(RUNS), found)
    RUNS.write_text("".join(json.dumps(run) + "\n" for run in runs), encoding="utf-8")
    known = {case.name for case in CASES}
    done = [run for run in runs if run["case"] in known]
    page = PAGE.read_text(encoding="utf-8")
    head, _old, rest = page.partition(BEGIN)
    _table, _end, foot = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{sums(done)}\n\n{table(done)}\n\n{END}{foot}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
