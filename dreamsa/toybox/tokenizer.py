"""A CLIPTokenizer that knows the toybox's words whole and spells every other word in bytes."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false
# (decorators of diffusers and transformers hide their own types)

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from dreamsa.toybox.captions import WORDS

MAX_LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE: 512 byte tokens (inside and at the end of a word), the merges that build WORDS, start and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(WORDS, trainer)
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    words = [token for token, _ in learned if len(token.removesuffix("</w>")) > 1]
    tokens = dict.fromkeys([*alphabet, *(f"{symbol}</w>" for symbol in alphabet), *words, START, END])
    merges = [tuple(pair) for pair in _merges(learner)]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=MAX_LENGTH)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    return json.loads(tokenizer.to_str())["model"]["merges"]
