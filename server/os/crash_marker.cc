#include "server/os/crash_marker.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/os/memory_guard.h"
#include "server/os/signal_chain.h"

namespace ckptd {
namespace {

struct CrashSignal {
  int number;
  const char* name;
};
constexpr std::array<CrashSignal, 5> kSignals = {{{SIGSEGV, "SIGSEGV"},
                                                  {SIGBUS, "SIGBUS"},
                                                  {SIGILL, "SIGILL"},
                                                  {SIGFPE, "SIGFPE"},
                                                  {SIGABRT, "SIGABRT"}}};

// As kSignals. A signal handler gets no argument of ours.
constinit std::array<PreviousAction, kSignals.size()> previous_actions;
constinit thread_local CrashMarker::Work current_work;

// A stack that overflowed leaves no room for the handler: threads that work have another one.
class AlternateStack {
 public:
  AlternateStack() {
    stack_t present = {};
    if (sigaltstack(nullptr, &present) != 0 || (present.ss_flags & SS_DISABLE) == 0) return;
    stack_t ours = {};
    ours.ss_sp = memory_.data();
    ours.ss_size = memory_.size();
    installed_ = sigaltstack(&ours, nullptr) == 0;
  }
  ~AlternateStack() {
    if (!installed_) return;
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
  }
  AlternateStack(const AlternateStack&) = delete;
  AlternateStack& operator=(const AlternateStack&) = delete;

 private:
  // Room for the registers of AVX-512 and for what a sanitizer's handler needs.
  std::array<char, size_t{64} << 10> memory_;
  bool installed_ = false;
};

// A line as it is built in a handler, where nothing may be allocated.
class Line {
 public:
  void Put(const char* text) {
    while (*text != '\0' && size_ < bytes_.size()) bytes_[size_++] = *text++;
  }
  void Put(uint64_t number) {
    std::array<char, 21> digits = {};
    size_t at = digits.size() - 1;
    do {
      digits[--at] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number > 0);
    Put(&digits[at]);
  }
  // One write: lines of threads that crash together do not mix. Nothing can be done where it fails.
  void WriteTo(int fd) const {
    const ssize_t written = write(fd, bytes_.data(), size_);
    static_cast<void>(written);
  }

 private:
  std::array<char, 64> bytes_ = {};
  size_t size_ = 0;
};

void Mark(const char* name) {
  const CrashMarker::Work work = current_work;
  if (work.marker == nullptr) return;
  // Once: abort and the like may come by again.
  current_work = {};
  Line line;
  line.Put(name);
  line.Put(" ");
  line.Put(work.id);
  line.Put(" ");
  line.Put(static_cast<uint64_t>(getpid()));
  line.Put("\n");
  line.WriteTo(work.marker->fd());
}

void OnCrash(int signal, siginfo_t* info, void* context) {
  if (signal == SIGBUS && MendFault(*info)) return;
  const int saved_errno = errno;
  const bool from_outside = info->si_code <= 0 && info->si_pid != getpid();
  for (size_t i = 0; i < kSignals.size(); ++i) {
    if (kSignals[i].number != signal) continue;
    if (!from_outside) Mark(kSignals[i].name);
    previous_actions[i].Run(signal, info, context);
  }
  errno = saved_errno;
}

bool ParseLine(absl::string_view line, Crash* crash) {
  const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
  if (words.size() != 3) return false;
  crash->signal = std::string(words[0]);
  return std::any_of(kSignals.begin(), kSignals.end(),
                     [&](const CrashSignal& signal) { return words[0] == signal.name; }) &&
         absl::SimpleAtoi(words[1], &crash->id) && absl::SimpleAtoi(words[2], &crash->pid);
}

std::string Object(const std::string& path) { return absl::StrCat("crash file ", path); }

}  // namespace

CrashMarker::Scope::Scope(Work work) : before_(current_work) {
  static thread_local AlternateStack stack;
  static_cast<void>(stack);
  current_work = work;
}

CrashMarker::Scope::~Scope() { current_work = before_; }

CrashMarker::Work CrashMarker::CurrentWork() { return current_work; }

absl::Status CrashMarker::InstallHandlers() {
  for (size_t i = 0; i < kSignals.size(); ++i) {
    if (int error = previous_actions[i].Replace(kSignals[i].number, OnCrash); error < 0) {
      return OsError("crash marker", absl::StrCat("handle ", kSignals[i].name), -error);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CrashMarker>> CrashMarker::Open(FileSystem* fs,
                                                               const std::string& path) {
  FileDescriptor file(fs, fs->Open(path, O_CREAT | O_WRONLY | O_APPEND | O_NOFOLLOW, 0600));
  if (!file) return OsError(Object(path), "open it", -file.get());
  return std::unique_ptr<CrashMarker>(new CrashMarker(std::move(file)));
}

absl::StatusOr<std::vector<Crash>> CrashMarker::Read(FileSystem* fs, const std::string& path) {
  std::vector<Crash> crashes;
  const FileDescriptor file(fs, fs->Open(path, O_RDONLY | O_NOFOLLOW, 0));
  if (file.get() == -ENOENT) return crashes;
  if (!file) return OsError(Object(path), "open it", -file.get());
  std::string text;
  std::array<char, 4096> piece = {};
  for (;;) {
    const ssize_t n =
        fs->Read(file.get(), piece.data(), piece.size(), static_cast<off_t>(text.size()));
    if (n < 0) return OsError(Object(path), "read it", static_cast<int>(-n));
    if (n == 0) break;
    text.append(piece.data(), static_cast<size_t>(n));
  }
  // What stands behind the last line's end is not whole.
  std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  lines.pop_back();
  for (const absl::string_view line : lines) {
    Crash crash;
    if (ParseLine(line, &crash)) crashes.push_back(std::move(crash));
  }
  return crashes;
}

absl::Status CrashMarker::Remove(FileSystem* fs, const std::string& path) {
  if (int error = fs->Unlink(path); error < 0 && error != -ENOENT) {
    return OsError(Object(path), "remove it", -error);
  }
  return absl::OkStatus();
}

}  // namespace ckptd
