# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make directories and text files what they should be: all of them in one go, each file whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import grp
import os
import pwd
import re
import stat
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _nofollow
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError

DIRECTORY_MODE = 0o755
_NO_FILE = "(a link, or something else that is no regular file)"  # is replaced


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
            _make(path, before, after)
    return changes


def own(descriptor: int, owner: str | None, group: str | None, mode: int | None, check_mode: bool) -> bool:
    """See to owner, group and mode of what is open, each where one is given; tell whether something had to be changed."""
    status = os.fstat(descriptor)
    here = _state(None, status)
    wish = State(
        None,
        here.owner if owner is None else owner,
        here.group if group is None else group,
        here.mode if mode is None else mode,
    )
    if wish == here:
        return False
    if not check_mode:
        # a name that is wished must be there; a number without one stays
        uid, gid = _ids(State(None, wish.owner if owner else "root", wish.group if group else "root", wish.mode))
        os.fchown(descriptor, uid if owner else -1, gid if group else -1)
        os.fchmod(descriptor, wish.mode)
    return True


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
        return _look_at_directory(path) if wish.content is None else _look_at_file(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError as exc:
        raise _not_written(path, "it is no directory" if wish.content is None else exc.strerror) from exc
    except OSError as exc:
        raise _not_written(path, exc.strerror) from exc


def _look_at_directory(path: str) -> State:
    with _nofollow.directory(path) as descriptor:
        return _state(None, os.fstat(descriptor))


def _look_at_file(path: str) -> State:
    with _nofollow.directory(os.path.dirname(path)) as above:
        name = os.path.basename(path)
        status = os.stat(name, dir_fd=above, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        return _state(_read(name, above) if stat.S_ISREG(status.st_mode) else _NO_FILE, status)


def _state(content: str | None, status: os.stat_result) -> State:
    return State(
        content=content,
        owner=_name(lambda: pwd.getpwuid(status.st_uid).pw_name, status.st_uid),
        group=_name(lambda: grp.getgrgid(status.st_gid).gr_name, status.st_gid),
        mode=stat.S_IMODE(status.st_mode),
    )


def _read(name: str, above: int) -> str:
    try:
        with open(_nofollow.open_regular(name, os.O_RDONLY, above), encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):
        return ""  # not a readable text, so certainly not ours: it is replaced


def _name(look_up: t.Callable[[], str], number: int) -> str:
    try:
        return look_up()
    except KeyError:
        return str(number)


def _make(path: str, before: State | None, after: State) -> None:
    try:
        os.close(_open_or_make(os.path.dirname(path)))
        if after.content is None:
            descriptor = _open_or_make(path, 0o700)
        elif before is None or before.content != after.content:
            replace_file(path, after.content, *_ids(after), after.mode)
            return
        else:
            with _nofollow.directory(os.path.dirname(path)) as above:
                descriptor = _nofollow.open_regular(os.path.basename(path), os.O_RDONLY, above)
        try:
            os.fchown(descriptor, *_ids(after))
            os.fchmod(descriptor, after.mode)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise _not_written(path, exc.strerror) from exc


def _open_or_make(path: str, mode: int = DIRECTORY_MODE) -> int:
    """A descriptor of the directory; where there is none it is made, with those above it."""
    try:
        return _nofollow.open_directory(path)
    except FileNotFoundError:
        above = _open_or_make(os.path.dirname(path))
    try:
        name = os.path.basename(path)
        os.mkdir(name, 0o700, dir_fd=above)
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    finally:
        os.close(above)
    os.fchmod(descriptor, mode)
    return descriptor


def replace_file(path: str, text: str, uid: int, gid: int, mode: int) -> None:
    """Replace a file as a whole; until it has its owner, nobody but root can read it.

    The directory may be an unprivileged user's: a link that was put there is never followed.
    """
    name = os.path.basename(path)
    part = f"{name}.part"
    with _nofollow.directory(os.path.dirname(path)) as above:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=above)  # left by a run that was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(part, flags, 0o600, dir_fd=above)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            status = os.fstat(descriptor)
            if (status.st_uid, status.st_gid) != (uid, gid):  # a guest's unit may not even ask for what it has
                os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        os.rename(part, name, src_dir_fd=above, dst_dir_fd=above)


def _not_written(path: str, why: str | None) -> ColoError:
    return ColoError("file_not_written", f"{path} cannot be written ({why})", path=path)
