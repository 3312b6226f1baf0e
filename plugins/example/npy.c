/* A backend: a folder with one .npy file for each tensor, which numpy.load reads, and index.tsv:
   how many there are, and a line "NAME TAB FILE TAB DTYPE TAB BYTES TAB SHAPE" for each. To be
   copied. cc -shared -fPIC -I DIRECTORY_OF_PLUGIN_H npy.c -o npy.so */
#include <plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TENSORS 20000
#define APPEND(to, room, ...) \
  length += (size_t)snprintf((to) + length, (room) - length, __VA_ARGS__)

/* torch's names and numpy's; what numpy has no name for is refused. */
static const char* const kDtypes[][2] = {
    {"bool", "|b1"},      {"uint8", "|u1"},      {"int8", "|i1"},    {"int16", "<i2"},
    {"int32", "<i4"},     {"int64", "<i8"},      {"uint16", "<u2"},  {"uint32", "<u4"},
    {"uint64", "<u8"},    {"float16", "<f2"},    {"float32", "<f4"}, {"float64", "<f8"},
    {"complex64", "<c8"}, {"complex128", "<c16"}};

static ckptd_code fail(const ckptd_host* host, ckptd_call* call, ckptd_code code, const char* what,
                       const char* why) {
  char text[4400];
  const int length = snprintf(text, sizeof(text), "%.4200s: %s", what, why);
  host->set_error(call, text, (size_t)length);
  return code;
}

static const char* numpy_dtype(const char* torch) {
  size_t i;
  for (i = 0; i < sizeof(kDtypes) / sizeof(kDtypes[0]); ++i) {
    if (strcmp(kDtypes[i][0], torch) == 0) return kDtypes[i][1];
  }
  return NULL;
}

/* The format's head: 10 bytes, and a Python dict that is padded to a multiple of 64. */
static size_t npy_head(const ckptd_tensor* t, const char* dtype, char head[1024]) {
  size_t d, length = 10;
  APPEND(head, 1024, "{'descr': '%s', 'fortran_order': False, 'shape': (", dtype);
  for (d = 0; d < t->rank; ++d) APPEND(head, 1024, "%lld,", (long long)t->shape[d]);
  APPEND(head, 1024, "), }");
  while (length % 64 != 63) head[length++] = ' ';
  head[length++] = '\n';
  memcpy(head, "\x93NUMPY\x01\x00", 8);
  head[8] = (char)((length - 10) & 0xff);
  head[9] = (char)((length - 10) >> 8);
  return length;
}

static ckptd_code save(const ckptd_host* host, ckptd_call* call, const char* path,
                       const ckptd_spec* spec) {
  static char text[MAX_TENSORS * 720];
  char folder[4096], file[4200], head[1024];
  size_t i, d, length = (size_t)snprintf(text, 32, "%zu\n", spec->tensor_count);
  ckptd_code code;
  if (spec->option_count > 0) {
    return fail(host, call, CKPTD_INVALID_ARGUMENT, spec->options[0].key, "npy cannot keep it");
  }
  code = host->make_folder(call, path, folder, sizeof(folder));
  for (i = 0; code == CKPTD_OK && i < spec->tensor_count; ++i) {
    const ckptd_tensor* t = &spec->tensors[i];
    const char* dtype = numpy_dtype(t->dtype);
    ckptd_bytes pieces[] = {{head, 0}, {t->data, (size_t)t->size_bytes}};
    if (dtype == NULL || t->rank > 16 || strpbrk(t->name, "\t\n") != NULL || t->name[0] == 0 ||
        strlen(t->name) > 255 || spec->tensor_count > MAX_TENSORS) {
      return fail(host, call, CKPTD_INVALID_ARGUMENT, t->name, "numpy cannot hold such a tensor");
    }
    pieces[0].length = npy_head(t, dtype, head);
    snprintf(file, sizeof(file), "%s/%zu.npy", folder, i);
    code = host->write_file(call, file, pieces, 2);
    APPEND(text, sizeof(text), "%s\t%zu.npy\t%s\t%llu\t(", t->name, i, t->dtype,
           (unsigned long long)t->size_bytes);
    for (d = 0; d < t->rank; ++d) APPEND(text, sizeof(text), "%lld,", (long long)t->shape[d]);
    APPEND(text, sizeof(text), ")\n");
  }
  snprintf(file, sizeof(file), "%s/index.tsv", folder);
  if (code == CKPTD_OK) code = host->write_file(call, file, &(ckptd_bytes){text, length}, 1);
  return code == CKPTD_OK ? host->publish_folder(call, folder, path) : code;
}

/* The index, as it was read last. */
static char names[MAX_TENSORS][256], dtypes[MAX_TENSORS][16];
static int64_t shapes[MAX_TENSORS][16];
static ckptd_tensor tensors[MAX_TENSORS];

static ckptd_code get_index(const ckptd_host* host, ckptd_call* call, const char* path, size_t* n) {
  char file[4200], shape[512];
  unsigned long long bytes;
  size_t count = MAX_TENSORS + 1;
  snprintf(file, sizeof(file), "%s/index.tsv", path);
  FILE* in = fopen(file, "r");
  if (in == NULL) return fail(host, call, CKPTD_NOT_FOUND, file, "not there");
  if (fscanf(in, "%zu%*c", &count) != 1 || count > MAX_TENSORS) count = MAX_TENSORS + 1;
  for (*n = 0; *n < count && count <= MAX_TENSORS; ++*n) {
    ckptd_tensor* t = &tensors[*n];
    char* at = shape + 1;
    const int fields = fscanf(in, "%255[^\t]\t%*s\t%15s\t%llu\t%511[^\n]%*c", names[*n], dtypes[*n],
                              &bytes, shape);
    if (fields != 4) break;
    *t = (ckptd_tensor){names[*n], dtypes[*n], shapes[*n], NULL, 0, bytes, NULL};
    for (; *at >= '0' && *at <= '9' && t->rank < 16; at += *at == ',') {
      shapes[*n][t->rank++] = strtoll(at, &at, 10);
    }
  }
  fclose(in);
  return *n == count ? CKPTD_OK : fail(host, call, CKPTD_DATA_LOSS, file, "is damaged");
}

static ckptd_code inspect(const ckptd_host* host, ckptd_call* call, const char* path) {
  size_t i, n;
  ckptd_code code = get_index(host, call, path, &n);
  for (i = 0; code == CKPTD_OK && i < n; ++i) code = host->found(call, &tensors[i]);
  return code;
}

/* Asks for memory, and reads the data into it. npy has no checksums, so there is no verify. */
static ckptd_code load(const ckptd_host* host, ckptd_call* call, const char* path, int32_t verify) {
  static uint8_t* data[MAX_TENSORS];
  ckptd_spec spec = {sizeof(ckptd_spec), 0, tensors, 0, NULL, 0};
  char file[4200];
  size_t i;
  ckptd_code code = get_index(host, call, path, &spec.tensor_count);
  (void)verify;
  if (code == CKPTD_OK) code = host->allocate(call, &spec, data);
  for (i = 0; code == CKPTD_OK && i < spec.tensor_count; ++i) {
    const size_t size = tensors[i].size_bytes;
    snprintf(file, sizeof(file), "%s/%zu.npy", path, i);
    FILE* in = fopen(file, "rb");
    if (in == NULL || fseek(in, -(long)size, SEEK_END) || fread(data[i], 1, size, in) != size) {
      code = fail(host, call, CKPTD_DATA_LOSS, file, "missing, or cut");
    }
    if (in != NULL) fclose(in);
  }
  return code;
}

static ckptd_code remove_checkpoint(const ckptd_host* host, ckptd_call* call, const char* path) {
  return host->remove_path(call, path);
}

CKPTD_PLUGIN_EXPORT const ckptd_backend ckptd_plugin = {.size = sizeof(ckptd_backend),
                                                        .abi_major = CKPTD_PLUGIN_ABI_MAJOR,
                                                        .abi_minor = CKPTD_PLUGIN_ABI_MINOR,
                                                        .name = "npy",
                                                        .version = "1.0",
                                                        .save = save,
                                                        .load = load,
                                                        .remove = remove_checkpoint,
                                                        .inspect = inspect};
