// Loads: what takes its place in the order of the saves, and holds it.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/core/stream_copy.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/queue/requests.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

// Below that to read the file costs less than to map memory and give it back.
constexpr uint64_t kLeastLentBytes = uint64_t{1} << 20;

// A part of an image, as far as it has one there.
std::string Cut(const Image& image, int64_t offset, size_t length) {
  const uint64_t from = std::min(static_cast<uint64_t>(std::max<int64_t>(offset, 0)), image.size());
  return {reinterpret_cast<const char*>(image.data()) + from,
          std::min<uint64_t>(length, image.size() - from)};
}

}  // namespace

absl::StatusOr<v1::BeginLoadResponse> SaveQueue::BeginLoad(const v1::BeginLoadRequest& request,
                                                           absl::Time deadline) {
  if (!request.backend().empty()) {
    CKPTD_ASSIGN_OR_RETURN(const Backend* backend, backends_->Find(request.backend()));
    if (backend->hosted()) return BeginHostedLoad(*backend, request, deadline);
  }
  auto record = std::make_shared<LoadRecord>();
  CKPTD_ASSIGN_OR_RETURN(const Target target,
                         ResolveTarget(fs_, options_.allow_roots, request.path()));
  record->keys = {target.path};
  // Through a symlink, the load also touches the file that it leads to.
  std::string real;
  if (fs_->RealPath(target.path, &real) == 0 && real != target.path) record->keys.push_back(real);
  CKPTD_RETURN_IF_ERROR(TakeTurn(record, request.session_id(), deadline));
  v1::BeginLoadResponse response;
  absl::Status status = OpenLoad(request, record, &response);
  if (status.ok()) return response;
  absl::MutexLock lock(&mu_);
  DropLoad(record);
  if (!absl::IsNotFound(status)) return status;
  return MakeError(
      absl::StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND",
      absl::StrCat("Checkpoint file not found: ", request.path(), LastFailure(target.path)),
      {{"path", request.path()}});
}

// Gives a load its place in the order, and waits for its turn.
absl::Status SaveQueue::TakeTurn(const LoadPtr& record, const std::string& session_id,
                                 absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  CKPTD_ASSIGN_OR_RETURN(const SessionPtr session, FindSession(session_id));
  record->session = session;
  order_.Add(record.get(), {});
  record->id = absl::StrCat(session->id, "-", record->seq);
  loads_[record->id] = record;
  session->loads[record->id] = record;
  absl::Status status = WaitForTurn(record, session, deadline);
  if (!status.ok()) DropLoad(record);
  return status;
}

absl::Status SaveQueue::WaitForTurn(const LoadPtr& record, const SessionPtr& session,
                                    absl::Time deadline) {
  auto my_turn = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return record->blockers == 0 || session->ended || stopping_;
  };
  const bool in_time = mu_.AwaitWithDeadline(absl::Condition(&my_turn), deadline);
  if (stopping_ || session->ended) return Stopping("load");
  if (in_time) return absl::OkStatus();
  return MakeError(
      absl::StatusCode::kDeadlineExceeded, "PATH_BUSY",
      absl::StrCat("load of ", record->keys.front(), ": waited in vain for ", record->blockers,
                   " saves or removals that are before it; give it more time"));
}

absl::Status SaveQueue::OpenLoad(const v1::BeginLoadRequest& request, const LoadPtr& record,
                                 v1::BeginLoadResponse* response) {
  const std::string& path = request.path();
  const std::string object = absl::StrCat("checkpoint ", path);
  FileDescriptor file = options_.allow_roots.OpenFile(fs_, path);
  if (file.get() == -ENOENT || file.get() == -ENOTDIR) {
    return absl::NotFoundError("");
  }
  if (!file) return options_.allow_roots.Error(object, "open it", file.get());
  struct stat info = {};
  if (int error = fs_->Stat(file.get(), &info); error < 0) {
    return OsError(object, "look at it", -error);
  }
  if (!S_ISREG(info.st_mode)) return OsError(object, "read it as a file", EISDIR);
  response->set_load_id(record->id);
  response->set_size_bytes(info.st_size);
  response->set_device(info.st_dev);
  response->set_inode(info.st_ino);
  if (request.lend()) LendImage(record, FileId::Of(info), response);
  absl::MutexLock lock(&mu_);
  record->file = std::move(file);
  return absl::OkStatus();
}

// Takes no longer than a copy in memory, and does without where it cannot be had at once.
void SaveQueue::LendImage(const LoadPtr& record, const FileId& file,
                          v1::BeginLoadResponse* response) {
  const auto size = static_cast<uint64_t>(file.size);
  if (size < kLeastLentBytes) return;
  std::unique_ptr<Image> image = pool_->TakeHolding(file);
  const bool filled = image != nullptr;
  // Where there are others, who may load the same, they find it: this one gets a copy.
  if (std::unique_ptr<Image> copy =
          !filled || SessionCount() > 1 ? pool_->TakeForReading(size) : nullptr;
      copy != nullptr) {
    if (filled) {
      ckptd_stream_copy(copy->data(), image->data(), size);
      const bool whole = image->IsUncut();
      pool_->Release(std::move(image), whole ? absl::make_optional(file) : absl::nullopt);
      if (!whole) return pool_->Release(std::move(copy));
    }
    image = std::move(copy);
  }
  if (image == nullptr) return;
  Describe(*image, response->mutable_image());
  response->set_image_filled(filled);
  absl::MutexLock lock(&mu_);
  if (loads_.count(record->id) == 0) return pool_->Release(std::move(image));  // its client is gone
  record->image = std::move(image);
}

absl::StatusOr<std::string> SaveQueue::ReadLoad(const std::string& load_id, int64_t offset,
                                                size_t length) {
  LoadPtr record;
  {
    absl::MutexLock lock(&mu_);
    if (auto task = host_tasks_.find(load_id); task != host_tasks_.end()) {
      return Cut(*task->second->image, offset, length);
    }
    auto it = loads_.find(load_id);
    if (it != loads_.end() && it->second->image != nullptr && !it->second->file) {
      return Cut(*it->second->image, offset, length);
    }
    if (it == loads_.end() || !it->second->file) {
      return MakeError(absl::StatusCode::kNotFound, "LOAD_NOT_FOUND",
                       absl::StrCat("load '", load_id.substr(0, 64),
                                    "': is not open; begin one with BeginLoad"));
    }
    record = it->second;
  }
  if (offset < 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_OFFSET",
                     absl::StrCat("load: offset ", offset, " is negative"));
  }
  std::string data(length, '\0');
  const ssize_t n = fs_->Read(record->file.get(), data.data(), length, offset);
  if (n < 0)
    return OsError(absl::StrCat("checkpoint ", record->keys.front()), "read it",
                   static_cast<int>(-n));
  data.resize(static_cast<size_t>(n));
  return data;
}

void SaveQueue::EndLoad(const std::string& load_id) {
  LoadPtr record;  // let go of without the lock: to close its file may hang
  absl::MutexLock lock(&mu_);
  auto it = loads_.find(load_id);
  if (it == loads_.end()) return;
  record = it->second;
  if (record->image != nullptr) pool_->Lend(std::move(record->image));
  DropLoad(record);
}

// Calls of ReadLoad under way keep the record, and with it the file, to their end.
void SaveQueue::DropLoad(const LoadPtr& record) {
  if (loads_.erase(record->id) == 0) return;
  if (const SessionPtr session = record->session.lock(); session != nullptr) {
    session->loads.erase(record->id);
  }
  // Its client may be about to lock it: the memory is that process's, and never used again.
  if (record->image != nullptr) pool_->Discard(std::move(record->image));
  EndOperation(record.get());
}

std::string SaveQueue::LastFailure(const std::string& key) const {
  for (const auto& [number, record] : by_number_) {
    if (record->target.path != key || record->save.error().message().empty()) continue;
    return absl::StrCat(" (the last save to it, ", record->save.name(),
                        ", failed: ", record->save.error().message(), ")");
  }
  return "";
}

}  // namespace ckptd
