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

ckptd_code Fail(const ckptd_host* host, ckptd_call* call, ckptd_code code,
                std::string_view message) {
  host->set_error(call, message.data(), message.size());
  return code;
}

ckptd_code Plan(const ckptd_host* host, ckptd_call* call, const ckptd_spec* spec, ckptd_plan** plan,
                ckptd_layout* layout) {
  const std::string trap = spec->option_count > 0 ? spec->options[0].value : "";
  if (trap == "refuse") return Fail(host, call, CKPTD_OUT_OF_RANGE, "raw: refuses, as it was told");
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

ckptd_code Seal(const ckptd_host* host, ckptd_call* call, const ckptd_plan* plan, uint8_t* image) {
  const auto& raw = *reinterpret_cast<const RawPlan*>(plan);
  if (raw.seal_fails) return Fail(host, call, CKPTD_INTERNAL, "raw: cannot seal, as it was told");
  return host->progress(call, raw.file_bytes) == 0 ? CKPTD_OK : CKPTD_CANCELLED;
}

void PlanFree(ckptd_plan* plan) { delete reinterpret_cast<RawPlan*>(plan); }

ckptd_backend Table() {
  ckptd_backend table = {};
  table.size = sizeof(ckptd_backend);
  table.abi_major = CKPTD_PLUGIN_ABI_MAJOR;
  table.abi_minor = CKPTD_PLUGIN_ABI_MINOR;
  table.name = "raw";
  table.version = "1";
  table.flags = CKPTD_TAKES_OBJECT;
  table.plan = Plan;
  table.seal = Seal;
  table.plan_free = PlanFree;
  return table;
}

}  // namespace

const ckptd_backend* FakePlugin() {
  static const ckptd_backend table = Table();
  return &table;
}

}  // namespace ckptd
