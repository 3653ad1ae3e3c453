"""docs/schedules.md is what the schedules are."""

from scripts.schedules_table import COMMAND, PAGE, page


def test_the_page_is_as_the_schedules_are() -> None:
    assert PAGE.read_text("utf-8") == page(), f"run `{COMMAND}`"
