# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every Molecule scenario on the lab's hosts: nothing skipped for want of a file, and not one warning from Ansible."""

from __future__ import annotations

import re
import shutil
import typing as t

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, run

if t.TYPE_CHECKING:
    from ansible_collections.lockstep.colo.tests.conftest import Lab

SCENARIOS = sorted(path.parent.name for path in TOP.glob("molecule/*/molecule.yml") if path.parent.name != "default")
STATE = TOP / "build" / "molecule"
EVIDENCE = TOP / "build" / "evidence"


def _journal(lab: Lab, host: str) -> str:
    shown = lab.ctl("exec", host, "--", "journalctl", "-b", "--no-pager", "-n", "400", "-u", "colo-*", check=False)
    return shown.stdout + shown.stderr


@pytest.mark.fast
def test_there_are_scenarios() -> None:
    assert SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, lab: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    # Molecule remembers between runs; a run begins with what is, not with what it remembers.
    shutil.rmtree(STATE, ignore_errors=True)
    try:
        output = run(
            *("molecule", "test", "--scenario-name", scenario, "--destroy", "never", "--no-command-borders"),
            timeout_s=1200,
            warnings=False,
            env={"MOLECULE_EPHEMERAL_DIRECTORY": str(STATE), "MOLECULE_GLOB": "molecule/*/molecule.yml"},
        )
    except pytest.fail.Exception:
        # Whole, for whoever can read files; and what matters most last, where a log that is cut in the middle still has it.
        told = capfd.readouterr().out
        journals = {host: _journal(lab, host) for host in lab.data["hosts"]}
        EVIDENCE.mkdir(parents=True, exist_ok=True)
        whole = "\n".join([told, *(f"--- {host}: journal of the guests\n{text}" for host, text in journals.items())])
        (EVIDENCE / f"molecule-{scenario}.log").write_text(whole)
        for host, text in journals.items():
            print(f"--- {host}: the end of the guests' journal", *text.splitlines()[-25:], sep="\n")
        print("--- molecule: the end of what it printed", *told.splitlines()[-50:], sep="\n")
        raise
    recap = re.findall(
        rf"^{re.escape(scenario)}\s*: actions=([0-9]+) .*missing=([0-9]+)\s+failed=([0-9]+)", output, re.MULTILINE
    )
    assert recap, f"no recap of {scenario} in:\n{output}"
    for actions, missing, failed in recap:
        assert (int(actions) > 0, missing, failed) == (True, "0", "0"), output


@pytest.mark.fast
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_playbook_has_its_step(scenario: str) -> None:
    """A playbook beside a sequence without its step would never run, and nothing would tell."""
    directory = TOP / "molecule" / scenario
    text = (TOP / ".config" / "molecule" / "config.yml").read_text() + (directory / "molecule.yml").read_text()
    playbooks = {path.stem for path in directory.glob("*.yml")} - {"molecule"}
    assert playbooks >= {"converge", "verify"}
    idle = {name for name in playbooks if not re.search(rf"^\s+- ({name}|[a-z_]+ {name}[.]yml)$", text, re.MULTILINE)}
    assert not idle
    # Molecule skips `side_effect other.yml`, too, where there is no side_effect.yml
    assert "side_effect" in playbooks or "- side_effect" not in (directory / "molecule.yml").read_text()
