// Checkpoint files as they are verified, before anything of them is unpickled, and as they are
// looked into.

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "plugins/torch/read/torch_file.h"
#include "plugins/torch/read/verify.h"
#include "proto/status/error_info.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto read = [&](uint64_t offset, void* to, size_t length) {
    FUZZ_CHECK(offset <= size && length <= size - offset,
               absl::StrCat(length, " bytes at ", offset, " of ", size));
    std::memcpy(to, data + offset, length);
    return absl::OkStatus();
  };
  const auto verified = ckptd::VerifyBytes("input", size, read);
  if (verified.ok()) {
    FUZZ_CHECK(verified->size_bytes == size, absl::StrCat(verified->size_bytes));
    // Each record has at least a local header and an entry of the directory.
    FUZZ_CHECK(verified->record_count * (30 + 46) <= size, absl::StrCat(verified->record_count));
  } else {
    const std::string reason = ckptd::ReasonOf(verified.status());
    FUZZ_CHECK(reason == "CORRUPT_CHECKPOINT" || reason == "NOT_VERIFIABLE",
               verified.status().ToString());
  }
  const auto file = ckptd::TorchFile::Open("input", size, read);
  const absl::Status contents = file.ok() ? ReadTorchContents(*file).status() : file.status();
  if (!contents.ok()) {
    const std::string reason = ckptd::ReasonOf(contents);
    FUZZ_CHECK(reason == "CORRUPT_CHECKPOINT" || reason == "NOT_READABLE", contents.ToString());
  }
  return 0;
}
