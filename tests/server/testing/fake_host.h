#ifndef CKPTD_TESTS_SERVER_TESTING_FAKE_HOST_H_
#define CKPTD_TESTS_SERVER_TESTING_FAKE_HOST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "plugins/abi/plugin.h"

namespace ckptd {

// Calls the functions of a plugin directly and keeps what it answers.
class FakeHost {
 public:
  explicit FakeHost(const ckptd_plugin* plugin) : plugin_(plugin) {}
  ~FakeHost() { Free(); }
  FakeHost(const FakeHost&) = delete;
  FakeHost& operator=(const FakeHost&) = delete;

  ckptd_code Plan(uint64_t object_bytes, const std::vector<ckptd_tensor>& tensors,
                  const std::vector<ckptd_option>& options = {});
  ckptd_code Seal(uint8_t* image);

  // After Plan.
  const ckptd_layout& layout() const { return layout_; }
  // What set_error was last told.
  const std::string& error() const { return error_; }
  // What sealed was told, call by call.
  const std::vector<uint64_t>& sealed() const { return sealed_; }
  // The call of sealed, from 1, that asks to stop.
  void CancelAt(size_t call) { cancel_at_ = call; }

 private:
  static void SetError(ckptd_error* error, const char* message, size_t length);
  static int32_t Sealed(ckptd_progress* progress, uint64_t length);
  void Free();

  const ckptd_plugin* const plugin_;
  const ckptd_host host_ = {sizeof(ckptd_host), SetError, Sealed};
  ckptd_plan* plan_ = nullptr;
  ckptd_layout layout_ = {sizeof(ckptd_layout), 0, 0, nullptr};
  std::string error_;
  std::vector<uint64_t> sealed_;
  size_t cancel_at_ = 0;
};

// Names "0", "1", ... as the torch backend wants them. Static storage, up to 16.
std::vector<ckptd_tensor> Storages(const std::vector<uint64_t>& sizes);

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_FAKE_HOST_H_
