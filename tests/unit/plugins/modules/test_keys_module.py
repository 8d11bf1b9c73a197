# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import pathlib
import stat
import typing as t

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from ansible_collections.lockstep.colo.plugins.module_utils import _key
from ansible_collections.lockstep.colo.plugins.modules import colo_keys

ONE, TWO = "1" * 64, "2" * 64


class Host:
    """A directory of keys, and the module."""

    def __init__(self, directory: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory, self._capsys = directory, capsys
        self.said = ""

    def __call__(self, **options: t.Any) -> dict[str, t.Any]:
        with patch_module_args({"config_dir": str(self.directory), **options}), pytest.raises(SystemExit):
            colo_keys.main()
        self.said = self._capsys.readouterr().out
        return t.cast("dict[str, t.Any]", json.loads(self.said))

    def holds(self, name: str) -> str:
        return (self.directory / f"{name}.key").read_text(encoding="ascii")


@pytest.fixture
def host(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(basic.AnsibleModule, "log", lambda *_args, **_more: None)
    monkeypatch.setattr(colo_keys, "CREDENTIALS", str(tmp_path / "credentials"))
    return Host(tmp_path, capsys)


def test_keys_are_told_apart_and_not_shown(host: Host) -> None:
    found = host(name=["web1", "web2"])
    assert (found["changed"], found["fingerprints"]) == (False, {"web1": None, "web2": None})
    (host.directory / "web2.key").write_text("no key\n", encoding="ascii")
    assert host(name=["web2"])["fingerprints"] == {"web2": None}
    made = host(make=["web1"])
    assert made["changed"]
    assert stat.S_IMODE((host.directory / "web1.key").stat().st_mode) == 0o600
    key = _key.read_key(host.holds("web1"))
    assert made["fingerprints"] == {"web1": _key.fingerprint(key)}
    assert key.hex() not in host.said
    assert host(make=["web1"])["fingerprints"] != made["fingerprints"]


def test_keys_are_written_once(host: Host) -> None:
    assert host(keys={"web1": ONE, "web2": TWO})["changed"]
    assert ONE not in host.said
    assert (host.holds("web1"), host.holds("web2")) == (f"{ONE}\n", f"{TWO}\n")
    assert not host(keys={"web1": ONE})["changed"]
    assert host(keys={"web1": TWO}, _ansible_check_mode=True)["changed"]
    assert host.holds("web1") == f"{ONE}\n"
    assert host(read=["web1"])["read"] == {"web1": ONE}


def test_a_keeper_that_runs_with_an_earlier_key_is_told(host: Host) -> None:
    """Whoever wrote the new one may have been killed before it restarted the keeper."""
    assert host(keys={"web1": ONE, "web2": ONE})["behind"] == []
    unit = host.directory / "credentials" / "colo-keeper@web1.service"
    unit.mkdir(parents=True)
    (unit / "key").write_text(f"{ONE}\n", encoding="ascii")
    assert host(name=["web1", "web2"])["behind"] == []
    assert host(keys={"web1": TWO, "web2": TWO})["behind"] == ["web1"]
    assert host(name=["web1", "web2"])["behind"] == ["web1"]
    (unit / "key").write_text("none", encoding="ascii")  # it was started when there was no key
    assert host(name=["web1"])["behind"] == ["web1"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"keys": {"web1": "secret word"}}, "key_unusable"),
        ({"keys": {"../x": ONE}}, "bad_input"),
        ({"make": ["a/b"]}, "bad_input"),
        ({"read": ["web1"]}, "key_unusable"),
    ],
)
def test_what_cannot_be_used_is_refused_without_showing_it(host: Host, options: dict[str, t.Any], code: str) -> None:
    result = host(**options)
    assert (result["failed"], result["error_code"]) == (True, code)
    assert "secret word" not in host.said
    assert list(host.directory.iterdir()) == []
