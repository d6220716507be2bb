"""Other programs' names for the fields of a request, and which of their fields are not offered."""

from pydantic import AliasChoices

NUM_INFERENCE_STEPS = AliasChoices("num_inference_steps", "steps", "num_steps")
GUIDANCE_SCALE = AliasChoices("guidance_scale", "cfg_scale", "cfg", "guidance")
NEGATIVE_PROMPT = AliasChoices("negative_prompt", "negativePrompt")

IMAGE_NAMES = ("image", "images", "image[]", "image_url", "init_image", "input_image")
MASK_NAMES = ("mask", "mask_image", "mask_url")
_STRENGTH_NAMES = ("strength", "prompt_strength", "denoising_strength")
IMAGE, MASK, STRENGTH = AliasChoices(*IMAGE_NAMES), AliasChoices(*MASK_NAMES), AliasChoices(*_STRENGTH_NAMES)
# The fields of requests that start from a picture.
PICTURE_FIELDS = (*IMAGE_NAMES, *MASK_NAMES, *_STRENGTH_NAMES, "padding_mask_crop", "preserve_unmasked")

_LORA = 'adapters are named by `loras`: [{"id": "name", "scale": 0.8}]'
NOT_OFFERED = {
    "reference_images": "pictures to refer to are not offered; a request can start from one picture",
    **dict.fromkeys(
        ("lora_weights", "lora_scale", "lora_scales", "hf_lora", "extra_lora", "extra_lora_scale"), _LORA
    ),
    "replicate_weights": "an archive of a training is not taken; its .safetensors file can be an adapter",
    **dict.fromkeys(
        ("controlnet", "controlnets", "control_image", "controlnet_conditioning_scale"),
        "ControlNet is not offered yet",
    ),
    "refiner": "a refiner is not offered yet",
    "hires_fix": "a second pass is asked for by `hires`",
}
