// How a save ends before it is durable: AbortSave, CancelSave, the end of its client.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "server/queue/save_queue.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

class CancelTest : public QueueTest {
 protected:
  v1::Save Cancel(const std::string& id) {
    auto save = queue_->CancelSave(Name(id));
    EXPECT_OK(save);
    return save.value_or(v1::Save());
  }
  v1::Save Abort(const std::string& id) {
    auto save = queue_->AbortSave(Name(id));
    EXPECT_OK(save);
    return save.value_or(v1::Save());
  }
};

TEST_F(CancelTest, AbortGivesUpAStagingSave) {
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", "content"));
  Recorder recorder(queue_.get(), Name("s"));
  EXPECT_EQ(Abort("s").state(), v1::Save::CANCELLED);
  EXPECT_THAT(ErrorOf(Get("s")), IsError(StatusCode::kCancelled, "ABORTED"));
  EXPECT_TRUE(Get("s").has_end_time());
  EXPECT_THAT(recorder.States(), ElementsAre("s STAGING", "s CANCELLED"));
  EXPECT_EQ(Abort("s").state(), v1::Save::CANCELLED);
  EXPECT_THAT(queue_->CommitSave(Name("s")),
              IsError(StatusCode::kFailedPrecondition, "SAVE_NOT_STAGING"));
  EXPECT_THAT(queue_->WriteSave(Name("s"), 0, "x"),
              IsError(StatusCode::kFailedPrecondition, "SAVE_NOT_STAGING"));
  EXPECT_THAT(disk_.List(), IsEmpty());
  EXPECT_THAT(LeasedImages(), IsEmpty());
  EXPECT_EQ(pool_->GetUsage().free_bytes, 4096u) << "its client has let go: the memory is reused";
}

TEST_F(CancelTest, AbortDoesNotTouchAnAcceptedSave) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", "2"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_EQ(Abort("a").state(), v1::Save::PERSISTING);
  EXPECT_EQ(Abort("b").state(), v1::Save::QUEUED);
  gate_.Open();
  EXPECT_EQ(WaitForEnd("a").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(WaitForEnd("b").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(Abort("b").state(), v1::Save::SUCCEEDED);
}

TEST_F(CancelTest, WhileStaging) {
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", "content"));
  EXPECT_EQ(Cancel("s").state(), v1::Save::CANCELLED);
  EXPECT_THAT(ErrorOf(Get("s")), IsError(StatusCode::kCancelled, "CANCELLED_BY_REQUEST"));
  EXPECT_THAT(LeasedImages(), IsEmpty());
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u) << "its client may still copy into that memory";
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(CancelTest, WhileQueued) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", "2"));
  ASSERT_NO_FATAL_FAILURE(Save("c", "f", "3"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_EQ(Cancel("b").state(), v1::Save::CANCELLED);
  EXPECT_EQ(Get("c").state(), v1::Save::QUEUED) << "it still has to wait for the first";
  gate_.Open();
  EXPECT_EQ(WaitForEnd("a").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(WaitForEnd("c").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "f"), "3");
  EXPECT_EQ(fs_.Count(FsOp::kDataSync), 2);
  EXPECT_EQ(Cancel("b").state(), v1::Save::CANCELLED);
}

TEST_F(CancelTest, WhilePersisting) {
  WriteFile(disk_ / "f", "old");
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "new"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_EQ(Cancel("s").state(), v1::Save::PERSISTING) << "returns without waiting for it";
  gate_.Open();
  const v1::Save save = WaitForEnd("s");
  EXPECT_EQ(save.state(), v1::Save::CANCELLED);
  EXPECT_THAT(ErrorOf(save), IsError(StatusCode::kCancelled, "CANCELLED_BY_REQUEST"));
  EXPECT_EQ(ReadFile(disk_ / "f"), "old");
  EXPECT_THAT(disk_.List(), ElementsAre("f"));
  EXPECT_EQ(queue_->GetStatus().failed_count(), 0);
}

TEST_F(CancelTest, AfterTheEnd) {
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "1"));
  WaitForEnd("s");
  EXPECT_EQ(Cancel("s").state(), v1::Save::SUCCEEDED);
  EXPECT_FALSE(Get("s").has_error());
  EXPECT_EQ(ReadFile(disk_ / "f"), "1");
}

TEST_F(CancelTest, UnknownNames) {
  struct Case {
    std::string name;
    StatusCode code;
    const char* reason;
  };
  for (const Case& c : {Case{"jobs/j/saves/none", StatusCode::kNotFound, "SAVE_NOT_FOUND"},
                        Case{"nonsense", StatusCode::kInvalidArgument, "INVALID_NAME"}}) {
    EXPECT_THAT(queue_->CancelSave(c.name), IsError(c.code, c.reason));
    EXPECT_THAT(queue_->AbortSave(c.name), IsError(c.code, c.reason));
    EXPECT_THAT(queue_->CommitSave(c.name), IsError(c.code, c.reason));
    EXPECT_THAT(queue_->GetSave(c.name), IsError(c.code, c.reason));
    EXPECT_THAT(queue_->WriteSave(c.name, 0, "x"), IsError(c.code, c.reason));
  }
}

// ---- The end of a client ---------------------------------------------------------------------

TEST_F(CancelTest, TheEndOfAClientReclaimsWhatIsStagingAndNothingElse) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("persisting", "f", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("queued", "f", "2"));
  ASSERT_NO_FATAL_FAILURE(Stage("staging", "g", "3"));
  const std::string other = queue_->OpenSession("another client");
  v1::BeginSaveRequest request = Request("others", disk_ / "h", 1);
  request.set_session_id(other);
  ASSERT_OK(Begin(request));
  ASSERT_TRUE(gate_.WaitForArrivals(1));

  queue_->CloseSession(session_);
  EXPECT_EQ(Get("staging").state(), v1::Save::CANCELLED);
  EXPECT_THAT(ErrorOf(Get("staging")), IsError(StatusCode::kCancelled, "CLIENT_DIED"));
  EXPECT_THAT(ErrorOf(Get("staging")), Says("host:1 test"));
  EXPECT_EQ(Get("queued").state(), v1::Save::QUEUED);
  EXPECT_EQ(Get("persisting").state(), v1::Save::PERSISTING);
  EXPECT_EQ(Get("others").state(), v1::Save::STAGING);
  EXPECT_EQ(LeasedImages().size(), 3u);
  EXPECT_EQ(queue_->SessionCount(), 1);

  gate_.Open();
  EXPECT_EQ(WaitForEnd("queued").state(), v1::Save::SUCCEEDED);
  EXPECT_THAT(disk_.List(), ElementsAre("f"));
  EXPECT_THAT(queue_->CommitSave(Name("staging")),
              IsError(StatusCode::kFailedPrecondition, "SAVE_NOT_STAGING"));
  EXPECT_THAT(Begin(Request("late", disk_ / "late", 1)),
              IsError(StatusCode::kNotFound, "SESSION_NOT_FOUND"));
  queue_->CloseSession(session_);  // idempotent
}

TEST_F(CancelTest, TheEndOfAClientFreesMemoryForTheNext) {
  Start(SaveQueue::Options(), 8192);
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", std::string(8192, 'x')));
  const std::string mine = session_;
  session_ = queue_->OpenSession("another client");
  std::thread waiter([&] { EXPECT_OK(Begin(Request("t", disk_ / "g", 8192))); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  queue_->CloseSession(mine);
  waiter.join();
  EXPECT_EQ(Get("t").state(), v1::Save::STAGING);
}

TEST_F(CancelTest, ACallThatWaitsForMemoryEndsWithItsClient) {
  Start(SaveQueue::Options(), 8192);
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", std::string(8192, 'x')));
  v1::BeginSaveRequest request = Request("t", disk_ / "g", 8192);
  const std::string waiting = queue_->OpenSession("a client that dies");
  request.set_session_id(waiting);
  absl::Status status;
  std::thread waiter([&] { status = Begin(request).status(); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  queue_->CloseSession(waiting);
  waiter.join();
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(queue_->GetStatus().staging_count(), 1);
  EXPECT_EQ(pool_->GetUsage().waiting_count, 0);
}

TEST_F(CancelTest, ADeadlineAtTheBudgetLeavesNoSaveBehind) {
  Start(SaveQueue::Options(), 8192);
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", std::string(8192, 'x')));
  EXPECT_THAT(queue_->BeginSave(Request("t", disk_ / "g", 8192), absl::Now()),
              IsError(StatusCode::kDeadlineExceeded, "STAGING_FULL"));
  EXPECT_THAT(Begin(Request("t", disk_ / "g", 8193)),
              IsError(StatusCode::kResourceExhausted, "EXCEEDS_BUDGET"));
  EXPECT_THAT(queue_->GetSave(Name("t")), IsError(StatusCode::kNotFound, "SAVE_NOT_FOUND"));
  Abort("s");
  EXPECT_OK(Begin(Request("t", disk_ / "g", 8192)));
}

// Many saves, commits, cancels and ends of clients at once: each save ends, nothing is left.
TEST_F(CancelTest, ASessionMayEndWhileTheImageIsMade) {
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kPopulate) gate_.Pass();
    return std::nullopt;
  });
  absl::StatusOr<v1::BeginSaveResponse> begun;
  std::thread trainer([&] { begun = Begin(Request("s", disk_ / "f")); });
  EXPECT_TRUE(gate_.WaitForArrivals(1));
  queue_->CloseSession(session_);  // its save goes, with all that was planned for it
  gate_.Open();
  trainer.join();
  EXPECT_FALSE(begun.ok());
  EXPECT_TRUE(LeasedImages().empty());
}

TEST_F(CancelTest, AllAtOnce) {
  constexpr int kThreads = 4;
  constexpr int kSaves = 40;
  Start(SaveQueue::Options(), 64 << 10);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kSaves; ++i) {
        const std::string id = std::to_string(t) + "-" + std::to_string(i);
        const std::string content(1 + static_cast<size_t>(i) * 700, 'x');
        const std::string session = queue_->OpenSession("client " + id);
        v1::BeginSaveRequest request =
            Request(id, disk_ / ("f" + std::to_string(i % 3)), content.size());
        request.set_session_id(session);
        EXPECT_OK(Begin(request));
        std::thread other([&] {
          if (i % 4 == 0) queue_->CancelSave(Name(id)).IgnoreError();
          if (i % 4 == 1) queue_->CloseSession(session);
        });
        queue_->WriteSave(Name(id), 0, content).IgnoreError();
        queue_->CommitSave(Name(id)).IgnoreError();
        other.join();
        queue_->CloseSession(session);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_OK(Flush());
  v1::ListSavesRequest list;
  list.set_page_size(1000);
  ASSERT_OK_AND_ASSIGN(const auto saves, ListSaves(list));
  EXPECT_EQ(saves.saves_size(), kThreads * kSaves);
  for (const v1::Save& save : saves.saves()) {
    EXPECT_TRUE(save.has_end_time()) << save.ShortDebugString();
    EXPECT_NE(save.state(), v1::Save::FAILED) << save.ShortDebugString();
  }
  EXPECT_THAT(LeasedImages(), IsEmpty());
  EXPECT_EQ(pool_->GetUsage().used_bytes, pool_->GetUsage().free_bytes);
  EXPECT_LE(disk_.List().size(), 3u);
}

}  // namespace
}  // namespace ckptd
