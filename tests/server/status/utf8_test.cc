#include "proto/status/utf8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "proto/status/error_info.h"

namespace ckptd {
namespace {

TEST(Utf8Test, KeepsWhatIsText) {
  for (const std::string text :
       {"", "a", "\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
        "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF", "caf\xC3\xA9"}) {
    EXPECT_EQ(ToUtf8(text), text);
  }
  EXPECT_EQ(ToUtf8(std::string("a\0b", 3)), std::string("a\0b", 3));
}

TEST(Utf8Test, PutsAQuestionMarkForEachByteThatIsNot) {
  EXPECT_EQ(ToUtf8("a\x80z"), "a?z");
  EXPECT_EQ(ToUtf8("\xC3z"), "?z") << "a character without its end";
  EXPECT_EQ(ToUtf8("\xE2\x82"), "??");
  EXPECT_EQ(ToUtf8("\xC0\xAF"), "??") << "longer than it need be";
  EXPECT_EQ(ToUtf8("\xE0\x9F\xBF"), "???");
  EXPECT_EQ(ToUtf8("\xF0\x8F\xBF\xBF"), "????");
  EXPECT_EQ(ToUtf8("\xED\xA0\x80"), "???") << "a surrogate";
  EXPECT_EQ(ToUtf8("\xF4\x90\x80\x80"), "????") << "beyond Unicode";
  EXPECT_EQ(ToUtf8("\xFF"), "?");
}

TEST(Utf8Test, CutsBetweenCharacters) {
  EXPECT_EQ(ToUtf8("abc", 2), "ab");
  EXPECT_EQ(ToUtf8("a\xC3\xA9", 2), "a");
  EXPECT_EQ(ToUtf8("a\xC3\xA9", 3), "a\xC3\xA9");
  EXPECT_EQ(ToUtf8("abc", 0), "");
}

// A file's name is any bytes; an error about it must keep its reason all the same.
TEST(Utf8Test, AnErrorAboutAnyNameGetsThrough) {
  const std::string name = "/disk/caf\xE9";
  const absl::Status status =
      MakeError(absl::StatusCode::kInternal, "STORAGE_ERROR", name + ": broken", {{"path", name}});
  const absl::Status received = FromGrpc(ToGrpc(status));
  EXPECT_EQ(ReasonOf(received), "STORAGE_ERROR");
  EXPECT_EQ(received.message(), "/disk/caf?: broken");
}

}  // namespace
}  // namespace ckptd
