/* The C ABI between ckptd and a backend: what knows the format of a checkpoint file.

   A backend plans the finished file from names and sizes alone, before any data exist. ckptd hands
   out memory of that layout, trainers copy their tensors straight to the planned offsets, the
   backend seals what is not payload (headers, checksums, directory), and ckptd writes the memory
   to storage as it is.

   Rules that hold for every function:
   - Memory belongs to the side that allocated it. Pointers in arguments are valid for the call.
   - Threads: any function may run on any thread, at the same time for different plans.
   - Errors: 0 is success, else a code numbered as google.rpc.Code, after one call of
     host->set_error. No exception and no longjmp may leave a function.
   - Pure: the same spec gives the same plan, today and after a restart. */
#ifndef CKPTD_PLUGINS_ABI_PLUGIN_H_
#define CKPTD_PLUGINS_ABI_PLUGIN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* MAJOR: an incompatible change; the host refuses the plugin.
   MINOR: members appended to a table; `size` says how far a table reaches. */
#define CKPTD_PLUGIN_ABI_MAJOR 1
#define CKPTD_PLUGIN_ABI_MINOR 0

typedef int32_t ckptd_code; /* google.rpc.Code */

#define CKPTD_OK 0
#define CKPTD_CANCELLED 1
#define CKPTD_INVALID_ARGUMENT 3
#define CKPTD_OUT_OF_RANGE 11
#define CKPTD_INTERNAL 13

typedef struct ckptd_error ckptd_error;       /* owned by the host */
typedef struct ckptd_progress ckptd_progress; /* owned by the host */
typedef struct ckptd_plan ckptd_plan;         /* owned by the plugin */

/* What the host gives the plugin. Valid until the process ends. */
typedef struct ckptd_host {
  size_t size;
  /* Copies `message`: starts with the object it is about, says what to do. */
  void (*set_error)(ckptd_error* error, const char* message, size_t length);
  /* Tells that the first `length` bytes of the image are final; they may be on their way to
     storage before the call returns. Returns 0, or another value when the save was cancelled and
     seal should return CKPTD_CANCELLED soon. */
  int32_t (*sealed)(ckptd_progress* progress, uint64_t length);
} ckptd_host;

/* One tensor's bytes. Strings are UTF-8 and end with a zero. */
typedef struct ckptd_tensor {
  const char* name;  /* unique within the save */
  const char* dtype; /* as torch names it; may be "" */
  const int64_t* shape;
  size_t rank;
  uint64_t size_bytes;
} ckptd_tensor;

typedef struct ckptd_option {
  const char* key;
  const char* value;
} ckptd_option;

/* What a checkpoint consists of. */
typedef struct ckptd_spec {
  size_t size;
  uint64_t object_bytes; /* the serialized object that refers to the tensors */
  const ckptd_tensor* tensors;
  size_t tensor_count;
  const ckptd_option* options;
  size_t option_count;
} ckptd_spec;

/* Where everything goes. The array belongs to the plan and lives as long. */
typedef struct ckptd_layout {
  size_t size;
  uint64_t file_bytes;
  uint64_t object_offset;
  const uint64_t* tensor_offsets; /* one for each tensor of the spec, in its order */
} ckptd_layout;

/* What the plugin gives the host. Valid until the process ends. */
typedef struct ckptd_plugin {
  size_t size;
  uint32_t abi_major;
  uint32_t abi_minor;
  /* What a save names as its backend: [a-z0-9-]+ */
  const char* name;

  /* Lays out the file. On success *plan is the caller's until plan_free, and *layout is filled in
     as far as its `size` reaches. Refuses options it does not know. Does not block. */
  ckptd_code (*plan)(const ckptd_host* host, const ckptd_spec* spec, ckptd_plan** plan,
                     ckptd_layout* layout, ckptd_error* error);

  /* Writes every byte of `image` (file_bytes long) that is neither object nor tensor, from front
     to back, and tells host->sealed as it goes. Called once the payload is in place and no longer
     changes. Idempotent. */
  ckptd_code (*seal)(const ckptd_host* host, const ckptd_plan* plan, uint8_t* image,
                     ckptd_progress* progress, ckptd_error* error);

  void (*plan_free)(ckptd_plan* plan);
} ckptd_plugin;

#ifdef __cplusplus
}
#endif

#endif /* CKPTD_PLUGINS_ABI_PLUGIN_H_ */
