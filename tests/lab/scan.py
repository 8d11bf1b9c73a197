# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A port scan: which TCP ports of an address accept a connection. Prints them as a JSON list.

scan.py ADDRESS [FIRST LAST]
"""

from __future__ import annotations

import concurrent.futures
import json
import socket
import sys

# On the lab's wires an answer is there before the call returns. What gives none is asked once more, with patience.
GLANCE_S = 0.02
PATIENCE_S = 2.0
SILENT = 1000  # more than any firewall of ours drops: the address does not answer at all


def knock(address: str, port: int, timeout_s: float) -> bool | None:
    """Whether the port accepts a connection; None if nothing says so or otherwise in time."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as here:
        here.settimeout(timeout_s)
        try:
            here.connect((address, port))
        except TimeoutError:
            return None
        except OSError:
            return False
    return True


def scan(address: str, ports: range) -> list[int]:
    """Those of the ports that somebody listens on and may be reached."""
    answers: dict[int, bool | None] = {}
    silent: list[int] = []
    for port in ports:
        answers[port] = knock(address, port, GLANCE_S)
        if answers[port] is None:
            silent.append(port)
            if len(silent) > SILENT:
                raise SystemExit(f"{address} does not answer: {SILENT} ports of {port} are silent")
    with concurrent.futures.ThreadPoolExecutor(max(1, len(silent))) as pool:
        answers |= dict(zip(silent, pool.map(lambda port: knock(address, port, PATIENCE_S), silent), strict=True))
    return [port for port, answer in answers.items() if answer]


def main() -> None:
    address, *rest = sys.argv[1:]
    first, last = (int(word) for word in rest) if rest else (1, 65535)
    print(json.dumps(scan(address, range(first, last + 1))))


if __name__ == "__main__":
    main()
