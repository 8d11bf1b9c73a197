#!/usr/bin/python

# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_fence
short_description: Make sure that a host no longer runs its guests
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Tries the methods in their order until one proves that the host is fenced, and returns the evidence for M(lockstep.colo.colo_failover).
  - Each method ends by its own deadline. When none proves it, the module fails and tells what became of each.
  - Fencing a host that is off already is well, and proves the same.
  - It runs on the host that is left, on the controller, or for the method V(ssh) on the host that is to be fenced.
extends_documentation_fragment:
  - lockstep.colo.attributes
  - lockstep.colo.attributes.actiongroup_colo
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: An agent has to be asked each time whether the power is off, and a command to be run.
options:
  host:
    description:
      - Name of the host that is to be fenced, for messages and for the evidence.
    type: str
    required: true
  place:
    description:
      - Name of the host that this runs on, for messages and for the evidence.
    type: str
    required: true
  state:
    description:
      - V(off) fences the host.
      - V(ready) only sees that the programs of all methods are there, and returns what is wrong as RV(problems).
    type: str
    choices: ["off", ready]
    default: "off"
  guests:
    description:
      - Names of the guests whose QEMUs the method V(ssh) ends.
    type: list
    elements: str
    default: []
  run_on:
    description:
      - Only see to the methods that are run there. All when it is not given.
    type: str
    choices: [survivor, controller]
  variable:
    description:
      - Name of the variable that holds O(methods), for messages.
    type: str
    default: colo_fence
  methods:
    description:
      - The ways to fence the host.
    type: list
    elements: dict
    required: true
    suboptions:
      method:
        description:
          - V(agent) runs an agent of the fence-agents packages, first with the action off, then with the action status, which has to say off.
          - V(command) runs a command that has to exit with 0 when, and only when, the host is fenced.
          - V(ssh) kills the QEMUs of O(guests) on this host, and sees that no process of them is left.
          - V(manual) is a person's word. Nothing is run for it.
        type: str
        choices: [agent, command, ssh, manual]
        required: true
      agent:
        description:
          - Name of the agent.
        type: str
      parameters:
        description:
          - The agent's parameters. They are given to it on its standard input, and appear in no command line, log, or result.
        type: dict
      argv:
        description:
          - The command, as a list that begins with the absolute path of a program. It is seen by everybody on the machine, so it is no place for secrets.
        type: list
        elements: str
      run_on:
        description:
          - Whether the host that is left (V(survivor), the default) or the controller runs it. The module runs it where the task runs.
        type: str
        choices: [survivor, controller]
      timeout_s:
        description:
          - How long the method may take, in seconds from 1 to 600. 60 when it is not given.
        type: float
seealso:
  - module: lockstep.colo.colo_failover
"""

EXAMPLES = r"""
- name: Alpha is off
  lockstep.colo.colo_fence:
    host: alpha
    place: beta
    methods:
      - method: agent
        agent: fence_ipmilan
        parameters:
          ip: 192.0.2.201
          username: admin
          password: "{{ vault_alpha_bmc_password }}"
          lanplus: 1
          cipher: 3
  no_log: true
  register: fenced
"""

RETURN = r"""
evidence:
  description: What proves that the host is fenced, for O(lockstep.colo.colo_failover#module:fenced_by). In check mode, what would be tried.
  returned: when O(state=off), on success
  type: str
  sample: fence_ipmilan, run on beta, switched alpha off, and its status says off
methods:
  description: What became of each method that was tried, in order.
  returned: when O(state=off), but in check mode
  type: list
  elements: dict
  contains:
    method:
      description: The method.
      type: str
    title:
      description: The agent, the program, or the method.
      type: str
    "off":
      description: Whether it proved that the host is fenced.
      type: bool
    message:
      description: The evidence, or what went wrong. Without secrets.
      type: str
    error_code:
      description: V(fence_agent_missing), V(fence_timeout), V(fence_refused) or V(fence_not_off).
      type: str
    took_ms:
      description: How long it took.
      type: float
problems:
  description: What keeps methods from being used, each with C(error_code), C(variable), C(value) and C(line).
  returned: when O(state=ready)
  type: list
  elements: dict
error_code:
  description: V(fence_failed) or V(bad_input).
  returned: on failure
  type: str
details:
  description: What was seen when the error came up.
  returned: on failure
  type: dict
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _fence, _fencer
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._module import run_module


def fence(module: AnsibleModule) -> dict[str, t.Any]:
    """Fence the host, or see whether that could be done."""
    host = module.params["host"]
    given, module.params["methods"] = module.params["methods"], []
    # Ansible would cut the values of all parameters, a "1" among them, out of every word of the result. What cannot be
    # understood is told without values, and the options are not part of the result.
    module.no_log_values = set()
    chosen = _fence.methods(module.params["variable"], given)
    module.no_log_values = _fence.secrets(chosen)
    module.params["methods"] = [method.title for method in chosen]
    place = module.params["run_on"]
    chosen = [method for method in chosen if place is None or method.run_on == place]
    fencer = _fencer.Fencer(host, module.params["place"], module.params["guests"], module.get_bin_path)
    if module.params["state"] == "ready":
        problems = [
            {
                "error_code": error.error_code,
                "variable": error.details["variable"],
                "value": error.details["value"],
                "line": f"{error.error_code}: {error.message}",
            }
            for error in fencer.missing(chosen)
        ]
        return {"changed": False, "problems": problems}
    if module.check_mode:
        would = ", then ".join(method.title for method in chosen)
        return {"changed": True, "evidence": f"{would} would be asked to fence {host}", "diff": _diff(host)}
    evidence, results = fencer.fence(chosen)
    if evidence is None:
        told = "; ".join(f"{result['title']}: {result['error_code']}: {result['message']}" for result in results)
        raise ColoError("fence_failed", f"{host} is not fenced: {told or 'there is no method to try'}", methods=results)
    return {"changed": True, "evidence": evidence, "methods": results, "diff": _diff(host)}


def _diff(host: str) -> dict[str, str]:
    return {"before": f"{host}: may run\n", "after": f"{host}: fenced\n"}


def main() -> None:
    """Entry point."""
    method = {
        "method": {"type": "str", "choices": ["agent", "command", "ssh", "manual"], "required": True},
        "agent": {"type": "str"},
        "parameters": {"type": "dict", "no_log": True},
        "argv": {"type": "list", "elements": "str"},
        "run_on": {"type": "str", "choices": ["survivor", "controller"]},
        "timeout_s": {"type": "float"},
    }
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "place": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["off", "ready"], "default": "off"},
            "guests": {"type": "list", "elements": "str", "default": []},
            "run_on": {"type": "str", "choices": ["survivor", "controller"]},
            "variable": {"type": "str", "default": "colo_fence"},
            "methods": {"type": "list", "elements": "dict", "required": True, "options": method},
        },
        supports_check_mode=True,
    )
    run_module(module, fence)


if __name__ == "__main__":
    main()
