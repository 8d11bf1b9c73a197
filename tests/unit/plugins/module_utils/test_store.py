# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record on disk: durable, owned by who must read it, never silently replaced."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import multiprocessing
import os
import pathlib
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _generation as g
from ansible_collections.lockstep.colo.plugins.module_utils import _guest, _store
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError


@pytest.fixture
def guest(tmp_path: pathlib.Path) -> _guest.Guest:
    return make_guest(tmp_path)


def make_guest(directory: pathlib.Path) -> _guest.Guest:
    return _guest.Guest(
        name="web1", host="alpha", hosts=("alpha", "beta"), link={"alpha": "192.0.2.1", "beta": "192.0.2.2"},
        memory_mib=64, vcpus=1, machine="pc", cpu="qemu64", accelerator="tcg", qemu_binary="/bin/false", user="colo", link_security="tls",
        disks=(), nics=(), boot=None, port_base=9000, tuning=_guest.Tuning(),
        paths=_guest.Paths(config=str(directory), state=str(directory), run=str(directory)),
    )  # fmt: skip


def code(call: t.Callable[..., t.Any], *arguments: t.Any) -> str:
    with pytest.raises(ColoError) as caught:
        call(*arguments)
    return caught.value.error_code


def test_life_on_disk(guest: _guest.Guest) -> None:
    assert _store.read(guest) is None
    made, changed = _store.create(guest)
    assert changed
    assert made.state == "new"
    assert made.changed_at
    assert _store.create(guest) == (made, False)
    before, after = _store.update(guest, g.started_alone)
    assert (before, after.generation) == (made, 1)
    assert _store.read(guest) == after
    assert sorted(os.listdir(guest.paths.state)) == ["record.json", "record.lock"]
    assert pathlib.Path(guest.record_file).stat().st_mode & 0o777 == 0o600


def test_unchanged_is_not_written(guest: _guest.Guest) -> None:
    _store.create(guest)
    inode = os.stat(guest.record_file).st_ino
    before, after = _store.update(guest, lambda rec: g.mark_void(rec, "no"))
    assert before == after
    assert os.stat(guest.record_file).st_ino == inode


def test_missing_is_not_new(guest: _guest.Guest) -> None:
    assert code(_store.update, guest, g.started_alone) == "record_missing"


def test_a_refused_transition_leaves_the_record(guest: _guest.Guest) -> None:
    _store.create(guest)
    text = pathlib.Path(guest.record_file).read_text()
    assert code(_store.update, guest, lambda rec: g.take_over(rec, "pdu")) == "illegal_transition"
    assert pathlib.Path(guest.record_file).read_text() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00" * 500, "[" * 60000, "9" * 70000, '{"schema": 1}'])
def test_broken_records_stay_as_they_are(guest: _guest.Guest, text: str) -> None:
    path = pathlib.Path(guest.record_file)
    path.write_text(text)
    assert code(_store.read, guest) == "record_unreadable"
    assert code(_store.update, guest, g.started_alone) == "record_unreadable"
    assert code(_store.create, guest) == "record_unreadable"
    assert path.read_text() == text


def test_other_guests_records_are_refused(guest: _guest.Guest) -> None:
    for change in ({"name": "web2"}, {"host": "beta"}, {"hosts": ("alpha", "gamma")}):
        other = dataclasses.replace(guest, **t.cast("dict[str, t.Any]", change))
        pathlib.Path(guest.record_file).unlink(missing_ok=True)
        _store.create(other)
        assert code(_store.read, guest) == "record_unreadable"


def test_links_and_directories_are_not_followed(guest: _guest.Guest, tmp_path: pathlib.Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(json.dumps(g.new_record("web1", "alpha", "beta").to_dict()))
    os.symlink(elsewhere, guest.record_file)
    assert code(_store.read, guest) == "record_unreadable"
    os.unlink(guest.record_file)
    os.mkdir(guest.record_file)
    assert code(_store.read, guest) == "record_unreadable"
    os.rmdir(guest.record_file)
    os.mkfifo(guest.record_file)
    assert code(_store.read, guest) == "record_unreadable"
    os.unlink(guest.record_file)
    os.symlink(elsewhere, f"{guest.paths.state}/record.lock")
    assert code(_store.create, guest) == "record_not_written"


def test_a_planted_temporary_is_not_written_through(guest: _guest.Guest, tmp_path: pathlib.Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    os.symlink(precious, guest.record_file + ".tmp")
    _store.create(guest)
    assert precious.read_text() == "mine"
    assert not pathlib.Path(guest.record_file).is_symlink()


def test_directory_missing(guest: _guest.Guest) -> None:
    gone = dataclasses.replace(guest, paths=dataclasses.replace(guest.paths, state=guest.paths.state + "/gone"))
    assert _store.read(gone) is None
    assert code(_store.create, gone) == "record_not_written"


def test_order_of_durability(guest: _guest.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    _store.create(guest)
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def seen_fsync(fd: int) -> None:
        calls.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def seen_rename(source: str, target: str) -> None:
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    _store.update(guest, g.started_alone)
    assert calls == ["fsync record.json.tmp", "rename", "fsync " + os.path.basename(guest.paths.state)]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_disk_errors_leave_the_old_record(guest: _guest.Guest, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    made, _changed = _store.create(guest)

    def fail(*_arguments: t.Any) -> t.NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        assert code(_store.update, guest, g.started_alone) == "record_not_written"
    assert _store.read(guest) == made
    assert _store.update(guest, g.started_alone)[1].generation == 1


def test_a_held_lock_has_an_end(guest: _guest.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    _store.create(guest)
    monkeypatch.setattr(_store, "LOCK_TIMEOUT_S", 0.1)
    with open(f"{guest.paths.state}/record.lock", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert code(_store.update, guest, g.started_alone) == "record_locked"
    assert _store.update(guest, g.started_alone)[1].generation == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_files_that_the_keeper_can_use(guest: _guest.Guest) -> None:
    os.chown(guest.paths.state, 1234, 1235)
    _store.create(guest)
    for name in ("record.json", "record.lock"):
        seen = os.stat(f"{guest.paths.state}/{name}")
        assert (seen.st_uid, seen.st_gid) == (1234, 1235)
    os.chown(guest.record_file, 1234, 4321)
    _store.update(guest, g.started_alone)
    seen = os.stat(guest.record_file)
    assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o777) == (1234, 4321, 0o600)


def _restart_often(directory: str) -> None:
    for _time in range(20):
        _store.update(make_guest(pathlib.Path(directory)), g.started_alone)


def test_no_update_is_lost_between_processes(guest: _guest.Guest) -> None:
    _store.create(guest)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_restart_often, args=(guest.paths.state,)) for _number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    record = _store.read(guest)
    assert record is not None
    assert record.generation == 60


def test_a_copy_is_set_aside_whole(tmp_path: pathlib.Path) -> None:
    guest = make_guest(tmp_path / "web1")
    (tmp_path / "web1").mkdir()
    _store.create(guest)
    pathlib.Path(guest.paths.state, "root.qcow2").write_text("data")
    backup = pathlib.Path(_store.set_aside(guest))
    assert backup.parent == tmp_path
    assert backup.name.startswith("web1.set-aside-")
    assert not (tmp_path / "web1").exists()
    assert sorted(path.name for path in backup.iterdir()) == ["record.json", "record.lock", "root.qcow2"]
    assert _store.read(guest) is None


def test_a_backup_is_never_overwritten(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = make_guest(tmp_path / "web1")
    (tmp_path / "web1").mkdir()
    _store.create(guest)
    monkeypatch.setattr(os.path, "lexists", lambda path: "set-aside" in path)
    assert code(_store.set_aside, guest) == "not_set_aside"
    assert _store.read(guest) is not None


def test_a_copy_that_cannot_be_renamed_stays(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its directory is a file system of its own."""
    guest = make_guest(tmp_path / "web1")
    (tmp_path / "web1").mkdir()
    _store.create(guest)

    def busy(_old: str, _new: str) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(ColoError, match=r"busy.*the record first") as caught:
        _store.set_aside(guest)
    assert caught.value.error_code == "not_set_aside"
    assert (tmp_path / "web1" / "record.json").exists()
