#include "client/cpp/core/copy.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "client/cpp/core/stream_copy.h"

namespace ckptd {
namespace {

// A thread costs about as much as copying half of this.
constexpr size_t kMinBytesPerThread = size_t{4} << 20;
constexpr size_t kChunkBytes = size_t{4} << 20;
// What is smaller stays in the cache, where its checksum finds it.
constexpr size_t kMinStreamBytes = size_t{4} << 20;

// Large tensors in pieces and small ones in batches, so that the threads end at about one time.
std::vector<std::vector<CopyItem>> Batches(const std::vector<CopyItem>& items) {
  std::vector<std::vector<CopyItem>> batches;
  size_t room = 0;
  for (CopyItem item : items) {
    while (item.size_bytes > 0) {
      if (room == 0) {
        batches.emplace_back();
        room = kChunkBytes;
      }
      const size_t n = std::min(room, item.size_bytes);
      batches.back().push_back({item.to, item.from, n});
      item = {item.to + n, item.from + n, item.size_bytes - n};
      room -= n;
    }
  }
  return batches;
}

}  // namespace

void CopyAll(const std::vector<CopyItem>& items, int max_threads) {
  size_t total = 0;
  for (const CopyItem& item : items) total += item.size_bytes;
  const size_t threads =
      std::clamp<size_t>(total / kMinBytesPerThread, 1, std::max(max_threads, 1));

  const std::vector<std::vector<CopyItem>> batches = Batches(items);
  const bool stream = total >= kMinStreamBytes;
  std::atomic<size_t> next = 0;
  auto work = [&] {
    for (size_t i = next.fetch_add(1); i < batches.size(); i = next.fetch_add(1)) {
      for (const CopyItem& item : batches[i]) {
        if (stream) {
          ckptd_stream_copy(item.to, item.from, item.size_bytes);
        } else {
          std::memcpy(item.to, item.from, item.size_bytes);
        }
      }
    }
  };
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < threads; ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace ckptd
