"""Runs commands of `maxsup-hf` one after the other in one process, because importing transformers is most of what a short
command takes: `python -m tests.documentation.driver`.

Each line of stdin is JSON, `{"folder": …, "variables": {…}, "words": […], "checked": bool}`. The answer on stdout is the
exit status. What a command prints goes to stderr. `checked` has every flag checked instead of the command run.
"""

import contextlib
import gc
import json
import os
import sys
import traceback

from maxsup_hf import bench
from maxsup_hf.analysis import cli as analysis
from maxsup_hf.cli import find_task, main, tasks
from maxsup_hf.comparison import cli as comparison
from maxsup_hf.prediction import cli as prediction


def run(words, checked):
    if not checked or words[0] in ("losses", "--help", "--version"):
        main(words)
    elif words[0] == "train":
        main([*words, "--dry_run", "true"])
    elif words[0] == "completion":
        assert words[1:] in (["bash"], ["zsh"])
    elif words[0] == "compare":
        check_comparison(words[1:])
    else:
        {"analyze": analysis, "bench": bench, "predict": prediction}[words[0]].parser().parse_args(words[1:])


def check_comparison(words):
    """The plan of a comparison, whose flags for every run a dry run of the task reads."""
    args, flags = comparison.parser(tasks()).parse_known_args(words)
    plan, *_ = comparison.make_plan(args, find_task(args.task), flags)
    main(["train", plan.task, *plan.flags, "--dry_run", "true"])


def status(request):
    os.chdir(request["folder"])
    print("+", *request["words"], file=sys.stderr, flush=True)
    before = dict(os.environ)
    os.environ.update(request["variables"])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            run(request["words"], request["checked"])
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        os.environ.clear()
        os.environ.update(before)
    return 0


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # as conftest.py does
    for line in sys.stdin:
        print(json.dumps(status(json.loads(line))), flush=True)
