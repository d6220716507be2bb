"""Tasks: whether a request starts from a picture, in the words of public traces."""

from enum import StrEnum


class Task(StrEnum):
    """What a request's images are made from."""

    TXT2IMG = "txt2img"  # a prompt
    IMG2IMG = "img2img"  # a prompt and a picture
    INPAINT = "inpaint"  # a prompt, a picture, and a mask of what is repainted

    @property
    def starts_from_picture(self) -> bool:
        return self is not Task.TXT2IMG

    @property
    def default_strength(self) -> float | None:
        """The share of the steps that is done, as in diffusers' pipelines; None without a picture."""
        return {Task.TXT2IMG: None, Task.IMG2IMG: 0.8, Task.INPAINT: 1.0}[self]


def read_task(text: str) -> Task:
    """Raises ValueError."""
    try:
        return Task(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is none of {', '.join(Task)}") from error
