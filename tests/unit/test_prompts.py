"""Commands of other programs in a prompt are found, and nothing else is."""

import pytest

from deployments.engine.prompt_text import literal_syntax


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a (red:1.4) star", "(red:1.4)"),
        ("a ((red star:1.2)) and more", "(red star:1.2)"),
        ("(blurry: -.5 )", "(blurry: -.5 )"),
        ("a [red:blue:0.5] star", "[red:blue:0.5]"),
        ("a star BREAK a square", "BREAK"),
        ("a star <lora:style:0.8>", "<lora:style:0.8>"),
        ("<lyco:x> a star", "<lyco:x>"),
        ("a star (red)", None),
        ("at 12:30 (or later: 5 pm)", None),
        ("[a list: of things]", None),
        ("a break in the clouds, BREAKFAST", None),
        ("a < b > c", None),
        ("", None),
    ],
)
def test_syntax_of_others_is_found(text: str, found: str | None) -> None:
    assert literal_syntax(text) == found
