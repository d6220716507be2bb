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

_LORA = "LoRAs are not offered yet"
NOT_OFFERED = {
    "reference_images": "pictures to refer to are not offered; a request can start from one picture",
    **dict.fromkeys(("lora", "loras", "lora_weights", "hf_lora", "extra_lora", "replicate_weights"), _LORA),
    **dict.fromkeys(
        ("controlnet", "controlnets", "control_image", "controlnet_conditioning_scale"),
        "ControlNet is not offered yet",
    ),
    "refiner": "a refiner is not offered yet",
    "hires_fix": "a second pass is asked for by `hires`",
}
