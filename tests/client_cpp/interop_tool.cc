// For test_interop.py: reads and writes checkpoints as a C++ program would.

// First: clang in C++20 rejects LibTorch 1.13's headers in another order.
#include <ATen/core/ivalue.h>

#include <ATen/ATen.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <map>
#include <string>

#include "client/cpp/torch/capture.h"
#include "client/cpp/torch/restore.h"
#include "client/cpp/torch/sidecar_checkpoint_io.h"
#include "proto/status/status_macros.h"

namespace {

using Dict = c10::impl::GenericDict;
using List = c10::impl::GenericList;

// One of everything that a C++ program can save. Python's test knows what is in it.
c10::IValue Everything() {
  Dict all(c10::AnyType::get(), c10::AnyType::get());
  const at::Tensor base = at::arange(24, at::kFloat).view({4, 6});
  all.insert("base", base);
  all.insert("row", base.select(0, 1));
  all.insert("transposed", base.t());
  all.insert("again", base);
  all.insert("grad", at::ones({2}, at::kDouble).set_requires_grad(true));
  all.insert("scalar", at::scalar_tensor(3.5));
  all.insert("empty", at::empty({0, 3}));
  all.insert("bool", at::arange(5) > 2);
  all.insert("bfloat16", at::arange(5).to(at::kBFloat16));
  all.insert("conj", at::arange(3).to(at::kComplexFloat).mul(c10::complex<float>(0, 1)).conj());
  all.insert("int64", at::arange(3).mul(int64_t{1} << 40));
  all.insert("undefined", at::Tensor());
  List list(c10::AnyType::get());
  list.push_back(1);
  list.push_back(-(int64_t{1} << 62));
  list.push_back(0.1);
  list.push_back(c10::IValue());
  list.push_back(true);
  list.push_back("text \xE2\x82\xAC");
  list.push_back(c10::complex<double>(1, -2));
  all.insert("list", list);
  all.insert("same list", list);
  all.insert("ints", c10::List<int64_t>({1, 2, 3}));
  all.insert("floats", c10::List<double>({0.5}));
  all.insert("tensors", c10::List<at::Tensor>({base}));
  all.insert("tuple", c10::ivalue::Tuple::create({1, 2, 3, 4}));
  all.insert("nothing", c10::ivalue::Tuple::create(std::vector<c10::IValue>{}));
  all.insert(7, "an int key");
  return all;
}

absl::Status Run(const std::string& mode, const std::string& from, const std::string& to,
                 ckptd::SidecarOptions options) {
  c10::IValue value;
  if (mode == "copy") {
    CKPTD_ASSIGN_OR_RETURN(ckptd::CheckpointFile file, ckptd::CheckpointFile::Open(from));
    CKPTD_ASSIGN_OR_RETURN(value, ckptd::RestoreObject(file));
  } else {
    value = Everything();
  }
  options.wait = ckptd::SidecarOptions::Wait::kDurable;
  CKPTD_ASSIGN_OR_RETURN(auto io, ckptd::SidecarCheckpointIO::Create(options));
  return io->Save(value, to);
}

}  // namespace

int main(int argc, char** argv) {
  std::string mode;
  std::string from;
  std::string to;
  ckptd::SidecarOptions options;
  CLI::App app("Writes a checkpoint to TO: one of everything, or a copy of FROM.");
  app.add_option("mode", mode)->required()->check(CLI::IsMember({"everything", "copy"}));
  app.add_option("--from", from);
  app.add_option("--to", to)->required();
  app.add_option("--transport", options.connection.transport)
      ->transform(CLI::CheckedTransformer(std::map<std::string, ckptd::Transport>{
          {"shm", ckptd::Transport::kSharedMemory}, {"grpc", ckptd::Transport::kGrpc}}));
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(mode, from, to, options);
  if (!status.ok()) std::cerr << status.message() << std::endl;
  return status.ok() ? 0 : 1;
}
