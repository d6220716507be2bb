"""Other programs' names for the fields of a request, and which of their fields are not offered."""

from pydantic import AliasChoices

NUM_INFERENCE_STEPS = AliasChoices("num_inference_steps", "steps", "num_steps")
GUIDANCE_SCALE = AliasChoices("guidance_scale", "cfg_scale", "cfg", "guidance")
NEGATIVE_PROMPT = AliasChoices("negative_prompt", "negativePrompt")

_IMAGE_IN = "pictures are made from a prompt alone; image-to-image is not offered yet"
_LORA = "LoRAs are not offered yet"
NOT_OFFERED = {
    **dict.fromkeys(
        ("image", "images", "image_url", "init_image", "input_image", "reference_images"), _IMAGE_IN
    ),
    **dict.fromkeys(("strength", "prompt_strength", "denoising_strength"), _IMAGE_IN),
    **dict.fromkeys(("mask", "mask_image"), "inpainting is not offered yet"),
    **dict.fromkeys(("lora", "loras", "lora_weights", "hf_lora", "extra_lora", "replicate_weights"), _LORA),
    **dict.fromkeys(
        ("controlnet", "controlnets", "control_image", "controlnet_conditioning_scale"),
        "ControlNet is not offered yet",
    ),
    "clip_skip": "the text encoder's last layers cannot be skipped yet",
    "refiner": "a refiner is not offered yet",
    "hires_fix": "pictures are not enlarged afterwards yet; ask for the size that is wanted",
}
