#ifndef CKPTD_TESTS_SERVER_TESTING_TEMP_DIR_H_
#define CKPTD_TESTS_SERVER_TESTING_TEMP_DIR_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace ckptd {

// A new folder of mode 0700 that goes, with all that is in it, when this does.
class TempDir {
 public:
  enum class Place {
    kDisk,    // $TMPDIR, or /tmp
    kMemory,  // /dev/shm, a tmpfs
  };

  explicit TempDir(Place place = Place::kDisk);
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  // Absolute and without symlinks.
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  // Names in it, sorted, without "." and "..".
  std::vector<std::string> List() const;

 private:
  std::string path_;
};

// Names in a folder, sorted, without "." and ".."; empty where there is no such folder.
std::vector<std::string> ListDir(const std::string& path);

// The bytes of a file; "<none>" where there is none.
std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, const std::string& content);

// The umask of this process for as long as this lives. The daemon runs with 0.
class ScopedUmask {
 public:
  explicit ScopedUmask(mode_t mask);
  ~ScopedUmask();
  ScopedUmask(const ScopedUmask&) = delete;
  ScopedUmask& operator=(const ScopedUmask&) = delete;

 private:
  const mode_t old_;
};

// Files that this process has open: a leak shows as a larger number.
size_t CountOpenFiles();

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_TEMP_DIR_H_
