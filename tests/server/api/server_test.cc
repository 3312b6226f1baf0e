// What the server does besides CheckpointService: health, reflection, limits, garbage, its end.

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <grpc/support/time.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "google/protobuf/descriptor.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "tests/server/api/api_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::Contains;
using testing::HasSubstr;

class ServerTest : public ApiTest {};

// ---- Health ----------------------------------------------------------------------------------

TEST_F(ServerTest, SaysHowItIs) {
  // HealthCheckRequest.service and HealthCheckResponse.status, each the first field.
  const std::string service = v1::CheckpointService::service_full_name();
  const std::string of_service = std::string("\x0A") + static_cast<char>(service.size()) + service;
  const std::string serving("\x08\x01");
  const std::string not_serving("\x08\x02");
  auto check = [&](const std::string& request) {
    std::string response;
    EXPECT_OK(FromGrpc(CallRaw(NewChannel(), "/grpc.health.v1.Health/Check", request, &response)));
    return response;
  };
  EXPECT_EQ(check(""), serving);
  EXPECT_EQ(check(of_service), serving);
  server_->SetServing(false);
  EXPECT_EQ(check(""), not_serving);
  EXPECT_EQ(check(of_service), not_serving);
  EXPECT_TRUE(Answers()) << "it still finishes what was begun";
}

// ---- Polling ---------------------------------------------------------------------------------

// The names of this process's threads.
std::vector<std::string> ThreadNames() {
  std::vector<std::string> names;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::getline(file, names.emplace_back());
  }
  return names;
}

TEST_F(ServerTest, ThreadsThatPollDoNotNap) {
  void* const called = dlsym(RTLD_DEFAULT, "gpr_sleep_until");
  Dl_info library = {};
  ASSERT_NE(dladdr(reinterpret_cast<void*>(&grpc::Version), &library), 0);
  if (absl::string_view(library.dli_fname).find(".so") == absl::string_view::npos) {
    GTEST_SKIP() << "gRPC is linked statically";
  }
  ASSERT_NE(dladdr(called, &library), 0);
  EXPECT_EQ(absl::string_view(library.dli_fname).find(".so"), absl::string_view::npos)
      << "gRPC calls that of " << library.dli_fname;
  EXPECT_TRUE(Eventually([] {  // they take it when they run
    const std::vector<std::string> names = ThreadNames();
    return std::count(names.begin(), names.end(), "nexting_thread") > 0;
  })) << "gRPC's threads have another name";

  std::thread polls([] {
    pthread_setname_np(pthread_self(), "nexting_thread");
    gpr_sleep_until(gpr_inf_future(GPR_CLOCK_REALTIME));  // does not return where it sleeps
  });
  polls.join();
  const gpr_timespec soon =
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(2, GPR_TIMESPAN));
  gpr_sleep_until(soon);
  EXPECT_GE(gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), soon), 0) << "all others do";
}

// ---- Reflection ------------------------------------------------------------------------------

class ReflectionTest : public ServerTest {
 protected:
  using Request = grpc::reflection::v1alpha::ServerReflectionRequest;
  using Response = grpc::reflection::v1alpha::ServerReflectionResponse;

  Response Ask(const Request& request) {
    const auto stub = grpc::reflection::v1alpha::ServerReflection::NewStub(NewChannel());
    grpc::ClientContext context;
    auto stream = stub->ServerReflectionInfo(&context);
    Response response;
    EXPECT_TRUE(stream->Write(request));
    EXPECT_TRUE(stream->Read(&response));
    stream->WritesDone();
    EXPECT_OK(FromGrpc(stream->Finish()));
    return response;
  }
};

TEST_F(ReflectionTest, ListsTheServices) {
  Request request;
  request.set_list_services("*");
  std::vector<std::string> names;
  const Response response = Ask(request);
  for (const auto& service : response.list_services_response().service()) {
    names.push_back(service.name());
  }
  EXPECT_THAT(names, Contains("ckptd.v1.CheckpointService"));
  EXPECT_THAT(names, Contains("grpc.health.v1.Health"));
  EXPECT_THAT(names, Contains("grpc.reflection.v1alpha.ServerReflection"));
}

TEST_F(ReflectionTest, DescribesWithComments) {
  for (const char* symbol :
       {"ckptd.v1.CheckpointService", "ckptd.v1.Save", "ckptd.v1.CheckpointService.BeginSave"}) {
    Request request;
    request.set_file_containing_symbol(symbol);
    const Response response = Ask(request);
    ASSERT_EQ(response.file_descriptor_response().file_descriptor_proto_size(), 1) << symbol;
    google::protobuf::FileDescriptorProto file;
    ASSERT_TRUE(file.ParseFromString(response.file_descriptor_response().file_descriptor_proto(0)));
    EXPECT_EQ(file.name(), "ckptd/v1/checkpoint.proto");
    std::string comments;
    for (const auto& location : file.source_code_info().location()) {
      comments += location.leading_comments();
    }
    EXPECT_THAT(comments, HasSubstr("One state dict on its way to one path."));
    // Each file that this one imports can be asked for.
    for (const std::string& import : file.dependency()) {
      Request by_name;
      by_name.set_file_by_filename(import);
      EXPECT_TRUE(Ask(by_name).has_file_descriptor_response()) << import;
    }
  }
}

TEST_F(ReflectionTest, SaysSoWhereItKnowsNothing) {
  Request request;
  request.set_file_containing_symbol("no.such.Thing");
  EXPECT_EQ(Ask(request).error_response().error_code(),
            static_cast<int>(grpc::StatusCode::NOT_FOUND));
  request.set_file_by_filename("none.proto");
  EXPECT_TRUE(Ask(request).has_error_response());
  EXPECT_TRUE(Ask(Request()).has_error_response());
}

// ---- Garbage ---------------------------------------------------------------------------------

class GarbageTest : public ServerTest {
 protected:
  // A save of another client that must not come to harm.
  void SetUp() override {
    ServerTest::SetUp();
    ASSERT_NO_FATAL_FAILURE(Stage("bystander", "bystander", "content"));
  }
  void CheckBystander() {
    EXPECT_TRUE(Answers());
    ASSERT_OK(queue_->CommitSave(Name("bystander")));
    EXPECT_EQ(WaitForEnd("bystander").state(), v1::Save::SUCCEEDED);
    EXPECT_EQ(ReadFile(disk_ / "bystander"), "content");
  }
  static std::string Method(const std::string& name) {
    return "/ckptd.v1.CheckpointService/" + name;
  }
};

TEST_F(GarbageTest, BytesThatAreNoMessage) {
  const std::string garbage("\xFF\xFF\xFF\xFF\x01garbage\x00\x07", 14);
  for (const char* method :
       {"Reserve", "BeginSave", "CommitSave", "AbortSave", "BeginLoad", "EndLoad",
        "RemoveCheckpoint", "Flush", "GetSave", "ListSaves", "CancelSave", "GetStatus"}) {
    const absl::Status status = FromGrpc(CallRaw(NewChannel(), Method(method), garbage));
    EXPECT_THAT(status, IsError(StatusCode::kInvalidArgument, "INVALID_REQUEST")) << method;
  }
  for (const char* method : {"OpenSession", "WatchSaves", "ReadLoad"}) {
    EXPECT_FALSE(CallRaw(NewChannel(), Method(method), garbage).ok()) << method;
  }
  for (const std::string& bytes : {garbage, std::string()}) {
    EXPECT_THAT(FromGrpc(CallRaw(NewChannel(), Method("WriteSave"), bytes)),
                IsError(StatusCode::kInvalidArgument, "INVALID_REQUEST"));
  }
  CheckBystander();
}

TEST_F(GarbageTest, AMethodThatIsNot) {
  EXPECT_EQ(CallRaw(NewChannel(), Method("Format"), "").error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(CallRaw(NewChannel(), "/x", "").error_code(), grpc::StatusCode::UNIMPLEMENTED);
  CheckBystander();
}

TEST_F(GarbageTest, AMessageThatIsTooLarge) {
  const std::string large(GrpcServer::kMaxMessageBytes + 1, 'x');
  for (const char* method : {"BeginSave", "GetSave", "WriteSave", "WatchSaves"}) {
    EXPECT_EQ(CallRaw(NewChannel(), Method(method), large).error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED)
        << method;
  }
  CheckBystander();
}

TEST_F(GarbageTest, AWriteThatIsTooLargeDoesNotPassForDone) {
  ASSERT_OK(Begin(Request("s", disk_ / "f", 100)));
  grpc::ClientContext context;
  v1::WriteSaveResponse response;
  auto writer = stub_->WriteSave(&context, &response);
  v1::WriteSaveRequest request;
  request.set_name(Name("s"));
  request.set_data(std::string(GrpcServer::kMaxMessageBytes, 'x'));
  writer->Write(request);
  writer->WritesDone();
  EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  CheckBystander();
}

TEST_F(GarbageTest, AConnectionThatSpeaksNoHttp2) {
  std::vector<int> sockets;
  for (const std::string& bytes :
       {std::string(), std::string("GET / HTTP/1.1\r\n\r\n"), std::string(100000, '\xFF'),
        std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand then nonsense")}) {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, Socket().c_str(), sizeof(address.sun_path) - 1);
    ASSERT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    // The server may hang up in the middle of it.
    send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    sockets.push_back(fd);
  }
  CheckBystander();
  for (int fd : sockets) close(fd);
  EXPECT_TRUE(Answers());
}

// ---- The end ---------------------------------------------------------------------------------

TEST_F(ServerTest, ShutdownIsIdempotentAndTheSocketIsGone) {
  EXPECT_THAT(ListDir(run_ / "d"), testing::ElementsAre("ckptd.sock", "ckptd.sock.lock"));
  server_->Shutdown(absl::Hours(10));
  EXPECT_THAT(ListDir(run_ / "d"), testing::ElementsAre("ckptd.sock.lock"));
  server_->Shutdown(absl::Hours(10));
  EXPECT_FALSE(Answers());
  // And another may serve there.
  StartServer();
  EXPECT_TRUE(Answers());
}

TEST_F(ServerTest, ShutdownLetsCallsEnd) {
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "x"));
  WaitForEnd("s");
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("t", "f", "y"));
  absl::Status status;
  std::thread caller([&] {
    v1::FlushRequest flush;
    flush.set_parent("jobs/-");
    status = Call(stub_.get(), &Stub::Flush, flush).status();
  });
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  std::thread stopper([&] { server_->Shutdown(absl::Hours(10)); });
  gate_.Open();
  caller.join();
  stopper.join();
  // Either it was under way, and has ended as it should, or it came too late.
  if (!status.ok()) {
    EXPECT_THAT(status.code(), testing::AnyOf(StatusCode::kUnavailable, StatusCode::kCancelled));
  }
}

}  // namespace
}  // namespace ckptd
