// A client that changes its image while the daemon has it: whatever it does, the daemon lives, its
// path shows the old checkpoint or the new one, and the saves of others land.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/os/memory_guard.h"
#include "tests/server/api/api_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr size_t kBytes = (20 << 20) + 5;

// A client in the middle of a save through shared memory.
class SharedMemoryClient {
 public:
  explicit SharedMemoryClient(Stub* stub) : stub_(stub), session_(stub) {}
  ~SharedMemoryClient() {
    UnmapImage();
    if (fd_ >= 0) close(fd_);
  }
  SharedMemoryClient(const SharedMemoryClient&) = delete;
  SharedMemoryClient& operator=(const SharedMemoryClient&) = delete;

  void Begin(v1::BeginSaveRequest request) {
    request.set_session_id(session_.id());
    ASSERT_OK_AND_ASSIGN(begun_, Call(stub_, &Stub::BeginSave, request));
    fd_ = open(begun_.image().path().c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_GE(fd_, 0);
    void* data = mmap(nullptr, size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    ASSERT_NE(data, MAP_FAILED);
    data_ = static_cast<char*>(data);
  }
  void Copy(const std::string& content) {
    std::memcpy(data_ + begun_.object_offset(), content.data(), content.size());
  }
  void Commit() {
    v1::CommitSaveRequest commit;
    commit.set_name(begun_.save().name());
    ASSERT_OK(Call(stub_, &Stub::CommitSave, commit));
  }
  void UnmapImage() {
    if (data_ != nullptr) munmap(data_, size());
    data_ = nullptr;
  }

  size_t size() const { return static_cast<size_t>(begun_.image().size_bytes()); }
  int fd() const { return fd_; }
  const std::string& image() const { return begun_.image().path(); }
  size_t object_offset() const { return static_cast<size_t>(begun_.object_offset()); }

 private:
  Stub* const stub_;
  ClientSession session_;
  v1::BeginSaveResponse begun_;
  int fd_ = -1;
  char* data_ = nullptr;
};

struct Deed {
  const char* name;
  std::function<int(SharedMemoryClient*)> act;  // 0 or -1
  bool cuts;
};

// Of the save, when its client does it.
enum class Phase { kStaging, kQueued, kSealing, kWriting };

using Case = std::tuple<Deed, Phase>;

class HostileTest : public ApiTest, public testing::WithParamInterface<Case> {
 protected:
  void SetUp() override {
    ASSERT_OK(InstallMemoryGuard());
    ApiTest::SetUp();
    Save("old", "hostile", "old");
    EXPECT_EQ(WaitForEnd("old").state(), v1::Save::SUCCEEDED);
  }

  // The calls of storage at which the next saves stop until gate_ lets them go on.
  void HoldSavesAt(FsOp op) {
    fs_.SetBefore([this, op](FsCall& call) -> std::optional<int64_t> {
      if (call.op == op) gate_.Pass();
      return std::nullopt;
    });
  }
  v1::BeginSaveRequest TorchRequest(const std::string& id, const std::string& file, size_t size) {
    v1::BeginSaveRequest request = Request(id, disk_ / file, size);
    request.set_backend("torch");
    return request;
  }
  // Whether the file is the torch checkpoint of `content`, as `client` laid it out.
  bool Holds(const std::string& file, const SharedMemoryClient& client,
             const std::string& content) {
    const std::string bytes = ReadFile(disk_ / file);
    return bytes.size() == client.size() &&
           bytes.compare(client.object_offset(), content.size(), content) == 0;
  }
};

std::vector<Deed> Deeds() {
  return {
      {"CutsToNothing", [](SharedMemoryClient* c) { return ftruncate(c->fd(), 0); }, true},
      {"CutsToHalf", [](SharedMemoryClient* c) { return ftruncate(c->fd(), kBytes / 2); }, true},
      {"Grows", [](SharedMemoryClient* c) { return ftruncate(c->fd(), 2 * kBytes); }, false},
      {"Unmaps",
       [](SharedMemoryClient* c) {
         c->UnmapImage();
         return 0;
       },
       false},
      {"Unlinks", [](SharedMemoryClient* c) { return unlink(c->image().c_str()); }, false},
  };
}

std::string NameOf(const testing::TestParamInfo<Case>& info) {
  constexpr const char* kPhases[] = {"Staging", "Queued", "AboutToBeSealed", "AboutToBeWritten"};
  return absl::StrCat(std::get<0>(info.param).name, "While",
                      kPhases[static_cast<int>(std::get<1>(info.param))]);
}

INSTANTIATE_TEST_SUITE_P(Clients, HostileTest,
                         testing::Combine(testing::ValuesIn(Deeds()),
                                          testing::Values(Phase::kStaging, Phase::kQueued,
                                                          Phase::kSealing, Phase::kWriting)),
                         NameOf);

TEST_P(HostileTest, OnlyItsOwnSaveSuffers) {
  const auto& [deed, phase] = GetParam();
  const std::string content(kBytes, 'h');
  const std::string other_content(kBytes, 'b');
  const int workers = SaveQueue::Options().workers_per_device;
  std::vector<std::string> busy;
  for (int i = 1; i <= workers; ++i) busy.push_back(absl::StrCat("w", i));
  const auto other_stub = v1::CheckpointService::NewStub(NewChannel());
  SharedMemoryClient bystander(other_stub.get());
  SharedMemoryClient hostile(stub_.get());
  ASSERT_NO_FATAL_FAILURE(bystander.Begin(TorchRequest("other", "other", kBytes)));
  ASSERT_NO_FATAL_FAILURE(hostile.Begin(TorchRequest("h", "hostile", kBytes)));
  hostile.Copy(content);

  if (phase == Phase::kStaging) ASSERT_EQ(deed.act(&hostile), 0);
  if (phase == Phase::kQueued) {
    // Each of the workers is held by another save.
    HoldSavesAt(FsOp::kDataSync);
    for (const std::string& id : busy) Save(id, id, "x");
    ASSERT_TRUE(gate_.WaitForArrivals(workers));
  } else {
    HoldSavesAt(phase == Phase::kWriting ? FsOp::kWrite : FsOp::kAllocate);
  }
  ASSERT_NO_FATAL_FAILURE(hostile.Commit());
  if (phase == Phase::kQueued) {
    EXPECT_EQ(Get("h").state(), v1::Save::QUEUED);
  } else if (phase != Phase::kStaging) {
    ASSERT_TRUE(gate_.WaitForArrivals(1));
    EXPECT_EQ(Get("h").state(), v1::Save::PERSISTING);
  }
  if (phase != Phase::kStaging) ASSERT_EQ(deed.act(&hostile), 0);
  bystander.Copy(other_content);
  ASSERT_NO_FATAL_FAILURE(bystander.Commit());
  gate_.Open();

  const v1::Save save = WaitForEnd("h");
  if (deed.cuts) {
    EXPECT_EQ(save.state(), v1::Save::FAILED);
    EXPECT_THAT(ErrorOf(save), IsError(StatusCode::kFailedPrecondition, "IMAGE_CHANGED"));
    EXPECT_EQ(ReadFile(disk_ / "hostile"), "old");
  } else {
    EXPECT_EQ(save.state(), v1::Save::SUCCEEDED) << ErrorOf(save);
    EXPECT_TRUE(Holds("hostile", hostile, content));
  }
  EXPECT_EQ(WaitForEnd("other").state(), v1::Save::SUCCEEDED);
  EXPECT_TRUE(Holds("other", bystander, other_content));
  EXPECT_TRUE(Answers());
  // An image that is not as it was is not handed to the next; a client that only looked the other
  // way has done no harm.
  EXPECT_THAT(LeasedImages(), IsEmpty());
  const size_t fine = deed.name == std::string("Unmaps") ? 2 : 1;
  const Pool::Usage usage = pool_->GetUsage();
  EXPECT_EQ(usage.used_bytes, usage.free_bytes);
  EXPECT_EQ(usage.free_bytes / kBytes, fine);
  std::vector<std::string> names = {"hostile", "other"};
  if (phase == Phase::kQueued) names.insert(names.end(), busy.begin(), busy.end());
  EXPECT_EQ(disk_.List(), names);
}

// The daemon itself copies into what is gone.
TEST_F(HostileTest, AStreamIntoAnImageThatWasCut) {
  const std::string content(kBytes, 's');
  SharedMemoryClient hostile(stub_.get());
  ASSERT_NO_FATAL_FAILURE(hostile.Begin(TorchRequest("h", "hostile", kBytes)));
  ASSERT_EQ(ftruncate(hostile.fd(), 0), 0);
  ASSERT_OK(queue_->WriteSave(Name("h"), static_cast<int64_t>(hostile.object_offset()), content));
  ASSERT_NO_FATAL_FAILURE(hostile.Commit());
  EXPECT_THAT(ErrorOf(WaitForEnd("h")), IsError(StatusCode::kFailedPrecondition, "IMAGE_CHANGED"));
  EXPECT_EQ(ReadFile(disk_ / "hostile"), "old");
  EXPECT_THAT(disk_.List(), ElementsAre("hostile"));
}

// Its save is over, and it has kept the descriptor: the next client gets another image.
TEST_F(HostileTest, AClientThatCutsItsImageAfterTheEnd) {
  const std::string content(kBytes, 'x');
  SharedMemoryClient hostile(stub_.get());
  ASSERT_NO_FATAL_FAILURE(hostile.Begin(TorchRequest("h", "hostile", kBytes)));
  hostile.Copy(content);
  ASSERT_NO_FATAL_FAILURE(hostile.Commit());
  EXPECT_EQ(WaitForEnd("h").state(), v1::Save::SUCCEEDED);
  ASSERT_EQ(ftruncate(hostile.fd(), 0), 0);
  for (const char* id : {"next", "one-more"}) {
    SharedMemoryClient next(stub_.get());
    ASSERT_NO_FATAL_FAILURE(next.Begin(TorchRequest(id, id, kBytes)));
    next.Copy(content);
    ASSERT_NO_FATAL_FAILURE(next.Commit());
    EXPECT_EQ(WaitForEnd(id).state(), v1::Save::SUCCEEDED);
    EXPECT_TRUE(Holds(id, next, content));
  }
}

// Cut and grown again between two looks, nothing tells but the contents: what is published is a
// whole file of the right length, and its checksums are for the reader.
TEST_F(HostileTest, AClientThatCutsAndGrowsItsImageHarmsOnlyItself) {
  SharedMemoryClient hostile(stub_.get());
  ASSERT_NO_FATAL_FAILURE(hostile.Begin(TorchRequest("h", "hostile", kBytes)));
  hostile.Copy(std::string(kBytes, 'x'));
  HoldSavesAt(FsOp::kAllocate);
  ASSERT_NO_FATAL_FAILURE(hostile.Commit());
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  ASSERT_EQ(ftruncate(hostile.fd(), 0), 0);
  ASSERT_EQ(ftruncate(hostile.fd(), static_cast<off_t>(hostile.size())), 0);
  gate_.Open();
  EXPECT_EQ(WaitForEnd("h").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "hostile").size(), hostile.size());
  Save("next", "next", "next");
  EXPECT_EQ(WaitForEnd("next").state(), v1::Save::SUCCEEDED);
}

}  // namespace
}  // namespace ckptd
