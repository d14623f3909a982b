"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from fastwave import audio

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="needs the source tree")
def test_the_ten_lines(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.+?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    audio.write("speech.wav", 0.1 * torch.randn(22_050, generator=torch.Generator().manual_seed(0)), 22_050)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    vocoded = audio.read("vocoded.wav", 22_050)
    assert len(vocoded) == names["speech"].shape[1] == 87 * 256  # 1 + 22,050 // 256 frames
    assert capsys.readouterr().out.count("torch.Size") >= 10
