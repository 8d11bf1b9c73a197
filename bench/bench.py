# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements: each thing against its rivals in the same run, on the same hosts and guest.

  row 1  failover            against commands from a pipe, the documented sequence, and the floor
  row 2  entering lock step  against QEMU's stop, copy, continue; by memory, disk and load
  row 3  site.yml            bare, with nothing to do, one guest more; by the number of guests
  row 4  cost of protection  alone, ours, QEMU's defaults, the profiles, multifd, no encryption
  row 5  growth              slopes of what rows 2 and 3 have seen

Prints a table with ratios and writes build/evidence/bench.json. A whole run draws docs/images/bench/*.svg, too, and writes its
figures into docs/performance.md; `--page` does that for any run. A missed target is told and is no error: the exit code says
whether everything was measured.
"""

from __future__ import annotations

import argparse
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
import traceback
import typing as t

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "lab"))
sys.path.insert(2, str(pathlib.Path(__file__).resolve().parent.parent / "build" / "collections"))

import cost
import entering
import failover
import figures
import page
import sites
from labplay import EVIDENCE, HERE, TOP, Json, Stage, StageError, write
from stand import Findings, Stand

ROWS = (1, 2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    failovers: int
    entries: int
    memories: tuple[int, ...]
    disks: tuple[int, ...]
    guests: tuple[int, ...]
    again: int
    loads: int
    load_s: float
    curve: bool


WHOLE = Size(3, 2, (256, 1024, 2048), (64, 1024), (1, 2, 4, 8), 2, 3, 3.0, True)
QUICK = Size(1, 1, (256, 1024), (64,), (1, 2), 1, 1, 2.0, False)


def machine() -> Json:
    """On what this was measured, as far as it matters."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = {line.partition(":")[2].strip() for line in file if line.startswith("model name")}
    return {"processors": os.cpu_count(), "model": ", ".join(sorted(models))}


def measure(stage: Stage, rows: t.Sequence[int], size: Size, found: Findings, loads: list[list[float]]) -> list[str]:
    """All rows, in an order that saves set-up; what went wrong in which, in words."""
    stand = Stand(stage)
    errors: list[str] = []

    def row_4() -> None:
        stand.begin()
        cost.measure(stage, stand, found, size.loads, size.load_s, size.curve)

    def row_1() -> None:
        if 4 not in rows or errors:
            stand.begin()
        failover.measure(stage, stand, found, size.failovers)

    def row_2() -> None:
        entering.measure(stage, stand, found, size.entries, size.memories, size.disks)

    def row_3() -> None:
        sites.measure(stage, found, size.guests, size.again)

    order: dict[int, t.Callable[[], None]] = {4: row_4, 1: row_1, 2: row_2, 3: row_3}
    for row, function in order.items():
        # row 5 is made of what the others see
        if row in rows or (5 in rows and row in (2, 3)):
            loads.append(list(os.getloadavg()))
            begun = time.monotonic()
            try:
                function()
            except (StageError, OSError, EOFError, ValueError, KeyError, StopIteration) as error:
                # what was measured before, and the other rows, are worth having
                errors.append(f"row {row}: {type(error).__name__}: {error}")
                traceback.print_exc()
                stand.serving = ""
            found.evidence.setdefault("seconds", {})[f"row {row}"] = round(time.monotonic() - begun, 1)
    loads.append(list(os.getloadavg()))
    return errors


def as_json(
    found: Findings, begun: float, loads: list[list[float]], errors: list[str], quick: bool, rows: t.Sequence[int]
) -> Json:
    return {
        "begun": datetime.datetime.fromtimestamp(begun, datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - begun, 1),
        "quick": quick,
        "rows": list(rows),
        "machine": machine(),
        "load_average": loads,
        "errors": errors,
        "comparisons": [one.as_json() for one in found.comparisons],
        "targets": [dataclasses.asdict(one) for one in found.targets],
        "fits": [dataclasses.asdict(one) for one in found.fits],
        "evidence": found.evidence,
        "pictures": found.curves,
    }


def table(report: Json) -> str:
    """For the terminal."""
    parts = []
    for row in ROWS:
        rows = [one for one in report["comparisons"] if one["row"] == row]
        if rows:
            parts.append(f"Row {row}\n{figures.text(figures.HEADINGS, figures.cells(rows))}")
    if report["fits"]:
        parts.append(f"Row 5\n{figures.text(figures.FIT_HEADINGS, figures.fit_cells(report['fits']))}")
    if report["targets"]:
        parts.append(figures.text(figures.TARGET_HEADINGS, figures.target_cells(report["targets"])))
    averages = ", ".join(f"{one[0]:.1f}" for one in report["load_average"])
    parts.append(
        f"Load average of a minute, at the begin of each row and in the end: {averages}; {report['machine']['processors']} processors"
    )
    return "\n\n".join([*parts, *(f"NOT MEASURED: {error}" for error in report["errors"])])


def rows_of(text: str) -> list[int]:
    try:
        rows = sorted({int(word) for word in text.split(",")})
    except ValueError:
        rows = []
    if not rows or not set(rows) <= set(ROWS):
        raise argparse.ArgumentTypeError(f"give some of {', '.join(map(str, ROWS))}, with commas between them")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=rows_of, default=list(ROWS), help="some of them, such as 1,4 (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions and sizes: whether it works, not how fast"
    )
    parser.add_argument(
        "--page", action="store_true", help="write these figures into the page, though not everything was measured"
    )
    options = parser.parse_args()
    # an end on demand still writes down what was seen
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["ANSIBLE_LOAD_CALLBACK_PLUGINS"] = "1"  # for modules that are called one by one
    directory = EVIDENCE / "bench"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    lab = TOP / "build" / "lab" / "lab.json"
    labctl = [sys.executable, str(HERE / "labctl.py")]
    was_up = lab.exists()
    begun, found, loads, errors = time.time(), Findings(), t.cast("list[list[float]]", []), ["cut short"]
    size = QUICK if options.quick else WHOLE
    try:
        subprocess.run([*labctl, "up"], check=True, stdin=subprocess.DEVNULL)
        stage = Stage(json.loads(lab.read_text(encoding="utf-8")), "web1", directory, begun)
        errors = measure(stage, options.rows, size, found, loads)
    except KeyboardInterrupt:
        return 130
    finally:
        report = as_json(found, begun, loads, errors, options.quick, options.rows)
        write(EVIDENCE / "bench.json", report)
        print(f"\n{table(report)}\n\nEvidence: {EVIDENCE / 'bench.json'}", flush=True)
        if not was_up:
            subprocess.run([*labctl, "down"], check=True, stdin=subprocess.DEVNULL)
    whole = not options.quick and options.rows == list(ROWS) and not errors
    if whole or options.page:
        page.write(TOP / "docs", report)
        print(f"Written: {TOP / 'docs' / 'performance.md'}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
