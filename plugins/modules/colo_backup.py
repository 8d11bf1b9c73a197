#!/usr/bin/python

# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_backup
short_description: Give a guest's copy on this host up, and keep it as a backup
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Where both hosts of a pair hold data of their own, a person decides whose copy the guest goes on with. This module is for the other one.
  - It ends the guest's QEMU on this host, whatever it does, and renames the directory of its copy, with images and record.
    Nothing is deleted, and nothing is overwritten. The role C(images) makes a new copy in its place, which never ran.
  - It does not know what the other host does. The runbook C(resolve.yml) looks at both before it uses it.
extends_documentation_fragment:
  - lockstep.colo.guests
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
  kept_on:
    description:
      - By name of the guest, the exact name of the host whose copy the guest goes on with. It has to be the other host of the pair.
    type: dict
    required: true
seealso:
  - module: lockstep.colo.colo_failover
"""

EXAMPLES = r"""
- name: The guest goes on with the copy on beta
  lockstep.colo.colo_backup:
    name: [web1]
    kept_on:
      web1: beta
"""

RETURN = r"""
guests:
  description: One entry per guest.
  returned: always
  type: dict
  contains:
    backup:
      description: The directory that holds the copy from now on.
      returned: when the copy was renamed
      type: str
      sample: /var/lib/lockstep-colo/web1.set-aside-20261126T213000Z
    standing:
      description: The standing C(before) and C(after). In check mode, after is what would be.
      returned: success
      type: dict
      sample: {"before": "alone", "after": "stopped"}
    actions:
      description: What was done, or in check mode would be.
      returned: success
      type: list
      elements: str
    error:
      description: C(error_code), C(message) and C(details), with the failed step.
      returned: on error
      type: dict
error_code:
  description: Code of the first error, such as V(keep_missing), V(not_set_aside) or V(unit_failed).
  returned: on failure
  type: str
details:
  description: What was seen when the first error came up.
  returned: on failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _guests, _migrate


def main() -> None:
    """Read the wish, do it for every guest, leave."""
    module = AnsibleModule(
        argument_spec={**_guests.ARGUMENTS, "kept_on": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    _guests.finish(module, _guests.each(module.params["name"], lambda name: _migrate.set_aside(name, module)))


if __name__ == "__main__":
    main()
