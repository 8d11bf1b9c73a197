# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib
import stat

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _guest, _key, _link_key
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.tests.unit import _make

KEY = bytes(range(32))


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 32 + "\n" + "0" * 32])
def test_unusable_keys(text: str) -> None:
    with pytest.raises(ColoError) as caught:
        _key.read_key(text)
    assert caught.value.error_code == "key_unusable"
    assert not text or text not in caught.value.message


def test_key_file_form() -> None:
    assert _key.read_key(KEY.hex() + "\n") == KEY


def test_what_is_derived_is_another_secret_for_each_purpose_and_guest() -> None:
    values = {_key.psk_line(KEY, "web1"), _key.psk_line(KEY, "web2"), _key.fingerprint(KEY), KEY.hex()}
    assert len({value.split(":")[-1].strip()[:16] for value in values}) == 4
    assert _key.psk_line(KEY, "web1") == _key.psk_line(KEY, "web1")
    assert _key.fingerprint(KEY) != _key.fingerprint(KEY[::-1])


@pytest.fixture
def guest(tmp_path: pathlib.Path) -> _guest.Guest:
    made = _make.guest(root=str(tmp_path))
    for path in (made.paths.config, made.paths.state, made.paths.run):
        os.makedirs(path)
    return made


def test_qemus_copy_of_the_key(guest: _guest.Guest) -> None:
    assert not _link_key.is_current(guest)
    with pytest.raises(ColoError, match=r"site\.yml"):
        _link_key.write(guest)
    pathlib.Path(guest.key_file).write_text(KEY.hex() + "\n", encoding="ascii")
    assert not _link_key.is_current(guest)
    _link_key.write(guest)
    assert _link_key.is_current(guest)
    assert stat.S_IMODE(os.stat(guest.psk_file).st_mode) == 0o600
    assert os.listdir(guest.paths.run) == ["keys.psk"]
    pathlib.Path(guest.key_file).write_text(KEY[::-1].hex() + "\n", encoding="ascii")
    assert not _link_key.is_current(guest)
    _link_key.write(guest)
    assert _link_key.is_current(guest)


def test_a_link_that_was_put_there_is_not_followed(guest: _guest.Guest, tmp_path: pathlib.Path) -> None:
    """The directory is QEMU's user's, and the writer is root."""
    pathlib.Path(guest.key_file).write_text(KEY.hex() + "\n", encoding="ascii")
    victim = tmp_path / "victim"
    victim.write_text(_key.psk_line(KEY, "web1"), encoding="ascii")
    for name in (guest.psk_file, f"{guest.psk_file}.part"):
        os.symlink(victim, name)
    assert not _link_key.is_current(guest)
    victim.write_text("mine", encoding="ascii")
    _link_key.write(guest)
    assert victim.read_text(encoding="ascii") == "mine"
    assert not os.path.islink(guest.psk_file)
    assert _link_key.is_current(guest)


def test_a_link_in_the_clear_needs_no_key(tmp_path: pathlib.Path) -> None:
    definition = {**_make.definition(root=str(tmp_path)), "link_security": "none"}
    assert _link_key.is_current(_guest.from_definition(definition))
