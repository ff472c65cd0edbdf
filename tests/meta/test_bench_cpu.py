"""The CPU time of a peer is that of all its processes: living, ended, and those whose parent has ended before them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT

#: burns so many seconds of CPU in a child that stays, in one that ends, and in an orphan that stays and one that ends
_PROGRAM = """
import ctypes, os, sys, time
from bench._peers._servers import tree_cpu_s

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
done, told = os.pipe()

def burn():
    while time.process_time() < 0.1:
        pass
    os.write(told, b"x")

def child(*, stays, orphan):
    pid = os.fork()
    if pid:
        if orphan or not stays:
            os.waitpid(pid, 0)
        return pid
    if orphan and os.fork():
        os._exit(0)
    burn()
    if stays:
        time.sleep(60)
    os._exit(0)

before = tree_cpu_s()
for stays in (True, False):
    for orphan in (True, False):
        child(stays=stays, orphan=orphan)
count = 0
while count < 4:
    count += len(os.read(done, 4))
after = tree_cpu_s()
print(after - before)
os.killpg(0, 9)
"""


@pytest.mark.slow
def test_all_processes_of_a_peer_are_counted() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", _PROGRAM], cwd=PROJECT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    used = float(process.stdout.readline())
    process.communicate(timeout=PATIENCE_S)
    # time.process_time of a forked process begins at zero; a tick is what ended children are counted in
    assert used >= 0.4 - 0.02
    assert used < 0.75  # and none twice
