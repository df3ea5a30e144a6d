"""What only the strong back end promises: nothing of the host, of other episodes or of ourselves is in reach."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from agentenv.errors import SandboxError
from agentenv.tools.sandbox.sandbox import Limits

LIMITS = Limits()


async def value_of(sandbox, code: str) -> object:
    """The JSON value that code prints."""
    cell = await sandbox.python(code)
    assert not cell.error, cell.error
    return json.loads(cell.output)


async def test_the_environment_of_the_host_is_not_inside(strong):
    os.environ["SANDBOX_TEST_KEY"] = "secret-canary"
    try:
        code = (
            "import glob, os\n"
            "print(sorted(os.environ))\n"
            "for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
            "    try: print(path, open(path, 'rb').read())\n"
            "    except OSError as error: print(path, error.strerror)\n"
        )
        completed = await strong.execute(code, limits=LIMITS)
        assert "canary" not in completed.stdout
        assert "/proc/1/environ Permission denied" in completed.stdout
    finally:
        del os.environ["SANDBOX_TEST_KEY"]


async def test_nothing_but_its_own_folders_can_be_written(strong_sandbox):
    code = """
import json, os
written = []
for folder, folders, _ in os.walk('/', followlinks=False):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ('/proc', '/work', '/tmp', '/dev/shm')]
    try:
        open(os.path.join(folder, 'evil'), 'w').close()
        written.append(folder)
    except OSError:
        pass
for path in ('/proc/sys/kernel/core_pattern', '/proc/sys/net/ipv4/ip_forward', '/proc/sysrq-trigger', '/proc/1/mem'):
    try:
        open(path, 'r+b').close()
        written.append(path)
    except OSError:
        pass
print(json.dumps(written))
"""
    assert await value_of(strong_sandbox, code) == []


async def test_code_has_no_rights_and_gets_none(strong_sandbox):
    code = """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
def answer(result):
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(json.dumps({
    'user': os.getuid(), 'CapEff': int(status['CapEff'], 16), 'CapBnd': int(status['CapBnd'], 16),
    'Seccomp': int(status['Seccomp']), 'NoNewPrivs': int(status['NoNewPrivs']),
    'unshare': answer(libc.unshare(0x10000000)), 'mount': answer(libc.mount(b'x', b'/work', b'tmpfs', 0, None)),
    'ptrace': answer(libc.ptrace(0, 0, 0, 0)), 'memfd': answer(libc.memfd_create(b'x', 0)),
    'setns': answer(libc.setns(0, 0)), 'limit of init': answer(libc.prlimit(1, 7, bytes(16), None)),
    'own limit': answer(libc.prlimit(0, 7, None, bytes(16))),
}))
"""
    assert await value_of(strong_sandbox, code) == {
        "user": 1000,
        "CapEff": 0,
        "CapBnd": 0,
        "Seccomp": 2,
        "NoNewPrivs": 1,
        "unshare": "EPERM",
        "mount": "EPERM",
        "ptrace": "EPERM",
        "memfd": "ENOSYS",
        "setns": "EPERM",
        "limit of init": "EPERM",
        "own limit": 0,
    }


async def test_process_1_cannot_be_reached_by_signals(strong_sandbox):
    await strong_sandbox.write_file("kept", b"yes")
    for number in ("9", "15", "2", "19", "17"):
        await strong_sandbox.run(["sh", "-c", f"kill -{number} 1; kill -{number} -1"])
        await strong_sandbox.python(f"import os; os.kill(1, {number})")
    assert await strong_sandbox.read_file("kept") == b"yes"
    assert (await strong_sandbox.python("1 + 1")).value == "2"


async def test_there_is_no_network_but_its_own_loopback(strong_sandbox):
    code = """
import json, socket, threading
server = socket.create_server(('127.0.0.1', 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b'own'), daemon=True).start()
own = socket.create_connection(server.getsockname()).recv(9).decode()
def tried(family, kind, address):
    try:
        with socket.socket(family, kind) as sock:
            sock.settimeout(1)
            sock.connect(address)
    except OSError as error:
        return type(error).__name__
    return 'connected'
addresses = (2, 1, ('1.1.1.1', 80)), (2, 2, ('8.8.8.8', 53)), (40, 1, (2, 1)), (16, 3, (0, 0))
print(json.dumps([own, *(tried(*address) for address in addresses)]))
"""
    assert await value_of(strong_sandbox, code) == ["own", "OSError", "OSError", "OSError", "OSError"]


async def test_two_episodes_share_no_files_no_processes_and_no_network(strong):
    first, second = await strong.open(limits=LIMITS), await strong.open(limits=LIMITS)
    listen = (
        "import socket; open('/tmp/mine', 'w').close(); open('/dev/shm/mine', 'w').close(); open('mine', 'w').close()\n"
        "server = socket.create_server(('127.0.0.1', 7777))\n"
        "unix = socket.socket(socket.AF_UNIX); unix.bind('\\0mine'); unix.listen()"
    )
    assert not (await first.python(listen)).error
    look = """
import json, os, socket
def connects(family, address):
    try:
        with socket.socket(family) as sock:
            sock.connect(address)
    except OSError:
        return False
    return True
print(json.dumps([
    [path for path in ('/tmp/mine', '/dev/shm/mine', '/work/mine') if os.path.exists(path)],
    sorted(int(name) for name in os.listdir('/proc') if name.isdecimal()),
    connects(socket.AF_INET, ('127.0.0.1', 7777)), connects(socket.AF_UNIX, '\\0mine'),
]))
"""
    assert await value_of(second, look) == [[], [1, 2], False, False]
    await first.close()
    await second.close()


async def test_the_disk_is_bounded_in_bytes_and_in_files(strong):
    sandbox = await strong.open(limits=Limits(work_bytes=4 << 20, work_files=100, file_bytes=1 << 20))
    code = """
import errno, json
told = []
def fill(folder, size):
    for i in range(1000):
        try:
            with open(f'{folder}/{i}', 'wb') as file:
                file.write(bytes(size))
        except OSError as error:
            return [i, errno.errorcode[error.errno]]
for size, folder in ((1 << 20, '/work'), (0, '/tmp'), ((1 << 20) + 1, '/dev/shm')):
    told.append(fill(folder, size))
print(json.dumps(told))
"""
    # four files of 1 MiB fill the folder, 100 inodes are its files, and no file is larger than 1 MiB
    assert await value_of(sandbox, code) == [[4, "ENOSPC"], [100, "ENOSPC"], [0, "EFBIG"]]
    await sandbox.close()


async def test_processes_and_threads_are_bounded_and_the_next_program_runs(strong):
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    assert (await strong.execute(bomb, limits=Limits(wall_s=1.0))).ending == "timeout"
    count = """
import threading
stop = threading.Event()
started = 0
try:
    while True:
        threading.Thread(target=stop.wait, daemon=True).start()
        started += 1
except RuntimeError:
    print(started)
"""
    # of 64, one is the main thread
    completed = await strong.execute(count, limits=LIMITS)
    assert completed.stdout == "63\n"
    assert (await strong.execute("print(1)", limits=LIMITS)).stdout == "1\n"


async def test_numpy_and_a_shell_are_there_and_packages_of_the_host_are_not(strong_sandbox):
    cell = await strong_sandbox.python("import numpy; int(numpy.arange(4).sum())")
    assert cell.value == "6"
    assert "ModuleNotFoundError" in (await strong_sandbox.python("import agentenv")).error
    assert "ModuleNotFoundError" in (await strong_sandbox.python("import pytest")).error
    completed = await strong_sandbox.run(["sh", "-c", "python3 -c 'import numpy; print(numpy.ones(2))' | tr 1 2"])
    assert completed.stdout == "[2. 2.]\n"


async def test_interpreters_of_two_episodes_do_not_draw_equal_numbers(strong):
    opened = [await strong.open(limits=LIMITS) for _ in range(2)]
    code = "import random, numpy; (random.random(), float(numpy.random.rand()))"
    values = [(await sandbox.python(code)).value for sandbox in opened]
    assert values[0] != values[1]
    for sandbox in opened:
        await sandbox.close()


async def test_files_in_memory_count_as_memory(strong):
    code = "for i in range(9): open(f'{i}', 'wb').write(bytes(16 << 20))\nimport time; time.sleep(20)"
    completed = await strong.execute(code, limits=Limits(memory_bytes=100 << 20))
    assert completed.ending == "memory"


async def test_a_zygote_that_died_is_started_again(strong):
    assert (await strong.execute("print(1)", limits=LIMITS)).is_success
    sandbox = await strong.open(limits=LIMITS)
    strong._zygote.process.kill()
    await asyncio.to_thread(strong._zygote.process.wait)
    with pytest.raises(SandboxError):
        await sandbox.python("1")
    await sandbox.close()
    assert (await strong.execute("print(1)", limits=LIMITS)).stdout == "1\n"
