#include "server/backend/fingerprint.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <isa-l/crc64.h>

#include "absl/strings/str_cat.h"

namespace ckptd {

std::string CanonicalBytes(const google::protobuf::MessageLite& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return bytes;
}

std::string Fingerprint(const std::string& bytes) {
  const uint64_t crc =
      crc64_ecma_refl(0, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  return absl::StrCat(bytes.size(), "-", absl::Hex(crc, absl::kZeroPad16));
}

}  // namespace ckptd
