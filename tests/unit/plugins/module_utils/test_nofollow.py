# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a QEMU that was broken into may put into its guest's directories: nothing is followed, and nobody waits for it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import types
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _apply,
    _host,
    _link_key,
    _nofollow,
    _rewriter,
    _store,
    _topology,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.tests.unit import _make

PLANTED = ("link", "link to nothing", "link to a device", "pipe", "directory", "too long")


@pytest.fixture
def guest(tmp_path: pathlib.Path) -> Guest:
    made = _make.guest(root=str(tmp_path))
    for path in (made.paths.state, made.paths.run, made.paths.config):
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    return made


@pytest.fixture(autouse=True)
def in_time() -> t.Iterator[None]:
    """Whoever waits for a pipe fails."""

    def late(_number: int, _frame: types.FrameType | None) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def precious(tmp_path: pathlib.Path) -> t.Iterator[pathlib.Path]:
    """A file elsewhere, which stays as it is. It says what a file of ours would say."""
    path = tmp_path / "precious"
    path.write_text('{"serving": "alpha"}')
    path.chmod(0o644)
    before = path.stat()
    yield path
    assert path.read_text() == '{"serving": "alpha"}'
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)


def plant(path: str, what: str, precious: pathlib.Path) -> None:
    place = pathlib.Path(path)
    if what == "pipe":
        os.mkfifo(place)
    elif what == "directory":
        place.mkdir()
    elif what == "too long":
        place.write_text(json.dumps({"serving": "alpha", "more": " " * _store.MAX_BYTES}))
    else:
        place.symlink_to({"link": str(precious), "link to a device": "/dev/null"}.get(what, "/nowhere"))


def definition(guest: Guest) -> dict[str, t.Any]:
    return {"host": guest.host, "paths": {"run": guest.paths.run, "state": guest.paths.state}}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_read_is_a_small_regular_file(guest: Guest, precious: pathlib.Path, what: str) -> None:
    for path in (guest.started_file, guest.record_file, guest.psk_file):
        plant(path, what, precious)
        with pytest.raises(OSError, match=r".+"):
            _nofollow.read(path, _store.MAX_BYTES)
    assert _host.started(definition(guest)) is None
    assert _host._serving(definition(guest)) is None
    assert not _link_key.is_current(guest)
    with pytest.raises(ColoError) as caught:
        _store.read(guest)
    assert caught.value.error_code == "record_unreadable"


def test_a_file_of_ours_is_read(guest: Guest) -> None:
    """So that the tests above can fail."""
    pathlib.Path(guest.started_file).write_text('{"serving": "alpha"}')
    pathlib.Path(guest.record_file).write_text('{"serving": "alpha"}')
    assert _host.started(definition(guest)) == {"serving": "alpha"}
    assert _host._serving(definition(guest)) is True


@pytest.mark.parametrize("text", ["[" * 60000, "[]", "\x00", "9" * 5000])
def test_a_file_that_is_no_answer(guest: Guest, text: str) -> None:
    pathlib.Path(guest.started_file).write_text(text)
    pathlib.Path(guest.record_file).write_text(text)
    assert _host.started(definition(guest)) is None
    assert _host._serving(definition(guest)) is None


@pytest.mark.parametrize("what", [what for what in PLANTED if what != "too long"])
def test_a_lock_is_a_regular_file(guest: Guest, precious: pathlib.Path, what: str) -> None:
    plant(guest.lock_file, what, precious)
    with pytest.raises(ColoError) as caught, _apply.exclusive(guest):
        pass
    assert caught.value.error_code == "lock_unusable"
    plant(f"{guest.paths.state}/record.lock", what, precious)
    with pytest.raises(ColoError) as caught:
        _store.create(guest)
    assert caught.value.error_code == "record_not_written"
    assert not pathlib.Path(guest.record_file).exists()


def test_packets_are_written_into_no_other_file(guest: Guest, precious: pathlib.Path) -> None:
    plant(_topology.flush_pipe(guest, 0), "link", precious)
    with pytest.raises(OSError, match="symbolic links"):
        _rewriter.flush(guest)
    _rewriter.make_pipes(guest)
    assert pathlib.Path(_topology.flush_pipe(guest, 0)).is_fifo()


def test_a_link_to_another_guests_pipe_is_no_pipe(guest: Guest, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "of another guest"
    os.mkfifo(other)
    pathlib.Path(_topology.flush_pipe(guest, 0)).symlink_to(other)
    _rewriter.make_pipes(guest)
    assert not pathlib.Path(_topology.flush_pipe(guest, 0)).is_symlink()
