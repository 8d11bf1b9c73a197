# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the campaigns make of what they have seen: neither root nor a lab is needed."""

from __future__ import annotations

import os
import pathlib
import socket
import sys
import threading
import typing as t

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import campaign_dark
import campaign_faults
import campaign_kills
import campaign_many
import campaign_pause
import client
import faults_cases
import faults_outside
import senders
import witness
from campaign_report import Report
from labplay import Play

pytestmark = pytest.mark.fast

GOOD: dict[str, t.Any] = {
    "connection_survived": True,
    "connections": 1,
    "same_boot_id": True,
    "counter_monotone": True,
    "lost": 0,
    "acknowledged": 9,
}


def test_a_report_without_a_criterion_holds_nothing() -> None:
    report = Report("nothing", ("what",))
    assert not report.holds
    assert "FAILS" in report.table()
    report.criteria = {"one": True, "two": False}
    assert not report.holds
    report.criteria["two"] = True
    assert report.holds


def test_a_table_has_all_its_cells() -> None:
    report = Report("figures", ("what", "s"), rows=[("site.yml", 1.234), ("none", None)], criteria={"it ends": True})
    assert report.table().splitlines()[2:5] == ["what      s", "site.yml  1.23", "none      -"]
    assert report.as_json()["rows"] == [{"what": "site.yml", "s": 1.234}, {"what": "none", "s": None}]


def test_what_was_left_behind_is_found_and_what_wavers_is_not() -> None:
    first = {"nodes: parent0": 1, "qemu descriptor: socket unix": 6, "qemu map: anonymous": 80}
    assert campaign_kills.difference(first, first | {"qemu map: anonymous": 90}) == {}
    now = {"qemu descriptor: socket unix": 7, "nodes: nbd0": 1}
    assert campaign_kills.difference(first, now) == {
        "nodes: nbd0": (0, 1),
        "nodes: parent0": (1, 0),
        "qemu descriptor: socket unix": (6, 7),
    }


def test_growth_is_told_from_wavering() -> None:
    assert campaign_kills.grows([80, 81, 82, 83, 84, 85, 86, 87, 88, 89])
    assert not campaign_kills.grows([80, 85, 79, 83, 81, 84, 80, 82, 85, 83])
    assert not campaign_kills.grows([])


def a_round(**changes: t.Any) -> dict[str, t.Any]:
    side = {"counts": dict.fromkeys(campaign_kills.WAVERING, 80), "processes": {"qemu": {"pid": 7}}}
    looks = {"primary": side, "standby": side}
    return {"protect_s": 9.0, "differs": {"primary": {}, "standby": {}}, "looks": looks, **changes}


def test_ten_kills_are_judged() -> None:
    assert all(campaign_kills.judge([a_round()] * 10, GOOD, 10, "standby").values())

    def failing(
        rounds: list[dict[str, t.Any]], report: dict[str, t.Any], kills: campaign_kills.Victim = "serving"
    ) -> int:
        return list(campaign_kills.judge(rounds, report, 10, kills).values()).count(False)

    assert failing([a_round()] * 9, GOOD) == 1
    assert failing([a_round()] * 9 + [a_round(protect_s=31.0)], GOOD) == 1
    assert failing([a_round()] * 9 + [a_round(differs={"primary": {"nodes: nbd0": (0, 1)}})], GOOD) == 1
    assert failing([a_round()] * 10, {**GOOD, "lost": 1}) == 1
    assert failing([a_round()] * 10, {**GOOD, "connection_survived": False}) == 1
    other = a_round()["looks"] | {"primary": {**a_round()["looks"]["primary"], "processes": {"qemu": {"pid": 8}}}}
    assert failing([a_round()] * 9 + [a_round(looks=other)], GOOD, "standby") == 1


def test_the_moments_of_a_seed_can_be_had_again() -> None:
    drawn = campaign_dark.chances(7, 20, ("alpha", "beta"))
    assert drawn == campaign_dark.chances(7, 20, ("alpha", "beta"))
    assert drawn != campaign_dark.chances(8, 20, ("alpha", "beta"))
    for phase in campaign_dark.PHASES:
        assert sum(chance.phase == phase for chance in drawn) == 5
    assert all(sorted(chance.order) == sorted(chance.back) == ["alpha", "beta"] for chance in drawn)
    assert {chance.delayed for chance in drawn} == {True, False}


def a_darkness(**changes: t.Any) -> dict[str, t.Any]:
    return {"outcome": "started", "missing": 0, "reasons": [], "delayed": True, "early": "unreachable", **changes}


def test_darkness_is_judged() -> None:
    def failing(*rounds: dict[str, t.Any]) -> int:
        return list(campaign_dark.judge(list(rounds), 2).values()).count(False)

    assert failing(a_darkness(), a_darkness(outcome="refused; failover.yml", reasons=["why"])) == 0
    assert failing(a_darkness()) == 1
    assert failing(a_darkness(), a_darkness(missing=1)) == 1
    assert failing(a_darkness(), a_darkness(early=None)) == 1
    assert failing(a_darkness(), a_darkness(outcome="NO WAY OUT", reasons=["why"], missing=None)) == 1
    assert failing(a_darkness(), a_darkness(outcome="refused; run again")) == 1


def test_a_refusal_gives_its_reasons(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "site.log"
    log.write_text(
        "[ERROR]: Task failed: Action failed: web1 is degraded: why\nOrigin: /site.yml:1\nfatal: [alpha]: FAILED! => {}\n"
        "fatal: [beta]: UNREACHABLE! => {}\n"
    )
    play = Play("site", 0.0, 1.0, 2, [], log)
    assert campaign_dark.reasons(play) == ["web1 is degraded: why", "beta is unreachable"]
    log.write_text("Traceback\n")
    assert campaign_dark.reasons(play) == ["exit code 2"]


def test_a_guest_whose_failover_failed_has_no_figure(tmp_path: pathlib.Path) -> None:
    done = {"actions": ["yank"], "timings": {"total_ms": 120.0}}
    guests = {"web1": done, "web2": {**done, "error": {"error_code": "deadline_passed"}}, "web3": {"actions": []}}
    lines = [
        {"module": "colo_failover", "began": 2.5, "guests": guests},
        {"module": "colo_info", "began": 1.5, "guests": {"web4": done}},
    ]
    play = Play("failover", 2.0, 3.0, 2, lines, tmp_path / "log")
    assert campaign_many.module_ms(play) == {"web1": 120.0}
    assert campaign_many.alone_after_s(play) == {"web1": pytest.approx(0.62)}


def test_the_slowest_of_ours_meets_the_fastest_of_theirs() -> None:
    def trial(milliseconds: float) -> dict[str, float]:
        return {"guest_pause_ms": milliseconds, "client_gap_ms": milliseconds}

    assert all(campaign_pause.judge([trial(90), trial(100)], [trial(500), trial(900)], 2).values())
    assert not all(campaign_pause.judge([trial(90), trial(101)], [trial(500), trial(900)], 2).values())
    assert not all(campaign_pause.judge([], [], 2).values())


def test_descriptors_are_told_by_kind() -> None:
    before = witness.descriptors(os.getpid())
    with socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), open("/dev/null", "rb"):
        now = witness.descriptors(os.getpid())
    for word in ("socket tcp listen", "/dev/null"):
        assert now.count(word) == before.count(word) + 1
    assert len(now) == len(before) + 3
    assert "[stack]" in witness.mappings(os.getpid())


def test_one_line_is_asked_and_answered() -> None:
    def answer(server: socket.socket) -> None:
        line, _address = server.accept()
        with line:
            assert line.recv(100) == b"check 5 9\n"
            line.sendall(b"check 5 9 4\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        said = client.ask("127.0.0.1", server.getsockname()[1], ["check", "5", "9"], 5.0)
        thread.join()
    assert client.parse_check(said.encode()) == 4
    with pytest.raises(ValueError, match="not an answer"):
        client.parse_check(b"error no disk\n")


# --- faults ----------------------------------------------------------------------------------------------------------


def test_every_case_has_its_fault_and_a_name_of_its_own() -> None:
    cases = faults_cases.CASES
    assert {case.fault for case in cases} == faults_outside.FAULTS.keys()
    assert len({case.name for case in cases}) == len(cases)
    assert set(faults_cases.SHORT) <= {case.name for case in cases}
    for case in cases:
        assert (case.phase in faults_cases.BUILDING) <= bool(case.build), case.name
        assert case.restart <= (not case.kept), case.name


def test_the_page_has_every_case_as_it_is_expected() -> None:
    page = campaign_faults.PAGE.read_text(encoding="utf-8")
    wanted = [line.split(" | ") for line in campaign_faults.table([]).splitlines()[2:]]
    found = [
        line.split(" | ") for line in page.partition(campaign_faults.BEGIN)[2].splitlines() if line.startswith("| ")
    ]
    assert [row[:5] for row in found[1:]] == [row[:5] for row in wanted]


def test_a_run_is_kept_once_and_says_what_it_said() -> None:
    def run(number: int, at: float, **more: t.Any) -> dict[str, t.Any]:
        return {
            "seed": 7, "number": number, "case": faults_cases.CASES[number].name, "at": at, "gap_ms": 1234.5, "acknowledged": 10, "lost": 0,
            "restart_without_need": False, "two": [], "overdue": [], "troubles": [], "frames": {"alpha": [[1, 2]]}, **more,
        }  # fmt: skip

    good, bad = run(0, 20.2), run(1, 10.7, troubles=["it did not"], two=[[1, 2]])
    kept = campaign_faults.merged([], [good, bad])
    assert [one["number"] for one in kept] == [1, 0]
    assert [campaign_faults.holds(one) for one in kept] == [False, True]
    assert campaign_faults.merged(kept, [bad, good]) == kept
    assert campaign_faults.sums(kept) == campaign_faults.sums([bad, good])
    assert campaign_faults.table(kept) == campaign_faults.table([bad, good])


def test_runs_of_a_seed_can_be_had_again_and_take_every_case_in_turn() -> None:
    cases = faults_cases.CASES
    drawn = [campaign_faults.draw(7, number, cases, 200) for number in range(len(cases))]
    assert {case.name for case, _chance in drawn} == {case.name for case in cases}
    again = [campaign_faults.draw(7, number, cases, 200) for number in range(len(cases))]
    assert [(case, chance.random()) for case, chance in drawn] == [(case, chance.random()) for case, chance in again]
    assert [case.name for case, _chance in drawn] != [
        campaign_faults.draw(8, n, cases, 200)[0].name for n in range(len(cases))
    ]
    assert [campaign_faults.draw(7, number, cases, None)[0] for number in range(len(cases))] == list(cases)


def test_cases_are_chosen_by_their_words() -> None:
    assert len(campaign_faults.chosen([])) == len(faults_cases.CASES)
    assert [case.name for case in campaign_faults.chosen(["short"])] == [
        case.name for case in faults_cases.CASES if case.name in faults_cases.SHORT
    ]
    assert {case.side for case in campaign_faults.chosen(["SIGSTOP*standby"])} == {"standby"}
    assert campaign_faults.chosen(["no such"]) == []


def test_two_that_serve_at_once_are_seen() -> None:
    one = senders.join([0.0, 0.5, 1.0, 5.0, 5.2])
    assert one == [(0.0, 1.0), (5.0, 5.2)]
    # one after the other, and one that sends once more while the other one does
    assert senders.overlaps(one, [(1.1, 4.9)]) == []
    assert senders.overlaps([(0.0, 1.0), (3.0, 3.0)], [(2.0, 4.0)]) == [(3.0, 3.0)]
    assert senders.overlaps(one, [(0.8, 6.0)]) == [(0.8, 1.0), (5.0, 5.2)]


def test_a_side_serves_by_what_its_qemu_says() -> None:
    def serves(runstate: str, mode: str) -> bool:
        return faults_outside.Sample(0.0, runstate, mode).serves

    assert serves("running", "none")
    assert serves("running", "primary")
    assert not serves("running", "secondary")
    assert not serves("inmigrate", "none")
    assert not serves("paused", "primary")


def test_every_step_has_its_deadline(tmp_path: pathlib.Path) -> None:
    known = campaign_faults.deadlines()
    assert known["both sides are in COLO"] == 10.0
    assert known["start colo-guest@web#.service"] == 30.0
    steps = {"both sides are in COLO": 15000.0, "the guest runs": 100.0, "nobody knows": 9000.0}
    line = {"module": "colo_migrate", "guests": {"web1": {"timings": {"steps_ms": steps}}}}
    late = campaign_faults.overdue(Play("site", 0.0, 1.0, 0, [line], tmp_path / "log"), "web1", known)
    assert [words.split(":")[0] for words in late] == ["both sides are in COLO", "nobody knows"]


def test_the_verdict_is_read_from_a_playbooks_first_look(tmp_path: pathlib.Path) -> None:
    def line(host: str, standing: str) -> dict[str, t.Any]:
        seen = {"standing": standing, "record": None, "proven": False, "void_reason": None, "disk_error": None}
        return {"module": "colo_info", "host": host, "guests": {"web1": seen}}

    def verdict(*lines: dict[str, t.Any]) -> str | None:
        play = Play("site", 0.0, 1.0, 0, list(lines), tmp_path / "log")
        return campaign_faults.judged(play, "web1", ("alpha", "beta")).get("verdict")

    assert verdict() is None
    assert verdict({"module": "colo_migrate", "host": "alpha", "guests": {}}) is None
    assert verdict(line("alpha", "alone"), line("beta", "stopped"), line("beta", "standby")) == "unprotected"
    assert verdict(line("alpha", "alone"), line("beta", "alone")) == "split"
    assert verdict(line("beta", "secondary")) == "unknown"


def a_run(**changes: t.Any) -> dict[str, t.Any]:
    good: dict[str, t.Any] = {"two": [], "lost": 0, "overdue": [], "restart_without_need": False, "troubles": []}
    return {**good, **changes}


def test_a_fault_campaign_is_judged() -> None:
    def failing(*runs: dict[str, t.Any]) -> int:
        return list(campaign_faults.judge(list(runs), 2).values()).count(False)

    assert failing(a_run(), a_run()) == 0
    assert failing(a_run()) == 1
    assert failing(a_run(), a_run(two=[(1.0, 2.0)])) == 1
    assert failing(a_run(), a_run(lost=1)) == 1
    assert failing(a_run(), a_run(overdue=["a step"])) == 1
    assert failing(a_run(), a_run(restart_without_need=True)) == 1
    assert failing(a_run(), a_run(troubles=["status.yml says split"])) == 1
    assert campaign_faults.holds(a_run())
    assert not campaign_faults.holds(a_run(lost=1))
