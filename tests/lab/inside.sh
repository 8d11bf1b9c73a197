#!/bin/sh
# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# inside.sh LAYER PLACE CHECKOUT LIBRARY... -- COMMAND... : run a command in a throw-away copy of the root LAYER, with the checkout at
# /srv/colo and each LIBRARY (a directory or a file) below /srv/lib. Run by labqemu.py as PID 1 of namespaces of its own: what is
# mounted, started and connected here ends with it, and PLACE (an empty directory) is empty again.
set -eu
layer=$1 place=$2 checkout=$3
shift 3

mount -t tmpfs -o mode=0755 tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
root=$place/root
mount -t overlay -o "lowerdir=$layer,upperdir=$place/upper,workdir=$place/work" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
mkdir "$root/dev/net" "$root/dev/shm"
for device in null zero full random urandom tty kvm; do
    [ -e "/dev/$device" ] || continue
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mknod "$root/dev/net/tun" c 10 200

into() { # into NAME SOURCE: bind SOURCE below /srv, read-only
    if [ -d "$2" ]; then mkdir -p "$root/srv/$1"; else : >"$root/srv/$1"; fi
    mount --bind "$2" "$root/srv/$1"
    mount -o remount,bind,ro "$root/srv/$1"
}
into colo "$checkout"
mkdir "$root/srv/lib"
while [ "$1" != -- ]; do
    into "lib/${1##*/}" "$1"
    shift
done
shift

ip link set lo up
chroot "$root" "$@" # not exec: this shell is the one that reaps
