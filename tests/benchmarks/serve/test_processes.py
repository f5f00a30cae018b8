"""What a tree of processes uses, in a process of its own: it adopts orphans, which tests must not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent
BURN = "import time\nwhile time.process_time() < 0.5: pass\n"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_children_that_ended_and_orphans_in_sessions_of_their_own_count_and_our_own_other_children_do_not() -> None:
    server = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}])
detach = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
subprocess.run([sys.executable, "-c", detach, {BURN!r} + "print('burnt', flush=True)\\ntime.sleep(600)"])
subprocess.run(["sleep", "600"])
"""
    code = f"""
import subprocess, sys
from benchmarks.serve.processes import Tree, adopt_orphans
adopt_orphans()
other = subprocess.Popen([sys.executable, "-c", {BURN!r} + "time.sleep(600)"])
pipe = {{"stdout": subprocess.PIPE, "start_new_session": True, "text": True}}
server = subprocess.Popen([sys.executable, "-c", {server!r}], **pipe)
assert server.stdout.readline() == "burnt\\n"
tree = Tree(server.pid)
cpu_s, mib = tree.cpu_s(), tree.resident_bytes() / 2**20
assert 1.0 <= cpu_s < 1.6, cpu_s  # half a second twice, and three starts of Python
assert 3 < mib < 100, mib
server.terminate()
server.wait()
assert len(tree.alive()) == 2  # sleep, and the process that had detached itself
tree.kill()
assert tree.alive() == [] and other.poll() is None
other.kill()
other.wait()
print("whole")
"""
    assert run(code) == "whole"
