// IValues to files and back: on their own through LibTorch's zip writer, and through the daemon.

#include "client/cpp/torch/checkpoint_io.h"

#include <ATen/ATen.h>
#include <caffe2/serialize/inline_container.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/cpp/torch/capture.h"
#include "client/cpp/torch/dtype.h"
#include "client/cpp/torch/restore.h"
#include "client/cpp/torch/sidecar_checkpoint_io.h"
#include "plugins/torch/pickle/writer.h"
#include "proto/status/error_info.h"
#include "tests/client_cpp/test_daemon.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using ::testing::HasSubstr;
using Dict = c10::impl::GenericDict;
using List = c10::impl::GenericList;

Dict NewDict() { return Dict(c10::AnyType::get(), c10::AnyType::get()); }

// Writes records as torch.save does, by LibTorch itself.
void WriteZip(const std::string& path,
              const std::vector<std::pair<std::string, std::string>>& records) {
  caffe2::serialize::PyTorchStreamWriter zip(path);
  for (const auto& [name, bytes] : records) zip.writeRecord(name, bytes.data(), bytes.size());
  zip.writeEndOfFile();
}

absl::StatusOr<c10::IValue> RestoreFrom(const std::string& path) {
  absl::StatusOr<CheckpointFile> file = CheckpointFile::Open(path);
  if (!file.ok()) return file.status();
  return RestoreObject(*file);
}

// A value written and read again.
absl::StatusOr<c10::IValue> RoundTrip(const c10::IValue& value) {
  absl::StatusOr<Capture> capture = CaptureObject(value);
  if (!capture.ok()) return capture.status();
  std::vector<std::pair<std::string, std::string>> records = {{"data.pkl", capture->object}};
  for (const TensorView& view : capture->tensors) {
    records.emplace_back("data/" + view.name,
                         std::string(static_cast<const char*>(view.data), view.size_bytes));
  }
  const TempDir dir;
  WriteZip(dir / "x.pt", records);
  return RestoreFrom(dir / "x.pt");
}

at::Tensor TensorAt(const c10::IValue& value, const std::string& key) {
  return value.toGenericDict().at(key).toTensor();
}

TEST(RoundTrip, KeepsTensorsOfEveryKind) {
  std::vector<at::Tensor> tensors = {
      at::arange(24, at::kFloat).view({2, 3, 4}),
      at::arange(24, at::kFloat).view({4, 6}).t(),
      at::arange(24, at::kFloat).view({4, 6}).slice(1, 1, 5, 2),
      at::scalar_tensor(2.5),
      at::empty({0, 7}),
      at::ones({3}).expand({4, 3}),
      at::arange(4).to(at::kHalf),
      at::arange(4).to(at::kBFloat16),
      at::arange(4).to(at::kBool),
      at::arange(4).to(at::kChar),
      at::arange(4).to(at::kShort),
      at::arange(4).to(at::kInt),
      at::arange(4).to(at::kByte),
      at::arange(4).to(at::kComplexDouble),
      at::arange(4).to(at::kComplexFloat).mul(c10::complex<float>(1, 1)).conj(),
  };
  for (const char* name : {"float8_e4m3fn", "float8_e5m2"}) {
    if (const auto dtype = DtypeByName(name)) tensors.push_back(at::arange(4).to(*dtype));
  }
  List list(c10::AnyType::get());
  for (const at::Tensor& tensor : tensors) list.push_back(tensor);
  const auto result = RoundTrip(list);
  ASSERT_TRUE(result.ok()) << result.status();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor tensor = result->toListRef()[i].toTensor();
    const at::Tensor& wanted = tensors[i];
    EXPECT_EQ(tensor.scalar_type(), wanted.scalar_type()) << i;
    EXPECT_EQ(tensor.sizes(), wanted.sizes()) << i;
    EXPECT_EQ(tensor.strides(), wanted.strides()) << i;
    EXPECT_EQ(tensor.is_conj(), wanted.is_conj()) << i;
    EXPECT_TRUE(at::equal(tensor.to(at::kComplexDouble), wanted.to(at::kComplexDouble))) << i;
  }
}

TEST(RoundTrip, KeepsWhatIsShared) {
  const at::Tensor base = at::zeros({4, 4});
  List list(c10::AnyType::get());
  list.push_back(base);
  Dict dict = NewDict();
  dict.insert("base", base);
  dict.insert("row", base[1]);
  dict.insert("list", list);
  dict.insert("list again", list);
  const auto result = RoundTrip(dict);
  ASSERT_TRUE(result.ok()) << result.status();
  TensorAt(*result, "row").fill_(5);
  EXPECT_EQ(TensorAt(*result, "base").sum().item<float>(), 20);
  EXPECT_EQ(base.sum().item<float>(), 0) << "the memory is to be its own";
  result->toGenericDict().at("list").toList().push_back(1);
  EXPECT_EQ(result->toGenericDict().at("list again").toListRef().size(), 2u);
}

TEST(RoundTrip, WritesEachStorageOnceInOrder) {
  const at::Tensor base = at::zeros({1000});
  Dict dict = NewDict();
  dict.insert("view", base.slice(0, 0, 10));
  dict.insert("other", at::zeros({5}));
  dict.insert("base", base);
  const auto capture = CaptureObject(dict);
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_EQ(capture->tensors.size(), 2u);
  EXPECT_EQ(capture->tensors[0].name, "0");
  EXPECT_EQ(capture->tensors[0].size_bytes, 4000u);
  EXPECT_EQ(capture->tensors[0].data, base.data_ptr()) << "nothing is to be copied";
  EXPECT_EQ(capture->tensors[1].name, "1");
}

TEST(RoundTrip, KeepsValuesOfEveryKind) {
  Dict dict = NewDict();
  dict.insert("none", c10::IValue());
  dict.insert("string", std::string("a\0b \xE2\x82\xAC", 7));
  dict.insert("ints", c10::List<int64_t>({1, -70000, int64_t{1} << 40}));
  dict.insert("tuple", c10::ivalue::Tuple::create({1, "two", 3.0, true}));
  dict.insert("device", c10::Device("cuda:1"));
  dict.insert("complex", c10::complex<double>(1, -1));
  dict.insert(3, "int key");
  dict.insert(2.5, "float key");
  const auto result = RoundTrip(dict);
  ASSERT_TRUE(result.ok()) << result.status();
  const Dict back = result->toGenericDict();
  EXPECT_EQ(back.size(), dict.size());
  EXPECT_TRUE(back.at("none").isNone());
  EXPECT_EQ(back.at("string").toStringRef(), std::string("a\0b \xE2\x82\xAC", 7));
  EXPECT_EQ(back.at("ints").toListRef()[1].toInt(), -70000);
  EXPECT_EQ(back.at("tuple").toTupleRef().elements()[1].toStringRef(), "two");
  EXPECT_EQ(back.at("device").toDevice(), c10::Device("cuda:1"));
  EXPECT_EQ(back.at("complex").toComplexDouble(), c10::complex<double>(1, -1));
  EXPECT_EQ(back.at(3).toStringRef(), "int key");
  EXPECT_EQ(back.at(2.5).toStringRef(), "float key");
}

TEST(RoundTrip, KeepsRequiresGrad) {
  const auto result = RoundTrip(at::ones({2}).set_requires_grad(true));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->toTensor().requires_grad());
}

std::string CaptureError(const c10::IValue& value) {
  Dict inner = NewDict();
  inner.insert("weight", value);
  Dict outer = NewDict();
  outer.insert("model", inner);
  return std::string(CaptureObject(outer).status().message());
}

TEST(Capture, NamesWhatCannotBeSaved) {
  EXPECT_THAT(CaptureError(at::eye(3).to_sparse()), HasSubstr("[model][weight] is not strided"));
  EXPECT_THAT(CaptureError(at::empty({2}, at::kMeta)), HasSubstr("meta device"));
  EXPECT_THAT(CaptureError(at::quantize_per_tensor(at::ones({2}), 0.1, 0, at::kQInt8)),
              HasSubstr("is quantized"));
  EXPECT_THAT(CaptureError(c10::Stream(c10::Stream::DEFAULT, c10::Device("cpu"))),
              HasSubstr("a Stream, which"));
  const at::Tensor bytes = at::zeros({8}, at::kByte);
  List two(c10::AnyType::get());
  two.push_back(bytes);
  two.push_back(bytes.view(at::kFloat));
  EXPECT_THAT(CaptureError(two), HasSubstr("[1] is float32, but shares its memory with a tensor "
                                           "of uint8: clone one of them"));
  List deep(c10::AnyType::get());
  for (int i = 0; i < 2000; ++i) {
    List around(c10::AnyType::get());
    around.push_back(deep);
    deep = around;
  }
  EXPECT_THAT(CaptureError(deep), HasSubstr("nested too deeply"));
}

// What a tensor's pickle says, to be falsified piece by piece.
struct FakeTensor {
  std::string function = "_rebuild_tensor_v2";
  std::string storage_class = "FloatStorage";
  std::string key = "0";
  int64_t numel = 4;
  int64_t offset = 0;
  std::vector<int64_t> size = {2, 2};
  std::vector<int64_t> stride = {2, 1};
  std::string dtype = {};  // For _v3.
};

std::string RestoreError(const FakeTensor& fake) {
  PickleWriter pickle;
  pickle.Global("torch._utils", fake.function);
  pickle.Mark();
  pickle.Mark();
  pickle.String("storage");
  if (fake.dtype.empty()) {
    pickle.Global("torch", fake.storage_class);
  } else {
    pickle.Global("torch.storage", "UntypedStorage");
  }
  pickle.String(fake.key);
  pickle.String("cpu");
  pickle.Int(fake.numel);
  pickle.Tuple(5);
  pickle.Op(PickleOp::kBinPersid);
  pickle.Int(fake.offset);
  for (const std::vector<int64_t>& values : {fake.size, fake.stride}) {
    for (int64_t value : values) pickle.Int(value);
    pickle.Tuple(static_cast<int>(values.size()));
  }
  pickle.Bool(false);
  pickle.Global("collections", "OrderedDict");
  pickle.Tuple(0);
  pickle.Op(PickleOp::kReduce);
  if (!fake.dtype.empty()) pickle.Global("torch", fake.dtype);
  pickle.Tuple(7);
  pickle.Op(PickleOp::kReduce);
  const TempDir dir;
  WriteZip(dir / "x.pt", {{"data.pkl", pickle.Finish()}, {"data/0", std::string(16, 'x')}});
  const auto result = RestoreFrom(dir / "x.pt");
  return result.ok() ? "OK" : std::string(result.status().message());
}

TEST(Restore, RefusesTensorsThatLie) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  EXPECT_EQ(RestoreError({}), "OK");
  EXPECT_THAT(RestoreError({.offset = 1}), HasSubstr("beyond its storage"));
  EXPECT_THAT(RestoreError({.offset = -1}), HasSubstr("beyond its storage"));
  EXPECT_THAT(RestoreError({.size = {2, 3}}), HasSubstr("beyond its storage"));
  EXPECT_THAT(RestoreError({.size = {kHuge, kHuge}}), HasSubstr("beyond its storage"));
  EXPECT_THAT(RestoreError({.stride = {kHuge, kHuge}}), HasSubstr("beyond its storage"));
  EXPECT_THAT(RestoreError({.stride = {1}}), HasSubstr("beyond its storage"));
  EXPECT_THAT(RestoreError({.size = {-1, 2}}), HasSubstr("no numbers"));
  EXPECT_THAT(RestoreError({.numel = 5}), HasSubstr("needs 20 bytes of record data/0, which has"));
  EXPECT_THAT(RestoreError({.numel = kHuge}), HasSubstr("elements"));
  EXPECT_THAT(RestoreError({.key = "1"}), HasSubstr("data/1, which is missing"));
  EXPECT_THAT(RestoreError({.key = "../x"}), HasSubstr("missing"));
  EXPECT_THAT(RestoreError({.storage_class = "FunnyStorage"}), HasSubstr("torch FunnyStorage"));
  EXPECT_THAT(RestoreError({.function = "_rebuild_qtensor"}), HasSubstr("_rebuild_qtensor"));
  EXPECT_THAT(RestoreError({.function = "_rebuild_tensor_v3", .numel = 16, .dtype = "float3_e1m1"}),
              HasSubstr("dtype float3_e1m1, which this LibTorch does not have"));
}

TEST(Restore, RefusesFilesThatAreNone) {
  const TempDir dir;
  WriteFile(dir / "x.pt", "not a zip");
  EXPECT_THAT(std::string(RestoreFrom(dir / "x.pt").status().message()),
              HasSubstr("x.pt: is not a zip file"));
  WriteZip(dir / "x.pt", {{"other", "x"}});
  EXPECT_THAT(std::string(RestoreFrom(dir / "x.pt").status().message()),
              HasSubstr("has no data.pkl"));
  WriteZip(dir / "x.pt", {{"data.pkl", "\x80\x02}."}});
  const std::string whole = ReadFile(dir / "x.pt");
  for (size_t length = 0; length < whole.size(); length += 7) {
    WriteFile(dir / "x.pt", whole.substr(0, length));
    EXPECT_FALSE(RestoreFrom(dir / "x.pt").ok()) << length;
  }
}

TEST(Restore, RunsNothing) {
  PickleWriter pickle;
  pickle.Global("posix", "system");
  pickle.String("touch /tmp/ran");
  pickle.Tuple(1);
  pickle.Op(PickleOp::kReduce);
  const TempDir dir;
  WriteZip(dir / "x.pt", {{"data.pkl", pickle.Finish()}});
  EXPECT_THAT(std::string(RestoreFrom(dir / "x.pt").status().message()),
              HasSubstr("calls `posix system`"));
}

TEST(Dtype, IsNamedAsInPython) {
  EXPECT_EQ(DtypeName(at::kFloat), "float32");
  EXPECT_EQ(DtypeName(c10::ScalarType::ComplexHalf), "complex32");
  EXPECT_EQ(DtypeByName("bfloat16"), at::kBFloat16);
  EXPECT_EQ(DtypeByName("float33"), std::nullopt);
  for (int i = 0; i < static_cast<int>(c10::ScalarType::NumOptions); ++i) {
    const auto type = static_cast<c10::ScalarType>(i);
    if (type != c10::ScalarType::Undefined) EXPECT_EQ(DtypeByName(DtypeName(type)), type);
  }
}

class SidecarTest : public testing::TestWithParam<Transport> {
 protected:
  void SetUp() override {
    SidecarOptions options;
    options.connection = daemon_.Options(GetParam());
    auto io = SidecarCheckpointIO::Create(options);
    ASSERT_TRUE(io.ok()) << io.status();
    io_ = *std::move(io);
  }

  TestDaemon daemon_;
  std::unique_ptr<SidecarCheckpointIO> io_;
};

INSTANTIATE_TEST_SUITE_P(Each, SidecarTest,
                         testing::Values(Transport::kSharedMemory, Transport::kGrpc),
                         [](const auto& each) {
                           return each.param == Transport::kGrpc ? "Grpc" : "SharedMemory";
                         });

TEST_P(SidecarTest, SavesLoadsAndRemoves) {
  const std::string path = daemon_.Path("x.ckpt");
  CheckpointIO& io = *io_;
  const at::Tensor weight = at::arange(1 << 20, at::kFloat);
  for (int step = 0; step < 3; ++step) {
    Dict checkpoint = NewDict();
    checkpoint.insert("step", step);
    checkpoint.insert("weight", weight);
    absl::Status status = io.Save(checkpoint, path);
    ASSERT_TRUE(status.ok()) << status;
    weight.add_(1);
  }
  const auto loaded = io.Load(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->toGenericDict().at("step").toInt(), 2);
  EXPECT_TRUE(at::equal(TensorAt(*loaded, "weight") + 1, weight));

  ASSERT_TRUE(io.Remove(path).ok());
  absl::Status status = io.Teardown();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(daemon_.disk().List().empty());
  EXPECT_TRUE(absl::IsNotFound(io.Load(path).status())) << io.Load(path).status();
  EXPECT_TRUE(io.Save(weight, path).ok()) << "it is to be usable after Teardown";
}

TEST_P(SidecarTest, WaitsUntilDurable) {
  SidecarOptions options;
  options.connection = daemon_.Options(GetParam());
  options.wait = SidecarOptions::Wait::kDurable;
  auto io = SidecarCheckpointIO::Create(options);
  ASSERT_TRUE(io.ok()) << io.status();
  const absl::Status status = (*io)->Save(at::ones({1000}), daemon_.Path("x.ckpt"));
  ASSERT_TRUE(status.ok()) << status;
  const auto loaded = RestoreFrom(daemon_.Path("x.ckpt"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE(at::equal(loaded->toTensor(), at::ones({1000})));
}

TEST_P(SidecarTest, VerifiesWhatItLoads) {
  const std::string path = daemon_.Path("x.ckpt");
  const at::Tensor weight = at::arange(1000, at::kFloat);
  ASSERT_TRUE(io_->Save(weight, path).ok());
  ASSERT_TRUE(io_->Teardown().ok());
  std::string bytes = ReadFile(path);
  const size_t at = bytes.find(std::string(static_cast<const char*>(weight.data_ptr()), 4000));
  ASSERT_NE(at, bytes.npos);
  bytes[at + 400] ^= 1;
  WriteFile(path, bytes);

  const absl::Status status = io_->Load(path).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_EQ(ReasonOf(status), "CORRUPT_CHECKPOINT");
  EXPECT_THAT(std::string(status.message()), HasSubstr("record 'archive/data/0': CRC-32"));

  SidecarOptions options;
  options.connection = daemon_.Options(GetParam());
  options.verify = false;
  auto io = SidecarCheckpointIO::Create(options);
  ASSERT_TRUE(io.ok()) << io.status();
  const auto loaded = (*io)->Load(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_FALSE(at::equal(loaded->toTensor(), weight));
}

TEST_P(SidecarTest, FailsWhereNothingCanBeSaved) {
  EXPECT_TRUE(absl::IsInvalidArgument(io_->Save(at::eye(2).to_sparse(), daemon_.Path("x"))));
  EXPECT_TRUE(absl::IsFailedPrecondition(io_->Save(at::ones({1}), daemon_.disk().path())));
  EXPECT_TRUE(daemon_.disk().List().empty());
}

}  // namespace
}  // namespace ckptd
