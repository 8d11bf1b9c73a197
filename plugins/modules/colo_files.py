#!/usr/bin/python

# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module: the files of the keeper."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_files
short_description: Write a set of text files below one directory
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Writes many small files in one go, where one M(ansible.builtin.copy) for each would take a second each.
  - Each file is replaced as a whole. Files that are not named are left alone.
  - The role P(lockstep.colo.guest#role) installs the keeper with it.
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
      - The directory. It is made when it is missing, readable by everybody.
    type: path
    required: true
  files:
    description:
      - Contents of the files, by their names below O(path). They are made readable by everybody.
    type: dict
    required: true
seealso:
  - module: ansible.builtin.copy
"""

EXAMPLES = r"""
- name: Write two files
  lockstep.colo.colo_files:
    path: /usr/local/lib/example
    files:
      one.txt: |
        first
      more/two.txt: |
        second
"""

RETURN = r"""
written:
  description: Names of the files that were written (in check mode, would be written).
  returned: success
  type: list
  elements: str
  sample: [one.txt]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _files
from ansible_collections.lockstep.colo.plugins.module_utils._module import run_module


def install(module: AnsibleModule) -> dict[str, t.Any]:
    """Write what differs."""
    changes = _files.write_files(module.params["path"], module.params["files"], module.check_mode)
    return {
        "changed": bool(changes),
        "written": [change.name for change in changes],
        "diff": [
            {
                "before_header": change.name,
                "after_header": change.name,
                "before": change.before or "",
                "after": change.after,
            }
            for change in changes
        ],
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
        no_log=True,  # the log has no use for the contents
    )
    run_module(module, install)


if __name__ == "__main__":
    main()
