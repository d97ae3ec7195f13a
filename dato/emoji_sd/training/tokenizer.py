"""Stage `tokenizer`: CLIP's byte-level BPE on the captions, in the layout of OpenAI's CLIP tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dato.emoji_sd.pictures import COLOURS
from dato.emoji_sd.training.folders import whole_folder
from dato.emoji_sd.training.workspace import Workspace

LENGTH = 16  # tokens of a prompt, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own pattern: https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(work: Workspace) -> None:
    """Train the tokenizer on the pictures' captions, unless an initial model has one: its text tower needs that one."""
    from transformers import CLIPTokenizer

    if work.done("tokenizer") or work.initial("tokenizer"):
        return
    with whole_folder(work.folder("tokenizer")) as folder:
        write(folder, work.pictures.captions())
        entries = len(CLIPTokenizer.from_pretrained(folder))
        (folder / "log.json").write_text(json.dumps({"stage": "tokenizer", "entries": entries}), encoding="utf-8")


def write(folder: Path, captions: Iterable[str]) -> None:
    """Train on the captions and write vocab.json, merges.txt and the two configurations into the folder."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = _byte_letters()
    letters += [f"{letter}</w>" for letter in letters]
    # Every name is in 8 captions. A pair of symbols gets an entry if it is in at least two names.
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=2 * len(COLOURS),
        end_of_word_suffix="</w>",
        # Number the letters here. The trainer would number them in the order of a hash table, which changes.
        special_tokens=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    # CLIP's order: the bytes, the bytes that end a word, the merges, the two special tokens.
    entries = [*letters, *(a + b for a, b in merges), START, END]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        **special,
    }
    texts = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]),
        "tokenizer_config.json": json.dumps(config),
        "special_tokens_map.json": json.dumps(special),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _byte_letters() -> list[str]:
    """Return the 256 letters that stand for the bytes, in CLIP's order: the printable bytes, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(others)]
