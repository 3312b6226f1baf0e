#include "tests/server/testing/temp_dir.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace ckptd {

namespace fs = std::filesystem;

TempDir::TempDir(Place place) {
  const fs::path base = place == Place::kMemory ? fs::path("/dev/shm") : fs::temp_directory_path();
  std::string name = (fs::canonical(base) / "ckptd-test-XXXXXX").string();
  path_ = mkdtemp(name.data()) == nullptr ? "" : name;
  EXPECT_FALSE(path_.empty()) << "cannot make a folder like " << name;
}

TempDir::~TempDir() {
  std::error_code error;
  if (!path_.empty()) fs::remove_all(path_, error);
}

std::vector<std::string> TempDir::List() const { return ListDir(path_); }

std::vector<std::string> ListDir(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return "<none>";
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << content;
  out.close();
  EXPECT_TRUE(out.good()) << "cannot write " << path;
}

ScopedUmask::ScopedUmask(mode_t mask) : old_(umask(mask)) {}
ScopedUmask::~ScopedUmask() { umask(old_); }

size_t CountOpenFiles() { return ListDir("/proc/self/fd").size(); }

}  // namespace ckptd
