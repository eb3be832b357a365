"""A static page that runs the one-step generator in the browser by ONNX Runtime Web."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from cm_lightning.errors import ConfigError
from cm_lightning.export.onnx import write_onnx
from cm_lightning.files import replacing
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.flow_map import FlowMapModule

_Read: TypeAlias = Callable[[str], bytes]
_PAGE = Path(__file__).parent / "page"
#: The files of the runtime that the page imports: WebAssembly, and WebGPU for browsers that have it.
_WASM, _WEBGPU = "ort.wasm.min.mjs", "ort.webgpu.min.mjs"
#: The name by which an entry point loads its glue code; the binary beside it has the same stem.
_GLUE = re.compile(r"ort-wasm[\w.-]*\.mjs")


def write_page(module: ConsistencyModule | FlowMapModule, folder: Path, runtime: Path | None = None) -> None:
    """Write ``index.html``, the generator as ``model.onnx``, and the files of the runtime.

    Args:
        module: draws grey or colour images in one step.
        folder: the folder to write to.
        runtime: the npm package ``onnxruntime-web``, packed or unpacked; the few files of it that the page loads are
            copied to ``runtime``. Nothing is copied if None.

    Raises:
        ConfigError: the module does not draw such images, onnx is not installed, or the package lacks the files.
    """
    shape = module.image_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigError(f"--format web shows grey or colour images, but this model draws {shape}: give --format onnx")
    files = {} if runtime is None else _runtime(runtime)
    write_onnx(module, folder / "model.onnx")
    description = {
        "shape": shape,
        "classes": module.num_classes,
        "any": bool(module.label_dropout),
        "parameters": sum(p.numel() for p in module.backbone.parameters()),
        "webgpu": _WEBGPU in files,
    }
    _write(folder / "model.json", json.dumps(description).encode())
    for source in sorted(_PAGE.iterdir()):
        with replacing(folder / source.name) as path:
            shutil.copyfile(source, path)
    for name, content in files.items():
        _write(folder / "runtime" / name, content)


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _runtime(package: Path) -> dict[str, bytes]:
    """The files that the page loads, by name."""
    try:
        with _opened(package) as read:
            return {**_loaded(_WASM, read), **_loaded_if_there(_WEBGPU, read)}
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise ConfigError(
            f"--runtime {package} does not hold dist/{_WASM} and what it loads: give the file that "
            "'npm pack onnxruntime-web' writes, or the folder of that package"
        ) from error


def _loaded(entry: str, read: _Read) -> dict[str, bytes]:
    """An entry point with the code and the binary that it loads."""
    content = read(entry)
    glue = sorted(set(_GLUE.findall(content.decode(errors="replace"))))
    names = [name for code in glue for name in (code, code.removesuffix("mjs") + "wasm")]
    return {entry: content, **{name: read(name) for name in names}}


def _loaded_if_there(entry: str, read: _Read) -> dict[str, bytes]:
    try:
        return _loaded(entry, read)
    except (FileNotFoundError, KeyError):  # an older package
        return {}


@contextmanager
def _opened(package: Path) -> Iterator[_Read]:
    """A function that reads a file of the package; it raises KeyError or FileNotFoundError if there is none."""
    if package.is_dir():
        yield lambda name: (package / "dist" / name).read_bytes()
        return
    with tarfile.open(package) as archive:
        yield lambda name: _extracted(archive, f"package/dist/{name}")


def _extracted(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:  # a folder
        raise KeyError(name)
    return file.read()
