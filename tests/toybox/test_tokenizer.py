from transformers import CLIPTokenizer

from dreamsa.toybox.captions import WORDS
from dreamsa.toybox.tokenizer import ANGLE_WORDS, MAX_LENGTH, new_tokenizer


def test_known_words_are_one_token_and_unknown_ones_are_spelled():
    tokenizer = new_tokenizer()
    assert all(len(tokenizer.tokenize(word)) == 1 for word in (*WORDS, *ANGLE_WORDS))
    angles = "a car, side view, azimuth 105, elevation -15"
    assert tokenizer.tokenize(angles)[-5:] == [
        "azimuth</w>",
        "105",
        ",</w>",
        "elevation</w>",
        "-15",
    ]
    assert tokenizer.tokenize("8 cars")[0] == "8</w>"
    assert tokenizer.tokenize("Purple  RABBIT") == ["purple</w>", "rabbit</w>"]
    spelled = tokenizer.tokenize("zebra 日本 🐇")
    assert len(spelled) > 5
    assert tokenizer.unk_token not in spelled


def test_a_saved_tokenizer_loads_unchanged(tmp_path):
    new_tokenizer().save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("an ebony gas can, side view", "a mug, azimuth 345, elevation +90", "1050 mugs"):
        assert loaded(text).input_ids == new_tokenizer()(text).input_ids
    assert loaded.model_max_length == MAX_LENGTH


def test_token_ids_do_not_depend_on_chance():
    """Merges of equal frequency are ordered, so that an interrupted training can be resumed."""
    first, second = new_tokenizer(), new_tokenizer()
    assert first.get_vocab() == second.get_vocab()
    text = "a zebra of quartz, azimuth 105"
    assert first(text).input_ids == second(text).input_ids
