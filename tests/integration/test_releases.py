# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between QEMU releases, asked of each real binary; run in every room.

On QEMU 10.0 a whole life needs KVM; where the machine has none, that guest goes as far as the switchover and back, and the
name of the test says so.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import subprocess
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _features, _host
from ansible_collections.lockstep.colo.plugins.modules import colo_host_info
from ansible_collections.lockstep.colo.tests.integration._pair import (
    NAME,
    KilledError,
    Pair,
    at,
    plan_of,
    refused,
    wait_for,
)

BINARY = "/usr/bin/qemu-system-x86_64"
KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
KINDS = (("kvm", "pc"), ("kvm", "q35"), ("tcg", "pc"), ("tcg", "q35"))


@dataclasses.dataclass(frozen=True)
class Release:
    """What is known of one: ``refused`` has the codes for each of ``KINDS``; ``lives`` the accelerators under which COLO works."""

    return_path: str
    reconnect: str
    refused: tuple[str, str, str, str]
    lives: tuple[str, ...]


RELEASES = {
    "11.1": Release("requires", "reconnect-ms", ("", "", "", ""), ("tcg", "kvm")),
    "10.0": Release(
        "refuses",
        "reconnect-ms",
        ("", "machine_broken", "accelerator_broken", "machine_broken accelerator_broken"),
        ("kvm",),
    ),
    "10.0.2": Release("refuses", "reconnect-ms", ("qemu_broken",) * 4, ()),
    "7.2": Release("refuses", "reconnect", ("qemu_broken",) * 4, ()),
}
ROOM = os.environ.get("LOCKSTEP_QEMU", "")
RELEASE = RELEASES[ROOM]
LIVES = [accelerator for accelerator in RELEASE.lives if accelerator == "tcg" or KVM]


@pytest.fixture
def definition(tmp_path: pathlib.Path) -> dict[str, t.Any]:
    """A guest as it is written down on alpha."""
    pair = Pair(tmp_path, 29000)
    pair.end()
    return pair.alpha.definition


def run(args: list[str], *, data: str | None = None, **_more: t.Any) -> tuple[int, str, str]:
    """AnsibleModule.run_command."""
    done = subprocess.run(args, input=data or "", capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def found() -> _features.Features:
    """What the installed QEMU says it can do."""
    features = _host.probe(_host.Tools(run=run, find=shutil.which, ask=lambda _location: None), BINARY)
    assert features is not None
    return features


def test_the_binary_is_asked(found: _features.Features) -> None:
    assert f"{found.version_text}.".startswith(f"{ROOM}.")
    assert found.missing() == []
    assert (found.return_path, found.reconnect) == (RELEASE.return_path, RELEASE.reconnect)
    assert {"kvm", "tcg"} <= found.accelerators
    assert {"pc", "q35"} <= found.machines
    assert "virtio-net-pci" in found.nic_models


def test_what_cannot_work_is_refused(found: _features.Features, definition: dict[str, t.Any]) -> None:
    for (accelerator, machine), codes in zip(KINDS, RELEASE.refused):
        wish = {**definition, "accelerator": accelerator, "machine": machine}
        problems = _features.refusals(found, wish)
        assert " ".join(problem.error_code for problem in problems) == codes, (accelerator, machine)


def test_colo_host_info(definition: dict[str, t.Any]) -> None:
    params = {
        "qemu_binary": BINARY,
        "qemu": "require",
        "accept_untested": False,
        "allow_restart": False,
        "sources": True,
        "definitions": [definition],
        "user": "root",
        "monitor_group": "",
        "bridges": {},
    }

    class HostModule:
        """What the module uses of AnsibleModule."""

        def __init__(self) -> None:
            self.params = params
            self.run_command = run

        def get_bin_path(self, name: str) -> str | None:
            return shutil.which(name)

    result = colo_host_info.examine(t.cast("t.Any", HostModule()))
    assert result["host"]["qemu"]["version"].startswith(ROOM)
    assert result["host"]["memory_needed_mib"] > 0
    codes = {problem["error_code"] for problem in result["problems"]}
    assert "bridge_missing" in codes
    assert set(RELEASE.refused[2].split()) <= codes


# --- the pair ---------------------------------------------------------------------------------------------------


@pytest.fixture
def of(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[t.Callable[[str], Pair]]:
    """Makes a pair with an accelerator."""
    made: list[Pair] = []

    def make(accelerator: str) -> Pair:
        made.append(Pair(tmp_path_factory.mktemp("p"), 29000, accelerator=accelerator))
        return made[-1]

    try:
        yield make
    finally:
        for pair in made:
            pair.end()
            for host in (pair.alpha, pair.beta):
                print(f"--- {host.guest.host}\n{host.log.read_text() if host.log.exists() else ''}")


# A test that a room has no use for is not there; an empty list of parameters would be told as skipped.

if LIVES:

    @pytest.mark.parametrize("accelerator", LIVES)
    def test_a_life(of: t.Callable[[str], Pair], accelerator: str) -> None:
        pair = of(accelerator)
        alpha, beta = pair.alpha, pair.beta
        alpha.serve()
        before = alpha.things()
        pair.site()
        alpha.write(0x42)
        beta.units.power_off()
        wait_for("the loss is seen", lambda: alpha.standing == "orphaned")
        assert pair.failover() is alpha
        assert alpha.things() == before
        pair.site()
        alpha.write(0x43)
        pair.checkpoint(beta)
        alpha.units.power_off()
        wait_for("the loss is seen", lambda: beta.standing == "orphaned")
        assert pair.failover() is beta
        assert beta.holds(0x43)
        pair.site()
        pair.assert_protected(beta)


if ROOM == "10.0":

    @pytest.mark.parametrize("accelerator", ["tcg"])
    def test_up_to_the_switchover_and_back(
        of: t.Callable[[str], Pair], accelerator: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pair = of(accelerator)
        before = pair.wait()

        def kill() -> None:
            raise KilledError

        with monkeypatch.context() as patch:
            plan_of("protect", at("migrate-continue", kill), patch)
            with pytest.raises(KilledError):
                pair.alpha.migrate("primary", "protected")
        pair.alpha.migrate("primary", "absent")
        assert pair.alpha.is_clean()
        assert pair.alpha.things() == before
        assert pair.alpha.holds(0x41)


if not RELEASE.lives:

    @pytest.mark.parametrize("accelerator", ["tcg", "kvm"] if KVM else ["tcg"])
    def test_a_migration_that_completes_is_recognised_and_rolled_back(
        of: t.Callable[[str], Pair], accelerator: str
    ) -> None:
        """With the refusal overridden: no COLO, the guest serves alone, its standby cannot be promoted."""
        pair = of(accelerator)
        alpha, beta = pair.alpha, pair.beta
        before = pair.wait()
        with refused("colo_not_entered") as caught:
            alpha.migrate("primary", "protected")
        assert caught[0].details["rolled_back"]["complete"], caught[0].details
        assert "completed" in caught[0].details["transitions"]
        assert alpha.is_clean()
        assert alpha.things() == before
        assert alpha.holds(0x41)
        assert alpha.record.generation > beta.record.generation
        beta.migrate("secondary", "absent", fenced_by={NAME: "alpha serves"})
        assert pair.judged.verdict == "unprotected"
        assert pair.judged.serving == "alpha"
