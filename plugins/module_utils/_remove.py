# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove named files, in their order, and directories that are empty then; what others have put there stays."""

from __future__ import annotations

import dataclasses
import glob
import os
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError

#: Made by mkfs in a directory that is a file system of its own; nobody's data.
_OF_MKFS = "lost+found"


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
        for path in sorted(glob.glob(pattern, include_hidden=True)):
            if path in removed:
                continue  # check mode has only said so
            if pattern.endswith("/"):
                _directory(path.rstrip("/"), removed, left, check_mode)
            elif os.path.islink(path) or not os.path.isdir(path):
                _unlink(path, check_mode)
                removed.append(path)
    return Removal(removed, left)


def _check(pattern: str) -> None:
    """A slip in a variable must not become a pattern for half of the host."""
    parts = pattern.removesuffix("/").split("/")[1:]
    if (
        not pattern.startswith("/")
        or len(parts) < 2
        or (parts[-1] == "*" and len(parts) == 2)
        or not {"", ".", ".."}.isdisjoint(parts)
    ):
        raise InputError(
            "path", pattern, "give absolute paths, without '..', of what lies below a directory such as /etc"
        )


def _directory(path: str, removed: list[str], left: dict[str, list[str]], check_mode: bool) -> None:
    gone = {entry.rstrip("/") for entry in removed}
    others = sorted(name for name in os.listdir(path) if name != _OF_MKFS and os.path.join(path, name) not in gone)
    if others:
        left[path] = others
    elif not os.path.islink(path) and not os.path.ismount(path):
        # a link or a file system is none that a role has made
        if not check_mode:
            try:
                os.rmdir(path)
                _sync(path)
            except OSError as exc:
                raise _not_removed(path, exc) from exc
        removed.append(f"{path}/")


def _unlink(path: str, check_mode: bool) -> None:
    if check_mode:
        return
    try:
        os.unlink(path)
        _sync(path)
    except OSError as exc:
        raise _not_removed(path, exc) from exc


def _sync(path: str) -> None:
    """Make it durable that ``path`` is gone."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_removed(path: str, exc: OSError) -> ColoError:
    return ColoError("not_removed", f"{path} cannot be removed ({exc.strerror or exc})", path=path)
