"""A picture's parameters in A1111's form, read by A1111's own parser."""

import re

import pytest

from deployments.engine.infotext import infotext
from tests.generation_requests import generation_request

# From A1111's modules/infotext_utils.py.
PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def test_the_text_is_as_a1111_writes_it() -> None:
    request = generation_request(
        sampler="DPM++ 2M Karras",
        num_inference_steps=20,
        guidance_scale=7.0,
        seed=5,
        height=128,
        width=256,
    )
    assert re.fullmatch(
        "a star\n"
        "Negative prompt: blue, green\n"
        "Steps: 20, Sampler: DPM\\+\\+ 2M Karras, CFG scale: 7, Seed: 5, Size: 256x128, Model: shapes, "
        r"RNG: CPU, Version: midstep [\w.]+",
        infotext(request, "a star", "blue, green", "shapes"),
    )
    assert infotext(request, "a star", "", "shapes").startswith("a star\nSteps: 20, ")


@pytest.mark.parametrize(
    ("sampler", "eta", "expected"),
    [
        ("KDPM2", None, {"Sampler": "DPM2"}),
        ("DDIM eta 1", None, {"Sampler": "DDIM", "Eta DDIM": "1.0"}),
        ("DDIM eta 1", 0.5, {"Sampler": "DDIM", "Eta DDIM": "0.5"}),
        ("TCD", 0.5, {"Sampler": "TCD", "Eta": "0.5"}),
        ("UniPC", None, {"Sampler": "UniPC", "UniPC order": "2"}),
        ("UniPC 3", None, {"Sampler": "UniPC", "UniPC variant": "bh2"}),
        ("PLMS", None, {"Sampler": "PLMS"}),
    ],
)
def test_a1111s_parser_reads_its_own_names(sampler: str, eta: float | None, expected: dict[str, str]) -> None:
    request = generation_request(sampler=sampler, eta=eta, guidance_scale=2.5)
    last_line = infotext(request, "a star", None, "a, b: c").splitlines()[-1]
    read = dict(PARAMETER.findall(last_line))
    assert read.items() >= expected.items()
    assert (read["CFG scale"], read["Model"]) == ("2.5", '"a, b: c"')
