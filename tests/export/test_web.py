"""The folder that export --format web writes; tests/test_browser.py opens it."""

import json
import tarfile

import pytest

from cm_lightning.commands import export
from cm_lightning.errors import ConfigError
from cm_lightning.export.web import _write, write_page
from cm_lightning.modules.diffusion import DiffusionModule
from tests.helpers import module as points_module
from tests.test_serve import make

WASM, WEBGPU = "ort.wasm.min.mjs", "ort.webgpu.min.mjs"
CONTENT = {
    WASM: b'import("./ort-wasm-simd.mjs")',
    "ort-wasm-simd.mjs": b"1",
    "ort-wasm-simd.wasm": b"2",
    WEBGPU: b'import("./ort-wasm-gpu.asyncify.mjs")',
    "ort-wasm-gpu.asyncify.mjs": b"3",
    "ort-wasm-gpu.asyncify.wasm": b"4",
}
OTHERS = {"ort.all.min.mjs": b"5", "ort-wasm-other.wasm": b"6"}


def package(folder, files, packed):
    """A package of npm's, as a folder or as the file that ``npm pack`` writes."""
    dist = folder / "package" / "dist"
    dist.mkdir(parents=True)
    for name, content in files.items():
        (dist / name).write_bytes(content)
    if not packed:
        return folder / "package"
    with tarfile.open(folder / "x.tgz", "w:gz") as archive:
        archive.add(folder / "package", "package")
    return folder / "x.tgz"


@pytest.fixture(autouse=True)
def no_onnx(monkeypatch):
    """Leave the conversion out, which test_export.py tests."""
    monkeypatch.setattr("cm_lightning.export.web.write_onnx", lambda module, path: _write(path, b"onnx"))


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


PAGE = {"index.html", "page.js", "style.css", "model.json", "model.onnx"}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("webgpu", [False, True])
def test_a_folder_holds_the_page_and_what_it_loads_of_the_runtime(packed, webgpu, tmp_path):
    given = {name: content for name, content in CONTENT.items() if webgpu or name != WEBGPU}
    m = make(label_dropout=0.1)
    write_page(m, tmp_path / "out", package(tmp_path, {**given, **OTHERS}, packed))
    kept = CONTENT.keys() if webgpu else {WASM, "ort-wasm-simd.mjs", "ort-wasm-simd.wasm"}
    assert names(tmp_path / "out") == PAGE | {f"runtime/{name}" for name in kept}
    for name in kept:
        assert (tmp_path / "out" / "runtime" / name).read_bytes() == CONTENT[name]
    assert json.loads((tmp_path / "out" / "model.json").read_text()) == {
        "shape": [1, 8, 8], "classes": 3, "any": True, "webgpu": webgpu,
        "parameters": sum(p.numel() for p in m.backbone.parameters()),
    }  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lacking", [WASM, "ort-wasm-simd.wasm"])
def test_a_package_without_the_files_is_refused_before_the_folder_is_written(lacking, packed, tmp_path):
    runtime = package(tmp_path, {name: content for name, content in CONTENT.items() if name != lacking}, packed)
    with pytest.raises(ConfigError, match=r"--runtime .* does not hold dist/ort.wasm.min.mjs .*'npm pack onnxruntime"):
        write_page(make(), tmp_path / "out", runtime)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"no archive", b"\x1f\x8b\x08\x00"])
def test_what_is_not_a_package_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "x.tgz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--runtime .*x.tgz does not hold"):
        write_page(make(), tmp_path / "out", tmp_path / "x.tgz")


def run(monkeypatch, m, folder, *options, kind="web"):
    monkeypatch.setattr("cm_lightning.modules.loading.load_trained", lambda *_: m)
    monkeypatch.setattr(export, "_origin", lambda *_: (7, "averaged"))
    export.main([f"--ckpt_path={folder}/x.ckpt", f"--format={kind}", f"--output={folder / 'out'}", *options])


def test_the_command_says_what_is_missing(tmp_path, monkeypatch, capsys):
    run(monkeypatch, make(), tmp_path)
    said = capsys.readouterr()
    assert said.out == f"web: {tmp_path / 'out'}\n"
    assert "run 'npm pack onnxruntime-web', and export again with --runtime onnxruntime-web-VERSION.tgz" in said.err
    assert names(tmp_path / "out") == {*PAGE, "README.md"}

    run(monkeypatch, make(), tmp_path, f"--runtime={package(tmp_path, CONTENT, True)}", "--overwrite")
    assert capsys.readouterr().err == ""
    assert "python -m http.server" in (tmp_path / "out" / "README.md").read_text()


def test_models_that_the_page_cannot_show_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--format web takes a one-step model, but this is a DiffusionModule"):
        run(monkeypatch, make(DiffusionModule), tmp_path)
    with pytest.raises(ConfigError, match=r"--format web shows grey or colour images, but this model draws \(2,\)"):
        run(monkeypatch, points_module(), tmp_path, "--overwrite")


def test_the_runtime_belongs_to_the_page_alone(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, make(), tmp_path, "--runtime=x", kind="onnx")
    assert "--runtime is an option of --format web: leave it out" in capsys.readouterr().err
