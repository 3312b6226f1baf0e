#include "client/cpp/core/connection.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "client/cpp/core/copy.h"
#include "client/cpp/core/image_map.h"
#include "client/cpp/core/link.h"
#include "client/cpp/core/process.h"
#include "client/cpp/core/save_ledger.h"
#include "client/cpp/core/save_state.h"
#include "client/cpp/core/transfer.h"
#include "proto/status/address.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

// A save, in order:
//   1. BeginSave under a name of our choosing. The daemon plans the file and hands out an image.
//   2. Copy the object and the tensors to their offsets, in the mapped image or by WriteSave.
//   3. CommitSave. From here on the snapshot is the daemon's.
// Where the daemon goes away in between, all of it is done again under the same name, which makes
// a commit whose answer got lost count once. A name that the daemon has cancelled meanwhile,
// because it saw our session end, is replaced by a new one.

namespace ckptd {
namespace {

using Stub = Link::Stub;

constexpr int kMaxCopyThreads = 4;
constexpr absl::Duration kAbortTimeout = absl::Seconds(5);

absl::StatusOr<std::string> Absolute(const std::string& path) {
  if (path.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PATH", "the path is empty");
  }
  std::error_code error;
  std::filesystem::path absolute = std::filesystem::absolute(path, error);
  if (error) return absl::InternalError(absl::StrCat(path, ": ", error.message()));
  return absolute.string();
}

v1::BeginSaveRequest NewBeginRequest(const SaveSpec& spec, const std::string& path) {
  v1::BeginSaveRequest request;
  request.set_path(path);
  request.set_backend(spec.backend);
  request.set_object_bytes(static_cast<int64_t>(spec.object.size()));
  for (const TensorView& view : spec.tensors) {
    v1::TensorSpec& tensor = *request.add_tensors();
    tensor.set_name(view.name);
    tensor.set_dtype(view.dtype);
    tensor.mutable_shape()->Add(view.shape.begin(), view.shape.end());
    tensor.set_size_bytes(static_cast<int64_t>(view.size_bytes));
  }
  request.set_umask(CurrentUmask());
  request.mutable_options()->insert(spec.options.begin(), spec.options.end());
  return request;
}

// Where each part of the save goes. INTERNAL where the daemon's answer leads outside the image.
absl::StatusOr<std::vector<ImagePiece>> Pieces(const SaveSpec& spec,
                                               const v1::BeginSaveResponse& begun) {
  const auto image_bytes = static_cast<uint64_t>(begun.image().size_bytes());
  std::vector<ImagePiece> pieces;
  auto add = [&](int64_t offset, const void* data, size_t size) {
    pieces.push_back({static_cast<uint64_t>(offset), data, size});
    return offset >= 0 && static_cast<uint64_t>(offset) <= image_bytes &&
           size <= image_bytes - static_cast<uint64_t>(offset);
  };
  bool inside = begun.tensor_offsets_size() == static_cast<int>(spec.tensors.size());
  inside = inside && add(begun.object_offset(), spec.object.data(), spec.object.size());
  for (size_t i = 0; inside && i < spec.tensors.size(); ++i) {
    inside = add(begun.tensor_offsets(static_cast<int>(i)), spec.tensors[i].data,
                 spec.tensors[i].size_bytes);
  }
  if (inside) return pieces;
  return absl::InternalError(
      absl::StrCat(begun.save().name(), ": the daemon's plan does not fit its image"));
}

}  // namespace

class Connection::Impl {
 public:
  explicit Impl(ConnectionOptions options)
      : options_(std::move(options)),
        link_({.address = options_.address,
               .client = options_.client,
               .reconnect_timeout = options_.reconnect_timeout,
               .on_reopened = [this](absl::Time deadline) {
                 images_.Clear();
                 Settle(ledger_.Open(), deadline);
               }}) {}

  const ConnectionOptions& options() const { return options_; }
  SaveLedger& ledger() { return ledger_; }
  Link& link() { return link_; }
  absl::Time Deadline(Timeout timeout) const {
    return absl::Now() + timeout.value_or(options_.timeout);
  }
  std::string Parent() const { return absl::StrCat("jobs/", options_.job); }

  absl::StatusOr<SaveHandle> Save(const SaveSpec& spec, absl::Time deadline);
  absl::Status WatchToEnd(const std::string& name, absl::Time deadline);
  absl::StatusOr<CheckpointFile> Load(Session& session, const std::string& path,
                                      absl::Time deadline);
  absl::Status Flush(absl::Time deadline);

 private:
  absl::Status TrySave(Session& session, const SaveSpec& spec, v1::BeginSaveRequest& request,
                       absl::Time deadline, SaveHandle& handle);
  absl::Status Fill(const SaveSpec& spec, const v1::BeginSaveResponse& begun, absl::Time deadline,
                    SaveHandle& handle);
  absl::Status Commit(const std::string& name, absl::Time deadline);
  // Gives up a save that could not be finished; whether the daemon had accepted it after all.
  bool WasAccepted(const std::string& name);
  // Asks what became of accepted saves.
  void Settle(const std::vector<std::string>& names, absl::Time deadline);
  std::string NewName() {
    return absl::StrCat(Parent(), "/saves/", NewSaveId(next_save_.fetch_add(1)));
  }

  const ConnectionOptions options_;
  ImageMap images_;
  SaveLedger ledger_;
  std::atomic<uint64_t> next_save_ = 0;
  Link link_;
};

absl::StatusOr<SaveHandle> Connection::Impl::Save(const SaveSpec& spec, absl::Time deadline) {
  CKPTD_ASSIGN_OR_RETURN(std::string path, Absolute(spec.path));
  v1::BeginSaveRequest request = NewBeginRequest(spec, path);
  request.set_name(NewName());
  SaveHandle handle;
  CKPTD_RETURN_IF_ERROR(link_.WithSession(deadline, [&](Session& session) {
    return TrySave(session, spec, request, deadline, handle);
  }));
  return handle;
}

absl::Status Connection::Impl::TrySave(Session& session, const SaveSpec& spec,
                                       v1::BeginSaveRequest& request, absl::Time deadline,
                                       SaveHandle& handle) {
  request.set_session_id(session.id());
  v1::BeginSaveResponse begun;
  absl::Status status = link_.Call(&Stub::BeginSave, request, &begun, deadline);
  if (absl::IsAlreadyExists(status) || begun.save().state() == v1::Save::CANCELLED) {
    request.set_name(NewName());
    begun.Clear();
    status = link_.Call(&Stub::BeginSave, request, &begun, deadline);
  }
  CKPTD_RETURN_IF_ERROR(status);
  handle.name = request.name();
  if (begun.save().state() == v1::Save::STAGING) {
    status = Fill(spec, begun, deadline, handle);
    // Before the daemon can tell another thread that it has ended.
    ledger_.Accepted(handle.name);
    if (status.ok()) status = Commit(handle.name, deadline);
    if (!status.ok() && !WasAccepted(handle.name)) {
      ledger_.Told(handle.name);
      return status;
    }
  } else {
    ledger_.Accepted(handle.name);
  }
  return absl::OkStatus();
}

absl::Status Connection::Impl::Commit(const std::string& name, absl::Time deadline) {
  v1::CommitSaveRequest request;
  request.set_name(name);
  v1::CommitSaveResponse response;
  CKPTD_RETURN_IF_ERROR(link_.Call(&Stub::CommitSave, request, &response, deadline));
  for (const v1::Save& ended : response.ended_saves()) ledger_.Update(ended);
  return absl::OkStatus();
}

absl::Status Connection::Impl::Fill(const SaveSpec& spec, const v1::BeginSaveResponse& begun,
                                    absl::Time deadline, SaveHandle& handle) {
  CKPTD_ASSIGN_OR_RETURN(std::vector<ImagePiece> pieces, Pieces(spec, begun));
  handle.shared_memory = false;
  if (options_.transport != Transport::kGrpc) {
    const v1::Image& image = begun.image();
    absl::StatusOr<std::shared_ptr<ImageMapping>> mapping =
        images_.Get({.path = image.path(),
                     .size_bytes = static_cast<uint64_t>(image.size_bytes()),
                     .inode = image.inode(),
                     .id = image.id()});
    if (mapping.ok()) {
      std::vector<CopyItem> items;
      items.reserve(pieces.size());
      for (const ImagePiece& piece : pieces) {
        items.push_back({(*mapping)->data() + piece.offset, static_cast<const uint8_t*>(piece.data),
                         piece.size_bytes});
      }
      CopyAll(items, options_.copy_threads);
      handle.shared_memory = true;
      return absl::OkStatus();
    }
    if (options_.transport == Transport::kSharedMemory) return mapping.status();
  }
  return WritePieces(link_.channel(), handle.name, pieces, deadline);
}

bool Connection::Impl::WasAccepted(const std::string& name) {
  v1::AbortSaveRequest request;
  request.set_name(name);
  v1::Save save;
  // Where this does not get through, the end of the session gives the save up.
  const absl::Status status =
      link_.Call(&Stub::AbortSave, request, &save, absl::Now() + kAbortTimeout);
  return status.ok() && save.state() != v1::Save::STAGING && save.state() != v1::Save::CANCELLED;
}

void Connection::Impl::Settle(const std::vector<std::string>& names, absl::Time deadline) {
  for (const std::string& name : names) {
    v1::GetSaveRequest request;
    request.set_name(name);
    v1::Save save;
    absl::Status status = link_.Call(&Stub::GetSave, request, &save, deadline);
    if (absl::IsNotFound(status)) ledger_.Lost(name);
    if (status.ok()) ledger_.Update(save);
  }
}

absl::Status Connection::Impl::WatchToEnd(const std::string& name, absl::Time deadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  v1::WatchSavesRequest request;
  request.set_name(name);
  auto stream = link_.stub().WatchSaves(&context, request);
  v1::Save save;
  while (stream->Read(&save)) {
  }
  absl::Status status = FromGrpc(stream->Finish());
  if (status.ok()) status = Outcome(save);
  if (HasEnded(save) || absl::IsNotFound(status)) ledger_.Told(name);
  return status;
}

absl::StatusOr<CheckpointFile> Connection::Impl::Load(Session& session, const std::string& path,
                                                      absl::Time deadline) {
  v1::BeginLoadRequest request;
  request.set_session_id(session.id());
  request.set_path(path);
  v1::BeginLoadResponse load;
  CKPTD_RETURN_IF_ERROR(link_.Call(&Stub::BeginLoad, request, &load, deadline));
  absl::StatusOr<CheckpointFile> file = absl::UnknownError("");
  if (options_.transport != Transport::kGrpc) file = OpenShared(load, path);
  if (!file.ok() && options_.transport != Transport::kSharedMemory) {
    file = ReadRemote(link_.stub(), load, path, deadline);
  }
  v1::EndLoadRequest end;
  end.set_load_id(load.load_id());
  v1::EndLoadResponse ended;
  // What is read is read: the path is let go of at the end of the session at the latest.
  link_.Call(&Stub::EndLoad, end, &ended, deadline).IgnoreError();
  return file;
}

absl::Status Connection::Impl::Flush(absl::Time deadline) {
  const std::vector<std::string> open = ledger_.Open();
  v1::FlushRequest request;
  request.set_parent(Parent());
  v1::FlushResponse response;
  CKPTD_RETURN_IF_ERROR(link_.WithSession(deadline, [&](Session& session) {
    return link_.Call(&Stub::Flush, request, &response, deadline);
  }));
  // The daemon that answered may be another than the one that accepted: ask about each save.
  Settle(open, deadline);
  for (const v1::FailedRemoval& removal : response.failed_removals()) {
    ledger_.AddFailure(Annotate(FromRpc(removal.error()), "removal of " + removal.path()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(ConnectionOptions options) {
  if (options.address.empty()) options.address = DefaultAddress();
  options.job = JobId(options.job);
  if (options.client.empty()) options.client = DefaultClientName();
  if (options.copy_threads <= 0) {
    const int processors = static_cast<int>(std::thread::hardware_concurrency());
    options.copy_threads = std::clamp(processors, 1, kMaxCopyThreads);
  }
  auto impl = std::make_unique<Impl>(std::move(options));
  CKPTD_RETURN_IF_ERROR(impl->link().Open(impl->Deadline(std::nullopt)));
  return std::unique_ptr<Connection>(new Connection(std::move(impl)));
}

Connection::Connection(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Connection::~Connection() {
  if (!impl_->link().forked()) return;
  // In a forked child the session's thread does not exist, and joining it would wait for ever.
  [[maybe_unused]] const Impl* leaked = impl_.release();
}

absl::StatusOr<SaveHandle> Connection::Save(const SaveSpec& spec, Timeout timeout) {
  absl::StatusOr<SaveHandle> handle = impl_->Save(spec, impl_->Deadline(timeout));
  if (handle.ok()) return handle;
  return Annotate(handle.status(), "save to " + spec.path);
}

absl::Status Connection::WaitDurable(const std::string& save_name, Timeout timeout) {
  const absl::Time deadline = impl_->Deadline(timeout);
  return impl_->link().WithSession(
      deadline, [&](Session& session) { return impl_->WatchToEnd(save_name, deadline); });
}

absl::Status Connection::TakeFailure() {
  const std::vector<absl::Status> failures = impl_->ledger().TakeFailures();
  if (failures.empty()) return absl::OkStatus();
  if (failures.size() == 1) return failures.front();
  return Annotate(failures.front(), absl::StrCat("first of ", failures.size(), " failures"));
}

absl::StatusOr<CheckpointFile> Connection::Load(const std::string& path, Timeout timeout) {
  CKPTD_ASSIGN_OR_RETURN(std::string absolute, Absolute(path));
  const absl::Time deadline = impl_->Deadline(timeout);
  absl::StatusOr<CheckpointFile> file = absl::UnknownError("");
  CKPTD_RETURN_IF_ERROR(impl_->link().WithSession(deadline, [&](Session& session) {
    file = impl_->Load(session, absolute, deadline);
    return file.status();
  }));
  return file;
}

absl::Status Connection::Remove(const std::string& path, bool wait, Timeout timeout) {
  CKPTD_ASSIGN_OR_RETURN(std::string absolute, Absolute(path));
  const absl::Time deadline = impl_->Deadline(timeout);
  v1::RemoveCheckpointRequest request;
  request.set_parent(impl_->Parent());
  request.set_path(absolute);
  request.set_wait(wait);
  v1::RemoveCheckpointResponse response;
  return impl_->link().WithSession(deadline, [&](Session& session) {
    return impl_->link().Call(&Stub::RemoveCheckpoint, request, &response, deadline);
  });
}

absl::Status Connection::Flush(Timeout timeout) {
  CKPTD_RETURN_IF_ERROR(impl_->Flush(impl_->Deadline(timeout)));
  return TakeFailure();
}

absl::StatusOr<int> Connection::Reserve(int64_t image_bytes, int image_count, bool wait,
                                        Timeout timeout) {
  const absl::Time deadline = impl_->Deadline(timeout);
  v1::ReserveRequest request;
  request.set_image_bytes(image_bytes);
  request.set_image_count(image_count);
  request.set_wait(wait);
  v1::ReserveResponse response;
  CKPTD_RETURN_IF_ERROR(impl_->link().WithSession(deadline, [&](Session& session) {
    request.set_session_id(session.id());
    return impl_->link().Call(&Stub::Reserve, request, &response, deadline);
  }));
  return response.image_count();
}

const ConnectionOptions& Connection::options() const { return impl_->options(); }

}  // namespace ckptd
