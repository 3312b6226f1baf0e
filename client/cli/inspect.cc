// ckptctl inspect: what is in a checkpoint, read as data.

#include <google/protobuf/struct.pb.h>

#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/commands.h"
#include "client/cli/file_kind.h"
#include "client/cli/text.h"
#include "plugins/safetensors/safetensors_file.h"
#include "plugins/torch/read/torch_file.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "proto/status/utf8.h"

namespace ckptd::cli {
namespace {

using google::protobuf::Struct;
using Kind = TorchValue::Kind;

// Values of people's own may be whole texts.
constexpr size_t kMaxShown = 60;

// A tensor as it is shown; the same for every kind of checkpoint.
struct Row {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::optional<uint64_t> bytes;  // none where that is not known
  const TorchTensor* torch = nullptr;
  std::string same_as;  // the tensor that it is
};

// What there is to show. The last two are of torch files.
struct Contents {
  std::string path;
  std::string format;
  std::optional<uint64_t> bytes;
  std::vector<Row> tensors;
  std::vector<std::pair<std::string, std::string>> values;  // name -> the value in words
  std::vector<std::string> unknown;
  std::vector<std::pair<std::string, uint64_t>> records;
  std::string notes;  // in words, for the first line
  // Why there is no more than that.
  absl::Status incomplete;
};

// Numbers as text, as JSON has them for the 64-bit fields of the daemon's answers.
void Put(Struct* fields, const std::string& key, absl::string_view text) {
  (*fields->mutable_fields())[key].set_string_value(ToUtf8(text));
}

Struct* Append(Struct* fields, const std::string& key) {
  return (*fields->mutable_fields())[key]
      .mutable_list_value()
      ->add_values()
      ->mutable_struct_value();
}

void PutSizes(Struct* fields, const std::string& key, const std::vector<int64_t>& sizes) {
  auto* list = (*fields->mutable_fields())[key].mutable_list_value();
  for (const int64_t size : sizes) list->add_values()->set_string_value(absl::StrCat(size));
}

void PutTensor(const Row& row, Struct* fields) {
  Put(fields, "name", row.name);
  Put(fields, "dtype", row.dtype);
  PutSizes(fields, "shape", row.shape);
  if (row.bytes.has_value()) Put(fields, "bytes", absl::StrCat(*row.bytes));
  if (!row.same_as.empty()) Put(fields, "same_as", row.same_as);
  if (row.torch == nullptr) return;
  const TorchTensor& tensor = *row.torch;
  auto& all = *fields->mutable_fields();
  PutSizes(fields, "strides", tensor.strides);
  Put(fields, "storage", tensor.storage);
  Put(fields, "offset", absl::StrCat(tensor.offset));
  Put(fields, "location", tensor.location);
  all["requires_grad"].set_bool_value(tensor.requires_grad);
  all["parameter"].set_bool_value(tensor.parameter);
}

void ShowJson(const Contents& contents, Output& out) {
  Struct json;
  Put(&json, "path", contents.path);
  Put(&json, "format", contents.format);
  if (contents.bytes.has_value()) Put(&json, "bytes", absl::StrCat(*contents.bytes));
  auto& all = *json.mutable_fields();
  for (const char* list : {"tensors", "values", "unknown", "records"}) {
    all[list].mutable_list_value();
  }
  for (const Row& row : contents.tensors) PutTensor(row, Append(&json, "tensors"));
  for (const auto& [name, value] : contents.values) {
    Struct* told = Append(&json, "values");
    Put(told, "name", name);
    Put(told, "value", value);
  }
  for (const std::string& name : contents.unknown) {
    all["unknown"].mutable_list_value()->add_values()->set_string_value(ToUtf8(name));
  }
  for (const auto& [name, bytes] : contents.records) {
    Struct* record = Append(&json, "records");
    Put(record, "name", name);
    Put(record, "bytes", absl::StrCat(bytes));
  }
  if (!contents.incomplete.ok()) {
    Put(&json, "reason", ReasonOf(contents.incomplete));
    Put(&json, "message", contents.incomplete.message());
  }
  out.WriteJson(json);
}

// What is worth a word beside its dtype and shape.
std::string Notes(const Row& row) {
  std::vector<std::string> notes;
  if (!row.same_as.empty()) notes.push_back("same as " + Printable(row.same_as));
  if (const TorchTensor* tensor = row.torch; tensor != nullptr) {
    if (tensor->parameter) notes.emplace_back("parameter");
    if (tensor->requires_grad) notes.emplace_back("requires grad");
    if (!tensor->contiguous()) {
      notes.push_back("strides " + absl::StrJoin(tensor->strides, ","));
    }
    if (tensor->location != "cpu") notes.push_back("on " + Printable(tensor->location));
  }
  return absl::StrJoin(notes, "; ");
}

void ShowTable(const Contents& contents, Output& out) {
  uint64_t total = 0;
  std::vector<std::vector<std::string>> rows;
  for (const Row& row : contents.tensors) {
    if (row.same_as.empty()) total += row.bytes.value_or(0);
    rows.push_back({Printable(row.name), Printable(row.dtype),
                    absl::StrCat("[", absl::StrJoin(row.shape, ", "), "]"),
                    row.bytes.has_value() ? HumanBytes(static_cast<int64_t>(*row.bytes)) : "?",
                    Notes(row)});
  }
  std::string text = absl::StrCat(Printable(contents.path), ": ", contents.format);
  if (contents.bytes.has_value()) {
    absl::StrAppend(&text, ", ", HumanBytes(static_cast<int64_t>(*contents.bytes)));
  }
  absl::StrAppend(&text, ", ", contents.tensors.size(), " tensors of ",
                  HumanBytes(static_cast<int64_t>(total)), contents.notes, "\n");
  if (!rows.empty()) {
    absl::StrAppend(&text, "\n", Table({"TENSOR", "DTYPE", "SHAPE", "SIZE", "NOTES"}, rows));
  }
  rows.clear();
  for (const auto& [name, value] : contents.values) {
    rows.push_back({Printable(name), Printable(ToUtf8(value, kMaxShown))});
  }
  if (!rows.empty()) absl::StrAppend(&text, "\n", Table({"OTHER", "VALUE"}, rows));
  if (!contents.unknown.empty()) {
    absl::StrAppend(&text, "\nNot known without unpickling: ",
                    Printable(absl::StrJoin(contents.unknown, ", ")), "\n");
  }
  if (!contents.incomplete.ok()) {
    rows.clear();
    for (const auto& [name, bytes] : contents.records) {
      rows.push_back({Printable(name), HumanBytes(static_cast<int64_t>(bytes))});
    }
    absl::StrAppend(&text, "\n", Table({"RECORD", "SIZE"}, rows));
  }
  out.Write(text);
}

// As few digits as tell it from all others.
std::string Shortest(double number) {
  std::array<char, 32> digits = {};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number).ptr;
  return {digits.data(), end};
}

// None for a container, whose parts are told instead; but what an empty one is.
std::optional<std::string> InWords(const TorchTable& table, size_t at) {
  const TorchValue& value = table.values[at];
  const bool has_parts = at + 1 < table.values.size() && table.values[at + 1].parent == at;
  switch (value.kind) {
    case Kind::kTensor:
      return std::nullopt;
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return value.node->integer != 0 ? "True" : "False";
    case Kind::kInt:
      return absl::StrCat(value.node->integer);
    case Kind::kFloat:
      return Shortest(value.node->number);
    case Kind::kString:
      return absl::StrCat("'", value.node->text, "'");
    case Kind::kOther:
    case Kind::kObject:
      return absl::StrCat("<", value.what, ">");
    case Kind::kDict:
    case Kind::kOrderedDict:
      return has_parts ? std::nullopt : std::optional<std::string>("{}");
    case Kind::kList:
      return has_parts ? std::nullopt : std::optional<std::string>("[]");
    case Kind::kTuple:
      return has_parts ? std::nullopt : std::optional<std::string>("()");
  }
  return std::nullopt;
}

void AddTable(const TorchTable& table, Contents* contents) {
  std::vector<std::string> names(table.tensors.size());
  for (size_t i = 0; i < table.values.size(); ++i) {
    const TorchValue& value = table.values[i];
    if (value.kind != Kind::kTensor) {
      const std::optional<std::string> words = InWords(table, i);
      if (words.has_value()) contents->values.emplace_back(table.PathOf(i), *words);
      continue;
    }
    const TorchTensor& tensor = table.tensors[value.tensor];
    names[value.tensor] = table.PathOf(i);
    Row row = {names[value.tensor], tensor.dtype, tensor.shape, std::nullopt, &tensor, ""};
    if (tensor.item_bytes > 0) row.bytes = tensor.element_count() * tensor.item_bytes;
    if (tensor.same_as != value.tensor) row.same_as = names[tensor.same_as];
    contents->tensors.push_back(std::move(row));
  }
  contents->unknown = table.unknown;
}

// `read` outlives the rows, which refer to it.
void InspectTorchFile(const TorchFile& file, TorchContents* read, Contents* contents) {
  contents->format = "torch";
  for (const TorchRecord& record : file.records()) {
    contents->records.emplace_back(record.name, record.zip.size_bytes);
  }
  contents->notes = absl::StrCat(", ", file.records().size(), " records");
  absl::StatusOr<TorchContents> found = ReadTorchContents(file);
  if (!found.ok()) {
    contents->incomplete = found.status();
    return;
  }
  *read = *std::move(found);
  absl::StrAppend(&contents->notes, ", version ", read->version, ", ", read->byte_order, "-endian");
  AddTable(read->table, contents);
}

absl::Status InspectSafetensorsFile(const CheckpointFile& file, Contents* contents) {
  contents->format = "safetensors";
  CKPTD_ASSIGN_OR_RETURN(const SafetensorsFile read,
                         ReadSafetensors(file.path(), file.size_bytes(), FileReader(&file)));
  for (const safetensors::Entry& entry : read.entries) {
    contents->tensors.push_back(
        {entry.name, entry.dtype, entry.shape, entry.end - entry.begin, nullptr, ""});
  }
  for (const auto& [key, value] : read.metadata) contents->values.emplace_back(key, value);
  return absl::OkStatus();
}

absl::Status InspectFile(const std::string& path, TorchContents* read, Contents* contents) {
  CKPTD_ASSIGN_OR_RETURN(const CheckpointFile file, CheckpointFile::Open(path));
  contents->bytes = file.size_bytes();
  CKPTD_ASSIGN_OR_RETURN(const FileKind kind, KindOf(file));
  if (kind == FileKind::kSafetensors) return InspectSafetensorsFile(file, contents);
  if (kind == FileKind::kOther) {
    return NotReadable(
        path,
        "is neither a file of torch.save nor of safetensors; --backend NAME asks the "
        "daemon about a checkpoint of another backend");
  }
  CKPTD_ASSIGN_OR_RETURN(const TorchFile torch,
                         TorchFile::Open(path, file.size_bytes(), FileReader(&file)));
  InspectTorchFile(torch, read, contents);
  return absl::OkStatus();
}

absl::Status AskDaemon(Daemon& daemon, const Options& options, Contents* contents) {
  contents->format = options.backend;
  v1::InspectCheckpointRequest request;
  request.set_path(PathForDaemon(contents->path));
  request.set_backend(options.backend);
  const absl::Duration timeout = options.timeout.value_or(absl::InfiniteDuration());
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const auto stream = daemon.stub().InspectCheckpoint(&context, request);
  v1::InspectCheckpointResponse page;
  while (stream->Read(&page)) {
    for (const v1::TensorSpec& tensor : page.tensors()) {
      contents->tensors.push_back({tensor.name(),
                                   tensor.dtype(),
                                   {tensor.shape().begin(), tensor.shape().end()},
                                   static_cast<uint64_t>(tensor.size_bytes()),
                                   nullptr,
                                   ""});
    }
  }
  return daemon.Explain(stream->Finish(), timeout);
}

}  // namespace

absl::Status RunInspect(Daemon& daemon, const Options& options, Output& out) {
  Contents contents;
  TorchContents read;
  contents.path = options.files.front();
  CKPTD_RETURN_IF_ERROR(options.backend.empty() ? InspectFile(contents.path, &read, &contents)
                                                : AskDaemon(daemon, options, &contents));
  if (options.json) {
    ShowJson(contents, out);
  } else {
    ShowTable(contents, out);
  }
  return contents.incomplete;
}

}  // namespace ckptd::cli
