"""Processes that begin with torch and transformers imported, which is most of what a short one takes.

A server imports them once and forks for each request, so that every script or command still runs in a process of its own.
Each line of its stdin is JSON with the words of the command, the folder, the environment and two files; the answer on stdout
is the exit status. `run` takes the place of `subprocess.run` for `python FILE flags`, `python -c CODE` and
`maxsup-hf flags`, and of `torchrun`.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path

from tests import HANGS

ROOT = Path(__file__).parents[1]


@cache
def _server():
    return subprocess.Popen(
        [sys.executable, "-m", "tests.warm"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run(*words, cwd, env=None, processes=1):
    """Run `maxsup-hf …`, a Python file with its flags, or `-c` with code, in one process or in several that find each other
    as those of `torchrun` do. `env` is the complete environment, by default that of this process. Returns a
    `CompletedProcess` with text of stdout and stderr, and the status of a process that failed."""
    words = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        request = {"words": words, "cwd": str(cwd), "env": dict(os.environ if env is None else env), "files": files}
        request["ranks"] = _ranks(processes)
        server = _server()
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        texts = [Path(file).read_text(encoding="utf-8", errors="replace") for file in files]
    return subprocess.CompletedProcess(words, status, *texts)


def run_instead(command, check=False, env=None):
    """Takes the place of `subprocess.run` in a script that runs `python -m maxsup_hf …`."""
    assert command[:3] == [sys.executable, "-m", "maxsup_hf"], command
    result = run("maxsup-hf", *command[3:], cwd=Path.cwd(), env=env)
    if check and result.returncode:
        raise AssertionError(result.stderr[-3000:])
    return result


def _ranks(processes):
    """The environment of each process."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _import_what_most_need():
    import datasets  # noqa: F401
    import numba  # noqa: F401
    import sklearn.datasets
    import sklearn.metrics  # noqa: F401
    import transformers

    import maxsup_hf.scripts.image_classification
    import maxsup_hf.scripts.text_classification  # noqa: F401

    for name in ("AutoModelForSequenceClassification", "BertForSequenceClassification", "ResNetForImageClassification"):
        getattr(transformers, name)  # imported when it is first looked at
    gc.collect()
    gc.freeze()  # so that no garbage collection of a child looks at what was imported


def _child(request, rank):
    """Never returns."""
    status = 1
    try:
        for number, file in enumerate(request["files"], 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(request["cwd"])
        _use_environment(request["env"] | rank)
        sys.argv = request["words"]
        if Path(sys.argv[0]).name == "maxsup-hf":
            from maxsup_hf.cli import main

            main()
        elif sys.argv[0] == "-c":
            sys.path[0] = ""
            code = sys.argv.pop(1)
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.path[0] = str(Path(sys.argv[0]).parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _use_environment(environment):
    """Including what the Hugging Face libraries read from it when they are imported."""
    os.environ.clear()
    os.environ.update(environment)
    import datasets
    import huggingface_hub
    from huggingface_hub import constants, hf_api

    importlib.reload(constants)
    importlib.reload(datasets.config)
    hf_api.api.endpoint = constants.ENDPOINT
    huggingface_hub.close_session()


def _wait(pid):
    """The exit status of a child, which is killed if it hangs."""
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL


def _serve():
    _import_what_most_need()
    for line in sys.stdin:
        request = json.loads(line)
        started = []
        for rank in request["ranks"]:
            started.append(os.fork())
            if started[-1] == 0:
                _child(request, rank)
        statuses = [_wait(pid) for pid in started]
        print(next((status for status in statuses if status), 0), flush=True)


if __name__ == "__main__":
    _serve()
