#include "server/daemon.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "plugins/torch/torch_plugin.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/memory_limit.h"
#include "server/staging/pool_dir.h"

namespace ckptd {
namespace {

// For answers that are on their way when everything else is done.
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const Options& options) {
  std::unique_ptr<Daemon> daemon(new Daemon(options));
  CKPTD_RETURN_IF_ERROR(daemon->Build());
  return daemon;
}

absl::Status Daemon::Build() {
  // The socket's lock first: a second daemon must not touch the first one's pool.
  CKPTD_ASSIGN_OR_RETURN(std::unique_ptr<Acceptor> acceptor,
                         Acceptor::Bind(fs_.get(), options_.socket));
  CKPTD_RETURN_IF_ERROR(backends_.Add(TorchPlugin()));
  CKPTD_ASSIGN_OR_RETURN(FileDescriptor lock, PreparePoolDir(fs_.get(), options_.pool_dir));
  Pool::Options pool_options;
  pool_options.dir = options_.pool_dir;
  pool_options.budget_bytes = options_.staging_budget_bytes;
  if (pool_options.budget_bytes == 0) {
    CKPTD_ASSIGN_OR_RETURN(pool_options.budget_bytes,
                           DefaultBudget(fs_.get(), options_.pool_dir, MemoryLimit("/")));
  }
  pool_ = std::make_unique<Pool>(fs_.get(), pool_options, std::move(lock));
  queue_ = std::make_unique<SaveQueue>(fs_.get(), &clock_, pool_.get(), &backends_,
                                       SaveQueue::Options());
  service_ = std::make_unique<CheckpointServiceImpl>(
      queue_.get(), pool_.get(),
      CheckpointServiceImpl::Identity{CKPTD_VERSION, backends_.Names(), clock_.Now()});
  CKPTD_ASSIGN_OR_RETURN(server_, GrpcServer::Start(std::move(acceptor), service_.get()));
  spdlog::info("ckptd {} serves unix:{}, staging in {} with a budget of {} bytes", CKPTD_VERSION,
               options_.socket, pool_options.dir, pool_options.budget_bytes);
  return absl::OkStatus();
}

bool Daemon::IdleForTooLong() const {
  return options_.idle_exit > absl::ZeroDuration() &&
         clock_.Now() - queue_->IdleSince() >= options_.idle_exit;
}

absl::Status Daemon::Drain() {
  spdlog::info("draining: no new saves; waiting up to {} for pending ones",
               absl::FormatDuration(options_.drain_timeout));
  server_->SetServing(false);
  const int left = queue_->Drain(absl::Now() + options_.drain_timeout);
  queue_->Stop();
  server_->Shutdown(kShutdownGrace);
  if (left == 0) return absl::OkStatus();
  return MakeError(absl::StatusCode::kDeadlineExceeded, "DRAIN_TIMEOUT",
                   absl::StrCat("ckptd: ended with ", left,
                                " saves or removals that were not done; give it a longer "
                                "--drain-timeout next time"));
}

}  // namespace ckptd
