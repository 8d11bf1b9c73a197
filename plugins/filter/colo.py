# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters for the playbooks: definitions, verdicts, and the words of a report. Decisions are made in module_utils."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import datetime
import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _features,
    _fence,
    _generation,
    _guest,
    _keys,
    _pair,
    _preflight,
    _resolve,
    _states,
    _teardown,
)
from ansible_collections.lockstep.colo.plugins.module_utils import _rehearsal as _rehearsal_of
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError

Json = dict[str, t.Any]

# Standings in which a QEMU is connected to its peer, or waits to be.
_TALKING = ("standby", "syncing", "primary", "secondary")

# Where systemd is sure that a unit has no process; a guest that is not deployed has no unit.
_NOT_RUNNING = ("inactive", "failed", None)


def _definitions(
    guests: t.Any,
    host: str,
    links: t.Mapping[str, t.Any],
    defaults: t.Mapping[str, t.Any],
    kept: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
) -> list[Json]:
    return _guest.definitions(guests, host, links, _guest.HostDefaults(**defaults), kept)


def _chosen(guests: t.Mapping[str, Json], name: str, hosts: c.Sequence[str] | None = None) -> Json:
    """All guests, or the one of that name; with ``hosts``, only guests that have one of these."""
    if name and name not in guests:
        raise InputError("colo_guest", name, "name one of colo_guests: " + ", ".join(guests))
    chosen = {name: guests[name]} if name else dict(guests)
    here = {
        guest: entry for guest, entry in chosen.items() if hosts is None or not set(hosts).isdisjoint(entry["hosts"])
    }
    if name and not here:
        raise InputError("colo_guest", name, "none of its hosts is in this run: look at --limit")
    return here


def _answers(guests: t.Mapping[str, Json], hostvars: t.Any, register: str) -> Json:
    """The registered result ``register`` of every host of the pairs; None for a host that was not asked."""
    hosts = {host for guest in guests.values() for host in guest["hosts"]}
    return {host: hostvars[host].get(register) if host in hostvars else None for host in hosts}


def _sides(name: str, guest: Json, answers: t.Mapping[str, t.Any]) -> tuple[_pair.Side, _pair.Side]:
    one, two = (_side(host, answers.get(host), name) for host in guest["hosts"])
    return one, two


def _side(host: str, answer: t.Any, guest: str) -> _pair.Side:
    """One host's answer; whatever is missing or unreachable is not known, and a guest with an error cannot be judged."""
    seen = (answer or {}).get("guests", {}).get(guest, {})
    if "error" in seen:
        return _pair.Side(host, "failed")
    if "standing" not in seen:
        return _pair.Side(host, None)
    record = None if seen["record"] is None else _generation.Record.from_dict(dict(seen["record"]))
    return _pair.Side(
        host,
        seen["standing"],
        record,
        proven=bool(seen["proven"]),
        void_reason=seen["void_reason"],
        disk_error=seen["disk_error"],
        hears=bool(seen.get("peer_heard")),
        busy=bool(seen.get("busy")),
        settled=bool(seen.get("settled")),
    )


def _mixed(guests: t.Mapping[str, Json], hostvars: t.Any, register: str) -> list[str]:
    """One refusal for each guest whose two hosts have QEMUs or processors that must not meet.

    A host that was not asked says nothing.
    """
    answers = _answers(guests, hostvars, register)
    found = {host: _qemu_version(answer) for host, answer in answers.items()}
    lines: list[str] = []
    for name, guest in guests.items():
        versions = {host: version for host in guest["hosts"] if (version := found[host])}
        told = {host: (answers[host] or {}).get("host", {}) for host in guest["hosts"]}
        kinds = {host: said["processor"] for host, said in told.items() if name in said.get("host_cpu_guests", [])}
        problems = (_features.mixed(name, versions), _features.processor_differs(name, kinds))
        lines += [problem.as_dict()["line"] for problem in problems if problem is not None]
    return lines


def _same_machine(guests: t.Mapping[str, Json], hostvars: t.Any, register: str) -> list[str]:
    """One refusal for each guest whose two hosts are one machine. A host that was not asked says nothing."""
    answers = _answers(guests, hostvars, register)
    machines = {host: (answer or {}).get("host", {}).get("machine_id", "") for host, answer in answers.items()}
    found = [_preflight.same_machine({"name": name, **guest}, machines) for name, guest in guests.items()]
    return [problem.as_dict()["line"] for problem in found if problem is not None]


def _qemu_version(answer: t.Any) -> _features.Version | None:
    version = ((answer or {}).get("host", {}).get("qemu") or {}).get("version")
    if version is None:
        return None
    major, minor, micro = (int(part) for part in str(version).split("."))
    return major, minor, micro


def _verdicts(guests: t.Mapping[str, Json], hostvars: t.Any, register: str) -> Json:
    answers = _answers(guests, hostvars, register)
    verdicts: Json = {}
    for name, guest in guests.items():
        sides = _sides(name, guest, answers)
        hosts = {side.host: side.standing or "unreachable" for side in sides}
        judged = _pair.pair(sides)
        serving = (answers.get(judged.serving or "") or {}).get("guests", {}).get(name, {})
        verdicts[name] = {**dataclasses.asdict(judged), "hosts": hosts, "changes": list(serving.get("changes", []))}
    return verdicts


def _wished(
    pairs: t.Mapping[str, Json], guests: t.Mapping[str, Json], state: str = "", allow_restart: bool = False
) -> Json:
    """Verdicts, with what is to be done for what the operator wants: of this run, or in colo_guests."""
    judged: Json = {}
    for name, pair in pairs.items():
        others = {key: pair[key] for key in ("hosts", "changes")}
        known = _pair.Pair(**{key: value for key, value in pair.items() if key not in others})
        lasting = _guest.state(f"colo_guests.{name}.state", guests[name].get("state", ""))
        wish = _guest.state("colo_state", state, once=True) or lasting
        wished = _pair.changed(_pair.wished(known, wish), pair["changes"], allow_restart)
        judged[name] = {**dataclasses.asdict(wished), **others}
    return judged


def _failovers(
    guests: t.Mapping[str, Json],
    hostvars: t.Any,
    register: str,
    confirmed: str | None = None,
    fencings: t.Mapping[str, Json] | None = None,
) -> Json:
    """Who goes on with each guest; ``fencings`` is what became of the hosts that had to be fenced for it."""
    answers = _answers(guests, hostvars, register)
    tried = fencings or {}
    judged = {
        name: _pair.failover(_sides(name, guest, answers), confirmed or None, _proved(name, tried))
        for name, guest in guests.items()
    }
    failovers = {name: dataclasses.asdict(one) for name, one in _pair.excuse_healthy(judged).items()}
    for one in failovers.values():
        if one["fence"] is not None and one["refusal"]:
            host = one["fence"]
            told = tried.get(host, {}).get("told") or [_fence.why_none(*_fencing(host, hostvars, register))]
            failed = "; ".join(text for text in told if text)
            one["refusal"] += f". It could not be fenced: {failed}" if failed else ""
    return failovers


def _proved(name: str, fencings: t.Mapping[str, Json]) -> dict[str, str]:
    """The hosts that do not run this guest any more, with the evidence. A host that is on has ended only what it was asked to end."""
    return {
        host: fencing["evidence"]
        for host, fencing in fencings.items()
        if fencing["evidence"] and (fencing["guests"] is None or name in fencing["guests"])
    }


def _fencing(host: str, hostvars: t.Any, register: str) -> tuple[list[_fence.Method], str, _fence.Answers]:
    """The methods that fence ``host``, its name, and whether it answers."""
    known: t.Any = {}
    if host in hostvars:
        known = hostvars[host]
    answer = known.get(register)
    answers: _fence.Answers = "not asked" if answer is None else "yes" if "guests" in answer else "no"
    return _fence.methods(f"colo_fence of host {host}", known.get("colo_fence", [])), host, answers


def _fences(failovers: t.Mapping[str, Json], hostvars: t.Any, register: str) -> list[Json]:
    """The runs of colo_fence that are needed, in their order: for each host that has to be fenced, its methods."""
    needed: dict[str, list[str]] = {}
    for name, one in failovers.items():
        if one["fence"] is not None:
            needed.setdefault(one["fence"], []).append(name)
    runs: list[Json] = []
    for host, names in needed.items():
        left = failovers[names[0]]["left"]
        runs += map(dataclasses.asdict, _fence.attempts(*_fencing(host, hostvars, register), left, names))
    return runs


def _fencings(before: t.Mapping[str, Json], run: Json, hostvars: t.Any, register: str) -> Json:
    """What became of the hosts that had to be fenced, with the result of one more run."""
    result = hostvars[run["at"]].get(register) or {}
    told = list(before.get(run["host"], {}).get("told", []))
    if "evidence" not in result:
        told.append(result.get("msg", "it ended without an answer"))
    guests = list(run["guests"]) if run["at"] == run["host"] else None  # None: all, as the host is off
    return {**before, run["host"]: {"evidence": result.get("evidence", ""), "told": told, "guests": guests}}


def _fence_problems(value: t.Any, host: str) -> list[str]:
    """Why the methods to fence a host cannot be understood; without the values of their parameters."""
    try:
        _fence.methods(f"colo_fence of host {host}", value)
    except ColoError as exc:
        return [f"{exc.error_code}: {exc.message}"]
    return []


def _resolutions(guests: t.Mapping[str, Json], hostvars: t.Any, register: str, keep: str = "", lost: str = "") -> Json:
    """What follows, for each guest, from the choice of the host whose copy is kept, and the word that the other one's is ``lost``."""
    answers = _answers(guests, hostvars, register)
    return {
        name: dataclasses.asdict(_resolve.resolve(_sides(name, guest, answers), keep, lost))
        for name, guest in guests.items()
    }


def _moves(pairs: t.Mapping[str, Json], source: str = "") -> Json:
    """The guests that a switchover moves (of one host, or all that are not off), each refused unless it can be."""
    return {
        name: {**pair, "refusal": _unmoved(pair)}
        for name, pair in pairs.items()
        if (not source or pair["serving"] == source) and not pair["off"]
    }


def _unmoved(pair: Json) -> str:
    if pair["verdict"] == "protected":
        return str(pair["refusal"])
    if pair["move"]:
        return ""
    return f"it is {pair['verdict']} ({pair['reason']}), and only a protected guest can be moved: run site.yml"


def _drains(guests: t.Mapping[str, Json], hostvars: t.Any, register: str, host: str) -> Json:
    """What frees ``host`` of each guest that belongs to it."""
    answers = _answers(guests, hostvars, register)
    return {
        name: dataclasses.asdict(_pair.drain(_sides(name, guest, answers), host))
        for name, guest in guests.items()
        if host in guest["hosts"]
    }


def _still_runs(answer: Json) -> list[str]:
    """What of ours still runs on a host, by the answer of colo_info about all guests that are deployed there."""
    return [
        f"{name} is {seen['standing']} (its unit is {seen['unit']['state']})"
        for name, seen in answer["guests"].items()
        if seen["standing"] not in ("absent", "stopped") or seen.get("unit", {}).get("state") not in _NOT_RUNNING
    ]


def _refusals(judged: t.Mapping[str, Json]) -> list[str]:
    """Why nothing is done for some guests."""
    return [f"{name}: {pair['refusal']}" for name, pair in judged.items() if pair["refusal"]]


def _not_protected(after: t.Mapping[str, Json], before: t.Mapping[str, Json]) -> list[str]:
    """The guests that are not as they are to be, with the reason; what was refused in the beginning is the better one."""
    lines: list[str] = []
    for name, pair in after.items():
        runs = pair["serving"] is not None and not pair["start"] and not pair["off"]
        if before[name]["run"] and pair["verdict"] != "protected":
            reason = before[name]["refusal"] or pair["refusal"] or pair["reason"]
            lines.append(f"{name} is {pair['verdict']}: {reason}")
        elif not before[name]["run"] and runs:
            lines.append(f"{name} is to be off and runs on {pair['serving']}")
    return lines


def _failover_report(failovers: t.Mapping[str, Json], hostvars: t.Any, register: str, watched: str = "") -> list[str]:
    """One line per guest: where it runs, what that took, and how many packets it sent afterwards."""
    lines = [f"{name}: {one['told']}" for name, one in failovers.items() if one["told"]]
    looks = _succeeded(failovers, hostvars, "survivor", watched) if watched else {}
    for name, result in _succeeded(failovers, hostvars, "survivor", register).items():
        where = failovers[name]["survivor"]
        took_ms = result["timings"].get("total_ms")
        if result["actions"] and took_ms is None:
            lines.append(f"{name} would serve alone on {where}")  # check mode
        elif result["actions"]:
            sample = looks.get(name, {}).get("sample")
            sent = f"; it sent {sum(sample['packets'].values())} packets in {sample['seconds']:g} s" if sample else ""
            lines.append(f"{name} serves alone on {where} after {took_ms:.0f} ms in the module{sent}")
        else:
            lines.append(f"{name} serves alone on {where} already")
    return lines


def _rehearsal(
    looks: t.Sequence[Json], failovers: t.Mapping[str, Json], hostvars: t.Any, register: str, watched: str, ended: Json
) -> Json:
    """The report of a rehearsal."""
    results = _succeeded(failovers, hostvars, "survivor", register)
    seen = _succeeded(failovers, hostvars, "survivor", watched)
    measured = {name: _rehearsal_of.measured(result, seen.get(name, {})) for name, result in results.items()}
    return _rehearsal_of.report(looks, measured, ended)


def _guests_of(pairs: t.Mapping[str, Json], host: str, side: str, only: str = "") -> list[str]:
    """Names of the guests for which ``host`` is the ``side`` (serving or standby), and nothing is refused.

    ``only`` names a condition of the verdict that has to hold, too.
    """
    return [
        name for name, pair in pairs.items() if pair[side] == host and not pair["refusal"] and (not only or pair[only])
    ]


def _left_behind(pairs: t.Mapping[str, Json], alone: bool = False) -> list[str]:
    """The guests whose standby follows nobody any more and does not know it: left alone it could be promoted, and lack what was served since.

    With ``alone``, only those whose serving host goes on alone already.
    """
    return [
        name
        for name, pair in pairs.items()
        if _pair.stands_behind(pair["hosts"].get(pair["serving"]), pair["hosts"].get(pair["standby"]), alone)
    ]


def _succeeded(pairs: t.Mapping[str, Json], hostvars: t.Any, side: str, register: str) -> Json:
    """By guest, the result ``register`` of the host that is its ``side``, where that went well, to the end."""
    results = {}
    for name, pair in pairs.items():
        host = pair[side]
        answer = hostvars[host].get(register) if host is not None and host in hostvars else None
        result = (answer or {}).get("guests", {}).get(name)
        if result is not None and "error" not in result and result.get("finished", True):
            results[name] = result
    return results


def _waiting(guests: t.Mapping[str, Json], hostvars: t.Any, register: str) -> list[str]:
    """What a running protection cannot be given, one line per setting."""
    answers = _answers(guests, hostvars, register)
    return [
        f"{name}: {change}"
        for name, guest in guests.items()
        for host in guest["hosts"]
        for change in (answers.get(host) or {}).get("guests", {}).get(name, {}).get("waiting", [])
    ]


def _troubles(hosts: t.Sequence[str], hostvars: t.Any, registers: t.Sequence[str]) -> list[str]:
    """What went wrong, one line per host and guest, from the given registered results."""
    lines: list[str] = []
    for host in hosts:
        for register in registers:
            answer = hostvars[host].get(register) if host in hostvars else None
            lines += [
                f"{host}: resync_unfinished: {line}: the copy goes on by itself, longer than this run waits (colo_protection_timeout_s): run site.yml "
                "again, which goes on with it"
                for line in _resync_report(answer)
            ]
            if not answer or not answer.get("failed"):
                continue
            errors = {name: guest["error"] for name, guest in answer.get("guests", {}).items() if "error" in guest}
            lines += [f"{host}: {error['error_code']}: {error['message']}" for error in errors.values()]
            if not errors:
                lines.append(f"{host}: {answer.get('msg', 'failed without a message')}")
    return lines


def _resync_report(result: t.Any) -> list[str]:
    """One line per disk of the guests whose copy goes on; none when all is done, or was not begun."""
    return [
        f"{name}: {job} {progress['done_bytes'] // _guest.MIB} of {progress['of_bytes'] // _guest.MIB} MiB"
        for name, guest in (result or {}).get("guests", {}).items()
        for job, progress in guest.get("progress", {}).items()
    ]


def _checkpoints(info: Json) -> str:
    """Rate and pauses of the checkpoints; outside lock step there are none, whatever the last session had."""
    seen = info.get("checkpoints", {}) if info.get("standing") in _states.LOCK_STEP else {}
    rate, middle, slow = (seen.get(key) for key in ("rate_hz", "p50_pause_ms", "p99_pause_ms"))
    often = "-" if rate is None else f"{rate:.2f}/s"
    return f"checkpoints {often} pause " + ("-" if middle is None else f"p50 {middle:.0f} p99 {slow:.0f} ms")


def _resync(name: str, figures: Json) -> str:
    words = f"{name}: {figures['done_bytes'] // _guest.MIB} of {figures['of_bytes'] // _guest.MIB} MiB"
    left = "it stands still" if figures["left_s"] is None else f"{figures['left_s']:.0f} s left"
    return f"{words}, {figures['bytes_per_s'] / _guest.MIB:.1f} MiB/s, {left}"


def _blind(info: Json) -> list[str]:
    """From when on a keeper has seen what its QEMU tells in lock step, where that is not from the beginning."""
    told = ((info.get("keeper") or {}).get("flags") or {}).get("blind_since")
    if not told or info["standing"] not in _states.LOCK_STEP:
        return []
    begun = datetime.datetime.fromtimestamp(told["time"], datetime.UTC).isoformat(timespec="seconds")
    return [f"    its keeper has watched since {begun}; what QEMU told before, it may have missed"]


def _in_the_clear(guests: t.Mapping[str, Json], hostvars: t.Any, register: str) -> list[str]:
    """One sentence for each guest whose QEMUs talk to each other in the clear now."""
    answers = _answers(guests, hostvars, register)
    found: list[str] = []
    for name, guest in guests.items():
        infos = [(answers.get(host) or {}).get("guests", {}).get(name, {}) for host in guest["hosts"]]
        talking = [info["qemu"] for info in infos if info.get("standing") in _TALKING and info.get("qemu")]
        if any(not qemu.get("encrypted") for qemu in talking):
            found.append(
                f"WARNING: {name}: the link is not encrypted: whoever reaches it reads and changes this guest's memory and disks "
                "(colo_link_security; docs/docsite/security.md)"
            )
    return found


def _table(verdicts: Json, guests: t.Mapping[str, Json], hostvars: t.Any, register: str) -> list[str]:
    """Lines of a table that a person can read: one block per guest, one line per host."""
    lines: list[str] = []
    answers = _answers(guests, hostvars, register)
    for name, judged in verdicts.items():
        runs = judged["serving"] and not judged["start"] and not judged["off"]
        serving = judged["serving"] if runs else "nobody"
        generation = "-" if judged["generation"] is None else judged["generation"]
        lines.append(f"{name}: {judged['verdict']}; {serving} serves; generation {generation}; {judged['reason']}")
        if judged["refusal"]:
            lines.append(f"  to do: {judged['refusal']}")
        for host, standing in judged["hosts"].items():
            info = (answers.get(host) or {}).get("guests", {}).get(name, {})
            qemu = info.get("qemu") or {}
            record = info.get("record") or {}
            lines.append(
                f"  {host:<15} {standing:<11} copy {record.get('state', '-')}/{record.get('generation', '-')}"
                f"  {_checkpoints(info)}  QEMU {qemu.get('version', '-')}"
                f"  ports {(info.get('ports') or {}).get('migration', '-')}+"
                f"  taps {','.join((info.get('taps') or {}).values()) or '-'}"
            )
            if "error" in info:
                lines.append(f"    {info['error']['message']}")
            lines += [f"    {_resync(job, figures)}" for job, figures in info.get("resync", {}).items()]
            lines += _blind(info)
            lines += [f"    from its next protection on: {change}" for change in info.get("waiting", [])]
    return [*lines, *_in_the_clear(guests, hostvars, register)]


def _not_off(guests: t.Mapping[str, Json], hostvars: t.Any, register: str, hosts: t.Sequence[str]) -> list[str]:
    """Why the guests cannot be taken away from those of ``hosts`` that are theirs, one sentence per guest."""
    answers = _answers(guests, hostvars, register)
    reasons = {
        name: _teardown.not_off(name, [side for side in _sides(name, guest, answers) if side.host in hosts])
        for name, guest in guests.items()
    }
    return [f"{name}: {reason}" for name, reason in reasons.items() if reason]


def _to_delete(guests: t.Mapping[str, Json], names: t.Any, hosts: t.Sequence[str]) -> list[str]:
    """Those of the guests with a part in ``hosts`` whose disks are to be deleted."""
    return _teardown.named(names, [name for name, guest in guests.items() if set(guest["hosts"]) & set(hosts)])


def _copy_paths(definition: Json) -> list[str]:
    return _teardown.copy_paths(_guest.from_definition(definition))


def _devices(
    links: t.Sequence[Json], files: t.Sequence[str], definitions: t.Sequence[Json], bridges: t.Mapping[str, Json]
) -> Json:
    taps = [nic["tap"] for definition in definitions for nic in definition["nics"]]
    return dict(_teardown.devices(links, files, taps, bridges))


def _wrapped(function: c.Callable[..., t.Any]) -> c.Callable[..., t.Any]:
    """A filter: an error of ours becomes one of Ansible's, with its code in front."""

    def call(*args: t.Any, **kwargs: t.Any) -> t.Any:
        try:
            return function(*args, **kwargs)
        except ColoError as exc:
            raise AnsibleFilterError(f"{exc.error_code}: {exc.message}") from exc

    return call


class FilterModule:
    """The filters of the collection."""

    def filters(self) -> dict[str, c.Callable[..., t.Any]]:
        """Name to function."""
        return {
            "definitions": _wrapped(_definitions),
            "chosen": _wrapped(_chosen),
            "answers": _wrapped(_answers),
            "moves": _wrapped(_moves),
            "drains": _wrapped(_drains),
            "still_runs": _wrapped(_still_runs),
            "rehearsal": _wrapped(_rehearsal),
            "rehearsal_table": _wrapped(_rehearsal_of.table),
            "refusals": _wrapped(_refusals),
            "not_protected": _wrapped(_not_protected),
            "failover_report": _wrapped(_failover_report),
            "resolutions": _wrapped(_resolutions),
            "resync_report": _wrapped(_resync_report),
            "mixed": _wrapped(_mixed),
            "same_machine": _wrapped(_same_machine),
            "verdicts": _wrapped(_verdicts),
            "wished": _wrapped(_wished),
            "failovers": _wrapped(_failovers),
            "fences": _wrapped(_fences),
            "fencings": _wrapped(_fencings),
            "fence_problems": _wrapped(_fence_problems),
            "guests_of": _wrapped(_guests_of),
            "left_behind": _wrapped(_left_behind),
            "succeeded": _wrapped(_succeeded),
            "troubles": _wrapped(_troubles),
            "waiting": _wrapped(_waiting),
            "status_table": _wrapped(_table),
            "in_the_clear": _wrapped(_in_the_clear),
            "not_off": _wrapped(_not_off),
            "to_delete": _wrapped(_to_delete),
            "copy_paths": _wrapped(_copy_paths),
            "devices": _wrapped(_devices),
            "key_plan": _wrapped(_keys.plan),
        }
