// Paths: the key of the one order. The input is what stands behind the root of a small tree with
// symlinks. Nothing is written: only what looks, ResolveTarget, is called.

#include <climits>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "proto/status/error_info.h"
#include "server/os/file_system.h"
#include "server/persist/target.h"
#include "tests/fuzz/fuzz.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

class Tree {
 public:
  Tree() {
    std::filesystem::create_directories(dir_ / "real/sub");
    WriteFile(dir_ / "real/file", "x");
    std::filesystem::create_directory_symlink("real", dir_ / "link");
    std::filesystem::create_directory_symlink(dir_ / "link/sub", dir_ / "deep");
    std::filesystem::create_directory_symlink("..", dir_ / "real/up");
    std::filesystem::create_symlink("nowhere", dir_ / "dangling");
    std::filesystem::create_symlink("loop", dir_ / "loop");
    const std::string long_name(200, 'n');
    std::filesystem::create_directory(dir_ / long_name);
    std::filesystem::create_directory_symlink(long_name, dir_ / "n");
  }

  void Check(const std::string& rest) const;

 private:
  // Another spelling of the place that `target` is.
  void CheckSpelling(const std::string& spelling, const Target& target) const;

  TempDir dir_{TempDir::Place::kMemory};
  const std::unique_ptr<FileSystem> fs_ = NewPosixFileSystem();
};

void CheckForm(const Target& target, const std::string& path) {
  const std::vector<std::string> parts = absl::StrSplit(target.path, '/');
  FUZZ_CHECK(parts.size() >= 2 && parts[0].empty(), absl::StrCat(path, " -> ", target.path));
  for (size_t i = 1; i < parts.size(); ++i) {
    FUZZ_CHECK(!parts[i].empty() && parts[i] != "." && parts[i] != "..",
               absl::StrCat(path, " -> ", target.path));
  }
  FUZZ_CHECK(CheckPath(target.path).ok(), CheckPath(target.path).ToString());
  const std::string dir = target.path.substr(0, target.path.rfind('/'));
  FUZZ_CHECK(target.dir == (dir.empty() ? "/" : dir), target.dir);
  FUZZ_CHECK(absl::EndsWith(path, target.path.substr(target.path.rfind('/'))), target.path);
}

void Tree::CheckSpelling(const std::string& spelling, const Target& target) const {
  if (spelling.size() >= PATH_MAX) return;
  const auto other = ResolveTarget(fs_.get(), {}, spelling);
  FUZZ_CHECK(other.ok(), other.status().ToString());
  FUZZ_CHECK(other->path == target.path,
             absl::StrCat(spelling, " -> ", other->path, ", not ", target.path));
}

void Tree::Check(const std::string& rest) const {
  const std::string path = dir_ / rest;
  const absl::Status checked = CheckPath(path);
  const absl::StatusOr<Target> target = ResolveTarget(fs_.get(), {}, path);
  if (!target.ok()) {
    FUZZ_CHECK(!ReasonOf(target.status()).empty(), target.status().ToString());
    return;
  }
  FUZZ_CHECK(checked.ok(), checked.ToString());
  CheckForm(*target, path);
  // Outside there may be what changes, as /proc does.
  if (!absl::StartsWith(target->path, dir_ / "")) return;
  CheckSpelling(target->path, *target);
  CheckSpelling(absl::StrReplaceAll(path, {{"/", "//"}}), *target);
  CheckSpelling(absl::StrReplaceAll(path, {{"/", "/./"}}), *target);
  CheckSpelling(absl::StrCat(dir_ / "link/../", rest), *target);
  CheckSpelling(absl::StrCat(dir_ / "no/such/../../", rest), *target);
  const std::string real = dir_ / "real/";
  if (absl::StartsWith(target->path, real)) {
    const std::string behind = target->path.substr(real.size());
    CheckSpelling(absl::StrCat(dir_ / "link/", behind), *target);
    CheckSpelling(absl::StrCat(dir_ / "real/up/link/", behind), *target);
  }
}

}  // namespace
}  // namespace ckptd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ckptd::Tree tree;
  tree.Check(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
