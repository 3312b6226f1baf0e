/* Preloaded into the processes that write checkpoints: counts the calls that change what is beneath
   one folder, and at the N-th of them kills the process, fails the call, or holds it.

   cc -shared -fPIC -O1 steps.c -o steps.so -ldl; steps.py has the other end of struct Steps, whose
   file $CKPTD_STEPS names. What does not go through libc is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { kCount = 0, kKill = 1, kFail = 2, kHold = 3 };

struct Steps {
  char folder[4096];
  volatile int32_t left;   /* calls until the one that counts; counted down */
  volatile int32_t action; /* what happens there */
  volatile int32_t error;  /* errno, for kFail */
  volatile int32_t held;   /* 1 while a call is held; set to 0 to let it go */
};

static struct Steps* steps;
static __thread int inside; /* what this file calls itself does not count */

__attribute__((constructor)) static void attach(void) {
  const char* path = getenv("CKPTD_STEPS");
  int fd;
  if (path == NULL) return;
  fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void* found = mmap(NULL, sizeof(struct Steps), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (found != MAP_FAILED) steps = found;
}

static int beneath(const char* path) {
  const size_t length = strlen(steps->folder);
  return length > 0 && strncmp(path, steps->folder, length) == 0 &&
         (path[length] == 0 || path[length] == '/');
}

/* 0 where the call may go on; else it fails with errno. */
static int step(void) {
  const struct timespec pause = {0, 1000000};
  if (__atomic_sub_fetch(&steps->left, 1, __ATOMIC_SEQ_CST) != 0) return 0;
  if (steps->action == kKill) kill(getpid(), SIGKILL);
  if (steps->action == kFail) {
    errno = steps->error;
    return -1;
  }
  if (steps->action == kHold) {
    steps->held = 1;
    while (steps->held) nanosleep(&pause, NULL);
  }
  return 0;
}

static int step_fd(int fd) {
  char link[64], path[PATH_MAX];
  ssize_t length;
  int result = 0, error = errno;
  if (steps == NULL || inside || fd < 0) return 0;
  inside = 1;
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  length = readlink(link, path, sizeof(path) - 1);
  if (length > 0) {
    path[length] = 0;
    if (beneath(path)) {
      errno = error;
      result = step();
      error = errno;
    }
  }
  inside = 0;
  errno = error;
  return result;
}

static int step_at(int dir, const char* path) {
  int result = 0, error = errno;
  if (steps == NULL || inside || path == NULL) return 0;
  if (path[0] != '/') return dir == AT_FDCWD ? 0 : step_fd(dir);
  inside = 1;
  if (beneath(path)) {
    errno = error;
    result = step();
    error = errno;
  }
  inside = 0;
  errno = error;
  return result;
}

#define NEXT(name)               \
  static __typeof__(&name) next; \
  if (next == NULL) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPENER(name, before, arguments, dir, path, call)              \
  int name before {                                                   \
    mode_t mode = 0;                                                  \
    NEXT(name);                                                       \
    if ((flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE) { \
      va_list rest;                                                   \
      va_start(rest, flags);                                          \
      mode = va_arg(rest, mode_t);                                    \
      va_end(rest);                                                   \
      if (step_at(dir, path) != 0) return -1;                         \
    } else if ((flags & O_TRUNC) != 0 && step_at(dir, path) != 0) {   \
      return -1;                                                      \
    }                                                                 \
    return next call;                                                 \
  }
OPENER(open, (const char* path, int flags, ...), , AT_FDCWD, path, (path, flags, mode))
OPENER(open64, (const char* path, int flags, ...), , AT_FDCWD, path, (path, flags, mode))
OPENER(openat, (int dir, const char* path, int flags, ...), , dir, path, (dir, path, flags, mode))
OPENER(openat64, (int dir, const char* path, int flags, ...), , dir, path, (dir, path, flags, mode))

#define WRAP(type, name, parameters, allowed, call) \
  type name parameters {                            \
    NEXT(name);                                     \
    return (allowed) != 0 ? -1 : next call;         \
  }
WRAP(ssize_t, write, (int fd, const void* data, size_t n), step_fd(fd), (fd, data, n))
WRAP(ssize_t, pwrite, (int fd, const void* data, size_t n, off_t at), step_fd(fd),
     (fd, data, n, at))
WRAP(ssize_t, pwrite64, (int fd, const void* data, size_t n, off64_t at), step_fd(fd),
     (fd, data, n, at))
WRAP(ssize_t, writev, (int fd, const struct iovec* v, int n), step_fd(fd), (fd, v, n))
WRAP(ssize_t, pwritev, (int fd, const struct iovec* v, int n, off_t at), step_fd(fd),
     (fd, v, n, at))
WRAP(ssize_t, pwritev64, (int fd, const struct iovec* v, int n, off64_t at), step_fd(fd),
     (fd, v, n, at))
WRAP(int, ftruncate, (int fd, off_t n), step_fd(fd), (fd, n))
WRAP(int, ftruncate64, (int fd, off64_t n), step_fd(fd), (fd, n))
WRAP(int, fsync, (int fd), step_fd(fd), (fd))
WRAP(int, fdatasync, (int fd), step_fd(fd), (fd))
WRAP(int, syncfs, (int fd), step_fd(fd), (fd))
WRAP(int, rename, (const char* from, const char* to), step_at(AT_FDCWD, to), (from, to))
WRAP(int, renameat, (int from_dir, const char* from, int to_dir, const char* to),
     step_at(to_dir, to), (from_dir, from, to_dir, to))
WRAP(int, renameat2,
     (int from_dir, const char* from, int to_dir, const char* to, unsigned int flags),
     step_at(to_dir, to), (from_dir, from, to_dir, to, flags))
WRAP(int, link, (const char* from, const char* to), step_at(AT_FDCWD, to), (from, to))
WRAP(int, linkat, (int from_dir, const char* from, int to_dir, const char* to, int flags),
     step_at(to_dir, to), (from_dir, from, to_dir, to, flags))
WRAP(int, symlink, (const char* target, const char* path), step_at(AT_FDCWD, path), (target, path))
WRAP(int, symlinkat, (const char* target, int dir, const char* path), step_at(dir, path),
     (target, dir, path))
WRAP(int, unlink, (const char* path), step_at(AT_FDCWD, path), (path))
WRAP(int, unlinkat, (int dir, const char* path, int flags), step_at(dir, path), (dir, path, flags))
WRAP(int, remove, (const char* path), step_at(AT_FDCWD, path), (path))
WRAP(int, rmdir, (const char* path), step_at(AT_FDCWD, path), (path))
WRAP(int, mkdir, (const char* path, mode_t mode), step_at(AT_FDCWD, path), (path, mode))
WRAP(int, mkdirat, (int dir, const char* path, mode_t mode), step_at(dir, path), (dir, path, mode))

/* stdio writes past all of the above. */
#define STREAM_OPENER(name)                                                        \
  FILE* name(const char* path, const char* mode) {                                 \
    NEXT(name);                                                                    \
    if (strpbrk(mode, "wa+") != NULL && step_at(AT_FDCWD, path) != 0) return NULL; \
    return next(path, mode);                                                       \
  }
STREAM_OPENER(fopen)
STREAM_OPENER(fopen64)

size_t fwrite(const void* data, size_t size, size_t n, FILE* file) {
  NEXT(fwrite);
  return step_fd(fileno(file)) != 0 ? 0 : next(data, size, n, file);
}
int fflush(FILE* file) {
  NEXT(fflush);
  return file != NULL && step_fd(fileno(file)) != 0 ? EOF : next(file);
}
int fclose(FILE* file) {
  NEXT(fclose);
  if (step_fd(fileno(file)) == 0) return next(file);
  next(file);
  errno = steps->error;
  return EOF;
}
