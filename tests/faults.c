// Lets the n-th call of a program on the files of one directory fail. Preloaded with LD_PRELOAD.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static char directory[PATH_MAX]; // the calls on what is in it count
static char kind[32];            // only calls of this name; "" for all
static char trace[1 << 20];      // "name path" a line; "!" before those that failed
static long fail_at;             // the number of the call; 0 for none, -1 for all
static int fail_with;
static long seen;

void faults_arm(const char *where, const char *calls, long number, int error) {
    snprintf(directory, sizeof directory, "%s", where);
    snprintf(kind, sizeof kind, "%s", calls);
    fail_at = number, fail_with = error, seen = 0, trace[0] = 0;
}
void faults_disarm(void) { directory[0] = 0; }
long faults_seen(void) { return seen; }
const char *faults_trace(void) { return trace; }

static int fails(const char *call, const char *path) {
    if (!directory[0] || !path || strncmp(path, directory, strlen(directory)))
        return 0;
    if (kind[0] && strcmp(kind, call))
        return 0;
    int failing = ++seen == fail_at || fail_at == -1;
    size_t used = strlen(trace);
    snprintf(trace + used, sizeof trace - used, "%s%s %s\n", failing ? "!" : "", call, path);
    if (failing)
        errno = fail_with;
    return failing;
}

static int fails_on(const char *call, int descriptor) {
    char name[64], path[PATH_MAX];
    if (!directory[0])
        return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails(call, path);
}

#define MODE(flags)                                                                                \
    mode_t mode = 0;                                                                               \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                         \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }
#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...) {                                                   \
        MODE(flags)                                                                                \
        return fails("open", path) ? -1 : REAL(name)(path, flags, mode);                           \
    }
#define OPENAT(name)                                                                               \
    int name(int at, const char *path, int flags, ...) {                                           \
        MODE(flags)                                                                                \
        return fails("open", path) ? -1 : REAL(name)(at, path, flags, mode);                       \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

DIR *opendir(const char *path) { return fails("opendir", path) ? NULL : REAL(opendir)(path); }
ssize_t read(int fd, void *data, size_t size) {
    return fails_on("read", fd) ? -1 : REAL(read)(fd, data, size);
}
ssize_t write(int fd, const void *data, size_t size) {
    return fails_on("write", fd) ? -1 : REAL(write)(fd, data, size);
}
int fsync(int fd) { return fails_on("fsync", fd) ? -1 : REAL(fsync)(fd); }
int flock(int fd, int how) { return fails_on("flock", fd) ? -1 : REAL(flock)(fd, how); }
int posix_fadvise64(int fd, off64_t start, off64_t size, int advice) {
    return fails_on("fadvise", fd) ? fail_with : REAL(posix_fadvise64)(fd, start, size, advice);
}
int posix_fadvise(int fd, off_t start, off_t size, int advice) {
    return fails_on("fadvise", fd) ? fail_with : REAL(posix_fadvise)(fd, start, size, advice);
}
int close(int fd) { // the descriptor is gone, also when there is an error
    int failing = fails_on("close", fd);
    int result = REAL(close)(fd);
    if (failing)
        errno = fail_with;
    return failing ? -1 : result;
}
int link(const char *from, const char *to) {
    return fails("link", to) ? -1 : REAL(link)(from, to);
}
int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    return fails("link", to) ? -1 : REAL(linkat)(from_at, from, to_at, to, flags);
}
int symlink(const char *from, const char *to) {
    return fails("symlink", to) ? -1 : REAL(symlink)(from, to);
}
int rename(const char *from, const char *to) {
    return fails("rename", to) ? -1 : REAL(rename)(from, to);
}
int renameat(int from_at, const char *from, int to_at, const char *to) {
    return fails("rename", to) ? -1 : REAL(renameat)(from_at, from, to_at, to);
}
int unlink(const char *path) { return fails("unlink", path) ? -1 : REAL(unlink)(path); }
int unlinkat(int at, const char *path, int flags) {
    return fails("unlink", path) ? -1 : REAL(unlinkat)(at, path, flags);
}
int mkdir(const char *path, mode_t mode) {
    return fails("mkdir", path) ? -1 : REAL(mkdir)(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
    return fails("mkdir", path) ? -1 : REAL(mkdirat)(at, path, mode);
}
