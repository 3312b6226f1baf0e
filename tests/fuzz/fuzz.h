#ifndef CKPTD_TESTS_FUZZ_FUZZ_H_
#define CKPTD_TESTS_FUZZ_FUZZ_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/string_view.h"

// Ends the process where `condition` does not hold, so that the fuzzer keeps the input. `detail`, a
// string, is printed.
#define FUZZ_CHECK(condition, detail)                                                \
  do {                                                                               \
    if (!(condition)) ::ckptd::FuzzFailed(__FILE__, __LINE__, #condition, (detail)); \
  } while (false)

namespace ckptd {

[[noreturn]] inline void FuzzFailed(const char* file, int line, const char* condition,
                                    absl::string_view detail) {
  std::fprintf(stderr, "%s:%d: does not hold: %s: %.*s\n", file, line, condition,
               static_cast<int>(detail.size()), detail.data());
  std::abort();
}

// The input, taken piece by piece from its front; what is not there is zero or empty.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return rest_.empty(); }
  uint8_t Byte() {
    if (rest_.empty()) return 0;
    const auto byte = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    return byte;
  }
  // At most `length` bytes.
  absl::string_view Take(size_t length) {
    const absl::string_view piece = rest_.substr(0, length);
    rest_.remove_prefix(piece.size());
    return piece;
  }
  // All up to the next `end`, which is dropped.
  absl::string_view TakeUntil(char end) {
    const absl::string_view piece = rest_.substr(0, rest_.find(end));
    rest_.remove_prefix(piece.size());
    Byte();
    return piece;
  }
  absl::string_view Rest() { return Take(rest_.size()); }

 private:
  absl::string_view rest_;
};

}  // namespace ckptd

// Each target defines it. Returns 0, or -1 for an input that is not worth keeping.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

#endif  // CKPTD_TESTS_FUZZ_FUZZ_H_
