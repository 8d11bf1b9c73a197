# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test guest: Debian's kernel, a handful of its modules and one static program (guest/init.c) as an initramfs.

And a qcow2 with a marker at its begin, to be used as `source` of a disk.
"""

from __future__ import annotations

import hashlib
import lzma
import pathlib
import struct
import subprocess
from collections.abc import Callable, Iterable
from typing import Any

from labroot import LabError, run

SOURCE = pathlib.Path(__file__).resolve().parent / "guest" / "init.c"
FORMAT = 1  # raise it when the images change without a change of init.c or the kernel

# Loaded with their dependencies, in this order.
MODULES = ("virtio_blk", "virtio_net", "e1000", "e1000e", "8139cp", "vmxnet3", "button", "evdev")

# quiet and without probes that wait: the guest is to be up in a few seconds under TCG.
KERNEL_OPTIONS = (
    "console=ttyS0 quiet panic=5 ipv6.disable=1 nokaslr mitigations=off tsc=unstable audit=0 apparmor=0 selinux=0 "
    "nowatchdog no_timer_check i8042.noaux i8042.nokbd random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1"
)

MARKER = b"lockstep.colo lab: this disk was made from /srv/lab/data.qcow2\n"


def cpio(entries: Iterable[tuple[str, int, bytes, tuple[int, int]]]) -> bytes:
    """A newc archive of (name, mode, content, device number); needs no cpio program and makes no device node here."""
    out = bytearray()

    def member(number: int, name: str, mode: int, data: bytes, device: tuple[int, int]) -> None:
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, device[0], device[1], len(path), 0)
        out.extend(b"070701" + "".join(f"{field:08x}" for field in fields).encode())
        out.extend(path + b"\0" * (-(110 + len(path)) % 4))
        out.extend(data + b"\0" * (-len(data) % 4))

    for number, (name, mode, data, device) in enumerate(entries, start=1):
        member(number, name, mode, data, device)
    member(0, "TRAILER!!!", 0, b"", (0, 0))
    return bytes(out)


def qcow2(size: int, content: bytes) -> bytes:
    """A version 3 qcow2 of `size` bytes that begins with `content`; the rest reads as zeroes.

    One table of each kind is enough below 512 MiB.
    """
    cluster = 65536
    if size > 512 << 20 or len(content) > cluster:
        raise ValueError("this writer knows small images only")
    # clusters: 0 header, 1 refcount table, 2 refcount block, 3 L1, 4 L2, 5 data
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, size, 0, 1, 3 * cluster, 1 * cluster, 1, 0, 0, 0, 0, 0, 4, 104
    ) + struct.pack(">II", 0, 0)
    copied = 1 << 63
    parts = [
        header,
        struct.pack(">Q", 2 * cluster),
        struct.pack(">6H", *[1] * 6),
        struct.pack(">Q", 4 * cluster | copied),
        struct.pack(">Q", 5 * cluster | copied),
        content,
    ]
    return b"".join(part.ljust(cluster, b"\0") for part in parts)


def with_dependencies(names: Iterable[str], modules_dep: str) -> list[str]:
    """Paths of modules and what they need, in an order in which they load. Names built in or absent are left out."""
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _sep, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_"): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        for other in needs[path]:
            add(other)
        if path not in order:
            order.append(path)

    for name in names:
        if name in by_name:
            add(by_name[name])
    return order


class GuestImage:
    def __init__(self, cache: pathlib.Path, kernel: pathlib.Path, log: Callable[[str], None]) -> None:
        self.directory = cache / "guest"
        self.kernel = kernel
        self.log = log

    def _stamp(self) -> str:
        own = pathlib.Path(__file__).read_bytes() + SOURCE.read_bytes()
        return f"{FORMAT} {self.kernel.name} {hashlib.sha256(own).hexdigest()}\n"

    def build(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        stamp = self.directory / "stamp"
        if stamp.exists() and stamp.read_text(encoding="ascii") == self._stamp():
            return
        self.log("building the test guest")
        stamp.unlink(missing_ok=True)
        vmlinuz = next(iter(sorted((self.kernel / "boot").glob("vmlinuz-*"))))
        self._write("vmlinuz", vmlinuz.read_bytes())
        self._write("initrd.img", self._initramfs(vmlinuz.name.removeprefix("vmlinuz-")))
        self._write("data.qcow2", qcow2(64 << 20, MARKER))
        stamp.write_text(self._stamp(), encoding="ascii")

    def _write(self, name: str, data: bytes) -> None:
        part = self.directory / f".{name}.part"
        part.write_bytes(data)
        part.chmod(0o644)
        part.rename(self.directory / name)

    def _initramfs(self, release: str) -> bytes:
        init = self.directory / ".init"
        flags = ["-static", "-O2", "-s", "-Wall", "-Wextra", "-pthread"]
        run(["gcc", *flags, "-o", str(init), str(SOURCE)], timeout=120)
        none = (0, 0)
        entries: list[tuple[str, int, bytes, tuple[int, int]]] = [
            ("dev", 0o040755, b"", none),
            ("dev/console", 0o020600, b"", (5, 1)),
            ("proc", 0o040755, b"", none),
            ("sys", 0o040755, b"", none),
            ("modules", 0o040755, b"", none),
            ("init", 0o100755, init.read_bytes(), none),
        ]
        init.unlink()
        for number, (name, data) in enumerate(self._modules(release)):
            entries.append((f"modules/{number:02d}-{name}.ko", 0o100644, data, none))
        packed: subprocess.CompletedProcess[Any] = subprocess.run(
            ["zstd", "-q", "-3", "-c"], input=cpio(entries), capture_output=True, timeout=120, check=False
        )
        if packed.returncode != 0:
            raise LabError(f"zstd failed: {packed.stderr!r}")
        return bytes(packed.stdout)

    def _modules(self, release: str) -> list[tuple[str, bytes]]:
        trees = (self.kernel / "usr/lib/modules" / release, self.kernel / "lib/modules" / release)
        tree = next(path for path in trees if path.is_dir())
        if not (tree / "modules.dep").exists():
            run(["depmod", "-b", str(tree.parents[2]), release], timeout=120)
        found: list[tuple[str, bytes]] = []
        for path in with_dependencies(MODULES, (tree / "modules.dep").read_text(encoding="utf-8")):
            data = (tree / path).read_bytes()
            name = path.rsplit("/", 1)[-1].split(".ko", 1)[0]
            found.append((name, lzma.decompress(data) if path.endswith(".xz") else data))
        return found
