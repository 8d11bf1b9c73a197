#!/usr/bin/python
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_failover
short_description: Let a guest go on alone on this host after its peer was lost
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - A secondary takes over and serves. A primary lets go of its standby and its network flows again.
  - Failed over means that the guest runs, its packets leave through its taps, and the filters of the lost protection are gone. All three are checked.
  - The generation record is written before the takeover can be seen outside.
  - A run that was killed half-way is finished by the next one.
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
      - V(alone) means that the guest serves on this host, unprotected.
      - V(released) means that this host has let go of a protected guest for its peer to take over. QEMU is killed, which
        loses nothing that a client has seen. It is refused unless the peer is heard as a good standby.
      - V(unblocked) means that QEMU does not wait for its peer. One that has not answered its keeper for the time of
        C(heartbeat_timeout_ms) lets go of the peer, out of band. It serves no more than it did; whether it may go on is for V(alone) to say.
    type: str
    choices: [alone, released, unblocked]
    default: alone
  fenced_by:
    description:
      - The evidence that the other host no longer runs the guest, by name of the guest.
        Required where a secondary takes over, and kept in the generation record.
      - Contradicted by a peer whose keeper is heard and whose QEMU lives, it is refused.
    type: dict
    default: {}
  await_release_s:
    description:
      - Wait up to this many seconds until the peer's keeper says that its QEMU has ended, and take that as the evidence.
      - For a planned move, started before the other host gets O(state=released). Zero does not wait.
    type: float
    default: 0
  accept_void:
    description:
      - Take over although protection is void (the guest rebooted in lock step, and the standby may have diverged).
    type: bool
    default: false
seealso:
  - module: lockstep.colo.colo_migrate
  - module: lockstep.colo.colo_info
"""

EXAMPLES = r"""
- name: The other host is off and confirmed to be
  lockstep.colo.colo_failover:
    name: [web1]
    fenced_by:
      web1: operator confirmed that alpha is off
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
      sample: {"before": "orphaned", "after": "alone"}
    actions:
      description: What was done, or in check mode would be.
      returned: success
      type: list
      elements: str
    timings:
      description: C(observe_ms), C(total_ms) and C(steps_ms) by step.
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
    error:
      description: C(error_code), C(message) and C(details), with the failed step.
      returned: on error
      type: dict
error_code:
  description: Code of the first error, such as V(fence_missing), V(peer_alive), V(not_protected), V(copy_not_startable) or V(protection_void).
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
            "state": {"type": "str", "choices": ["alone", "released", "unblocked"], "default": "alone"},
            "fenced_by": {"type": "dict", "default": {}},
            "await_release_s": {"type": "float", "default": 0.0},
            "accept_void": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    _guests.finish(module, _guests.each(module.params["name"], lambda name: _migrate.fail_over(name, module)))


if __name__ == "__main__":
    main()
