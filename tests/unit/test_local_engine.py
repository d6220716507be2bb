"""A model's stages in one process, for scripts."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from deployments.engine import load_engine
from tests.tiny_models import SHAPES_MODEL

PROJECT_FOLDER = Path(__file__).parents[2]


def test_the_scripts_in_the_readme_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PROJECT_FOLDER / "deployments/engine/README.md").read_text()
    scripts = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "script.py").write_text("\n".join(scripts))
    (tmp_path / "models").symlink_to(PROJECT_FOLDER / "models")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("script.py")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["0.png", "1.png", "2.png", "lcm.png"]
    with Image.open("0.png") as image:
        assert image.size == (128, 128)


def test_pictures_come_in_the_order_of_their_prompts() -> None:
    """The second is done first. Each is the same as it would be alone."""
    engine = load_engine(str(SHAPES_MODEL))
    prompts = ["a large red star on a blue background", "a green circle on a black background"]
    engine.add(prompts[0], num_inference_steps=4, seed=1)
    engine.add(prompts[1], num_inference_steps=2, seed=2)
    together = engine.finish()
    for index, steps in enumerate((4, 2)):
        engine.add(prompts[index], num_inference_steps=steps, seed=1 + index)
        [alone] = engine.finish()
        assert abs(alone.astype(int) - together[index].astype(int)).max() <= 1


def test_seeds_follow_the_first() -> None:
    engine = load_engine(str(SHAPES_MODEL))
    engine.add("a red star", "a red star", num_inference_steps=2, seed=5)
    first, second = engine.finish()
    engine.add("a red star", num_inference_steps=2, seed=6)
    [again] = engine.finish()
    assert abs(second.astype(int) - again.astype(int)).max() <= 1
    assert abs(first.astype(int) - again.astype(int)).max() > 1
