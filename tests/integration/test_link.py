# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The link: whoever lacks the guest's key is refused on every channel, and the standby is as good as before."""

from __future__ import annotations

import contextlib
import pathlib
import re
import signal
import socket
import ssl
import struct
import subprocess
import typing as t

import pytest

from ansible_collections.lockstep.colo.plugins.module_utils import _key, _link_key, _plan
from ansible_collections.lockstep.colo.tests.integration._pair import (
    KEY,
    NAME,
    Host,
    Pair,
    plan_of,
    refused,
    wait_for,
)

OTHER_KEY = "f" * 64


def ports(host: Host) -> dict[str, int]:
    """Every port on which a standby's QEMU listens."""
    guest = host.guest
    return {
        "migration": guest.port_migration,
        "nbd": guest.port_nbd,
        "mirror": guest.port_mirror(0),
        "compare": guest.port_compare(0),
    }


def listeners(pair: Pair) -> set[tuple[str, str, str, int]]:
    """What listens in this room, TCP and UDP: whose it is, protocol, address and port."""
    sides = {
        process.pid: host.guest.host
        for host in (pair.alpha, pair.beta)
        for process in (host.units.qemu, host.units.keeper)
        if process is not None
    }
    told = subprocess.run(["ss", "-Htulnp"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    found = set()
    for line in told.stdout.splitlines():
        words = line.split()
        address, port = words[4].rsplit(":", 1)
        owners = {sides.get(int(pid), f"process {pid}") for pid in re.findall(r"pid=([0-9]+)", line)}
        found |= {(owner, words[0], address.strip("[]"), int(port)) for owner in owners or {"nobody"}}
    return found


def promised(*standbys: Host) -> set[tuple[str, str, str, int]]:
    """What may listen: a standby, on its link address, on the ports that are documented."""
    return {
        (host.guest.host, "tcp", host.guest.link_address, port)
        for host in standbys
        for port in (*ports(host).values(), host.guest.port_heartbeat)
    }


def alpha_hangs_and_dies(
    pair: Pair, hangs: set[tuple[str, str, str, int]], dead: set[tuple[str, str, str, int]]
) -> None:
    """What may listen while alpha hangs, and when beta has lost it."""
    pair.alpha.process.send_signal(signal.SIGSTOP)
    assert pair.alpha.standing == "failed"
    assert listeners(pair) == hangs
    pair.alpha.units.power_off()
    wait_for("the loss is seen", lambda: pair.beta.standing == "orphaned")
    assert listeners(pair) == dead


def bandwidth(host: Host, bytes_per_s: int) -> None:
    with host.operator() as monitor:
        monitor.execute("migrate-set-parameters", {"max-bandwidth": bytes_per_s})


def assert_standings(pair: Pair, alpha: str, beta: str) -> None:
    assert (pair.alpha.standing, pair.beta.standing) == (alpha, beta)


def test_only_a_standby_listens_on_its_link_address(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every standing, and nothing but the ports that are documented."""
    alpha, beta = pair.alpha, pair.beta
    assert_standings(pair, "stopped", "stopped")
    assert listeners(pair) == promised()
    alpha.serve()
    assert_standings(pair, "alone", "stopped")
    assert listeners(pair) == promised()
    beta.stand_by(alpha.record.generation)
    wait_for("its keeper listens", lambda: beta.keeper["heartbeat"]["listening"])
    assert_standings(pair, "alone", "standby")
    assert listeners(pair) == promised(beta)

    seen = set()

    def look(_number: int, step: _plan.Step) -> None:
        copying = step.operation == "wait_migration" and "pre-switchover" in step.arguments["goal"]
        # so small a guest's RAM is copied before anybody can look, if it is not held back
        if step.operation == "migrate":
            bandwidth(alpha, 1024**2)
        if copying:
            wait_for("the RAM is being copied", lambda: alpha.keeper["migration"]["status"] == "active")
        assert listeners(pair) == promised(beta), step.title
        # its monitor has one client, which carries out the plan
        seen.add((alpha.keeper["migration"]["status"], beta.standing))
        if copying:
            bandwidth(alpha, 1024**3)

    with monkeypatch.context() as patch:
        plan_of("protect", look, patch)
        pair.site()
    assert {("none", "standby"), ("active", "syncing"), ("pre-switchover", "syncing")} <= seen
    assert_standings(pair, "primary", "secondary")
    assert listeners(pair) == promised(beta)

    alpha_hangs_and_dies(pair, hangs=promised(beta), dead=promised(beta))
    pair.failover()
    wait_for("the keeper has let go", lambda: not beta.keeper["heartbeat"]["listening"])
    assert_standings(pair, "stopped", "alone")
    assert listeners(pair) == promised()

    alpha.stand_by(beta.record.generation)
    wait_for("its keeper listens", lambda: alpha.keeper["heartbeat"]["listening"])
    assert listeners(pair) == promised(alpha)
    pair.site()
    assert_standings(pair, "secondary", "primary")
    assert listeners(pair) == promised(alpha)
    alpha_hangs_and_dies(pair, hangs=promised(alpha), dead=promised())


def test_a_standby_that_has_left_lock_step_listens_nowhere_else(pair: Pair) -> None:
    """Its disk has failed: until it is made anew it has no port that a standby has not."""
    pair.site()
    pair.beta.break_disk("active0")
    pair.alpha.write(0x44)
    wait_for("the standby has left lock step", lambda: pair.beta.standing in ("orphaned", "stopped"))
    assert listeners(pair) <= promised(pair.beta)


LINK_6 = {"alpha": "fd00::1", "beta": "fd00::2"}


@pytest.fixture
def ipv6() -> t.Iterator[None]:
    """The addresses of a link with IPv6."""
    for verb in ("add", "delete"):
        for address in LINK_6.values():
            subprocess.run(["ip", "address", verb, f"{address}/128", "dev", "lo"], check=True, stdin=subprocess.DEVNULL)
        if verb == "add":
            yield


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("pair", [{"link": LINK_6}], indirect=True)
def test_a_link_with_ipv6(pair: Pair, tmp_path: pathlib.Path) -> None:
    """The same listeners, the same refusals, a protection and a failover."""
    alpha, beta = pair.alpha, pair.beta
    pair.wait()
    wait_for("its keeper listens", lambda: beta.keeper["heartbeat"]["listening"])
    assert listeners(pair) == promised(beta)
    assert {address for _side, _protocol, address, _port in listeners(pair)} == {LINK_6["beta"]}
    assert "TLS negotiation required" in image(beta, tmp_path, None)
    for name, port in ports(beta).items():
        assert name == "nbd" or not knock(beta, port, None), name
    pair.site()
    alpha.write(0x42)
    pair.checkpoint(beta)
    alpha.units.power_off()
    wait_for("the loss is seen", lambda: beta.standing == "orphaned")
    assert pair.failover() is beta
    assert beta.holds(0x42)


def tls(key: str) -> ssl.SSLContext:
    """A client that has a key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # OpenSSL and GnuTLS have no external PSK of TLS 1.3 in common
    context.set_ciphers("ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-CHACHA20-POLY1305:PSK")
    user, secret = _key.psk_line(_key.read_key(key), NAME).strip().split(":")
    t.cast("t.Any", context).set_psk_client_callback(lambda _hint: (user, bytes.fromhex(secret)))
    return context


MAGIC = {"migration": b"QEVM", "multifd": b"\x11\x22\x33\x44"}  # how QEMU's streams begin


def knock(host: Host, port: int, key: str | None, begin: bytes = MAGIC["migration"]) -> bool:
    """Whether a stranger with that key, or with none, is let in: what it says is not answered with the end of the connection."""
    with socket.create_connection((host.guest.link_address, port), timeout=5) as plain:
        try:
            if key is not None:
                with tls(key).wrap_socket(plain) as channel:
                    return bool(channel.version())
            plain.sendall(begin + bytes(1024))
            said = plain.recv(1024)
            while said[:1] == b"\x15":  # an alert of TLS: what was said is no handshake
                said = plain.recv(1024)
            return said != b""
        except (ssl.SSLError, ConnectionError):
            return False


def image(host: Host, directory: pathlib.Path, key: str | None) -> str:
    """What the NBD server says to one who wants the disk; nothing when it gives it."""
    server = f"driver=nbd,server.type=inet,server.host={host.guest.link_address},server.port={host.guest.port_nbd},export=parent0"
    argv = ["qemu-img", "info", "--image-opts", server]
    if key is not None:
        (directory / "keys.psk").write_text(_key.psk_line(_key.read_key(key), NAME))
        argv[-1] += ",tls-creds=c"
        argv[2:2] = ["--object", f"tls-creds-psk,id=c,endpoint=client,dir={directory}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=20)
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("channels", [0, 2])
def test_who_lacks_the_key_is_refused_on_every_port(pair: Pair, tmp_path: pathlib.Path, channels: int) -> None:
    """The guest's disk, memory and packets are not given to a stranger, and the standby is as good as before."""
    for host in (pair.alpha, pair.beta):
        host.tune(multifd_channels=channels)
    pair.wait()
    beta = pair.beta
    assert "TLS negotiation required" in image(beta, tmp_path, None)
    assert "TLS handshake failed" in image(beta, tmp_path, OTHER_KEY)
    for name, port in ports(beta).items():
        if name != "nbd":
            for key in (None, OTHER_KEY):
                assert not knock(beta, port, key), (name, key)
    # the connections of a memory that has several begin in a way of their own, on the port of the first
    assert not knock(beta, ports(beta)["migration"], None, MAGIC["multifd"])
    assert beta.standing == "standby"
    assert not any(up for name, up in beta.qemu().chardevs.items() if name.startswith("red"))
    # it is the key that makes the difference
    assert image(beta, tmp_path, KEY) == ""
    for name in ("mirror", "compare"):
        assert knock(beta, ports(beta)[name], KEY), name
    pair.site()


@pytest.mark.parametrize("channel", ["mirror", "compare"])
def test_a_channel_whose_handshake_never_ends_is_not_waited_on(pair: Pair, channel: str) -> None:
    """What a link leaves that was cut during it: QEMU takes no other connection, and tells of none."""
    pair.wait()
    beta = pair.beta
    with socket.create_connection((beta.guest.link_address, ports(beta)[channel]), timeout=5):
        wait_for("the connection is seen", lambda: beta.look().channels_held)
        assert not any(up for name, up in beta.qemu().chardevs.items() if name.startswith("red"))
        pair.site()


def test_who_lacks_the_key_is_not_sent_anything(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other direction: whoever sits at the standby's address without the key gets neither disk nor memory."""
    pair.wait()
    alpha = pair.alpha
    write, other = _link_key.write, _key.psk_line(_key.read_key(OTHER_KEY), NAME)
    with monkeypatch.context() as patch:
        patch.setattr(_link_key, "write", lambda guest: (write(guest), pathlib.Path(guest.psk_file).write_text(other)))
        with refused("qmp_refused") as caught:
            alpha.migrate("primary", "protected")
    assert "TLS handshake failed" in caught[0].message
    assert caught[0].details["rolled_back"]["complete"]
    assert alpha.is_clean()
    pair.site()


def test_one_side_in_the_clear_is_refused(pair: Pair) -> None:
    """The sides never agree on less than what is wished."""
    pair.wait()
    definition = pathlib.Path(pair.alpha.guest.definition_file)
    secure = definition.read_text()
    definition.write_text(secure.replace('"tls"', '"none"'))
    with refused("qmp_refused") as caught:
        pair.alpha.migrate("primary", "protected")
    assert "TLS negotiation required" in caught[0].message
    definition.write_text(secure)
    pair.site()


def renew(pair: Pair, key: str) -> None:
    """What the role does: a new key on both hosts, and keepers that read it."""
    for host in (pair.alpha, pair.beta):
        for path in (pathlib.Path(host.guest.key_file), host.units.credentials / "key"):
            path.write_text(key + "\n")
        if host.units.keeper is not None:
            host.units.restart_keeper()


def server_hellos(wire: socket.socket) -> dict[int, set[int]]:
    """Port to the extensions of the answer that begins each TLS session on it, of what a socket has heard so far."""
    found: dict[int, set[int]] = {}
    wire.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            frame = wire.recv(1 << 17)
            if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
                continue
            segment = frame[14 + 4 * (frame[14] & 15) :]
            hello = segment[4 * (segment[12] >> 4) :]
            if hello[:1] != b"\x16" or hello[5:6] != b"\x02":
                continue  # no handshake, or not its second message
            at = 44 + hello[43] + 3  # after the random bytes, the session's name, cipher and compression
            (left,) = struct.unpack("!H", hello[at : at + 2])
            extensions, at = set(), at + 2
            while left > 0:
                kind, length = struct.unpack("!HH", hello[at : at + 4])
                extensions.add(kind)
                at, left = at + 4 + length, left - 4 - length
            found.setdefault(int.from_bytes(segment[:2]), set()).update(extensions)
    return found


def test_a_key_that_gets_known_later_does_not_open_what_was_recorded(pair: Pair) -> None:
    """Each session has a key exchange of its own beside the key: TLS 1.3 (supported_versions), with key_share and pre_shared_key."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE: the memory crosses as well
        wire.bind(("lo", 0))
        pair.site()
        heard = server_hellos(wire)
    assert heard == {port: {0x2B, 0x33, 0x29} for port in ports(pair.beta).values()}


def test_a_new_key_does_not_end_a_protection(pair: Pair, tmp_path: pathlib.Path) -> None:
    """The session goes on with the old key; the keepers take the new one at once, the next protection uses it."""
    alpha, beta = pair.alpha, pair.beta
    pair.site()
    processes = alpha.process.pid, beta.process.pid
    renew(pair, OTHER_KEY)
    wait_for("the keepers hear each other", lambda: alpha.keeper["heartbeat"]["authenticated"])
    pair.checkpoint(beta)
    pair.site()
    assert processes == (alpha.process.pid, beta.process.pid)
    alpha.write(0x42)
    pair.checkpoint(beta)
    alpha.units.power_off()
    wait_for("the loss is seen", lambda: beta.standing == "orphaned")
    assert pair.failover() is beta
    assert beta.holds(0x42)
    alpha.stand_by(beta.record.generation)
    assert "TLS handshake failed" in image(alpha, tmp_path, KEY), "the old key is worth nothing any more"
    pair.site()
    pair.assert_protected(beta)


def test_a_standby_that_waits_takes_a_new_key(pair: Pair, tmp_path: pathlib.Path) -> None:
    pair.wait()
    process = pair.beta.process.pid
    renew(pair, OTHER_KEY)
    assert pair.beta.stand_by(pair.alpha.record.generation)["actions"] == ["QEMU may read the guest's present key"]
    assert pair.beta.stand_by(pair.alpha.record.generation)["actions"] == []
    assert "TLS handshake failed" in image(pair.beta, tmp_path, KEY)
    pair.site()
    assert pair.beta.process.pid == process


def test_link_security_is_changed_by_the_next_protection(pair: Pair) -> None:
    """From in the clear to encrypted: a standby that waits is made anew, one in lock step is left alone."""
    pair.wait()
    hosts = (pair.alpha, pair.beta)
    secure = {host: pathlib.Path(host.guest.definition_file).read_text() for host in hosts}
    for host in hosts:
        pathlib.Path(host.guest.definition_file).write_text(secure[host].replace('"tls"', '"none"'))
    pair.site()
    assert not any("tls" in kind for host in hosts for kind in host.qemu().objects.values())
    for host in hosts:
        pathlib.Path(host.guest.definition_file).write_text(secure[host])
    pair.site()
    assert not any("tls" in kind for host in hosts for kind in host.qemu().objects.values()), "lock step was not ended"
    pair.alpha.migrate("primary", "absent")
    pair.site()
    for host, name in zip(hosts, ("tls-client", "tls-server")):
        assert host.qemu().objects[name] == "tls-creds-psk"
