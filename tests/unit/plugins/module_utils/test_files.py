# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories and files are made in one go, each file as a whole."""

from __future__ import annotations

import grp
import os
import pathlib
import pwd
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _files
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

OWNER = pwd.getpwuid(os.geteuid()).pw_name
GROUP = grp.getgrgid(os.getegid()).gr_name


def file(content: str, mode: int = 0o644) -> _files.State:
    return _files.State(content, OWNER, GROUP, mode)


def directory(mode: int = 0o755) -> _files.State:
    return _files.State(None, OWNER, GROUP, mode)


def wishes(top: pathlib.Path) -> list[tuple[str, _files.State]]:
    return [
        (f"{top}/own", directory(0o700)),
        (f"{top}/own/one.txt", file("1\n", 0o640)),
        (f"{top}/more/two.txt", file("2\n")),
    ]


def paths(changes: list[_files.Change], top: pathlib.Path) -> list[str]:
    return [os.path.relpath(change.path, top) for change in changes]


def code(function: t.Callable[..., object], *args: t.Any) -> str:
    with pytest.raises(ColoError) as caught:
        function(*args)
    return caught.value.error_code


def test_everything_is_made_once(tmp_path: pathlib.Path) -> None:
    top = tmp_path / "lib"
    assert paths(_files.ensure(wishes(top), False), top) == ["own", "own/one.txt", "more/two.txt"]
    assert (top / "more" / "two.txt").read_text() == "2\n"
    modes = {path.name: path.stat().st_mode & 0o777 for path in [top, *top.rglob("*")]}
    assert modes == {"lib": 0o755, "own": 0o700, "more": 0o755, "one.txt": 0o640, "two.txt": 0o644}
    assert _files.ensure(wishes(top), False) == []


def test_check_mode_makes_nothing(tmp_path: pathlib.Path) -> None:
    assert len(_files.ensure(wishes(tmp_path / "lib"), True)) == 3
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_mended(tmp_path: pathlib.Path) -> None:
    _files.ensure(wishes(tmp_path), False)
    one, two = tmp_path / "own" / "one.txt", tmp_path / "more" / "two.txt"
    one.write_text("changed")
    two.chmod(0o600)
    (tmp_path / "own").chmod(0o755)
    inode = two.stat().st_ino
    expected = [
        _files.Change(f"{tmp_path}/own", directory(0o755), directory(0o700)),
        _files.Change(str(one), file("changed", 0o640), file("1\n", 0o640)),
        _files.Change(str(two), file("2\n", 0o600), file("2\n")),
    ]
    assert _files.ensure(wishes(tmp_path), True) == expected
    assert _files.ensure(wishes(tmp_path), False) == expected
    assert _files.ensure(wishes(tmp_path), False) == []
    assert two.stat().st_ino == inode
    one.write_bytes(b"\xff\xfe")
    assert paths(_files.ensure(wishes(tmp_path), False), tmp_path) == ["own/one.txt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_owners_are_given(tmp_path: pathlib.Path) -> None:
    nobody = pwd.getpwnam("nobody")
    group = grp.getgrgid(nobody.pw_gid).gr_name
    made = [
        (f"{tmp_path}/{name}", _files.State(content, "nobody", group, 0o700))
        for name, content in (("a", None), ("b", ""))
    ]
    for name in ("a", "b"):
        assert len(_files.ensure(made, False)) == 2
        assert _files.ensure(made, False) == []
        status = (tmp_path / name).stat()
        assert (status.st_uid, status.st_gid) == (nobody.pw_uid, nobody.pw_gid)
        for path, _state in made:
            os.chown(path, 0, 0)


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: pathlib.Path) -> None:
    part = tmp_path / "one.txt.part"
    part.write_text("half")
    _files.ensure([(f"{tmp_path}/one.txt", file("1\n"))], False)
    assert (tmp_path / "one.txt").read_text() == "1\n"
    assert not part.exists()


@pytest.mark.parametrize("path", ["etc/passwd", "/etc/../x", "/a//b", "/a/./b", "/", ""])
def test_paths_are_absolute_and_plain(path: str) -> None:
    assert code(_files.ensure, [(path, file("x"))], True) == "bad_input"


@pytest.mark.parametrize(("owner", "group"), [("no-such-user", GROUP), (OWNER, "no-such-group")])
def test_an_owner_that_is_not_there(tmp_path: pathlib.Path, owner: str, group: str) -> None:
    wish = (f"{tmp_path}/second", _files.State(None, owner, group, 0o755))
    assert code(_files.ensure, [(f"{tmp_path}/first", directory()), wish], False) == "bad_input"
    assert list(tmp_path.iterdir()) == []
    assert len(_files.ensure([wish], True)) == 1  # it may be one that is still to be made


@pytest.mark.parametrize("text", ["", "64", "0888", "u=rw", "06440"])
def test_modes_are_octal(text: str) -> None:
    assert code(_files.mode, text) == "bad_input"
    assert _files.mode("0640") == 0o640


def test_what_is_of_another_kind_stays(tmp_path: pathlib.Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").write_text("x")
    assert code(_files.ensure, [(f"{tmp_path}/one", file("x"))], False) == "file_not_written"
    assert code(_files.ensure, [(f"{tmp_path}/two", directory())], False) == "file_not_written"
    assert code(_files.ensure, [(f"{tmp_path}/two/x", file("x"))], False) == "file_not_written"
    assert (tmp_path / "two").read_text() == "x"


# --- in a directory that others can write -------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory that is none of the wishes'."""
    path = tmp_path / "elsewhere"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def shared(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o777)
    return path


def everything(top: pathlib.Path) -> dict[str, tuple[int, int, int]]:
    seen = {str(path): path.lstat() for path in (top, *top.rglob("*"))}
    return {path: (status.st_mode, status.st_uid, status.st_gid) for path, status in seen.items()}


@pytest.mark.parametrize("wish", ["operator", "operator/sub", "operator/sub/file.txt"])
@pytest.mark.parametrize("there", [True, False])
def test_a_planted_link_is_not_followed(shared: pathlib.Path, elsewhere: pathlib.Path, wish: str, there: bool) -> None:
    """The link leads to a directory: its owner and mode stay, and nothing is made or changed in it."""
    if there:
        (elsewhere / "sub").mkdir()
        (elsewhere / "sub" / "file.txt").write_text("x")
    before = everything(elsewhere)
    (shared / "operator").symlink_to(elsewhere)
    state = file("x", 0o640) if wish.endswith(".txt") else directory(0o750)
    for check_mode in (True, False):
        with pytest.raises(ColoError, match=r"operator.*is a link.*not followed") as caught:
            _files.ensure([(f"{shared}/{wish}", state)], check_mode)
        assert caught.value.error_code == "file_not_written"
    assert everything(elsewhere) == before


def test_a_link_to_a_file_is_replaced(shared: pathlib.Path, elsewhere: pathlib.Path) -> None:
    (elsewhere / "file").write_text("1\n")
    before = everything(elsewhere)
    (shared / "one.txt").symlink_to(elsewhere / "file")
    os.mkfifo(shared / "two.txt")
    wanted = [(f"{shared}/one.txt", file("1\n", 0o640)), (f"{shared}/two.txt", file("2\n"))]
    assert paths(_files.ensure(wanted, False), shared) == ["one.txt", "two.txt"]
    assert everything(elsewhere) == before
    assert _files.ensure(wanted, False) == []


def test_links_that_nobody_else_can_have_made_are_followed(tmp_path: pathlib.Path, elsewhere: pathlib.Path) -> None:
    """As where the state directory is on another disk; a circle of them has an end."""
    (tmp_path / "state").symlink_to("elsewhere")
    (tmp_path / "absolute").symlink_to(tmp_path / "state")
    (tmp_path / "circle").symlink_to("circle")
    tmp_path.chmod(0o755)
    _files.ensure([(f"{tmp_path}/absolute/web1", directory(0o700)), (f"{tmp_path}/absolute", directory(0o711))], False)
    assert (elsewhere / "web1").is_dir()
    assert elsewhere.stat().st_mode & 0o777 == 0o711
    assert code(_files.ensure, [(f"{tmp_path}/circle/web1", directory())], False) == "file_not_written"


def test_a_directory_that_becomes_a_link_meanwhile_is_not_followed(
    shared: pathlib.Path, elsewhere: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared / "operator").mkdir(mode=0o700)
    before, look = everything(elsewhere), _files._look

    def swap(path: str, wish: _files.State) -> _files.State | None:
        seen = look(path, wish)
        (shared / "operator").rename(shared / "away")
        (shared / "operator").symlink_to(elsewhere)
        return seen

    monkeypatch.setattr(_files, "_look", swap)
    assert code(_files.ensure, [(f"{shared}/operator", directory(0o750))], False) == "file_not_written"
    assert everything(elsewhere) == before


def test_what_is_replaced_is_replaced_in_the_directory_that_was_opened(
    shared: pathlib.Path, elsewhere: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shared / "sub"
    place.mkdir()
    rename = os.rename

    def swap(old: str, new: str, **fds: int) -> None:
        rename(place, shared / "away")
        place.symlink_to(elsewhere)
        rename(old, new, **fds)

    monkeypatch.setattr(os, "rename", swap)
    _files.replace_file(f"{place}/key", "secret", os.geteuid(), os.getegid(), 0o600)
    assert (shared / "away" / "key").read_text() == "secret"
    assert list(elsewhere.iterdir()) == []


def test_a_file_of_our_own_needs_no_right_to_give_it_away(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest's unit, which writes what its QEMU was started with, is refused the system call as such."""

    def refused(*_wanted: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    path = tmp_path / "started.json"
    _files.replace_file(str(path), "{}", os.geteuid(), os.getegid(), 0o600)
    assert path.read_text() == "{}"
    with pytest.raises(PermissionError):
        _files.replace_file(str(path), "{}", os.geteuid() + 1, os.getegid(), 0o600)
