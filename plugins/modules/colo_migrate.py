#!/usr/bin/python
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_migrate
short_description: Bring one side of a guest's protection about
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - States a wish for this host's side of a guest. It looks at what is there and takes the steps that are missing, so it can be run again after anything.
  - A running guest is protected without being stopped. Disks and memory are copied while it runs, and it pauses only for the switchover.
  - Every migration state is taken from QEMU's events and held against the legal order. A migration that completes instead of
    entering COLO (QEMU 10.0.0 to 10.0.6 and 10.1.0 to 10.1.2) is recognised and rolled back.
  - A guest that is in lock step already gets the tuning of its definition without losing its protection, as far as QEMU takes it.
  - Every wait has a deadline. A run that fails takes back what it has built, and the guest goes on alone.
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
  role:
    description:
      - The side this host is to take.
    type: str
    choices: [primary, secondary]
    required: true
  state:
    description:
      - With O(role=primary), V(ready) means that the guest runs here, protected or not, with nothing half-built.
        V(protected) means that it runs here in lock step with its standby, proved by checkpoints. V(absent) means that it runs here alone.
      - With O(role=secondary), V(ready) means that a standby waits here, or follows already.
        V(protected) means that it follows, proved by checkpoints; it changes nothing and waits. V(absent) means that no standby is here.
    type: str
    choices: [protected, ready, absent]
    required: true
  generation:
    description:
      - Generation of each guest's serving copy, by name of the guest. Needed to make a standby (O(role=secondary) and O(state=ready)).
      - The copy here is overwritten by it. A copy that may be newer is never overwritten.
      - With O(role=primary) and O(state=ready), the generation that this host's copy had when O(fenced_by) was found. A stopped guest is not
        started from a copy of another one. Without it the present copy is started.
    type: dict
    default: {}
  fenced_by:
    description:
      - The evidence that the other host does not run the guest, by name of the guest. Needed to start a stopped guest,
        and kept in the generation record.
      - With O(role=secondary) and O(state=absent), the reason why a copy in lock step is not needed any more.
        Needed to stop one.
    type: dict
    default: {}
  accept_older:
    description:
      - Names of guests that may be started, with O(role=primary) and O(state=ready), from the copy of a standby, although the other host may
        have served after it. Only for one whose copy is lost for ever.
    type: list
    elements: str
    default: []
  timeout_s:
    description:
      - Deadline in seconds of each of the two long waits, the copy of the disks and the copy of the memory.
      - A copy of the disks that takes longer goes on by itself, and the next call goes on with it. A copy of the memory that does is taken back.
    type: float
    default: 3600
  patience_s:
    description:
      - With O(role=primary) and O(state=protected), how long to wait for the copy of the disks, in seconds, before the module returns with
        RV(guests.finished=false). The copy goes on by itself, and the next call goes on with it. With V(0) it waits to the end.
    type: float
    default: 0
seealso:
  - module: lockstep.colo.colo_failover
  - module: lockstep.colo.colo_info
notes:
  - A started guest begins a new generation. The unit only starts with a permit that this module writes and the start consumes.
"""

EXAMPLES = r"""
- name: A standby waits on this host
  lockstep.colo.colo_migrate:
    name: [web1]
    role: secondary
    state: ready
    generation:
      web1: 3

- name: The guest on this host is protected
  lockstep.colo.colo_migrate:
    name: [web1]
    role: primary
    state: protected
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
      sample: {"before": "alone", "after": "primary"}
    actions:
      description: What was done, or in check mode would be.
      returned: success
      type: list
      elements: str
    timings:
      description: C(observe_ms), C(total_ms), C(steps_ms) by step, and C(guest_pause_ms), the longest pause of the guest by QEMU's clock.
      returned: success
      type: dict
    generation:
      description: The generation of this host's copy afterwards, or null where there is no record.
      returned: success
      type: int
      sample: 3
    transitions:
      description: The migration states QEMU reported while the module worked.
      returned: success
      type: list
      elements: str
      sample: [setup, active, pre-switchover, device, colo]
    tuning:
      description:
        - The settings of a guest in lock step that were changed, C(before) and C(after), as QEMU says. In check mode, after is what would be.
        - A migration parameter has its own name, a property is named with its object in front.
      returned: when a setting was changed
      type: dict
      sample: {"before": {"comp0.compare_timeout": 3000}, "after": {"comp0.compare_timeout": 1000}}
    finished:
      description: Whether the wish is fulfilled. It is V(false) when the copy of the disks goes on longer than O(patience_s).
      returned: success
      type: bool
    progress:
      description: By job, C(done_bytes) and C(of_bytes) of the copy of each disk that goes on.
      returned: when RV(guests.finished=false)
      type: dict
      sample: {"resync0": {"done_bytes": 1073741824, "of_bytes": 21474836480}}
    error:
      description: C(error_code), C(message) and C(details), with the failed step and how rolling back went.
      returned: on error
      type: dict
error_code:
  description: Code of the first error, such as V(fence_missing), V(newer_copy_here), V(colo_not_entered), V(migration_failed) or V(deadline_passed).
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
            "role": {"type": "str", "choices": ["primary", "secondary"], "required": True},
            "state": {"type": "str", "choices": ["protected", "ready", "absent"], "required": True},
            "generation": {"type": "dict", "default": {}},
            "fenced_by": {"type": "dict", "default": {}},
            "accept_older": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "float", "default": 3600.0},
            "patience_s": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    _guests.finish(module, _guests.each(module.params["name"], lambda name: _migrate.migrate(name, module)))


if __name__ == "__main__":
    main()
