// How the queue is compared with the model.

#include <algorithm>
#include <filesystem>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "server/os/round_up.h"
#include "tests/server/queue/model_run.h"

namespace ckptd {
namespace {

std::string Text(const std::map<std::string, std::string>& files) {
  return absl::StrCat("{", absl::StrJoin(files, ", ", absl::PairFormatter(": ")), "}");
}

}  // namespace

void ModelRun::Expect(bool right, const std::string& what) {
  if (!right && outcome_.failure.empty()) outcome_.failure = what;
}

std::vector<std::string> ModelRun::SavesIn(bool staging) const {
  std::vector<std::string> names;
  for (const auto& [name, save] : model_.saves()) {
    const bool accepted = save.state == v1::Save::QUEUED || save.state == v1::Save::PERSISTING;
    if (save.state == v1::Save::STAGING || (accepted && !staging)) names.push_back(name);
  }
  return names;
}

void ModelRun::Check() {
  const absl::Time deadline = absl::Now() + patience_;
  std::string difference = Difference();
  while (!difference.empty() && absl::Now() < deadline) {
    // A removal may not yet have been put back, to be tried again.
    if (time_passes_) clock_.Advance(absl::Milliseconds(1));
    std::this_thread::yield();
    difference = Difference();
  }
  time_passes_ = false;
  Expect(difference.empty(), difference);
}

std::string ModelRun::Difference() {
  std::set<std::string> running;
  for (const Op* op : model_.Running()) running.insert(QueueModel::NameOf(*op));
  if (work_.Waiting() != running) {
    return absl::StrCat("at work are {", absl::StrJoin(work_.Waiting(), ", "), "}, not {",
                        absl::StrJoin(running, ", "), "}");
  }
  std::erase_if(running, [](const auto& key) { return !absl::StartsWith(key, "jobs/"); });
  if (SavesAtWork() != running) return "an attempt that has failed was not told";
  if (std::string saves = SavesDifference(); !saves.empty()) return saves;
  const size_t pending = model_.Pending().size();
  const absl::Status flushed = Flush("jobs/-", "", absl::Now()).status();
  if (pending == 0
          ? !flushed.ok()
          : !absl::StartsWith(flushed.message(), absl::StrCat("flush: ", pending, " of "))) {
    return absl::StrCat(pending, " saves and removals should be pending; ", flushed.ToString());
  }
  const Pool::Usage usage = pool_->GetUsage();
  const uint64_t used = (usage.used_bytes - usage.free_bytes) / kPageBytes;
  const size_t names = LeasedImages().size();
  if (used != model_.ImagesInUse() || names != used) {
    return absl::StrCat(model_.ImagesInUse(), " images should be in use; ", used, " are, ", names,
                        " have a name");
  }
  return FilesDifference();
}

// In the states in which workers have them, that is.
std::set<std::string> ModelRun::SavesAtWork() const {
  absl::MutexLock lock(&told_mu_);
  std::set<std::string> saves = at_work_;
  std::erase_if(saves, [&](const std::string& name) {
    return model_.saves().at(name).state != v1::Save::PERSISTING;
  });
  return saves;
}

std::string ModelRun::SavesDifference() const {
  v1::ListSavesRequest request;
  request.set_page_size(static_cast<int>(kMaxSaves));
  const auto listed = ListSaves(request);
  if (!listed.ok()) return listed.status().ToString();
  std::map<std::string, std::string> found;
  for (const v1::Save& save : listed->saves()) {
    const bool ended = save.has_end_time() && save.has_error();
    found[save.name()] =
        absl::StrCat(v1::Save::State_Name(save.state()), " ", ended ? ReasonOf(ErrorOf(save)) : "");
  }
  std::map<std::string, std::string> expected;
  for (const auto& [name, save] : model_.saves()) {
    expected[name] = absl::StrCat(v1::Save::State_Name(save.state), " ", save.reason);
  }
  if (found == expected) return "";
  return absl::StrCat("the saves are\n  ", Text(found), ", not\n  ", Text(expected));
}

std::string ModelRun::FilesDifference() const {
  std::map<std::string, std::string> found;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(disk_.path())) {
    const std::string path = entry.path().string().substr(disk_.path().size() + 1);
    const bool ours = absl::StrContains(path, ".ckptd");
    if (entry.is_regular_file() || ours) found[path] = ReadFile(entry.path());
  }
  if (found == model_.files()) return "";
  return absl::StrCat("the files are\n  ", Text(found), ", not\n  ", Text(model_.files()));
}

// Nobody waits: it tells the failures if all is done.
void ModelRun::FlushJob(const std::string& job) {
  const std::vector<Op*> pending = model_.Pending();
  const bool done =
      std::none_of(pending.begin(), pending.end(), [&](const Op* op) { return op->job == job; });
  Log(absl::StrCat("flush ", job));
  const auto flushed = Flush(job, "", absl::Now());
  Expect(done == flushed.ok(), flushed.status().ToString());
  if (!done || !flushed.ok()) return;
  std::multiset<std::string> told;
  for (const auto& removal : flushed->failed_removals()) {
    told.insert(removal.path().substr(disk_.path().size() + 1));
  }
  std::multiset<std::string>& expected = model_.failed_removals()[job];
  Expect(told == expected, absl::StrCat("failed removals: ", absl::StrJoin(told, ", "), " not ",
                                        absl::StrJoin(expected, ", ")));
  expected.clear();
  std::set<std::string> failed_saves;
  for (const auto& save : flushed->failed_saves()) failed_saves.insert(save.name());
  std::set<std::string> without_file;
  for (const auto& [name, save] : model_.saves()) {
    if (QueueModel::JobOf(name) == job && !save.reason.empty()) without_file.insert(name);
  }
  Expect(failed_saves == without_file,
         absl::StrCat("failed saves: ", absl::StrJoin(failed_saves, ", "), " not ",
                      absl::StrJoin(without_file, ", ")));
}

}  // namespace ckptd
