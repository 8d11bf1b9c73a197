# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What two hosts' answers mean for the guest: the pair's verdict, who is to serve, who may take over.

Pure; used by the filters, so that every playbook decides by the same rules.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._generation import Record, newest
from ansible_collections.lockstep.colo.plugins.module_utils._states import SERVING, Standing

Verdict = t.Literal["absent", "unprotected", "protecting", "protected", "degraded", "split", "unknown"]


@dataclasses.dataclass(frozen=True)
class Side:
    """One host's answer about the guest; ``standing`` is None when the host did not answer.

    ``disk_error`` says that writes of this session are missing on this host's own disk. ``hears``: its keeper hears the
    other one's, which says that its QEMU lives. ``busy``: its QEMU answers its keeper, and another program has its monitor.
    ``settled``: in lock step, and in want of nothing.
    """

    host: str
    standing: Standing | None
    record: Record | None = None
    proven: bool = False
    void_reason: str | None = None
    disk_error: str | None = None
    hears: bool = False
    busy: bool = False
    settled: bool = False


@dataclasses.dataclass(frozen=True)
class Pair:
    """The verdict and what follows from it.

    ``serving`` is the host that serves, or that has to be started (``start``); ``standby`` the other one where it can
    be one; ``rebuild`` says that a protection which looks whole is not to be trusted and has to be made anew;
    ``refusal`` says why nothing may be done (empty: go on); ``generation`` is the serving copy's. ``off``: the guest was
    powered off in an orderly way. ``stop`` and ``run`` are what the operator's wish makes of it (:func:`wished`): its
    QEMUs are to be ended; it is to run, protected, in the end. ``move``: a planned move to the standby loses nothing.
    ``settled``: protected, and nothing is to be done for it.
    """

    verdict: Verdict
    reason: str
    serving: str | None = None
    standby: str | None = None
    start: bool = False
    rebuild: bool = False
    generation: int | None = None
    refusal: str = ""
    off: bool = False
    stop: bool = False
    run: bool = True
    move: bool = False
    settled: bool = False


#: What an operator may want of a guest: "" is "protected, unless it was powered off".
Wish = t.Literal["", "started", "stopped", "restarted"]


def wished(judged: Pair, wish: Wish) -> Pair:
    """Hold the operator's wish against what is. A guest that powered itself off is brought back by nothing but a wish."""
    if judged.refusal:
        return judged
    runs = judged.serving is not None and not judged.start and not judged.off
    run = wish in ("started", "restarted") or (wish == "" and not judged.off)
    stop = judged.off or (runs and wish in ("stopped", "restarted"))
    settled = judged.settled and run and not stop
    return dataclasses.replace(judged, stop=stop, start=run and (judged.start or stop), run=run, settled=settled)


def changed(judged: Pair, changes: t.Sequence[str], allow_restart: bool) -> Pair:
    """Hold against what is wished that the running guest lacks some of its definition, which a restart would give it.

    Its standby would be built by the definition and could not take the guest: that is refused before anything is begun.
    """
    if not changes or judged.refusal or judged.stop or judged.start or not judged.run:
        return judged
    if allow_restart:
        return wished(judged, "restarted")
    return dataclasses.replace(
        judged,
        refusal=f"its definition has changed since it was started ({'; '.join(changes)}): restart it with -e colo_allow_restart=true, "
        "or put the values back",
        settled=False,
    )


def pair(sides: tuple[Side, Side]) -> Pair:
    """Judge a pair from the answers of its two hosts, given in the order of the guest's ``hosts``."""
    one, two = sides
    unknown = [side for side in sides if side.standing in (None, "failed") or _role_unknown(side)]
    serving = [side for side in sides if serves(side)]
    if len(serving) == 2:
        return Pair(
            "split",
            f"{one.host} ({one.standing}) and {two.host} ({two.standing}) both serve the guest",
            refusal="both hosts run this guest (split): decide whose copy it goes on with; resolve.yml tells about both, and keeps the other one as a backup",
        )
    if serving:
        return _one_serves(serving[0], two if serving[0] is one else one)
    if unknown:
        side = unknown[0]
        if side.busy:
            return Pair("unknown", _busy(side), refusal=f"{_busy(side)}: wait for that to end, then run this again")
        why = (
            "does not answer"
            if side.standing is None
            else f"has a QEMU that cannot be judged (standing {side.standing})"
        )
        return Pair(
            "unknown",
            f"{side.host} {why}, and no other host serves the guest",
            refusal=f"{side.host} {why}: not knowing counts as running. Repair it, or fence it and run failover.yml",
        )
    if {one.standing, two.standing} == {"absent"}:
        return Pair(
            "absent",
            "the guest is not deployed on either host",
            serving=one.host,
            standby=two.host,
            start=True,
            generation=0,
        )
    lost = [side for side in sides if side.standing in ("orphaned", "secondary")]
    if lost and not _left_behind(lost[0], two if lost[0] is one else one) and not _is_off(lost[0]):
        return Pair(
            "degraded",
            f"{lost[0].host} holds the guest ({lost[0].standing}) and its primary is gone",
            standby=None,
            refusal=f"the guest waits on {lost[0].host} for a failover: run failover.yml",
        )
    return _nobody_serves(one, two)


def stands_behind(serving: str | None, standby: str | None, alone: bool = False) -> bool:
    """Whether a standby, by the standings of the two, follows nobody any more; with ``alone``, of one that goes on alone already.

    A serving side that is syncing may be on its way into lock step with it, in another run.
    """
    parted = serving == "alone" or (
        not alone and (serving == "orphaned" or (serving, standby) == ("primary", "orphaned"))
    )
    return standby in ("orphaned", "secondary") and parted


def serves(side: Side) -> bool:
    """Whether this side runs the guest for its clients."""
    if side.standing in SERVING:
        return True
    if side.standing in ("syncing", "orphaned") and side.record is not None:
        # both words are used for either role: the record says who serves
        return side.record.state in ("alone", "protected") and side.record.serving == side.host
    return False


def _role_unknown(side: Side) -> bool:
    """A QEMU on its way into COLO is the serving one or the standby; without a word of its record it may be either."""
    return side.standing == "syncing" and (side.record is None or side.record.role == "none")


def _is_off(side: Side) -> bool:
    """Whether the guest was powered off in an orderly way, as far as this side's record knows."""
    return side.record is not None and side.record.clean


def _left_behind(waiting: Side, other: Side) -> bool:
    """Whether the primary of ``waiting`` went on alone before it stopped: then its copy holds what the waiting one lacks."""
    return (
        waiting.record is not None
        and other.record is not None
        and other.record.state == "alone"
        and other.record.generation > waiting.record.generation
    )


def _one_serves(serving: Side, other: Side) -> Pair:
    generation = None if serving.record is None else serving.record.generation
    common: dict[str, t.Any] = {"serving": serving.host, "generation": generation}
    if other.standing is None or other.standing == "failed":
        return _one_serves_other_unknown(serving, other, common)
    common["standby"] = other.host
    if _is_off(serving):
        return Pair("unprotected", f"the guest has powered itself off on {serving.host}", off=True, **common)
    if serving.standing == "primary" and other.standing == "secondary":
        return _in_lock_step(serving, other, common)
    if "orphaned" in (serving.standing, other.standing) or serving.standing == "primary":
        return _out_of_lock_step(serving, other, common)
    if serving.standing == "syncing" or other.standing in ("standby", "syncing"):
        return Pair("protecting", f"{serving.host} serves and {other.host} is {other.standing}", **common)
    return Pair("unprotected", f"{serving.host} serves alone and {other.host} is {other.standing}", **common)


def _in_lock_step(serving: Side, other: Side, common: dict[str, t.Any]) -> Pair:
    if not _one_session(serving.record, other.record):
        why = "both sides are in COLO, and their generation records do not agree"
        return Pair("degraded", why, rebuild=True, **common)
    void = serving.void_reason or other.void_reason
    if void:
        return Pair("degraded", f"protection is void: {void}", rebuild=True, **common)
    if serving.disk_error:
        # an error that its keeper has not ended QEMU for: of before lock step, or of the guest's device
        return _disk_failed(serving, other, common, "with switchover.yml", move=True)
    if serving.proven and other.proven:
        settled = serving.settled and other.settled
        return Pair("protected", f"{serving.host} serves, {other.host} follows", move=True, settled=settled, **common)
    return Pair("degraded", "both sides say they are in COLO, and no checkpoint was seen lately", **common)


def _out_of_lock_step(serving: Side, other: Side, common: dict[str, t.Any]) -> Pair:
    if serving.disk_error and other.standing in ("secondary", "orphaned"):
        # since they parted, nothing of the serving side has reached a client
        way = f"(kill its QEMU on {serving.host}, then run failover.yml)"
        return _disk_failed(serving, other, common, way, move=False)
    told = f"{serving.host} serves ({serving.standing}) and {other.host} is {other.standing}"
    # A primary that has not noticed yet: its standby is refused to be made anew while the two are of one generation.
    return Pair("degraded", told, rebuild=serving.standing == "primary", **common)


def _disk_failed(serving: Side, other: Side, common: dict[str, t.Any], way: str, move: bool) -> Pair:
    """The standby has the only whole copy, which must not be made anew: the guest goes on there."""
    return Pair(
        "degraded",
        f"writes have failed on {serving.host} ({serving.disk_error}): only the copy on {other.host} is whole",
        refusal=f"the disk of {serving.host} has failed: move the guest to {other.host} {way}, then mend the disk and run site.yml",
        move=move,
        **common,
    )


def _one_serves_other_unknown(serving: Side, other: Side, common: dict[str, t.Any]) -> Pair:
    if other.busy:
        told = f"{serving.host} serves, and {_busy(other)}"
        return Pair("unknown", told, refusal=f"{_busy(other)}: wait for that to end, then run this again", **common)
    why = "does not answer" if other.standing is None else "has a QEMU that does not answer"
    told = f"{serving.host} serves and {other.host} {why}"
    if serving.standing == "primary":
        return Pair("unknown", told, refusal=_repair_or_fence(serving.host, other.host, why), **common)
    if serving.standing == "orphaned":
        return Pair("degraded", told, refusal=_fence_first(serving.host, other.host, why), **common)
    if other.standing == "failed" and _is_older(other.record, serving.record):
        # it answers, and its QEMU hangs: that one never served this copy's generation, and is killed when the standby is made anew
        return Pair("unprotected", told, standby=other.host, **common)
    return Pair("unprotected", told, **common)


def _busy(side: Side) -> str:
    return f"the QEMU on {side.host} lives, and another program holds its monitor, such as a run of another playbook"


def _is_older(standby: Record | None, serving: Record | None) -> bool:
    """Whether a copy is a standby's that the serving one has left behind, or that was never whole."""
    if standby is None or serving is None or serving.state != "alone":
        return False
    return standby.role == "standby" and (standby.state == "syncing" or standby.generation < serving.generation)


def _repair_or_fence(serving: str, other: str, why: str) -> str:
    """A primary that has not noticed yet whether its standby is gone."""
    return (
        f"{other} {why}: repair the way to it, then run this again; or, if {other} is lost, fence it (cut its power) and run "
        f"failover.yml -e colo_confirm_fenced={other}, and {serving} goes on alone"
    )


def _fence_first(survivor: str, other: str, why: str) -> str:
    """A primary that goes on alone while its standby lives would leave a copy that could take over later, without
    what was served in between.
    """
    return (
        f"{survivor} can go on alone, but {other} {why}: if it lives, its copy could be promoted later and would lack what "
        f"{survivor} serves from now on. Fence {other} (cut its power), then run failover.yml -e colo_confirm_fenced={other}"
    )


def _one_session(serving: Record | None, other: Record | None) -> bool:
    if serving is None or other is None:
        return False
    return serving.state == other.state == "protected" and serving.generation == other.generation


def _nobody_serves(one: Side, two: Side) -> Pair:
    """Both hosts answered and neither runs the guest: whose copy may be started?"""
    choice = newest(one.record, two.record)
    if choice.host is None:
        return Pair("unprotected", "no host runs the guest", refusal=choice.message)
    chosen, other = (one, two) if choice.host == one.host else (two, one)
    off = _is_off(chosen) or (
        _is_off(other) and other.record is not None and other.record.generation == choice.generation
    )
    why = "the guest is powered off" if off else "no host runs the guest"
    return Pair(
        "unprotected",
        f"{why}; the newest copy is on {choice.host} ({choice.message})",
        serving=chosen.host,
        standby=other.host,
        start=not off,
        off=off,
        generation=choice.generation,
    )


@dataclasses.dataclass(frozen=True)
class Failover:
    """Who goes on with the guest.

    ``fenced_by`` is the evidence about the other host; ``stop`` the host whose left-behind standby has to be stopped
    before the survivor goes on; ``refusal`` is empty when all is well; ``healthy`` says that the guest lost nothing, and
    ``told`` is what is said about it when that is no reason to refuse. ``fence`` is the host without whose fencing
    nobody may go on (refused until then), and ``left`` the one that could.
    """

    survivor: str | None
    fenced_by: str | None = None
    stop: str | None = None
    refusal: str = ""
    healthy: bool = False
    told: str = ""
    fence: str | None = None
    left: str | None = None


def failover(sides: tuple[Side, Side], confirmed: str | None, fenced: t.Mapping[str, str] | None = None) -> Failover:
    """Judge a failover; ``confirmed`` is the host of which the operator says by name that it is fenced, ``fenced`` are those
    that a method of theirs has fenced, with the evidence.
    """
    judged = _who_goes_on(sides, confirmed, fenced or {})
    goes_on = judged.survivor or judged.left
    if any(_is_off(side) for side in sides if side.host == goes_on):
        told = f"the guest had powered itself off: nothing is left to fail over to {goes_on}. power.yml starts it again"
        return Failover(None, refusal=told)
    return judged


def _who_goes_on(sides: tuple[Side, Side], confirmed: str | None, fenced: t.Mapping[str, str]) -> Failover:
    one, two = sides
    if confirmed is not None and confirmed in (one.host, two.host):
        survivor, other = (two, one) if one.host == confirmed else (one, two)
        return _survives(survivor, f"operator confirmed that {other.host} is fenced")
    for survivor, other in ((one, two), (two, one)):
        if other.host in fenced and other.standing in (None, "failed"):
            return _survives(survivor, fenced[other.host])
    serving = [side for side in sides if serves(side)]
    if len(serving) == 2:
        told = f"both {one.host} and {two.host} serve the guest (split): resolve.yml tells about both copies, and is the way out"
        return Failover(None, refusal=told)
    if serving:
        return _goes_on(serving[0], two if serving[0] is one else one)
    waiting = [side for side in sides if side.standing in ("secondary", "orphaned")]
    if len(waiting) != 1:
        for hung, other in ((one, two), (two, one)):
            if other.standing is None and _hangs(hung):
                return _unless_heard(hung, other, _fence_first(hung.host, other.host, "does not answer"))
        told = ", ".join(f"{side.host} is {side.standing or 'unreachable'}" for side in sides)
        return Failover(None, refusal=f"no host holds a running copy of the guest ({told}): run site.yml")
    return _takes_over(waiting[0], two if waiting[0] is one else one)


def _survives(survivor: Side, evidence: str) -> Failover:
    """The one that is left, when the other one is known to be gone."""
    if survivor.standing is None:
        return Failover(None, refusal=f"{survivor.host} does not answer: it cannot go on with the guest")
    if survivor.standing == "secondary" or survivor.standing == "orphaned" or serves(survivor):
        return Failover(survivor.host, evidence)
    if _hangs(survivor):
        # The failover frees it, and judges what it sees then.
        return Failover(survivor.host, evidence)
    return Failover(
        None,
        refusal=f"{survivor.host} is {survivor.standing} and holds no running copy of the guest to fail over to: run site.yml",
    )


def _hangs(side: Side) -> bool:
    """A main loop that waits for the lost peer's disk gives no answer."""
    return side.standing == "failed" and side.record is not None and side.record.state == "protected"


def _unless_heard(left: Side, other: Side, refusal: str) -> Failover:
    """``left`` needs ``other`` to be fenced before it may go on; one that is heard to be well is not fenced for it."""
    if other.standing is None and left.hears:
        told = (
            f"{other.host} does not answer, but {left.host} hears its keeper on the link, and its QEMU lives: repair the way to "
            f"{other.host}. If the guest has to leave it, cut its power, then run failover.yml -e colo_confirm_fenced={other.host}"
        )
        return Failover(None, refusal=told)
    if other.busy:
        return Failover(None, refusal=f"{_busy(other)}: wait for that to end, then run failover.yml again")
    record = left.record
    if not serves(left) and (record is None or (record.role == "standby" and (record.stale or record.void))):
        # a takeover that would be refused afterwards is no reason to switch a host off
        return Failover(None, refusal=refusal)
    return Failover(None, refusal=refusal, fence=other.host, left=left.host)


def _goes_on(serving: Side, other: Side) -> Failover:
    """The serving side lost its standby, or has none."""
    if serving.standing in ("alone", "syncing"):
        return Failover(serving.host)
    if serving.disk_error and other.standing in ("secondary", "orphaned") and not other.void_reason:
        told = (
            f"the disk of {serving.host} has failed ({serving.disk_error}), and only the copy on {other.host} is whole: kill the guest's "
            f"QEMU on {serving.host}, then run failover.yml again"
        )
        return Failover(None, refusal=told)
    if other.standing in ("stopped", "absent", "standby"):
        return Failover(serving.host, f"observed on {other.host}: no copy of the guest runs ({other.standing})")
    if other.standing is None or other.standing == "failed":
        why = "does not answer" if other.standing is None else "has a QEMU that does not answer"
        return _unless_heard(serving, other, _fence_first(serving.host, other.host, why))
    if serving.standing == "primary" and other.standing == "secondary":
        told = f"the pair is healthy ({serving.host} serves, {other.host} follows): nothing to fail over"
        return Failover(None, refusal=told, healthy=True)
    return Failover(serving.host, f"its standby on {other.host} was stopped first", stop=other.host)


def _takes_over(waiting: Side, other: Side) -> Failover:
    """The standby is left; its primary is gone, or is not known to be gone."""
    if _left_behind(waiting, other):
        told = f"{other.host} went on alone after it had let go of {waiting.host}, and has the newer copy: run site.yml"
        return Failover(None, refusal=told)
    if other.standing in ("stopped", "absent"):
        return Failover(waiting.host, f"observed on {other.host}: its QEMU is not running ({other.standing})")
    state = "does not answer" if other.standing is None else f"is {other.standing}"
    refusal = (
        f"{waiting.host} can take over, but {other.host} {state} and may still run the guest: an unreachable host is "
        f"not a dead one. Fence {other.host} (cut its power), then run failover.yml -e colo_confirm_fenced={other.host}"
    )
    if other.standing in (None, "failed"):
        return _unless_heard(waiting, other, refusal)
    return Failover(None, refusal=refusal)


def excuse_healthy(judged: t.Mapping[str, Failover]) -> dict[str, Failover]:
    """A guest that lost nothing, among others that did, is told and is no error.

    When no guest of the run lost anything (one that was named is the only one), the refusal stays: a failover was asked
    for, and there is none to do.
    """
    if all(one.healthy for one in judged.values()):
        return dict(judged)
    return {
        name: dataclasses.replace(one, refusal="", told=one.refusal) if one.healthy else one
        for name, one in judged.items()
    }


@dataclasses.dataclass(frozen=True)
class Drain:
    """What frees a host of one guest.

    ``goes_on`` is the host that serves it afterwards (None where the guest runs nowhere), ``stop`` the host that is freed;
    ``refusal`` is empty when that may be done.
    """

    goes_on: str | None = None
    stop: str | None = None
    refusal: str = ""


def drain(sides: tuple[Side, Side], host: str) -> Drain:
    """Judge whether ``host``, one of the two, may be freed of the guest: it costs the standby, and nothing else.

    A run that was killed has left the guest alone on the other host, with or without something on this one that stands by.
    """
    one, two = sides
    here, other = (one, two) if one.host == host else (two, one)
    judged = pair(sides)
    if judged.verdict == "protected":
        return Drain(goes_on=other.host, stop=host)
    if other.standing == "alone" and here.standing in ("stopped", "absent", "standby", "secondary", "orphaned"):
        # two that serve are split, whatever the second one is called
        return Drain(refusal=judged.refusal) if serves(here) else Drain(goes_on=other.host, stop=host)
    if judged.refusal:
        return Drain(refusal=judged.refusal)
    if (judged.start or judged.off) and here.standing in ("stopped", "absent"):
        return Drain()
    told = f"it is {judged.verdict} ({judged.reason}), and only a protected guest can leave {host}: run site.yml"
    return Drain(refusal=told)
