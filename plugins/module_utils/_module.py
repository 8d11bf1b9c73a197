# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way out of every module: a result, or an error in the collection's form."""

from __future__ import annotations

import collections.abc as c
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError


def run_module(module: AnsibleModule, function: c.Callable[[AnsibleModule], dict[str, t.Any]]) -> None:
    """Do the module's work and exit; nothing below this raises anything but :class:`ColoError` for an expected failure."""
    try:
        result = function(module)
    except ColoError as exc:
        module.fail_json(msg=exc.message, error_code=exc.error_code, details=exc.details)
    else:
        module.exit_json(**result)
