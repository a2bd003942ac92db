"""Loads a program of type argv[2] with the instructions argv[3], in hex, and pins it at argv[1]."""
import ctypes
import os
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}[os.uname().machine]
PROG_LOAD, OBJ_PIN = 5, 6


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(BPF, command, buffer, 128)
    if result < 0:
        sys.exit("bpf(%d): %s" % (command, os.strerror(ctypes.get_errno())))
    return result


def address(buffer):
    return ctypes.addressof(buffer)


pin, kind, code = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
instructions = ctypes.create_string_buffer(code, len(code))
licence = ctypes.create_string_buffer(b"GPL")
fd = bpf(PROG_LOAD, struct.pack("<IIQQ", kind, len(code) // 8, address(instructions), address(licence)))
path = ctypes.create_string_buffer(pin.encode())
bpf(OBJ_PIN, struct.pack("<QI", address(path), fd))
