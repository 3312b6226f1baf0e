// What a daemon finds when it starts: rows of a journal, and images and notes in the pool's folder.
//
// The input is a row for each of up to 8 saves: two bytes that say whether it has ended and what
// image it has, the length of the row's v1.Save and of its note, and those. A queue that restores
// them must serve afterwards, and must have touched nothing outside its folders.

#include <spdlog/spdlog.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "plugins/torch/torch_plugin.h"
#include "server/queue/save_queue.h"
#include "server/staging/pool_dir.h"
#include "tests/fuzz/fuzz.h"
#include "tests/server/testing/fake_backend.h"
#include "tests/server/testing/fake_clock.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

constexpr int kMaxRows = 8;

// Its target is always inside `disk`: a row is ours, and what it names was checked when it was
// made.
Journal::SaveEntry MakeEntry(FuzzInput* input, uint64_t number, const std::string& disk,
                             const std::string& shm) {
  Journal::SaveEntry entry;
  const uint8_t kind = input->Byte();
  const uint8_t image = input->Byte();
  const size_t save_size = input->Byte();
  const size_t note_size = input->Byte();
  entry.save.ParsePartialFromString(std::string(input->Take(save_size)));
  if (kind & 1) entry.save.set_name(absl::StrCat("jobs/j/saves/", number));
  entry.number = number;
  entry.seq = kind & 2 ? number : kind >> 4;
  entry.end = kind & 4 ? number : 0;
  entry.target = absl::StrCat(disk, "/", kind & 8 ? "f" : "g");
  const std::string note(input->Take(note_size));
  switch (image % 4) {
    case 0:
      break;
    case 1:
      entry.image = absl::StrCat("../", image);
      break;
    default:
      entry.image = absl::StrCat("image-", image);
      WriteFile(absl::StrCat(NoteDir(shm), "/", entry.image), note);
      WriteFile(absl::StrCat(shm, "/", entry.image), note);
  }
  return entry;
}

void Run(FuzzInput input) {
  TempDir disk(TempDir::Place::kMemory);
  TempDir shm(TempDir::Place::kMemory);
  TempDir state(TempDir::Place::kMemory);
  const std::unique_ptr<FileSystem> fs = NewPosixFileSystem();
  FakeClock clock;
  BackendRegistry backends;
  FUZZ_CHECK(backends.Add(FakePlugin()).ok() && backends.Add(TorchPlugin()).ok(), "backends");
  auto journal = Journal::Open(fs.get(), state / "journal.db");
  FUZZ_CHECK(journal.ok(), journal.status().ToString());
  fs->MakeDirectory(NoteDir(shm.path()), 0700);
  for (uint64_t number = 1; number <= kMaxRows && !input.empty(); ++number) {
    const auto status = (*journal)->PutSave(MakeEntry(&input, number, disk.path(), shm.path()));
    FUZZ_CHECK(status.ok(), status.ToString());
  }
  auto contents = (*journal)->Read();
  if (!contents.ok()) return;  // set aside
  auto lock = PreparePoolDir(fs.get(), shm.path());
  FUZZ_CHECK(lock.ok(), lock.status().ToString());
  Pool pool(fs.get(), {shm.path(), uint64_t{1} << 20}, *std::move(lock));
  SaveQueue::Options options;
  options.retry_timeout = absl::ZeroDuration();
  SaveQueue queue(fs.get(), &clock, journal->get(), &pool, &backends, options);
  const auto remove_strays = [&](const std::set<std::string>& images) {
    RemoveStrays(fs.get(), shm.path(), images);
  };
  if (!queue.Restore(*contents, remove_strays).ok()) return;
  FUZZ_CHECK(queue.Drain(absl::Now() + absl::Seconds(20)) == 0, "what was restored does not end");
  const v1::QueueStatus status = queue.GetStatus();
  FUZZ_CHECK(status.queued_count() == 0 && status.persisting_count() == 0, status.DebugString());
  auto saves = queue.ListSaves(v1::ListSavesRequest());
  FUZZ_CHECK(saves.ok(), saves.status().ToString());
  for (const std::string& name : disk.List()) FUZZ_CHECK(name == "f" || name == "g", name);
}

}  // namespace
}  // namespace ckptd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  spdlog::set_level(spdlog::level::off);
  ckptd::Run(ckptd::FuzzInput(data, size));
  return 0;
}
