/* That plugins/abi/plugin.h is C: this file is compiled as C99 with -pedantic. */
#include "plugins/abi/plugin.h"

#include <string.h>

static ckptd_code plan(const ckptd_host* host, ckptd_call* call, const ckptd_spec* spec,
                       ckptd_plan** made, ckptd_layout* layout) {
  static const char message[] = "plugin in C: plans nothing";
  (void)spec;
  (void)made;
  (void)layout;
  host->set_error(call, message, strlen(message));
  return CKPTD_OUT_OF_RANGE;
}

static ckptd_code seal(const ckptd_host* host, ckptd_call* call, const ckptd_plan* made,
                       uint8_t* image) {
  (void)made;
  (void)image;
  return host->progress(call, 0) == 0 ? CKPTD_OK : CKPTD_CANCELLED;
}

static void plan_free(ckptd_plan* made) { (void)made; }

static const ckptd_backend plugin = {sizeof(ckptd_backend),
                                     CKPTD_PLUGIN_ABI_MAJOR,
                                     CKPTD_PLUGIN_ABI_MINOR,
                                     "in-c",
                                     "1.0",
                                     0,
                                     NULL,
                                     NULL,
                                     NULL,
                                     NULL,
                                     plan,
                                     seal,
                                     plan_free,
                                     NULL,
                                     NULL,
                                     NULL};

const ckptd_backend* ckptd_plugin_in_c(void);
const ckptd_backend* ckptd_plugin_in_c(void) { return &plugin; }
