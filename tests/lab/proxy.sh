#!/bin/sh
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# proxy.sh DIRECTORY HOST : ssh's ProxyCommand. Needs neither the link nor the LAN: it talks to the sshd socket of the host through its root directory.
# Fails at once when the host is off: the leader's pid and start time are read at each connect.
off() {
    echo "lab host $host is off" >&2
    exit 1
}
host=$2
read -r pid started _boot 2>/dev/null <"$1/hosts/$host/leader" || off
read -r stat 2>/dev/null <"/proc/$pid/stat" || off
# shellcheck disable=SC2086  # the fields after the command's name, which may hold blanks
set -- ${stat##*) }
[ "$1" != Z ] && [ "${20}" = "$started" ] || off
exec socat - "UNIX-CONNECT:/proc/$pid/root/run/ssh-unix-local/socket"
