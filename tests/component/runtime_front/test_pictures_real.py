"""Pictures classified by a real model in a real runtime."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest
import requests
import torch

from tests.support.pictures import LABELS, encoded, picture, write_picture_model
from tests.support.served import runtime_process

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model

SIZE = 32


def test_a_picture_is_classified_as_transformers_does_in_json_and_as_a_file(tmp_path: Path) -> None:
    reference = write_picture_model(tmp_path / "m", "vit")
    image = picture(SIZE, SIZE)
    data = encoded(image)
    with runtime_process(tmp_path, str(tmp_path / "m"), "127.99.8.17", LLMOS_FORMAT="fp32") as served:
        url = f"{served.url}/classify"
        text = base64.b64encode(data).decode()
        plain = requests.post(url, json={"model": "m", "input": f"data:image/png;base64,{text}"}, timeout=180)
        form = requests.post(url, data={"model": "m"}, files={"file": ("a.png", data)}, timeout=180)
        assert (plain.status_code, form.status_code) == (200, 200), plain.text + form.text
        broken = requests.post(url, json={"model": "m", "input": text[:40]}, timeout=180)
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_image")
        memory = served.report()["memory"]
        assert served.report()["state"] == "Ready"
    assert memory["measuredBytes"] < memory["predictedBytes"] * 1.2
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(SIZE, SIZE, 3)
    values = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    mean, deviation = torch.tensor(values["image_mean"]), torch.tensor(values["image_std"])
    pixels = ((raw.float() / 255 - mean) / deviation).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = reference(pixel_values=pixels).logits.softmax(-1)[0]
    (found,) = plain.json()["data"]
    assert found["probs"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found["label"] == LABELS[int(expected.argmax())]
    assert form.json()["data"] == plain.json()["data"]
