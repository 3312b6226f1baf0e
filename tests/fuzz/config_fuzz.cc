// The daemon's options. The input is a configuration file up to the first zero byte, then flags,
// each up to the next one.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/options.h"
#include "tests/fuzz/fuzz.h"

namespace ckptd {
namespace {

// What is printed meanwhile.
class Capture {
 public:
  Capture() : out_(std::cout.rdbuf(text_.rdbuf())), err_(std::cerr.rdbuf(text_.rdbuf())) {}
  ~Capture() {
    std::cout.rdbuf(out_);
    std::cerr.rdbuf(err_);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::streambuf* const out_;
  std::streambuf* const err_;
};

// A file in memory, found by its path.
class MemoryFile {
 public:
  explicit MemoryFile(absl::string_view content) : fd_(memfd_create("config", MFD_CLOEXEC)) {
    const ssize_t written = write(fd_, content.data(), content.size());
    FUZZ_CHECK(written == static_cast<ssize_t>(content.size()), "cannot write a memfd");
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }

 private:
  const int fd_;
};

void Check(const CommandLine& line, const std::string& printed) {
  if (line.exit) {
    FUZZ_CHECK(line.exit_code == 0 || line.exit_code == 2, absl::StrCat(line.exit_code));
    FUZZ_CHECK(!printed.empty(), "ends and says nothing");
    return;
  }
  const Options& options = line.options;
  constexpr std::array<absl::string_view, 6> kLevels = {"trace", "debug", "info",
                                                        "warn",  "error", "off"};
  FUZZ_CHECK(std::count(kLevels.begin(), kLevels.end(), options.log_level) == 1, options.log_level);
  FUZZ_CHECK(!options.socket.empty(), "no socket");
  FUZZ_CHECK(options.drain_timeout >= absl::ZeroDuration(), "negative drain");
  FUZZ_CHECK(options.idle_exit >= absl::ZeroDuration(), "negative idle");
}

// The file and the flags may say anything, the environment of the one who fuzzes nothing.
bool ClearEnvironment() {
  for (const char* name :
       {"CKPTD_ADDRESS", "XDG_RUNTIME_DIR", "CKPTD_SOCKET", "CKPTD_POOL_DIR",
        "CKPTD_STAGING_BUDGET", "CKPTD_DRAIN_TIMEOUT", "CKPTD_IDLE_EXIT", "CKPTD_LOG_LEVEL"}) {
    unsetenv(name);
  }
  return true;
}

}  // namespace
}  // namespace ckptd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool cleared = ckptd::ClearEnvironment();
  FUZZ_CHECK(cleared, "");
  ckptd::FuzzInput input(data, size);
  const ckptd::MemoryFile file(input.TakeUntil('\0'));
  std::vector<std::string> arguments = {"ckptd", "--config", file.path()};
  while (!input.empty()) {
    std::string argument(input.TakeUntil('\0'));
    // No other file: it might be one that never ends.
    if (!absl::StartsWith(argument, "--config")) arguments.push_back(std::move(argument));
  }
  std::vector<char*> argv;
  argv.reserve(arguments.size());
  for (std::string& argument : arguments) argv.push_back(argument.data());
  ckptd::CommandLine line;
  std::string printed;
  {
    const ckptd::Capture capture;
    line = ckptd::ParseCommandLine(static_cast<int>(argv.size()), argv.data());
    printed = capture.text();
  }
  ckptd::Check(line, printed);
  return 0;
}
