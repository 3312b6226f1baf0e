#include "tests/server/testing/queue_fixture.h"

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "plugins/torch/torch_plugin.h"
#include "proto/status/status_macros.h"
#include "server/staging/pool_dir.h"
#include "tests/server/testing/fake_backend.h"

namespace ckptd {

Recorder::Recorder(SaveQueue* queue, const std::string& name) : queue_(queue) {
  auto id = queue_->Subscribe(name, [this](const v1::Save& save, bool progress_only) {
    absl::MutexLock lock(&mu_);
    if (!progress_only) saves_.push_back(save);
  });
  EXPECT_OK(id);
  id_ = id.value_or(0);
}

Recorder::~Recorder() { queue_->Unsubscribe(id_); }

bool Recorder::WaitUntil(const std::function<bool(const std::vector<v1::Save>&)>& done) {
  absl::MutexLock lock(&mu_);
  auto condition = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return done(saves_); };
  return mu_.AwaitWithDeadline(absl::Condition(&condition), Soon());
}

std::vector<v1::Save> Recorder::Saves() const {
  absl::MutexLock lock(&mu_);
  return saves_;
}

std::vector<std::string> Recorder::States() const {
  std::vector<std::string> states;
  for (const v1::Save& save : Saves()) {
    states.push_back(absl::StrCat(save.name().substr(save.name().rfind('/') + 1), " ",
                                  v1::Save::State_Name(save.state())));
  }
  return states;
}

QueueTest::QueueTest(TempDir::Place place) : disk_(place), state_(place) {
  EXPECT_OK(backends_.Add(FakePlugin()));
  EXPECT_OK(backends_.Add(TorchPlugin()));
  EXPECT_OK(backends_.Add(Backend::OfPython(TorchPlugin())));
}

QueueTest::~QueueTest() {
  gate_.Open();
  StopAll();
}

void QueueTest::StopAll() {
  queue_.reset();
  pool_.reset();
  journal_.reset();
}

SaveQueue::Options QueueTest::NoRetry() {
  SaveQueue::Options options;
  options.retry_timeout = absl::ZeroDuration();
  return options;
}

void QueueTest::Start(const SaveQueue::Options& options, uint64_t budget) {
  StopAll();
  for (const std::string& name : state_.List()) posix_->Unlink(state_ / name);
  RemoveStrays(posix_.get(), shm_.path(), {});
  budget_ = budget;
  Restart(options);
}

void QueueTest::Restart(const SaveQueue::Options& options, const std::vector<uint64_t>& crashed) {
  ASSERT_OK(TryRestart(options, crashed));
}

absl::Status QueueTest::TryRestart(const SaveQueue::Options& options,
                                   const std::vector<uint64_t>& crashed) {
  StopAll();
  CKPTD_ASSIGN_OR_RETURN(FileDescriptor lock, PreparePoolDir(posix_.get(), shm_.path()));
  CKPTD_ASSIGN_OR_RETURN(journal_, Journal::Open(posix_.get(), state_ / "journal.db"));
  Pool::Options pool_options;
  pool_options.dir = shm_.path();
  pool_options.budget_bytes = budget_;
  pool_ = std::make_unique<Pool>(&fs_, pool_options, std::move(lock));
  SaveQueue::Options with = options;
  with.hosts = &hosts_;
  queue_ =
      std::make_unique<SaveQueue>(&fs_, &clock_, journal_.get(), pool_.get(), &backends_, with);
  CKPTD_ASSIGN_OR_RETURN(Journal::Contents contents, journal_->Read());
  CKPTD_RETURN_IF_ERROR(CountCrashes(crashed, journal_.get(), &contents));
  CKPTD_RETURN_IF_ERROR(queue_->Restore(contents, [&](const std::set<std::string>& images) {
    if (!keep_images_) RemoveStrays(&fs_, shm_.path(), images);
  }));
  session_ = queue_->OpenSession("host:1 test");
  return absl::OkStatus();
}

std::string QueueTest::Name(const std::string& id) {
  return id.find('/') == std::string::npos ? "jobs/j/saves/" + id : id;
}

v1::BeginSaveRequest QueueTest::Request(const std::string& id, const std::string& path,
                                        size_t size) {
  v1::BeginSaveRequest request;
  request.set_session_id(session_);
  request.set_name(Name(id));
  request.set_path(path);
  request.set_backend("raw");
  request.set_object_bytes(static_cast<int64_t>(size));
  request.set_umask(022);
  return request;
}

void QueueTest::Stage(const std::string& id, const std::string& file, const std::string& content) {
  ASSERT_OK(Begin(Request(id, disk_ / file, content.size())));
  auto staged = queue_->WriteSave(Name(id), 0, content);
  ASSERT_OK(staged);
  ASSERT_EQ(*staged, static_cast<int64_t>(content.size()));
}

void QueueTest::Save(const std::string& id, const std::string& file, const std::string& content) {
  ASSERT_NO_FATAL_FAILURE(Stage(id, file, content));
  auto committed = queue_->CommitSave(Name(id));
  ASSERT_OK(committed);
  EXPECT_NE(committed->save().commit_time().seconds(), 0);
}

v1::Save QueueTest::WaitForEnd(const std::string& id) {
  Recorder recorder(queue_.get(), Name(id));
  EXPECT_TRUE(recorder.WaitUntil([](const std::vector<v1::Save>& saves) {
    return !saves.empty() && saves.back().has_end_time();
  })) << id
      << " does not end";
  return recorder.Saves().back();
}

absl::StatusOr<v1::ListSavesResponse> QueueTest::ListSaves(
    const v1::ListSavesRequest& request) const {
  absl::StatusOr<std::string> page = queue_->ListSaves(request);
  if (!page.ok()) return page.status();
  v1::ListSavesResponse response;
  if (!response.ParseFromString(*page)) return absl::InternalError("the page cannot be parsed");
  return response;
}

v1::Save QueueTest::Get(const std::string& id) {
  auto save = queue_->GetSave(Name(id));
  EXPECT_OK(save);
  return save.value_or(v1::Save());
}

absl::StatusOr<v1::BeginLoadResponse> QueueTest::Load(const std::string& file,
                                                      absl::Time deadline) {
  v1::BeginLoadRequest request;
  request.set_session_id(session_);
  request.set_path(disk_ / file);
  return queue_->BeginLoad(request, deadline);
}

absl::Status QueueTest::Remove(const std::string& file, bool wait, const std::string& job,
                               absl::Time deadline) {
  v1::RemoveCheckpointRequest request;
  request.set_parent(job);
  request.set_path(disk_ / file);
  request.set_wait(wait);
  return queue_->RemoveCheckpoint(request, deadline);
}

absl::StatusOr<v1::FlushResponse> QueueTest::Flush(const std::string& parent,
                                                   const std::string& file, absl::Time deadline) {
  v1::FlushRequest request;
  request.set_parent(parent);
  if (!file.empty()) request.set_path(disk_ / file);
  return queue_->Flush(request, deadline);
}

void QueueTest::HoldSaves() {
  fs_.SetBefore([this](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kDataSync) gate_.Pass();
    return std::nullopt;
  });
}

void QueueTest::Jam() {
  gate_.Close();
  fs_.SetBefore([this](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kAllocate) gate_.Pass();
    return std::nullopt;
  });
}

void QueueTest::StopJammed() {
  std::thread stopper([&] { queue_->Stop(); });
  // Stop has asked the saves to end when no new one is taken.
  EXPECT_TRUE(Eventually([&] { return !Begin(Request("x", disk_ / "x", 1)).ok(); }));
  gate_.Open();
  stopper.join();
  fs_.Reset();
}

std::vector<std::string> QueueTest::LeasedImages() const {
  std::vector<std::string> names;
  for (const std::string& name : shm_.List()) {
    if (name[0] != '.') names.push_back(name);
  }
  return names;
}

absl::Status ErrorOf(const v1::Save& save) { return FromRpc(save.error()); }

}  // namespace ckptd
