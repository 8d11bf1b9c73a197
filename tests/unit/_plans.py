# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every step that any plan can have."""

from __future__ import annotations

import contextlib
import functools
import re
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _plan
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._states import Observation
from ansible_collections.lockstep.colo.tests.unit import _make

# what a heartbeat has to say for a planned move
FOLLOWS = {"state": "protected", "generation": _make.PRIMARY.generation, "qemu_status": "running"}


def nameless(title: str) -> str:
    """A step's title without its numbers: disks, network cards and generations."""
    return re.sub(r"\d+", "#", title)


def _moving() -> Observation:
    """A primary whose peer is heard to follow."""
    keeper = _make.keeper(heard=True, peer=FOLLOWS)
    keeper["heartbeat"]["last_rx_age_ms"] = 10.0
    return _make.seen(_make.qemu(migration="colo", colo_mode="primary"), _make.PRIMARY, keeper=keeper)


def steps() -> t.Iterator[_plan.Step]:
    """The steps of every plan from everything that a host can be, on either host; copies of disks get 900 s."""
    for host in ("alpha", "beta"):
        guest = _make.guest(host)
        plans: tuple[t.Callable[[Observation], t.Sequence[_plan.Step]], ...] = (
            functools.partial(_plan.serve, guest, fenced_by="evidence"),
            functools.partial(_plan.protect, guest, features=_make.FEATURES, timeout_s=900.0),
            functools.partial(_plan.standby, guest, generation=9),
            functools.partial(_plan.follow, guest),
            functools.partial(_plan.unprotect, guest),
            functools.partial(_plan.stop_standby, guest, left_behind="evidence"),
            functools.partial(_plan.failover, guest, fenced_by="evidence", accept_void=False),
            functools.partial(_plan.release, guest),
        )
        for seen in (*_make.SIGHTS.values(), _moving()):
            for plan in plans:
                with contextlib.suppress(ColoError):
                    yield from plan(seen)
