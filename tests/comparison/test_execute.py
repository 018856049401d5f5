"""Runs as processes: finished ones are kept, failed ones lose nothing, and no process outlives the comparison."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from maxsup_hf import cli
from maxsup_hf.comparison import execute
from maxsup_hf.comparison.plan import Plan, run_folder

# A run without training: it logs that it began, does what the test wants of it, and writes its details.
RUN = """
import os, pathlib, sys, time
folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True)
with open(folder.parent.parent / "begun", "a") as begun:
    begun.write(f"{folder.name} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\\n")
if what == "hangs":
    time.sleep(600)
if what == "dies":
    os.kill(os.getpid(), 9)
if what == "status 1":
    sys.exit("error: it had to be")
if "bad input" in what:
    from maxsup_hf.comparison.parent import noting_bad_input
    print("error: bad input", file=sys.stderr)
    try:
        with noting_bad_input():
            sys.exit(2)
    except SystemExit as end:
        sys.exit(1 if what == "bad input, launched" else end.code)
(folder / "progress").write_text("0.5")
time.sleep(0.3)
(folder / "details.json").write_text("{}")
"""


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    what = {}

    def command(plan, run, folder):
        return [sys.executable, "-c", RUN, str(run_folder(folder, run)), what.get(run.name, "")]

    monkeypatch.setattr(execute, "command", command)
    return what


@pytest.mark.parametrize("status", [0, 2])
def test_a_run_that_ends_by_itself_says_how(status, tmp_path):
    """While its stdin is watched: a thread that held the lock of sys.stdin would turn every end into an abort."""
    code = "import sys; from maxsup_hf.comparison.parent import *; end_with_parent(); sys.exit(int(sys.argv[1]))"
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(status)], env=os.environ | {execute.VARIABLE: "1"},
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.wait(60) == status and not run.stderr.read()


def plan(seeds=(0, 1), **changes):
    return Plan("text-classification", {"cross_entropy": {}, "maxsup": {"alpha": 0.1}}, seeds, **changes)


def begun(folder):
    path = folder / "begun"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.parametrize("terminal", [True, False])
def test_each_once_in_turn_and_one_bar_or_a_line_for_each(terminal, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert execute.execute(plan(), tmp_path, 1) == {}
    assert begun(tmp_path) == ["cross_entropy-seed0", "maxsup-seed0", "cross_entropy-seed1", "maxsup-seed1"]
    said = capsys.readouterr().err
    if terminal:
        assert "4.0 of 4 runs" in said and said.count("\n") == 1
    else:
        assert said.splitlines()[-1] == "4 of 4 runs: maxsup-seed1 has finished"
        assert said.count("\n") == 4 and "\r" not in said
    assert execute.execute(plan(), tmp_path, 1) == {}  # nothing is left to do
    assert len(begun(tmp_path)) == 4 and "4 of 4 runs have finished before" in capsys.readouterr().err


def test_progress_of_a_run(tmp_path):
    run = plan().runs()[0]
    environment = dict(os.environ)
    process = execute.Process(run, execute.command(plan(), run, tmp_path), tmp_path, environment, 0)
    assert process.share() == 0.0
    while process.poll() is None:
        time.sleep(0.02)
    process.close()
    assert process.share() == 0.5 and execute.is_finished(tmp_path, run)


def test_jobs_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert execute.execute(plan(), tmp_path, 4) == {}
    assert {line.split()[2] for line in (tmp_path / "begun").read_text().splitlines()} == {"2"}


def test_a_failed_run_is_reported_and_the_others_go_on(tmp_path, no_training, capsys):
    no_training |= {"maxsup-seed0": "status 1", "cross_entropy-seed1": "dies"}
    failed = execute.execute(plan(), tmp_path, 1)
    assert failed == {
        "maxsup-seed0": "status 1: error: it had to be",
        "cross_entropy-seed1": "killed by SIGKILL: nothing was logged",
    }
    assert "FAILED maxsup-seed0: status 1: error: it had to be (log: " in capsys.readouterr().err
    assert [run.name for run in plan().runs() if execute.is_finished(tmp_path, run)] == [
        "cross_entropy-seed0",
        "maxsup-seed1",
    ]
    no_training.clear()
    assert execute.execute(plan(), tmp_path, 1) == {}
    assert begun(tmp_path)[4:] == ["maxsup-seed0", "cross_entropy-seed1"]


@pytest.mark.parametrize("what", ["bad input", "bad input, launched"])  # `accelerate launch` makes every status 1
def test_wrong_input_is_one_line_after_the_first_run_and_nothing_is_left(what, tmp_path, no_training, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    no_training |= {run.name: what for run in plan().runs()}
    words = ["compare", "text-classification", "--losses", "cross_entropy,maxsup", "--seeds", "0,1", "--jobs", "1"]
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--output_dir", "new"])
    assert end.value.code == 2 and capsys.readouterr().err.splitlines()[-1] == "error: bad input"
    assert not Path("new").exists()
    with pytest.raises(execute.BadInput):
        execute.execute(plan(), tmp_path, 1)
    assert begun(tmp_path) == ["cross_entropy-seed0"]


def test_an_interruption_ends_the_processes_and_keeps_what_is_finished(tmp_path, no_training):
    no_training["maxsup-seed0"] = "hangs"

    def interrupt():
        while "maxsup-seed0" not in begun(tmp_path):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        execute.execute(plan(), tmp_path, 1)
    pid = int((tmp_path / "begun").read_text().splitlines()[-1].split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    no_training.clear()
    execute.execute(plan(), tmp_path, 1)
    assert begun(tmp_path) == ["cross_entropy-seed0", "maxsup-seed0", "maxsup-seed0", "cross_entropy-seed1", "maxsup-seed1"]


def test_a_run_ends_with_its_parent_even_when_that_is_killed(tmp_path):
    child = (
        "import sys, time; from maxsup_hf.comparison.parent import *; end_with_parent(); "
        "print('up', flush=True); time.sleep(600)"
    )
    parent = (
        "import subprocess, sys, time, os\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE, "
        "env=dict(os.environ, MAXSUP_STDIN_IS_PARENT='1'))\n"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    lines = sorted(process.stdout.readline().strip() for _ in range(2))
    assert lines[1] == "up"
    process.kill()
    process.wait()
    stat = Path(f"/proc/{lines[0]}/stat")
    for _ in range(200):
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the run goes on without its comparison")


def test_command_of_a_run(monkeypatch, tmp_path):
    monkeypatch.undo()
    run = plan().runs()[1]
    words = execute.command(plan(flags=("--max_steps", "3"), hold_out_test=0.5), run, tmp_path)
    assert words[1:] == [
        "-m", "maxsup_hf.comparison.one_run", "text-classification", "0.5", "--max_steps", "3",
        "--loss", "maxsup", "--loss_kwargs", '{"alpha": 0.1}', "--seed", "0",
        "--output_dir", str(tmp_path / "runs" / "maxsup-seed0"), "--disable_tqdm", "true",
    ]  # fmt: skip
    words = execute.command(plan(accelerate_config="/a.yaml"), run, tmp_path)
    assert words[1:9] == [
        "-m", "accelerate.commands.launch", "--config_file", "/a.yaml", "--main_process_port", "0",
        "-m", "maxsup_hf.comparison.one_run",
    ]  # fmt: skip
