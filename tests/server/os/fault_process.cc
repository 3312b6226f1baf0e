// Crashes, for tests of what a crash leaves behind.
//
//   fault_process ORDER FILE HOW
//       installs the handlers of MemoryGuard and CrashMarker in this ORDER, "guard-marker" or
//       "marker-guard", opens FILE as its crash marker, works on 42, and faults as HOW says; prints
//       "mended" and ends with 0 where it lives

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "server/os/crash_marker.h"
#include "server/os/file_system.h"
#include "server/os/memory_guard.h"

// A sanitizer would report the fault and exit in its own way; here the kernel's is looked at.
namespace {
constexpr char kSanitizerOptions[] =
    "handle_segv=0:handle_sigbus=0:handle_sigill=0:handle_sigfpe=0:handle_abort=0";
}  // namespace
extern "C" const char* __asan_default_options() { return kSanitizerOptions; }  // NOLINT
extern "C" const char* __tsan_default_options() { return kSanitizerOptions; }  // NOLINT

namespace ckptd {
namespace {

constexpr size_t kPages = 4;
constexpr size_t kPage = 4096;

// Pages of a file that has been cut to nothing.
uint8_t* LostPages() {
  const int fd = open("/dev/shm", O_TMPFILE | O_RDWR, 0600);
  if (fd < 0 || ftruncate(fd, kPages * kPage) != 0) std::abort();
  void* data = mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED || ftruncate(fd, 0) != 0) std::abort();
  return static_cast<uint8_t*>(data);
}

void Touch(uint8_t* data) { *const_cast<volatile uint8_t*>(data) = 1; }

void Segv() {
  Touch(static_cast<uint8_t*>(mmap(nullptr, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
}

// Frames so large that no sanitizer's own limits are met first.
int Overflow(int depth) {
  volatile char frame[size_t{64} << 10];
  frame[0] = static_cast<char>(depth);
  return depth < 0 ? 0 : Overflow(depth + 1) + frame[0];
}

void Guarded() {
  uint8_t* data = LostPages();
  GuardedRange range;
  range.Cover(data, kPages * kPage);
  Touch(data);
  std::puts(range.torn() ? "mended" : "not torn");
}

void WaitForSignal() {
  std::puts("ready");
  std::fflush(stdout);
  for (;;) pause();
}

void InHelper(const std::function<void()>& fault) {
  std::thread([&, work = CrashMarker::CurrentWork()] {
    const CrashMarker::Scope scope(work);
    fault();
  }).join();
}

int Run(const std::string& order, const std::string& file, const std::string& how) {
  if (order == "guard-marker" && !InstallMemoryGuard().ok()) return 3;
  if (!CrashMarker::InstallHandlers().ok()) return 3;
  if (order == "marker-guard" && !InstallMemoryGuard().ok()) return 3;
  const std::unique_ptr<FileSystem> fs = NewPosixFileSystem();
  auto marker = CrashMarker::Open(fs.get(), file);
  if (!marker.ok()) return 3;
  const std::map<std::string, std::function<void()>> faults = {
      {"segv", Segv},
      {"bus", [] { Touch(LostPages()); }},
      {"ill", [] { __builtin_trap(); }},
      {"fpe", [] { raise(SIGFPE); }},
      {"abort", [] { std::abort(); }},
      {"throw",
       [] { std::thread([] { throw std::runtime_error("nobody catches this"); }).join(); }},
      {"throw-helper", [] { InHelper([] { throw std::runtime_error("nobody catches this"); }); }},
      {"overflow", [] { Overflow(0); }},
      {"helper", [] { InHelper(Segv); }},
      {"nested",
       [&] {
         {
           const CrashMarker::Scope inner(marker->get(), 43);
         }
         Segv();
       }},
      {"nothing",
       [] {
         const CrashMarker::Scope none(nullptr, 0);
         Segv();
       }},
      {"guarded", Guarded},
      {"wait", WaitForSignal}};
  const CrashMarker::Scope scope(marker->get(), 42);
  faults.at(how)();
  return 0;
}

}  // namespace
}  // namespace ckptd

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  return ckptd::Run(argv[1], argv[2], argv[3]);
}
