// What the daemon does with a save, each step alone: plan, checksum, seal, persist.

#include <benchmark/benchmark.h>
#include <isa-l/crc.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "plugins/torch/torch_plugin.h"
#include "proto/status/status_macros.h"
#include "server/backend/backend.h"
#include "server/os/file_system.h"
#include "server/persist/names.h"
#include "server/persist/persister.h"
#include "server/persist/target.h"
#include "server/staging/image.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

constexpr int kTensors = 37;
constexpr uint64_t kTensorBytes = 5 << 20;
constexpr uint64_t kObjectBytes = 8 << 10;

CheckpointSpec Spec(int64_t tensors, uint64_t tensor_bytes) {
  CheckpointSpec spec;
  spec.object_bytes = kObjectBytes;
  for (int64_t i = 0; i < tensors; ++i) {
    CheckpointSpec::Tensor& tensor = spec.tensors.emplace_back();
    tensor.name = std::to_string(i);
    tensor.dtype = "float32";
    tensor.size_bytes = tensor_bytes;
  }
  return spec;
}

// A planned checkpoint in a staging image, not sealed. Null where it could not be made: `error`
// says why.
struct Staged {
  Staged() : error(Make().ToString()) {}

  absl::Status Make() {
    CKPTD_ASSIGN_OR_RETURN(backend, Backend::Create(TorchPlugin()));
    CKPTD_ASSIGN_OR_RETURN(plan, backend->MakePlan(Spec(kTensors, kTensorBytes)));
    CKPTD_ASSIGN_OR_RETURN(image, Image::Create(fs.get(), pool.path(), 1, plan->file_bytes()));
    return absl::OkStatus();
  }

  PersistSource Source(bool sealed) const {
    PersistSource source;
    source.data = image->data();
    source.size = image->size();
    source.registered = image->registered();
    source.seal = [this, sealed](const std::function<bool(uint64_t)>& done) {
      if (!sealed) return backend->Seal(*plan, image->data(), done);
      done(image->size());
      return absl::OkStatus();
    };
    return source;
  }

  const TempDir pool{TempDir::Place::kMemory};
  const std::unique_ptr<FileSystem> fs = NewPosixFileSystem();
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Plan> plan;
  std::unique_ptr<Image> image;
  std::string error;
};

void BM_Plan(benchmark::State& state) {
  const auto backend = Backend::Create(TorchPlugin());
  const CheckpointSpec spec = Spec(state.range(0), 256);
  for (auto _ : state) {
    auto plan = (*backend)->MakePlan(spec);
    benchmark::DoNotOptimize(plan);
  }
}
BENCHMARK(BM_Plan)->Arg(148)->Arg(100000)->ArgName("tensors")->Unit(benchmark::kMillisecond);

void BM_Crc(benchmark::State& state) {
  const Staged staged;
  if (staged.image == nullptr) return state.SkipWithError(staged.error.c_str());
  for (auto _ : state) {
    benchmark::DoNotOptimize(crc32_gzip_refl(0, staged.image->data(), staged.image->size()));
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(staged.image->size()));
}
BENCHMARK(BM_Crc)->Unit(benchmark::kMillisecond);

void BM_Seal(benchmark::State& state) {
  const Staged staged;
  if (staged.image == nullptr) return state.SkipWithError(staged.error.c_str());
  for (auto _ : state) {
    const absl::Status status =
        staged.backend->Seal(*staged.plan, staged.image->data(), [](uint64_t) { return true; });
    if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(staged.image->size()));
}
BENCHMARK(BM_Seal)->Unit(benchmark::kMillisecond);

// To the disk of $TMPDIR; sealed before, or while it is written.
void BM_Persist(benchmark::State& state) {
  const Staged staged;
  if (staged.image == nullptr) return state.SkipWithError(staged.error.c_str());
  if (state.range(1) != 0 && staged.image->Register() != 0) {
    return state.SkipWithError("memory cannot be registered here: no io_uring, or ulimit -l");
  }
  const TempDir folder;
  const ScopedUmask umask(0);
  const Persister persister(staged.fs.get(), {}, TempPrefix("bench"));
  const auto target = PrepareTarget(staged.fs.get(), {}, folder / "checkpoint.pt", 022);
  if (!target.ok()) return state.SkipWithError(target.status().ToString().c_str());
  for (auto _ : state) {
    PersistControl control;
    const absl::Status status =
        persister.Persist(staged.Source(state.range(0) != 0), *target, 022, &control);
    if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(staged.image->size()));
}
BENCHMARK(BM_Persist)
    ->Args({1, 0})
    ->Args({1, 1})
    ->Args({0, 1})
    ->ArgNames({"sealed", "registered"})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ckptd
