# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make directories and text files what they should be: all of them in one go, each file whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import os
import pathlib
import pwd
import re
import stat
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError

DIRECTORY_MODE = 0o755


@dataclasses.dataclass(frozen=True)
class State:
    """A text file, or without ``content`` a directory: as it is, or as it should be."""

    content: str | None
    owner: str
    group: str
    mode: int


@dataclasses.dataclass(frozen=True)
class Change:
    """A path that was (or in check mode would be) made or mended; ``before`` is ``None`` when nothing was there."""

    path: str
    before: State | None
    after: State


def mode(text: str) -> int:
    """A file mode from its octal digits."""
    if re.fullmatch("[0-7]{3,4}", text) is None:
        raise InputError("mode", text, "give three or four octal digits, in quotes")
    return int(text, 8)


def ensure(wishes: t.Sequence[tuple[str, State]], check_mode: bool) -> list[Change]:
    """Make each path what it should be, in their order; return what had to be done.

    The wishes are checked before the first path is touched. In check mode an owner may be one that is still to be made.
    """
    for path, after in wishes:
        _check_path(path)
        if not check_mode:
            _ids(after)
    changes: list[Change] = []
    for path, after in wishes:
        before = _look(path, after)
        if before == after:
            continue
        changes.append(Change(path, before, after))
        if not check_mode:
            _make(pathlib.Path(path), before, after)
    return changes


def _check_path(path: str) -> None:
    first, *parts = path.split("/")
    if first or not parts or not {"", ".", ".."}.isdisjoint(parts):
        raise InputError("path", path, "give an absolute path without '..'")


def _ids(wish: State) -> tuple[int, int]:
    """The numbers of owner and group."""
    try:
        owner = pwd.getpwnam(wish.owner).pw_uid
    except KeyError:
        raise InputError("owner", wish.owner, "there is no such user on this host") from None
    try:
        return owner, grp.getgrnam(wish.group).gr_gid
    except KeyError:
        raise InputError("group", wish.group, "there is no such group on this host") from None


def _look(path: str, wish: State) -> State | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _not_written(path, exc.strerror) from exc
    if stat.S_ISDIR(status.st_mode) != (wish.content is None):
        raise _not_written(path, "it is no directory" if wish.content is None else "it is a directory")
    return State(
        content=None if wish.content is None else _read(path),
        owner=_name(lambda: pwd.getpwuid(status.st_uid).pw_name, status.st_uid),
        group=_name(lambda: grp.getgrgid(status.st_gid).gr_name, status.st_gid),
        mode=stat.S_IMODE(status.st_mode),
    )


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""  # not a readable text, so certainly not ours: it is replaced


def _name(look_up: t.Callable[[], str], number: int) -> str:
    try:
        return look_up()
    except KeyError:
        return str(number)


def _make(path: pathlib.Path, before: State | None, after: State) -> None:
    try:
        for directory in reversed(path.parents):
            if not directory.exists():
                directory.mkdir()
                directory.chmod(DIRECTORY_MODE)
        if after.content is not None and (before is None or before.content != after.content):
            replace_file(str(path), after.content, *_ids(after), after.mode)
            return
        if before is None:
            path.mkdir(mode=0o700)
        os.chown(path, *_ids(after))
        path.chmod(after.mode)
    except OSError as exc:
        raise _not_written(str(path), exc.strerror) from exc


def replace_file(path: str, text: str, uid: int, gid: int, mode: int) -> None:
    """Replace a file as a whole; until it has its owner, nobody but root can read it.

    The directory may be an unprivileged user's: a link that was put there is never followed.
    """
    part = f"{path}.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)  # left by a run that was killed
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
        file.flush()
        os.fsync(descriptor)
    os.rename(part, path)


def _not_written(path: str, why: str | None) -> ColoError:
    return ColoError("file_not_written", f"{path} cannot be written ({why})", path=path)
