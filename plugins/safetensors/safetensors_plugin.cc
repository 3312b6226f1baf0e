#include "plugins/safetensors/safetensors_plugin.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/safetensors/header.h"
#include "plugins/safetensors/safetensors_file.h"
#include "plugins/with_file.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using safetensors::Entry;
using safetensors::kChecksumOffset;
using safetensors::kNoChecksum;
using safetensors::Layout;

constexpr uint64_t kStep = uint64_t{4} << 20;

ckptd_code Fail(const ckptd_host* host, ckptd_call* call, ckptd_code code,
                std::string_view message) {
  host->set_error(call, message.data(), message.size());
  return code;
}

// No exception may leave a function of a plugin.
template <typename Function>
ckptd_code Guarded(const ckptd_host* host, ckptd_call* call, Function function) {
  try {
    return function();
  } catch (const std::exception& e) {
    return Fail(host, call, CKPTD_INTERNAL, std::string("safetensors backend: ") + e.what());
  }
}

// ckptd_plan is another plugin's type in the same program.
ckptd_plan* ToPlan(Layout* layout) { return reinterpret_cast<ckptd_plan*>(layout); }
const Layout& ToLayout(const ckptd_plan* plan) { return *reinterpret_cast<const Layout*>(plan); }

template <bool kStrict>
ckptd_code Plan(const ckptd_host* host, ckptd_call* call, const ckptd_spec* spec, ckptd_plan** plan,
                ckptd_layout* layout) {
  return Guarded(host, call, [&] {
    auto made = std::make_unique<Layout>();
    if (const std::string why = safetensors::PlanFile(*spec, kStrict, made.get()); !why.empty()) {
      return Fail(host, call, CKPTD_INVALID_ARGUMENT, why);
    }
    layout->file_bytes = made->file_bytes;
    layout->object_offset = made->head.size();
    layout->tensor_offsets = made->tensor_offsets.data();
    layout->late_bytes = kChecksumOffset + kNoChecksum.size();
    *plan = ToPlan(made.release());
    return ckptd_code{CKPTD_OK};
  });
}

void PlanFree(ckptd_plan* plan) { delete reinterpret_cast<Layout*>(plan); }

std::string Digits(uint32_t crc) {
  char digits[9];
  std::snprintf(digits, sizeof(digits), "%08x", crc);
  return digits;
}

// The checksum stands at the front and is of all that follows: the late bytes.
ckptd_code Seal(const ckptd_host* host, ckptd_call* call, const ckptd_plan* plan, uint8_t* image) {
  return Guarded(host, call, [&] {
    const Layout& layout = ToLayout(plan);
    std::copy(layout.head.begin(), layout.head.end(), image);
    uint32_t crc = 0;
    for (uint64_t at = 0; at < layout.file_bytes;) {
      const uint64_t step = std::min(kStep, layout.file_bytes - at);
      crc = crc32_gzip_refl(crc, image + at, step);
      at += step;
      if (at < layout.file_bytes && host->progress(call, at) != 0) {
        return Fail(host, call, CKPTD_CANCELLED, "safetensors backend, seal: cancelled");
      }
    }
    std::memcpy(image + kChecksumOffset, Digits(crc).data(), kNoChecksum.size());
    if (host->progress(call, layout.file_bytes) != 0) {
      return Fail(host, call, CKPTD_CANCELLED, "safetensors backend, seal: cancelled");
    }
    return ckptd_code{CKPTD_OK};
  });
}

ckptd_code Verify(const ckptd_host* host, ckptd_call* call, const char* path) {
  return WithFile(host, call, path, [path](uint64_t size_bytes, ReadAt read) {
    return VerifySafetensors(path, size_bytes, read).status();
  });
}

absl::Status Tell(const ckptd_host* host, ckptd_call* call, const Entry& entry) {
  std::vector<int64_t> strides(entry.shape.size(), 1);
  for (size_t i = strides.size(); i-- > 1;) {
    strides[i - 1] = strides[i] * std::max<int64_t>(1, entry.shape[i]);
  }
  const bool scalar = entry.shape.empty();
  return TellFound(
      host, call,
      {entry.name.c_str(), entry.dtype.c_str(), scalar ? nullptr : entry.shape.data(),
       scalar ? nullptr : strides.data(), entry.shape.size(), entry.end - entry.begin, nullptr});
}

ckptd_code Inspect(const ckptd_host* host, ckptd_call* call, const char* path) {
  return WithFile(host, call, path, [&](uint64_t size_bytes, ReadAt read) {
    CKPTD_ASSIGN_OR_RETURN(const SafetensorsFile file, ReadSafetensors(path, size_bytes, read));
    for (const Entry& entry : file.entries) {
      CKPTD_RETURN_IF_ERROR(Tell(host, call, entry));
    }
    return absl::OkStatus();
  });
}

ckptd_backend Table(const char* name) {
  ckptd_backend table = {};
  table.size = sizeof(ckptd_backend);
  table.abi_major = CKPTD_PLUGIN_ABI_MAJOR;
  table.abi_minor = CKPTD_PLUGIN_ABI_MINOR;
  table.name = name;
  table.version = CKPTD_VERSION;
  table.plan = Plan<true>;
  table.seal = Seal;
  table.plan_free = PlanFree;
  table.verify = Verify;
  table.inspect = Inspect;
  return table;
}

}  // namespace

const ckptd_backend* SafetensorsPlugin() {
  static const ckptd_backend table = Table("safetensors");
  return &table;
}

const ckptd_backend* NamedTensorsPlugin() {
  static const ckptd_backend table = [] {
    ckptd_backend lenient = Table("named-tensors");
    lenient.plan = Plan<false>;
    return lenient;
  }();
  return &table;
}

}  // namespace ckptd
