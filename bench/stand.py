# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where measurements are taken: the lab's hosts, one guest that can be protected, left alone and killed, and its client."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import time
import typing as t

import campaign_pause
import figures
from labplay import HERE as LAB
from labplay import Client, Json, Play, Running, Stage, StageError, protection, waited

BENCH = pathlib.Path(__file__).resolve().parent
PROTECT = ("--tags", "colo_protect")
# The test guest has booted by then: protecting it earlier would ruin its standby under TCG.
SETTLE_MS = 10000
INTERVAL_MS = "5"


@dataclasses.dataclass
class Findings:
    """What the rows hand over."""

    comparisons: list[figures.Comparison] = dataclasses.field(default_factory=list)
    targets: list[figures.Target] = dataclasses.field(default_factory=list)
    fits: list[figures.Fit] = dataclasses.field(default_factory=list)
    evidence: Json = dataclasses.field(default_factory=dict)
    curves: dict[str, str] = dataclasses.field(default_factory=dict)  # file name -> SVG

    def compare(
        self,
        row: int,
        what: str,
        unit: str,
        better: t.Literal["less", "more"],
        base: str,
        values: t.Mapping[str, t.Sequence[float]],
    ) -> figures.Comparison:
        one = figures.Comparison(row, what, unit, better, base, values)
        self.comparisons.append(one)
        return one

    def fit(self, what: str, per: str, unit: str, points: t.Sequence[figures.Point]) -> None:
        found = figures.fit(what, per, unit, points)
        if found is not None:
            self.fits.append(found)


class Stand:
    """One guest on the two hosts. ``serving`` is where it runs."""

    def __init__(self, stage: Stage, **definition: t.Any) -> None:
        self.stage = stage
        self.serving = ""
        self.settings: Json = {}  # variables of every playbook beside the guest
        self.define(**definition)

    # --- the definition

    def define(self, **definition: t.Any) -> None:
        """What differs from the lab's own guest."""
        guest = campaign_pause.inventory(self.stage)["vars"]["colo_guests"][self.stage.guest]
        tuning = {"settle_ms": SETTLE_MS, **definition.pop("tuning", {})}
        self.guest: Json = {**guest, **definition, "tuning": tuning}

    @property
    def extra(self) -> list[str]:
        return ["-e", json.dumps({"colo_guests": {self.stage.guest: self.guest}, **self.settings})]

    @property
    def unit(self) -> str:
        return f"colo-guest@{self.stage.guest}"

    @property
    def standby(self) -> str:
        return self.stage.other(self.serving)

    def link_address(self, host: str) -> str:
        return str(campaign_pause.inventory(self.stage)["hosts"][host]["colo_link_address"])

    # --- acts

    def site(self, *arguments: str) -> Play:
        """site.yml; it notes who serves when it entered protection."""
        play = self.stage.play("site", *self.extra, *arguments)
        entered = protection(play, self.stage.guest)
        if entered:
            self.serving = entered["host"]
        return play

    def begin(self) -> None:
        """Empty hosts, and a protected guest."""
        for host in self.stage.hosts:
            self.stage.labctl("reset", host)
        self.site()

    def call(self, host: str, module: str, **arguments: t.Any) -> tuple[Json, Play]:
        """One module on one host, as an operator would call it by hand; what it returned for the guest, and the run."""
        words = json.dumps({"name": [self.stage.guest], **arguments})
        command = ["ansible", "-i", self.stage.lab["inventory"], host, "-m", f"lockstep.colo.{module}", "-a", words]
        play = Running(module, command, self.stage.evidence).wait()
        for line in play.results:
            if line.get("module") == module:
                result: Json = line["guests"][self.stage.guest]
                return result, play
        raise StageError(f"{module} told nothing; its output is in {play.log}")

    def on(self, host: str, *words: str) -> str:
        return self.stage.labctl("exec", host, "--", *words)

    def kill(self, host: str) -> None:
        """Its QEMU dies; the host lives and its kernel says so on every connection."""
        self.on(host, "systemctl", "kill", "--signal=KILL", self.unit)

    def go_alone(self) -> None:
        """The standby dies and the guest goes on without it."""
        self.kill(self.standby)
        self.call(self.serving, "colo_failover", fenced_by={self.stage.guest: f"the bench killed {self.standby}'s"})

    def protect(self) -> tuple[Json, Json]:
        """The guest that runs alone is protected: what the standby's and what the serving side's module returned."""
        generation = {self.stage.guest: self._generation()}
        made, _play = self.call(self.standby, "colo_migrate", role="secondary", state="ready", generation=generation)
        entered, _play = self.call(self.serving, "colo_migrate", role="primary", state="protected")
        return made, entered

    def _generation(self) -> int:
        record = json.loads(self.on(self.serving, "cat", f"/var/lib/lockstep-colo/{self.stage.guest}/record.json"))
        return int(record["generation"])

    def all_over(self) -> None:
        """Both QEMUs die; site.yml starts the guest again, with everything as it was."""
        unit = self.unit
        kill = f"if systemctl is-active --quiet {unit}; then systemctl kill --signal=KILL {unit}; fi; systemctl stop {unit}"
        for host in self.stage.hosts:
            self.on(host, "sh", "-c", kill)
        self.site(*PROTECT)

    # --- looks

    def socket(self, host: str) -> str:
        """The operator's monitor."""
        leader = self.stage.now()["hosts"][host]["leader_pid"]
        return f"/proc/{leader}/root/run/lockstep-colo/{self.stage.guest}/operator/qmp.sock"

    def client(self) -> Client:
        client = Client(self.stage, "--wait", "90", "--interval-ms", INTERVAL_MS)
        client.wait_for_answers(20, 120)
        return client

    def load(self, seconds: float, *parts: str) -> Json:
        """What a client gets out of the guest."""
        address = self.stage.lab["guests"][self.stage.guest]["address"]
        words = [sys.executable, str(BENCH / "load.py"), address, "--seconds", str(seconds)]
        for part in parts:
            words += ["--part", part]
        netns = ["ip", "netns", "exec", self.stage.lab["client_netns"]]
        done = subprocess.run([*netns, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StageError(f"the load has failed: {done.stderr.strip()[-500:]}")
        answer: Json = json.loads(done.stdout)
        return answer


def answered_after(client: Client, begun: float) -> float:
    """Seconds from a moment to the client's first answer after it."""
    return waited(client.wait_for_answers(5, 120), begun)


def floor_play(stage: Stage) -> Play:
    playbook = str(BENCH / "floor.yml")
    return Running("floor", ["ansible-playbook", "-i", stage.lab["inventory"], playbook], stage.evidence).wait()


def timed(function: t.Callable[[], t.Any]) -> float:
    begun = time.monotonic()
    function()
    return time.monotonic() - begun


__all__ = ["BENCH", "LAB", "PROTECT", "Findings", "Stand", "answered_after", "floor_play", "timed"]
