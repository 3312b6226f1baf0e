// Random histories of saves, loads, removals, cancellations, storage errors, and ends and deaths of
// the daemon, on a few paths, against a model that does one thing after another. A history that
// fails is made smaller for as long as it still fails, and printed.

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/server/queue/model_run.h"

namespace ckptd {
namespace {

constexpr uint32_t kRuns = 250;
constexpr size_t kSteps = 40;
// Histories that are tried to find a smaller one. Their queue is not waited for as long: where that
// was too short, the history stays larger than it had to be.
constexpr int kTries = 200;
constexpr absl::Duration kImpatience = absl::Milliseconds(500);

class ModelTest : public ModelRun {
 protected:
  // Thousands of messages would hide the history.
  void SetUp() override { spdlog::set_level(spdlog::level::off); }
  void TearDown() override { spdlog::set_level(spdlog::level::info); }

  std::vector<Step> Shrink(std::vector<Step> steps);
};

std::vector<Step> MakeSteps(uint32_t seed) {
  constexpr std::pair<Step::Kind, int> kWeights[] = {
      {Step::kSave, 8},        {Step::kBegin, 2},     {Step::kCommit, 2}, {Step::kAbort, 1},
      {Step::kCancel, 3},      {Step::kExport, 1},    {Step::kLoad, 3},   {Step::kCloseSession, 1},
      {Step::kEndLoad, 2},     {Step::kRemove, 6},    {Step::kFlush, 1},  {Step::kGoOn, 12},
      {Step::kWaitingLoad, 1}, {Step::kEndDelays, 2}, {Step::kStop, 1},   {Step::kKill, 1},
  };
  std::vector<Step::Kind> kinds;
  for (const auto& [kind, weight] : kWeights) {
    kinds.insert(kinds.end(), static_cast<size_t>(weight), kind);
  }
  std::mt19937 random(seed);
  const auto any = [&] { return static_cast<uint32_t>(random()); };
  std::vector<Step> steps;
  for (size_t i = 0; i < kSteps; ++i) {
    steps.push_back({kinds[any() % kinds.size()], any(), any(), any()});
  }
  return steps;
}

// Leaves out rows of steps, long ones first, as long as what is left still fails.
std::vector<Step> ModelTest::Shrink(std::vector<Step> steps) {
  int tries = 0;
  for (size_t length = steps.size() / 2; length > 0; length /= 2) {
    for (size_t at = 0; at + length <= steps.size() && tries < kTries;) {
      std::vector<Step> fewer = steps;
      const auto begin = fewer.begin() + static_cast<int64_t>(at);
      fewer.erase(begin, begin + static_cast<int64_t>(length));
      ++tries;
      if (Run(fewer, kImpatience).failure.empty()) {
        at += length;
      } else {
        steps = std::move(fewer);
      }
    }
  }
  return steps;
}

uint32_t FromEnvironment(const char* name, uint32_t otherwise) {
  const char* text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nobody sets it
  uint32_t value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

TEST_F(ModelTest, EachHistoryGoesAsInTheModel) {
  const uint32_t base = FromEnvironment("CKPTD_MODEL_SEED", std::random_device{}());
  const uint32_t runs = FromEnvironment("CKPTD_MODEL_RUNS", kRuns);
  for (uint32_t seed = base; seed != base + runs; ++seed) {
    const std::vector<Step> steps = MakeSteps(seed);
    Outcome outcome = Run(steps, kPatience);
    if (HasFatalFailure()) return;
    if (outcome.failure.empty()) continue;
    const Outcome smaller = Run(Shrink(steps), kImpatience);
    if (!smaller.failure.empty()) outcome = smaller;
    FAIL() << "CKPTD_MODEL_SEED=" << seed << " CKPTD_MODEL_RUNS=1 gives this again:\n  "
           << absl::StrJoin(outcome.history, "\n  ") << "\n"
           << outcome.failure;
  }
}

}  // namespace
}  // namespace ckptd
