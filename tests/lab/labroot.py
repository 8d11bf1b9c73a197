# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cached lower layers of a lab host: a bootstrapped Debian root, and packages that only save download time."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

SUITE = "trixie"
LAYOUT = 3  # raise it when the content of a layer changes without a change of the lists below
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

BASE_PACKAGES = (
    "ca-certificates", "dbus", "dbus-user-session", "iproute2", "iputils-ping", "less", "libpam-systemd",
    "netcat-openbsd", "openssh-server", "procps", "python3", "python3-apt", "socat", "strace", "sudo", "systemd",
    "systemd-sysv", "tcpdump",
)  # fmt: skip
# What the roles will ask for. These are only downloaded: dpkg of a host knows none of them.
SEEDED_PACKAGES = (
    "qemu-system-x86",
    "qemu-utils",
    "qemu-block-extra",
    "python3-qemu-qmp",
    "nftables",
    "fence-agents-ipmilan",
)
# Work of the clock, which would make measurements differ, and consoles that nobody sees.
MASKED_UNITS = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
    "systemd-networkd-wait-online.service", "getty.target", "console-getty.service", "systemd-modules-load.service",
)  # fmt: skip
KERNEL_PACKAGE = "linux-image-amd64"  # not -cloud-amd64: that one has no driver for e1000

Log = Callable[[str], None]


class LabError(Exception):
    """Something the operator of the lab has to know."""


@dataclasses.dataclass(frozen=True)
class Mirror:
    """Where Debian comes from, as the machine's own apt knows it."""

    archive: str
    security: str | None
    apt_options: tuple[str, ...]  # Acquire:: settings of this machine that a host needs as well
    proxy: str | None

    @property
    def sites(self) -> tuple[str, ...]:
        """Every host name (with port) that the relay may reach."""
        uris = [self.archive] + ([self.security] if self.security else [])
        return tuple(sorted({urlsplit(uri).netloc for uri in uris}))

    def sources(self, suites_main: Sequence[str] = (SUITE, f"{SUITE}-updates"), security: bool = True) -> str:
        """A deb822 sources file without backports: adding those is the job of the role."""

        def entry(uri: str, suites: str) -> str:
            return f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n"

        text = entry(self.archive, " ".join(suites_main))
        return text + "\n" + entry(self.security, f"{SUITE}-security") if security and self.security else text


def run(argv: Sequence[str], *, timeout: float = 900.0) -> str:
    """Run a command to its end and give its standard output; its error output belongs to the exception."""
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{argv[0]} did not end within {timeout:.0f} s: {' '.join(argv)}") from error
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed: run tests/lab/prerequisites.sh") from error
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise LabError(f"rc {done.returncode} from: {' '.join(argv)}\n{tail}")
    return done.stdout


def parse_targets(text: str) -> tuple[str | None, str | None]:
    """The Debian archive and its security archive from `apt-get indextargets` lines 'ORIGIN|LABEL|URI'."""
    archive: str | None = None
    security: str | None = None
    for line in text.splitlines():
        origin, _sep, rest = line.partition("|")
        label, _sep, uri = rest.partition("|")
        if origin != "Debian" or not uri.startswith("http"):
            continue
        if label == "Debian-Security":
            security = security or uri
        elif label == "Debian":
            archive = archive or uri
    return archive, security


def _default_mirror() -> str | None:
    """The default of debootstrap's scripts, for machines that are not Debian."""
    for script in (f"/usr/share/debootstrap/scripts/{SUITE}", "/usr/share/debootstrap/scripts/sid"):
        try:
            text = pathlib.Path(script).read_text(encoding="utf-8")
        except OSError:
            continue
        for line in text.splitlines():
            if line.strip().startswith("default_mirror "):
                return line.split()[1]
    return None


def find_mirror() -> Mirror:
    """LOCKSTEP_LAB_MIRROR (and _SECURITY_MIRROR), else what this machine's apt uses, else debootstrap's default."""
    text = run(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"])
    archive, security = parse_targets(text)
    archive = os.environ.get("LOCKSTEP_LAB_MIRROR") or archive or _default_mirror()
    if archive is None:
        raise LabError("no Debian mirror is known to apt here: set LOCKSTEP_LAB_MIRROR to the URI of one")
    archive = archive.rstrip("/")
    security = os.environ.get("LOCKSTEP_LAB_SECURITY_MIRROR") or security
    if security is None and archive.endswith("/debian"):
        security = archive + "-security"
    options: list[str] = []
    proxy: str | None = None
    for line in run(["apt-config", "dump"], timeout=60).splitlines():
        key, _sep, value = line.partition(" ")
        if key in ("Acquire::Check-Valid-Until", "Acquire::Check-Date"):
            options.append(line)
        elif key == "Acquire::http::Proxy" and value.strip('";') not in ("", "DIRECT"):
            proxy = value.strip('";')
    proxy = proxy or os.environ.get("http_proxy") or None
    return Mirror(archive, security.rstrip("/") if security else None, tuple(options), proxy)


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


class Layers:
    """The cache directory. A layer is built beside its place and renamed into it, so that a half built one is never used."""

    def __init__(self, cache: pathlib.Path, mirror: Mirror, log: Log) -> None:
        self.cache = cache
        self.mirror = mirror
        self.log = log
        self.root = cache / f"root-{digest(LAYOUT, SUITE, BASE_PACKAGES, MASKED_UNITS, mirror)}"
        self.archives = cache / f"archives-{digest(LAYOUT, SUITE, BASE_PACKAGES, SEEDED_PACKAGES, mirror)}"
        self.kernel = cache / f"kernel-{digest(LAYOUT, SUITE, KERNEL_PACKAGE, mirror)}"

    def current(self) -> list[pathlib.Path]:
        return [self.root, self.archives, self.kernel]

    def build(self) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        for place, builder, what in (
            (self.root, self._build_root, f"Debian {SUITE} root (about a minute)"),
            (self.archives, self._build_archives, "package cache"),
            (self.kernel, self._build_kernel, "guest kernel"),
        ):
            if place.is_dir():
                continue
            self.log(f"building the {what}")
            part = place.with_name(place.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            builder(part)
            part.rename(place)

    def _build_root(self, part: pathlib.Path) -> None:
        mirror = self.mirror
        sources = part.with_name("bootstrap.sources")
        sources.write_text(mirror.sources(), encoding="utf-8")
        argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}"]
        argv += [f"--aptopt={option}" for option in mirror.apt_options]
        # as on every Debian machine with udev, which a container has no use for
        argv += ['--customize-hook=chroot "$1" addgroup --quiet --system kvm']
        for path in ("machine-id", "resolv.conf", "hostname", "apt/sources.list", "apt/apt.conf.d/99mmdebstrap"):
            argv += [f'--customize-hook=rm -f "$1"/etc/{path}']
        argv += ['--customize-hook=rm -f "$1"/var/lib/dbus/machine-id']
        argv += ['--customize-hook=chroot "$1" systemctl enable systemd-networkd.service ssh.service']
        argv += [f'--customize-hook=chroot "$1" systemctl mask {" ".join(MASKED_UNITS)}']
        argv += [SUITE, str(part), str(sources)]
        run(argv)
        (part / "etc/apt/sources.list.d").mkdir(exist_ok=True)
        for old in (part / "etc/apt/sources.list.d").iterdir():
            old.unlink()
        (part / "etc/apt/sources.list.d/debian.sources").write_text(mirror.sources(), encoding="utf-8")

    def _apt(self, scratch: pathlib.Path, status: pathlib.Path) -> list[str]:
        """apt-get of this machine, solving for the root of a lab host, with backports."""
        sources = scratch / "etc/lab.sources"
        for folder in ("etc/apt/preferences.d", "state/lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True, exist_ok=True)
        text = self.mirror.sources() + "\n" + self.mirror.sources([f"{SUITE}-backports"], security=False)
        sources.write_text(text, encoding="utf-8")
        options = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "-",
            "Dir::Etc::PreferencesParts": scratch / "etc/apt/preferences.d",
            "Dir::State": scratch / "state",
            "Dir::State::Lists": scratch / "state/lists",
            "Dir::State::status": status,
            "Dir::Cache": scratch / "cache",
            "Dir::Cache::Archives": scratch / "cache/archives",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "Acquire::Languages": "none",
        }
        return ["apt-get", "-qq", "-y", *(f"-o{key}={value}" for key, value in options.items())]

    def _build_archives(self, part: pathlib.Path) -> None:
        scratch = part.with_name("apt.part")
        shutil.rmtree(scratch, ignore_errors=True)
        apt = self._apt(scratch, self.root / "var/lib/dpkg/status")
        run([*apt, "update"])
        run(
            [
                *apt,
                "install",
                "--download-only",
                "--no-install-recommends",
                "-t",
                f"{SUITE}-backports",
                *SEEDED_PACKAGES,
            ]
        )
        target = part / "var/cache/apt/archives"
        target.mkdir(parents=True)
        for deb in (scratch / "cache/archives").glob("*.deb"):
            deb.rename(target / deb.name)
        shutil.rmtree(scratch)

    def _build_kernel(self, part: pathlib.Path) -> None:
        scratch = part.with_name("apt.part")
        shutil.rmtree(scratch, ignore_errors=True)
        apt = self._apt(scratch, self.root / "var/lib/dpkg/status")
        run([*apt, "update"])
        run([*apt, "install", "--download-only", "--no-install-recommends", "-t", SUITE, KERNEL_PACKAGE])
        part.mkdir(parents=True)
        for deb in (scratch / "cache/archives").glob("linux-image-[0-9]*.deb"):
            run(["dpkg-deb", "-x", str(deb), str(part)])
        if not list((part / "boot").glob("vmlinuz-*")):
            raise LabError(f"{KERNEL_PACKAGE} brought no kernel")
        shutil.rmtree(scratch)
