# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's key: one secret for each guest, the same on both hosts, from which all else is derived.

Pure. The keepers authenticate their heartbeat with it (``_heartbeat``), the two QEMUs their connections (TLS-PSK).
"""

from __future__ import annotations

import hashlib
import hmac
import re

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

_HEX_256 = re.compile(r"[0-9a-f]{64}\Z")

# The name that QEMU's TLS client gives when it is told none.
PSK_USER = "qemu"


def read_key(text: str) -> bytes:
    """Return the key from its file form, 64 hex digits and a newline (``key_unusable``)."""
    digits = text.strip().lower()
    if not _HEX_256.match(digits):
        # The value itself must not reach a log.
        raise ColoError(
            "key_unusable",
            "The guest's key is not 64 hex digits. Run site.yml: role guest writes the same key on both hosts.",
        )
    return bytes.fromhex(digits)


def derive(key: bytes, *parts: str) -> str:
    """HMAC-SHA256 of the parts, in hex. The first part names the purpose: two purposes never share a value."""
    # Each part with its length: no two different lists of parts give the same bytes.
    message = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (part.encode() for part in parts))
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def fingerprint(key: bytes) -> str:
    """What may be shown: equal for equal keys, and of no use to somebody who lacks the key."""
    return derive(key, "lockstep.colo key fingerprint 1")[:16]


def psk_line(key: bytes, guest: str) -> str:
    """The file that QEMU reads (``keys.psk``)."""
    return f"{PSK_USER}:{derive(key, 'lockstep.colo link psk 1', guest)}\n"
