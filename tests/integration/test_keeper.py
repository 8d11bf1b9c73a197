# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper beside real QEMUs (firmware only: no disk, no network card, no guest), both hosts on the loopback.

Needs what a prepared host has: QEMU 11.1 or newer, qemu.qmp, pytest; run as root (only root gives start permits).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import typing as t

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
KEEPER = TOP / "roles" / "guest" / "files" / "colo_keeper.py"
KEY = "0123456789abcdef" * 4
WRONG_KEY = "f" * 64
LINK = {"alpha": "127.0.0.1", "beta": "127.0.0.2"}
DEADLINE_S = 20.0

try:
    from ansible_collections.lockstep.colo.plugins.module_utils import (
        _generation,
        _guest,
        _heartbeat,
        _keeper_client,
        _qmp,
        _store,
    )
    from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
except ImportError as exc:
    raise RuntimeError("put a directory with ansible_collections/lockstep/colo -> this checkout on PYTHONPATH") from exc


def wait_for(what: str, look: t.Callable[[], t.Any], timeout_s: float = DEADLINE_S) -> t.Any:
    """Return the first true value of *look*; fail with the last one."""
    ends = time.monotonic() + timeout_s
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < ends, f"{what}: not within {timeout_s} s, last seen {seen!r}"
        time.sleep(0.02)


def environ() -> dict[str, str]:
    """Return the environment of a keeper: the collection is found where this test finds it."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def free_port_base() -> int:
    """Return a base whose next 32 ports were free on both addresses a moment ago."""
    for base in range(20000 + os.getpid() % 1000 * 32, 60000, 32):
        try:
            for address in LINK.values():
                for port in range(base, base + 8):
                    with socket.socket() as probe:
                        probe.bind((address, port))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


class Side:
    """One host: its directories, its keeper process, its QEMU process."""

    def __init__(self, directory: pathlib.Path, host: str, port_base: int, **tuning: int) -> None:
        peer = "beta" if host == "alpha" else "alpha"
        self.directory = directory / host
        paths = {name: self.directory / name for name in ("config", "state", "run", "credentials")}
        for path in paths.values():
            path.mkdir(parents=True)
        (paths["run"] / "operator").mkdir()
        self.config = paths["config"] / "web1.json"
        self.key_file = paths["credentials"] / "key"
        self.key_file.write_text(KEY + "\n")
        limits = {"heartbeat_interval_ms": 100, "heartbeat_timeout_ms": 1000, "checkpoint_delay_ms": 200, **tuning}
        definition = {
            "schema": 1, "name": "web1", "host": host, "hosts": ["alpha", "beta"], "peer": peer, "link": LINK,
            "memory_mib": 64, "vcpus": 1, "machine": "pc", "cpu": "qemu64", "accelerator": "tcg",
            "qemu_binary": "/usr/bin/qemu-system-x86_64", "user": "root", "link_security": "tls", "disks": [], "nics": [], "boot": None,
            "port_base": port_base, "tuning": limits,
            "paths": {name: str(paths[name]) for name in ("config", "state", "run")},
        }  # fmt: skip
        self.config.write_text(json.dumps(definition))
        self.guest = _guest.load(str(self.config))
        _store.create(self.guest)
        self.client = _keeper_client.KeeperClient(self.guest.keeper_socket)
        self.keeper: subprocess.Popen[bytes] | None = None
        self.qemu: subprocess.Popen[bytes] | None = None
        self.log = self.directory / "keeper.log"

    def start_keeper(self) -> None:
        environment = {**environ(), "CREDENTIALS_DIRECTORY": str(self.key_file.parent)}
        with self.log.open("ab") as log:
            self.keeper = subprocess.Popen(
                [sys.executable, str(KEEPER), "run", str(self.config)],
                env=environment, stdin=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        wait_for("keeper answers", self.answers)

    def answers(self) -> bool:
        with contextlib.suppress(ColoError):
            return bool(self.state()["pid"] == (self.keeper and self.keeper.pid))
        return False

    def kill_keeper(self) -> None:
        assert self.keeper is not None
        self.keeper.kill()
        self.keeper.wait(DEADLINE_S)

    def state(self) -> dict[str, t.Any]:
        return self.client.state()

    def record(self) -> _generation.Record:
        record = _store.read(self.guest)
        assert record is not None
        return record

    def permit(self, role: str, generation: int | None = None, **more: t.Any) -> None:
        generation = self.record().generation if generation is None else generation
        permit = {"schema": 1, "guest": "web1", "role": role, "generation": generation, **more}
        pathlib.Path(self.guest.permit_file).write_text(json.dumps(permit))

    def launch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(KEEPER), "launch", str(self.config)],
            env=environ(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def start_qemu(self, role: str) -> None:
        """Start through the gate as a module would: record, permit, launch; wait until the keeper holds its monitor."""
        if role == "primary":
            _store.update(self.guest, lambda rec: _generation.started_alone(rec, fenced_by="test"))
        self.permit(role)
        self.close_pipes(self.qemu)
        self.qemu = qemu = self.launch()

        def held() -> bool:
            seen = self.state()
            # The migration status is the last thing that a keeper learns about a QEMU.
            return bool(seen["qemu"]["pid"] == qemu.pid and seen["migration"]["status"])

        wait_for("keeper connected", held)

    @contextlib.contextmanager
    def monitor(self) -> t.Iterator[_qmp.Monitor]:
        with _qmp.Monitor(self.guest.qmp_socket) as monitor:
            yield monitor

    def execute(self, command: str, arguments: dict[str, t.Any] | None = None) -> t.Any:
        with self.monitor() as monitor:
            return monitor.execute(command, arguments or {})

    def runs(self) -> bool:
        return bool(self.execute("query-status")["status"] == "running")

    def flag(self, name: str) -> t.Any:
        return self.state()["flags"][name]

    def stop(self) -> None:
        for process in (self.qemu, self.keeper):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait(DEADLINE_S)
            self.close_pipes(process)

    @staticmethod
    def close_pipes(process: subprocess.Popen[bytes] | None) -> None:
        for pipe in (process.stdout, process.stderr) if process is not None else ():
            if pipe is not None:
                pipe.close()


@dataclasses.dataclass
class Pair:
    alpha: Side
    beta: Side

    def begin(self) -> None:
        """alpha serves and runs, beta waits, the keepers hear each other."""
        self.alpha.start_keeper()
        self.alpha.start_qemu("primary")
        self.alpha.execute("cont")
        self.beta.start_keeper()
        generation = self.alpha.record().generation
        _store.update(self.beta.guest, lambda rec: _generation.begin_sync(rec, generation))
        self.beta.start_qemu("standby")
        wait_for("heartbeat", lambda: self.alpha.state()["heartbeat"]["peer"])
        wait_for("heartbeat", lambda: self.beta.state()["heartbeat"]["peer"])

    def migrate(self) -> None:
        """Up to pre-switchover: alpha's guest is paused and waits."""
        uri = f"tcp:{LINK['beta']}:{self.alpha.guest.port_migration}"
        for side in (self.beta, self.alpha):
            capabilities = ["events", "return-path", "x-colo"]
            capabilities += ["pause-before-switchover"] if side is self.alpha else []
            rows = [{"capability": name, "state": True} for name in capabilities]
            side.execute("migrate-set-capabilities", {"capabilities": rows})
        delay = {"x-checkpoint-delay": self.alpha.guest.tuning.checkpoint_delay_ms}
        self.alpha.execute("migrate-set-parameters", delay)
        self.beta.execute("migrate-incoming", {"uri": uri})
        self.alpha.execute("migrate", {"uri": uri})
        wait_for("pre-switchover", lambda: self.alpha.state()["migration"]["status"] == "pre-switchover")

    def protect(self) -> None:
        """Into lock step, with the record written first, as the modules do."""
        self.migrate()
        _store.update(self.alpha.guest, lambda rec: _generation.enter_protection(rec, "alpha"))
        self.alpha.execute("migrate-continue", {"state": "pre-switchover"})
        for side in (self.alpha, self.beta):
            wait_for("checkpoints", lambda side=side: side.state()["checkpoints"]["count"] >= 3)  # type: ignore[misc]


@pytest.fixture
def pair(tmp_path: pathlib.Path) -> t.Iterator[Pair]:
    base = free_port_base()
    made = Pair(Side(tmp_path, "alpha", base, switchover_limit_ms=2000), Side(tmp_path, "beta", base))
    try:
        yield made
    finally:
        made.alpha.stop()
        made.beta.stop()
        for side in (made.alpha, made.beta):
            if side.log.exists():
                text = side.log.read_text()
                sys.stdout.write(f"--- keeper on {side.guest.host}\n{text}")
                assert "begun again" not in text, "a part of the keeper failed and was restarted"
                assert "Traceback" not in text


@pytest.fixture
def alpha(pair: Pair) -> Side:
    return pair.alpha


# --- the start gate ---------------------------------------------------------------------------------------------


def refused(side: Side, sentence: str) -> None:
    process = side.launch()
    _out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 78
    assert sentence in err.decode()
    assert not err.startswith(b"<"), "the guest's unit takes no priority from a line"
    assert not pathlib.Path(side.guest.permit_file).exists(), "a permit is good for one try"


def test_gate_refuses_without_permit(alpha: Side) -> None:
    _store.update(alpha.guest, _generation.started_alone)
    refused(alpha, "there is no start permit")


def test_gate_refuses_what_does_not_agree(alpha: Side) -> None:
    _store.update(alpha.guest, _generation.started_alone)
    alpha.permit("primary", generation=2)
    refused(alpha, "permit is for primary at generation 2")
    alpha.permit("standby")
    refused(alpha, "permit is for standby")
    alpha.permit("primary", guest="web2")
    refused(alpha, "permit is for 'web2'")
    pathlib.Path(alpha.guest.permit_file).write_text("{")
    refused(alpha, "malformed")
    alpha.permit("primary")
    os.chown(alpha.guest.permit_file, 65534, 65534)
    refused(alpha, "not given by root")
    _store.update(alpha.guest, lambda rec: _generation.begin_sync(rec, rec.generation, discard=True))
    alpha.permit("primary")
    refused(alpha, "is torn")


def test_links_that_an_earlier_qemu_left_are_not_written_through(alpha: Side) -> None:
    """Whoever broke out of the guest can put them there, and the next start is of a new QEMU."""
    precious = alpha.directory / "precious"
    precious.write_text("mine")
    for path in (f"{alpha.guest.paths.run}/keeper.lock", alpha.guest.started_file):
        pathlib.Path(path).symlink_to(precious)
    refusing = subprocess.run(
        [sys.executable, str(KEEPER), "run", str(alpha.config)],
        env=environ(), stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert refusing.returncode == 1
    assert b"symbolic links" in refusing.stderr
    pathlib.Path(f"{alpha.guest.paths.run}/keeper.lock").unlink()
    alpha.start_keeper()
    alpha.start_qemu("primary")
    assert not pathlib.Path(alpha.guest.started_file).is_symlink()
    assert precious.read_text() == "mine"


def test_gate_refuses_a_broken_record(alpha: Side) -> None:
    alpha.permit("primary", generation=1)
    pathlib.Path(alpha.guest.record_file).write_text("{}")
    refused(alpha, "record_unreadable")
    assert pathlib.Path(alpha.guest.record_file).read_text() == "{}"


def test_permit_is_for_one_start(alpha: Side) -> None:
    alpha.start_keeper()
    alpha.start_qemu("primary")
    refused(alpha, "there is no start permit")


# --- one keeper, one QEMU ---------------------------------------------------------------------------------------


def test_sees_events_from_the_beginning(alpha: Side) -> None:
    alpha.start_keeper()
    assert alpha.state()["role"] == "none"
    assert alpha.state()["qemu"]["status"] is None
    alpha.start_qemu("primary")
    state = alpha.state()
    assert (state["role"], state["qemu"]["status"], state["qemu"]["connected"]) == ("serving", "prelaunch", True)
    alpha.execute("cont")
    alpha.execute("stop")
    wait_for("STOP", lambda: alpha.state()["event_counts"].get("STOP"))
    state = alpha.state()
    assert [event["event"] for event in state["events"]] == ["RESUME", "STOP"]
    assert state["qemu"]["status"] == "paused"
    assert state["checkpoints"]["count"] == 0
    assert state["flags"] == dict.fromkeys(state["flags"])
    assert state["migration"]["status"] == "none"
    assert state["record"]["state"] == "alone"
    assert pathlib.Path(alpha.guest.keeper_socket).stat().st_mode & 0o777 == 0o600


def test_survives_sigkill(alpha: Side) -> None:
    alpha.start_keeper()
    alpha.start_qemu("primary")
    alpha.execute("cont")
    for _round in range(3):
        alpha.kill_keeper()
        with pytest.raises(ColoError, match="cannot be asked"):
            alpha.state()
        assert alpha.runs()
        alpha.start_keeper()
        wait_for("blind", lambda: alpha.flag("blind_since"))
        assert alpha.state()["qemu"]["status"] == "running"
        assert alpha.client.query_yank()
    assert alpha.runs()


def test_second_keeper_leaves_the_first_alone(alpha: Side) -> None:
    alpha.start_keeper()
    first = alpha.keeper
    second = subprocess.run(
        [sys.executable, str(KEEPER), "run", str(alpha.config)], env=environ(), check=False, timeout=DEADLINE_S
    )
    assert second.returncode == 75
    assert first is not None
    assert alpha.state()["pid"] == first.pid


def test_qemu_gone_and_back(alpha: Side) -> None:
    alpha.start_keeper()
    alpha.start_qemu("primary")
    alpha.execute("cont")
    assert alpha.qemu is not None
    alpha.qemu.kill()
    alpha.qemu.wait(DEADLINE_S)
    wait_for("gone", lambda: alpha.state()["qemu"]["status"] is None)
    assert alpha.state()["role"] == "none"
    alpha.start_qemu("primary")
    state = alpha.state()
    assert state["events"] == []
    assert state["flags"]["blind_since"] is None
    assert state["record"]["generation"] == 2


def test_stopped_qemu_is_seen(alpha: Side) -> None:
    alpha.start_keeper()
    alpha.start_qemu("primary")
    assert alpha.qemu is not None
    alpha.qemu.send_signal(signal.SIGSTOP)
    wait_for("silence", lambda: alpha.state()["qemu"]["answer_age_ms"] > 2000)
    with pytest.raises(ColoError) as caught:
        alpha.client.query_yank()
    assert caught.value.error_code == "qemu_unreachable"
    alpha.kill_keeper()
    alpha.start_keeper()
    # QEMU is there and does not greet: that is not the same as gone.
    wait_for("unknown", lambda: alpha.state()["qemu"]["status"] == "unknown")
    alpha.qemu.send_signal(signal.SIGCONT)
    wait_for("back", lambda: alpha.state()["qemu"]["status"] == "prelaunch")


def test_yank_refuses_monitors(alpha: Side) -> None:
    alpha.start_keeper()
    alpha.start_qemu("primary")
    monitors = alpha.client.query_yank()
    assert {instance["id"] for instance in monitors} >= {"monitor-keeper", "monitor-modules", "monitor-operator"}
    for instance in monitors:
        with pytest.raises(ColoError) as caught:
            alpha.client.yank([{"type": "migration"}, instance])
        assert caught.value.error_code == "yank_refused"
    results = alpha.client.yank([{"type": "migration"}])
    assert results == [{"instance": {"type": "migration"}, "yanked": False, "reason": "not there"}]
    assert alpha.client.query_yank() == monitors


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b'{"op": "no"}\n', b'{"op": "yank", "instances": 1}\n', b"1\n"])
def test_api_refuses_nonsense(alpha: Side, line: bytes) -> None:
    alpha.start_keeper()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(alpha.guest.keeper_socket)
        connection.sendall(line)
        assert json.loads(connection.recv(65536))["error_code"] == "bad_request"
    assert alpha.answers()


def test_api_closes_on_a_line_without_an_end(alpha: Side) -> None:
    alpha.start_keeper()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(alpha.guest.keeper_socket)
        with contextlib.suppress(OSError):
            connection.sendall(b"x" * 1000000)
            assert connection.recv(1) == b""
    assert alpha.answers()


def test_readiness_is_told(alpha: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        path = str(alpha.directory / "notify")
        channel.bind(path)
        channel.settimeout(DEADLINE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        alpha.start_keeper()
        assert channel.recv(100) == b"READY=1"


def test_ready_is_a_keeper_that_sees_what_its_qemu_tells(alpha: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who restarts the keepers of a pair one after the other relies on it."""
    alpha.start_keeper()
    alpha.start_qemu("primary")
    alpha.execute("cont")
    assert alpha.qemu is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(alpha.directory / "notify"))
        channel.settimeout(DEADLINE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(alpha.directory / "notify"))
        for hangs in (False, True):
            alpha.kill_keeper()
            alpha.log.unlink()
            if hangs:
                alpha.qemu.send_signal(signal.SIGSTOP)
            alpha.start_keeper()
            assert channel.recv(100) == b"READY=1"
            told = alpha.log.read_text()
            assert ("QEMU connected" in told[: told.index("keeper ready")]) != hangs, told
        alpha.qemu.send_signal(signal.SIGCONT)


def test_state_for_humans(alpha: Side) -> None:
    alpha.start_keeper()
    out = subprocess.check_output([sys.executable, str(KEEPER), "state", str(alpha.config)], env=environ())
    assert json.loads(out)["guest"] == "web1"


# --- two keepers ------------------------------------------------------------------------------------------------


def test_heartbeat(pair: Pair) -> None:
    pair.begin()
    here, there = pair.alpha.state(), pair.beta.state()
    assert (here["role"], there["role"]) == ("serving", "standby")
    assert (here["heartbeat"]["listening"], there["heartbeat"]["listening"]) == (False, True)
    assert here["heartbeat"]["authenticated"]
    assert there["heartbeat"]["authenticated"]
    assert here["heartbeat"]["peer"]["joins"] == here["record"]["generation"] + 1
    assert there["heartbeat"]["peer"]["qemu_status"] == "running"
    assert here["heartbeat"]["last_rx_age_ms"] < 1000
    # QEMU on the standby dies: its keeper says so before anybody has to miss it
    assert pair.beta.qemu is not None
    pair.beta.qemu.kill()
    wait_for("last word", lambda: pair.alpha.state()["heartbeat"]["peer"]["qemu_status"] is None)
    wait_for("no listener", lambda: not pair.beta.state()["heartbeat"]["listening"])


def test_heartbeat_silence_is_seen(pair: Pair) -> None:
    pair.begin()
    assert pair.beta.keeper is not None
    pair.beta.keeper.send_signal(signal.SIGSTOP)
    wait_for("lost", lambda: pair.alpha.state()["heartbeat"]["lost"])
    assert not pair.alpha.state()["heartbeat"]["authenticated"]
    pair.beta.keeper.send_signal(signal.SIGCONT)
    wait_for("back", lambda: pair.alpha.state()["heartbeat"]["authenticated"])
    assert not pair.alpha.state()["heartbeat"]["lost"]


@pytest.mark.parametrize("key", [WRONG_KEY, "short", None])
def test_heartbeat_with_a_wrong_key(pair: Pair, key: str | None) -> None:
    if key is None:
        pair.alpha.key_file.unlink()
    else:
        pair.alpha.key_file.write_text(key + "\n")
    pair.beta.start_keeper()
    _store.update(pair.beta.guest, lambda rec: _generation.begin_sync(rec, 1))
    pair.beta.start_qemu("standby")
    wait_for("listens", lambda: pair.beta.state()["heartbeat"]["listening"])
    pair.alpha.start_keeper()
    pair.alpha.start_qemu("primary")
    if key == WRONG_KEY:
        wait_for("trouble", lambda: "does not have the key" in (pair.alpha.state()["heartbeat"]["trouble"] or ""))
    for side in (pair.alpha, pair.beta):
        assert side.state()["heartbeat"]["peer"] is None
        assert not side.state()["heartbeat"]["authenticated"]


def test_heartbeat_refuses_replay(pair: Pair) -> None:
    """What a listener on the wire recorded is worth nothing in another connection."""
    _store.update(pair.beta.guest, lambda rec: _generation.begin_sync(rec, 1))
    pair.beta.start_keeper()
    pair.beta.start_qemu("standby")
    wait_for("listens", lambda: pair.beta.state()["heartbeat"]["listening"])
    address = (LINK["beta"], pair.beta.guest.port_heartbeat)
    handshake = _heartbeat.ClientHandshake(bytes.fromhex(KEY), "web1", "alpha", "beta", "1" * 64)
    with socket.create_connection(address, DEADLINE_S) as connection, connection.makefile("rwb") as lines:
        lines.write(handshake.hello())
        lines.flush()
        proof, session = handshake.finish(lines.readline())
        recorded = [proof, session.seal({"host": "alpha", "generation": 1, "role": "serving"})]
        lines.writelines(recorded)
        lines.flush()
        wait_for("heard", lambda: pair.beta.state()["heartbeat"]["peer"])
    wait_for("ended", lambda: not pair.beta.state()["heartbeat"]["authenticated"])
    with socket.create_connection(address, DEADLINE_S) as connection, connection.makefile("rwb") as lines:
        lines.write(handshake.hello())
        lines.flush()
        lines.readline()
        lines.writelines(recorded)
        lines.flush()
        assert lines.readline() == b"", "the keeper must close"
    assert "does not have the key" in pair.beta.state()["heartbeat"]["trouble"]


def test_heartbeat_is_not_taken_away_by_strangers(pair: Pair) -> None:
    pair.begin()
    strangers = [
        socket.create_connection((LINK["beta"], pair.beta.guest.port_heartbeat), DEADLINE_S) for _number in range(40)
    ]
    strangers[0].sendall(b"x" * 100000)
    assert pair.beta.state()["heartbeat"]["authenticated"]
    for stranger in strangers:
        stranger.close()
    wait_for("still there", lambda: pair.alpha.state()["heartbeat"]["authenticated"])


# --- protection -------------------------------------------------------------------------------------------------


def test_protection_is_watched(pair: Pair) -> None:
    pair.begin()
    pair.protect()
    for side in (pair.alpha, pair.beta):
        record = side.record()
        assert (record.state, record.serving, record.generation) == ("protected", "alpha", 2)
        figures = side.state()["checkpoints"]
        assert figures["last_age_ms"] < 3000
        assert 0 < figures["last_pause_ms"] < 5000
        assert figures["p50_pause_ms"] <= figures["p99_pause_ms"]
        assert 0 < figures["rate_hz"] < 10
        assert side.state()["flags"] == dict.fromkeys(side.state()["flags"])
    # the keepers' restarts are harmless, and are admitted
    for side in (pair.alpha, pair.beta):
        side.kill_keeper()
        side.start_keeper()
        wait_for("blind", lambda side=side: side.flag("blind_since"))  # type: ignore[misc]
        wait_for("checkpoints", lambda side=side: side.state()["checkpoints"]["count"] >= 2)  # type: ignore[misc]
    assert pair.beta.record().state == "protected"


def test_standby_protected_while_its_keeper_was_dead(pair: Pair) -> None:
    pair.begin()
    pair.migrate()
    pair.beta.kill_keeper()
    _store.update(pair.alpha.guest, lambda rec: _generation.enter_protection(rec, "alpha"))
    pair.alpha.execute("migrate-continue", {"state": "pre-switchover"})
    wait_for("colo", lambda: pair.beta.execute("query-migrate").get("status") == "colo")
    assert pair.beta.record().state == "syncing"
    pair.beta.start_keeper()
    wait_for("recorded", lambda: pair.beta.record().state == "protected")
    assert pair.beta.record().generation == pair.alpha.record().generation


def test_death_of_the_peer_is_kept(pair: Pair) -> None:
    pair.begin()
    pair.protect()
    assert pair.alpha.qemu is not None
    pair.alpha.qemu.kill()
    flag = wait_for("COLO_EXIT", lambda: pair.beta.flag("colo_exit"))
    assert flag["data"] == {"mode": "secondary", "reason": "error"}
    assert pair.beta.record().state == "protected", "the keeper never takes over"
    assert pair.beta.state()["role"] == "standby"


def test_reset_in_colo_voids_both_copies(pair: Pair) -> None:
    pair.begin()
    pair.protect()
    pair.alpha.execute("system_reset")
    wait_for("void here", lambda: pair.alpha.record().void)
    wait_for("void there", lambda: pair.beta.record().void)
    with pytest.raises(ColoError) as caught:
        _generation.take_over(pair.beta.record(), "test")
    assert caught.value.error_code == "protection_void"


def test_stale_is_written_on_the_standby(pair: Pair) -> None:
    """A primary's keeper says that replication failed; spoken here by a client that has the key."""
    pair.begin()
    pair.protect()
    pair.alpha.kill_keeper()
    handshake = _heartbeat.ClientHandshake(bytes.fromhex(KEY), "web1", "alpha", "beta", "2" * 64)
    address = (LINK["beta"], pair.beta.guest.port_heartbeat)
    with socket.create_connection(address, DEADLINE_S) as connection, connection.makefile("rwb") as lines:
        lines.write(handshake.hello())
        lines.flush()
        proof, session = handshake.finish(lines.readline())
        word = {"host": "alpha", "generation": 2, "role": "serving", "flags": {"replication_failed": True}}
        lines.writelines([proof, session.seal(word)])
        lines.flush()
        wait_for("stale", lambda: pair.beta.record().stale)
    with pytest.raises(ColoError) as caught:
        _generation.take_over(pair.beta.record(), "test")
    assert caught.value.error_code == "copy_not_startable"


def test_switchover_that_waits_is_ended(pair: Pair) -> None:
    pair.begin()
    pair.migrate()
    assert not pair.alpha.runs()
    flag = wait_for("ended", lambda: pair.alpha.flag("switchover_ended"))
    assert flag["data"]["limit_ms"] == 2000
    assert 2000 <= flag["data"]["waited_ms"] < 4000
    wait_for("guest runs again", pair.alpha.runs)
    assert pair.beta.record().state == "syncing"


def test_switchover_of_a_dead_standby_is_ended(pair: Pair) -> None:
    """No event tells of a standby that dies in pre-switchover; the guest would stay paused for ever."""
    pair.begin()
    pair.migrate()
    assert pair.beta.qemu is not None
    pair.beta.qemu.kill()
    wait_for("ended", lambda: pair.alpha.flag("switchover_ended"))
    wait_for("guest runs again", pair.alpha.runs)


def test_switchover_is_ended_by_a_keeper_that_was_killed_meanwhile(pair: Pair) -> None:
    pair.begin()
    pair.migrate()
    pair.alpha.kill_keeper()
    pair.alpha.start_keeper()
    wait_for("ended", lambda: pair.alpha.flag("switchover_ended"))
    wait_for("guest runs again", pair.alpha.runs)


def test_switchover_that_goes_on_is_left_alone(pair: Pair) -> None:
    pair.begin()
    pair.protect()
    began = pair.alpha.state()["checkpoints"]["count"]
    wait_for("twice the limit of checkpoints", lambda: pair.alpha.state()["checkpoints"]["count"] >= began + 15)
    assert pair.alpha.flag("switchover_ended") is None
    assert pair.alpha.state()["migration"]["status"] == "colo"


def test_a_peer_that_went_on_alone_makes_the_standby_stale(pair: Pair) -> None:
    pair.begin()
    pair.protect()
    _store.update(pair.alpha.guest, lambda rec: _generation.go_alone(rec, "standby not heard"))
    wait_for("stale", lambda: pair.beta.record().stale)
    assert "generation 3" in (pair.beta.record().stale_reason or "")


def test_yank_while_protected(pair: Pair) -> None:
    pair.begin()
    pair.protect()
    assert {"type": "migration"} in pair.alpha.client.query_yank()
    assert pair.alpha.client.yank([{"type": "migration"}]) == [
        {"instance": {"type": "migration"}, "yanked": True, "reason": None}
    ]
    wait_for("COLO_EXIT", lambda: pair.alpha.flag("colo_exit"))
