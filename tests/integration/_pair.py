# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pair of hosts in one network namespace: real QEMUs, real keepers, the collection's own code.

The link is the loopback (127.0.0.1 and 127.0.0.2), each host has a tap of its own, guests are firmware that looks for
something to boot. Only systemd is played, by :class:`Units`.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _apply,
    _generation,
    _guest,
    _guests,
    _migrate,
    _observe,
    _pair,
    _peer,
    _plan,
    _states,
    _store,
)
from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError
from ansible_collections.lockstep.colo.plugins.module_utils._qmp import Monitor

TOP = pathlib.Path(__file__).resolve().parents[2]
KEEPER = TOP / "roles" / "guest" / "files" / "colo_keeper.py"
LINK = {"alpha": "127.0.0.1", "beta": "127.0.0.2"}
KEY = "0123456789abcdef" * 4
NAME = "web1"
DEADLINE_S = 20.0

Json = dict[str, t.Any]
Process = subprocess.Popen[bytes]


class KilledError(BaseException):
    """The module that carries out a plan was killed; nobody may catch this on its way."""


def wait_for(what: str, look: c.Callable[[], t.Any], timeout_s: float = DEADLINE_S) -> t.Any:
    """Return the first true value of *look*; fail with the last one."""
    ends = time.monotonic() + timeout_s
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < ends, f"{what}: not within {timeout_s} s, last seen {seen!r}"
        # the thing looked at tells nobody when it changes
        time.sleep(0.02)


class Units:
    """systemd of one host, as far as the collection asks it: start, stop, kill and show of the guest's two units."""

    def __init__(self, guest: _guest.Guest, credentials: pathlib.Path, log: pathlib.Path) -> None:
        self._guest = guest
        self._units = {"launch": guest.unit, "run": guest.keeper_unit}
        self.credentials = credentials
        self._log = log
        self.qemu: Process | None = None
        self.keeper: Process | None = None

    def __call__(self, argv: list[str], **_more: t.Any) -> tuple[int, str, str]:
        """``AnsibleModule.run_command``."""
        if argv[0] != "systemctl":
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout, done.stderr
        assert argv[-1] == self._guest.unit, argv
        if argv[1] == "start":
            self._start()
        elif argv[1] == "stop":
            self.stop(signal.SIGTERM)
        elif argv[1] == "kill":
            self.stop(signal.SIGKILL)
        elif argv[1] == "reset-failed":
            pass  # nothing here remembers how a process has ended
        elif argv[1] == "show":
            return 0, self._state() + "\n", ""
        else:
            raise AssertionError(argv)
        return 0, "", ""

    def _spawn(self, command: str) -> Process:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "CREDENTIALS_DIRECTORY": str(self.credentials),
        }
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                # by the line: what QEMU prints is looked for while it runs
                ["stdbuf", "-oL", sys.executable, str(KEEPER), command, self._guest.definition_file],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        # where systemd would have started it
        place = pathlib.Path(_peer.PROC, str(process.pid))
        place.mkdir(parents=True, exist_ok=True)
        (place / "cgroup").write_text(f"0::/system.slice/{self._units[command]}\n")
        return process

    def start_keeper(self) -> None:
        """Ready when its socket is its own, as with Type=notify."""
        keeper = self.keeper = self._spawn("run")

        def ready() -> bool:
            assert keeper.poll() is None, self._log.read_text()
            state = _observe.keeper_state(self._guest)
            return state is not None and state["pid"] == keeper.pid

        wait_for("the keeper answers", ready)

    def restart_keeper(self) -> None:
        """The role's handler."""
        self._unneeded()
        self.start_keeper()

    def _start(self) -> None:
        if self.qemu is not None and self.qemu.poll() is None:
            return
        self._unneeded()
        self.start_keeper()
        self.qemu = self._spawn("launch")

    def _state(self) -> str:
        if self.qemu is None:
            return "inactive"
        code = self.qemu.poll()
        if code is None:
            return "active"
        self._unneeded()
        return "failed" if code not in (0, -signal.SIGTERM, None) else "inactive"

    def _unneeded(self) -> None:
        """StopWhenUnneeded of the keeper."""
        if self.keeper is not None:
            _end(self.keeper, signal.SIGTERM)
            self.keeper = None

    def stop(self, number: signal.Signals) -> None:
        """End QEMU, and with it the keeper."""
        if self.qemu is not None:
            _end(self.qemu, number)
        self._unneeded()

    def power_off(self) -> None:
        """Nothing of this host is left, at once."""
        for process in (self.keeper, self.qemu):
            if process is not None:
                _end(process, signal.SIGKILL)
        self.keeper = self.qemu = None


def _end(process: Process, number: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        # TimeoutStopSec: a wedged QEMU ignores SIGTERM
        process.kill()
        process.wait(DEADLINE_S)


class Host:
    """One host: what its operator would do there."""

    def __init__(self, directory: pathlib.Path, host: str, port_base: int, **more: t.Any) -> None:
        paths = {name: directory / host / name for name in ("config", "state", "run")}
        credentials = directory / host / "credentials"
        for path in (*paths.values(), credentials):
            path.mkdir(parents=True)
        (paths["run"] / "operator").mkdir()
        for place in (credentials / "key", paths["config"] / f"{NAME}.key"):
            place.write_text(KEY + "\n")
        self.tap = f"{host}-lan"
        peer = "beta" if host == "alpha" else "alpha"
        definition = {
            "schema": 1, "name": NAME, "host": host, "hosts": ["alpha", "beta"], "peer": peer, "link": LINK,
            "memory_mib": 32, "vcpus": 1, "machine": "pc", "cpu": "qemu64", "accelerator": "tcg",
            "qemu_binary": "/usr/bin/qemu-system-x86_64", "user": "root", "link_security": "tls", "boot": None, "port_base": port_base,
            "disks": [{"name": "root", "size_bytes": 16 << 20, "source": None, "source_format": "qcow2", "checksum": None}],
            "nics": [{"name": "lan", "bridge": "br0", "mac": "52:54:00:12:34:56", "model": "virtio-net-pci", "tap": self.tap}],
            "tuning": {"heartbeat_interval_ms": 100, "heartbeat_timeout_ms": 1000, "checkpoint_delay_ms": 200,
                       "switchover_limit_ms": 3000},
            "paths": {name: str(path) for name, path in paths.items()},
            **more,
        }  # fmt: skip
        (paths["config"] / f"{NAME}.json").write_text(json.dumps(definition))
        self.definition = definition
        self.guest = _guest.load(str(paths["config"] / f"{NAME}.json"))
        self.log = directory / host / "log"
        self.units = Units(self.guest, credentials, self.log)
        _store.create(self.guest)
        for disk in self.guest.disks:
            image = self.guest.image(disk, "parent")
            make = ["qemu-img", "create", "-q", "-f", "qcow2", image, str(disk.size_bytes)]
            subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
        for argv in (["ip", "tuntap", "add", "dev", self.tap, "mode", "tap"], ["ip", "link", "set", self.tap, "up"]):
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)

    def tune(self, **knobs: int) -> None:
        """Write another tuning into the definition, as site.yml does."""
        self.definition["tuning"] |= knobs
        path = pathlib.Path(self.guest.definition_file)
        path.write_text(json.dumps(self.definition))
        self.guest = _guest.load(str(path))

    def end(self) -> None:
        self.units.power_off()
        subprocess.run(["ip", "link", "delete", self.tap], check=True, stdin=subprocess.DEVNULL)

    # --- the modules

    def _module(self, params: Json) -> AnsibleModule:
        return t.cast("AnsibleModule", Module(self.units, {"config_dir": self.guest.paths.config, **params}))

    def migrate(self, role: str, state: str, **more: t.Any) -> _guests.Result:
        """colo_migrate."""
        waits = {"timeout_s": 10.0, "patience_s": 0.0}
        params = {"role": role, "state": state, "generation": {}, "fenced_by": {}, "accept_older": [], **waits, **more}
        return _migrate.migrate(NAME, self._module(params))

    def fail_over(self, fenced_by: str | None = None, **more: t.Any) -> _guests.Result:
        """colo_failover."""
        evidence = {NAME: fenced_by} if fenced_by else {}
        params = {"state": "alone", "fenced_by": evidence, "await_release_s": 0, "accept_void": False, **more}
        return _migrate.fail_over(NAME, self._module(params))

    def serve(self, fenced_by: str | None = "the test") -> _guests.Result:
        return self.migrate("primary", "ready", fenced_by={NAME: fenced_by} if fenced_by else {})

    def stand_by(self, generation: int) -> _guests.Result:
        return self.migrate("secondary", "ready", generation={NAME: generation})

    # --- what is there

    def look(self) -> _states.Observation:
        return _observe.observe(self.guest, self.units)

    def qemu(self) -> _states.Qemu:
        seen = self.look()
        assert seen.qemu is not None, seen.trouble
        return seen.qemu

    @property
    def standing(self) -> str:
        return _states.standing(self.look())

    @property
    def side(self) -> _pair.Side:
        return _observe.side(self.guest, self.look())

    @property
    def record(self) -> _generation.Record:
        record = _store.read(self.guest)
        assert record is not None
        return record

    @property
    def keeper(self) -> Json:
        state = _observe.keeper_state(self.guest)
        assert state is not None
        return state

    @property
    def process(self) -> Process:
        assert self.units.qemu is not None
        return self.units.qemu

    def things(self) -> Json:
        """Everything of COLO that could be left in a QEMU that runs alone."""
        qemu = self.qemu()
        return {
            "nodes": qemu.nodes,
            "attached": qemu.attached,
            "jobs": dict(qemu.jobs),
            "objects": dict(qemu.objects),
            "chardevs": dict(qemu.chardevs),
            "exports": qemu.exports,
        }

    def is_clean(self) -> bool:
        """It serves alone, and nothing is left of a protection."""
        seen = self.look()
        return _states.standing(seen) == "alone" and not _states.leftovers(seen)

    @contextlib.contextmanager
    def operator(self, timeout_s: float = 5.0) -> c.Iterator[Monitor]:
        """The human's monitor."""
        with Monitor(self.guest.operator_socket, timeout_s) as monitor:
            yield monitor

    def disk(self, command: str, timeout_s: float = 5.0) -> str:
        """What ``qemu-io`` prints (to QEMU's output, which is in the log) on a command to the guest's own disk."""
        line = f'qemu-io -d /machine/peripheral/disk0/virtio-backend "{command}"'
        begin = self.log.stat().st_size
        with self.operator(timeout_s) as monitor:
            refusal = monitor.execute("human-monitor-command", {"command-line": line})
        assert refusal == "", refusal
        return self.log.read_bytes()[begin:].decode()

    def write(self, pattern: int) -> None:
        """What a guest would do to its disk."""
        self._disk_done(f"aio_write -f -P {pattern} 64k 64k", "wrote 65536/65536")

    def holds(self, pattern: int) -> bool:
        """Whether the guest's disk has what was written."""
        return "verification failed" not in self._disk_done(f"aio_read -P {pattern} 64k 64k", "read 65536/65536")

    def _disk_done(self, command: str, done: str) -> str:
        """As a guest does it: QEMU's main loop goes on meanwhile.

        One that waited for the standby's disk in the middle of a checkpoint would wait for ever: the standby's main loop loads the
        checkpoint's RAM then, and the rest of that waits for the main loop here (seen on QEMU 10.0).
        """
        begin = self.log.stat().st_size
        self.disk(command)
        wait_for(f"{command}: {done}", lambda: done.encode() in self.log.read_bytes()[begin:])
        return self.log.read_bytes()[begin:].decode()

    def break_disk(self, node: str, *kinds: str) -> None:
        """From now on everything of these kinds (`write` if none) that is asked of a node's file fails."""
        with self.operator() as monitor:
            nodes = {each["node-name"]: each for each in monitor.execute("query-named-block-nodes", {"flat": True})}
            children = {child["child"]: child["node-name"] for child in nodes[node]["children"]}
            rule = {"event": "none", "errno": errno.EIO, "once": False}
            rules = [{**rule, "iotype": kind} for kind in kinds or ("write",)]
            fault = {"driver": "blkdebug", "node-name": "fault0", "image": children["file"], "inject-error": rules}
            monitor.execute("blockdev-add", fault)
            broken = {"driver": "qcow2", "node-name": node, "file": "fault0", "backing": children.get("backing")}
            monitor.execute("blockdev-reopen", {"options": [broken]})


class Module:
    """The part of AnsibleModule that the collection's code uses."""

    def __init__(self, run_command: c.Callable[..., tuple[int, str, str]], params: Json) -> None:
        self.run_command = run_command
        self.params = params
        self.check_mode = False


class Pair:
    """Two hosts, and the playbooks."""

    def __init__(self, directory: pathlib.Path, port_base: int, **more: t.Any) -> None:
        # there are no control groups of units here: Units tells in which one a process would be
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(_peer, "PROC", str(directory / "proc"))
        self.alpha = Host(directory, "alpha", port_base, **more)
        self.beta = Host(directory, "beta", port_base, **more)

    def end(self) -> None:
        self.alpha.end()
        self.beta.end()
        self._patch.undo()

    def __getitem__(self, name: str | None) -> Host:
        assert name is not None
        return {"alpha": self.alpha, "beta": self.beta}[name]

    @property
    def sides(self) -> tuple[_pair.Side, _pair.Side]:
        return self.alpha.side, self.beta.side

    @property
    def judged(self) -> _pair.Pair:
        return _pair.pair(self.sides)

    def site(self) -> None:
        """site.yml, from the role protection on."""
        judged = self.judged
        assert not judged.refusal, judged
        serving, standby = self[judged.serving], self[judged.standby]
        if judged.rebuild:
            serving.migrate("primary", "absent")
        served = serving.serve("no host runs it" if judged.start else None)
        standby.stand_by(served["generation"])
        serving.migrate("primary", "protected")
        standby.migrate("secondary", "protected")
        self.assert_protected(serving)

    def assert_protected(self, serving: Host) -> None:
        judged = self.judged
        assert (judged.verdict, judged.serving) == ("protected", serving.guest.host), judged

    def wait(self) -> Json:
        """alpha serves and has something on its disk, beta waits; returns what alpha consists of."""
        generation = self.alpha.serve()["generation"]
        before = self.alpha.things()
        self.alpha.write(0x41)
        self.beta.stand_by(generation)
        return before

    def checkpoint(self, standby: Host) -> None:
        """Wait until what was done on the serving side alone is the standby's, too: a real guest would do it on both."""
        done = standby.keeper["checkpoints"]["count"]
        # the one that is under way may have begun before
        wait_for("a checkpoint", lambda: standby.keeper["checkpoints"]["count"] >= done + 2)

    def failover(self, confirmed: str | None = None) -> Host:
        """failover.yml; returns the host that went on."""
        judged = _pair.failover(self.sides, confirmed)
        assert not judged.refusal, judged
        if judged.stop is not None:
            self[judged.stop].migrate("secondary", "absent", fenced_by={NAME: "the other host serves"})
        survivor = self[judged.survivor]
        survivor.fail_over(judged.fenced_by)
        assert survivor.is_clean()
        return survivor


class Hooked(list[_plan.Step]):
    """A plan that is disturbed: ``hook`` is told every step, with its number, before it is carried out."""

    def __init__(self, steps: c.Iterable[_plan.Step], hook: c.Callable[[int, _plan.Step], None]) -> None:
        super().__init__(steps)
        self._hook = hook

    def disturbed(self) -> c.Iterator[_plan.Step]:
        """The steps as they are carried out; who only looks at the plan disturbs nothing."""
        for number, step in enumerate(self):
            self._hook(number, step)
            yield step


@contextlib.contextmanager
def refused(*codes: str) -> c.Iterator[list[ColoError]]:
    """The error of what is done inside, which has to be of one of ``codes``."""
    caught: list[ColoError] = []
    try:
        yield caught
    except ColoError as exc:
        if exc.error_code not in codes:
            raise
        caught.append(exc)
    else:
        raise AssertionError(f"not refused (expected {' or '.join(codes)})")


def plan_of(function: str, hook: c.Callable[[int, _plan.Step], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the plans that ``_plan.FUNCTION`` makes be disturbed by ``hook``."""
    original, run = getattr(_plan, function), _apply.Applier.run

    def carry_out(applier: _apply.Applier, steps: t.Any) -> None:
        disturbed: t.Any = steps.disturbed() if isinstance(steps, Hooked) else steps
        run(applier, disturbed)

    monkeypatch.setattr(_plan, function, lambda *args, **more: Hooked(original(*args, **more), hook))
    monkeypatch.setattr(_apply.Applier, "run", carry_out)


def at(title: str, action: c.Callable[[], object]) -> c.Callable[[int, _plan.Step], None]:
    """A hook that acts once, before the step of that title."""
    left = [action]

    def hook(_number: int, step: _plan.Step) -> None:
        if step.title == title and left:
            left.pop()()

    return hook
