#ifndef CKPTD_SERVER_PERSIST_PIECE_WRITER_H_
#define CKPTD_SERVER_PERSIST_PIECE_WRITER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/os/file_system.h"
#include "server/persist/persister.h"

namespace ckptd {

// Writes pieces of an image to their places in a file: past the page cache where the file takes
// that, and from registered memory where there is some, with a piece in flight while the next one
// is begun. For one thread; all that it is given must outlive it.
class PieceWriter {
 public:
  // `fd` is open for writing, for direct writing if `direct`. Each piece that is written counts in
  // `control`. `object`: what messages begin with.
  PieceWriter(FileSystem* fs, int fd, bool direct, const PersistSource& source,
              PersistControl* control, const std::string& object)
      : fs_(fs),
        fd_(fd),
        source_(source),
        control_(control),
        object_(object),
        direct_(direct),
        use_registered_(direct && source.registered != nullptr) {}
  // Waits for what is in flight: the kernel reads the image until then.
  ~PieceWriter();
  PieceWriter(const PieceWriter&) = delete;
  PieceWriter& operator=(const PieceWriter&) = delete;

  // Writes `length` bytes at `offset` of the image, both of whole pages but for its end. They are
  // written when this or a later call, or Finish, has returned; so an error may be that of a piece
  // before. After an error nothing more may be written.
  absl::Status Write(uint64_t offset, uint64_t length);
  // Returns when all is written.
  absl::Status Finish();

 private:
  struct Piece {
    uint64_t offset = 0;
    uint64_t length = 0;  // of whole pages
  };

  absl::Status EndOne();
  // After `result` of a write from registered memory; no more is written from there.
  absl::Status WriteOrdinarily(Piece piece, ssize_t result);
  absl::Status WriteNow(Piece piece);
  absl::Status LeaveDirect(int error);
  void Count(const Piece& piece);
  absl::Status Error(int error) const;

  FileSystem* const fs_;
  const int fd_;
  const PersistSource& source_;
  PersistControl* const control_;
  const std::string& object_;
  bool direct_;
  bool use_registered_;
  std::vector<Piece> in_flight_;  // from registered memory
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_PERSIST_PIECE_WRITER_H_
