#ifndef CKPTD_SERVER_BACKEND_PLUGIN_TABLE_H_
#define CKPTD_SERVER_BACKEND_PLUGIN_TABLE_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "plugins/abi/plugin.h"
#include "server/backend/backend.h"

namespace ckptd {

// A table of a plugin as it may be read: as this daemon knows it, with null for what a table of an
// earlier MINOR does not have. Of one of another MAJOR nothing else may be read.
ckptd_backend WholeTable(const ckptd_backend& table);

// What is wrong with a table, in a sentence that begins with "its table" or "it"; OK where nothing
// is. For one that is built in, or in a file.
absl::Status CheckBuiltInTable(const ckptd_backend& table);
absl::Status CheckFileTable(const ckptd_backend& table);

// PLUGIN_REFUSED: "`file`: `why`".
absl::Status RefusePlugin(const std::string& file, absl::string_view why);

// What a table that was checked says.
Backend::Description DescribeTable(const ckptd_backend& table);

// A spec as plugins take it. What it was made of must outlive it.
class SpecInC {
 public:
  explicit SpecInC(const CheckpointSpec& spec);
  SpecInC(const SpecInC&) = delete;
  SpecInC& operator=(const SpecInC&) = delete;

  const ckptd_spec* get() const { return &spec_; }
  // Tensor i has its bytes at base + offsets[i].
  void SetData(const uint8_t* base, const std::vector<uint64_t>& offsets);

 private:
  std::vector<int64_t> strides_;
  std::vector<ckptd_tensor> tensors_;
  std::vector<ckptd_option> options_;
  ckptd_spec spec_;
};

// The other way round.
CheckpointSpec SpecFromC(const ckptd_spec& spec);

}  // namespace ckptd

#endif  // CKPTD_SERVER_BACKEND_PLUGIN_TABLE_H_
