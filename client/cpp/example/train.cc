// Trains a small network with Adam and checkpoints it through ckptd, all state included: killed at
// any moment and started again with --resume, it ends with the very same weights.

// First: clang in C++20 rejects LibTorch 1.13's headers in another order.
#include <ATen/core/ivalue.h>

#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <type_traits>

#include "absl/strings/str_format.h"
#include "client/cpp/torch/sidecar_checkpoint_io.h"
#include "proto/status/status_macros.h"

namespace {

using Dict = c10::impl::GenericDict;

struct Flags {
  int64_t steps = 200;
  int64_t save_every = 20;
  int64_t width = 256;
  std::string path = "train.ckpt";
  bool resume = false;
  ckptd::Transport transport = ckptd::Transport::kAuto;
};

Dict NewDict() { return Dict(c10::AnyType::get(), c10::AnyType::get()); }

// The key of a parameter's state in the optimizer: a pointer, or in older LibTorch its print.
template <typename Map>
typename Map::key_type StateKey(const Map&, const at::Tensor& parameter) {
  if constexpr (std::is_same_v<typename Map::key_type, std::string>) {
    std::ostringstream key;
    key << parameter.unsafeGetTensorImpl();
    return key.str();
  } else {
    return parameter.unsafeGetTensorImpl();
  }
}

// Linear regression targets with a bend: the batch depends on the step alone.
std::pair<at::Tensor, at::Tensor> Batch(int64_t step) {
  const at::Tensor i = torch::arange(64 * 16, torch::kFloat).view({64, 16});
  const at::Tensor x = torch::sin(i * 0.37 + static_cast<double>(step) * 1.7);
  const at::Tensor y = x.sum(1, /*keepdim=*/true).tanh() + x.select(1, 0).unsqueeze(1).square();
  return {x, y};
}

class Training {
 public:
  explicit Training(int64_t width)
      : model_(torch::nn::Linear(16, width), torch::nn::Tanh(), torch::nn::Linear(width, width),
               torch::nn::Tanh(), torch::nn::Linear(width, 1)),
        adam_(model_->parameters(), torch::optim::AdamOptions(1e-3)) {}

  double Step() {
    const auto [x, y] = Batch(step_);
    adam_.zero_grad();
    const at::Tensor loss = torch::mse_loss(model_->forward(x), y);
    loss.backward();
    adam_.step();
    ++step_;
    return loss.item<double>();
  }

  // Laid out as Python's {"step", "model": state_dict(), "optimizer": state_dict()}.
  c10::IValue Checkpoint() {
    Dict model = NewDict();
    Dict moments = NewDict();
    int64_t index = 0;
    for (const auto& parameter : model_->named_parameters()) {
      const at::Tensor& value = parameter.value();
      model.insert(parameter.key(), value.detach());
      auto& states = adam_.state();
      if (const auto it = states.find(StateKey(states, value)); it != states.end()) {
        const auto& state = static_cast<const torch::optim::AdamParamState&>(*it->second);
        Dict entry = NewDict();
        entry.insert("step", state.step());
        entry.insert("exp_avg", state.exp_avg());
        entry.insert("exp_avg_sq", state.exp_avg_sq());
        moments.insert(index, entry);
      }
      ++index;
    }
    Dict optimizer = NewDict();
    optimizer.insert("state", moments);
    Dict checkpoint = NewDict();
    checkpoint.insert("step", step_);
    checkpoint.insert("model", model);
    checkpoint.insert("optimizer", optimizer);
    return checkpoint;
  }

  void Restore(const c10::IValue& checkpoint) {
    const torch::NoGradGuard no_grad;
    const Dict root = checkpoint.toGenericDict();
    const Dict model = root.at("model").toGenericDict();
    const Dict moments = root.at("optimizer").toGenericDict().at("state").toGenericDict();
    step_ = root.at("step").toInt();
    int64_t index = 0;
    for (auto& parameter : model_->named_parameters()) {
      at::Tensor& value = parameter.value();
      value.copy_(model.at(parameter.key()).toTensor());
      const Dict entry = moments.at(index++).toGenericDict();
      auto state = std::make_unique<torch::optim::AdamParamState>();
      state->step(entry.at("step").toInt());
      state->exp_avg(entry.at("exp_avg").toTensor());
      state->exp_avg_sq(entry.at("exp_avg_sq").toTensor());
      auto& states = adam_.state();
      states[StateKey(states, value)] = std::move(state);
    }
  }

  int64_t step() const { return step_; }

  // FNV-1a over all weights.
  uint64_t Checksum() {
    uint64_t hash = 0xcbf29ce484222325;
    for (const at::Tensor& parameter : model_->parameters()) {
      const at::Tensor values = parameter.detach().contiguous();
      const auto* bytes = static_cast<const uint8_t*>(values.data_ptr());
      for (size_t i = 0; i < values.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
    }
    return hash;
  }

 private:
  torch::nn::Sequential model_;
  torch::optim::Adam adam_;
  int64_t step_ = 0;
};

absl::Status Train(const Flags& flags) {
  // One thread and one seed: the same sums in the same order in every run.
  at::set_num_threads(1);
  torch::manual_seed(17);
  ckptd::SidecarOptions options;
  options.connection.transport = flags.transport;
  CKPTD_ASSIGN_OR_RETURN(auto io, ckptd::SidecarCheckpointIO::Create(options));

  Training training(flags.width);
  if (flags.resume) {
    CKPTD_ASSIGN_OR_RETURN(c10::IValue checkpoint, io->Load(flags.path));
    training.Restore(checkpoint);
    std::cout << "resumed at step " << training.step() << std::endl;
  }
  while (training.step() < flags.steps) {
    const double loss = training.Step();
    if (training.step() % flags.save_every != 0) continue;
    CKPTD_RETURN_IF_ERROR(io->Save(training.Checkpoint(), flags.path));
    std::cout << absl::StrFormat("saved step %d, loss %.6f", training.step(), loss) << std::endl;
  }
  CKPTD_RETURN_IF_ERROR(io->Teardown());
  std::cout << absl::StrFormat("weights %016x", training.Checksum()) << std::endl;
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Trains a small network with LibTorch and checkpoints it through ckptd.");
  app.add_option("--steps", flags.steps, "Steps in all")->capture_default_str();
  app.add_option("--save-every", flags.save_every, "Steps between two checkpoints")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--width", flags.width, "Size of the hidden layers")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--path", flags.path, "The checkpoint")->capture_default_str();
  app.add_flag("--resume", flags.resume, "Go on from the checkpoint at --path");
  app.add_option("--transport", flags.transport, "auto, shm or grpc")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, ckptd::Transport>{{"auto", ckptd::Transport::kAuto},
                                                  {"shm", ckptd::Transport::kSharedMemory},
                                                  {"grpc", ckptd::Transport::kGrpc}}));
  CLI11_PARSE(app, argc, argv);
  try {
    const absl::Status status = Train(flags);
    if (status.ok()) return 0;
    std::cerr << "train: " << status.message() << std::endl;
  } catch (const std::exception& error) {  // LibTorch throws.
    std::cerr << "train: " << error.what() << std::endl;
  }
  return 1;
}
