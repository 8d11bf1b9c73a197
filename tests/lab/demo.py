# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on the lab's hosts, told with figures: protect a guest, kill the host that serves it, fail over.

One client outside holds one TCP connection from before protection is entered until the pair is protected again. The
exit code is 0 only if that connection went through all of it, the guest was never rebooted, and every acknowledged
request is on its disk. How long things may take is told, and recorded, beside it.

It begins with whatever state it finds and leaves a protected pair. Evidence: build/evidence/demo.json, beside it the
playbooks' output.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import shutil
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


class DemoError(Exception):
    """What keeps the demonstration from going on."""


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


@dataclasses.dataclass(frozen=True)
class Demo:
    """Where the lab is, which guest, and when the demonstration began."""

    lab: Json
    guest: str
    evidence: pathlib.Path
    begun: float

    def say(self, text: str) -> None:
        print(f"{time.time() - self.begun:6.1f} s  {text}", flush=True)

    def play(self, name: str, *arguments: str, check: bool = True) -> Play:
        """Run a playbook; its output goes to a file, and to the screen when it fails."""
        number = len(list(self.evidence.glob("*.log"))) + 1
        log, results = (self.evidence / f"{number}-{name}.{end}" for end in ("log", "jsonl"))
        command = ["ansible-playbook", "-i", self.lab["inventory"], str(TOP / "playbooks" / f"{name}.yml"), *arguments]
        environment = {
            "ANSIBLE_CALLBACKS_ENABLED": "colo_results",
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callbacks"),
            "ANSIBLE_NOCOLOR": "1",
            "LOCKSTEP_RESULTS": str(results),
        }
        began = time.time()
        with open(log, "wb") as output:
            code = subprocess.run(
                command,
                cwd=TOP,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        ended = time.time()
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
        if code and check:
            print(log.read_text(encoding="utf-8"), file=sys.stderr)
            raise DemoError(f"{name}.yml ended with {code}; its output is in {log}")
        return Play(name, began, ended, code, [json.loads(line) for line in lines], log)

    def verdict(self) -> Json:
        """What status.yml says of the guest."""
        path = self.evidence / "status.json"
        path.unlink(missing_ok=True)
        self.play("status", "-e", f"colo_protection_status_file={path}")
        answer: Json = json.loads(path.read_text(encoding="utf-8"))
        return {**answer["verdicts"][self.guest], "answers": answer["hosts"]}

    def power(self, host: str, state: t.Literal["on", "off"]) -> tuple[float, float]:
        """Use the lab's power switch; returns when that began and ended."""
        began = time.time()
        command = self.lab["hosts"][host][f"power_{state}"]
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"{host} cannot be powered {state}: {done.stderr.strip()}")
        return began, time.time()


class Client:
    """The continuity client, a process in the client's network."""

    def __init__(self, demo: Demo) -> None:
        self.status = demo.evidence / "client.json"
        guest = demo.lab["guests"][demo.guest]
        words = [
            "run",
            guest["address"],
            "--port",
            str(guest["line_port"]),
            "--wait",
            "900",
            "--status",
            str(self.status),
        ]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", demo.lab["client_netns"], sys.executable, str(HERE / "client.py"), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
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
        raise DemoError(f"the guest did not answer its client within {seconds:.0f} s: {self.report().get('errors')}")

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
    """What has to hold, or the demonstration has failed."""
    return {
        "the client's connection was never lost": bool(report["connection_survived"]) and report["connections"] == 1,
        "the guest was never rebooted": bool(report["same_boot_id"]) and bool(report["counter_monotone"]),
        "every acknowledged request is on the disk": report["lost"] == 0 and report["acknowledged"] > 0,
    }


def targets(evidence: Json) -> dict[str, bool]:
    """What it should take at most; on a machine that does other things as well, a miss proves nothing."""
    failover = evidence["failover"]
    entered = [evidence[part]["entered"] for part in ("protect", "protect_again") if evidence[part]["entered"]]
    return {
        "site.yml with nothing to do takes under 20 s": evidence["repeat"]["seconds"] < 20,
        "site.yml with nothing to do changes nothing": evidence["repeat"]["changed"] == 0,
        "entering protection pauses the guest for under 500 ms": all(each["guest_pause_ms"] < 500 for each in entered),
        "colo_failover takes under 200 ms": failover["module_ms"] < 200,
        "failover.yml takes under 6 s": failover["seconds"] < 6,
        "the client is answered before failover.yml has ended": failover["client_gap_since_s"] <= failover["seconds"],
    }


# --- the story -------------------------------------------------------------------------------------------------------


def begin(demo: Demo) -> Json:
    """Both hosts on, and nothing left over that waits for a decision."""
    for host in demo.lab["hosts"]:
        demo.power(host, "on")
    seen = demo.verdict()
    demo.say(f"{demo.guest} is {seen['verdict']}: {seen['reason']}")
    if seen["verdict"] == "degraded" and "failover.yml" in seen["refusal"]:
        play = demo.play("failover")
        demo.say(f"an earlier run was cut short; failover.yml took {play.seconds:.1f} s")
        seen = demo.verdict()
    return seen


def protect(demo: Demo, client: Client) -> Json:
    """site.yml, with the client on the line as soon as the guest answers."""
    play = demo.play("site")
    entered = protection(play, demo.guest)
    answered = client.wait_for_answers(20, 30)
    if entered:
        demo.say(f"site.yml: protected after {play.seconds:.1f} s, {play.changed} changes; {entered['host']} serves")
        demo.say(f"  entering protection paused the guest for {entered['guest_pause_ms']:.0f} ms")
        ahead = entered["began"] - answered["first_answer_at"]
        demo.say(f"  the client was connected {abs(ahead):.1f} s {'before' if ahead > 0 else 'after'} that began")
    else:
        demo.say(f"site.yml: protected already, {play.changed} changes, {play.seconds:.1f} s")
    return {"seconds": play.seconds, "changed": play.changed, "entered": entered}


def repeat(demo: Demo, first: Json) -> Json:
    """site.yml with nothing to do; the first run was that already if it found nothing to do."""
    if not first["entered"] and first["changed"] == 0:
        return first
    play = demo.play("site")
    demo.say(f"site.yml once more: {play.changed} changes, {play.seconds:.1f} s")
    return {"seconds": play.seconds, "changed": play.changed}


def fail_over(demo: Demo, client: Client, victim: str) -> Json:
    """Pull the plug of the host that serves, confirm it, and let the other one go on."""
    client.wait_for_answers(100, 30)
    killed, gone = demo.power(victim, "off")
    demo.say(f"{victim} serves, and its power is cut")
    play = demo.play("failover", "-e", f"colo_confirm_fenced={victim}")
    module = next(play.of("colo_failover", demo.guest), None)
    if module is None:
        raise DemoError(f"failover.yml did nothing; its output is in {play.log}")
    report = client.wait_for_answers(100, 60)
    result = {
        "killed": victim,
        "killed_at": killed,
        "power_off_s": gone - killed,
        "survivor": module["host"],
        "began": play.began,
        "seconds": play.seconds,
        "module_ms": module["timings"]["total_ms"],
        "actions": module["actions"],
        "client_gap_s": gap_over(report, killed),
        "client_gap_since_s": waited(report, play.began),
    }
    demo.say(f"failover.yml: {module['host']} serves alone")
    demo.say(f"  {result['module_ms']:.0f} ms in the module, {play.seconds:.1f} s the whole playbook")
    demo.say(
        f"  the client waited {result['client_gap_since_s']:.1f} s since the playbook began, {result['client_gap_s']:.1f} s in all"
    )
    return result


def protect_again(demo: Demo, client: Client, victim: str) -> Json:
    """Power back, and the same site.yml makes the standby on the host that was lost."""
    began, ended = demo.power(victim, "on")
    demo.say(f"{victim} is back after {ended - began:.1f} s and starts nothing by itself")
    play = demo.play("site")
    entered = protection(play, demo.guest)
    if not entered:
        raise DemoError(f"site.yml did not enter protection; its output is in {play.log}")
    client.wait_for_answers(100, 30)
    demo.say(f"site.yml: protected again in {play.seconds:.1f} s; {entered['host']} serves")
    demo.say(f"  entering protection paused the running guest for {entered['guest_pause_ms']:.0f} ms")
    return {"seconds": play.seconds, "changed": play.changed, "entered": entered}


def conclude(demo: Demo, evidence: Json) -> bool:
    """Say what the client saw, and whether that proves it."""
    report, good = evidence["client"], evidence["proved"]
    seconds = report["ended"] - report["first_answer_at"]
    print(f"\nWhat the client saw in {seconds:.0f} s:")
    print(f"  same TCP connection     {'yes' if report['connection_survived'] else 'NO'}")
    print(f"  same boot id            {'yes' if report['same_boot_id'] else 'NO'}")
    print(f"  requests acknowledged   {report['acknowledged']}, lost {report['lost']}")
    print(f"  longest gap             {report['longest_gap_ms'] / 1000:.1f} s")
    for error in report["errors"]:
        print(f"  {error}")
    for what in [what for what, holds in evidence["proof"].items() if not holds]:
        print(f"NOT PROVED: {what}")
    for what in [what for what, met in evidence["targets"].items() if not met]:
        print(f"Missed: {what}")
    print(
        f"{'Continuity is proved.' if good else 'Continuity is NOT proved.'} {demo.guest} is {evidence['left']['verdict']}."
    )
    print(f"Evidence: {demo.evidence.parent / 'demo.json'}")
    return bool(good)


def tell(demo: Demo) -> bool:
    """The whole story; returns whether continuity was proved."""
    evidence: Json = {
        "guest": demo.guest,
        "begun": datetime.datetime.fromtimestamp(demo.begun, datetime.UTC).isoformat(),
    }
    evidence["found"] = begin(demo)
    client = Client(demo)
    try:
        evidence["protect"] = protect(demo, client)
        evidence["repeat"] = repeat(demo, evidence["protect"])
        serving = evidence["protect"]["entered"].get("host") or evidence["found"]["serving"]
        evidence["failover"] = fail_over(demo, client, serving)
        evidence["protect_again"] = protect_again(demo, client, serving)
    finally:
        evidence["client"] = client.stop()
        write(demo.evidence.parent / "demo.json", evidence)
    evidence["left"] = demo.verdict()
    evidence["seconds"] = time.time() - demo.begun
    evidence["proof"] = continuity(evidence["client"])
    evidence["targets"] = targets(evidence)
    evidence["proved"] = all(evidence["proof"].values()) and evidence["left"]["verdict"] == "protected"
    write(demo.evidence.parent / "demo.json", evidence)
    return conclude(demo, evidence)


def write(path: pathlib.Path, evidence: Json) -> None:
    path.write_text(json.dumps(evidence, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lab", type=pathlib.Path, default=TOP / "build" / "lab" / "lab.json", help="lab.json of the lab"
    )
    parser.add_argument("--guest", default="web1")
    options = parser.parse_args()
    # an end on demand still stops the client and writes down what was seen
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = EVIDENCE / "demo"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        lab = json.loads(options.lab.read_text(encoding="utf-8"))
        return 0 if tell(Demo(lab, options.guest, directory, time.time())) else 1
    except (DemoError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
