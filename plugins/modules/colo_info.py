#!/usr/bin/python
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_info
short_description: Look at fault-tolerant guests on one host
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Tells what this host's QEMU is for each guest (its standing), the generation of its copy, and the parts a verdict is made of.
  - Changes nothing. A guest whose QEMU does not answer is reported as such within the monitor's deadline, or C(heartbeat_timeout_ms) where that
    is longer.
  - The verdict on a guest takes both hosts' answers. See the filter P(lockstep.colo.verdicts#filter).
extends_documentation_fragment:
  - lockstep.colo.guests
  - lockstep.colo.attributes
  - lockstep.colo.attributes.info_module
  - lockstep.colo.attributes.actiongroup_colo
options:
  name:
    description:
      - Names of the guests, keys of C(colo_guests). All guests deployed on the host when not given.
    required: false
  sample_s:
    description:
      - Watch checkpoints for this many seconds and return their number and pauses.
      - Zero does not watch. The keeper's own figures since the guest's start are returned in any case.
    type: float
    default: 0
  listen:
    description:
      - Look only when the other host's keeper has been silent for two beats, or is known to go on beating.
        A look right after that host's death would take its last heartbeat for a sign of life.
    type: bool
    default: false
seealso:
  - module: lockstep.colo.colo_migrate
  - module: lockstep.colo.colo_failover
"""

EXAMPLES = r"""
- name: Look at all guests of this host
  lockstep.colo.colo_info:
  register: colo

- name: Watch the checkpoints of one guest for five seconds
  lockstep.colo.colo_info:
    name: [web1]
    sample_s: 5
"""

RETURN = r"""
guests:
  description: One entry per guest. A named guest that is not deployed here has the standing V(absent).
  returned: always
  type: dict
  contains:
    standing:
      description: What this host's QEMU is for the guest.
      returned: success
      type: str
      sample: primary
    host:
      description: This host's name in the definition.
      returned: success
      type: str
    record:
      description: The generation record of this host's copy, or null.
      returned: success
      type: dict
    proven:
      description: Whether the keeper saw a checkpoint within three delays and a second, and hears the peer.
      returned: success
      type: bool
    peer_heard:
      description: Whether the keeper hears the other host's right now, and that one says that its QEMU lives.
      returned: success
      type: bool
    busy:
      description: Whether another program holds the monitor of a QEMU that answers its keeper.
      returned: when the guest is deployed
      type: bool
    void_reason:
      description: Why a failover to this copy is not to be trusted, or null.
      returned: success
      type: str
    disk_error:
      description: What QEMU said when a write of the serving side failed on this host's own disk in this session, or null.
      returned: success
      type: str
    changes:
      description: What of the definition the running guest does not have, and gets by a restart only; one line each.
      returned: when its QEMU runs
      type: list
      elements: str
    unit:
      description: State of the guest's systemd unit, its main process and the time since which it is active.
      returned: success
      type: dict
    qemu:
      description:
        - What QEMU answered. Version, run state, migration, COLO mode, block nodes, jobs with progress in bytes, filters, links,
          and the C(settings) that can be tuned.
        - C(encrypted) says whether its connections to the other host are. C(incoming) is the address and port at which a standby takes the guest, by
          QEMU's own word.
        - Null when there is no process or no answer. RV(guests.trouble) then says why.
      returned: success
      type: dict
    trouble:
      description: Why a running QEMU could not be asked, or null.
      returned: success
      type: str
    settled:
      description: Whether this side of a guest in lock step has all that M(lockstep.colo.colo_migrate) would give it.
      returned: when the guest is deployed
      type: bool
    leftovers:
      description: Whether a half-built or half-ended protection has left objects in QEMU.
      returned: success
      type: bool
    checkpoints:
      description:
        - The keeper's figures since the last entry into COLO. C(count), C(last_age_ms), C(last_pause_ms), C(p50_pause_ms), C(p99_pause_ms), C(rate_hz).
      returned: success
      type: dict
    waiting:
      description:
        - What the definition wants that a running protection cannot be given, as old and new value. The guest gets it when it is protected the next time.
      returned: success
      type: list
      elements: str
      sample: ["multifd-channels: 0 -> 2"]
    resync:
      description:
        - By job, C(done_bytes), C(of_bytes), C(bytes_per_s) and C(left_s) of the copy of each disk to a standby, as the keeper sees it, also while
          another module waits for it. There is no time left (null) while nothing moves.
      returned: success
      type: dict
      sample: {"resync0": {"done_bytes": 33554432, "of_bytes": 67108864, "bytes_per_s": 8388608, "left_s": 4.0}}
    sample:
      description:
        - What was seen within O(sample_s). C(seconds), the number (C(count)) and pauses (C(pauses_ms)) of checkpoints, and the
          packets that the guest sent through each tap (C(packets)).
      returned: when O(sample_s) is above zero and QEMU answers
      type: dict
    keeper:
      description: The keeper's state without what is told elsewhere, or null when it does not answer.
      returned: success
      type: dict
    ports:
      description: The ports of this guest on the standby's link address.
      returned: success
      type: dict
    taps:
      description: The tap device of each network card, by the card's name.
      returned: when the guest is deployed
      type: dict
      sample: {"lan": "web1-lan"}
    error:
      description:
        - Why this guest could not be looked at. C(error_code), C(message), C(details).
        - The module does not fail then, so that the other guests are told.
        - Codes are V(bad_input), V(definition_unreadable), V(record_unreadable) and V(systemd_unreachable).
      returned: when the guest could not be looked at
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _guests, _report


def main() -> None:
    """Look, tell, leave."""
    module = AnsibleModule(
        argument_spec={
            **_guests.ARGUMENTS,
            "name": {"type": "list", "elements": "str"},
            "sample_s": {"type": "float", "default": 0.0},
            "listen": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    names = module.params["name"]
    if names is None:
        names = _guests.deployed(module.params["config_dir"])
    _guests.tell(module, _guests.each(names, lambda name: _report.look(name, module)))


if __name__ == "__main__":
    main()
