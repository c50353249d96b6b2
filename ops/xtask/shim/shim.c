/* Loaded into a node by LD_PRELOAD: three things that a machine can do to a process and that cannot be had otherwise without
 * rights. It says what the wall clock shows, how long a sync takes, and whether the disk has room. The process is as it is
 * otherwise; what is wished for lies in a small file that is mapped, and may change at any time.
 *
 * Linux with 64-bit longs. Calls go to the kernel by `syscall`, so that nothing has to be looked up at start.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "offsets and times are those of 64-bit systems");

/* As `shim.rs` writes it. */
struct wishes {
    int64_t clock_ms; /* added to the wall clock */
    int64_t sync_us;  /* a sync takes so much longer */
    int64_t is_full;  /* writes at a position, and growth of files, fail for want of room */
};

static volatile const struct wishes *wishes;

__attribute__((constructor)) static void find_wishes(void) {
    const char *path = getenv("FAULT_SHIM");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(struct wishes), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) wishes = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int status = (int)syscall(SYS_clock_gettime, clock, at);
    if (status == 0 && wishes && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ms = wishes->clock_ms;
        at->tv_sec += ms / 1000;
        at->tv_nsec += (ms % 1000) * 1000000;
        if (at->tv_nsec >= 1000000000) at->tv_sec += 1, at->tv_nsec -= 1000000000;
        if (at->tv_nsec < 0) at->tv_sec -= 1, at->tv_nsec += 1000000000;
    }
    return status;
}

static void dawdle(void) {
    int64_t us = wishes ? wishes->sync_us : 0;
    struct timespec left = {us / 1000000, (us % 1000000) * 1000};
    while (us > 0 && nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

int fsync(int fd) {
    dawdle();
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    dawdle();
    return (int)syscall(SYS_fdatasync, fd);
}

static int is_full(void) {
    if (!wishes || !wishes->is_full) return 0;
    errno = ENOSPC;
    return 1;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    return is_full() ? -1 : (ssize_t)syscall(SYS_pwrite64, fd, bytes, length, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return pwrite64(fd, bytes, length, at); }

int ftruncate64(int fd, off64_t length) { return is_full() ? -1 : (int)syscall(SYS_ftruncate, fd, length); }

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }
