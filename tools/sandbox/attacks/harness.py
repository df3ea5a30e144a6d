"""Attacks on the program that runs their code."""

from __future__ import annotations

from agentenv.tools.sandbox.attacks.attack import Kind, cells, prints, program

_KIND: Kind = "harness"

ATTACKS = (
    cells(
        "patches built-in functions",
        _KIND,
        [
            """
import builtins
for name in ('exec', 'compile', 'eval', 'print', 'repr', 'len', 'str', 'open', 'isinstance', 'type', 'getattr', 'bytes',
             'dict', '__import__'):
    setattr(builtins, name, lambda *a, **k: 'FORGED')
"""
        ],
        finishes=False,
    ),
    cells(
        "patches the modules of its keeper",
        _KIND,
        [
            """
import ast, io, json, linecache, os, select, signal, socket, struct, sys, time, traceback
def forged(*a, **k): raise ValueError('FORGED')
for module in (ast, io, json, linecache, select, socket, struct, traceback, signal, time):
    for name in dir(module):
        if not name.startswith('__') and callable(getattr(module, name)):
            try:
                setattr(module, name, forged)
            except (TypeError, AttributeError):
                pass
os.write = os.read = os.dup2 = os.fork = forged
"""
        ],
        finishes=False,
    ),
    cells("empties the table of modules", _KIND, ["import sys\nsys.modules.clear()"], finishes=False),
    cells(
        "takes the standard streams away",
        _KIND,
        ["import sys\nsys.stdout = sys.stderr = sys.stdin = sys.__stdout__ = None"],
        finishes=False,
    ),
    cells(
        "sets hooks for errors and values",
        _KIND,
        ["import sys\nsys.displayhook = sys.excepthook = sys.unraisablehook = lambda *a: sys.exit(1)", "1 / 0"],
        finishes=False,
    ),
    cells(
        "sets a trace on its keeper",
        _KIND,
        [
            """
import sys, threading
def spy(frame, event, arg):
    frame.f_locals.clear()
    raise SystemExit
sys.settrace(spy); threading.settrace(spy); sys.setprofile(lambda *a: 1 / 0)
"""
        ],
        finishes=False,
    ),
    cells(
        "walks the frames up to its keeper",
        _KIND,
        [
            """
import sys
frame = sys._getframe()
while frame:
    for name, value in list(frame.f_globals.items()):
        if not name.startswith('__') and callable(value):
            frame.f_globals[name] = lambda *a, **k: 'FORGED'
    frame = frame.f_back
"""
        ],
        finishes=False,
    ),
    cells(
        "reaches its keeper through the collector",
        _KIND,
        [
            """
import gc
for found in gc.get_objects():
    if type(found).__name__ in ('socket', 'FileIO', 'BufferedWriter', 'BufferedReader'):
        try:
            found.close()
        except Exception:
            pass
"""
        ],
        finishes=False,
    ),
    cells(
        "raises in its repr",
        _KIND,
        [
            """
class Evil:
    def __repr__(self): raise SystemExit('FORGED')
Evil()
"""
        ],
        finishes=False,
    ),
    cells(
        "answers with no text from its repr",
        _KIND,
        [
            """
class Evil:
    def __repr__(self): return 42
Evil()
"""
        ],
        finishes=False,
    ),
    cells(
        "hides text of another class in its repr",
        _KIND,
        [
            """
class Text(str):
    def encode(self, *a): raise SystemExit
    def __len__(self): return -1
class Evil:
    def __repr__(self): return Text('x')
Evil()
"""
        ],
        finishes=False,
    ),
    cells(
        "raises an exception that cannot be told",
        _KIND,
        [
            """
class Evil(BaseException):
    def __str__(self): raise SystemExit
    def __repr__(self): raise SystemExit
    @property
    def __traceback__(self): raise SystemExit
raise Evil
"""
        ],
        finishes=False,
    ),
    cells(
        "raises a chain of exceptions without end",
        _KIND,
        [
            """
a = ValueError('a'); b = ValueError('b')
a.__cause__ = b; b.__cause__ = a
raise a
"""
        ],
        finishes=False,
    ),
    cells(
        "acts when it is collected",
        _KIND,
        [
            """
import os
class Evil:
    def __del__(self): os._exit(7)
kept = Evil()
""",
            "del kept",
        ],
        finishes=False,
    ),
    cells("replaces its own namespace", _KIND, ["globals().clear()"], finishes=False),
    cells(
        "names things like its keeper's",
        _KIND,
        [
            """
__builtins__ = {}
__name__ = 'forged'
_ = None
"""
        ],
        finishes=False,
    ),
    cells(
        "rearms an alarm",
        _KIND,
        [
            """
import signal
signal.signal(signal.SIGALRM, lambda *a: (_ for _ in ()).throw(SystemExit))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
""",
            "import time\ntime.sleep(0.05)",
        ],
        finishes=False,
    ),
    cells(
        "poisons names for its keeper",
        _KIND,
        [
            """
import sys
sys.path.insert(0, '.')
for name in ('json', 'struct', 'traceback', 'ast', 'io', 'contextlib', 'tokenize', 'linecache'):
    open(name + '.py', 'w').write('raise SystemExit("FORGED")')
    sys.modules.pop(name, None)
"""
        ],
        finishes=False,
    ),
    cells(
        "keeps working variables through an error",
        _KIND,
        ["kept = 41", "1 / 0", "print('kept is', kept + 1)"],
        prints("kept is 42"),
    ),
    program(
        "looks for the program that runs it",
        _KIND,
        """
import sys
for name in ('agentenv', 'agentenv.tools', 'agentenv.tools.sandbox'):
    if name in sys.modules:
        print('GOT', name)
""",
    ),
)
