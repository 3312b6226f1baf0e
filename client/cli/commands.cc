#include "client/cli/commands.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/text.h"
#include "client/cpp/core/process.h"
#include "client/cpp/core/save_state.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd::cli {
namespace {

using Stub = Daemon::Stub;

constexpr absl::Duration kAnswerTimeout = absl::Seconds(10);

absl::Duration Timeout(const Options& options) { return options.timeout.value_or(kAnswerTimeout); }

std::string Ago(absl::Time time) {
  if (time == absl::InfinitePast()) return "-";
  return HumanDuration(absl::Now() - time);
}

std::string Moment(const google::protobuf::Timestamp& timestamp) {
  const absl::Time time = ToTime(timestamp);
  return absl::StrCat(absl::FormatTime("%Y-%m-%d %H:%M:%E3S", time, absl::LocalTimeZone()), " (",
                      Ago(time), " ago)");
}

std::string Percent(const v1::Save& save) {
  const bool moves = save.state() == v1::Save::STAGING || save.state() == v1::Save::PERSISTING;
  if (save.state() == v1::Save::SUCCEEDED) return "100%";
  return moves ? absl::StrFormat("%.0f%%", 100 * Progress(save)) : "-";
}

void ShowSaves(const google::protobuf::RepeatedPtrField<v1::Save>& saves, Output& out) {
  if (saves.empty()) return out.Write("no saves\n");
  std::vector<std::vector<std::string>> rows;
  for (const v1::Save& save : saves) {
    rows.push_back({ShortSaveName(save.name()), StateName(save.state()), Percent(save),
                    HumanBytes(save.total_bytes()), Ago(ToTime(save.create_time())),
                    Printable(save.path())});
  }
  out.Write(Table({"SAVE", "STATE", "DONE", "SIZE", "AGE", "PATH"}, rows));
}

void ShowSave(const v1::Save& save, Output& out) {
  std::string text;
  auto line = [&text](const char* label, const std::string& value) {
    absl::StrAppendFormat(&text, "%-12s%s\n", label, value);
  };
  line("Save", ShortSaveName(save.name()));
  line("State", StateName(save.state()));
  if (save.has_error()) line("Error", Printable(save.error().message()));
  if (save.image_kept()) line("Image", "kept: export writes it elsewhere, cancel gives it up");
  line("Path", Printable(save.path()));
  line("Backend", Printable(save.backend()));
  line("Size",
       absl::StrCat(HumanBytes(save.total_bytes()), " in ", save.tensor_count(), " tensors"));
  line("Staged", save.staged_bytes() > 0 ? HumanBytes(save.staged_bytes()) : "by shared memory");
  line("Persisted",
       absl::StrCat(HumanBytes(save.persisted_bytes()), ", attempt ", save.attempts()));
  line("Client", Printable(save.client()));
  line("Begun", Moment(save.create_time()));
  if (save.has_commit_time()) line("Accepted", Moment(save.commit_time()));
  if (save.has_persist_time()) line("Persisting", Moment(save.persist_time()));
  if (save.has_end_time()) line("Ended", Moment(save.end_time()));
  out.Write(text);
}

}  // namespace

absl::Status RunStatus(Daemon& daemon, const Options& options, Output& out) {
  v1::GetStatusResponse status;
  CKPTD_RETURN_IF_ERROR(
      daemon.Call(&Stub::GetStatus, v1::GetStatusRequest(), &status, Timeout(options)));
  if (options.json) {
    out.WriteJson(status);
    return absl::OkStatus();
  }
  const v1::PoolStatus& pool = status.pool();
  const v1::QueueStatus& queue = status.queue();
  std::string text;
  absl::StrAppendFormat(&text, "ckptd %s at %s, process %d, up %s%s\n", status.version(),
                        daemon.address(), status.pid(), Ago(ToTime(status.start_time())),
                        status.draining() ? ", draining: takes no new saves" : "");
  absl::StrAppendFormat(&text, "Sessions  %d\n", status.session_count());
  absl::StrAppendFormat(&text, "Backends  %s\n", absl::StrJoin(status.backends(), ", "));
  for (const v1::BackendStatus& backend : status.backend_details()) {
    absl::StrAppendFormat(&text, "  %s %s (%s)%s\n", Printable(backend.name()),
                          Printable(backend.version()), absl::StrJoin(backend.capabilities(), ", "),
                          backend.file().empty() ? "" : " from " + Printable(backend.file()));
  }
  for (const v1::RefusedPlugin& plugin : status.refused_plugins()) {
    absl::StrAppendFormat(&text, "  refused: %s\n", Printable(plugin.error().message()));
  }
  absl::StrAppendFormat(&text,
                        "Staging   %s of %s used by %d images, %s of it free (%s with a checkpoint "
                        "in it), %s lent, in %s\n",
                        HumanBytes(pool.used_bytes()), HumanBytes(pool.budget_bytes()),
                        pool.image_count(), HumanBytes(pool.free_bytes()),
                        HumanBytes(pool.kept_bytes()), HumanBytes(pool.lent_bytes()),
                        Printable(pool.dir()));
  absl::StrAppendFormat(
      &text, "Now       %d staging, %d queued, %d persisting, %d waiting for staging memory\n",
      queue.staging_count(), queue.queued_count(), queue.persisting_count(), queue.blocked_count());
  absl::StrAppendFormat(&text, "Journal   %s\n", Printable(status.journal_file()));
  absl::StrAppendFormat(&text, "Done      %d durable (%s), %d failed\n", queue.succeeded_count(),
                        HumanBytes(queue.persisted_bytes()), queue.failed_count());
  out.Write(text);
  return absl::OkStatus();
}

absl::Status RunList(Daemon& daemon, const Options& options, Output& out) {
  v1::ListSavesRequest request;
  request.set_parent(options.parent);
  request.set_path(options.path);
  request.set_page_size(options.all ? 1000 : options.page_size);
  request.set_page_token(options.page_token);
  for (v1::Save::State state : options.states) request.add_states(state);

  v1::ListSavesResponse saves;
  do {
    v1::ListSavesResponse page;
    CKPTD_RETURN_IF_ERROR(daemon.Call(&Stub::ListSaves, request, &page, Timeout(options)));
    saves.mutable_saves()->MergeFrom(page.saves());
    saves.set_next_page_token(page.next_page_token());
    request.set_page_token(page.next_page_token());
  } while (options.all && !saves.next_page_token().empty());

  if (options.json) {
    out.WriteJson(saves);
    return absl::OkStatus();
  }
  ShowSaves(saves.saves(), out);
  if (!saves.next_page_token().empty()) {
    out.Write(absl::StrCat("More with --page-token ", saves.next_page_token(), ", or --all.\n"));
  }
  return absl::OkStatus();
}

absl::Status RunGet(Daemon& daemon, const Options& options, Output& out) {
  v1::GetSaveRequest request;
  request.set_name(options.save);
  v1::Save save;
  CKPTD_RETURN_IF_ERROR(daemon.Call(&Stub::GetSave, request, &save, Timeout(options)));
  if (options.json) {
    out.WriteJson(save);
  } else {
    ShowSave(save, out);
  }
  return absl::OkStatus();
}

absl::Status RunCancel(Daemon& daemon, const Options& options, Output& out) {
  v1::GetSaveRequest get;
  get.set_name(options.save);
  v1::Save save;
  CKPTD_RETURN_IF_ERROR(daemon.Call(&Stub::GetSave, get, &save, Timeout(options)));
  const bool had_image = save.image_kept();
  v1::CancelSaveRequest request;
  request.set_name(options.save);
  CKPTD_RETURN_IF_ERROR(daemon.Call(&Stub::CancelSave, request, &save, Timeout(options)));
  const std::string name = ShortSaveName(save.name());
  if (options.json) {
    out.WriteJson(save);
  } else if (had_image) {
    out.Write(absl::StrCat(name, ": its image is given up\n"));
  } else if (!HasEnded(save)) {
    out.Write(absl::StrCat(name, ": is asked to stop\n"));
  } else if (save.state() == v1::Save::CANCELLED) {
    out.Write(absl::StrCat(name, ": cancelled\n"));
  }
  if (HasEnded(save) && save.state() != v1::Save::CANCELLED && !had_image) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, ": cannot be cancelled, it has ended: ", StateName(save.state())));
  }
  return absl::OkStatus();
}

absl::Status RunExport(Daemon& daemon, const Options& options, Output& out) {
  v1::ExportSaveRequest request;
  request.set_name(options.save);
  request.set_path(options.path);
  request.set_umask(CurrentUmask());
  v1::ExportSaveResponse response;
  CKPTD_RETURN_IF_ERROR(daemon.Call(&Stub::ExportSave, request, &response,
                                    options.timeout.value_or(absl::InfiniteDuration())));
  if (options.json) {
    out.WriteJson(response);
  } else {
    out.Write(absl::StrCat(ShortSaveName(response.save().name()), ": written to ",
                           Printable(options.path), "\n"));
  }
  return absl::OkStatus();
}

absl::Status RunFlush(Daemon& daemon, const Options& options, Output& out) {
  v1::FlushRequest request;
  request.set_parent(options.parent);
  request.set_path(options.path);
  v1::FlushResponse response;
  CKPTD_RETURN_IF_ERROR(daemon.Call(&Stub::Flush, request, &response,
                                    options.timeout.value_or(absl::InfiniteDuration())));
  const int failures = response.failed_saves_size() + response.failed_removals_size();
  if (options.json) {
    out.WriteJson(response);
  } else {
    for (const v1::Save& save : response.failed_saves()) {
      out.Write(absl::StrCat(ShortSaveName(save.name()), " to ", Printable(save.path()), ": ",
                             StateName(save.state()), ": ", Printable(save.error().message()),
                             "\n"));
    }
    for (const v1::FailedRemoval& removal : response.failed_removals()) {
      out.Write(absl::StrCat("removal of ", Printable(removal.path()), ": ",
                             Printable(removal.error().message()), "\n"));
    }
    if (failures == 0) out.Write("everything accepted so far is durable\n");
  }
  if (failures == 0) return absl::OkStatus();
  return absl::UnknownError(absl::StrCat(response.failed_saves_size(), " saves and ",
                                         response.failed_removals_size(), " removals have failed"));
}

}  // namespace ckptd::cli
