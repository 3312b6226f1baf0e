#include "client/cpp/core/image_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/core/huge_page.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

// Enough for the saves that a trainer has in flight to several paths; more would pin memory that
// the daemon has let go of.
constexpr size_t kMaxMappings = 8;

// Address space, no memory.
constexpr size_t kMinRoom = size_t{4} << 20;

// MADV_POPULATE_READ, Linux 5.14; missing in older headers. The pages exist: to read maps sixteen
// of them with one fault, to write maps one.
constexpr int kPopulateRead = 22;

absl::Status Error(const ImageRef& image, absl::string_view action) {
  return absl::ErrnoToStatus(errno, absl::StrCat("image ", image.path, ": cannot ", action));
}

absl::StatusOr<UniqueFd> Open(const ImageRef& image) {
  UniqueFd fd(open(image.path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return Error(image, "open");
  struct stat info = {};
  if (fstat(fd.get(), &info) != 0) return Error(image, "stat");
  if (info.st_ino != image.inode || static_cast<uint64_t>(info.st_size) != image.size_bytes) {
    return absl::NotFoundError(
        absl::StrCat("image ", image.path, ": is another file here than for the daemon"));
  }
  return fd;
}

}  // namespace

ImageMapping::~ImageMapping() { Unmap(); }

void ImageMapping::Unmap() {
  if (data_ != nullptr) munmap(data_, mapped_bytes_);
  data_ = nullptr;
  mapped_bytes_ = populated_bytes_ = 0;
}

absl::Status ImageMapping::Fit(const ImageRef& image) {
  const size_t size = image.size_bytes;
  if (size > mapped_bytes_) {
    // Not mremap: what it moves lies across huge pages.
    Unmap();
    const size_t length = size + std::max(size / 8, kMinRoom);
    void* data = MapAligned(fd_.get(), 0, length);
    if (data == MAP_FAILED) return Error(image, "map");
    data_ = static_cast<uint8_t*>(data);
    mapped_bytes_ = length;
    // A forked child must not hold the daemon's memory, nor write into it.
    if (madvise(data_, mapped_bytes_, MADV_DONTFORK) != 0) return Error(image, "keep from forks");
  }
  if (size > populated_bytes_) {
    // Only speed is at stake: a kernel without it faults the pages in one by one.
    const size_t from = populated_bytes_ / 4096 * 4096;
    madvise(data_ + from, size - from, kPopulateRead);
  }
  populated_bytes_ = size;
  return absl::OkStatus();
}

bool ImageMapping::IsOrphan() const {
  struct stat info = {};
  return fstat(fd_.get(), &info) == 0 && info.st_nlink == 0;
}

std::shared_ptr<ImageMapping> ImageMap::Find(const ImageRef& image) {
  for (auto it = mappings_.begin(); it != mappings_.end(); ++it) {
    if (!(*it)->Is(image)) continue;
    mappings_.splice(mappings_.begin(), mappings_, it);
    return mappings_.front();
  }
  return nullptr;
}

absl::StatusOr<std::shared_ptr<ImageMapping>> ImageMap::Get(const ImageRef& image) {
  std::shared_ptr<ImageMapping> mapping;
  {
    absl::MutexLock lock(&mu_);
    mappings_.remove_if([](const auto& m) { return m->IsOrphan(); });
    mapping = Find(image);
    if (mapping == nullptr) {
      CKPTD_ASSIGN_OR_RETURN(UniqueFd fd, Open(image));
      mapping = std::make_shared<ImageMapping>(image, std::move(fd));
      mappings_.push_front(mapping);
      if (mappings_.size() > kMaxMappings) mappings_.pop_back();
    }
  }
  CKPTD_RETURN_IF_ERROR(mapping->Fit(image));
  return mapping;
}

void ImageMap::Clear() {
  absl::MutexLock lock(&mu_);
  mappings_.clear();
}

}  // namespace ckptd
