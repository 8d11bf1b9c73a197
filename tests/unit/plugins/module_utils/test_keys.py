# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose key counts: two hosts that make, copy and renew keys, killed in between, always end with the same one."""

from __future__ import annotations

import itertools
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _keys
from ansible_collections.lockstep.colo.plugins.module_utils._errors import InputError
from ansible_collections.lockstep.colo.tests.unit import _make

HOSTS = ("alpha", "beta")
Keys = dict[str, "str | None"]


def _run(keys: Keys, renew: bool = False, killed: bool = False, in_run: t.Sequence[str] = HOSTS) -> Keys:
    """The role on the hosts of the run; ``killed`` ends it after the keys are made and before they are copied."""
    found = {host: {"web1": keys[host]} for host in HOSTS}
    plans = {host: _keys.plan([_make.definition(host)], found, in_run, ["web1"] if renew else []) for host in in_run}
    now = dict(keys)
    for host, plan in plans.items():
        if plan["make"]:
            now[host] = f"new-{host}"
    if killed:
        return now
    for host, plan in plans.items():
        for peer in plan["fetch"]:
            assert now[peer], "a key that nobody has cannot be copied"
            now[host] = now[peer]
    return now


@pytest.mark.parametrize("before", list(itertools.product((None, "a", "b"), repeat=2)))
@pytest.mark.parametrize("renew", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_both_hosts_end_with_the_same_key(before: tuple[str | None, str | None], renew: bool, killed: bool) -> None:
    keys = dict(zip(HOSTS, before))
    if killed:
        keys = _run(keys, renew, killed=True)
        renew = False
    after = _run(keys, renew)
    assert after["alpha"] is not None
    assert after["alpha"] == after["beta"]
    assert _run(after) == after
    if not renew and not killed and before[0]:
        assert after["alpha"] == before[0], "the first host's key counts"
    if not renew and not killed and before == (None, "b"):
        assert after["alpha"] == "b"


def test_a_renewal_that_was_cut_short_is_finished_with_the_new_key() -> None:
    half = _run({"alpha": "a", "beta": "a"}, renew=True, killed=True)
    assert half == {"alpha": "new-alpha", "beta": "a"}
    assert _run(half) == {"alpha": "new-alpha", "beta": "new-alpha"}


def test_one_host_alone() -> None:
    assert _run({"alpha": None, "beta": "b"}, in_run=["alpha"]) == {"alpha": "b", "beta": "b"}
    assert _run({"alpha": None, "beta": None}, in_run=["beta"]) == {"alpha": None, "beta": "new-beta"}
    with pytest.raises(InputError, match="alpha and beta"):
        _run({"alpha": "a", "beta": "a"}, renew=True, in_run=["beta"])


def test_supplied_keys_are_neither_made_nor_copied() -> None:
    plan = _keys.plan([_make.definition("beta")], {"alpha": {"web1": "a"}}, HOSTS, ["web1"], {"web1": "..."})
    assert plan == {"make": [], "fetch": {}}
