# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a guest's key is where it must not be, in any form in which it could get there.

`forms` runs on a host, with the collection's library, and prints what to look for: the key and the one that QEMU gets of it,
each in hex and base64, also as slurp returns their files. That is as secret as the key. `search` reads such forms from its
standard input and prints the names of those that it finds in files, and on a host in its journal, its command lines and its
environments. Names tell nothing of a key.

  leaks.py forms GUEST
  leaks.py search [--host] [FILE]...
"""

from __future__ import annotations

import argparse
import base64
import json
import pathlib
import subprocess
import sys

CONFIG, RUN = pathlib.Path("/etc/lockstep-colo"), pathlib.Path("/run/lockstep-colo")


def forms(name: str, digits: str, before: str = "") -> dict[str, str]:
    """Name to text of each form of 256 bits in hex; `before`: what stands before them in their file."""
    whole = base64.b64encode((before + digits).encode()).decode()
    return {
        f"{name} in hex": digits.lower(),
        f"{name} in HEX": digits.upper(),
        # the last characters depend on what comes after
        f"{name} in base64": base64.b64encode(bytes.fromhex(digits)).decode()[:40],
        f"{name}'s file in base64": whole[: len(before + digits) // 3 * 4],
    }


def forms_here(guest: str) -> dict[str, str]:
    """Those of a guest's key on this host; what QEMU reads may still be made from an earlier one."""
    from ansible_collections.lockstep.colo.plugins.module_utils import _key

    digits = (CONFIG / f"{guest}.key").read_text(encoding="ascii").strip()
    user, derived = _key.psk_line(_key.read_key(digits), guest).strip().split(":")
    used = (RUN / guest / "keys.psk").read_text(encoding="ascii").strip().split(":")[1]
    return {
        **forms("the key", digits),
        **forms("the key for QEMU", derived, f"{user}:"),
        **forms("the key that QEMU has", used, f"{user}:"),
    }


def host_says() -> bytes:
    """The journal of this boot with all fields, and what every process shows of itself."""
    journal = subprocess.run(
        ["journalctl", "--boot", "--output=verbose", "--all"],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ).stdout
    shown = []
    for pattern in ("[0-9]*/cmdline", "[0-9]*/environ"):
        for path in pathlib.Path("/proc").glob(pattern):
            try:
                shown.append(path.read_bytes())
            except OSError:
                continue  # it has ended meanwhile
    if not any(b"colo_keeper.py" in each for each in shown):
        raise SystemExit("no keeper runs here: this looks at the wrong processes")
    return b"\n".join([journal, *shown])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("forms").add_argument("guest")
    search = commands.add_parser("search")
    search.add_argument("--host", action="store_true")
    search.add_argument("file", nargs="*", type=pathlib.Path)
    options = parser.parse_args()
    if options.command == "forms":
        print(json.dumps(forms_here(options.guest)))
        return
    wanted: dict[str, str] = json.load(sys.stdin)
    texts = {str(path): path.read_bytes() for path in options.file}
    if options.host:
        texts["this host"] = host_says()
    if not wanted or not all(texts.values()):
        raise SystemExit("nothing to look for, or nothing to look at")
    found = {
        place: sorted(name for name, form in wanted.items() if form.encode() in text) for place, text in texts.items()
    }
    print(json.dumps({place: names for place, names in found.items() if names}))


if __name__ == "__main__":
    main()
