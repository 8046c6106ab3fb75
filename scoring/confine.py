"""A process shut in: no files, no network, no other processes, and bounded memory.

What is done differs by platform. On Linux a filter of system calls (seccomp) lets a process do
little more than compute and talk over what it has open; elsewhere limits of resources keep it from
opening anything. Both are set by the process itself and cannot be taken back.

Source: ``linux/seccomp.h``, ``linux/filter.h``, ``asm/unistd.h`` of the kernel's interface, and the
manual pages seccomp(2), prctl(2) and setrlimit(2).
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

_NO_NEW_PRIVILEGES, _SECCOMP, _PARENT_DEATH = 38, 22, 1
"""Options of ``prctl``."""

_FILTER = 2

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
"""Instructions of the filter's machine: load a word, jump if it is equal, return."""

_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000

_NUMBER, _ARCHITECTURE = 0, 4
"""Where both stand in what a filter is shown."""

_CALLS = {
    "x86_64": (
        0xC000003E,
        {
            **{"read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9},
            **{"mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14},
            **{"rt_sigreturn": 15, "sched_yield": 24, "mremap": 25, "madvise": 28, "getpid": 39},
            **{"nanosleep": 35, "setitimer": 38, "exit": 60, "gettimeofday": 96, "getrusage": 98},
            **{"sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204},
            **{"clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231, "getrandom": 318},
            **{"set_robust_list": 273, "rseq": 334},
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            **{"read": 63, "write": 64, "close": 57, "fstat": 80, "ppoll": 73, "lseek": 62},
            **{"mmap": 222, "mprotect": 226, "munmap": 215, "brk": 214, "rt_sigaction": 134},
            **{"rt_sigprocmask": 135, "rt_sigreturn": 139, "sched_yield": 124, "mremap": 216},
            **{"madvise": 233, "getpid": 172, "nanosleep": 101, "setitimer": 103, "exit": 93},
            **{"gettimeofday": 169, "getrusage": 165, "sigaltstack": 132, "gettid": 178},
            **{"futex": 98, "sched_getaffinity": 123, "clock_gettime": 113, "exit_group": 94},
            **{"clock_nanosleep": 115, "getrandom": 278, "set_robust_list": 99, "rseq": 293},
        },
    ),
}
"""What a process may still ask for, and how the architecture is called, by machine."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def confine(memory: int) -> str:
    """Shut this process in; returns how.

    Everything that it needs has to be loaded and open by now.

    Parameters
    ----------
    memory
        Bytes that it may take besides what it has.
    """
    _limit(resource.RLIMIT_CORE, 0)
    # Files do not grow, whatever else can be done to them.
    _limit(resource.RLIMIT_FSIZE, 0)
    if sys.platform == "linux":
        _limit(resource.RLIMIT_AS, _size() + memory)
        libc = ctypes.CDLL(None, use_errno=True)
        # A parent that is killed closes nothing that a child at work would notice.
        libc.prctl(_PARENT_DEATH, 9, 0, 0, 0)
        if _filter_calls(libc):
            return "seccomp"
    # No more than the three that are open: nothing can be opened, and there are no sockets.
    _limit(resource.RLIMIT_NOFILE, 3)
    return "limits"


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def _size() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - nothing to be loaded
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """Refuse all system calls that are not on the list; False where that cannot be had."""
    if (known := _CALLS.get(platform.machine())) is None:
        return False
    architecture, calls = known
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    for number in sorted(calls.values()):
        code += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, _ALLOW)]
    code.append(_instruction(_RETURN, _ERROR))
    text = b"".join(code)
    memory = ctypes.create_string_buffer(text, len(text))
    program = _Program(len(code), ctypes.cast(memory, ctypes.c_void_p))
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    return not libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
