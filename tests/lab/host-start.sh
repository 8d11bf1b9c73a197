#!/bin/sh
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# host-start.sh HOST MACHINE DIRECTORY LOWER RELAY GUEST : becomes the nspawn process of one lab host. Run by labctl inside `unshare -m -n`, so the
# overlay and the network die with the host. Waits for one line on its input: labctl plugs the cables in before the host boots.
set -eu
host=$1 machine=$2 directory=$3 lower=$4 relay=$5 guest=$6

mount -t overlay "$machine" -o "lowerdir=$lower,upperdir=$directory/upper,workdir=$directory/work" "$directory/merged"
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then # cgroup v1, perhaps with v2 beside it: the host gets v2 alone
    umount -R /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
echo $$ >"/sys/fs/cgroup/$machine/cgroup.procs"
ip link set lo up
read -r go
[ "$go" = go ]

export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network SYSTEMD_NSPAWN_LOCK=0
exec systemd-nspawn --quiet --register=no --keep-unit --directory="$directory/merged" --machine="$machine" --hostname="$host" \
    --resolv-conf=off --timezone=off --link-journal=no --capability=all --bind-ro="$relay:/opt/lab" --bind-ro="$guest:/srv/lab" \
    --console=read-only --notify-ready=yes --boot </dev/null
