"""What the page says: its terms, each with a hint, and its longer texts."""

from __future__ import annotations

TITLE = "dato: the same image, in less time"

# Terms and what they mean. On the page the meaning appears when the pointer is on a term, or when it has the focus.
HINTS = {
    "stock": "The pipeline as it is, without dato.",
    "dato": "The same pipeline, patched by dato. It computes less of the UNet in most calls.",
    "front": "The best schedules that a search found, from slow and exact to fast and rough.",
    "point": "One schedule of a front.",
    "schedule": "It says for each call of the UNet how much of the network runs. The rest comes from earlier calls.",
    "rule": "It makes a schedule from the speed-up, the number of steps and the sampler. It needs no search.",
    "UNet": "The network that removes noise. It takes nearly all of the time of an image.",
    "call": "One run of the UNet. An image takes about one for each step.",
    "steps": "How often the sampler removes noise. More steps take more time.",
    "sampler": "The method that goes from noise to an image in steps.",
    "guidance": "How closely the image follows the prompt.",
    "depth": "How far down a call runs the UNet, counted in its rungs. The rest comes from the cache.",
    "cache": "It keeps values of earlier calls, so that later calls need not compute them.",
    "order": "How cached values are used: 0 as they are, 1 along a line, 2 along a parabola (forecast).",
    "noise": "Every image starts as random noise. The seed fixes it, so both images start from the same noise.",
    "speed-up": "Stock's time divided by dato's time. Both were measured just now, on this machine.",
    "time": "From the prompt to the image, measured just now on this machine. Nothing else was generated meanwhile.",
    "FLOPs": "Floating-point operations: how much the UNet computes.",
    "PSNR": "How near the image is to stock's, in decibels (dB). Higher is nearer, and 100 is equal.",
    "difference": "How much each pixel differs from stock's, {gain} times as strong as it is. Black is equal.",
    "plain steps": "Steps of the unchanged pipeline. Fewer of them are the simplest way to be faster.",
}

INTRO = (
    "Type a prompt, and see it drawn by {stock} and by {dato} from the same {noise}. "
    "Words with dots below them have an explanation: point at them, or tap them."
)
FRONT_INTRO = (
    "Each mark is a {point} of the {front}, with the speed-up that its search measured. To the right is faster."
)
ONE_SCHEDULE = "{name} is one {schedule}, so there is nothing to drag. Press Generate."
NO_FRONT = (
    "There is no {front} of this model yet. A search makes one: {search}. Then start {again}. "
    "Until then the second tab works without a search."
)
RULE_INTRO = "The {rule} makes a {schedule} that computes so many times fewer {FLOPs} in the {UNet}."
COMPARE_INTRO = "Choose three ways to be faster. All start from the same {noise}."
EMPTY = "Nothing is generated yet. Press Generate."

SCHEDULE_WORDS = "Words of this drawing: {UNet}, {call}, {depth}, {cache}, {order}."

WAITING = "Waiting: {} before this one."
WORKING = "{name}: {call} {number} of {calls}"
STARTING = "Starting."
DONE = "Done."
STOPPED = "Stopped."
# What appears when the pointer is on something of gradio's, by its selector.
TITLES = {
    "#dato-prompt": "What to draw.",
    "#dato-seed": "It fixes the random noise from which both images start. Another seed gives another image.",
    "#dato-front": "Each position is one schedule of the front. Drag, or use the arrow keys.",
    "#dato-rule": "How many times fewer operations the UNet computes. The whole image gains a little less time.",
    "#dato-stop": "Stop what is generated.",
    "#dato-random": "Draw a prompt that no search has seen.",
    "#dato-tab-front-button": "The front: the best schedules that a search found.",
    "#dato-tab-rule-button": "A rule makes a schedule from the speed-up. It needs no search.",
    "#dato-tab-compare-button": "Three ways to be faster, side by side.",
}
SLOWEST, FASTEST = "slower, nearer to stock", "faster, rougher"
GALLERY = "Results of this session"
GALLERY_NOTE = "The last {} results. A PNG holds its settings. They are gone when you close or reload this page."
