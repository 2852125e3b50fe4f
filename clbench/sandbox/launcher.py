"""Trusted helper outside the boundary: starts, watches and ends one program after another.

A script (`python -I -S launcher.py`) and not a part of the caller's process, because forking a
process with threads and setting its namespaces is not safe. Reads a plan, then jobs, from stdin;
answers a report per job on stdout, all in marshal. Linux only; imports nothing of ours.
"""

import ctypes
import fcntl
import marshal
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any, NamedTuple, NoReturn

NOBODY = 65534
STARTED = b"started\n"
START_SECONDS = 10.0
NULL, JOB, TOKEN, VERDICT, FILTER = 2, 3, 4, 5, 6  # file descriptors of the program's side
PRIVATE = 100  # first descriptor of the launcher's own pipes

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MNT_DETACH = 4096, 16384, 1 << 18, 2, 4, 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, AT_RECURSIVE, AT_FDCWD = 1, 2, 4, 0x8000, -100
SYS_MOUNT_SETATTR = 442
NEW_ROOT = "/proc"  # exists everywhere, and nobody inside should see what it covers

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class Plan(NamedTuple):
    """What is the same for every program of a batch."""

    backend: str  # "bubblewrap", "namespaces" or "none"
    environment: dict[str, str]
    visible: list[str]  # files and folders seen read-only at their own path
    links: list[tuple[str, str]]  # path, target
    hidden: list[str]  # folders within the visible ones that appear empty
    scratch: str  # the working folder inside; for "none" its parent outside
    call_filter: bytes  # what callfilter.py assembles


class Usage(NamedTuple):
    """The limits the launcher itself enforces."""

    wall_seconds: float
    output_bytes: int
    scratch_bytes: int


def checked(result: int, what: str) -> None:
    """Raise OSError naming the call if a libc function returned an error."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; a change of user undoes it."""
    checked(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


# --- the boundary of plain namespaces ---------------------------------------------------------


def drop_privileges(call_filter: bytes) -> None:
    """Give up every capability and the way back to any, then install the call filter."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    checked(libc.capset(header, ctypes.create_string_buffer(24)), "capset")
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    code = ctypes.create_string_buffer(call_filter)
    program = ctypes.create_string_buffer(
        struct.pack("@HP", len(code) // 8, ctypes.addressof(code))
    )
    checked(libc.prctl(PR_SET_SECCOMP, 2, ctypes.addressof(program), 0, 0), "seccomp")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Call mount(2)."""
    kind_bytes = kind.encode() if kind else None
    result = libc.mount(source.encode(), target.encode(), kind_bytes, flags, options.encode())
    checked(result, f"mount {target}")


def restrict(path: str, attributes: int, flags: int) -> None:
    """Set attributes of the mount at `path` (kernel 5.12 and later)."""
    wanted = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0))
    size = ctypes.c_size_t(32)
    result = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, wanted, size)
    checked(result, f"mount_setattr {path}")


def build_root(plan: Plan, scratch_bytes: int) -> None:
    """Make a read-only root of the visible paths and an empty scratch folder, and move into it."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    options = "size=1m,nr_inodes=1k,mode=755"
    mount("tmpfs", NEW_ROOT, "tmpfs", MS_NOSUID | MS_NODEV, options)
    for path in [*plan.visible, "/dev/null"]:
        target = NEW_ROOT + path
        os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(path, target, None, MS_BIND | MS_REC)
        device = 0 if path == "/dev/null" else ATTR_NODEV
        restrict(target, ATTR_RDONLY | ATTR_NOSUID | device, AT_RECURSIVE)
    for path, destination in plan.links:
        os.makedirs(os.path.dirname(NEW_ROOT + path), exist_ok=True)
        os.symlink(destination, NEW_ROOT + path)
    for path in plan.hidden:
        mount(
            "tmpfs", NEW_ROOT + path, "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,nr_inodes=1,mode=755"
        )
        restrict(NEW_ROOT + path, ATTR_RDONLY, 0)
    os.mkdir(NEW_ROOT + plan.scratch)
    options = f"size={scratch_bytes},nr_inodes=4k,mode=700,uid={NOBODY},gid={NOBODY}"
    mount("tmpfs", NEW_ROOT + plan.scratch, "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir(NEW_ROOT)
    checked(libc.pivot_root(b".", b"."), "pivot_root")
    checked(libc.umount2(b".", MNT_DETACH), "umount")
    restrict("/", ATTR_RDONLY, 0)
    os.chdir(plan.scratch)


def identity_maps() -> tuple[str, str]:
    """Say who is who inside. The superuser keeps 0 for the mounts and gives way to nobody after:
    the kernel counts no processes for the real superuser, so the program must not be one.
    """
    if os.geteuid() == 0:
        both = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
        return both, both
    return f"{NOBODY} {os.geteuid()} 1\n", f"{NOBODY} {os.getegid()} 1\n"


def write_maps(pid: int) -> None:
    """Fill in the user and group maps of a child that has just entered its user namespace."""
    users, groups = identity_maps()
    if os.geteuid() != 0:
        write_file(f"/proc/{pid}/setgroups", "deny")
    write_file(f"/proc/{pid}/uid_map", users)
    write_file(f"/proc/{pid}/gid_map", groups)


def write_file(path: str, text: str) -> None:
    """Write with one call, as the kernel wants it."""
    file = os.open(path, os.O_WRONLY)
    os.write(file, text.encode())
    os.close(file)


def enter_namespaces(plan: Plan, usage: Usage, ready: int, go: int) -> None:
    """Become, in a fork of a fork, an unprivileged process in a world of its own.

    Returns only there. Its parent is process 1 of the new world, which ends all others with it.
    """
    superuser = os.geteuid() == 0
    checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWPID), "unshare")
    die_with_parent()
    os.write(ready, b"?")
    if os.read(go, 1) != b"!":
        raise OSError("no user map")
    fork_under_a_relay()
    kinds = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    checked(libc.unshare(kinds), "unshare")
    checked(libc.sethostname(b"sandbox", 7), "sethostname")
    build_root(plan, usage.scratch_bytes)
    if superuser:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    drop_privileges(plan.call_filter)
    die_with_parent()
    fork_under_a_relay()


def fork_under_a_relay() -> None:
    """Fork; go on in the child; in the parent wait for it and end with the same code."""
    child = os.fork()
    if child == 0:
        die_with_parent()
        return
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(exit_code(status))


# --- one program ------------------------------------------------------------------------------


def exit_code(status: int) -> int:
    """Fold a wait status into one number, as a shell does."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def memory_file(content: bytes) -> int:
    """Return a descriptor of an unchangeable file with this content, at its beginning."""
    file = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(file), "wb") as out:
        out.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    fcntl.fcntl(file, 1033, 0xF)  # F_ADD_SEALS: no more writing, growing, shrinking, sealing
    return file


def private_pipe() -> tuple[int, int]:
    """Return a pipe whose ends lie above the descriptors a program is given."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, PRIVATE) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def become(plan: Plan, command: list[str], usage: Usage, ends: dict[str, int]) -> NoReturn:
    """Turn this fork into the program's interpreter, or report on "error" and end."""
    try:
        os.setsid()
        die_with_parent()
        null = os.open("/dev/null", os.O_RDWR)
        targets = {0: null, 1: null, 2: null}
        targets |= {JOB: ends["job"], TOKEN: ends["token"], VERDICT: ends["verdict"]}
        if plan.backend == "bubblewrap":
            targets[FILTER] = ends["filter"]
        high = {at: fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, PRIVATE) for at, end in targets.items()}
        for at, end in high.items():
            os.dup2(end, at)
        if plan.backend == "namespaces":
            enter_namespaces(plan, usage, ends["ready"], ends["go"])
        environment = plan.environment
        if plan.backend == "none":
            own = f"{plan.scratch}/{os.getpid()}"
            os.mkdir(own)
            os.chdir(own)
            environment |= dict.fromkeys(("HOME", "TMPDIR", "PWD"), own)
        os.execve(command[0], command, environment)
    except BaseException as error:
        os.write(ends["error"], f"{type(error).__name__}: {error}".encode()[:500])
    os._exit(125)


def watch(pid: int, channel: int, token: bytes, usage: Usage) -> tuple[bytes, str]:
    """Read the verdict channel until the token, an end or a limit; return what came, and which."""
    data, started = b"", False
    deadline = time.monotonic() + START_SECONDS
    process = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.register(process, select.POLLIN)
    try:
        while (remaining := deadline - time.monotonic()) > 0:
            events = dict(poller.poll(remaining * 1000 + 1))
            if channel in events:
                chunk = os.read(channel, usage.output_bytes + 1 - len(data))
                data += chunk
                if not started and data.startswith(STARTED):
                    started, deadline = True, time.monotonic() + usage.wall_seconds
                if token in data:
                    return data, "token"
                if len(data) > usage.output_bytes:
                    return data[: usage.output_bytes], "output"
                if not chunk:
                    poller.unregister(channel)
            elif process in events:
                return data, "exited"
        return data, "wall" if started else "start"
    finally:
        os.close(process)


def end_all(pid: int) -> int:
    """Kill the program's tree, wait until nothing of it is left, and return its exit code."""
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    for _ in range(20):  # process 1 of the namespace follows by itself
        if not any_child():
            break
        time.sleep(0.001)
    while any_child():  # strays of "none" come to us, the subreaper, when their parents end
        for child in children():
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    return exit_code(status)


def any_child() -> bool:
    """Reap what has ended and tell whether a child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def children() -> list[int]:
    """List this process's children, however they came to be."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        if parent == os.getpid():
            found.append(int(name))
    return found


def run(plan: Plan, command: list[str], usage: Usage, job: bytes) -> tuple[Any, ...]:
    """Run one program; return the fields of `Report`."""
    names = ("token", "verdict", "error", "ready", "go")
    pipes = {name: private_pipe() for name in names}
    inputs = {"job": memory_file(job)}
    if plan.backend == "bubblewrap":
        inputs["filter"] = memory_file(plan.call_filter)
    theirs = {name: pipes[name][name in ("verdict", "error", "ready")] for name in names} | inputs
    ours = {name: pipes[name][name in ("token", "go")] for name in names}
    before = cpu_of_children()
    pid = os.fork()
    if pid == 0:
        become(plan, command, usage, theirs)
    for end in theirs.values():
        os.close(end)
    token = os.urandom(16).hex().encode()  # made after the fork: no copy is in the child
    error = ""
    try:
        if plan.backend == "namespaces" and os.read(ours["ready"], 1):
            write_maps(pid)
            os.write(ours["go"], b"!")
        os.write(ours["token"], token)
    except OSError as problem:
        error = str(problem)
        os.kill(pid, signal.SIGKILL)
    data, stop = watch(pid, ours["verdict"], token, usage)
    code = end_all(pid)
    spent = cpu_of_children() - before
    os.set_blocking(ours["verdict"], False)
    error = os.read(ours["error"], 500).decode() or error
    return data.startswith(STARTED), data, token in data, code, stop, drained(ours), spent, error


def cpu_of_children() -> float:
    """Return the CPU seconds of all children reaped so far, and of those they reaped."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def drained(ours: dict[str, int]) -> bool:
    """Close our ends; tell whether the verdict channel had no writer left."""
    try:
        while os.read(ours["verdict"], 1 << 16):
            pass
        return True
    except BlockingIOError:
        return False
    finally:
        for end in ours.values():
            os.close(end)


def main() -> None:
    """Serve jobs until stdin ends."""
    checked(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    plan = Plan(*marshal.load(sys.stdin.buffer))
    while True:
        try:
            command, usage, job = marshal.load(sys.stdin.buffer)
        except EOFError:
            return
        marshal.dump(run(plan, command, Usage(*usage), job), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
