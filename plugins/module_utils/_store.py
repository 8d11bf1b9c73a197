# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The generation record on disk: read, create, update, so that a power cut leaves the old record or the new one.

The modules run as root, the keeper as the unprivileged user that owns the directory, and QEMU runs as that same user.
So root must leave files behind that the keeper can read, and must not follow a link that somebody planted there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import threading
import time
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _nofollow
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._generation import Record, new_record
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest

LOCK_TIMEOUT_S = 5.0
_LOCK_RETRY_S = 0.02
_MODE = 0o600
MAX_BYTES = 64 * 1024  # a record has about 500


def read(guest: Guest) -> Record | None:
    """Return this host's record, or None when there is none.

    No lock: a rename is atomic, so the file is always one whole record.

    Error codes: ``record_unreadable``.
    """
    try:
        raw = _nofollow.read(guest.record_file, MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _unreadable(guest, exc.strerror or str(exc)) from exc
    try:
        record = Record.from_dict(json.loads(raw))
    except (ValueError, RecursionError) as exc:
        raise _unreadable(guest, "it is not JSON") from exc
    except ColoError as exc:
        raise ColoError(exc.error_code, f"{guest.record_file}: {exc.message}", path=guest.record_file) from exc
    if (record.guest, record.host, record.peer) != (guest.name, guest.host, guest.peer):
        raise _unreadable(
            guest,
            f"it belongs to {record.guest} on {record.host} with {record.peer}, "
            f"this is {guest.name} on {guest.host} with {guest.peer}",
        )
    return record


def create(guest: Guest) -> tuple[Record, bool]:
    """Make the record of freshly made images (generation 0) unless there is one; return it and whether it was made.

    Error codes: ``record_unreadable``, ``record_locked``, ``record_not_written``.
    """
    with _locked(guest):
        current = read(guest)
        if current is not None:
            return current, False
        made = _stamped(new_record(guest.name, guest.host, guest.peer))
        _write(guest, made)
        return made, True


def update(guest: Guest, transition: t.Callable[[Record], Record]) -> tuple[Record, Record]:
    """Apply a transition of ``_generation`` under the lock; return the record before and after.

    When this returns, the new record survives a power cut. An unchanged record is not written. What *transition*
    raises goes through, with the record untouched.

    Error codes: ``record_missing``, ``record_unreadable``, ``record_locked``, ``record_not_written``.
    """
    with _locked(guest):
        before = read(guest)
        if before is None:
            raise ColoError(
                "record_missing",
                f"{guest.record_file} does not exist: no images of {guest.name} were made on {guest.host}, or the "
                f"record was lost. Run site.yml; if images are there, restore the record or move them away first.",
                path=guest.record_file,
            )
        after = transition(before)
        if after == before:
            return before, before
        after = _stamped(after)
        _write(guest, after)
        return before, after


def set_aside(guest: Guest) -> str:
    """Rename the directory of this host's copy, record and all, and return its new name; nothing is overwritten.

    One rename, so a power cut leaves the copy in its old place or in the new one, and never a part of it in either.

    Error codes: ``not_set_aside``, ``record_locked``.
    """
    place = guest.paths.state
    now = datetime.datetime.now(datetime.UTC)
    try:
        with _locked(guest):
            backup = f"{place}.set-aside-{now:%Y%m%dT%H%M%SZ}"
            if os.path.lexists(backup):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(place, backup)
            _sync_directory(os.path.dirname(place))
    except OSError as exc:
        raise ColoError(
            "not_set_aside",
            f"{place} cannot be renamed ({exc.strerror or exc}), and the copy is where it was: move record and images of "
            f"{guest.name} to another directory by hand, the record first, then run again",
            path=place,
        ) from exc
    return backup


def _sync_directory(path: str) -> None:
    """A rename is only durable once its directory is."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _stamped(record: Record) -> Record:
    now = datetime.datetime.now(datetime.UTC)
    return dataclasses.replace(record, changed_at=now.isoformat(timespec="milliseconds"))


def _unreadable(guest: Guest, why: str) -> ColoError:
    return ColoError(
        "record_unreadable",
        f"{guest.record_file} cannot be used: {why}. It was left as it is. Compare it with the record on "
        f"{guest.peer}; restore it from a backup, or move it and the images of {guest.name} out of the way so that "
        f"the next run rebuilds this copy from {guest.peer}.",
        path=guest.record_file,
    )


@contextlib.contextmanager
def _locked(guest: Guest) -> t.Iterator[None]:
    """Hold the record's lock; ``record_locked`` when somebody else holds it for LOCK_TIMEOUT_S."""
    path = os.path.join(guest.paths.state, "record.lock")
    fd = _open_lock(guest, path)
    try:
        ends = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                    raise
            if time.monotonic() >= ends:
                raise ColoError(
                    "record_locked",
                    f"{path} was held by another process for {LOCK_TIMEOUT_S:g} s; a holder needs milliseconds. "
                    f"Look for a stopped or hanging process (fuser {path}), then run again.",
                    path=path,
                )
            # flock has no timed wait, and a blocking one could not be given a deadline in a thread.
            threading.Event().wait(_LOCK_RETRY_S)
        yield
    finally:
        os.close(fd)


def _open_lock(guest: Guest, path: str) -> int:
    """Open the lock file; who makes it gives it to the directory's owner, so that root and the keeper share it."""
    try:
        try:
            return _nofollow.open_regular(path, os.O_RDONLY)
        except FileNotFoundError:
            pass
        try:
            fd = _nofollow.open_regular(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return _nofollow.open_regular(path, os.O_RDONLY)
        try:
            _give(fd, os.stat(guest.paths.state))
        except BaseException:
            os.close(fd)
            raise
        return fd
    except OSError as exc:
        raise _not_written(guest, exc) from exc


def _give(fd: int, like: os.stat_result) -> None:
    """Set owner, group and mode; a process that is not root already has the only owner it can give."""
    if os.geteuid() == 0:
        os.fchown(fd, like.st_uid, like.st_gid)
    os.fchmod(fd, _MODE)


def _not_written(guest: Guest, exc: OSError) -> ColoError:
    return ColoError(
        "record_not_written",
        f"The generation record in {guest.paths.state} was not changed: {exc.strerror or exc}. "
        f"Free the disk or mend the directory, then run again.",
        path=guest.record_file,
    )


def _write(guest: Guest, record: Record) -> None:
    """Replace the record durably. The caller holds the lock, so one fixed temporary name is enough: no litter."""
    directory = guest.paths.state
    temporary = guest.record_file + ".tmp"
    text = json.dumps(record.to_dict(), indent=1, sort_keys=True) + "\n"
    try:
        try:
            owner = os.stat(guest.record_file, follow_symlinks=False)
        except FileNotFoundError:
            owner = os.stat(directory)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # left by a writer that was killed
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            _give(stream.fileno(), owner)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, guest.record_file)
        _sync_directory(directory)
    except OSError as exc:
        raise _not_written(guest, exc) from exc
