# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Named files go, in their order; what others have put there stays, and nothing is followed."""

from __future__ import annotations

import os
import pathlib

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _remove
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError


def _tree(top: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


@pytest.fixture
def patterns(tmp_path: pathlib.Path) -> list[str]:
    """Two guests' directories, and patterns for one of them."""
    for name in ("web1/record.json", "web1/data.qcow2", "web1/data.hidden.qcow2", "web1/.hidden", "web2/record.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return [
        f"{tmp_path}/web1/record.json",
        f"{tmp_path}/web1/*",
        f"{tmp_path}/web1/",
        f"{tmp_path}/web9/",
        f"{tmp_path}/",
    ]


@pytest.mark.parametrize("check_mode", [True, False])
def test_all_that_is_named_goes_and_check_mode_says_the_same(
    tmp_path: pathlib.Path, patterns: list[str], check_mode: bool
) -> None:
    before = _tree(tmp_path)
    gone = _remove.remove(patterns, check_mode)
    order = ["record.json", ".hidden", "data.hidden.qcow2", "data.qcow2"]
    assert gone.removed[0] == f"{tmp_path}/web1/record.json"
    assert gone.removed == [*(f"{tmp_path}/web1/{name}" for name in order), f"{tmp_path}/web1/"]
    assert gone.left == {str(tmp_path): ["web2"]}
    assert _tree(tmp_path) == (before if check_mode else ["web2", "web2/record.json"])
    if check_mode:
        assert _remove.remove([*gone.removed, *patterns], True) == gone
    else:
        assert _remove.remove(patterns, False) == _remove.Removal([], {str(tmp_path): ["web2"]})


def test_what_others_have_put_there_stays(tmp_path: pathlib.Path, patterns: list[str]) -> None:
    (tmp_path / "web1" / "backup").mkdir()
    gone = _remove.remove(patterns, False)
    assert gone.left == {f"{tmp_path}/web1": ["backup"], str(tmp_path): ["web1", "web2"]}
    assert (tmp_path / "web1" / "backup").is_dir()


def test_links_are_removed_and_not_followed(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "file").write_text("mine")
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "link").symlink_to(target)
    (ours / "dead").symlink_to(tmp_path / "nothing")
    (tmp_path / "place").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    gone = _remove.remove([f"{ours}/*", f"{ours}/", f"{tmp_path}/place/"], False)
    assert gone.removed == [f"{ours}/dead", f"{ours}/link", f"{ours}/"]
    assert (target / "file").read_text() == "mine"
    assert (tmp_path / "place").is_symlink()


@pytest.fixture
def elsewhere(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with something precious in it."""
    path = tmp_path / "elsewhere"
    path.mkdir()
    (path / "file").write_text("mine")
    return path


def _as_teardown(place: pathlib.Path) -> list[str]:
    return [f"{place}/operator/*", f"{place}/operator/", f"{place}/*", f"{place}/"]


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_link_in_a_directory_that_others_can_write_is_no_way(
    tmp_path: pathlib.Path, elsewhere: pathlib.Path, check_mode: bool
) -> None:
    """What a QEMU that was broken into makes of its own directory."""
    ours = tmp_path / "ours"
    ours.mkdir()
    ours.chmod(0o777)
    (ours / "operator").symlink_to(elsewhere)
    gone = _remove.remove(_as_teardown(ours), check_mode)
    assert gone == _remove.Removal([f"{ours}/operator", f"{ours}/"], {})
    assert (elsewhere / "file").read_text() == "mine"
    assert ours.exists() == check_mode


def test_a_link_that_nobody_else_can_have_made_is_one(tmp_path: pathlib.Path, elsewhere: pathlib.Path) -> None:
    """As where the state directory is on another disk."""
    (tmp_path / "state").symlink_to("./elsewhere")
    tmp_path.chmod(0o755)
    gone = _remove.remove([f"{tmp_path}/state/file", f"{tmp_path}/state/"], False)
    assert gone.removed == [f"{tmp_path}/state/file"]
    assert list(elsewhere.iterdir()) == []


def test_a_directory_that_becomes_a_link_meanwhile_is_not_followed(
    tmp_path: pathlib.Path, elsewhere: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tmp_path / "ours"
    (ours / "operator").mkdir(parents=True)
    (ours / "operator" / "file").write_text("of the guest")
    unlink = os.unlink

    def swap(name: str, *, dir_fd: int) -> None:
        (ours / "operator").rename(ours / "away")
        (ours / "operator").symlink_to(elsewhere)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", swap)
    assert _remove.remove([f"{ours}/operator/file"], False).removed == [f"{ours}/operator/file"]
    assert (elsewhere / "file").read_text() == "mine"
    assert list((ours / "away").iterdir()) == []


def test_sockets_and_pipes_go_too(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert _remove.remove([f"{tmp_path}/pipe"], False).removed == [f"{tmp_path}/pipe"]


def test_an_empty_file_system_stays_and_is_no_leftover(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost+found").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(tmp_path))
    assert _remove.remove([f"{tmp_path}/"], False) == _remove.Removal([], {})


@pytest.mark.parametrize(
    "pattern",
    ["", "/", "//", "/etc", "/etc/", "/run/*", "/run/./*", "run/x", "/run/../etc/x", "/run//x", "x", "/run/*/x"],
)
def test_patterns_for_half_of_a_host_are_refused(pattern: str) -> None:
    with pytest.raises(ColoError) as caught:
        _remove.remove([pattern], True)
    assert caught.value.error_code == "bad_input"


def test_what_cannot_be_removed_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")

    def unlink(_name: str, **_fds: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(ColoError, match=r"file cannot be removed .Operation not permitted") as caught:
        _remove.remove([f"{tmp_path}/file"], False)
    assert caught.value.error_code == "not_removed"
