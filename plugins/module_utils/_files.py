# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a set of text files below one directory: all of them in one go, each of them whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import stat
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644


@dataclasses.dataclass(frozen=True)
class Change:
    """One file that was (or in check mode would be) written; ``before`` is ``None`` when it was not there."""

    name: str
    before: str | None
    after: str


def write_files(root: str, files: t.Mapping[str, str], check_mode: bool) -> list[Change]:
    """Make the files, named below ``root``, hold what they should; return those that did not."""
    changes: list[Change] = []
    for name, after in sorted(files.items()):
        path = _place(root, name)
        before = _read(path)
        if before == after and stat.S_IMODE(path.stat().st_mode) == FILE_MODE:
            continue
        changes.append(Change(name, before, after))
        if not check_mode:
            _write(path, after)
    return changes


def _place(root: str, name: str) -> pathlib.Path:
    relative = pathlib.PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise InputError("files", name, "name a file below the directory")
    return pathlib.Path(root, *relative.parts)


def _read(path: pathlib.Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return ""  # not a readable text, so certainly not ours: it is replaced


def _write(path: pathlib.Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        for directory in reversed(path.parents):
            if not directory.exists():
                directory.mkdir()
                directory.chmod(DIRECTORY_MODE)
        with part.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(text)
        part.replace(path)
    except OSError as exc:
        raise ColoError("file_not_written", f"{path} cannot be written ({exc.strerror})", path=str(path)) from exc
