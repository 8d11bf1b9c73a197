# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Campaigns: what a single run cannot show, measured on the lab's hosts.

  kills     ten hosts that serve are killed in turn, with protection in between: one connection, nothing lost, nothing left
  standby   the same with the standby's host, so that one primary QEMU goes through all rounds
  dark      both hosts lose their power at a random moment, twenty times; site.yml starts the newest copy or refuses
  many      eight guests beside one: what each more costs, and whether one that hangs holds up the others
  pause     how long a 1 GiB guest stands still when it is protected, beside QEMU's documented procedure
  faults    every fault, on each side, in each phase, and what the runbooks make of it: never two, never lose

Each prints a table and writes build/evidence/campaign-NAME.json, beside it the playbooks' output. The exit code is 0
only if every criterion holds. The lab is brought up, and taken away unless it was up before.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import typing as t

import campaign_dark
import campaign_faults
import campaign_kills
import campaign_many
import campaign_pause
from campaign_report import Report
from labplay import EVIDENCE, HERE, TOP, Stage, StageError, write

CAMPAIGNS: dict[str, t.Callable[[Stage, Report, argparse.Namespace], None]] = {
    "kills": lambda stage, report, options: campaign_kills.campaign(
        stage, report, "serving", options.rounds or 10, options.tags
    ),
    "standby": lambda stage, report, options: campaign_kills.campaign(
        stage, report, "standby", options.rounds or 10, options.tags
    ),
    "dark": lambda stage, report, options: campaign_dark.campaign(
        stage, report, options.rounds or 20, options.seed, options.tags
    ),
    "many": lambda stage, report, _options: campaign_many.campaign(stage, report, 8),
    "pause": lambda stage, report, options: campaign_pause.campaign(stage, report, options.rounds or 3),
    "faults": lambda stage, report, options: campaign_faults.campaign(
        stage,
        report,
        campaign_faults.Wish(options.seed, options.cases, options.rounds, options.minutes, options.fresh, options.tags),
    ),
}


def run(name: str, lab: pathlib.Path, options: argparse.Namespace) -> bool:
    """One campaign; whether its criteria hold."""
    directory = EVIDENCE / f"campaign-{name}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    begun = time.time()
    stage = Stage(json.loads(lab.read_text(encoding="utf-8")), "web1", directory, begun)
    report = Report()
    evidence = EVIDENCE / f"campaign-{name}.json"
    try:
        CAMPAIGNS[name](stage, report, options)
    finally:  # what was seen until an end on demand is evidence, too; without criteria it proves nothing
        write(evidence, {"campaign": name, "begun": begun, "seconds": time.time() - begun, **report.as_json()})
    print(f"\n{report.table()}\n\nEvidence: {evidence}\n", flush=True)
    return report.holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="so many rounds instead of those of the criterion")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of `dark` and `faults` (default 1)")
    parser.add_argument(
        "--cases",
        action="append",
        default=[],
        metavar="PATTERN",
        help="faults: those whose names it is found in; or `short`",
    )
    parser.add_argument("--minutes", type=float, help="faults: begin no run after so many; the next call goes on")
    parser.add_argument("--fresh", action="store_true", help="faults: forget the runs that were done with this seed")
    parser.add_argument(
        "--protect-only",
        dest="tags",
        action="store_const",
        const=("--tags", "colo_protect"),
        default=(),
        help="kills, standby, dark, faults: leave out of site.yml what prepares the hosts (for a machine that does much else)",
    )
    parser.add_argument("campaign", nargs="*", metavar="CAMPAIGN", help=f"{', '.join(CAMPAIGNS)} (default: all)")
    options = parser.parse_args()
    unknown = set(options.campaign) - CAMPAIGNS.keys()
    if unknown:
        parser.error(f"no such campaign: {', '.join(sorted(unknown))}")
    # an end on demand still stops the client and writes down what was seen
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lab = TOP / "build" / "lab" / "lab.json"
    labctl = [sys.executable, str(HERE / "labctl.py")]
    was_up = lab.exists()
    try:
        subprocess.run([*labctl, "up"], check=True, stdin=subprocess.DEVNULL)
        results = {name: run(name, lab, options) for name in options.campaign or CAMPAIGNS}
    except (StageError, OSError, subprocess.CalledProcessError) as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if not was_up:
            subprocess.run([*labctl, "down"], check=True, stdin=subprocess.DEVNULL)
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
