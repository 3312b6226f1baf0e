#include "server/persist/piece_writer.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>

#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/os/round_up.h"

namespace ckptd {

PieceWriter::~PieceWriter() {
  for (; !in_flight_.empty(); in_flight_.pop_back()) source_.registered->End();
}

absl::Status PieceWriter::Error(int error) const { return OsError(object_, "write", -error); }

void PieceWriter::Count(const Piece& piece) {
  control_->written += std::min(piece.length, source_.size - piece.offset);
  if (control_->on_progress) control_->on_progress();
}

absl::Status PieceWriter::Write(uint64_t offset, uint64_t length) {
  const Piece piece = {offset, RoundUp(length)};
  if (in_flight_.size() == RegisteredMemory::kInFlight) CKPTD_RETURN_IF_ERROR(EndOne());
  if (!use_registered_ || piece.offset + piece.length > source_.registered->size()) {
    return WriteNow(piece);
  }
  const int error = source_.registered->Begin(fd_, piece.offset, piece.length);
  if (error < 0) return WriteOrdinarily(piece, error);
  in_flight_.push_back(piece);
  return absl::OkStatus();
}

absl::Status PieceWriter::Finish() {
  while (!in_flight_.empty()) CKPTD_RETURN_IF_ERROR(EndOne());
  return absl::OkStatus();
}

absl::Status PieceWriter::EndOne() {
  const RegisteredMemory::Ended ended = source_.registered->End();
  const auto it = std::find_if(in_flight_.begin(), in_flight_.end(),
                               [&](const Piece& piece) { return piece.offset == ended.offset; });
  const Piece piece = *it;
  in_flight_.erase(it);
  if (ended.result == static_cast<ssize_t>(piece.length)) {
    Count(piece);
    return absl::OkStatus();
  }
  return WriteOrdinarily(piece, ended.result);
}

absl::Status PieceWriter::WriteOrdinarily(Piece piece, ssize_t result) {
  if (result < 0 && result != -EIO && result != -EINVAL) return Error(static_cast<int>(result));
  // An ordinary write tells whether that was an error: io_uring says EIO, too, where a file system
  // writes less at a time than it was given.
  use_registered_ = false;
  return WriteNow(piece);
}

absl::Status PieceWriter::WriteNow(Piece piece) {
  for (uint64_t offset = piece.offset, left = piece.length; left > 0;) {
    const ssize_t n = fs_->Write(fd_, source_.data + offset, left, static_cast<off_t>(offset));
    if (n == -EINVAL && direct_) {
      CKPTD_RETURN_IF_ERROR(LeaveDirect(static_cast<int>(n)));
      continue;
    }
    if (n == -EFAULT) return ImageChanged(object_);
    if (n <= 0) return Error(n == 0 ? -EIO : static_cast<int>(n));
    // After a short write the rest is no longer aligned.
    if (static_cast<uint64_t>(n) < left && direct_ && n % kPageBytes != 0) {
      CKPTD_RETURN_IF_ERROR(LeaveDirect(-EINVAL));
    }
    offset += static_cast<uint64_t>(n);
    left -= static_cast<uint64_t>(n);
  }
  Count(piece);
  return absl::OkStatus();
}

// Some file systems take O_DIRECT at open and refuse it at the first write.
absl::Status PieceWriter::LeaveDirect(int error) {
  const int flags = fs_->GetFlags(fd_);
  if (flags < 0) return Error(error);
  if (fs_->SetFlags(fd_, flags & ~O_DIRECT) < 0) return Error(error);
  direct_ = use_registered_ = false;
  spdlog::info("{}: this file system refuses direct writes; writing through the page cache",
               object_);
  return absl::OkStatus();
}

}  // namespace ckptd
