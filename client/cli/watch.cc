#include <pthread.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/text.h"
#include "client/cpp/core/save_state.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd::cli {
namespace {

sigset_t Interrupts() {
  sigset_t signals = {};
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

// Ends a call on SIGINT or SIGTERM, which are blocked, for as long as it lives.
class Interrupt {
 public:
  explicit Interrupt(grpc::ClientContext* context) {
    thread_ = std::thread([this, context] {
      const sigset_t signals = Interrupts();
      int signal = 0;
      sigwait(&signals, &signal);
      if (done_) return;
      caught_ = true;
      context->TryCancel();
    });
  }
  ~Interrupt() {
    done_ = true;
    pthread_kill(thread_.native_handle(), SIGINT);
    thread_.join();
  }

  bool caught() const { return caught_; }

 private:
  std::atomic<bool> done_ = false;
  std::atomic<bool> caught_ = false;
  std::thread thread_;
};

std::string Line(const v1::Save& save) {
  std::string line = absl::StrCat(ShortSaveName(save.name()), "  ", StateName(save.state()));
  if (save.state() == v1::Save::PERSISTING || save.state() == v1::Save::STAGING) {
    absl::StrAppendFormat(&line, " %.0f%%", 100 * Progress(save));
  }
  absl::StrAppend(&line, "  ", HumanBytes(save.total_bytes()), "  ", Printable(save.path()));
  if (save.has_error()) absl::StrAppend(&line, "  ", Printable(save.error().message()));
  return line;
}

// Saves under way as bars at the bottom of a terminal, which are drawn over each time; saves that
// have ended as lines above them, which stay.
class Bars {
 public:
  explicit Bars(Output& out) : out_(out) {}
  ~Bars() {
    if (drawn_ > 0) out_.Write("\n");
  }

  void Show(const v1::Save& save) {
    const auto it = std::find_if(active_.begin(), active_.end(),
                                 [&](const v1::Save& s) { return s.name() == save.name(); });
    std::string text = Erase();
    if (HasEnded(save)) {
      if (it != active_.end()) active_.erase(it);
      absl::StrAppend(&text, Line(save), "\n");
    } else if (it != active_.end()) {
      *it = save;
    } else {
      active_.push_back(save);
    }
    out_.Write(absl::StrCat(text, Draw()));
  }

 private:
  static constexpr size_t kBarWidth = 24;

  std::string Erase() const {
    if (drawn_ == 0) return "";
    const std::string up = drawn_ > 1 ? absl::StrFormat("\x1b[%dA", drawn_ - 1) : "";
    return absl::StrCat("\r", up, "\x1b[J");
  }

  std::string Draw() {
    winsize size = {};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) size = {24, 80, 0, 0};
    drawn_ = std::min<size_t>(active_.size(), std::max<size_t>(size.ws_row, 2) - 1);
    std::string text;
    for (size_t i = 0; i < drawn_; ++i) {
      if (i > 0) text.push_back('\n');
      absl::StrAppend(&text, Bar(active_[i], size.ws_col));
    }
    return text;
  }

  static std::string Bar(const v1::Save& save, size_t columns) {
    const double progress = Progress(save);
    const auto full = static_cast<size_t>(progress * kBarWidth);
    std::string line = absl::StrFormat("[%s%s] %3.0f%%  %-10s  %8s  %s  %s", std::string(full, '#'),
                                       std::string(kBarWidth - full, '.'), 100 * progress,
                                       StateName(save.state()), HumanBytes(save.total_bytes()),
                                       ShortSaveName(save.name()), Printable(save.path()));
    // A line that wraps could not be drawn over. Cut between characters.
    size_t end = 0;
    for (size_t shown = 0; end < line.size() && shown + 1 < columns; ++shown) {
      ++end;
      while (end < line.size() && (static_cast<uint8_t>(line[end]) & 0xC0) == 0x80) ++end;
    }
    return line.substr(0, end);
  }

  Output& out_;
  std::vector<v1::Save> active_;
  size_t drawn_ = 0;
};

void Follow(grpc::ClientReader<v1::Save>& stream, const Options& options, Output& out,
            v1::Save& last) {
  const absl::Time begin = absl::Now();
  const bool bars = isatty(STDOUT_FILENO) != 0;
  Bars terminal(out);
  v1::Save save;
  while (!out.closed() && out.status().ok() && stream.Read(&save)) {
    last = save;
    if (options.json) {
      out.WriteJson(save, /*line=*/true);
      continue;
    }
    // A watch over all saves begins with each that the daemon remembers: news are wanted.
    if (options.save.empty() && HasEnded(save) && ToTime(save.end_time()) < begin) continue;
    if (bars) {
      terminal.Show(save);
    } else {
      out.Write(absl::StrCat(Line(save), "\n"));
    }
  }
}

absl::Status Watch(Daemon& daemon, const Options& options, grpc::ClientContext& context,
                   const std::function<bool()>& interrupted, Output& out) {
  const absl::Duration timeout = options.timeout.value_or(absl::InfiniteDuration());
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  v1::WatchSavesRequest request;
  request.set_name(options.save);
  auto stream = daemon.stub().WatchSaves(&context, request);
  v1::Save last;
  Follow(*stream, options, out, last);
  if (out.closed() || !out.status().ok()) context.TryCancel();
  const grpc::Status status = stream->Finish();
  if (out.closed()) return absl::OkStatus();
  CKPTD_RETURN_IF_ERROR(out.status());
  if (interrupted()) {
    if (options.save.empty()) return absl::OkStatus();
    return absl::CancelledError(absl::StrCat(ShortSaveName(options.save), ": was ",
                                             StateName(last.state()),
                                             " when you stopped watching; it goes on"));
  }
  CKPTD_RETURN_IF_ERROR(daemon.Explain(status, timeout));
  if (options.save.empty()) return absl::OkStatus();
  if (last.state() == v1::Save::SUPERSEDED) {
    return absl::AbortedError(
        absl::StrCat(ShortSaveName(last.name()), ": gave way to a newer save to ", last.path()));
  }
  return Outcome(last);
}

}  // namespace

void BlockInterrupts() {
  const sigset_t signals = Interrupts();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

absl::Status RunWatch(Daemon& daemon, const Options& options, Output& out) {
  grpc::ClientContext context;
  const Interrupt interrupt(&context);
  return Watch(daemon, options, context, [&interrupt] { return interrupt.caught(); }, out);
}

absl::Status FollowSave(Daemon& daemon, const Options& options, Output& out) {
  grpc::ClientContext context;
  return Watch(daemon, options, context, [] { return false; }, out);
}

}  // namespace ckptd::cli
