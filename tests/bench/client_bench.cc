// What the C++ client does with a save: the copy.

#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "client/cpp/core/copy.h"
#include "server/os/file_system.h"
#include "server/staging/image.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

constexpr size_t kTensorBytes = 5 << 20;
constexpr size_t kTensors = 37;

// Into warm shared memory, mapped and populated.
void BM_Copy(benchmark::State& state) {
  const TempDir pool(TempDir::Place::kMemory);
  const auto fs = NewPosixFileSystem();
  const auto image = Image::Create(fs.get(), pool.path(), 1, kTensors * kTensorBytes);
  if (!image.ok()) return state.SkipWithError(image.status().ToString().c_str());
  const std::vector<uint8_t> from(kTensors * kTensorBytes, 1);
  std::vector<CopyItem> items;
  for (size_t i = 0; i < kTensors; ++i) {
    const size_t offset = i * kTensorBytes;
    items.push_back({(*image)->data() + offset, from.data() + offset, kTensorBytes});
  }
  for (auto _ : state) CopyAll(items, static_cast<int>(state.range(0)));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(from.size()));
}
BENCHMARK(BM_Copy)->Arg(1)->Arg(2)->ArgName("threads")->UseRealTime()->Unit(
    benchmark::kMillisecond);

}  // namespace
}  // namespace ckptd
