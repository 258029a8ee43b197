"""Networks as ONNX files: one by one for shipping, many at once for measuring.

What is shipped always comes from PyTorch's dynamo exporter. It takes about half a second for a
block and many for a deep network, so what is only measured goes through the older tracing exporter
where this PyTorch still has it: 25 times faster, and the same latency within noise, since ONNX
Runtime optimises both to the same convolutions and matrix products (a test compares them). Pooling
and reshaping may be fused differently, so a student's own file is measured again. What the tracing
exporter can't convert is converted by the dynamo exporter, many blocks side by side as one network
with an input and an output each, and cut apart again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx.utils
import torch
from torch import nn

from tailorbird.errors import ExportError, StoreError
from tailorbird.files import cannot_write, scratch, write_bytes
from tailorbird.quiet import silent

INPUT, OUTPUT = "image", "logits"
"""Names of the one input and the one output of every exported network."""

PROBABILITIES = "probabilities"
"""The output's name where softmax is in the file."""

SINGLE_FILE_BYTES = 2_000_000_000
"""Above this (protobuf's own bound is 2 GiB) the weights go to ``NAME.onnx.data`` beside it."""

CHUNK_BLOCKS = 48
CHUNK_BYTES = 256_000_000

_Shape = tuple[int, ...]
_SCOPES = "pkg.torch.onnx.name_scopes"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def export_onnx(
    module: nn.Module,
    input_shape: Sequence[int],
    path: Path,
    *,
    opset: int | None = None,
    dynamic_batch: bool = False,
    metadata: Mapping[str, str] | None = None,
    output: str = OUTPUT,
    batch: int = 1,
    single_file_bytes: int = SINGLE_FILE_BYTES,
) -> Path:
    """Write ``module`` in eval mode and float32 as the ONNX file ``path``.

    The module itself is left as it is, training mode included. The file is checked by
    ``onnx.checker``, holds no source paths, and appears whole or not at all (temporary file,
    fsync, rename); missing folders are made.

    Args:
        module: takes one tensor (batch, *input_shape), returns one tensor.
        input_shape: without the batch dimension, such as (3, 32, 32).
        path: the file to write; an existing one is replaced.
        opset: the ONNX operator set; ``None`` takes the exporter's default.
        dynamic_batch: leave the batch size open.
        metadata: text that travels in the file, such as class names and normalisation.
        output: the name of what it returns.
        batch: images per call where the batch size is not left open.
        single_file_bytes: above this the weights go to ``NAME.onnx.data`` beside the file.

    Returns:
        ``path``.

    Raises:
        ExportError: naming the module and operator that can't be exported and the way out.
        StoreError: when the file can't be written.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_onnx(nn.Linear(4, 2), (4,), pathlib.Path(folder) / "model.onnx")
        ...     file.name
        'model.onnx'
    """
    shape = tuple(input_shape)
    frozen = _frozen(module, path.name)
    _dry_run(frozen, shape, path.name)
    batch = 2 if dynamic_batch else batch  # an example of batch 1 would be taken for a constant
    model = _convert(
        frozen, [shape], batch=batch, opset=opset, dynamic=dynamic_batch, what=path.name
    )
    single = _cut(model, 0, output)
    if dynamic_batch:
        _name_batch(single)
    onnx.helper.set_model_props(single, dict(metadata or {}))
    _check(single, path.name, full=True, limit=single_file_bytes)
    return write_model(single, path, sync=True, limit=single_file_bytes)


def metadata_of(path: Path) -> dict[str, str]:
    """What travels inside an exported file, as `export_onnx` was given it.

    Raises:
        StoreError: when the file can't be read.
    """
    model = _loaded(path, weights=False)
    return {entry.key: entry.value for entry in model.metadata_props}


def _loaded(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=weights)
    except Exception as error:  # the file system's errors, or protobuf's own
        raise StoreError(
            f"{path} can't be read: {error}; remove it to have it made anew"
        ) from error


def relabel(
    source: Path,
    path: Path,
    metadata: Mapping[str, str],
    *,
    single_file_bytes: int = SINGLE_FILE_BYTES,
) -> Path:
    """Write a copy of an exported network that carries other metadata.

    Args:
        source: what :func:`export_onnx` has written.
        path: the copy, which appears whole or not at all; missing folders are made.
        metadata: in place of the source's own.
        single_file_bytes: as :func:`export_onnx` takes it.

    Raises:
        StoreError: when a file can't be read or written.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = export_onnx(nn.Linear(4, 2), (4,), pathlib.Path(folder) / "model.onnx")
        ...     second = relabel(first, first.with_name("second.onnx"), {"target": "phone"})
        ...     [(p.key, p.value) for p in onnx.load(second).metadata_props]
        [('target', 'phone')]
    """
    model = _loaded(source)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    return write_model(model, path, sync=True, limit=single_file_bytes)


def export_many(
    modules: Sequence[tuple[nn.Module, tuple[int, ...]]],
    folder: Path,
    names: Sequence[str],
    *,
    batch: int = 1,
    tracing: bool = True,
    opset: int | None = None,
) -> list[Path]:
    """Write many modules as ``folder/NAME.onnx``, fast, for measuring.

    Same convolutions and matrix products as one :func:`export_onnx` each, and so the same
    latency within noise. Files appear whole or not at all, but are not synced to disk: they can be
    made again.

    Args:
        modules: (module, input shape without the batch dimension) each.
        folder: where the files go; made if missing.
        names: one file name each, without ``.onnx``.
        batch: images per call.
        tracing: try the tracing exporter first, which is faster but knows fewer operators.
        opset: that the tracing exporter is asked for; its own choice by default.

    Returns:
        The files, in the order of ``modules``.

    Raises:
        ExportError: naming every module that can't be exported and why; the others are written.
        StoreError: when a file can't be written.
    """
    paths = _file_names(modules, folder, names)
    faults: list[str] = []
    slow = [
        i
        for i in range(len(modules))
        if not (tracing and _export_traced(*modules[i], paths[i], batch=batch, opset=opset))
    ]
    for chunk in _chunks([modules[i][0] for i in slow]):
        places = [slow[position] for position in chunk]
        _export_chunk([modules[i] for i in places], [paths[i] for i in places], faults, batch)
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ExportError(
            f"{len(faults)} of {len(modules)} modules can't be exported: "
            + "; ".join(faults[:5])
            + more
        )
    return paths


def _export_traced(
    module: nn.Module, shape: _Shape, path: Path, *, batch: int, opset: int | None
) -> bool:
    """Convert by the tracing exporter; whether that worked."""
    try:
        with scratch() as folder, silent(), torch.no_grad():
            file = folder / "traced.onnx"
            torch.onnx.export(
                _frozen(module, path.name),
                (torch.zeros(batch, *shape),),
                file,
                dynamo=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
            model = onnx.load(file)
        _check(model, path.name, full=False)
    except Exception:  # whatever its layers raise: the dynamo exporter tries next, and explains
        return False
    if [value.name for value in (*model.graph.input, *model.graph.output)] != [INPUT, OUTPUT]:
        return False
    write_model(model, path, sync=False)
    return True


class _SideBySide(nn.Module):
    """Modules that have nothing to do with each other, each with its own input and output."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, *images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part(image) for part, image in zip(self.parts, images, strict=True))


def _export_chunk(
    modules: Sequence[tuple[nn.Module, _Shape]],
    paths: Sequence[Path],
    faults: list[str],
    batch: int,
) -> None:
    """Convert together; where that fails, halve until the modules at fault stand alone."""
    try:
        if len(modules) == 1:
            module, shape = modules[0]
            frozen = _frozen(module, paths[0].name)
            _dry_run(frozen, shape, paths[0].name)
            model = _convert(frozen, [shape], what=paths[0].name, batch=batch)
        else:
            together = _SideBySide([_frozen(module, "block") for module, _ in modules])
            shapes = [shape for _, shape in modules]
            model = _convert(together, shapes, what="blocks", batch=batch)
        parts = [_cut(model, index) for index in range(len(modules))]
        for part, path in zip(parts, paths, strict=True):
            _check(part, path.name, full=False)
    except ExportError as error:
        if len(modules) == 1:
            faults.append(str(error))
            return
        middle = len(modules) // 2
        _export_chunk(modules[:middle], paths[:middle], faults, batch)
        _export_chunk(modules[middle:], paths[middle:], faults, batch)
        return
    for part, path in zip(parts, paths, strict=True):
        write_model(part, path, sync=False)


def _convert(
    module: nn.Module,
    shapes: Sequence[_Shape],
    *,
    what: str,
    batch: int = 1,
    opset: int | None = None,
    dynamic: bool = False,
) -> onnx.ModelProto:
    """One conversion of a frozen module with one input per shape; inputs ``image_0``, ..."""
    examples = tuple(torch.zeros(batch, *shape) for shape in shapes)
    names = range(len(shapes))
    spec = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = None
    try:
        with silent(), torch.no_grad():
            program = torch.export.export(
                module,
                examples,
                dynamic_shapes=spec,
                strict=False,
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[f"{INPUT}_{i}" for i in names],
                output_names=[f"{OUTPUT}_{i}" for i in names],
            )
    except Exception as error:  # the exporter raises whatever its many layers raise
        raise ExportError(
            f"{what}: {_explain(module, examples, program, error)}"
            + (
                "; or export with dynamic_batch=False"
                if dynamic
                else "; replace that operation in the network, or keep it out of the blocks"
            )
        ) from error
    if exported is None:
        raise ExportError(f"{what}: the exporter returned nothing")
    model: onnx.ModelProto = exported.model_proto
    given = next((o.version for o in model.opset_import if not o.domain), None)
    if opset is not None and given != opset:
        raise ExportError(
            f"{what}: opset {opset} was asked for, the exporter can only give {given}; "
            "leave opset out or name that one"
        )
    return model


def _cut(model: onnx.ModelProto, index: int, output: str = OUTPUT) -> onnx.ModelProto:
    """The part between input ``index`` and output ``index``, named and cleaned."""
    part = onnx.utils.Extractor(model).extract_model([f"{INPUT}_{index}"], [f"{OUTPUT}_{index}"])
    part.producer_name, part.producer_version = model.producer_name, model.producer_version
    graph = part.graph
    graph.name = "network"
    renamed = {f"{INPUT}_{index}": INPUT, f"{OUTPUT}_{index}": output}
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = renamed.get(name, name)
        layer = _layer(node)
        node.name = f"{layer}/{node.name}" if layer else node.name
        node.ClearField("metadata_props")  # holds stack traces with this machine's paths
        node.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.name = renamed.get(value.name, value.name)
    kept = [value for value in graph.value_info if value.name not in renamed]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    return part


def _layer(node: onnx.NodeProto) -> str:
    """Path of the submodule whose code a node comes from; empty where that is the network."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = re.findall(r"'([^']*)'", entry.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def _name_batch(model: onnx.ModelProto) -> None:
    """Call the open batch dimension ``batch`` everywhere (the exporter calls it ``s77``)."""
    graph = model.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if symbol and dim.dim_param == symbol:
                dim.dim_param = "batch"


def _check(
    model: onnx.ModelProto, what: str, *, full: bool, limit: int = SINGLE_FILE_BYTES
) -> None:
    if model.ByteSize() > limit:
        return  # the checker can't take it in memory; ONNX Runtime checks it on loading
    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        line = str(error).strip().splitlines()[0]
        raise ExportError(
            f"{what}: the exported file is not valid ONNX: {line}; try another opset"
        ) from error


def write_model(
    model: onnx.ModelProto, path: Path, *, sync: bool, limit: int = SINGLE_FILE_BYTES
) -> Path:
    """Write the file whole or not at all; weights go beside it only if they must."""
    if model.ByteSize() > limit:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _move_weights_out(model, path)
        except OSError as error:
            raise cannot_write(path, error) from error
    write_bytes(path, model.SerializeToString(), sync=sync)
    return path


def _move_weights_out(model: onnx.ModelProto, path: Path) -> None:
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    onnx.external_data_helper.convert_model_to_external_data(
        model, location=data.name, size_threshold=1024
    )
    onnx.external_data_helper.write_external_data_tensors(model, str(path.parent))


def _frozen(module: nn.Module, what: str) -> nn.Module:
    """A float32 copy in eval mode on the CPU."""
    try:
        return copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    except Exception as error:  # a module's own __deepcopy__ may raise anything
        raise ExportError(
            f"{what}: the network can't be copied: {error}; hand over one that copy.deepcopy takes"
        ) from error


def _dry_run(module: nn.Module, shape: _Shape, what: str) -> None:
    """One eager pass, so that a wrong input size is not mistaken for an exporter's fault."""
    try:
        with torch.no_grad():
            output = module(torch.zeros(1, *shape))
    except Exception as error:  # a network's forward may raise anything
        raise ExportError(
            f"{what}: the network does not run on an input of shape {(1, *shape)}: "
            f"{_first_line(error)}; give the input shape that it was made for"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise ExportError(
            f"{what}: expected the network to return one tensor, got {type(output).__name__}; "
            "wrap it in a module that returns the logits"
        )


def _explain(
    module: nn.Module,
    examples: tuple[torch.Tensor, ...],
    program: torch.export.ExportedProgram | None,
    error: BaseException,
) -> str:
    """What failed and in which submodule."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    operator = re.search(r"op='([\w.]+)'", str(root))
    if program is None:
        place = _where_tracing_stops(module, examples)
        return f"module {place!r} can't be traced: {_first_line(root)}"
    if operator is None:
        return f"the conversion to ONNX failed: {_first_line(root)}"
    place = _where_called(program, operator.group(1))
    return f"module {place!r} uses {operator.group(1)}, which has no ONNX form"


def _where_tracing_stops(module: nn.Module, examples: tuple[torch.Tensor, ...]) -> str:
    """Trace once more, noting which submodules were entered but not left."""
    entered: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: entered.append(name)

    def leave(*_: object) -> None:
        entered.pop()

    hooks = []
    for name, child in module.named_modules():
        hooks.append(child.register_forward_pre_hook(enter(name)))
        hooks.append(child.register_forward_hook(leave))
    try:
        with silent(), torch.no_grad():
            torch.export.export(module, examples, strict=False)
    except Exception:  # the same failure as before; what counts is where it stopped
        return entered[-1] if entered else ""
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def _where_called(program: torch.export.ExportedProgram, operator: str) -> str:
    """Path of the submodule whose code led to ``operator`` (say ``aten._linalg_svd``)."""
    with silent(), torch.no_grad():
        lowered = program.run_decompositions()
    for node in lowered.graph.nodes:
        if str(node.target).startswith(operator):
            stack = list(node.meta.get("nn_module_stack", {}).values())
            return str(stack[-1][0]) if stack else ""
    return ""


def _first_line(error: BaseException) -> str:
    lines = _ANSI.sub("", str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _file_names(
    modules: Sequence[tuple[nn.Module, _Shape]], folder: Path, names: Sequence[str]
) -> list[Path]:
    if len(names) != len(modules):
        raise ExportError(f"expected one name per module ({len(modules)}), got {len(names)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExportError(f"expected distinct file names, given more than once: {twice[:5]}")
    bad = [name for name in names if Path(name).name != name]
    if bad:
        raise ExportError(f"expected plain file names without folders, got {bad[:5]}")
    return [folder / f"{name}.onnx" for name in names]


def _chunks(
    modules: Sequence[nn.Module], *, most: int = CHUNK_BLOCKS, limit: int = CHUNK_BYTES
) -> Iterator[list[int]]:
    """Indices in order, each run of at most ``most`` modules and ``limit`` bytes of weights.

    A module that is larger alone has a run of its own.
    """
    chunk: list[int] = []
    size = 0
    for index, module in enumerate(modules):
        weight = 4 * sum(tensor.numel() for tensor in module.parameters())
        if chunk and (len(chunk) == most or size + weight > limit):
            yield chunk
            chunk, size = [], 0
        chunk.append(index)
        size += weight
    if chunk:
        yield chunk
