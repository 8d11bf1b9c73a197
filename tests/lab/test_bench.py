# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of measurements: neither root nor a lab is needed, and no time is judged."""

from __future__ import annotations

import argparse
import os
import pathlib
import socket
import sys
import threading
import typing as t
import xml.etree.ElementTree

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "bench"))

import cost
import entering
import failover
import figures
import load
import page
import qmp
import sites
import svg
from labplay import Play
from stand import Findings

import bench
from ansible_collections.lockstep.colo.tests.unit._monitor import Refuse, Server, event

pytestmark = pytest.mark.fast

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
Json = dict[str, t.Any]


# --- figures --------------------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_over_the_median_of_the_base() -> None:
    one = figures.Comparison(1, "x", "s", "less", "base", {"base": [2.0, 1.0, 90.0], "way": [4.0], "none": []})
    assert one.ratio("way") == 2.0
    assert one.ratio("base", "way") == 0.5
    assert one.ratio("none") is None
    assert one.ratio("never") is None
    told = one.as_json()
    assert told["ways"]["base"] == {
        "median": 2.0,
        "min": 1.0,
        "max": 90.0,
        "runs": 3,
        "ratio": 1.0,
        "values": [2.0, 1.0, 90.0],
    }
    assert "none" not in told["ways"]


def test_a_target_of_which_nothing_was_seen_neither_holds_nor_fails() -> None:
    assert figures.at_most(1, "w", None, 1).holds is None
    assert [figures.at_most(1, "w", seen, 1).holds for seen in (0.5, 1.0, 1.1)] == [True, True, False]
    assert [figures.at_least(1, "w", seen, 3).holds for seen in (2.9, 3.0)] == [False, True]
    rows = figures.target_cells([{"row": 1, "wanted": "w", "seen": "-", "holds": None}])
    assert rows == [("1", "w", "-", "not measured")]


def test_a_slope_needs_two_places() -> None:
    assert figures.fit("x", "per y", "s", [(1, 2.0), (1, 3.0)]) is None
    found = figures.fit("x", "per y", "s", [(1, 3.0), (2, 5.0), (4, 9.0)])
    assert found is not None
    assert (found.slope, found.start) == pytest.approx((2.0, 1.0))


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, "-"), (0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (12.345, "12.3"), (1234.5, "1234"), (-5.5, "-5.50")],
)
def test_numbers_have_three_digits(value: float | None, told: str) -> None:
    assert figures.number(value) == told


def test_percentiles_are_values_that_were_seen() -> None:
    assert [figures.percentile([3, 1, 2, 4], part) for part in (0.0, 0.5, 0.99)] == [1, 2, 4]


def test_figures_take_the_place_of_the_old_ones_and_of_nothing_else() -> None:
    text = f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter"
    new = figures.replaced(text, "new\n")
    assert new == f"before\n{figures.BEGIN}\n\nnew\n\n{figures.END}\nafter"
    assert figures.replaced(new, "new") == new
    for broken in ("nothing", figures.BEGIN, f"{figures.END}{figures.BEGIN}", text + figures.BEGIN):
        with pytest.raises(ValueError, match="once each"):
            figures.replaced(broken, "new")


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "last", "count"), [(9.0, 10.0, 6), (0.3, 0.3, 4), (1, 1.0, 6), (130, 150.0, 4), (0, 1.0, 2)]
)
def test_axes_end_at_a_round_number(top: float, last: float, count: int) -> None:
    ticks = svg.ticks(top)
    assert (ticks[0], len(ticks)) == (0, count)
    assert ticks[-1] == pytest.approx(last)


def test_a_picture_is_xml_with_every_series_in_it() -> None:
    picture = svg.curves("a < b", "x", "y", {"one & two": [(0, 0), (1, 5)], "empty": []})
    root = xml.etree.ElementTree.fromstring(picture)
    texts = [element.text for element in root.iter() if element.text]
    assert {"a < b", "one & two", "empty"} <= set(texts)
    assert len([element for element in root.iter() if element.tag.endswith("circle")]) == 2
    assert "SPDX-License-Identifier" in picture


# --- the rows -------------------------------------------------------------------------------------------------------


def _report(found: Findings) -> Json:
    return bench.as_json(found, 0.0, [[1.0, 1.0, 1.0]], [], quick=False, rows=bench.ROWS)


def _failover(found: Findings) -> None:
    trials = {
        failover.MODULE: [{"module_ms": 100.0, "seconds": 2.0, "answer_s": 1.5, "actions": 8}],
        failover.PLAYBOOK: [{"module_ms": 110.0, "seconds": 4.0, "answer_s": 2.5, "actions": 8}],
        failover.PIPED: [{"seconds": 1.1, "answer_s": 1.2}],
        failover.TYPED: [{"seconds": 0.1, "answer_s": 0.25}],
    }
    found.evidence["failover"] = {}
    failover.report(found, trials, [80.0], [2.0])


def _entering(found: Findings) -> None:
    def both(ours: float, theirs: float) -> dict[str, list[Json]]:
        return {
            entering.OURS: [{"pause_ms": ours, "total_ms": 5000.0}],
            entering.DOCUMENTED: [{"pause_ms": theirs, "total_ms": 4000.0}],
        }

    entering.report(
        found,
        {
            (256, 64, entering.IDLE): both(100, 500),
            (1024, 64, entering.IDLE): both(120, 2000),
            (1024, 64, entering.DIRTYING): both(300, 2000),
            (1024, 1024, entering.IDLE): both(120, 2000),
        },
    )


def _site(found: Findings) -> None:
    def run(guests: int, again: float, runs: int) -> Json:
        work = {"tasks": 70, "module_runs": runs}
        times = {"packages_s": 20.0, "first_s": 30.0 + guests, "again_s": [again], "added_s": 20.0, "floor_s": [2.0]}
        return {
            "guests": guests,
            **times,
            "again_changed": 0,
            "work": work,
            "slowest": [{"task": "Look", "seconds": 1.0}],
        }

    seen = [run(1, 10.0, 30), run(2, 10.5, 31)]
    found.evidence["site"] = seen
    sites.report(found, seen)


def _cost(found: Findings, curve: bool) -> None:
    def seen(download: float) -> cost.Seen:
        part = {"seconds": 2.0, "latencies_ms": [1.0, 2.0]}
        one = cost.Seen()
        one.add({"pages": part, "writes": part, "download": {"seconds": 2.0, "bytes": 2e6 * download}}, [10.0, 20.0])
        return one

    named = cost.tunings(curve)
    ways = {
        cost.ALONE: seen(70),
        **{way: seen(20) for way in named},
        cost.QEMU: seen(6),
        cost.FRESH: seen(20),
        cost.CHANNELS: seen(19),
        cost.CLEAR: seen(21),
    }
    cost.report(found, ways, named)


@pytest.fixture
def found() -> Findings:
    found = Findings()
    _failover(found)
    _entering(found)
    _site(found)
    _cost(found, curve=True)
    return found


def test_targets_are_held_against_the_right_rivals(found: Findings) -> None:
    holds = {target.wanted: (target.seen, target.holds) for target in found.targets}
    assert holds["colo_failover at most 1.5 times the raw commands and Python's start"] == ("1.25x", True)
    assert holds["failover.yml at most 1.5 times a playbook with one module that does nothing"] == ("2.00x", False)
    assert holds["pause at 1 GiB, idle: at most 0.1 of stop, copy, continue"] == ("0.0600x", True)
    assert holds["pause at 1 GiB, dirtying: at most 0.1 of stop, copy, continue"] == ("0.150x", False)
    assert holds["pause of an idle guest does not grow with its memory: at 1 GiB at most 1.5 times that at 0.25 GiB"][1]
    assert holds["site.yml with nothing to do: at most twice the floor for one guest"] == ("5.00x", False)
    assert holds["and under 1 s for each more guest"] == ("0.500 s", True)
    assert holds["module runs on a host do not grow with the guests"] == ("1.03x", False)
    assert holds["download: ours at least 3 times as good as QEMU's defaults"] == ("3.33x", True)
    assert all(target.holds for target in found.targets if "at least 1 times" in target.wanted)


def test_slopes_are_those_of_the_points(found: Findings) -> None:
    slopes = {fit.what: round(fit.slope, 3) for fit in found.fits}
    assert slopes["pause, site.yml's way, idle"] == round(20 / 0.75, 3)
    assert slopes["site.yml, nothing to do"] == 0.5
    assert slopes["module runs on a host, nothing to do"] == 1


def test_everything_that_was_measured_is_in_the_table_and_on_the_page(found: Findings, tmp_path: pathlib.Path) -> None:
    report = _report(found)
    (tmp_path / "performance.md").write_text(f"# Page\n\n{figures.BEGIN}\nlast year's\n{figures.END}\n")
    page.write(tmp_path, report)
    written = (tmp_path / "performance.md").read_text()
    for text in (bench.table(report), written.replace("\\|", "|")):
        for one in report["comparisons"]:
            assert one["what"] in text
            assert [way for way in one["ways"] if way not in text] == []
        assert all(target["wanted"] in text for target in report["targets"])
        assert all(fit["what"] in text for fit in report["fits"])
    assert "last year's" not in written
    for name in ("pause.svg", "site.svg", "delay.svg"):
        assert f"](images/bench/{name})" in written
        assert (tmp_path / "images" / "bench" / name).exists()


def test_a_run_without_anything_tells_that() -> None:
    report = bench.as_json(Findings(), 0.0, [], ["row 4: StageError: no"], quick=True, rows=[4])
    assert "NOT MEASURED: row 4: StageError: no" in bench.table(report)
    assert "Not measured: row 4" in page.block(report, frozenset())


def test_the_page_has_room_for_the_figures() -> None:
    text = (TOP / "docs" / "performance.md").read_text()
    assert figures.replaced(text, "x").count("x") >= 1


def test_rows_are_chosen_by_number() -> None:
    assert bench.rows_of("4,1,4") == [1, 4]
    for wrong in ("", "6", "one", "1;2"):
        with pytest.raises(argparse.ArgumentTypeError):
            bench.rows_of(wrong)


def test_the_work_of_a_run_is_that_of_the_busier_host() -> None:
    def line(task: str, module: str, host: str, runs: int, began: float, ended: float) -> Json:
        return {"task": task, "module": module, "host": host, "runs": runs, "began": began, "ended": ended}

    lines = [
        line("Look", "colo_info", "alpha", 1, 10.0, 11.0),
        line("Look", "colo_info", "beta", 1, 10.1, 12.0),
        line("Judge", "set_fact", "alpha", 1, 12.0, 12.1),
        line("Keys", "stat", "alpha", 2, 13.0, 14.0),
        line("Skipped", "copy", "alpha", 0, 14.0, 14.0),
        line("Look", "colo_info", "alpha", 1, 20.0, 21.0),
        {"stats": {}},
    ]
    play = Play("site", 0.0, 30.0, 0, lines, pathlib.Path("log"))
    assert sites.Work.of(play) == sites.Work(tasks=5, module_runs=4)
    spans = {one["task"]: one["seconds"] for one in sites.slowest(play)}
    assert (spans["Keys"], spans["Look"]) == (1.0, 3.0)


# --- the raw monitor ------------------------------------------------------------------------------------------------


def test_a_raw_monitor_asks_sends_and_keeps_events(tmp_path: pathlib.Path) -> None:
    def answer(command: str, _arguments: Json) -> tuple[list[Json], t.Any]:
        return ([event("STOP", 1)], Refuse("no")) if command == "bad" else ([], {"command": command})

    path = tmp_path / "qmp"
    with Server(path, answer), qmp.RawMonitor(str(path)) as monitor:
        assert monitor.ask("query-status") == {"command": "query-status"}
        with pytest.raises(ValueError, match="bad: no"):
            monitor.ask("bad")
        assert [seen["event"] for seen in monitor.events] == ["STOP"]
        monitor.send(failover.DOCUMENTED)
        assert [monitor.answer()["return"]["command"] for _command in failover.DOCUMENTED] == [
            name for name, _a in failover.DOCUMENTED
        ]


def test_pauses_are_from_each_stop_to_its_resume(tmp_path: pathlib.Path) -> None:
    def at(name: str, seconds: int, micro: int) -> Json:
        return {"event": name, "timestamp": {"seconds": seconds, "microseconds": micro}}

    events = [
        at("RESUME", 1, 0),
        at("STOP", 2, 500000),
        at("RESUME", 2, 600000),
        at("STOP", 3, 0),
        at("RESUME", 4, 0),
        at("STOP", 5, 0),
    ]
    assert qmp.pauses_ms(events) == pytest.approx([100, 1000])
    with Server(tmp_path / "qmp", lambda _command, _arguments: ([event("STOP", 1), event("RESUME", 3)], {})):
        with qmp.checkpoints(str(tmp_path / "qmp")) as pauses:
            assert pauses == []
        assert pauses == [2000.0]


# --- the load -------------------------------------------------------------------------------------------------------


def test_the_load_counts_what_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "HTTP_PORT", _serve(_http))
    monkeypatch.setattr(load, "LINE_PORT", _serve(_line))
    pages = load.pages("127.0.0.1", 0.05)
    assert pages["latencies_ms"]
    assert all(value > 0 for value in pages["latencies_ms"])
    size = load.download("127.0.0.1", 0.5)["bytes"]
    assert size > 0
    assert size % 5 == 0
    assert load.writes("127.0.0.1", 0.05)["latencies_ms"]


def test_an_answer_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LINE_PORT", _serve(lambda _line: b"error no disk\n"))
    monkeypatch.setattr(load, "HTTP_PORT", _serve(lambda _line: b"HTTP/1.1 500 No\r\n\r\n", once=True))
    with pytest.raises(OSError, match="did not write"):
        load.writes("127.0.0.1", 1)
    with pytest.raises(OSError, match="not a page"):
        load.pages("127.0.0.1", 1)


def _http(line: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" if line.startswith(b"GET") else b""


def _line(line: bytes) -> bytes:
    return line.strip() + b" 1 boot\n"


def _serve(answer: t.Callable[[bytes], bytes], once: bool | None = None) -> int:
    """A server on a port of its own that answers each line; of HTTP only the first, and it leaves the closing to the client."""
    ends = once if once is not None else answer is _http
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            client, _address = listener.accept()
            with client, client.makefile("rb") as stream:
                for line in stream:
                    client.sendall(answer(line))
                    if ends:
                        stream.read()
                        break

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def test_the_floor_is_a_program_that_asks(tmp_path: pathlib.Path) -> None:
    with Server(tmp_path / "qmp", lambda _command, _arguments: ([], {})) as server:
        assert (
            os.spawnl(
                os.P_WAIT, sys.executable, sys.executable, str(TOP / "bench" / "qmp.py"), str(tmp_path / "qmp"), "7"
            )
            == 0
        )
    assert [command for command, _a, _o in server.calls] == ["query-status"] * 7
