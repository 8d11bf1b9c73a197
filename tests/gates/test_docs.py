# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages: they render without a warning, their links lead somewhere, and the commands they name exist."""

from __future__ import annotations

import pathlib
import re
import urllib.parse

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import COLLECTION, TOP, run, tracked

PAGES = [name for name in tracked("*.md", "*.rst") if name.parts[0] not in ("changelogs", "LICENSES", "CHANGELOG.rst")]
SITE = TOP / "build" / "docs"
RUNBOOK_HEADINGS = ["When", "Preconditions", "Steps", "What can go wrong", "Rehearse"]


def test_collection_docs_lint() -> None:
    argv = (
        "antsibull-docs",
        "lint-collection-docs",
        "--plugin-docs",
        "--skip-rstcheck",
        "--disallow-unknown-collection-refs",
    )
    run(*argv, COLLECTION, timeout_s=300)


def test_collection_docs_render() -> None:
    """Plugin and role pages through antsibull-docs, then the whole site through Sphinx, where a warning is an error."""
    run(TOP / "scripts" / "docs", SITE, timeout_s=600)
    assert (SITE / "html" / "index.html").is_file()


@pytest.mark.fast
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", (TOP / page).read_text(), flags=re.DOTALL)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _hash, fragment = target.partition("#")
        if urllib.parse.urlsplit(target).scheme:
            continue
        file = (TOP / page).parent / urllib.parse.unquote(path) if path else TOP / page
        if not file.exists() or (fragment and file.suffix == ".md" and fragment not in _anchors(file.read_text())):
            dead.append(target)
    assert not dead


@pytest.mark.fast
@pytest.mark.parametrize(
    "playbook", [path for path in tracked("playbooks/*.yml") if path.parent.name == "playbooks"], ids=str
)
def test_every_playbook_has_a_runbook_of_the_same_form(playbook: pathlib.Path) -> None:
    """Who is woken at night finds the same headings, in the same order, on each page."""
    text = (TOP / "docs" / "runbooks" / playbook.with_suffix(".md").name).read_text()
    headings = re.findall(r"^## (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    assert [heading for heading in headings if heading in RUNBOOK_HEADINGS] == RUNBOOK_HEADINGS


@pytest.mark.fast
def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (TOP / "Makefile").read_text(), re.MULTILINE))
    named = {(str(page), target) for page in PAGES for target in _make_targets((TOP / page).read_text())}
    assert not {(page, target) for page, target in named if target not in targets}


def _make_targets(text: str) -> list[str]:
    """`make X` in code: between backticks, or on a line of a code block."""
    code = re.findall(r"```.*?```|``.+?``|`[^`\n]+`", text, re.DOTALL)
    return [target for piece in code for target in re.findall(r"(?:^|[`\n$;&] *)make ([a-z][a-z-]*)", piece)]


def _anchors(text: str) -> set[str]:
    """The anchors of a Markdown page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *#*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.fast
def test_ten_lines_are_ten() -> None:
    found = re.search(
        r"Write ten lines into `inventory.yml`:\n\n```yaml\n(.*?)```", (TOP / "README.md").read_text(), re.DOTALL
    )
    assert found is not None
    assert len(found[1].splitlines()) == 10
