"""The system-call filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import struct

import pytest

from agentenv.tools.sandbox.inside.seccomp import build_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, EAFNOSUPPORT = 0x50000 | 1, 0x50000 | 38, 0x50000 | 97
X86, ARM = 0xC000003E, 0xC00000B7


def decide(program: bytes, call: int, *arguments: int, architecture: int = X86) -> int:
    """What the filter says to a call; reads the program as the kernel does."""
    data = struct.pack("=IIQ6Q", call, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator, at = 0, 0
    while True:
        code, on_true, on_false, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += on_true if holds else on_false


@pytest.mark.parametrize(
    ("what", "verdict", "x86", "arm"),
    [
        ("read", ALLOW, (0,), (63,)),
        ("execve", ALLOW, (59,), (221,)),
        ("ptrace", EPERM, (101,), (117,)),
        ("mount", EPERM, (165,), (40,)),
        ("unshare", EPERM, (272,), (97,)),
        ("bpf", EPERM, (321,), (280,)),
        ("keyctl", EPERM, (250,), (219,)),
        ("io_uring_setup", EPERM, (425,), (425,)),
        ("shmget", EPERM, (29,), (194,)),
        ("clone3", ENOSYS, (435,), (435,)),
        ("memfd_create", ENOSYS, (319,), (279,)),
        ("a call of tomorrow", ENOSYS, (500,), (500,)),
        ("clone of a thread", ALLOW, (56, 0x3D0F00), (220, 0x3D0F00)),
        ("clone into a user namespace", EPERM, (56, 0x10000011), (220, 0x10000011)),
        ("clone into a mount namespace", EPERM, (56, 0x00020011), (220, 0x00020011)),
        ("unix socket", ALLOW, (41, 1, 1), (198, 1, 1)),
        ("internet socket", ALLOW, (41, 2, 1), (198, 2, 1)),
        ("netlink socket", EAFNOSUPPORT, (41, 16, 3), (198, 16, 3)),
        ("vsock", EAFNOSUPPORT, (41, 40, 1), (198, 40, 1)),
        ("packet socket", EAFNOSUPPORT, (41, 17, 3), (198, 17, 3)),
        ("window size of a terminal", ALLOW, (16, 0, 0x5413), (29, 0, 0x5413)),
        ("input pushed into a terminal", EPERM, (16, 0, 0x5412), (29, 0, 0x5412)),
        ("the same with upper bits set", EPERM, (16, 0, 0x1_0000_5412), (29, 0, 0x1_0000_5412)),
        ("own affinity", ALLOW, (203, 0, 8), (122, 0, 8)),
        ("affinity of init", EPERM, (203, 1, 8), (122, 1, 8)),
        ("own niceness", ALLOW, (141, 0, 0, 19), (140, 0, 0, 19)),
        ("niceness of init", EPERM, (141, 0, 1, 19), (140, 0, 1, 19)),
        ("niceness of all of a user", EPERM, (141, 2, 0, 19), (140, 2, 0, 19)),
        ("disk priority of all of a user", EPERM, (251, 3, 0, 0), (30, 3, 0, 0)),
        ("own limits", ALLOW, (302, 0, 7, 0x7F00_0000), (261, 0, 7, 0x7F00_0000)),
        ("limits of others, read", ALLOW, (302, 1, 7, 0), (261, 1, 7, 0)),
        ("limits of others, set", EPERM, (302, 1, 7, 0x7F00_0000), (261, 1, 7, 0x7F00_0000)),
        ("the same from high memory", EPERM, (302, 1, 7, 0x7F_0000_0000), (261, 1, 7, 0x7F_0000_0000)),
    ],
)
def test_the_filter_decides_alike_on_both_processors(what, verdict, x86, arm):
    assert decide(build_filter("x86_64"), *x86) == verdict, what
    assert decide(build_filter("aarch64"), *arm, architecture=ARM) == verdict, what


def test_other_architectures_and_the_x32_numbers_are_no_way_around():
    program = build_filter("x86_64")
    assert decide(program, 0, architecture=0x40000003) == KILL  # i386
    assert decide(program, 0, architecture=ARM) == KILL
    assert decide(program, 0x40000000 | 101) == ENOSYS


def test_without_a_network_namespace_no_socket_can_be_made():
    program = build_filter("x86_64", has_network=False)
    assert [decide(program, 41, family, 1) for family in (1, 2, 10)] == [EAFNOSUPPORT] * 3
    assert decide(program, 53, 1, 1) == ALLOW  # a pair of sockets reaches nobody else


def test_a_processor_without_a_list_is_refused():
    with pytest.raises(OSError, match="riscv64"):
        build_filter("riscv64")
