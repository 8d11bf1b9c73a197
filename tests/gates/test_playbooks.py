# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every playbook parses, from the checkout and by its full name, and runs in check mode."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, run

if t.TYPE_CHECKING:
    from ansible_collections.lockstep.colo.tests.conftest import Lab

PLAYBOOKS = sorted(TOP.glob("playbooks/*.yml"))

each_playbook = pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda playbook: playbook.stem)

# A name of each kind of host that the playbooks look for, so that no pattern goes unmatched.
INVENTORY = """\
colo_hosts:
  hosts:
    alpha: {colo_link_address: 192.0.2.1}
    beta: {colo_link_address: 192.0.2.2}
"""

# Playbooks that insist on being told something: what a check-mode run on a healthy lab tells them.
ARGUMENTS: dict[str, list[str]] = {"failover": ["-e", "colo_confirm_fenced=beta"]}


@pytest.mark.fast
def test_there_are_playbooks() -> None:
    assert PLAYBOOKS


@pytest.mark.fast
@each_playbook
def test_syntax(playbook: pathlib.Path, tmp_path: pathlib.Path) -> None:
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(INVENTORY)
    for name in (str(playbook), f"lockstep.colo.{playbook.stem}"):
        run("ansible-playbook", "--syntax-check", "--inventory", inventory, name, timeout_s=60, warnings=False)


def _play(lab: Lab, playbook: str, *arguments: str) -> str:
    path = TOP / "playbooks" / f"{playbook}.yml"
    return run("ansible-playbook", "-i", lab.inventory, path, *arguments, timeout_s=300, warnings=False)


@pytest.fixture(scope="module")
def bare(lab: Lab) -> Lab:
    """Two empty hosts."""
    for host in lab.data["hosts"]:
        lab.ctl("reset", host)
    return lab


@pytest.fixture(scope="module")
def protected(bare: Lab) -> Lab:
    """Two hosts with a protected guest that alpha serves."""
    assert "failed=0" in _play(bare, "site", "--check", "--diff")  # on empty hosts, too
    _play(bare, "site")
    return bare


@each_playbook
def test_check_mode(playbook: pathlib.Path, protected: Lab) -> None:
    """Every playbook, and none of them moves anything."""
    before = _play(protected, "status")
    _play(protected, playbook.stem, "--check", "--diff", *ARGUMENTS.get(playbook.stem, []))
    served = "web1: protected; alpha serves; generation 2"
    assert served in before
    assert served in _play(protected, "status")
