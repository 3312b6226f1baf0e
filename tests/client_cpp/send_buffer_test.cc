// Streams have a large send buffer, and nothing else of the process has.

#include "client/cpp/core/send_buffer.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "client/cpp/core/connection.h"
#include "client/cpp/core/unique_fd.h"
#include "tests/client_cpp/test_daemon.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

UniqueFd NewSocket() { return UniqueFd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)); }

sockaddr_un Address(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::copy(path.begin(), path.end(), address.sun_path);
  return address;
}

UniqueFd Listen(const std::string& path) {
  UniqueFd listener = NewSocket();
  const sockaddr_un address = Address(path);
  EXPECT_EQ(bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(listen(listener.get(), 8), 0);
  return listener;
}

UniqueFd Connect(const std::string& path) {
  UniqueFd connection = NewSocket();
  const sockaddr_un address = Address(path);
  EXPECT_EQ(connect(connection.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
            0);
  return connection;
}

int SendBuffer(int fd) {
  int size = 0;
  socklen_t length = sizeof(size);
  EXPECT_EQ(getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &length), 0);
  return size;
}

// Those of this process's connections to the socket `path`.
std::vector<int> SendBuffersTo(const std::string& path) {
  std::vector<int> sizes;
  for (int fd = 0; fd < 1024; ++fd) {
    sockaddr_un peer = {};
    socklen_t length = sizeof(peer);
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0) continue;
    if (peer.sun_family == AF_UNIX && path == peer.sun_path) sizes.push_back(SendBuffer(fd));
  }
  return sizes;
}

TEST(SendBufferTest, OnlyThoseToThePeerAreWidened) {
  const TempDir dir;
  const UniqueFd listener = Listen(dir / "a");
  const UniqueFd other_listener = Listen(dir / "b");
  const UniqueFd first = Connect(dir / "a");
  const UniqueFd second = Connect(dir / "a");
  const UniqueFd other = Connect(dir / "b");
  const int before = SendBuffer(other.get());
  for (const std::string& peer : {std::string(), std::string("unix:"), dir / "a"}) {
    WidenSendBuffers(peer);
    EXPECT_EQ(SendBuffer(first.get()), before) << peer;
  }
  WidenSendBuffers("unix:" + (dir / "a"));
  EXPECT_GT(SendBuffer(first.get()), before);
  EXPECT_EQ(SendBuffer(second.get()), SendBuffer(first.get()));
  EXPECT_EQ(SendBuffer(other.get()), before);
  EXPECT_EQ(SendBuffer(listener.get()), before);
}

TEST(SendBufferTest, OneThatIsLargerStays) {
  const TempDir dir;
  const UniqueFd listener = Listen(dir / "a");
  const UniqueFd connection = Connect(dir / "a");
  const int large = 4 << 20;
  ASSERT_EQ(setsockopt(connection.get(), SOL_SOCKET, SO_SNDBUF, &large, sizeof(large)), 0);
  const int before = SendBuffer(connection.get());
  WidenSendBuffers("unix:" + (dir / "a"));
  EXPECT_EQ(SendBuffer(connection.get()), before);
}

TEST(SendBufferTest, AStreamHasIt) {
  TestDaemon daemon;
  const std::string path = daemon.address().substr(std::strlen("unix:"));
  auto connection = Connection::Open(daemon.Options(Transport::kGrpc));
  ASSERT_OK(connection);
  const int before = SendBuffer(NewSocket().get());
  ASSERT_EQ(SendBuffersTo(path), std::vector<int>{before});
  const std::string bytes(1 << 20, 'x');
  SaveSpec spec;
  spec.path = daemon.Path("f");
  spec.object = "not a pickle: the daemon does not look";
  spec.tensors = {{"0", "uint8", {}, bytes.data(), bytes.size()}};
  ASSERT_OK((*connection)->Save(spec));
  const std::vector<int> after = SendBuffersTo(path);
  ASSERT_EQ(after.size(), 1u);
  EXPECT_GT(after.front(), before);
}

}  // namespace
}  // namespace ckptd
