// What arrives in the messages of WriteSave, whoever put them together.

#include <string>

#include "tests/server/api/api_fixture.h"

namespace ckptd {
namespace {

constexpr char kMethod[] = "/ckptd.v1.CheckpointService/WriteSave";

class WriteStreamTest : public ApiTest {
 protected:
  absl::Status Write(const std::string& bytes) {
    return FromGrpc(CallRaw(NewChannel(), kMethod, bytes));
  }

  // Fields as Protobuf writes them; texts of less than 128 bytes.
  static std::string NameField(const std::string& id) { return Text('\x0A', Name(id)); }
  static std::string OffsetField(char offset) { return {'\x10', offset}; }
  static std::string DataField(const std::string& data) { return Text('\x1A', data); }
  static std::string Text(char tag, const std::string& text) {
    return std::string({tag, static_cast<char>(text.size())}) + text;
  }
};

TEST_F(WriteStreamTest, TakesTheFieldsInAnyOrder) {
  ASSERT_OK(Begin(Request("s", disk_ / "f", 9)));
  EXPECT_OK(Write(NameField("s") + DataField("012")));
  EXPECT_OK(Write(NameField("s") + DataField("345") + OffsetField(3)));
  EXPECT_OK(Write(DataField("none") + DataField("678") + NameField("s") + OffsetField(6)));
  ASSERT_OK(queue_->CommitSave(Name("s")));
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "f"), "012345678");
}

TEST_F(WriteStreamTest, TakesManySlicesForOneMessage) {
  std::string content;
  while (content.size() < size_t{20} << 20) content += absl::StrCat(content.size(), ",");
  ASSERT_OK(Begin(Request("s", disk_ / "f", content.size())));
  v1::WriteSaveRequest request;
  request.set_name(Name("s"));
  request.set_data(content);
  EXPECT_OK(Write(request.SerializeAsString()));
  ASSERT_OK(queue_->CommitSave(Name("s")));
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_TRUE(ReadFile(disk_ / "f") == content);
}

TEST_F(WriteStreamTest, RefusesWhatIsNoMessageAndWritesNothing) {
  ASSERT_OK(Begin(Request("s", disk_ / "f", 9)));
  const std::string name = NameField("s");
  for (const std::string& bytes :
       {name + '\x1A', name + "\x1A\x7Fxx", name + "\x1A\xFF\xFF\xFF\xFF\xFF", name + '\x10',
        name + DataField("012345678") + '\x07', std::string("\xFF\xFF\xFF\xFF\x01", 5)}) {
    EXPECT_THAT(Write(bytes), IsError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST"));
  }
  EXPECT_THAT(Write(DataField("x")),
              IsError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST"));
  EXPECT_EQ(Get("s").staged_bytes(), 0);
}

}  // namespace
}  // namespace ckptd
