"""The training scripts, one for each task; `maxsup-hf train` lists the modules of this folder.

docs/extend/task.md says how to add one.
"""

import os

# Waiting threads should sleep. By default they spin, and on cores that another program uses too, two threads of a small
# model then take twenty times as long as one. torch reads this once, on import; a value that the user has set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
