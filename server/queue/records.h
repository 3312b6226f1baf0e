#ifndef CKPTD_SERVER_QUEUE_RECORDS_H_
#define CKPTD_SERVER_QUEUE_RECORDS_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "ckptd/v1/checkpoint.pb.h"
#include "server/backend/backend.h"
#include "server/os/file_system.h"
#include "server/persist/persister.h"
#include "server/persist/target.h"
#include "server/queue/work_list.h"
#include "server/staging/image.h"
#include "server/staging/pool.h"

// What SaveQueue knows of each thing it looks after. Guarded by the queue's mutex, but for what a
// comment excepts.
namespace ckptd {

struct Session;

// One save, from BeginSave until it falls out of the history.
struct SaveRecord : Work {
  SaveRecord() : Work(Kind::kSave) {}

  // The public face: name, state, sizes, times.
  v1::Save save;
  std::string job;
  // Of the whole request: tells a repeated BeginSave from another one.
  std::string fingerprint;
  std::weak_ptr<Session> session;
  Target target;
  mode_t umask = 0;
  // Position in the list of all saves, by BeginSave, and among the ended; 0: it has not ended.
  uint64_t number = 0;
  uint64_t end = 0;
  uint64_t payload_bytes = 0;
  // Both are there from BeginSave's answer to the end of the save, and longer while
  // `save.image_kept()`. While a worker has the save, or it is `paused`, they belong to that.
  std::unique_ptr<Plan> plan;
  std::unique_ptr<Image> image;
  // As its BeginSave asked.
  v1::BeginSaveRequest::Visibility visible = v1::BeginSaveRequest::WHEN_DURABLE;
  // What the symlink at the target leads to, from before it is put there until it is known to be
  // gone; empty otherwise. Belongs, as the image, to whoever has the save.
  std::string link;
  // The whole image is final: there is nothing left to seal.
  bool sealed = false;
  // Where a host process writes it: the request, as that gets it.
  v1::BeginSaveRequest hosted;
  // Daemons that have crashed over it.
  int crashes = 0;
  // The storage did not answer BeginSave: the folders of the target are still to be made.
  bool unprepared = false;
  // There was no memory for it, and its caller wanted none later.
  bool rejected = false;
  // CancelSave was called, rather than that the daemon ends.
  bool cancel_requested = false;
  // The save that it gave way to.
  std::weak_ptr<SaveRecord> superseded_by;
  // Calls of WriteSave that are copying into the image right now, and of CommitSave that make it
  // visible. While there are any nothing ends the save.
  int writers = 0;
  // Has its own synchronisation.
  PersistControl control;
};

// A file held for reading.
struct LoadRecord : Operation {
  LoadRecord() : Operation(Kind::kLoad) {}

  std::string id;
  std::weak_ptr<Session> session;
  // Immutable once BeginLoad has answered.
  FileDescriptor file;
  // What the client is about to map; null where nothing is lent.
  std::unique_ptr<Image> image;
};

struct RemoveRecord : Work {
  RemoveRecord() : Work(Kind::kRemove) {}

  std::string job;
  std::string path;
  // As its request named it; empty where the daemon removes what is at the path.
  std::string backend;
  Target target;
  // The daemon ends.
  std::atomic<bool> cancelled{false};
  // The newest save that the job had accepted when the removal was: it must have become durable.
  std::shared_ptr<SaveRecord> newest_save;
  bool ended = false;
};

// A client process.
struct Session {
  std::string id;
  std::string client;
  // Set when the session ends: calls that wait on its behalf give up.
  CancelToken ended{false};
  std::set<std::shared_ptr<SaveRecord>> staging;
  std::map<std::string, std::shared_ptr<LoadRecord>> loads;
  // The host processes that it has registered.
  std::set<std::string> hosts;
  // Saves that ended and were not told yet, oldest first.
  std::vector<v1::Save> ended_saves;
};

// What belongs together for Flush and for the order of removals.
struct Job {
  // Saves that are accepted and have not ended.
  std::set<std::shared_ptr<SaveRecord>> active;
  std::set<std::shared_ptr<RemoveRecord>> removes;
  std::weak_ptr<SaveRecord> newest_save;
  // By seq; until somebody was told.
  std::vector<std::pair<uint64_t, v1::FailedRemoval>> failed_removals;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_QUEUE_RECORDS_H_
