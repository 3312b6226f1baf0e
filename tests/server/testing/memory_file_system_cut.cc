// What a power cut leaves of a file system in memory.

#include <algorithm>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/server/testing/memory_file_system.h"

namespace ckptd {
namespace {

constexpr size_t kPage = 4096;

// What a power cut may make of the bytes of a file that had these `contents` since its last sync.
std::vector<std::string> Survivors(const std::vector<std::string>& contents) {
  std::vector<std::string> all = contents;
  if (contents.size() == 1) return all;
  const std::string& old = contents.front();
  const std::string& now = contents.back();
  all.emplace_back(now.size(), '\0');
  for (size_t at = 0; at < now.size(); at += kPage) {
    const size_t length = std::min(kPage, now.size() - at);
    std::string hole = now;
    std::fill_n(hole.begin() + static_cast<int64_t>(at), length, '\0');
    all.push_back(std::move(hole));
    all.push_back(now.substr(0, at));
    std::string mixed = now;
    for (size_t i = at; i < now.size(); ++i) mixed[i] = i < old.size() ? old[i] : '\0';
    all.push_back(std::move(mixed));
  }
  if (!now.empty()) all.push_back(now.substr(0, now.size() - 1));
  std::sort(all.begin() + 1, all.end());  // the oldest stays first
  all.erase(std::unique(all.begin() + 1, all.end()), all.end());
  // and the newest comes last
  const auto newest = std::find(all.begin() + 1, all.end(), now);
  if (newest != all.end()) std::rotate(newest, newest + 1, all.end());
  return all;
}

std::string Key(const Remains& remains) {
  std::string key;
  for (const auto& [path, remnant] : remains) {
    absl::StrAppend(&key, path.size(), ":", path, remnant.folder, ",", remnant.mode, ",",
                    remnant.content.size(), ":", remnant.content);
  }
  return key;
}

}  // namespace

class MemoryFileSystem::Cut {
 public:
  // By `random`, for ever; or, where it is null, all choices in turn: of each the oldest state
  // first.
  explicit Cut(std::mt19937* random) : random_(random) {}

  // The state by the next choices; false when all have been made.
  bool Next(const Inode& root, Remains* out) {
    if (done_) return false;
    out->clear();
    files_.clear();
    asked_ = 0;
    Settle(root, "", out);
    if (random_ != nullptr || newest_) return true;
    choices_.resize(asked_);
    while (!choices_.empty() && choices_.back().first + 1 >= choices_.back().second) {
      choices_.pop_back();
    }
    if (choices_.empty()) {
      done_ = true;
    } else {
      ++choices_.back().first;
    }
    return true;
  }
  // The newest of everything from now on.
  void ChooseNewest() { newest_ = true; }

 private:
  size_t Choose(size_t count) {
    if (newest_) return count - 1;
    if (random_ != nullptr) return (*random_)() % count;
    if (asked_ == choices_.size()) choices_.emplace_back(0, count);
    return choices_[asked_++].first;
  }

  // A file that has two names is one file, and has one fate.
  const Remnant& Fate(const Inode& inode) {
    auto [it, is_new] = files_.try_emplace(&inode);
    Remnant& fate = it->second;
    if (!is_new) return fate;
    fate.folder = inode.folder;
    fate.mode = inode.mode;
    auto [survivors, asked_first] = survivors_.try_emplace(&inode);
    if (asked_first) survivors->second = Survivors(inode.contents);
    fate.content = survivors->second[Choose(survivors->second.size())];
    return fate;
  }

  void Settle(const Inode& folder, const std::string& path, Remains* out) {
    for (const auto& [name, history] : folder.entries) {
      const InodePtr& inode = history[Choose(history.size())];
      if (inode == nullptr) continue;
      const std::string below = absl::StrCat(path, "/", name);
      (*out)[below] = Fate(*inode);
      if (inode->folder) Settle(*inode, below, out);
    }
  }

  std::mt19937* const random_;
  bool newest_ = false;
  bool done_ = false;
  std::vector<std::pair<size_t, size_t>> choices_;  // which, out of how many
  size_t asked_ = 0;
  std::map<const Inode*, Remnant> files_;
  std::map<const Inode*, std::vector<std::string>> survivors_;
};

std::vector<Remains> MemoryFileSystem::AfterPowerCut(size_t at_most, uint32_t seed) const {
  absl::MutexLock lock(&mu_);
  std::vector<Remains> all;
  std::set<std::string> seen;
  Remains remains;
  const auto add = [&] {
    if (seen.insert(Key(remains)).second) all.push_back(remains);
  };
  Cut every(nullptr);
  size_t tried = 0;
  while (tried <= at_most && every.Next(*root_, &remains)) {
    ++tried;
    add();
  }
  if (tried <= at_most) return all;

  all.resize(1);  // the oldest
  seen = {Key(all.front())};
  Cut newest(nullptr);
  newest.ChooseNewest();
  newest.Next(*root_, &remains);
  add();
  std::mt19937 random(seed);
  Cut some(&random);
  for (size_t i = 2; i < at_most; ++i) {
    some.Next(*root_, &remains);
    add();
  }
  return all;
}

Remains MemoryFileSystem::Now() const {
  absl::MutexLock lock(&mu_);
  Cut newest(nullptr);
  newest.ChooseNewest();
  Remains remains;
  newest.Next(*root_, &remains);
  return remains;
}

}  // namespace ckptd
