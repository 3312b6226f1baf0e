#include "server/daemon.h"

#include <spdlog/spdlog.h>

#include <filesystem>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "plugins/safetensors/safetensors_plugin.h"
#include "plugins/torch/torch_plugin.h"
#include "plugins/xser/xser_plugin.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/memory_limit.h"
#include "server/staging/pool_dir.h"

namespace ckptd {
namespace {

// For answers that are on their way when everything else is done.
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

// This one; empty where nobody says, and then no process of it can be started.
std::string Program() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).string();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const Options& options,
                                                      Failpoints* failpoints) {
  std::unique_ptr<Daemon> daemon(new Daemon(options, failpoints));
  CKPTD_RETURN_IF_ERROR(daemon->Build());
  return daemon;
}

absl::Status Daemon::Build() {
  // The socket's lock first: a second daemon must not touch the first one's pool.
  CKPTD_ASSIGN_OR_RETURN(std::unique_ptr<Acceptor> acceptor,
                         Acceptor::Bind(fs_.get(), options_.socket));
  CKPTD_RETURN_IF_ERROR(backends_.Add(Backend::OfPython(TorchPlugin())));
  const std::string program = Program();
  for (const ckptd_backend* plugin : {TorchPlugin(), XlaPlugin(), SafetensorsPlugin()}) {
    CKPTD_RETURN_IF_ERROR(backends_.Add(plugin, {{program, "--plugin-host", plugin->name}, ""}));
  }
  CKPTD_RETURN_IF_ERROR(backends_.Add(Backend::OfHost(
      NamedTensorsPlugin(), *XserPlugin(), {{program, "--plugin-host", XserPlugin()->name}, ""})));
  CKPTD_RETURN_IF_ERROR(AddPlugins(program));
  CKPTD_ASSIGN_OR_RETURN(allow_roots_, AllowedRoots::Open(fs_.get(), options_.allow_roots));
  CKPTD_ASSIGN_OR_RETURN(FileDescriptor lock, PreparePoolDir(fs_.get(), options_.pool_dir));
  Pool::Options pool_options;
  pool_options.dir = options_.pool_dir;
  pool_options.budget_bytes = options_.staging_budget_bytes;
  if (pool_options.budget_bytes == 0) {
    CKPTD_ASSIGN_OR_RETURN(pool_options.budget_bytes,
                           DefaultBudget(fs_.get(), options_.pool_dir, MemoryLimit("/")));
  }
  pool_ = std::make_unique<Pool>(fs_.get(), pool_options, std::move(lock));
  hosts_ =
      std::make_unique<BackendHosts>(BackendHosts::Options{absl::StrCat("unix:", options_.socket)});
  CKPTD_RETURN_IF_ERROR(TakeOver());
  service_ = std::make_unique<CheckpointServiceImpl>(
      queue_.get(), pool_.get(), hosts_.get(),
      CheckpointServiceImpl::Identity{CKPTD_VERSION, backends_.Names(), clock_.Now(), journal_file_,
                                      DescribeBackends(), DescribeRefused()});
  CKPTD_ASSIGN_OR_RETURN(server_, GrpcServer::Start(std::move(acceptor), service_.get()));
  Pass("restart.serving");
  spdlog::info("ckptd {} serves unix:{}, staging in {} with a budget of {} bytes", CKPTD_VERSION,
               options_.socket, pool_options.dir, pool_options.budget_bytes);
  return absl::OkStatus();
}

std::vector<v1::BackendStatus> Daemon::DescribeBackends() const {
  std::vector<v1::BackendStatus> all;
  for (const Backend* backend : backends_.All()) {
    v1::BackendStatus& told = all.emplace_back();
    told.set_name(backend->name());
    told.set_version(backend->version());
    for (const std::string& capability : backend->capabilities()) told.add_capabilities(capability);
    told.set_file(backend->file());
  }
  return all;
}

std::vector<v1::RefusedPlugin> Daemon::DescribeRefused() const {
  std::vector<v1::RefusedPlugin> all;
  for (const RefusedPlugin& refused : refused_plugins_) {
    v1::RefusedPlugin& told = all.emplace_back();
    told.set_file(refused.file);
    *told.mutable_error() = ToRpc(refused.error);
  }
  return all;
}

// A plugin that is wrong is no reason not to serve.
absl::Status Daemon::AddPlugins(const std::string& program) {
  std::vector<std::string> taken = backends_.Names();
  taken.emplace_back(kPythonBackend);
  LoadedPlugins found = FindPlugins(options_.plugin_dir, program, NamedTensorsPlugin(),
                                    options_.backend_config, taken);
  for (const RefusedPlugin& refused : found.refused) {
    spdlog::error("plugin refused: {}", std::string(refused.error.message()));
  }
  refused_plugins_ = std::move(found.refused);
  for (std::unique_ptr<Backend>& backend : found.backends) {
    spdlog::info("backend {} {} from {}", backend->name(), backend->version(), backend->file());
    CKPTD_RETURN_IF_ERROR(backends_.Add(std::move(backend)));
  }
  return absl::OkStatus();
}

// The pool is locked for this daemon, and so is the journal that tells of it.
absl::Status Daemon::TakeOver() {
  CKPTD_ASSIGN_OR_RETURN(const std::string state_dir,
                         PrepareStateDir(fs_.get(), options_.state_dir, options_.socket));
  journal_file_ = JournalFile(state_dir, options_.pool_dir);
  CKPTD_ASSIGN_OR_RETURN(journal_, OpenJournal(fs_.get(), journal_file_));
  Pass("restart.journal-opened");
  CKPTD_RETURN_IF_ERROR(CountEarlierCrashes());
  SaveQueue::Options queue_options;
  queue_options.retry_timeout = options_.retry_timeout;
  queue_options.persist_nice = options_.persist_nice;
  queue_options.crash_marker = crash_marker_.get();
  queue_options.failpoints = failpoints_;
  queue_options.hosts = hosts_.get();
  queue_options.allow_roots = allow_roots_;
  queue_ = std::make_unique<SaveQueue>(fs_.get(), &clock_, journal_.journal.get(), pool_.get(),
                                       &backends_, queue_options);
  const bool is_new = journal_.journal->is_new();
  CKPTD_RETURN_IF_ERROR(
      queue_->Restore(journal_.contents, [&](const std::set<std::string>& images) {
        if (is_new) return;
        Pass("restart.adopted");
        RemoveStrays(fs_.get(), options_.pool_dir, images);
        Pass("restart.strays-removed");
      }));
  journal_.contents = {};
  if (is_new) {
    // Nothing tells which images were accepted, so none is removed.
    CKPTD_ASSIGN_OR_RETURN(const std::vector<std::string> images,
                           ListImages(fs_.get(), options_.pool_dir));
    CKPTD_RETURN_IF_ERROR(queue_->RestoreOrphans(images));
    RemoveStrays(fs_.get(), options_.pool_dir, {images.begin(), images.end()});
    CKPTD_RETURN_IF_ERROR(journal_.journal->Settle());
  }
  return absl::OkStatus();
}

absl::Status Daemon::CountEarlierCrashes() {
  const std::string file = absl::StrCat(journal_file_, ".crashes");
  CKPTD_ASSIGN_OR_RETURN(const std::vector<Crash> crashes, CrashMarker::Read(fs_.get(), file));
  std::vector<uint64_t> numbers;
  numbers.reserve(crashes.size());
  for (const Crash& crash : crashes) numbers.push_back(crash.id);
  CKPTD_RETURN_IF_ERROR(CountCrashes(numbers, journal_.journal.get(), &journal_.contents));
  CKPTD_RETURN_IF_ERROR(CrashMarker::Remove(fs_.get(), file));
  CKPTD_ASSIGN_OR_RETURN(crash_marker_, CrashMarker::Open(fs_.get(), file));
  return absl::OkStatus();
}

void Daemon::Pass(absl::string_view failpoint) const {
  if (failpoints_ != nullptr) failpoints_->Pass(failpoint);
}

bool Daemon::IdleForTooLong() const {
  return options_.idle_exit > absl::ZeroDuration() && queue_->IdleFor() >= options_.idle_exit;
}

void Daemon::LookAfterMemory() {
  pool_->Reclaim();
  if (options_.idle_trim == absl::ZeroDuration() || queue_->IdleFor() < options_.idle_trim) return;
  const uint64_t bytes = pool_->Trim();
  if (bytes > 0) spdlog::info("idle: gave {} bytes of staging memory back", bytes);
}

void Daemon::Drain() {
  spdlog::info("draining: no new saves; waiting up to {} for pending ones",
               absl::FormatDuration(options_.drain_timeout));
  server_->SetServing(false);
  const int left = queue_->Drain(absl::Now() + options_.drain_timeout);
  queue_->Stop();
  hosts_->Stop();
  server_->Shutdown(kShutdownGrace);
  if (left > 0) {
    spdlog::warn("ended with {} saves or removals that are not done; the next start goes on", left);
  }
}

}  // namespace ckptd
