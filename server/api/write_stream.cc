// Protobuf would first gather the slices of a message in a string of its own: a copy, and with it
// the page faults of fresh memory, that take as long as the copy into the image.

#include "server/api/write_stream.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "ckptd/v1/checkpoint.pb.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "proto/status/error_info.h"

namespace ckptd {
namespace {

using google::protobuf::internal::WireFormatLite;

// A WriteSaveRequest whose data lie where gRPC has received them.
struct Message {
  std::string name;
  int64_t offset = 0;
  std::vector<absl::string_view> data;  // one after the other
};

// The `length` bytes that follow the first `start` ones.
std::vector<absl::string_view> Part(const std::vector<grpc::Slice>& slices, size_t start,
                                    size_t length) {
  std::vector<absl::string_view> part;
  for (const grpc::Slice& slice : slices) {
    const size_t skipped = std::min(start, slice.size());
    const size_t taken = std::min(length, slice.size() - skipped);
    if (taken > 0) part.emplace_back(reinterpret_cast<const char*>(slice.begin()) + skipped, taken);
    start -= skipped;
    length -= taken;
  }
  return part;
}

// Reads a message whose fields stand in the order of their numbers and of which the data are the
// last, as all writers have it. False for any other.
bool ReadInOrder(grpc::ByteBuffer* bytes, const std::vector<grpc::Slice>& slices,
                 Message* message) {
  grpc::ProtoBufferReader reader(bytes);
  google::protobuf::io::CodedInputStream input(&reader);
  while (const uint32_t tag = input.ReadTag()) {
    uint64_t number = 0;
    uint32_t length = 0;
    switch (tag) {
      case WireFormatLite::MakeTag(v1::WriteSaveRequest::kNameFieldNumber,
                                   WireFormatLite::WIRETYPE_LENGTH_DELIMITED):
        if (!WireFormatLite::ReadString(&input, &message->name)) return false;
        break;
      case WireFormatLite::MakeTag(v1::WriteSaveRequest::kOffsetFieldNumber,
                                   WireFormatLite::WIRETYPE_VARINT):
        if (!input.ReadVarint64(&number)) return false;
        message->offset = static_cast<int64_t>(number);
        break;
      case WireFormatLite::MakeTag(v1::WriteSaveRequest::kDataFieldNumber,
                                   WireFormatLite::WIRETYPE_LENGTH_DELIMITED): {
        if (!input.ReadVarint32(&length)) return false;
        const auto start = static_cast<size_t>(input.CurrentPosition());
        message->data = Part(slices, start, length);
        return start + length == bytes->Length();
      }
      default:
        return false;
    }
  }
  return input.ConsumedEntireMessage();
}

class WriteStream : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  WriteStream(SaveQueue* queue, grpc::ByteBuffer* response) : queue_(queue), response_(response) {
    StartRead(&bytes_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Finish(End());
    if (absl::Status status = Take(); !status.ok()) return Finish(ToGrpc(status));
    StartRead(&bytes_);
  }
  void OnDone() override { delete this; }

 private:
  absl::Status Take() {
    std::vector<grpc::Slice> slices;
    Message message;
    v1::WriteSaveRequest request;
    if (!bytes_.Dump(&slices).ok() || !ReadInOrder(&bytes_, slices, &message)) {
      if (!grpc::SerializationTraits<v1::WriteSaveRequest>::Deserialize(&bytes_, &request).ok()) {
        return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
                         "WriteSave: a message of the stream is none of this method; make it from "
                         "the proto/ of this daemon's version");
      }
      message = {request.name(), request.offset(), {request.data()}};
    }
    if (name_.empty()) name_ = message.name;
    if (name_.empty()) return NoName();
    absl::StatusOr<int64_t> staged = queue_->WriteSave(name_, message.offset, message.data);
    if (staged.ok()) staged_bytes_ = *staged;
    return staged.status();
  }

  grpc::Status End() {
    if (name_.empty()) return ToGrpc(NoName());
    v1::WriteSaveResponse response;
    response.set_staged_bytes(staged_bytes_);
    bool owned = false;
    return grpc::SerializationTraits<v1::WriteSaveResponse>::Serialize(response, response_, &owned);
  }

  static absl::Status NoName() {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
                     "WriteSave: the stream's first message names no save, or is none; make it "
                     "from the proto/ of this daemon's version");
  }

  SaveQueue* const queue_;
  grpc::ByteBuffer* const response_;
  grpc::ByteBuffer bytes_;
  std::string name_;
  int64_t staged_bytes_ = 0;
};

}  // namespace

grpc::ServerReadReactor<grpc::ByteBuffer>* NewWriteStream(SaveQueue* queue,
                                                          grpc::ByteBuffer* response) {
  return new WriteStream(queue, response);
}

}  // namespace ckptd
