from maxsup_hf.output.tables import Table, markdown


def test_bold_cells_and_escaped_bars():
    table = Table(["loss", "a|b"], [["maxsup", 0.5], ["x|y", 1]], bold={(0, 1)})
    assert markdown(table) == "| loss | a\\|b |\n| --- | ---: |\n| maxsup | **0.5** |\n| x\\|y | 1 |"
