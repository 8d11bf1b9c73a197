# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The built artifact: what it holds, that it installs, and that playbooks and modules run by their full names."""

from __future__ import annotations

import pathlib
import tarfile

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, run

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


def test_installs_and_runs(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = tmp_path / "ansible.cfg"
    config.touch()
    here = {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path), "ANSIBLE_CONFIG": str(config)}
    install = ("ansible-galaxy", "collection", "install", "--offline", "--collections-path", tmp_path, artifact)
    run(*install, timeout_s=120, cwd=tmp_path, env=here, warnings=False)

    listing = run("ansible-doc", "--list", "lockstep.colo", timeout_s=60, cwd=tmp_path, env=here, warnings=False)
    assert {line.split()[0] for line in listing.splitlines() if line} == {f"lockstep.colo.{name}" for name in MODULES}

    inventory = tmp_path / "inventory.yml"
    inventory.write_text(
        "colo_hosts: {hosts: {alpha: {colo_link_address: 192.0.2.1}, beta: {colo_link_address: 192.0.2.2}}}\n"
    )
    assert PLAYBOOKS
    for name in PLAYBOOKS:
        argv = ("ansible-playbook", "--syntax-check", "--inventory", inventory, f"lockstep.colo.{name}")
        run(*argv, timeout_s=60, cwd=tmp_path, env=here, warnings=False)
