"""Pictures: pixels and probabilities are those of transformers' own processors and models."""

import io
import json

import pytest
import torch
from PIL import Image
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from llmos_operator.api.runtime import memory, modelfiles
from llmos_operator.errors import Permanent
from llmos_operator.runtime.engine.embedding import Embeds
from llmos_operator.runtime.formats.config import read_config
from llmos_operator.runtime.formats.safetensors_file import read_header
from llmos_operator.runtime.ipc.messages import Embed, EngineInfo
from llmos_operator.runtime.pictures.decoding import decode, sized
from llmos_operator.runtime.pictures.rules import read_rules
from tests.support.pictures import LABELS, MODELS, encoded, picture, write_picture_model, write_processor

SIZES = ((40, 30), (31, 77), (200, 50), (8, 8), (32, 32))
PROCESSORS = {"ViTImageProcessor": ViTImageProcessorPil, "ConvNextImageProcessor": ConvNextImageProcessorPil}


def processor(folder):
    values = json.loads((folder / "preprocessor_config.json").read_text())
    name = values.pop("feature_extractor_type", None) or values.pop("image_processor_type")
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    return PROCESSORS[name](**values)


def pixels(folder, image):
    rules = read_rules(folder)
    made = sized(decode(encoded(image)), rules.height, rules.width, rules.short_side, rules.resampling)
    return made.tobytes()


@pytest.mark.parametrize("model_type", list(MODELS))
@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_pictures_are_classified_as_transformers_classifies_them(driver, tmp_path, model_type, problem):
    reference = write_picture_model(tmp_path, model_type, problem_type=problem)
    images = [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    found = driver(tmp_path).built.pictures.classify([pixels(tmp_path, image) for image in images])
    with torch.no_grad():
        seen = processor(tmp_path)(images, return_tensors="pt")["pixel_values"]
        logits = reference(pixel_values=seen).logits
    expected = logits.sigmoid() if problem else logits.softmax(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected.std(0).max() > 0.001, "the answers depend on the picture"


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("convnext", {"size": {"shortest_edge": 384}, "resample": 2}),
        ("convnext", {"size": 224, "crop_pct": 0.9}),
        ("convnext", {"crop_pct": 0.95, "do_normalize": False}),
        ("vit", {"size": 32, "resample": 0}),
        ("vit", {"do_rescale": False}),
        ("vit", {"image_mean": None, "image_std": None}),
    ],
)
def test_the_steps_are_those_of_the_processor(tmp_path, model_type, changes):
    write_picture_model(tmp_path, model_type)
    write_processor(tmp_path, model_type, MODELS[model_type][1], 32)
    path = tmp_path / "preprocessor_config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    rules = read_rules(tmp_path)
    for seed, size in enumerate(SIZES):
        image = picture(*size, seed=seed)
        (expected,) = processor(tmp_path)(image, return_tensors="pt")["pixel_values"]
        raw = torch.frombuffer(bytearray(pixels(tmp_path, image)), dtype=torch.uint8)
        found = raw.reshape(rules.height, rules.width, 3).permute(2, 0, 1).float() * rules.factor
        found = (found - torch.tensor(rules.mean)[:, None, None]) / torch.tensor(rules.deviation)[
            :, None, None
        ]
        assert found.shape == expected.shape
        assert torch.allclose(found, expected.float(), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor is not served"),
        ({"do_resize": False}, "does not resize"),
        ({"size": {"height": 64, "width": 64}}, "64 x 64 are wanted; this model is sized for 32"),
        ({"size": {"height": -1, "width": 32}}, "size.height is '-1'"),
        ({"resample": 99}, "resample is '99'"),
        ({"image_std": [0.1, 0, 0.1]}, "image_std"),
        ({"image_mean": [0.1, 0.2]}, "image_mean"),
        ({"rescale_factor": "x"}, "rescale_factor is 'x'"),
    ],
)
def test_processors_that_cannot_be_followed_are_refused(tmp_path, changes, told):
    write_picture_model(tmp_path, "vit")
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(Permanent, match=told):
        read_rules(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "changes", "told"),
    [
        ("vit", {"image_size": 10**6}, "image_size is '1000000'"),
        ("resnet", {"hidden_sizes": [8] * 1000}, "hidden_sizes is no list"),
        ("convnext", {"depths": ["x"]}, "depths is 'x'"),
        ("vit", {"architectures": ["ViTModel"]}, "ViTModel is not served"),
        ("vit", {"hidden_size": None}, "hidden_size"),
    ],
)
def test_configs_that_cannot_be_are_refused(tmp_path, model_type, changes, told):
    write_picture_model(tmp_path, model_type)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(Permanent, match=told):
        read_config(tmp_path)


@pytest.mark.parametrize("model_type", list(MODELS))
def test_operator_and_runtime_tell_the_same_sizes_and_abilities(driver, tmp_path, model_type):
    write_picture_model(tmp_path, model_type)
    config = modelfiles.parse_config((tmp_path / "config.json").read_bytes())
    header = read_header(tmp_path / "model.safetensors")
    raw = [modelfiles.Tensor(one.name, one.dtype, tuple(one.shape)) for one in header.tensors]
    seen, built = modelfiles.shape_of(config, raw), driver(tmp_path).empty.shape
    assert (seen.picture_floats, seen.generative, seen.hidden) == (
        built.picture_floats,
        built.generative,
        built.hidden,
    )
    assert seen.picture_floats > 0
    assert read_config(tmp_path).apis == ("classify",)
    sizes = {"max_model_len": 1, "max_num_seqs": 1, "base_bytes": 0}
    assert memory.estimate(seen, "fp32", **sizes).activation_bytes >= 16 * seen.picture_floats


def test_pictures_of_another_size_are_refused_and_texts_too(driver, tmp_path):
    write_picture_model(tmp_path, "vit")
    model = driver(tmp_path).built.pictures
    info = EngineInfo(
        str(tmp_path), "", "", "", "fp32", "cpu", 1, 1, labels=LABELS, picture_bytes=32 * 32 * 3
    )
    embeds = Embeds(None, info, model)
    for wrong in (
        Embed("a", (), classify=True, pictures=(bytes(5),)),
        Embed("a", (), classify=True),
        Embed("a", ((1,),), classify=True),
    ):
        embeds.add(wrong)
        assert "3072 bytes" in embeds.step().error
    embeds.add(Embed("a", (), classify=True, pictures=(bytes(3072), bytes(3072))))
    assert (embeds.step().dimensions, embeds.step()) == (3, None)


def test_a_picture_is_turned_as_it_says():
    image = picture(20, 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded(image, "PNG", exif=exif))) as turned:
        assert turned.size == (20, 10)
    assert decode(encoded(image, "PNG", exif=exif)).size == (10, 20)
