#include "server/journal/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <csignal>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"
#include "tests/server/testing/wait.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::SizeIs;

Journal::SaveEntry Entry(const std::string& id, uint64_t number) {
  Journal::SaveEntry entry;
  entry.save.set_name("jobs/j/saves/" + id);
  entry.save.set_state(v1::Save::QUEUED);
  entry.save.set_path("/link/" + id);
  entry.fingerprint = std::string("\0\xff f", 4);
  entry.number = number;
  entry.seq = 10 + number;
  entry.end = 0;
  entry.target = "/data/" + id;
  entry.device = 0xffffffffffffffffu;
  entry.image = "image-" + id;
  entry.link = "/pool/image-1";
  entry.crashes = 2;
  return entry;
}

Journal::RemoveEntry Removal(uint64_t seq) {
  Journal::RemoveEntry entry;
  entry.seq = seq;
  entry.job = "j";
  entry.path = "/link/old";
  entry.target = "/data/old";
  entry.device = 7;
  entry.newest_save = "jobs/j/saves/a";
  entry.backend = "python";
  entry.host = "12-ab";
  return entry;
}

class JournalTest : public testing::Test {
 protected:
  std::unique_ptr<Journal> Open() {
    auto journal = Journal::Open(fs_.get(), file_);
    EXPECT_OK(journal);
    return journal.ok() ? *std::move(journal) : nullptr;
  }
  Journal::Contents Contents() {
    auto contents = Open()->Read();
    EXPECT_OK(contents);
    return contents.value_or(Journal::Contents());
  }
  void Sql(const std::string& sql) {
    auto database = SqlDatabase::Open(file_);
    ASSERT_OK(database);
    ASSERT_OK((*database)->Execute(sql));
  }

  TempDir dir_;
  const std::string file_ = dir_ / "journal.db";
  const std::unique_ptr<FileSystem> fs_ = NewPosixFileSystem();
};

TEST_F(JournalTest, KeepsWhatWasWritten) {
  auto journal = Open();
  const std::string id = journal->id();
  EXPECT_THAT(id, SizeIs(16));
  ASSERT_OK(journal->PutSave(Entry("b", 2)));
  ASSERT_OK(journal->PutSave(Entry("a", 1)));
  ASSERT_OK(journal->PutSave(Entry("gone", 3)));
  ASSERT_OK(journal->ForgetSave("jobs/j/saves/gone"));
  ASSERT_OK(journal->PutRemove(Removal(21)));
  ASSERT_OK(journal->PutRemove(Removal(20)));
  ASSERT_OK(journal->PutRemove(Removal(22)));
  ASSERT_OK(journal->ForgetRemove(21));
  Journal::RemoveEntry failed = Removal(22);
  failed.error.emplace().set_message("boom");
  ASSERT_OK(journal->PutRemove(failed));
  journal.reset();

  journal = Open();
  EXPECT_EQ(journal->id(), id);
  auto contents = journal->Read();
  ASSERT_OK(contents);
  ASSERT_THAT(contents->saves, SizeIs(2));
  const Journal::SaveEntry& a = contents->saves[0];
  const Journal::SaveEntry wanted = Entry("a", 1);
  EXPECT_EQ(a.save.SerializeAsString(), wanted.save.SerializeAsString());
  EXPECT_EQ(a.fingerprint, wanted.fingerprint);
  EXPECT_EQ(a.number, 1u);
  EXPECT_EQ(a.seq, 11u);
  EXPECT_EQ(a.target, "/data/a");
  EXPECT_EQ(a.device, wanted.device);
  EXPECT_EQ(a.image, "image-a");
  EXPECT_EQ(a.link, "/pool/image-1");
  EXPECT_EQ(a.crashes, 2);
  EXPECT_EQ(contents->saves[1].save.name(), "jobs/j/saves/b");
  ASSERT_THAT(contents->removes, SizeIs(2));
  EXPECT_EQ(contents->removes[0].seq, 20u);
  EXPECT_EQ(contents->removes[0].newest_save, "jobs/j/saves/a");
  EXPECT_EQ(contents->removes[0].backend, "python");
  EXPECT_EQ(contents->removes[0].host, "12-ab");
  EXPECT_FALSE(contents->removes[0].error.has_value());
  ASSERT_TRUE(contents->removes[1].error.has_value());
  EXPECT_EQ(contents->removes[1].error->message(), "boom");
}

TEST_F(JournalTest, KeepsHostsUntilTheyAreForgotten) {
  v1::HostSpec spec;
  spec.add_argv("/usr/bin/python3");
  spec.set_payload(std::string("\0\xff", 2));
  {
    auto journal = Open();
    ASSERT_OK(journal->PutHost("a", spec));
    ASSERT_OK(journal->PutHost("b", spec));
    ASSERT_OK(journal->ForgetHost("b"));
  }
  const Journal::Contents contents = Contents();
  ASSERT_THAT(contents.hosts, SizeIs(1));
  EXPECT_EQ(contents.hosts.at("a").payload(), spec.payload());
}

TEST_F(JournalTest, IsClosedToOthers) {
  auto journal = Open();
  ASSERT_OK(journal->PutSave(Entry("a", 1)));
  for (const std::string& name : dir_.List()) {
    struct stat info = {};
    ASSERT_EQ(stat((dir_ / name).c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u) << name;
  }
}

TEST_F(JournalTest, IsNewUntilSettled) {
  EXPECT_TRUE(Open()->is_new());
  auto journal = Open();
  EXPECT_TRUE(journal->is_new()) << "whoever opened it first has died";
  ASSERT_OK(journal->Settle());
  journal.reset();
  EXPECT_FALSE(Open()->is_new());
}

TEST_F(JournalTest, ARowIsReplacedByName) {
  auto journal = Open();
  ASSERT_OK(journal->PutSave(Entry("a", 1)));
  Journal::SaveEntry ended = Entry("a", 1);
  ended.save.set_state(v1::Save::SUCCEEDED);
  ended.end = 5;
  ended.image.clear();
  ASSERT_OK(journal->PutSave(ended));
  auto contents = journal->Read();
  ASSERT_OK(contents);
  ASSERT_THAT(contents->saves, SizeIs(1));
  EXPECT_EQ(contents->saves[0].save.state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(contents->saves[0].end, 5u);
  EXPECT_EQ(contents->saves[0].image, "");
}

TEST_F(JournalTest, WhatIsWrittenSurvivesAKill) {
  EXPECT_EXIT(
      {
        auto journal = Journal::Open(fs_.get(), file_);
        if (journal.ok() && (*journal)->PutSave(Entry("a", 1)).ok()) raise(SIGKILL);
      },
      testing::KilledBySignal(SIGKILL), "");
  EXPECT_THAT(Contents().saves, SizeIs(1));
}

TEST_F(JournalTest, OneOfAnEarlierVersionIsMigrated) {
  // What version 1 looked like.
  Sql(R"(PRAGMA application_id = 0x636b7074;
         CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
         INSERT INTO meta VALUES ('id', '0123456789abcdef');
         CREATE TABLE saves (
           name BLOB PRIMARY KEY, number INTEGER NOT NULL, seq INTEGER NOT NULL,
           ended INTEGER NOT NULL, save BLOB NOT NULL, fingerprint BLOB NOT NULL,
           target BLOB NOT NULL, device INTEGER NOT NULL, image BLOB NOT NULL) WITHOUT ROWID;
         CREATE TABLE removes (
           seq INTEGER PRIMARY KEY, job BLOB NOT NULL, path BLOB NOT NULL, target BLOB NOT NULL,
           device INTEGER NOT NULL, newest_save BLOB NOT NULL, error BLOB);
         INSERT INTO saves VALUES ('jobs/j/saves/a', 1, 2, 0, x'0a0e6a6f62732f6a2f73617665732f61',
                                   'f', '/data/a', 3, 'image-a');
         PRAGMA user_version = 1;)");
  auto journal = Open();
  EXPECT_EQ(journal->id(), "0123456789abcdef");
  auto contents = journal->Read();
  ASSERT_OK(contents);
  ASSERT_THAT(contents->saves, SizeIs(1));
  EXPECT_EQ(contents->saves[0].save.name(), "jobs/j/saves/a");
  EXPECT_EQ(contents->saves[0].seq, 2u);
  EXPECT_EQ(contents->saves[0].crashes, 0);
  EXPECT_EQ(contents->saves[0].link, "");
  EXPECT_OK(journal->PutSave(Entry("b", 2)));
}

TEST_F(JournalTest, OneOfALaterVersionIsRefusedAndLeftAlone) {
  Open().reset();
  Sql("PRAGMA user_version = 99");
  const std::string before = ReadFile(file_);
  auto journal = Journal::Open(fs_.get(), file_);
  EXPECT_THAT(journal, IsError(StatusCode::kFailedPrecondition, "JOURNAL_TOO_NEW"));
  EXPECT_THAT(journal.status(), Says("version 99"));
  EXPECT_EQ(ReadFile(file_), before);
}

TEST_F(JournalTest, WhatIsNoJournalIsCorrupt) {
  WriteFile(file_, std::string(8192, 'x'));
  EXPECT_THAT(Journal::Open(fs_.get(), file_), IsError(StatusCode::kDataLoss, "JOURNAL_CORRUPT"));
  WriteFile(file_, "");
  Sql("CREATE TABLE other (x)");
  EXPECT_THAT(Journal::Open(fs_.get(), file_), IsError(StatusCode::kDataLoss, "JOURNAL_CORRUPT"));
}

TEST_F(JournalTest, DamageIsFound) {
  {
    auto journal = Open();
    for (uint64_t i = 1; i < 500; ++i) ASSERT_OK(journal->PutSave(Entry(absl::StrCat(i), i)));
  }
  std::string content = ReadFile(file_);
  ASSERT_GT(content.size(), 40000u);
  content.replace(20000, 16000, std::string(16000, '\x5a'));
  WriteFile(file_, content);
  EXPECT_THAT(Journal::Open(fs_.get(), file_), IsError(StatusCode::kDataLoss, "JOURNAL_CORRUPT"));
}

TEST_F(JournalTest, ARowThatCannotBeIsCorrupt) {
  Open().reset();
  Sql("INSERT INTO saves VALUES ('n', 1, 1, 0, 'no proto', '', '/t', 0, '', 0, '')");
  EXPECT_THAT(Open()->Read(), IsError(StatusCode::kDataLoss, "JOURNAL_CORRUPT"));
}

TEST_F(JournalTest, RowsThatContradictEachOtherAreCorrupt) {
  Journal::SaveEntry ended = Entry("ended", 1);
  ended.end = 1;
  ended.seq = 12;
  auto journal = Open();
  ASSERT_OK(journal->PutSave(ended));
  ASSERT_OK(journal->PutSave(Entry("a", 2)));
  ASSERT_OK(journal->PutRemove(Removal(11)));
  EXPECT_OK(journal->Read());

  ASSERT_OK(journal->PutRemove(Removal(12)));
  EXPECT_THAT(journal->Read(), IsError(StatusCode::kDataLoss, "JOURNAL_CORRUPT"));
  ASSERT_OK(journal->ForgetRemove(12));
  Journal::SaveEntry same_place = Entry("b", 3);
  same_place.seq = 12;
  ASSERT_OK(journal->PutSave(same_place));
  EXPECT_THAT(journal->Read(), IsError(StatusCode::kDataLoss, "JOURNAL_CORRUPT"));
  ASSERT_OK(journal->ForgetSave(same_place.save.name()));
  Journal::SaveEntry same_number = Entry("c", 2);
  same_number.seq = 20;
  ASSERT_OK(journal->PutSave(same_number));
  EXPECT_THAT(journal->Read(), IsError(StatusCode::kDataLoss, "JOURNAL_CORRUPT"));
}

TEST_F(JournalTest, IsSetAsideWithoutHarmToEarlierOnes) {
  WriteFile(file_, "one");
  auto aside = SetJournalAside(fs_.get(), file_);
  ASSERT_OK(aside);
  EXPECT_EQ(*aside, file_ + ".corrupt-1");
  WriteFile(file_, "two");
  WriteFile(file_ + "-wal", "log");
  ASSERT_OK(SetJournalAside(fs_.get(), file_));
  EXPECT_EQ(ReadFile(file_ + ".corrupt-1"), "one");
  EXPECT_EQ(ReadFile(file_ + ".corrupt-2"), "two");
  EXPECT_EQ(ReadFile(file_ + ".corrupt-2-wal"), "log");
  EXPECT_THAT(dir_.List(), SizeIs(3));
}

TEST_F(JournalTest, IsForOneProcessAtATime) {
  auto first = Open();
  ASSERT_OK(first->PutSave(Entry("a", 1)));
  EXPECT_THAT(Journal::Open(fs_.get(), file_), IsError(StatusCode::kInternal, "JOURNAL_ERROR"));
}

TEST_F(JournalTest, ItsSizeStaysFlat) {
  auto journal = Open();
  const auto size = [&] { return ReadFile(file_).size() + ReadFile(file_ + "-wal").size(); };
  for (uint64_t i = 1; i <= 20000; ++i) {
    ASSERT_OK(journal->PutSave(Entry(absl::StrCat(i), i)));
    if (i > 10) {
      ASSERT_OK(journal->ForgetSave(absl::StrCat("jobs/j/saves/", i - 10)));
    }
  }
  EXPECT_TRUE(Eventually([&] {
    // Each write may be the one that finds the log in the file, and begins it anew.
    EXPECT_OK(journal->PutSave(Entry("last", 30000)));
    return size() < 16u << 20;
  }));
}

}  // namespace
}  // namespace ckptd
