#!/usr/bin/python

# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module: what a host and its QEMU can do for protected guests."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_host_info
short_description: Ask a host and its QEMU whether they can protect guests
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Starts the installed QEMU without a machine, asks it what it can do, and lets it quit.
    Versions are compared only where QEMU cannot be asked.
  - Compares what the host has with what its guests need, before anything is changed.
    Of an image that is still to be made, the source is looked at, too (the checksum of a file, whether a location answers).
  - Problems are returned, not raised, so that a caller can show all of them at once.
extends_documentation_fragment:
  - lockstep.colo.attributes
  - lockstep.colo.attributes.info_module
  - lockstep.colo.attributes.actiongroup_colo
options:
  qemu_binary:
    description:
      - The QEMU to ask.
    type: path
    default: /usr/bin/qemu-system-x86_64
  qemu:
    description:
      - Whether problems with QEMU itself are looked for.
    type: str
    default: require
    choices:
      require: A QEMU that is missing or unfit is a problem.
      if_present: Only a QEMU that is there and unfit is a problem.
      ignore: QEMU is not a question, for example because it is about to be installed or upgraded.
  accept_untested:
    description:
      - Accept a QEMU release that has everything COLO needs but on which COLO was never tried.
    type: bool
    default: false
  allow_restart:
    description:
      - Whether a definition may differ from what its running guest was started with, because the guest will be restarted.
    type: bool
    default: false
  definitions:
    description:
      - Definitions of the guests of this host, as the filter P(lockstep.colo.definitions#filter) makes them.
      - Without any, only QEMU is asked.
    type: list
    elements: dict
    default: []
  user:
    description:
      - The user that guests run as, or will.
    type: str
    default: colo
  monitor_group:
    description:
      - A group that the host has to have.
    type: str
    default: ""
  bridges:
    description:
      - Bridges that are about to be made, by name, so that they may be missing.
        Each may have a list C(ports) of interfaces that are about to be joined to it.
    type: dict
    default: {}
  sources:
    description:
      - Whether the sources of images that are still to be made are looked at, too. The checksum of a large one takes its time.
    type: bool
    default: true
seealso:
  - module: lockstep.colo.colo_info
"""

EXAMPLES = r"""
- name: Ask the host
  lockstep.colo.colo_host_info:
    definitions: "{{ colo_definitions }}"
  register: answer

- name: Refuse a host that cannot take its guests
  ansible.builtin.assert:
    that: answer.problems | length == 0
    fail_msg: "{{ answer.problems | map(attribute='line') | join('; ') }}"
"""

RETURN = r"""
host:
  description: What was seen.
  returned: success
  type: dict
  contains:
    qemu:
      description: What the installed QEMU can do, or V(none) when it is not installed.
      returned: success
      type: dict
      contains:
        version:
          description: Version of the binary.
          returned: success
          type: str
          sample: 11.1.3
        package:
          description: The distribution's package version, as QEMU tells it.
          returned: success
          type: str
          sample: Debian 1:11.1.3+ds-1~bpo13+1
        missing:
          description: What COLO needs and this build does not have.
          returned: success
          type: list
          elements: str
          sample: []
        accelerators:
          description: Accelerators it was built with.
          returned: success
          type: list
          elements: str
          sample: [kvm, tcg]
        machines:
          description: Machines a guest can have.
          returned: success
          type: list
          elements: str
          sample: [pc, q35]
        return_path:
          description: Whether C(x-colo) requires the migration capability C(return-path), or refuses it.
          returned: success
          type: str
          sample: requires
        reconnect:
          description: The name of the option that makes a socket reconnect, or V(none) when there is none.
          returned: success
          type: str
          sample: reconnect-ms
        device_state:
          description: Whether a migration passes through the state C(device).
          returned: success
          type: bool
          sample: true
        multifd:
          description: Whether migration over several connections is there.
          returned: success
          type: bool
          sample: true
        tls_psk:
          description: Whether it can make TLS connections with a shared key.
          returned: success
          type: bool
          sample: true
    machine_id:
      description: What tells the machine from every other one (C(/etc/machine-id)). Empty where it has none.
      returned: success
      type: str
      sample: 4f0c3a1b2d5e46788d9a0b1c2d3e4f50
    processor:
      description: The kind of the host's processor; the same words on two hosts of one kind.
      returned: success
      type: str
      sample: vendor_id AuthenticAMD, cpu family 25, model 1
    user:
      description: The user of O(user), or V(none) where there is none.
      returned: success
      type: dict
      contains:
        group:
          description: Its own group.
          returned: success
          type: str
          sample: colo
        groups:
          description: The other groups that it is in.
          returned: success
          type: list
          elements: str
          sample: [kvm]
        home:
          description: Its home directory.
          returned: success
          type: str
          sample: /var/lib/lockstep-colo
        shell:
          description: Its shell.
          returned: success
          type: str
          sample: /usr/sbin/nologin
    kvm_group:
      description: Whether there is a group that may use KVM.
      returned: success
      type: bool
      sample: true
    host_cpu_guests:
      description: Those of O(definitions) whose processor is the host's, so that both hosts need the same kind.
      returned: success
      type: list
      elements: str
      sample: [web1]
    memory_available_mib:
      description: Memory that is available, in MiB.
      returned: when O(definitions) are given
      type: int
      sample: 7800
    memory_needed_mib:
      description: Memory the guests of this host still need, in MiB; a standby needs twice its guest's.
      returned: when O(definitions) are given
      type: int
      sample: 640
problems:
  description: Everything that keeps this host from protecting its guests; empty when nothing does.
  returned: success
  type: list
  elements: dict
  contains:
    error_code:
      description: The kind of the problem, to branch on.
      returned: success
      type: str
      sample: bridge_missing
    variable:
      description: The variable that says what cannot be had.
      returned: success
      type: str
      sample: colo_guests.web1.nics[0].bridge
    value:
      description: Its value.
      returned: success
      type: raw
      sample: br7
    message:
      description: What is wrong, and what helps.
      returned: success
      type: str
      sample: "this host has no bridge br7: make it, declare it in colo_bridges, or correct the name"
    line:
      description: Code, variable and message in one line.
      returned: success
      type: str
      sample: "bridge_missing: colo_guests.web1.nics[0].bridge: this host has no bridge br7: make it"
changes:
  description: What of O(definitions) the running guests do not have, and get by a restart only; one line each.
  returned: success
  type: list
  elements: str
  sample: ["colo_guests.web1.memory_mib: 2048 -> 4096"]
"""

import functools
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url

from ansible_collections.lockstep.colo.plugins.module_utils import _features, _guest, _host, _preflight
from ansible_collections.lockstep.colo.plugins.module_utils._module import run_module

LOCATION_DEADLINE_S = 20
OK = 200


def ask(module: AnsibleModule, location: str) -> str | None:
    """Why a location does not give its file; ``None`` when it does.

    Asked as the download asks, and given up when the answer begins: there are servers that do not take HEAD.
    """
    answer, told = fetch_url(module, location, timeout=LOCATION_DEADLINE_S)
    if answer is not None:
        answer.close()
    return None if told["status"] == OK else str(told["msg"])


def examine(module: AnsibleModule) -> dict[str, t.Any]:
    """Ask the host, and compare."""
    params = module.params
    definitions: list[dict[str, t.Any]] = params["definitions"]
    tools = _host.Tools(run=module.run_command, find=module.get_bin_path, ask=functools.partial(ask, module))
    found = _host.probe(tools, params["qemu_binary"])
    host: dict[str, t.Any] = {
        "qemu": None if found is None else found.as_dict(),
        "machine_id": _host.machine_id(tools),
        "processor": _host.processor(tools),
        "user": _host.account(params["user"]),
        "kvm_group": _host.has_group("kvm"),
        "host_cpu_guests": [each["name"] for each in definitions if _features.takes_host_cpu(each)],
    }
    problems: list[_features.Problem] = []
    changes: list[_guest.Change] = []
    if params["qemu"] == "require" or (params["qemu"] == "if_present" and found is not None):
        for definition in definitions:
            problems += _features.refusals(found, definition, params["accept_untested"])
    if _host.is_root(params["user"]):
        problems.append(_preflight.user_is_root(params["user"]))
    if params["monitor_group"] and not _host.has_group(params["monitor_group"]):
        problems.append(_preflight.no_group(params["monitor_group"]))
    if definitions:
        state = _host.look(tools, definitions, sources=params["sources"])
        problems += _preflight.problems(state, definitions, params["bridges"])
        changes = _preflight.changes(state, definitions)
        if not params["allow_restart"]:
            problems += _preflight.change_problems(changes)
        host["memory_available_mib"] = _preflight.mib(state.memory_available_bytes)
        host["memory_needed_mib"] = _preflight.mib(_preflight.needed_memory_of_all(state, definitions))
    return {
        "changed": False,
        "host": host,
        "problems": [problem.as_dict() for problem in _preflight.once(problems)],
        "changes": [str(change) for change in changes],
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "qemu_binary": {"type": "path", "default": "/usr/bin/qemu-system-x86_64"},
            "qemu": {"type": "str", "choices": ["require", "if_present", "ignore"], "default": "require"},
            "accept_untested": {"type": "bool", "default": False},
            "allow_restart": {"type": "bool", "default": False},
            "definitions": {"type": "list", "elements": "dict", "default": []},
            "user": {"type": "str", "default": "colo"},
            "monitor_group": {"type": "str", "default": ""},
            "bridges": {"type": "dict", "default": {}},
            "sources": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    run_module(module, examine)


if __name__ == "__main__":
    main()
