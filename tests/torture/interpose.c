/* Counts, records and disturbs the file operations of one process in one folder.
 *
 * Loaded with LD_PRELOAD. A process reads the file that the variable PSSSR_OPERATIONS names when it
 * makes its first call, and so does a fork. Lines of that file:
 *
 *   1. the folder, without links in its path; empty: nothing is counted;
 *   2. the record, a file elsewhere, to which every operation is appended;
 *   3. which operation is disturbed, from 1; 0: none;
 *   4. how: "kill" just before it; "half": kill after half of the bytes of a write; "short": write
 *      half of the bytes and say so; "error": fail with an error that leaves everything as it was;
 *   5. the number of the error;
 *   6. kinds of operations, each between commas, that fail with that error from then on.
 *
 * A record is a line of fields, with tabs between them, and the bytes that were written:
 * number, kind, result (negative: the error), inode, path, second path, offset, bytes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The function of the C library, whatever its name is an alias of. */
#define NEXT(type, name)                                  \
  static type next;                                       \
  if (!next) next = (type)dlsym(RTLD_NEXT, name)

typedef struct {
  const char *kind;
  ino_t inode;
  char path[PATH_MAX + 64], second[PATH_MAX + 64];
  off_t offset;
} Operation;

enum { GO_ON, FAIL, HALF, SHORT };

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static pid_t prepared_for;
static char root[PATH_MAX], record[PATH_MAX], how[16], failing[256];
static long chosen, counted;
static int number_of_error;

static long system_call(long number, long a, long b, long c, long d, long e, long f) {
  typedef long (*Call)(long, ...);
  NEXT(Call, "syscall");
  return next(number, a, b, c, d, e, f);
}

static long raw(long number, long a, long b, long c, long d) {
  return system_call(number, a, b, c, d, 0, 0);
}

static void take_line(char **rest, char *into, size_t size) {
  char *line = strsep(rest, "\n");
  snprintf(into, size, "%s", line ? line : "");
}

static void forget(void) { prepared_for = 0; }

/* Not run in what vfork makes, which shares our memory and must leave it as it is. */
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, forget); }

/* Whether operations of this process count. */
static int is_watched(void) {
  static char text[3 * PATH_MAX];
  if (prepared_for) return root[0] && prepared_for == getpid();
  prepared_for = getpid();
  root[0] = 0;
  counted = 0;
  const char *name = getenv("PSSSR_OPERATIONS");
  long file = name ? raw(SYS_openat, AT_FDCWD, (long)name, O_RDONLY | O_CLOEXEC, 0) : -1;
  if (file < 0) return 0;
  long size = raw(SYS_read, file, (long)text, sizeof text - 1, 0);
  raw(SYS_close, file, 0, 0, 0);
  text[size < 0 ? 0 : size] = 0;
  char *rest = text, numeral[32];
  take_line(&rest, root, sizeof root);
  take_line(&rest, record, sizeof record);
  take_line(&rest, numeral, sizeof numeral);
  chosen = atol(numeral);
  take_line(&rest, how, sizeof how);
  take_line(&rest, numeral, sizeof numeral);
  number_of_error = atoi(numeral);
  take_line(&rest, failing, sizeof failing);
  return root[0] != 0;
}

static int is_inside(const char *path) {
  size_t length = strlen(root);
  return strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == 0);
}

/* Where an open file lies, as the kernel says; 0 if not in the folder. */
static int place_of(int file, char *into) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, into, PATH_MAX);
  into[length < 0 ? 0 : length] = 0;
  return length > 0 && is_inside(into);
}

/* The path of a call, absolute and without links but for the last part; 0 if not in the folder. */
static int resolve(int folder, const char *path, char *into) {
  static __thread char whole[2 * PATH_MAX], parent[PATH_MAX];
  char start[PATH_MAX + 64] = "";
  if (!path || !*path) return folder >= 0 && place_of(folder, into);
  const char *number = !strncmp(path, "/proc/self/fd/", 14) ? path + 14
                       : !strncmp(path, "/dev/fd/", 8)      ? path + 8 : "/";
  if (!strchr(number, '/')) return place_of(atoi(number), into);
  if (*path != '/') {
    if (folder == AT_FDCWD) {
      if (!getcwd(start, sizeof start)) return 0;
    } else {
      place_of(folder, start);
    }
  }
  snprintf(whole, sizeof whole, "%s/%s", start, path);
  for (size_t end = strlen(whole); end > 1 && whole[end - 1] == '/';) whole[--end] = 0;
  char *last = strrchr(whole, '/');
  *last++ = 0;
  if (!realpath(*whole ? whole : "/", parent)) return 0;
  snprintf(into, PATH_MAX + 64, "%s/%s", parent, last);
  return is_inside(into);
}

static ino_t inode_at(const char *path) {
  struct stat found;
  return lstat(path, &found) ? 0 : found.st_ino;
}

static ino_t inode_of(int file) {
  struct stat found;
  return fstat(file, &found) ? 0 : found.st_ino;
}

static void die(void) {
  raw(SYS_kill, getpid(), SIGKILL, 0, 0);
  for (;;) pause();
}

/* Count an operation, hold back all others, and say what becomes of it. */
static int begin(const char *kind) {
  pthread_mutex_lock(&one_at_a_time);
  counted++;
  if (!chosen || counted < chosen) return GO_ON;
  char between[64];
  snprintf(between, sizeof between, ",%s,", kind);
  errno = number_of_error;
  if (counted > chosen) return strstr(failing, between) ? FAIL : GO_ON;
  int writes = !strcmp(kind, "write");
  if (!strcmp(how, "kill") || (!strcmp(how, "half") && !writes)) die();
  if (!strcmp(how, "error")) return FAIL;
  return !strcmp(how, "half") ? HALF : writes ? SHORT : GO_ON;
}

/* Record an operation and let others go on; gives the result back. */
static long end(Operation *operation, long result, const void *bytes) {
  int error = errno;
  static char line[3 * PATH_MAX];
  long size = bytes && result > 0 ? result : 0;
  int length = snprintf(line, sizeof line, "%ld\t%s\t%ld\t%lu\t%s\t%s\t%ld\t%ld\n", counted,
                        operation->kind, result < 0 ? -(long)error : result,
                        (unsigned long)operation->inode, operation->path, operation->second,
                        (long)operation->offset, size);
  struct iovec parts[2] = {{line, length}, {(void *)bytes, size}};
  long file = raw(SYS_openat, AT_FDCWD, (long)record, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC,
                  0666);
  raw(SYS_writev, file, (long)parts, 2, 0);
  raw(SYS_close, file, 0, 0, 0);
  pthread_mutex_unlock(&one_at_a_time);
  errno = error;
  return result;
}

/* Opening for writing: "create", "truncate" or "open"; O_TMPFILE: "nameless". */
static int do_open(int folder, const char *path, int flags, mode_t mode) {
  Operation operation = {.kind = "open"};
  int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
  if (!is_watched() || !writes || !resolve(folder, path, operation.path))
    return (int)raw(SYS_openat, folder, (long)path, flags, mode);
  int exists = inode_at(operation.path) != 0;
  if ((flags & O_TMPFILE) == O_TMPFILE) operation.kind = "nameless";
  else if (flags & O_CREAT && !exists) operation.kind = "create";
  else if (flags & O_TRUNC) operation.kind = "truncate";
  int decision = begin(operation.kind);
  long result = decision == FAIL ? -1 : raw(SYS_openat, folder, (long)path, flags, mode);
  if (result >= 0) operation.inode = inode_of((int)result);
  return (int)end(&operation, result, NULL);
}

#define MODE_OF(flags)                                    \
  mode_t mode = 0;                                        \
  if ((flags) & (O_CREAT | O_TMPFILE)) {                  \
    va_list rest;                                         \
    va_start(rest, flags);                                \
    mode = va_arg(rest, mode_t);                          \
    va_end(rest);                                         \
  }
#define OPEN(name)                                        \
  int name(const char *path, int flags, ...) {            \
    MODE_OF(flags)                                        \
    return do_open(AT_FDCWD, path, flags, mode);          \
  }
#define OPEN_AT(name)                                     \
  int name(int folder, const char *path, int flags, ...) { \
    MODE_OF(flags)                                        \
    return do_open(folder, path, flags, mode);            \
  }
OPEN(open)
OPEN(open64)
OPEN(__open_2)
OPEN(__open64_2)
OPEN_AT(openat)
OPEN_AT(openat64)
OPEN_AT(__openat_2)
OPEN_AT(__openat64_2)

int creat(const char *path, mode_t mode) {
  return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static ssize_t do_write(int file, const void *bytes, size_t size, off_t offset) {
  Operation operation = {.kind = "write"};
  int at = offset >= 0;
  if (!is_watched() || !place_of(file, operation.path))
    return at ? raw(SYS_pwrite64, file, (long)bytes, size, offset)
              : raw(SYS_write, file, (long)bytes, size, 0);
  int decision = begin(operation.kind), error = errno;
  struct stat before;
  fstat(file, &before);
  operation.inode = before.st_ino;
  int appends = fcntl(file, F_GETFL) & O_APPEND;
  operation.offset = appends ? before.st_size : at ? offset : lseek(file, 0, SEEK_CUR);
  errno = error;
  if (decision == FAIL) return end(&operation, -1, NULL);
  size_t taken = decision == GO_ON ? size : decision == SHORT ? (size + 1) / 2 : size / 2;
  long result = at ? raw(SYS_pwrite64, file, (long)bytes, taken, offset)
                   : raw(SYS_write, file, (long)bytes, taken, 0);
  if (decision == HALF) die();
  return end(&operation, result, bytes);
}

ssize_t write(int file, const void *bytes, size_t size) { return do_write(file, bytes, size, -1); }
ssize_t pwrite(int file, const void *bytes, size_t size, off_t offset) {
  return do_write(file, bytes, size, offset);
}
ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t offset) {
  return do_write(file, bytes, size, offset);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
  char path[PATH_MAX + 64];
  if (!is_watched() || !place_of(file, path)) return raw(SYS_writev, file, (long)parts, count, 0);
  size_t size = 0;
  for (int part = 0; part < count; part++) size += parts[part].iov_len;
  char *bytes = malloc(size ? size : 1), *to = bytes;
  for (int part = 0; part < count; to += parts[part++].iov_len)
    memcpy(to, parts[part].iov_base, parts[part].iov_len);
  ssize_t result = do_write(file, bytes, size, -1);
  int error = errno;
  free(bytes);
  errno = error;
  return result;
}

/* Operations on an open file: nothing but a number beside it. */
static long on_file(const char *kind, long call, int file, long value, int is_ours) {
  Operation operation = {.kind = kind};
  if (!is_ours || !is_watched() || !place_of(file, operation.path))
    return raw(call, file, value, 0, 0);
  struct stat found;
  fstat(file, &found);
  if (S_ISDIR(found.st_mode) && !strcmp(kind, "sync")) operation.kind = "sync-folder";
  operation.inode = found.st_ino;
  operation.offset = value;
  int decision = begin(operation.kind), error = errno;
  long result = -1;
  if (decision != FAIL || call == SYS_close) result = raw(call, file, value, 0, 0);
  if (decision == FAIL) result = -1, errno = error;
  return end(&operation, result, NULL);
}

int fsync(int file) { return (int)on_file("sync", SYS_fsync, file, 0, 1); }
int fdatasync(int file) { return (int)on_file("sync", SYS_fdatasync, file, 0, 1); }
int ftruncate(int file, off_t size) {
  return (int)on_file("resize", SYS_ftruncate, file, size, 1);
}
int ftruncate64(int file, off64_t size) { return ftruncate(file, size); }
int fchmod(int file, mode_t mode) { return (int)on_file("mode", SYS_fchmod, file, mode, 1); }
int close(int file) {
  int flags = is_watched() ? fcntl(file, F_GETFL) : -1;
  int written = flags >= 0 && !(flags & O_PATH) && (flags & O_ACCMODE) != O_RDONLY;
  return (int)on_file("close", SYS_close, file, 0, written);
}

/* Operations on one name. */
static long on_name(const char *kind, int folder, const char *path, long call, long value) {
  Operation operation = {.kind = kind};
  if (!is_watched() || !resolve(folder, path, operation.path))
    return raw(call, folder, (long)path, value, 0);
  operation.inode = inode_at(operation.path);
  operation.offset = value;
  int decision = begin(kind);
  long result = decision == FAIL ? -1 : raw(call, folder, (long)path, value, 0);
  if (!result && !strcmp(kind, "mkdir")) operation.inode = inode_at(operation.path);
  return end(&operation, result, NULL);
}

int unlinkat(int folder, const char *path, int flags) {
  const char *kind = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
  return (int)on_name(kind, folder, path, SYS_unlinkat, flags);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdirat(int folder, const char *path, mode_t mode) {
  return (int)on_name("mkdir", folder, path, SYS_mkdirat, mode);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
int chmod(const char *path, mode_t mode) {
  return (int)on_name("mode", AT_FDCWD, path, SYS_fchmodat, mode);
}
static int do_times(int folder, const char *path, const struct timespec *times, int flags) {
  Operation operation = {.kind = "times"};
  if (!is_watched() || !resolve(folder, path, operation.path))
    return (int)raw(SYS_utimensat, folder, (long)path, (long)times, flags);
  int fails = begin(operation.kind) == FAIL;
  long result = fails ? -1 : raw(SYS_utimensat, folder, (long)path, (long)times, flags);
  return (int)end(&operation, result, NULL);
}
int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
  return do_times(folder, path, times, flags);
}
int futimens(int file, const struct timespec times[2]) { return do_times(file, NULL, times, 0); }

/* Operations on two names. */
static long on_two(const char *kind, long call, int folder, const char *path, int second_folder,
                   const char *second, long flags) {
  Operation operation = {.kind = kind, .offset = flags};
  int ours = is_watched() && resolve(second_folder, second, operation.second);
  ours |= is_watched() && resolve(folder, path, operation.path);
  if (!ours) return system_call(call, folder, (long)path, second_folder, (long)second, flags, 0);
  struct stat found;
  int by_file = flags & AT_EMPTY_PATH && !*path;
  int follow = call == SYS_linkat && flags & AT_SYMLINK_FOLLOW ? 0 : AT_SYMLINK_NOFOLLOW;
  int lost = by_file ? fstat(folder, &found) : fstatat(folder, path, &found, follow);
  operation.inode = lost ? 0 : found.st_ino;
  long result = begin(kind) == FAIL ? -1
                                    : system_call(call, folder, (long)path, second_folder,
                                                  (long)second, flags, 0);
  return end(&operation, result, NULL);
}

int renameat2(int folder, const char *path, int to, const char *second, unsigned flags) {
  const char *kind = flags ? "publish" : "rename"; /* with flags: not all file systems can */
  return (int)on_two(kind, SYS_renameat2, folder, path, to, second, flags);
}
int renameat(int folder, const char *path, int to, const char *second) {
  return renameat2(folder, path, to, second, 0);
}
int rename(const char *path, const char *second) {
  return renameat2(AT_FDCWD, path, AT_FDCWD, second, 0);
}
int linkat(int folder, const char *path, int to, const char *second, int flags) {
  return (int)on_two("link", SYS_linkat, folder, path, to, second, flags);
}
int link(const char *path, const char *second) {
  return linkat(AT_FDCWD, path, AT_FDCWD, second, 0);
}

long syscall(long number, ...) {
  va_list rest;
  long arguments[6];
  va_start(rest, number);
  for (int index = 0; index < 6; index++) arguments[index] = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_renameat2)
    return renameat2((int)arguments[0], (const char *)arguments[1], (int)arguments[2],
                     (const char *)arguments[3], (unsigned)arguments[4]);
  return system_call(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                     arguments[5]);
}
