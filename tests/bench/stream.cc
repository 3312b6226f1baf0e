// Measures the way without shared memory: saves over the gRPC stream beside a raw unix socket that
// carries the same bytes, in turn. Prints one JSON object: seconds of each round.

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cpp/core/connection.h"

namespace {

constexpr size_t kSocketPiece = size_t{1} << 20;
constexpr size_t kTensorBytes = size_t{16} << 20;

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "stream: %s\n", what.c_str());
  std::exit(1);
}

// Reads `content`.size() bytes over and over into memory of its own that is warm, and acknowledges
// each time with one byte.
[[noreturn]] void Receive(int fd, size_t size, int rounds) {
  std::vector<char> memory(size, 1);
  for (int round = 0; round < rounds; ++round) {
    for (size_t done = 0; done < size;) {
      const ssize_t n = recv(fd, memory.data() + done, std::min(kSocketPiece, size - done), 0);
      if (n <= 0) _exit(1);
      done += static_cast<size_t>(n);
    }
    if (send(fd, "k", 1, 0) != 1) _exit(1);
  }
  _exit(0);
}

// The other end is a process of its own, as the daemon is.
class RawSocket {
 public:
  RawSocket(size_t size, int rounds) {
    std::array<int, 2> ends = {};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) Die("no socket pair");
    child_ = fork();
    if (child_ < 0) Die("cannot fork");
    if (child_ == 0) Receive(ends[1], size, rounds);
    close(ends[1]);
    fd_ = ends[0];
  }
  ~RawSocket() {
    close(fd_);
    waitpid(child_, nullptr, 0);
  }

  double Send(const std::vector<char>& content) const {
    const absl::Time start = absl::Now();
    for (size_t done = 0; done < content.size();) {
      const size_t piece = std::min(kSocketPiece, content.size() - done);
      const ssize_t n = send(fd_, content.data() + done, piece, 0);
      if (n <= 0) Die("the raw socket broke");
      done += static_cast<size_t>(n);
    }
    char answer = 0;
    if (recv(fd_, &answer, 1, 0) != 1) Die("the raw socket broke");
    return absl::ToDoubleSeconds(absl::Now() - start);
  }

 private:
  int fd_ = -1;
  pid_t child_ = -1;
};

ckptd::SaveSpec Spec(const std::string& path, const std::vector<char>& content) {
  ckptd::SaveSpec spec;
  spec.path = path;
  spec.object = std::string(100, 'p');
  for (size_t at = 0; at < content.size(); at += kTensorBytes) {
    ckptd::TensorView tensor;
    tensor.name = absl::StrCat(at / kTensorBytes);
    tensor.data = content.data() + at;
    tensor.size_bytes = std::min(kTensorBytes, content.size() - at);
    spec.tensors.push_back(tensor);
  }
  return spec;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Saves over the gRPC stream, beside a raw unix socket.");
  std::string path;
  std::string address;
  size_t megabytes = 805;
  int rounds = 7;
  app.add_option("path", path, "where the checkpoint goes")->required();
  app.add_option("--address", address, "the daemon's; default: as every client's");
  app.add_option("--megabytes", megabytes, "size of the checkpoint, in 10^6 bytes");
  app.add_option("--rounds", rounds, "saves, after one that is not counted");
  CLI11_PARSE(app, argc, argv);

  const std::vector<char> content(megabytes * 1000 * 1000, 7);
  // Before the first thread of gRPC.
  const RawSocket raw(content.size(), rounds + 1);
  ckptd::ConnectionOptions options;
  options.address = address;
  options.transport = ckptd::Transport::kGrpc;
  auto connection = ckptd::Connection::Open(options);
  if (!connection.ok()) Die(std::string(connection.status().message()));
  const ckptd::SaveSpec spec = Spec(path, content);
  std::vector<double> socket_seconds;
  std::vector<double> stream_seconds;
  for (int round = 0; round <= rounds; ++round) {
    const double socket = raw.Send(content);
    const absl::Time start = absl::Now();
    const auto save = (*connection)->Save(spec);
    const double stream = absl::ToDoubleSeconds(absl::Now() - start);
    if (!save.ok()) Die(std::string(save.status().message()));
    const absl::Status durable = (*connection)->WaitDurable(save->name);
    if (!durable.ok()) Die(std::string(durable.message()));
    if (round == 0) continue;
    socket_seconds.push_back(socket);
    stream_seconds.push_back(stream);
  }
  std::printf("{\"bytes\": %zu, \"raw_socket_seconds\": [%s], \"stream_seconds\": [%s]}\n",
              content.size(), absl::StrJoin(socket_seconds, ", ").c_str(),
              absl::StrJoin(stream_seconds, ", ").c_str());
  return 0;
}
