import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OTHERS = [path.parent for path in ROOT.rglob("pyvenv.cfg")]  # environments of whoever works here
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.parts[len(ROOT.parts) :])
    and not any(path.is_relative_to(other) for other in OTHERS)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_files_that_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    configs = re.findall(r"--config[= ](\S+\.yaml)", text)
    assert not missing + [config for config in configs if not (ROOT / config).exists()]
    assert "@@" not in text


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch):
    from cm_lightning import ConsistencyTraining
    from tests.helpers import OwnMLP

    (code,) = [c for c in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "MyNet" in c]
    code = code.replace("L.Trainer(max_steps=100_000", "L.Trainer(max_steps=1, accelerator='cpu', logger=False")
    import torch

    data = torch.utils.data.DataLoader(torch.rand(8, 3, 32, 32), batch_size=4)
    monkeypatch.chdir(tmp_path)
    names = {"MyNet": lambda: OwnMLP(dim=3 * 32 * 32, width=8, depth=1), "my_datamodule": data}
    exec(code, names)
    assert isinstance(names["module"], ConsistencyTraining)
    assert names["images"].shape == (16, 3, 32, 32)
