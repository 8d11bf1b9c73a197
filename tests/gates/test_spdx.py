# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file says under which licence it may be used."""

from __future__ import annotations

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, tracked

HEADER = (
    "Copyright (c) 2026, lockstep.colo maintainers",
    "GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)",
    "SPDX-License-Identifier: GPL-3.0-or-later",
)
# Licence texts, what antsibull-changelog writes, and what cannot hold a comment (which has a .license file beside it).
WITHOUT = ("COPYING", "LICENSES/*", "CHANGELOG.rst", "changelogs/changelog.yaml", "*.license")


@pytest.mark.fast
def test_every_file_has_its_licence() -> None:
    bare = []
    for name in tracked():
        if any(name.match(pattern) for pattern in WITHOUT):
            continue
        beside = TOP / f"{name}.license"
        head = (beside if beside.exists() else TOP / name).read_bytes()[:2000].decode(errors="replace")
        if not all(line in head for line in HEADER):
            bare.append(str(name))
    assert not bare
