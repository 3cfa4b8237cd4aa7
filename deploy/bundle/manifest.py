"""``manifest.json``: what a bundle is made of, and how it was made. Needs neither torch nor onnx.

History of the format:

1. The first.
2. ``notes``, ``opset``, ``requires``, ``client_schedule``; graphs say on how many inputs they were measured (``parity_cases``),
   and ONNX graphs, too, which operators compute in fp32. The student's record names the LoRAs that were merged (``loras``; none
   where the key is not there); ``sampling`` has ``guidance``, none where the key is not there, and ``blocks`` says which rows of
   the modulations are whose. Pictures may have ``other_sizes``, whose graphs say which one ``shares`` its weights with them. A
   manifest of version 1 is one of version 2 that says nothing of these.
"""

from __future__ import annotations

import collections
import itertools
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec

from deploy.errors import BundleError, Complaint
from exporters.choices import AttentionForm, Compute, ComputeUnits, FormatName, Layout, Precision, Sampler, UpscaleMode
from exporters.guidance import UNGUIDED, Guidance, guidance_complaints
from exporters.scales import Size as LatentSize
from exporters.scales import denoised_sizes, sized_graph
from quantization.errors import printable

FORMAT: Literal["flash-deploy bundle"] = "flash-deploy bundle"
VERSION = 2
NAME = "manifest.json"
LARGEST_BYTES = 1 << 26  # far more than a list of every weight of a full-size student takes

Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Unknown keys are errors: a typo must not pass for a default."""


class FileRecord(_Record, frozen=True):
    """One file of the bundle: path with forward slashes, size in bytes, SHA-256 in hexadecimal."""

    path: str
    size_bytes: Size
    sha256: Sha256


class PortRecord(_Record, frozen=True):
    """One input or output of a graph; symbolic sizes are strings."""

    name: str
    dtype: Literal["float32", "int32", "int64"]
    shape: tuple[int | str, ...]


class StageRecord(_Record, frozen=True):
    """One Core ML package: its folder, what it takes and what it returns; names are shared with the stages around it."""

    path: str
    inputs: tuple[PortRecord, ...]
    outputs: tuple[PortRecord, ...]


class GraphRecord(_Record, frozen=True):
    """One graph.

    Attributes:
        name: ``denoiser``, ...
        path: its ``.onnx`` file, or its first ``.mlpackage`` folder.
        components: the student's components it was made of.
        parameters: numbers stored in its weights.
        weight_bytes: bytes of its own weights: those that another graph stores are not counted.
        memory_bytes: what it takes in memory when it is loaded and run, predicted.
        inputs: what it takes.
        outputs: what it returns.
        parity_db: worst signal-to-noise ratio against diffusers in fp32, in dB (``inf`` is written as 999); none where it
            was not measured.
        parity_cases: on how many inputs it was measured.
        parity_note: why it was not measured.
        stages: the Core ML packages that it is made of, in the order in which they run.
        fp32_operators: operators (of ONNX graphs: parts of the traced module) that compute in fp32 in graphs that compute in
            fp16: their values outgrow fp16, or need more digits than it has, or a rule says so.
        bands: of rows in which a VAE's graph is computed, for less memory; 1 for all at once.
        shares: the graph, of another size, that stores the weights of both; what it has of its own lies in its own file, or is
            a function of the same packages.
        function: of its packages, which hold one for each size.
    """

    name: str
    path: str
    components: tuple[str, ...]
    parameters: Size
    weight_bytes: Size
    memory_bytes: Size
    inputs: tuple[PortRecord, ...]
    outputs: tuple[PortRecord, ...]
    parity_db: float | None = None
    parity_cases: Size = 0
    parity_note: str = ""
    stages: tuple[StageRecord, ...] = ()
    fp32_operators: tuple[str, ...] = ()
    bands: Count = 1
    shares: str = ""
    function: str = "main"

    def holds(self, file: str) -> bool:
        """Whether a file of the bundle is one of the graph's own: its ONNX file, its data, or anything in its packages."""
        packages = tuple(f"{stage.path}/" for stage in self.stages)
        return file in (self.path, f"{self.path}.data") or file.startswith(packages)


class TokenizerRecord(_Record, frozen=True):
    """One tokenizer: the graph input it feeds, its ``tokenizer.json``, and how its output is padded and cut."""

    input: str
    path: str
    max_length: Count
    pad_token_id: TokenId


class GuidanceRecord(_Record, frozen=True):
    """How a picture is guided where it is not asked for another way: :class:`exporters.guidance.Guidance`, without guidance."""

    guidance_scale: float = UNGUIDED
    negative_prompt: str = ""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    skip_guidance_layers: tuple[int, ...] = ()
    skip_layer_guidance_scale: float = Guidance.skip_layer_guidance_scale
    skip_layer_guidance_start: float = Guidance.skip_layer_guidance_start
    skip_layer_guidance_stop: float = Guidance.skip_layer_guidance_stop


class SamplingRecord(_Record, frozen=True):
    """The pinned schedule: sigmas after the shift (one more than steps, the last 0) and timesteps (0 to 1000).

    Attributes:
        method: how to step.
        sigmas: noise levels.
        timesteps: what the transformer was told.
        guidance: none by default.
        combinations: of ``dpmpp``: what the latents after each step are, as :class:`~exporters.layouts.sampling.Sampling` has it.
        scales: sizes of the latents of each step, as shares of the last, which is 1; none where they do not grow.
        upscale_mode: how they are enlarged between steps.
    """

    method: Sampler
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    guidance: GuidanceRecord = GuidanceRecord()
    combinations: tuple[tuple[float, ...], ...] = ()
    scales: tuple[Positive, ...] = ()
    upscale_mode: UpscaleMode = "nearest"

    @property
    def passes(self) -> int:
        """How often a picture asks the network."""
        return self.guided.passes(self.sigmas)

    @property
    def guided(self) -> Guidance:
        """The guidance."""
        return Guidance(**msgspec.structs.asdict(self.guidance))


class PictureSize(_Record, frozen=True):
    """A picture's size in pixels."""

    height: Count
    width: Count


class PictureRecord(_Record, frozen=True):
    """Picture size in pixels: the default, those that can be drawn beside it, and the largest side where it is dynamic.

    Also latent channels, pixels per latent, what sizes must be a multiple of, and the VAE's scaling and shift.
    """

    height: Count
    width: Count
    dynamic: bool
    latent_channels: Count
    pixels_per_latent: Count
    multiple_of: Count
    scaling_factor: float
    shift_factor: float
    largest: Count
    other_sizes: tuple[PictureSize, ...] = ()

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every picture that can be drawn where the size is not dynamic, the default first."""
        return ((self.height, self.width), *((size.height, size.width) for size in self.other_sizes))


class TextRecord(_Record, frozen=True):
    """Text encoding: T5 kept, or its tokens null tokens; the width that ``optimum`` and ``swift`` layouts assemble."""

    tokenizers: tuple[TokenizerRecord, ...]
    t5: Literal["kept", "dropped"]
    max_sequence_length: Count
    joint_dim: Count


class LoraRecord(_Record, frozen=True):
    """A LoRA that was merged into the student: its file's name, that file's SHA-256, and what its product was multiplied by."""

    name: str
    sha256: Sha256
    scale: float


class StudentRecord(_Record, frozen=True):
    """Where the bundle came from: the student's folder name, content hash and licence texts by file name.

    Attributes:
        loras: that were merged into its weights, in their order; the fingerprint is of both.
    """

    name: str
    fingerprint: str
    licences: dict[str, str]
    loras: tuple[LoraRecord, ...] = ()


class RuleRecord(_Record, frozen=True):
    """One rule of the profile: which component's which weights (globs) are stored how, and why. The last matching rule wins."""

    component: str
    weights: str
    scheme: str
    reason: str = ""


class KeptRecord(_Record, frozen=True):
    """A weight that keeps its floating-point form though a rule gave it an integer scheme, and why."""

    component: str
    weight: str
    scheme: str
    reason: str


class ClientScheduleRecord(_Record, frozen=True):
    """What Apple's Swift client must be told, and what its transformer makes of it: :class:`ClientSchedule` of the exporters.

    Attributes:
        steps: ``stepCount``.
        shift: ``schedulerTimestepShift``.
        timesteps: what the client tells the transformer at each step.
        scales: the velocity that it returns there over the student's own.
    """

    steps: Count
    shift: float
    timesteps: tuple[float, ...]
    scales: tuple[float, ...]


class BlocksRecord(_Record, frozen=True):
    """The transformer's blocks, by which the rows of modulations are laid out (:mod:`exporters.modulations`)."""

    num_layers: Count
    dual_attention_layers: tuple[Size, ...]


class Manifest(_Record, frozen=True):
    """Everything a runtime must know of a bundle.

    Attributes:
        calibration_prompts: how many prompts the weights' codes were calibrated on; 0 means data-free.
        compute_units: what Core ML programs are made for; none in other formats.
        attention: of Core ML programs: one operation for all heads, or an einsum for each.
        notes: what whoever built it was told about the student and its schedule.
        opset: of ONNX graphs; none in other formats, and in manifests of version 1, whose graphs are of opset 23.
        requires: the least version of each package that runs it.
        client_schedule: of the layout ``swift``.
        blocks: of the transformer; none in bundles that were built before guidance could leave layers out.
    """

    format: Literal["flash-deploy bundle"]
    version: Annotated[int, msgspec.Meta(ge=1)]
    created_with: dict[str, str]
    student: StudentRecord
    tier: str
    model_format: FormatName
    layout: Layout
    compute: Compute
    precision: Precision
    profile: tuple[RuleRecord, ...]
    kept: tuple[KeptRecord, ...]
    calibration_prompts: Size
    sampling: SamplingRecord
    picture: PictureRecord
    text: TextRecord
    graphs: tuple[GraphRecord, ...]
    files: tuple[FileRecord, ...]
    compute_units: ComputeUnits | None = None
    attention: AttentionForm | None = None
    notes: tuple[str, ...] = ()
    opset: Count | None = None
    requires: dict[str, str] = msgspec.field(default_factory=dict)
    client_schedule: ClientScheduleRecord | None = None
    blocks: BlocksRecord | None = None

    @property
    def latent_size(self) -> LatentSize:
        """Rows and columns of a picture's latents, of the bundle's default size."""
        return self.picture_latents[0]

    @property
    def picture_latents(self) -> tuple[LatentSize, ...]:
        """Rows and columns of the latents of every picture that can be drawn where the size is not dynamic, the default first."""
        scale = self.picture.pixels_per_latent
        return tuple((height // scale, width // scale) for height, width in self.picture.sizes)

    @property
    def sizes(self) -> tuple[LatentSize, ...]:
        """Sizes of latents of steps, but for the default picture's, where graphs have one size; each has a denoiser."""
        if self.picture.dynamic:
            return ()
        return denoised_sizes(self.sampling.scales, self.picture_latents, len(self.sampling.timesteps))

    def graph_of(self, kind: str, size: LatentSize) -> str:
        """The graph of the layout ``native`` for latents of a size: the one of any size, or of the default picture's, or its own.

        Args:
            kind: ``denoiser``, ``vae_decoder`` or ``vae_encoder``.
            size: rows and columns.
        """
        return kind if self.picture.dynamic or size == self.latent_size else sized_graph(kind, size)

    def has(self, graph: str) -> bool:
        """Whether there is a graph of that name."""
        return any(record.name == graph for record in self.graphs)

    def graph(self, name: str) -> GraphRecord:
        """The graph of that name.

        Raises:
            BundleError: there is none.
        """
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise BundleError("The bundle lacks a graph.", [Complaint(NAME, "graph is missing", name)])

    def files_of(self, graph: str) -> list[str]:
        """The paths of all files that a graph is loaded from, those among them whose weights it shares."""
        record = self.graph(graph)
        shared = f"{self.graph(record.shares).path}.data" if record.shares else ""
        return [file.path for file in self.files if record.holds(file.path) or file.path == shared]

    def to_json(self) -> bytes:
        """The manifest as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle's manifest.

    Raises:
        BundleError: missing, damaged, of another version, or naming a path outside the bundle.
    """
    file = folder / NAME
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise BundleError(f"{folder} is not a bundle.", [Complaint(str(file), "is not a file")])
        if (size := file.stat().st_size) > LARGEST_BYTES:
            complaint = Complaint(str(file), "is too large for a manifest", f"at most {LARGEST_BYTES} bytes", f"{size} bytes")
            raise BundleError(f"{folder} is not a bundle.", [complaint])
        raw = file.read_bytes()
    except OSError as error:
        complaint = Complaint(str(file), error.strerror or str(error), "a bundle folder with a manifest.json")
        raise BundleError(f"{folder} is not a bundle.", [complaint], "give the folder that `flash-deploy build` made") from error
    return parse_manifest(raw, file)


def is_bundle(folder: Path) -> bool:
    """Whether a folder says of itself that it is a bundle, of whatever version: other things have a ``manifest.json`` too."""
    try:
        raw = (folder / NAME).read_bytes() if (folder / NAME).is_file() else b""
        return msgspec.json.decode(raw, type=_Version).format == FORMAT
    except (OSError, msgspec.MsgspecError, RecursionError):
        return False


def parse_manifest(raw: bytes, file: Path) -> Manifest:
    """Decode and check a manifest's content.

    Raises:
        BundleError: as :func:`read_manifest`.
    """
    try:
        version = msgspec.json.decode(raw, type=_Version)
        if version.format == FORMAT and version.version > VERSION:
            complaint = Complaint(str(file), "made by a newer flash-deploy", f"version {VERSION}", str(version.version))
            maker = printable(version.created_with.get("flash-deploy", ""))
            remedy = f"install flash-deploy {maker} or newer, which made it" if maker else "upgrade flash-deploy"
            raise BundleError("The bundle cannot be read.", [complaint], remedy)
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError("The manifest is damaged.", [Complaint(str(file), str(error))], "build the bundle again") from error
    _check(manifest, file)
    return manifest


class _Version(msgspec.Struct):
    format: str = ""
    version: int = 0
    created_with: dict[str, str] = msgspec.field(default_factory=dict)


def _check(manifest: Manifest, file: Path) -> None:
    packages = [stage.path for graph in manifest.graphs for stage in graph.stages]
    models = packages if manifest.model_format == "coreml" else [graph.path for graph in manifest.graphs]
    contents = [f"{path}/{part}" for path in packages for part in ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel")]
    used = [*(contents or models), *(tokenizer.path for tokenizer in manifest.text.tokenizers)]
    listed = [record.path for record in manifest.files]
    complaints = [
        Complaint(str(file), "names a path outside the bundle", "a relative path without '..'", repr(path))
        for path in (*listed, *used)
        if not _is_inside(path)
    ]
    for kind, names in (("file", listed), ("graph", [graph.name for graph in manifest.graphs])):
        twice = sorted(name for name, count in collections.Counter(names).items() if count > 1)
        complaints += [Complaint(str(file), f"names a {kind} twice", got=repr(name)) for name in twice]
    complaints += [Complaint(str(file), f"{path} is used and not listed in files") for path in used if path not in listed]
    owners = {graph.name for graph in manifest.graphs if not graph.shares}
    for graph in manifest.graphs:
        if graph.shares and graph.shares not in owners:
            complaints.append(
                Complaint(f"{file}: {graph.name}", "shares weights with no graph that has its own", got=repr(graph.shares))
            )
    functions = collections.Counter((stage.path, graph.function) for graph in manifest.graphs for stage in graph.stages)
    complaints += [
        Complaint(str(file), f"names the function {function} of {path} twice")
        for (path, function), count in functions.items()
        if count > 1
    ]
    complaints += _check_fit(manifest, file)
    sampling = manifest.sampling
    if len(sampling.sigmas) != len(sampling.timesteps) + 1 or not sampling.timesteps:
        got = f"{len(sampling.sigmas)} and {len(sampling.timesteps)}"
        complaints.append(Complaint(str(file), "sigmas and timesteps disagree", "one sigma more than timesteps", got))
    elif not _falls(sampling.sigmas):
        got = ", ".join(map(str, sampling.sigmas))
        complaints.append(Complaint(str(file), "sigmas are wrong", "numbers that fall, from at most 1 to 0", got))
    rows = [step + 2 for step in range(len(sampling.timesteps))] if sampling.method == "dpmpp" else []
    if [len(row) for row in sampling.combinations] != rows:
        got = str([len(row) for row in sampling.combinations])
        complaints.append(Complaint(str(file), "combinations are not those of the steps", str(rows), got))
    if sampling.scales and len(sampling.scales) != len(sampling.timesteps):
        complaints.append(Complaint(str(file), "scales are wrong", "one for each step", str(len(sampling.scales))))
    layers = manifest.blocks.num_layers if manifest.blocks else None
    complaints += guidance_complaints(msgspec.structs.asdict(sampling.guidance), f"{file}: ", layers)
    if (client := manifest.client_schedule) and not _serves(client, len(sampling.timesteps)):
        got = f"{client.steps} of timesteps {list(client.timesteps)} and scales {list(client.scales)}"
        expected = f"at least {len(sampling.timesteps)} steps, a timestep and a scale above 0 for each"
        complaints.append(Complaint(str(file), "client_schedule is wrong", expected, got))
    if complaints:
        raise BundleError("The manifest is not usable.", complaints, "build the bundle again")


_GRAPHS = {
    "native": {"text_encoder", "conditioner", "denoiser", "vae_decoder"},
    "optimum": {"text_encoder", "text_encoder_2", "transformer", "vae_decoder"},
    "swift": {"text_encoder", "text_encoder_2", "transformer", "vae_decoder"},
}
"""The graphs that the runtime asks for, by layout."""


def _check_fit(manifest: Manifest, file: Path) -> list[Complaint]:
    """Graphs, tokenizers, schedule and picture must fit each other: what does not would fail in the middle of a picture."""
    graphs = {graph.name: graph for graph in manifest.graphs}
    needed = _GRAPHS[manifest.layout] | {manifest.graph_of("denoiser", size) for size in manifest.sizes}
    if manifest.layout == "native" and not manifest.picture.dynamic:
        encoder = ("vae_encoder",) if manifest.has("vae_encoder") else ()
        needed |= {manifest.graph_of(kind, size) for kind in ("vae_decoder", *encoder) for size in manifest.picture_latents}
    if missing := needed - graphs.keys():
        expected = f"those of the layout {manifest.layout}"
        return [Complaint(str(file), "graphs are missing", expected, f"no {', '.join(sorted(missing))}")]
    complaints = []
    if manifest.model_format == "coreml" and (bare := [graph.name for graph in manifest.graphs if not graph.stages]):
        complaints.append(Complaint(str(file), "graphs have no stages", "at least one package each", ", ".join(bare)))
    wanted = {"input_ids", "input_ids_2"} | ({"input_ids_3"} if manifest.text.t5 == "kept" else set())
    if (got := {tokenizer.input for tokenizer in manifest.text.tokenizers}) != wanted:
        complaints.append(Complaint(str(file), "tokenizers are wrong", ", ".join(sorted(wanted)), ", ".join(sorted(got))))
    if manifest.layout == "native":
        expected_shapes = _native_shapes(manifest)
        for (graph, port), shape in expected_shapes.items():
            recorded = {p.name: p.shape for p in (*graphs[graph].inputs, *graphs[graph].outputs)}.get(port)
            if recorded != shape:
                complaints.append(Complaint(f"{file}: {graph}", f"{port} has another shape", str(list(shape)), str(recorded)))
    return complaints


def _native_shapes(manifest: Manifest) -> dict[tuple[str, str], tuple[int | str, ...]]:
    """Ports of native graphs whose shape the rest of the manifest says."""
    picture, steps = manifest.picture, len(manifest.sampling.timesteps)
    modulation = next((p.shape for g in manifest.graphs for p in g.inputs if p.name == "modulation"), ())
    shapes: dict[tuple[str, str], tuple[int | str, ...]] = {("conditioner", "modulations"): (steps, *modulation)}
    if not picture.dynamic:
        for size in (*manifest.sizes, manifest.latent_size):
            shapes[manifest.graph_of("denoiser", size), "hidden_states"] = (1, picture.latent_channels, *size)
        for pixels, size in zip(picture.sizes, manifest.picture_latents, strict=True):
            shapes[manifest.graph_of("vae_decoder", size), "sample"] = (1, 3, *pixels)
            if manifest.has("vae_encoder"):
                encoder = manifest.graph_of("vae_encoder", size)
                shapes[encoder, "sample"] = (1, 3, *pixels)
                shapes[encoder, "latent_mean"] = (1, picture.latent_channels, *size)
    for tokenizer in manifest.text.tokenizers:
        shapes["text_encoder", tokenizer.input] = (1, tokenizer.max_length)
    return shapes


def _falls(sigmas: tuple[float, ...]) -> bool:
    return sigmas[0] <= 1 and sigmas[-1] == 0 and all(a > b for a, b in itertools.pairwise(sigmas))


def _serves(client: ClientScheduleRecord, steps: int) -> bool:
    """Whether each of the student's steps is one of the client's."""
    whole = len(client.timesteps) == len(client.scales) == client.steps >= steps
    return whole and all(scale > 0 for scale in client.scales[:steps])


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return (
        path.isprintable()
        and bool(path)
        and str(pure) == path
        and not pure.is_absolute()
        and ".." not in pure.parts
        and "\\" not in path
        and ":" not in path
    )
