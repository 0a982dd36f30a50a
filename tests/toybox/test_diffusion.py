from dreamsa.assets import asset


def test_diffusers_itself_loads_the_embedded_model_and_draws_a_red_ball():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        asset("toybox-sd"), safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a red ball, front view"
    drawn = pipeline(prompt, num_inference_steps=10, guidance_scale=5, output_type="np")
    image = drawn.images[0]
    middle = image[24:40, 24:40].mean((0, 1))
    assert image.shape == (64, 64, 3)
    assert middle[0] > middle[1] + 0.2


def test_the_embedded_model_is_small():
    files = [path for path in asset("toybox-sd").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40 * 2**20
