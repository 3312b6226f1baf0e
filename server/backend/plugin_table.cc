#include "server/backend/plugin_table.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

constexpr size_t kMaxNameBytes = 63;

absl::Status Refuse(absl::string_view why) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "PLUGIN_REFUSED", why);
}

bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_islower(static_cast<unsigned char>(c)) ||
                  absl::ascii_isdigit(static_cast<unsigned char>(c)) || c == '-';
         });
}

// What every table must have. Its size says how far it may be read.
absl::Status CheckHead(const ckptd_backend& table) {
  if (table.size < offsetof(ckptd_backend, name)) {
    return Refuse(absl::StrCat("its table is ", table.size,
                               " bytes long, which holds not even a version; set `size` to "
                               "sizeof(ckptd_backend)"));
  }
  if (table.abi_major != CKPTD_PLUGIN_ABI_MAJOR) {
    return Refuse(absl::StrCat("it was built for plugin ABI ", table.abi_major,
                               ", this daemon has ", CKPTD_PLUGIN_ABI_MAJOR,
                               "; build it again against this daemon's plugin.h"));
  }
  // What is required; a table may end anywhere behind it.
  constexpr size_t kRequired = offsetof(ckptd_backend, remove) + sizeof(table.remove);
  if (table.size < kRequired) {
    return Refuse(absl::StrCat("its table is ", table.size, " bytes long, and what is required in ",
                               "it takes ", kRequired, "; set `size` to sizeof(ckptd_backend)"));
  }
  if (table.name == nullptr || !IsName(table.name)) {
    return Refuse(absl::StrCat(
        "its name is ", table.name == nullptr ? "missing" : absl::StrCat("'", table.name, "'"),
        "; it must be 1 to 63 of a-z, 0-9 and -"));
  }
  if (table.version == nullptr) return Refuse("its table lacks a version, for people to see");
  const ckptd_backend whole = WholeTable(table);
  const int plans = (whole.plan != nullptr ? 1 : 0) + (whole.seal != nullptr ? 1 : 0) +
                    (whole.plan_free != nullptr ? 1 : 0);
  if (plans != 0 && plans != 3) {
    return Refuse(
        "its table has some of plan, seal and plan_free; all three or none must be there");
  }
  return absl::OkStatus();
}

}  // namespace

ckptd_backend WholeTable(const ckptd_backend& table) {
  ckptd_backend whole = {};
  std::memcpy(&whole, &table, std::min<size_t>(table.size, sizeof(whole)));
  return whole;
}

absl::Status CheckBuiltInTable(const ckptd_backend& table) {
  CKPTD_RETURN_IF_ERROR(CheckHead(table));
  if (WholeTable(table).plan == nullptr) return Refuse("its table lacks plan, seal and plan_free");
  return absl::OkStatus();
}

absl::Status CheckFileTable(const ckptd_backend& table) {
  CKPTD_RETURN_IF_ERROR(CheckHead(table));
  std::string missing;
  if (table.save == nullptr) missing = "save";
  if (table.load == nullptr) missing = "load";
  if (table.remove == nullptr) missing = "remove";
  if (!missing.empty()) {
    return Refuse(
        absl::StrCat("its table lacks ", missing, "; save, load and remove are required"));
  }
  if ((table.flags & ~uint64_t{CKPTD_TAKES_OBJECT}) != 0) {
    return Refuse(absl::StrCat("it has flags that this daemon does not know: ", table.flags));
  }
  if ((table.flags & CKPTD_TAKES_OBJECT) != 0) {
    return Refuse("it has the flag CKPTD_TAKES_OBJECT, which only backends have that are built in");
  }
  return absl::OkStatus();
}

absl::Status RefusePlugin(const std::string& file, absl::string_view why) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "PLUGIN_REFUSED",
                   absl::StrCat(file, ": ", why));
}

Backend::Description DescribeTable(const ckptd_backend& table) {
  Backend::Description description;
  description.name = table.name;
  description.version = table.version;
  std::vector<std::string>& capabilities = description.capabilities;
  if (table.configure != nullptr) capabilities.emplace_back("configure");
  if (table.save != nullptr) capabilities.emplace_back("hosted");
  if (table.inspect != nullptr) capabilities.emplace_back("inspect");
  if ((table.flags & CKPTD_TAKES_OBJECT) != 0) capabilities.emplace_back("object");
  if (table.plan != nullptr) capabilities.emplace_back("plan");
  if (table.publish != nullptr) capabilities.emplace_back("publish");
  if (table.verify != nullptr) capabilities.emplace_back("verify");
  return description;
}

SpecInC::SpecInC(const CheckpointSpec& spec) {
  size_t dimensions = 0;
  for (const CheckpointSpec::Tensor& t : spec.tensors) dimensions += t.shape.size();
  strides_.resize(dimensions);
  tensors_.reserve(spec.tensors.size());
  int64_t* next = strides_.data();
  for (const CheckpointSpec::Tensor& t : spec.tensors) {
    const size_t rank = t.shape.size();
    // Unsigned: a shape that the backend will refuse may overflow.
    uint64_t stride = 1;
    for (size_t i = rank; i-- > 0;) {
      next[i] = static_cast<int64_t>(stride);
      stride *= static_cast<uint64_t>(std::max<int64_t>(1, t.shape[i]));
    }
    tensors_.push_back({t.name.c_str(), t.dtype.c_str(), rank == 0 ? nullptr : t.shape.data(),
                        rank == 0 ? nullptr : next, rank, t.size_bytes, nullptr});
    next += rank;
  }
  options_.reserve(spec.options.size());
  for (const auto& [key, value] : spec.options) options_.push_back({key.c_str(), value.c_str()});
  std::sort(options_.begin(), options_.end(), [](const ckptd_option& a, const ckptd_option& b) {
    return std::strcmp(a.key, b.key) < 0;
  });
  spec_ = {sizeof(ckptd_spec), spec.object_bytes, tensors_.data(),
           tensors_.size(),    options_.data(),   options_.size()};
}

void SpecInC::SetData(const uint8_t* base, const std::vector<uint64_t>& offsets) {
  for (size_t i = 0; i < tensors_.size(); ++i) tensors_[i].data = base + offsets.at(i);
}

CheckpointSpec SpecFromC(const ckptd_spec& c_spec) {
  CheckpointSpec spec;
  spec.object_bytes = c_spec.object_bytes;
  spec.tensors.reserve(c_spec.tensor_count);
  for (size_t i = 0; i < c_spec.tensor_count; ++i) {
    const ckptd_tensor& t = c_spec.tensors[i];
    std::vector<int64_t> shape(t.shape, t.shape + t.rank);
    spec.tensors.push_back({t.name, t.dtype, std::move(shape), t.size_bytes});
  }
  for (size_t i = 0; i < c_spec.option_count; ++i) {
    spec.options.emplace_back(c_spec.options[i].key, c_spec.options[i].value);
  }
  return spec;
}

}  // namespace ckptd
