# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open what lies in a directory that somebody else than root can write, and follow no link that was put there (effect).

A guest's directories belong to the user that its QEMU runs as. A QEMU that was broken into can replace what is in them at
any moment, also between a look and a step: so a directory is opened once, and what is in it is reached through that
descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import typing as t

_MAX_LINKS = 40  # as the kernel
_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_directory(path: str) -> int:
    """A descriptor of the directory at an absolute path (OSError).

    A link is followed where nobody but root, or who runs this, can have put it: /var/run, a state directory on another
    disk. Elsewhere it is refused with ELOOP, wherever on the path it is.
    """
    left = _parts(path)
    here, links = os.open("/", _WALK), 0
    try:
        while left:
            name = left.pop()
            try:
                there = os.open(name, _WALK, dir_fd=here)
            except NotADirectoryError:  # what the kernel says of a link, too
                links += 1
                target = _target(name, here, links)
                if target.startswith("/"):
                    os.close(here)
                    here = os.open("/", _WALK)
                left += _parts(target)
                continue
            os.close(here)
            here = there
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


@contextlib.contextmanager
def directory(path: str) -> t.Iterator[int]:
    """The same, closed at the end."""
    descriptor = open_directory(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part]


def _target(name: str, here: int, links: int) -> str:
    """Where the link ``name`` in the directory ``here`` leads."""
    if not stat.S_ISLNK(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    above = os.fstat(here)
    others = above.st_mode & stat.S_IWOTH or (above.st_mode & stat.S_IWGRP and above.st_gid != 0)
    if above.st_uid not in (0, os.geteuid()) or others:
        raise OSError(errno.ELOOP, f"'{name}' is a link, where not only root can make one; it was not followed")
    if links > _MAX_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return os.readlink(name, dir_fd=here)


def open_regular(path: str, flags: int, dir_fd: int | None = None) -> int:
    """A descriptor of the regular file at ``path`` (OSError): of no link, and a pipe is not waited for.

    The directory is trusted, or given by its descriptor.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


def read(path: str, limit: int) -> bytes:
    """All of a small regular file (OSError, also when it is longer than ``limit`` bytes)."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit} bytes")
    return raw
