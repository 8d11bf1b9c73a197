#!/usr/bin/python

# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module: directories and text files, all in one go."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_files
short_description: Make directories and text files, all in one go
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Makes many directories and small files in one go, where one M(ansible.builtin.file) or M(ansible.builtin.copy) for each
    would take a second each.
  - Each file is replaced as a whole. What is not named is left alone.
  - A link on the way to a path is followed only where nobody but root can have made it. Another is an error, and nothing behind it is
    changed.
  - The roles make with it what grows with the guests of a host.
extends_documentation_fragment:
  - lockstep.colo.attributes
  - lockstep.colo.attributes.actiongroup_colo
attributes:
  check_mode:
    support: full
    details:
      - An owner that does not exist is no error in check mode, as it may be one that is made before.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  directories:
    description:
      - Directories that are to be there, before the files and in this order.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - Where it is. Directories above it that are missing belong to root and are readable by everybody.
        type: path
        required: true
      owner:
        description:
          - The user that it belongs to.
        type: str
        default: root
      group:
        description:
          - The group that it belongs to.
        type: str
        default: root
      mode:
        description:
          - Its permissions, as octal digits.
        type: str
        default: "0755"
  files:
    description:
      - Text files that are to be there.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - Where it is. Directories above it that are missing belong to root and are readable by everybody.
        type: path
        required: true
      content:
        description:
          - What it holds.
        type: str
        required: true
      owner:
        description:
          - The user that it belongs to.
        type: str
        default: root
      group:
        description:
          - The group that it belongs to.
        type: str
        default: root
      mode:
        description:
          - Its permissions, as octal digits.
        type: str
        default: "0644"
seealso:
  - module: ansible.builtin.copy
  - module: ansible.builtin.file
"""

EXAMPLES = r"""
- name: Make a directory and write two files
  lockstep.colo.colo_files:
    directories:
      - path: /etc/example
        group: example
        mode: "0750"
    files:
      - path: /etc/example/one.json
        content: "{}\n"
        group: example
        mode: "0640"
      - path: /usr/local/lib/example/two.txt
        content: |
          second
"""

RETURN = r"""
written:
  description: Paths that were made or mended (in check mode, would be).
  returned: success
  type: list
  elements: str
  sample: [/etc/example/one.json]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _files
from ansible_collections.lockstep.colo.plugins.module_utils._module import run_module


def ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Make what is missing, and write what differs."""
    wishes = [_wish(entry) for entry in (*module.params["directories"], *module.params["files"])]
    changes = _files.ensure(wishes, module.check_mode)
    return {
        "changed": bool(changes),
        "written": [change.path for change in changes],
        "diff": [part for change in changes for part in _diff(change)],
    }


def _wish(entry: dict[str, t.Any]) -> tuple[str, _files.State]:
    return entry["path"], _files.State(entry.get("content"), entry["owner"], entry["group"], _files.mode(entry["mode"]))


def _diff(change: _files.Change) -> list[dict[str, t.Any]]:
    """What differs: the text, and owner and permissions."""
    headers = {"before_header": change.path, "after_header": change.path}
    before, after = change.before, change.after
    parts: list[dict[str, t.Any]] = []
    if after.content is not None and (before is None or before.content != after.content):
        parts.append({**headers, "before": (before and before.content) or "", "after": after.content})
    if _rights(before) != _rights(after):
        parts.append({**headers, "before": _rights(before), "after": _rights(after)})
    return parts


def _rights(state: _files.State | None) -> dict[str, str]:
    if state is None:
        return {"state": "absent"}
    return {"owner": state.owner, "group": state.group, "mode": f"{state.mode:04o}"}


def main() -> None:
    """Entry point."""
    rights = {"owner": {"type": "str", "default": "root"}, "group": {"type": "str", "default": "root"}}
    place = {"path": {"type": "path", "required": True}, **rights}
    directory = {**place, "mode": {"type": "str", "default": "0755"}}
    file = {**place, "mode": {"type": "str", "default": "0644"}, "content": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "dict", "default": [], "options": directory},
            "files": {"type": "list", "elements": "dict", "default": [], "options": file},
        },
        supports_check_mode=True,
        no_log=True,  # the log has no use for the contents
    )
    run_module(module, ensure)


if __name__ == "__main__":
    main()
