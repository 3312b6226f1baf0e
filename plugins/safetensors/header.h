#ifndef CKPTD_PLUGINS_SAFETENSORS_HEADER_H_
#define CKPTD_PLUGINS_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/abi/plugin.h"

namespace ckptd::safetensors {

// The first bytes of every file of ours, after its eight of length; then eight hexadecimal digits:
// the CRC-32 of the whole file in which they are 0s. A fixed place, so that damage to it is told
// from a file that has no checksum.
inline constexpr std::string_view kChecksumMark = R"({"__metadata__":{"ckptd.crc32":")";
inline constexpr size_t kChecksumOffset = 8 + kChecksumMark.size();
inline constexpr std::string_view kNoChecksum = "00000000";

// The longest header that readers take.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

// A file laid out: length and header, ready to be copied, and then the data.
struct Layout {
  std::string head;
  // One for each tensor of the spec, in its order, from the beginning of the file.
  std::vector<uint64_t> tensor_offsets;
  uint64_t file_bytes = 0;
};

// Lays out the tensors of `spec` as safetensors' own writers do: by size of element, largest first,
// then by name, so that each is aligned. Where `strict`, refuses what the format has no place for:
// dtypes, and what comes in ckptd.values; otherwise a dtype that it does not know has torch's name.
// Returns why not, or an empty string.
std::string PlanFile(const ckptd_spec& spec, bool strict, Layout* layout);

// One tensor in a header that was read.
struct Entry {
  std::string name;
  std::string dtype;  // torch's name
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // in the data
  uint64_t end = 0;
};

// Reads a header of `data_bytes` bytes of data, and __metadata__. Returns what is wrong with it, or
// an empty string.
std::string ReadHeader(std::string_view header, uint64_t data_bytes, std::vector<Entry>* entries,
                       std::map<std::string, std::string>* metadata);

}  // namespace ckptd::safetensors

#endif  // CKPTD_PLUGINS_SAFETENSORS_HEADER_H_
