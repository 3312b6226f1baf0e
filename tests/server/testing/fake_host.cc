#include "tests/server/testing/fake_host.h"

#include <array>

namespace ckptd {

// The ABI's opaque types are never defined here: a FakeHost goes behind their pointers as it is.
void FakeHost::SetError(ckptd_error* error, const char* message, size_t length) {
  reinterpret_cast<FakeHost*>(error)->error_.assign(message, length);
}

int32_t FakeHost::Sealed(ckptd_progress* progress, uint64_t length) {
  auto* host = reinterpret_cast<FakeHost*>(progress);
  host->sealed_.push_back(length);
  return host->sealed_.size() == host->cancel_at_ ? 1 : 0;
}

ckptd_code FakeHost::Plan(uint64_t object_bytes, const std::vector<ckptd_tensor>& tensors,
                          const std::vector<ckptd_option>& options) {
  Free();
  const ckptd_spec spec = {sizeof(ckptd_spec), object_bytes,   tensors.data(),
                           tensors.size(),     options.data(), options.size()};
  return plugin_->plan(&host_, &spec, &plan_, &layout_, reinterpret_cast<ckptd_error*>(this));
}

ckptd_code FakeHost::Seal(uint8_t* image) {
  sealed_.clear();
  return plugin_->seal(&host_, plan_, image, reinterpret_cast<ckptd_progress*>(this),
                       reinterpret_cast<ckptd_error*>(this));
}

void FakeHost::Free() {
  if (plan_ != nullptr) plugin_->plan_free(plan_);
  plan_ = nullptr;
}

std::vector<ckptd_tensor> Storages(const std::vector<uint64_t>& sizes) {
  static constexpr std::array<const char*, 16> kNames = {
      "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"};
  std::vector<ckptd_tensor> tensors;
  for (size_t i = 0; i < sizes.size(); ++i) {
    tensors.push_back({kNames.at(i), "", nullptr, 0, sizes[i]});
  }
  return tensors;
}

}  // namespace ckptd
