# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters for the playbooks: definitions, verdicts, and the words of a report. Decisions are made in module_utils."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.lockstep.colo.plugins.module_utils import _generation, _guest, _pair
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

Json = dict[str, t.Any]


def _definitions(guests: t.Any, hostvars: t.Any, hosts: t.Sequence[str], host: str) -> list[Json]:
    own = hostvars[host]
    links = {name: hostvars[name].get("colo_link_address") for name in hosts}
    values = {
        field.name: own[f"colo_{field.name}"]
        for field in dataclasses.fields(_guest.HostDefaults)
        if f"colo_{field.name}" in own
    }
    return _guest.definitions(guests, host, links, _guest.HostDefaults(**values))


def _sides(definition: Json, answers: t.Mapping[str, t.Any]) -> tuple[_pair.Side, _pair.Side]:
    one, two = (_side(host, answers.get(host), definition["name"]) for host in definition["hosts"])
    return one, two


def _side(host: str, answer: t.Any, guest: str) -> _pair.Side:
    """One host's answer; whatever is missing, failed or unreachable is not known."""
    seen = (answer or {}).get("guests", {}).get(guest, {})
    if "standing" not in seen or "error" in seen:
        return _pair.Side(host, None)
    record = None if seen["record"] is None else _generation.Record.from_dict(dict(seen["record"]))
    return _pair.Side(host, seen["standing"], record, bool(seen["proven"]), seen["void_reason"])


def _verdicts(definitions: t.Sequence[Json], answers: t.Mapping[str, t.Any]) -> Json:
    return {
        definition["name"]: {
            **dataclasses.asdict(_pair.pair(_sides(definition, answers))),
            "hosts": {side.host: side.standing or "unreachable" for side in _sides(definition, answers)},
        }
        for definition in definitions
    }


def _failovers(definitions: t.Sequence[Json], answers: t.Mapping[str, t.Any], confirmed: str | None = None) -> Json:
    return {
        definition["name"]: dataclasses.asdict(_pair.failover(_sides(definition, answers), confirmed or None))
        for definition in definitions
    }


def _pause(info: Json) -> str:
    pause = info.get("checkpoints", {}).get("last_pause_ms")
    return "-" if pause is None else f"{pause:.0f} ms"


def _rate(info: Json) -> str:
    rate = info.get("checkpoints", {}).get("rate_hz")
    return "-" if rate is None else f"{rate:.2f}/s"


def _table(verdicts: Json, answers: t.Mapping[str, t.Any]) -> list[str]:
    """Lines of a table that a person can read: one block per guest, one line per host."""
    lines: list[str] = []
    for name, judged in verdicts.items():
        serving = judged["serving"] if judged["serving"] and not judged["start"] else "nobody"
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
                f"  checkpoint pause {_pause(info)} rate {_rate(info)}  QEMU {qemu.get('version', '-')}"
                f"  ports {(info.get('ports') or {}).get('migration', '-')}+"
            )
            for job, progress in qemu.get("jobs", {}).items():
                lines.append(f"    {job}: {progress['offset'] // _guest.MIB} of {progress['length'] // _guest.MIB} MiB")
    return lines


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
            "verdicts": _wrapped(_verdicts),
            "failovers": _wrapped(_failovers),
            "status_table": _wrapped(_table),
        }
