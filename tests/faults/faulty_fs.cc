// A file system that breaks when it is told to: all is passed on to a folder, through FUSE.
//
//   faulty_fs FOLDER MOUNTPOINT
//
// Needs root. Says "ready" when it is mounted; then it reads commands, one a line, and answers each
// with a line. When its input ends it is gone, and what hangs in it fails. CALL is a field of
// fuse_operations; no call is cached by the kernel.
//
//   hang                         all calls wait; a process that is killed need not wait for them,
//                                as with NFS
//   hang-hard                    the same, but such a process does not end before its calls do, as
//                                with a FUSE file system that knows no interrupts
//   release                      all go on
//   waiting                      answers how many calls wait
//   fail CALL ERRNO SKIP COUNT   after SKIP calls the next COUNT fail
//   shorten BYTES COUNT          the next COUNT writes take BYTES at most
//   direct on|off                whether files may be opened with O_DIRECT
//   calls CALL                   answers how many there were so far
//   reset                        nothing fails any more

#define FUSE_USE_VERSION 312

#include <dirent.h>
#include <fcntl.h>
#include <fuse.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace {

// Calls wait in threads of their own.
constexpr int kMaxThreads = 200;

// What waits on it goes on when it is closed; it lives as long as somebody waits.
class Gate {
 public:
  explicit Gate(bool interruptible) : interruptible_(interruptible) {
    if (pipe2(fds_, O_CLOEXEC) != 0) std::abort();
  }
  ~Gate() { close(fds_[0]); }
  void Open() { close(fds_[1]); }
  // 0, or -EINTR where the caller was killed. The library sends the signal until this has returned.
  int Wait() const {
    pollfd released = {fds_[0], 0, 0};
    while (poll(&released, 1, -1) != 1) {
      if (interruptible_ && fuse_interrupted() != 0) return -EINTR;
    }
    return 0;
  }

 private:
  const bool interruptible_;
  int fds_[2];
};

class Faults {
 public:
  // What every call passes first: 0, or the -errno that it is to fail with.
  int Enter(const std::string& call) {
    std::shared_ptr<Gate> gate;
    {
      absl::MutexLock lock(&mu_);
      ++calls_[call];
      gate = gate_;
      if (gate != nullptr) ++waiting_;
    }
    const int interrupted = gate == nullptr ? 0 : gate->Wait();
    absl::MutexLock lock(&mu_);
    if (gate != nullptr) --waiting_;
    if (interrupted != 0) return interrupted;
    auto it = failures_.find(call);
    if (it == failures_.end()) return 0;
    Failure& failure = it->second;
    if (failure.skip > 0) {
      --failure.skip;
      return 0;
    }
    if (failure.count == 0) return 0;
    --failure.count;
    return -failure.error;
  }

  // How many bytes of a write of `size` are to be taken.
  size_t Shorten(size_t size) {
    absl::MutexLock lock(&mu_);
    if (short_writes_ == 0) return size;
    --short_writes_;
    return std::min(size, short_bytes_);
  }

  bool direct() const {
    absl::MutexLock lock(&mu_);
    return direct_;
  }

  // Does as a line says; returns the answer.
  std::string Command(const std::string& line) {
    std::istringstream in(line);
    std::string verb;
    std::string what;
    in >> verb;
    absl::MutexLock lock(&mu_);
    if (verb == "hang" || verb == "hang-hard") {
      Release();
      gate_ = std::make_shared<Gate>(/*interruptible=*/verb == "hang");
    } else if (verb == "release") {
      Release();
    } else if (verb == "waiting") {
      return absl::StrCat(waiting_);
    } else if (verb == "fail") {
      Failure failure;
      in >> what >> failure.error >> failure.skip >> failure.count;
      failures_[what] = failure;
    } else if (verb == "shorten") {
      in >> short_bytes_ >> short_writes_;
    } else if (verb == "direct") {
      in >> what;
      direct_ = what == "on";
    } else if (verb == "calls") {
      in >> what;
      return absl::StrCat(calls_[what]);
    } else if (verb == "reset") {
      failures_.clear();
      short_writes_ = 0;
    } else {
      return "unknown command";
    }
    return in.fail() ? "unknown arguments" : "ok";
  }

 private:
  struct Failure {
    int error = 0;
    int skip = 0;
    int count = 0;
  };

  void Release() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (gate_ != nullptr) gate_->Open();
    gate_ = nullptr;
  }

  mutable absl::Mutex mu_;
  std::shared_ptr<Gate> gate_ ABSL_GUARDED_BY(mu_);
  int waiting_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, Failure> failures_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, int> calls_ ABSL_GUARDED_BY(mu_);
  size_t short_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int short_writes_ ABSL_GUARDED_BY(mu_) = 0;
  bool direct_ ABSL_GUARDED_BY(mu_) = true;
};

struct Mount {
  std::string folder;
  Faults faults;
};

Mount& Here() { return *static_cast<Mount*>(fuse_get_context()->private_data); }
std::string Real(const char* path) { return Here().folder + path; }
int Result(int64_t result) { return result < 0 ? -errno : static_cast<int>(result); }
int Fd(const fuse_file_info* file) { return static_cast<int>(file->fh); }

// Makes a call unless it is to fail.
template <typename Call>
int Pass(const char* name, Call call) {
  const int error = Here().faults.Enter(name);
  return error != 0 ? error : Result(call());
}

// ---- The calls: those with an open file may have no path ---------------------------------------

void* Init(fuse_conn_info* /*connection*/, fuse_config* config) {
  config->entry_timeout = 0;
  config->attr_timeout = 0;
  config->negative_timeout = 0;
  config->use_ino = 1;
  config->nullpath_ok = 1;
  config->hard_remove = 1;
  config->intr = 1;
  return &Here();
}

int GetAttr(const char* path, struct stat* out, fuse_file_info* file) {
  return Pass("getattr", [=] {
    return file != nullptr ? fstat(Fd(file), out) : lstat(Real(path).c_str(), out);
  });
}

int MakeDir(const char* path, mode_t mode) {
  return Pass("mkdir", [=] { return mkdir(Real(path).c_str(), mode); });
}

int Unlink(const char* path) {
  return Pass("unlink", [=] { return unlink(Real(path).c_str()); });
}

int RemoveDir(const char* path) {
  return Pass("rmdir", [=] { return rmdir(Real(path).c_str()); });
}

int Rename(const char* from, const char* to, unsigned int flags) {
  return Pass("rename", [=] {
    return renameat2(AT_FDCWD, Real(from).c_str(), AT_FDCWD, Real(to).c_str(), flags);
  });
}

int Truncate(const char* path, off_t size, fuse_file_info* file) {
  return Pass("truncate", [=] {
    return file != nullptr ? ftruncate(Fd(file), size) : truncate(Real(path).c_str(), size);
  });
}

int OpenReal(const char* name, const char* path, int flags, mode_t mode, fuse_file_info* file) {
  const bool refused = (flags & O_DIRECT) != 0 && !Here().faults.direct();
  const int fd = refused ? -EINVAL : Pass(name, [=] {
    // What arrives here is not aligned in memory.
    return open(Real(path).c_str(), (flags & ~O_DIRECT) | O_CLOEXEC, mode);
  });
  if (fd < 0) return fd;
  file->fh = static_cast<uint64_t>(fd);
  // Else the kernel writes what a short write left once more, through its cache, where it takes a
  // short write for an error.
  file->direct_io = name == absl::string_view("opendir") ? 0 : 1;
  return 0;
}

int Open(const char* path, fuse_file_info* file) {
  return OpenReal("open", path, file->flags, 0, file);
}

int Create(const char* path, mode_t mode, fuse_file_info* file) {
  return OpenReal("create", path, file->flags | O_CREAT, mode, file);
}

int OpenDir(const char* path, fuse_file_info* file) {
  return OpenReal("opendir", path, O_RDONLY | O_DIRECTORY, 0, file);
}

int Read(const char* /*path*/, char* data, size_t size, off_t offset, fuse_file_info* file) {
  return Pass("read", [=] { return pread(Fd(file), data, size, offset); });
}

int Write(const char* /*path*/, const char* data, size_t size, off_t offset, fuse_file_info* file) {
  return Pass("write", [=] { return pwrite(Fd(file), data, Here().faults.Shorten(size), offset); });
}

int Statfs(const char* path, struct statvfs* out) {
  return Pass("statfs", [=] { return statvfs(Real(path).c_str(), out); });
}

// What close() answers.
int Flush(const char* /*path*/, fuse_file_info* /*file*/) {
  return Pass("flush", [] { return 0; });
}

// Nobody waits for it, so that nothing is broken here.
int Release(const char* /*path*/, fuse_file_info* file) { return Result(close(Fd(file))); }

int Fsync(const char* /*path*/, int data_only, fuse_file_info* file) {
  return Pass("fsync", [=] { return data_only != 0 ? fdatasync(Fd(file)) : fsync(Fd(file)); });
}

int FsyncDir(const char* /*path*/, int /*data_only*/, fuse_file_info* file) {
  return Pass("fsyncdir", [=] { return fsync(Fd(file)); });
}

int Fallocate(const char* /*path*/, int mode, off_t offset, off_t length, fuse_file_info* file) {
  return Pass("fallocate", [=] { return fallocate(Fd(file), mode, offset, length); });
}

int ReadDir(const char* /*path*/, void* buffer, fuse_fill_dir_t fill, off_t /*offset*/,
            fuse_file_info* file, fuse_readdir_flags /*flags*/) {
  return Pass("readdir", [=] {
    const int fd = openat(Fd(file), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* dir = fd < 0 ? nullptr : fdopendir(fd);
    if (dir == nullptr) return -1;
    // NOLINTNEXTLINE(concurrency-mt-unsafe): the stream is this call's own
    while (const dirent* entry = readdir(dir)) {
      fill(buffer, entry->d_name, nullptr, 0, static_cast<fuse_fill_dir_flags>(0));
    }
    return closedir(dir);
  });
}

fuse_operations Operations() {
  fuse_operations operations = {};
  operations.init = Init;
  operations.getattr = GetAttr;
  operations.mkdir = MakeDir;
  operations.unlink = Unlink;
  operations.rmdir = RemoveDir;
  operations.rename = Rename;
  operations.truncate = Truncate;
  operations.open = Open;
  operations.create = Create;
  operations.opendir = OpenDir;
  operations.read = Read;
  operations.write = Write;
  operations.statfs = Statfs;
  operations.flush = Flush;
  operations.release = Release;
  operations.releasedir = Release;
  operations.fsync = Fsync;
  operations.fsyncdir = FsyncDir;
  operations.fallocate = Fallocate;
  operations.readdir = ReadDir;
  return operations;
}

void Answer(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// Ends the process when there is no more to read.
void ObeyCommands(Faults* faults, const std::string& mountpoint) {
  Answer("ready");
  for (std::string line; std::getline(std::cin, line);) Answer(faults->Command(line));
  umount2(mountpoint.c_str(), MNT_DETACH);
  std::_Exit(0);
}

int Serve(const std::string& folder, const std::string& mountpoint) {
  // Kept to the end of the process: calls may be under way.
  auto* const mount = new Mount;
  mount->folder = folder;
  umask(0);
  // What the library interrupts a call with; it comes too late to install a handler itself.
  struct sigaction nothing = {};
  nothing.sa_handler = [](int) {};
  sigaction(SIGUSR1, &nothing, nullptr);
  std::string name = "faulty_fs";
  char* arguments[] = {name.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(1, arguments);
  const fuse_operations operations = Operations();
  fuse* const fuse = fuse_new(&args, &operations, sizeof(operations), mount);
  if (fuse == nullptr || fuse_mount(fuse, mountpoint.c_str()) != 0) return 1;
  std::thread(ObeyCommands, &mount->faults, mountpoint).detach();
  fuse_loop_config* const config = fuse_loop_cfg_create();
  fuse_loop_cfg_set_max_threads(config, kMaxThreads);
  return fuse_loop_mt(fuse, config) == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::_Exit(Serve(argv[1], argv[2]));
}
