#include "plugins/safetensors/safetensors_plugin.h"

#include <fcntl.h>
#include <isa-l/crc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/safetensors/header.h"

namespace ckptd {
namespace {

using safetensors::Entry;
using safetensors::kChecksumMark;
using safetensors::kChecksumOffset;
using safetensors::kNoChecksum;
using safetensors::Layout;

constexpr uint64_t kStep = uint64_t{4} << 20;
// A mark that differs from ours in no more bytes than this is a damaged one.
constexpr size_t kFewBytes = 4;

ckptd_code Fail(const ckptd_host* host, ckptd_call* call, ckptd_code code,
                std::string_view message) {
  host->set_error(call, message.data(), message.size());
  return code;
}

// No exception may leave a function of a plugin.
template <typename Function>
ckptd_code Guarded(const ckptd_host* host, ckptd_call* call, Function function) {
  try {
    return function();
  } catch (const std::exception& e) {
    return Fail(host, call, CKPTD_INTERNAL, std::string("safetensors backend: ") + e.what());
  }
}

// ckptd_plan is another plugin's type in the same program.
ckptd_plan* ToPlan(Layout* layout) { return reinterpret_cast<ckptd_plan*>(layout); }
const Layout& ToLayout(const ckptd_plan* plan) { return *reinterpret_cast<const Layout*>(plan); }

template <bool kStrict>
ckptd_code Plan(const ckptd_host* host, ckptd_call* call, const ckptd_spec* spec, ckptd_plan** plan,
                ckptd_layout* layout) {
  return Guarded(host, call, [&] {
    auto made = std::make_unique<Layout>();
    if (const std::string why = safetensors::PlanFile(*spec, kStrict, made.get()); !why.empty()) {
      return Fail(host, call, CKPTD_INVALID_ARGUMENT, why);
    }
    layout->file_bytes = made->file_bytes;
    layout->object_offset = made->head.size();
    layout->tensor_offsets = made->tensor_offsets.data();
    *plan = ToPlan(made.release());
    return ckptd_code{CKPTD_OK};
  });
}

void PlanFree(ckptd_plan* plan) { delete reinterpret_cast<Layout*>(plan); }

std::string Digits(uint32_t crc) {
  char digits[9];
  std::snprintf(digits, sizeof(digits), "%08x", crc);
  return digits;
}

// The checksum stands at the front and is of all that follows: nothing is final before the last
// byte was read.
ckptd_code Seal(const ckptd_host* host, ckptd_call* call, const ckptd_plan* plan, uint8_t* image) {
  return Guarded(host, call, [&] {
    const Layout& layout = ToLayout(plan);
    std::copy(layout.head.begin(), layout.head.end(), image);
    uint32_t crc = 0;
    for (uint64_t at = 0; at < layout.file_bytes;) {
      const uint64_t step = std::min(kStep, layout.file_bytes - at);
      crc = crc32_gzip_refl(crc, image + at, step);
      at += step;
      if (host->progress(call, 0) != 0) {
        return Fail(host, call, CKPTD_CANCELLED, "safetensors backend, seal: cancelled");
      }
    }
    std::memcpy(image + kChecksumOffset, Digits(crc).data(), kNoChecksum.size());
    if (host->progress(call, layout.file_bytes) != 0) {
      return Fail(host, call, CKPTD_CANCELLED, "safetensors backend, seal: cancelled");
    }
    return ckptd_code{CKPTD_OK};
  });
}

// A file that is read; closed by its end. A function that fails has said so.
class Reader {
 public:
  Reader(const ckptd_host* host, ckptd_call* call, const char* path)
      : host_(host), call_(call), path_(path) {}
  ~Reader() {
    if (fd_ >= 0) close(fd_);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  ckptd_code Open() {
    fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status = {};
    if (fd_ < 0 || fstat(fd_, &status) != 0) {
      return Say(errno == ENOENT ? CKPTD_NOT_FOUND : CKPTD_INTERNAL, strerrordesc_np(errno));
    }
    if (!S_ISREG(status.st_mode)) return Say(CKPTD_FAILED_PRECONDITION, "is no file");
    size_ = static_cast<uint64_t>(status.st_size);
    return CKPTD_OK;
  }

  // Reads length and header, and checks what they say.
  ckptd_code ReadHeader(std::vector<Entry>* entries) {
    uint64_t length = 0;
    if (size_ < sizeof(length)) return Say(CKPTD_DATA_LOSS, "is shorter than any header");
    if (ckptd_code code = Read(0, &length, sizeof(length)); code != CKPTD_OK) return code;
    if (length > safetensors::kMaxHeaderBytes || length > size_ - sizeof(length)) {
      return Say(CKPTD_DATA_LOSS, "is no safetensors file, or its length of header is damaged");
    }
    header_.resize(length);
    if (ckptd_code code = Read(sizeof(length), header_.data(), length); code != CKPTD_OK) {
      return code;
    }
    const std::string why =
        safetensors::ReadHeader(header_, size_ - sizeof(length) - length, entries);
    return why.empty() ? CKPTD_OK : Say(CKPTD_DATA_LOSS, why);
  }

  // Compares the checksum; after ReadHeader.
  ckptd_code CompareChecksum() {
    const std::string_view mark = std::string_view(header_).substr(0, kChecksumMark.size());
    size_t differing = kChecksumMark.size() - mark.size();
    for (size_t i = 0; i < mark.size(); ++i) differing += mark[i] != kChecksumMark[i] ? 1 : 0;
    if (differing > kFewBytes) {
      return Say(CKPTD_FAILED_PRECONDITION,
                 "cannot be verified, as it was written without a checksum; load it and save it "
                 "again to have one");
    }
    const std::string expected = header_.substr(kChecksumMark.size(), kNoChecksum.size());
    std::vector<uint8_t> piece(kStep);
    uint32_t crc = 0;
    for (uint64_t at = 0; at < size_;) {
      const uint64_t step = std::min(kStep, size_ - at);
      if (ckptd_code code = Read(at, piece.data(), step); code != CKPTD_OK) return code;
      if (at == 0 && step >= kChecksumOffset + kNoChecksum.size()) {
        std::memcpy(piece.data() + kChecksumOffset, kNoChecksum.data(), kNoChecksum.size());
      }
      crc = crc32_gzip_refl(crc, piece.data(), step);
      at += step;
      if (host_->cancelled(call_) != 0) return Say(CKPTD_CANCELLED, "verification was cancelled");
    }
    if (differing == 0 && expected == Digits(crc)) return CKPTD_OK;
    return Say(CKPTD_DATA_LOSS,
               "is damaged: its CRC-32 is " + Digits(crc) + ", the header says " + expected);
  }

 private:
  ckptd_code Say(ckptd_code code, std::string_view why) {
    return Fail(host_, call_, code, path_ + ": " + std::string(why));
  }

  ckptd_code Read(uint64_t at, void* to, uint64_t length) {
    auto* out = static_cast<uint8_t*>(to);
    while (length > 0) {
      const ssize_t got = pread(fd_, out, length, static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Say(CKPTD_INTERNAL, strerrordesc_np(errno));
      if (got == 0) return Say(CKPTD_DATA_LOSS, "was cut while it was read");
      at += static_cast<uint64_t>(got);
      out += got;
      length -= static_cast<uint64_t>(got);
    }
    return CKPTD_OK;
  }

  const ckptd_host* const host_;
  ckptd_call* const call_;
  const std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
  std::string header_;
};

ckptd_code Verify(const ckptd_host* host, ckptd_call* call, const char* path) {
  return Guarded(host, call, [&] {
    Reader reader(host, call, path);
    std::vector<Entry> entries;
    if (ckptd_code code = reader.Open(); code != CKPTD_OK) return code;
    if (ckptd_code code = reader.ReadHeader(&entries); code != CKPTD_OK) return code;
    return reader.CompareChecksum();
  });
}

ckptd_code Inspect(const ckptd_host* host, ckptd_call* call, const char* path) {
  return Guarded(host, call, [&] {
    Reader reader(host, call, path);
    std::vector<Entry> entries;
    if (ckptd_code code = reader.Open(); code != CKPTD_OK) return code;
    if (ckptd_code code = reader.ReadHeader(&entries); code != CKPTD_OK) return code;
    for (const Entry& entry : entries) {
      std::vector<int64_t> strides(entry.shape.size(), 1);
      for (size_t i = strides.size(); i-- > 1;) {
        strides[i - 1] = strides[i] * std::max<int64_t>(1, entry.shape[i]);
      }
      const bool scalar = entry.shape.empty();
      const ckptd_tensor tensor = {entry.name.c_str(),
                                   entry.dtype.c_str(),
                                   scalar ? nullptr : entry.shape.data(),
                                   scalar ? nullptr : strides.data(),
                                   entry.shape.size(),
                                   entry.end - entry.begin,
                                   nullptr};
      if (ckptd_code code = host->found(call, &tensor); code != CKPTD_OK) return code;
    }
    return ckptd_code{CKPTD_OK};
  });
}

ckptd_backend Table(const char* name) {
  ckptd_backend table = {};
  table.size = sizeof(ckptd_backend);
  table.abi_major = CKPTD_PLUGIN_ABI_MAJOR;
  table.abi_minor = CKPTD_PLUGIN_ABI_MINOR;
  table.name = name;
  table.version = CKPTD_VERSION;
  table.plan = Plan<true>;
  table.seal = Seal;
  table.plan_free = PlanFree;
  table.verify = Verify;
  table.inspect = Inspect;
  return table;
}

}  // namespace

const ckptd_backend* SafetensorsPlugin() {
  static const ckptd_backend table = Table("safetensors");
  return &table;
}

const ckptd_backend* NamedTensorsPlugin() {
  static const ckptd_backend table = [] {
    ckptd_backend lenient = Table("named-tensors");
    lenient.plan = Plan<false>;
    return lenient;
  }();
  return &table;
}

}  // namespace ckptd
