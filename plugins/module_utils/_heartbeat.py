# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The heartbeat between two keepers: authentication and messages (pure: no sockets, no clocks, no randomness).

One JSON object per line. The serving host's keeper connects, the standby's keeper listens::

    client -> {"colo_heartbeat": 1, "guest": G, "host": C, "nonce": NC}
    server -> {"nonce": NS, "proof": HMAC(key, "server proof" | context)}
    client -> {"proof": HMAC(key, "client proof" | context)}
    then, both ways, {"seq": N, "payload": "<json>", "mac": HMAC(direction key, N | payload)}, N = 1, 2, 3, ...

The context is guest, client host, server host and both nonces, so a proof is good for one session of one guest in one
direction: nothing that was recorded can be replayed, nothing that one side says can be sent back to it. The server
proves itself first; it does so to anybody who asks, which tells the asker nothing but that it has the key. The
heartbeat is authentic, not secret: it carries no guest data.

Error codes: ``heartbeat_refused`` (not authentic, out of order, not for this guest), ``heartbeat_malformed``.
"""

from __future__ import annotations

import hmac
import json
import re
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._key import derive

VERSION = 1
MAX_LINE = 16 * 1024  #: bytes, with the newline; the longest line either side sends or reads
NONCE_BYTES = 32


_HEX_256 = re.compile(r"[0-9a-f]{64}\Z")


def _refused(why: str) -> ColoError:
    return ColoError("heartbeat_refused", f"The heartbeat was refused: {why}.")


def _malformed(why: str) -> ColoError:
    return ColoError("heartbeat_malformed", f"The heartbeat line cannot be read: {why}.")


def _encode(message: dict[str, t.Any]) -> bytes:
    line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise _malformed(f"{len(line)} bytes, {MAX_LINE} are allowed")
    return line


def _decode(line: bytes, kinds: dict[str, type]) -> dict[str, t.Any]:
    """Parse one line that must have exactly the given fields and types."""
    if len(line) > MAX_LINE or not line.endswith(b"\n"):
        raise _malformed("it is too long or has no end")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise _malformed("it is not JSON") from exc
    if not isinstance(message, dict) or message.keys() != kinds.keys():
        raise _malformed("its fields are not the expected ones")
    for name, kind in kinds.items():
        # bool is an int for isinstance, and true is no sequence number
        if not isinstance(message[name], kind) or isinstance(message[name], bool):
            raise _malformed(f"field {name} is not of type {kind.__name__}")
    return message


def _nonce(message: dict[str, t.Any]) -> str:
    if not _HEX_256.match(message["nonce"]):
        raise _malformed("the nonce is not 64 hex digits")
    return str(message["nonce"])


def _check(expected: str, given: str, what: str) -> None:
    # As bytes: compare_digest refuses str that is not ASCII, and what was received may be anything.
    if not hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass")):
        raise _refused(what)


class Session:
    """An authenticated session: seals what is sent, opens what was received, each in strict order."""

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        self._send_key = send_key
        self._receive_key = receive_key
        self._sent = 0
        self._received = 0

    def seal(self, payload: dict[str, t.Any]) -> bytes:
        """Return the line that carries *payload*."""
        text = json.dumps(payload, separators=(",", ":"))
        line = _encode(
            {"seq": self._sent + 1, "payload": text, "mac": derive(self._send_key, str(self._sent + 1), text)}
        )
        self._sent += 1
        return line

    def open(self, line: bytes) -> dict[str, t.Any]:
        """Return the payload of the next line; raise on anything but exactly that line. Close the session then."""
        message = _decode(line, {"seq": int, "payload": str, "mac": str})
        # The MAC first, over the number that is due: what is not authentic is not looked at any further.
        try:
            expected = derive(self._receive_key, str(self._received + 1), message["payload"])
        except UnicodeEncodeError as exc:
            raise _malformed("the payload is not text") from exc
        _check(expected, message["mac"], "the message is not the next one of this session by the holder of the key")
        if message["seq"] != self._received + 1:
            raise _refused("the sequence number is not the next one")
        self._received += 1
        payload = json.loads(message["payload"])
        if not isinstance(payload, dict):
            raise _malformed("the payload is not a JSON object")
        return payload


class _Handshake:
    def __init__(self, key: bytes, guest: str, host: str, peer: str, nonce: str) -> None:
        self._key = key
        self._guest = guest
        self._host = host
        self._peer = peer
        self._own_nonce = nonce

    @staticmethod
    def _derive(key: bytes, purpose: str, context: tuple[str, ...]) -> str:
        return derive(key, f"lockstep.colo heartbeat {VERSION} {purpose}", *context)

    def _session(self, context: tuple[str, ...], send: str, receive: str) -> Session:
        return Session(
            bytes.fromhex(self._derive(self._key, f"{send} messages", context)),
            bytes.fromhex(self._derive(self._key, f"{receive} messages", context)),
        )


class ClientHandshake(_Handshake):
    """The connecting side: send :meth:`hello`, feed the answer to :meth:`finish`."""

    def hello(self) -> bytes:
        """Return the first line."""
        return _encode({"colo_heartbeat": VERSION, "guest": self._guest, "host": self._host, "nonce": self._own_nonce})

    def finish(self, line: bytes) -> tuple[bytes, Session]:
        """Check the server's proof; return the line that proves this side, and the session."""
        message = _decode(line, {"nonce": str, "proof": str})
        context = (self._guest, self._host, self._peer, self._own_nonce, _nonce(message))
        expected = self._derive(self._key, "server proof", context)
        _check(expected, message["proof"], f"{self._peer} does not have the key")
        proof = _encode({"proof": self._derive(self._key, "client proof", context)})
        return proof, self._session(context, "client", "server")


class ServerHandshake(_Handshake):
    """The listening side: feed the first line to :meth:`challenge`, send its result, the next goes to :meth:`finish`."""

    _context: tuple[str, ...] | None = None

    def challenge(self, line: bytes) -> bytes:
        """Check who asks; return the line with the nonce and this side's proof."""
        message = _decode(line, {"colo_heartbeat": int, "guest": str, "host": str, "nonce": str})
        if message["colo_heartbeat"] != VERSION:
            raise _refused(f"the peer speaks version {message['colo_heartbeat']}, this keeper {VERSION}")
        if (message["guest"], message["host"]) != (self._guest, self._peer):
            raise _refused(f"it is not from the keeper of {self._guest} on {self._peer}")
        self._context = (self._guest, self._peer, self._host, _nonce(message), self._own_nonce)
        return _encode({"nonce": self._own_nonce, "proof": self._derive(self._key, "server proof", self._context)})

    def finish(self, line: bytes) -> Session:
        """Check the client's proof; return the session."""
        if self._context is None:
            raise _refused("the proof came before the challenge")
        message = _decode(line, {"proof": str})
        _check(
            self._derive(self._key, "client proof", self._context),
            message["proof"],
            f"{self._peer} does not have the key",
        )
        return self._session(self._context, "server", "client")
