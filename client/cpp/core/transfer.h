#ifndef CKPTD_CLIENT_CPP_CORE_TRANSFER_H_
#define CKPTD_CLIENT_CPP_CORE_TRANSFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "client/cpp/core/checkpoint_file.h"

namespace ckptd {

// Bytes of a save and where they go in its image.
struct ImagePiece {
  uint64_t offset = 0;
  const void* data = nullptr;
  size_t size_bytes = 0;
};

// Sends all pieces into the image of `save_name` by WriteSave.
absl::Status WritePieces(const std::shared_ptr<grpc::ChannelInterface>& channel,
                         const std::string& save_name, const std::vector<ImagePiece>& pieces,
                         absl::Time deadline);

// Fetches the file of a load by ReadLoad into memory of this process. `path` is for messages.
absl::StatusOr<CheckpointFile> ReadRemote(v1::CheckpointService::Stub& stub,
                                          const v1::BeginLoadResponse& load,
                                          const std::string& path, absl::Time deadline);

// Opens the file of a load by its path. NOT_FOUND where the path leads elsewhere here than for the
// daemon.
absl::StatusOr<CheckpointFile> OpenShared(const v1::BeginLoadResponse& load,
                                          const std::string& path);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_TRANSFER_H_
