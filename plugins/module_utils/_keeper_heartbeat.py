# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The exchange between two keepers over the link (effect); what is said, and who may say it, is in ``_heartbeat``."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils import _heartbeat
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._guest import Guest
from ansible_collections.lockstep.colo.plugins.module_utils._keeper_base import Json, age_ms, log

STRANGERS = 16  # connections at once that are not authenticated yet


class Heartbeat:
    """The exchange with the peer's keeper: the standby's side listens, the serving side connects."""

    def __init__(
        self,
        guest: Guest,
        key: bytes | None,
        role: t.Callable[[], str],
        payload: t.Callable[[], Json],
        heard: t.Callable[[Json], None],
    ) -> None:
        self._guest, self._key, self._role, self._payload, self._heard = guest, key, role, payload, heard
        self._interval_s = guest.tuning.heartbeat_interval_ms / 1000
        self._timeout_s = guest.tuning.heartbeat_timeout_ms / 1000
        self._listening = False
        self._strangers = 0
        self._now = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None  # of the authenticated session
        self._received: float | None = None  # monotonic
        self._peer: Json | None = None
        self._trouble: str | None = None

    def tell(self) -> None:
        """Send now."""
        self._now.set()

    def state(self) -> Json:
        return {
            "listening": self._listening,
            "connected": self._writer is not None or self._strangers > 0,
            "authenticated": self._writer is not None,
            "last_rx_age_ms": age_ms(self._received),
            "lost": self._received is not None and time.monotonic() - self._received > self._timeout_s,
            "peer": self._peer,
            "trouble": self._trouble,
        }

    async def run(self) -> None:
        """Do what the role asks for, for ever."""
        while True:
            role = self._role()
            if role == "none" or self._key is None:
                self._received = self._peer = None
            else:
                try:
                    await (self._listen() if role == "standby" else self._connect())
                except (OSError, EOFError, ValueError) as exc:
                    self._note(str(exc) or type(exc).__name__)
            await asyncio.sleep(self._interval_s)

    async def _listen(self) -> None:
        server = await asyncio.start_server(
            self._accept, self._guest.link_address, self._guest.port_heartbeat, limit=_heartbeat.MAX_LINE
        )
        self._listening = True
        log("info", "heartbeat listens", address=self._guest.link_address, port=self._guest.port_heartbeat)
        try:
            # The role is the record's and QEMU's; both are looked at once an interval.
            while self._role() == "standby":  # noqa: ASYNC110
                await asyncio.sleep(self._interval_s)
        finally:
            self._listening = False
            server.close()
            if self._writer is not None:
                self._writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._strangers >= STRANGERS or self._key is None:
            writer.close()
            return
        handshake = _heartbeat.ServerHandshake(
            self._key, self._guest.name, self._guest.host, self._guest.peer, secrets.token_hex(_heartbeat.NONCE_BYTES)
        )
        with self._stranger(writer):
            async with asyncio.timeout(self._timeout_s):
                writer.write(handshake.challenge(await reader.readline()))
                await writer.drain()
                session = handshake.finish(await reader.readline())
        if not writer.is_closing():
            await self._converse(reader, writer, session)

    async def _connect(self) -> None:
        if self._key is None:
            raise EOFError("there is no key")
        async with asyncio.timeout(self._timeout_s):
            reader, writer = await asyncio.open_connection(
                self._guest.peer_address,
                self._guest.port_heartbeat,
                limit=_heartbeat.MAX_LINE,
                local_addr=(self._guest.link_address, 0),
            )
        handshake = _heartbeat.ClientHandshake(
            self._key, self._guest.name, self._guest.host, self._guest.peer, secrets.token_hex(_heartbeat.NONCE_BYTES)
        )
        with self._stranger(writer):
            async with asyncio.timeout(self._timeout_s):
                writer.write(handshake.hello())
                proof, session = handshake.finish(await reader.readline())
                writer.write(proof)
                await writer.drain()
        if not writer.is_closing():
            await self._converse(reader, writer, session)

    @contextlib.contextmanager
    def _stranger(self, writer: asyncio.StreamWriter) -> t.Iterator[None]:
        """Count one that is not authenticated yet; close it when it fails to be."""
        self._strangers += 1
        try:
            yield
        except (OSError, EOFError, ValueError, ColoError) as exc:
            self._note(str(exc) or type(exc).__name__)
            writer.close()
        except BaseException:
            writer.close()
            raise
        finally:
            self._strangers -= 1

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: _heartbeat.Session
    ) -> None:
        if self._writer is not None:
            self._writer.close()  # the peer came again: it gave the older connection up
        self._writer = writer
        role = self._role()
        self._trouble = None
        log("notice", "heartbeat authenticated", peer=self._guest.peer, role=role)
        jobs = (self._send(writer, session, role), self._receive(reader, session))
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (OSError, EOFError, ValueError, ColoError) as exc:
            self._note(str(exc) or "no heartbeat in time")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()
            if self._writer is writer:
                self._writer = None
            log("notice", "heartbeat ended", peer=self._guest.peer, reason=self._trouble)

    async def _send(self, writer: asyncio.StreamWriter, session: _heartbeat.Session, role: str) -> None:
        while True:
            self._now.clear()
            going = self._role() == role
            writer.write(session.seal(self._payload()))
            async with asyncio.timeout(self._timeout_s):
                await writer.drain()
            if not going:
                return  # that was the last word: this QEMU is gone, or changed sides
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._now.wait()

    async def _receive(self, reader: asyncio.StreamReader, session: _heartbeat.Session) -> None:
        while True:
            async with asyncio.timeout(self._timeout_s):
                line = await reader.readline()
            if not line:
                raise EOFError("the peer closed the connection")
            self._peer = session.open(line)
            self._received = time.monotonic()
            self._heard(self._peer)

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log("warning", "heartbeat", peer=self._guest.peer, trouble=trouble)
