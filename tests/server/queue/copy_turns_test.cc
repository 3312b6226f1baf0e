#include "server/queue/copy_turns.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

constexpr uint64_t kBytes = CopyTurns::kSmallBytes;
constexpr CopyTurns::Options kOneForLong = {1, absl::Hours(1), absl::Hours(1)};
constexpr CopyTurns::Options kOneForAMoment = {1, absl::Milliseconds(1), absl::Milliseconds(1)};

// Whether its turn came, and not only the end of its patience.
bool HasTurn(CopyTurns* turns, uint64_t number, uint64_t bytes = kBytes) {
  const absl::Time deadline = Soon();
  turns->Begin(number, bytes, deadline);
  return absl::Now() < deadline;
}

TEST(CopyTurnsTest, OneWaitsForTheOther) {
  CopyTurns turns(kOneForLong);
  EXPECT_TRUE(HasTurn(&turns, 1));
  const absl::Time deadline = absl::Now() + absl::Milliseconds(20);
  turns.Begin(2, kBytes, deadline);
  EXPECT_GE(absl::Now(), deadline);
  turns.End(2);
  std::thread first([&] { turns.End(1); });
  EXPECT_TRUE(HasTurn(&turns, 3));
  first.join();
}

TEST(CopyTurnsTest, AsManyAtOnceAsAreAllowed) {
  CopyTurns turns({3, absl::Hours(1), absl::Hours(1)});
  for (const uint64_t number : {1, 2, 3}) EXPECT_TRUE(HasTurn(&turns, number));
  turns.End(2);
  EXPECT_TRUE(HasTurn(&turns, 4));
}

TEST(CopyTurnsTest, SmallOnesTakeNone) {
  CopyTurns turns(kOneForLong);
  EXPECT_TRUE(HasTurn(&turns, 1));
  EXPECT_TRUE(HasTurn(&turns, 2, kBytes - 1));
  turns.End(1);
  EXPECT_TRUE(HasTurn(&turns, 3, kBytes - 1));
  EXPECT_TRUE(HasTurn(&turns, 4));
}

TEST(CopyTurnsTest, WhoNeverEndsIsNotWaitedForForLong) {
  CopyTurns turns(kOneForAMoment);
  for (const uint64_t number : {1, 2, 3}) EXPECT_TRUE(HasTurn(&turns, number));
  EXPECT_TRUE(HasTurn(&turns, 4, uint64_t{1} << 60));
  turns.End(7);  // had none
}

// ---- In the queue ----------------------------------------------------------------------------

class TurnsOfSavesTest : public QueueTest {
 protected:
  void SetUp() override {
    SaveQueue::Options options = NoRetry();
    options.copy_turns = kOneForLong;
    Start(options);
  }
  bool Begins(bool aside = false) {
    v1::BeginSaveRequest request = Request(std::to_string(++number_), disk_ / "f", kBytes);
    request.set_copied_aside(aside);
    const absl::Time deadline = Soon();
    EXPECT_OK(queue_->BeginSave(request, deadline));
    return absl::Now() < deadline;
  }

  int number_ = 0;
};

TEST_F(TurnsOfSavesTest, EndWithTheCommit) {
  EXPECT_TRUE(Begins());
  ASSERT_OK(queue_->CommitSave(Name("1")));
  EXPECT_TRUE(Begins());
}

TEST_F(TurnsOfSavesTest, EndWithTheSave) {
  EXPECT_TRUE(Begins());
  ASSERT_OK(queue_->AbortSave(Name("1")));
  EXPECT_TRUE(Begins());
}

TEST_F(TurnsOfSavesTest, EndWithTheClient) {
  EXPECT_TRUE(Begins());
  queue_->CloseSession(session_);
  session_ = queue_->OpenSession("another");
  EXPECT_TRUE(Begins());
}

TEST_F(TurnsOfSavesTest, OneThatIsCopiedAsideTakesNone) {
  EXPECT_TRUE(Begins());
  EXPECT_TRUE(Begins(/*aside=*/true));
  ASSERT_OK(queue_->CommitSave(Name("1")));
  EXPECT_TRUE(Begins());
}

}  // namespace
}  // namespace ckptd
