# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set of files is written in one go, each as a whole."""

from __future__ import annotations

import pathlib

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _files
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

FILES = {"one.txt": "1\n", "more/two.txt": "2\n"}


def test_files_are_written_once(tmp_path: pathlib.Path) -> None:
    top = tmp_path / "lib"
    assert [change.name for change in _files.write_files(str(top), FILES, False)] == ["more/two.txt", "one.txt"]
    assert (top / "more" / "two.txt").read_text() == "2\n"
    assert (top / "one.txt").stat().st_mode & 0o777 == 0o644
    assert (top / "more").stat().st_mode & 0o777 == 0o755
    assert _files.write_files(str(top), FILES, False) == []
    assert sorted(path.name for path in top.rglob("*")) == ["more", "one.txt", "two.txt"]


def test_check_mode_writes_nothing(tmp_path: pathlib.Path) -> None:
    assert len(_files.write_files(str(tmp_path / "lib"), FILES, True)) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_replaced(tmp_path: pathlib.Path) -> None:
    _files.write_files(str(tmp_path), FILES, False)
    (tmp_path / "one.txt").write_text("changed")
    (tmp_path / "more" / "two.txt").chmod(0o600)
    assert _files.write_files(str(tmp_path), FILES, False) == [
        _files.Change("more/two.txt", "2\n", "2\n"),
        _files.Change("one.txt", "changed", "1\n"),
    ]
    (tmp_path / "one.txt").write_bytes(b"\xff\xfe")
    assert _files.write_files(str(tmp_path), FILES, False) == [_files.Change("one.txt", "", "1\n")]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", ""])
def test_names_stay_below_the_directory(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(ColoError) as caught:
        _files.write_files(str(tmp_path / "lib"), {name: "x"}, False)
    assert caught.value.error_code == "bad_input"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "one.txt").mkdir()
    with pytest.raises(ColoError) as caught:
        _files.write_files(str(tmp_path), {"one.txt": "x"}, False)
    assert caught.value.error_code == "file_not_written"
