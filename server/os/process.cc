#include "server/os/process.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "server/os/errors.h"

namespace ckptd {
namespace {

// What the child may not do after fork, it finds here: it may not allocate.
struct Prepared {
  std::vector<char*> argv;
  std::vector<char*> environment;
  const char* directory;
  mode_t umask;
  int input;
  int error;  // closed by exec; an errno is written to it otherwise
};

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (const std::string& s : strings) pointers.push_back(const_cast<char*>(s.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// In the child: only what is safe in a signal handler, as other threads may have held any lock.
[[noreturn]] void Become(const Prepared& prepared) {
  setsid();
  for (int signal = 1; signal < NSIG; ++signal) std::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  pthread_sigmask(SIG_SETMASK, &none, nullptr);
  umask(prepared.umask);
  const bool ready = dup2(prepared.input, STDIN_FILENO) >= 0 &&
                     dup2(STDERR_FILENO, STDOUT_FILENO) >= 0 &&
                     (prepared.directory == nullptr || chdir(prepared.directory) == 0);
  if (ready) {
    // Not those that somebody has opened without O_CLOEXEC, either; the flag of
    // CLOSE_RANGE_CLOEXEC.
    syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 4U);
    execve(prepared.argv[0], prepared.argv.data(), prepared.environment.data());
  }
  const int error = errno;
  ssize_t ignored = write(prepared.error, &error, sizeof error);
  static_cast<void>(ignored);
  _exit(127);
}

struct Pipe {
  int read = -1;
  int write = -1;
  bool Open() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    read = ends[0];
    write = ends[1];
    return true;
  }
  ~Pipe() {
    if (read >= 0) close(read);
    if (write >= 0) close(write);
  }
};

}  // namespace

absl::StatusOr<Process> Process::Start(const ProcessSpec& spec) {
  const std::string object = absl::StrCat("program ", spec.argv.front());
  Pipe input;
  Pipe error;
  if (!input.Open() || !error.Open()) return OsError(object, "make pipes for it", errno);
  const Prepared prepared = {Pointers(spec.argv),
                             Pointers(spec.environment),
                             spec.directory.empty() ? nullptr : spec.directory.c_str(),
                             spec.umask,
                             input.read,
                             error.write};
  const pid_t pid = fork();
  if (pid == 0) Become(prepared);
  if (pid < 0) return OsError(object, "start it", errno);
  close(std::exchange(error.write, -1));
  int failure = 0;
  ssize_t n = 0;
  do {
    n = read(error.read, &failure, sizeof failure);
  } while (n < 0 && errno == EINTR);
  Process process(pid, std::exchange(input.write, -1));
  if (n <= 0) return process;
  process.Reap();
  return OsError(object,
                 spec.directory.empty() ? std::string("run it")
                                        : absl::StrCat("run it in the folder ", spec.directory),
                 failure);
}

void Process::CloseInput() {
  if (input_ >= 0) close(std::exchange(input_, -1));
}

void Process::Kill() const { kill(-pid_, SIGKILL); }

void Process::AwaitEnd() const {
  siginfo_t info = {};
  while (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
  }
}

std::string Process::Reap() const {
  int status = 0;
  pid_t waited = 0;
  do {
    waited = waitpid(pid_, &status, 0);
  } while (waited < 0 && errno == EINTR);
  if (waited < 0) return "an end that nobody saw";
  if (WIFSIGNALED(status)) {
    const char* name = sigdescr_np(WTERMSIG(status));
    return absl::StrCat("signal ", WTERMSIG(status), " (", name == nullptr ? "unknown" : name, ")");
  }
  return absl::StrCat("exit code ", WEXITSTATUS(status));
}

bool IsProgram(const std::string& path, uint64_t device, uint64_t inode) {
  struct stat info = {};
  if (path.empty() || path[0] != '/' || stat(path.c_str(), &info) != 0) return false;
  if (!S_ISREG(info.st_mode) || access(path.c_str(), X_OK) != 0) return false;
  return (device == 0 && inode == 0) || (info.st_dev == device && info.st_ino == inode);
}

}  // namespace ckptd
