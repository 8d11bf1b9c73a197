/* Copyright (c) 2026, lockstep.colo maintainers
 * GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The guest's disk, without the guest: reads "N" and "check A B" from standard input as the line service does, on files named as arguments.
 */
#define main guest_main
#include "init.c"
#undef main

int main(int argc, char **argv)
{
    char *buffer = aligned(CHUNK + MAX_SECTOR);
    char line[128];
    for (int i = 1; i < argc && i <= MAX_DISKS; i++) {
        struct disk *disk = &disks[disk_count++];
        disk->fd = open(argv[i], O_RDWR);
        disk->sector = 512;
        disk->buckets = ((uint64_t)lseek(disk->fd, 0, SEEK_END) - RESERVED) / 512;
    }
    while (fgets(line, sizeof line, stdin)) {
        uint64_t low, high, present;
        if (sscanf(line, "check %" SCNu64 " %" SCNu64, &low, &high) == 2)
            printf("%" PRIu64 "\n", check(low, high, buffer, &present) ? present : UINT64_MAX);
        else if (sscanf(line, "%" SCNu64, &low) == 1)
            printf("%s\n", record(low, buffer) ? "on disk" : "error");
    }
    return 0;
}
