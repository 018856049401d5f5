"""Execute the runs of a comparison, one or several at a time, each a process with a log. Finished runs are not repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from maxsup_hf.comparison.models import keep_models
from maxsup_hf.comparison.parent import BAD_INPUT, VARIABLE
from maxsup_hf.comparison.plan import PROGRESS, Plan, Run, is_finished, run_folder


class BadInput(ValueError):
    """The first run found its input to be bad; nothing was trained."""


class Process:
    """A run in progress."""

    def __init__(self, run: Run, command: Sequence[str], folder: Path, environment: dict[str, str], slot: int):
        self.run, self.slot = run, slot
        self.folder, self.log = run_folder(folder, run), log_file(folder, run)
        shutil.rmtree(self.folder, ignore_errors=True)  # left by an interruption
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = self.log.open("wb")
        self._note = self.log.with_suffix(".bad_input")
        self._note.unlink(missing_ok=True)
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._file, stderr=subprocess.STDOUT,
            env=environment | {BAD_INPUT: str(self._note.absolute())},
        )  # fmt: skip

    def poll(self) -> int | None:
        return self._popen.poll()

    def share(self) -> float:
        """Share of its steps that are done."""
        try:
            return min(1.0, float((self.folder / PROGRESS).read_text()))
        except (OSError, ValueError):
            return 0.0

    def found_bad_input(self) -> bool:
        """Whether the run ended because of its input, which is that of every run."""
        noted = self._note.exists()
        self._note.unlink(missing_ok=True)
        return noted

    def close(self) -> None:
        """End the process if it is still running."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(10)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()  # its own child processes end when this closes
        self._file.close()


def log_file(folder: Path, run: Run) -> Path:
    return folder / "logs" / f"{run.name}.log"


def command(plan: Plan, run: Run, folder: Path) -> list[str]:
    """The command line of a run."""
    python = [sys.executable]
    if plan.accelerate_config:
        # port 0: any free one, because there may be several launches at the same time
        python += ["-m", "accelerate.commands.launch", "--config_file", plan.accelerate_config, "--main_process_port", "0"]
    return [
        *python, "-m", "maxsup_hf.comparison.one_run", plan.task, repr(plan.hold_out_test), *plan.flags,
        "--loss", run.loss, "--loss_kwargs", json.dumps(run.kwargs), "--seed", str(run.seed),
        "--output_dir", str(run_folder(folder, run)), "--disable_tqdm", "true",
    ]  # fmt: skip


def execute(plan: Plan, folder: Path, jobs: int) -> dict[str, str]:
    """Run all unfinished runs, with one progress bar, and keep the models that `plan.save_models` says.

    A failed run is reported, and the others continue. But if the very first one finds its input to be bad, the others are
    not started, because their input is the same. Without a terminal, a line for each run replaces the bar.

    Args:
        jobs: number of runs at the same time.

    Returns:
        Name of each failed run -> reason.

    Raises:
        BadInput: what the first run says of its input.
        KeyboardInterrupt: interrupted; the processes have ended, and finished runs are kept.
    """
    runs = plan.runs()
    waiting = [run for run in runs if not is_finished(folder, run)]
    done = len(runs) - len(waiting)
    keep_models(plan, folder)
    failed: dict[str, str] = {}
    active: list[Process] = []
    form = "{percentage:3.0f}%|{bar}| {n:.1f} of {total:.0f} runs [{elapsed}<{remaining}]{postfix}"
    with _sigterm_interrupts(), tqdm(total=len(runs), initial=done, bar_format=form, mininterval=0.5, disable=None) as bar:
        if done:
            bar.write(f"{done} of {len(runs)} runs have finished before, and are kept", file=sys.stderr)
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    slot = min(set(range(jobs)) - {process.slot for process in active})
                    run = waiting.pop(0)
                    active.append(Process(run, command(plan, run, folder), folder, _environment(plan, jobs, slot), slot))
                bar.set_postfix_str(", ".join(process.run.name for process in active), refresh=False)
                time.sleep(0.2)
                for process in [process for process in active if process.poll() is not None]:
                    active.remove(process)
                    process.close()
                    done += 1
                    if is_finished(folder, process.run):
                        keep_models(plan, folder)
                        if bar.disable:
                            bar.write(f"{done} of {len(runs)} runs: {process.run.name} has finished", file=sys.stderr)
                        continue
                    if process.found_bad_input() and done == 1:
                        raise BadInput(_last_line(process).removeprefix("error: "))
                    reason = _failure_reason(process)
                    failed[process.run.name] = reason
                    bar.write(f"FAILED {process.run.name}: {reason} (log: {process.log})", file=sys.stderr)
                bar.update(max(bar.n, done + sum(process.share() for process in active)) - bar.n)
        finally:
            for process in active:
                process.close()
    return failed


def _failure_reason(process: Process) -> str:
    """How the process ended, and what its log says last."""
    status = process.poll() or 0
    ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return f"{ended}: {_last_line(process)}"


def _last_line(process: Process) -> str:
    """The last error message in the log of a run, else the last line."""
    lines: list[str] = []
    with suppress(OSError):
        lines = [line.strip() for line in process.log.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or [line for line in lines if line] or ["nothing was logged"])[-1]


def _environment(plan: Plan, jobs: int, slot: int) -> dict[str, str]:
    """Environment of a run. Runs at the same time share the cores, and the GPUs if there are several."""
    found = os.environ | {VARIABLE: "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if jobs > 1:
        found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        devices = [] if plan.accelerate_config else _visible_gpus()
        if len(devices) > 1:
            found["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return found


def _visible_gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM end the runs as Ctrl-C does."""

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # signal handlers can be set in the main thread only
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
