#include "client/cpp/core/transfer.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;

absl::Status WriteAll(int fd, absl::string_view data, uint64_t offset, const std::string& path) {
  while (!data.empty()) {
    const ssize_t n = pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot keep in memory"));
    data.remove_prefix(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WritePieces(v1::CheckpointService::Stub& stub, const std::string& save_name,
                         const std::vector<ImagePiece>& pieces, absl::Time deadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  v1::WriteSaveResponse response;
  auto stream = stub.WriteSave(&context, &response);
  v1::WriteSaveRequest request;
  request.set_name(save_name);
  bool open = true;
  for (const ImagePiece& piece : pieces) {
    const auto* data = static_cast<const char*>(piece.data);
    for (size_t done = 0; open && done < piece.size_bytes; done += request.data().size()) {
      request.set_offset(static_cast<int64_t>(piece.offset + done));
      request.set_data(data + done, std::min(kChunkBytes, piece.size_bytes - done));
      open = stream->Write(request);
      request.clear_name();
    }
    if (!open) break;
  }
  if (open) stream->WritesDone();
  return FromGrpc(stream->Finish());
}

absl::StatusOr<CheckpointFile> ReadRemote(v1::CheckpointService::Stub& stub,
                                          const v1::BeginLoadResponse& load,
                                          const std::string& path, absl::Time deadline) {
  UniqueFd fd(memfd_create("ckptd-load", MFD_CLOEXEC));
  if (!fd) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot get memory for it"));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  v1::ReadLoadRequest request;
  request.set_load_id(load.load_id());
  auto stream = stub.ReadLoad(&context, request);
  v1::ReadLoadResponse response;
  uint64_t received = 0;
  absl::Status local;
  while (local.ok() && stream->Read(&response)) {
    local = WriteAll(fd.get(), response.data(), received, path);
    received += response.data().size();
  }
  if (!local.ok()) context.TryCancel();
  absl::Status remote = FromGrpc(stream->Finish());
  CKPTD_RETURN_IF_ERROR(local);
  CKPTD_RETURN_IF_ERROR(remote);
  if (received != static_cast<uint64_t>(load.size_bytes())) {
    return absl::DataLossError(
        absl::StrCat(path, ": got ", received, " of ", load.size_bytes(), " bytes"));
  }
  return CheckpointFile(path, std::move(fd), received);
}

absl::StatusOr<CheckpointFile> OpenShared(const v1::BeginLoadResponse& load,
                                          const std::string& path) {
  CKPTD_ASSIGN_OR_RETURN(CheckpointFile file, CheckpointFile::Open(path));
  struct stat info = {};
  if (fstat(file.fd(), &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot stat the checkpoint"));
  }
  if (info.st_dev != load.device() || info.st_ino != load.inode()) {
    return absl::NotFoundError(absl::StrCat(path, ": is another file here than for the daemon"));
  }
  return file;
}

}  // namespace ckptd
