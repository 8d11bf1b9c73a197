# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every playbook parses, from the checkout and by its full name, and runs in check mode."""

from __future__ import annotations

import copy
import json
import pathlib
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
"""

# Playbooks that insist on being told something: what a check-mode run on a healthy lab tells them.
ARGUMENTS: dict[str, list[str]] = {"failover": ["-e", "colo_confirm_fenced=beta"]}


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


def _play(lab: Lab, playbook: str, *arguments: str) -> str:
    path = TOP / "playbooks" / f"{playbook}.yml"
    return run("ansible-playbook", "-i", lab.inventory, path, *arguments, timeout_s=300, warnings=False)


@pytest.fixture(scope="module")
def bare(lab: Lab) -> Lab:
    """Two empty hosts."""
    for host in lab.data["hosts"]:
        lab.ctl("reset", host)
    return lab


@pytest.fixture(scope="module")
def protected(bare: Lab) -> Lab:
    """Two hosts with a protected guest that alpha serves."""
    assert "failed=0" in _play(bare, "site", "--check", "--diff")  # on empty hosts, too
    _play(bare, "site")
    return bare


@each_playbook
def test_check_mode(playbook: pathlib.Path, protected: Lab) -> None:
    """Every playbook, and none of them moves anything."""
    before = _play(protected, "status")
    _play(protected, playbook.stem, "--check", "--diff", *ARGUMENTS.get(playbook.stem, []))
    served = "web1: protected; alpha serves; generation 2"
    assert served in before
    assert served in _play(protected, "status")


# What is refused: how the lab's guest is changed, and what the refusal has to name.
Change = t.Callable[[dict[str, t.Any]], None]
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
    "memory for a standby": (lambda guest: guest.update(memory_mib=14000), ["memory_short", "memory_mib", "14000"]),
    "source that is not there": (
        lambda guest: guest["disks"].append({"name": "new", "size": "64M", "source": "/srv/none.qcow2"}),
        ["image_missing", "disks[1].source", "/srv/none.qcow2"],
    ),
    "source that is no image": (
        lambda guest: guest["disks"].append({"name": "new", "size": "64M", "source": "/srv/lab/vmlinuz"}),
        ["image_not_format", "disks[1].source", "/srv/lab/vmlinuz"],
    ),
    "port that is taken": (lambda guest: guest.update(port_base=9600), ["port_taken", "port_base", "9605"]),
}
LISTEN = "import socket; s = socket.create_server(('0.0.0.0', 9605)); print('up', flush=True); s.accept()"
FINGERPRINT = (
    "find /etc/lockstep-colo /etc/systemd /etc/apt /usr/local /var/lib/lockstep-colo /run/lockstep-colo -type f ! -name '*.qcow2' "
    "! -name '*lock' -exec sha256sum {} + | sort; systemctl show --property=MainPID colo-guest@web1 colo-keeper@web1"
)


@pytest.fixture(scope="module")
def taken(protected: Lab) -> t.Iterator[Lab]:
    """The lab, with a stranger that listens on a port on alpha."""
    argv = [sys.executable, str(TOP / "tests/lab/labctl.py"), "exec", "alpha", "--", "python3", "-c", LISTEN]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as stranger:
        try:
            assert stranger.stdout is not None
            assert stranger.stdout.readline() == "up\n"
            yield protected
        finally:
            stranger.kill()


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_before_anything_is_changed(case: str, taken: Lab) -> None:
    """By variable, value and remedy, and both hosts are as they were."""
    change, named = REFUSALS[case]
    inventory = json.loads(taken.inventory.read_text())
    guest = copy.deepcopy(inventory["colo_hosts"]["vars"]["colo_guests"]["web1"])
    change(guest)
    before = [taken.ctl("exec", host, "--", "sh", "-c", FINGERPRINT).stdout for host in taken.data["hosts"]]
    assert "MainPID=0" not in before[0]
    done = subprocess.run(
        [
            *("ansible-playbook", "-i", str(taken.inventory), str(TOP / "playbooks/site.yml")),
            *("-e", json.dumps({"colo_guests": {"web1": guest}})),
        ],
        cwd=TOP,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    assert [word for word in named if word not in output] == [], output
    assert "changed=0" in output, output
    after = [taken.ctl("exec", host, "--", "sh", "-c", FINGERPRINT).stdout for host in taken.data["hosts"]]
    assert after == before
