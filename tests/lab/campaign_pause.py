# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a running guest stands still when it is protected: by site.yml, and by the procedure in QEMU's documentation.

Same hosts, same guest, same binaries, in turn in one run. The guest has 1 GiB, half of it written by itself. QEMU's
procedure (docs/COLO-FT.txt, "Primary resume replication") is typed on the operator's monitor: mirror the disk, `stop`,
cancel the mirror, put the replication in its place, add the filters, `migrate` (all of the memory, while the guest
stands), until it runs again. Its standby is the same as ours: made by colo_migrate.

Ours is as it is by default, encrypted; the documented procedure has no TLS.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import statistics
import subprocess
import time
import typing as t

from campaign_report import Report
from client import GAP_MS
from labplay import TOP, Client, Json, Stage, StageError, protection
from witness import Monitor, kinds

MEMORY_MIB = 1024
WRITTEN_MIB = 500  # the test guest writes at most half of its memory
SHARE = 0.2
LINK_PORT = 9000  # the first guest's ports: migration, disk, -, -, mirror, compare
INTERVAL_MS = "5"
IN_THE_CLEAR = ("-e", json.dumps({"colo_link_security": "none"}))


def inventory(stage: Stage) -> Json:
    group: Json = json.loads(pathlib.Path(stage.lab["inventory"]).read_text(encoding="utf-8"))["colo_hosts"]
    return group


def definition(stage: Stage) -> list[str]:
    """Extra variables that make the lab's guest a big one."""
    guest = inventory(stage)["vars"]["colo_guests"][stage.guest]
    big = {stage.guest: {**guest, "memory_mib": MEMORY_MIB}}
    return ["-e", json.dumps({"colo_guests": big})]


def monitor(stage: Stage, host: str) -> Monitor:
    """The operator's monitor of the guest's QEMU on a host."""
    leader = stage.now()["hosts"][host]["leader_pid"]
    return Monitor(f"/proc/{leader}/root/run/lockstep-colo/{stage.guest}/operator/qmp.sock")


def await_true(what: str, holds: t.Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise StageError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.002)


def socket_chardev(name: str, kind: t.Literal["inet", "unix"], server: bool, **data: str) -> Json:
    address = {"type": kind, "data": data}
    wait = {"wait": False} if server else {}
    return {"id": name, "backend": {"type": "socket", "data": {"addr": address, "server": server, **wait}}}


def prepare(stage: Stage, qemu: Monitor, peer: str) -> None:
    """What the documented procedure does while the guest runs: the character devices and the copy of the disk."""
    run = f"/run/lockstep-colo/{stage.guest}"
    qemu.ask("chardev-add", **socket_chardev("mirror0", "inet", False, host=peer, port=str(LINK_PORT + 4)))
    qemu.ask("chardev-add", **socket_chardev("compsec0", "inet", False, host=peer, port=str(LINK_PORT + 5)))
    for name in ("compare0", "out0"):
        qemu.ask("chardev-add", **socket_chardev(name, "unix", True, path=f"{run}/{name}.sock"))
        qemu.ask("chardev-add", **socket_chardev(f"{name}c", "unix", False, path=f"{run}/{name}.sock"))
    server = {"type": "inet", "host": peer, "port": str(LINK_PORT + 1)}
    qemu.ask("blockdev-add", **{"driver": "nbd", "node-name": "nbd0", "server": server, "export": "parent0"})
    qemu.ask("blockdev-mirror", **{"job-id": "resync0", "device": "colo-disk0", "target": "nbd0", "sync": "full"})
    wanted = {"x-colo": True, "return-path": True, "pause-before-switchover": False}
    states = [{"capability": name, "state": state} for name, state in wanted.items()]
    qemu.ask("migrate-set-capabilities", capabilities=states)
    # the credentials that our own protection has named before are gone again
    qemu.ask("migrate-set-parameters", **{"x-checkpoint-delay": 1000, "max-bandwidth": 10 << 30, "tls-creds": ""})
    await_true("the mirror is ready", lambda: any(job["ready"] for job in qemu.ask("query-block-jobs")))


def enter(qemu: Monitor, peer: str) -> tuple[float, float]:
    """The part for which the guest stands still; seconds, and the moment at which it began."""
    net = {"netdev": "hn0", "vnet_hdr_support": True}
    begun, wall = time.monotonic(), time.time()
    qemu.ask("stop")
    qemu.ask("block-job-cancel", device="resync0")
    await_true("the mirror has ended", lambda: not qemu.ask("query-block-jobs"))
    qemu.ask(
        "blockdev-add", **{"driver": "replication", "node-name": "replication0", "mode": "primary", "file": "nbd0"}
    )
    qemu.ask("x-blockdev-change", parent="colo-disk0", node="replication0")
    qemu.ask("object-add", **{"qom-type": "filter-mirror", "id": "m0", "queue": "tx", "outdev": "mirror0", **net})
    redirector = {"qom-type": "filter-redirector", "queue": "rx", **net}
    qemu.ask("object-add", **redirector, id="redire0-0", indev="out0")
    qemu.ask("object-add", **redirector, id="redire1-0", outdev="compare0")
    qemu.ask("object-add", **{"qom-type": "iothread", "id": "iocmp0"})
    compare = {"primary_in": "compare0c", "secondary_in": "compsec0", "outdev": "out0c", "iothread": "iocmp0"}
    qemu.ask("object-add", **{"qom-type": "colo-compare", "id": "comp0", "vnet_hdr_support": True, **compare})
    qemu.ask("migrate", uri=f"tcp:{peer}:{LINK_PORT}")
    await_true("the guest runs in lock step", lambda: in_lock_step(qemu))
    return time.monotonic() - begun, wall


def in_lock_step(qemu: Monitor) -> bool:
    """COLO, and the guest runs; a migration that has failed is told at once."""
    migration = qemu.ask("query-migrate")
    if migration.get("status") == "failed":
        raise StageError(f"the documented procedure fails: {migration.get('error-desc')}")
    return bool(migration.get("status") == "colo" and qemu.ask("query-status")["status"] == "running")


def longest_gap(client: Client, since: float) -> float:
    """Milliseconds of the longest gap that begins after a moment; shorter ones than GAP_MS are not noted, and count as that."""
    report = client.wait_for_answers(200, 120)
    return max((gap["milliseconds"] for gap in report["gaps"] if gap["begin"] >= since - 0.5), default=GAP_MS)


def go_alone(stage: Stage, serving: str) -> None:
    """The standby's QEMU dies, the guest goes on alone."""
    stage.labctl("exec", stage.other(serving), "--", "systemctl", "kill", "--signal=KILL", f"colo-guest@{stage.guest}")
    stage.play("failover")


def ours(stage: Stage, extra: list[str], serving: str, client: Client) -> Json:
    """site.yml protects the guest that runs alone."""
    begun = time.time()
    play = stage.play("site", "--tags", "colo_protect", *extra)
    entered = protection(play, stage.guest)
    if not entered or entered["host"] != serving:
        raise StageError(f"site.yml did not protect the guest; its output is in {play.log}")
    qemu = monitor(stage, serving)
    with contextlib.closing(qemu.socket):
        if kinds(qemu, "/objects").get("tls-client") != "tls-creds-psk":
            raise StageError("the link is not encrypted")
    return {"guest_pause_ms": entered["guest_pause_ms"], "client_gap_ms": longest_gap(client, begun)}


def documented(stage: Stage, extra: list[str], serving: str, client: Client) -> Json:
    """The documented procedure protects the guest that runs alone, in the clear."""
    stage.play("site", "--tags", "colo_guest", *extra, *IN_THE_CLEAR)
    standby = stage.other(serving)
    generation = stage.verdict()["generation"]
    arguments = {"name": [stage.guest], "role": "secondary", "state": "ready", "generation": {stage.guest: generation}}
    command = ["ansible", "-i", stage.lab["inventory"], standby, "-m", "lockstep.colo.colo_migrate"]
    done = subprocess.run([*command, "-a", json.dumps(arguments)], cwd=TOP, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(f"no standby: {done.stdout}{done.stderr}")
    qemu, peer = monitor(stage, serving), inventory(stage)["hosts"][standby]["colo_link_address"]
    prepare(stage, qemu, peer)
    client.wait_for_answers(50, 60)
    seconds, begun = enter(qemu, peer)
    return {"guest_pause_ms": seconds * 1000, "client_gap_ms": longest_gap(client, begun)}


def give_up(stage: Stage, extra: list[str], serving: str) -> None:
    """After the documented procedure: its standby and that one's copy are thrown away, and site.yml makes all good."""
    standby = stage.other(serving)
    stage.labctl("exec", standby, "--", "systemctl", "kill", "--signal=KILL", f"colo-guest@{stage.guest}")
    stage.labctl("exec", standby, "--", "systemctl", "stop", f"colo-guest@{stage.guest}", f"colo-keeper@{stage.guest}")
    stage.labctl("exec", standby, "--", "sh", "-c", f"rm /var/lib/lockstep-colo/{stage.guest}/*")
    stage.play("site", *extra)


def campaign(stage: Stage, report: Report, trials: int) -> None:
    """As many trials of each, in turn, on hosts that are thrown away afterwards."""
    report.title = (
        f"Entering protection of a running guest with {MEMORY_MIB} MiB, of which {WRITTEN_MIB} MiB are written"
    )
    report.columns = ("trial", "ours ms", "ours, the client ms", "documented ms", "documented, the client ms")
    for host in stage.hosts:
        stage.labctl("reset", host)
    extra = definition(stage)
    stage.play("site", *extra)
    serving = stage.verdict()["serving"]
    client = Client(stage, "--wait", "60", "--interval-ms", INTERVAL_MS)
    mine: list[Json] = []
    theirs: list[Json] = []
    try:
        client.wait_for_answers(20, 60)
        for number in range(1, trials + 1):
            go_alone(stage, serving)
            stage.ask("dirty", str(WRITTEN_MIB))
            mine.append(ours(stage, extra, serving, client))
            go_alone(stage, serving)
            theirs.append(documented(stage, extra, serving, client))
            one, other = mine[-1], theirs[-1]
            report.rows.append((
                number, one["guest_pause_ms"], one["client_gap_ms"], other["guest_pause_ms"], other["client_gap_ms"]
            ))  # fmt: skip
            stage.say(" ".join(str(cell) for cell in report.rows[-1]))
            if number < trials:
                give_up(stage, extra, serving)
    except StageError as error:
        stage.say(f"it ends here: {error}")
        report.evidence["error"] = str(error)
    finally:
        report.evidence |= {"ours": mine, "documented": theirs, "client": client.stop()}
        for host in stage.hosts:
            stage.labctl("reset", host)
    report.criteria = judge(mine, theirs, trials)


def judge(mine: list[Json], theirs: list[Json], trials: int) -> dict[str, bool]:
    """The slowest of ours against the fastest of the documented procedure: no average makes it better."""
    criteria = {f"{trials} trials of each": len(mine) == len(theirs) == trials}
    if mine and theirs:
        # a client that was not answered asks again after 200 ms: its wait cannot be a fifth of a second's
        for key, what, share in (
            ("guest_pause_ms", "the guest's pause", SHARE),
            ("client_gap_ms", "the client's longest wait", 1),
        ):
            one, other = max(each[key] for each in mine), min(each[key] for each in theirs)
            median = statistics.median(each[key] for each in mine)
            said = f"{what}: at worst {one:.0f} ms (median {median:.0f}), at best {other:.0f} ms as documented"
            criteria[f"{said}: at most {share:g} of that"] = one <= share * other
    return criteria
