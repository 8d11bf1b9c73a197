#!/bin/sh
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Installs what the machine itself needs to run the lab: Debian 12 and later, Ubuntu 22.04 and later. Nothing is done when it is all there.
set -eu

packages="systemd-container mmdebstrap debian-archive-keyring socat iproute2 util-linux procps openssh-client gcc libc6-dev make xz-utils zstd kmod openipmi"

missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

[ "$(id -u)" = 0 ] || { echo "prerequisites: root is needed to install:$missing" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
echo "prerequisites: installing$missing" >&2
apt-get -qq update
# shellcheck disable=SC2086  # a list of words
apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends $missing >&2
