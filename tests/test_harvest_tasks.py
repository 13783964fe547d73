"""Tasks made of the demo's text: what the names of functions are."""

from collections import Counter

from preparing import script


def test_names_are_found_behind_letters_beyond_ascii_and_what_does_not_parse_is_counted():
    tasks = script("harvest_tasks")

    def function(code):
        return tasks.Function(id="a", file="a", name="f", docstring="x", code=code)

    whole = function("def f(caf\u00e9, b):\n    return g('\u96c5', caf\u00e9.size(b))")
    cut = function("return x) + 1")
    left_out = Counter()
    made = tasks.names({"train": [whole, cut], "validation": []}, left_out)
    (row,) = [row for rows in made.values() for row in rows]
    found = {word: label for word, label in zip(row["words"], row["labels"], strict=True)}
    assert (found["f"], found["b"]) == ("defined", "O")
    assert found["g"] == "called" and found["size"] == "called"
    roles = [label for word, label in zip(row["words"], row["labels"], strict=True) if word == "b"]
    assert roles == ["parameter", "O"]
    assert left_out.total() == 1
