# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every playbook parses, from the checkout and by its full name, and runs in check mode."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.lockstep.colo.tests.gates._run import TOP, environment, run

if t.TYPE_CHECKING:
    from ansible_collections.lockstep.colo.tests.conftest import Lab

PLAYBOOKS = sorted(TOP.glob("playbooks/*.yml"))

each_playbook = pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda playbook: playbook.stem)

# A name of each kind of host that the playbooks look for, so that no pattern goes unmatched.
INVENTORY = """\
colo_hosts:
  hosts:
    alpha: {colo_link_address: 192.0.2.1}
    beta: {colo_link_address: 192.0.2.2}
  vars:
    colo_guests:
      web1:
        hosts: [alpha, beta]
        memory_mib: 256
        disks: [{name: data, size: 64M}]
        nics: [{name: lan, bridge: br0, mac: "52:54:00:c0:10:01"}]
others:
  hosts: {gamma: {}}
"""

# How a guest is changed to what is refused.
Change = t.Callable[[dict[str, t.Any]], None]

CHECKSUM = "sha256:" + 64 * "0"
# A guest for which this machine, which both hosts are on, has the memory once, and not twice, as its standby needs it.
_AVAILABLE_KIB = int(
    re.findall(r"^MemAvailable: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)[0]
)
FOR_ONE_MIB = _AVAILABLE_KIB * 3 // 4 // 1024

# What is refused while a guest runs well, and has a check mode only when none does (molecule/teardown, molecule/split).
NOT_ON_A_RUNNING_GUEST = ["teardown", "resolve"]
# Playbooks that insist on being told something: what a check-mode run on a healthy lab tells them.
ARGUMENTS: dict[str, list[str]] = {
    "failover": ["-e", "colo_confirm_fenced=beta"],
    "maintenance": ["-e", "colo_maintenance_host=alpha"],
    "power": ["-e", "colo_state=restarted"],
}


@pytest.mark.fast
def test_there_are_playbooks() -> None:
    assert PLAYBOOKS


@pytest.mark.fast
@each_playbook
def test_syntax(playbook: pathlib.Path, tmp_path: pathlib.Path) -> None:
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(INVENTORY)
    for name in (str(playbook), f"lockstep.colo.{playbook.stem}"):
        run("ansible-playbook", "--syntax-check", "--inventory", inventory, name, timeout_s=60, warnings=False)


# An inventory that no playbook can be about: what is wrong with INVENTORY, more arguments, what is named.
NOTHING_TO_DO: dict[str, tuple[dict[str, str], list[str], list[str]]] = {
    "group misspelt": ({"colo_hosts": "colo_host"}, [], ["bad_input", "colo_hosts", "-i"]),
    "group misspelt, some hosts": ({"colo_hosts": "colo_host"}, ["--limit", "alpha"], ["bad_input", "colo_hosts"]),
    "no guests": (
        {"colo_guests": "colo_guest_list"},
        ["--tags", "colo_protect"],
        ["bad_input", "colo_guests", "empty"],
    ),
    "other hosts": ({}, ["--limit", "gamma"], ["bad_input", "--limit", "gamma", "alpha or beta"]),
    "guest misspelt": ({}, ["-e", "colo_guest=web2"], ["bad_input", "colo_guest", "web2", "web1"]),
}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("playbook", "case"),
    # the first one of every playbook; what follows is in one place, which all of them begin with
    [(playbook.stem, next(iter(NOTHING_TO_DO))) for playbook in PLAYBOOKS]
    + [("failover", case) for case in list(NOTHING_TO_DO)[1:]],
)
def test_nothing_to_do_is_no_success(playbook: str, case: str, tmp_path: pathlib.Path) -> None:
    """Ansible skips a play without hosts, and calls that a success. Refused before any host is asked; these are nowhere."""
    changes, arguments, named = NOTHING_TO_DO[case]
    text = INVENTORY
    for old, new in changes.items():
        text = text.replace(old, new)
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(text)
    path = str(TOP / "playbooks" / f"{playbook}.yml")
    argv = ["ansible-playbook", "-i", str(inventory), path, *arguments, *ARGUMENTS.get(playbook, [])]
    output = _failing(argv, named, timeout_s=60)
    assert "unreachable=1" not in output, output


# The tags that docs/runbooks/site.md names.
TAGS = [
    "colo_preflight", "colo_provision", "colo_protect", "colo_packages", "colo_host", "colo_network", "colo_images", "colo_guest",
]  # fmt: skip


@pytest.mark.fast
@pytest.mark.parametrize("tag", TAGS)
def test_no_tag_gets_around_the_preflight(tag: str, tmp_path: pathlib.Path) -> None:
    assert f"{tag}`" in (TOP / "docs/runbooks/site.md").read_text()
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(INVENTORY)
    listed = run("ansible-playbook", "-i", inventory, "--list-tasks", "--tags", tag, "playbooks/site.yml", timeout_s=60)
    for task in (
        "There are hosts and guests",
        "Compare the host with its guests",
        "Refuse a host that cannot take its guests",
    ):
        assert task in listed


def _play(lab: Lab, playbook: str, *arguments: str) -> str:
    path = TOP / "playbooks" / f"{playbook}.yml"
    return run("ansible-playbook", "-i", lab.inventory, path, *arguments, timeout_s=300, warnings=False)


@pytest.fixture(scope="module")
def bare(lab: Lab) -> Lab:
    """Two empty hosts."""
    for host in lab.data["hosts"]:
        lab.ctl("reset", host)
    return lab


# As on a host that another program connects: networkd has never run there, and has a file that nobody has missed.
ASLEEP = """\
systemctl disable --now systemd-networkd.service systemd-networkd.socket
systemctl unmask systemd-networkd-wait-online.service
systemctl disable systemd-networkd-wait-online.service
rm -r /run/systemd/netif
"""


@pytest.fixture(scope="module")
def asleep(bare: Lab) -> t.Iterator[Lab]:
    """Two empty hosts; alpha is as if systemd-networkd had never run there. Its addresses stay."""
    bare.ctl("exec", "alpha", "--", "sh", "-ec", ASLEEP)
    yield bare
    bare.ctl(
        "exec",
        "alpha",
        "--",
        "find",
        "/root",
        "-name",
        "2?-*.network",
        "-exec",
        "mv",
        "-t",
        "/etc/systemd/network",
        "{}",
        "+",
    )


@pytest.fixture(scope="module")
def protected(asleep: Lab) -> Lab:
    """Two hosts with a protected guest that alpha serves."""
    bare = asleep
    bare.ctl("exec", "alpha", "--", "sh", "-c", "mv /etc/systemd/network/2?-*.network /root")
    assert "failed=0" in _play(bare, "site", "--check", "--diff")  # on empty hosts, too
    assert re.search("changed=0(?s:.*)changed=0", _play(bare, "teardown"))
    _play(bare, "site")
    return bare


@contextlib.contextmanager
def _stranger(host: str, ready: str, *program: str) -> t.Iterator[None]:
    """A Python program that runs on a host; it is there once it has printed what begins with ``ready``."""
    words = [sys.executable, str(TOP / "tests/lab/labctl.py"), "exec", host, "--", "python3", "-u", *program]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as it:
        try:
            assert it.stdout is not None
            assert it.stdout.readline().startswith(ready)
            yield
        finally:
            it.kill()


LISTEN = "import socket; s = socket.create_server(('0.0.0.0', 9605)); print('up', flush=True); s.accept()"
SERVER = "http://192.0.2.2:8000"


@pytest.fixture(scope="module")
def taken(bare: Lab) -> t.Iterator[Lab]:
    """The lab, with a stranger that listens on a port on alpha, and a server of images on beta, which has none."""
    serve = ("-m", "http.server", "--bind", "192.0.2.2", "--directory", "/srv/lab", "8000")
    with _stranger("alpha", "up", "-c", LISTEN), _stranger("beta", "Serving", *serve):
        yield bare


# On empty hosts: how the lab's guest is changed, and what the refusal has to name.
BARE: dict[str, tuple[Change, list[str]]] = {
    "missing bridge": (
        lambda guest: guest["nics"][0].update(bridge="br9"),
        ["bridge_missing", "nics[0].bridge", "br9", "declare it"],
    ),
    "source that is not there": (
        lambda guest: guest["disks"][0].update(source="/srv/none.qcow2"),
        ["image_missing", "disks[0].source", "/srv/none.qcow2", "correct the path"],
    ),
    "location that gives nothing": (
        lambda guest: guest["disks"][0].update(source=f"{SERVER}/none.qcow2", checksum=CHECKSUM),
        ["image_not_fetched", "disks[0].source", f"{SERVER}/none.qcow2", "404", "correct it"],
    ),
    "another checksum": (
        lambda guest: guest["disks"][0].update(source="/srv/lab/vmlinuz", source_format="raw", checksum=CHECKSUM),
        ["image_checksum_differs", "disks[0].checksum", CHECKSUM, "correct the checksum"],
    ),
    "one source for disks of two sizes": (
        lambda guest: guest.update(
            disks=[
                {"name": name, "size": size, "source": "/srv/lab/vmlinuz", "source_format": "raw"}
                for name, size in (("large", "64M"), ("small", "1M"))
            ]
        ),
        ["image_source_larger", "disks[1].source", "raise the disk"],
    ),
    "unknown host": (
        lambda guest: guest.update(hosts=["alpha", "gamma"]),
        ["unknown_host", "web1.hosts", "gamma", "colo_hosts"],
    ),
    "memory for a standby": (
        lambda guest: guest.update(memory_mib=FOR_ONE_MIB),
        ["memory_short", "memory_mib", f"{FOR_ONE_MIB}", "twice"],
    ),
    "port that is taken": (
        lambda guest: guest.update(port_base=9600),
        ["port_taken", "port_base", "9605", "choose another"],
    ),
}


@pytest.fixture(scope="module")
def empty(taken: Lab) -> dict[str, t.Any]:
    """How the empty hosts look."""
    looks = _look(taken)
    assert [host["qemus"] for host in looks.values()] == [[], []]
    return looks


@pytest.mark.parametrize("case", BARE)
def test_refused_before_anything_is_made(
    case: str, taken: Lab, empty: dict[str, t.Any], tmp_path: pathlib.Path
) -> None:
    """Before a package, a user, a directory, an interface."""
    change, named = BARE[case]
    guest = _guest(taken)
    change(guest)
    variables = {"colo_hosts": {"vars": {"colo_guests": {"web1": guest}}}}
    output = _fails(taken, tmp_path / "more.json", variables, named)
    assert _look(taken) == empty
    if case == "memory for a standby":  # once is there, twice is not
        assert re.findall(r"^fatal: \[(\w+)\]", output, re.MULTILINE) == ["beta"], output


def test_networkd_is_not_started_where_it_would_do_more(asleep: Lab, tmp_path: pathlib.Path) -> None:
    before = _look(asleep)
    named = [
        "network_file_dormant",
        "/etc/systemd/network/20-repl0.network",
        "remove the file",
        "start systemd-networkd yourself",
    ]
    output = _fails(asleep, tmp_path / "more.json", {}, named)
    assert re.findall(r"^fatal: \[(\w+)\]", output, re.MULTILINE) == ["alpha"], output
    assert _look(asleep) == before
    assert _said(asleep, "systemctl", "is-active", "systemd-networkd.service") == "inactive"


def test_networkd_is_started_and_no_boot_waits_for_it(protected: Lab) -> None:
    """On alpha, where it did not run before, systemd-networkd runs for our devices only, and is no reason to wait."""
    for unit, asked, answer in (
        ("systemd-networkd.service", "is-active", "active"),
        ("systemd-networkd.service", "is-enabled", "enabled"),
        ("systemd-networkd-wait-online.service", "is-enabled", "disabled"),
        ("systemd-networkd-wait-online.service", "is-active", "inactive"),
    ):
        assert _said(protected, "systemctl", asked, unit) == answer, unit
    assert "wait-online" not in _said(protected, "systemctl", "list-dependencies", "--plain", "network-online.target")
    assert "192.0.2.1/25" in _said(protected, "ip", "-brief", "address", "show", "repl0")


def _said(lab: Lab, *words: str) -> str:
    return lab.ctl("exec", "alpha", "--", *words, check=False).stdout.strip()


@pytest.mark.parametrize(
    "playbook",
    [playbook for playbook in PLAYBOOKS if playbook.stem not in NOT_ON_A_RUNNING_GUEST],
    ids=lambda playbook: playbook.stem,
)
def test_check_mode(playbook: pathlib.Path, protected: Lab) -> None:
    """Every playbook, and none of them moves anything."""
    before = _play(protected, "status")
    _play(protected, playbook.stem, "--check", "--diff", *ARGUMENTS.get(playbook.stem, []))
    served = "web1: protected; alpha serves; generation 2"
    assert served in before
    assert served in _play(protected, "status")


def test_one_pair_of_two(protected: Lab, tmp_path: pathlib.Path) -> None:
    """A second pair, which nobody can reach, is none of the business of a run that is limited to the first."""
    guest = {**_guest(protected), "hosts": ["gamma", "delta"]}
    both = {"web1": _guest(protected), "far": guest}
    more = tmp_path / "more.json"
    hosts = {name: {"colo_link_address": f"192.0.2.{number}"} for number, name in enumerate(("gamma", "delta"), 7)}
    more.write_text(json.dumps({"colo_hosts": {"vars": {"colo_guests": both}, "hosts": hosts}}))
    said = _play(protected, "site", "-i", str(more), "--limit", "alpha,beta")
    assert said.count("changed=0") == 2
    assert "far" not in _play(protected, "status", "-i", str(more), "--limit", "alpha,beta")


# What is refused: how the lab's guest is changed, and what the refusal has to name.
REFUSALS: dict[str, tuple[Change, list[str]]] = {
    "unknown host": (lambda guest: guest.update(hosts=["alpha", "gamma"]), ["unknown_host", "web1.hosts", "gamma"]),
    "one host for two": (
        lambda guest: guest.update(hosts=["alpha", "alpha"]),
        ["bad_input", "web1.hosts", "two different"],
    ),
    "VLAN": (lambda guest: guest["nics"][0].update(vlan=7), ["unsupported_device", "nics[0].vlan", "7"]),
    "vhost": (lambda guest: guest["nics"][0].update(vhost=True), ["unsupported_device", "nics[0].vhost"]),
    "disk iothread": (
        lambda guest: guest["disks"][0].update(iothread=True),
        ["unsupported_device", "disks[0].iothread"],
    ),
    "hostile path": (
        lambda guest: guest["boot"].update(kernel="/srv/$(reboot)"),
        ["bad_input", "boot.kernel", "reboot"],
    ),
    "hostile CPU": (lambda guest: guest.update(cpu="qemu64 -S"), ["bad_input", "web1.cpu", "qemu64 -S"]),
    "odd size": (lambda guest: guest["disks"][0].update(size="64 MB"), ["bad_input", "disks[0].size", "64 MB"]),
    "the same MAC twice": (
        lambda guest: guest["nics"].append({**guest["nics"][0], "name": "two"}),
        ["duplicate", "nics[1].mac", "52:54:00"],
    ),
    "missing bridge": (
        lambda guest: guest["nics"][0].update(bridge="br9"),
        ["bridge_missing", "nics[0].bridge", "br9"],
    ),
    "size that differs": (lambda guest: guest["disks"][0].update(size="96M"), ["image_size_differs", "disks[0]", "96"]),
    "memory for a standby": (
        lambda guest: guest.update(memory_mib=FOR_ONE_MIB),
        ["memory_short", "memory_mib", f"{FOR_ONE_MIB}"],
    ),
    "source that is not there": (
        lambda guest: guest["disks"].append({"name": "new", "size": "64M", "source": "/srv/none.qcow2"}),
        ["image_missing", "disks[1].source", "/srv/none.qcow2"],
    ),
    "source that is no image": (
        lambda guest: guest["disks"].append({"name": "new", "size": "64M", "source": "/srv/lab/vmlinuz"}),
        ["image_not_format", "disks[1].source", "/srv/lab/vmlinuz"],
    ),
    "odd name of a disk": (
        lambda guest: guest["disks"][0].update(name="../data"),
        ["bad_input", "disks[0].name", "../data"],
    ),
    "bridge that is none": (
        lambda guest: guest["nics"][0].update(bridge="repl0"),
        ["bridge_missing", "nics[0].bridge", "repl0", "no bridge"],
    ),
    "source that is a directory": (
        lambda guest: guest["disks"].append({"name": "new", "size": "64M", "source": "/srv/lab"}),
        ["image_missing", "disks[1].source", "/srv/lab", "not a plain file"],
    ),
    "source that cannot be read": (  # a file whose first bytes are an error of the device, also for root
        lambda guest: guest["disks"].append({"name": "new", "size": "64M", "source": "/proc/self/mem"}),
        ["image_unreadable", "disks[1].source", "/proc/self/mem", "check the file"],
    ),
    "memory of a running guest": (
        lambda guest: guest.update(memory_mib=300),
        ["definition_changed", "web1.memory_mib", "256", "300", "colo_allow_restart"],
    ),
    "another card for a running guest": (
        lambda guest: guest["nics"].append({"name": "two", "bridge": "br0", "mac": "52:54:00:c0:10:99"}),
        ["definition_changed", "web1.nics", "colo_allow_restart"],
    ),
    "port that is taken": (lambda guest: guest.update(port_base=9600), ["port_taken", "port_base", "9605"]),
}
# A guest by another name, or hosts with other variables: (name of the guest, variables of alpha, what is named).
OTHERS: dict[str, tuple[str, dict[str, t.Any], list[str]]] = {
    "odd name of a guest": ("Web_1", {}, ["bad_input", "colo_guests", "Web_1", "name a guest with"]),
    "path for a name": ("../web1", {}, ["bad_input", "colo_guests", "../web1", "name a guest with"]),
    "link address of another host": (
        "web1",
        {"colo_link_address": "192.0.2.77"},
        ["link_address_missing", "colo_link_address of host alpha", "192.0.2.77", "correct the variable"],
    ),
    "no link address": ("web1", {"colo_link_address": ""}, ["colo_link_address of host alpha", "set it to"]),
    "port of a bridge that is not there": (
        "web1",
        {"colo_bridges": {"br0": {"ports": ["lan7"]}}},
        ["bridge_port_missing", "colo_bridges.br0.ports", "lan7", "correct the name"],
    ),
}
SAME_MACHINE = ["same_machine", "web1.hosts", "alpha and twin", "/etc/machine-id", "ansible_host"]
TREES = ("/etc", "/usr/local", "/var/lib/dpkg", "/var/lib/lockstep-colo", "/run/lockstep-colo")


def _look(lab: Lab) -> dict[str, t.Any]:
    """Both hosts' files, packages, units and processes, asked by tests/lab/witness.py."""
    witness = (TOP / "tests/lab/witness.py").read_text()
    words = [word for tree in TREES for word in ("--tree", tree)]
    seen: dict[str, t.Any] = {}
    for host in lab.data["hosts"]:
        seen[host] = json.loads(lab.ctl("exec", host, "--", "python3", "-c", witness, "web1", *words).stdout)
        # what a guest in lock step holds (memory, descriptors) wavers by itself
        del seen[host]["processes"], seen[host]["footprints"]
    return seen


def _failing(argv: t.Sequence[str], named: t.Sequence[str], timeout_s: int) -> str:
    """What a playbook prints that fails, and names all of that."""
    done = subprocess.run(
        argv,
        cwd=TOP,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    assert [word for word in named if word not in output] == [], output
    return output


def _fails(
    lab: Lab,
    inventory: pathlib.Path,
    variables: dict[str, t.Any],
    named: list[str],
    words: t.Sequence[str] = ("playbooks/site.yml",),
) -> str:
    """The playbook fails with all that is named, and says that it has changed nothing."""
    inventory.write_text(json.dumps(variables))
    sources = ("-i", str(lab.inventory), "-i", str(inventory))
    output = _failing(["ansible-playbook", *sources, *words], named, timeout_s=120)
    assert "changed=0" in output, output
    assert not re.search("changed=[1-9]", output), output
    return output


def _refused(
    lab: Lab,
    inventory: pathlib.Path,
    variables: dict[str, t.Any],
    named: list[str],
    words: t.Sequence[str] = ("playbooks/site.yml",),
) -> None:
    """As above, and both hosts, on which the guest runs, are as they were."""
    before = _look(lab)
    assert all(len(host["qemus"]) == 1 for host in before.values())
    _fails(lab, inventory, variables, named, words)
    assert _look(lab) == before


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_before_anything_is_changed(case: str, taken: Lab, protected: Lab, tmp_path: pathlib.Path) -> None:
    """By variable, value and remedy, and both hosts are as they were."""
    change, named = REFUSALS[case]
    assert taken is protected
    guest = _guest(protected)
    change(guest)
    _refused(protected, tmp_path / "more.json", {"colo_hosts": {"vars": {"colo_guests": {"web1": guest}}}}, named)


@pytest.mark.parametrize("case", OTHERS)
def test_odd_names_and_hosts_are_refused(case: str, protected: Lab, tmp_path: pathlib.Path) -> None:
    """As above, for what is not said in a guest."""
    name, of_alpha, named = OTHERS[case]
    variables = {"colo_hosts": {"vars": {"colo_guests": {name: _guest(protected)}}, "hosts": {"alpha": of_alpha}}}
    _refused(protected, tmp_path / "more.json", variables, named)


def test_one_machine_by_two_names_is_refused(protected: Lab, tmp_path: pathlib.Path) -> None:
    """Names and link addresses differ; it is one host for two all the same."""
    guest = {**_guest(protected), "hosts": ["alpha", "twin"]}
    twin = {"ansible_host": "alpha", "colo_link_address": "192.0.2.3"}
    variables = {"colo_hosts": {"vars": {"colo_guests": {"web1": guest}}, "hosts": {"twin": twin}}}
    _refused(protected, tmp_path / "more.json", variables, SAME_MACHINE)


# Arguments of teardown.yml, variables of beta, what is named.
TEARDOWNS: dict[str, tuple[list[str], dict[str, t.Any], list[str]]] = {
    "guest that runs": (
        [],
        {},
        [
            "Nothing was touched. web1: it is not off (primary on alpha, secondary on beta)",
            "power.yml -e colo_guest=web1",
        ],
    ),
    "standby alone": (["--limit", "beta"], {}, ["it is not off (secondary on beta)"]),
    "host that cannot be reached": (
        [],
        {"ansible_host": "nowhere"},
        ["primary on alpha", "beta does not answer, which counts as running", "--limit"],
    ),
    "disks of all": (
        ["-e", "colo_delete_disks=all"],
        {},
        ["bad_input", "colo_delete_disks", "'all'", "exact name: web1"],
    ),
    "disks of a guest that is none": (["-e", "colo_delete_disks=web1,web2"], {}, ["bad_input", "'web2'"]),
    "guest that is none": (["-e", "colo_guest=web2"], {}, ["bad_input", "colo_guest", "web2"]),
}


@pytest.mark.parametrize("case", TEARDOWNS)
def test_what_runs_is_not_taken_away(case: str, protected: Lab, tmp_path: pathlib.Path) -> None:
    """By name and remedy, and both hosts are as they were."""
    arguments, of_beta, named = TEARDOWNS[case]
    variables = {"colo_hosts": {"hosts": {"beta": of_beta}}}
    _refused(protected, tmp_path / "more.json", variables, named, ["playbooks/teardown.yml", *arguments])


def _guest(lab: Lab) -> dict[str, t.Any]:
    guest: dict[str, t.Any] = json.loads(lab.inventory.read_text())["colo_hosts"]["vars"]["colo_guests"]["web1"]
    return guest
