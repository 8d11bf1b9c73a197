# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens behind a unix socket (effect).

A guest's sockets are in a directory that its QEMU can write: one that was broken into can put a link there that leads to the
monitor of another guest. The kernel tells which process is connected to, and in which of systemd's units it is.
"""

from __future__ import annotations

import os
import pathlib
import socket
import struct

from ansible_collections.lockstep.colo.plugins.module_utils._errors import QmpError

PROC = "/proc"


def pid_of(channel: socket.socket) -> int:
    """The process that listens where ``channel`` is connected to."""
    return int(struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def check(channel: socket.socket, path: str, unit: str) -> None:
    """Refuse a listener that is no process of ``unit`` (``socket_foreign``; ConnectionRefusedError: it has ended).

    A process cannot leave its unit's control group, nor give it another name.
    """
    pid = pid_of(channel)
    try:
        groups = pathlib.Path(PROC, str(pid), "cgroup").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ConnectionRefusedError(f"process {pid} has ended") from None
    # hierarchy:controllers:path; the one of systemd is the only one, or one of several
    if not any(unit in line.split(":", 2)[-1].split("/") for line in groups.splitlines()):
        raise QmpError(
            "socket_foreign",
            f"{path} leads to process {pid}, which is not of {unit}: nothing was sent to it. Nothing of ours makes a link or a socket there, so "
            f"somebody may have broken out of the guest: see 'ls -l {os.path.dirname(path)}' and that process, and stop {unit}",
            path=path,
            pid=pid,
            unit=unit,
        )
