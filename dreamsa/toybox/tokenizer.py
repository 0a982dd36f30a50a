"""A CLIPTokenizer with one token per word of the toybox; it spells other words in bytes."""

# Decorators of diffusers and transformers hide types:
# pyright: reportArgumentType=false

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, CLIPTokenizer

from dreamsa.toybox.captions import AZIMUTH_WORDS, ELEVATION_WORDS, WORDS

MAX_LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"
ANGLE_WORDS = (*AZIMUTH_WORDS, *ELEVATION_WORDS)


def new_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE: 512 bytes (inside and ending a word), the merges of WORDS, start, end; then
    the angles."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    final = [f"{symbol}</w>" for symbol in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=[*alphabet, *final],  # in a fixed order, which settles ties between merges
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(WORDS, trainer)
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    words = [token for token, _ in learned if len(token.removesuffix("</w>")) > 1]
    tokens = dict.fromkeys([*alphabet, *final, *words, START, END])
    merges: list[list[str]] = json.loads(learner.to_str())["model"]["merges"]
    tokenizer = CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(pair) for pair in merges],
        model_max_length=MAX_LENGTH,
    )
    # CLIP's pre-tokenizer would split numbers into digits, which say nothing about angles alone
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ANGLE_WORDS])
    return tokenizer
