#include "tests/server/queue/model_run.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "server/os/round_up.h"
#include "server/persist/names.h"

namespace ckptd {
namespace {

// Images that fit into the budget; each takes one page.
constexpr size_t kImages = 4;
// Each save has a size of its own, by which its calls are known.
constexpr size_t kSmallest = 100;
constexpr const char* kJobs[] = {"jobs/j", "jobs/k"};
constexpr const char* kFiles[] = {"f", "a/x", "a/y", "a/b/z"};
constexpr const char* kRemovable[] = {"f", "a/x", "a/y", "a/b/z", "a/b", "a"};

template <typename Choices>
auto Pick(const Choices& choices, uint32_t which) {
  return choices[which % std::size(choices)];
}

std::string Short(const std::string& name) { return name.substr(name.rfind('/') + 1); }

SaveQueue::Options QueueOptions() {
  SaveQueue::Options options;
  options.workers_per_device = 16;
  options.retry_timeout = absl::InfiniteDuration();
  options.first_retry_delay = absl::Milliseconds(1);
  options.max_retry_delay = absl::Milliseconds(1);
  return options;
}

}  // namespace

// ---- One history -----------------------------------------------------------------------------

// A save stops when its file is given its length: written, not synced, and without a name. A
// removal stops when it looks for what an earlier attempt has left, before anything is gone.
WorkGate::Answer ModelRun::Before(const FsCall& call) {
  static thread_local FsOp last = FsOp::kClose;
  const FsOp before = std::exchange(last, call.op);
  if (dead_ && call.op != FsOp::kClose && call.op != FsOp::kUnmap) return -EIO;
  if (std::this_thread::get_id() == main_) return std::nullopt;
  if (call.op == FsOp::kTruncate && call.length >= kSmallest) {
    return work_.Pass(names_.at(call.length - kSmallest));
  }
  // Another look follows when a folder has been renamed and the one that it is in synced.
  if (call.op != FsOp::kOpen || before == FsOp::kSync) return std::nullopt;
  for (const std::string removable : kRemovable) {
    const std::filesystem::path path = disk_ / removable;
    if (call.path == path.parent_path() / RemovalName(path.filename())) {
      return work_.Pass("removal of " + removable);
    }
  }
  return std::nullopt;
}

ModelRun::Outcome ModelRun::Run(const std::vector<Step>& steps, absl::Duration patience) {
  patience_ = patience;
  StartAnew();
  for (size_t i = 0; i < steps.size() && !failed(); ++i) Do(steps[i]);
  if (!failed()) Finish();
  work_.Open(std::nullopt);
  StopAll();
  return std::exchange(outcome_, {});
}

void ModelRun::StartAnew() {
  fs_.Reset();
  work_.Close();
  for (const std::string& name : disk_.List()) std::filesystem::remove_all(disk_ / name);
  model_ = QueueModel(kImages);
  names_.assign(kMaxSaves, "");
  begun_ = 0;
  held_.clear();
  Start(QueueOptions(), kImages * kPageBytes);
  fs_.SetBefore([this](const FsCall& call) { return Before(call); });
  Attach();
}

void ModelRun::Attach() {
  sessions_ = {queue_->OpenSession("one"), queue_->OpenSession("two")};
  {
    absl::MutexLock lock(&told_mu_);
    at_work_.clear();
  }
  // An attempt is told when it begins, and when it has failed and another one is to follow.
  const auto told = [this](const v1::Save& save, bool progress_only) {
    if (save.state() != v1::Save::PERSISTING || progress_only) return;
    absl::MutexLock lock(&told_mu_);
    if (!at_work_.insert(save.name()).second) at_work_.erase(save.name());
  };
  Expect(queue_->Subscribe("", told).ok(), "cannot subscribe");
}

void ModelRun::Do(const Step& step) {
  const std::vector<Op*> running = model_.Running();
  switch (step.kind) {
    case Step::kSave:
    case Step::kBegin:
      Begin(step, step.kind == Step::kSave);
      break;
    case Step::kCommit:
    case Step::kAbort:
    case Step::kCancel:
    case Step::kExport:
      DoWithSave(step);
      break;
    case Step::kCloseSession:
      CloseSession(static_cast<int>(step.which % sessions_.size()));
      break;
    case Step::kLoad:
      BeginLoad(step);
      break;
    case Step::kEndLoad:
      if (!held_.empty()) EndLoad(step.which % held_.size());
      break;
    case Step::kWaitingLoad:
      if (held_.empty()) LoadAfterAllWork({Pick(kFiles, step.path)});
      break;
    case Step::kRemove:
      Remove(step);
      break;
    case Step::kFlush:
      FlushJob(Pick(kJobs, step.which));
      break;
    case Step::kGoOn:
      if (!running.empty()) GoOn(Pick(running, step.which), step.how);
      break;
    case Step::kEndDelays:
      EndDelays();
      break;
    case Step::kStop:
    case Step::kKill:
      Restart(step.kind == Step::kKill);
      break;
  }
  if (!failed()) Check();
}

void ModelRun::Finish() {
  while (!held_.empty()) EndLoad(0);
  for (int session : {0, 1}) CloseSession(session);
  LoadAfterAllWork({std::begin(kFiles), std::end(kFiles)});
  for (const char* job : kJobs) FlushJob(job);
  const std::vector<std::string> notes = ListDir(shm_ / ".notes");
  Expect(notes.empty(), "there are notes left: " + absl::StrJoin(notes, ", "));
}

void ModelRun::LoadAfterAllWork(const std::vector<std::string>& files) {
  Log(absl::StrCat("wait for loads of ", absl::StrJoin(files, ", "), "; all work goes on"));
  std::vector<std::string> contents(files.size());
  std::vector<std::thread> loaders;
  session_ = sessions_[0];
  const absl::Time deadline = absl::Now() + patience_;
  for (size_t i = 0; i < files.size(); ++i) {
    loaders.emplace_back([&, i] { contents[i] = ReadAll(Load(files[i], deadline)); });
  }
  while (!failed() && !model_.Pending().empty()) {
    const std::vector<Op*> running = model_.Running();
    running.empty() ? EndDelays() : GoOn(running[0], /*how=*/UINT32_MAX);
    if (!failed()) Check();
  }
  if (failed()) work_.Open(std::nullopt);
  for (std::thread& loader : loaders) loader.join();
  for (size_t i = 0; i < files.size(); ++i) {
    auto it = model_.files().find(files[i]);
    const std::string expected = it == model_.files().end() ? "<none>" : it->second;
    Expect(contents[i] == expected,
           absl::StrCat("a load of ", files[i], " finds ", contents[i], ", not ", expected));
  }
}

std::string ModelRun::ReadAll(const absl::StatusOr<v1::BeginLoadResponse>& load) {
  if (!load.ok()) {
    return ReasonOf(load.status()) == "CHECKPOINT_NOT_FOUND" ? "<none>" : load.status().ToString();
  }
  auto content = queue_->ReadLoad(load->load_id(), 0, 2 * kMaxSaves);
  queue_->EndLoad(load->load_id());
  return content.ok() ? *content : content.status().ToString();
}

// ---- Steps -----------------------------------------------------------------------------------

void ModelRun::Begin(const Step& step, bool commit) {
  using OnFull = v1::BeginSaveRequest;
  constexpr OnFull::OnFull kPolicies[] = {OnFull::SUPERSEDE, OnFull::SUPERSEDE, OnFull::REJECT,
                                          OnFull::BLOCK};
  const OnFull::OnFull policy = Pick(kPolicies, step.how);
  const std::string file = Pick(kFiles, step.path);
  const int session = static_cast<int>(step.which / 2 % sessions_.size());
  const std::string name = absl::StrCat(Pick(kJobs, step.which), "/saves/s", begun_ + 1);
  QueueModel::Save save;
  save.session = session;
  save.path = file;
  save.content = Short(name);
  save.content.resize(kSmallest + begun_, '.');
  names_.at(begun_++) = name;
  session_ = sessions_.at(session);
  v1::BeginSaveRequest request = Request(name, disk_ / file, save.content.size());
  request.set_on_full(policy);
  Log(absl::StrCat("begin ", name, " to ", file, ", ", OnFull::OnFull_Name(policy)));

  model_.TouchFolders(file);
  if (model_.IsFull() && policy == OnFull::SUPERSEDE) model_.Supersede(name, file);
  const bool full = model_.IsFull();
  const absl::Status begun = queue_->BeginSave(request, absl::Now()).status();
  if (full) {
    Expect(ReasonOf(begun) == "STAGING_FULL", begun.ToString());
    if (policy != OnFull::REJECT) return;
    save.state = v1::Save::FAILED;
    save.reason = "STAGING_FULL";
  }
  model_.Begin(name, save);
  if (full) return;
  Expect(begun.ok(), begun.ToString());
  const absl::Status written = queue_->WriteSave(name, 0, save.content).status();
  Expect(written.ok(), written.ToString());
  // A removal may have begun, as what it waited for gave way.
  if (!failed()) Check();
  if (commit && !failed()) Commit(name);
}

void ModelRun::Commit(const std::string& name) {
  Log(absl::StrCat("commit ", name));
  const absl::Status committed = queue_->CommitSave(name).status();
  Expect(committed.ok(), committed.ToString());
  model_.Commit(name);
}

void ModelRun::DoWithSave(const Step& step) {
  const bool staging = step.kind == Step::kCommit || step.kind == Step::kAbort;
  const std::vector<std::string> saves = SavesIn(staging);
  if (saves.empty()) return;
  const std::string name = Pick(saves, step.which);
  if (step.kind == Step::kCommit) return Commit(name);
  if (step.kind == Step::kExport) return Export(name);
  absl::Status status;
  if (step.kind == Step::kAbort) {
    Log(absl::StrCat("abort ", name));
    status = queue_->AbortSave(name).status();
    model_.Drop(name, "ABORTED");
  } else {
    Log(absl::StrCat("cancel ", name));
    status = queue_->CancelSave(name).status();
    model_.Cancel(name);
  }
  Expect(status.ok(), status.ToString());
}

// Only what is accepted and in nobody's hands can be exported, and goes on afterwards.
void ModelRun::Export(const std::string& name) {
  const std::vector<Op*> pending = model_.Pending();
  const bool free = std::any_of(pending.begin(), pending.end(), [&](const Op* op) {
    return op->kind == Op::Kind::kSave && op->name == name && (!op->running || op->delayed);
  });
  Log(absl::StrCat("export ", name));
  v1::ExportSaveRequest request;
  request.set_name(name);
  request.set_path(exports_ / "export");
  const absl::Status status = queue_->ExportSave(request).status();
  if (free) {
    Expect(status.ok(), status.ToString());
    Expect(ReadFile(exports_ / "export") == model_.saves().at(name).content,
           absl::StrCat("exported ", ReadFile(exports_ / "export")));
  } else {
    Expect(ReasonOf(status) == "SAVE_BUSY", status.ToString());
  }
}

void ModelRun::CloseSession(int session) {
  Log(absl::StrCat("end of session ", session));
  queue_->CloseSession(sessions_.at(session));
  sessions_.at(session) = queue_->OpenSession("next");
  for (const std::string& name : SavesIn(/*staging=*/true)) {
    if (model_.saves().at(name).session == session) model_.Drop(name, "CLIENT_DIED");
  }
  const auto mine = [&](const Held& held) { return held.session == session; };
  for (const Held& held : held_) {
    if (mine(held)) model_.EndLoad(held.op);
  }
  std::erase_if(held_, mine);
}

void ModelRun::BeginLoad(const Step& step) {
  const std::string file = Pick(kFiles, step.path);
  const int session = static_cast<int>(step.which % sessions_.size());
  const int blockers = model_.Blockers(file);
  session_ = sessions_.at(session);
  Log(absl::StrCat("load ", file, " in session ", session));
  const auto load = Load(file, absl::Now());
  if (blockers > 0) {
    Expect(ReasonOf(load.status()) == "PATH_BUSY" &&
               absl::StrContains(load.status().message(), absl::StrCat(" ", blockers, " saves or")),
           absl::StrCat(load.ok() ? "was not held up" : load.status().ToString(), " instead of by ",
                        blockers, " operations"));
    return;
  }
  auto it = model_.files().find(file);
  if (it == model_.files().end()) {
    Expect(ReasonOf(load.status()) == "CHECKPOINT_NOT_FOUND", load.status().ToString());
    return;
  }
  Expect(load.ok(), load.status().ToString());
  if (!load.ok()) return;
  const auto content = queue_->ReadLoad(load->load_id(), 0, 2 * kMaxSaves);
  Expect(content.value_or("") == it->second, absl::StrCat("found ", content.value_or("nothing")));
  held_.push_back({load->load_id(), session, model_.BeginLoad(file)});
}

void ModelRun::EndLoad(size_t which) {
  const Held held = held_.at(which);
  held_.erase(held_.begin() + static_cast<int64_t>(which));
  Log(absl::StrCat("end the load of ", held.op->path));
  queue_->EndLoad(held.id);
  model_.EndLoad(held.op);
}

void ModelRun::Remove(const Step& step) {
  const std::string job = Pick(kJobs, step.which);
  const std::string path = Pick(kRemovable, step.path);
  // Without its folder a removal ends at once, where a worker cannot be stopped.
  if (!model_.WillBeInAFolder(path)) return;
  Log(absl::StrCat("remove ", path, " for ", job));
  const absl::Status status = QueueTest::Remove(path, /*wait=*/false, job);
  Expect(status.ok(), status.ToString());
  model_.Remove(job, path);
}

void ModelRun::GoOn(Op* op, uint32_t how) {
  const std::string key = QueueModel::NameOf(*op);
  switch (how % 8) {
    case 0:
      Log(absl::StrCat("an error that may pass: ", key));
      // One that is cancelled is not tried again.
      op->cancelled ? model_.End(op, "STORAGE_ERROR") : model_.Delay(op);
      return work_.Let(key, -EIO);
    case 1:
      Log(absl::StrCat("an error that stays: ", key));
      model_.End(op, "READ_ONLY_STORAGE");
      return work_.Let(key, -EROFS);
    default:
      Log(absl::StrCat("go on: ", key));
      model_.End(op, "");
      return work_.Let(key, std::nullopt);
  }
}

void ModelRun::EndDelays() {
  if (!model_.AnyDelayed()) return;
  Log("time passes");
  time_passes_ = true;
  model_.EndDelays();
}

// A kill leaves what was there at that moment: nothing that its worker does afterwards reaches a
// file, and the journal is put back.
void ModelRun::Restart(bool killed) {
  Log(killed ? "the daemon is killed" : "the daemon ends");
  const TempDir journal(TempDir::Place::kMemory);
  const std::vector<std::string> journal_files = state_.List();
  for (const std::string& name : journal_files) {
    if (killed) std::filesystem::copy(state_ / name, journal / name);
  }
  dead_ = killed;
  std::thread stopper([this] { queue_->Stop(); });
  const auto refuses = [this] {
    return ReasonOf(queue_->BeginSave({}, absl::Now()).status()) == "DRAINING";
  };
  EXPECT_TRUE(Eventually(refuses));
  for (const Op* op : model_.Running()) {
    if (op->kind == Op::Kind::kRemove) work_.Let(QueueModel::NameOf(*op), -EIO);
  }
  work_.Open(std::nullopt);
  stopper.join();
  StopAll();
  for (const std::string& name : state_.List()) {
    if (killed) std::filesystem::remove(state_ / name);
  }
  for (const std::string& name : journal_files) {
    if (killed) std::filesystem::copy(journal / name, state_ / name);
  }
  dead_ = false;
  work_.Close();
  held_.clear();
  model_.Restart(killed);
  QueueTest::Restart(QueueOptions());
  Attach();
}

}  // namespace ckptd
