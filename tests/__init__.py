HANGS = 1800  # seconds after which a process hangs: ten times what the longest one takes, for machines under load
