"""Five hundred damaged adapter files: each gives a sentence or works, and takes no memory to speak of."""

import json
import random
import resource
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.adapters.files import AdapterFileError, digest_of, read_adapter_file
from deployments.adapters.fusing import fuse
from deployments.adapters.reading import read_weights
from deployments.adapters.targets import ModelTargets, targets_of_model
from deployments.engine.model_source import ModelSource
from tests import adapter_files as files

_NUM_FILES = 500
_MAX_MORE_KIB = 200 << 10
_HUGE = (2**31, 2**40, 2**62)


@pytest.fixture(scope="module")
def model(model_folder: Callable[[str], Path]) -> ModelTargets:
    return targets_of_model(ModelSource(str(model_folder("sdxl"))))


@pytest.fixture(scope="module")
def whole(model: ModelTargets, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Good files: one of plain LoRAs in all parts, and one of all other kinds."""
    torch.manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    makers = (files.loha, files.lokr, files.full_lokr, files.dora, files.diff, files.lora_file)
    layers = [(name, target) for name, target in model.parts["unet"].items() if ".resnets." in name]
    for (name, target), make in zip(layers, makers * 3, strict=False):
        for end, factor in make(*files.shape_of(target)).items():
            tensors[f"{files.kohya_stem('unet', name)}.{end}"] = factor
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    return [files.save(path, of).read_bytes() for of in (files.kohya(model, model.parts), tensors)]


def divided(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def truncated(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def flipped_in_header(chance: random.Random, content: bytes) -> bytes:
    length = struct.unpack("<Q", content[:8])[0]
    return flipped(chance, content, 8 + length)


def flipped(chance: random.Random, content: bytes, end: int | None = None) -> bytes:
    made = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        made[chance.randrange(end or len(made))] ^= 1 << chance.randrange(8)
    return bytes(made)


def with_bad_values(chance: random.Random, content: bytes) -> bytes:
    header, body = divided(content)
    made = bytearray(body)
    for _ in range(4):
        start = chance.randrange(len(made) // 4) * 4
        made[start : start + 4] = struct.pack("<f", chance.choice([float("nan"), float("inf"), 1e38, -1e38]))
    return joined(header, bytes(made))


def renamed(chance: random.Random, content: bytes) -> bytes:
    header, body = divided(content)
    for key in chance.sample(sorted(header), 3):
        ends = [
            key.rpartition(".")[2],
            "alpha",
            "diff",
            "lora_down.weight",
            "lokr_w1",
            "dora_scale",
            "",
            "\0",
        ]
        stem = chance.choice(sorted(header)).partition(".")[0]
        header[chance.choice([f"{stem}.{chance.choice(ends)}", key[::-1], key * 50])] = header.pop(key)
    return joined(header, body)


def reshaped(chance: random.Random, content: bytes) -> bytes:
    header, body = divided(content)
    for key in chance.sample(sorted(header), 2):
        shape = header[key]["shape"]
        options: list[Any] = [shape[::-1], [*shape, 1], [1, *shape], [], [0], [-1], ["x"], None, [*_HUGE]]
        options += [[size, *shape[1:]] for size in (*_HUGE, 0, 1.5, True)]
        header[key]["shape"] = chance.choice(options)
    return joined(header, body)


def restored(chance: random.Random, content: bytes) -> bytes:
    """With other dtypes and places."""
    header, body = divided(content)
    for key in chance.sample(sorted(header), 2):
        header[key]["dtype"] = chance.choice(["F16", "I64", "F64", "BOOL", "F8_E4M3", "F4", "", 5, None])
    key = chance.choice(sorted(header))
    offsets = [[0, 4], [4, 0], [0, len(body)], [0, len(body) + 1], [-4, 0], [0], [0, 2**70], None]
    header[key]["data_offsets"] = chance.choice(offsets)
    return joined(header, body)


def removed(chance: random.Random, content: bytes) -> bytes:
    header, body = divided(content)
    for key in chance.sample(sorted(header), chance.randint(1, 4)):
        del header[key]
    header["__metadata__"] = chance.choice(
        [{}, None, [], "x", {"lora_adapter_metadata": "{"}, {"a": {"b": 1}}]
    )
    return joined(header, body)


MUTATIONS = (
    truncated,
    flipped,
    flipped_in_header,
    with_bad_values,
    renamed,
    reshaped,
    restored,
    removed,
)


def use(path: Path, model: ModelTargets, state: Mapping[str, torch.Tensor]) -> str | None:
    """Uses the file in every way. Returns why it cannot be used."""
    try:
        file = read_adapter_file(path, model)
        if not file.dense:
            for part in file.ranks:
                for layer in read_weights(path, digest_of(path), part, model).values():
                    assert layer.a.isfinite().all()
                    assert layer.b.isfinite().all()
        fuse("unet", dict(state), [(path, 0.5)], model)
    except AdapterFileError as error:
        return str(error)
    return None


def test_damaged_files_give_a_sentence_or_work(
    model: ModelTargets, whole: list[bytes], tmp_path: Path
) -> None:
    chance = random.Random(6)
    state = {name: torch.ones(shape) for name, shape in model.shapes["unet"].items()}
    path = tmp_path / "a.safetensors"
    for content in whole:
        path.write_bytes(content)
        assert use(path, model, state) is None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worked = 0
    for number in range(_NUM_FILES):
        mutate = MUTATIONS[number % len(MUTATIONS)]
        path.write_bytes(mutate(chance, chance.choice(whole)))
        if (reason := use(path, model, state)) is None:
            worked += 1
        else:
            assert reason.startswith("a.safetensors")
            assert len(reason) < 2000
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more < _MAX_MORE_KIB
    assert 20 < worked < _NUM_FILES / 2


def test_a_small_file_cannot_make_large_factors(model: ModelTargets, tmp_path: Path) -> None:
    """The product of two weights of rank 3000 has a rank of nine million, but no layer has such a rank."""
    name = "time_embedding.linear_1"
    outputs, width = files.shape_of(model.parts["unet"][name])
    factors = {
        f"hada_w{half}_{side}": torch.zeros((outputs, 3000) if side == "a" else (3000, width))
        for half in (1, 2)
        for side in "ab"
    }
    stem = files.kohya_stem("unet", name)
    path = files.save(tmp_path / "a.safetensors", {f"{stem}.{end}": one for end, one in factors.items()})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = read_weights(path, digest_of(path), "unet", model)[name]
    assert made.a.shape[0] == read_adapter_file(path, model).unet_rank == min(outputs, width)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MAX_MORE_KIB


def test_a_header_larger_than_any_adapters_is_not_parsed(model: ModelTargets, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    text = b"[" + b"[]," * (4 << 20) + b"1]"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(AdapterFileError, match="is not a safetensors file"):
        read_adapter_file(path, model)
