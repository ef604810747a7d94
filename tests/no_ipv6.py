"""Run a command in which no socket of IPv6 can be made: no_ipv6.py COMMAND WORD …

A filter of system calls, seccomp(2), since the kernel's own switch is the whole machine's.
"""

import ctypes
import os
import struct
import sys

# struct sock_filter: code, jump if true, jump if false, operand. Offset 0 of what the filter
# sees is the call's number, 16 its first argument; x86-64's socket() is 41, AF_INET6 is 10.
FILTER = b"".join(
    struct.pack("HBBI", *line)
    for line in [
        (0x20, 0, 0, 0),
        (0x15, 0, 3, 41),
        (0x20, 0, 0, 16),
        (0x15, 0, 1, 10),
        (0x06, 0, 0, 0x50000 | 97),  # EAFNOSUPPORT, as without IPv6
        (0x06, 0, 0, 0x7FFF0000),  # allowed
    ]
)
libc = ctypes.CDLL(None, use_errno=True)
held = ctypes.create_string_buffer(FILTER)
program = struct.pack("HxxxxxxP", len(FILTER) // 8, ctypes.addressof(held))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):
    sys.exit(f"no filter: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
