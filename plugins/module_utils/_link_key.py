# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy of a guest's key that QEMU reads (effect): derived, in memory (/run), for QEMU's user only.

A server reads it at each handshake, a client when its credentials are made: so a standby that waits takes a new key at once.
"""

from __future__ import annotations

import os

from ansible_collections.lockstep.colo.plugins.module_utils import _key, _nofollow
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._files import replace_file
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest


def _wanted(guest: Guest) -> str:
    try:
        with open(guest.key_file, encoding="ascii", errors="replace") as file:
            return _key.psk_line(_key.read_key(file.read(256)), guest.name)
    except OSError as exc:
        raise ColoError(
            "key_unusable", f"{guest.key_file} cannot be read ({exc.strerror}): run site.yml, which makes it"
        ) from exc


def is_current(guest: Guest) -> bool:
    """Whether QEMU would read the guest's present key; also where it needs none."""
    if not guest.tls:
        return True
    try:
        wanted = _wanted(guest)
        return _nofollow.read(guest.psk_file, 256) == wanted.encode()
    except (OSError, ValueError, ColoError):
        return False


def write(guest: Guest) -> None:
    """Let QEMU read the guest's present key (``key_unusable``)."""
    owner = os.stat(guest.paths.state)
    replace_file(guest.psk_file, _wanted(guest), owner.st_uid, owner.st_gid, 0o600)
