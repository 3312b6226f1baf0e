#include "tests/server/testing/memory_file_system.h"

#include <fcntl.h>
#include <linux/magic.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace ckptd {
namespace {

constexpr size_t kPage = 4096;

}  // namespace

// ---- The tree --------------------------------------------------------------------------------

MemoryFileSystem::InodePtr MemoryFileSystem::Inode::Find(const std::string& name) const {
  auto it = entries.find(name);
  return it == entries.end() ? nullptr : it->second.back();
}

void MemoryFileSystem::Inode::Set(const std::string& name, InodePtr to) {
  History<InodePtr>& history = entries[name];
  if (history.empty()) history.push_back(nullptr);
  history.push_back(std::move(to));
}

MemoryFileSystem::InodePtr MemoryFileSystem::Make(bool folder, mode_t mode,
                                                  const InodePtr& parent) {
  auto inode = std::make_shared<Inode>();
  inode->number = next_number_++;
  inode->folder = folder;
  inode->parent = parent;
  inode->mode = mode;
  inode->contents = {""};
  return inode;
}

MemoryFileSystem::MemoryFileSystem(const Options& options, const Remains& remains)
    : options_(options) {
  absl::MutexLock lock(&mu_);
  root_ = Make(/*folder=*/true, 0755, nullptr);
  for (const auto& [path, remnant] : remains) {  // a folder comes before what is in it
    Place place;
    if (Find(AT_FDCWD, path, &place) < 0) continue;
    const InodePtr inode = Make(remnant.folder, remnant.mode, place.folder);
    inode->contents = {remnant.content};
    place.folder->entries[place.name] = {inode};
  }
}

int MemoryFileSystem::Find(int dir, const std::string& path, Place* out) const {
  if (path.empty()) return -ENOENT;
  InodePtr start = root_;
  if (path[0] != '/') {
    auto it = open_.find(dir);
    if (it == open_.end()) return -EBADF;
    start = it->second.inode;
  }
  *out = {start, ".", start};
  for (const absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    const std::string name(part);
    if (out->inode == nullptr) return -ENOENT;
    if (!out->inode->folder) return -ENOTDIR;
    if (name == ".") continue;
    if (name == "..") {
      const InodePtr above = out->inode->parent.lock();
      if (above != nullptr) *out = {above, ".", above};
      continue;
    }
    out->folder = out->inode;
    out->name = name;
    out->inode = out->folder->Find(name);
  }
  return 0;
}

size_t MemoryFileSystem::OpenFiles() const {
  absl::MutexLock lock(&mu_);
  return open_.size();
}

// ---- Files -----------------------------------------------------------------------------------

MemoryFileSystem::OpenFile* MemoryFileSystem::At(int fd) {
  auto it = open_.find(fd);
  return it == open_.end() ? nullptr : &it->second;
}

int MemoryFileSystem::OpenAt(int dir, const std::string& name, int flags, mode_t mode) {
  absl::MutexLock lock(&mu_);
  Place place;
  if (int error = Find(dir, name, &place); error < 0) return error;
  const bool unnamed = (flags & O_TMPFILE) == O_TMPFILE;
  if (unnamed) {
    if (place.inode == nullptr) return -ENOENT;
    if (!place.inode->folder) return -ENOTDIR;
    if (!options_.unnamed_files) return -EOPNOTSUPP;
    place.inode = Make(/*folder=*/false, mode, place.inode);
  } else if (place.inode == nullptr) {
    if ((flags & O_CREAT) == 0) return -ENOENT;
    place.inode = Make(/*folder=*/false, mode, place.folder);
    place.folder->Set(place.name, place.inode);
  } else if ((flags & O_EXCL) != 0) {
    return -EEXIST;
  } else if ((flags & O_DIRECTORY) != 0 && !place.inode->folder) {
    return -ENOTDIR;
  } else if (place.inode->folder && (flags & O_ACCMODE) != O_RDONLY) {
    return -EISDIR;
  }
  // As Linux does: after the file was made.
  if ((flags & O_DIRECT) != 0 && !options_.direct_writes) return -EINVAL;
  open_[next_fd_] = {place.inode, flags};
  return next_fd_++;
}

// There are no symlinks: only ".." can lead out.
int MemoryFileSystem::OpenBeneath(int dir, const std::string& path, int flags) {
  int depth = 0;
  for (const absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    if (part != ".") depth += part == ".." ? -1 : 1;
    if (depth < 0) return -EXDEV;
  }
  return path[0] == '/' ? -EXDEV : OpenAt(dir, path, flags, 0);
}

int MemoryFileSystem::Close(int fd) {
  absl::MutexLock lock(&mu_);
  return open_.erase(fd) == 1 ? 0 : -EBADF;
}

ssize_t MemoryFileSystem::Write(int fd, const void* data, size_t length, off_t offset) {
  absl::MutexLock lock(&mu_);
  const OpenFile* file = At(fd);
  if (file == nullptr || (file->flags & O_ACCMODE) == O_RDONLY) return -EBADF;
  const auto at = static_cast<size_t>(offset);
  if ((file->flags & O_DIRECT) != 0 &&
      (at % kPage != 0 || length % kPage != 0 || reinterpret_cast<uintptr_t>(data) % kPage != 0)) {
    return -EINVAL;
  }
  std::string content = file->inode->contents.back();
  if (content.size() < at + length) content.resize(at + length);
  std::memcpy(content.data() + at, data, length);
  file->inode->contents.push_back(std::move(content));
  return static_cast<ssize_t>(length);
}

ssize_t MemoryFileSystem::Read(int fd, void* data, size_t length, off_t offset) {
  absl::MutexLock lock(&mu_);
  const OpenFile* file = At(fd);
  if (file == nullptr) return -EBADF;
  if (file->inode->folder) return -EISDIR;
  const std::string& content = file->inode->contents.back();
  const size_t at = std::min(static_cast<size_t>(offset), content.size());
  const size_t n = std::min(length, content.size() - at);
  std::memcpy(data, content.data() + at, n);
  return static_cast<ssize_t>(n);
}

int MemoryFileSystem::Truncate(int fd, off_t length) {
  absl::MutexLock lock(&mu_);
  const OpenFile* file = At(fd);
  if (file == nullptr) return -EBADF;
  std::string content = file->inode->contents.back();
  content.resize(static_cast<size_t>(length));
  file->inode->contents.push_back(std::move(content));
  return 0;
}

int MemoryFileSystem::Allocate(int fd, off_t /*length*/) {
  absl::MutexLock lock(&mu_);
  return At(fd) == nullptr ? -EBADF : 0;
}

void MemoryFileSystem::FillStat(const Inode& inode, struct stat* out) {
  *out = {};
  out->st_dev = 1;
  out->st_ino = inode.number;
  out->st_mode = (inode.folder ? S_IFDIR : S_IFREG) | inode.mode;
  out->st_nlink = 1;
  out->st_size = static_cast<off_t>(inode.contents.back().size());
}

int MemoryFileSystem::Stat(int fd, struct stat* out) {
  absl::MutexLock lock(&mu_);
  const OpenFile* file = At(fd);
  if (file == nullptr) return -EBADF;
  FillStat(*file->inode, out);
  return 0;
}

int MemoryFileSystem::DataSync(int fd) {
  absl::MutexLock lock(&mu_);
  const OpenFile* file = At(fd);
  if (file == nullptr) return -EBADF;
  Inode& inode = *file->inode;
  inode.contents = {inode.contents.back()};
  for (auto it = inode.entries.begin(); it != inode.entries.end();) {
    it->second = {it->second.back()};
    it = it->second.back() == nullptr ? inode.entries.erase(it) : std::next(it);
  }
  return 0;
}

int MemoryFileSystem::Sync(int fd) { return DataSync(fd); }

int MemoryFileSystem::GetFlags(int fd) {
  absl::MutexLock lock(&mu_);
  const OpenFile* file = At(fd);
  return file == nullptr ? -EBADF : file->flags;
}

int MemoryFileSystem::SetFlags(int fd, int flags) {
  absl::MutexLock lock(&mu_);
  OpenFile* file = At(fd);
  if (file == nullptr) return -EBADF;
  file->flags = flags;
  return 0;
}

// ---- Names -----------------------------------------------------------------------------------

int MemoryFileSystem::LinkAt(int fd, int dir, const std::string& name) {
  absl::MutexLock lock(&mu_);
  const OpenFile* file = At(fd);
  if (file == nullptr) return -EBADF;
  Place place;
  if (int error = Find(dir, name, &place); error < 0) return error;
  if (place.inode != nullptr) return -EEXIST;
  place.folder->Set(place.name, file->inode);
  return 0;
}

bool MemoryFileSystem::IsEmpty(const Inode& folder) {
  return std::all_of(folder.entries.begin(), folder.entries.end(),
                     [](const auto& entry) { return entry.second.back() == nullptr; });
}

int MemoryFileSystem::SymlinkAt(const std::string& /*to*/, int /*dir*/,
                                const std::string& /*name*/) {
  return -EPERM;
}

int MemoryFileSystem::ReadLinkAt(int dir, const std::string& name, std::string* /*to*/) {
  struct stat info = {};
  const int error = LinkStatAt(dir, name, &info);
  return error < 0 ? error : -EINVAL;
}

int MemoryFileSystem::RenameAt(int dir, const std::string& from, const std::string& to) {
  absl::MutexLock lock(&mu_);
  Place source;
  Place target;
  if (int error = Find(dir, from, &source); error < 0) return error;
  if (int error = Find(dir, to, &target); error < 0) return error;
  if (source.inode == nullptr) return -ENOENT;
  if (target.inode != nullptr) {
    if (source.inode->folder && !target.inode->folder) return -ENOTDIR;
    if (!source.inode->folder && target.inode->folder) return -EISDIR;
    if (target.inode->folder && !IsEmpty(*target.inode)) return -ENOTEMPTY;
  }
  target.folder->Set(target.name, source.inode);
  source.folder->Set(source.name, nullptr);
  if (source.inode->folder) source.inode->parent = target.folder;
  return 0;
}

int MemoryFileSystem::Remove(int dir, const std::string& name, bool folder) {
  Place place;
  if (int error = Find(dir, name, &place); error < 0) return error;
  if (place.inode == nullptr) return -ENOENT;
  if (place.inode->folder && !folder) return -EISDIR;
  if (!place.inode->folder && folder) return -ENOTDIR;
  if (folder && !IsEmpty(*place.inode)) return -ENOTEMPTY;
  place.folder->Set(place.name, nullptr);
  return 0;
}

int MemoryFileSystem::UnlinkAt(int dir, const std::string& name) {
  absl::MutexLock lock(&mu_);
  return Remove(dir, name, /*folder=*/false);
}

int MemoryFileSystem::RemoveDirectoryAt(int dir, const std::string& name) {
  absl::MutexLock lock(&mu_);
  return Remove(dir, name, /*folder=*/true);
}

int MemoryFileSystem::MakeDirectoryAt(int dir, const std::string& name, mode_t mode) {
  absl::MutexLock lock(&mu_);
  Place place;
  if (int error = Find(dir, name, &place); error < 0) return error;
  if (place.inode != nullptr) return -EEXIST;
  place.folder->Set(place.name, Make(/*folder=*/true, mode, place.folder));
  return 0;
}

int MemoryFileSystem::LinkStatAt(int dir, const std::string& name, struct stat* out) {
  absl::MutexLock lock(&mu_);
  Place place;
  if (int error = Find(dir, name, &place); error < 0) return error;
  if (place.inode == nullptr) return -ENOENT;
  FillStat(*place.inode, out);
  return 0;
}

int MemoryFileSystem::AccessAt(int dir, const std::string& name, int /*mode*/) {
  struct stat info = {};
  return LinkStatAt(dir, name, &info);
}

int MemoryFileSystem::RealPath(const std::string& path, std::string* out) {
  struct stat info = {};
  if (int error = LinkStat(path, &info); error < 0) return error;
  out->clear();
  for (const absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    if (part != ".") absl::StrAppend(out, "/", part);
  }
  if (out->empty()) *out = "/";
  return 0;
}

int MemoryFileSystem::ListAt(int dir, const std::string& name, std::vector<std::string>* names) {
  absl::MutexLock lock(&mu_);
  Place place;
  if (int error = Find(dir, name, &place); error < 0) return error;
  if (place.inode == nullptr) return -ENOENT;
  if (!place.inode->folder) return -ENOTDIR;
  names->clear();
  for (const auto& [found, history] : place.inode->entries) {
    if (history.back() != nullptr) names->push_back(found);
  }
  return 0;
}

int MemoryFileSystem::StatVfs(const std::string& path, struct statvfs* out) {
  struct stat info = {};
  if (int error = LinkStat(path, &info); error < 0) return error;
  *out = {};
  out->f_bsize = kPage;
  out->f_frsize = kPage;
  out->f_blocks = 1 << 20;
  out->f_bavail = 1 << 20;
  return 0;
}

int64_t MemoryFileSystem::Type(const std::string& path) {
  struct stat info = {};
  const int error = LinkStat(path, &info);
  return error < 0 ? error : EXT4_SUPER_MAGIC;
}

// ---- Mapping ---------------------------------------------------------------------------------

int MemoryFileSystem::Map(int /*fd*/, size_t /*length*/, uint8_t** /*out*/) { return -ENODEV; }
int MemoryFileSystem::Unmap(uint8_t* /*data*/, size_t /*length*/) { return -EINVAL; }
int MemoryFileSystem::Remap(uint8_t* /*data*/, size_t /*old_length*/, size_t /*new_length*/,
                            uint8_t** /*out*/) {
  return -ENODEV;
}
int MemoryFileSystem::Populate(uint8_t* /*data*/, size_t /*length*/, bool* /*huge*/) {
  return -EINVAL;
}
int MemoryFileSystem::Gather(int /*fd*/, off_t /*offset*/, size_t /*length*/) { return -EINVAL; }
int MemoryFileSystem::Register(uint8_t* /*data*/, size_t /*length*/,
                               std::unique_ptr<RegisteredMemory>* /*out*/) {
  return -ENOSYS;
}

}  // namespace ckptd
