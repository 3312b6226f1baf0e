// ckptctl convert: reads a checkpoint of one format, and has the daemon save it in another one.

#include "client/cpp/convert/convert.h"

#include <sys/mman.h>

#include <cerrno>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/commands.h"
#include "client/cli/text.h"
#include "client/cpp/core/connection.h"
#include "client/cpp/core/mapping.h"
#include "proto/status/status_macros.h"

namespace ckptd::cli {
namespace {

constexpr absl::Duration kAnswerTimeout = absl::Seconds(10);

// A published checkpoint is never written to, so it stays what it is.
absl::StatusOr<Mapping> MapFile(const CheckpointFile& file) {
  Mapping mapping(file.fd(), static_cast<size_t>(file.size_bytes()), PROT_READ, MAP_PRIVATE);
  if (mapping.ok()) return mapping;
  return absl::ErrnoToStatus(errno, absl::StrCat(file.path(), ": cannot be mapped"));
}

// That there is a daemon, and one that has the backend.
absl::Status CheckBackend(Daemon& daemon, const Options& options) {
  v1::GetStatusResponse status;
  CKPTD_RETURN_IF_ERROR(daemon.Call(&Daemon::Stub::GetStatus, v1::GetStatusRequest(), &status,
                                    options.timeout.value_or(kAnswerTimeout)));
  for (const std::string& name : status.backends()) {
    if (name == options.backend) return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat("backend '", options.backend, "': ckptd at ",
                                          daemon.address(), " has only ",
                                          absl::StrJoin(status.backends(), ", ")));
}

}  // namespace

absl::Status RunConvert(Daemon& daemon, const Options& options, Output& out) {
  CKPTD_RETURN_IF_ERROR(CheckBackend(daemon, options));
  ConnectionOptions connecting;
  connecting.address = options.address;
  connecting.timeout = options.timeout.value_or(absl::InfiniteDuration());
  CKPTD_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> connection,
                         Connection::Open(connecting));
  CKPTD_ASSIGN_OR_RETURN(const CheckpointFile file, connection->Load(options.source));
  CKPTD_ASSIGN_OR_RETURN(const Mapping mapping, MapFile(file));
  const absl::string_view bytes(reinterpret_cast<const char*>(mapping.data()), mapping.size());
  CKPTD_ASSIGN_OR_RETURN(const std::unique_ptr<Conversion> conversion,
                         ConvertCheckpoint(options.source, bytes, options.backend));
  if (!conversion->dropped.empty()) {
    std::cerr << "ckptctl: "
              << Printable(absl::StrCat(
                     options.source, ": left out, as ", options.backend,
                     " has no place for metadata: ", absl::StrJoin(conversion->dropped, ", ")))
              << std::endl;
  }
  conversion->spec.path = options.path;
  CKPTD_ASSIGN_OR_RETURN(const SaveHandle save, connection->Save(conversion->spec));
  Options following = options;
  following.save = save.name;
  return FollowSave(daemon, following, out);
}

}  // namespace ckptd::cli
