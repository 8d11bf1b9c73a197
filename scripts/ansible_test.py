# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run ansible-test on a copy of the checkout: ``scripts/ansible_test.py sanity|units [ARGUMENTS...]``.

ansible-test insists on a path ending in ``ansible_collections/lockstep/colo``, on real interpreters (a pyenv shim
fails), and on fetching pip from one address. So it gets a copy of the files git knows or would know, a PATH of real
interpreters, and a home of its own in which that pip is "cached" already: a few lines that ask the package index.
Nothing outside build/ is written.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
BUILD = TOP / "build" / "ansible-test"
COPY = BUILD / "ansible_collections" / "lockstep" / "colo"
HOME = BUILD / "home"

# What ansible-test runs in place of the get-pip.py that it would download. Arguments: pip options, then packages.
GET_PIP = """\
import subprocess
import sys

options = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"], stdout=subprocess.DEVNULL)
subprocess.check_call([sys.executable, "-m", "pip", "install", *options])
"""


def copy_files() -> None:
    """Make COPY hold exactly the files of the checkout that git tracks or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TOP,
        check=True,
        capture_output=True,
    )
    # All but tests/output: there ansible-test keeps the environment that it runs in.
    for entry in COPY.glob("*"):  # .git, too: glob shows hidden names
        if entry.name != "tests":
            _remove(entry)
    for entry in COPY.glob("tests/*"):
        if entry.name != "output":
            _remove(entry)
    for name in sorted(os.fsdecode(raw) for raw in listing.stdout.split(b"\0") if raw):
        source, target = TOP / name, COPY / name
        if not source.is_file() and not source.is_symlink():
            continue  # deleted, and not yet committed
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    # A repository of its own: without one ansible-test would look upwards and find the checkout's.
    subprocess.run(["git", "init", "--quiet", "--initial-branch=copy", "."], cwd=COPY, check=True)


def _remove(entry: pathlib.Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def make_home() -> None:
    """Give ansible-test a home with its pip in the cache, and with the user's own pip configuration."""
    source = pathlib.Path(sys.prefix).glob("lib/python3.*/site-packages/ansible_test/_internal/**/*.py")
    versions = {
        found
        for path in source
        for found in re.findall(r"""\bpip\b['"]?\s*[=:]=?\s*['"]([0-9.]+)['"]""", path.read_text())
    }
    if not versions:
        raise SystemExit(
            "ansible_test.py: cannot tell which pip this ansible-test wants; look at its get_venv_packages()"
        )
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in versions:
        (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(GET_PIP)
    for name in (".pip", ".config/pip"):
        theirs, ours = pathlib.Path.home() / name, HOME / name
        if theirs.is_dir() and not ours.is_symlink():
            ours.parent.mkdir(parents=True, exist_ok=True)
            ours.symlink_to(theirs)


def environment() -> dict[str, str]:
    """The caller's environment with HOME and PATH changed, and without what would lead ansible-test elsewhere."""
    dropped = ("ANSIBLE_", "PYTHON", "PYENV", "VIRTUAL_ENV", "PYTEST")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = [f"{sys.prefix}/bin", str(pathlib.Path(sys._base_executable).resolve().parent)]  # type: ignore[attr-defined]
    path += [entry for entry in os.environ.get("PATH", os.defpath).split(":") if entry and "/shims" not in entry]
    return env | {"HOME": str(HOME), "PATH": ":".join(dict.fromkeys(path)), "LC_ALL": "C.UTF-8"}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in ("sanity", "units"):
        print(__doc__, file=sys.stderr)
        return 2
    command, *arguments = sys.argv[1:]
    copy_files()
    make_home()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    argv = [
        sys.executable,
        f"{sys.prefix}/bin/ansible-test",
        command,
        "--venv",
        "--python",
        python,
        "--color",
        "no",
        *arguments,
    ]
    return subprocess.run(argv, cwd=COPY, env=environment(), stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
