# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A QEMU monitor without a QEMU: a unix socket that speaks QMP, one client at a time, as told by a script."""

from __future__ import annotations

import collections.abc as c
import json
import os
import pathlib
import socket
import threading
import typing as t

Json = dict[str, t.Any]

GREETING: Json = {
    "QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}, "capabilities": ["oob"]}
}


class Hang:
    """Do not answer, and go on reading."""


class Close:
    """Close the connection."""


class Refuse(t.NamedTuple):
    """Answer with an error."""

    text: str
    kind: str = "GenericError"


def event(name: str, seconds: int = 0, **data: t.Any) -> Json:
    """One event, as QEMU words it."""
    return {"event": name, "data": data, "timestamp": {"seconds": seconds, "microseconds": 250000}}


# What to do for a command: events to send first, then the answer.
Reply = t.Any | Refuse | Hang | Close
Handler = c.Callable[[str, Json], "tuple[list[Json], Reply]"]


class Server:
    """Serves one client after the other until closed; ``calls`` holds (command, arguments, out of band)."""

    def __init__(self, path: pathlib.Path, handler: Handler, greeting: bytes | None = None, greet: bool = True) -> None:
        self.calls: list[tuple[str, Json, bool]] = []
        self.faults: list[BaseException] = []
        self._handler = handler
        self._greeting = json.dumps(GREETING).encode() + b"\r\n" if greeting is None else greeting
        self._greet = greet
        self._ends = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        # a unix socket's path has room for 107 bytes only
        here = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._listener.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)
        self._listener.listen(8)
        self._clients: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_error: object) -> None:
        self._ends = True
        # wakes up accept() and recv()
        for sock in (self._listener, *self._clients):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()
        if self.faults:
            raise self.faults[0]

    def _serve(self) -> None:
        while not self._ends:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            self._clients.append(client)
            with client:
                try:
                    self._converse(client)
                except OSError:
                    continue  # the client went away
                except BaseException as exc:  # noqa: BLE001 - told when the test ends
                    self.faults.append(exc)
                    return

    def _converse(self, client: socket.socket) -> None:
        if self._greet:
            client.sendall(self._greeting)
        # requests follow each other without line ends
        text = ""
        while part := client.recv(65536):
            text = (text + part.decode()).lstrip()  # what a socket is handed over with is a blank
            while text:
                try:
                    request, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break  # not whole yet
                text = text[end:].lstrip()
                if not self._answer(client, request):
                    return

    def _answer(self, client: socket.socket, request: Json) -> bool:
        oob = "exec-oob" in request
        command, arguments = request.get("exec-oob") or request["execute"], request.get("arguments", {})
        events: list[Json] = []
        reply: Reply = {}
        if command == "qmp_capabilities":
            assert arguments.get("enable", ["oob"]) == ["oob"]
        else:
            self.calls.append((command, arguments, oob))
            events, reply = self._handler(command, arguments)
        for entry in events:
            client.sendall(json.dumps(entry).encode() + b"\r\n")
        if isinstance(reply, Close):
            return False
        if isinstance(reply, Hang):
            return True
        answer: Json = {"id": request["id"]} if "id" in request else {}
        if isinstance(reply, Refuse):
            answer["error"] = {"class": reply.kind, "desc": reply.text}
        else:
            answer["return"] = reply
        client.sendall(json.dumps(answer).encode() + b"\r\n")
        return True
