#ifndef CKPTD_SERVER_STAGING_IMAGE_H_
#define CKPTD_SERVER_STAGING_IMAGE_H_

#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "server/os/file_id.h"
#include "server/os/file_system.h"
#include "server/os/memory_guard.h"

namespace ckptd {

// A file in tmpfs, mapped and faulted in, that is a checkpoint file in the making. Owned by one at
// a time: the pool while it is free, a save otherwise. Not thread-safe; its bytes are shared with
// the client that has it mapped.
//
// Names. A new image has none. Lease gives it one in the pool's folder, by which the client finds
// it. Park moves it out of sight into the folder ".free" (Linux gives a file that lost its last
// name no new one), Lease moves it back.
class Image {
 public:
  // Makes an image of `size` bytes and faults it in. Blocks for as long as that takes.
  // RESOURCE_EXHAUSTED (POOL_EXHAUSTED) where the tmpfs has no room.
  static absl::StatusOr<std::unique_ptr<Image>> Create(FileSystem* fs, const std::string& dir,
                                                       uint64_t id, uint64_t size);
  // Takes over an image that an earlier daemon left in the pool's folder under `name`, with its
  // bytes, which must be `size`. NOT_FOUND (IMAGE_LOST) where it is not there or is another file;
  // after any other error it is where it was.
  static absl::StatusOr<std::unique_ptr<Image>> Adopt(FileSystem* fs, const std::string& dir,
                                                      const std::string& name, uint64_t id,
                                                      uint64_t size);
  // Gives the memory back, as far as no client has it mapped, and removes name and note.
  ~Image();
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  // Cuts or grows the image to `size`; faults in only what is new. After an error it must go.
  absl::Status Resize(uint64_t size);
  absl::Status Lease();
  // FAILED_PRECONDITION (IMAGE_CHANGED) where it is not whole any more.
  absl::Status Park();

  // Puts down beside the image what it is for, so that a later daemon can finish it. The note goes
  // when the image is parked or goes itself.
  absl::Status WriteNote(const std::string& note);
  // Leaves image and note in the folder for a later daemon when this object goes.
  void Leave() { leave_ = true; }

  // Holds the image's pages ready for direct writes, or most of them: what Resize adds later, and
  // what it has taken away, may not be. 0, or -errno.
  int Register();
  // Lets go of them: to be called before they are moved.
  void Unregister() { registered_.reset(); }
  // Whether some of its memory is in small pages that could be in huge ones.
  bool scattered() const { return scattered_; }
  void NoteGathered() { scattered_ = false; }

  // What a client may do to the file while it has it open. Uncut: no byte of the image was lost, as
  // far as its length and the faults of its readers tell. Whole: it also has just its length and
  // all its pages, so that it may be used again.
  bool IsUncut() const;
  bool IsWhole() const;

  // Never used again in this pool, and not an inode number.
  uint64_t id() const { return id_; }
  uint64_t inode() const { return inode_; }
  int fd() const { return fd_.get(); }
  // What it is called in the pool's folder while it has a name.
  const std::string& name() const { return base_name_; }
  // Where the client finds it. Empty while it has no name.
  const std::string& path() const { return path_; }
  // The length of the file.
  uint64_t size() const { return size_; }
  // What it takes of the pool: whole pages. The last page may be read to its end.
  uint64_t capacity() const { return capacity_; }
  uint8_t* data() const { return data_; }
  // What holds its pages; null where nothing does. After Register, for the save that it was for:
  // another process may change which pages are the file's.
  RegisteredMemory* registered() const { return registered_.get(); }
  // Somebody may look at it by a way that ends when it is used again: it never is.
  void set_shown() { shown_ = true; }
  bool shown() const { return shown_; }
  // How often it has lost pages by Resize.
  uint64_t cuts() const { return cuts_; }
  // The durable file whose bytes a parked image still has. Gone with the next lease.
  const absl::optional<FileId>& holds() const { return holds_; }
  void set_holds(const absl::optional<FileId>& file) { holds_ = file; }
  // Whether a process that it was lent to has its lock, and with it a mapping, still.
  bool IsLent() const;
  // The session that was told of it last, and may have it mapped. Empty where there was none.
  const std::string& session() const { return session_; }
  void set_session(const std::string& session) { session_ = session; }

 private:
  Image(FileSystem* fs, std::string dir, uint64_t id) : fs_(fs), dir_(std::move(dir)), id_(id) {}
  absl::Status Open();
  void RemoveNote();
  absl::Status MoveTo(const std::string& path);
  void Unmap();
  int SetLength(uint64_t size);
  // Whether what is registered are the pages that the file has, as fstat tells of it.
  bool HoldsPagesSince(const struct stat& info) const;
  // What the daemon itself has done to the file is no reason to register it again.
  void NoteOwnChange();

  FileSystem* const fs_;
  const std::string dir_;
  const uint64_t id_;
  FileDescriptor fd_;
  uint64_t inode_ = 0;
  std::string base_name_;
  std::string path_;
  uint64_t size_ = 0;
  uint64_t capacity_ = 0;
  uint8_t* data_ = nullptr;
  uint64_t cuts_ = 0;
  std::unique_ptr<RegisteredMemory> registered_;
  timespec registered_mtime_ = {};
  absl::optional<FileId> holds_;
  std::string session_;
  bool scattered_ = false;
  bool has_note_ = false;
  bool leave_ = false;
  bool shown_ = false;
  // Covers the mapping: a client that cuts the file must not end the daemon.
  GuardedRange guard_;
};

// The folder, inside the pool's, of images that wait for their next save.
std::string FreeDir(const std::string& pool_dir);

// The folder of notes, in which each has the name of its image.
std::string NoteDir(const std::string& pool_dir);

// What WriteNote had put down for the image `name`. NOT_FOUND (IMAGE_LOST) where there is none;
// any other error says nothing about it.
absl::StatusOr<std::string> ReadNote(FileSystem* fs, const std::string& dir,
                                     const std::string& name);

// Whether a file of this name in the pool's folders is an image.
bool IsImageName(const std::string& name);

}  // namespace ckptd

#endif  // CKPTD_SERVER_STAGING_IMAGE_H_
