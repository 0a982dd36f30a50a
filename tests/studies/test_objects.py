from studies.objects import table


def test_the_table_shows_every_run():
    done = {
        "duck": {"object right, of 8": 7},
        "purple rabbit, plain": {"object right, of 8": 0},
    }
    text = table(done)
    assert "| duck | 7 |" in text
    assert "purple-rabbit-plain.png" in text
