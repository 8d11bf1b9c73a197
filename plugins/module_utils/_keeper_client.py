# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules' synchronous client of the keeper's local API (effect). One connection and one deadline per call."""

from __future__ import annotations

import json
import socket
import time
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _peer
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

_MAX_REPLY = 1024 * 1024  # bytes; a state with 64 events has some ten thousand


class KeeperClient:
    """Ask the keeper behind *socket_path*; each call ends within *timeout_s* seconds.

    With *unit*, only a process of that systemd unit is asked (``socket_foreign``).

    Error codes of every call: ``keeper_unreachable``, or what the keeper answered (``yank_refused``,
    ``qemu_unreachable``, ``bad_request``, ...).
    """

    def __init__(self, socket_path: str, timeout_s: float = 3.0, unit: str | None = None) -> None:
        self._path = socket_path
        self._unit = unit
        self._timeout_s = timeout_s

    def state(self) -> dict[str, t.Any]:
        """Return what the keeper knows."""
        return t.cast("dict[str, t.Any]", self._call({"op": "state"}, "state", dict))

    def query_yank(self) -> list[dict[str, t.Any]]:
        """Return the instances that QEMU says can be yanked (out of band: works while its main loop is blocked)."""
        return t.cast("list[dict[str, t.Any]]", self._call({"op": "query_yank"}, "instances", list))

    def yank(self, instances: t.Sequence[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
        """Yank the given instances out of band, in order; return ``{"instance", "yanked", "reason"}`` of each."""
        request = {"op": "yank", "instances": [dict(instance) for instance in instances]}
        return t.cast("list[dict[str, t.Any]]", self._call(request, "results", list))

    def _call(self, request: dict[str, t.Any], field: str, kind: type) -> t.Any:
        reply = self._exchange(json.dumps(request).encode() + b"\n")
        try:
            answer = json.loads(reply)
        except (ValueError, RecursionError) as exc:
            raise self._unreachable("its answer is not JSON") from exc
        if isinstance(answer, dict) and answer.get("ok") is True and isinstance(answer.get(field), kind):
            return answer[field]
        if isinstance(answer, dict) and answer.get("ok") is False:
            raise ColoError(
                str(answer.get("error_code", "keeper_error")),
                str(answer.get("message", "The keeper refused.")),
                op=request["op"],
            )
        raise self._unreachable("its answer has an unexpected form")

    def _exchange(self, line: bytes) -> bytes:
        ends = time.monotonic() + self._timeout_s
        reply = bytearray()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.settimeout(self._timeout_s)
                connection.connect(self._path)
                if self._unit is not None:
                    _peer.check(connection, self._path, self._unit)
                connection.sendall(line)
                while not reply.endswith(b"\n"):
                    # A keeper that answers drop by drop must not outlive the deadline either.
                    left = ends - time.monotonic()
                    if left <= 0:
                        raise TimeoutError
                    connection.settimeout(left)
                    part = connection.recv(65536)
                    if not part:
                        raise self._unreachable("it closed the connection without an answer")
                    reply += part
                    if len(reply) > _MAX_REPLY:
                        raise self._unreachable("its answer does not end")
            except TimeoutError as exc:
                raise self._unreachable(f"it did not answer within {self._timeout_s:g} s") from exc
            except OSError as exc:
                raise self._unreachable(exc.strerror or str(exc)) from exc
        return bytes(reply)

    def _unreachable(self, why: str) -> ColoError:
        return ColoError(
            "keeper_unreachable",
            f"The keeper behind {self._path} cannot be asked: {why}. Look at the keeper's unit (colo-keeper@) and its "
            f"journal; it runs as long as the guest's unit does.",
            socket=self._path,
        )
