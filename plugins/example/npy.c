/* A backend: a folder with one .npy file for each tensor, which numpy.load reads, and index.tsv,
   with a line "NAME TAB FILE TAB DTYPE TAB BYTES TAB SHAPE" for each. To be copied and changed.
   cc -shared -fPIC -I DIRECTORY_OF_PLUGIN_H npy.c -o npy.so */
#include <plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TENSORS 20000

/* torch's names and numpy's; what numpy has no name for is refused. */
static const char* const kDtypes[][2] = {
    {"bool", "|b1"},      {"uint8", "|u1"},      {"int8", "|i1"},    {"int16", "<i2"},
    {"int32", "<i4"},     {"int64", "<i8"},      {"uint16", "<u2"},  {"uint32", "<u4"},
    {"uint64", "<u8"},    {"float16", "<f2"},    {"float32", "<f4"}, {"float64", "<f8"},
    {"complex64", "<c8"}, {"complex128", "<c16"}};

static ckptd_code fail(const ckptd_host* host, ckptd_call* call, ckptd_code code, const char* what,
                       const char* why) {
  char text[512];
  const int length = snprintf(text, sizeof(text), "%.300s: %s", what, why);
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
  length += (size_t)snprintf(head + length, 128,
                             "{'descr': '%s', 'fortran_order': False, 'shape': (", dtype);
  for (d = 0; d < t->rank; ++d) {
    length += (size_t)snprintf(head + length, 32, "%lld,", (long long)t->shape[d]);
  }
  length += (size_t)snprintf(head + length, 32, "), }");
  while (length % 64 != 63) head[length++] = ' ';
  head[length++] = '\n';
  memcpy(head, "\x93NUMPY\x01\x00", 8);
  head[8] = (char)((length - 10) & 0xff);
  head[9] = (char)((length - 10) >> 8);
  return length;
}

static ckptd_code save(const ckptd_host* host, ckptd_call* call, const char* path,
                       const ckptd_spec* spec) {
  char folder[4096], file[4200], head[1024];
  char* index = NULL;
  size_t i, d, index_size = 1, used = 0;
  ckptd_code code;
  if (spec->option_count > 0) {
    return fail(host, call, CKPTD_INVALID_ARGUMENT, spec->options[0].key,
                "npy has no place for it");
  }
  for (i = 0; i < spec->tensor_count; ++i) {
    const ckptd_tensor* t = &spec->tensors[i];
    if (numpy_dtype(t->dtype) == NULL || t->rank > 16 || strpbrk(t->name, "\t\n") != NULL ||
        t->name[0] == 0 || strlen(t->name) > 255 || spec->tensor_count > MAX_TENSORS) {
      return fail(host, call, CKPTD_INVALID_ARGUMENT, t->name, "numpy cannot hold such a tensor");
    }
    index_size += strlen(t->name) + strlen(t->dtype) + 64 + 21 * t->rank;
  }
  index = malloc(index_size);
  if (index == NULL) return fail(host, call, CKPTD_RESOURCE_EXHAUSTED, path, "no memory");
  code = host->make_folder(call, path, folder, sizeof(folder));
  for (i = 0; code == CKPTD_OK && i < spec->tensor_count; ++i) {
    const ckptd_tensor* t = &spec->tensors[i];
    ckptd_bytes pieces[2];
    pieces[0].data = head;
    pieces[0].length = npy_head(t, numpy_dtype(t->dtype), head);
    pieces[1].data = t->data;
    pieces[1].length = (size_t)t->size_bytes;
    snprintf(file, sizeof(file), "%s/%zu.npy", folder, i);
    code = host->write_file(call, file, pieces, 2);
    used += (size_t)sprintf(index + used, "%s\t%zu.npy\t%s\t%llu\t(", t->name, i, t->dtype,
                            (unsigned long long)t->size_bytes);
    for (d = 0; d < t->rank; ++d) {
      used += (size_t)sprintf(index + used, "%lld,", (long long)t->shape[d]);
    }
    used += (size_t)sprintf(index + used, ")\n");
  }
  if (code == CKPTD_OK) {
    ckptd_bytes piece;
    piece.data = index;
    piece.length = used;
    snprintf(file, sizeof(file), "%s/index.tsv", folder);
    code = host->write_file(call, file, &piece, 1);
  }
  if (code == CKPTD_OK) code = host->publish_folder(call, folder, path);
  free(index);
  return code;
}

/* Reads the index twice: names and sizes first, for the memory, then the data into it. */
static ckptd_code load(const ckptd_host* host, ckptd_call* call, const char* path, int32_t verify) {
  static char names[MAX_TENSORS][256], dtypes[MAX_TENSORS][16];
  static int64_t shapes[MAX_TENSORS][16];
  static ckptd_tensor tensors[MAX_TENSORS];
  static uint8_t* data[MAX_TENSORS];
  ckptd_spec spec = {sizeof(ckptd_spec), 0, tensors, 0, NULL, 0};
  char file[4200], shape[512];
  unsigned long long bytes;
  size_t i, n = 0;
  FILE* in;
  (void)verify; /* npy has no checksums */
  snprintf(file, sizeof(file), "%s/index.tsv", path);
  in = fopen(file, "r");
  if (in == NULL) return fail(host, call, CKPTD_NOT_FOUND, file, "not there");
  while (n < MAX_TENSORS && fscanf(in, "%255[^\t]\t%*s\t%15s\t%llu\t%511[^\n]\n", names[n],
                                   dtypes[n], &bytes, shape) == 4) {
    const ckptd_tensor t = {names[n], dtypes[n], shapes[n], NULL, 0, bytes, NULL};
    char* at = strchr(shape, '(') + 1;
    tensors[n] = t;
    while (*at != ')' && tensors[n].rank < 16) {
      shapes[n][tensors[n].rank++] = strtoll(at, &at, 10);
      ++at;
    }
    ++n;
  }
  fclose(in);
  spec.tensor_count = n;
  if (host->allocate(call, &spec, data) != CKPTD_OK) return CKPTD_RESOURCE_EXHAUSTED;
  for (i = 0; i < n; ++i) {
    int whole;
    snprintf(file, sizeof(file), "%s/%zu.npy", path, i);
    in = fopen(file, "rb");
    if (in == NULL) return fail(host, call, CKPTD_DATA_LOSS, file, "missing");
    fseek(in, -(long)tensors[i].size_bytes, SEEK_END);
    whole = fread(data[i], 1, tensors[i].size_bytes, in) == tensors[i].size_bytes;
    fclose(in);
    if (!whole) return fail(host, call, CKPTD_DATA_LOSS, file, "was cut");
  }
  return CKPTD_OK;
}

static ckptd_code remove_checkpoint(const ckptd_host* host, ckptd_call* call, const char* path) {
  return host->remove_path(call, path);
}

CKPTD_PLUGIN_EXPORT const ckptd_backend ckptd_plugin = {sizeof(ckptd_backend),
                                                        CKPTD_PLUGIN_ABI_MAJOR,
                                                        CKPTD_PLUGIN_ABI_MINOR,
                                                        "npy",
                                                        "1.0",
                                                        0,
                                                        save,
                                                        load,
                                                        remove_checkpoint,
                                                        NULL,
                                                        NULL,
                                                        NULL,
                                                        NULL,
                                                        NULL,
                                                        NULL,
                                                        NULL};
