import subprocess
import sys

import pytest

from approx_env.engines import memory

# Frees four blocks of 64 MiB, and tells how much of them the process held and has left, in MiB.
PROGRAM = """
import sys
import numpy as np
from approx_env.engines.memory import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20

told = keep_freed_memory() if sys.argv[1] == "keep" else None
before = resident()
blocks = [np.ones(2**23) for _ in range(4)]
held = resident() - before
del blocks
print(told, held, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("word", "told", "low", "high"), [("keep", "True", 250, 300), ("default", "None", -10, 10)])
def test_freed_memory_stays_in_the_process(word, told, low, high):
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, check=True)
    answer, held, left = done.stdout.split()
    assert answer == told
    assert 250 < int(held) < 300
    assert low < int(left) < high


def test_another_libc_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # is not called
    assert memory.keep_freed_memory() is False


def test_giving_back_lowers_what_the_process_holds():
    """In a process of its own: 100 MB kept after they are freed, and then given back."""
    program = """
import numpy as np
from approx_env.engines import memory

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

memory.keep_freed_memory()
before = resident_mb()
blocks = [np.ones(2**20, np.uint8) for _ in range(100)]
del blocks
kept = resident_mb()
memory.give_back()
print(kept - before > 90, resident_mb() - before < 30)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr
