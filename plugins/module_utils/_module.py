# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only place where a module ends: results and errors become ``exit_json`` and ``fail_json``."""

from __future__ import annotations

import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


def run_module(module: AnsibleModule, fn: t.Callable[[AnsibleModule], dict[str, t.Any]]) -> None:
    """Run ``fn`` and end the module with its result, or with its error's code, message and details."""
    try:
        result = fn(module)
    except ColoError as exc:
        module.fail_json(msg=exc.message, error_code=exc.error_code, details=exc.details)
    else:
        module.exit_json(**result)
