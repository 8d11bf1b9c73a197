# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fault campaign's cases, pure data: what is done to which side in which phase, and what has to come of it.

A case begins with a protected guest and ends with one. All that is expected of it stands here before it runs.
"""

from __future__ import annotations

import dataclasses
import typing as t

Side = t.Literal["serving", "standby", "both"]
# In which moment the fault comes. `alone` to `pre-switchover` are of a guest that is being protected, the others of one that is.
Phase = t.Literal["alone", "resync", "precopy", "pre-switchover", "idle", "load", "checkpoint"]

BUILDING: tuple[Phase, ...] = ("resync", "precopy", "pre-switchover")
LOCK_STEP: tuple[Phase, ...] = ("idle", "load", "checkpoint")


@dataclasses.dataclass(frozen=True)
class Do:
    """One thing that the operator does. ``refused`` is what the playbook has to say when it must not succeed."""

    what: t.Literal["failover", "site", "switchover", "kill QEMU", "power off", "copy is stale", "end of the fault"]
    side: Side | None = None  # of all but playbooks
    confirm: str | None = None  # the side, or the name, given as colo_confirm_fenced
    refused: str = ""

    def __str__(self) -> str:
        if self.side is not None:
            return f"{self.what} ({self.side})"
        if self.what == "end of the fault":
            return self.what
        confirm = "" if self.confirm is None else f" -e colo_confirm_fenced={self.confirm}"
        return f"`{self.what}.yml{confirm}`" + (f" refuses: _{self.refused}_" if self.refused else "")


@dataclasses.dataclass(frozen=True)
class Case:
    """``serves`` says who serves in the end, seen from who served before; ``kept`` whether the client's connection lives.

    ``restart`` says that the guest has to be started anew, as its only running copy was lost. ``build`` is what becomes of
    the `site.yml` that was under way.
    """

    fault: str
    side: Side
    phase: Phase
    verdict: tuple[str, ...]
    way: tuple[Do, ...] = ()
    serves: t.Literal["same", "other"] = "same"
    kept: bool = True
    restart: bool = False
    build: t.Literal["", "fails", "either", "succeeds"] = ""

    @property
    def name(self) -> str:
        return f"{self.fault}, {self.side}, {self.phase}"

    @property
    def expected(self) -> str:
        """Verdict and way on, in words."""
        steps = [" or ".join(self.verdict)]
        if self.build:
            steps.insert(
                0, {"fails": "site.yml fails", "either": "site.yml ends", "succeeds": "site.yml succeeds"}[self.build]
            )
        return "; ".join([*steps, *map(str, self.way)])

    @property
    def outcome(self) -> str:
        """The end, in words."""
        who = "the same host" if self.serves == "same" else "the other host"
        return f"{who}, {'started anew' if self.restart else 'goes on' if self.kept else 'connection lost'}"


NOT_DEAD = "an unreachable host is not a dead one"
LET_LIVE = "if it lives, its copy could be promoted later"
MAY_RUN = "may still run the guest"
HEALTHY = "nothing to fail over"

FAILOVER = Do("failover")
HEAL = Do("end of the fault")
DEAD_SERVING = (Do("failover", refused=NOT_DEAD), Do("failover", confirm="serving"))
DEAD_STANDBY = (
    Do("failover", refused=f"{LET_LIVE}|{NOT_DEAD}"),
    Do("failover", confirm="standby"),
)
HUNG_SERVING = (Do("failover", refused=MAY_RUN), Do("kill QEMU", "serving"), FAILOVER)
HUNG_STANDBY = (
    Do("failover", refused=f"{LET_LIVE}|{MAY_RUN}|no host holds"),
    Do("kill QEMU", "standby"),
    FAILOVER,
)


def _kills() -> list[Case]:
    cases = [Case("QEMU killed", "serving", phase, ("degraded",), (FAILOVER,), "other") for phase in LOCK_STEP]
    cases += [Case("QEMU killed", "standby", phase, ("degraded",), (FAILOVER,)) for phase in LOCK_STEP]
    # the only running copy is lost: the guest is started anew from the disk that has every acknowledged write
    cases += [Case("QEMU killed", "serving", "alone", ("unprotected",), kept=False, restart=True)]
    for phase in BUILDING:
        cases.append(Case("QEMU killed", "serving", phase, ("unprotected",), (), "same", False, True, "fails"))
        cases.append(Case("QEMU killed", "standby", phase, ("unprotected",), build="fails"))
    cases.append(Case("QEMU and keeper killed together", "serving", "load", ("degraded",), (FAILOVER,), "other"))
    cases.append(Case("QEMU and keeper killed together", "standby", "load", ("degraded",), (FAILOVER,)))
    return cases


def _hosts() -> list[Case]:
    cases = [Case("host loses its power", "serving", phase, ("unknown",), DEAD_SERVING, "other") for phase in LOCK_STEP]
    cases += [
        Case("host loses its power", "standby", phase, ("unknown", "degraded"), DEAD_STANDBY) for phase in LOCK_STEP
    ]
    wait = (Do("site", refused="UNREACHABLE"), HEAL)
    cases.append(Case("host loses its power", "serving", "alone", ("unknown",), wait, kept=False, restart=True))
    for phase in BUILDING:
        cases.append(Case("host loses its power", "serving", phase, ("unknown",), wait, "same", False, True, "fails"))
        cases.append(Case("host loses its power", "standby", phase, ("unprotected",), build="fails"))
    cases += [
        Case("host freezes", "serving", "load", ("unknown",), (DEAD_SERVING[0], Do("power off", "serving"), DEAD_SERVING[1]), "other"),
        Case("host freezes", "standby", "load", ("unknown", "degraded"), (DEAD_STANDBY[0], Do("power off", "standby"), DEAD_STANDBY[1])),
    ]  # fmt: skip
    return cases


def _hung() -> list[Case]:
    cases = [
        Case("QEMU stopped (SIGSTOP)", "serving", phase, ("unknown",), HUNG_SERVING, "other") for phase in LOCK_STEP
    ]
    # a primary whose main loop waits for the standby's disk gives no answer, either
    cases += [
        Case("QEMU stopped (SIGSTOP)", "standby", phase, ("unknown", "degraded"), HUNG_STANDBY) for phase in LOCK_STEP
    ]
    # the next checkpoint waits for it with the main loop
    cases.append(Case("disk hangs", "serving", "load", ("unknown", "degraded"), HUNG_SERVING, "other"))
    cases.append(Case("disk hangs", "standby", "load", ("unknown", "degraded"), HUNG_STANDBY))
    cases += [
        Case("QEMU stopped (SIGSTOP)", "standby", phase, ("unprotected", "protecting"), build="fails")
        for phase in BUILDING
    ]
    cases.append(
        Case(
            "QEMU stopped (SIGSTOP)",
            "serving",
            "alone",
            ("unknown",),
            (Do("failover", refused="no host holds a running copy"), HEAL),
            "same",
        )
    )
    return cases


def _network() -> list[Case]:
    cases = [Case("link cut for 3 s", "standby", phase, ("protected", "degraded")) for phase in LOCK_STEP]
    cases += [Case("link cut", "standby", phase, ("degraded",), (FAILOVER,)) for phase in LOCK_STEP]
    cases += [Case("link cut", "standby", phase, ("unprotected", "protecting"), build="fails") for phase in BUILDING]
    cases += [
        Case("client LAN cut", "serving", "load", ("protected",), (Do("switchover"),), "other"),
        Case("client LAN cut", "standby", "load", ("protected",)),
    ]
    return cases


def _disks() -> list[Case]:
    stale = (
        Do("copy is stale", "standby"),
        Do("kill QEMU", "serving"),
        Do("failover", refused="copy_not_startable"),
        Do("kill QEMU", "standby"),
    )
    return [
        # the next checkpoint empties the overlay and repeats what was lost in it
        Case("overlay full (ENOSPC, once)", "standby", "load", ("protected",)),
        # it cannot be emptied: the standby leaves lock step, and its primary is told nothing
        Case("overlay fails (EIO)", "standby", "load", ("degraded",)),
        Case("disk replication lost (NBD)", "standby", "load", ("degraded",)),
        # a copy that does not follow is not promoted: the guest is started anew from the disk that has every write
        Case("disk replication lost (NBD)", "standby", "idle", ("degraded",), stale, "same", False, True),
        Case("parent disk fails (EIO)", "standby", "load", ("degraded",)),
        # QEMU tells the guest nothing while the other disk is written, and reads from the one that has failed: the keeper ends it
        Case("parent disk fails (EIO)", "serving", "load", ("degraded",), (FAILOVER,), "other"),
    ]  # fmt: skip


def _keepers() -> list[Case]:
    cases = []
    for side in t.get_args(Side)[:2]:
        for phase in ("load", "checkpoint"):
            cases.append(Case("keeper killed", side, phase, ("protected",)))
        cases.append(
            Case("monitor taken by another client", side, "load", ("unknown", "degraded"), (Do("site", refused="cannot be judged|does not answer"), HEAL))
        )  # fmt: skip
    return cases


def _operators() -> list[Case]:
    wrong = Do("failover", confirm="gamma", refused="colo_confirm_fenced")
    return [
        Case("nothing", "both", "load", ("protected",), (Do("site"), Do("failover", refused=HEALTHY))),
        Case("nothing", "both", "alone", ("unprotected",), (FAILOVER,)),
        # the host that is said to be fenced is not asked, so what runs there is not known
        Case("wrong host named", "both", "load", ("unknown",), (wrong, Do("failover", confirm="serving", refused="peer_alive"))),
        Case("host loses its power, wrong host named", "serving", "load", ("unknown",),
             (wrong, Do("failover", confirm="standby", refused="does not answer"), Do("failover", confirm="serving")), "other"),
        Case("site.yml twice at once", "both", "alone", ("protected", "protecting", "unprotected", "degraded"), build="either"),
        Case("failover.yml twice at once", "serving", "load", ("unprotected", "degraded"), (FAILOVER,), "other", build="either"),
        Case("controller killed in site.yml", "both", "alone",
             ("protected", "protecting", "unprotected", "degraded", "unknown"), build="either"),
        Case("controller killed in failover.yml", "serving", "load", ("unprotected", "degraded"), (FAILOVER,), "other", build="either"),
    ]  # fmt: skip


CASES: tuple[Case, ...] = (
    *_kills(),
    *_hosts(),
    *_hung(),
    *_network(),
    *_disks(),
    *_keepers(),
    *_operators(),
)

#: what every test run includes
SHORT: tuple[str, ...] = (
    "QEMU killed, serving, checkpoint",
    "host loses its power, serving, load",
    "QEMU stopped (SIGSTOP), standby, checkpoint",
    "link cut, standby, idle",
    "disk replication lost (NBD), standby, load",
    "wrong host named, both, load",
)
