#include "server/staging/image.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>

#include <cerrno>
#include <random>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/os/round_up.h"

namespace ckptd {
namespace {

constexpr absl::string_view kImagePrefix = "image-";

// Descriptors that images leave free: an image goes only when it was persisted, for which its
// target must be opened.
constexpr rlim_t kSpareDescriptors = 24;

// Whether `fd` is one of the last. The kernel gives the lowest number that is free.
bool IsSpare(int fd) {
  rlimit limit = {};
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
         static_cast<rlim_t>(fd) + kSpareDescriptors >= limit.rlim_cur;
}

// Not to be guessed or met by accident: a client takes an image only by this name and its inode.
std::string RandomName(uint64_t id) {
  std::random_device random;
  const uint64_t bits = (uint64_t{random()} << 32) | random();
  return absl::StrCat(kImagePrefix, id, "-", absl::Hex(bits, absl::kZeroPad16));
}

absl::Status PoolError(const std::string& dir, absl::string_view action, int error) {
  // A page that tmpfs cannot provide is EFAULT from madvise, ENOSPC from elsewhere.
  if (error == EFAULT || error == ENOSPC || error == ENOMEM) {
    return MakeError(absl::StatusCode::kResourceExhausted, "POOL_EXHAUSTED",
                     absl::StrCat("pool ", dir, ": cannot ", action,
                                  ": the tmpfs is full; make it larger (docker run --shm-size, or "
                                  "an emptyDir with medium Memory), or lower --staging-budget"),
                     {{"dir", dir}});
  }
  return OsError(absl::StrCat("pool ", dir), action, error);
}

// Only what says that the image is not there, or is another file, makes it lost. Any other error
// says nothing about it: it may be taken over another time.
absl::Status CannotTakeOver(const std::string& path, int error) {
  const std::string object = absl::StrCat("image ", path);
  constexpr absl::string_view kAction = "take it over from an earlier daemon";
  if (error != ENOENT && error != ENOTDIR && error != ELOOP && error != EISDIR && error != EBADF) {
    return OsError(object, kAction, error);
  }
  return MakeError(
      absl::StatusCode::kNotFound, "IMAGE_LOST",
      absl::StrCat(object, ": cannot ", kAction, ": ", std::generic_category().message(error)),
      {{"image", path}});
}

// Whether so much of what is registered, or could be, is as good as all of it: to let go of pages
// and to hold them anew takes tens of milliseconds, and a state may grow or shrink by some each
// time.
bool IsMost(uint64_t part, uint64_t whole) { return part >= whole - whole / 64; }

}  // namespace

std::string FreeDir(const std::string& pool_dir) { return absl::StrCat(pool_dir, "/.free"); }

std::string NoteDir(const std::string& pool_dir) { return absl::StrCat(pool_dir, "/.notes"); }

bool IsImageName(const std::string& name) { return absl::StartsWith(name, kImagePrefix); }

absl::StatusOr<std::unique_ptr<Image>> Image::Create(FileSystem* fs, const std::string& dir,
                                                     uint64_t id, uint64_t size) {
  std::unique_ptr<Image> image(new Image(fs, dir, id));
  CKPTD_RETURN_IF_ERROR(image->Open());
  CKPTD_RETURN_IF_ERROR(image->Resize(size));
  return image;
}

absl::StatusOr<std::unique_ptr<Image>> Image::Adopt(FileSystem* fs, const std::string& dir,
                                                    const std::string& name, uint64_t id,
                                                    uint64_t size) {
  std::unique_ptr<Image> image(new Image(fs, dir, id));
  image->base_name_ = name;
  const std::string path = absl::StrCat(dir, "/", name);
  image->fd_ = FileDescriptor(fs, fs->Open(path, O_RDWR | O_NOFOLLOW, 0));
  struct stat info = {};
  if (!image->fd_) return CannotTakeOver(path, -image->fd_.get());
  if (int error = fs->Stat(image->fd_.get(), &info); error < 0) return CannotTakeOver(path, -error);
  if (!S_ISREG(info.st_mode) || static_cast<uint64_t>(info.st_size) != size) {
    return CannotTakeOver(path, EBADF);
  }
  image->path_ = path;
  image->has_note_ = true;
  image->inode_ = info.st_ino;
  image->size_ = size;
  if (int error = fs->Map(image->fd_.get(), RoundUp(size), &image->data_); error < 0) {
    image->Leave();
    return PoolError(dir, "map an image", -error);
  }
  image->capacity_ = RoundUp(size);
  image->guard_.Cover(image->data_, image->capacity_);
  return image;
}

absl::Status Image::Open() {
  base_name_ = RandomName(id_);
  int fd = fs_->Open(dir_, O_TMPFILE | O_RDWR, 0600);
  if (fd == -EOPNOTSUPP || fd == -EISDIR || fd == -ENOENT) {
    // No unnamed files here: it begins its life parked.
    if (int error = fs_->MakeDirectory(FreeDir(dir_), 0700); error < 0 && error != -EEXIST) {
      return PoolError(dir_, "make a folder", -error);
    }
    path_ = absl::StrCat(FreeDir(dir_), "/", base_name_);
    fd = fs_->Open(path_, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (fd < 0) path_.clear();
  }
  if (fd < 0) return PoolError(dir_, "create an image", -fd);
  fd_ = FileDescriptor(fs_, fd);
  if (IsSpare(fd)) return PoolError(dir_, "create an image", EMFILE);
  struct stat info = {};
  if (int error = fs_->Stat(fd_.get(), &info); error < 0) {
    return PoolError(dir_, "look at an image", -error);
  }
  inode_ = info.st_ino;
  return absl::OkStatus();
}

Image::~Image() {
  Unmap();
  if (leave_) return;
  RemoveNote();
  if (!path_.empty()) fs_->Unlink(path_);
}

void Image::RemoveNote() {
  if (has_note_) fs_->Unlink(absl::StrCat(NoteDir(dir_), "/", base_name_));
  has_note_ = false;
}

absl::Status Image::WriteNote(const std::string& note) {
  if (int error = fs_->MakeDirectory(NoteDir(dir_), 0700); error < 0 && error != -EEXIST) {
    return PoolError(dir_, "make a folder", -error);
  }
  FileDescriptor file(fs_, fs_->Open(absl::StrCat(NoteDir(dir_), "/", base_name_),
                                     O_CREAT | O_TRUNC | O_WRONLY | O_NOFOLLOW, 0600));
  if (!file) return PoolError(dir_, "create a note", -file.get());
  has_note_ = true;
  for (size_t done = 0; done < note.size();) {
    const ssize_t n =
        fs_->Write(file.get(), note.data() + done, note.size() - done, static_cast<off_t>(done));
    if (n <= 0) return PoolError(dir_, "write a note", n == 0 ? EIO : static_cast<int>(-n));
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadNote(FileSystem* fs, const std::string& dir,
                                     const std::string& name) {
  const std::string path = absl::StrCat(NoteDir(dir), "/", name);
  const FileDescriptor file(fs, fs->Open(path, O_RDONLY | O_NOFOLLOW, 0));
  if (!file) return CannotTakeOver(path, -file.get());
  struct stat info = {};
  if (int error = fs->Stat(file.get(), &info); error < 0) return CannotTakeOver(path, -error);
  std::string note(static_cast<size_t>(info.st_size), '\0');
  for (size_t done = 0; done < note.size();) {
    const ssize_t n =
        fs->Read(file.get(), note.data() + done, note.size() - done, static_cast<off_t>(done));
    if (n <= 0) return CannotTakeOver(path, n == 0 ? EBADF : static_cast<int>(-n));
    done += static_cast<size_t>(n);
  }
  return note;
}

void Image::Unmap() {
  registered_.reset();
  guard_.Uncover();
  if (data_ != nullptr) fs_->Unmap(data_, capacity_);
  data_ = nullptr;
}

// Whatever takes pages from a file in tmpfs, or puts others in their place, sets its time of change
// (ftruncate, fallocate, MADV_REMOVE); to write to those that are there does not.
int Image::Register() {
  struct stat info = {};
  if (int error = fs_->Stat(fd_.get(), &info); error < 0) return error;
  if (HoldsPagesSince(info) && IsMost(registered_->size(), capacity_)) return 0;
  registered_.reset();
  registered_mtime_ = info.st_mtim;
  return fs_->Register(data_, capacity_, &registered_);
}

bool Image::HoldsPagesSince(const struct stat& info) const {
  return registered_ != nullptr && info.st_mtim.tv_sec == registered_mtime_.tv_sec &&
         info.st_mtim.tv_nsec == registered_mtime_.tv_nsec;
}

int Image::SetLength(uint64_t size) {
  struct stat info = {};
  const bool holds = fs_->Stat(fd_.get(), &info) == 0 && HoldsPagesSince(info);
  if (!holds) registered_.reset();
  if (int error = fs_->Truncate(fd_.get(), static_cast<off_t>(size)); error < 0) return error;
  size_ = size;
  if (!holds) return 0;
  registered_->Cut(RoundUp(size));
  // What is held for nothing is memory beyond the budget.
  if (!IsMost(registered_->size(), registered_->held())) registered_.reset();
  NoteOwnChange();
  return 0;
}

void Image::NoteOwnChange() {
  struct stat info = {};
  if (registered_ != nullptr && fs_->Stat(fd_.get(), &info) == 0) {
    registered_mtime_ = info.st_mtim;
  }
}

absl::Status Image::Resize(uint64_t size) {
  const uint64_t old_capacity = capacity_;
  const uint64_t new_capacity = RoundUp(size);
  if (size != size_) {
    if (int error = SetLength(size); error < 0) return PoolError(dir_, "resize an image", -error);
  }
  if (new_capacity == old_capacity) return absl::OkStatus();
  guard_.Uncover();
  const int mapped = data_ == nullptr ? fs_->Map(fd_.get(), new_capacity, &data_)
                                      : fs_->Remap(data_, old_capacity, new_capacity, &data_);
  if (mapped < 0) return PoolError(dir_, "map an image", -mapped);
  capacity_ = new_capacity;
  guard_.Cover(data_, capacity_);
  if (new_capacity < old_capacity) {
    ++cuts_;
    return absl::OkStatus();
  }
  const uint64_t added = new_capacity - old_capacity;
  bool huge = true;
  if (int error = fs_->Populate(data_ + old_capacity, added, &huge); error < 0) {
    return PoolError(dir_, absl::StrCat("fault in ", added, " bytes of an image"), -error);
  }
  if (!huge) scattered_ = true;
  NoteOwnChange();
  return absl::OkStatus();
}

bool Image::IsUncut() const {
  if (guard_.torn()) return false;
  struct stat info = {};
  // Where nobody tells, the faults alone do.
  return fs_->Stat(fd_.get(), &info) < 0 || static_cast<uint64_t>(info.st_size) >= size_;
}

bool Image::IsWhole() const {
  constexpr uint64_t kBlock = 512;  // of st_blocks, whatever the file system's own are
  struct stat info = {};
  return !guard_.torn() && fs_->Stat(fd_.get(), &info) == 0 &&
         static_cast<uint64_t>(info.st_size) == size_ &&
         static_cast<uint64_t>(info.st_blocks) * kBlock >= capacity_;
}

absl::Status Image::MoveTo(const std::string& path) {
  const int error = path_.empty() ? fs_->Link(fd_.get(), path) : fs_->Rename(path_, path);
  if (error < 0) return PoolError(dir_, "name an image", -error);
  path_ = path;
  return absl::OkStatus();
}

absl::Status Image::Lease() {
  holds_.reset();
  return MoveTo(absl::StrCat(dir_, "/", base_name_));
}

// The lock belongs to the file as that process has opened it, and to all that it has forked: it
// goes with the last of them, however that ends.
bool Image::IsLent() const {
  if (flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) return true;
  flock(fd_.get(), LOCK_UN);
  return false;
}

absl::Status Image::Park() {
  RemoveNote();
  if (!IsWhole()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "IMAGE_CHANGED",
                     absl::StrCat("pool ", dir_, ": cannot use image ", base_name_,
                                  " again: a client changed its length or gave pages of it away"),
                     {{"dir", dir_}});
  }
  const std::string free_dir = FreeDir(dir_);
  if (int error = fs_->MakeDirectory(free_dir, 0700); error < 0 && error != -EEXIST) {
    return PoolError(dir_, "make a folder", -error);
  }
  return MoveTo(absl::StrCat(free_dir, "/", base_name_));
}

}  // namespace ckptd
