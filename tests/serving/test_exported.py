"""A service of an exported file: the same answers, without torch."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.service import JPEG, Asked

from imgclf.serving.models import ServedModel

CODE = "import sys; from imgclf import serve; code = serve.main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(code)"


@pytest.mark.trust("a service of exported files", "torch is loaded, or an answer differs from the checkpoint's")
def test_exported_file_is_served_without_torch(
    tiny_run: Path, tiny_model: ServedModel, red: bytes, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    from imgclf.export import main

    file = tmp_path / "colours.onnx"
    assert main([str(tiny_run), "--out", str(file)]) == 0
    command = [sys.executable, "-c", CODE, str(file), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        asked = Asked(int(lines[1].rpartition(":")[2].rstrip("/\n")))
        top = asked.ask("/predict?top=3", red, JPEG).json["predictions"][0]["top"]
        (expected,) = tiny_model.predictor.predict_proba([red])
        shown = [{entry["class"]: entry["probability"] for entry in top}[name] for name in tiny_model.classes]
        assert shown == pytest.approx(expected.tolist(), abs=1e-4)
        (facts,) = asked.ask("/metadata").json["models"]
        assert (facts["name"], facts["saliency"], facts["samples"]) == ("colours", False, {})
        assert (facts["network"], facts["size"], facts["classes"]) == ("small_cnn", 16, list(tiny_model.classes))
        assert asked.ask("/predict?saliency=1", red, JPEG).status == 400
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, output, errors) == (0, "False\n", "imgclf: stopped by SIGTERM\n")
    finally:
        process.kill()
        process.communicate()
