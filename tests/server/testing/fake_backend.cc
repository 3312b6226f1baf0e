#include "tests/server/testing/fake_backend.h"

#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ckptd {
namespace {

// Goes as a ckptd_plan, which another plugin in the same binary defines.
struct RawPlan {
  uint64_t file_bytes = 0;
  std::vector<uint64_t> offsets;
  bool seal_fails = false;
};

ckptd_code Fail(const ckptd_host* host, ckptd_error* error, ckptd_code code,
                std::string_view message) {
  host->set_error(error, message.data(), message.size());
  return code;
}

ckptd_code Plan(const ckptd_host* host, const ckptd_spec* spec, ckptd_plan** plan,
                ckptd_layout* layout, ckptd_error* error) {
  const std::string trap = spec->option_count > 0 ? spec->options[0].value : "";
  if (trap == "refuse")
    return Fail(host, error, CKPTD_OUT_OF_RANGE, "raw: refuses, as it was told");
  auto made = std::make_unique<RawPlan>();
  uint64_t at = spec->object_bytes;
  for (size_t i = 0; i < spec->tensor_count; ++i) {
    made->offsets.push_back(at);
    at += spec->tensors[i].size_bytes;
  }
  made->file_bytes = trap == "outside" ? at - 1 : at;
  made->seal_fails = trap == "seal";
  layout->file_bytes = made->file_bytes;
  layout->object_offset = trap == "overflow" ? std::numeric_limits<uint64_t>::max() - 1 : 0;
  layout->tensor_offsets = made->offsets.data();
  *plan = reinterpret_cast<ckptd_plan*>(made.release());
  return CKPTD_OK;
}

ckptd_code Seal(const ckptd_host* host, const ckptd_plan* plan, uint8_t* image,
                ckptd_progress* progress, ckptd_error* error) {
  const auto& raw = *reinterpret_cast<const RawPlan*>(plan);
  if (raw.seal_fails) return Fail(host, error, CKPTD_INTERNAL, "raw: cannot seal, as it was told");
  return host->sealed(progress, raw.file_bytes) == 0 ? CKPTD_OK : CKPTD_CANCELLED;
}

void PlanFree(ckptd_plan* plan) { delete reinterpret_cast<RawPlan*>(plan); }

constexpr ckptd_plugin kPlugin = {sizeof(ckptd_plugin),
                                  CKPTD_PLUGIN_ABI_MAJOR,
                                  CKPTD_PLUGIN_ABI_MINOR,
                                  "raw",
                                  Plan,
                                  Seal,
                                  PlanFree};

}  // namespace

const ckptd_plugin* FakePlugin() { return &kPlugin; }

}  // namespace ckptd
