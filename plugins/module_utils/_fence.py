# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host is fenced: what ``colo_fence`` may say, which methods are tried where, what proves that a host is off.

Pure; ``_fencer`` does it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.lockstep.colo.plugins.module_utils._errors import ColoError, InputError

#: The keys of each method beside ``method`` itself; the first one is required.
_KEYS: dict[str, tuple[str, ...]] = {
    "agent": ("agent", "parameters", "run_on", "timeout_s"),
    "command": ("argv", "run_on", "timeout_s"),
    "ssh": ("timeout_s",),
    "manual": (),
}
_PLACES = ("survivor", "controller")
_AGENT = re.compile(r"fence_[a-z0-9_]+\Z")
_PARAMETER = re.compile(r"[a-z][a-z0-9_-]*\Z")
DEFAULT_TIMEOUT_S = 60.0

#: Parameters of agents that are no secret; the values of all others are cut out of whatever an agent says.
_HARMLESS = frozenset(
    {
        "auth", "cipher", "delay", "disable_timeout", "inet4_only", "inet6_only", "ip", "ipaddr", "ipport", "lanplus", "login",
        "login_timeout", "method", "plug", "port", "power_timeout", "power_wait", "privlvl", "quiet", "retry_on", "shell_timeout",
        "ssh", "ssl", "ssl_insecure", "ssl_secure", "stonith_status_sleep", "systems_uri", "target", "user", "username", "verbose",
    }
)  # fmt: skip
_SAID_LENGTH = 300


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to fence a host. ``variable`` says where the inventory has it."""

    variable: str
    method: str
    agent: str = ""
    parameters: t.Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    argv: tuple[str, ...] = ()
    run_on: str = "survivor"
    timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def title(self) -> str:
        """What messages, and the generation record, call it."""
        return {"agent": self.agent, "command": self.argv[0] if self.argv else ""}.get(self.method) or self.method


def methods(variable: str, value: t.Any) -> list[Method]:
    """Read a list of methods (``bad_input``). Values of parameters are never part of a message."""
    if not isinstance(value, t.Sequence) or isinstance(value, str):
        raise InputError(variable, type(value).__name__, "give a list of methods")
    found = [_method(f"{variable}[{number}]", entry) for number, entry in enumerate(value)]
    for entry in found[:-1]:
        if entry.method == "manual":
            raise InputError(entry.variable, "manual", "what comes after a person's word is never tried: name it last")
    return found


def _argv(variable: str, value: t.Any) -> tuple[str, ...]:
    words = list(value) if isinstance(value, t.Sequence) and not isinstance(value, str) else []
    if not words or not all(isinstance(word, (str, int)) for word in words) or not str(words[0]).startswith("/"):
        raise InputError(variable, value, "give a list of words that begins with the absolute path of a program")
    return tuple(str(word) for word in words)


def _method(variable: str, entry: t.Any) -> Method:
    kind = entry.get("method") if isinstance(entry, t.Mapping) else None
    if not isinstance(entry, t.Mapping) or kind not in _KEYS:
        raise InputError(f"{variable}.method", kind, "choose one of " + ", ".join(_KEYS))
    given = {key: value for key, value in entry.items() if value is not None}
    for key in given:
        if key != "method" and key not in _KEYS[kind]:
            known = ", ".join(["method", *_KEYS[kind]])
            raise InputError(f"{variable}.{key}", "its value", f"unknown key of method {kind}; known are {known}")
    read: dict[str, t.Any] = {}
    if kind == "agent":
        agent = given.get("agent")
        if not isinstance(agent, str) or not _AGENT.match(agent):
            raise InputError(f"{variable}.agent", agent, "give the name of a fence agent, such as fence_ipmilan")
        read = {"agent": agent, "parameters": _parameters(f"{variable}.parameters", given.get("parameters", {}))}
    elif kind == "command":
        read = {"argv": _argv(f"{variable}.argv", given.get("argv"))}
    place = given.get("run_on", "survivor")
    if place not in _PLACES:
        raise InputError(f"{variable}.run_on", place, "choose one of " + ", ".join(_PLACES))
    return Method(variable, kind, run_on=place, timeout_s=_timeout(variable, given.get("timeout_s")), **read)


def _timeout(variable: str, value: t.Any) -> float:
    try:
        seconds = DEFAULT_TIMEOUT_S if value is None else float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 1 <= seconds <= 600:
        raise InputError(f"{variable}.timeout_s", value, "give seconds, from 1 to 600")
    return seconds


def _parameters(variable: str, value: t.Any) -> dict[str, str]:
    if not isinstance(value, t.Mapping):
        raise InputError(variable, type(value).__name__, "give the agent's parameters as a dictionary")
    read: dict[str, str] = {}
    for key, word in value.items():
        if not isinstance(key, str) or not _PARAMETER.match(key) or key in ("action", "option"):
            raise InputError(
                f"{variable}.{key}",
                "its value",
                "give names of the agent's parameters; the action is the collection's business",
            )
        text = str(int(word)) if isinstance(word, bool) else str(word)
        if not isinstance(word, (str, int, float)) or re.search(r"[\x00-\x1f\x7f]", text):
            raise InputError(f"{variable}.{key}", "its value", "give one line of text, or a number")
        read[key] = text
    return read


def agent_input(method: Method, action: str) -> str:
    """What an agent reads on its standard input: one key=value per line, so that nothing is in a command line."""
    lines = {**method.parameters, "action": action}
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def secrets(chosen: t.Iterable[Method]) -> set[str]:
    """The values that must not be seen: of every parameter that is not known to be harmless."""
    return {
        value
        for method in chosen
        for key, value in method.parameters.items()
        if value and key.replace("-", "_") not in _HARMLESS
    }


def said(text: str, method: Method) -> str:
    """What a program has said, in one line without secrets; its end, where programs say what is wrong."""
    # the longest first: a secret may be a part of another one
    for secret in sorted(secrets([method]), key=len, reverse=True):
        text = text.replace(secret, "********")
    line = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return line if len(line) <= _SAID_LENGTH else "..." + line[-_SAID_LENGTH:]


def check_off(method: Method, host: str, code: int, text: str) -> None:
    """Hold against ``off`` what the program answered (``fence_refused``)."""
    if code != 0:
        told = said(text, method) or "it gave no reason"
        raise ColoError("fence_refused", f"{method.title} did not switch {host} off (exit {code}): {told}", exit=code)


def check_status(method: Method, host: str, code: int, text: str) -> None:
    """Hold against ``status`` what an agent answered: 2 means off, 0 means on (``fence_not_off``).

    An agent that answered OK to ``off`` while the power is on has lied, or the controller behind it has.
    """
    told = said(text, method) or "it gave no reason"
    if code == 0:
        raise ColoError(
            "fence_not_off",
            f"{method.title} answered OK, and its status says that {host} is still on ({told})",
            exit=code,
        )
    if code != 2:
        raise ColoError(
            "fence_not_off",
            f"{method.title} answered OK, and its status does not say that {host} is off (exit {code}): {told}",
            exit=code,
        )


def evidence(method: Method, host: str, place: str, guests: t.Sequence[str] = ()) -> str:
    """The proof, as it is kept in the generation record."""
    if method.method == "agent":
        return f"{method.agent}, run on {place}, switched {host} off, and its status says off"
    if method.method == "command":
        return f"{method.title}, run on {place}, said that {host} is fenced (exit 0)"
    return f"the QEMUs of {', '.join(guests)} were killed on {host}, and no process is left"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One run of the module colo_fence: methods ``first`` up to ``last`` of ``host``, on ``at`` or, with ``controller``, beside
    Ansible on behalf of ``at``.
    """

    host: str
    at: str
    controller: bool
    first: int
    last: int
    guests: tuple[str, ...]


#: A host answers, or does not, or is no part of the run and was not asked.
Answers = t.Literal["yes", "no", "not asked"]


def attempts(
    chosen: t.Sequence[Method], host: str, answers: Answers, left: str, guests: t.Sequence[str]
) -> list[Attempt]:
    """The runs that fence ``host``, in the order of its methods; ``left`` is the host that goes on.

    A host that answers is not switched off, as other guests may run well on it: there, only the guests' units are
    stopped. One that does not answer cannot be asked to stop them.
    """
    found: list[Attempt] = []
    for number, method in enumerate(chosen):
        on_itself = method.method == "ssh"
        if method.method == "manual" or answers != ("yes" if on_itself else "no"):
            continue
        one = Attempt(
            host=host,
            at=host if on_itself else left,
            controller=method.run_on == "controller" and not on_itself,
            first=number,
            last=number + 1,
            guests=tuple(guests),
        )
        if found and (found[-1].last, found[-1].controller) == (number, one.controller):
            one = dataclasses.replace(found.pop(), last=number + 1)
        found.append(one)
    return found


def why_none(chosen: t.Sequence[Method], host: str, answers: Answers) -> str:
    """Why nothing was tried to fence ``host``; empty when no method is configured at all."""
    if not [method for method in chosen if method.method != "manual"]:
        return ""
    if answers == "not asked":
        return f"{host} is no part of this run and was not asked: look at --limit"
    if answers == "yes":
        return f"colo_fence of {host} has no method ssh, and a host that answers is not switched off"
    return f"colo_fence of {host} has the method ssh only, and {host} does not answer"
