# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a rehearsal: what was seen after each phase, held against what has to be.

Pure; used by the filters. A rehearsal has passed when every phase was reached and every guest was seen as it has to be
after each of them, on the host where it has to be, with a generation that only grows.
"""

from __future__ import annotations

import typing as t

Json = dict[str, t.Any]

# Phase, the verdict that has to be seen at its end, and whether the guest then serves where it did in the beginning.
PHASES = (
    ("before", "protected", True),
    ("failed over", "unprotected", False),
    ("protected again", "protected", False),
    ("moved back", "protected", True),
)


def report(looks: t.Sequence[t.Mapping[str, t.Any]], failovers: t.Mapping[str, Json], ended: Json) -> Json:
    """Make the report of ``looks``: one for each phase that was reached, in order, with ``at`` and ``verdicts``.

    ``failovers`` has what each guest's failover measured; ``ended`` has ``at``, the ``verdicts`` of the last look, and what the run
    failed with as ``error``.
    """
    names = list(looks[0]["verdicts"]) if looks else list(ended["verdicts"])
    guests = {name: _guest(name, looks, failovers.get(name, {}), ended) for name in names}
    reached = len(looks)
    failed_in = "" if reached == len(PHASES) else PHASES[reached][0]
    return {
        "passed": bool(guests)
        and not failed_in
        and not ended["error"]
        and all(one["passed"] for one in guests.values()),
        "failed_in": failed_in,
        "error": ended["error"],
        "seconds": round(ended["at"] - looks[0]["at"], 1) if looks else 0.0,
        "guests": guests,
    }


def _guest(name: str, looks: t.Sequence[t.Mapping[str, t.Any]], failover: Json, ended: Json) -> Json:
    phases: list[Json] = []
    for number, ((phase, verdict, at_home), look) in enumerate(zip(PHASES, looks)):
        seen, home = look["verdicts"][name], looks[0]["verdicts"][name]["serving"]
        before = phases[-1]["generation"] if phases else None
        phases.append(
            {
                "phase": phase,
                "seconds": round(look["at"] - looks[number - 1]["at"], 1) if number else 0.0,
                "verdict": seen["verdict"],
                "serving": seen["serving"],
                "generation": seen["generation"],
                "passed": seen["verdict"] == verdict
                and (seen["serving"] == home) is at_home
                and not seen["start"]
                and seen["generation"] is not None
                and (before is None or seen["generation"] > before),
            }
        )
    passed = len(phases) == len(PHASES) and all(one["passed"] for one in phases) and bool(failover.get("packets"))
    return {"passed": passed, "phases": phases, "failover": failover, "to_do": to_do(ended["verdicts"][name], phases)}


def to_do(now: Json, phases: t.Sequence[Json]) -> str:
    """What a person does from what there is now, so that the guest is protected where it was in the beginning."""
    home = phases[0]["serving"] if phases else None
    if now["refusal"]:
        return str(now["refusal"])
    if now["verdict"] != "protected":
        return "run site.yml"
    if home is not None and now["serving"] != home:
        return f"it is protected; switchover.yml moves it back to {home}"
    return ""


def measured(result: Json, look: Json) -> Json:
    """What a failover was like on the host that went on: the result of colo_failover, and a look with a sample after it.

    The gap is by that host's own clock: from QEMU's word that the peer is lost to the first packets of the guest there.
    """
    timings = result.get("timings", {})
    lost = (((look.get("keeper") or {}).get("flags") or {}).get("colo_exit") or {}).get("time")
    sent_at = timings.get("packets_at")
    sample = look.get("sample") or {"seconds": 0, "packets": {}}
    return {
        "module_ms": timings.get("total_ms"),
        "gap_ms": None if lost is None or sent_at is None else round((sent_at - lost) * 1000),
        # announced by QEMU at the takeover, and the guest's own in the seconds after it
        "packets": timings.get("packets", 0),
        "packets_after": sum(sample["packets"].values()),
        "watched_s": sample["seconds"],
    }


def table(made: Json) -> list[str]:
    """Lines of the report that a person can read."""
    lines = [
        "PASSED"
        if made["passed"]
        else "FAILED" + (f", on the way to: {made['failed_in']}" if made["failed_in"] else "")
    ]
    for name, guest in made["guests"].items():
        lines.append(f"{name}: {'passed' if guest['passed'] else 'failed'}")
        for one in guest["phases"]:
            word = "ok" if one["passed"] else "NOT as it has to be"
            lines.append(
                f"  {one['phase']:<16} {one['seconds']:>6.1f} s  {one['verdict']}, {one['serving'] or 'nobody'} serves, "
                f"generation {one['generation']}: {word}"
            )
        over = guest["failover"]
        if over:
            gap = "not known" if over["gap_ms"] is None else f"{over['gap_ms']} ms"
            lines.append(
                f"  failover: {over['module_ms']:.0f} ms in the module; {gap} from the loss to the first packets, of which there "
                f"were {over['packets']}, and {over['packets_after']} in the next {over['watched_s']:g} s"
            )
        if guest["to_do"]:
            lines.append(f"  to do: {guest['to_do']}")
    return [*lines, f"error: {made['error']}"] if made["error"] else lines
