"""Training scripts, one a task; `maxsup-hf train` lists this folder. What they share is in `body`."""

import os

# Threads that wait should sleep. By default they spin, and where another program runs on the same cores, two threads of a
# small model then take twenty times as long as one. Read once, when torch is imported; the user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
