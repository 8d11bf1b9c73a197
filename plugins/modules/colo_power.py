#!/usr/bin/python
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_power
short_description: Power a guest off in an orderly way, on the host where it runs
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Presses the guest's power button (ACPI, QEMU's C(system_powerdown)) and waits until the guest has powered itself off. Then ends its
    protection, writes into the generation record that the guest is off, and ends its QEMU.
  - The guest stays as protected as it was until it is off. A guest that ignores its power button goes on as before, and the module fails.
  - A guest that is off stays off. Neither a failover nor the playbook C(site.yml) brings it back without being asked to.
  - The standby on the other host is left behind, and is removed there with M(lockstep.colo.colo_migrate).
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
  state:
    description:
      - V(stopped) means that the guest is powered off and no QEMU of it runs here.
    type: str
    choices: [stopped]
    default: stopped
  timeout_s:
    description:
      - How long the guest may take to power itself off, in seconds.
    type: float
    default: 120
seealso:
  - module: lockstep.colo.colo_migrate
  - module: lockstep.colo.colo_info
notes:
  - In lock step QEMU sets a guest that has powered itself off to running again at the next checkpoint (C(-action shutdown=pause), seen on 11.1).
    That it is off is known from the C(SHUTDOWN) event alone, which the keeper writes down.
"""

EXAMPLES = r"""
- name: The guest that runs on this host is powered off
  lockstep.colo.colo_power:
    name: [web1]
"""

RETURN = r"""
guests:
  description: One entry per guest.
  returned: always
  type: dict
  contains:
    standing:
      description: The standing C(before) and C(after). In check mode, after is what would be.
      returned: success
      type: dict
      sample: {"before": "primary", "after": "stopped"}
    actions:
      description: What was done, or in check mode would be.
      returned: success
      type: list
      elements: str
    timings:
      description: C(observe_ms), C(total_ms) and C(steps_ms) by step.
      returned: success
      type: dict
    transitions:
      description: The migration states QEMU reported while the module worked.
      returned: success
      type: list
      elements: str
    error:
      description: C(error_code), C(message) and C(details), with the failed step.
      returned: on error
      type: dict
error_code:
  description: Code of the first error, such as V(powerdown_ignored), V(is_standby) or V(standing_failed).
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
        argument_spec={
            **_guests.ARGUMENTS,
            "state": {"type": "str", "choices": ["stopped"], "default": "stopped"},
            "timeout_s": {"type": "float", "default": 120.0},
        },
        supports_check_mode=True,
    )
    _guests.finish(module, _guests.each(module.params["name"], lambda name: _migrate.power(name, module)))


if __name__ == "__main__":
    main()
