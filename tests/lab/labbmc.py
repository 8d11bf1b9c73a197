# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's management controller: OpenIPMI's simulator on the management network, wired to the power switch outside.

It answers IPMI over the network as a real one does, and can be told to be a bad one: see MODES.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from typing import TYPE_CHECKING

from labproc import Process, end, locked, serve, write_text
from labroot import LabError, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from labhost import Host

MANAGEMENT = "192.0.2"  # the upper half of the link's range, on a bridge of its own
PREFIX = 25
USER, PASSWORD = "admin", "lab-bmc-secret"
MODES = {
    "good": "does what it is told",
    "stubborn": "answers OK, leaves the power on, and says so when asked",
    "lying": "answers OK, leaves the power on (a host that hung goes on), and says off when asked",
    "slow": "takes a minute for each answer about the power",
    "dead": "does not answer at all",
}
SLOW_S = 60.0

CONFIG = """\
name "{name}"
set_working_mc 0x20
  startlan 1
    addr {address} 623
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcd{number:02x}
  endlan
  chassis_control "./chassis"
  user 1 true "" "" user 10 none md2 md5 straight
  user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""
MACHINE = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""


def address(number: int) -> str:
    """Where the controller of host ``number`` answers."""
    return f"{MANAGEMENT}.{200 + number}"


def host_address(number: int) -> str:
    """The host's own address on the management network."""
    return f"{MANAGEMENT}.{128 + number}"


class Bmc:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.directory = host.lab.directory / "bmc" / host.name

    @property
    def mode(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "mode").read_text(encoding="ascii").strip()
        return "good"

    @property
    def _process(self) -> Process | None:
        return Process.load(self.directory / "process")

    def set_mode(self, mode: str) -> None:
        write_text(self.directory / "mode", mode)
        (self.directory / "told-off").unlink(missing_ok=True)
        self.stop()
        self.start()

    def start(self) -> None:
        if self.mode == "dead":
            return
        with locked(self.directory / "lock"):
            process = self._process
            if process is not None and process.alive:
                return
            number = self.host.number
            config = CONFIG.format(
                name=self.host.name, address=address(number), number=number, user=USER, password=PASSWORD
            )
            write_text(self.directory / "lan.conf", config, 0o600)
            write_text(self.directory / "machine.emu", MACHINE)
            # the simulator runs it as ./chassis WORDS, and splits the words itself
            chassis = f'#!/bin/sh\nexec {self.host.lab.ctl("-q", "chassis", self.host.name)} "$@"\n'
            write_text(self.directory / "chassis", chassis, 0o755)
            # not `ip netns exec`: its new mounts hide the control groups, by which the switch knows that a host is off
            argv = [
                "nsenter",
                f"--net=/run/netns/{self.host.lab.switch}",
                "ipmi_sim",
                "-n",
                "-c",
                "lan.conf",
                "-f",
                "machine.emu",
                "-s",
                "state",
            ]
            look = ["nsenter", f"--net=/run/netns/{self.host.lab.switch}", "ss", "-Hlun", "src", address(number)]
            serve(
                argv,
                self.directory,
                self.directory / "log",
                self.directory / "process",
                lambda: bool(run(look, timeout=30)),
                f"the BMC of {self.host.name}",
            )

    def stop(self) -> None:
        end(self._process, f"the BMC of {self.host.name}")

    # what the simulator asks of the power switch

    def chassis(self, words: Sequence[str]) -> None:
        """Answer `IPMB-ADDRESS get power` and the like, as the simulator's `chassis_control` wants it."""
        command = list(words[1:] if words[:1] == ["0x20"] else words)
        with open(self.directory / "log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%T')} {self.mode}: {shlex.join(words)}\n")
        if self.mode == "slow":
            time.sleep(SLOW_S)
        told_off = self.directory / "told-off"
        if command[:2] == ["get", "power"]:
            on = not told_off.exists() and not (self.host.leader is None and self.host.is_empty)
            print(f"power:{int(on)}")
        elif command[:3] == ["set", "power", "0"]:
            self._off()
        elif command[:3] == ["set", "power", "1"]:
            told_off.unlink(missing_ok=True)
            self.host.power_on()
        else:
            raise LabError(f"the BMC of {self.host.name} cannot {shlex.join(command)}")

    def _off(self) -> None:
        if self.mode == "lying":
            (self.directory / "told-off").touch()
            if self.host.cgroup.frozen:
                self.host.freeze(False)
        elif self.mode != "stubborn":
            self.host.power_off()

    def describe(self) -> str:
        process = self._process
        return f"{address(self.host.number)}, {self.mode}{'' if process is not None and process.alive else ', off'}"
