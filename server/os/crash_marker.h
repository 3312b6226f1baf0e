#ifndef CKPTD_SERVER_OS_CRASH_MARKER_H_
#define CKPTD_SERVER_OS_CRASH_MARKER_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/os/file_system.h"

namespace ckptd {

// One line of a crash file.
struct Crash {
  std::string signal;  // "SIGSEGV"
  uint64_t id = 0;     // the work of the thread that crashed
  pid_t pid = 0;       // of the daemon that did
};

// A file that tells the next start what this process was working on when it crashed.
//
// A thread says what it works on by a Scope. When it then causes SIGSEGV, SIGBUS, SIGILL, SIGFPE or
// SIGABRT (an abort, a failed check, an exception that nobody caught), a line with that work is
// appended to the file, and the process ends as it would have without us: status, core, report of a
// sanitizer. Nothing is written for a signal that another process sent, for a thread that works on
// nothing, for a fault that MendFault mends, or by SIGKILL and power cuts: only crashes count.
//
// At start: Read, take the crashes into account durably, Remove, and only then Open. A crash
// between the second and the third is counted twice.
class CrashMarker {
 public:
  // What a thread is working on; the default is nothing.
  struct Work {
    const CrashMarker* marker = nullptr;
    uint64_t id = 0;
  };

  // While it lives, the calling thread works on `id`, or on nothing where `marker` is null; then
  // again on what it did before. To be made and destroyed on one thread. `marker` must outlive it.
  class Scope {
   public:
    Scope(const CrashMarker* marker, uint64_t id) : Scope(Work{marker, id}) {}
    explicit Scope(Work work);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    const Work before_;
  };

  // What the calling thread works on: for a thread that it starts to help, which makes a Scope of
  // it.
  static Work CurrentWork();

  // Installs the handlers of those signals for the life of the process: to be called by main, or a
  // test, before there are threads. Doing it again changes nothing.
  static absl::Status InstallHandlers();

  // Opens the file at `path`, mode 0600, and makes it where there is none. Nothing more is opened
  // when the process crashes.
  static absl::StatusOr<std::unique_ptr<CrashMarker>> Open(FileSystem* fs, const std::string& path);
  CrashMarker(const CrashMarker&) = delete;
  CrashMarker& operator=(const CrashMarker&) = delete;

  // The crashes that are in the file, oldest first; none where there is no file. A line that is not
  // whole, as of a full disk, is left out.
  static absl::StatusOr<std::vector<Crash>> Read(FileSystem* fs, const std::string& path);
  // Removes the file; a missing one is no error.
  static absl::Status Remove(FileSystem* fs, const std::string& path);

  // For the handlers alone.
  int fd() const { return file_.get(); }

 private:
  explicit CrashMarker(FileDescriptor file) : file_(std::move(file)) {}

  const FileDescriptor file_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_CRASH_MARKER_H_
