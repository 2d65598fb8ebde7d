from __future__ import annotations

from trimtab.world.__main__ import gold_table


def test_the_published_ceiling_and_floor():
    rows = {
        line.split(" | ")[0]: line.split(" | ")[1]
        for line in gold_table(40).splitlines()
        if " | " in line
    }
    assert rows["| no fault (ceiling)"] == "1.000 ± 0.000"
    assert rows["| random letters (floor)"] == "0.000 ± 0.000"
    assert rows["| words of a good story, shuffled"] == "0.000 ± 0.000"
    assert rows["| rude"] == "0.700 ± 0.000"
