# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error hierarchy of the collection.

Every error carries an ``error_code`` a runbook can branch on and a message that ends in a remedy.
Only the ``main()`` of a module turns an error into an exit.
"""

from __future__ import annotations

import typing as t


class ColoError(Exception):
    """Base of all errors; ``details`` holds what was seen (JSON types only)."""

    def __init__(self, error_code: str, message: str, **details: t.Any) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.message = message
        self.details: dict[str, t.Any] = details


class InputError(ColoError):
    """A value given by the operator cannot be used: names the variable, the value and the remedy.

    ``error_code`` is ``bad_input`` unless a narrower one is given.
    """

    def __init__(self, variable: str, value: t.Any, remedy: str, error_code: str = "bad_input") -> None:
        super().__init__(error_code, f"{variable}: {value!r} cannot be used: {remedy}", variable=variable, value=value)


class DeadlineError(ColoError):
    """A step did not end in its time (``deadline_passed``); ``details`` has the partial result."""

    def __init__(self, what: str, timeout_s: float, **details: t.Any) -> None:
        super().__init__(
            "deadline_passed", f"{what} did not happen within {timeout_s:g} s", timeout_s=timeout_s, **details
        )


class QmpError(ColoError):
    """QEMU refused a command (``qmp_refused``), or the monitor is not usable (``qmp_unreachable``, ``qmp_lost``)."""


class RefusedError(ColoError):
    """The wish is understood and refused because it would break a promise."""
