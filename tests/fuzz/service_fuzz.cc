// The daemon's calls, as their messages come from the wire, on a real queue and pool.
//
// The input is a row of calls: a byte that picks the method, two with the length of the message,
// and the message. So that calls meet each other, a session, a load or a name of one character
// stands for one that exists, or for one of a few names; a path, by its first character, for one of
// a few places.

#include <google/protobuf/stubs/logging.h>

#include <array>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/status/utf8.h"
#include "tests/fuzz/error_table.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/queue_under_test.h"

namespace ckptd {
namespace {

constexpr size_t kMaxCalls = 64;
constexpr size_t kMaxSessions = 4;
constexpr absl::Duration kPatient = absl::Milliseconds(2);

class Calls {
 public:
  // One call; nothing for bytes that gRPC would refuse.
  void Make(uint8_t method, const std::string& message);
  // Closes what is open and checks what is left.
  void Finish();

 private:
  void MakeForTrainers(uint8_t method, const std::string& message);
  void MakeForPeople(uint8_t method, const std::string& message);
  void BeginSave(const std::string& message);
  void BeginLoad(const std::string& message);
  void Remove(const std::string& message);

  // Checks an answer.
  void Take(const absl::Status& status) { Errors().Check(status); }
  template <typename T>
  void Take(const absl::StatusOr<T>& answer) {
    Take(answer.status());
    if constexpr (std::is_base_of_v<google::protobuf::MessageLite, T>) {
      if (answer.ok()) CheckReadable(*answer);
    }
  }

  std::string SessionOf(const std::string& text) const { return OneOf(sessions_, text); }
  std::string LoadOf(const std::string& text) const { return OneOf(loads_, text); }
  static std::string OneOf(const std::vector<std::string>& all, const std::string& text);
  static std::string NameOf(const std::string& text);
  std::string PathOf(const std::string& text) const;

  static const ErrorTable& Errors() {
    static const ErrorTable table(CKPTD_ERRORS_MD);
    return table;
  }

  QueueUnderTest queue_;
  absl::Time deadline_;
  std::vector<std::string> sessions_;
  std::vector<std::string> loads_;
};

std::string Calls::OneOf(const std::vector<std::string>& all, const std::string& text) {
  if (text.size() != 1 || all.empty()) return text;
  return all[static_cast<uint8_t>(text[0]) % all.size()];
}

std::string Calls::NameOf(const std::string& text) {
  if (text.size() != 1) return text;
  const auto choice = static_cast<uint8_t>(text[0]);
  return absl::StrCat("jobs/", choice / 4 % 2, "/saves/", choice % 4);
}

// Never one that the input made: whatever is removed is one of these.
std::string Calls::PathOf(const std::string& text) const {
  constexpr std::array<const char*, 11> kPlaces = {
      "f", "g", "d", "d/f", "d/e/f", "d//f", "d/./e/../f", "no/such/../../f", "f/g", "d/", "."};
  if (text.empty()) return "";
  const size_t choice = static_cast<uint8_t>(text[0]) % (kPlaces.size() + 1);
  return choice == kPlaces.size() ? "relative" : queue_.InDisk(kPlaces[choice]);
}

void Calls::BeginSave(const std::string& message) {
  v1::BeginSaveRequest request;
  if (!request.ParseFromString(message)) return;
  request.set_session_id(SessionOf(request.session_id()));
  request.set_name(NameOf(request.name()));
  request.set_path(PathOf(request.path()));
  const auto answer = queue_->BeginSave(request, deadline_);
  Take(answer);
  if (!answer.ok() || !answer->has_image()) return;
  const v1::Image& image = answer->image();
  FUZZ_CHECK(image.size_bytes() == answer->save().total_bytes(), answer->ShortDebugString());
  FUZZ_CHECK(answer->tensor_offsets_size() == request.tensors_size(), answer->ShortDebugString());
}

void Calls::BeginLoad(const std::string& message) {
  v1::BeginLoadRequest request;
  if (!request.ParseFromString(message)) return;
  request.set_session_id(SessionOf(request.session_id()));
  request.set_path(PathOf(request.path()));
  const auto answer = queue_->BeginLoad(request, deadline_);
  Take(answer);
  if (answer.ok()) loads_.push_back(answer->load_id());
}

void Calls::Remove(const std::string& message) {
  v1::RemoveCheckpointRequest request;
  if (!request.ParseFromString(message)) return;
  if (request.parent().size() == 1) {
    request.set_parent(absl::StrCat("jobs/", static_cast<uint8_t>(request.parent()[0]) % 2));
  }
  request.set_path(PathOf(request.path()));
  Take(queue_->RemoveCheckpoint(request, deadline_));
}

void Calls::MakeForTrainers(uint8_t method, const std::string& message) {
  switch (method) {
    case 0: {
      v1::OpenSessionRequest request;
      if (!request.ParseFromString(message) || sessions_.size() == kMaxSessions) return;
      sessions_.push_back(queue_->OpenSession(ToUtf8(request.client(), 256)));
      return;
    }
    case 1:
      queue_->CloseSession(SessionOf(message));
      return;
    case 2: {
      v1::ReserveRequest request;
      if (!request.ParseFromString(message)) return;
      request.set_session_id(SessionOf(request.session_id()));
      return Take(queue_->Reserve(request, deadline_));
    }
    case 3:
      return BeginSave(message);
    case 4: {
      v1::WriteSaveRequest request;
      if (!request.ParseFromString(message)) return;
      return Take(queue_->WriteSave(NameOf(request.name()), request.offset(), request.data()));
    }
    case 5: {
      v1::CommitSaveRequest request;
      if (request.ParseFromString(message)) Take(queue_->CommitSave(NameOf(request.name())));
      return;
    }
    case 6: {
      v1::AbortSaveRequest request;
      if (request.ParseFromString(message)) Take(queue_->AbortSave(NameOf(request.name())));
      return;
    }
    case 7:
      return BeginLoad(message);
    case 8: {
      v1::ReadLoadRequest request;
      if (!request.ParseFromString(message)) return;
      return Take(queue_->ReadLoad(LoadOf(request.load_id()), request.offset(), 4096));
    }
    case 9: {
      v1::EndLoadRequest request;
      if (request.ParseFromString(message)) queue_->EndLoad(LoadOf(request.load_id()));
      return;
    }
    default:
      return Remove(message);
  }
}

void Calls::MakeForPeople(uint8_t method, const std::string& message) {
  switch (method) {
    case 0: {
      v1::FlushRequest request;
      if (!request.ParseFromString(message)) return;
      request.set_path(PathOf(request.path()));
      return Take(queue_->Flush(request, deadline_));
    }
    case 1: {
      v1::GetSaveRequest request;
      if (request.ParseFromString(message)) Take(queue_->GetSave(NameOf(request.name())));
      return;
    }
    case 2: {
      v1::ListSavesRequest request;
      if (request.ParseFromString(message)) Take(queue_->ListSaves(request));
      return;
    }
    case 3: {
      v1::WatchSavesRequest request;
      if (!request.ParseFromString(message)) return;
      const auto id =
          queue_->Subscribe(NameOf(request.name()),
                            [](const v1::Save& save, bool progress_only) { CheckReadable(save); });
      Take(id);
      if (id.ok()) queue_->Unsubscribe(*id);
      return;
    }
    case 4: {
      v1::CancelSaveRequest request;
      if (request.ParseFromString(message)) Take(queue_->CancelSave(NameOf(request.name())));
      return;
    }
    default:
      queue_.Advance();
  }
}

void Calls::Make(uint8_t method, const std::string& message) {
  constexpr uint8_t kForTrainers = 11;
  constexpr uint8_t kAll = kForTrainers + 6;
  constexpr uint8_t kTooLate = 0x80;
  deadline_ = (method & kTooLate) != 0 ? absl::InfinitePast() : absl::Now() + kPatient;
  const auto choice = static_cast<uint8_t>((method & ~kTooLate) % kAll);
  if (choice < kForTrainers) {
    MakeForTrainers(choice, message);
  } else {
    MakeForPeople(static_cast<uint8_t>(choice - kForTrainers), message);
  }
  queue_.CheckInvariants();
}

void Calls::Finish() {
  for (const std::string& session : sessions_) queue_->CloseSession(session);
  queue_.Finish();
}

}  // namespace
}  // namespace ckptd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  google::protobuf::SetLogHandler(nullptr);
  ckptd::FuzzInput input(data, size);
  ckptd::Calls calls;
  for (size_t i = 0; i < ckptd::kMaxCalls && !input.empty(); ++i) {
    const uint8_t method = input.Byte();
    const size_t length = input.Byte() + input.Byte() * size_t{256};
    calls.Make(method, std::string(input.Take(length)));
  }
  calls.Finish();
  return 0;
}
