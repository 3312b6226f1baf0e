#include "tests/server/testing/faulty_file_system.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ckptd {
namespace {

constexpr std::array<const char*, 31> kNames = {
    "Open",     "OpenBeneath", "Close",  "Write",    "Read",     "Truncate", "Allocate", "Stat",
    "DataSync", "Sync",        "Flags?", "SetFlags", "Link",     "Symlink",  "ReadLink", "Rename",
    "Unlink",   "Rmdir",       "Mkdir",  "Lstat",    "Access",   "RealPath", "List",     "StatVfs",
    "Type",     "Map",         "Unmap",  "Remap",    "Populate", "Gather",   "Register"};

// Values of a fault's countdown.
constexpr int kNeverAgain = 0;
constexpr int kAlways = -1;

FsCall OnFile(FsOp op, int fd, size_t length = 0) {
  FsCall call;
  call.op = op;
  call.fd = fd;
  call.length = length;
  return call;
}

FsCall OnName(FsOp op, const std::string& path, int flags = 0) {
  FsCall call;
  call.op = op;
  call.path = path;
  call.flags = flags;
  return call;
}

}  // namespace

std::string Describe(const std::vector<FsCall>& calls) {
  std::string text;
  for (const FsCall& call : calls) {
    absl::StrAppend(&text, kNames[static_cast<size_t>(call.op)], " fd=", call.fd, " ", call.path,
                    " ", call.target, " length=", call.length, " -> ", call.result, "\n");
  }
  return text;
}

void FaultyFileSystem::FailNth(int n, int error) {
  absl::MutexLock lock(&mu_);
  faults_.push_back({std::nullopt, n, error});
}

void FaultyFileSystem::FailNth(FsOp op, int n, int error) {
  absl::MutexLock lock(&mu_);
  faults_.push_back({op, n, error});
}

void FaultyFileSystem::FailAll(FsOp op, int error) { FailNth(op, kAlways, error); }

void FaultyFileSystem::SetBefore(Before before) {
  absl::MutexLock lock(&mu_);
  before_ = std::move(before);
}

void FaultyFileSystem::SetAfter(After after) {
  absl::MutexLock lock(&mu_);
  after_ = std::move(after);
}

void FaultyFileSystem::Reset() {
  absl::MutexLock lock(&mu_);
  faults_.clear();
  calls_.clear();
  before_ = nullptr;
  after_ = nullptr;
}

std::vector<FsCall> FaultyFileSystem::Calls() const {
  absl::MutexLock lock(&mu_);
  return calls_;
}

int FaultyFileSystem::Count(FsOp op) const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(std::count_if(calls_.begin(), calls_.end(),
                                        [&](const FsCall& call) { return call.op == op; }));
}

std::optional<int64_t> FaultyFileSystem::Decide(FsCall& call) {
  Before before;
  std::optional<int64_t> result;
  {
    absl::MutexLock lock(&mu_);
    before = before_;
    for (Fault& fault : faults_) {
      if (fault.op.has_value() && *fault.op != call.op) continue;
      if (fault.countdown == kNeverAgain) continue;
      if (fault.countdown != kAlways) --fault.countdown;
      if (fault.countdown == 0 || fault.countdown == kAlways) result = -fault.error;
    }
  }
  // Outside the lock: it may block, or look at this file system.
  if (before && !result.has_value()) result = before(call);
  return result;
}

template <typename Make>
int64_t FaultyFileSystem::Do(FsCall call, Make make) {
  const std::optional<int64_t> decided = Decide(call);
  call.result = decided.has_value() ? *decided : make(call);
  After after;
  {
    absl::MutexLock lock(&mu_);
    calls_.push_back(call);
    after = after_;
  }
  if (after) after(call);
  return call.result;
}

int FaultyFileSystem::Close(int fd) {
  {
    absl::MutexLock lock(&mu_);
    open_.erase(fd);
  }
  const int closed = base_->Close(fd);
  return static_cast<int>(Do(OnFile(FsOp::kClose, fd), [&](auto&) { return closed; }));
}
ssize_t FaultyFileSystem::Write(int fd, const void* data, size_t length, off_t offset) {
  return Do(OnFile(FsOp::kWrite, fd, length),
            [&](const FsCall& call) { return base_->Write(fd, data, call.length, offset); });
}
ssize_t FaultyFileSystem::Read(int fd, void* data, size_t length, off_t offset) {
  return Do(OnFile(FsOp::kRead, fd, length),
            [&](const FsCall& call) { return base_->Read(fd, data, call.length, offset); });
}
int FaultyFileSystem::Truncate(int fd, off_t length) {
  return static_cast<int>(Do(OnFile(FsOp::kTruncate, fd, static_cast<size_t>(length)),
                             [&](auto&) { return base_->Truncate(fd, length); }));
}
int FaultyFileSystem::Allocate(int fd, off_t length) {
  return static_cast<int>(Do(OnFile(FsOp::kAllocate, fd, static_cast<size_t>(length)),
                             [&](auto&) { return base_->Allocate(fd, length); }));
}
int FaultyFileSystem::Stat(int fd, struct stat* out) {
  return static_cast<int>(Do(OnFile(FsOp::kStat, fd), [&](auto&) { return base_->Stat(fd, out); }));
}
int FaultyFileSystem::DataSync(int fd) {
  return static_cast<int>(
      Do(OnFile(FsOp::kDataSync, fd), [&](auto&) { return base_->DataSync(fd); }));
}
int FaultyFileSystem::Sync(int fd) {
  return static_cast<int>(Do(OnFile(FsOp::kSync, fd), [&](auto&) { return base_->Sync(fd); }));
}
int FaultyFileSystem::GetFlags(int fd) {
  return static_cast<int>(
      Do(OnFile(FsOp::kGetFlags, fd), [&](auto&) { return base_->GetFlags(fd); }));
}
int FaultyFileSystem::SetFlags(int fd, int flags) {
  return static_cast<int>(
      Do(OnFile(FsOp::kSetFlags, fd), [&](auto&) { return base_->SetFlags(fd, flags); }));
}
int FaultyFileSystem::RealPath(const std::string& path, std::string* out) {
  return static_cast<int>(
      Do(OnName(FsOp::kRealPath, path), [&](auto&) { return base_->RealPath(path, out); }));
}
int FaultyFileSystem::StatVfs(const std::string& path, struct statvfs* out) {
  return static_cast<int>(
      Do(OnName(FsOp::kStatVfs, path), [&](auto&) { return base_->StatVfs(path, out); }));
}
int64_t FaultyFileSystem::Type(const std::string& path) {
  return Do(OnName(FsOp::kType, path), [&](auto&) { return base_->Type(path); });
}
std::string FaultyFileSystem::PathOf(int dir, const std::string& name) const {
  absl::MutexLock lock(&mu_);
  auto it = open_.find(dir);
  if (it == open_.end()) return name;
  return name == "." ? it->second : absl::StrCat(it->second, "/", name);
}
int FaultyFileSystem::Opened(int64_t fd, const std::string& path) {
  absl::MutexLock lock(&mu_);
  if (fd >= 0) open_[static_cast<int>(fd)] = path;
  return static_cast<int>(fd);
}
int FaultyFileSystem::OpenAt(int dir, const std::string& name, int flags, mode_t mode) {
  const std::string path = PathOf(dir, name);
  return Opened(Do(OnName(FsOp::kOpen, path, flags),
                   [&](auto&) { return base_->OpenAt(dir, name, flags, mode); }),
                path);
}
int FaultyFileSystem::OpenBeneath(int dir, const std::string& name, int flags) {
  const std::string path = PathOf(dir, name);
  return Opened(Do(OnName(FsOp::kOpenBeneath, path, flags),
                   [&](auto&) { return base_->OpenBeneath(dir, name, flags); }),
                path);
}
int FaultyFileSystem::LinkAt(int fd, int dir, const std::string& name) {
  FsCall call = OnFile(FsOp::kLink, fd);
  call.path = PathOf(dir, name);
  return static_cast<int>(Do(call, [&](auto&) { return base_->LinkAt(fd, dir, name); }));
}
int FaultyFileSystem::SymlinkAt(const std::string& to, int dir, const std::string& name) {
  return static_cast<int>(Do(OnName(FsOp::kSymlink, PathOf(dir, name)),
                             [&](auto&) { return base_->SymlinkAt(to, dir, name); }));
}
int FaultyFileSystem::ReadLinkAt(int dir, const std::string& name, std::string* to) {
  return static_cast<int>(Do(OnName(FsOp::kReadLink, PathOf(dir, name)),
                             [&](auto&) { return base_->ReadLinkAt(dir, name, to); }));
}
int FaultyFileSystem::RenameAt(int dir, const std::string& from, const std::string& to) {
  FsCall call = OnName(FsOp::kRename, PathOf(dir, from));
  call.target = PathOf(dir, to);
  return static_cast<int>(Do(call, [&](auto&) { return base_->RenameAt(dir, from, to); }));
}
int FaultyFileSystem::UnlinkAt(int dir, const std::string& name) {
  return static_cast<int>(Do(OnName(FsOp::kUnlink, PathOf(dir, name)),
                             [&](auto&) { return base_->UnlinkAt(dir, name); }));
}
int FaultyFileSystem::RemoveDirectoryAt(int dir, const std::string& name) {
  return static_cast<int>(Do(OnName(FsOp::kRemoveDirectory, PathOf(dir, name)),
                             [&](auto&) { return base_->RemoveDirectoryAt(dir, name); }));
}
int FaultyFileSystem::MakeDirectoryAt(int dir, const std::string& name, mode_t mode) {
  return static_cast<int>(Do(OnName(FsOp::kMakeDirectory, PathOf(dir, name)),
                             [&](auto&) { return base_->MakeDirectoryAt(dir, name, mode); }));
}
int FaultyFileSystem::LinkStatAt(int dir, const std::string& name, struct stat* out) {
  return static_cast<int>(Do(OnName(FsOp::kLinkStat, PathOf(dir, name)),
                             [&](auto&) { return base_->LinkStatAt(dir, name, out); }));
}
int FaultyFileSystem::AccessAt(int dir, const std::string& name, int mode) {
  return static_cast<int>(Do(OnName(FsOp::kAccess, PathOf(dir, name)),
                             [&](auto&) { return base_->AccessAt(dir, name, mode); }));
}
int FaultyFileSystem::ListAt(int dir, const std::string& name, std::vector<std::string>* names) {
  return static_cast<int>(Do(OnName(FsOp::kList, PathOf(dir, name)),
                             [&](auto&) { return base_->ListAt(dir, name, names); }));
}
int FaultyFileSystem::Map(int fd, size_t length, uint8_t** out) {
  return static_cast<int>(
      Do(OnFile(FsOp::kMap, fd, length), [&](auto&) { return base_->Map(fd, length, out); }));
}
int FaultyFileSystem::Unmap(uint8_t* data, size_t length) {
  return static_cast<int>(
      Do(OnFile(FsOp::kUnmap, -1, length), [&](auto&) { return base_->Unmap(data, length); }));
}
int FaultyFileSystem::Remap(uint8_t* data, size_t old_length, size_t new_length, uint8_t** out) {
  return static_cast<int>(Do(OnFile(FsOp::kRemap, -1, new_length), [&](auto&) {
    return base_->Remap(data, old_length, new_length, out);
  }));
}
int FaultyFileSystem::Populate(uint8_t* data, size_t length, bool* huge) {
  *huge = false;  // where another answer is given in its place
  return static_cast<int>(Do(OnFile(FsOp::kPopulate, -1, length),
                             [&](auto&) { return base_->Populate(data, length, huge); }));
}

int FaultyFileSystem::Gather(int fd, off_t offset, size_t length) {
  return static_cast<int>(Do(OnFile(FsOp::kGather, fd, length),
                             [&](auto&) { return base_->Gather(fd, offset, length); }));
}

class FaultyFileSystem::Registered : public RegisteredMemory {
 public:
  Registered(FaultyFileSystem* fs, std::unique_ptr<RegisteredMemory> base)
      : RegisteredMemory(base->size()), fs_(fs), base_(std::move(base)) {}
  // What is injected is what the write ends with, but for EIO: then it cannot be begun.
  int Begin(int fd, uint64_t offset, size_t length) override {
    int error = 0;
    bool begun = false;
    const int64_t result = fs_->Do(OnFile(FsOp::kWrite, fd, length), [&](const FsCall& call) {
      error = base_->Begin(fd, offset, call.length);
      begun = error == 0;
      return error;
    });
    if (begun || error < 0) return error;
    if (result == -EIO) return -EIO;
    injected_.push_back({offset, static_cast<ssize_t>(result)});
    return 0;
  }
  Ended End() override {
    if (injected_.empty()) return base_->End();
    const Ended ended = injected_.back();
    injected_.pop_back();
    return ended;
  }

 private:
  FaultyFileSystem* const fs_;
  const std::unique_ptr<RegisteredMemory> base_;
  std::vector<Ended> injected_;
};

int FaultyFileSystem::Register(uint8_t* data, size_t length,
                               std::unique_ptr<RegisteredMemory>* out) {
  std::unique_ptr<RegisteredMemory> memory;
  const auto error = static_cast<int>(Do(OnFile(FsOp::kRegister, -1, length), [&](auto&) {
    return base_->Register(data, length, &memory);
  }));
  if (error == 0) *out = std::make_unique<Registered>(this, std::move(memory));
  return error;
}

}  // namespace ckptd
