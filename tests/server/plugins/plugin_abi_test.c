/* That plugins/abi/plugin.h is C: this file is compiled as C99 with -pedantic. */
#include "plugins/abi/plugin.h"

#include <string.h>

static ckptd_code plan(const ckptd_host* host, const ckptd_spec* spec, ckptd_plan** made,
                       ckptd_layout* layout, ckptd_error* error) {
  static const char message[] = "plugin in C: plans nothing";
  (void)spec;
  (void)made;
  (void)layout;
  host->set_error(error, message, strlen(message));
  return CKPTD_OUT_OF_RANGE;
}

static ckptd_code seal(const ckptd_host* host, const ckptd_plan* made, uint8_t* image,
                       ckptd_progress* progress, ckptd_error* error) {
  (void)made;
  (void)image;
  (void)error;
  return host->sealed(progress, 0) == 0 ? CKPTD_OK : CKPTD_CANCELLED;
}

static void plan_free(ckptd_plan* made) { (void)made; }

static const ckptd_plugin plugin = {sizeof(ckptd_plugin),
                                    CKPTD_PLUGIN_ABI_MAJOR,
                                    CKPTD_PLUGIN_ABI_MINOR,
                                    "in-c",
                                    plan,
                                    seal,
                                    plan_free};

const ckptd_plugin* ckptd_plugin_in_c(void);
const ckptd_plugin* ckptd_plugin_in_c(void) { return &plugin; }
