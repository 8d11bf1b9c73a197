# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a story on the lab's hosts is made of: playbooks, the power switch, a client on the line, a look at a host.

The demonstration (`demo.py`) and the campaigns (`campaign.py`) are told with these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterator

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent.parent
EVIDENCE = TOP / "build" / "evidence"

Json = dict[str, t.Any]


class StageError(Exception):
    """What keeps a story from going on."""


@dataclasses.dataclass(frozen=True)
class Play:
    """One run of a playbook: when, how it ended, and what the collection's modules returned."""

    name: str
    began: float
    ended: float
    code: int
    results: list[Json]
    log: pathlib.Path

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def changed(self) -> int:
        """How many tasks changed something, on all hosts."""
        stats: Json = next((line["stats"] for line in self.results if "stats" in line), {})
        return sum(host["changed"] for host in stats.values())

    def of(self, module: str, guest: str) -> Iterator[Json]:
        """What `module` returned for the guest wherever it did something: one entry per host."""
        for line in self.results:
            result = line.get("guests", {}).get(guest, {})
            if line.get("module") == module and result.get("actions"):
                yield {**result, "host": line["host"], "began": line["began"], "ended": line["ended"]}


class Running:
    """A playbook under way. Its output goes to a file."""

    def __init__(self, name: str, command: list[str], evidence: pathlib.Path) -> None:
        number = len(list(evidence.glob("*.log"))) + 1
        self.name = name
        self.log, self.results = (evidence / f"{number}-{name}.{end}" for end in ("log", "jsonl"))
        environment = {
            "ANSIBLE_CALLBACKS_ENABLED": "colo_results",
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callbacks"),
            "ANSIBLE_NOCOLOR": "1",
            "LOCKSTEP_RESULTS": str(self.results),
        }
        self.began = time.time()
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=TOP,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait(self, check: bool = True) -> Play:
        """Its end; the output is shown when it failed and that is not expected."""
        code = self.process.wait()
        ended = time.time()
        lines = self.results.read_text(encoding="utf-8").splitlines() if self.results.exists() else []
        if code and check:
            print(self.log.read_text(encoding="utf-8"), file=sys.stderr)
            raise StageError(f"{self.name}.yml ended with {code}; its output is in {self.log}")
        return Play(self.name, self.began, ended, code, [json.loads(line) for line in lines], self.log)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where the lab is, which guest the story is about, and when it began."""

    lab: Json
    guest: str
    evidence: pathlib.Path
    begun: float

    @property
    def hosts(self) -> list[str]:
        return sorted(self.lab["hosts"])

    def other(self, host: str) -> str:
        """The host that is not this one."""
        (other,) = (each for each in self.hosts if each != host)
        return other

    def say(self, text: str) -> None:
        print(f"{time.time() - self.begun:6.1f} s  {text}", flush=True)

    def start(self, name: str, *arguments: str) -> Running:
        """Begin a playbook and go on."""
        playbook = str(TOP / "playbooks" / f"{name}.yml")
        return Running(name, ["ansible-playbook", "-i", self.lab["inventory"], playbook, *arguments], self.evidence)

    def play(self, name: str, *arguments: str, check: bool = True) -> Play:
        """Run a playbook."""
        return self.start(name, *arguments).wait(check)

    def verdicts(self) -> Json:
        """What status.yml says of all guests."""
        path = self.evidence / "status.json"
        path.unlink(missing_ok=True)
        self.play("status", "-e", f"colo_protection_status_file={path}")
        answer: Json = json.loads(path.read_text(encoding="utf-8"))
        return answer

    def verdict(self) -> Json:
        """What status.yml says of the guest."""
        answer = self.verdicts()
        return {**answer["verdicts"][self.guest], "answers": answer["hosts"]}

    def power(self, host: str, state: t.Literal["on", "off"]) -> tuple[float, float]:
        """Use the lab's power switch; returns when that began and ended."""
        began = time.time()
        command = self.lab["hosts"][host][f"power_{state}"]
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StageError(f"{host} cannot be powered {state}: {done.stderr.strip()}")
        return began, time.time()

    def now(self) -> Json:
        """The lab's lab.json of this moment: hosts that were booted again have other processes."""
        lab: Json = json.loads(pathlib.Path(self.lab["inventory"]).with_name("lab.json").read_text(encoding="utf-8"))
        return lab

    def labctl(self, *words: str, stdin: t.IO[bytes] | None = None) -> str:
        """What a command of labctl for this lab prints."""
        directory = str(pathlib.Path(self.lab["inventory"]).parent)
        argv = [sys.executable, str(HERE / "labctl.py"), "-q", "--dir", directory, *words]
        done = subprocess.run(argv, stdin=stdin or subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            raise StageError(f"labctl {' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def look(self, host: str, *guests: str) -> Json:
        """What the witness sees on a host: without a line of the collection, and without ssh."""
        with open(HERE / "witness.py", "rb") as program:
            words = ["exec", host, "--", "python3", "-", *(guests or (self.guest,))]
            seen: Json = json.loads(self.labctl(*words, stdin=program))
        return seen

    def ask(self, *words: str) -> str:
        """What the guest's line service answers to one request."""
        where = self.lab["guests"][self.guest]
        command = self.client("ask", where["address"], *words, "--port", str(where["line_port"]))
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StageError(f"{self.guest} does not answer: {done.stderr.strip()}")
        return done.stdout.strip()

    def client(self, *words: str) -> list[str]:
        """The command line of the client's program in the client's network."""
        netns = ["ip", "netns", "exec", self.lab["client_netns"]]
        return [*netns, sys.executable, str(HERE / "client.py"), *words]


def bring_back(stage: Stage) -> Json:
    """Both hosts on, and nothing left over that waits for a decision; the verdict then."""
    for host in stage.hosts:
        stage.power(host, "on")
    seen = stage.verdict()
    stage.say(f"{stage.guest} is {seen['verdict']}: {seen['reason']}")
    if seen["verdict"] == "degraded" and "failover.yml" in seen["refusal"]:
        play = stage.play("failover")
        stage.say(f"an earlier run was cut short; failover.yml took {play.seconds:.1f} s")
        seen = stage.verdict()
    return seen


class Client:
    """The continuity client, a process in the client's network."""

    def __init__(self, stage: Stage, *options: str, guest: str | None = None) -> None:
        name = guest or stage.guest
        where = stage.lab["guests"][name]
        self.status = stage.evidence / ("client.json" if guest is None else f"client-{guest}.json")
        self.status.unlink(missing_ok=True)
        words = ["run", where["address"], "--port", str(where["line_port"]), "--status", str(self.status)]
        self.process = subprocess.Popen(
            stage.client(*words, *(options or ("--wait", "900"))), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def report(self) -> Json:
        with contextlib.suppress(OSError, ValueError):
            report: Json = json.loads(self.status.read_text(encoding="utf-8"))
            return report
        return {}

    def wait_for_answers(self, more: int, seconds: float) -> Json:
        """Until so many more requests were acknowledged."""
        end = time.monotonic() + seconds
        goal = self.report().get("acknowledged", 0) + more
        while time.monotonic() < end and self.process.poll() is None:
            report = self.report()
            if report.get("acknowledged", 0) >= goal:
                return report
            time.sleep(0.1)
        raise StageError(f"the guest did not answer its client within {seconds:.0f} s: {self.report().get('errors')}")

    def stop(self) -> Json:
        """End it and return its report: it asks the guest for every number that was acknowledged."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self.report()


# --- figures ---------------------------------------------------------------------------------------------------------


def protection(play: Play, guest: str) -> Json:
    """How the guest came into lock step, from what colo_migrate returned on the host that serves; empty if it was there."""
    for result in play.of("colo_migrate", guest):
        if "guest_pause_ms" in result["timings"]:
            return {
                "host": result["host"],
                "guest_pause_ms": result["timings"]["guest_pause_ms"],
                "module_ms": result["timings"]["total_ms"],
                "transitions": result["transitions"],
                "began": result["began"],
                "ended": result["ended"],
            }
    return {}


def waited(report: Json, since: float) -> float:
    """Seconds from a moment on that the client was kept waiting then, 0 if it was answered all the time."""
    ends = [gap["begin"] + gap["milliseconds"] / 1000 for gap in report["gaps"] if gap["begin"] <= since]
    return float(max([0.0, *(end - since for end in ends)]))


def gap_over(report: Json, moment: float) -> float:
    """Length in seconds of the client's gap that begins before or soon after a moment and ends after it."""
    lengths = [
        gap["milliseconds"] / 1000
        for gap in report["gaps"]
        if gap["begin"] <= moment + 1 and gap["begin"] + gap["milliseconds"] / 1000 >= moment
    ]
    return max(lengths, default=0.0)


def continuity(report: Json) -> dict[str, bool]:
    """What has to hold, or a guest has not gone on."""
    return {
        "the client's connection was never lost": bool(report["connection_survived"]) and report["connections"] == 1,
        "the guest was never rebooted": bool(report["same_boot_id"]) and bool(report["counter_monotone"]),
        "every acknowledged request is on the disk": report["lost"] == 0 and report["acknowledged"] > 0,
    }


def write(path: pathlib.Path, evidence: Json) -> None:
    """Evidence for whoever wants to see it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evidence, indent=2) + "\n", encoding="utf-8")
