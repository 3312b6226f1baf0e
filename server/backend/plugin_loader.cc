#include "server/backend/plugin_loader.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cpp/core/unique_fd.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/backend/plugin_table.h"

namespace ckptd {
namespace {

constexpr absl::Duration kProbePatience = absl::Seconds(10);
constexpr size_t kMaxAnswerBytes = size_t{64} << 10;

// Whoever can write to it can run code as this user.
absl::Status CheckTrust(const std::string& path, bool is_folder) {
  struct stat status = {};
  if (lstat(path.c_str(), &status) != 0) return RefusePlugin(path, strerrordesc_np(errno));
  if (is_folder ? !S_ISDIR(status.st_mode) : !S_ISREG(status.st_mode)) {
    return RefusePlugin(
        path, is_folder ? "is no folder" : "is no regular file; put the file itself here");
  }
  if (status.st_uid != 0 && status.st_uid != geteuid()) {
    return RefusePlugin(
        path, absl::StrCat("belongs to user ", status.st_uid,
                           ", who could have this daemon run anything; chown it to ", geteuid(),
                           " or to root"));
  }
  if ((status.st_mode & 022U) != 0) {
    return RefusePlugin(path,
                        "can be written by others, who could have this daemon run anything; "
                        "chmod go-w it");
  }
  return absl::OkStatus();
}

// What the process writes until it ends; kills it where that takes too long.
std::string ReadAnswer(int fd, pid_t pid, bool* too_long) {
  std::string answer;
  char bytes[4096];
  const absl::Time deadline = absl::Now() + kProbePatience;
  for (;;) {
    pollfd ready = {fd, POLLIN, 0};
    const auto left = static_cast<int>(absl::ToInt64Milliseconds(deadline - absl::Now()));
    const int polled = left <= 0 ? 0 : poll(&ready, 1, left);
    if (polled < 0 && errno == EINTR) continue;
    const ssize_t got = polled <= 0 ? -1 : read(fd, bytes, sizeof(bytes));
    if (got == 0) return answer;
    if (got < 0 || answer.size() > kMaxAnswerBytes) {
      *too_long = true;
      kill(pid, SIGKILL);
      return answer;
    }
    answer.append(bytes, static_cast<size_t>(got));
  }
}

// What the daemon's program says of a plugin.
struct Question {
  const char* flag;   // of the program, before the file
  const char* state;  // what the plugin is meanwhile
};
constexpr Question kLoads = {"--plugin-probe", "loaded"};
constexpr Question kTakesSettings = {"--plugin-configure", "configured"};

// A file in memory with that content, to be read; -1 and errno.
int Input(const std::string& content) {
  const int fd = memfd_create("ckptd-settings", MFD_CLOEXEC);
  size_t written = 0;
  while (fd >= 0 && written < content.size()) {
    const ssize_t got =
        pwrite(fd, content.data() + written, content.size() - written, static_cast<off_t>(written));
    if (got < 0 && errno != EINTR) break;
    if (got > 0) written += static_cast<size_t>(got);
  }
  return fd;
}

absl::StatusOr<std::string> Ask(const std::string& program, const Question& question,
                                const std::string& file, const std::string& input) {
  const UniqueFd given(Input(input));
  int pipe_ends[2];
  if (given.get() < 0 || pipe2(pipe_ends, O_CLOEXEC) != 0) {
    return RefusePlugin(file, strerrordesc_np(errno));
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, given.get(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  const char* argv[] = {program.c_str(), question.flag, file.c_str(), nullptr};
  pid_t pid = 0;
  const int error =
      posix_spawn(&pid, program.c_str(), &actions, nullptr, const_cast<char**>(argv), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe_ends[1]);
  if (error != 0) {
    close(pipe_ends[0]);
    return RefusePlugin(file, absl::StrCat("cannot be looked at: ", strerrordesc_np(error)));
  }
  bool too_long = false;
  std::string answer = ReadAnswer(pipe_ends[0], pid, &too_long);
  close(pipe_ends[0]);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (too_long) {
    return RefusePlugin(file,
                        absl::StrCat("did not finish being ", question.state, " within 10 s"));
  }
  if (WIFSIGNALED(status)) {
    return RefusePlugin(
        file, absl::StrCat("crashed while it was ", question.state, ": signal ", WTERMSIG(status),
                           " (", sigdescr_np(WTERMSIG(status)), ")"));
  }
  if (WEXITSTATUS(status) == 0) return answer;
  const std::string why(absl::StripAsciiWhitespace(answer));
  if (why.empty()) {
    return RefusePlugin(file, absl::StrCat("ended the process while it was ", question.state));
  }
  return MakeError(absl::StatusCode::kFailedPrecondition, "PLUGIN_REFUSED", why);
}

std::string Payload(const BackendConfig& config, const std::string& name) {
  std::string payload;
  const auto it = config.find(name);
  if (it == config.end()) return payload;
  for (const auto& [key, value] : it->second) {
    payload.append(key).push_back('\0');
    payload.append(value).push_back('\0');
  }
  return payload;
}

absl::StatusOr<std::unique_ptr<Backend>> LookAt(const std::string& file, const std::string& program,
                                                const ckptd_backend* image_plugin,
                                                const BackendConfig& config,
                                                const std::vector<std::string>& taken) {
  CKPTD_RETURN_IF_ERROR(CheckTrust(file, /*is_folder=*/false));
  CKPTD_ASSIGN_OR_RETURN(const std::string answer, Ask(program, kLoads, file, ""));
  std::vector<std::string> lines = absl::StrSplit(answer, '\n', absl::SkipEmpty());
  if (lines.size() < 2) return RefusePlugin(file, "printed something while it was loaded");
  Backend::Description description;
  description.name = lines[0];
  description.version = lines[1];
  description.capabilities.assign(lines.begin() + 2, lines.end());
  description.file = file;
  if (std::find(taken.begin(), taken.end(), description.name) != taken.end()) {
    return RefusePlugin(file, absl::StrCat("is named '", description.name,
                                           "', as another backend is already; rename one"));
  }
  std::string settings = Payload(config, description.name);
  const std::vector<std::string>& can = description.capabilities;
  if (!settings.empty() || std::find(can.begin(), can.end(), "configure") != can.end()) {
    CKPTD_RETURN_IF_ERROR(Ask(program, kTakesSettings, file, settings).status());
  }
  return Backend::OfFile(image_plugin, std::move(description),
                         {{program, "--plugin-host", file}, std::move(settings)});
}

}  // namespace

LoadedPlugins FindPlugins(const std::string& dir, const std::string& program,
                          const ckptd_backend* image_plugin, const BackendConfig& config,
                          std::vector<std::string> taken) {
  LoadedPlugins found;
  std::error_code error;
  if (!std::filesystem::exists(dir, error)) return found;
  if (absl::Status status = CheckTrust(dir, /*is_folder=*/true); !status.ok()) {
    found.refused.push_back({dir, status});
    return found;
  }
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    if (entry.path().extension() == ".so") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  for (const std::string& file : files) {
    auto backend = LookAt(file, program, image_plugin, config, taken);
    if (!backend.ok()) {
      found.refused.push_back({file, backend.status()});
      continue;
    }
    taken.push_back((*backend)->name());
    found.backends.push_back(*std::move(backend));
  }
  return found;
}

}  // namespace ckptd
