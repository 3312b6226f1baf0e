#ifndef CKPTD_SERVER_STAGING_POOL_H_
#define CKPTD_SERVER_STAGING_POOL_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "server/os/file_system.h"
#include "server/staging/image.h"

namespace ckptd {

// Set by whoever wants a waiting call to give up; then Pool::Wake.
using CancelToken = std::atomic<bool>;

// The staging memory of the daemon: images in one tmpfs folder under one budget. Thread-safe.
//
// A page is faulted in before a client sees it, in time moved into a huge one, and kept when its
// save ends: the next save of about the same size gets it warm. Free images give way, least
// recently used first, when the budget is needed for another size. Until then an image keeps the
// bytes of the checkpoint that was saved through it, and may be lent to a process that loads that.
class Pool {
 public:
  struct Options {
    // Absolute. Made, with mode 0700, where it does not exist.
    std::string dir;
    // The most that all images together may take, in bytes.
    uint64_t budget_bytes = 0;
  };

  struct Usage {
    uint64_t used_bytes = 0;
    uint64_t free_bytes = 0;
    // The part of the free ones that still hold a durable checkpoint, and what loads have taken.
    uint64_t kept_bytes = 0;
    uint64_t lent_bytes = 0;
    int image_count = 0;
    int waiting_count = 0;
  };

  // A free image as its next owner may map it ahead. Whoever opens it checks the inode: the name
  // goes with the next lease.
  struct FreeImage {
    std::string path;
    uint64_t size = 0;
    uint64_t inode = 0;
    uint64_t id = 0;
    uint64_t cuts = 0;
  };
  struct Reserved {
    // How many images of that size are free or on their way.
    int count = 0;
    // Those of them, as many as were asked for, that are warm and that Acquire gives to this owner
    // first.
    std::vector<FreeImage> images;
  };

  // `lock` comes from PreparePoolDir.
  Pool(FileSystem* fs, Options options, FileDescriptor lock);
  // Every image must be back. Removes what is free.
  ~Pool();

  // An image of `size` bytes with a name, its contents undefined; where there is a choice, one that
  // `owner` was told of before, as it may have it mapped. Waits, in the order of the calls,
  // while the budget is used up: until `deadline` (DEADLINE_EXCEEDED, STAGING_FULL) or `cancel`
  // (CANCELLED). RESOURCE_EXHAUSTED where `size` can never fit (EXCEEDS_BUDGET) or the tmpfs is
  // full (POOL_EXHAUSTED).
  absl::StatusOr<std::unique_ptr<Image>> Acquire(const std::string& owner, uint64_t size,
                                                 absl::Time deadline, const CancelToken& cancel);

  // Takes over an image that an earlier daemon left, as the save that it belongs to still needs it;
  // see Image::Adopt. Charged to the budget, even where that is smaller now.
  absl::StatusOr<std::unique_ptr<Image>> Adopt(const std::string& name, uint64_t size);

  // Whether a call of Acquire would have to wait until another image is given back.
  bool IsFull(uint64_t size) const;

  // Takes an image back for the next save, unless it was shown to anybody but its client: then it
  // goes. The client must not write to it any more. `holds`: the durable file that has the same
  // bytes, for TakeHolding.
  void Release(std::unique_ptr<Image> image, const absl::optional<FileId>& holds = absl::nullopt);

  // The free image that still has the bytes of `file`, with a name, for Lend; null where there is
  // none, or where what is left of the budget would not do for a save of the same size.
  std::unique_ptr<Image> TakeHolding(const FileId& file);
  // An image of `size` bytes for Lend, its contents undefined; null where there is none at once,
  // or as above.
  std::unique_ptr<Image> TakeForReading(uint64_t size);
  // Leaves an image to a process that has it mapped and holds a shared flock on it. It comes back
  // into the pool once nobody holds that lock: seen by Acquire, Reserve and Reclaim.
  void Lend(std::unique_ptr<Image> image);
  // Takes back what is not held any more. To be called now and then, for who waits for memory.
  void Reclaim();

  // Holds the pages of an image ready for direct writes until it goes, even while it is lent: to
  // let go of them takes longer than a load has. Where the system allows it; that it does not is
  // said in the log, once. Null then.
  RegisteredMemory* Register(Image* image);

  // Takes an image out of service: its client may still be writing to it.
  void Discard(std::unique_ptr<Image> image);

  // Lets go of an image without a trace in the folder being lost: a later daemon adopts it.
  void Leave(std::unique_ptr<Image> image);

  // Sees to it that there are `count` images for saves of `size` bytes by `owner`, on top of what
  // other owners have asked for, as far as the budget goes; they are faulted in on a thread of the
  // pool. Replaces the owner's earlier wish. With `wait`, returns when they are warm.
  absl::StatusOr<Reserved> Reserve(const std::string& owner, uint64_t size, int count, bool wait,
                                   absl::Time deadline, const CancelToken& cancel);
  void Unreserve(const std::string& owner);

  // Gives the memory of all free images back. Returns how many bytes.
  uint64_t Trim();

  // Makes waiting calls look at their cancel token.
  void Wake();

  Usage GetUsage() const;
  const Options& options() const { return options_; }

 private:
  struct Wish {
    uint64_t capacity;
    int count;
  };

  // Whether an image of one capacity serves a save of the other: what must be faulted in, or given
  // back, is then little beside the whole.
  static bool Near(uint64_t a, uint64_t b);
  // How well an image suits an owner: one that it may have mapped before one that nobody has, and
  // that before another's.
  static int Strangeness(const Image& image, const std::string& owner);

  absl::StatusOr<std::unique_ptr<Image>> WaitForRoom(const std::string& owner, uint64_t capacity,
                                                     absl::Time deadline, const CancelToken& cancel,
                                                     std::vector<std::unique_ptr<Image>>* doomed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MayLend(uint64_t capacity) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReclaimLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::unique_ptr<Image> TakeFree(const std::string& owner, uint64_t capacity)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Tells `owner` of at most `count` free images near `capacity`.
  std::vector<FreeImage> Tell(const std::string& owner, uint64_t capacity, int count)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Capacities of the free images that may be evicted, in the order in which MakeRoom does: all of
  // them, or only those beyond what the wishes ask for.
  std::vector<uint64_t> Evictable(bool spare_only) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether `capacity` more bytes fit once those are evicted.
  bool HasRoom(uint64_t capacity, bool spare_only) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MakeRoom(uint64_t capacity, bool spare_only, std::vector<std::unique_ptr<Image>>* doomed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsOnItsWay(uint64_t capacity) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Images near `capacity` that are free or on their way; those and the ones in use; and how many
  // of them the wishes ask for.
  int CountReady(uint64_t capacity) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  int CountAll(uint64_t capacity) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  int CountWished(uint64_t capacity) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The capacity of a wish that is not met although there is room; 0 if there is none.
  uint64_t NextToWarm() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Usage UsageLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status FullError(uint64_t size) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void GiveUpRoom(uint64_t capacity) ABSL_LOCKS_EXCLUDED(mu_);
  // A free image that a wish asks for and whose pages are still to be gathered; free_.end() if
  // there is none.
  std::list<std::unique_ptr<Image>>::iterator FindScattered() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::unique_ptr<Image> TakeScattered() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WarmLoop() ABSL_LOCKS_EXCLUDED(mu_);
  void Warm(uint64_t capacity) ABSL_LOCKS_EXCLUDED(mu_);
  // Stops where somebody waits for memory; the image is scattered still then.
  void GatherPages(Image* image) ABSL_LOCKS_EXCLUDED(mu_);

  FileSystem* const fs_;
  const Options options_;
  const FileDescriptor lock_;
  std::atomic<uint64_t> next_id_{1};
  std::atomic<bool> may_register_{true};

  mutable absl::Mutex mu_;
  absl::CondVar changed_;
  // Pages of all images: free, in use, lent, and being made.
  uint64_t used_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  // Most recently used first.
  std::list<std::unique_ptr<Image>> free_ ABSL_GUARDED_BY(mu_);
  // Images that processes have to themselves.
  std::list<std::unique_ptr<Image>> lent_ ABSL_GUARDED_BY(mu_);
  // Capacities of images in use, and of those being faulted in for a wish.
  std::multiset<uint64_t> leased_ ABSL_GUARDED_BY(mu_);
  std::multiset<uint64_t> warming_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Wish> wishes_ ABSL_GUARDED_BY(mu_);
  // Tickets of waiting calls of Acquire, oldest first.
  std::deque<uint64_t> waiting_ ABSL_GUARDED_BY(mu_);
  uint64_t next_ticket_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread warmer_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_STAGING_POOL_H_
