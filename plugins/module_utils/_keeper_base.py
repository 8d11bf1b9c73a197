# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all parts of the keeper use: the journal, the clock, and a way to ask what may hang (effect)."""

from __future__ import annotations

import asyncio
import datetime
import json
import sys
import time
import typing as t

Json = dict[str, t.Any]
T = t.TypeVar("T")

_LEVELS = {"error": 3, "warning": 4, "notice": 5, "info": 6}


def line(what: str, **fields: t.Any) -> str:
    """One line for people: words, key=value with JSON values."""
    return " ".join([what, *(f"{key}={json.dumps(value, default=str)}" for key, value in fields.items())])


def log(level: str, what: str, **fields: t.Any) -> None:
    """Write one line to the journal, with its priority."""
    sys.stderr.write(f"<{_LEVELS[level]}>{line(what, **fields)}\n")
    sys.stderr.flush()


def now_iso() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def age_ms(since: float | None) -> float | None:
    return None if since is None else round((time.monotonic() - since) * 1000, 3)


class Lane:
    """One call at a time, each with a deadline.

    A call that outlives its deadline is not cancelled, because what it asked for cannot be taken back; it keeps the
    lane until it ends, so that nothing piles up behind it.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, call: t.Callable[[], t.Awaitable[T]], deadline_s: float) -> T:
        """Return what *call* returns, or raise TimeoutError."""
        ends = asyncio.get_running_loop().time() + deadline_s
        async with asyncio.timeout_at(ends):
            await self._lock.acquire()
        try:
            future = asyncio.ensure_future(call())
        except BaseException:
            self._lock.release()
            raise
        future.add_done_callback(self._free)
        await asyncio.wait({future}, timeout=ends - asyncio.get_running_loop().time())
        if not future.done():
            raise TimeoutError
        return future.result()

    def _free(self, future: asyncio.Future[t.Any]) -> None:
        self._lock.release()
        if not future.cancelled():
            future.exception()  # seen: nobody may be waiting for it any more
