# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fence a host: run the methods in their order until one proves that it is off. Each ends by its deadline."""

from __future__ import annotations

import asyncio
import collections.abc as c
import contextlib
import dataclasses
import os
import pathlib
import signal
import tempfile
import time
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _fence, _guest
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._fence import Method

_KILLED_S = 2.0
_MOST_OUTPUT = 64 * 1024

Find = c.Callable[[str], "str | None"]


@dataclasses.dataclass(frozen=True)
class Fencer:
    """Fences ``host`` from ``place``. ``guests`` are those whose units the method ssh stops; ``find`` finds a program."""

    host: str
    place: str
    guests: t.Sequence[str]
    find: Find
    proc: str = "/proc"

    def fence(self, chosen: t.Sequence[Method]) -> tuple[str | None, list[dict[str, t.Any]]]:
        """Try the methods; return the evidence of the first that proves it (None: none did) and what became of each."""
        results: list[dict[str, t.Any]] = []
        for method in chosen:
            begin = time.monotonic()
            result = {"method": method.method, "title": method.title, "off": False}
            results.append(result)
            try:
                self._one(method, begin + method.timeout_s)
            except ColoError as exc:
                result.update(error_code=exc.error_code, message=exc.message)
            else:
                result.update(off=True, message=_fence.evidence(method, self.host, self.place, self.guests))
            finally:
                result["took_ms"] = round((time.monotonic() - begin) * 1000, 1)
            if result["off"]:
                return str(result["message"]), results
        return None, results

    def missing(self, chosen: t.Sequence[Method]) -> list[ColoError]:
        """The programs that are not there (``fence_agent_missing``)."""
        errors = []
        for method in chosen:
            try:
                self._program(method)
            except ColoError as exc:
                errors.append(exc)
        return errors

    def _program(self, method: Method) -> str:
        if method.method not in ("agent", "command"):
            return ""
        path = self.find(method.title)
        if path is None:
            remedy = (
                f"install its package there, such as {method.agent.replace('_', '-agents-', 1)} (on hosts, the list colo_host_packages can)"
                if method.method == "agent"
                else "correct the path, or install the program there"
            )
            raise ColoError(
                "fence_agent_missing",
                f"{method.variable}: {method.title!r} cannot be used: it is not on {self.place}, which would have to fence {self.host} with "
                f"it: {remedy}",
                variable=method.variable,
                value=method.title,
            )
        return path

    def _one(self, method: Method, deadline: float) -> None:
        if method.method == "agent":
            program = self._program(method)
            _fence.check_off(
                method, self.host, *self._run(method, [program], deadline, _fence.agent_input(method, "off"))
            )
            _fence.check_status(
                method, self.host, *self._run(method, [program], deadline, _fence.agent_input(method, "status"))
            )
        elif method.method == "command":
            argv = [self._program(method), *method.argv[1:]]
            _fence.check_off(method, self.host, *self._run(method, argv, deadline))
        elif method.method == "ssh":
            for guest in self.guests:
                self._end(method, guest, deadline)
        else:
            raise ColoError("fence_refused", f"{method.title} is a person's word: nothing can be run for it")

    def _end(self, method: Method, guest: str, deadline: float) -> None:
        """Kill a guest's unit on this host, and see that no process of it is left."""
        unit = _guest.unit_name(guest)
        # its exit is seen by the stop below, whatever this one answers
        self._run(method, ["systemctl", "kill", "--kill-whom=all", "--signal=SIGKILL", unit], deadline)
        code, text = self._run(method, ["systemctl", "stop", unit], deadline)
        left = self._processes(guest)
        if code != 0 or left:
            # a process in the middle of a disk's I/O cannot be killed, and systemd gives up on it
            told = f"processes {left} are left" if left else _fence.said(text, method)
            raise ColoError("fence_not_off", f"{unit} on {self.host} has not ended: {told}", processes=left)

    def _processes(self, guest: str) -> list[int]:
        """QEMUs of the guest, by their command line."""
        mark = f"\0guest={guest},".encode()
        found = []
        for entry in pathlib.Path(self.proc).iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # it has gone meanwhile
                    if mark in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return sorted(found)

    def _run(self, method: Method, argv: c.Sequence[str], deadline: float, data: str = "") -> tuple[int, str]:
        """Run a program to its end; exit code and output (``fence_timeout``)."""
        left = deadline - time.monotonic()
        try:
            if left > 0:
                return asyncio.run(_ended(argv, data, left))
        except TimeoutError:
            pass
        except OSError as exc:
            raise ColoError(
                "fence_refused", f"{method.title} cannot be run on {self.place}: {exc.strerror or exc}"
            ) from exc
        raise ColoError(
            "fence_timeout", f"{method.title} did not end within {method.timeout_s:g} s", timeout_s=method.timeout_s
        )


async def _ended(argv: c.Sequence[str], data: str, timeout_s: float) -> tuple[int, str]:
    """Output goes to a file: a grandchild that keeps a pipe open must not be waited for. Input does not: it has secrets."""
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        if process.stdin is not None:
            process.stdin.write(data.encode())
            process.stdin.close()
        try:
            code = await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # one that the kernel keeps, in a disk that hangs, does not even end of this
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _KILLED_S)
            raise
        output.seek(max(0, output.seek(0, os.SEEK_END) - _MOST_OUTPUT))
        return code, output.read().decode(errors="replace")
