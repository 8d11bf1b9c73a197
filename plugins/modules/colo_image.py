#!/usr/bin/python

# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module: the parent images of disks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_image
short_description: Make disk images once, and never overwrite them
version_added: 0.1.0
author:
  - lockstep.colo maintainers (@lockstep-colo)
description:
  - Makes qcow2 images, blank or from a source image, unless they are there already.
  - An image that is there is never changed.
    When its virtual size is not the one asked for, the module fails and leaves it.
  - The image is made beside its path and gets its name when it is complete and on the disk.
    What a killed run leaves is removed by the next one.
  - Formats are told, never guessed. An image that names a backing file or an external data file is refused.
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
  images:
    description:
      - The images. They are made in this order, all with the same owner and mode; the first error ends it.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description:
          - Where the image is. Its directory must exist (in check mode it may be missing).
        type: path
        required: true
      size:
        description:
          - Virtual size, in bytes or with one of the units K, M, G and T (powers of 1024). A multiple of 512 bytes.
          - A source that is smaller is enlarged to it.
        type: str
        required: true
      source:
        description:
          - An image file on the host to begin with. Without it the disk is blank.
        type: path
      source_format:
        description:
          - Format of the source.
        type: str
        choices: [qcow2, raw]
        default: qcow2
      checksum:
        description:
          - The SHA-256 of the source, as C(sha256:) and 64 hexadecimal digits. It is verified before the source is used.
        type: str
  owner:
    description:
      - The user that the images belong to. Without it that is not changed.
    type: str
  group:
    description:
      - The group that the images belong to. Without it that is not changed.
    type: str
  mode:
    description:
      - Their permissions, as octal digits. Without it they are not changed, and V(0600) of one that is made.
    type: str
  state:
    description:
      - The images are there. There is no other state, as nothing here destroys data.
    type: str
    choices: [present]
    default: present
seealso:
  - module: lockstep.colo.colo_host_info
"""

EXAMPLES = r"""
- name: A blank disk, and one from a cloud image
  lockstep.colo.colo_image:
    images:
      - path: /var/lib/lockstep-colo/web1/data.qcow2
        size: 20G
      - path: /var/lib/lockstep-colo/web1/root.qcow2
        size: 20G
        source: /srv/images/debian-13.qcow2
        source_format: qcow2
        checksum: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    owner: colo
    group: colo
    mode: "0600"
"""

RETURN = r"""
images:
  description: The images as they are after the module ran.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Where it is.
      returned: success
      type: str
      sample: /var/lib/lockstep-colo/web1/root.qcow2
    format:
      description: Always V(qcow2).
      returned: success
      type: str
      sample: qcow2
    virtual_size:
      description: Virtual size in bytes.
      returned: success
      type: int
      sample: 21474836480
    made:
      description: Whether this run made it (in check mode, would make it).
      returned: success
      type: bool
      sample: false
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import _files, _guest, _image, _nofollow
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._module import run_module


def ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Make the images that are not there, and see to the owner and mode of all."""
    wishes = [
        _image.Wish(
            path=image["path"],
            size_bytes=_guest.size_bytes(f"images[{number}].size", image["size"]),
            source=image["source"],
            source_format=image["source_format"],
            checksum=image["checksum"],
        )
        for number, image in enumerate(module.params["images"])
    ]

    mode = None if module.params["mode"] is None else _files.mode(module.params["mode"])

    def own(descriptor: int) -> bool:
        return _files.own(descriptor, module.params["owner"], module.params["group"], mode, module.check_mode)

    def own_existing(path: str) -> bool:
        try:
            with open(path, "rb", opener=_nofollow.open_regular) as file:
                return own(file.fileno())
        except OSError as exc:
            raise ColoError(
                "image_unreadable", f"{path} cannot be given away ({exc.strerror}): check the file"
            ) from exc

    changed = False
    images: list[dict[str, t.Any]] = []
    for wish in wishes:
        made = _image.ensure_parent(module.run_command, wish, module.check_mode, own)
        owned = False if made and module.check_mode else own_existing(wish.path)
        changed = changed or made or owned
        images.append({"path": wish.path, "format": "qcow2", "virtual_size": wish.size_bytes, "made": made})
    return {"changed": changed, "images": images, "diff": [_diff(image) for image in images]}


def _diff(image: dict[str, t.Any]) -> dict[str, t.Any]:
    return {"before": {"path": image["path"], "state": "absent"} if image["made"] else image, "after": image}


def main() -> None:
    """Entry point."""
    image = {
        "path": {"type": "path", "required": True},
        "size": {"type": "str", "required": True},
        "source": {"type": "path"},
        "source_format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
        "checksum": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "dict", "required": True, "options": image},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "str"},
            "state": {"type": "str", "choices": ["present"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run_module(module, ensure)


if __name__ == "__main__":
    main()
