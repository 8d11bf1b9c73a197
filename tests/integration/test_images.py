# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that pretend: no format is guessed, and no file is read because an image says so."""

from __future__ import annotations

import pathlib
import subprocess

from ansible_collections.lockstep.colo.plugins.module_utils import _image
from ansible_collections.lockstep.colo.tests.integration._pair import Pair, refused

SECRET = b"a secret of this host".ljust(512, b".")
SIZE = 16 << 20


def tool(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def run(args: list[str], **_more: object) -> tuple[int, str, str]:
    """AnsibleModule.run_command."""
    done = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def pretender(directory: pathlib.Path) -> pathlib.Path:
    """What looks like a qcow2 image over a file of this host."""
    secret, image = directory / "secret", directory / "image"
    secret.write_bytes(SECRET * 2048)
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(image), str(SIZE))
    return image


def test_a_raw_image_that_pretends_to_be_another_is_taken_as_it_is_told(tmp_path: pathlib.Path) -> None:
    image, parent, flat = pretender(tmp_path), tmp_path / "parent.qcow2", tmp_path / "flat"
    wish = _image.Wish(path=str(parent), size_bytes=SIZE, source=str(image), source_format="raw", checksum=None)
    assert _image.ensure_parent(run, wish, False, lambda _path: None)
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(parent), str(flat))
    held = flat.read_bytes()
    assert held.startswith(image.read_bytes())
    assert SECRET not in held
    # the check can fail: told to be qcow2, the same file is the secret, and refused
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(flat))
    assert SECRET in flat.read_bytes()
    with refused("image_has_backing"):
        _image.ensure_parent(
            run,
            _image.Wish(path=f"{parent}2", size_bytes=SIZE, source=str(image), source_format="qcow2", checksum=None),
            False,
            lambda _path: None,
        )


def test_overlays_of_a_running_standby_are_not_replaced(pair: Pair) -> None:
    """QEMU's locks tell it from the entry into lock step on, and no tool reads what QEMU has written."""
    beta = pair.beta
    beta.stand_by(pair.alpha.serve()["generation"])
    pair.alpha.migrate("primary", "protected")
    with refused("image_in_use"):
        _image.fresh_overlays(run, beta.guest)
    beta.units.power_off()
    _image.fresh_overlays(run, beta.guest)


def test_a_guest_does_not_read_what_its_images_header_names(pair: Pair, tmp_path: pathlib.Path) -> None:
    """The header was changed after it was checked: QEMU is told that there is no backing file, and does not look for it."""
    alpha = pair.alpha
    image = alpha.guest.image(alpha.guest.disks[0], "parent")
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x41" * SIZE)
    tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", str(secret), "-F", "raw", image)
    alpha.serve()
    assert not alpha.holds(0x41)
    assert alpha.holds(0)
