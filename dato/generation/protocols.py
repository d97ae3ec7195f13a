"""The settings with which the SiTo and DaTo papers generate: 50 PLMS steps at 512 x 512."""

PROTOCOLS = ("imagenet", "coco", "file")  # by their prompts, see `dato.generation.prompts`
STEPS, SCHEDULER, SIZE = 50, "plms", 512
