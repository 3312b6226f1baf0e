#include "client/cpp/core/transfer.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/core/send_buffer.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/generic/generic_stub.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using google::protobuf::internal::WireFormatLite;

// Measured: 1 MiB is a tenth slower, 256 KiB by half.
constexpr size_t kChunkBytes = size_t{4} << 20;

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

// A call of WriteSave whose messages are put together here: Protobuf would copy the bytes of each
// into a string, and from there into what gRPC sends, where one copy does. Not fewer: gRPC may hold
// a message for longer than a call that has failed.
class WriteCall {
 public:
  WriteCall(const std::shared_ptr<grpc::ChannelInterface>& channel, absl::Time deadline)
      : stub_(channel) {
    context_.set_deadline(absl::ToChronoTime(deadline));
    call_ = stub_.PrepareCall(&context_, kMethod, &events_);
    call_->StartCall(this);
    open_ = Await();
    WidenSendBuffers(context_.peer());
  }
  ~WriteCall() {
    events_.Shutdown();
    while (Await()) {
    }
  }
  WriteCall(const WriteCall&) = delete;
  WriteCall& operator=(const WriteCall&) = delete;

  // False once the call has ended; Finish tells why.
  bool Write(const std::string& name, uint64_t offset, const uint8_t* data, size_t size) {
    if (!open_) return false;
    const std::array<grpc::Slice, 2> slices = {grpc::Slice(Head(name, offset, size)),
                                               grpc::Slice(data, size)};
    call_->Write(grpc::ByteBuffer(slices.data(), slices.size()), this);
    return open_ = Await();
  }

  // `complete`: whether all was written.
  absl::Status Finish(bool complete) {
    if (open_ && complete) {
      call_->WritesDone(this);
      Await();
      grpc::ByteBuffer response;
      call_->Read(&response, this);
      Await();
    }
    grpc::Status status;
    call_->Finish(&status, this);
    Await();
    return FromGrpc(status);
  }

 private:
  static constexpr char kMethod[] = "/ckptd.v1.CheckpointService/WriteSave";

  // The message up to its data.
  static std::string Head(const std::string& name, uint64_t offset, size_t size) {
    v1::WriteSaveRequest request;
    request.set_name(name);
    request.set_offset(static_cast<int64_t>(offset));
    std::string head = request.SerializeAsString();
    google::protobuf::io::StringOutputStream stream(&head);
    google::protobuf::io::CodedOutputStream output(&stream);
    output.WriteTag(WireFormatLite::MakeTag(v1::WriteSaveRequest::kDataFieldNumber,
                                            WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
    output.WriteVarint32(static_cast<uint32_t>(size));
    output.Trim();
    return head;
  }

  // Waits for what was begun last, and tells whether it worked.
  bool Await() {
    void* tag = nullptr;
    bool ok = false;
    return events_.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue events_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  bool open_ = false;
};

}  // namespace

absl::Status WritePieces(const std::shared_ptr<grpc::ChannelInterface>& channel,
                         const std::string& save_name, const std::vector<ImagePiece>& pieces,
                         absl::Time deadline) {
  WriteCall call(channel, deadline);
  bool open = true;
  for (const ImagePiece& piece : pieces) {
    for (size_t done = 0; open && done < piece.size_bytes;) {
      const size_t size = std::min(kChunkBytes, piece.size_bytes - done);
      open = call.Write(save_name, piece.offset + done,
                        static_cast<const uint8_t*>(piece.data) + done, size);
      done += size;
    }
    if (!open) break;
  }
  return call.Finish(open);
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
