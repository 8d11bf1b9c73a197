# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images: make a parent once, never overwrite it, and make fresh overlays for each start of a standby.

The format of an image is told, never guessed, and what an image says about itself is read from its header here before
any tool opens it: a file that names a backing file or an external data file would make the tool read that file too.

A guest's images are in a directory that its QEMU can write, at any moment: what is made there is made through a descriptor,
never by a name that may have become a link.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import struct
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _nofollow
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

if t.TYPE_CHECKING:
    from ansible_collections.lockstep.colo.plugins.module_utils._guest import Disk, Guest

#: ``AnsibleModule.run_command`` or a stand-in: takes the words of a command, returns code, stdout, stderr.
RunCommand = t.Callable[[list[str]], tuple[int, str, str]]

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = 104
_CORRUPT = 1 << 1
_EXTERNAL_DATA = 1 << 2
_CHUNK = 1 << 20
_FLOCK = "hhqqi4x"  # struct flock


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image says about itself."""

    virtual_size: int
    backing: bool = False
    external_data: bool = False
    encrypted: bool = False
    corrupt: bool = False


@dataclasses.dataclass(frozen=True)
class Wish:
    """One parent image as it should be; without ``source`` it is made blank."""

    path: str
    size_bytes: int
    source: str | None = None
    source_format: str = "qcow2"
    checksum: str | None = None


# --- pure ---------------------------------------------------------------------------------------------------------


def parse_header(image_format: str, head: bytes, file_size: int) -> Header | None:
    """Read an image's first bytes as ``image_format`` (``qcow2`` or ``raw``); ``None`` when they are not that."""
    if image_format == "raw":
        return Header(file_size) if file_size else None
    if len(head) < 72 or head[:4] != _QCOW2_MAGIC:
        return None
    version, backing, _backing_size, _cluster_bits, size, encryption = struct.unpack(">IQIIQI", head[4:36])
    if version not in (2, 3) or (version == 3 and len(head) < _QCOW2_HEADER):
        return None
    incompatible = struct.unpack(">Q", head[72:80])[0] if version == 3 else 0
    return Header(
        virtual_size=size,
        backing=backing != 0,
        external_data=bool(incompatible & _EXTERNAL_DATA),
        encrypted=encryption != 0,
        corrupt=bool(incompatible & _CORRUPT),
    )


def check_header(path: str, image_format: str, header: Header | None) -> Header:
    """Return a header that can be used, else raise and say why not."""
    if header is None:
        raise ColoError(
            "image_not_format", f"{path} is no {image_format} image: give its real format, or another file", path=path
        )
    for wrong, code, text in (
        (header.backing, "image_has_backing", "names a backing file: flatten it with qemu-img convert"),
        (
            header.external_data,
            "image_has_data_file",
            "keeps its data in another file: flatten it with qemu-img convert",
        ),
        (
            header.encrypted,
            "image_encrypted",
            "is encrypted, which COLO cannot replicate: decrypt it with qemu-img convert",
        ),
        (header.corrupt, "image_corrupt", "is marked corrupt: repair it with qemu-img check, or restore it"),
    ):
        if wrong:
            raise ColoError(code, f"{path} {text}", path=path)
    return header


def make_overlay_commands(guest: Guest, disk: Disk) -> list[tuple[str, list[str]]]:
    """For the active and the hidden overlay of ``disk``: its path, and the command that makes it beside that path."""
    commands: list[tuple[str, list[str]]] = []
    for kind in ("active", "hidden"):
        path = guest.image(disk, "active" if kind == "active" else "hidden")
        commands.append((path, ["qemu-img", "create", "-q", "-f", "qcow2", _part(path), str(disk.size_bytes)]))
    return commands


def make_parent_commands(wish: Wish, source_size: int | None) -> list[list[str]]:
    """The commands that make the parent of ``wish`` beside its path; ``source_size`` is the source's virtual size."""
    part = _part(wish.path)
    if wish.source is None or source_size is None:
        return [["qemu-img", "create", "-q", "-f", "qcow2", part, str(wish.size_bytes)]]
    commands = [["qemu-img", "convert", "-q", "-f", wish.source_format, "-O", "qcow2", wish.source, part]]
    if source_size < wish.size_bytes:
        commands.append(["qemu-img", "resize", "-q", "-f", "qcow2", part, str(wish.size_bytes)])
    return commands


def _part(path: str) -> str:
    """Where an image is made before it gets its name; fixed, so that the next run finds what a killed one left."""
    return f"{path}.part"


# --- effect -------------------------------------------------------------------------------------------------------


def read_header(path: str, image_format: str, follow: bool = True) -> Header:
    """Read the header of the file at ``path``, or say why it cannot be used. A source may be a link, an image of ours not."""
    file_path = pathlib.Path(path)
    try:
        # raises where a directory above may not be passed, as root by NFS
        if not file_path.is_file() or (file_path.is_symlink() and not follow):
            kind = "is not a plain file" if file_path.exists() else "does not exist on this host"
            raise ColoError("image_missing", f"{path} {kind}: put the image there, or correct the path", path=path)
        with open(path, "rb", opener=os.open if follow else _nofollow.open_regular) as file:
            head = file.read(_QCOW2_HEADER)
            size = os.fstat(file.fileno()).st_size
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    return check_header(path, image_format, parse_header(image_format, head, size))


def _unreadable(path: str, exc: OSError) -> ColoError:
    text = f"{path} cannot be read ({exc.strerror}): check the file and its device"
    return ColoError("image_unreadable", text, path=path)


def check_existing(path: str, size_bytes: int) -> Header:
    """Check a parent that is there already; it is never changed, so a different size is refused."""
    header = read_header(path, "qcow2", follow=False)
    if header.virtual_size != size_bytes:
        raise ColoError(
            "image_size_differs",
            f"{path} has a virtual size of {header.virtual_size} bytes, not {size_bytes}: correct the disk's size; "
            "images are never resized here",
            path=path,
            virtual_size=header.virtual_size,
            size=size_bytes,
        )
    return header


def check_source(wish: Wish) -> Header | None:
    """Check the source of a parent that is still to be made; ``None`` for a blank one."""
    if wish.source is None:
        return None
    header = read_header(wish.source, wish.source_format)
    if header.virtual_size > wish.size_bytes:
        raise ColoError(
            "image_source_larger",
            f"{wish.source} holds a disk of {header.virtual_size} bytes, more than {wish.size_bytes}: raise the "
            "disk's size",
            path=wish.source,
            virtual_size=header.virtual_size,
            size=wish.size_bytes,
        )
    return header


def check_checksum(path: str, checksum: str) -> None:
    """Compare the file's SHA-256 with ``sha256:<hex>``."""
    digest = hashlib.sha256()
    try:
        with pathlib.Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    if f"sha256:{digest.hexdigest()}" != checksum:
        raise ColoError(
            "image_checksum_differs",
            f"{path} has checksum sha256:{digest.hexdigest()}, not {checksum}: fetch the image again, or correct "
            "the checksum",
            path=path,
        )


def ensure_parent(run_command: RunCommand, wish: Wish, check_mode: bool, own: t.Callable[[int], object]) -> bool:
    """Make the parent of ``wish`` unless it is there; tell whether it was (or in check mode would be) made.

    ``own`` gives a finished file, by its descriptor, its owner and mode before it gets its name.
    """
    if os.path.lexists(wish.path):
        check_existing(wish.path, wish.size_bytes)
        if not check_mode and os.path.lexists(_part(wish.path)):
            pathlib.Path(_part(wish.path)).unlink()  # left by a run that was killed
        return False
    source = check_source(wish)
    if wish.source is not None and wish.checksum is not None:
        check_checksum(wish.source, wish.checksum)
    if check_mode:
        return True
    commands = make_parent_commands(wish, None if source is None else source.virtual_size)
    with _built(run_command, wish.path, commands) as descriptor:
        check_existing(_part(wish.path), wish.size_bytes)
        own(descriptor)
        os.fsync(descriptor)
        _publish(wish.path)
    return True


def fresh_overlays(run_command: RunCommand, guest: Guest) -> None:
    """Replace the active and hidden overlays of every disk by empty ones of exactly the parent's virtual size.

    For a standby that is about to start; an overlay a running QEMU holds is refused (``image_in_use``).
    """
    for disk in guest.disks:
        check_existing(guest.image(disk, "parent"), disk.size_bytes)
        for path, command in make_overlay_commands(guest, disk):
            _refuse_in_use(path)
            with _built(run_command, path, [command]) as descriptor:
                shutil.chown(descriptor, guest.user, guest.user)
                pathlib.Path(_part(path)).replace(path)


def _refuse_in_use(path: str) -> None:
    """QEMU locks the images that it has open. No tool is asked, which would read what a QEMU has written there."""
    try:
        descriptor = _nofollow.open_regular(path, os.O_RDONLY)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ELOOP, errno.EINVAL, errno.ENXIO):
            return  # nothing, or no file: it is replaced
        raise ColoError("image_unreadable", f"{path} cannot be read ({exc.strerror}): check its device") from exc
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(descriptor)
    if struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK:
        raise ColoError("image_in_use", f"{path} is used by a running QEMU: stop this host's standby first", path=path)


@contextlib.contextmanager
def _built(run_command: RunCommand, path: str, commands: t.Sequence[list[str]]) -> t.Iterator[int]:
    """Run the commands that make ``path``'s part file, readable only by root until it is finished; a descriptor of it."""
    part = _part(path)
    try:
        pathlib.Path(part).unlink(missing_ok=True)
        descriptor = _nofollow.open_regular(part, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    except OSError as exc:
        raise ColoError(
            "image_not_written", f"{part} cannot be made ({exc.strerror}): check the directory", path=path
        ) from exc
    try:
        place = f"/proc/{os.getpid()}/fd/{descriptor}"
        for command in commands:
            code, out, err = run_command([place if word == part else word for word in command])
            if code != 0:
                pathlib.Path(part).unlink(missing_ok=True)
                raise ColoError(
                    "image_not_written",
                    f"{path} was not made, {command[0]} {command[1]} said: {(err or out).strip().replace(place, part)}",
                    path=path,
                    command=command,
                    rc=code,
                )
        yield descriptor
    finally:
        os.close(descriptor)


def _publish(path: str) -> None:
    """Give the finished part file its name, durably, and never in the place of a file that appeared meanwhile."""
    part = _part(path)
    try:
        os.link(part, path, follow_symlinks=False)
    except FileExistsError:
        raise ColoError(
            "image_exists", f"{path} appeared while it was being made; it was left as it is: run again", path=path
        ) from None
    pathlib.Path(part).unlink()
    _sync(str(pathlib.Path(path).parent))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
