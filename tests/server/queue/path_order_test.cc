#include "server/queue/path_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace ckptd {
namespace {

using Kind = Operation::Kind;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

struct TestOp : Operation {
  TestOp(Kind operation_kind, std::vector<std::string> paths) : Operation(operation_kind) {
    keys = std::move(paths);
  }
};

class PathOrderTest : public testing::Test {
 protected:
  Operation* Add(Kind kind, const std::string& path, const std::vector<Operation*>& also = {}) {
    ops_.push_back(std::make_unique<TestOp>(kind, std::vector<std::string>{path}));
    order_.Add(ops_.back().get(), also);
    return ops_.back().get();
  }

  PathOrder order_;
  std::vector<std::unique_ptr<TestOp>> ops_;
};

TEST_F(PathOrderTest, SavesToOnePathRunInOrder) {
  Operation* first = Add(Kind::kSave, "/a");
  Operation* second = Add(Kind::kSave, "/a");
  Operation* third = Add(Kind::kSave, "/a");
  Operation* other = Add(Kind::kSave, "/b");
  EXPECT_EQ(first->blockers, 0);
  EXPECT_EQ(second->blockers, 1);
  EXPECT_EQ(third->blockers, 2);
  EXPECT_EQ(other->blockers, 0);
  EXPECT_LT(first->seq, second->seq);
  EXPECT_THAT(order_.End(first), ElementsAre(second));
  EXPECT_THAT(order_.End(second), ElementsAre(third));
  EXPECT_THAT(order_.End(third), IsEmpty());
}

TEST_F(PathOrderTest, LoadsShareAPath) {
  Operation* save = Add(Kind::kSave, "/a");
  Operation* one = Add(Kind::kLoad, "/a");
  Operation* two = Add(Kind::kLoad, "/a");
  Operation* next = Add(Kind::kSave, "/a");
  EXPECT_THAT(order_.End(save), UnorderedElementsAre(one, two));
  EXPECT_THAT(order_.End(two), IsEmpty());
  EXPECT_THAT(order_.End(one), ElementsAre(next));
}

TEST_F(PathOrderTest, ARemovalTakesAllBelowWithIt) {
  Operation* below = Add(Kind::kSave, "/a/b/c");
  Operation* beside = Add(Kind::kSave, "/ab");
  Operation* above = Add(Kind::kSave, "/a");  // a file where the others want a folder
  Operation* remove = Add(Kind::kRemove, "/a");
  Operation* later = Add(Kind::kSave, "/a/x");
  Operation* unrelated = Add(Kind::kSave, "/ab/x");
  EXPECT_EQ(beside->blockers, 0);
  EXPECT_EQ(remove->blockers, 2);
  EXPECT_EQ(later->blockers, 1);
  EXPECT_EQ(unrelated->blockers, 0);
  EXPECT_THAT(order_.End(below), IsEmpty());
  EXPECT_THAT(order_.End(above), ElementsAre(remove));
  EXPECT_THAT(order_.End(remove), ElementsAre(later));
}

TEST_F(PathOrderTest, WaitsForWhatItIsToldToWaitFor) {
  Operation* elsewhere = Add(Kind::kSave, "/elsewhere");
  Operation* remove = Add(Kind::kRemove, "/a", {elsewhere});
  EXPECT_EQ(remove->blockers, 1);
  EXPECT_THAT(order_.End(elsewhere), ElementsAre(remove));
}

TEST_F(PathOrderTest, BothReasonsToWaitCountOnce) {
  Operation* save = Add(Kind::kSave, "/a");
  Operation* remove = Add(Kind::kRemove, "/a", {save});
  EXPECT_EQ(remove->blockers, 1);
  EXPECT_THAT(order_.End(save), ElementsAre(remove));
}

TEST_F(PathOrderTest, OneThatEndsWhileItWaitsKeepsTheOrderOfTheOthers) {
  Operation* first = Add(Kind::kSave, "/a");
  Operation* second = Add(Kind::kSave, "/a");
  Operation* third = Add(Kind::kSave, "/a");
  EXPECT_THAT(order_.End(second), IsEmpty());
  ops_[1].reset();
  EXPECT_EQ(third->blockers, 1);
  EXPECT_THAT(order_.End(first), ElementsAre(third));
}

TEST_F(PathOrderTest, KnowsWhatIsBehindWhat) {
  Operation* first = Add(Kind::kSave, "/a");
  Operation* second = Add(Kind::kRemove, "/a");
  Operation* third = Add(Kind::kSave, "/a/b");
  Operation* other = Add(Kind::kSave, "/c");
  EXPECT_TRUE(PathOrder::IsBehind(second, first));
  EXPECT_TRUE(PathOrder::IsBehind(third, first));
  EXPECT_FALSE(PathOrder::IsBehind(first, third));
  EXPECT_FALSE(PathOrder::IsBehind(first, first));
  EXPECT_FALSE(PathOrder::IsBehind(other, first));
  PathOrder::Wait(other, third);
  EXPECT_TRUE(PathOrder::IsBehind(other, first));
}

// ---- Against a model -------------------------------------------------------------------------

// The rule in its plainest form: an operation may run when no active one before it conflicts.
struct ModelOp {
  std::unique_ptr<TestOp> op;
  std::set<const Operation*> also;
};

bool IsBelow(const std::string& path, const std::string& folder) {
  return path.size() > folder.size() && path.compare(0, folder.size() + 1, folder + "/") == 0;
}

bool Conflict(const ModelOp& before, const ModelOp& after) {
  if (after.also.count(before.op.get()) != 0) return true;
  if (before.op->kind == Kind::kLoad && after.op->kind == Kind::kLoad) return false;
  for (const std::string& a : before.op->keys) {
    for (const std::string& b : after.op->keys) {
      if (a == b) return true;
      if (before.op->kind == Kind::kRemove && IsBelow(b, a)) return true;
      if (after.op->kind == Kind::kRemove && IsBelow(a, b)) return true;
    }
  }
  return false;
}

class Model {
 public:
  explicit Model(uint32_t seed) : random_(seed) {}

  void Step() {
    if (ops_.empty() || (ops_.size() < 25 && Random(2) == 0)) {
      AddOne();
    } else {
      EndOne();
    }
    Check();
  }

  void EndAll() {
    while (!ops_.empty()) {
      EndOne();
      Check();
    }
  }

 private:
  size_t Random(size_t below) { return random_() % below; }

  void AddOne() {
    static const std::vector<std::string> kPaths = {"/a",  "/a/b", "/a/b/c", "/a/b/d", "/a/bb",
                                                    "/ab", "/b",   "/b/b",   "/b/b/b", "/c"};
    const Kind kinds[] = {Kind::kSave, Kind::kSave, Kind::kLoad, Kind::kRemove};
    const Kind kind = kinds[Random(4)];
    std::vector<std::string> keys = {kPaths[Random(kPaths.size())]};
    // A load through a symlink touches two paths.
    if (kind == Kind::kLoad && Random(3) == 0) keys.push_back(kPaths[Random(kPaths.size())]);
    if (keys.size() == 2 && keys[0] == keys[1]) keys.pop_back();
    ModelOp made = {std::make_unique<TestOp>(kind, keys), {}};
    std::vector<Operation*> also;
    for (const ModelOp& active : ops_) {
      if (kind != Kind::kRemove || active.op->kind != Kind::kSave || Random(3) != 0) continue;
      also.push_back(active.op.get());
      made.also.insert(active.op.get());
    }
    order_.Add(made.op.get(), also);
    EXPECT_GT(made.op->seq, last_seq_);
    last_seq_ = made.op->seq;
    ops_.push_back(std::move(made));
  }

  // Ends any, running or waiting, and frees it at once: a pointer left to it would be found.
  void EndOne() {
    auto it = std::next(ops_.begin(), static_cast<int64_t>(Random(ops_.size())));
    const std::set<const Operation*> before = Runnable();
    std::vector<Operation*> told = order_.End(it->op.get());
    const std::set<const Operation*> told_set(told.begin(), told.end());
    EXPECT_EQ(told.size(), told_set.size()) << "told twice";
    for (ModelOp& other : ops_) other.also.erase(it->op.get());
    ops_.erase(it);
    std::set<const Operation*> expected;
    for (const Operation* op : Runnable()) {
      if (before.count(op) == 0) expected.insert(op);
    }
    EXPECT_EQ(told_set, expected);
  }

  std::set<const Operation*> Runnable() const {
    std::set<const Operation*> result;
    for (auto it = ops_.begin(); it != ops_.end(); ++it) {
      const bool free = std::none_of(ops_.begin(), it,
                                     [&](const ModelOp& before) { return Conflict(before, *it); });
      if (free) result.insert(it->op.get());
    }
    return result;
  }

  void Check() const {
    const std::set<const Operation*> runnable = Runnable();
    for (const ModelOp& op : ops_) {
      EXPECT_EQ(op.op->blockers == 0, runnable.count(op.op.get()) != 0) << op.op->keys.front();
    }
  }

  std::mt19937 random_;
  PathOrder order_;
  uint64_t last_seq_ = 0;
  std::list<ModelOp> ops_;  // in the order of Add
};

TEST(PathOrderRandomTest, AgreesWithTheModel) {
  // One seed of its own for each run; a failure names it.
  const uint32_t base = std::random_device{}();
  for (uint32_t i = 0; i < 100 && !testing::Test::HasFailure(); ++i) {
    const uint32_t seed = i == 0 ? 1 : base + i;
    SCOPED_TRACE("seed " + std::to_string(seed));
    Model model(seed);
    for (int step = 0; step < 200; ++step) model.Step();
    model.EndAll();
  }
}

}  // namespace
}  // namespace ckptd
