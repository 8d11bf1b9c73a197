# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.lockstep.colo.plugins.module_utils import _observe

# /proc/net/tcp of a standby: port 9004 listens and has a connection, 9005 only listens, 9001 has one that the peer has closed,
# 9006 is the other end's port
TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 016433C6:232C 00000000:0000 0A 00000000:00000000 00:00000000 00000000   995        0 1 1 0 100 0 0 10 0
   1: 016433C6:232D 00000000:0000 0A 00000000:00000000 00:00000000 00000000   995        0 2 1 0 100 0 0 10 0
   2: 016433C6:232C 026433C6:A1B2 01 00000000:00000000 00:00000000 00000000   995        0 3 1 0 20 4 30 10 -1
   3: 016433C6:2329 026433C6:A1B4 08 00000000:00000001 00:00000000 00000000   995        0 4 1 0 20 4 30 10 -1
   4: 016433C6:D431 026433C6:232E 01 00000000:00000000 00:00000000 00000000   995        0 5 1 0 20 4 30 10 -1
"""


def test_only_connections_that_are_open_count_and_by_their_local_port() -> None:
    assert _observe.established(TABLE) == {9004, 0xD431}
    assert _observe.established(TABLE.splitlines()[0]) == set()


def test_where_a_standby_takes_the_guest() -> None:
    inet = {"type": "inet", "host": "fd00::1", "port": "9000"}
    assert _observe.incoming({"status": "setup", "socket-address": [inet]}) == "[fd00::1]:9000"
    assert _observe.incoming({"status": "setup", "socket-address": [{**inet, "host": "192.0.2.1"}]}) == "192.0.2.1:9000"
    assert _observe.incoming({"status": "none"}) is None
