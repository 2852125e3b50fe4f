"""The system calls that a program inside the boundary is refused, as a seccomp filter."""

import platform
import struct

# Calls refused inside: new namespaces (their owner could mount and map at will), tracing, memory
# that no limit counts (memfd, System V, message queues), and kernel doors a solution never needs.
# Numbers are (x86_64, aarch64).
DENIED_CALLS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "pivot_root": (155, 41),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "mount_setattr": (442, 442), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
}  # fmt: skip
CLONE, CLONE3, SOCKET = (56, 220), (435, 435), (41, 198)
SOCKET_FAMILIES = (1, 2, 10)  # unix, inet, inet6; a vsock would reach the host past the namespace
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, audit name
ALL_NAMESPACES = 0x7E020000  # the CLONE_NEW* flags
EPERM, ENOSYS = 1, 38


def seccomp_filter() -> bytes:
    """Assemble the filter that refuses DENIED_CALLS, as an array of `struct sock_filter`.

    Raises KeyError on a machine whose numbers are not in the table.
    """
    column, audit = MACHINES[platform.machine()]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, deny, missing = 0x7FFF0000, 0x00050000 | EPERM, 0x00050000 | ENOSYS
    ops = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, deny)]
    ops += [(load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (give, 0, 0, deny)]  # no x32 twins
    for numbers in DENIED_CALLS.values():
        ops += [(equal, 0, 1, numbers[column]), (give, 0, 0, deny)]
    # clone3 hides its flags behind a pointer; without it the C library falls back to clone.
    ops += [(equal, 0, 1, CLONE3[column]), (give, 0, 0, missing)]
    ops += [(equal, 0, 4, CLONE[column]), (load, 0, 0, 16), (any_bit, 0, 1, ALL_NAMESPACES)]
    ops += [(give, 0, 0, deny), (give, 0, 0, allow)]
    ops += [(equal, 0, 5, SOCKET[column]), (load, 0, 0, 16)]
    ops += [(equal, 3 - at, 0, family) for at, family in enumerate(SOCKET_FAMILIES)]
    ops += [(give, 0, 0, deny), (give, 0, 0, allow)]
    return b"".join(struct.pack("=HBBI", *op) for op in ops)
