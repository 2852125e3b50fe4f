"""Hostile programs of the start-up probe: each tries one way out of the boundary.

`attack` returns the holes it found. A row is blocked only if the attack ran to its end and found
none, so a program that merely failed to start proves nothing.
"""

from typing import NamedTuple

from clbench.sandbox.verdict import MIB, Limits, Outcome

NETWORK = """
import socket
def attack(port, abstract):
    holes = []
    for family, address in ((2, ("127.0.0.1", port)), (1, chr(0) + abstract)):
        try:
            with socket.socket(family) as client:
                client.settimeout(1)
                client.connect(address)
            holes.append(str(address))
        except OSError:
            pass
    return holes
"""

READ_FILE = """
import os
def attack(canary, home, entries):
    holes = []
    try:
        holes.append(open(canary).read())
    except OSError:
        pass
    return holes + [name for name in entries if os.path.lexists(os.path.join(home, name))]
"""

READ_ENVIRONMENT = """
import glob, os
def attack(name):
    holes = [name] if name in os.environ else []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            holes += [path] if name.encode() in open(path, "rb").read() else []
        except OSError:
            pass
    return holes
"""

WRITE_OUTSIDE = """
import os, sys
def attack(beside, home):
    holes = []
    places = ["/", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/run", "/usr/lib", "/etc", "/sys", home]
    for place in [beside, *places, os.path.dirname(os.__file__), os.path.dirname(sys.executable)]:
        path = os.path.join(place, "planted")
        try:
            open(path, "x").close()
            holes.append(path)
            os.unlink(path)
        except OSError:
            pass
    return holes
"""

FILL_SCRATCH = """
import os
def attack(allowed):
    if os.listdir("."):
        return ["the working folder is not empty"]
    total, block = 0, bytes(1 << 20)
    try:
        for number in range(64):
            with open(str(number), "wb", buffering=0) as file:
                total += file.write(block)
    except OSError:
        pass
    return [] if 0 < total <= allowed else [f"{total} bytes"]
"""

KILL_PARENT = """
import os
def attack(victim):
    holes = []
    for signal in (0, 15, 9):
        try:
            if victim != os.getpid():
                os.kill(victim, signal)
                holes.append(signal)
        except OSError:
            pass
    return holes
"""

PTRACE = """
import ctypes, os, signal, time
def attack(victim):
    holes, trace = [], ctypes.CDLL(None).ptrace
    for attach in (16, 0x4206):
        for pid in (victim, os.getppid()):
            if trace(attach, pid, None, None) == 0:
                holes.append(pid)
                time.sleep(0.1)
                trace(17, pid, None, None)
                os.kill(pid, signal.SIGCONT)
    return holes
"""

GAIN_PRIVILEGES = """
import ctypes, os
def attack():
    libc, holes = ctypes.CDLL(None), []
    for gain, to in ((os.setuid, 0), (os.setgid, 0), (os.setgroups, [0])):
        try:
            gain(to)
            holes.append(gain.__name__)
        except OSError:
            pass
    if 0 in os.getresuid() + os.getresgid():
        holes.append("superuser")
    if libc.prctl(39, 0, 0, 0, 0) != 1:
        holes.append("new privileges")
    for name, flag in (("user", 0x10000000), ("mount", 0x20000), ("net", 0x40000000)):
        if libc.unshare(flag) == 0:
            holes.append(name + " namespace")
    return holes
"""

FORK_LOOP = """
import os, time
def attack(allowed):
    count = 1
    try:
        while count <= 4 * allowed:
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
            count += 1
    except OSError:
        pass
    return [] if count <= allowed else [f"{count} processes"]
"""

OPEN_FILES = """
def attack(allowed):
    files = []
    try:
        while len(files) <= 4 * allowed:
            files.append(open("/dev/null"))
    except OSError:
        pass
    return [] if len(files) <= allowed else [f"{len(files)} files"]
"""

PRINT_FOREVER = """
import os
def attack():
    ends = []
    for end in range(64):
        try:
            os.set_blocking(end, False)
            ends.append(end)
        except OSError:
            pass
    while True:
        for end in ends:
            try:
                os.write(end, bytes(1 << 16))
            except OSError:
                pass
"""

ALLOCATE = """
import ctypes, mmap, os
def attack():
    holes, libc = [], ctypes.CDLL(None)
    for name, take in (
        ("heap", lambda: bytearray(4 << 30)),
        ("map", lambda: mmap.mmap(-1, 4 << 30)),
        ("memfd", lambda: os.memfd_create("x")),
    ):
        try:
            take()
            holes.append(name)
        except (MemoryError, OSError, ValueError):
            pass
    if libc.shmget(0, ctypes.c_size_t(1 << 20), 0o1600) != -1:
        holes.append("shm")
    return holes
"""

DETACHED_CHILD = """
import os, time
def attack():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""

EXIT_ZERO = """
import os
os._exit(0)
"""

PRINT_OK = """
import os, sys
for end in range(8):
    for text in (b"OK", b"pass", b"T", b"R []"):
        try:
            os.write(end, text + bytes([10]))
        except OSError:
            pass
sys.exit(0)
"""


class Stage(NamedTuple):
    """What the probing process has set up for the attacks to reach for."""

    port: int
    abstract: str
    folder: str
    home: str
    entries: list[str]  # in the home folder, off the interpreter's path
    secret: str  # a variable's name
    victim: int


class Attack(NamedTuple):
    """One row of the probe."""

    name: str
    program: str
    args: tuple[object, ...]
    limits: Limits = Limits()
    ends: Outcome = Outcome.PASS  # "pass" says that it found no hole


def make_attacks(stage: Stage) -> list[Attack]:
    """List every row of the table, slow ones first."""
    usual, brief = Limits(), Limits(cpu_seconds=1.0, wall_seconds=0.4)
    canary = f"{stage.folder}/canary"
    return [
        Attack("detached child", DETACHED_CHILD, (), brief, Outcome.TIMEOUT),
        Attack("print forever", PRINT_FOREVER, (), usual, Outcome.EXCEPTION),
        Attack("allocate 4 GiB", ALLOCATE, ()),
        Attack("ptrace", PTRACE, (stage.victim,)),
        Attack("network", NETWORK, (stage.port, stage.abstract)),
        Attack("fork loop", FORK_LOOP, (usual.processes,)),
        Attack("open files", OPEN_FILES, (usual.open_files,)),
        Attack("read canary file", READ_FILE, (canary, stage.home, stage.entries)),
        Attack("read canary variable", READ_ENVIRONMENT, (stage.secret,)),
        Attack("write beside canary", WRITE_OUTSIDE, (stage.folder, stage.home)),
        Attack("fill scratch", FILL_SCRATCH, (16 * MIB,)),
        Attack("kill parent", KILL_PARENT, (stage.victim,)),
        Attack("gain privileges", GAIN_PRIVILEGES, ()),
        Attack("exit with 0", EXIT_ZERO, (), usual, Outcome.EXCEPTION),
        Attack("print OK", PRINT_OK, (), usual, Outcome.EXCEPTION),
    ]
