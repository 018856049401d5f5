"""The usual layouts of chats and instructions become what TRL trains on."""

import datasets
import pytest

from maxsup_hf.data.conversations import as_conversations

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def rows(**columns):
    return datasets.Dataset.from_dict({name: [value] for name, value in columns.items()})


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"messages": TURNS, "id": 1}, {"messages": TURNS}),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, {"messages": TURNS}),
        ({"prompt": "a", "completion": "b", "source": "x"}, {"prompt": "a", "completion": "b"}),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, {"prompt": "Add\n\n1 2\n\n", "completion": "3"}),
        ({"instruction": "Add", "input": "", "output": "3"}, {"prompt": "Add\n\n", "completion": "3"}),
        ({"instruction": "Add", "context": "1 2", "response": "3"}, {"prompt": "Add\n\n1 2\n\n", "completion": "3"}),
        ({"question": "1 + 2?", "answer": "3"}, {"prompt": "1 + 2?\n\n", "completion": "3"}),
        ({"text": "a text"}, {"text": "a text"}),
    ],
)
def test_layouts(columns, expected):
    assert as_conversations(rows(**columns), "train")[0] == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": 1}, "the train data has the columns a; expected messages, conversations, prompt and completion"),
        ({"conversations": [{"from": "bing", "value": "Hi"}]}, "row 0 of the train data has a turn from 'bing'"),
        ({"instruction": None, "output": "3"}, "1 missing"),
        ({"prompt": None, "completion": "3"}, "1 missing"),
        ({"messages": []}, "messages: row 0 of the train data must be a list of turns"),
        ({"messages": [{"content": "Hi"}]}, "row 0 of the train data has a turn without a role"),
        ({"messages": [{"role": "user", "content": None}]}, "has a turn whose content is not a text"),
    ],
)
def test_bad_rows(columns, message):
    with pytest.raises(ValueError, match=message):
        as_conversations(rows(**columns), "train")
