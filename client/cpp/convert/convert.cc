#include "client/cpp/convert/convert.h"

#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/convert/read.h"
#include "client/cpp/convert/write.h"
#include "plugins/safetensors/safetensors_file.h"
#include "plugins/torch/read/verify.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

constexpr uint64_t kMaxPickleBytes = uint64_t{1} << 30;

// Reads what is in memory.
auto Reading(absl::string_view bytes) {
  return [bytes](uint64_t offset, void* to, size_t length) {
    std::memcpy(to, bytes.data() + offset, length);
    return absl::OkStatus();
  };
}

absl::Status IfVerifiable(const absl::StatusOr<VerifiedCheckpoint>& found) {
  return ReasonOf(found.status()) == "NOT_VERIFIABLE" ? absl::OkStatus() : found.status();
}

// XLA's file has plain tensors of the CPU.
absl::Status CheckLocations(const TorchFile& file) {
  CKPTD_ASSIGN_OR_RETURN(const TorchContents contents, ReadTorchContents(file));
  for (const TorchTensor& tensor : contents.table.tensors) {
    if (tensor.location == "cpu") continue;
    return NotConvertible(file.name(),
                          absl::StrCat("has tensors on the device ", tensor.location,
                                       "; load it with Python, map_location='cpu', and save that"));
  }
  return absl::OkStatus();
}

// Pickle and storages as they are, whatever they mean.
absl::Status Repack(const TorchFile& file, absl::string_view bytes, SaveSpec* spec) {
  if (spec->backend == "xla") CKPTD_RETURN_IF_ERROR(CheckLocations(file));
  CKPTD_ASSIGN_OR_RETURN(spec->object, file.ReadRecord(*file.Find("data.pkl"), kMaxPickleBytes));
  const TorchRecord* order = file.Find("byteorder");
  if (order != nullptr) {
    CKPTD_ASSIGN_OR_RETURN(const std::string said, file.ReadRecord(*order, kMaxPickleBytes));
    if (!absl::StartsWith(said, "little")) {
      return NotConvertible(file.name(), "was written by a big-endian machine");
    }
  }
  for (;;) {
    TensorView view;
    view.name = absl::StrCat(spec->tensors.size());
    const TorchRecord* record = file.Find(absl::StrCat("data/", view.name));
    if (record == nullptr) break;
    CKPTD_ASSIGN_OR_RETURN(const uint64_t payload, file.PayloadOffset(*record));
    view.data = bytes.data() + payload;
    view.size_bytes = record->zip.size_bytes;
    spec->tensors.push_back(std::move(view));
  }
  size_t storages = 0;
  for (const TorchRecord& record : file.records()) {
    if (absl::StartsWith(record.name, "data/")) ++storages;
  }
  if (storages == spec->tensors.size()) return absl::OkStatus();
  return NotConvertible(file.name(), "has storages that are not numbered from 0, as torch does");
}

absl::Status Write(const std::string& name, bool takes_object, Conversion* conversion) {
  if (!takes_object) return WriteNamed(name, conversion->state, &conversion->spec);
  for (const auto& [key, value] : conversion->state.metadata) conversion->dropped.push_back(key);
  return WriteTorch(name, conversion->state, &conversion->spec);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Conversion>> ConvertCheckpoint(const std::string& name,
                                                              absl::string_view bytes,
                                                              const std::string& backend) {
  auto conversion = std::make_unique<Conversion>();
  conversion->spec.backend = backend;
  const bool takes_object = backend == "torch" || backend == "xla";
  const auto read = Reading(bytes);
  if (BeginsAsSafetensors(bytes.substr(0, kTorchHeadBytes), bytes.size())) {
    CKPTD_RETURN_IF_ERROR(IfVerifiable(VerifySafetensors(name, bytes.size(), read)));
    CKPTD_ASSIGN_OR_RETURN(conversion->state, ReadSafetensorsState(name, bytes));
    CKPTD_RETURN_IF_ERROR(Write(name, takes_object, conversion.get()));
    return conversion;
  }
  CKPTD_RETURN_IF_ERROR(IfVerifiable(VerifyBytes(name, bytes.size(), read)));
  CKPTD_ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(name, bytes.size(), read));
  if (takes_object) {
    CKPTD_RETURN_IF_ERROR(Repack(file, bytes, &conversion->spec));
    return conversion;
  }
  CKPTD_ASSIGN_OR_RETURN(conversion->state, ReadTorchState(file, bytes));
  CKPTD_RETURN_IF_ERROR(Write(name, takes_object, conversion.get()));
  return conversion;
}

}  // namespace ckptd
