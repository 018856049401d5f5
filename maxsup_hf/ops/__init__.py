"""Row statistics of logits and their gradient: one operation, with a backend for each kind of device."""
