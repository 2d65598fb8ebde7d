"""What a process that runs somebody's reward function is kept from, as far as the system can.

    memory      address space (RLIMIT_AS)                                  Linux, macOS in part
    writes      no file is opened for writing, made, renamed or removed
                but in a scratch folder, where none grows over 1 MiB       Linux 5.13 on (Landlock)
    reads       only Python's own files and the function's folder          Linux 5.13 on (Landlock)
    processes   none can be started, no other one signalled or traced      Linux (seccomp)
    network     no socket can be made                                      Linux (seccomp)

``confine`` applies what there is and says what is in force. Nothing of it needs rights, and nothing
can be taken back by the process. Files do not grow over 1 MiB anywhere but on Windows, which has
nothing else either. Time is the parent's business.

References: landlock(7), seccomp(2); the numbers are those of the kernel's headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

GUARDS = ("memory", "writes", "reads", "processes", "network")
"""Everything that can be in force, by the names of the table above."""

_LARGEST = 1 << 20  # bytes of a file that is written
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2  # of prctl

_SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"),
    *("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero", "/dev/null"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"),
)


def confine(
    readable: Sequence[Path], listable: Sequence[Path], scratch: Path, memory: int
) -> list[str]:
    """Confine this process for the rest of its life; returns the guards that are in force.

    ``readable`` folders can be read beside Python's own, ``listable`` ones listed, ``scratch`` can
    be written to; ``memory`` is in bytes. Call it before there are other threads: they would not be
    confined.
    """
    found = _limits(memory)
    if not sys.platform.startswith("linux"):
        return found
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return found
    if _landlock(libc, [*map(Path, _SYSTEM), *_python(), *readable], listable, scratch):
        found += ["writes", "reads"]
    if _seccomp(libc):
        found += ["processes", "network"]
    return found


def limit_cpu(seconds: int) -> None:
    """Have this process ended by SIGXCPU when it has used ``seconds`` more of processor time."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _limits(memory: int) -> list[str]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        # Writing past the limit is then an error instead of the end of the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST, _LARGEST))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ValueError, OSError):  # macOS takes no lower limit than what is mapped
        return []
    return ["memory"]


def _python() -> list[Path]:
    """What Python reads modules and libraries from."""
    places = [*sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__)]
    places += os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return [Path(place) for place in places if place]


# ---------------------------------------------------------------------- files: Landlock

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_EXECUTE, _MAKE_DEVICES = 1 << 0, 1 << 6 | 1 << 11
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many rights over files each version knows; then 16


def _landlock(
    libc: ctypes.CDLL, readable: Iterable[Path], listable: Iterable[Path], scratch: Path
) -> bool:
    abi = libc.syscall(_CREATE, None, 0, 1)
    if abi < 1:
        return False
    rights = (1 << _RIGHTS.get(abi, 16)) - 1
    attributes = struct.pack("=Q", rights)
    ruleset = libc.syscall(_CREATE, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for path in dict.fromkeys(readable):
            _allow(libc, ruleset, path, _READ_FILE | (_READ_DIR if path.is_dir() else 0))
        for path in listable:
            _allow(libc, ruleset, path, _READ_DIR)
        _allow(libc, ruleset, scratch, rights & ~(_EXECUTE | _MAKE_DEVICES))
        _allow(libc, ruleset, Path("/dev/null"), _READ_FILE | _WRITE_FILE)
        return libc.syscall(_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    with contextlib.suppress(OSError):  # what is not there needs no right
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("=Qi", rights, place)
            libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        finally:
            os.close(place)


# ---------------------------------------------------------------------- system calls: seccomp

# Per machine: its number in the kernel's audit, and those of the calls by name. 0: has none.
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS: dict[str, tuple[int, int]] = {
    "fork": (57, 0),
    "vfork": (58, 0),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "prlimit64": (302, 261),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "chroot": (161, 51),
    "chmod": (90, 0),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, 0),
    "lchown": (94, 0),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, 0),
    "utimes": (235, 0),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
}
_SPECIAL = ("clone", "clone3", "kill", "tgkill", "prlimit64")
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000  # x86-64's second set of numbers

_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCH, _FIRST = 0, 4, 16  # offsets in what a filter sees: struct seccomp_data

Instruction = tuple[int, int, int, int]


def _seccomp(libc: ctypes.CDLL) -> bool:
    machine = platform.machine()
    if machine not in _MACHINES or sys.byteorder != "little" or struct.calcsize("P") != 8:
        return False
    program = filter_program(machine, os.getpid())
    packed = b"".join(struct.pack("=HBBI", *one) for one in program)
    content = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("@HP", len(program), ctypes.addressof(content))
    return libc.prctl(_SECCOMP, _FILTER, ctypes.create_string_buffer(header), 0, 0) == 0


def filter_program(machine: str, pid: int) -> list[Instruction]:
    """The filter as (code, jump if true, jump if false, value).

    Threads can be started and processes cannot: glibc falls back from clone3, whose flags lie in
    memory that a filter cannot read, to clone, whose flags it can. A process can signal itself,
    and lower its own limits.
    """
    column = list(_MACHINES).index(machine)
    numbers = {name: both[column] for name, both in _CALLS.items() if both[column]}
    refused = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _MACHINES[machine]),
        refused,
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32), refused]
    for name, number in numbers.items():
        if name not in _SPECIAL:
            program += [(_EQUAL, 0, 1, number), refused]
    program += [(_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for name, test in (
        ("clone", (_ANY_OF, 0, 1, _CLONE_THREAD)),
        ("kill", (_EQUAL, 0, 1, pid)),
        ("tgkill", (_EQUAL, 0, 1, pid)),
        ("prlimit64", (_EQUAL, 0, 1, 0)),  # of itself
    ):
        program += [
            (_EQUAL, 0, 4, numbers[name]),
            (_LOAD, 0, 0, _FIRST),
            test,
            (_RETURN, 0, 0, _ALLOW),
            refused,
        ]
    return [*program, (_RETURN, 0, 0, _ALLOW)]
