"""What error messages quote is shortened."""

from maxsup_hf.output.messages import listed, shortened


def test_as_many_items_as_allowed_and_how_many_more():
    assert listed(["a", "b", "c"], 3) == "a, b, c"
    assert listed(["a", "b", "c"], 2, "; ") == "a; b and 1 more"
    assert listed([]) == ""


def test_a_long_text_keeps_its_beginning():
    assert shortened("it's") == '"it\'s"'
    assert shortened("x" * 60) == repr("x" * 60)
    assert shortened("x" * 61) == repr("x" * 57 + "…")
