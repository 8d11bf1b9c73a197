# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove named files, in their order, and directories that are empty then; what others have put there stays."""

from __future__ import annotations

import dataclasses
import errno
import glob
import os
import stat
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _nofollow
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError

#: Made by mkfs in a directory that is a file system of its own; nobody's data.
_OF_MKFS = "lost+found"
#: Nothing of ours is there: no directory, or behind a link that somebody else than root may have put there.
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclasses.dataclass(frozen=True)
class Removal:
    """What was (or in check mode would be) removed, directories with a slash at the end; and the directories that stay, by
    path, with what else is in them.
    """

    removed: list[str]
    left: dict[str, list[str]]


def remove(patterns: t.Sequence[str], check_mode: bool) -> Removal:
    """Remove what the patterns name; one that ends in a slash means a directory, and that one only when it is empty.

    In the order of the patterns, and each durably before the next: a run that is killed, or a power cut, leaves the
    first ones gone and the last ones there.
    """
    for pattern in patterns:
        _check(pattern)
    removed: list[str] = []
    left: dict[str, list[str]] = {}
    for pattern in patterns:
        place, name = os.path.split(pattern.removesuffix("/"))
        try:
            above = _nofollow.open_directory(place)
        except OSError as exc:
            if exc.errno in _NOTHING:
                continue
            raise _not_removed(pattern, exc) from exc
        try:
            for found in sorted(glob.glob(name, dir_fd=above, include_hidden=True)):
                path = os.path.join(place, found)
                if (f"{path}/" if pattern.endswith("/") else path) in removed:
                    continue  # check mode has only said so
                if pattern.endswith("/"):
                    _directory(above, path, removed, left, check_mode)
                elif not _is_directory(above, path):
                    _take(os.unlink, above, path, check_mode)
                    removed.append(path)
        finally:
            os.close(above)
    return Removal(removed, left)


def _check(pattern: str) -> None:
    """A slip in a variable must not become a pattern for half of the host."""
    parts = pattern.removesuffix("/").split("/")[1:]
    if (
        not pattern.startswith("/")
        or len(parts) < 2
        or (parts[-1] == "*" and len(parts) == 2)
        or not {"", ".", ".."}.isdisjoint(parts)
        or any(glob.has_magic(part) for part in parts[:-1])
    ):
        raise InputError(
            "path",
            pattern,
            "give absolute paths, without '..', of what lies below a directory such as /etc; only the last part may be a pattern",
        )


def _directory(above: int, path: str, removed: list[str], left: dict[str, list[str]], check_mode: bool) -> None:
    gone = {entry.rstrip("/") for entry in removed}
    try:
        with _nofollow.directory(path) as inside:
            names = os.listdir(inside)
    except OSError as exc:
        if exc.errno in _NOTHING:
            return
        raise _not_removed(path, exc) from exc
    others = sorted(name for name in names if name != _OF_MKFS and os.path.join(path, name) not in gone)
    if others:
        left[path] = others
    elif not os.path.islink(path) and not os.path.ismount(path):
        # a link or a file system is none that a role has made
        _take(os.rmdir, above, path, check_mode)
        removed.append(f"{path}/")


def _is_directory(above: int, path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(os.path.basename(path), dir_fd=above, follow_symlinks=False).st_mode)
    except OSError as exc:
        raise _not_removed(path, exc) from exc


def _take(remove_it: t.Callable[..., None], above: int, path: str, check_mode: bool) -> None:
    """Remove ``path`` from the directory that is open as ``above``, durably."""
    if check_mode:
        return
    try:
        remove_it(os.path.basename(path), dir_fd=above)
        os.fsync(above)
    except OSError as exc:
        raise _not_removed(path, exc) from exc


def _not_removed(path: str, exc: OSError) -> ColoError:
    return ColoError("not_removed", f"{path} cannot be removed ({exc.strerror or exc})", path=path)
