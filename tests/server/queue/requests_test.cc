#include "server/queue/requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>

#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;

constexpr int64_t kPetabyte = int64_t{1} << 50;

void AddTensor(v1::BeginSaveRequest* request, const std::string& name, int64_t size) {
  v1::TensorSpec* tensor = request->add_tensors();
  tensor->set_name(name);
  tensor->set_size_bytes(size);
}

TEST(RequestsTest, NamesOfSaves) {
  ASSERT_OK_AND_ASSIGN(const std::string job, JobOfSave("jobs/a.B_9-z/saves/0"));
  EXPECT_EQ(job, "a.B_9-z");
  const std::string longest(63, 'x');
  EXPECT_OK(JobOfSave("jobs/" + longest + "/saves/" + longest));
  for (const std::string& name :
       {std::string(), std::string("jobs"), std::string("jobs/a"), std::string("jobs/a/saves"),
        std::string("jobs/a/saves/"), std::string("jobs//saves/b"), std::string("/jobs/a/saves/b"),
        std::string("jobs/a/saves/b/"), std::string("jobs/a/save/b"), std::string("job/a/saves/b"),
        std::string("jobs/a b/saves/c"), std::string("jobs/a/saves/\xC3\xA4"),
        std::string("jobs/a/saves/b\0", 15), "jobs/a/saves/" + longest + "x"}) {
    EXPECT_THAT(JobOfSave(name), IsError(StatusCode::kInvalidArgument, "INVALID_NAME")) << name;
  }
}

TEST(RequestsTest, NamesOfJobs) {
  EXPECT_EQ(*JobOfParent("jobs/a", false), "a");
  EXPECT_EQ(*JobOfParent("jobs/-", false), "");
  EXPECT_EQ(*JobOfParent("", true), "");
  for (const std::string name : {"", "jobs", "jobs/", "a", "jobs/a/b", "jobs/*"}) {
    EXPECT_THAT(JobOfParent(name, false), IsError(StatusCode::kInvalidArgument, "INVALID_NAME"))
        << name;
  }
}

TEST(RequestsTest, Tensors) {
  v1::BeginSaveRequest good;
  good.set_object_bytes(10);
  AddTensor(&good, "0", 0);
  AddTensor(&good, "1", kPetabyte - 10);
  EXPECT_OK(CheckTensors(good, 2));
  EXPECT_THAT(CheckTensors(good, 1), IsError(StatusCode::kInvalidArgument, "LIMIT_EXCEEDED"));

  auto spoilt = [&](const std::function<void(v1::BeginSaveRequest*)>& spoil) {
    v1::BeginSaveRequest request = good;
    spoil(&request);
    return CheckTensors(request, 10);
  };
  using R = v1::BeginSaveRequest*;
  const auto invalid = IsError(StatusCode::kInvalidArgument, "INVALID_TENSOR");
  EXPECT_THAT(spoilt([](R r) { r->set_object_bytes(-1); }), invalid);
  EXPECT_THAT(spoilt([](R r) { r->mutable_tensors(0)->set_size_bytes(-1); }), invalid);
  EXPECT_THAT(spoilt([](R r) { r->mutable_tensors(0)->set_size_bytes(INT64_MIN); }), invalid);
  EXPECT_THAT(spoilt([](R r) { r->mutable_tensors(0)->set_size_bytes(INT64_MAX); }), invalid);
  EXPECT_THAT(spoilt([](R r) { r->mutable_tensors(0)->clear_name(); }), invalid);
  EXPECT_THAT(spoilt([](R r) { r->mutable_tensors(1)->set_name("0"); }), invalid);
  EXPECT_THAT(spoilt([](R r) { r->mutable_tensors(1)->set_name("0"); }), Says("tensor 1"));
  EXPECT_THAT(spoilt([](R r) { r->set_object_bytes(11); }),
              IsError(StatusCode::kInvalidArgument, "LIMIT_EXCEEDED"));
}

// Sizes that would add up to more than 2^64 and come out small.
TEST(RequestsTest, SumsDoNotWrapAround) {
  v1::BeginSaveRequest request;
  request.set_object_bytes(INT64_MAX);
  AddTensor(&request, "0", 1);
  EXPECT_FALSE(CheckTensors(request, 10).ok());
  request.clear_tensors();
  EXPECT_FALSE(CheckTensors(request, 10).ok()) << "the object alone is too large";
}

TEST(RequestsTest, FingerprintsDifferByAllButTheSession) {
  v1::BeginSaveRequest request;
  request.set_session_id("a");
  request.set_name("jobs/a/saves/b");
  (*request.mutable_options())["x"] = "1";
  (*request.mutable_options())["y"] = "2";
  AddTensor(&request, "0", 1);
  v1::BeginSaveRequest other = request;
  other.set_session_id("b");
  EXPECT_EQ(Canonical(request), Canonical(other));
  other.mutable_tensors(0)->set_dtype("float32");
  EXPECT_NE(Canonical(request), Canonical(other));
  other = request;
  (*other.mutable_options())["y"] = "3";
  EXPECT_NE(Canonical(request), Canonical(other));
}

// What BeginSave refuses leaves no trace.
TEST_F(QueueTest, BadRequestsAreRefusedBeforeAnythingIsMade) {
  SaveQueue::Options options;
  options.max_tensors = 2;
  Start(options);
  using R = v1::BeginSaveRequest*;
  auto begin = [&](const std::function<void(R)>& spoil) {
    v1::BeginSaveRequest request = Request("s", disk_ / "a/f", 10);
    spoil(&request);
    return Begin(request);
  };
  EXPECT_THAT(begin([](R r) { r->set_session_id("x"); }),
              IsError(StatusCode::kNotFound, "SESSION_NOT_FOUND"));
  EXPECT_THAT(begin([](R r) { r->set_name("s"); }),
              IsError(StatusCode::kInvalidArgument, "INVALID_NAME"));
  EXPECT_THAT(begin([](R r) { r->set_path("f"); }),
              IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
  EXPECT_THAT(begin([](R r) { r->set_backend("none"); }),
              IsError(StatusCode::kNotFound, "BACKEND_NOT_FOUND"));
  EXPECT_THAT(begin([](R r) { AddTensor(r, "", 1); }),
              IsError(StatusCode::kInvalidArgument, "INVALID_TENSOR"));
  EXPECT_THAT(begin([](R r) {
                for (const char* name : {"0", "1", "2"}) AddTensor(r, name, 1);
              }),
              IsError(StatusCode::kInvalidArgument, "LIMIT_EXCEEDED"));
  EXPECT_THAT(begin([](R r) { (*r->mutable_options())["trap"] = "outside"; }),
              IsError(StatusCode::kInternal, "INTERNAL"));
  EXPECT_TRUE(disk_.List().empty());
  EXPECT_THAT(begin([](R r) { r->set_object_bytes(int64_t{1} << 40); }),
              IsError(StatusCode::kResourceExhausted, "EXCEEDS_BUDGET"));
  EXPECT_EQ(ListSaves(v1::ListSavesRequest())->saves_size(), 0);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
  EXPECT_OK(begin([](R) {}));
}

TEST(RequestsTest, SizesAloneAreTensorsNamedByTheirPlace) {
  v1::BeginSaveRequest brief;
  brief.set_object_bytes(10);
  v1::BeginSaveRequest full = brief;
  for (int i = 0; i < 12; ++i) {
    brief.add_tensor_sizes(100 - i);
    AddTensor(&full, std::to_string(i), 100 - i);
  }
  EXPECT_EQ(CountTensors(brief), 12);
  EXPECT_OK(CheckTensors(brief, 12));
  EXPECT_THAT(CheckTensors(brief, 11), IsError(StatusCode::kInvalidArgument, "LIMIT_EXCEEDED"));
  const CheckpointSpec one = ToSpec(brief);
  const CheckpointSpec other = ToSpec(full);
  ASSERT_EQ(one.tensors.size(), other.tensors.size());
  for (size_t i = 0; i < one.tensors.size(); ++i) {
    EXPECT_EQ(one.tensors[i].name, other.tensors[i].name);
    EXPECT_EQ(one.tensors[i].size_bytes, other.tensors[i].size_bytes);
  }
  const auto invalid = IsError(StatusCode::kInvalidArgument, "INVALID_TENSOR");
  full.add_tensor_sizes(1);
  EXPECT_THAT(CheckTensors(full, 100), invalid) << "both forms";
  brief.add_tensor_sizes(-1);
  EXPECT_THAT(CheckTensors(brief, 100), invalid);
  brief.set_tensor_sizes(12, kPetabyte);
  EXPECT_THAT(CheckTensors(brief, 100), IsError(StatusCode::kInvalidArgument, "LIMIT_EXCEEDED"));
}

TEST_F(QueueTest, ReserveChecksWhatItIsAskedFor) {
  auto reserve = [&](int64_t bytes, int count, const std::string& session) {
    v1::ReserveRequest request;
    request.set_session_id(session);
    request.set_image_bytes(bytes);
    request.set_image_count(count);
    request.set_wait(true);
    return queue_->Reserve(request, Soon());
  };
  const auto invalid = IsError(StatusCode::kInvalidArgument, "INVALID_REQUEST");
  EXPECT_THAT(reserve(0, 1, session_), invalid);
  EXPECT_THAT(reserve(-1, 1, session_), invalid);
  EXPECT_THAT(reserve(1, -1, session_), invalid);
  EXPECT_THAT(reserve(1, 1001, session_), invalid);
  EXPECT_THAT(reserve(1, 1, "none"), IsError(StatusCode::kNotFound, "SESSION_NOT_FOUND"));
  EXPECT_THAT(reserve(INT64_MAX, 1, session_),
              IsError(StatusCode::kResourceExhausted, "EXCEEDS_BUDGET"));
  EXPECT_EQ(reserve(8 << 20, 0, session_)->image_count(), 1) << "one if unset";
  const auto reserved = reserve(8 << 20, 2, session_);
  EXPECT_EQ(reserved->image_count(), 2);
  // What it was told of is what it gets, under another name.
  ASSERT_EQ(reserved->images_size(), 2);
  const auto begun = Begin(Request("first", disk_ / "first", 8 << 20));
  ASSERT_OK(begun);
  EXPECT_TRUE(begun->image().id() == reserved->images(0).id() ||
              begun->image().id() == reserved->images(1).id());
  // What it asked for is no longer kept for it when it is gone.
  queue_->CloseSession(session_);
  session_ = queue_->OpenSession("another");
  ASSERT_OK(Begin(Request("s", disk_ / "f", 60 << 20)));
  EXPECT_EQ(pool_->GetUsage().image_count, 1);
}

}  // namespace
}  // namespace ckptd
