# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what the collection's modules returned, one JSON object per line: figures for programs that run a playbook.

The file is named by LOCKSTEP_RESULTS. Other tasks have a line, too, that says how often their module ran and when; the last
line has the playbook's counts (`stats`).
"""

from __future__ import annotations

import json
import os
import time
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: colo_results
type: notification
short_description: What the collection's modules returned, as JSON lines
description:
  - Writes to the file that the environment variable E(LOCKSTEP_RESULTS) names.
author:
  - lockstep.colo maintainers (@lockstep-colo)
"""


class CallbackModule(CallbackBase):
    """One line per result of a task, with what it told where the module is ours, and one for the recap."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "colo_results"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[tuple[str, str], float] = {}

    def v2_runner_on_start(self, host: t.Any, task: t.Any) -> None:
        """Remember when the task began on this host."""
        self.began[host.get_name(), task._uuid] = time.time()

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """A module came back."""
        self._result(result, "ok")

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        """A module failed."""
        self._result(result, "failed")

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        """Nothing was done."""
        self._result(result, "skipped")

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        """A host did not answer."""
        self._result(result, "unreachable")

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """The recap."""
        self._write({"stats": {host: stats.summarize(host) for host in sorted(stats.processed)}})

    def _result(self, result: t.Any, outcome: str) -> None:
        module = result.task.action.rsplit(".", maxsplit=1)[-1]
        host = result.host.get_name()
        began = self.began.get((host, result.task._uuid), 0.0)
        times = {"began": began, "ended": time.time()}
        # a loop runs its module once for each item
        items = result.result.get("results") if result.task.loop is not None else None
        runs = 1 if items is None else sum(not item.get("skipped") for item in items)
        what = {"module": module, "host": host, "outcome": outcome}
        line = {"task": result.task.get_name(), **what, **times, "runs": 0 if outcome == "skipped" else runs}
        if module.startswith("colo_"):
            told = ("changed", "guests", "msg", "error_code")
            line |= {key: value for key, value in result.result.items() if key in told}
            line["role"] = result.task.args.get("role")
        self._write(line)

    def _write(self, line: dict[str, t.Any]) -> None:
        path = os.environ.get("LOCKSTEP_RESULTS")
        if path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")
