/* Copyright (c) 2026, lockstep.colo maintainers
 * GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The test guest's only program: PID 1, its network set-up and its services. The protocol and the layout on the disk are in README.md beside this file.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LINE_PORT 7000
#define HTTP_PORT 80
#define RESERVED (1024 * 1024)     /* the first MiB of a disk is never touched */
#define CHUNK (256 * 1024)         /* one read of a check */
#define MAX_SECTOR 4096
#define TURNS 16                   /* places of a number */
#define MAX_DISKS 2
#define MAX_NICS 4
#define LOCKS 64
#define BIG_SIZE (16u * 1024 * 1024)

struct disk {
    int fd;
    uint64_t buckets; /* a sector each */
    unsigned sector;
};

static struct disk disks[MAX_DISKS];
static int disk_count;
static pthread_mutex_t sector_locks[LOCKS];
static atomic_uint_fast64_t counter;
static char boot_id[33];

static void say(const char *format, ...)
{
    va_list words;
    va_start(words, format);
    vprintf(format, words);
    va_end(words);
    fflush(stdout);
}

/* --- disk -------------------------------------------------------------------------------------------------------- */

static void *aligned(size_t size)
{
    void *memory = NULL;
    return posix_memalign(&memory, 4096, size) == 0 ? memory : NULL;
}

static bool whole_read(int fd, void *into, size_t size, uint64_t offset)
{
    return pread(fd, into, size, (off_t)offset) == (ssize_t)size;
}

/*
 * A sector is a bucket of numbers: a cell holds a number + 1, little endian as this processor is. Numbers that follow one
 * another share a bucket (a block of numbers, so that a check reads in one go). A bucket that is full of others sends the block on to the next
 * place of its own sequence, so that a number never takes another one's cell, whatever numbers a client chooses.
 */
static unsigned cells(const struct disk *disk)
{
    return disk->sector / 8;
}

static uint64_t place(const struct disk *disk, uint64_t block, unsigned turn)
{
    /* The first place, turn 0, keeps blocks in order. No step is so wide that the last place could come round to an earlier one. */
    uint64_t step = 1 + ((block + 1) * UINT64_C(0x9e3779b97f4a7c15) >> 20) % (disk->buckets / TURNS - 1);
    return (block + turn * step) % disk->buckets;
}

/* Whether a cell of this bucket holds a number of ours. What was on the disk before can look like anything. */
static bool held(const struct disk *disk, uint64_t bucket, uint64_t cell)
{
    for (unsigned turn = 0; cell != 0 && turn < TURNS; turn++)
        if (place(disk, (cell - 1) / cells(disk), turn) == bucket)
            return true;
    return false;
}

static uint64_t offset_of(const struct disk *disk, uint64_t bucket)
{
    return RESERVED + bucket * disk->sector;
}

enum put { PUT, FULL, FAILED };

/* Into this bucket, if it holds the number already or has a cell for it. O_DIRECT and O_DSYNC: PUT says that it is on the disk. */
static enum put put(const struct disk *disk, uint64_t bucket, uint64_t n, uint64_t *into)
{
    unsigned at = cells(disk);
    if (!whole_read(disk->fd, into, disk->sector, offset_of(disk, bucket)))
        return FAILED;
    for (unsigned i = 0; i < cells(disk); i++) {
        if (into[i] == n + 1) {
            at = i;
            break;
        }
        if (at == cells(disk) && !held(disk, bucket, into[i]))
            at = i;
    }
    if (at == cells(disk))
        return FULL;
    into[at] = n + 1;
    return pwrite(disk->fd, into, disk->sector, (off_t)offset_of(disk, bucket)) == (ssize_t)disk->sector ? PUT : FAILED;
}

static bool record(uint64_t n, void *buffer)
{
    for (int i = 0; i < disk_count; i++) {
        struct disk *disk = &disks[i];
        enum put done = FULL;
        for (unsigned turn = 0; turn < TURNS && done == FULL; turn++) {
            uint64_t bucket = place(disk, n / cells(disk), turn);
            pthread_mutex_t *lock = &sector_locks[bucket % LOCKS];
            pthread_mutex_lock(lock);
            done = put(disk, bucket, n, buffer);
            pthread_mutex_unlock(lock);
        }
        if (done != PUT)
            return false; /* also a disk that is full: better no answer than one that takes another number's place */
    }
    return true;
}

/* How many cells of a bucket hold a number of low..high, of this block only unless `any`; and whether the bucket is full. */
static uint64_t count_in(const struct disk *disk, uint64_t bucket, const uint64_t *from, uint64_t block, bool any, uint64_t low, uint64_t high, bool *full)
{
    uint64_t count = 0;
    *full = true;
    for (unsigned i = 0; i < cells(disk); i++) {
        uint64_t n = from[i] - 1;
        if (!held(disk, bucket, from[i]))
            *full = false;
        else if (n >= low && n <= high && (any || n / cells(disk) == block))
            count++;
    }
    return count;
}

/* How many of the records low..high are on the disk. */
static bool count_on(const struct disk *disk, uint64_t low, uint64_t high, char *buffer, uint64_t *present)
{
    uint64_t first = low / cells(disk);
    bool any = high / cells(disk) - first >= disk->buckets; /* more blocks than the disk has places: what it holds, once */
    uint64_t left = any ? disk->buckets : high / cells(disk) - first + 1;
    *present = 0;
    for (uint64_t block = any ? 0 : first; left > 0;) {
        uint64_t bucket = place(disk, block, 0);
        uint64_t run = CHUNK / disk->sector;
        if (run > left)
            run = left;
        if (run > disk->buckets - bucket)
            run = disk->buckets - bucket;
        if (!whole_read(disk->fd, buffer, run * disk->sector, offset_of(disk, bucket)))
            return false;
        for (uint64_t i = 0; i < run; i++, block++) {
            bool full;
            *present += count_in(disk, bucket + i, (uint64_t *)(buffer + i * disk->sector), block, any, low, high, &full);
            for (unsigned turn = 1; turn < TURNS && full && !any; turn++) {
                uint64_t other = place(disk, block, turn);
                if (!whole_read(disk->fd, buffer + CHUNK, disk->sector, offset_of(disk, other)))
                    return false;
                *present += count_in(disk, other, (uint64_t *)(buffer + CHUNK), block, false, low, high, &full);
            }
        }
        left -= run;
    }
    return true;
}

static bool check(uint64_t low, uint64_t high, char *buffer, uint64_t *present)
{
    *present = 0;
    for (int i = 0; i < disk_count; i++) {
        uint64_t here;
        if (!count_on(&disks[i], low, high, buffer, &here))
            return false;
        if (i == 0 || here < *present)
            *present = here;
    }
    return disk_count > 0;
}

static void open_disks(void)
{
    static const char *const names[] = {"/dev/vda", "/dev/vdb", "/dev/sda", "/dev/sdb"};
    for (size_t i = 0; i < sizeof names / sizeof *names && disk_count < MAX_DISKS; i++) {
        int fd = open(names[i], O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
        if (fd < 0)
            continue;
        struct disk *disk = &disks[disk_count];
        uint64_t size = 0;
        int sector = 512;
        if (ioctl(fd, BLKGETSIZE64, &size) != 0 || ioctl(fd, BLKSSZGET, &sector) != 0 || size < 2 * RESERVED || sector > MAX_SECTOR) {
            say("guest: %s cannot be used\n", names[i]);
            close(fd);
            continue;
        }
        disk->fd = fd;
        disk->sector = (unsigned)sector;
        disk->buckets = (size - RESERVED) / (uint64_t)sector;
        disk_count++;
        say("guest: disk %s, room for %" PRIu64 " numbers\n", names[i], disk->buckets * cells(disk));
    }
}

/* --- memory load --------------------------------------------------------------------------------------------------- */

static pthread_mutex_t dirty_lock = PTHREAD_MUTEX_INITIALIZER;
static char *dirty_area;
static size_t dirty_size;
static atomic_uint dirty_round; /* a running loop ends when this is no longer its own */

static uint64_t dirty_once(size_t size)
{
    static atomic_uint stamp;
    unsigned value = atomic_fetch_add(&stamp, 1) + 1;
    for (size_t at = 0; at < size; at += 4096)
        memcpy(dirty_area + at, &value, sizeof value);
    return size / 4096;
}

static bool dirty_reserve(size_t size)
{
    if (size <= dirty_size)
        return true;
    free(dirty_area);
    dirty_area = malloc(size);
    dirty_size = dirty_area == NULL ? 0 : size;
    return dirty_area != NULL;
}

/* Half of the memory: nothing else here needs much, and PID 1 must not meet the OOM killer. */
static uint64_t dirty_limit_mib(void)
{
    struct sysinfo info;
    return sysinfo(&info) == 0 ? (uint64_t)info.totalram * info.mem_unit / 2 >> 20 : 0;
}

struct dirty_job {
    size_t size;
    unsigned seconds, round;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *dirty_loop(void *argument)
{
    struct dirty_job job = *(struct dirty_job *)argument;
    free(argument);
    double end = now() + job.seconds;
    for (bool mine = true; mine && now() < end; usleep(1000)) {
        pthread_mutex_lock(&dirty_lock);
        mine = atomic_load(&dirty_round) == job.round && job.size <= dirty_size;
        if (mine)
            dirty_once(job.size);
        pthread_mutex_unlock(&dirty_lock);
    }
    return NULL;
}

/* --- the line service ----------------------------------------------------------------------------------------------- */

typedef void *thread_main(void *);

static bool start_thread(thread_main *function, void *argument)
{
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int rc = pthread_create(&thread, &attributes, function, argument);
    pthread_attr_destroy(&attributes);
    return rc == 0;
}

static bool send_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        data += sent;
        size -= (size_t)sent;
    }
    return true;
}

/* A decimal number up to 2^63, and what follows it. */
static bool number(const char *text, uint64_t *value, const char **rest)
{
    if (!isdigit((unsigned char)*text))
        return false;
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 10);
    *rest = end;
    return errno == 0 && *value <= (UINT64_C(1) << 63);
}

static void dirty_command(const char *words, char *answer, size_t room)
{
    uint64_t mib, seconds = 0, limit = dirty_limit_mib();
    const char *rest;
    if (!number(words, &mib, &rest) || mib > limit) {
        snprintf(answer, room, "error dirty MIB [SECONDS], at most %" PRIu64 " MiB\n", limit);
        return;
    }
    if (*rest == ' ' && (!number(rest + 1, &seconds, &rest) || seconds > 86400)) {
        snprintf(answer, room, "error dirty MIB [SECONDS]\n");
        return;
    }
    if (*rest != '\0') {
        snprintf(answer, room, "error dirty MIB [SECONDS]\n");
        return;
    }
    unsigned round = atomic_fetch_add(&dirty_round, 1) + 1; /* ends a loop that runs */
    size_t size = (size_t)mib << 20;
    pthread_mutex_lock(&dirty_lock);
    bool good = dirty_reserve(size);
    uint64_t pages = good ? dirty_once(size) : 0;
    pthread_mutex_unlock(&dirty_lock);
    if (good && seconds > 0 && mib > 0) {
        struct dirty_job *job = malloc(sizeof *job);
        if (job != NULL) {
            *job = (struct dirty_job){size, (unsigned)seconds, round};
            good = start_thread(dirty_loop, job);
        }
    }
    if (good)
        snprintf(answer, room, "dirty %" PRIu64 " %" PRIu64 "\n", mib, pages);
    else
        snprintf(answer, room, "error no memory for that\n");
}

static void answer_line(char *line, char *answer, size_t room, char *buffer)
{
    uint64_t n, high, present = 0;
    const char *rest;
    size_t length = strlen(line);
    if (length > 0 && line[length - 1] == '\r')
        line[length - 1] = '\0';
    if (number(line, &n, &rest) && *rest == '\0') {
        uint64_t count = atomic_fetch_add(&counter, 1) + 1;
        if (disk_count > 0 && record(n, buffer))
            snprintf(answer, room, "%" PRIu64 " %" PRIu64 " %s\n", n, count, boot_id);
        else
            snprintf(answer, room, "error %" PRIu64 " was not written: %s\n", n, disk_count ? "input/output error" : "there is no disk");
    } else if (strncmp(line, "check ", 6) == 0) {
        if (!number(line + 6, &n, &rest) || *rest != ' ' || !number(rest + 1, &high, &rest) || *rest != '\0' || high < n)
            snprintf(answer, room, "error check A B, with A <= B\n");
        else if (check(n, high, buffer, &present))
            snprintf(answer, room, "check %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", n, high, present);
        else
            snprintf(answer, room, "error the disk cannot be read\n");
    } else if (strncmp(line, "dirty ", 6) == 0) {
        dirty_command(line + 6, answer, room);
    } else if (strcmp(line, "reboot") == 0 || strcmp(line, "poweroff") == 0) {
        say("guest: %s was asked for\n", line);
        reboot(*line == 'r' ? RB_AUTOBOOT : RB_POWER_OFF);
        snprintf(answer, room, "error %s: %s\n", line, strerror(errno));
    } else {
        snprintf(answer, room, "error a decimal number, check A B, dirty MIB [SECONDS], reboot or poweroff\n");
    }
}

static void *line_service(void *argument)
{
    int fd = (int)(intptr_t)argument;
    char line[256], answer[256];
    size_t have = 0;
    bool too_long = false;
    char *buffer = aligned(CHUNK + MAX_SECTOR); /* a run of buckets, and one more of another place */
    while (buffer != NULL) {
        ssize_t got = recv(fd, line + have, sizeof line - 1 - have, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        have += (size_t)got;
        char *begin = line, *end;
        bool good = true;
        while (good && (end = memchr(begin, '\n', have - (size_t)(begin - line))) != NULL) {
            *end = '\0';
            if (too_long)
                snprintf(answer, sizeof answer, "error the line is too long\n");
            else
                answer_line(begin, answer, sizeof answer, buffer);
            too_long = false;
            good = send_all(fd, answer, strlen(answer));
            begin = end + 1;
        }
        if (!good)
            break;
        have -= (size_t)(begin - line);
        memmove(line, begin, have);
        if (have == sizeof line - 1) {
            too_long = true;
            have = 0;
        }
    }
    free(buffer);
    close(fd);
    return NULL;
}

/* --- the HTTP service ----------------------------------------------------------------------------------------------- */

static char big_block[64 * 1024];

static void make_big_block(void)
{
    uint32_t x = 0x2545f491;
    for (size_t i = 0; i < sizeof big_block; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        big_block[i] = (char)x;
    }
}

static void *http_service(void *argument)
{
    int fd = (int)(intptr_t)argument;
    char request[4096], head[256], page[256];
    size_t have = 0;
    while (have < sizeof request - 1) {
        ssize_t got = recv(fd, request + have, sizeof request - 1 - have, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        have += (size_t)got;
        request[have] = '\0';
        if (strstr(request, "\r\n\r\n") != NULL)
            break;
    }
    request[have] = '\0';
    bool only_head = strncmp(request, "HEAD ", 5) == 0;
    char path[64] = "";
    const char *status = "200 OK";
    size_t size = 0;
    bool big = false;
    if (strstr(request, "\r\n\r\n") == NULL || sscanf(request, "%*[A-Z] %63s", path) != 1 || (!only_head && strncmp(request, "GET ", 4) != 0))
        status = "400 Bad Request";
    else if (strcmp(path, "/") == 0)
        size = (size_t)snprintf(page, sizeof page, "lockstep.colo test guest\nboot %s\ncounter %" PRIu64 "\n", boot_id, (uint64_t)atomic_load(&counter));
    else if (strcmp(path, "/big") == 0)
        big = true, size = BIG_SIZE;
    else
        status = "404 Not Found";
    int length = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
                          big ? "application/octet-stream" : "text/plain", size);
    bool good = send_all(fd, head, (size_t)length);
    if (good && !only_head && big)
        for (size_t at = 0; good && at < BIG_SIZE; at += sizeof big_block)
            good = send_all(fd, big_block, sizeof big_block);
    else if (good && !only_head)
        good = send_all(fd, page, size);
    shutdown(fd, SHUT_WR);
    while (recv(fd, request, sizeof request, 0) > 0)
        ; /* until the client has closed: no reset, which would cut the answer */
    close(fd);
    return NULL;
}

/* --- start ---------------------------------------------------------------------------------------------------------- */

/* The kernel draws the secrets of its TCP for the first connection of all, also for one that is refused. Drawn in lock step they would differ
 * on the two hosts until the next checkpoint (docs/docsite/faults.md); drawn at boot, as by other guests, they are the guest's. */
static void draw_tcp_secrets(void)
{
    struct sockaddr_in myself = {.sin_family = AF_INET, .sin_port = htons(LINE_PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&myself, sizeof myself) != 0 && errno != ECONNREFUSED)
        say("guest: no connection to itself: %s\n", strerror(errno));
    close(fd);
}

struct service {
    int port;
    thread_main *function;
};

static void *listener(void *argument)
{
    const struct service *service = argument;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)service->port)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 512) != 0) {
        say("guest: port %d: %s\n", service->port, strerror(errno));
        return NULL;
    }
    for (;;) {
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) {
            usleep(10000);
            continue;
        }
        int idle = 60, interval = 10, count = 6;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(client, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
        setsockopt(client, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
        setsockopt(client, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
        setsockopt(client, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
        if (!start_thread(service->function, (void *)(intptr_t)client))
            close(client);
    }
}

static int by_name(const struct dirent **left, const struct dirent **right)
{
    return strcmp((*left)->d_name, (*right)->d_name);
}

static void load_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, NULL, by_name);
    for (int i = 0; i < count; i++) {
        char path[512];
        if (names[i]->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) != 0)
            say("guest: %s: %s\n", path, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
}

/* NAME=VALUE of the kernel's command line. */
static bool option(const char *name, char *value, size_t room)
{
    char line[2048];
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (fd >= 0)
        close(fd);
    if (got < 0)
        return false;
    line[got] = '\0';
    char *state, *word = strtok_r(line, " \n", &state);
    for (; word != NULL; word = strtok_r(NULL, " \n", &state))
        if (strncmp(word, name, strlen(name)) == 0 && word[strlen(name)] == '=') {
            snprintf(value, room, "%s", word + strlen(name) + 1);
            return true;
        }
    return false;
}

struct nic {
    char name[IFNAMSIZ];
    char place[512]; /* of the device on the bus: the order of the definition, whatever the driver */
};

static int by_place(const void *left, const void *right)
{
    return strcmp(((const struct nic *)left)->place, ((const struct nic *)right)->place);
}

static void if_up(int fd, const char *name)
{
    struct ifreq request = {0};
    memcpy(request.ifr_name, name, IFNAMSIZ);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(fd, SIOCSIFFLAGS, &request) != 0)
        say("guest: %s up: %s\n", name, strerror(errno));
}

static void set_address(int fd, const char *name, const char *text)
{
    char address[64];
    snprintf(address, sizeof address, "%s", text);
    char *slash = strchr(address, '/');
    int bits = slash ? atoi(slash + 1) : 24;
    if (slash)
        *slash = '\0';
    struct ifreq request = {0};
    struct sockaddr_in *to = (struct sockaddr_in *)&request.ifr_addr;
    memcpy(request.ifr_name, name, IFNAMSIZ);
    to->sin_family = AF_INET;
    if (inet_pton(AF_INET, address, &to->sin_addr) != 1 || bits < 1 || bits > 32 || ioctl(fd, SIOCSIFADDR, &request) != 0) {
        say("guest: %s does not take the address %s\n", name, text);
        return;
    }
    to->sin_addr.s_addr = htonl(bits == 32 ? 0xffffffffu : ~(0xffffffffu >> bits));
    ioctl(fd, SIOCSIFNETMASK, &request);
    say("guest: %s %s\n", name, text);
}

static void start_network(void)
{
    struct nic nics[MAX_NICS] = {0};
    size_t count = 0;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    DIR *folder = opendir("/sys/class/net");
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL && count < MAX_NICS;) {
        char path[512], *place;
        snprintf(path, sizeof path, "/sys/class/net/%s/device", entry->d_name);
        if (entry->d_name[0] == '.' || strlen(entry->d_name) >= IFNAMSIZ || (place = realpath(path, NULL)) == NULL)
            continue;
        memcpy(nics[count].name, entry->d_name, strlen(entry->d_name));
        snprintf(nics[count].place, sizeof nics[count].place, "%s", place);
        free(place);
        count++;
    }
    if (folder != NULL)
        closedir(folder);
    qsort(nics, count, sizeof *nics, by_place);
    if_up(fd, "lo");
    for (size_t i = 0; i < count; i++) {
        static const char *const names[MAX_NICS] = {"lab.ip", "lab.ip1", "lab.ip2", "lab.ip3"};
        char address[64];
        if (!option(names[i], address, sizeof address))
            continue;
        set_address(fd, nics[i].name, address);
        if_up(fd, nics[i].name);
    }
    close(fd);
}

/* Waits for the power button (ACPI) and does what an operating system does then. */
static void *power_button(void *argument)
{
    (void)argument;
    struct pollfd buttons[8];
    nfds_t count = 0;
    for (; count < sizeof buttons / sizeof *buttons; count++) {
        char path[64];
        snprintf(path, sizeof path, "/dev/input/event%u", (unsigned)count);
        buttons[count] = (struct pollfd){.fd = open(path, O_RDONLY | O_CLOEXEC), .events = POLLIN};
        if (buttons[count].fd < 0)
            break;
    }
    if (count == 0)
        say("guest: there is no power button\n");
    while (count > 0 && poll(buttons, count, -1) > 0)
        for (nfds_t i = 0; i < count; i++) {
            struct input_event event;
            if (!(buttons[i].revents & POLLIN) || read(buttons[i].fd, &event, sizeof event) != (ssize_t)sizeof event)
                continue;
            if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) {
                say("guest: the power button was pressed\n");
                sync();
                reboot(RB_POWER_OFF);
            }
        }
    return NULL;
}

static void choose_boot_id(void)
{
    unsigned char noise[16] = {0};
    struct timespec wall, ticks;
    if (getrandom(noise, sizeof noise, GRND_NONBLOCK) != (ssize_t)sizeof noise)
        if (getrandom(noise, sizeof noise, GRND_INSECURE) < 0)
            memset(noise, 0, sizeof noise);
    /* The clock as well: early after boot the pool may know little. */
    clock_gettime(CLOCK_REALTIME, &wall);
    clock_gettime(CLOCK_MONOTONIC, &ticks);
    uint64_t mix[2] = {(uint64_t)wall.tv_sec * 1000000007u ^ (uint64_t)wall.tv_nsec, (uint64_t)ticks.tv_nsec ^ __builtin_ia32_rdtsc()};
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] ^= ((unsigned char *)mix)[i];
    for (size_t i = 0; i < sizeof noise; i++)
        snprintf(boot_id + 2 * i, 3, "%02x", noise[i]);
}

int main(void)
{
    static const struct service line = {LINE_PORT, line_service}, http = {HTTP_PORT, http_service};
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    for (size_t i = 0; i < LOCKS; i++)
        pthread_mutex_init(&sector_locks[i], NULL);
    make_big_block();
    load_modules();
    choose_boot_id();
    open_disks();
    start_network();
    draw_tcp_secrets();
    if (!start_thread(listener, (void *)&line) || !start_thread(listener, (void *)&http) || !start_thread(power_button, NULL))
        say("guest: no thread can be started\n");
    say("<0>guest: this is no emergency of the host\n"); /* what a journal would make one of, if it believed the console */
    say("guest: ready after %.2f s, boot %s\n", now(), boot_id);
    for (;;)
        if (waitpid(-1, NULL, 0) < 0)
            pause();
}
