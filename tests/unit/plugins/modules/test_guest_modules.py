# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules colo_info, colo_migrate and colo_failover from their options to their results, on a QEMU that is a script."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import types
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.lockstep.colo.plugins.module_utils import (
    _apply,
    _generation,
    _guest,
    _keeper_client,
    _observe,
    _peer,
    _qmp,
    _store,
    _topology,
)
from ansible_collections.lockstep.colo.plugins.modules import (
    colo_backup,
    colo_failover,
    colo_info,
    colo_migrate,
    colo_power,
)
from ansible_collections.lockstep.colo.tests.unit import _make
from ansible_collections.lockstep.colo.tests.unit._monitor import Json, Refuse, Server


class Host:
    """A host with deployed guests: their files are real, their QEMU is a script, systemd and the keeper are told."""

    def __init__(self, root: pathlib.Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.patch = patch
        self.units: dict[str, str] = {}
        self.keepers: dict[str, Json | None] = {}
        self.yanked: list[str] = []
        self.cut: list[str] = []
        self.packets = 0
        self._capsys = capsys
        patch.setattr(AnsibleModule, "run_command", lambda _module, argv: self._systemctl(argv))
        patch.setattr(_observe, "keeper_state", lambda guest: self.keepers.get(guest.name))
        patch.setattr(_observe, "live_features", lambda _monitor: _make.FEATURES)
        patch.setattr(_observe, "tap_packets", self._packets)
        patch.setattr(_keeper_client.KeeperClient, "yank", lambda client, _instances: self.yanked.append(client._path))
        short = functools.partial(_qmp.Monitor, timeout_s=0.3)
        patch.setattr(_observe, "Monitor", short)
        # the scripts that play QEMU are all in this process
        patch.setattr(_peer, "PROC", str(root / "proc"))
        self._groups = root / "proc" / str(os.getpid()) / "cgroup"
        self._groups.parent.mkdir(parents=True)

    def _systemctl(self, argv: list[str]) -> tuple[int, str, str]:
        if argv[0] == "ss":
            self.cut.append(argv[-1])
            return 0, "", ""
        assert argv[:2] == ["systemctl", "show"], f"nobody expects {argv}"
        state = self.units.get(argv[-1], "inactive")
        if "--value" in argv:
            return 0, f"{state}\n", ""
        return 0, f"ActiveState={state}\nMainPID=5\nActiveEnterTimestamp=now\nResult=success\n", ""

    def stops(self, guest: _guest.Guest) -> None:
        """From here on ``systemctl stop`` is expected, and done."""
        show = self._systemctl

        def systemctl(argv: list[str]) -> tuple[int, str, str]:
            if argv == ["systemctl", "stop", guest.unit]:
                self.units[guest.unit] = "inactive"
                return 0, "", ""
            return show(argv)

        self.patch.setattr(AnsibleModule, "run_command", lambda _module, argv: systemctl(argv))

    def _packets(self, _tap: str) -> int:
        self.packets += 1
        return self.packets

    def deploy(
        self, name: str = "web1", *transitions: t.Callable[[_generation.Record], _generation.Record], **tuning: int
    ) -> _guest.Guest:
        """Write the definition, make the directories and a record."""
        raw = _make.definition(root=str(self.root), name=name, tuning={"settle_ms": 0, **tuning})
        guest = _guest.from_definition(raw)
        for path in (guest.paths.config, guest.paths.state, guest.paths.run):
            pathlib.Path(path).mkdir(parents=True, exist_ok=True)
        pathlib.Path(guest.definition_file).write_text(json.dumps(raw))
        pathlib.Path(guest.key_file).write_text("0" * 64 + "\n")
        _store.create(guest)
        for transition in transitions:
            _store.update(guest, transition)
        return guest

    def runs(self, guest: _guest.Guest, keeper: Json | None = None) -> None:
        with self._groups.open("a", encoding="utf-8") as groups:
            groups.write(f"0::/system.slice/{guest.unit}\n")
        self.units[guest.unit] = "active"
        self.keepers[guest.name] = _make.keeper() if keeper is None else keeper

    def module(self, module: types.ModuleType, check: bool = False, **options: t.Any) -> Json:
        """Run a module to its end and return its result."""
        options.setdefault("config_dir", f"{self.root}/etc/lockstep-colo")
        with (
            patch_module_args({**options, "_ansible_check_mode": check, "_ansible_diff": True}),
            pytest.raises(SystemExit),
        ):
            module.main()
        result = json.loads(self._capsys.readouterr().out)
        assert isinstance(result, dict)
        return result


@pytest.fixture
def host(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path, monkeypatch, capsys)


class Qemu:
    """Answers what an observation asks; everything else is in ``answers``, by command."""

    def __init__(self, answers: Json | None = None, **state: t.Any) -> None:
        self.nodes = ["parent0", "colo-disk0"]
        self.state = {"runstate": "running", "migration": "none", "colo": "none", **state}
        self.answers = answers or {}
        self.objects = {"rew0": "filter-rewriter"}
        wanted = _topology.live_settings(_make.guest())
        self.delay_ms = wanted.pop("x-checkpoint-delay")
        self.compare = {name.removeprefix("comp0."): value for name, value in wanted.items()}

    def __call__(self, command: str, arguments: Json) -> tuple[list[Json], t.Any]:
        if command in self.answers:
            answer = self.answers[command]
            return [], answer(arguments) if callable(answer) else answer
        return [], getattr(self, command.replace("-", "_"))(arguments)

    def query_version(self, _arguments: Json) -> Json:
        return {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}

    def query_migrate(self, _arguments: Json) -> Json:
        return {"status": self.state["migration"]}

    def query_status(self, _arguments: Json) -> Json:
        return {"status": self.state["runstate"]}

    def query_colo_status(self, _arguments: Json) -> Json:
        return {"mode": self.state["colo"]}

    def query_named_block_nodes(self, arguments: Json) -> list[Json]:
        assert arguments == {"flat": True}
        return [{"node-name": name} for name in [*self.nodes, "#block123"]]

    def x_debug_query_block_graph(self, _arguments: Json) -> Json:
        nodes = [{"id": number, "name": name} for number, name in enumerate(self.nodes)]
        return {"nodes": nodes, "edges": [{"parent": 1, "child": 0, "name": "children.0"}]}

    def query_block_jobs(self, _arguments: Json) -> list[Json]:
        return []

    def qom_list(self, arguments: Json) -> list[Json]:
        assert arguments == {"path": "/objects"}
        made = [{"name": name, "type": f"child<{kind}>"} for name, kind in self.objects.items()]
        return [{"name": "type", "type": "string"}, *made]

    def query_chardev(self, _arguments: Json) -> list[Json]:
        return [
            {"label": "monitor-modules", "filename": "unix:x,server=on <-> y"},
            {"label": "monitor-operator", "filename": "disconnected:unix:x,server=on"},
            {"label": "console0", "filename": "pty"},
        ]

    def query_block_exports(self, _arguments: Json) -> list[Json]:
        return []

    def query_migrate_parameters(self, _arguments: Json) -> Json:
        return {"x-checkpoint-delay": self.delay_ms, "multifd-channels": 2}

    def query_migrate_capabilities(self, _arguments: Json) -> list[Json]:
        return [{"capability": "multifd", "state": False}]

    def qom_get(self, arguments: Json) -> int:
        assert arguments["path"] == "/objects/comp0"
        return self.compare[arguments["property"]]

    def qom_set(self, arguments: Json) -> Json:
        assert arguments["path"] == "/objects/comp0"
        self.compare[arguments["property"]] = arguments["value"]
        return {}

    def migrate_set_parameters(self, arguments: Json) -> Json:
        self.delay_ms = arguments["x-checkpoint-delay"]
        return {}

    def announce_self(self, _arguments: Json) -> Json:
        return {}

    def object_add(self, arguments: Json) -> Json:
        self.objects[arguments["id"]] = arguments["qom-type"]
        return {}

    def object_del(self, arguments: Json) -> Json:
        del self.objects[arguments["id"]]
        return {}

    def blockdev_add(self, arguments: Json) -> Json:
        self.nodes.append(arguments["node-name"])
        return {}

    def blockdev_del(self, arguments: Json) -> Json:
        self.nodes.remove(arguments["node-name"])
        return {}


def _serve(guest: _guest.Guest, qemu: Qemu, **options: t.Any) -> Server:
    return Server(pathlib.Path(guest.qmp_socket), qemu, **options)


# --- colo_info --------------------------------------------------------------------------------------------------


def test_a_host_without_guests(host: Host) -> None:
    assert host.module(colo_info) == {**host.module(colo_info), "changed": False, "guests": {}}


def test_a_guest_that_is_not_deployed_is_absent(host: Host) -> None:
    found = host.module(colo_info, name=["web1"])["guests"]
    nothing = {"record": None, "proven": False, "void_reason": None, "disk_error": None}
    assert found == {"web1": {"standing": "absent", **nothing}}


def test_a_guest_that_runs_without_a_definition_is_not_absent(host: Host) -> None:
    host.units["colo-guest@web1.service"] = "active"
    found = host.module(colo_info, name=["web1"])["guests"]["web1"]
    assert found["error"]["error_code"] == "guest_unknown"
    assert "standing" not in found


def test_all_deployed_guests_are_looked_at(host: Host) -> None:
    host.deploy("web1")
    host.deploy("db", _generation.started_alone)
    found = host.module(colo_info)["guests"]
    assert {name: guest["standing"] for name, guest in found.items()} == {"web1": "stopped", "db": "stopped"}
    assert found["db"]["record"]["generation"] == 1
    assert found["db"]["qemu"] is None
    assert found["db"]["unit"]["state"] == "inactive"


def test_a_guest_that_runs(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    host.runs(guest)
    with _serve(guest, Qemu()) as server:
        found = host.module(colo_info)["guests"]["web1"]
    assert (found["standing"], found["leftovers"], found["proven"], found["trouble"]) == ("alone", False, False, None)
    assert found["qemu"]["version"] == "11.1.3"
    assert found["qemu"]["nodes"] == ["colo-disk0", "parent0"]
    assert found["qemu"]["filters"] == {"rew0": "filter-rewriter"}
    assert found["qemu"]["links"] == {}
    assert found["checkpoints"]["count"] == 5
    assert "record" not in found["keeper"]
    assert found["taps"] == {"nic0": "web1-nic0"}
    assert found["ports"] == {"migration": 9000, "nbd": 9001, "heartbeat": 9002, "mirror": [9004], "compare": [9005]}
    assert all(command.startswith(("query-", "qom-list", "x-debug-query")) for command, _a, _o in server.calls)


def test_a_guest_whose_qemu_does_not_answer(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    host.runs(guest)
    with _serve(guest, Qemu(), greet=False):
        found = host.module(colo_info)["guests"]["web1"]
    assert found["standing"] == "failed"
    assert found["trouble"].startswith("qmp_busy: ")


@pytest.mark.parametrize(("age_ms", "busy"), [(100.0, True), (5000.0, False)], ids=["since", "before"])
def test_a_monitor_that_is_taken_is_no_qemu_that_hangs(host: Host, age_ms: float, busy: bool) -> None:
    """A QEMU that began to hang a moment ago had answered its keeper until then: that counts for nothing."""
    guest = host.deploy("web1", _generation.started_alone, heartbeat_interval_ms=100, heartbeat_timeout_ms=500)
    host.runs(guest, _make.keeper(qemu={"connected": True, "answer_age_ms": age_ms}))
    with _serve(guest, Qemu(), greet=False):
        found = host.module(colo_info)["guests"]["web1"]
    assert found["busy"] is busy


def test_one_guest_that_cannot_be_read_hides_no_other(host: Host) -> None:
    host.deploy("web1")
    broken = host.deploy("db")
    pathlib.Path(broken.definition_file).write_text("{")
    result = host.module(colo_info)
    assert result["guests"]["web1"]["standing"] == "stopped"
    assert result["guests"]["db"]["error"]["error_code"] == "definition_unreadable"


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden"])
def test_a_name_is_no_path(host: Host, name: str) -> None:
    error = host.module(colo_info, name=[name])["guests"][name]["error"]
    assert error["error_code"] == "bad_input"
    assert error["details"]["variable"] == "name"


def test_the_keepers_figures_of_a_resync_are_told_also_when_the_monitor_is_busy(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    figures = {"resync0": {"done_bytes": 20, "of_bytes": 100, "bytes_per_s": 8, "left_s": 10.0}}
    host.runs(guest, _make.keeper(resync=figures))
    with _serve(guest, Qemu(), greet=False):
        found = host.module(colo_info)["guests"]["web1"]
    assert found["resync"] == figures
    assert "resync" not in found["keeper"]


# --- colo_migrate -----------------------------------------------------------------------------------------------


def _protected(host: Host) -> tuple[_guest.Guest, Qemu]:
    """A primary in lock step whose QEMU has what the definition wants."""
    guest = host.deploy("web1", _generation.started_alone, lambda record: _generation.enter_protection(record, "alpha"))
    host.runs(guest)
    qemu = Qemu(colo="primary", migration="colo")
    qemu.objects = {"comp0": "colo-compare"}
    return guest, qemu


def test_tuning_is_changed_in_lock_step_and_the_second_run_changes_nothing(host: Host) -> None:
    guest, qemu = _protected(host)
    qemu.delay_ms, qemu.compare["compare_timeout"] = 20000, 3000
    settings = ("x-checkpoint-delay", "comp0.compare_timeout")
    wanted = {name: _topology.live_settings(guest)[name] for name in settings}
    wish: Json = {"name": ["web1"], "role": "primary", "state": "protected"}
    before, record = (qemu.delay_ms, dict(qemu.compare)), _record(guest)
    with _serve(guest, qemu) as server:
        would = host.module(colo_migrate, check=True, **wish)
        assert (qemu.delay_ms, qemu.compare) == before
        assert would["changed"]
        did = host.module(colo_migrate, **wish)
        again = host.module(colo_migrate, **wish)
    assert did["guests"]["web1"]["actions"] == would["guests"]["web1"]["actions"]
    for result in (would, did):
        assert result["guests"]["web1"]["tuning"] == {
            "before": {"x-checkpoint-delay": 20000, "comp0.compare_timeout": 3000},
            "after": wanted,
        }
        assert "web1: x-checkpoint-delay: 20000\n" in result["diff"]["before"]
        assert f"web1: x-checkpoint-delay: {wanted['x-checkpoint-delay']}\n" in result["diff"]["after"]
    assert did["changed"]
    assert did["guests"]["web1"]["standing"] == {"before": "primary", "after": "primary"}
    assert (again["changed"], again["guests"]["web1"]["actions"]) == (False, [])
    assert "tuning" not in again["guests"]["web1"]
    assert _record(guest) == record
    changing = [command for command, _a, _o in server.calls if command in ("migrate-set-parameters", "qom-set")]
    assert len(changing) == 2
    assert host.yanked == []


def test_a_setting_that_is_refused_does_not_end_protection(host: Host) -> None:
    guest, qemu = _protected(host)
    qemu.compare["max_queue_size"] = 17
    qemu.answers["qom-set"] = Refuse("Property is read-only")
    record = _record(guest)
    with _serve(guest, qemu) as server:
        result = host.module(colo_migrate, name=["web1"], role="primary", state="protected")
    assert result["error_code"] == "qmp_refused"
    assert "rolled_back" not in result["details"]
    assert _record(guest) == record
    assert host.yanked == []
    assert "x-colo-lost-heartbeat" not in [command for command, _a, _o in server.calls]


def test_what_a_protection_keeps_is_told(host: Host) -> None:
    guest, qemu = _protected(host)
    qemu.answers["query-migrate-capabilities"] = [{"capability": "multifd", "state": True}]
    with _serve(guest, qemu):
        found = host.module(colo_info)["guests"]["web1"]
    assert found["qemu"]["settings"]["multifd-channels"] == 2
    assert found["waiting"] == [f"multifd-channels: 2 -> {guest.tuning.multifd_channels}"]


def _record(guest: _guest.Guest) -> bytes:
    return pathlib.Path(guest.record_file).read_bytes()


def test_a_guest_that_is_as_wished_is_not_changed(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    host.runs(guest)
    before = _record(guest)
    with _serve(guest, Qemu()):
        result = host.module(colo_migrate, name=["web1"], role="primary", state="ready")
    assert not result["changed"]
    assert result["guests"]["web1"]["standing"] == {"before": "alone", "after": "alone"}
    assert result["guests"]["web1"]["actions"] == []
    assert result["guests"]["web1"]["generation"] == 1
    assert result["diff"] == {"before": "web1: alone\n", "after": "web1: alone\n"}
    assert _record(guest) == before


def test_check_mode_tells_the_plan_and_touches_nothing(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    before = _record(guest)
    options: Json = {"name": ["web1"], "role": "primary", "state": "ready", "fenced_by": {"web1": "both seen"}}
    result = host.module(colo_migrate, check=True, **options)
    assert result["changed"]
    found = result["guests"]["web1"]
    assert found["standing"] == {"before": "stopped", "after": "alone"}
    assert found["actions"] == [
        "record: this copy serves, unprotected",
        "permit one start as primary",
        "start colo-guest@web1.service",
        "cont",
    ]
    assert found["generation"] == 2, "as it would be, for the plan of the other host"
    assert result["diff"] == {"before": "web1: stopped\n", "after": "web1: alone\n"}
    assert _record(guest) == before
    assert not pathlib.Path(guest.permit_file).exists()


def test_check_mode_before_the_first_deployment(host: Host) -> None:
    for role, state, after, changed in (
        ("primary", "ready", "alone", True),
        ("secondary", "ready", "standby", True),
        ("primary", "protected", "primary", True),
        ("secondary", "protected", "secondary", False),
        ("secondary", "absent", "stopped", False),
    ):
        result = host.module(colo_migrate, check=True, name=["web1"], role=role, state=state)
        assert result["changed"] is changed
        assert result["guests"]["web1"]["standing"] == {"before": "absent", "after": after}
    result = host.module(colo_migrate, name=["web1"], role="primary", state="ready")
    assert (result["failed"], result["error_code"]) == (True, "guest_unknown")


def test_the_standby_of_a_check_takes_the_generation_that_the_serving_side_told(host: Host) -> None:
    """The lost standby of a guest of generation 4, in check mode: its copy is older, not newer."""
    host.deploy(
        "web1", lambda record: _generation.begin_sync(record, 2), lambda r: _generation.enter_protection(r, "beta")
    )
    options: Json = {"name": ["web1"], "role": "secondary", "state": "ready"}
    result = host.module(colo_migrate, check=True, **options, generation={"web1": 4})
    assert result["guests"]["web1"]["standing"] == {"before": "stopped", "after": "standby"}
    assert host.module(colo_migrate, check=True, **options, generation={"web1": 1})["error_code"] == "newer_copy_here"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"role": "primary", "state": "ready"}, "fence_missing"),
        ({"role": "primary", "state": "ready", "fenced_by": {"web1": "  "}}, "bad_input"),
        ({"role": "primary", "state": "ready", "fenced_by": {"web1": True}}, "bad_input"),
        ({"role": "primary", "state": "protected"}, "not_serving"),
        ({"role": "primary", "state": "absent"}, "not_serving"),
        ({"role": "secondary", "state": "ready"}, "generation_missing"),
        ({"role": "secondary", "state": "ready", "generation": {"web1": "three"}}, "bad_input"),
        ({"role": "secondary", "state": "ready", "generation": {"web1": 1}}, "newer_copy_here"),
        ({"role": "secondary", "state": "protected"}, "not_standby"),
    ],
)
def test_refusals_have_a_code_and_change_nothing(host: Host, options: Json, code: str) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    before = _record(guest)
    result = host.module(colo_migrate, name=["web1"], **options)
    assert (result["failed"], result["changed"], result["error_code"]) == (True, False, code)
    assert result["msg"] == result["guests"]["web1"]["error"]["message"]
    assert result["details"] == result["guests"]["web1"]["error"]["details"]
    assert _record(guest) == before


def test_one_guests_error_does_not_stop_the_others(host: Host) -> None:
    host.deploy("web1", _generation.started_alone)
    ready = host.deploy("db", _generation.started_alone)
    host.runs(ready)
    with _serve(ready, Qemu()):
        result = host.module(colo_migrate, name=["web1", "db", "gone", "db"], role="primary", state="ready")
    assert result["failed"]
    assert [result["guests"][name].get("error", {}).get("error_code") for name in ("web1", "db", "gone")] == [
        "fence_missing",
        None,
        "guest_unknown",
    ]
    assert result["error_code"] == "fence_missing"


def test_a_second_run_on_a_guest_is_refused(host: Host) -> None:
    guest = host.deploy("web1")
    with _apply.exclusive(guest):
        result = host.module(colo_migrate, name=["web1"], role="secondary", state="absent")
    assert result["error_code"] == "guest_busy"


HEARD: Json = {"heard": True, "peer": {"joins": 2, "qemu_status": "inmigrate"}}


def test_a_protection_that_fails_is_taken_back_over_a_monitor_that_greets(host: Host) -> None:
    """QEMU greets one client at a time: the failed run has to let go before what it built can be taken away."""
    guest = host.deploy("web1", _generation.started_alone)
    host.runs(guest, _make.keeper(**HEARD))
    qemu = Qemu({"blockdev-mirror": Refuse("Image is too small")})
    with _serve(guest, qemu) as server:
        result = host.module(colo_migrate, name=["web1"], role="primary", state="protected")
    assert result["error_code"] == "qmp_refused"
    assert "Image is too small" in result["msg"]
    found = result["guests"]["web1"]
    details = found["error"]["details"]
    assert details["step"] == "blockdev-mirror resync0"
    assert details["done"] == [
        "QEMU may read the guest's present key",
        "object-add tls-client",
        "blockdev-add nbd0",
    ]
    assert details["rolled_back"] == {
        "complete": True,
        "actions": [
            "record: this copy is the newest from here on",
            "yank the peer out of band",
            "blockdev-del nbd0",
            "object-del tls-client",
        ],
    }
    assert found["standing"] == {"before": "alone", "after": "alone"}
    assert result["changed"]
    assert qemu.nodes == ["parent0", "colo-disk0"]
    assert qemu.objects == {"rew0": "filter-rewriter"}
    assert host.yanked == [guest.keeper_socket] * 2
    assert [command for command, _a, _o in server.calls if command.startswith("blockdev")] == [
        "blockdev-add",
        "blockdev-mirror",
        "blockdev-del",
    ]


def test_a_copy_that_takes_longer_than_the_run_is_not_thrown_away(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    host.runs(guest, _make.keeper(**HEARD))
    row = {"device": "resync0", "ready": False, "status": "running", "len": 1 << 30}
    moved = itertools.count(1)
    answers: Json = {
        "blockdev-mirror": {},
        "query-block-jobs": lambda _arguments: [{**row, "offset": next(moved)}] if mirrored() else [],
    }
    with _serve(guest, Qemu(answers)) as server:

        def mirrored() -> bool:
            return any(command == "blockdev-mirror" for command, _arguments, _oob in server.calls)

        result = host.module(colo_migrate, name=["web1"], role="primary", state="protected", timeout_s=0.3)
        assert result["error_code"] == "resync_unfinished"
        assert "run site.yml again" in result["msg"]
        assert "rolled_back" not in result["details"]
        assert result["guests"]["web1"]["standing"]["after"] == "syncing"
        assert host.yanked == []
        # by patience it is no error at all, and no more is undone
        host.module(colo_migrate, name=["web1"], role="primary", state="protected", patience_s=0.3)
    assert not [command for command, _a, _o in server.calls if command in ("block-job-cancel", "blockdev-del")]


def test_a_roll_back_that_fails_tells_both_errors(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    host.runs(guest, _make.keeper(**HEARD))
    qemu = Qemu({"blockdev-mirror": Refuse("Image is too small"), "blockdev-del": Refuse("Node nbd0 is in use")})
    with _serve(guest, qemu):
        result = host.module(colo_migrate, name=["web1"], role="primary", state="protected")
    assert "Image is too small" in result["msg"]
    back = result["details"]["rolled_back"]
    assert not back["complete"]
    assert back["error"]["error_code"] == "qmp_refused"
    assert "in use" in back["error"]["message"]
    assert result["guests"]["web1"]["standing"]["after"] == "alone"


def test_a_main_loop_that_is_blocked_is_freed_before_anything_is_asked(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    host.runs(guest, _make.keeper(qemu={"connected": True, "answer_age_ms": 3001.0}))
    with _serve(guest, Qemu()):
        host.module(colo_migrate, check=True, name=["web1"], role="primary", state="ready")
        assert host.yanked == [], "a check changes nothing"
        host.module(colo_migrate, name=["web1"], role="primary", state="ready")
        assert host.yanked == [guest.keeper_socket]
        assert host.cut == ["192.0.2.2:9000"]
        host.keepers["web1"] = _make.keeper(qemu={"connected": True, "answer_age_ms": 2999.0})
        host.module(colo_migrate, name=["web1"], role="primary", state="ready")
    assert len(host.yanked) == len(host.cut) == 1, "one that answers is not cut off from its peer"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": ["web1"], "role": "primary"},
        {"name": ["web1"], "role": "standby", "state": "ready"},
        {"name": ["web1"], "role": "primary", "state": "running"},
        {"name": ["web1"], "role": "primary", "state": "ready", "fenced_by": "yes"},
        {"name": ["web1"], "role": "primary", "state": "ready", "unknown": 5},
    ],
)
def test_options_are_checked(host: Host, options: Json) -> None:
    result = host.module(colo_migrate, **options)
    assert result["failed"]
    assert "guests" not in result


# --- colo_failover ----------------------------------------------------------------------------------------------


def _follower() -> Qemu:
    """A QEMU in lock step that leaves it when it is told so."""
    qemu = Qemu(colo="secondary", migration="colo")

    def lost_heartbeat(_arguments: Json) -> Json:
        qemu.state.update(colo="none", migration="completed")
        return {}

    qemu.answers["x-colo-lost-heartbeat"] = lost_heartbeat
    return qemu


def _secondary(host: Host, keeper: Json) -> _guest.Guest:
    guest = host.deploy(
        "web1", lambda r: _generation.begin_sync(r, 1), lambda r: _generation.enter_protection(r, "beta")
    )
    host.runs(guest, keeper)
    return guest


@pytest.mark.parametrize(
    ("fenced_by", "alive", "code"),
    [({}, False, "fence_missing"), ({"db": "off"}, False, "fence_missing"), ({"web1": "off"}, True, "peer_alive")],
)
def test_no_takeover_without_a_fence(host: Host, fenced_by: Json, alive: bool, code: str) -> None:
    keeper = _make.keeper(colo_exit=True, heard=alive, peer={"qemu_status": "running"})
    keeper["heartbeat"]["last_rx_age_ms"] = 10.0
    guest = _secondary(host, keeper)
    host.patch.setattr(_observe, "await_silence", lambda _guest: None)
    before = _record(guest)
    with _serve(guest, Qemu(colo="secondary", migration="colo")) as server:
        result = host.module(colo_failover, name=["web1"], fenced_by=fenced_by)
    assert result["error_code"] == code
    assert _record(guest) == before
    assert all(command.startswith(("query-", "qom-list", "x-debug-query")) for command, _a, _o in server.calls)


def test_a_takeover(host: Host) -> None:
    guest = _secondary(host, _make.keeper(colo_exit=True, lost=True))
    qemu = Qemu(colo="secondary", migration="colo")

    def lost_heartbeat(_arguments: Json) -> Json:
        now = _store.read(guest)
        assert now is not None
        assert (now.state, now.serving) == ("alone", "alpha"), "visible before it is recorded"
        qemu.state.update(colo="none", migration="completed")
        return {}

    qemu.answers["x-colo-lost-heartbeat"] = lost_heartbeat
    with _serve(guest, qemu):
        would = host.module(colo_failover, check=True, name=["web1"], fenced_by={"web1": "beta is off"})
        assert would["changed"]
        assert qemu.state["colo"] == "secondary"
        result = host.module(colo_failover, name=["web1"], fenced_by={"web1": "beta is off"})
        assert result["guests"]["web1"]["standing"] == {"before": "orphaned", "after": "alone"}
        assert result["guests"]["web1"]["actions"] == would["guests"]["web1"]["actions"]
        assert result["guests"]["web1"]["generation"] == 3
        assert result["guests"]["web1"]["timings"]["total_ms"] > 0
        again = host.module(colo_failover, name=["web1"], fenced_by={"web1": "beta is off"})
    assert not again["changed"]
    now = _store.read(guest)
    assert now is not None
    assert (now.generation, now.fenced_by, now.uncommitted) == (3, "beta is off", False)


def test_a_takeover_goes_by_what_qemu_has_not_by_a_definition_that_waits_for_a_restart(host: Host) -> None:
    """A run that may restart the guest has written the new definition, and the primary is lost before the restart."""
    guest = _secondary(host, _make.keeper(colo_exit=True, lost=True))
    pathlib.Path(guest.started_file).write_text(json.dumps(_guest.shape(dataclasses.asdict(guest))))
    raw = _make.definition(root=str(host.root), nics=2, disks=2, tuning={"settle_ms": 0})
    pathlib.Path(guest.definition_file).write_text(json.dumps(raw))
    awaited: list[str] = []
    packets = _observe.tap_packets

    def count(tap: str) -> int:
        awaited.append(tap)
        return packets(tap)

    host.patch.setattr(_observe, "tap_packets", count)
    qemu = _follower()
    with _serve(guest, qemu):
        result = host.module(colo_failover, name=["web1"], fenced_by={"web1": "beta is off"})
    assert result["guests"]["web1"]["standing"]["after"] == "alone"
    assert set(awaited) == {nic.tap for nic in guest.nics}


def test_a_void_copy_takes_over_only_where_that_is_said(host: Host) -> None:
    guest = _secondary(host, _make.keeper(colo_exit=True, lost=True))
    _store.update(guest, lambda record: _generation.mark_void(record, "guest reset in COLO"))
    qemu = _follower()
    with _serve(guest, qemu):
        result = host.module(colo_failover, name=["web1"], fenced_by={"web1": "off"})
        assert result["error_code"] == "protection_void"
        assert qemu.state["colo"] == "secondary"
        result = host.module(colo_failover, name=["web1"], fenced_by={"web1": "off"}, accept_void=True)
    assert result["guests"]["web1"]["standing"]["after"] == "alone"


# --- colo_power -------------------------------------------------------------------------------------------------


def test_a_guest_is_powered_off(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    host.runs(guest)
    qemu = Qemu()

    def button(_arguments: Json) -> Json:
        qemu.state["runstate"] = "shutdown"
        return {}

    qemu.answers["system_powerdown"] = button
    with _serve(guest, qemu):
        would = host.module(colo_power, check=True, name=["web1"])
        assert would["guests"]["web1"]["actions"] == [
            "system_powerdown",
            "record: the guest is powered off",
            f"stop {guest.unit}",
        ]
        assert qemu.state["runstate"] == "running"
        host.stops(guest)
        result = host.module(colo_power, name=["web1"])
    assert result["guests"]["web1"]["standing"] == {"before": "alone", "after": "stopped"}
    now = _store.read(guest)
    assert now is not None
    assert now.clean
    again = host.module(colo_power, name=["web1"])
    assert not again["changed"]


def test_a_guest_that_ignores_its_button_goes_on(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    host.runs(guest)
    before = _record(guest)
    with _serve(guest, Qemu({"system_powerdown": {}})):
        result = host.module(colo_power, name=["web1"], timeout_s=0.3)
    assert result["error_code"] == "powerdown_ignored"
    assert _record(guest) == before


# --- colo_backup ------------------------------------------------------------------------------------------------


def test_a_copy_becomes_a_backup(host: Host) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    options: Json = {"name": ["web1"], "kept_on": {"web1": "beta"}}
    would = host.module(colo_backup, check=True, **options)
    assert (would["changed"], pathlib.Path(guest.record_file).exists()) == (True, True)

    done = host.module(colo_backup, **options)
    backup = pathlib.Path(done["guests"]["web1"]["backup"])
    assert done["changed"]
    assert json.loads((backup / "record.json").read_text())["state"] == "alone"
    assert not pathlib.Path(guest.record_file).exists()

    again = host.module(colo_backup, **options)
    assert (again["changed"], "backup" in again["guests"]["web1"]) == (False, False)


@pytest.mark.parametrize("kept_on", [{}, {"web1": "alpha"}, {"web1": "gamma"}, {"web2": "beta"}])
def test_a_copy_is_given_up_only_for_the_other_hosts(host: Host, kept_on: Json) -> None:
    guest = host.deploy("web1", _generation.started_alone)
    refused = host.module(colo_backup, name=["web1"], kept_on=kept_on)
    assert refused["error_code"] == "keep_missing"
    assert pathlib.Path(guest.record_file).exists()


def test_the_copy_of_a_standby_is_started_only_where_it_is_named(host: Host) -> None:
    guest = host.deploy("web1", lambda record: _generation.begin_sync(record, 1))
    _store.update(guest, lambda record: _generation.enter_protection(record, guest.peer))
    wish: Json = {"name": ["web1"], "role": "primary", "state": "ready", "fenced_by": {"web1": "resolve.yml"}}
    for others in ([], ["web2"]):
        refused = host.module(colo_migrate, check=True, **wish, accept_older=others)
        assert refused["error_code"] == "illegal_transition"
    found = host.module(colo_migrate, check=True, **wish, accept_older=["web1"])["guests"]["web1"]
    assert (found["standing"]["after"], found["generation"]) == ("alone", 3)
