#include "plugins/torch/torch_plugin.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "plugins/torch/torch_checks.h"
#include "plugins/torch/zip_layout.h"

// The plan is the record set of torch.save, in its order:
//   data.pkl, .format_version, .storage_alignment, byteorder, data/0 ... data/n-1, version,
//   .data/serialization_id
// Readers that compute offsets (FakeTensorMode, calculate_storage_offsets) rely on that order and
// on nothing standing between the storages.
struct ckptd_plan {
  ckptd::torch_zip::Layout layout;
  std::vector<uint64_t> tensor_offsets;
};

namespace ckptd {
namespace {

using torch_zip::Layout;
using torch_zip::Record;

constexpr std::string_view kArchive = "archive/";
constexpr size_t kObjectRecord = 0;
constexpr size_t kFirstStorageRecord = 4;
constexpr size_t kTrailingRecords = 2;
constexpr std::string_view kFormatVersion = "1";
constexpr std::string_view kStorageAlignment = "64";
constexpr std::string_view kByteOrder = "little";
constexpr std::string_view kVersion = "3\n";
constexpr size_t kSerializationIdBytes = 40;

// Far enough apart to cost nothing, close enough for writing to follow at once.
constexpr uint64_t kCrcStep = uint64_t{4} << 20;

ckptd_code Fail(const ckptd_host* host, ckptd_call* call, ckptd_code code,
                std::string_view message) {
  host->set_error(call, message.data(), message.size());
  return code;
}

Record MakeRecord(std::string_view name, uint64_t size) {
  Record record;
  record.name.append(kArchive).append(name);
  record.size = size;
  return record;
}

std::vector<Record> ListRecords(uint64_t object_bytes, const std::vector<uint64_t>& storage_bytes) {
  std::vector<Record> records;
  records.reserve(kFirstStorageRecord + storage_bytes.size() + kTrailingRecords);
  records.push_back(MakeRecord("data.pkl", object_bytes));
  records.push_back(MakeRecord(".format_version", kFormatVersion.size()));
  records.push_back(MakeRecord(".storage_alignment", kStorageAlignment.size()));
  records.push_back(MakeRecord("byteorder", kByteOrder.size()));
  for (size_t i = 0; i < storage_bytes.size(); ++i) {
    records.push_back(MakeRecord("data/" + std::to_string(i), storage_bytes[i]));
  }
  records.push_back(MakeRecord("version", kVersion.size()));
  records.push_back(MakeRecord(".data/serialization_id", kSerializationIdBytes));
  return records;
}

ckptd_code CheckSpec(const ckptd_host* host, ckptd_call* call, const ckptd_spec& spec) {
  if (spec.option_count > 0) {
    return Fail(host, call, CKPTD_INVALID_ARGUMENT,
                std::string("option '") + spec.options[0].key +
                    "': the torch backend takes no options; leave it out");
  }
  if (spec.object_bytes == 0) {
    return Fail(host, call, CKPTD_INVALID_ARGUMENT,
                "object_bytes: is 0; the torch backend needs a pickle (data.pkl)");
  }
  for (size_t i = 0; i < spec.tensor_count; ++i) {
    if (std::to_string(i) != spec.tensors[i].name) {
      return Fail(host, call, CKPTD_INVALID_ARGUMENT,
                  "tensor " + std::to_string(i) + ": is named '" + spec.tensors[i].name +
                      "'; the torch backend wants storages named 0, 1, 2, ... in order");
    }
  }
  return CKPTD_OK;
}

ckptd_code Plan(const ckptd_host* host, ckptd_call* call, const ckptd_spec* spec, ckptd_plan** plan,
                ckptd_layout* layout) {
  try {
    if (ckptd_code code = CheckSpec(host, call, *spec); code != CKPTD_OK) return code;
    auto made = std::make_unique<ckptd_plan>();
    std::vector<uint64_t> storage_bytes(spec->tensor_count);
    for (size_t i = 0; i < storage_bytes.size(); ++i)
      storage_bytes[i] = spec->tensors[i].size_bytes;
    made->layout = torch_zip::PlanRecords(ListRecords(spec->object_bytes, storage_bytes));
    const std::vector<Record>& records = made->layout.records;
    made->tensor_offsets.reserve(spec->tensor_count);
    for (size_t i = 0; i < spec->tensor_count; ++i) {
      made->tensor_offsets.push_back(records[kFirstStorageRecord + i].payload_offset);
    }
    layout->file_bytes = made->layout.file_bytes;
    layout->object_offset = records[kObjectRecord].payload_offset;
    layout->tensor_offsets = made->tensor_offsets.data();
    *plan = made.release();
    return CKPTD_OK;
  } catch (const std::exception& e) {
    return Fail(host, call, CKPTD_INTERNAL, std::string("torch backend, plan: ") + e.what());
  }
}

// As c10::hash_combine.
uint64_t HashCombine(uint64_t seed, uint64_t value) {
  return seed ^ (value + 0x9e3779b9 + (seed << 6U) + (seed >> 2U));
}

// As PyTorchStreamWriter::writeSerializationId: a hash of the record names, in the order of a hash
// set, then one of their CRCs, which it picks out of the data descriptors: empty records have none.
// Nothing reads it; it is written so that the file equals torch.save's.
std::string SerializationId(const Layout& layout, const std::vector<uint32_t>& crcs) {
  std::unordered_set<std::string> names;
  uint64_t crc_hash = 0;
  for (size_t i = 0; i < crcs.size(); ++i) {
    names.insert(layout.records[i].name.substr(kArchive.size()));
    if (layout.records[i].size > 0) crc_hash = HashCombine(crc_hash, crcs[i]);
  }
  uint64_t name_hash = 0;
  for (const std::string& name : names) {
    name_hash = HashCombine(name_hash, std::hash<std::string>{}(name));
  }
  std::string digits[2] = {std::to_string(name_hash), std::to_string(crc_hash)};
  std::string id;
  for (const std::string& d : digits) id.append(20 - d.size(), '0').append(d);
  return id;
}

// Told the bytes of the file that are final; false stops the seal.
using Sealed = std::function<bool(uint64_t)>;

// Checksums one record in steps, so that writing to storage follows close behind; false when the
// save was cancelled.
bool SealRecord(const Record& record, const uint8_t* payload, uint8_t* image, const Sealed& sealed,
                uint32_t* crc) {
  torch_zip::WriteHeader(record, image);
  uint32_t sum = 0;
  for (uint64_t at = 0; at < record.size;) {
    const uint64_t step = std::min(kCrcStep, record.size - at);
    sum = crc32_gzip_refl(sum, payload + at, step);
    at += step;
    if (step == kCrcStep && !sealed(record.payload_offset + at)) return false;
  }
  *crc = sum;
  torch_zip::WriteDescriptor(record, sum, image);
  return true;
}

// `elsewhere`: where the payload of record i is; not in the image, if that is not null.
bool SealAll(const Layout& layout, const std::vector<const uint8_t*>& elsewhere, uint8_t* image,
             const Sealed& sealed) {
  const std::vector<Record>& records = layout.records;
  auto write = [&](size_t index, std::string_view text) {
    std::memcpy(image + records[index].payload_offset, text.data(), text.size());
  };
  const size_t version = records.size() - kTrailingRecords;
  write(1, kFormatVersion);
  write(2, kStorageAlignment);
  write(3, kByteOrder);
  write(version, kVersion);
  std::vector<uint32_t> crcs;
  crcs.reserve(records.size());
  uint64_t told = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    if (i == version + 1) write(i, SerializationId(layout, crcs));
    const bool is_elsewhere = i < elsewhere.size() && elsewhere[i] != nullptr;
    const uint8_t* payload = is_elsewhere ? elsewhere[i] : image + records[i].payload_offset;
    uint32_t crc = 0;
    if (!SealRecord(records[i], payload, image, sealed, &crc)) return false;
    crcs.push_back(crc);
    const uint64_t end =
        records[i].payload_offset + records[i].size + torch_zip::DescriptorBytes(records[i]);
    if (end - told < kCrcStep) continue;
    told = end;
    if (!sealed(end)) return false;
  }
  torch_zip::WriteDirectory(layout, crcs, image);
  return sealed(layout.file_bytes);
}

ckptd_code Seal(const ckptd_host* host, ckptd_call* call, const ckptd_plan* plan, uint8_t* image) {
  try {
    const auto sealed = [&](uint64_t bytes) { return host->progress(call, bytes) == 0; };
    if (SealAll(plan->layout, {}, image, sealed)) return CKPTD_OK;
    return Fail(host, call, CKPTD_CANCELLED, "torch backend, seal: cancelled");
  } catch (const std::exception& e) {
    return Fail(host, call, CKPTD_INTERNAL, std::string("torch backend, seal: ") + e.what());
  }
}

void PlanFree(ckptd_plan* plan) { delete plan; }

ckptd_backend Table(const char* name) {
  ckptd_backend table = {};
  table.size = sizeof(ckptd_backend);
  table.abi_major = CKPTD_PLUGIN_ABI_MAJOR;
  table.abi_minor = CKPTD_PLUGIN_ABI_MINOR;
  table.name = name;
  table.version = CKPTD_VERSION;
  table.flags = CKPTD_TAKES_OBJECT;
  table.plan = Plan;
  table.seal = Seal;
  table.plan_free = PlanFree;
  table.verify = VerifyTorch;
  table.inspect = InspectTorch;
  return table;
}

}  // namespace

TorchFilePieces::TorchFilePieces(ckptd_bytes object, const std::vector<ckptd_bytes>& storages) {
  std::vector<uint64_t> storage_bytes;
  std::vector<const uint8_t*> payloads(kFirstStorageRecord + storages.size());
  payloads[kObjectRecord] = static_cast<const uint8_t*>(object.data);
  for (size_t i = 0; i < storages.size(); ++i) {
    storage_bytes.push_back(storages[i].length);
    payloads[kFirstStorageRecord + i] = static_cast<const uint8_t*>(storages[i].data);
  }
  const Layout layout = torch_zip::PlanRecords(ListRecords(object.length, storage_bytes));
  // As large as the file; what is not written to takes no memory.
  around_ = std::make_unique_for_overwrite<uint8_t[]>(layout.file_bytes);
  SealAll(layout, payloads, around_.get(), [](uint64_t) { return true; });
  uint64_t at = 0;
  for (size_t i = 0; i < payloads.size(); ++i) {
    if (payloads[i] == nullptr) continue;
    const Record& record = layout.records[i];
    pieces_.push_back({around_.get() + at, record.payload_offset - at});
    pieces_.push_back({payloads[i], record.size});
    at = record.payload_offset + record.size;
  }
  pieces_.push_back({around_.get() + at, layout.file_bytes - at});
}

const ckptd_backend* TorchPlugin() {
  static const ckptd_backend table = Table("torch");
  return &table;
}

const ckptd_backend* XlaPlugin() {
  static const ckptd_backend table = Table("xla");
  return &table;
}

}  // namespace ckptd
