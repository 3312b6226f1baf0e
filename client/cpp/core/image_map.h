#ifndef CKPTD_CLIENT_CPP_CORE_IMAGE_MAP_H_
#define CKPTD_CLIENT_CPP_CORE_IMAGE_MAP_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/core/unique_fd.h"

namespace ckptd {

// Where the daemon says an image is: the Image message, without Protobuf.
struct ImageRef {
  std::string path;
  uint64_t size_bytes = 0;
  uint64_t inode = 0;
  uint64_t id = 0;
};

// An image of the daemon's pool, mapped shared and writable into this process.
class ImageMapping {
 public:
  // `fd`: the image's file, which has been found to be the daemon's.
  ImageMapping(const ImageRef& image, UniqueFd fd)
      : id_(image.id), inode_(image.inode), fd_(std::move(fd)) {}
  ~ImageMapping();
  ImageMapping(const ImageMapping&) = delete;
  ImageMapping& operator=(const ImageMapping&) = delete;

  // Makes [0, size_bytes) usable and faults in what was not mapped before. An image comes back
  // with another length, for which there is some room; bytes beyond its present one must not be
  // touched.
  absl::Status Fit(const ImageRef& image);

  uint8_t* data() const { return data_; }
  bool Is(const ImageRef& image) const { return id_ == image.id && inode_ == image.inode; }
  // Whether the daemon has deleted the image: its memory lives on only as long as this mapping.
  bool IsOrphan() const;

 private:
  void Unmap();

  const uint64_t id_;
  const uint64_t inode_;
  const UniqueFd fd_;
  uint8_t* data_ = nullptr;
  size_t mapped_bytes_ = 0;
  size_t populated_bytes_ = 0;
};

// Keeps images mapped from one save to the next, since a new mapping costs a page-table entry for
// each page again. Thread-safe. Mappings are not inherited over fork.
class ImageMap {
 public:
  // The mapping of `image`. NOT_FOUND where its path does not lead to its inode: then this process
  // does not share memory with the daemon. The mapping stays valid as long as the caller holds it;
  // an image belongs to one save at a time, so no two callers write to one.
  absl::StatusOr<std::shared_ptr<ImageMapping>> Get(const ImageRef& image);

  // Lets go of everything that no save is using.
  void Clear();

 private:
  std::shared_ptr<ImageMapping> Find(const ImageRef& image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Mutex mu_;
  // Most recently used first.
  std::list<std::shared_ptr<ImageMapping>> mappings_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_IMAGE_MAP_H_
