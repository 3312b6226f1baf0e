// What people see of the queue: GetSave, ListSaves, GetStatus, Subscribe.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>

#include "server/queue/save_queue.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::AnyOf;
using testing::ElementsAre;
using testing::IsEmpty;

class ReadTest : public QueueTest {
 protected:
  // Ids of the saves in all pages of an answer.
  std::vector<std::string> List(v1::ListSavesRequest request, int* pages = nullptr) {
    std::vector<std::string> ids;
    for (int page = 1;; ++page) {
      auto response = ListSaves(request);
      EXPECT_OK(response);
      if (!response.ok()) return ids;
      for (const v1::Save& save : response->saves()) {
        ids.push_back(save.name().substr(save.name().rfind('/') + 1));
      }
      if (pages != nullptr) *pages = page;
      if (response->next_page_token().empty()) return ids;
      request.set_page_token(response->next_page_token());
    }
  }
  void SaveAndWait(const std::string& id, const std::string& file) {
    ASSERT_NO_FATAL_FAILURE(Save(id, file, "x"));
    WaitForEnd(id);
  }
};

TEST_F(ReadTest, ListsInPagesNewestFirst) {
  std::vector<std::string> expected;
  for (int i = 0; i < 7; ++i) {
    ASSERT_NO_FATAL_FAILURE(SaveAndWait("s" + std::to_string(i), "f"));
    expected.insert(expected.begin(), "s" + std::to_string(i));
  }
  v1::ListSavesRequest request;
  EXPECT_EQ(List(request), expected);
  int pages = 0;
  for (const auto& [size, count] : {std::pair{1, 7}, {3, 3}, {6, 2}, {7, 1}, {1000000, 1}}) {
    request.set_page_size(size);
    EXPECT_EQ(List(request, &pages), expected) << size;
    EXPECT_EQ(pages, count) << size;
  }
}

TEST_F(ReadTest, PagesStayRightWhileSavesComeAndGo) {
  for (int i = 0; i < 4; ++i) {
    ASSERT_NO_FATAL_FAILURE(SaveAndWait("s" + std::to_string(i), "f"));
  }
  v1::ListSavesRequest request;
  request.set_page_size(2);
  ASSERT_OK_AND_ASSIGN(const auto first, ListSaves(request));
  ASSERT_NO_FATAL_FAILURE(SaveAndWait("newer", "f"));
  request.set_page_token(first.next_page_token());
  EXPECT_THAT(List(request), ElementsAre("s1", "s0"));
}

TEST_F(ReadTest, Filters) {
  ASSERT_NO_FATAL_FAILURE(SaveAndWait("a", "f"));
  ASSERT_NO_FATAL_FAILURE(SaveAndWait("jobs/k/saves/b", "g"));
  fs_.FailNth(FsOp::kAllocate, 1, ENOSPC);
  ASSERT_NO_FATAL_FAILURE(SaveAndWait("c", "g"));
  ASSERT_NO_FATAL_FAILURE(Stage("d", "h", "x"));
  std::filesystem::create_directory_symlink(disk_.path(), disk_ / "link");
  ASSERT_OK(Begin(Request("e", disk_ / "link/h", 1)));

  auto list = [&](auto fill) {
    v1::ListSavesRequest request;
    fill(&request);
    return List(request);
  };
  using R = v1::ListSavesRequest*;
  EXPECT_THAT(list([](R r) {}), ElementsAre("e", "d", "c", "b", "a"));
  EXPECT_THAT(list([](R r) { r->set_parent("jobs/-"); }), ElementsAre("e", "d", "c", "b", "a"));
  EXPECT_THAT(list([](R r) { r->set_parent("jobs/k"); }), ElementsAre("b"));
  EXPECT_THAT(list([](R r) { r->set_parent("jobs/none"); }), IsEmpty());
  EXPECT_THAT(list([&](R r) { r->set_path(disk_ / "g"); }), ElementsAre("c", "b"));
  EXPECT_THAT(list([&](R r) { r->set_path(disk_ / "h"); }), ElementsAre("e", "d"));
  EXPECT_THAT(list([&](R r) { r->set_path(disk_ / "link/h"); }), ElementsAre("e"));
  EXPECT_THAT(list([](R r) { r->add_states(v1::Save::FAILED); }), ElementsAre("c"));
  EXPECT_THAT(list([](R r) {
                r->add_states(v1::Save::STAGING);
                r->add_states(v1::Save::FAILED);
              }),
              ElementsAre("e", "d", "c"));
  EXPECT_THAT(list([](R r) { r->add_states(v1::Save::STATE_UNSPECIFIED); }),
              ElementsAre("e", "d", "c", "b", "a"));
  EXPECT_THAT(list([](R r) {
                r->set_page_size(1);
                r->add_states(v1::Save::SUCCEEDED);
              }),
              ElementsAre("b", "a"));
}

TEST_F(ReadTest, RefusesBadRequests) {
  v1::ListSavesRequest request;
  request.set_page_size(-1);
  EXPECT_THAT(ListSaves(request), IsError(StatusCode::kInvalidArgument, "INVALID_REQUEST"));
  request.set_page_size(0);
  for (const char* token : {"x", "-1", "1x", "99999999999999999999999", " "}) {
    request.set_page_token(token);
    EXPECT_THAT(ListSaves(request), IsError(StatusCode::kInvalidArgument, "INVALID_PAGE_TOKEN"))
        << token;
  }
  request.set_page_token("");
  for (const char* parent : {"jobs", "jobs/", "jobs/a/saves/b", "j/a", "jobs/a b"}) {
    request.set_parent(parent);
    EXPECT_THAT(ListSaves(request), IsError(StatusCode::kInvalidArgument, "INVALID_NAME"))
        << parent;
  }
}

TEST_F(ReadTest, ForgetsTheOldestOfTheEnded) {
  SaveQueue::Options options;
  options.history = 3;
  Start(options);
  ASSERT_NO_FATAL_FAILURE(Stage("unfinished", "g", "x"));
  for (int i = 0; i < 5; ++i) {
    ASSERT_NO_FATAL_FAILURE(SaveAndWait("s" + std::to_string(i), "f"));
  }
  EXPECT_THAT(List(v1::ListSavesRequest()), ElementsAre("s4", "s3", "s2", "unfinished"));
  EXPECT_THAT(queue_->GetSave(Name("s1")), IsError(StatusCode::kNotFound, "SAVE_NOT_FOUND"));
  EXPECT_EQ(queue_->GetStatus().succeeded_count(), 5);
  // Its name is free again.
  ASSERT_NO_FATAL_FAILURE(SaveAndWait("s1", "f"));
}

TEST_F(ReadTest, RemembersNoSaveWhereItIsToldTo) {
  SaveQueue::Options options;
  options.history = 0;
  Start(options);
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "x"));
  EXPECT_OK(Flush());
  ASSERT_NO_FATAL_FAILURE(Stage("t", "f", "x"));
  ASSERT_OK(queue_->AbortSave(Name("t")));
  EXPECT_THAT(List(v1::ListSavesRequest()), IsEmpty());
}

TEST_F(ReadTest, CountsWhatIsInHand) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", "x"));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", "x"));
  ASSERT_NO_FATAL_FAILURE(Save("c", "f", "x"));
  ASSERT_NO_FATAL_FAILURE(Stage("d", "g", "x"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  const v1::QueueStatus status = queue_->GetStatus();
  EXPECT_EQ(status.staging_count(), 1);
  EXPECT_EQ(status.queued_count(), 2);
  EXPECT_EQ(status.persisting_count(), 1);
}

TEST_F(ReadTest, ASubscriberOfAllHearsWhatIsInHandAndWhatComes) {
  ASSERT_NO_FATAL_FAILURE(SaveAndWait("ended", "f"));
  ASSERT_NO_FATAL_FAILURE(Stage("a", "f", "x"));
  ASSERT_NO_FATAL_FAILURE(Stage("b", "g", "x"));
  Recorder recorder(queue_.get());
  EXPECT_THAT(recorder.States(), ElementsAre("a STAGING", "b STAGING"));
  ASSERT_NO_FATAL_FAILURE(SaveAndWait("c", "h"));
  const std::vector<std::string> states = recorder.States();
  EXPECT_THAT(std::vector<std::string>(states.begin() + 2, states.end()),
              ElementsAre("c STAGING", "c QUEUED", "c PERSISTING", "c SUCCEEDED"));
}

TEST_F(ReadTest, ASubscriberOfOneHearsThatOneAlone) {
  ASSERT_NO_FATAL_FAILURE(SaveAndWait("a", "f"));
  Recorder ended(queue_.get(), Name("a"));
  ASSERT_NO_FATAL_FAILURE(SaveAndWait("b", "f"));
  EXPECT_THAT(ended.States(), ElementsAre("a SUCCEEDED"));
  EXPECT_THAT(queue_->Subscribe(Name("none"), [](const v1::Save&, bool) {}),
              IsError(StatusCode::kNotFound, "SAVE_NOT_FOUND"));
}

TEST_F(ReadTest, ProgressIsTold) {
  ASSERT_OK(Begin(Request("s", disk_ / "f", 40 << 20)));
  absl::Mutex mu;
  std::vector<int64_t> written;
  ASSERT_OK_AND_ASSIGN(const uint64_t id,
                       queue_->Subscribe(Name("s"), [&](const v1::Save& save, bool progress_only) {
                         absl::MutexLock lock(&mu);
                         if (progress_only) written.push_back(save.persisted_bytes());
                       }));
  ASSERT_OK(queue_->CommitSave(Name("s")));
  WaitForEnd("s");
  queue_->Unsubscribe(id);
  // All three pieces are under way at a time, and the last, of 8 MiB, may end before the others.
  EXPECT_THAT(written, ElementsAre(AnyOf(8 << 20, 16 << 20), AnyOf(24 << 20, 32 << 20), 40 << 20));
}

}  // namespace
}  // namespace ckptd
