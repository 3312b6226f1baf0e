/* The descriptor set of proto/, as protoc wrote it. */
    .section .rodata
    .global ckptd_descriptors_begin
    .global ckptd_descriptors_end
ckptd_descriptors_begin:
    .incbin CKPTD_DESCRIPTORS
ckptd_descriptors_end:
    .section .note.GNU-stack,"",%progbits
