#ifndef CKPTD_TESTS_SERVER_TESTING_FAKE_HOST_H_
#define CKPTD_TESTS_SERVER_TESTING_FAKE_HOST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "server/backend/call.h"

namespace ckptd {

// Calls the functions of a plugin directly and keeps what it answers.
class FakeHost : public ckptd_call {
 public:
  explicit FakeHost(const ckptd_backend* plugin) : plugin_(plugin) {}
  ~FakeHost() override { Free(); }

  ckptd_code Plan(uint64_t object_bytes, const std::vector<ckptd_tensor>& tensors,
                  const std::vector<ckptd_option>& options = {});
  ckptd_code Seal(uint8_t* image);

  // After Plan.
  const ckptd_layout& layout() const { return layout_; }
  // What progress was told, call by call.
  const std::vector<uint64_t>& sealed() const { return sealed_; }
  // What found was told: "name dtype [2,3] 24".
  const std::vector<std::string>& found() const { return found_; }
  // The call of progress, from 1, that asks to stop.
  void CancelAt(size_t call) { cancel_at_ = call; }

 private:
  bool Progress(uint64_t bytes) override;
  absl::Status Found(const ckptd_tensor& tensor) override;
  void Free();

  const ckptd_backend* const plugin_;
  ckptd_plan* plan_ = nullptr;
  ckptd_layout layout_ = {sizeof(ckptd_layout), 0, 0, nullptr, 0};
  std::vector<uint64_t> sealed_;
  std::vector<std::string> found_;
  size_t cancel_at_ = 0;
};

// Names "0", "1", ... as the torch backend wants them. Static storage, up to 16.
std::vector<ckptd_tensor> Storages(const std::vector<uint64_t>& sizes);

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_FAKE_HOST_H_
