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
import datetime
import json
import pathlib
import shutil
import signal
import sys
import time

from labplay import (
    EVIDENCE,
    TOP,
    Client,
    Json,
    Stage,
    StageError,
    bring_back,
    continuity,
    gap_over,
    protection,
    waited,
    write,
)


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


def protect(demo: Stage, client: Client) -> Json:
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


def repeat(demo: Stage, first: Json) -> Json:
    """site.yml with nothing to do; the first run was that already if it found nothing to do."""
    if not first["entered"] and first["changed"] == 0:
        return first
    play = demo.play("site")
    demo.say(f"site.yml once more: {play.changed} changes, {play.seconds:.1f} s")
    return {"seconds": play.seconds, "changed": play.changed}


def fail_over(demo: Stage, client: Client, victim: str) -> Json:
    """Pull the plug of the host that serves, confirm it, and let the other one go on."""
    client.wait_for_answers(100, 30)
    killed, gone = demo.power(victim, "off")
    demo.say(f"{victim} serves, and its power is cut")
    play = demo.play("failover", "-e", f"colo_confirm_fenced={victim}")
    module = next(play.of("colo_failover", demo.guest), None)
    if module is None:
        raise StageError(f"failover.yml did nothing; its output is in {play.log}")
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


def protect_again(demo: Stage, client: Client, victim: str) -> Json:
    """Power back, and the same site.yml makes the standby on the host that was lost."""
    began, ended = demo.power(victim, "on")
    demo.say(f"{victim} is back after {ended - began:.1f} s and starts nothing by itself")
    play = demo.play("site")
    entered = protection(play, demo.guest)
    if not entered:
        raise StageError(f"site.yml did not enter protection; its output is in {play.log}")
    client.wait_for_answers(100, 30)
    demo.say(f"site.yml: protected again in {play.seconds:.1f} s; {entered['host']} serves")
    demo.say(f"  entering protection paused the running guest for {entered['guest_pause_ms']:.0f} ms")
    return {"seconds": play.seconds, "changed": play.changed, "entered": entered}


def conclude(demo: Stage, evidence: Json) -> bool:
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


def tell(demo: Stage) -> bool:
    """The whole story; returns whether continuity was proved."""
    evidence: Json = {
        "guest": demo.guest,
        "begun": datetime.datetime.fromtimestamp(demo.begun, datetime.UTC).isoformat(),
    }
    evidence["found"] = bring_back(demo)
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
        return 0 if tell(Stage(lab, options.guest, directory, time.time())) else 1
    except (StageError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
