from dreamsa.studies.trials import steps_to_success


def test_steps_to_success_is_the_first_step_of_lasting_success():
    def curve(*fractions):
        return [
            {"step": 10 * i, "object_right": fraction, "colour_right": 1.0, "retrieved": 0.0}
            for i, fraction in enumerate(fractions)
        ]

    assert steps_to_success(curve(0, 1, 0, 0.75, 1)) == 30
    assert steps_to_success(curve(1, 1, 1)) == 10
    assert steps_to_success(curve(1, 1, 1), after=10) == 20
    assert steps_to_success(curve(0, 1, 0.5)) is None
    assert steps_to_success([{"step": 5, "retrieved": 1.0}]) == 5
