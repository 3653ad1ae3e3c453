import pytest

from launcher.config.problems import _joined


@pytest.mark.parametrize(
    ("messages", "joined"),
    [
        (["must be quick"], "must be quick"),
        (["must be a, but is 1", "must be b, but is 1"], "must be a or b, but is 1"),
        (["must be a, but is 1", "is odd"], "must be a, but is 1; is odd"),
    ],
)
def test_messages_about_one_key_are_joined(messages: list[str], joined: str) -> None:
    assert _joined(messages) == joined
