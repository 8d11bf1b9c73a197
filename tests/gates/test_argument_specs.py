# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A role's argument specification tells the whole truth: the same options and defaults as defaults/main.yml."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
import yaml

from ansible_collections.lockstep.colo.tests.gates._run import TOP

ROLES = sorted(path.parent.parent for path in TOP.glob("roles/*/tasks/main.yml"))
TYPES = {"str", "int", "float", "bool", "list", "dict", "path", "raw"}

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def _load(path: pathlib.Path) -> t.Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def _specs(role: pathlib.Path) -> dict[str, dict[str, t.Any]]:
    document = _load(role / "meta" / "argument_specs.yml")
    assert document, f"{role.name} has no meta/argument_specs.yml"
    specs = document["argument_specs"]
    assert isinstance(specs, dict)
    return specs


def _options(where: str, options: dict[str, t.Any]) -> t.Iterator[tuple[str, dict[str, t.Any]]]:
    """All options at any depth, by their full name."""
    for name, option in options.items():
        yield f"{where}.{name}", option
        yield from _options(f"{where}.{name}", option.get("options", {}))


@pytest.mark.fast
def test_there_are_roles() -> None:
    assert ROLES


@pytest.mark.fast
@each_role
def test_defaults_are_those_of_the_specification(role: pathlib.Path) -> None:
    specified: dict[str, t.Any] = {}
    for entry_point, spec in _specs(role).items():
        for name, option in spec.get("options", {}).items():
            if "default" not in option:
                continue
            assert specified.get(name, option["default"]) == option["default"], (
                f"{entry_point}: {name} differs elsewhere"
            )
            specified[name] = option["default"]
    assert specified == (_load(role / "defaults" / "main.yml") or {})


@pytest.mark.fast
@each_role
def test_every_name_is_the_collections(role: pathlib.Path) -> None:
    """What an operator sets begins with colo_, what a role keeps to itself with two underscores and the role's name."""
    public = set(_load(role / "defaults" / "main.yml") or {})
    public |= {name for spec in _specs(role).values() for name in spec.get("options", {})}
    private = set(_load(role / "vars" / "main.yml") or {})
    assert not {name for name in public if not name.startswith("colo_")}
    assert not {name for name in private if not name.startswith(("colo_", f"__{role.name}_"))}


@pytest.mark.fast
@each_role
def test_every_entry_point_is_specified(role: pathlib.Path) -> None:
    """A task file is an entry point unless its name says that it is private (a leading underscore)."""
    entry_points = {path.stem for path in (role / "tasks").glob("*.yml") if not path.name.startswith("_")}
    assert set(_specs(role)) == entry_points


@pytest.mark.fast
@each_role
def test_every_option_is_typed_and_described(role: pathlib.Path) -> None:
    problems = []
    for entry_point, spec in _specs(role).items():
        problems += [f"{entry_point} has no {key}" for key in ("short_description", "description") if not spec.get(key)]
        for name, option in _options(entry_point, spec.get("options", {})):
            if option.get("type") not in TYPES:
                problems.append(f"{name} has no type")
            if option.get("type") == "list" and option.get("elements") not in TYPES:
                problems.append(f"{name} does not say what its elements are")
            if not option.get("description"):
                problems.append(f"{name} is not described")
            if "default" in option and option.get("required"):
                problems.append(f"{name} is required and has a default")
    assert not problems


@pytest.mark.fast
@each_role
def test_role_has_a_page(role: pathlib.Path) -> None:
    assert (role / "README.md").is_file()


def test_what_pip_installs_on_a_host_is_what_the_tools_were_tested_with() -> None:
    """Version and hashes of qemu.qmp, as requirements-dev.txt has them."""
    (wanted,) = yaml.safe_load((TOP / "roles/host/defaults/main.yml").read_text())["colo_host_venv_packages"]
    pinned = (TOP / "requirements-dev.txt").read_text().replace("\\\n", " ")
    (line,) = [line for line in pinned.splitlines() if line.startswith("qemu-qmp==")]
    assert wanted.replace("qemu.qmp", "qemu-qmp").split() == line.split()
