#ifndef CKPTD_PLUGINS_TORCH_ZIP_FORMAT_H_
#define CKPTD_PLUGINS_TORCH_ZIP_FORMAT_H_

#include <cstdint>

// Sizes and values of zip files, for who writes them and who reads them. docs/formats.md has the
// grammar.
namespace ckptd {

// What each part takes without its name and extra fields.
inline constexpr uint64_t kZipHeaderBytes = 30;
inline constexpr uint64_t kZipEntryBytes = 46;
inline constexpr uint64_t kZipEnd64Bytes = 56;
inline constexpr uint64_t kZipLocatorBytes = 20;
inline constexpr uint64_t kZipEndBytes = 22;

inline constexpr uint16_t kZipStored = 0;
inline constexpr uint16_t kZipDeflated = 8;

inline constexpr uint16_t kZipDescriptorFlag = 0x0008;
inline constexpr uint16_t kZipUtf8Flag = 0x0800;

// Of a field that is too short: its zip64 field has the value.
inline constexpr uint16_t kZipMax16 = 0xFFFF;
inline constexpr uint32_t kZipMax32 = 0xFFFFFFFF;

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_ZIP_FORMAT_H_
