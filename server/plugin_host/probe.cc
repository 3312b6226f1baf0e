#include "server/plugin_host/probe.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/status/error_info.h"
#include "server/backend/backend.h"
#include "server/backend/call.h"
#include "server/backend/plugin_table.h"

namespace ckptd {
namespace {

int Refused(const absl::Status& status) {
  std::printf("%s\n", std::string(status.message()).c_str());
  return 1;
}

std::string ReadInput() {
  std::string input;
  char bytes[4096];
  for (;;) {
    const ssize_t got = read(STDIN_FILENO, bytes, sizeof(bytes));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return input;
    input.append(bytes, static_cast<size_t>(got));
  }
}

}  // namespace

absl::StatusOr<ckptd_backend> LoadPlugin(const std::string& file) {
  // Never closed: a plugin may have threads.
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  // NOLINTNEXTLINE(concurrency-mt-unsafe): of this thread
  if (handle == nullptr) return RefusePlugin(file, absl::StrCat("cannot be loaded: ", dlerror()));
  const auto* table = static_cast<const ckptd_backend*>(dlsym(handle, CKPTD_PLUGIN_SYMBOL));
  if (table == nullptr) {
    return RefusePlugin(file, "is no plugin: it has no symbol '" CKPTD_PLUGIN_SYMBOL
                              "'; define it with CKPTD_PLUGIN_EXPORT, and as extern \"C\" in C++");
  }
  if (absl::Status status = CheckFileTable(*table); !status.ok()) {
    return RefusePlugin(file, status.message());
  }
  return WholeTable(*table);
}

absl::Status Configure(const ckptd_backend& table, const std::string& settings) {
  const std::vector<std::string> parts = absl::StrSplit(settings, '\0');
  std::vector<ckptd_option> options;
  for (size_t i = 0; i + 2 < parts.size(); i += 2) {
    options.push_back({parts[i].c_str(), parts[i + 1].c_str()});
  }
  const std::string backend = absl::StrCat("backend ", table.name);
  if (table.configure == nullptr) {
    if (options.empty()) return absl::OkStatus();
    return MakeError(absl::StatusCode::kInvalidArgument, "PLUGIN_REFUSED",
                     absl::StrCat(backend, ": takes no settings; remove [backend.", table.name,
                                  "] from the daemon's file"));
  }
  ckptd_call call;
  const ckptd_code code = table.configure(PluginHost(), &call, options.data(), options.size());
  if (code == CKPTD_OK) return absl::OkStatus();
  const absl::Status status = CallStatus(code, call);
  return MakeError(status.code(), "BACKEND_FAILED",
                   absl::StrCat(backend, ": does not take its settings, which are in [backend.",
                                table.name, "] of the daemon's file: ", status.message()));
}

int ProbePlugin(const std::string& file) {
  const absl::StatusOr<ckptd_backend> table = LoadPlugin(file);
  if (!table.ok()) return Refused(table.status());
  const Backend::Description description = DescribeTable(*table);
  std::printf("%s\n%s\n", description.name.c_str(), description.version.c_str());
  for (const std::string& capability : description.capabilities) {
    std::printf("%s\n", capability.c_str());
  }
  return 0;
}

int ConfigurePlugin(const std::string& file) {
  const std::string settings = ReadInput();
  const absl::StatusOr<ckptd_backend> table = LoadPlugin(file);
  if (!table.ok()) return Refused(table.status());
  const absl::Status status = Configure(*table, settings);
  return status.ok() ? 0 : Refused(RefusePlugin(file, status.message()));
}

}  // namespace ckptd
