// What BeginSave announces, from the message to the plan of the file, and where the file is small
// to the file itself.

#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ckptd/v1/checkpoint.pb.h"
#include "plugins/torch/torch_plugin.h"
#include "proto/status/error_info.h"
#include "server/backend/backend.h"
#include "server/queue/requests.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/sealed_zip.h"

namespace ckptd {
namespace {

constexpr int64_t kMaxTensors = 1000;
constexpr uint64_t kMaxBytes = uint64_t{1} << 50;
constexpr uint64_t kSealedBytes = uint64_t{1} << 20;
constexpr uint64_t kRecordsBesideTensors = 6;
// More than what stands around one payload: its header, padding, descriptor and directory entry.
constexpr uint64_t kAroundBytes = 512;

struct Piece {
  uint64_t offset;
  uint64_t size;
};

// The object, then the tensors.
std::vector<Piece> Pieces(const CheckpointSpec& spec, const Plan& plan) {
  std::vector<Piece> pieces = {{plan.object_offset(), spec.object_bytes}};
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    pieces.push_back({plan.tensor_offsets()[i], spec.tensors[i].size_bytes});
  }
  return pieces;
}

void CheckPlan(const CheckpointSpec& spec, const Plan& plan) {
  FUZZ_CHECK(plan.tensor_offsets().size() == spec.tensors.size(), "offsets are missing");
  uint64_t end = 0;
  uint64_t payload = 0;
  for (const Piece& piece : Pieces(spec, plan)) {
    const std::string detail =
        absl::StrCat(piece.size, " bytes at ", piece.offset, " behind ", end);
    FUZZ_CHECK(piece.offset % 64 == 0, detail);
    // The header of a record has 30 bytes and a name, and what stands before it may not reach
    // there.
    FUZZ_CHECK(piece.offset >= end + 30 + sizeof("archive/"), detail);
    FUZZ_CHECK(piece.offset <= plan.file_bytes(), detail);
    FUZZ_CHECK(piece.size <= plan.file_bytes() - piece.offset, detail);
    end = piece.offset + piece.size + (piece.size > 0 ? 16 : 0);
    payload += piece.size;
  }
  const uint64_t records = spec.tensors.size() + kRecordsBesideTensors;
  FUZZ_CHECK(plan.file_bytes() > payload, "the payload does not fit");
  FUZZ_CHECK(plan.file_bytes() - payload < records * kAroundBytes, "there is more than its parts");
}

// Bytes that differ from place to place.
uint8_t Pattern(uint64_t at) { return static_cast<uint8_t>(at * 131 + (at >> 8)); }

void CheckSeal(const Backend& backend, const CheckpointSpec& spec, const Plan& plan) {
  // Exactly the file's length: a byte written behind it is the sanitizer's to see.
  std::vector<uint8_t> image(plan.file_bytes(), 0xEE);
  for (const Piece& piece : Pieces(spec, plan)) {
    for (uint64_t i = 0; i < piece.size; ++i) image[piece.offset + i] = Pattern(piece.offset + i);
  }
  uint64_t told = 0;
  const absl::Status sealed = backend.Seal(plan, image.data(), [&](uint64_t bytes) {
    FUZZ_CHECK(bytes >= told && bytes <= image.size(), absl::StrCat(bytes, " after ", told));
    told = bytes;
    return true;
  });
  FUZZ_CHECK(sealed.ok(), sealed.ToString());
  FUZZ_CHECK(told == image.size(), absl::StrCat(told));

  const auto records = ReadSealedZip({reinterpret_cast<const char*>(image.data()), image.size()});
  FUZZ_CHECK(records.size() == spec.tensors.size() + kRecordsBesideTensors, "records");
  const std::vector<Piece> pieces = Pieces(spec, plan);
  for (size_t i = 0; i < pieces.size(); ++i) {
    // Three small records stand between the object and the tensors.
    const ZipRecord& record = records[i == 0 ? 0 : i + 3];
    const std::string name = i == 0 ? "data.pkl" : absl::StrCat("data/", i - 1);
    FUZZ_CHECK(record.name == absl::StrCat("archive/", name), record.name);
    FUZZ_CHECK(record.payload_offset == pieces[i].offset, record.name);
    FUZZ_CHECK(record.payload.size() == pieces[i].size, record.name);
    for (uint64_t at = 0; at < pieces[i].size; ++at) {
      FUZZ_CHECK(static_cast<uint8_t>(record.payload[at]) == Pattern(pieces[i].offset + at),
                 absl::StrCat(record.name, ": a byte was changed at ", at));
    }
  }
  FUZZ_CHECK(records[records.size() - 2].payload == "3\n", "version");
}

void CheckError(const absl::Status& status) {
  FUZZ_CHECK(absl::IsInvalidArgument(status), status.ToString());
  FUZZ_CHECK(ReasonOf(FromGrpc(ToGrpc(status))) == ReasonOf(status), status.ToString());
  FUZZ_CHECK(!ReasonOf(status).empty(), status.ToString());
}

void CheckCanonical(const v1::BeginSaveRequest& request) {
  v1::BeginSaveRequest other = request;
  other.set_session_id("another");
  FUZZ_CHECK(Canonical(other) == Canonical(request), "the session counts");
  other.set_umask(request.umask() + 1);
  FUZZ_CHECK(Canonical(other) != Canonical(request), "the umask does not count");
}

void Check(const v1::BeginSaveRequest& request) {
  static const auto backend = Backend::Create(TorchPlugin());
  FUZZ_CHECK(backend.ok(), backend.status().ToString());
  CheckCanonical(request);
  if (absl::Status status = JobOfSave(request.name()).status(); !status.ok()) CheckError(status);
  if (absl::Status status = CheckTensors(request, kMaxTensors); !status.ok()) {
    return CheckError(status);
  }
  const CheckpointSpec spec = ToSpec(request);
  FUZZ_CHECK(spec.tensors.size() <= static_cast<size_t>(kMaxTensors), "too many tensors");
  uint64_t total = spec.object_bytes;
  for (const CheckpointSpec::Tensor& tensor : spec.tensors) total += tensor.size_bytes;
  FUZZ_CHECK(total <= kMaxBytes, absl::StrCat(total, " bytes in all"));
  const auto plan = (*backend)->MakePlan(spec);
  if (!plan.ok()) return CheckError(plan.status());
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    FUZZ_CHECK(spec.tensors[i].name == absl::StrCat(i), spec.tensors[i].name);
  }
  CheckPlan(spec, **plan);
  if ((*plan)->file_bytes() <= kSealedBytes) CheckSeal(**backend, spec, **plan);
}

}  // namespace
}  // namespace ckptd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  google::protobuf::SetLogHandler(nullptr);
  ckptd::v1::BeginSaveRequest request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return -1;
  ckptd::Check(request);
  return 0;
}
