/* A plugin with a setting, of which the end of the table and the MINOR are told when it is
   compiled. Its checkpoints are empty files. */
#include <string.h>

#include "plugins/abi/plugin.h"

#ifndef TABLE_SIZE
#define TABLE_SIZE sizeof(ckptd_backend)
#endif
#ifndef MINOR
#define MINOR CKPTD_PLUGIN_ABI_MINOR
#endif
#ifndef MOST_DIGITS
#define MOST_DIGITS 1
#endif

static ckptd_code save(const ckptd_host* host, ckptd_call* call, const char* path,
                       const ckptd_spec* spec) {
  (void)spec;
  return host->publish_file(call, path, NULL, 0);
}

static ckptd_code load(const ckptd_host* host, ckptd_call* call, const char* path, int32_t verify) {
  const ckptd_spec none = {sizeof(ckptd_spec), 0, NULL, 0, NULL, 0};
  (void)path;
  (void)verify;
  return host->allocate(call, &none, NULL);
}

static ckptd_code remove_checkpoint(const ckptd_host* host, ckptd_call* call, const char* path) {
  return host->remove_path(call, path);
}

#ifndef WITHOUT_CONFIGURE
static ckptd_code configure(const ckptd_host* host, ckptd_call* call, const ckptd_option* options,
                            size_t count) {
  static const char why[] = "level: must be below 10; give another one";
  if (count == 0 ||
      (strcmp(options[0].key, "level") == 0 && strlen(options[0].value) <= MOST_DIGITS)) {
    return CKPTD_OK;
  }
  host->set_error(call, why, strlen(why));
  return CKPTD_INVALID_ARGUMENT;
}
#endif

CKPTD_PLUGIN_EXPORT const ckptd_backend ckptd_plugin = {
    .size = TABLE_SIZE,
    .abi_major = CKPTD_PLUGIN_ABI_MAJOR,
    .abi_minor = MINOR,
    .name = "configured",
    .version = "2.0",
    .save = save,
    .load = load,
    .remove = remove_checkpoint,
#ifndef WITHOUT_CONFIGURE
    .configure = configure,
#endif
};
