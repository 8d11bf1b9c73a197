#!/usr/bin/python

# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_record
short_description: Make the generation record of guests that have no images yet
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Each host keeps a record beside each guest's images that says how new its copy is. This module makes the first one, of generation zero.
  - It is made before the first image, and only where there is no image. A copy that is there without a record may be
    of any age, so it gets none, and the guest is refused until the record is restored or the images are moved away.
  - A record that is there is never changed.
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
  definitions:
    description:
      - Definitions of this host's guests, as the filter P(lockstep.colo.definitions#filter) makes them.
    type: list
    elements: dict
    required: true
seealso:
  - module: lockstep.colo.colo_image
"""

EXAMPLES = r"""
- name: Each guest that is new on this host has a record
  lockstep.colo.colo_record:
    definitions: "{{ colo_definitions }}"
"""

RETURN = r"""
made:
  description: Names of the guests whose record was made, or in check mode would be.
  returned: success
  type: list
  elements: str
without_record:
  description: Names of the guests that have images here and no record.
  returned: success
  type: list
  elements: str
error_code:
  description: Code of the error, such as V(record_not_written), V(record_locked) or V(record_unreadable).
  returned: on failure
  type: str
details:
  description: What was seen when the error came up.
  returned: on failure
  type: dict
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _guest, _store
from ansible_collections.lockstep.colo.plugins.module_utils._module import run_module


def ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Make the records that are missing and may be made."""
    made: list[str] = []
    without: list[str] = []
    for definition in module.params["definitions"]:
        guest = _guest.from_definition(definition)
        if os.path.exists(guest.record_file):
            continue
        if any(os.path.exists(guest.image(disk, "parent")) for disk in guest.disks):
            without.append(guest.name)
            continue
        if not module.check_mode:
            _store.create(guest)
        made.append(guest.name)
    diff = {"before": "", "after": "".join(f"{name}: generation 0\n" for name in made)}
    return {"changed": bool(made), "made": made, "without_record": without, "diff": diff}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"definitions": {"type": "list", "elements": "dict", "required": True}},
        supports_check_mode=True,
    )
    run_module(module, ensure)


if __name__ == "__main__":
    main()
