"""Write batch.js: the logits of a small network for 32 handwritten digits that it did not train on.

python examples/space/make_batch.py
"""

import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

SHOWN, STEPS, BATCH, HIDDEN = 32, 200, 32, 6

digits = load_digits()
pixels, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
torch.manual_seed(0)
order = torch.randperm(len(labels))
held_out, train = order[:SHOWN], order[SHOWN:]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(STEPS):
    rows = train[torch.randint(len(train), (BATCH,))]
    optimizer.zero_grad()
    F.cross_entropy(model(pixels[rows]), labels[rows]).backward()
    optimizer.step()

with torch.no_grad():
    logits = model(pixels[held_out])
print(f"{(logits.argmax(1) == labels[held_out]).sum()} of {SHOWN} right")
batch = [
    {
        "label": int(labels[row]),
        "logits": [round(z, 3) for z in of_row.tolist()],
        "pixels": "".join(f"{min(int(value), 15):x}" for value in digits.data[row]),  # 8×8, a hexadecimal digit each
    }
    for row, of_row in zip(held_out.tolist(), logits, strict=True)
]
lines = [
    '"use strict";',
    "// Written by make_batch.py: digits that the network did not train on, and its logits.",
    "const BATCH = [",
    *(f"  {json.dumps(row)}," for row in batch),
    "];",
    'if (typeof module !== "undefined") module.exports = { BATCH };',
]
Path(__file__).with_name("batch.js").write_text("\n".join(lines) + "\n", encoding="utf-8")
