# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks ask: answers that are missing, failed or cut short never look better than they are."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.lockstep.colo.plugins.filter import colo
from ansible_collections.lockstep.colo.plugins.module_utils import _generation as g
from ansible_collections.lockstep.colo.plugins.module_utils._guest import MIB
from ansible_collections.lockstep.colo.tests.unit import _make

Json = dict[str, t.Any]
FILTERS = colo.FilterModule().filters()
GUESTS: Json = {"web1": {"hosts": ["alpha", "beta"]}}
SECONDARY = g.enter_protection(g.begin_sync(g.new_record("web1", "beta", "alpha"), 1), "alpha")


def _info(standing: str, record: g.Record | None = None, **more: t.Any) -> Json:
    """One host's registered answer of colo_info about web1."""
    seen = {
        "standing": standing,
        "record": None if record is None else record.to_dict(),
        "proven": False,
        "void_reason": None,
        "disk_error": None,
        **more,
    }
    return {"changed": False, "guests": {"web1": seen}}


PROTECTED: Json = {
    "alpha": {"seen": _info("primary", _make.PRIMARY, proven=True)},
    "beta": {"seen": _info("secondary", SECONDARY, proven=True)},
}


def _verdict(hostvars: Json) -> Json:
    found = FILTERS["verdicts"](GUESTS, hostvars, "seen")["web1"]
    assert isinstance(found, dict)
    return found


def test_a_protected_pair() -> None:
    found = _verdict(PROTECTED)
    assert (found["verdict"], found["serving"], found["standby"], found["generation"]) == (
        "protected",
        "alpha",
        "beta",
        2,
    )
    assert found["hosts"] == {"alpha": "primary", "beta": "secondary"}


NO_ANSWER = {
    "not in the inventory": None,
    "not asked": {},
    "skipped": {"seen": {"skipped": True, "changed": False}},
    "unreachable": {"seen": {"unreachable": True, "msg": "timed out", "changed": False}},
    "failed without a word": {"seen": {"failed": True, "msg": "boom"}},
    "failed for this guest": {
        "seen": {"failed": True, "guests": {"web1": {"error": {"error_code": "x", "message": "y"}}}}
    },
    "half told": {"seen": _info("alone", _make.ALONE, error={"error_code": "x", "message": "y"})},
    "about another guest": {"seen": {"guests": {"db": {"standing": "stopped"}}}},
    "no result": {"seen": None},
}


@pytest.mark.parametrize("why", NO_ANSWER)
def test_whatever_is_not_an_answer_is_not_known(why: str) -> None:
    beta = NO_ANSWER[why]
    rest = {} if beta is None else {"beta": beta}
    found = _verdict({"alpha": {"seen": _info("stopped", _make.ALONE)}, **rest})
    assert found["verdict"] == "unknown"
    word = "failed" if why in ("failed for this guest", "half told") else "unreachable"
    assert found["hosts"] == {"alpha": "stopped", "beta": word}
    assert not found["start"]
    assert "not knowing counts as running" in found["refusal"]
    serving = _verdict({"alpha": PROTECTED["alpha"], **rest})
    assert serving["verdict"] == "unknown"
    failover = FILTERS["failovers"](
        GUESTS, {"beta": PROTECTED["beta"], **({} if beta is None else {"alpha": beta})}, "seen"
    )
    assert failover["web1"]["survivor"] is None
    assert "colo_confirm_fenced=alpha" in failover["web1"]["refusal"]


def test_a_healthy_guest_among_others_is_told_and_is_no_error() -> None:
    guests = {"web1": GUESTS["web1"], "web2": GUESTS["web1"]}
    hostvars: Json = {host: {"seen": {"guests": {}}} for host in ("alpha", "beta")}
    for host, seen in PROTECTED.items():
        hostvars[host]["seen"]["guests"]["web2"] = seen["seen"]["guests"]["web1"]
    hostvars["alpha"]["seen"]["guests"]["web1"] = _info("stopped", _make.PRIMARY)["guests"]["web1"]
    hostvars["beta"]["seen"]["guests"]["web1"] = _info("orphaned", SECONDARY)["guests"]["web1"]
    found = FILTERS["failovers"](guests, hostvars, "seen")
    assert found["web1"]["survivor"] == "beta"
    assert (found["web2"]["survivor"], found["web2"]["refusal"]) == (None, "")
    assert "nothing to fail over" in found["web2"]["told"]
    assert FILTERS["refusals"](found) == []
    # named by the operator, it is the only one of the run
    named = FILTERS["failovers"]({"web2": guests["web2"]}, hostvars, "seen")
    assert "nothing to fail over" in named["web2"]["refusal"]


def test_a_confirmed_fence() -> None:
    hostvars = {"beta": {"seen": _info("orphaned", SECONDARY)}}
    found = FILTERS["failovers"](GUESTS, hostvars, "seen", "alpha")["web1"]
    assert (found["survivor"], found["refusal"]) == ("beta", "")
    assert found["fenced_by"] == "operator confirmed that alpha is fenced"
    # an empty word is none
    assert FILTERS["failovers"](GUESTS, hostvars, "seen", "")["web1"]["survivor"] is None


def test_a_record_that_is_no_record_stops_the_run() -> None:
    bad = _info("stopped", _make.ALONE)
    bad["guests"]["web1"]["record"]["generation"] = "1"
    with pytest.raises(AnsibleFilterError, match=r"^record_unreadable: "):
        _verdict({"alpha": {"seen": bad}, "beta": {}})


def test_bad_guests_stop_the_run_with_their_code() -> None:
    defaults = {"accelerator": "tcg"}
    assert FILTERS["definitions"]({"web1": _make.wish()}, "alpha", _make.LINKS, defaults)[0]["name"] == "web1"
    with pytest.raises(AnsibleFilterError, match=r"^unknown_host: colo_guests\.web1\.hosts: 'delta'"):
        FILTERS["definitions"]({"web1": _make.wish(hosts=["alpha", "delta"])}, "alpha", _make.LINKS, defaults)
    with pytest.raises(AnsibleFilterError, match=r"^bad_input: colo_guests"):
        FILTERS["definitions"](None, "alpha", _make.LINKS, defaults)


def test_one_guest_or_all() -> None:
    guests = {"web1": 1, "db": 2}
    assert FILTERS["chosen"](guests, "") == guests
    assert FILTERS["chosen"](guests, "db") == {"db": 2}
    with pytest.raises(AnsibleFilterError, match=r"^bad_input: colo_guest: 'web'.*web1, db"):
        FILTERS["chosen"](guests, "web")


def test_only_the_pairs_of_this_run() -> None:
    guests = {"web1": {"hosts": ["alpha", "beta"]}, "db": {"hosts": ["gamma", "delta"]}}
    assert list(FILTERS["chosen"](guests, "", ["alpha", "beta"])) == ["web1"]
    assert list(FILTERS["chosen"](guests, "", ["beta"])) == ["web1"]
    assert list(FILTERS["chosen"](guests, "", ["alpha", "delta"])) == ["web1", "db"]
    with pytest.raises(AnsibleFilterError, match=r"colo_guest: 'db'.*--limit"):
        FILTERS["chosen"](guests, "db", ["alpha", "beta"])


# --- who does what ----------------------------------------------------------------------------------------------

PAIRS: Json = {
    "a": {
        "serving": "alpha",
        "standby": "beta",
        "start": False,
        "off": False,
        "run": True,
        "refusal": "",
        "verdict": "protected",
        "move": True,
        "reason": "r",
    },
    "b": {
        "serving": "beta",
        "standby": "alpha",
        "start": False,
        "off": False,
        "run": True,
        "refusal": "",
        "verdict": "degraded",
        "move": False,
        "reason": "r",
    },
    "c": {
        "serving": "alpha",
        "standby": None,
        "start": False,
        "off": False,
        "run": True,
        "refusal": "no",
        "verdict": "unknown",
        "move": False,
        "reason": "r",
    },
}


def test_nobody_works_on_a_guest_that_is_refused() -> None:
    assert FILTERS["guests_of"](PAIRS, "alpha", "serving") == ["a"]
    assert FILTERS["guests_of"](PAIRS, "alpha", "standby") == ["b"]
    assert FILTERS["guests_of"](PAIRS, "gamma", "serving") == []
    assert FILTERS["refusals"](PAIRS) == ["c: no"]


def test_only_what_went_well_is_gone_on_with() -> None:
    good, bad = {"generation": 4}, {"generation": 4, "error": {"error_code": "x", "message": "y"}}
    hostvars: Json = {
        "alpha": {"served": {"failed": True, "guests": {"a": bad, "c": good}}},
        "beta": {"served": {"guests": {"b": good}}},
    }
    assert FILTERS["succeeded"](PAIRS, hostvars, "serving", "served") == {"b": good, "c": good}
    hostvars["beta"] = {"served": {"guests": {"b": {**good, "finished": False}}}}
    assert FILTERS["succeeded"](PAIRS, hostvars, "serving", "served") == {"c": good}
    assert FILTERS["succeeded"](PAIRS, hostvars, "standby", "other") == {}
    assert FILTERS["succeeded"](PAIRS, {}, "serving", "served") == {}


def test_troubles_are_told_per_host_and_guest() -> None:
    error = {"error_code": "fence_missing", "message": "guest web1 is stopped"}
    hostvars = {
        "alpha": {
            "one": {"failed": True, "msg": "all of it", "guests": {"web1": {"error": error}, "db": {}}},
            "two": {},
        },
        "beta": {"one": {"failed": True}, "two": {"guests": {}}},
    }
    assert FILTERS["troubles"](["alpha", "beta", "gamma"], hostvars, ["one", "two"]) == [
        "alpha: fence_missing: guest web1 is stopped",
        "beta: failed without a message",
    ]


def test_a_copy_that_goes_on_when_the_run_ends_is_told() -> None:
    progress = {"resync0": {"done_bytes": 3 * MIB, "of_bytes": 64 * MIB}}
    hostvars = {
        "alpha": {"one": {"guests": {"web1": {"finished": False, "progress": progress}, "db": {"finished": True}}}}
    }
    (line,) = FILTERS["troubles"](["alpha"], hostvars, ["one"])
    assert line.startswith("alpha: resync_unfinished: web1: resync0 3 of 64 MiB: the copy goes on by itself")
    assert "run site.yml again" in line


def test_what_is_not_protected_is_told_with_the_better_reason() -> None:
    before: Json = {
        "a": {"refusal": "", "run": True},
        "b": {"refusal": "refused at first", "run": True},
        "c": {"refusal": "", "run": True},
    }
    assert FILTERS["not_protected"](PAIRS, before) == ["b is degraded: refused at first", "c is unknown: no"]
    assert FILTERS["not_protected"](PAIRS, {**before, "b": {"refusal": "", "run": True}})[0] == "b is degraded: r"


def test_a_guest_that_is_to_be_off_is_told_when_it_runs() -> None:
    before = {name: {"refusal": "", "run": False} for name in PAIRS}
    off = {**PAIRS, "b": {**PAIRS["b"], "off": True}, "c": {**PAIRS["c"], "serving": None}}
    assert FILTERS["not_protected"](off, before) == ["a is to be off and runs on alpha"]


def test_the_wish_of_the_run_goes_before_the_lasting_one() -> None:
    pairs = FILTERS["verdicts"](GUESTS, PROTECTED, "seen")
    off = {"web1": {**GUESTS["web1"], "state": "stopped"}}
    assert FILTERS["wished"](pairs, GUESTS)["web1"] == pairs["web1"]
    assert FILTERS["wished"](pairs, off)["web1"]["stop"]
    assert not FILTERS["wished"](pairs, off, "started")["web1"]["stop"]
    assert FILTERS["wished"](pairs, GUESTS, "restarted")["web1"]["start"]
    assert FILTERS["guests_of"](FILTERS["wished"](pairs, off), "alpha", "serving", "run") == []
    assert FILTERS["guests_of"](FILTERS["wished"](pairs, off), "alpha", "serving", "stop") == ["web1"]


@pytest.mark.parametrize("settled", [True, False])
def test_a_pair_is_settled_when_both_hosts_say_so(settled: bool) -> None:
    answers = {
        "alpha": {"seen": _info("primary", _make.PRIMARY, proven=True, settled=True)},
        "beta": {"seen": _info("secondary", SECONDARY, proven=True, settled=settled)},
    }
    pairs = FILTERS["verdicts"](GUESTS, answers, "seen")
    assert FILTERS["wished"](pairs, GUESTS)["web1"]["settled"] is settled


def test_what_a_running_guest_lacks_needs_a_word() -> None:
    line = "colo_guests.web1.memory_mib: 128 -> 256"
    seen = _info("primary", _make.PRIMARY, proven=True, changes=[line])
    pairs = FILTERS["verdicts"](GUESTS, {**PROTECTED, "alpha": {"seen": seen}}, "seen")
    assert pairs["web1"]["changes"] == [line]
    assert line in FILTERS["wished"](pairs, GUESTS)["web1"]["refusal"]
    assert FILTERS["wished"](pairs, GUESTS, "", True)["web1"]["stop"]
    refused = FILTERS["moves"](FILTERS["wished"](pairs, GUESTS))
    assert line in refused["web1"]["refusal"]


@pytest.mark.parametrize(("state", "lasting"), [("off", ""), ("", "restarted"), ("", "off")])
def test_a_wish_that_is_none_is_refused(state: str, lasting: str) -> None:
    pairs = FILTERS["verdicts"](GUESTS, PROTECTED, "seen")
    with pytest.raises(AnsibleFilterError, match="state"):
        FILTERS["wished"](pairs, {"web1": {**GUESTS["web1"], "state": lasting}}, state)


def test_only_protected_guests_are_moved() -> None:
    moves = FILTERS["moves"](PAIRS, "")
    assert list(moves) == ["a", "b", "c"]
    assert moves["a"]["refusal"] == ""
    assert "degraded" in moves["b"]["refusal"]
    assert list(FILTERS["moves"](PAIRS, "beta")) == ["b"]
    assert list(FILTERS["moves"]({**PAIRS, "c": {**PAIRS["c"], "off": True}})) == ["a", "b"]


# --- words ------------------------------------------------------------------------------------------------------


def test_the_table_tells_what_is_and_what_to_do() -> None:
    hostvars = {
        "alpha": {
            "seen": _info(
                "primary",
                _make.PRIMARY,
                proven=True,
                checkpoints={"p50_pause_ms": 47.2, "p99_pause_ms": 80.6, "rate_hz": 0.98},
                qemu={"version": "11.1.3"},
                resync={
                    "resync0": {"done_bytes": 5 * MIB, "of_bytes": 64 * MIB, "bytes_per_s": 6 * MIB, "left_s": 9.8},
                    "resync1": {"done_bytes": 5 * MIB, "of_bytes": 64 * MIB, "bytes_per_s": 0, "left_s": None},
                },
                waiting=["multifd-channels: 0 -> 2"],
                ports={"migration": 9000},
                taps={"lan": "web1-lan", "dmz": "web1-dmz"},
                keeper={
                    "flags": {"blind_since": {"time": 1764450000.2, "data": {"connected_until": None}}, "reset": None}
                },
            )
        }
    }
    verdicts = FILTERS["verdicts"](GUESTS, hostvars, "seen")
    lines = FILTERS["status_table"](verdicts, GUESTS, hostvars, "seen")
    assert lines[0].startswith("web1: unknown; alpha serves; generation 2; ")
    assert lines[1].startswith("  to do: beta does not answer")
    assert "copy protected/2" in lines[2]
    assert "checkpoints 0.98/s pause p50 47 p99 81 ms" in lines[2]
    assert lines[2].endswith("QEMU 11.1.3  ports 9000+  taps web1-lan,web1-dmz")
    assert lines[7].endswith("QEMU -  ports -+  taps -")
    assert lines[3:7] == [
        "    resync0: 5 of 64 MiB, 6.0 MiB/s, 10 s left",
        "    resync1: 5 of 64 MiB, 0.0 MiB/s, it stands still",
        "    its keeper has watched since 2025-11-29T21:00:00+00:00; what QEMU told before, it may have missed",
        "    from its next protection on: multifd-channels: 0 -> 2",
    ]
    assert "unreachable" in lines[7]
    assert "copy -/-" in lines[7]


def test_what_waits_for_the_next_protection_is_told_by_guest() -> None:
    hostvars = {
        "alpha": {"seen": _info("primary", _make.PRIMARY, waiting=["multifd-channels: 0 -> 2"])},
        "beta": {"seen": _info("secondary", SECONDARY, waiting=[])},
    }
    assert FILTERS["waiting"](GUESTS, hostvars, "seen") == ["web1: multifd-channels: 0 -> 2"]
    assert FILTERS["waiting"](GUESTS, {}, "seen") == []


@pytest.mark.parametrize("standing", ["alone", "orphaned", "stopped", "standby"])
def test_the_table_tells_checkpoints_of_this_session_only(standing: str) -> None:
    """The keeper remembers the last session's figures; a guest that is alone has no checkpoints."""
    seen = _info(standing, _make.LEFT, checkpoints={"p50_pause_ms": 47.2, "p99_pause_ms": 80.6, "rate_hz": 0.98})
    hostvars = {"alpha": {"seen": seen}}
    lines = FILTERS["status_table"](FILTERS["verdicts"](GUESTS, hostvars, "seen"), GUESTS, hostvars, "seen")
    row = next(line for line in lines if line.startswith("  alpha "))
    assert "checkpoints - pause -  " in row


@pytest.mark.parametrize(
    ("standings", "encrypted", "warned"),
    [
        (("primary", "secondary"), (True, True), False),
        (("primary", "secondary"), (False, False), True),
        (("alone", "standby"), (False, False), True),
        (("alone", "standby"), (False, True), False),
        (("alone", "stopped"), (False, False), False),
        (("primary", None), (False, False), True),
    ],
)
def test_what_crosses_the_link_in_the_clear_is_warned_of(
    standings: tuple[str, str | None], encrypted: tuple[bool, bool], warned: bool
) -> None:
    hostvars = {
        host: {"seen": _info(standing, qemu={"encrypted": secure})}
        for host, standing, secure in zip(("alpha", "beta"), standings, encrypted)
        if standing is not None
    }
    told = FILTERS["in_the_clear"](GUESTS, hostvars, "seen")
    assert len(told) == int(warned)
    assert not warned or told[0].startswith("WARNING: web1: the link is not encrypted")
    table = FILTERS["status_table"](FILTERS["verdicts"](GUESTS, hostvars, "seen"), GUESTS, hostvars, "seen")
    assert (table[-1:] == told) == warned


def test_a_guest_that_would_be_started_is_served_by_nobody() -> None:
    records = {"alpha": _make.ALONE, "beta": g.new_record("web1", "beta", "alpha")}
    hostvars = {host: {"seen": _info("stopped", record)} for host, record in records.items()}
    verdicts = FILTERS["verdicts"](GUESTS, hostvars, "seen")
    assert verdicts["web1"]["start"]
    assert "; nobody serves; " in FILTERS["status_table"](verdicts, GUESTS, hostvars, "seen")[0]


def test_the_report_of_a_failover() -> None:
    failovers: Json = {name: {"survivor": "beta", "refusal": "", "told": ""} for name in ("a", "b", "c", "d")}
    failovers["e"] = {"survivor": None, "refusal": "", "told": "the pair is healthy"}
    guests = {
        "a": {"actions": ["x"], "timings": {"total_ms": 123.4}},
        "b": {"actions": [], "timings": {"total_ms": 5.0}},
        "c": {"actions": ["x"], "timings": {}},
        "d": {"error": {}, "actions": ["x"]},
    }
    lines = FILTERS["failover_report"](failovers, {"beta": {"over": {"guests": guests}}}, "over")
    assert lines == [
        "e: the pair is healthy",
        "a serves alone on beta after 123 ms in the module",
        "b serves alone on beta already",
        "c would serve alone on beta",
    ]


def test_what_frees_a_host_of_its_guests() -> None:
    guests = {"web1": GUESTS["web1"], "elsewhere": {"hosts": ["beta", "gamma"]}}
    found = FILTERS["drains"](guests, PROTECTED, "seen", "alpha")
    assert found == {"web1": {"goes_on": "beta", "stop": "alpha", "refusal": ""}}
    alone = {"alpha": {"seen": _info("alone", _make.ALONE)}, "beta": {"seen": _info("stopped", SECONDARY)}}
    refused = FILTERS["drains"](GUESTS, alone, "seen", "alpha")
    assert "run site.yml" in FILTERS["refusals"](refused)[0]


@pytest.mark.parametrize(
    ("standing", "state", "runs"),
    [
        ("absent", None, False),
        ("stopped", "inactive", False),
        ("stopped", "failed", False),
        # a QEMU whose guest has powered itself off is still one
        ("stopped", "active", True),
        ("stopped", "deactivating", True),
        ("secondary", "active", True),
        ("failed", "inactive", True),
    ],
)
def test_what_still_runs_on_a_host(standing: str, state: str | None, runs: bool) -> None:
    unit: Json = {} if state is None else {"unit": {"state": state}}
    answer = _info(standing, None, **unit)
    told = FILTERS["still_runs"](answer)
    assert len(told) == int(runs)
    assert all(f"web1 is {standing}" in line for line in told)


def test_every_filter_has_its_page() -> None:
    """ansible-doc finds a filter's documentation beside it, by its name."""
    beside = pathlib.Path(colo.__file__).parent
    assert {path.stem for path in beside.glob("*.yml")} == FILTERS.keys()


def test_only_the_hosts_of_the_run_are_asked_whether_a_guest_is_off() -> None:
    hostvars: Json = {"alpha": {"seen": _info("primary", _make.PRIMARY)}, "beta": {"seen": _info("stopped")}}
    not_off = FILTERS["not_off"]
    told = [
        "web1: it is not off (primary on alpha): switch it off with power.yml -e colo_guest=web1 -e colo_state=stopped"
    ]
    assert not_off(GUESTS, hostvars, "seen", ["alpha", "beta"]) == told
    assert not_off(GUESTS, hostvars, "seen", ["beta", "gamma"]) == []


@pytest.mark.parametrize("case", NO_ANSWER)
def test_a_guest_of_which_nothing_is_known_counts_as_running(case: str) -> None:
    hostvars: Json = {"beta": {"seen": _info("stopped")}}
    if NO_ANSWER[case] is not None:
        hostvars["alpha"] = NO_ANSWER[case]
    (told,) = FILTERS["not_off"](GUESTS, hostvars, "seen", ["alpha", "beta"])
    assert "alpha" in told
    assert "counts as running" in told


def test_disks_of_guests_of_the_run_are_deleted() -> None:
    guests: Json = {**GUESTS, "db": {"hosts": ["gamma", "delta"]}}
    to_delete = FILTERS["to_delete"]
    assert to_delete(guests, "web1", ["beta"]) == ["web1"]
    with pytest.raises(AnsibleFilterError, match="bad_input: colo_delete_disks: 'db' cannot be used"):
        to_delete(guests, "web1,db", ["alpha", "beta"])


def test_what_a_guest_has_on_a_host() -> None:
    definition = _make.definition()
    assert FILTERS["copy_paths"](definition)[0] == "/var/lib/lockstep-colo/web1/record.json"
    links = [{"ifname": definition["nics"][0]["tap"], "linkinfo": {"info_kind": "tun"}}]
    place = f"/etc/systemd/network/05-colo-{definition['nics'][0]['tap']}.netdev"
    found = FILTERS["devices"](links, [place], [definition], {})
    assert found == {"go": ["web1-nic0"], "stay": [], "names": ["web1-nic0"], "files": [place]}


# --- releases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "mixed"),
    [
        ("11.1.3", "11.1.3", False),
        ("11.1.2", "11.2.0", False),
        ("10.0.13", "10.2.0", False),
        ("11.1.3", "10.0.13", True),
        ("10.2.0", "11.0.0", True),
        ("11.1.3", None, False),
    ],
)
def test_releases_that_must_not_meet(one: str, two: str | None, mixed: bool) -> None:
    asked = {
        host: {"asked": {"host": {"qemu": version and {"version": version}}}}
        for host, version in (("alpha", one), ("beta", two))
    }
    lines = FILTERS["mixed"](GUESTS, asked, "asked")
    assert bool(lines) == mixed
    assert all("qemu_mixed" in line and "web1" in line and one in line for line in lines)
    assert FILTERS["mixed"](GUESTS, {}, "asked") == []


@pytest.mark.parametrize(
    ("one", "two", "refused"),
    [("a1", "b2", False), ("a1", "a1", True), ("", "", False), ("a1", None, False), (None, None, False)],
)
def test_one_machine_by_two_names(one: str | None, two: str | None, refused: bool) -> None:
    asked = {
        host: {"asked": {"unreachable": True} if machine is None else {"host": {"machine_id": machine}}}
        for host, machine in (("alpha", one), ("beta", two))
    }
    lines = FILTERS["same_machine"](GUESTS, asked, "asked")
    assert bool(lines) == refused
    assert all("same_machine: colo_guests.web1.hosts" in line and "alpha and beta" in line for line in lines)
    assert FILTERS["same_machine"](GUESTS, {}, "asked") == []


# --- fencing, and two histories ---------------------------------------------------------------------------------

AGENT: Json = {"method": "agent", "agent": "fence_x", "parameters": {"password": "b7-hush"}}
ORPHANED = {"seen": _info("orphaned", SECONDARY)}
LOST: Json = {"alpha": {"seen": {"unreachable": True}, "colo_fence": [AGENT, {"method": "manual"}]}, "beta": ORPHANED}
RUN: Json = {"host": "alpha", "at": "beta", "controller": False, "first": 0, "last": 1, "guests": ("web1",)}


def test_the_runs_that_fence_a_lost_host() -> None:
    failovers = FILTERS["failovers"](GUESTS, LOST, "seen")
    assert failovers["web1"]["fence"] == "alpha"
    assert FILTERS["fences"](failovers, LOST, "seen") == [RUN]
    assert "b7-hush" not in str(FILTERS["fences"](failovers, LOST, "seen"))


def test_a_host_that_answers_is_fenced_on_itself_only() -> None:
    hostvars = {**LOST, "alpha": {**LOST["alpha"], "seen": {"guests": {"web1": {"error": {"message": "no"}}}}}}
    failovers = FILTERS["failovers"](GUESTS, hostvars, "seen")
    assert FILTERS["fences"](failovers, hostvars, "seen") == []
    assert "colo_fence of alpha has no method ssh" in failovers["web1"]["refusal"]
    hostvars["alpha"]["colo_fence"] = [AGENT, {"method": "ssh"}]
    assert FILTERS["fences"](failovers, hostvars, "seen") == [{**RUN, "at": "alpha", "first": 1, "last": 2}]


def test_without_a_method_nothing_is_run_and_nothing_more_is_said() -> None:
    cases: list[Json] = [{}, {"colo_fence": []}, {"colo_fence": [{"method": "manual"}]}]
    for hosts in cases:
        hostvars = {**LOST, "alpha": {"seen": {"unreachable": True}, **hosts}}
        failovers = FILTERS["failovers"](GUESTS, hostvars, "seen")
        assert FILTERS["fences"](failovers, hostvars, "seen") == []
        assert failovers["web1"]["refusal"].endswith("-e colo_confirm_fenced=alpha")


def test_what_a_run_has_proved_or_not() -> None:
    failed = {"failed": True, "msg": "alpha is not fenced: fence_x: fence_timeout: fence_x did not end within 5 s"}
    hostvars = {**LOST, "beta": {**ORPHANED, "fenced": failed}}
    told = FILTERS["fencings"]({}, RUN, hostvars, "fenced")
    assert told == {"alpha": {"evidence": "", "told": [failed["msg"]], "guests": None}}
    refused = FILTERS["failovers"](GUESTS, hostvars, "seen", "", told)["web1"]
    assert refused["survivor"] is None
    assert f"It could not be fenced: {failed['msg']}" in refused["refusal"]

    hostvars["beta"]["fenced"] = {"changed": True, "evidence": "its power is off"}
    proved = FILTERS["fencings"](told, RUN, hostvars, "fenced")
    assert proved == {"alpha": {"evidence": "its power is off", "told": [failed["msg"]], "guests": None}}
    goes_on = FILTERS["failovers"](GUESTS, hostvars, "seen", "", proved)["web1"]
    assert (goes_on["survivor"], goes_on["fenced_by"], goes_on["refusal"]) == ("beta", "its power is off", "")


def test_what_was_ended_on_a_host_that_is_on_proves_nothing_about_another_guest() -> None:
    run = {**RUN, "at": "alpha"}
    hostvars = {**LOST, "alpha": {"seen": {"guests": {"web1": {"error": {"message": "no"}}}}}}
    for guests, survivor in ((("web1",), "beta"), (("web2",), None)):
        hostvars["alpha"]["fenced"] = {"evidence": "no process is left"}
        proved = FILTERS["fencings"]({}, {**run, "guests": guests}, hostvars, "fenced")
        assert FILTERS["failovers"](GUESTS, hostvars, "seen", "", proved)["web1"]["survivor"] == survivor


@pytest.mark.parametrize(
    ("serving", "standby", "behind", "alone"),
    [
        ("primary", "secondary", False, False),
        ("primary", "orphaned", True, False),
        ("orphaned", "secondary", True, False),
        ("orphaned", "orphaned", True, False),
        ("alone", "secondary", True, True),
        ("alone", "orphaned", True, True),
        ("alone", "standby", False, False),
        ("alone", "failed", False, False),
        ("orphaned", "stopped", False, False),
        ("syncing", "secondary", False, False),
    ],
)
def test_a_standby_that_follows_nobody(serving: str, standby: str, behind: bool, alone: bool) -> None:
    pair = {"serving": "alpha", "standby": "beta", "hosts": {"alpha": serving, "beta": standby}}
    assert FILTERS["left_behind"]({"web1": pair}) == (["web1"] if behind else [])
    assert FILTERS["left_behind"]({"web1": pair}, True) == (["web1"] if alone else [])
    assert FILTERS["left_behind"]({"web1": {**pair, "serving": None}}) == []
    assert FILTERS["left_behind"]({"web1": {**pair, "standby": None}}) == []


@pytest.mark.parametrize("result", [None, {"unreachable": True}, {"skipped": True}])
def test_a_run_without_an_answer_proves_nothing(result: t.Any) -> None:
    hostvars = {**LOST, "beta": {**ORPHANED, "fenced": result}}
    assert FILTERS["fencings"]({}, RUN, hostvars, "fenced")["alpha"]["evidence"] == ""


def test_problems_of_methods_are_told_without_secrets() -> None:
    assert FILTERS["fence_problems"]([AGENT], "alpha") == []
    told = FILTERS["fence_problems"]([{**AGENT, "passwd": "b7-hush"}], "alpha")
    assert len(told) == 1
    assert told[0].startswith("bad_input: colo_fence of host alpha[0].passwd")
    assert "b7-hush" not in told[0]


def test_two_histories_are_decided_by_a_name() -> None:
    taken = g.take_over(SECONDARY, "operator confirmed that alpha is fenced")
    hostvars = {"alpha": {"seen": _info("orphaned", _make.PRIMARY)}, "beta": {"seen": _info("alone", taken)}}
    told = FILTERS["resolutions"](GUESTS, hostvars, "seen")["web1"]
    assert "operator confirmed that alpha is fenced" in told["refusal"]
    found = FILTERS["resolutions"](GUESTS, hostvars, "seen", "beta")["web1"]
    assert found == {"keep": "beta", "give_up": "alpha", "goes_on": True, "start": False, "older": False, "refusal": ""}
    with pytest.raises(AnsibleFilterError, match="bad_input: colo_keep"):
        FILTERS["resolutions"](GUESTS, hostvars, "seen", "gamma")
    hostvars = {
        "alpha": {"seen": _info("stopped", g.new_record("web1", "alpha", "beta"))},
        "beta": {"seen": _info("stopped", SECONDARY)},
    }
    assert "colo_lost_host=alpha" in FILTERS["resolutions"](GUESTS, hostvars, "seen", "beta")["web1"]["refusal"]
    assert FILTERS["resolutions"](GUESTS, hostvars, "seen", "beta", "alpha")["web1"]["older"]


@pytest.mark.parametrize(
    ("kinds", "guests", "refused"),
    [
        (("model 1", "model 1"), ["web1"], False),
        (("model 1", "model 2"), ["web1"], True),
        (("model 1", "model 2"), [], False),
    ],
)
def test_processors_that_must_not_meet(kinds: tuple[str, str], guests: list[str], refused: bool) -> None:
    asked = {
        host: {"asked": {"host": {"processor": kind, "host_cpu_guests": guests}}}
        for host, kind in zip(("alpha", "beta"), kinds)
    }
    lines = FILTERS["mixed"](GUESTS, asked, "asked")
    assert bool(lines) == refused
    assert all("cpu_differs" in line and "web1" in line and "model 2" in str(lines) for line in lines) or not refused
