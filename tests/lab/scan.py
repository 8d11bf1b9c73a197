# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A port scan: which TCP ports of an address accept a connection. Prints them as a JSON list.

scan.py ADDRESS [FIRST LAST]
"""

from __future__ import annotations

import asyncio
import json
import sys

AT_ONCE = 400
PATIENCE_S = 2.0


async def scan(address: str, ports: range) -> list[int]:
    """Those of the ports that somebody listens on and may be reached."""
    places = asyncio.Semaphore(AT_ONCE)

    async def knock(port: int) -> int | None:
        async with places:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    _reader, writer = await asyncio.open_connection(address, port)
            except (OSError, TimeoutError):
                return None
            writer.close()
            return port

    answers = await asyncio.gather(*(knock(port) for port in ports))
    return [port for port in answers if port is not None]


def main() -> None:
    address, *rest = sys.argv[1:]
    first, last = (int(word) for word in rest) if rest else (1, 65535)
    print(json.dumps(asyncio.run(scan(address, range(first, last + 1)))))


if __name__ == "__main__":
    main()
