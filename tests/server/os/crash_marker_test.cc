#include "server/os/crash_marker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/testing/child_process.h"
#include "tests/server/testing/faulty_file_system.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::IsEmpty;

// The children end by signals on purpose; their cores would fill the disk.
class ScopedNoCores {
 public:
  ScopedNoCores() {
    getrlimit(RLIMIT_CORE, &before_);
    const rlimit none = {0, before_.rlim_max};
    setrlimit(RLIMIT_CORE, &none);
  }
  ~ScopedNoCores() { setrlimit(RLIMIT_CORE, &before_); }
  ScopedNoCores(const ScopedNoCores&) = delete;
  ScopedNoCores& operator=(const ScopedNoCores&) = delete;

 private:
  rlimit before_ = {};
};

class CrashMarkerTest : public testing::Test {
 protected:
  std::string File() const { return dir_ / "crashes"; }
  // "SIGSEGV 42", one for each crash in the file.
  std::vector<std::string> Crashes() {
    const auto crashes = CrashMarker::Read(&fs_, File());
    EXPECT_OK(crashes);
    std::vector<std::string> lines;
    if (!crashes.ok()) return lines;
    for (const Crash& crash : *crashes) {
      EXPECT_GT(crash.pid, 1);
      lines.push_back(absl::StrCat(crash.signal, " ", crash.id));
    }
    return lines;
  }
  // Lets a child crash and tells how it ended, as of waitpid.
  int RunFault(const std::string& how, const std::string& order = "guard-marker") const {
    ChildProcess child({CKPTD_FAULT_PROCESS, order, File(), how});
    return child.Wait();
  }

  ScopedNoCores no_cores_;
  TempDir dir_;
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
};

struct Fault {
  const char* how;
  int signal;
  std::vector<std::string> crashes;
};

class FaultTest : public CrashMarkerTest, public testing::WithParamInterface<Fault> {};

TEST_P(FaultTest, IsMarkedAndEndsTheProcessByItsSignal) {
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
  if (GetParam().how == std::string("overflow")) GTEST_SKIP() << "its handler needs the stack";
#endif
#endif
  const int status = RunFault(GetParam().how);
  EXPECT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_EQ(WTERMSIG(status), GetParam().signal);
  EXPECT_EQ(Crashes(), GetParam().crashes);
}

INSTANTIATE_TEST_SUITE_P(
    Crashes, FaultTest,
    testing::Values(Fault{"segv", SIGSEGV, {"SIGSEGV 42"}}, Fault{"bus", SIGBUS, {"SIGBUS 42"}},
                    Fault{"ill", SIGILL, {"SIGILL 42"}}, Fault{"fpe", SIGFPE, {"SIGFPE 42"}},
                    Fault{"abort", SIGABRT, {"SIGABRT 42"}},
                    Fault{"overflow", SIGSEGV, {"SIGSEGV 42"}},
                    Fault{"helper", SIGSEGV, {"SIGSEGV 42"}},
                    Fault{"throw-helper", SIGABRT, {"SIGABRT 42"}},
                    Fault{"nested", SIGSEGV, {"SIGSEGV 42"}},
                    // Threads that work on nothing.
                    Fault{"throw", SIGABRT, {}}, Fault{"nothing", SIGSEGV, {}}),
    [](const testing::TestParamInfo<Fault>& info) {
      std::string name = info.param.how;
      for (char& c : name) c = c == '-' ? '_' : c;
      return name;
    });

TEST_F(CrashMarkerTest, TellsThePidAndKeepsEarlierCrashes) {
  RunFault("segv");
  RunFault("abort");
  ASSERT_OK_AND_ASSIGN(const auto crashes, CrashMarker::Read(&fs_, File()));
  ASSERT_EQ(crashes.size(), 2u);
  EXPECT_EQ(crashes[0].signal, "SIGSEGV");
  EXPECT_EQ(crashes[1].signal, "SIGABRT");
  EXPECT_NE(crashes[0].pid, crashes[1].pid);
  struct stat info = {};
  ASSERT_EQ(lstat(File().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

TEST_F(CrashMarkerTest, InEitherOrderAGuardedFaultIsNoCrashAndAnotherIs) {
  for (const char* order : {"guard-marker", "marker-guard"}) {
    ChildProcess child({CKPTD_FAULT_PROCESS, order, File(), "guarded"});
    EXPECT_EQ(child.ReadLine(), "mended") << order;
    EXPECT_EQ(child.Wait(), 0) << order;
    EXPECT_THAT(Crashes(), IsEmpty()) << order;

    const int status = RunFault("bus", order);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << order << status;
    EXPECT_THAT(Crashes(), testing::ElementsAre("SIGBUS 42")) << order;
    EXPECT_OK(CrashMarker::Remove(&fs_, File()));
  }
}

TEST_F(CrashMarkerTest, WhatAnotherProcessSendsIsNoCrashOfOurs) {
  for (const int signal : {SIGSEGV, SIGABRT, SIGKILL}) {
    ChildProcess child({CKPTD_FAULT_PROCESS, "guard-marker", File(), "wait"});
    ASSERT_EQ(child.ReadLine(), "ready");
    child.Kill(signal);
    const int status = child.Wait();
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal) << signal << ": " << status;
  }
  EXPECT_THAT(Crashes(), IsEmpty());
}

TEST_F(CrashMarkerTest, WhatNobodyCrashedInIsEmptyAndCanBeRemoved) {
  EXPECT_THAT(Crashes(), IsEmpty());
  EXPECT_OK(CrashMarker::Remove(&fs_, File()));
  ASSERT_OK(CrashMarker::Open(&fs_, File()));
  EXPECT_THAT(Crashes(), IsEmpty());
  EXPECT_OK(CrashMarker::Remove(&fs_, File()));
  EXPECT_THAT(dir_.List(), IsEmpty());
}

TEST_F(CrashMarkerTest, LeavesOutWhatIsNoWholeLine) {
  WriteFile(File(),
            "SIGSEGV 1 100\nSIGSEGV 2\n\nSIGSESIGSEGV 3 100\nSIGBUS x 100\nSIGBUS 4 x\n"
            "SIGBUS 18446744073709551615 100\nSIGABRT 5 10");
  EXPECT_THAT(Crashes(), testing::ElementsAre("SIGSEGV 1", "SIGBUS 18446744073709551615"));
}

TEST_F(CrashMarkerTest, ReadsFilesOfAnyLength) {
  std::string text;
  for (int i = 0; i < 1000; ++i) absl::StrAppend(&text, "SIGSEGV ", i, " 100\n");
  WriteFile(File(), text);
  EXPECT_EQ(Crashes().size(), 1000u);
  EXPECT_EQ(Crashes().back(), "SIGSEGV 999");
}

TEST_F(CrashMarkerTest, SaysWhatTheStorageSays) {
  fs_.FailAll(FsOp::kOpen, EACCES);
  EXPECT_THAT(CrashMarker::Open(&fs_, File()),
              IsError(StatusCode::kPermissionDenied, "PERMISSION_DENIED"));
  EXPECT_THAT(CrashMarker::Read(&fs_, File()), Says(File()));
  fs_.Reset();
  WriteFile(File(), "SIGSEGV 1 100\n");
  fs_.FailAll(FsOp::kRead, EIO);
  EXPECT_THAT(CrashMarker::Read(&fs_, File()), IsError(StatusCode::kInternal, "STORAGE_ERROR"));
  fs_.FailAll(FsOp::kUnlink, EROFS);
  EXPECT_THAT(CrashMarker::Remove(&fs_, File()),
              IsError(StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"));
}

}  // namespace
}  // namespace ckptd
