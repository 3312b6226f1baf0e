#ifndef CKPTD_SERVER_OS_PROCESS_H_
#define CKPTD_SERVER_OS_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace ckptd {

// What is run, and how.
struct ProcessSpec {
  // The program, as an absolute path, and its arguments; at least the program.
  std::vector<std::string> argv;
  // As "NAME=value"; all of it.
  std::vector<std::string> environment;
  // Working directory; that of this process if empty.
  std::string directory;
  mode_t umask = 0077;
};

// A child of this process, in a session of its own. It has no descriptor of this process but
// standard output and error, which both are this one's standard error, and for its standard input a
// pipe that ends when this process does.
class Process {
 public:
  // The errors of OsError (docs/errors.md) where the program cannot be run.
  static absl::StatusOr<Process> Start(const ProcessSpec& spec);

  Process(Process&& other) noexcept
      : pid_(std::exchange(other.pid_, 0)), input_(std::exchange(other.input_, -1)) {}
  Process& operator=(Process&&) = delete;
  // Closes its standard input; does not wait for it.
  ~Process() { CloseInput(); }

  pid_t pid() const { return pid_; }
  // A child that reads its standard input finds the end of it from then on.
  void CloseInput();
  // Ends it, and all that it has started and left in its session. Not after Reap.
  void Kill() const;
  // Waits for its end.
  void AwaitEnd() const;
  // Waits for its end and forgets it, once. Returns how it ended: "exit code 3", "signal 9
  // (Killed)".
  std::string Reap() const;

 private:
  Process(pid_t pid, int input) : pid_(pid), input_(input) {}

  pid_t pid_;
  int input_;
};

// Whether `path` is a program that this process may run, and the file that a caller who sees it as
// `device` and `inode` means; any where both are 0.
bool IsProgram(const std::string& path, uint64_t device, uint64_t inode);

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_PROCESS_H_
