# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of the lab: neither root nor a lab is needed."""

from __future__ import annotations

import asyncio
import bisect
import ipaddress
import itertools
import json
import os
import pathlib
import random
import shlex
import shutil
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, cast

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import client
import labbmc
import labctl
import labguest
import labhost
import labproc
import labroot
import relay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.fast


def test_a_command_name_cannot_disturb_the_reading_of_stat() -> None:
    assert labproc.parse_stat("42 (a) Z 9 (b) S 7 " + " ".join(str(n) for n in range(5, 30))) == ("S", 7, 22)


def test_a_process_is_known_by_its_start_as_well(tmp_path: pathlib.Path) -> None:
    own = labproc.Process.of(os.getpid())
    assert own is not None
    assert own.alive
    own.store(tmp_path / "record")
    assert labproc.Process.load(tmp_path / "record") == own
    assert not labproc.Process(own.pid, own.started + 1).alive
    assert not labproc.Process(own.pid, own.started, "another boot").alive
    assert labproc.Process.load(tmp_path / "none") is None


def test_signals_never_reach_a_stranger() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        known = labproc.Process.of(child.pid)
        assert known is not None
        labproc.Process(known.pid, known.started + 1).send(9)
        assert known.alive
        known.send(9)
        assert child.wait(10) == -9


def test_the_mirror_comes_from_debian_lines_only() -> None:
    text = """\
Somebody|Else|http://other.example/debian
Debian|Debian|http://mirror.example/debian
Debian|Debian Backports|http://wrong.example/debian
Debian|Debian-Security|http://security.example/debian-security
"""
    assert labroot.parse_targets(text) == ("http://mirror.example/debian", "http://security.example/debian-security")
    assert labroot.parse_targets("Ubuntu|Ubuntu|http://u.example/ubuntu\n") == (None, None)


def test_a_host_knows_no_backports() -> None:
    mirror = labroot.Mirror("http://m.example/debian", "http://s.example:8080/debian-security", (), None)
    assert "backports" not in mirror.sources()
    assert mirror.sources().count("Types: deb") == 2
    assert mirror.sites == ("m.example", "s.example:8080")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is installed with the lab")
@pytest.mark.parametrize("before", ["blank", "used"])
def test_no_number_takes_the_place_of_another_one(tmp_path: pathlib.Path, before: str) -> None:
    """Whatever numbers a client chooses, and whatever was on the disk: `check` must neither lose one nor see one that was never sent."""
    program = tmp_path / "records"
    source = labguest.SOURCE.with_name("test_records.c")
    subprocess.run(["gcc", "-O1", "-pthread", "-o", program, source], check=True)
    disk = tmp_path / "disk"
    chance = random.Random(4)
    disk.write_bytes(bytes(3 << 20) if before == "blank" else chance.randbytes(3 << 20))
    room = (2 << 20) // 8
    numbers = [
        *(chance.randrange(2**63) for _number in range(3000)),
        *(base * room + n for base in range(40) for n in range(300)),  # forty that want the same places
    ]
    ranges = [(n, n) for n in numbers] + [(n + 1, n + 1) for n in numbers[:3000]]
    ranges += [(base * room, base * room + 299) for base in range(40)] + [
        (base * room - 5, base * room + 6) for base in range(1, 40)
    ]
    ranges += [(0, 2**63)] if before == "blank" else []  # some of what was there before does look like numbers
    known = sorted(set(numbers))

    def there(low: int, high: int) -> int:
        return bisect.bisect_right(known, high) - bisect.bisect_left(known, low)

    asked = [str(n) for n in (*numbers, *numbers[-500:])] + [f"check {low} {high}" for low, high in ranges]
    told = subprocess.run(
        [program, disk], input="\n".join(asked) + "\n", text=True, capture_output=True, check=True, timeout=120
    ).stdout.split("\n")
    assert told[: len(numbers) + 500] == ["on disk"] * (len(numbers) + 500)
    assert [int(word) for word in told[len(numbers) + 500 : -1]] == [there(low, high) for low, high in ranges]


def test_guests_do_not_collide() -> None:
    specs = [labctl.guest_spec(index) for index in range(1, 9)]
    macs = {spec["nics"][0]["mac"] for spec in specs}
    addresses = {spec["boot"]["append"].rpartition("=")[2] for spec in specs}
    assert len(macs) == len(addresses) == 8


def test_hosts_differ_and_carry_the_key() -> None:
    alpha, beta = (labhost.host_files(name, number, (), "key\n") for name, number in labhost.HOSTS.items())
    assert alpha["root/.ssh/authorized_keys"] == ("key\n", 0o600)
    assert {path for path in alpha if alpha[path] != beta[path]} == {
        "etc/hostname",
        "etc/systemd/network/20-repl0.network",
        "etc/systemd/network/21-mgmt0.network",
    }


def test_the_commands_in_lab_json_survive_odd_directories(tmp_path: pathlib.Path) -> None:
    lab = labctl.Lab(tmp_path / "a b'c", tmp_path / "cache", verbose=False)
    words = shlex.split(lab.ctl("power-off", "alpha"))
    assert words[-2:] == ["power-off", "alpha"]
    assert str(tmp_path / "a b'c") in words


def test_down_leaves_nothing_also_when_its_directory_is_gone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    lab = labctl.Lab(tmp_path / "lab", tmp_path / "cache", verbose=False)
    kept = tmp_path / "home" / ".ansible" / f"cp-{lab.name}"
    kept.mkdir(parents=True)
    lab._write_inventory(1)
    hosts = json.loads((tmp_path / "lab" / "inventory.yml").read_text())["colo_hosts"]
    assert os.path.expanduser(hosts["vars"]["ansible_control_path_dir"]) == str(kept)
    for _twice in range(2):
        lab.down()
        assert not kept.exists()
        assert not lab.directory.exists()


@pytest.mark.parametrize(
    ("mode", "answer", "is_on"), [("good", "power:0", False), ("stubborn", "power:1", True), ("lying", "power:0", True)]
)
def test_a_controller_is_as_bad_as_it_is_told_to_be(
    mode: str,
    answer: str,
    is_on: bool,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host = labctl.Lab(tmp_path, tmp_path / "cache", verbose=False).host("alpha")
    power = {"on": True}
    monkeypatch.setattr(labhost.Host, "leader", property(lambda _host: "PID 1" if power["on"] else None))
    monkeypatch.setattr(labhost.Host, "is_empty", property(lambda _host: not power["on"]))
    monkeypatch.setattr(labhost.Host, "power_off", lambda _host: power.update(on=False))
    labproc.write_text(host.bmc.directory / "mode", mode)
    host.bmc.chassis(["0x20", "set", "power", "0"])
    host.bmc.chassis(["0x20", "get", "power"])
    assert capsys.readouterr().out == f"{answer}\n"
    assert power["on"] is is_on


def test_a_controller_says_off_only_when_nothing_is_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PID 1 is dead, and a process of the host still lives."""
    bmc = labbmc.Bmc(labctl.Lab(tmp_path, tmp_path / "cache", verbose=False).host("alpha"))
    bmc.directory.mkdir(parents=True)
    monkeypatch.setattr(labhost.Host, "leader", None)
    monkeypatch.setattr(labhost.Host, "is_empty", False)
    bmc.chassis(["0x20", "get", "power"])
    assert capsys.readouterr().out == "power:1\n"


def test_the_controllers_network_is_not_the_links() -> None:
    hosts = {ipaddress.ip_address(f"{labhost.LINK}.{number}") for number in labhost.HOSTS.values()}
    link = ipaddress.ip_network(f"{labhost.LINK}.0/{labhost.LINK_PREFIX}")
    managed = {ipaddress.ip_address(labbmc.address(number)) for number in labhost.HOSTS.values()}
    assert all(address in link for address in hosts)
    assert not any(address in link for address in managed)


def test_cpio_members_are_aligned() -> None:
    archive = labguest.cpio([("dev", 0o040755, b"", (0, 0)), ("init", 0o100755, b"abcde", (0, 0))])
    assert len(archive) % 4 == 0
    assert archive.startswith(b"070701")
    assert b"init\0" in archive
    assert archive.count(b"070701") == 3


def test_qcow2_header() -> None:
    image = labguest.qcow2(64 << 20, labguest.MARKER)
    magic, version = struct.unpack_from(">4sI", image)
    assert (magic, version) == (b"QFI\xfb", 3)
    assert struct.unpack_from(">Q", image, 24) == (64 << 20,)
    assert image[5 * 65536 :].startswith(labguest.MARKER)
    with pytest.raises(ValueError, match="small images"):
        labguest.qcow2(1 << 30, b"")


def test_modules_come_after_what_they_need() -> None:
    dep = "a/virtio_net.ko.xz: a/net_failover.ko.xz a/failover.ko.xz\na/net_failover.ko.xz: a/failover.ko.xz\n"
    dep += "a/failover.ko.xz:\n"
    assert labguest.with_dependencies(["virtio_net", "absent"], dep) == [
        "a/failover.ko.xz",
        "a/net_failover.ko.xz",
        "a/virtio_net.ko.xz",
    ]


@pytest.mark.parametrize(
    ("head", "target"),
    [
        (b"GET http://m.example/debian/x HTTP/1.1\r\n\r\n", ("m.example", 80, False)),
        (b"GET http://m.example:81/x HTTP/1.1\r\n\r\n", ("m.example", 81, False)),
        (b"CONNECT m.example:443 HTTP/1.1\r\n\r\n", ("m.example", 443, True)),
    ],
)
def test_relay_reads_proxy_requests(head: bytes, target: tuple[str, int, bool]) -> None:
    assert relay.target_of(head) == target


@pytest.mark.parametrize("head", [b"GET /x HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n", b"GET ftp://x/ HTTP/1.1\r\n\r\n"])
def test_relay_refuses_others(head: bytes) -> None:
    with pytest.raises(ValueError, match="not a"):
        relay.target_of(head)


def test_percentile_is_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [client.percentile(values, fraction) for fraction in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert client.percentile([], 0.5) is None


@pytest.mark.parametrize("line", [b"", b"error 5 was not written\n", b"check 1 2 2\n", b"1 2\n"])
def test_only_acknowledgements_count(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an acknowledgement|invalid literal"):
        client.parse_answer(line)


def serve(talk: Talk, **settings: float) -> dict[str, object]:
    """The client's report of a run against a server that answers as `talk` does."""

    async def main() -> dict[str, object]:
        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            wanted = client.Settings("127.0.0.1", port, interval_ms=1, check_timeout=1, **settings)  # type: ignore[arg-type]
            return await client.ContinuityClient(wanted).run()

    return asyncio.run(main())


def guest(*, forget: int | None = None, hang_up_after: int | None = None, reboot_after: int | None = None) -> Talk:
    """A guest in miniature, with faults."""
    counter = itertools.count(1)
    disk: set[int] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered = 0
        while line := await reader.readline():
            words = line.split()
            if words[0] == b"check":
                present = sum(int(words[1]) <= n <= int(words[2]) for n in disk)
                writer.write(b"check %b %b %d\n" % (words[1], words[2], present))
                continue
            count = next(counter)
            if count != forget:
                disk.add(int(words[0]))
            if reboot_after is not None and count > reboot_after:
                writer.write(b"%b %d new\n" % (words[0], count - reboot_after))
            else:
                writer.write(b"%b %d old\n" % (words[0], count))
            answered += 1
            if answered == hang_up_after:
                break
        writer.close()

    return talk


def test_a_good_run_is_proved() -> None:
    report = serve(guest(), seconds=0.2, connections=3)
    assert report["proved"] is True
    assert (report["lost"], report["connections_lost"], report["boot_ids"]) == (0, 0, ["old"])
    json.dumps(report)


def test_a_forgotten_write_is_found() -> None:
    report = serve(guest(forget=5), seconds=0.2)
    assert (report["proved"], report["lost"]) == (False, 1)


def test_a_lost_connection_is_told_and_the_disk_asked_anyway() -> None:
    report = serve(guest(hang_up_after=5), seconds=5)
    assert (report["proved"], report["connection_survived"], report["lost"]) == (False, False, 0)
    assert (report["acknowledged"], report["checked_on_same_connection"]) == (5, False)
    (autopsy,) = cast("list[dict[str, dict[str, int]]]", report["autopsies"])
    if autopsy["tcp_info"]:  # of a connection that was reset there is none any more
        assert autopsy["tcp_info"]["state"] in (7, 8), "closed, by the other side"
    assert all(name[0].isupper() for name in autopsy["counters_grown_by"])


def test_a_reboot_is_seen() -> None:
    report = serve(guest(reboot_after=5), seconds=0.2)
    assert (report["proved"], report["counter_monotone"], report["same_boot_id"]) == (False, False, False)
