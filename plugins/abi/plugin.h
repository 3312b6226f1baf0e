/* The C ABI between ckptd and a backend: a CheckpointIO in C, which gives a checkpoint its form and
   its place. docs/plugins.md leads from an empty file to a tested plugin.

   A plugin is a shared object with one symbol, `ckptd_plugin`: the table at the end of this header.
   It includes this file and links against nothing of ckptd; everything that it may call is in the
   table of the host, which comes with each call.

   A save, as a plugin sees it: a trainer has named its tensors, copied them into memory of ckptd's
   and gone on; `save` is called with that memory, some time later, in a process that runs this
   plugin and nothing else. What happens to that process is the error of the one save.

   Rules that hold for every function of both tables:
   - Memory belongs to the side that allocated it. Pointers in arguments, and what they point to,
     are valid until the function returns; nothing in them is null but where it is said.
   - Strings are UTF-8 and end with a zero.
   - Threads: a plugin's functions are called on any thread, one at a time within a process for
     those that take a path, at the same time for different plans otherwise. Other processes may
     work on other paths meanwhile. The functions of the host may be called on any thread of the
     plugin's, but only until the function that was given `call` has returned.
   - Errors: 0 is success, else a code numbered as google.rpc.Code, after one call of
     host->set_error. A function of the host that fails has done that already: pass its code on.
   - No exception and no longjmp may leave a function.
   - Functions that take a path block, and may take as long as they need. */
#ifndef CKPTD_PLUGINS_ABI_PLUGIN_H_
#define CKPTD_PLUGINS_ABI_PLUGIN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* MAJOR: an incompatible change; the host refuses the plugin.
   MINOR: members appended to a struct that begins with `size`, which says how far it reaches. The
   host reads no further than a plugin's tables reach; a plugin that wants a member of the host's
   that came with a later MINOR than the first compares host->size before. */
#define CKPTD_PLUGIN_ABI_MAJOR 1
#define CKPTD_PLUGIN_ABI_MINOR 0

typedef int32_t ckptd_code; /* google.rpc.Code */

#define CKPTD_OK 0
#define CKPTD_CANCELLED 1
#define CKPTD_UNKNOWN 2
#define CKPTD_INVALID_ARGUMENT 3 /* the state, an option or the path can never be saved so */
#define CKPTD_DEADLINE_EXCEEDED 4
#define CKPTD_NOT_FOUND 5 /* load: there is no checkpoint */
#define CKPTD_ALREADY_EXISTS 6
#define CKPTD_PERMISSION_DENIED 7
#define CKPTD_RESOURCE_EXHAUSTED 8 /* no space, no quota, no memory */
#define CKPTD_FAILED_PRECONDITION 9
#define CKPTD_ABORTED 10
#define CKPTD_OUT_OF_RANGE 11
#define CKPTD_UNIMPLEMENTED 12
#define CKPTD_INTERNAL 13
#define CKPTD_UNAVAILABLE 14 /* a store that does not answer now */
#define CKPTD_DATA_LOSS 15   /* load, verify: the checkpoint is damaged */
#define CKPTD_UNAUTHENTICATED 16

typedef struct ckptd_call ckptd_call; /* one call of a plugin's function; owned by the host */
typedef struct ckptd_plan ckptd_plan; /* owned by the plugin */

/* One tensor, row-major and without gaps. This struct does not grow within a MAJOR. */
typedef struct ckptd_tensor {
  const char* name;  /* unique within the checkpoint; "layers.0.weight" */
  const char* dtype; /* as torch names it: "float32", "bfloat16", "bool"; may be "" for storages */
  const int64_t* shape;   /* rank numbers; null where rank is 0 */
  const int64_t* strides; /* rank numbers, in elements; null where rank is 0 */
  size_t rank;            /* 0: a scalar */
  uint64_t size_bytes;
  const uint8_t* data; /* its bytes; null in plan, allocate and found. In save the memory is
                          read-only and at least 8-aligned for all dtypes of up to 8 bytes */
} ckptd_tensor;

typedef struct ckptd_option {
  const char* key;
  const char* value;
} ckptd_option;

typedef struct ckptd_bytes {
  const void* data; /* may be null where length is 0 */
  size_t length;
} ckptd_bytes;

/* What a checkpoint consists of. What a state dict has beside tensors comes as options:
     ckptd.aliases  a JSON object: names of tensors that are another one (tied weights) -> the name
                    of the tensor that is saved
     ckptd.tree     JSON: how names nest, where splitting them at dots does not tell
     ckptd.values   a JSON object: names -> numbers, strings, booleans and nulls that are no tensors
     metadata.KEY   what the user wants to have noted
   A backend that cannot keep one of them, or does not know a key, refuses the save and names it
   (CKPTD_INVALID_ARGUMENT): nothing is ever left out silently. */
typedef struct ckptd_spec {
  size_t size;
  uint64_t object_bytes; /* of the serialized object that refers to the tensors, for backends with
                            CKPTD_TAKES_OBJECT; else 0 */
  const ckptd_tensor* tensors;
  size_t tensor_count;
  const ckptd_option* options; /* sorted by key */
  size_t option_count;
} ckptd_spec;

/* Where everything goes in a file. The array belongs to the plan and lives as long. */
typedef struct ckptd_layout {
  size_t size;
  uint64_t file_bytes;
  uint64_t object_offset;
  const uint64_t* tensor_offsets; /* one for each tensor of the spec, in its order */
  uint64_t late_bytes; /* as many at the front become final last, such as a checksum of the rest */
} ckptd_layout;

/* What the host gives the plugin. Valid until the process ends. */
typedef struct ckptd_host {
  size_t size;
  uint32_t abi_major;
  uint32_t abi_minor;

  /* Writes a line to the daemon's log. `level`: 0 debug, 1 info, 2 warning, 3 error. */
  void (*log)(ckptd_call* call, int32_t level, const char* message, size_t length);

  /* Says why `call` fails; copies `message`, which starts with the object it is about, ends with
     the cause, and says what to do. A later call replaces it. */
  void (*set_error)(ckptd_call* call, const char* message, size_t length);

  /* In save: `bytes` of the checkpoint are written in all; people see it. In seal: the first
     `bytes` bytes of the image are final, but for late_bytes until it is told file_bytes; they may
     be on their way to storage before this returns. Returns what cancelled does. */
  int32_t (*progress)(ckptd_call* call, uint64_t bytes);

  /* Not 0 when the call is not wanted any more: return CKPTD_CANCELLED soon, and leave the old
     checkpoint in its place. */
  int32_t (*cancelled)(ckptd_call* call);

  /* In load, once: gives memory for the tensors and options in `spec`, whose names, dtypes, shapes
     and sizes must be right and whose data are ignored. Sets data[i], for tensor i, to size_bytes
     bytes to be written, valid until load returns; their contents are undefined. */
  ckptd_code (*allocate)(ckptd_call* call, const ckptd_spec* spec, uint8_t** data);

  /* Makes the pieces, one behind another, the durable file `path` at once, instead of whatever
     file is there; tells progress, and heeds cancelled, as it goes. Until it returns 0 the old file
     is there, whatever happens, and nothing beside it but a hidden file that goes with the call.
     `path` is absolute; missing folders are made. Modes follow the trainer's umask. */
  ckptd_code (*publish_file)(ckptd_call* call, const char* path, const ckptd_bytes* pieces,
                             size_t count);

  /* The same for a checkpoint of several files: makes a hidden, empty folder beside `path` and
     writes its path to `folder`, which has `capacity` bytes (4096 are enough). The plugin puts
     files and folders there, by write_file or by itself. It is removed where the call ends before
     publish_folder; where the process dies, by the next call of make_folder beside it. */
  ckptd_code (*make_folder)(ckptd_call* call, const char* path, char* folder, size_t capacity);

  /* Writes a file, which must not exist, in a folder from make_folder, and is durable when that is
     published; progress and cancelled as publish_file. */
  ckptd_code (*write_file)(ckptd_call* call, const char* path, const ckptd_bytes* pieces,
                           size_t count);

  /* Makes what is in `folder`, from make_folder, durable, and then the folder `path` at once,
     instead of whatever is there. FAILED_PRECONDITION where something is there and the file system
     cannot exchange two folders. */
  ckptd_code (*publish_folder)(ckptd_call* call, const char* folder, const char* path);

  /* Removes a file, a symlink (itself) or a folder with all that is in it, durably: first its name,
     so that no half of it is ever seen. What is not there is no error. */
  ckptd_code (*remove_path)(ckptd_call* call, const char* path);

  /* In inspect: tells one tensor of the checkpoint. `strides` are those that it has there. */
  ckptd_code (*found)(ckptd_call* call, const ckptd_tensor* tensor);
} ckptd_host;

/* ckptd_backend.flags */
#define CKPTD_TAKES_OBJECT                                                 \
  1u /* is given a serialized object and storages "0", "1", ... instead of \
        named tensors; only for backends that are built in */

/* What a plugin is. Constant; valid until the process ends.

   Required are name, version, save, load and remove; what follows may be null. Backends that are
   built into ckptd have plan, seal and plan_free instead: the daemon itself writes, reads and
   removes their files. (Of a plugin from a file those three are not called.) */
typedef struct ckptd_backend {
  size_t size; /* sizeof(ckptd_backend) */
  uint32_t abi_major;
  uint32_t abi_minor;
  const char* name;    /* what a save names as its backend: [a-z0-9-]+, at most 63 bytes */
  const char* version; /* its own, for people: "1.2.0" */
  uint64_t flags;

  /* Writes the checkpoint to `path`, which is as the trainer gave it: absolute, or a URL. Returns 0
     only when it survives a power cut, and whole at once: until then, and where it fails, whatever
     was there before is what a reader finds. Idempotent: it may be called again after a crash.
     The umask of the process is the trainer's. */
  ckptd_code (*save)(const ckptd_host* host, ckptd_call* call, const char* path,
                     const ckptd_spec* spec);

  /* Reads the checkpoint at `path` into memory from host->allocate, with the options it was saved
     with. `verify`: not 0 where checksums are to be compared, if there are any. CKPTD_NOT_FOUND
     where there is none, CKPTD_DATA_LOSS where it is damaged. */
  ckptd_code (*load)(const ckptd_host* host, ckptd_call* call, const char* path, int32_t verify);

  /* Removes the checkpoint at `path`, durably. One that is not there is no error. */
  ckptd_code (*remove)(const ckptd_host* host, ckptd_call* call, const char* path);

  /* Optional. Called once, before all others, with what the daemon's file has in
     [backend.NAME]. Refuses a key that it does not know. Without this function there may be none.
   */
  ckptd_code (*configure)(const ckptd_host* host, ckptd_call* call, const ckptd_option* options,
                          size_t count);

  /* Optional; all three or none. Lays out the finished file from names and sizes alone, before any
     data exist: trainers copy to the planned offsets. On success *plan is the caller's until
     plan_free, and *layout is filled in as far as its `size` reaches. Pure: the same spec gives the
     same plan, today and after a restart. Does not block. */
  ckptd_code (*plan)(const ckptd_host* host, ckptd_call* call, const ckptd_spec* spec,
                     ckptd_plan** plan, ckptd_layout* layout);

  /* Writes every byte of `image` (file_bytes long) that is neither object nor tensor, and tells
     host->progress as it goes. Called once the payload is in place and no longer changes.
     Idempotent. */
  ckptd_code (*seal)(const ckptd_host* host, ckptd_call* call, const ckptd_plan* plan,
                     uint8_t* image);

  void (*plan_free)(ckptd_plan* plan);

  /* Optional. Checks the whole checkpoint at `path`: 0 where it is what was saved, CKPTD_DATA_LOSS
     where any byte of it is not, CKPTD_FAILED_PRECONDITION where nothing in it would tell. */
  ckptd_code (*verify)(const ckptd_host* host, ckptd_call* call, const char* path);

  /* Optional. Tells every tensor of the checkpoint at `path` by host->found, without reading their
     data, and running nothing that the checkpoint says. */
  ckptd_code (*inspect)(const ckptd_host* host, ckptd_call* call, const char* path);

  /* Optional, for stores in which becoming durable and becoming visible are two steps. Where it is
     there, save leaves the checkpoint durable and unseen, and then this is called with the same
     path: `keep` not 0: show it, at once; 0: save has failed or was cancelled, let go of what it
     left. */
  ckptd_code (*publish)(const ckptd_host* host, ckptd_call* call, const char* path, int32_t keep);
} ckptd_backend;

/* The one symbol of a plugin:
     CKPTD_PLUGIN_EXPORT const ckptd_backend ckptd_plugin = {sizeof(ckptd_backend), ...}; */
#define CKPTD_PLUGIN_SYMBOL "ckptd_plugin"
#define CKPTD_PLUGIN_EXPORT __attribute__((visibility("default")))
extern CKPTD_PLUGIN_EXPORT const ckptd_backend ckptd_plugin;

#ifdef __cplusplus
}
#endif

#endif /* CKPTD_PLUGINS_ABI_PLUGIN_H_ */
