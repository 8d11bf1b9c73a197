# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles write into units, firewall rules and settings of systemd: a value is refused, or stays one word in its line."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import typing as t

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ansible_collections.lockstep.colo.plugins.module_utils import _guest, _preflight
from ansible_collections.lockstep.colo.plugins.module_utils._errors import InputError
from ansible_collections.lockstep.colo.tests.unit import _make

nativetypes = pytest.importorskip("jinja2.nativetypes")

ROLES = pathlib.Path(__file__).resolve().parents[4] / "roles"
HOSTILE = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="/.:;%$\"'\\{}#= \n\r\t\x00\x0b\x85\u2028aA0_-", max_size=16),
    st.from_regex(r"[a-z/][a-z0-9_/.-]{0,16}[ :;%{}#\n]?[a-z0-9/=-]{0,12}", fullmatch=True),
)
# What begins something new in a unit, in nft's rules or in tmpfiles.d.
SIGNS = ";{}\"'\\%$#"

WISH = _make.wish() | {"nics": [{"name": "lan", "bridge": "br0", "mac": "52:54:00:12:34:56", "tap": "tap0"}]}
BRIDGES = {"br1": {"ports": ["eth1"], "address": "198.51.100.1/24"}}
DEFAULTS = _guest.HostDefaults(accelerator="tcg", monitor_group="watchers")


def _role_vars(role: str) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", yaml.safe_load((ROLES / role / "vars" / "main.yml").read_text(encoding="utf-8")))


# as Ansible sets it
ENVIRONMENT = nativetypes.NativeEnvironment(trim_blocks=True, keep_trailing_newline=True)
VARS = _role_vars("guest")
TEXTS = {
    (role, path.name): ENVIRONMENT.from_string(
        f"{{% set _text %}}{path.read_text(encoding='utf-8')}{{% endset %}}{{{{ _text | string }}}}"
    )
    for role in ("guest", "network")
    for path in sorted((ROLES / role / "templates").iterdir())
}


def _expression(name: str, context: dict[str, t.Any]) -> t.Any:
    return ENVIRONMENT.from_string(VARS[name]).render(context)


def rendered(
    definitions: list[dict[str, t.Any]], defaults: _guest.HostDefaults, bridges: dict[str, t.Any]
) -> dict[str, str]:
    """Every file that a template of the roles makes, by template and by what it is for."""
    context: dict[str, t.Any] = {
        "ansible_managed": "managed",
        "colo_definitions": definitions,
        "colo_user": defaults.user,
        "colo_monitor_group": defaults.monitor_group,
        "colo_python": defaults.python,
        "colo_config_dir": defaults.config_dir,
        "colo_state_dir": defaults.state_dir,
        "colo_run_dir": defaults.run_dir,
        "colo_lib_dir": defaults.lib_dir,
        "colo_guest_stop_timeout_s": 10,
        "colo_bridges": bridges,
        "__guest_with_rules": definitions,
        "__guest_with_sockets": definitions,
        "__guest_table": VARS["__guest_table"],
        "__guest_rules_mark": "rules 0",
    }
    for name in (
        "__guest_monitor_group",
        "__guest_run_mode",
        "__guest_operator_mode",
        "__guest_firewall_file",
        "__guest_rules",
    ):
        context[name] = _expression(name, context)
    files: dict[str, str] = {}
    for (role, name), template in TEXTS.items():
        if role == "guest":
            for definition in definitions:
                files[name] = template.render({**context, "__guest_definition": definition})
            continue
        kind = name.split(".")[0]
        places: list[tuple[str, t.Any]] = [("", {})]
        if kind == "bridge":
            places = list(bridges.items())
        elif kind == "port":
            places = [(port, {"bridge": bridge}) for bridge, about in bridges.items() for port in about["ports"]]
        elif kind == "tap":
            places = [(nic["tap"], nic) for definition in definitions for nic in definition["nics"]]
        for interface, about in places:
            files[f"{name} {len(files)}"] = template.render(
                {**context, "__network_interface": interface, "__network_about": about}
            )
    return files


def shape(text: str) -> list[tuple[int, str, list[int]]]:
    """Of each line: how many words, what it sets, and how many signs that would begin something else."""
    # str.splitlines knows more ends of a line than systemd or nft do
    return [
        (len(line.split()), "".join(re.findall(r"^[\w-]+=", line)), [line.count(sign) for sign in SIGNS])
        for line in text.splitlines()
    ]


def shapes(files: dict[str, str]) -> dict[str, list[tuple[int, str, list[int]]]]:
    return {name: shape(text) for name, text in files.items()}


def _definitions(
    defaults: _guest.HostDefaults = DEFAULTS, name: str = "web1", link: str = "192.0.2.1", **nic: t.Any
) -> list[dict[str, t.Any]]:
    wish = {**WISH, "nics": [{**WISH["nics"][0], **nic}]}
    links = {"alpha": link, "beta": "2001:db8::2" if ":" in link else "192.0.2.2"}
    return _guest.definitions({name: wish}, "alpha", links, defaults)


PLAIN = rendered(_definitions(), DEFAULTS, BRIDGES)
PLAIN_SHAPES = shapes(PLAIN)
HOST = ("user", "monitor_group", "python", "config_dir", "state_dir", "run_dir", "lib_dir")
GUEST = ("name", "link", "bridge", "tap", "mac")


def test_everything_is_rendered() -> None:
    """So that the tests below can fail."""
    assert len(PLAIN) == len(TEXTS)
    whole = "".join(PLAIN.values())
    for word in (
        *(getattr(DEFAULTS, name) for name in HOST),
        "web1",
        "192.0.2.1",
        "tap0",
        "br0",
        "br1",
        "eth1",
        "198.51.100.1/24",
    ):
        assert word in whole, word
    bad = dataclasses.replace(DEFAULTS, lib_dir="/x y", run_dir="/r:rw")
    assert shapes(rendered(_definitions(), bad, BRIDGES)) != PLAIN_SHAPES


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(HOST), HOSTILE)
@example("lib_dir", "/usr/lib x")
@example("state_dir", "/var/lib:/etc")
@example("run_dir", "/run;x")
@example("config_dir", "/etc/%n")
@example("python", "/usr/bin/python3\nUser=root")
@example("user", "colo root")
@example("monitor_group", "")
@example("monitor_group", "colo")
@example("monitor_group", "x -\nd /etc 0777 root root -")
def test_what_is_said_about_the_host(name: str, value: str) -> None:
    changed: dict[str, t.Any] = {name: value}
    defaults = dataclasses.replace(DEFAULTS, **changed)
    refused: InputError | None = None
    try:
        found = _definitions(defaults)
    except InputError as exc:
        refused, found = exc, []
    if refused is not None:
        assert (refused.error_code, refused.details["variable"]) == ("bad_input", f"colo_{name}")
        assert refused.details["value"] == value
        return
    assert shapes(rendered(found, defaults, BRIDGES)) == PLAIN_SHAPES
    assert ":" not in value


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(GUEST), HOSTILE)
@example("link", "fe80::1%eth0 accept")
@example("link", "2001:db8::1")
@example("bridge", "br0 up\nExecStartPre=+/bin/sh")
@example("bridge", "br1")
@example("tap", "tap0;reboot")
@example("name", "web1\n")
def test_what_is_said_about_a_guest(name: str, value: str) -> None:
    said: dict[str, t.Any] = {name: value}
    try:
        found = _definitions(**said)
    except InputError:
        return
    # a bridge of ours is joined by networkd, with another line in two files
    if name != "bridge" or value not in BRIDGES:
        assert shapes(rendered(found, DEFAULTS, BRIDGES)) == PLAIN_SHAPES


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(("name", "port", "address")), HOSTILE | st.from_regex(r"fe80::1%[a-z \n=]{1,9}/64", fullmatch=True)
)
@example("address", "fe80::1%x\nKind=vlan/64")
@example("name", "br9\nKind=vlan")
@example("port", "eth1\n[Match]")
@example("address", "2001:db8::1/64")
def test_what_is_said_about_a_bridge(name: str, value: str) -> None:
    bridge = {
        "ports": [value if name == "port" else "eth1"],
        "address": value if name == "address" else "198.51.100.1/24",
    }
    bridges = {value if name == "name" else "br1": bridge}
    if any(_preflight._odd_bridge(one, about) for one, about in bridges.items()):
        return
    assert shapes(rendered(_definitions(), DEFAULTS, bridges)) == PLAIN_SHAPES


# --- who runs QEMU, and what a host is called ----------------------------------------------------------------------


@pytest.mark.parametrize("user", ["root", "", "Colo", "0", "a" * 32, None, 1000])
def test_a_user_that_qemu_does_not_run_as(user: t.Any) -> None:
    with pytest.raises(InputError) as caught:
        _definitions(dataclasses.replace(DEFAULTS, user=user))
    assert (caught.value.error_code, caught.value.details["variable"]) == ("bad_input", "colo_user")


@pytest.mark.parametrize("host", ["be ta", "../x", "", "-l", ".x", "a" * 254, "a/b", "a\n", "$(id)", "a,b"])
def test_a_host_with_an_odd_name(host: str) -> None:
    with pytest.raises(InputError) as caught:
        _guest.definitions(
            {"web1": {**WISH, "hosts": ["alpha", host]}}, "alpha", {**_make.LINKS, host: "192.0.2.9"}, DEFAULTS
        )
    assert (caught.value.error_code, caught.value.details["value"]) == ("bad_input", host)
    assert "colo_guests.web1.hosts" in caught.value.message
    assert "letters, digits, '.', '_' and '-'" in caught.value.message


@pytest.mark.parametrize("host", ["beta2", "kvm_2", "b-2.example.org", "192.0.2.9", "B"])
def test_a_host_with_a_usual_name(host: str) -> None:
    hosts = ["alpha", host]
    found = _guest.definitions(
        {"web1": {**WISH, "hosts": hosts}}, "alpha", {**_make.LINKS, host: "192.0.2.9"}, DEFAULTS
    )
    assert found[0]["hosts"] == hosts


def test_the_two_ends_of_a_link_have_addresses_of_one_family() -> None:
    with pytest.raises(InputError, match="IPv4, or both IPv6") as caught:
        _guest.definitions({"web1": WISH}, "alpha", {"alpha": "192.0.2.1", "beta": "2001:db8::2"}, DEFAULTS)
    assert caught.value.error_code == "bad_input"


def test_an_unknown_host_comes_with_a_remedy() -> None:
    with pytest.raises(InputError, match="add it, or correct the name") as caught:
        _guest.definitions({"web1": WISH}, "alpha", {"alpha": "192.0.2.1"}, DEFAULTS)
    assert caught.value.error_code == "unknown_host"
