"""Messages of the wire API, generated from proto/ckptd/v1/checkpoint.proto by the C++ build."""
