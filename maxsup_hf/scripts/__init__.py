"""The training scripts, one for each task; `maxsup-hf train` lists the modules of this folder.

Adding a task takes two files, and a third if its data have a form that no other task has:

1. `scripts/my_task.py`. The file's name is the name of the task, and the first line of its docstring is the line about it in
   `maxsup-hf train`. Start from the script that is most similar; `multiple_choice.py` is the shortest. It has

   - a dataclass of the task's flags, derived from `TextArguments`, `ImageArguments` or `ScriptArguments`;
   - `prepare(argv) -> run.Job`, which parses the flags, reads and checks the data, tokenizes, and builds the model, the
     Trainer and the job, in this order. It reports wrong input as ValueError, TypeError or OSError and writes nothing. If
     the logits have one column for each class, it passes `classifies=True` to `parse`, which allows `--class_weights`;
   - `main(argv)`, which calls `run.main(prepare, argv)`.

2. `tests/scripts/test_my_task.py`: a short run without data, a run on files, and each kind of wrong input.

3. `data/my_rows.py`: finding the columns and checking the rows, as in `choices.py` and `tags.py`. A built-in data set is a
   function without arguments that returns a `Dataset`, in one of the modules `data/builtin*.py`.

`maxsup-hf compare` runs the task without further changes. `QUICK` in `comparison/cli.py` can shorten its runs on
built-in data, and a metric that no other task has must be registered to appear in the tables. The README lists the tasks.
"""

import os

# Waiting threads should sleep. By default they spin, and on cores that another program uses too, two threads of a small
# model then take twenty times as long as one. torch reads this once, on import; a value that the user has set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
