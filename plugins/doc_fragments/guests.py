# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of the modules that work on deployed guests."""

    DOCUMENTATION = r"""
options:
  name:
    description:
      - Names of the guests, keys of C(colo_guests).
      - Several guests are handled side by side, each on its own; one guest's error does not stop the others.
    type: list
    elements: str
    required: true
  config_dir:
    description:
      - Directory in which the role P(lockstep.colo.guest#role) has put the guests' definitions.
    type: path
    default: /etc/lockstep-colo
requirements:
  - qemu.qmp (on the host)
  - systemd (on the host)
"""
