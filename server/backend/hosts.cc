// A task, from Run to its end:
//
//  1. Wait until the host has done the tasks before: backends of users are called one at a time.
//  2. Where its process is not attached, and is one that is started here, start it, when the one
//     before is gone; wait for it to attach itself.
//  3. Send the task. From then on the end of the stream is the end of the task, with an error.
//  4. Wait for Done. One that is cancelled meanwhile is told to end, and killed if it does not.
//
// A process that is started here has its standard input for a leash: it ends when that does, as it
// does when the daemon dies, however that dies.

#include "server/backend/hosts.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "proto/status/utf8.h"
#include "server/backend/fingerprint.h"

namespace ckptd {
namespace {

constexpr size_t kMaxLogLine = 4096;
// For the end of a process whose stream has ended: it says how it died.
constexpr absl::Duration kDeathPatience = absl::Seconds(2);

std::string Object(const v1::HostSpec& spec) {
  return absl::StrCat("host process of ", spec.label().empty() ? "a backend" : spec.label());
}

absl::Status Invalid(const v1::HostSpec& spec, absl::string_view why) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
                   absl::StrCat(Object(spec), ": ", why));
}

absl::Status CheckSpec(const v1::HostSpec& spec) {
  const auto has_zero = [](const std::string& s) { return s.find('\0') != std::string::npos; };
  if (spec.argv().empty() || spec.argv(0).empty() || spec.argv(0)[0] != '/') {
    return Invalid(spec, "argv must begin with the absolute path of a program");
  }
  if (std::any_of(spec.argv().begin(), spec.argv().end(), has_zero) || has_zero(spec.directory())) {
    return Invalid(spec, "argv or directory has a zero byte in it");
  }
  for (const auto& [name, value] : spec.environment()) {
    if (name.empty() || name.find('=') != std::string::npos || has_zero(name) || has_zero(value)) {
      return Invalid(spec, absl::StrCat("environment: '", name, "' is no name of a variable"));
    }
  }
  return absl::OkStatus();
}

absl::Status Cancelled(const v1::HostSpec& spec) {
  return MakeError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST",
                   absl::StrCat(Object(spec), ": the task was cancelled"));
}

absl::Status Unavailable(const v1::HostSpec& spec, absl::string_view why) {
  return MakeError(absl::StatusCode::kUnavailable, "HOST_UNAVAILABLE",
                   absl::StrCat(Object(spec), ": ", why));
}

void Log(const v1::HostSpec& spec, const std::string& text) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    spdlog::info("{}: {}", spec.label(), ToUtf8(line, kMaxLogLine));
  }
}

}  // namespace

BackendHosts::~BackendHosts() { Stop(); }

// ---- Hosts -----------------------------------------------------------------------------------

absl::StatusOr<std::string> BackendHosts::Add(const v1::HostSpec& spec) {
  CKPTD_RETURN_IF_ERROR(CheckSpec(spec));
  const std::string canonical = CanonicalBytes(spec);
  const std::string base = Fingerprint(canonical);
  absl::MutexLock lock(&mu_);
  JoinEnded();
  for (int i = 0;; ++i) {
    // Two that only seem to be the same by their checksum are told apart.
    std::string id = i == 0 ? base : absl::StrCat(base, "-", i);
    auto it = hosts_.find(id);
    if (it == hosts_.end()) {
      Put(id, spec);
      return id;
    }
    if (CanonicalBytes(it->second->spec) == canonical) return id;
  }
}

void BackendHosts::Restore(const std::string& id, const v1::HostSpec& spec) {
  absl::MutexLock lock(&mu_);
  Put(id, spec);
}

BackendHosts::HostPtr BackendHosts::Put(const std::string& id, const v1::HostSpec& spec) {
  auto host = std::make_shared<Host>();
  host->id = id;
  host->spec = spec;
  host->startable = IsProgram(spec.argv(0), spec.device(), spec.inode());
  hosts_[id] = host;
  return host;
}

absl::StatusOr<BackendHosts::HostPtr> BackendHosts::Find(const std::string& id) const {
  auto it = hosts_.find(id);
  if (it != hosts_.end()) return it->second;
  return MakeError(absl::StatusCode::kNotFound, "HOST_NOT_FOUND",
                   absl::StrCat("host '", id.substr(0, 64),
                                "': is not registered with this daemon; call RegisterHost first"));
}

absl::Status BackendHosts::Check(const std::string& id) const {
  absl::MutexLock lock(&mu_);
  return Find(id).status();
}

bool BackendHosts::IsStartable(const std::string& id) const {
  absl::MutexLock lock(&mu_);
  const absl::StatusOr<HostPtr> host = Find(id);
  return host.ok() && (*host)->startable;
}

void BackendHosts::Remove(const std::string& id) {
  absl::MutexLock lock(&mu_);
  auto it = hosts_.find(id);
  if (it == hosts_.end()) return;
  EndHost(it->second, absl::OkStatus());
  ending_.push_back(std::move(it->second));
  hosts_.erase(it);
  JoinEnded();
}

// A host ends by itself when its stream does; one that has none yet, by the end of its standard
// input.
void BackendHosts::EndHost(const HostPtr& host, const absl::Status& status) {
  if (host->connection != nullptr) return host->connection->End(status);
  if (host->process != nullptr) host->process->CloseInput();
}

void BackendHosts::JoinEnded() {
  std::erase_if(ending_, [](const HostPtr& host) {
    if (host->process != nullptr) return false;
    // Its thread has let go of the lock for good.
    if (host->reaper.joinable()) host->reaper.join();
    return true;
  });
}

void BackendHosts::Stop() {
  absl::MutexLock lock(&mu_);
  stopping_ = true;
  std::vector<HostPtr> all = ending_;
  for (const auto& [id, host] : hosts_) {
    all.push_back(host);
    EndHost(host, MakeError(absl::StatusCode::kUnavailable, "DRAINING",
                            "stream: the daemon is ending; attach again when it is back"));
    if (host->process != nullptr) host->process->CloseInput();
  }
  auto ended = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return std::all_of(all.begin(), all.end(),
                       [](const HostPtr& host) { return host->process == nullptr; });
  };
  if (!mu_.AwaitWithTimeout(absl::Condition(&ended), options_.end_patience)) {
    for (const HostPtr& host : all) {
      if (host->process != nullptr) host->process->Kill();
    }
    mu_.Await(absl::Condition(&ended));
  }
  ending_ = std::move(all);
  JoinEnded();
}

void BackendHosts::Wake() { absl::MutexLock lock(&mu_); }

// ---- Processes -------------------------------------------------------------------------------

absl::Status BackendHosts::StartProcess(const HostPtr& host) {
  ProcessSpec spec;
  spec.argv = {host->spec.argv().begin(), host->spec.argv().end()};
  for (const auto& [name, value] : host->spec.environment()) {
    spec.environment.push_back(absl::StrCat(name, "=", value));
  }
  spec.environment.push_back(absl::StrCat("CKPTD_HOST_ID=", host->id));
  spec.environment.push_back(absl::StrCat("CKPTD_ADDRESS=", options_.address));
  spec.directory = host->spec.directory();
  spec.umask = static_cast<mode_t>(host->spec.umask() & 0777);
  if (host->reaper.joinable()) host->reaper.join();
  absl::StatusOr<Process> process = Process::Start(spec);
  if (!process.ok()) return Unavailable(host->spec, process.status().message());
  host->process = std::make_shared<Process>(*std::move(process));
  host->had_attached = false;
  host->end.clear();
  spdlog::info("{}: started, process {}", Object(host->spec), host->process->pid());
  host->reaper = std::thread([this, host, started = host->process] { Reap(host, started); });
  return absl::OkStatus();
}

void BackendHosts::Reap(const HostPtr& host, const std::shared_ptr<Process>& process) {
  process->AwaitEnd();
  absl::MutexLock lock(&mu_);
  process->Kill();  // what it may have left behind
  host->end = process->Reap();
  host->process = nullptr;
  spdlog::info("{}: process {} ended with {}", Object(host->spec), process->pid(), host->end);
}

// ---- Tasks -----------------------------------------------------------------------------------

absl::Status BackendHosts::Run(const std::string& id, v1::HostTask task,
                               const std::atomic<bool>& cancelled, const Calls& calls) {
  absl::MutexLock lock(&mu_);
  CKPTD_ASSIGN_OR_RETURN(const HostPtr host, Find(id));
  auto my_turn = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return host->task == nullptr || cancelled || stopping_;
  };
  mu_.Await(absl::Condition(&my_turn));
  if (cancelled || stopping_) return Cancelled(host->spec);
  Task mine;
  mine.id = task.task_id();
  mine.calls = &calls;
  host->task = &mine;
  absl::Status status = AwaitAttached(host, cancelled);
  if (status.ok()) {
    host->connection->Send(std::move(task));
    mine.sent = true;
    status = AwaitDone(host, &mine, cancelled);
  }
  host->task = nullptr;
  auto unused = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return mine.calling == 0; };
  mu_.Await(absl::Condition(&unused));
  return status;
}

absl::Status BackendHosts::AwaitAttached(const HostPtr& host, const std::atomic<bool>& cancelled) {
  const absl::Time deadline = absl::Now() + options_.attach_patience;
  auto has_left = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return host->connection != nullptr || host->process == nullptr || !host->had_attached ||
           cancelled || stopping_;
  };
  if (!mu_.AwaitWithTimeout(absl::Condition(&has_left), options_.end_patience)) {
    host->process->Kill();
    mu_.AwaitWithDeadline(absl::Condition(&has_left), deadline);
  }
  if (host->connection == nullptr && host->process == nullptr && host->startable) {
    CKPTD_RETURN_IF_ERROR(StartProcess(host));
  }
  auto settled = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return host->connection != nullptr || cancelled || stopping_ ||
           (host->startable && host->process == nullptr);
  };
  if (!mu_.AwaitWithDeadline(absl::Condition(&settled), deadline)) {
    return Unavailable(host->spec,
                       host->startable
                           ? absl::StrCat("was started and has not attached itself within ",
                                          absl::FormatDuration(options_.attach_patience),
                                          "; the daemon's log has what it said")
                           : absl::StrCat("the daemon cannot start ", host->spec.argv(0),
                                          " and its client has not, within ",
                                          absl::FormatDuration(options_.attach_patience),
                                          "; the trainer that registered it may be gone"));
  }
  if (cancelled || stopping_) return Cancelled(host->spec);
  if (host->connection != nullptr) return absl::OkStatus();
  return Unavailable(host->spec, absl::StrCat("ended with ", host->end,
                                              " before it attached itself; the daemon's log has "
                                              "what it said"));
}

absl::Status BackendHosts::AwaitDone(const HostPtr& host, Task* task,
                                     const std::atomic<bool>& cancelled) {
  auto over = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return task->result.has_value() || task->lost;
  };
  auto over_or_cancelled = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return over() || cancelled || stopping_;
  };
  mu_.Await(absl::Condition(&over_or_cancelled));
  if (!over()) {
    v1::HostTask cancel;
    cancel.set_task_id(task->id);
    cancel.mutable_cancel();
    host->connection->Send(std::move(cancel));
    if (!mu_.AwaitWithTimeout(absl::Condition(&over), options_.end_patience)) {
      spdlog::warn("{}: does not end its task; ending it", Object(host->spec));
      if (host->process != nullptr) host->process->Kill();
      if (host->connection != nullptr) host->connection->End(Cancelled(host->spec));
      mu_.AwaitWithTimeout(absl::Condition(&over), options_.end_patience);
    }
  }
  if (task->result.has_value() && (task->result->ok() || !(cancelled || stopping_))) {
    return *task->result;
  }
  if (cancelled || stopping_) return Cancelled(host->spec);
  return Died(host);
}

absl::Status BackendHosts::Died(const HostPtr& host) {
  auto reaped = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return host->process == nullptr; };
  mu_.AwaitWithTimeout(absl::Condition(&reaped), kDeathPatience);
  return MakeError(absl::StatusCode::kAborted, "HOST_DIED",
                   absl::StrCat(Object(host->spec), ": ended while it had this task",
                                host->end.empty() ? "" : ", with ", host->end,
                                "; the daemon's log has what it said, and the next task starts it "
                                "again"));
}

// ---- The host processes' side ----------------------------------------------------------------

void BackendHosts::Attach(const v1::HostReport::Attach& attach, HostConnection* connection) {
  absl::MutexLock lock(&mu_);
  const absl::StatusOr<HostPtr> found = Find(attach.host());
  if (!found.ok()) return connection->End(found.status());
  Host& host = **found;
  if (host.connection != nullptr) return connection->End(absl::OkStatus());
  host.connection = connection;
  host.had_attached = true;
  spdlog::info("{}: process {} attached itself", Object(host.spec), attach.pid());
  v1::HostTask setup;
  setup.mutable_setup()->set_payload(host.spec.payload());
  connection->Send(std::move(setup));
}

void BackendHosts::Detach(HostConnection* connection) {
  const auto detach = [connection](Host* host) {
    if (host->connection != connection) return;
    host->connection = nullptr;
    spdlog::info("{}: its stream has ended", Object(host->spec));
    if (host->task != nullptr && host->task->sent) host->task->lost = true;
  };
  absl::MutexLock lock(&mu_);
  for (const auto& [id, host] : hosts_) detach(host.get());
  for (const HostPtr& host : ending_) detach(host.get());
}

void BackendHosts::ReportDone(const Host& host, const v1::HostReport::Done& done) {
  absl::Status status = FromRpc(done.status());
  if (!status.ok() && ReasonOf(status).empty()) {
    status = MakeError(status.code(), "BACKEND_FAILED", status.message());
  }
  host.task->result = std::move(status);
}

void BackendHosts::Report(HostConnection* connection, const v1::HostReport& report) {
  HostPtr host;
  Task* task = nullptr;
  {
    absl::MutexLock lock(&mu_);
    auto it = std::find_if(hosts_.begin(), hosts_.end(), [connection](const auto& entry) {
      return entry.second->connection == connection;
    });
    if (it == hosts_.end()) return;
    host = it->second;
    if (report.has_log()) return Log(host->spec, report.log().text());
    task = host->task;
    const std::string& id = report.has_done()       ? report.done().task_id()
                            : report.has_progress() ? report.progress().task_id()
                            : report.has_found()    ? report.found().task_id()
                                                    : report.allocate().task_id();
    if (task == nullptr || !task->sent || task->id != id) return;
    if (report.has_done()) return ReportDone(*host, report.done());
    ++task->calling;
  }
  v1::HostTask answer;
  if (report.has_progress() && task->calls->on_progress) {
    task->calls->on_progress(report.progress().persisted_bytes());
  } else if (report.has_found() && task->calls->found) {
    task->calls->found(report.found());
  } else if (report.has_allocate() && task->calls->allocate) {
    *answer.mutable_allocated() = task->calls->allocate(report.allocate());
  }
  absl::MutexLock lock(&mu_);
  --task->calling;
  if (answer.has_allocated() && host->connection == connection) {
    answer.set_task_id(task->id);
    connection->Send(std::move(answer));
  }
}

}  // namespace ckptd
