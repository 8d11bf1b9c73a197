# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The built artifact: what it holds, that it installs, and that playbooks and modules run by their full names."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tarfile
import typing as t

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, run

if t.TYPE_CHECKING:
    from ansible_collections.lockstep.colo.tests.conftest import Lab

PLAYBOOKS = sorted(path.stem for path in TOP.glob("playbooks/*.yml"))
MODULES = sorted(path.stem for path in TOP.glob("plugins/modules/*.py"))
NOT_SHIPPED = (
    "build",
    "tests",
    "molecule",
    "scripts",
    "bench",
    "collections",
    ".git",
    ".ci",
    ".config",
    ".github",
    "Makefile",
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("artifact")
    run("ansible-galaxy", "collection", "build", "--output-path", output, timeout_s=120)
    (built,) = output.glob("lockstep-colo-*.tar.gz")
    return built


def test_holds_what_a_user_needs_and_no_more(artifact: pathlib.Path) -> None:
    with tarfile.open(artifact) as archive:
        names = [name.removeprefix("./") for name in archive.getnames()]
    assert not [name for name in names if name.split("/")[0] in NOT_SHIPPED or "__pycache__" in name]
    assert {"README.md", "COPYING", "meta/runtime.yml", "plugins/modules", "roles", "playbooks"} <= set(names)


@dataclasses.dataclass(frozen=True)
class Installed:
    """A place with the installed collection and nothing of the checkout."""

    place: pathlib.Path
    environment: dict[str, str]

    def run(self, *argv: str | pathlib.Path, timeout_s: float = 60) -> str:
        return run(*argv, timeout_s=timeout_s, cwd=self.place, env=self.environment, warnings=False)


@pytest.fixture(scope="module")
def installed(artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("installed")
    config = place / "ansible.cfg"
    config.touch()
    found = Installed(place, {"ANSIBLE_COLLECTIONS_PATH": str(place), "ANSIBLE_CONFIG": str(config)})
    found.run(
        "ansible-galaxy", "collection", "install", "--offline", "--collections-path", place, artifact, timeout_s=120
    )
    return found


def test_is_found_by_its_full_names(installed: Installed) -> None:
    found = installed.run("ansible-galaxy", "collection", "list", "lockstep.colo")
    assert re.findall("^# (.*)", found, re.MULTILINE) == [
        str(installed.place / "ansible_collections")
    ]  # not the checkout
    listing = installed.run("ansible-doc", "--list", "lockstep.colo")
    assert {line.split()[0] for line in listing.splitlines() if line} == {f"lockstep.colo.{name}" for name in MODULES}

    inventory = installed.place / "inventory.yml"
    inventory.write_text(
        "colo_hosts: {hosts: {alpha: {colo_link_address: 192.0.2.1}, beta: {colo_link_address: 192.0.2.2}}}\n"
    )
    assert PLAYBOOKS
    for name in PLAYBOOKS:
        installed.run("ansible-playbook", "--syntax-check", "--inventory", inventory, f"lockstep.colo.{name}")


def test_runs_on_hosts(installed: Installed, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """With modules, filters, templates and the keeper's program from the artifact, on empty hosts."""
    for host in lab.data["hosts"]:
        lab.ctl("reset", host)
    play = ("ansible-playbook", "-i", lab.inventory)
    assert "web1: absent; nobody serves" in installed.run(*play, "lockstep.colo.status")
    told = installed.run(*play, "lockstep.colo.site", "--check", "--diff", timeout_s=300)
    assert re.search(r"^beta .*changed=[1-9].* failed=0 ", told, re.MULTILINE), told
    with pytest.raises(pytest.fail.Exception, match="ended with 2"):
        installed.run(*play, "lockstep.colo.failover", "-e", "colo_confirm_fenced=gamma")
    assert "colo_confirm_fenced: 'gamma' cannot be used: give the exact name" in capsys.readouterr().out
