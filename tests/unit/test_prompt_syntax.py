"""A1111's prompt syntax, as people write it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.prompt_syntax import MAX_WEIGHT, UP, Weighted, parse, problem

ONCE, TWICE = UP, UP * UP


def pieces(text: str) -> list[list[tuple[str, float]]]:
    return [[(piece.text, round(piece.weight, 4)) for piece in chunk] for chunk in parse(text)]


def one(*expected: tuple[str, float]) -> list[list[tuple[str, float]]]:
    return [[(text, round(weight, 4)) for text, weight in expected]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [[]]),
        ("a red star", one(("a red star", 1))),
        ("a (red) star", one(("a ", 1), ("red", ONCE), (" star", 1))),
        ("a ((red)) star", one(("a ", 1), ("red", TWICE), (" star", 1))),
        ("(((masterpiece)))", one(("masterpiece", UP**3))),
        ("a [red] star", one(("a ", 1), ("red", 1 / UP), (" star", 1))),
        ("[[blurry]]", one(("blurry", 1 / TWICE))),
        ("([red])", one(("red", 1))),
        ("(red:1.3)", one(("red", 1.3))),
        ("(red: 1.3 )", one(("red", 1.3))),
        ("(red:.5)", one(("red", 0.5))),
        ("(red:2)", one(("red", 2))),
        ("(red:2.)", one(("red", 2))),
        ("(red:+1.5)", one(("red", 1.5))),
        ("(red:0)", one(("red", 0))),
        ("(red star, blue:1.2), circle", one(("red star, blue", 1.2), (", circle", 1))),
        ("(a (b:1.2):1.5) c", one(("a ", 1.5), ("b", 1.8), (" c", 1))),
        ("((a)b)c", one(("a", TWICE), ("b", ONCE), ("c", 1))),
        ("((a:1.2)(b:1.3):2)", one(("a", 2.4), ("b", 2.6))),
        ("[(a:1.1)]", one(("a", 1))),
        ("(a)(b)", one(("ab", ONCE))),
        ("()a()", one(("a", 1))),
        ("(:1.3)a", one(("a", 1))),
        (r"a \(red\) star", one(("a (red) star", 1))),
        (r"\[red\]", one(("[red]", 1))),
        (r"(star \(film\):1.2)", one(("star (film)", 1.2))),
        (r"a \\ b", one((r"a \ b", 1))),
        (r"a \n b", one((r"a \n b", 1))),
        ("a\\", one(("a\\", 1))),
        (r"\\(red)", one(("\\", 1), ("red", ONCE))),
        ("(unclosed red", one(("unclosed red", ONCE))),
        ("a ((b) c", one(("a ", 1), ("b", TWICE), (" c", ONCE))),
        ("[unclosed", one(("unclosed", 1 / UP))),
        ("a) b] c", one(("a) b] c", 1))),
        ("a:1.2) b", one(("a:1.2) b", 1))),
        ("(a] b)", one(("a] b", ONCE))),
        ("[a:1.2) b]", one(("a:1.2) b", 1 / UP))),
        ("a: b", one(("a: b", 1))),
        ("10:30", one(("10:30", 1))),
        ("(10:30)", one(("10", 30))),
        ("(ratio 16:9 wide)", one(("ratio 16:9 wide", ONCE))),
        (":)", one((":)", 1))),
        (":-( and :D", one((":-", 1), (" and :D", ONCE))),
        ("(a:1.2.3)", one(("a:1.2.3", ONCE))),
        ("(a:b:1.2)", one(("a:b", 1.2))),
        ("(a:1e3)", one(("a:1e3", ONCE))),
        ("(a:)", one(("a:", ONCE))),
        ("a BREAK b", [[("a ", 1)], [(" b", 1)]]),
        ("BREAK", [[], []]),
        ("a BREAK BREAK b", [[("a ", 1)], [(" ", 1)], [(" b", 1)]]),
        ("(a BREAK b:1.2)", [[("a ", 1.2)], [(" b", 1.2)]]),
        ("BREAKFAST, aBREAK, break", one(("BREAKFAST, aBREAK, break", 1))),
        ("a,BREAK,b", [[("a,", 1)], [(",b", 1)]]),
        ("a\nBREAK\nb", [[("a\n", 1)], [("\nb", 1)]]),
        ("B, BR, BREA", one(("B, BR, BREA", 1))),
        ("(red:1.3)(", one(("red", 1.3))),
        ("((((", [[]]),
        ("))))", one(("))))", 1))),
        ("][)(", one(("]", 1), (")", 1 / UP))),
        ("(é🙂日本:1.4)", one(("é🙂日本", 1.4))),
        ("🙂🙂", one(("🙂🙂", 1))),
        (",,, ...!?", one((",,, ...!?", 1))),
        ("a|b", one(("a|b", 1))),
        ("a (b|c) d", one(("a ", 1), ("b|c", ONCE), (" d", 1))),
        ("1girl, solo, (blue eyes:1.2), [bad hands]", one(
            ("1girl, solo, ", 1), ("blue eyes", 1.2), (", ", 1), ("bad hands", 1 / UP)
        )),
        ("masterpiece, best quality, ((detailed)), 8k", one(
            ("masterpiece, best quality, ", 1), ("detailed", TWICE), (", 8k", 1)
        )),
        (r"fate \(series\), (saber:1.1)", one(("fate (series), ", 1), ("saber", 1.1))),
        ("(worst quality, low quality:1.4), monochrome", one(
            ("worst quality, low quality", 1.4), (", monochrome", 1)
        )),
        ("a and b", one(("a and b", 1))),
        ("[:]", one((":", 1 / UP))),
        ("  spaced  ", one(("  spaced  ", 1))),
    ],
)  # fmt: skip
def test_the_pieces_of_a_prompt_and_their_weights(text: str, expected: list[list[tuple[str, float]]]) -> None:
    assert pieces(text) == expected
    assert problem(text) is None or any(weight > MAX_WEIGHT for chunk in expected for _, weight in chunk)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a [red|blue] star", "'[red|blue]' was given, and words that take turns"),
        ("[cat:dog:0.5]", "words that change at a step"),
        ("[cat:10]", "words that change at a step"),
        ("[cat::.5]", "words that change at a step"),
        ("[[cow]|horse]", "words that take turns"),
        ("[a:[b]:5]", "words that change at a step"),
        ("<LORA:x:1>", "name them in the prompt and not in the negative one"),
        ("<lora1:x:1>", "only adapters can be named"),
        ("a cat AND a dog", "'AND' was given, and several prompts at once"),
        ("<lyco:name:0.8> a cat", "name them in the prompt"),
        ("<hypernet:name>", "'<hypernet:name>' was given, and only adapters can be named in a prompt"),
        ("(red:-1)", "'red' has the weight -1; allowed are 0 to 10"),
        ("(red:99)", "'red' has the weight 99"),
        ("(" * 30 + "x", "'x' has the weight 17.4"),
        ("(red:" + "9" * 400 + ")", "has the weight inf"),
    ],
)
def test_what_cannot_be_done_is_said(text: str, words: str) -> None:
    assert words in (problem(text) or "")


def test_an_escaped_alternative_is_text() -> None:
    assert problem(r"a \[red|blue\] star") is None


@given(st.text(alphabet=st.sampled_from("ab ()[]:\\|,.19BREAK🙂"), max_size=60))
@settings(max_examples=500, deadline=None)
def test_no_text_is_lost_and_nothing_fails(text: str) -> None:
    """What is missing is syntax: brackets, escapes, weights and breaks."""
    problem(text)
    kept = "".join(piece.text for chunk in parse(text) for piece in chunk)
    letters = [one for one in kept if one in "ab|,🙂"]
    assert letters == [one for one in text if one in "ab|,🙂"]


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_has_finite_pieces_or_a_problem(text: str) -> None:
    if problem(text) is None:
        weights = [piece.weight for chunk in parse(text) for piece in chunk]
        assert all(math.isfinite(weight) and weight >= 0 for weight in weights)


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\:"), min_size=1, max_size=40))
@settings(deadline=None)
def test_escaped_text_comes_back(text: str) -> None:
    escaped = "".join("\\" + one if one in "()[]\\" else one for one in f"({text}) [{text}]")
    if "BREAK" not in text:
        assert parse(escaped) == [[Weighted(f"({text}) [{text}]", 1.0)]]
