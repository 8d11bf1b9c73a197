# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The integration tests' rooms: a Debian root per QEMU release, and a command run in one of them.

A root is bootstrapped once into the lab's cache. Each run gets it as the lower layer of an overlay in memory, in
namespaces of its own (mounts, network with nothing but a loopback, processes), so a run disturbs nothing, needs nothing
from the machine but the kernel, and leaves nothing behind, however it ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

from labproc import locked
from labroot import LabError, Log, Mirror, digest, find_mirror, run

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent.parent
CACHE = TOP / "build" / "lab-cache"
LAYOUT = 1  # raise it when the content of a root changes without a change of the lists below
PACKAGES = ("base-files", "coreutils", "dash", "iproute2", "mount", "python3", "qemu-system-x86", "qemu-utils")
# Distributions in pure Python, taken from where this program runs, so that all rooms have the pinned ones.
LIBRARIES = ("ansible-core", "execnet", "iniconfig", "packaging", "pluggy", "pygments", "pytest", "pytest-xdist")


@dataclasses.dataclass(frozen=True)
class Release:
    """Where Debian has a QEMU: ``version`` is how its version begins."""

    suite: str
    backports: bool
    version: str
    library: str | None = None  # the package of qemu.qmp, where that suite has one; else the pinned one of this program

    @property
    def target(self) -> str:
        return f"{self.suite}-backports" if self.backports else self.suite

    @property
    def packages(self) -> tuple[str, ...]:
        return PACKAGES + ((self.library,) if self.library else ())


#: The QEMUs that operators have, by the name under which the tests ask for one.
RELEASES = {
    "11.1": Release("trixie", backports=True, version="11.1.", library="python3-qemu-qmp"),
    "10.0": Release("trixie", backports=False, version="10.0."),
    "10.0.2": Release("bookworm", backports=True, version="10.0.2"),
    "7.2": Release("bookworm", backports=False, version="7.2."),
}


def sources(release: Release, mirror: Mirror) -> str:
    """Sources of one release: its suite with updates and security, and backports where they are wanted."""
    suites = [release.suite, f"{release.suite}-updates"] + ([release.target] if release.backports else [])
    text = mirror.sources(suites, security=False)
    if mirror.security:
        security = dataclasses.replace(mirror, archive=mirror.security)
        text += "\n" + security.sources([f"{release.suite}-security"], security=False)
    return text


def root(name: str, cache: pathlib.Path, log: Log) -> pathlib.Path:
    """The root with that QEMU, built if it is not there; a half built one is never used."""
    release, mirror = RELEASES[name], find_mirror()
    place = cache / f"qemu-{name}-{digest(LAYOUT, release, release.packages, mirror)}"
    if not place.is_dir():
        with locked(cache / "qemu.lock"):
            if not place.is_dir():
                log(f"building the root with QEMU {name} (half a minute)")
                part = place.with_name(place.name + ".part")
                shutil.rmtree(part, ignore_errors=True)
                _build(release, mirror, part)
                part.rename(place)
    return place


def _build(release: Release, mirror: Mirror, part: pathlib.Path) -> None:
    listing = part.with_name(part.name + ".sources")
    listing.write_text(sources(release, mirror), encoding="utf-8")
    # unpacked, not configured: nothing in here runs but Python and QEMU
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--include={','.join(release.packages)}"]
    options = [*mirror.apt_options, 'APT::Install-Recommends "false"', f'APT::Default-Release "{release.target}"']
    argv += [f"--aptopt={option}" for option in options]
    run([*argv, release.suite, str(part), str(listing)])
    listing.unlink()
    (part / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="ascii")
    (part / "etc/group").write_text("root:x:0:\n", encoding="ascii")
    words = run(["chroot", str(part), "qemu-system-x86_64", "--version"]).split()
    if not words[3].startswith(release.version):
        raise LabError(f"{release.target} has QEMU {words[3]} where {release.version} was expected")


def libraries(release: Release) -> list[str]:
    """Directories and files of this program's Python that the tests import."""
    found: set[str] = set()
    for name in LIBRARIES + (() if release.library else ("qemu.qmp",)):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise LabError(f"{name} is missing: run scripts/bootstrap, and use build/venv/bin/python") from None
        tops = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
        found |= {str(distribution.locate_file(top)) for top in tops}
    return sorted(found)


def inside(name: str, cache: pathlib.Path, log: Log, argv: list[str], timeout_s: float) -> int:
    """Run a command in the room of that QEMU and return its exit status; at the deadline everything in it is killed."""
    layer = root(name, cache, log)
    place = cache / "inside"
    place.mkdir(exist_ok=True)
    environment = {
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "LOCKSTEP_QEMU": name,
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPYCACHEPREFIX": "/tmp/python",
        "PYTHONPATH": "/srv/lib",
        "PYTHONUNBUFFERED": "1",
        "TERM": os.environ.get("TERM", "dumb"),
        "USER": "root",
    }
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    script = ["sh", str(HERE / "inside.sh"), str(layer), str(place), str(TOP), *libraries(RELEASES[name]), "--"]
    chdir = ["env", "--chdir=/srv/colo"]
    with subprocess.Popen(
        [*namespaces, *script, *chdir, *argv], env=environment, stdin=None if sys.stdin.isatty() else subprocess.DEVNULL
    ) as process:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"the tests on QEMU {name} did not end within {timeout_s:.0f} s") from None
        finally:
            process.kill()  # takes the namespaces with it


def main() -> int:
    parser = argparse.ArgumentParser(description="run something beside a real QEMU of a given release")
    parser.add_argument(
        "--cache", type=pathlib.Path, default=CACHE, help="where roots are kept (default: build/lab-cache)"
    )
    parser.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS", help="everything is killed then")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in (
        ("root", "build the root if it is not there, and print where it is"),
        ("test", "run pytest in it; the words that follow are for pytest (default: tests/integration)"),
        ("exec", "run a command in it (default: a shell)"),
    ):
        sub = commands.add_parser(command, help=what)
        sub.add_argument("release", choices=RELEASES)
        if command != "root":
            sub.add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("labqemu: root is needed (namespaces, mounts)", file=sys.stderr)
        return 1
    os.umask(0o022)
    options.cache.mkdir(parents=True, exist_ok=True)
    cache = options.cache.resolve()

    def log(text: str) -> None:
        print(f"labqemu: {text}", file=sys.stderr)

    try:
        if options.command == "root":
            print(root(options.release, cache, log))
            return 0
        words: list[str] = options.words[1:] if options.words[:1] == ["--"] else options.words
        if options.command == "test":
            words = ["python3", "-m", "pytest", "-o", "cache_dir=/tmp/pytest", *(words or ["tests/integration"])]
        return inside(options.release, cache, log, words or ["sh"], options.timeout)
    except LabError as error:
        print(f"labqemu: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
