# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper's hand on the generation record: what it knows of it, and what must get to the disk (effect)."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _generation, _rules, _store
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_base import Lane, T, log

DISK_S = 10.0


class Records:
    """The generation record: the last known one, and the transitions that must get to the disk."""

    def __init__(self, guest: Guest, interval_s: float) -> None:
        self.current: _generation.Record | None = None
        self.error: ColoError | None = None
        self.waiting: collections.deque[_rules.Action] = collections.deque()
        self._guest = guest
        self._interval_s = interval_s
        self._reasons: dict[_rules.Action, str] = {}
        self._more = asyncio.Event()
        self._lane = Lane()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "disk")

    async def refresh(self, deadline_s: float = 0.5) -> None:
        """Read the record again; on failure keep the last known one and say so in ``error``."""
        try:
            self.current = await self._on_disk(functools.partial(_store.read, self._guest), deadline_s)
            self.error = None
        except TimeoutError:
            self.error = ColoError("record_slow", f"{self._guest.record_file} was not read within {deadline_s:g} s")
        except ColoError as exc:
            if self.error is None or self.error.message != exc.message:
                log("error", "record", error_code=exc.error_code, message=exc.message)
            self.error = exc

    def want(self, action: _rules.Action, reason: str) -> None:
        """Have a transition written; asked again while it waits, it is written once."""
        if action not in self.waiting:
            self._reasons[action] = reason
            self.waiting.append(action)
            self._more.set()

    async def run(self) -> None:
        """Write what waits, in order and until it is on the disk; read the record again in between."""
        while True:
            if self.waiting and await self._write(self.waiting[0]):
                self.waiting.popleft()
                continue
            # A failed write is tried again, and a module's change is seen, after one interval.
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._more.wait()
            await self.refresh()

    def _transition(self, action: _rules.Action, record: _generation.Record) -> _generation.Record:
        reason = self._reasons[action]
        if action is _rules.Action.ENTER_PROTECTION:
            return _generation.enter_protection(record, self._guest.peer, reason=reason)
        if action is _rules.Action.MARK_STALE:
            return _generation.mark_stale(record, reason)
        if action is _rules.Action.MARK_CLEAN:
            return _generation.mark_clean(record, reason=reason)
        if action is _rules.Action.MARK_RUNNING:
            return _generation.mark_running(record, reason=reason)
        return _generation.mark_void(record, reason)

    async def _write(self, action: _rules.Action) -> bool:
        """Return whether the matter is settled."""
        step = functools.partial(_store.update, self._guest, functools.partial(self._transition, action))
        try:
            before, after = await self._on_disk(step, DISK_S)
        except TimeoutError:
            log("error", "record not written yet", action=action.value)
            return False
        except ColoError as exc:
            log("error", "record not written", action=action.value, error_code=exc.error_code, message=exc.message)
            # An illegal transition stays one. Everything else may be mended while this keeper lives.
            return exc.error_code == "illegal_transition"
        self.current, self.error = after, None
        if after != before:
            log("notice", "record written", action=action.value, why=self._reasons[action], record=after.to_dict())
        return True

    async def _on_disk(self, call: t.Callable[[], T], deadline_s: float) -> T:
        # In a thread: a disk that hangs must not stop the one process that can free QEMU.
        loop = asyncio.get_running_loop()
        return await self._lane.run(lambda: loop.run_in_executor(self._thread, call), deadline_s)
