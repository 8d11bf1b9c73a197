#!/usr/bin/python

# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module: the guests' keys on one host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_keys
short_description: Make, write and compare the keys of guests
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Each guest has one key, the same on both its hosts. The connections between the two QEMUs and the heartbeat between the two
    keepers are authenticated with it.
  - All guests of a host are handled in one call. Keys are told apart by fingerprints, which are of no use to somebody who lacks the key.
  - A file that holds no key counts as a key that is not there.
extends_documentation_fragment:
  - lockstep.colo.attributes
  - lockstep.colo.attributes.actiongroup_colo
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - O(make) makes a new key each time.
options:
  name:
    description:
      - Guests whose keys are looked at, beside those of the other options.
    type: list
    elements: str
    default: []
  make:
    description:
      - Guests that get a new key.
    type: list
    elements: str
    default: []
  keys:
    description:
      - Keys to write, 64 hexadecimal digits each, by the name of the guest.
    type: dict
    default: {}
  read:
    description:
      - Guests whose keys are returned. Use it with C(no_log).
    type: list
    elements: str
    default: []
  config_dir:
    description:
      - Directory of the keys.
    type: path
    default: /etc/lockstep-colo
"""

EXAMPLES = r"""
- name: See which keys are here
  lockstep.colo.colo_keys:
    name: [web1, web2]
  register: keys

- name: A new key
  lockstep.colo.colo_keys:
    make: [web1]
"""

RETURN = r"""
fingerprints:
  description: Fingerprint of each guest's key, or null where there is none.
  returned: success
  type: dict
  sample: {web1: 5d41402abc4b2a76}
behind:
  description:
    - Guests whose keeper runs with another key than the one that is there now. It has to be restarted.
  returned: success
  type: list
  elements: str
  sample: []
read:
  description: The keys of the guests of O(read) themselves.
  returned: when O(read) is given
  type: dict
error_code:
  description: Code of the error, V(bad_input), V(key_unusable) or V(file_not_written).
  returned: on failure
  type: str
details:
  description: What was seen when the error came up.
  returned: on failure
  type: dict
"""

import os
import secrets
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _files, _guest, _key
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._module import run_module

CREDENTIALS = "/run/credentials"  # where systemd keeps what a unit was started with


def _path(config_dir: str, name: str) -> str:
    return f"{config_dir}/{_guest.guest_name('name', name)}.key"


def _read(path: str) -> bytes | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return _key.read_key(file.read(256))
    except (OSError, ColoError):
        return None


def _behind(name: str, key: bytes | None) -> bool:
    """Whether a keeper runs, with another key: whoever wrote this one was killed before it restarted the keeper."""
    copy = f"{CREDENTIALS}/colo-keeper@{name}.service/key"
    return os.path.exists(copy) and _read(copy) != key


def _write(path: str, key: bytes) -> None:
    try:
        _files.replace_file(path, key.hex() + "\n", os.geteuid(), os.getegid(), 0o600)
    except OSError as exc:
        raise ColoError("file_not_written", f"{path} cannot be written ({exc.strerror})", path=path) from exc


def ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Make and write what differs, then tell what is there."""
    params = module.params
    wanted: dict[str, bytes] = {}
    for name, text in params["keys"].items():
        try:
            wanted[name] = _key.read_key(str(text))
        except ColoError as exc:
            # the value itself must not reach a log
            raise ColoError(
                exc.error_code, f"colo_guest_keys.{name}: this is no key; give 64 hexadecimal digits"
            ) from None
    wanted.update({name: secrets.token_bytes(32) for name in params["make"]})
    paths = {name: _path(params["config_dir"], name) for name in [*params["name"], *wanted, *params["read"]]}
    there = {name: _read(path) for name, path in paths.items()}
    changed = [name for name, key in wanted.items() if there[name] != key]
    for name in changed:
        if not module.check_mode:
            _write(paths[name], wanted[name])
    there.update(wanted)
    result: dict[str, t.Any] = {
        "changed": bool(changed),
        "fingerprints": {name: None if key is None else _key.fingerprint(key) for name, key in there.items()},
        "behind": sorted(name for name, key in there.items() if _behind(name, key)),
    }
    if params["read"]:
        result["read"] = {}
        for name in params["read"]:
            key = there[name]
            if key is None:
                raise ColoError("key_unusable", f"{paths[name]} holds no key: run site.yml on both hosts of the guest")
            result["read"][name] = key.hex()
    return result


def main() -> None:
    """Entry point."""
    names: dict[str, t.Any] = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "name": names,
            "make": names,
            "keys": {"type": "dict", "default": {}, "no_log": True},
            "read": names,
            "config_dir": {"type": "path", "default": "/etc/lockstep-colo"},
        },
        supports_check_mode=True,
        no_log=True,
    )
    run_module(module, ensure)


if __name__ == "__main__":
    main()
