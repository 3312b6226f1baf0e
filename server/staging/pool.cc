#include "server/staging/pool.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/round_up.h"

namespace ckptd {

Pool::Pool(FileSystem* fs, Options options, FileDescriptor lock)
    : fs_(fs), options_(std::move(options)), lock_(std::move(lock)) {
  warmer_ = std::thread([this] { WarmLoop(); });
}

Pool::~Pool() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  warmer_.join();
  {
    absl::MutexLock lock(&mu_);
    free_.clear();
    lent_.clear();
  }
  fs_->RemoveDirectory(FreeDir(options_.dir));
  fs_->RemoveDirectory(NoteDir(options_.dir));
}

absl::StatusOr<std::unique_ptr<Image>> Pool::Acquire(const std::string& owner, uint64_t size,
                                                     absl::Time deadline,
                                                     const CancelToken& cancel) {
  const uint64_t capacity = RoundUp(size);
  if (capacity > options_.budget_bytes) {
    return MakeError(
        absl::StatusCode::kResourceExhausted, "EXCEEDS_BUDGET",
        absl::StrCat("save: needs ", size, " bytes of staging memory, the budget of pool ",
                     options_.dir, " is ", options_.budget_bytes,
                     "; start ckptd with a larger --staging-budget (and, in a container, a larger "
                     "/dev/shm: docker run --shm-size)"),
        {{"size_bytes", absl::StrCat(size)},
         {"budget_bytes", absl::StrCat(options_.budget_bytes)}});
  }
  std::unique_ptr<Image> image;
  {
    std::vector<std::unique_ptr<Image>> doomed;  // given back before new memory is taken
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(image, WaitForRoom(owner, capacity, deadline, cancel, &doomed));
    leased_.insert(capacity);
  }
  // A client that had it before may have kept its descriptor, and have cut it since.
  if (image != nullptr && !image->IsWhole()) image.reset();
  absl::Status status;
  if (image == nullptr) {
    auto created = Image::Create(fs_, options_.dir, next_id_++, size);
    status = created.status();
    if (created.ok()) image = *std::move(created);
  } else {
    status = image->Resize(size);
  }
  if (status.ok()) status = image->Lease();
  if (status.ok()) {
    image->set_session(owner);
    return image;
  }
  image.reset();
  GiveUpRoom(capacity);
  return status;
}

absl::StatusOr<std::unique_ptr<Image>> Pool::WaitForRoom(
    const std::string& owner, uint64_t capacity, absl::Time deadline, const CancelToken& cancel,
    std::vector<std::unique_ptr<Image>>* doomed) {
  const uint64_t ticket = next_ticket_++;
  waiting_.push_back(ticket);
  absl::StatusOr<std::unique_ptr<Image>> result;
  for (bool timed_out = false;; timed_out = changed_.WaitWithDeadline(&mu_, deadline)) {
    if (cancel || stopping_) {
      result = MakeError(absl::StatusCode::kCancelled, "ABORTED",
                         "save: gave up waiting for staging memory: its client is gone or the "
                         "daemon is ending");
      break;
    }
    ReclaimLocked();
    // First come, first served: a large save is not starved by small ones behind it.
    if (waiting_.front() == ticket) {
      std::unique_ptr<Image> image = TakeFree(owner, capacity);
      const bool wait_for_warm = image == nullptr && IsOnItsWay(capacity);
      if (image != nullptr || (!wait_for_warm && MakeRoom(capacity, false, doomed))) {
        if (image == nullptr) used_bytes_ += capacity;
        result = std::move(image);
        break;
      }
    }
    if (timed_out) {
      result = FullError(capacity);
      break;
    }
  }
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), ticket));
  changed_.SignalAll();
  return result;
}

bool Pool::Near(uint64_t a, uint64_t b) {
  constexpr uint64_t kSlack = uint64_t{4} << 20;
  const uint64_t larger = std::max(a, b);
  return larger - std::min(a, b) <= std::max(larger / 8, kSlack);
}

int Pool::Strangeness(const Image& image, const std::string& owner) {
  if (image.session().empty()) return 1;
  return image.session() == owner ? 0 : 2;
}

// Takes the free image that suits the owner best, then the one whose capacity is nearest, with its
// growth paid from the budget.
std::unique_ptr<Image> Pool::TakeFree(const std::string& owner, uint64_t capacity) {
  using Distance = std::tuple<int, uint64_t, size_t>;
  auto best = free_.end();
  Distance best_distance;
  size_t older = free_.size();
  for (auto it = free_.begin(); it != free_.end(); ++it, --older) {
    const uint64_t has = (*it)->capacity();
    if (!Near(has, capacity)) continue;
    if (used_bytes_ - has + capacity > options_.budget_bytes) continue;
    // Of those that are alike, one that holds no checkpoint, then the one with the oldest.
    const Distance distance = {Strangeness(**it, owner),
                               std::max(has, capacity) - std::min(has, capacity),
                               (*it)->holds() ? older : 0};
    if (best != free_.end() && best_distance <= distance) continue;
    best = it;
    best_distance = distance;
  }
  if (best == free_.end()) return nullptr;
  std::unique_ptr<Image> image = std::move(*best);
  free_.erase(best);
  used_bytes_ += capacity;
  used_bytes_ -= image->capacity();
  return image;
}

std::vector<uint64_t> Pool::Evictable(bool spare_only) const {
  std::vector<uint64_t> capacities;
  for (auto it = free_.rbegin(); it != free_.rend(); ++it) {
    const uint64_t capacity = (*it)->capacity();
    const auto gone = std::count_if(capacities.begin(), capacities.end(),
                                    [&](uint64_t other) { return Near(other, capacity); });
    if (spare_only && CountAll(capacity) - gone <= CountWished(capacity)) continue;
    capacities.push_back(capacity);
  }
  return capacities;
}

bool Pool::HasRoom(uint64_t capacity, bool spare_only) const {
  const std::vector<uint64_t> evictable = Evictable(spare_only);
  const uint64_t bytes = std::accumulate(evictable.begin(), evictable.end(), uint64_t{0});
  return used_bytes_ - bytes + capacity <= options_.budget_bytes;
}

// Evicts free images until `capacity` more bytes fit, or changes nothing where they cannot.
bool Pool::MakeRoom(uint64_t capacity, bool spare_only,
                    std::vector<std::unique_ptr<Image>>* doomed) {
  if (!HasRoom(capacity, spare_only)) return false;
  for (auto it = free_.end();
       it != free_.begin() && used_bytes_ + capacity > options_.budget_bytes;) {
    --it;
    if (spare_only && CountAll((*it)->capacity()) <= CountWished((*it)->capacity())) continue;
    used_bytes_ -= (*it)->capacity();
    doomed->push_back(std::move(*it));
    it = free_.erase(it);
  }
  return used_bytes_ + capacity <= options_.budget_bytes;
}

absl::Status Pool::FullError(uint64_t size) const {
  const Usage usage = UsageLocked();
  return MakeError(
      absl::StatusCode::kDeadlineExceeded, "STAGING_FULL",
      absl::StrCat("save: waited in vain for ", size, " bytes of staging memory: of ",
                   options_.budget_bytes, " bytes, ",
                   usage.used_bytes - usage.free_bytes - usage.lent_bytes,
                   " are held by saves that are not durable yet and ", usage.lent_bytes,
                   " by processes that have loaded a checkpoint; give it more time, save less "
                   "often, or start ckptd with a larger --staging-budget"));
}

void Pool::GiveUpRoom(uint64_t capacity) {
  absl::MutexLock lock(&mu_);
  leased_.erase(leased_.find(capacity));
  used_bytes_ -= capacity;
  changed_.SignalAll();
}

void Pool::Release(std::unique_ptr<Image> image, const absl::optional<FileId>& holds) {
  if (image->shown()) {
    Discard(std::move(image));
    return;
  }
  if (absl::Status status = image->Park(); !status.ok()) {
    spdlog::warn("{}; its memory is given back", std::string(status.message()));
    Discard(std::move(image));
    return;
  }
  image->set_holds(holds);
  absl::MutexLock lock(&mu_);
  leased_.erase(leased_.find(image->capacity()));
  free_.push_front(std::move(image));
  changed_.SignalAll();
}

RegisteredMemory* Pool::Register(Image* image) {
  if (!may_register_) return nullptr;
  const int error = image->Register();
  if (error == 0) return image->registered();
  // A client has cut it, as whoever reads it will find out; or descriptors are used up for now.
  if (error == -EFAULT || error == -EMFILE || error == -ENFILE) return nullptr;
  if (may_register_.exchange(false)) {
    spdlog::info(
        "pool {}: its memory cannot be registered for direct writes: {}; they take more processor "
        "time so (allow io_uring in the container's seccomp profile, raise the limit of locked "
        "memory: ulimit -l)",
        options_.dir, std::generic_category().message(-error));
  }
  return nullptr;
}

void Pool::Discard(std::unique_ptr<Image> image) {
  const uint64_t capacity = image->capacity();
  image.reset();
  GiveUpRoom(capacity);
}

void Pool::Leave(std::unique_ptr<Image> image) {
  image->Leave();
  Discard(std::move(image));
}

absl::StatusOr<std::unique_ptr<Image>> Pool::Adopt(const std::string& name, uint64_t size) {
  auto image = Image::Adopt(fs_, options_.dir, name, next_id_++, size);
  if (!image.ok()) return image;
  absl::MutexLock lock(&mu_);
  leased_.insert((*image)->capacity());
  used_bytes_ += (*image)->capacity();
  return image;
}

bool Pool::IsFull(uint64_t size) const {
  const uint64_t capacity = RoundUp(size);
  absl::MutexLock lock(&mu_);
  if (capacity > options_.budget_bytes) return false;  // Acquire says so
  return !waiting_.empty() || (!IsOnItsWay(capacity) && !HasRoom(capacity, false));
}

bool Pool::IsOnItsWay(uint64_t capacity) const {
  return std::any_of(warming_.begin(), warming_.end(),
                     [&](uint64_t warming) { return Near(warming, capacity); });
}

uint64_t Pool::Trim() {
  std::list<std::unique_ptr<Image>> doomed;
  {
    absl::MutexLock lock(&mu_);
    doomed.swap(free_);
  }
  uint64_t bytes = 0;
  for (const auto& image : doomed) bytes += image->capacity();
  doomed.clear();  // before anyone may take its place in the budget
  absl::MutexLock lock(&mu_);
  used_bytes_ -= bytes;
  changed_.SignalAll();
  return bytes;
}

void Pool::Wake() {
  absl::MutexLock lock(&mu_);
  changed_.SignalAll();
}

Pool::Usage Pool::GetUsage() const {
  absl::MutexLock lock(&mu_);
  return UsageLocked();
}

Pool::Usage Pool::UsageLocked() const {
  Usage usage;
  usage.used_bytes = used_bytes_;
  for (const auto& image : free_) {
    usage.free_bytes += image->capacity();
    if (image->holds()) usage.kept_bytes += image->capacity();
  }
  for (const auto& image : lent_) usage.lent_bytes += image->capacity();
  usage.image_count =
      static_cast<int>(free_.size() + leased_.size() + lent_.size() + warming_.size());
  usage.waiting_count = static_cast<int>(waiting_.size());
  return usage;
}

}  // namespace ckptd
