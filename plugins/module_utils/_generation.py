# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The generation record: whose copy of a guest's data is newest (pure; ``_store`` puts it on disk).

Each host of a pair keeps one record per guest. Four states:

=========  ==========================================================================================
new        images exist, the guest never ran on this copy (generation 0)
alone      this host serves, or served last, without a standby: this copy is complete by itself
syncing    a standby that is being filled: torn by definition, it must never be started
protected  one of two copies of a pair in lock step; ``serving`` names the host that served
=========  ==========================================================================================

The generation grows at every change of who may serve, and the serving side writes its record *before* the change can
be seen outside. Two consequences carry the whole rule of :func:`newest`:

* a copy can only become newer than an ``alone`` one by joining it, and then the alone one has become ``protected``
  first: an ``alone`` record whose generation nobody exceeds is the newest, whatever the other host says;
* two ``alone`` records are two histories (somebody promoted without a fence). No generation can order them.

Every transition takes a record and returns a record, or raises :class:`ColoError`; it returns the *same* values when
there is nothing to do, so a repeated step changes nothing. Time is not this file's business: ``_store`` stamps
``changed_at``.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

SCHEMA = 1
STATES = ("new", "alone", "syncing", "protected")

_REMEDY_RECORD = (
    "Nothing was changed. Compare the record with the one on the other host; restore it from a backup, or move this "
    "host's record and images out of the way so that the next run rebuilds the copy from the other host."
)


@dataclasses.dataclass(frozen=True)
class Record:
    """One host's word on its copy of one guest.

    Error codes: ``record_unreadable`` (from :meth:`from_dict`).
    """

    guest: str
    host: str
    peer: str
    generation: int = 0
    state: str = "new"
    serving: str | None = None  #: the host that serves at this generation
    joins: int | None = None  #: syncing only: the generation this copy gets when lock step begins
    stale: bool = False  #: the disk stopped following the serving side
    stale_reason: str | None = None
    void: bool = False  #: the disk follows, but the running standby may have diverged (guest reboot in COLO)
    void_reason: str | None = None
    uncommitted: bool = False  #: a take-over's writes are still in the overlays: the parent image alone is not the copy
    clean: bool = False  #: the guest was powered off in an orderly way at this generation
    fenced_by: str | None = None  #: the evidence that allowed the last take-over or start
    changed_at: str | None = None  #: ISO 8601, UTC; for humans, never compared
    reason: str = ""  #: why the last change was made, for humans

    def to_dict(self) -> dict[str, t.Any]:
        """Return the JSON form."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: t.Any) -> Record:
        """Check every field and every invariant; raise ``record_unreadable`` on the first that does not hold.

        Unknown fields are refused too: rewriting the record would drop what a newer release thought worth keeping.
        """
        if not isinstance(data, dict):
            raise _unreadable("it is not a JSON object")
        if data.get("schema") != SCHEMA:
            raise _unreadable(f"schema is {data.get('schema')!r}, this release reads {SCHEMA}")
        values = {key: value for key, value in data.items() if key != "schema"}
        expected = {field.name for field in dataclasses.fields(cls)}
        if values.keys() != expected:
            missing, unknown = sorted(expected - values.keys()), sorted(values.keys() - expected)
            raise _unreadable(f"missing fields {missing}, unknown fields {unknown}")
        for name, kinds in _KINDS.items():
            # bool is an int for isinstance; `true` is no generation.
            if not isinstance(values[name], kinds) or (isinstance(values[name], bool) and bool not in kinds):
                raise _unreadable(f"{name} is {values[name]!r}")
        record = cls(**values)
        problem = _broken_invariant(record)
        if problem:
            raise _unreadable(problem)
        return record

    @property
    def role(self) -> str:
        """What this host is for the guest by its record: ``serving``, ``standby`` or ``none``."""
        if self.state == "syncing":
            return "standby"
        if self.serving is None:
            return "none"
        return "serving" if self.serving == self.host else "standby"

    def _with(self, reason: str, **changes: t.Any) -> Record:
        changed = dataclasses.replace(self, **changes)
        # A repeated step must not count as a change only because its reason is worded differently.
        return self if changed == self else dataclasses.replace(changed, reason=reason)


_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    "guest": (str,),
    "host": (str,),
    "peer": (str,),
    "generation": (int,),
    "state": (str,),
    "serving": (str, _NONE),
    "joins": (int, _NONE),
    "stale": (bool,),
    "stale_reason": (str, _NONE),
    "void": (bool,),
    "void_reason": (str, _NONE),
    "uncommitted": (bool,),
    "clean": (bool,),
    "fenced_by": (str, _NONE),
    "changed_at": (str, _NONE),
    "reason": (str,),
}


def _unreadable(why: str) -> ColoError:
    return ColoError("record_unreadable", f"The generation record is not valid: {why}. {_REMEDY_RECORD}")


def _broken_invariant(rec: Record) -> str | None:
    """Name the first invariant that does not hold, or None."""
    if rec.state not in STATES:
        return f"state is {rec.state!r}"
    if not rec.guest or not rec.host or not rec.peer or rec.host == rec.peer:
        return f"guest, host and peer are {rec.guest!r}, {rec.host!r}, {rec.peer!r}"
    if rec.generation < 0 or (rec.state != "syncing" and (rec.generation == 0) != (rec.state == "new")):
        return f"generation {rec.generation} does not fit state {rec.state}"
    if rec.serving not in (None, rec.host, rec.peer):
        return f"serving is {rec.serving!r}, neither {rec.host} nor {rec.peer}"
    wanted = {"new": (None,), "alone": (rec.host,), "syncing": (rec.peer,), "protected": (rec.host, rec.peer)}
    if rec.serving not in wanted[rec.state]:
        return f"serving is {rec.serving!r} in state {rec.state}"
    if rec.joins != (rec.generation + 1 if rec.state == "syncing" else None):
        return f"joins is {rec.joins!r} in state {rec.state} at generation {rec.generation}"
    if rec.stale and rec.role == "serving":
        return "the serving copy cannot be stale"
    return None


def new_record(guest: str, host: str, peer: str) -> Record:
    """Return the record of images that were made and never ran: generation 0."""
    return Record(guest=guest, host=host, peer=peer, reason="images made")


def _illegal(rec: Record, what: str, remedy: str) -> ColoError:
    return ColoError(
        "illegal_transition",
        f"Guest {rec.guest} on {rec.host} cannot {what}: its record is {rec.state} at generation {rec.generation} "
        f"(serving: {rec.serving}). {remedy}",
        guest=rec.guest,
        host=rec.host,
        state=rec.state,
        generation=rec.generation,
    )


def _check_startable(rec: Record) -> None:
    """Raise ``copy_not_startable`` for a copy that is torn or known to be behind."""
    if rec.state == "syncing":
        why = "it was being filled from the other host and is torn"
    elif rec.stale:
        why = f"its disk is behind the other host's ({rec.stale_reason})"
    else:
        return
    raise ColoError(
        "copy_not_startable",
        f"The copy of {rec.guest} on {rec.host} must not be started: {why}. "
        f"Start the guest on {rec.peer}, then protect it again.",
        guest=rec.guest,
        host=rec.host,
        state=rec.state,
        generation=rec.generation,
        stale=rec.stale,
    )


def started_alone(
    rec: Record, *, reason: str = "started", fenced_by: str | None = None, accept_older: bool = False
) -> Record:
    """About to start this copy, first time or again: generation + 1, state alone.

    Write it before the start permit. The copy of a former standby is refused unless *accept_older* says that the
    operator named this host knowing that the other one's copy may be newer; a torn or stale copy is refused always.

    Error codes: ``copy_not_startable``, ``illegal_transition``.
    """
    _check_startable(rec)
    if rec.role == "standby" and not accept_older:
        raise _illegal(rec, "be started here", f"{rec.peer} served last; its copy decides.")
    return rec._with(
        reason,
        generation=rec.generation + 1,
        state="alone",
        serving=rec.host,
        void=False,
        void_reason=None,
        clean=False,
        fenced_by=fenced_by,
    )


def own_history(rec: Record, generation: int) -> bool:
    """Whether this copy may hold data that the serving one of *generation* does not."""
    serving_here = rec.role == "serving"
    return rec.state == "alone" or rec.generation > generation or (serving_here and rec.generation == generation)


def begin_sync(
    rec: Record, generation: int, *, reason: str = "standby is being filled", discard: bool = False
) -> Record:
    """About to let the serving copy of *generation* overwrite this one: state syncing, joins generation + 1.

    Write it before the standby's start permit. A copy that may hold data the serving one does not is refused:
    a higher generation, or a history of its own (``alone``); *discard* is the operator's explicit word, by name, that
    such a copy may be overwritten.

    Error codes: ``copy_newer``.
    """
    if own_history(rec, generation) and not discard:
        raise ColoError(
            "copy_newer",
            f"The copy of {rec.guest} on {rec.host} is not overwritten: its record is {rec.state} at generation "
            f"{rec.generation}, the serving copy is at {generation}, so it may hold data of its own. "
            f"Keep it as a backup with resolve.yml, or start it instead.",
            guest=rec.guest,
            host=rec.host,
            state=rec.state,
            generation=rec.generation,
            serving_generation=generation,
        )
    return rec._with(
        reason,
        generation=generation,
        state="syncing",
        serving=rec.peer,
        joins=generation + 1,
        stale=False,
        stale_reason=None,
        void=False,
        void_reason=None,
        uncommitted=False,
        clean=False,
        fenced_by=None,
    )


def enter_protection(rec: Record, serving: str, *, reason: str = "lock step begins") -> Record:
    """Lock step begins with *serving* as the primary.

    On the primary: generation + 1, written before ``migrate-continue``. On the standby: the generation it joins,
    written when its QEMU reports ``colo``. What was found out during the sync (stale) stays.

    Error codes: ``illegal_transition``.
    """
    if rec.state == "protected" and rec.serving == serving:
        return rec
    if serving == rec.host and rec.state == "alone":
        generation = rec.generation + 1
    elif serving == rec.peer and rec.state == "syncing" and rec.joins is not None:
        generation = rec.joins
    else:
        raise _illegal(rec, f"enter protection with {serving} serving", "Run site.yml: it begins from what is there.")
    return rec._with(
        reason,
        generation=generation,
        state="protected",
        serving=serving,
        joins=None,
        void=False,
        void_reason=None,
        clean=False,
        fenced_by=None,
    )


def take_over(rec: Record, fenced_by: str, *, accept_void: bool = False, reason: str = "failover") -> Record:
    """The former standby serves from now on: generation + 1, state alone.

    Written before ``x-colo-lost-heartbeat``. *fenced_by* is the evidence that the old primary no longer runs.

    Error codes: ``not_fenced``, ``copy_not_startable``, ``protection_void``, ``illegal_transition``.
    """
    if not fenced_by.strip():
        raise ColoError(
            "not_fenced",
            f"{rec.host} does not take over {rec.guest} without evidence that {rec.peer} no longer runs it. "
            f"Fence {rec.peer}, then run failover.yml again.",
            guest=rec.guest,
            host=rec.host,
            peer=rec.peer,
        )
    _check_startable(rec)
    if rec.state != "protected" or rec.role != "standby":
        raise _illegal(rec, "take over", "Only a standby in lock step can.")
    if rec.void and not accept_void:
        raise ColoError(
            "protection_void",
            f"The standby of {rec.guest} on {rec.host} may have diverged ({rec.void_reason}): a failover may end in a "
            f"guest that hangs. If {rec.peer} is lost for good, accept the void standby explicitly; else run site.yml.",
            guest=rec.guest,
            host=rec.host,
            void_reason=rec.void_reason,
        )
    return rec._with(
        reason,
        generation=rec.generation + 1,
        state="alone",
        serving=rec.host,
        void=False,
        void_reason=None,
        uncommitted=True,
        clean=False,
        fenced_by=fenced_by,
    )


def mark_whole(rec: Record, *, reason: str = "overlays committed") -> Record:
    """The overlays of a take-over are in the parent image, which is the whole copy again."""
    return rec._with(reason, uncommitted=False) if rec.uncommitted else rec


def go_alone(rec: Record, reason: str, *, fenced_by: str | None = None) -> Record:
    """The primary leaves protection: generation + 1, state alone. Unchanged when it was not in protection.

    Error codes: ``illegal_transition`` (a standby leaves protection by :func:`take_over`, with evidence).
    """
    if rec.state != "protected":
        return rec
    if rec.role != "serving":
        raise _illegal(rec, "go alone", "A standby takes over, with evidence that the other side is fenced.")
    return rec._with(
        reason,
        generation=rec.generation + 1,
        state="alone",
        void=False,
        void_reason=None,
        fenced_by=fenced_by,
    )


def mark_stale(rec: Record, reason: str) -> Record:
    """The standby's disk stopped following. The first reason is kept; unchanged on a side that is no standby."""
    if rec.role != "standby" or rec.stale:
        return rec
    return rec._with("marked stale", stale=True, stale_reason=reason)


def mark_void(rec: Record, reason: str) -> Record:
    """Lock step is no longer to be trusted. The first reason is kept; unchanged outside protection."""
    if rec.state != "protected" or rec.void:
        return rec
    return rec._with("protection is void", void=True, void_reason=reason)


def mark_clean(rec: Record, *, reason: str = "guest powered off") -> Record:
    """The guest was powered off in an orderly way at this generation. Unchanged on a copy that is torn or stale."""
    if rec.state not in ("alone", "protected") or rec.stale:
        return rec
    return rec._with(reason, clean=True)


def mark_running(rec: Record, *, reason: str = "guest reset") -> Record:
    """The guest runs again after it was powered off in an orderly way (a reset from outside)."""
    return rec._with(reason, clean=False)


def check_start(rec: Record, role: str, generation: int) -> None:
    """The start gate: may QEMU be started as *role* (``primary`` or ``standby``) by a permit for *generation*?

    Error codes: ``start_refused``, ``copy_not_startable``.
    """
    if role == "primary":
        _check_startable(rec)
    wanted = {"primary": "alone", "standby": "syncing"}.get(role)
    if wanted is None or rec.state != wanted or rec.generation != generation:
        raise ColoError(
            "start_refused",
            f"{rec.guest} is not started on {rec.host}: the permit is for {role} at generation {generation}, the "
            f"record is {rec.state} at generation {rec.generation}. Run site.yml; it decides which side starts.",
            guest=rec.guest,
            host=rec.host,
            role=role,
            permit_generation=generation,
            state=rec.state,
            generation=rec.generation,
        )


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which host's copy may be started, or why none may.

    Exactly one of ``host`` and ``error_code`` is set. On ``records_split`` *newer* names the copy with the higher
    generation as a hint for a human; it is None when the generations are equal.
    """

    host: str | None = None
    generation: int | None = None
    error_code: str | None = None
    message: str = ""
    newer: str | None = None


def newest(a: Record | None, b: Record | None) -> Choice:
    """Decide whose copy may be started when the guest runs on neither host.

    None means: that host *was asked* and has no record. A host that cannot be asked is not None; call
    :func:`newest_of_one` for it. Of two copies that never ran, *a* is chosen: pass the first host of the definition.

    Error codes in the result: ``records_missing``, ``records_foreign``, ``records_split``, ``records_inconsistent``,
    ``newest_unknown``, ``no_startable_copy``.
    """
    if a is None or b is None:
        known = a or b
        if known is None:
            return Choice(error_code="records_missing", message="Neither host has a generation record of this guest.")
        return newest_of_one(known)
    if (a.guest, a.host, a.peer) != (b.guest, b.peer, b.host):
        return Choice(
            error_code="records_foreign",
            message=f"The records do not belong to one pair: {a.guest} on {a.host}/{a.peer}, {b.guest} on "
            f"{b.host}/{b.peer}.",
        )
    pair = f"{a.host}: {a.state} at generation {a.generation}, {b.host}: {b.state} at generation {b.generation}"
    if a.state == b.state == "new":
        return Choice(host=a.host, generation=a.generation, message=f"{pair}; neither copy ever ran")
    if a.state == b.state == "alone":
        newer = None if a.generation == b.generation else max(a, b, key=lambda rec: rec.generation).host
        return Choice(
            error_code="records_split",
            message=f"Both hosts served without the other ({pair}): two histories. Decide whose copy the guest goes on with; "
            f"resolve.yml tells about both, and keeps the other one as a backup.",
            newer=newer,
        )
    serving = [rec for rec in (a, b) if rec.role == "serving"]
    if len(serving) == 1:
        return _one_serving(serving[0], b if serving[0] is a else a, pair)
    if len(serving) == 2:
        # Legal only as: one was left behind in protection, the other one took over from it.
        left, right = sorted(serving, key=lambda rec: rec.state != "protected")
        if (left.state, right.state) == ("protected", "alone") and left.generation < right.generation:
            return _chosen(right, pair)
        return Choice(error_code="records_inconsistent", message=f"Both records claim the guest ({pair}).")
    remaining = [rec for rec in (a, b) if rec.state == "protected"]
    if remaining and "new" in (a.state, b.state):
        return newest_of_one(remaining[0])
    return Choice(
        error_code="no_startable_copy" if "new" not in (a.state, b.state) else "newest_unknown",
        message=f"No copy is known to be complete and newest ({pair}). The serving side's record is missing or older "
        f"than it was; restore it.",
    )


def _one_serving(rec: Record, other: Record, pair: str) -> Choice:
    """One record names its own host as serving, the other one is a standby, torn, or never ran."""
    if other.state == "new":
        return newest_of_one(rec)
    if other.generation > rec.generation:
        return Choice(
            error_code="records_inconsistent",
            message=f"The standby knows a higher generation than the serving side ({pair}): the serving side's record "
            f"or disk was put back to an older state.",
        )
    return _chosen(rec, pair)


def newest_of_one(rec: Record) -> Choice:
    """Decide with one record only: the other host cannot be asked, or has none.

    Only an ``alone`` copy is newest by its own word. In lock step the other side may have taken over afterwards.

    Error codes in the result: ``newest_unknown``, ``no_startable_copy``.
    """
    what = f"{rec.host}: {rec.state} at generation {rec.generation}, {rec.peer}: unknown"
    if rec.state == "alone":
        return _chosen(rec, what)
    if rec.state == "syncing" or rec.stale:
        return Choice(error_code="no_startable_copy", message=f"The only copy at hand is torn or stale ({what}).")
    # by name only: whoever served last, the other side may have gone on without this copy
    lost = f" -e colo_lost_host={rec.peer}" if rec.role == "standby" else ""
    word = (
        f"; or, if the copy of {rec.peer} is lost for ever, go on with this one by its explicit name: resolve.yml -e colo_guest={rec.guest} "
        f"-e colo_keep={rec.host}{lost}"
    )
    return Choice(
        error_code="newest_unknown",
        message=f"It cannot be known which copy is newest ({what}). Bring {rec.peer} back so that its record can be "
        f"read{'' if rec.state == 'new' else word}.",
    )


def _chosen(rec: Record, why: str) -> Choice:
    return Choice(host=rec.host, generation=rec.generation, message=why)
