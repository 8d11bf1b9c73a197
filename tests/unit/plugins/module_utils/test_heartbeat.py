# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The heartbeat's messages: who may say what, once, in order."""

from __future__ import annotations

import json
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.lockstep.colo.plugins.module_utils import _heartbeat as hb
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError

KEY = bytes(range(32))
NC, NS = "1" * 64, "2" * 64


def code(call: t.Callable[..., t.Any], *arguments: t.Any) -> str:
    with pytest.raises(ColoError) as caught:
        call(*arguments)
    return caught.value.error_code


def client(
    key: bytes = KEY, guest: str = "web1", host: str = "alpha", peer: str = "beta", nonce: str = NC
) -> hb.ClientHandshake:
    return hb.ClientHandshake(key, guest, host, peer, nonce)


def server(
    key: bytes = KEY, guest: str = "web1", host: str = "beta", peer: str = "alpha", nonce: str = NS
) -> hb.ServerHandshake:
    return hb.ServerHandshake(key, guest, host, peer, nonce)


def sessions(nonce_client: str = NC, nonce_server: str = NS) -> tuple[hb.Session, hb.Session]:
    one, other = client(nonce=nonce_client), server(nonce=nonce_server)
    proof, here = one.finish(other.challenge(one.hello()))
    return here, other.finish(proof)


def test_both_ways() -> None:
    here, there = sessions()
    for number in range(3):
        assert there.open(here.seal({"n": number})) == {"n": number}
        assert here.open(there.seal({"m": number})) == {"m": number}


def test_wrong_key_is_seen_by_both_sides() -> None:
    one, other = client(key=b"x" * 32), server()
    assert code(one.finish, other.challenge(one.hello())) == "heartbeat_refused"
    # a client that does not care goes on, with what it can make
    forged = json.dumps({"proof": "0" * 64}).encode() + b"\n"
    assert code(other.finish, forged) == "heartbeat_refused"


@pytest.mark.parametrize("other", [server(guest="web2"), server(peer="gamma"), server(host="alpha", peer="beta")])
def test_not_for_us(other: hb.ServerHandshake) -> None:
    assert code(other.challenge, client().hello()) == "heartbeat_refused"


def test_names_and_nonces_are_bound() -> None:
    answer = server().challenge(client().hello())
    for one in (client(guest="web2"), client(host="gamma"), client(peer="gamma"), client(nonce="3" * 64)):
        assert code(one.finish, answer) == "heartbeat_refused"
    stolen = {**json.loads(answer), "nonce": "3" * 64}
    assert code(client().finish, json.dumps(stolen).encode() + b"\n") == "heartbeat_refused"


def test_a_recorded_proof_is_worth_nothing() -> None:
    one, first = client(), server()
    proof, _session = one.finish(first.challenge(one.hello()))
    second = server(nonce="4" * 64)
    second.challenge(one.hello())
    assert code(second.finish, proof) == "heartbeat_refused"


def test_proofs_cannot_be_reflected() -> None:
    one, other = client(), server()
    answer = json.loads(other.challenge(one.hello()))
    reflected = json.dumps({"proof": answer["proof"]}).encode() + b"\n"
    assert code(other.finish, reflected) == "heartbeat_refused"


def test_proof_before_challenge() -> None:
    assert code(server().finish, b'{"proof": "x"}\n') == "heartbeat_refused"


def test_another_version_is_named() -> None:
    hello = json.loads(client().hello())
    assert code(server().challenge, json.dumps({**hello, "colo_heartbeat": 2}).encode() + b"\n") == "heartbeat_refused"


def test_messages_once_and_in_order() -> None:
    here, there = sessions()
    first, second, third = (here.seal({"n": number}) for number in range(3))
    assert code(there.open, second) == "heartbeat_refused"
    there.open(first)
    assert code(there.open, first) == "heartbeat_refused"
    assert code(there.open, third) == "heartbeat_refused"
    assert there.open(second) == {"n": 1}


def test_messages_are_not_reflected_nor_carried_to_another_session() -> None:
    here, there = sessions()
    line = here.seal({"n": 0})
    assert code(here.open, line) == "heartbeat_refused"
    for other in (sessions(nonce_client="5" * 64), sessions(nonce_server="5" * 64)):
        assert code(other[1].open, line) == "heartbeat_refused"
    assert there.open(line) == {"n": 0}


@pytest.mark.parametrize("field", ["seq", "payload", "mac"])
def test_changed_messages(field: str) -> None:
    here, there = sessions()
    message = json.loads(here.seal({"flags": {"replication_failed": True}}))
    message[field] = {"seq": 2, "payload": '{"flags":{}}', "mac": "0" * 64}[field]
    assert code(there.open, json.dumps(message).encode() + b"\n") == "heartbeat_refused"


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\n", b"{}", b"{}\n", b"[]\n", b"null\n", b"\xff\n", b"[" * 10000 + b"\n",
        b"x" * (hb.MAX_LINE + 1) + b"\n",
        b'{"seq": 1, "payload": "{}"}\n', b'{"seq": 1, "payload": "{}", "mac": "x", "more": 1}\n',
        b'{"seq": true, "payload": "{}", "mac": "x"}\n', b'{"seq": 1, "payload": {}, "mac": "x"}\n',
        b'{"seq": 1, "payload": "\\ud800", "mac": "x"}\n',
    ],
)  # fmt: skip
def test_malformed_lines(line: bytes) -> None:
    assert code(sessions()[1].open, line) == "heartbeat_malformed"
    assert code(server().challenge, line) == "heartbeat_malformed"
    assert code(client().finish, line) == "heartbeat_malformed"


def test_strange_macs_are_refused_without_a_fault() -> None:
    for mac in ("", "ä" * 64, "\\ud800"):
        line = f'{{"seq": 1, "payload": "{{}}", "mac": "{mac}"}}\n'.encode()
        assert code(sessions()[1].open, line) == "heartbeat_refused"


def test_malformed_nonces() -> None:
    hello = json.loads(client().hello())
    for nonce in ("", "g" * 64, "1" * 63, "1" * 64 + "\n"):
        assert code(server().challenge, json.dumps({**hello, "nonce": nonce}).encode() + b"\n") == "heartbeat_malformed"


def test_long_payloads_are_not_sent() -> None:
    here, there = sessions()
    assert code(here.seal, {"x": "y" * hb.MAX_LINE}) == "heartbeat_malformed"
    assert there.open(here.seal({})) == {}, "the number was not used up"


def test_payload_must_be_an_object() -> None:
    here, there = sessions()
    assert code(there.open, here.seal(t.cast("dict[str, t.Any]", [1]))) == "heartbeat_malformed"


@given(st.binary(max_size=200))
def test_anything_else_is_refused(line: bytes) -> None:
    for call in (sessions()[1].open, server().challenge, client().finish):
        assert code(call, line + b"\n") in ("heartbeat_malformed", "heartbeat_refused")
