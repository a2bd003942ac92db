"""Loads an XDP program that passes everything, and pins it at argv[1]."""
import ctypes
import os
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}[os.uname().machine]
PROG_LOAD, OBJ_PIN, XDP = 5, 6, 6


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(BPF, command, buffer, 128)
    if result < 0:
        sys.exit("bpf(%d): %s" % (command, os.strerror(ctypes.get_errno())))
    return result


# r0 = 2 (XDP_PASS); exit
instructions = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0), 16)
licence = ctypes.create_string_buffer(b"GPL")
fd = bpf(PROG_LOAD, struct.pack("<IIQQ", XDP, 2, ctypes.addressof(instructions), ctypes.addressof(licence)))
path = ctypes.create_string_buffer(sys.argv[1].encode())
bpf(OBJ_PIN, struct.pack("<QI", ctypes.addressof(path), fd))
