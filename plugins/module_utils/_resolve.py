# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two copies of one guest that each hold data of their own: a person names the one that is kept, the other one becomes a backup.

Pure. What no generation can order is decided by nobody but a person; here is only said what may be done for that choice.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _generation, _pair
from ansible_collections.lockstep.colo.plugins.module_utils._errors import InputError
from ansible_collections.lockstep.colo.plugins.module_utils._generation import Record
from ansible_collections.lockstep.colo.plugins.module_utils._pair import Side

_NOT_RUNNING = ("absent", "stopped")


@dataclasses.dataclass(frozen=True)
class Resolution:
    """What follows from the choice. ``give_up`` is the host whose QEMU is ended and whose copy becomes a backup (None: that is
    done); on ``keep`` the guest then goes on alone (``goes_on``), or is started (``start``; ``older``: although the other side may
    have served after it). ``refusal`` is empty when that may be done.
    """

    keep: str | None = None
    give_up: str | None = None
    goes_on: bool = False
    start: bool = False
    older: bool = False
    refusal: str = ""


def resolve(sides: tuple[Side, Side], keep: str, lost: str = "") -> Resolution:
    """Judge the choice of ``keep``; a run that was killed is finished by the same choice.

    ``lost`` is the operator's word, by name, that the copy of the other host is lost for ever.
    """
    one, two = sides
    silent = [side.host for side in sides if side.standing is None]
    if silent:
        return _refuse(
            f"{' and '.join(silent)} does not answer, and both hosts have to be asked: repair the way there first"
        )
    unclear = [side.host for side in sides if side.standing == "failed"]
    if unclear:
        return _refuse(
            f"{' and '.join(unclear)} has a QEMU that gives no answer: look at its journal, stop colo-guest@NAME there, and run this again"
        )
    if not keep:
        return _refuse(
            f"{_pair.pair(sides).reason}. {_copy(one)}; {_copy(two)}. {_hint(one, two)}. Decide whose copy the guest goes on "
            f"with, and name it: -e colo_keep={one.host} or -e colo_keep={two.host}. The other host's copy is kept as a backup"
        )
    if keep not in (one.host, two.host):
        raise InputError("colo_keep", keep, f"name one of the guest's hosts: {one.host}, {two.host}")
    kept, other = (one, two) if keep == one.host else (two, one)
    if lost not in ("", other.host):
        raise InputError(
            "colo_lost_host", lost, f"name the host whose copy is lost for ever, when {keep}'s is kept: {other.host}"
        )
    torn = _torn(kept)
    if torn:
        return _refuse(f"the copy on {kept.host} cannot be kept: {torn}")
    if _pair.serves(kept):
        return _goes_on(kept, other)
    if kept.standing in _NOT_RUNNING and other.standing in _NOT_RUNNING:
        return _starts(kept, other, lost)
    return _refuse(_nothing(sides))


def _goes_on(kept: Side, other: Side) -> Resolution:
    """The copy that is kept runs."""
    done = Resolution(keep=kept.host, goes_on=True)
    if _pair.serves(other):
        return dataclasses.replace(done, give_up=other.host)
    if other.standing not in _NOT_RUNNING or kept.record is None:
        return _refuse(_nothing((kept, other)))
    if other.record is None or other.record.state == "new":
        return done
    if _generation.own_history(other.record, kept.record.generation):
        return dataclasses.replace(done, give_up=other.host)
    return _refuse(_nothing((kept, other)))


def _starts(kept: Side, other: Side, lost: str) -> Resolution:
    """Neither copy runs."""
    record = kept.record
    nothing_there = other.record is None or other.record.state == "new"
    if record is not None and record.state == "protected" and record.role == "standby" and nothing_there:
        # whole: what was acknowledged in lock step is on both disks. But the other side may have gone on without this one
        if not lost:
            return _refuse(
                f"the copy on {kept.host} is a standby's, and {other.host} may have served without it: what was acknowledged then would be missing. "
                f"If the copy of {other.host} is lost for ever, say so by its name: -e colo_lost_host={other.host}"
            )
        return Resolution(keep=kept.host, start=not record.clean, older=True)
    if record is None or record.role != "serving":
        return _refuse(f"the copy on {kept.host} never served, or not last ({_copy(kept)}): it is not started by this")
    if record.uncommitted:
        return _refuse(
            f"takeover_unfinished: {kept.host} died while it took over, and nobody can say whether its last writes are in its image. Follow "
            "'A takeover that was cut short' in docs/runbooks/failover.md"
        )
    done = Resolution(keep=kept.host, start=not record.clean)
    if nothing_there or other.record is None:
        return done
    choice = _generation.newest(kept.record, other.record)
    if choice.host is not None and not other.record.uncommitted:
        return _refuse(_nothing((kept, other)))
    return dataclasses.replace(done, give_up=other.host)


def _torn(side: Side) -> str:
    """Why a copy is not whole; empty when it is."""
    if side.record is None:
        return "it has no generation record, so nobody can say how old it is"
    if side.record.state == "syncing":
        return "it was being filled from the other host"
    if side.record.stale:
        return f"its disk is behind the other host's ({side.record.stale_reason})"
    return ""


def _copy(side: Side) -> str:
    record = side.record
    if record is None:
        return f"{side.host}: {side.standing}, no record"
    evidence = f", fenced by: {record.fenced_by}" if record.fenced_by else ""
    return f"{side.host}: {side.standing}, copy {record.state}/{record.generation}, last change {record.changed_at} ({record.reason}{evidence})"


def _hint(one: Side, two: Side) -> str:
    """Which copy is newer by its number, for a person to weigh."""
    known: list[Record] = [side.record for side in (one, two) if side.record is not None]
    if len(known) < 2 or known[0].generation == known[1].generation:
        return "No generation says which copy is newer"
    newer = max(known, key=lambda record: record.generation)
    return f"By its generation the copy on {newer.host} is the newer one, but the other one may hold what it lacks"


def _nothing(sides: tuple[Side, Side]) -> str:
    judged = _pair.pair(sides)
    todo: t.Final = judged.refusal or "run site.yml"
    return f"there are no two histories to choose from: it is {judged.verdict} ({judged.reason}). {todo[:1].upper()}{todo[1:]}"


def _refuse(why: str) -> Resolution:
    return Resolution(refusal=why)
