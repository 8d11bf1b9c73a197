#!/usr/bin/python
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_absent
short_description: Remove named files, and directories that are empty then
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Removes many files in one go, in the order in which they are named, and each durably before the next.
    So a run that is killed, or a power cut, leaves the first ones gone and the last ones there.
  - A directory is removed only when nothing is left in it. What others have put there stays, and is told.
  - The entry points C(absent) of the roles remove with it what the roles have made.
extends_documentation_fragment:
  - lockstep.colo.attributes
  - lockstep.colo.attributes.actiongroup_colo
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  path:
    description:
      - Absolute paths. The last part may be a shell pattern. A path that ends in a slash means a directory.
      - Links are removed, never followed. A path without a slash at its end does not remove a directory.
      - A link on the way to a path is followed only where nobody but root can have made it. Behind another there is nothing to remove.
    type: list
    elements: str
    required: true
seealso:
  - module: lockstep.colo.colo_files
  - module: ansible.builtin.file
"""

EXAMPLES = r"""
- name: Nothing is left of the guest's copy, and its directory only if something else is in it
  lockstep.colo.colo_absent:
    path:
      - /var/lib/lockstep-colo/web1/record.json
      - /var/lib/lockstep-colo/web1/root.*qcow2
      - /var/lib/lockstep-colo/web1/
"""

RETURN = r"""
removed:
  description: What was removed (in check mode, would be), in this order. Directories end in a slash.
  returned: success
  type: list
  elements: str
  sample: [/var/lib/lockstep-colo/web1/record.json]
left:
  description: Directories that were named and stay, by their paths, with the names of what else is in them.
  returned: success
  type: dict
  sample:
    /var/lib/lockstep-colo/web1: [root.qcow2.backup]
error_code:
  description: Code of the error, V(bad_input) or V(not_removed).
  returned: on failure
  type: str
details:
  description: What was seen when the error came up.
  returned: on failure
  type: dict
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _remove
from ansible_collections.lockstep.colo.plugins.module_utils._module import run_module


def clear(module: AnsibleModule) -> dict[str, t.Any]:
    """Remove what is there."""
    removal = _remove.remove(module.params["path"], module.check_mode)
    return {
        "changed": bool(removal.removed),
        "removed": removal.removed,
        "left": removal.left,
        "diff": {"before": "".join(f"{path}\n" for path in removal.removed), "after": ""},
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"path": {"type": "list", "elements": "str", "required": True}},
        supports_check_mode=True,
    )
    run_module(module, clear)


if __name__ == "__main__":
    main()
