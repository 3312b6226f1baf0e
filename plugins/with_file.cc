#include "plugins/with_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>

#include "absl/strings/str_cat.h"
#include "plugins/torch/read/torch_file.h"
#include "plugins/torch/read/zip_directory.h"

namespace ckptd {
namespace {

class File {
 public:
  explicit File(const std::string& path) : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  const int fd_;
};

absl::Status ReadAll(const std::string& path, int fd, uint64_t offset, void* to, size_t length) {
  auto* out = static_cast<uint8_t*>(to);
  while (length > 0) {
    const ssize_t got = pread(fd, out, length, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::InternalError(absl::StrCat(path, ": ", strerrordesc_np(errno)));
    if (got == 0) return CorruptCheckpoint(path, offset, "the file was cut while it was read");
    offset += static_cast<uint64_t>(got);
    out += got;
    length -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status Run(const ckptd_host* host, ckptd_call* call, const std::string& path,
                 absl::FunctionRef<absl::Status(uint64_t, ReadAt)> function) {
  const File file(path);
  struct stat info = {};
  if (file.fd() < 0 || fstat(file.fd(), &info) != 0) {
    const std::string why = absl::StrCat(path, ": ", strerrordesc_np(errno));
    return errno == ENOENT ? absl::NotFoundError(why) : absl::InternalError(why);
  }
  if (!S_ISREG(info.st_mode)) return NotReadable(path, "is no file");
  uint64_t done = 0;
  return function(static_cast<uint64_t>(info.st_size),
                  [&](uint64_t offset, void* to, size_t length) {
                    done += length;
                    if (host->progress(call, done) != 0) {
                      return absl::CancelledError(absl::StrCat(path, ": the call was cancelled"));
                    }
                    return ReadAll(path, file.fd(), offset, to, length);
                  });
}

}  // namespace

ckptd_code WithFile(const ckptd_host* host, ckptd_call* call, const std::string& path,
                    absl::FunctionRef<absl::Status(uint64_t size_bytes, ReadAt read)> function) {
  absl::Status status;
  try {
    status = Run(host, call, path, function);
  } catch (const std::exception& e) {  // None may leave a function of a plugin.
    status = absl::ResourceExhaustedError(absl::StrCat(path, ": ", e.what()));
  }
  if (!status.ok()) host->set_error(call, status.message().data(), status.message().size());
  return static_cast<ckptd_code>(status.code());
}

absl::Status TellFound(const ckptd_host* host, ckptd_call* call, const ckptd_tensor& tensor) {
  const ckptd_code code = host->found(call, &tensor);
  if (code == CKPTD_OK) return absl::OkStatus();
  return {static_cast<absl::StatusCode>(code),
          absl::StrCat("tensor ", tensor.name, ": the host did not take it")};
}

}  // namespace ckptd
