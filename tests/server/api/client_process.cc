// A client for tests that need one in a process of its own.
//
//   client_process hold SOCKET NAME PATH
//       opens a session, begins a save and forks a child that holds the connection, too; prints the
//       child's pid and waits to be killed
//   client_process call SOCKET UID
//       becomes UID, calls two methods and prints code and reason of each answer, one a line
//   client_process connect SOCKET COUNT
//       opens COUNT connections, or as many as it may, says nothing on them, prints how many and
//       waits to be killed
//   client_process wait-to-connect SOCKET COUNT
//       the same, once it is sent SIGUSR1; prints "ready" when it waits for that

#include <grp.h>
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "proto/status/error_info.h"

namespace {

using Stub = ckptd::v1::CheckpointService::Stub;
using ckptd::v1::CheckpointService;

std::unique_ptr<Stub> Connect(const std::string& socket) {
  return CheckpointService::NewStub(
      grpc::CreateChannel("unix:" + socket, grpc::InsecureChannelCredentials()));
}

int Hold(const std::string& socket, const std::string& name, const std::string& path) {
  const std::unique_ptr<Stub> stub = Connect(socket);
  grpc::ClientContext session_context;
  ckptd::v1::OpenSessionRequest open;
  open.set_client("a client that is killed");
  auto stream = stub->OpenSession(&session_context, open);
  ckptd::v1::SessionEvent event;
  if (!stream->Read(&event)) return 1;

  ckptd::v1::BeginSaveRequest request;
  request.set_session_id(event.session_id());
  request.set_name(name);
  request.set_path(path);
  request.set_backend("raw");
  request.set_object_bytes(100);
  grpc::ClientContext context;
  ckptd::v1::BeginSaveResponse response;
  if (!stub->BeginSave(&context, request, &response).ok()) return 1;

  const pid_t child = fork();
  if (child == 0) {
    for (;;) pause();
  }
  std::printf("%d\n", static_cast<int>(child));
  std::fflush(stdout);
  for (;;) pause();
}

void Print(const grpc::Status& status) {
  std::printf("%d %s\n", static_cast<int>(status.error_code()),
              ckptd::ReasonOf(ckptd::FromGrpc(status)).c_str());
}

int Call(const std::string& socket, const std::string& uid) {
  const auto id = static_cast<uid_t>(std::stoul(uid));
  if (setgroups(0, nullptr) != 0 || setgid(id) != 0 || setuid(id) != 0) return 1;
  const std::unique_ptr<Stub> stub = Connect(socket);
  {
    grpc::ClientContext context;
    ckptd::v1::GetStatusResponse response;
    Print(stub->GetStatus(&context, {}, &response));
  }
  {
    // Carries some bytes, where the other is empty.
    ckptd::v1::GetSaveRequest request;
    request.set_name("jobs/a/saves/b");
    grpc::ClientContext context;
    ckptd::v1::Save response;
    Print(stub->GetSave(&context, request, &response));
  }
  return 0;
}

int ConnectOften(const std::string& path, int count) {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  int connected = 0;
  for (; connected < count; ++connected) {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) break;
    if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) break;
  }
  std::printf("%d\n", connected);
  std::fflush(stdout);
  for (;;) pause();
}

int WaitToConnect(const std::string& path, int count) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR1);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  std::puts("ready");
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  return ConnectOften(path, count);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 5 && std::string(argv[1]) == "hold") return Hold(argv[2], argv[3], argv[4]);
  if (argc == 4 && std::string(argv[1]) == "call") return Call(argv[2], argv[3]);
  if (argc == 4 && std::string(argv[1]) == "connect") {
    return ConnectOften(argv[2], std::stoi(argv[3]));
  }
  if (argc == 4 && std::string(argv[1]) == "wait-to-connect") {
    return WaitToConnect(argv[2], std::stoi(argv[3]));
  }
  return 2;
}
