# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images are made once and whole, and never overwritten."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pathlib
import shutil
import struct
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _guest, _image
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

SIZE = 64 * 1024 * 1024


def qcow2(
    size: int = SIZE,
    *,
    version: int = 3,
    backing: int = 0,
    crypt: int = 0,
    incompatible: int = 0,
    magic: bytes = b"QFI\xfb",
) -> bytes:
    """The header of an image."""
    head = (
        magic
        + struct.pack(">IQIIQI", version, backing, 0, 16, size, crypt)
        + bytes(36)
        + struct.pack(">Q", incompatible)
    )
    return head.ljust(104, b"\0")


class Runner:
    """Stands in for run_command: an ordered script, in which every command must be called."""

    def __init__(self, *script: tuple[list[str], tuple[int, str, str], bytes | None]) -> None:
        self.script = list(script)
        self.before_writing: t.Callable[[str], object] = lambda _part: None

    def __call__(self, args: list[str]) -> tuple[int, str, str]:
        assert self.script, f"unexpected command {args}"
        expected, answer, content = self.script.pop(0)
        # what is made is named by its descriptor: nobody can put something else in its place
        assert not any(word.endswith(".part") for word in args)
        assert [os.readlink(word) if word.startswith("/proc/") else word for word in args] == expected
        if content is not None:
            target = next(word for word in args if word.startswith("/proc/"))
            self.before_writing(os.readlink(target))
            pathlib.Path(target).write_bytes(content)
        return answer

    def done(self) -> None:
        assert not self.script, f"commands that were not called: {self.script}"


GOOD = (0, "", "")


def own_nothing(descriptor: int) -> None:
    assert os.readlink(f"/proc/self/fd/{descriptor}").endswith(".part")


def create(path: str, content: bytes | None = None) -> tuple[list[str], tuple[int, str, str], bytes | None]:
    return (
        ["qemu-img", "create", "-q", "-f", "qcow2", f"{path}.part", str(SIZE)],
        GOOD,
        qcow2() if content is None else content,
    )


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "root.qcow2")


def code(function: t.Callable[..., object], *args: t.Any) -> str:
    with pytest.raises(ColoError) as caught:
        function(*args)
    return caught.value.error_code


@pytest.mark.parametrize(
    ("image_format", "head", "size", "expected"),
    [
        ("raw", b"", 512, _image.Header(512)),
        ("raw", b"", 0, None),
        ("raw", qcow2(backing=9), 104, _image.Header(104)),
        ("qcow2", qcow2(), 104, _image.Header(SIZE)),
        ("qcow2", qcow2(version=2)[:72], 72, _image.Header(SIZE)),
        ("qcow2", qcow2()[:72], 72, None),
        ("qcow2", qcow2(version=4), 104, None),
        ("qcow2", qcow2(magic=b"RAW\0"), 104, None),
        ("qcow2", b"", 0, None),
        ("qcow2", qcow2(backing=112), 104, _image.Header(SIZE, backing=True)),
        ("qcow2", qcow2(crypt=2), 104, _image.Header(SIZE, encrypted=True)),
        ("qcow2", qcow2(incompatible=2), 104, _image.Header(SIZE, corrupt=True)),
        ("qcow2", qcow2(incompatible=4), 104, _image.Header(SIZE, external_data=True)),
    ],
)
def test_header(image_format: str, head: bytes, size: int, expected: _image.Header | None) -> None:
    assert _image.parse_header(image_format, head, size) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"not an image at all" * 8, "image_not_format"),
        (qcow2(backing=112), "image_has_backing"),
        (qcow2(incompatible=4), "image_has_data_file"),
        (qcow2(crypt=1), "image_encrypted"),
        (qcow2(incompatible=2), "image_corrupt"),
        (qcow2(SIZE + 512), "image_source_larger"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_before_any_tool_opens_it(
    tmp_path: pathlib.Path, path: str, content: bytes, expected: str
) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    wish = _image.Wish(path, SIZE, str(source))
    assert code(_image.ensure_parent, Runner(), wish, False, own_nothing) == expected
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source"]


def test_a_source_that_is_not_there_or_no_file(tmp_path: pathlib.Path, path: str) -> None:
    assert code(_image.check_source, _image.Wish(path, SIZE, str(tmp_path / "no"))) == "image_missing"
    assert code(_image.check_source, _image.Wish(path, SIZE, str(tmp_path))) == "image_missing"


def test_a_source_that_cannot_be_read(path: str) -> None:
    # its first bytes are an error of the device, also for root
    assert code(_image.check_source, _image.Wish(path, SIZE, "/proc/self/mem")) == "image_unreadable"


def test_a_source_that_may_not_even_be_looked_at(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for root below a directory of NFS that is not for all: Python before 3.14 raises then."""

    def is_file(_path: pathlib.Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "is_file", is_file)
    assert code(_image.check_source, _image.Wish(path, SIZE, "/srv/x.qcow2")) == "image_unreadable"


def test_a_checksum_of_what_cannot_be_read() -> None:
    assert code(_image.check_checksum, "/proc/self/mem", "sha256:" + 64 * "0") == "image_unreadable"


def test_a_blank_image(path: str) -> None:
    run = Runner(create(path))
    assert _image.ensure_parent(run, _image.Wish(path, SIZE), False, own_nothing)
    run.done()
    assert pathlib.Path(path).read_bytes() == qcow2()
    assert not pathlib.Path(f"{path}.part").exists()
    assert pathlib.Path(path).stat().st_mode & 0o777 == 0o600


def test_a_source_is_converted_by_its_told_format_and_enlarged(tmp_path: pathlib.Path, path: str) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(bytes(1024))
    run = Runner(
        (["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(source), f"{path}.part"], GOOD, qcow2(1024)),
        (["qemu-img", "resize", "-q", "-f", "qcow2", f"{path}.part", str(SIZE)], GOOD, qcow2()),
    )
    checksum = "sha256:" + hashlib.sha256(bytes(1024)).hexdigest()
    assert _image.ensure_parent(run, _image.Wish(path, SIZE, str(source), "raw", checksum), False, own_nothing)
    run.done()


def test_a_source_of_the_right_size_is_only_converted(tmp_path: pathlib.Path, path: str) -> None:
    source = tmp_path / "source.qcow2"
    source.write_bytes(qcow2())
    run = Runner(
        (["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "qcow2", str(source), f"{path}.part"], GOOD, qcow2())
    )
    assert _image.ensure_parent(run, _image.Wish(path, SIZE, str(source)), False, own_nothing)
    run.done()


def test_a_wrong_checksum_stops_before_anything_is_made(tmp_path: pathlib.Path, path: str) -> None:
    source = tmp_path / "source.qcow2"
    source.write_bytes(qcow2())
    wish = _image.Wish(path, SIZE, str(source), "qcow2", "sha256:" + 64 * "0")
    assert code(_image.ensure_parent, Runner(), wish, False, own_nothing) == "image_checksum_differs"


def test_check_mode_makes_nothing(tmp_path: pathlib.Path, path: str) -> None:
    assert _image.ensure_parent(Runner(), _image.Wish(path, SIZE), True, own_nothing)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_there_is_not_touched(path: str) -> None:
    pathlib.Path(path).write_bytes(qcow2())
    pathlib.Path(f"{path}.part").write_bytes(b"left by a killed run")
    assert not _image.ensure_parent(Runner(), _image.Wish(path, SIZE), True, own_nothing)
    assert pathlib.Path(f"{path}.part").exists()
    assert not _image.ensure_parent(Runner(), _image.Wish(path, SIZE, "/not/looked/at"), False, own_nothing)
    assert not pathlib.Path(f"{path}.part").exists()
    assert pathlib.Path(path).read_bytes() == qcow2()


def test_another_size_is_an_error_and_the_image_stays(path: str) -> None:
    pathlib.Path(path).write_bytes(qcow2(SIZE * 2))
    with pytest.raises(ColoError) as caught:
        _image.ensure_parent(Runner(), _image.Wish(path, SIZE), False, own_nothing)
    assert caught.value.error_code == "image_size_differs"
    assert caught.value.details == {"path": path, "virtual_size": SIZE * 2, "size": SIZE}
    assert pathlib.Path(path).read_bytes() == qcow2(SIZE * 2)


def test_what_a_killed_run_left_is_made_anew(path: str) -> None:
    pathlib.Path(f"{path}.part").write_bytes(b"half")
    assert _image.ensure_parent(Runner(create(path)), _image.Wish(path, SIZE), False, own_nothing)
    assert pathlib.Path(path).read_bytes() == qcow2()


def test_a_tool_that_fails_leaves_nothing(tmp_path: pathlib.Path, path: str) -> None:
    run = Runner((create(path)[0], (1, "", "No space left on device\n"), None))
    with pytest.raises(ColoError) as caught:
        _image.ensure_parent(run, _image.Wish(path, SIZE), False, own_nothing)
    assert caught.value.error_code == "image_not_written"
    assert "No space left" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there(tmp_path: pathlib.Path) -> None:
    wish = _image.Wish(str(tmp_path / "no" / "root.qcow2"), SIZE)
    assert code(_image.ensure_parent, Runner(), wish, False, own_nothing) == "image_not_written"


def test_an_image_that_appears_meanwhile_is_not_overwritten(path: str) -> None:
    def appear(_descriptor: int) -> None:
        pathlib.Path(path).write_bytes(b"somebody else's")

    assert code(_image.ensure_parent, Runner(create(path)), _image.Wish(path, SIZE), False, appear) == "image_exists"
    assert pathlib.Path(path).read_bytes() == b"somebody else's"


# --- overlays -----------------------------------------------------------------------------------------------------


@pytest.fixture
def guest(tmp_path: pathlib.Path) -> _guest.Guest:
    return _guest.Guest(
        name="web1", host="alpha", hosts=("alpha", "beta"), link={"alpha": "192.0.2.1", "beta": "192.0.2.2"},
        memory_mib=64, vcpus=1, machine="pc", cpu="qemu64", accelerator="tcg", qemu_binary="/bin/false", user="colo", link_security="tls",
        disks=(_guest.Disk("root", SIZE),), nics=(), boot=None, port_base=9000, tuning=_guest.Tuning(),
        paths=_guest.Paths(config=str(tmp_path), state=str(tmp_path), run=str(tmp_path)),
    )  # fmt: skip


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    seen: list[tuple[str, str, str]] = []

    def chown(descriptor: int, user: str, group: str) -> None:
        seen.append((pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, user, group))

    monkeypatch.setattr(shutil, "chown", chown)
    return seen


def test_overlays_are_fresh_and_of_the_parents_size(
    tmp_path: pathlib.Path, path: str, guest: _guest.Guest, owners: list[tuple[str, str, str]]
) -> None:
    pathlib.Path(path).write_bytes(qcow2())
    active, hidden = str(tmp_path / "root.active.qcow2"), str(tmp_path / "root.hidden.qcow2")
    pathlib.Path(active).write_bytes(b"of the last standby")
    run = Runner(create(active), create(hidden))
    _image.fresh_overlays(run, guest)
    run.done()
    assert pathlib.Path(active).read_bytes() == pathlib.Path(hidden).read_bytes() == qcow2()
    assert owners == [("root.active.qcow2.part", "colo", "colo"), ("root.hidden.qcow2.part", "colo", "colo")]


def test_an_overlay_in_use_is_refused(tmp_path: pathlib.Path, path: str, guest: _guest.Guest) -> None:
    pathlib.Path(path).write_bytes(qcow2())
    active = str(tmp_path / "root.active.qcow2")
    pathlib.Path(active).write_bytes(qcow2())
    with open(active, "rb") as image:
        # as QEMU does (block/file-posix.c): one byte for each permission
        one_byte = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
        fcntl.fcntl(image, fcntl.F_OFD_SETLK, one_byte)
        assert code(_image.fresh_overlays, Runner(), guest) == "image_in_use"
    assert pathlib.Path(active).read_bytes() == qcow2()


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_what_was_planted_in_the_place_of_an_overlay_is_replaced(
    tmp_path: pathlib.Path, path: str, guest: _guest.Guest, owners: list[tuple[str, str, str]], what: str
) -> None:
    pathlib.Path(path).write_bytes(qcow2())
    active, precious = tmp_path / "root.active.qcow2", tmp_path / "precious"
    precious.write_text("mine")
    for place in (active, tmp_path / "root.active.qcow2.part"):
        place.symlink_to(precious) if what == "link" else os.mkfifo(place)
    _image.fresh_overlays(Runner(create(str(active)), create(str(tmp_path / "root.hidden.qcow2"))), guest)
    assert len(owners) == 2
    assert active.read_bytes() == qcow2()
    assert not active.is_symlink()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_an_image_is_no_link_and_no_pipe(tmp_path: pathlib.Path, path: str, what: str) -> None:
    """A link to another guest's image, or to a file of the host."""
    other = tmp_path / "other.qcow2"
    other.write_bytes(qcow2())
    if what == "link":
        pathlib.Path(path).symlink_to(other)
    else:
        os.mkfifo(path)
    assert code(_image.ensure_parent, Runner(), _image.Wish(path, SIZE), False, own_nothing) == "image_missing"


def test_an_image_that_becomes_a_link_while_it_is_made_is_not_written_through(
    tmp_path: pathlib.Path, path: str
) -> None:
    """A QEMU that has deleted its own image and waits for root to make another."""
    precious = tmp_path / "precious"
    precious.write_text("mine")

    def swap(part: str) -> None:
        pathlib.Path(part).unlink()
        pathlib.Path(part).symlink_to(precious)

    run = Runner(create(path))
    run.before_writing = swap
    assert code(_image.ensure_parent, run, _image.Wish(path, SIZE), False, own_nothing) == "image_missing"
    assert precious.read_text() == "mine"


def test_no_overlay_without_its_parent(guest: _guest.Guest) -> None:
    assert code(_image.fresh_overlays, Runner(), guest) == "image_missing"


def test_no_overlay_for_a_parent_of_another_size(path: str, guest: _guest.Guest) -> None:
    pathlib.Path(path).write_bytes(qcow2(SIZE // 2))
    assert code(_image.fresh_overlays, Runner(), guest) == "image_size_differs"
