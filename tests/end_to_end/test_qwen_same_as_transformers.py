"""Qwen2.5-VL, exported and run, gives the answers of transformers' own model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_checkpoint import IMAGE_ID, save_checkpoint
from transformers import Qwen2VLImageProcessorPil

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import build
from foveate.runtime.clock import Clock
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.images.processor import image_processor
from foveate.runtime.llm.prompt_items import prompt_items
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.text.chat_prompt import ImageSlot, Turn
from foveate.runtime.video.video_file import Video

NEW_TOKENS = 32
TEXT = "what is in the image, and où?"
SHAPES = {
    "square": [(48, 48)],
    "1:4": [(80, 20)],
    "4:1": [(20, 80)],
    "below a token": [(5, 7)],
    "above the limit": [(300, 421)],
    "odd": [(43, 61)],
    "a strip": [(8, 300)],
    "three": [(50, 30), (24, 56), (20, 20)],
}


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "tied"])
def both(request, tmp_path_factory):
    """Transformers' model and its image processor, and the pipeline of its bundle."""
    tied, path = request.param, tmp_path_factory.mktemp("qwen")
    model = save_checkpoint(path / "checkpoint", tied=tied, noise=0.02)
    (path / "checkpoint/video_preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 256, "longest_edge": 1024}, "fps": 2}'
    )
    processor = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 256, "longest_edge": 64 * 64})
    parts = models.load(str(path / "checkpoint"))
    build(parts, methods.load("none"), path / "bundle", precision="fp32", dialects=["ort"])
    compile_bundle(path / "bundle")
    return model, processor, Pipeline.load(path / "bundle")


def drawn(sizes) -> list[Image.Image]:
    rng = np.random.default_rng(4)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


def of_images(processor, images) -> dict[str, torch.Tensor]:
    return dict(processor(images, return_tensors="pt"))


def of_video(processor, frames, interval) -> dict[str, torch.Tensor]:
    """Return frames in pairs, as Qwen's video processor makes them.

    That processor needs torchvision. The pairs are made of what the image processor gives.
    """
    size = {"shortest_edge": 256, "longest_edge": 1024}
    each = [processor(frame, return_tensors="pt", size=size) for frame in [*frames, *frames[-1:]]]
    patches = [one["pixel_values"].view(-1, 3, 2, 16)[:, :, 0] for one in each]
    pairs = [torch.stack(pair, 2).flatten(1) for pair in zip(patches[::2], patches[1::2], strict=False)]
    grid = each[0]["image_grid_thw"] * torch.tensor([len(pairs), 1, 1])
    return {
        "pixel_values_videos": torch.cat(pairs),
        "video_grid_thw": grid,
        "second_per_grid_ts": torch.tensor([2 * interval]),
    }


def hf_answer(model, given, segments) -> tuple[list[int], np.ndarray]:
    """Transformers' own greedy tokens and the logits that led to each."""
    kind = "video" if "video_grid_thw" in given else "image"
    counts = (given[f"{kind}_grid_thw"].prod(-1) // 4).tolist()
    held = IMAGE_ID if kind == "image" else model.config.video_token_id
    ids = np.concatenate(
        [[held] * counts[s.index] if isinstance(s, ImageSlot) else s for s in segments]
    ).astype(np.int64)
    ids = torch.from_numpy(ids)[None]
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == held).int() * (1 if kind == "image" else 2),
            **given,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return out.sequences[0, ids.shape[1] :].tolist(), torch.cat(out.logits).numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_same_logits_and_greedy_tokens(both, shape):
    model, processor, pipe = both
    images = drawn(SHAPES[shape])
    compare(pipe, model, of_images(processor, images), images)


@pytest.mark.parametrize(("number", "interval"), [(4, 0.5), (5, 0.5), (6, 8.0)])
def test_videos(both, number, interval):
    """The last of an odd number of frames is shown twice.

    Frames far apart reach beyond the question's end in time.
    """
    model, processor, pipe = both
    video = Video(tuple(drawn([(24, 40)] * number)), interval)
    compare(pipe, model, of_video(processor, video.frames, interval), [video])


def compare(pipe, model, given, images) -> None:
    segments = pipe.tokenizer.encode_turns([Turn("user", TEXT, len(images))])
    tokens, expected = hf_answer(model, given, segments)
    clock = Clock()
    shown = [
        pipe.vision.prune(pipe.vision.see(pipe.vision.open(image), clock), {}, 1, clock) for image in images
    ]
    decoder = pipe.decoder()
    logits = [decoder.prefill(prompt_items(segments, shown), NEW_TOKENS).logits]
    logits += [decoder.step(token) for token in tokens[:-1]]
    ours = np.stack([row.numpy() for row in logits])
    error, scale = np.abs(ours - expected).max(axis=1), np.abs(expected).max(axis=1)
    assert (error <= 1e-3 * scale).all(), f"largest error {error.max():.2e} of {scale.max():.2e}"
    assert ours.argmax(axis=1).tolist() == tokens


@pytest.mark.parametrize("most", [512, 1500, 4096])
def test_pixels_with_another_maximum_are_the_processors(both, most):
    """`foveate build --max-pixels` against the processor with the same `max_pixels`."""
    _, _, pipe = both
    settings = models.load(pipe.manifest.source.model, max_pixels=most).image
    processor = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 256, "longest_edge": most})
    sizes = np.random.default_rng(most).integers(3, 300, (50, 2)).tolist()
    for height, width in sizes:
        theirs = processor.get_number_of_image_patches(height, width) // 4
        if theirs > most // 64:
            with pytest.raises(UserError, match="too narrow"):
                image_processor(settings).token_layout((width, height), (1, 1))
            continue
        assert image_processor(settings).token_layout((width, height), (1, 1)).total == theirs, (
            width,
            height,
        )
    for image in drawn([(60, 50), (20, 80), (5, 7), (300, 277), (43, 61)]):
        expected = processor(image, return_tensors="np")["pixel_values"]
        got = image_processor(settings).preprocess(image)[
            image_processor(settings).token_layout(image.size, (1, 1)).order
        ]
        np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1e-5)


def test_pixels_and_token_counts_are_the_processors(both):
    _, processor, pipe = both
    settings = pipe.manifest.image
    sizes = np.random.default_rng(0).integers(3, 500, (50, 2)).tolist()
    for height, width in [*sizes, *(size for shape in SHAPES.values() for size in shape)]:
        plan = image_processor(settings).token_layout((width, height), (1, 1))
        assert 4 * plan.total == processor.get_number_of_image_patches(height, width), (width, height)
    for image in drawn([size for shape in SHAPES.values() for size in shape]):
        expected = processor(image, return_tensors="np")["pixel_values"]
        plan = image_processor(settings).token_layout(image.size, (1, 1))
        got = image_processor(settings).preprocess(image)[plan.order].reshape(expected.shape)
        np.testing.assert_allclose(got, expected, atol=1e-5)
