#include "tests/server/testing/fake_host.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace ckptd {

bool FakeHost::Progress(uint64_t bytes) {
  sealed_.push_back(bytes);
  return sealed_.size() != cancel_at_;
}

absl::Status FakeHost::Found(const ckptd_tensor& tensor) {
  const std::vector<int64_t> shape(tensor.shape, tensor.shape + tensor.rank);
  found_.push_back(absl::StrCat(tensor.name, " ", tensor.dtype, " [", absl::StrJoin(shape, ","),
                                "] ", tensor.size_bytes));
  return absl::OkStatus();
}

ckptd_code FakeHost::Plan(uint64_t object_bytes, const std::vector<ckptd_tensor>& tensors,
                          const std::vector<ckptd_option>& options) {
  Free();
  const ckptd_spec spec = {sizeof(ckptd_spec), object_bytes,   tensors.data(),
                           tensors.size(),     options.data(), options.size()};
  return plugin_->plan(PluginHost(), this, &spec, &plan_, &layout_);
}

ckptd_code FakeHost::Seal(uint8_t* image) {
  sealed_.clear();
  return plugin_->seal(PluginHost(), this, plan_, image);
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
    tensors.push_back({kNames.at(i), "", nullptr, nullptr, 0, sizes[i], nullptr});
  }
  return tensors;
}

}  // namespace ckptd
