"""Which forecast? Judge candidates by the final images, over samplers and numbers of steps, on held-out prompts.

    python scripts/study_forecasts.py RESULTS.jsonl --samplers dpm++2m,plms --rules line,aligned --images 6

Writes one line for each (sampler, steps, schedule, rule): PSNR to the stock image of the same sampler and steps, and
CLIP score. Lines that are there already are not computed again.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import dato.patch
from dato import Schedule, emoji_sd, patched
from dato.cache import LAST, Cache
from dato.forecast import chebyshev, combine, polynomial
from dato.quality import Setup, load_metric
from dato.samplers import num_calls, set_scheduler
from dato.sampling import Sampling, generate, load_pipeline

SCHEDULES = {
    50: [(2, 1), (3, 1), (5, 1), (3, 0), (5, 0), (3, 3)],
    25: [(2, 1), (3, 1), (5, 1), (3, 0)],
    20: [(2, 1), (3, 1), (5, 1), (3, 0)],
    10: [(2, 1), (3, 1), (2, 0)],
}
LOG_SNR: dict[float, float] = {}


def line(past, now, calls, skip, *, variable="time", damping=1.0, order=1):
    read = {
        "time": lambda p: p.time,
        "call": lambda p: p.call,
        "log-snr": lambda p: float(np.interp(p.time, list(LOG_SNR), list(LOG_SNR.values()))),
    }[variable]
    past = past[-order - 1 :]
    weights = np.array(polynomial([read(p) for p in past], read(now))) * damping
    weights[-1] += 1 - damping
    return combine([p.value for p in past], weights.tolist())


def hermite(past, now, calls, skip, *, sigma=0.5):
    """HiCache's scaled Hermite polynomials, order 2, in call index (differences as in TaylorSeer)."""
    if len(past) < 3:
        return line(past, now, calls, skip, variable="call", damping=2 * sigma**2)
    a, b, c = past[-3:]
    gap = max(c.call - b.call, 1)
    x = now.call - c.call
    first, second = (c.value - b.value) / gap, ((c.value - b.value) - (b.value - a.value)) / gap**2
    return c.value + 2 * sigma**2 * x * first + 0.5 * (4 * sigma**4 * x**2 - 2 * sigma**2) * second


def spectrum(past, now, calls, skip):
    return combine([p.value for p in past], chebyshev([p.call for p in past], now.call, calls))


def aligned(past, now, calls, skip, *, kind="raw"):
    past = past[-2:]
    if skip is None:
        return line(past, now, calls, skip)
    (v0, v1), (s0, s1) = [p.value for p in past], [p.skip for p in past]
    t = (now.time - past[1].time) / (past[1].time - past[0].time)
    a, b = s1 - s0, skip - s1
    num, den = a * b, a * a
    if kind == "region":
        num, den = (F.avg_pool2d(x.sum(1, keepdim=True), 8, ceil_mode=True) for x in (num, den))
        k = F.interpolate(num / den.clamp(min=1e-12), size=v1.shape[-2:], mode="bilinear")
    else:
        num, den = num.flatten(1).sum(1), den.flatten(1).sum(1)
        if kind == "half":
            num, den = (x.view(2, -1).sum(0).repeat(2) for x in (num, den))
        k = (num / den.clamp(min=1e-12)).view(-1, 1, 1, 1)
    if kind == "clamp":
        k = k.clamp(0, t)
    if kind == "mix":
        k = (k + t) / 2
    if kind == "geo":
        k = (k.clamp(min=0) * t).sqrt()
    return v1 + k * (v1 - v0)


def squares(past, now, calls, skip, *, ridge=0.1, terms=2):
    """Least squares of the skip's step on its last secants, ridge towards the line."""
    past = past[-terms - 1 :]
    if skip is None:
        return line(past, now, calls, skip)
    terms = min(terms, len(past) - 1)
    t = (now.time - past[-1].time) / (past[-1].time - past[-2].time)
    secants = torch.stack([(q.skip - p.skip).flatten(1) for p, q in zip(past, past[1:])], 1)[:, ::1]  # B, terms, n
    prior = torch.zeros(terms)
    prior[-1] = t
    target = (skip - past[-1].skip).flatten(1)
    gram = secants @ secants.transpose(1, 2)
    lam = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(terms)
    right = (secants @ target[:, :, None]) + lam @ prior[None, :, None]
    c = torch.linalg.solve(gram + lam, right)[..., 0]
    value = past[-1].value
    for j, (p, q) in enumerate(zip(past, past[1:])):
        value = value + c[:, j].view(-1, 1, 1, 1) * (q.value - p.value)
    return value


RULES = {
    "reuse": lambda past, now, calls, skip: past[-1].value,
    "line": line,
    "line log-SNR": partial(line, variable="log-snr"),
    "line call": partial(line, variable="call"),
    "line x0.75": partial(line, damping=0.75),
    "line x0.5": partial(line, damping=0.5),
    "quadratic": partial(line, order=2),
    "Hermite 2": hermite,
    "Chebyshev": spectrum,
    "aligned": aligned,
    "aligned clamp": partial(aligned, kind="clamp"),
    "aligned mix": partial(aligned, kind="mix"),
    "aligned geometric": partial(aligned, kind="geo"),
    "aligned half": partial(aligned, kind="half"),
    "aligned region": partial(aligned, kind="region"),
    "aligned squares": squares,
    "aligned squares ridge 1": partial(squares, ridge=1.0),
    "aligned squares ridge 0.3": partial(squares, ridge=0.3),
    "line feature": line,
}


class Study(Cache):
    rule, feature = None, False

    def __init__(self, forecast="polynomial", calls=0):
        super().__init__("aligned", calls)
        self.last_feature = Study.feature

    def store(self, place, value, skip=None):
        self._past.setdefault(place, [])
        if self._past[place] and self._past[place][-1].time == self.present.time:
            self._past[place].pop()
        self._past[place].append(dato.cache.Computed(self.present.call, self.present.time, value.detach(), skip))

    def end(self):
        pass

    def recall(self, place, skip=None):
        past = self._past[place]
        if len(past) < 2:
            return past[-1].value
        return Study.rule(past, self.present, self.calls, skip if place != LAST else None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--samplers", default="dpm++2m,plms")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--steps", default="50,25,20,10")
    parser.add_argument("--schedules", default="")
    parser.add_argument("--images", type=int, default=6)
    options = parser.parse_args()
    pipe = load_pipeline()
    # Every prompt of a fixed stride, so that the images are of different kinds.
    prompts = emoji_sd.prompts("evaluation")[:: 74 // options.images][: options.images]
    clip, psnr = (load_metric(name, Setup()) for name in ("clip-score", "psnr"))
    seen = set()
    if options.results.exists():
        rows = [json.loads(text) for text in options.results.read_text().splitlines()]
        seen = {(r["sampler"], r["steps"], r["interval"], r["depth"], r["rule"]) for r in rows}
    alphas = pipe.scheduler.alphas_cumprod
    LOG_SNR.update({float(t): float(v) for t, v in enumerate((alphas / (1 - alphas)).log())})
    dato.patch.Cache = Study
    only = {tuple(map(int, text.split("-"))) for text in options.schedules.split(",") if text}
    for sampler in options.samplers.split(","):
        set_scheduler(pipe, sampler)
        for steps in map(int, options.steps.split(",")):
            sampling = Sampling(steps, 3.0, seed=1000, batch_size=options.images)
            stock = None
            for interval, depth in SCHEDULES[steps]:
                if only and (steps, interval, depth) not in only:
                    continue
                for rule in options.rules.split(","):
                    if (sampler, steps, interval, depth, rule) in seen or (depth == 0 and "aligned" in rule):
                        continue
                    if rule == "line feature" and depth:
                        continue
                    if stock is None:
                        stock = generate(pipe, prompts, sampling).images
                        row = {"sampler": sampler, "steps": steps, "interval": 1, "depth": 12, "rule": "stock"}
                        row |= {"psnr": 100.0, "clip": clip(stock, prompts, stock)}
                        with options.results.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                    Study.rule = staticmethod(RULES[rule])
                    Study.feature = rule == "line feature"
                    with patched(pipe, Schedule.uniform(num_calls(pipe, steps), interval, depth, 1)):
                        images = generate(pipe, prompts, sampling).images
                    row = {"sampler": sampler, "steps": steps, "interval": interval, "depth": depth, "rule": rule}
                    row |= {"psnr": psnr(images, prompts, stock), "clip": clip(images, prompts, stock)}
                    with options.results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)


if __name__ == "__main__":
    main()
