#ifndef CKPTD_SERVER_OS_FILE_ID_H_
#define CKPTD_SERVER_OS_FILE_ID_H_

#include <sys/stat.h>

#include <cstdint>
#include <tuple>

namespace ckptd {

// One file with one content: whoever writes to the file, or puts another in its place, makes
// another id of it.
struct FileId {
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t size = 0;
  // Of the last change of content and of inode, in nanoseconds.
  int64_t modified = 0;
  int64_t changed = 0;

  static FileId Of(const struct stat& info) {
    constexpr int64_t kSecond = 1000000000;
    return {info.st_dev, info.st_ino, info.st_size,
            info.st_mtim.tv_sec * kSecond + info.st_mtim.tv_nsec,
            info.st_ctim.tv_sec * kSecond + info.st_ctim.tv_nsec};
  }

  friend bool operator==(const FileId& a, const FileId& b) {
    return std::tie(a.device, a.inode, a.size, a.modified, a.changed) ==
           std::tie(b.device, b.inode, b.size, b.modified, b.changed);
  }
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_FILE_ID_H_
