# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose key counts: which keys a host makes, and which it copies from its peer.

Pure. Keys are told apart by their fingerprints; no key is ever seen here.
"""

from __future__ import annotations

import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import InputError

Found = t.Mapping[str, t.Mapping[str, "str | None"]]  # host -> guest -> fingerprint, None where there is no key


def plan(
    definitions: t.Sequence[t.Mapping[str, t.Any]],
    found: Found,
    in_run: t.Collection[str],
    renew: t.Collection[str] = (),
    supplied: t.Collection[str] = (),
) -> dict[str, t.Any]:
    """What the host of these definitions does: ``make`` (guests) and ``fetch`` (peer to guests).

    The first host's key counts; where it has none, the second's. So a renewal that was cut short after the first host is
    finished by the next run. Keys that the operator supplies (``supplied``) are neither made nor copied.
    """
    make: list[str] = []
    fetch: dict[str, list[str]] = {}
    for definition in definitions:
        name, host, peer = definition["name"], definition["host"], definition["peer"]
        if name in supplied:
            continue
        if name in renew and not set(definition["hosts"]) <= set(in_run):
            raise InputError(
                "colo_guest_renew_keys",
                True,
                f"a new key of guest {name} has to reach both its hosts: run it on {' and '.join(definition['hosts'])}",
            )
        source = _source(definition, found, in_run, name in renew)
        prints = {side: found.get(side, {}).get(name) for side in (host, peer)}
        new = name in renew or prints[source] is None
        if source == host:
            make += [name] if new else []
        elif new or prints[source] != prints[host]:
            fetch.setdefault(peer, []).append(name)
    return {"make": make, "fetch": fetch}


def _source(definition: t.Mapping[str, t.Any], found: Found, in_run: t.Collection[str], renew: bool) -> str:
    name, host, (first, second) = definition["name"], definition["host"], definition["hosts"]
    if renew or found.get(first, {}).get(name):
        return str(first)
    if found.get(second, {}).get(name):
        return str(second)
    # nobody has one: the first host makes it, unless it is not there to do so
    return str(first if first in in_run else host)
